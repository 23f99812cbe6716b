"""The four questions, each as a table: who loses, who helps, what changes it, what explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from knowledge_loss.design import HEADLINE_CELL
from knowledge_loss.reading import DONOR, VERSIONS, Study
from subnet.forgetting import adjusted_difference, variance_inflation

#: Stated before anything was run: one outcome for each role. All other rows are corrected.
HEADLINES: Mapping[str, str] = {"receiver": "lost_since_turn", "donor": DONOR}
HEADLINE_METRIC = "loss"

#: What is held fixed, from nothing to everything.
LADDER: Mapping[str, tuple[str, ...]] = {
    "nothing": (),
    "position": ("position",),
    "position, baseline": ("position", "baseline"),
    "position, truncation": ("position", "truncated_share"),
    "position, data size": ("position", "train_examples"),
    "position, bytes": ("position", "bytes_per_character"),
    "everything but bytes": ("position", "baseline", "truncated_share", "train_examples"),
    "everything": (
        "position", "baseline", "truncated_share", "train_examples", "bytes_per_character",
    ),
}  # fmt: skip

#: Pairs of cells that differ in one thing: first minus second.
CONTRASTS: tuple[tuple[str, str], ...] = (
    ("full-r8", "partial-r8"),
    ("full-r8", "none-r8"),
    ("partial-r8", "none-r8"),
    ("full-r8", "full-r2"),
    ("full-r32", "full-r8"),
)

#: A comparison in which bytes differ and Latin script does not: among the other scripts, those of
#: about three bytes per character minus those of about two.
WITHIN = "other scripts only: three bytes minus two"
_LONG = 2.4
#: Share of the languages of each group without which they are not compared.
_LEAST = 0.75

_GROUP = ("cell", "role", "metric", "measure")
_RUNG = ("role", "metric", "measure", "given")
_CONTRAST = ("first", "second", "role", "metric", "measure", "equal", "of")
_TESTED = ("value", "ci_low", "ci_high", "p_value", "variance_inflation")


@dataclass(frozen=True)
class Answers:
    """What came out.

    Intervals `ci_low` to `ci_high` and p-values are about languages: what other languages could
    have given, in the runs as they were. `orders_low` to `orders_high` is about training: what
    other orders of the same languages could have given, from the values of each order alone.

    Attributes:
        groups: One row per cell, role, metric and measure: difference between the groups in the
            published direction (receivers: other scripts minus Latin; donors: Latin minus other
            scripts), position held fixed, with interval, p and q.
        contrasts: One row per pair of cells and outcome: the paired difference over all languages
            (`mean`), and the difference between the groups in it (`group`), at equal steps and at
            equal score just after the own turn.
        ladder: One row per outcome and set of covariates.
        inflation: One row per variable: how far it follows from the others.
    """

    groups: pd.DataFrame
    contrasts: pd.DataFrame
    ladder: pd.DataFrame
    inflation: pd.DataFrame


def answer(study: Study, *, n_permutations: int = 4999, seed: int = 0) -> Answers:
    """Answer all questions.

    q-values are over every distinct test of the first three tables but the headlines; a row that
    repeats a headline has none.
    """
    tables = _tables(study, {"n_permutations": n_permutations, "seed": seed})
    alone = [_tables(part, {"n_permutations": 1, "seed": seed}) for part in study.of_each_order()]
    for number, keys in enumerate((_GROUP, _CONTRAST, _RUNG)):
        table, index = tables[number], pd.MultiIndex.from_frame(tables[number][list(keys)])
        values = [found[number].set_index(list(keys))["value"].reindex(index) for found in alone]
        table["orders_low"], table["orders_high"] = over_orders(np.array(values, dtype=float))
        table["n_orders"] = len(alone)
    _correct(tables)
    return Answers(*tables, inflation=_inflation(study))


def _tables(study: Study, drawn: Mapping[str, int]) -> list[pd.DataFrame]:
    """The first three tables."""
    tables = [
        pd.DataFrame(_groups(study, drawn)),
        pd.DataFrame(_contrasts(study, drawn)),
        pd.DataFrame(_ladder(study, drawn)),
    ]
    if tables[1].empty:  # one cell only
        tables[1] = pd.DataFrame(columns=[*_CONTRAST, *_TESTED, "reason"], dtype=object)
    return tables


def over_orders(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean of the values of single orders [orders, rows]: Student's t.

    Undefined for a single order, and where an order has no value.
    """
    n = len(values)
    if n < 2:
        return (np.full(values.shape[1], np.nan),) * 2
    half = stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / n**0.5
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def headline(answers: Answers, role: str) -> pd.Series:
    """The row that was stated beforehand."""
    rows = answers.groups[answers.groups["headline"] & (answers.groups["role"] == role)]
    return rows.iloc[0]


def members_of(study: Study, role: str) -> pd.Series:
    """The group that is published to lose more, or to help more."""
    latin = study.languages["latin"]
    return latin if role == "donor" else ~latin


def values_of(study: Study, cell: str, role: str, metric: str, measure: str) -> pd.DataFrame:
    """`value` and `position` of each language."""
    o = study.outcomes
    chosen = (
        (o["cell"] == cell)
        & (o["role"] == role)
        & (o["metric"] == metric)
        & (o["measure"] == measure)
    )
    return o[chosen].set_index("language")[["value", "position"]]


def _groups(study: Study, drawn: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    tested = study.outcomes[study.outcomes["role"] != ""]
    for (cell, role, metric, measure), rows in tested.groupby(
        ["cell", "role", "metric", "measure"], sort=False
    ):
        found = rows.set_index("language")
        yield {
            "cell": cell,
            "role": role,
            "metric": metric,
            "measure": measure,
            "headline": _is_headline(cell, role, metric, measure),
            "overall_mean": found["value"].mean(),
            **_tested(found["value"], members_of(study, role), found[["position"]], drawn),
        }


def _contrasts(study: Study, drawn: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    cells = set(study.outcomes["cell"])
    metrics = list(dict.fromkeys(study.outcomes["metric"]))
    for first, second in CONTRASTS:
        for metric in metrics if {first, second} <= cells else ():
            turn = _paired(study, first, second, "", metric, "own_turn_score").rename("own_turn")
            for role, measure in HEADLINES.items():
                paired = _paired(study, first, second, role, metric, measure)
                members = members_of(study, role)
                label = {
                    "first": first,
                    "second": second,
                    "role": role,
                    "metric": metric,
                    "measure": measure,
                }
                # The later its turn, the less there was to lose, in either cell.
                position = values_of(study, first, role, metric, measure)[["position"]]
                for at, covariates in (("steps", None), ("score", turn.to_frame())):
                    mean = mean_given(paired, covariates, drawn["n_permutations"])
                    yield {**label, "equal": at, "of": "mean", **mean}
                    yield {
                        **label, "equal": at, "of": "group",
                        **_tested(
                            paired,
                            members,
                            position if covariates is None else position.join(covariates),
                            drawn,
                        ),
                    }  # fmt: skip


def _ladder(study: Study, drawn: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    metrics = list(dict.fromkeys(study.outcomes["metric"]))
    for role, measure in HEADLINES.items():
        for metric in metrics:
            for version in VERSIONS:
                found = values_of(study, HEADLINE_CELL, role, metric, measure + version)
                if found.empty:
                    continue
                table = covariates_of(study, metric, found["position"])
                for name, given in LADDER.items():
                    yield {
                        "role": role,
                        "metric": metric,
                        "measure": measure + version,
                        "given": name,
                        **_tested(
                            found["value"], members_of(study, role), table[list(given)], drawn
                        ),
                    }
            found = values_of(study, HEADLINE_CELL, role, metric, measure)
            other = study.languages[~study.languages["latin"]]
            yield {
                "role": role,
                "metric": metric,
                "measure": measure,
                "given": WITHIN,
                **_tested(
                    found["value"],
                    other["bytes_per_character"] > _LONG,
                    found[["position"]],
                    drawn,
                ),
            }


def covariates_of(study: Study, metric: str, position: pd.Series) -> pd.DataFrame:
    """What else differs between languages; the baseline is that of the metric at the start."""
    table = study.languages.reindex(position.index)
    columns = ["bytes_per_character", "truncated_share", "train_examples"]
    return table[columns].assign(baseline=table[f"baseline_{metric}"], position=position)


def _inflation(study: Study) -> pd.DataFrame:
    found = values_of(study, HEADLINE_CELL, "receiver", HEADLINE_METRIC, HEADLINES["receiver"])
    table = covariates_of(study, HEADLINE_METRIC, found["position"])
    table["latin"] = study.languages["latin"].reindex(table.index).astype(float)
    inflation = variance_inflation(table)
    return pd.DataFrame(
        {
            "variable": inflation.index,
            "variance_inflation": inflation.to_numpy(),
            "mean_latin": table[table["latin"] == 1].mean().to_numpy(),
            "mean_other": table[table["latin"] == 0].mean().to_numpy(),
        }
    )


def mean_given(
    paired: pd.Series, covariates: pd.DataFrame | None, n_permutations: int = 4999
) -> dict[str, Any]:
    """Mean of paired differences over languages, or their value where a covariate's is 0.

    The intercept of the differences on the covariates, with its HC3 error and t interval. At equal
    steps the p-value flips signs of languages; given a covariate it is that of the t statistic.
    """
    table = paired.rename("y").to_frame()
    table = table if covariates is None else table.join(covariates)
    table = table.dropna()
    y, design = table["y"].to_numpy(), table.assign(y=1.0).to_numpy()
    freedom = len(y) - design.shape[1]
    nothing = dict.fromkeys(_TESTED, np.nan) | {"n_members": len(y), "n_others": 0}
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1] or np.ptp(y) == 0:
        reason = "the same difference in every language" if len(y) and np.ptp(y) == 0 else "too few"
        return nothing | {"value": y.mean() if len(y) else np.nan, "reason": reason}
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    leverage = np.einsum("ni,ij,nj->n", design, inverse, design)
    weighted = design * ((y - design @ coefficients) / (1 - leverage))[:, None]
    value = float(coefficients[0])
    stderr = float(np.sqrt((inverse @ (weighted.T @ weighted) @ inverse)[0, 0]))
    if covariates is None:
        test = stats.permutation_test(
            (y,), np.mean, permutation_type="samples", n_resamples=n_permutations,
            vectorized=True,
            rng=np.random.default_rng(0),
        )  # fmt: skip
        p_value = float(test.pvalue)
    else:
        p_value = float(2 * stats.t.sf(abs(value) / stderr, freedom))
    half = float(stats.t.ppf(0.975, freedom)) * stderr
    return nothing | {
        "value": value,
        "ci_low": value - half,
        "ci_high": value + half,
        "p_value": p_value,
        "reason": "",
    }


def _paired(
    study: Study, first: str, second: str, role: str, metric: str, measure: str
) -> pd.Series:
    """First minus second, by language."""
    one, other = (
        values_of(study, cell, role, metric, measure)["value"] for cell in (first, second)
    )
    return (one - other).dropna()


def _tested(
    values: pd.Series,
    members: pd.Series,
    covariates: pd.DataFrame | None,
    drawn: Mapping[str, int],
) -> dict[str, Any]:
    for group in (members[members], members[~members]):
        known = int(values.reindex(group.index).notna().sum())
        if known < _LEAST * len(group):
            reason = f"{known} of {len(group)} languages of a group have a value"
            return dict.fromkeys(_TESTED, np.nan) | {
                "n_members": int(values.reindex(members[members].index).notna().sum()),
                "n_others": int(values.reindex(members[~members].index).notna().sum()),
                "reason": reason,
            }
    found = adjusted_difference(values, members, covariates, **drawn)
    return {
        **{name: getattr(found, name) for name in _TESTED},
        "n_members": found.n_members,
        "n_others": found.n_others,
        "reason": found.reason,
    }


def _is_headline(cell: str, role: str, metric: str, measure: str) -> bool:
    wanted = (HEADLINE_CELL, HEADLINE_METRIC, HEADLINES.get(role))
    return (cell, metric, measure) == wanted


def _correct(tables: Sequence[pd.DataFrame]) -> None:
    """Add q-values (Benjamini and Hochberg 1995): one family over the tables.

    Some rows are one test under several names (where a cell is 0 by construction, or a covariate
    constant): it counts once, and not at all where it is a headline's.
    """
    every = pd.concat(tables, ignore_index=True)
    test = every[["value", "ci_low", "ci_high"]].apply(
        lambda row: " ".join(f"{value:.9g}" for value in row), axis=1
    )
    stated = every["headline"].eq(True)
    tested = every["p_value"].notna() & ~test.isin(test[stated])
    first = tested & ~test.where(tested).duplicated()
    q = pd.Series(np.nan, index=every.index)
    if first.any():
        p = every.loc[first, "p_value"].to_numpy(dtype=float)
        found = dict(zip(test[first], stats.false_discovery_control(p), strict=True))
        q[tested] = test[tested].map(found)
    start = 0
    for table in tables:
        table["q_value"] = q.iloc[start : start + len(table)].to_numpy()
        start += len(table)
