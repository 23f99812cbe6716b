"""Labelled matrices over languages, laid side by side as ordered pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from subnet.errors import InputError, NotComparableError

#: One matrix [l, l], or one for each run.
Matrices = pd.DataFrame | Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Pairs:
    """Outcome, predictors and controls over the same cells, each with mean 0 and deviation 1.

    Cells are all (run, row, column) in that order, n = runs · l · l of them; NaN where a value is
    not known and on the diagonal. What does not vary is 0 everywhere.

    Attributes:
        languages: Names of the l rows and columns.
        runs: Names of the runs.
        outcome: [n].
        predictors: [m, n].
        controls: [n, runs + c], an intercept for each run, then the controls.
    """

    languages: tuple[str, ...]
    runs: tuple[str, ...]
    outcome: NDArray[np.float64]
    predictors: NDArray[np.float64]
    controls: NDArray[np.float64]

    @property
    def off_diagonal(self) -> NDArray[np.bool_]:
        """[n], cells of two different languages."""
        return np.tile(~np.eye(len(self.languages), dtype=bool).ravel(), len(self.runs))

    def without(self, language: int) -> NDArray[np.bool_]:
        """[n], cells in which the language of that number has no part."""
        keep = np.ones((len(self.languages),) * 2, dtype=bool)
        keep[language] = keep[:, language] = False
        return np.tile(keep.ravel(), len(self.runs))

    def cells_after(self, orders: NDArray[np.intp]) -> NDArray[np.intp]:
        """Which cell comes to stand where, when rows and columns are rearranged together.

        Args:
            orders: [b, l], the same order in every run.

        Returns:
            [b, n].
        """
        l = len(self.languages)  # noqa: E741
        one = orders[:, :, None] * l + orders[:, None, :]  # [b, l, l]
        starts = np.arange(len(self.runs)) * l * l
        return (one[:, None] + starts[:, None, None]).reshape(len(orders), -1)


def pair_up(
    outcome: Matrices, predictors: Mapping[str, Matrices], controls: Mapping[str, Matrices] | None
) -> Iterator[tuple[list[str], Pairs]]:
    """Lay predictors beside the outcome, those with the same languages together.

    A language takes part where the outcome has a value in its row or its column (in a sequence the
    first may only have been trained, the last only evaluated) and the predictor in both: one that
    has no row would leave gaps wherever it comes to stand.

    Yields:
        Names of predictors, and their pairs.

    Raises:
        InputError: Infinite values, repeated or differing labels, a control with gaps.
    """
    outcomes = by_run(outcome, "the outcome")
    runs = tuple(outcomes)
    spread = {name: _in_runs(matrices, runs, name) for name, matrices in predictors.items()}
    known = languages_of(outcomes.values(), both=False)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, matrices in spread.items():
        also = set(languages_of(matrices.values()))
        shared = tuple(language for language in known if language in also)
        groups.setdefault(shared, []).append(name)
    for languages, names in groups.items():
        y = _standardised(_flat(outcomes, languages))
        x = np.array([_standardised(_flat(spread[name], languages)) for name in names])
        needed = np.isfinite(y) | np.isfinite(x).any(axis=0)
        intercepts = np.repeat(np.eye(len(runs)), len(languages) ** 2, axis=0)
        columns = [intercepts]
        for name, control in (controls or {}).items():
            column = _flat(_in_runs(control, runs, name), languages)
            gaps = int((needed & ~np.isfinite(column)).sum())
            if gaps:
                raise InputError(
                    f"control {name!r} has no value for {gaps} of {int(needed.sum())} pairs",
                    expected="a value for every pair that has an outcome or a predictor",
                    fix="fill them, or leave this control out",
                )
            columns.append(_standardised(np.where(needed, column, np.nan))[:, None])
        yield names, Pairs(languages, runs, y, x, np.hstack(columns))


def by_run(matrices: Matrices, name: str) -> dict[str, pd.DataFrame]:
    """Matrices by run, checked: labels that repeat and infinite values are mistakes."""
    if isinstance(matrices, pd.DataFrame):
        matrices = {"": matrices}
    if not matrices:
        raise InputError(f"{name} has no run", expected="at least one matrix")
    for run, frame in matrices.items():
        where = f"{name} (run {run!r})" if run else name
        for axis, labels in (("rows", frame.index), ("columns", frame.columns)):
            if not labels.is_unique:
                twice = labels[labels.duplicated()][0]
                raise InputError(f"{where} names {twice!r} twice in its {axis}", fix="keep one")
        if np.isinf(frame.to_numpy(dtype=np.float64)).any():
            raise InputError(f"{where} holds infinite values", expected="numbers, NaN if unknown")
    return dict(matrices)


def languages_of(frames: Iterable[pd.DataFrame], *, both: bool = True) -> list[str]:
    """Languages that have a value in row and column, or in either, the diagonal aside."""
    rows: dict[str, None] = {}
    columns: dict[str, None] = {}
    for frame in frames:
        known = np.isfinite(frame.to_numpy(dtype=np.float64))
        known &= np.asarray(frame.index)[:, None] != np.asarray(frame.columns)[None, :]
        rows.update(dict.fromkeys(frame.index[known.any(axis=1)]))
        columns.update(dict.fromkeys(frame.columns[known.any(axis=0)]))
    return [x for x in {**rows, **columns} if not both or (x in rows and x in columns)]


def _in_runs(matrices: Matrices, runs: tuple[str, ...], name: str) -> dict[str, pd.DataFrame]:
    """The matrix of each run; one matrix stands for all of them."""
    found = by_run(matrices, name)
    if isinstance(matrices, pd.DataFrame):
        return dict.fromkeys(runs, found[""])
    missing = [run for run in runs if run not in found]
    if missing:
        raise NotComparableError(
            f"{name} has no matrix for run {', '.join(missing)}",
            expected=f"one for each run of the outcome ({', '.join(runs)})",
        )
    return {run: found[run] for run in runs}


def _flat(frames: Mapping[str, pd.DataFrame], languages: Sequence[str]) -> NDArray[np.float64]:
    blocks = []
    for frame in frames.values():
        labels = list(languages)
        block = frame.reindex(index=labels, columns=labels).to_numpy(np.float64, copy=True)
        np.fill_diagonal(block, np.nan)
        blocks.append(block.ravel())
    return np.concatenate(blocks)


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values with mean 0 and deviation 1, all 0 where they do not vary; NaN stays NaN."""
    known = values[np.isfinite(values)]
    if not known.size:
        return values
    centred = values - known.mean()
    deviation = known.std()
    if deviation <= 1e-12 * np.abs(known).max():
        return np.where(np.isfinite(values), 0.0, np.nan)
    return np.asarray(centred / deviation)
