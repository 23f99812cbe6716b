"""Whether groups of languages still differ once what else differs between them is held fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from subnet._statistics import CONFIDENCE
from subnet.errors import InputError

_Array = NDArray[np.float64]

#: Share of a column's variance that must be left when the others are held fixed.
_NOTHING = 1e-9
#: Permutations that are worked on together.
_BATCH = 2000


@dataclass(frozen=True)
class AdjustedDifference:
    """Difference between two groups of languages with covariates held fixed.

    Attributes:
        value: Coefficient of membership: members minus others, in the unit of the values.
        stderr: Its heteroscedasticity-consistent (HC3) standard error.
        ci_low, ci_high: 95 % interval, t distribution with the residual degrees of freedom.
        p_value: Two-sided, Freedman–Lane permutation over languages.
        variance_inflation: 1 / (1 − R²) of membership on the covariates: how many times the
            variance of the difference grows because the groups differ in the covariates too.
        covariates: Those held fixed.
        dropped: Covariates that are constant over these languages, or follow from the others.
        n_members, n_others: Languages with a value and all covariates.
        reason: Why there is no value; `""` where there is one.
    """

    value: float
    stderr: float
    ci_low: float
    ci_high: float
    p_value: float
    variance_inflation: float
    covariates: tuple[str, ...]
    dropped: tuple[str, ...]
    n_members: int
    n_others: int
    reason: str = ""


def adjusted_difference(
    values: pd.Series | Mapping[str, float],
    members: pd.Series | Mapping[str, bool],
    covariates: pd.DataFrame | None = None,
    *,
    seed: int = 0,
    n_permutations: int = 9999,
) -> AdjustedDifference:
    """Difference of a group of languages from the rest, given covariates.

    The coefficient β of membership g in y = α + βg + Zγ + ε by least squares. The p-value
    permutes the residuals of y on (1, Z) over languages, adds the fit back, and compares
    |β| / stderr (Freedman and Lane 1983; recommended by Winkler et al. 2014), each with its own
    HC3 error (MacKinnon and White 1985), so that unequal spreads of the groups do not pass for a
    difference (DiCiccio and Romano 2017). Without covariates it is a studentised permutation test
    of the difference of two means.

    Where the groups hardly overlap in a covariate, the difference given it rests on extrapolation:
    `variance_inflation` says so, and neither p nor interval can tell the two apart.

    Args:
        values: One value per language; NaN is left out.
        members: Whether a language belongs to the group; languages it lacks are left out.
        covariates: One row per language, one numeric column per covariate. Languages with a
            missing covariate are left out.
        seed: Seed of the permutations.
        n_permutations: How many; the smallest p-value is 1 / (1 + n_permutations).

    Raises:
        InputError: A covariate is not numeric.

    Example:
        >>> found = adjusted_difference(
        ...     {"de": 1.0, "fr": 2.0, "ru": 4.0, "el": 5.0, "hi": 4.5},
        ...     {"de": False, "fr": False, "ru": True, "el": True, "hi": True})
        >>> found.value
        3.0
    """
    names, y, group, columns = _joined(values, members, covariates)
    z, kept, dropped = _independent(columns, names)
    n_members, n_others = int(group.sum()), int((~group).sum())

    def undefined(reason: str) -> AdjustedDifference:
        nan = math.nan
        return AdjustedDifference(
            nan, nan, nan, nan, nan, nan, kept, dropped, n_members, n_others, reason
        )

    if min(n_members, n_others) < 2:
        return undefined("fewer than two languages in a group")
    indicator = group.astype(np.float64)
    left = indicator - _fit(z, indicator)
    variance = float(((indicator - indicator.mean()) ** 2).sum())
    if left @ left <= _NOTHING * variance:
        return undefined(f"{' and '.join(kept)} tell the groups apart: no difference is left")
    freedom = len(y) - z.shape[1] - 1
    if freedom < 1:
        return undefined(f"{len(y)} languages are too few for {len(kept)} covariates")
    full = _basis(np.column_stack([z, indicator]))
    leverage = (full**2).sum(axis=1)
    if (leverage > 1 - _NOTHING).any():
        return undefined("one language alone decides a coefficient")
    value, stderr = (float(x[0]) for x in _coefficients(y[:, None], left, full, leverage))
    fitted = _fit(z, y)
    residual = y - fitted
    if stderr <= 1e-12 * max(abs(value), float(np.abs(y).max())):
        return undefined("the values have no spread but the groups' and the covariates'")
    p_value = _freedman_lane(
        abs(value) / stderr, fitted, residual, left, full, leverage, seed, n_permutations
    )
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * stderr
    inflation = variance / float(left @ left)
    return AdjustedDifference(
        value, stderr, value - half, value + half, p_value, inflation, kept, dropped, n_members,
        n_others,
    )  # fmt: skip


def variance_inflation(covariates: pd.DataFrame) -> pd.Series:
    """How far each column follows from the others: 1 / (1 − R²) of it on the rest, by name.

    1 is unrelated; infinite is decided by the others; NaN is constant. Above about 5 the effects
    of a column and of the others can hardly be told apart. Rows with a missing value are left out.

    Args:
        covariates: One row per language, one numeric column per covariate.
    """
    frame = covariates.dropna()
    found = {}
    for name in frame.columns:
        column = frame[name].to_numpy(dtype=np.float64)
        others = frame.drop(columns=name).to_numpy(dtype=np.float64)
        rest = column - _fit(_basis(_with_constant(others)), column)
        variance = float(((column - column.mean()) ** 2).sum()) if len(column) else 0.0
        if variance <= _NOTHING * float(column @ column) or variance == 0:
            found[str(name)] = math.nan
        else:
            left = float(rest @ rest)
            found[str(name)] = math.inf if left <= _NOTHING * variance else variance / left
    return pd.Series(found, dtype=float, name="variance_inflation")


def _joined(
    values: pd.Series | Mapping[str, float],
    members: pd.Series | Mapping[str, bool],
    covariates: pd.DataFrame | None,
) -> tuple[list[str], _Array, NDArray[np.bool_], _Array]:
    """Names of the covariates, y [l], membership [l] and covariates [l, c], joined by language."""
    outcome = pd.Series(dict(values), dtype=float).dropna()
    group = pd.Series(dict(members), dtype=object).dropna().astype(bool)
    table = pd.DataFrame(index=outcome.index) if covariates is None else covariates
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"covariate {name!r} is not numeric", expected="numbers, NaN if none")
    table = table.dropna()
    labels = [label for label in outcome.index if label in group.index and label in table.index]
    return (
        [str(name) for name in table.columns],
        np.asarray(outcome[labels], dtype=np.float64),
        np.asarray(group[labels], dtype=bool),
        np.asarray(table.loc[labels], dtype=np.float64),
    )


def _independent(
    columns: _Array, names: list[str]
) -> tuple[_Array, tuple[str, ...], tuple[str, ...]]:
    """Basis [l, k] of a constant and the covariates; names of those kept, and that add none."""
    kept: list[int] = []
    basis = _basis(np.ones((len(columns), 1)))
    for place in range(columns.shape[1]):
        column = columns[:, place]
        rest = column - _fit(basis, column)
        if rest @ rest > _NOTHING * float(column @ column):
            kept.append(place)
            rest -= _fit(basis, rest)  # once more: the first pass leaves rounding errors
            basis = np.column_stack([basis, rest / np.sqrt(rest @ rest)])
    return (
        basis,
        tuple(names[place] for place in kept),
        tuple(name for place, name in enumerate(names) if place not in kept),
    )


def _with_constant(columns: _Array) -> _Array:
    """Ones, then the columns, each centred and of length 1, so that scales are alike."""
    centred = columns - columns.mean(axis=0) if len(columns) else columns
    length = np.sqrt((centred**2).sum(axis=0))
    return np.column_stack([np.ones(len(columns)), centred / np.where(length > 0, length, 1.0)])


def _basis(columns: _Array) -> _Array:
    """Orthonormal basis of the columns [l, c]."""
    u, values, _ = np.linalg.svd(columns, full_matrices=False)
    largest = values.max(initial=0.0)
    return np.asarray(u[:, values > 1e-10 * largest])


def _fit(basis: _Array, y: _Array) -> _Array:
    """Projection of y [l] or [l, b] on an orthonormal basis."""
    return np.asarray(basis @ (basis.T @ y))


def _coefficients(y: _Array, left: _Array, full: _Array, leverage: _Array) -> tuple[_Array, _Array]:
    """Coefficient of membership and its HC3 error for outcomes [l, b]: [b], [b].

    By Frisch, Waugh and Lovell the coefficient is that of what the covariates leave of membership.
    """
    scale = float(left @ left)
    value = (left @ y) / scale
    residual = (y - _fit(full, y)) / (1 - leverage)[:, None]
    return value, np.sqrt((left**2) @ (residual**2)) / scale


def _freedman_lane(
    observed: float,
    fitted: _Array,
    residual: _Array,
    left: _Array,
    full: _Array,
    leverage: _Array,
    seed: int,
    n_permutations: int,
) -> float:
    rng = np.random.default_rng(seed)
    # Permutations that give the data again must count, whatever rounding says.
    bound = observed * (1 - 1e-9)
    count = 0
    for start in range(0, n_permutations, _BATCH):
        size = min(_BATCH, n_permutations - start)
        drawn = rng.permuted(np.tile(residual, (size, 1)), axis=1).T
        value, stderr = _coefficients(fitted[:, None] + drawn, left, full, leverage)
        count += int((np.abs(value) >= bound * stderr).sum())
    return (1 + count) / (1 + n_permutations)
