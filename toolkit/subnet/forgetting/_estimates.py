"""Differences and ratios of scores with their standard errors, paired wherever items are shared.

Each score is a mean over items, so its error is a sum over items: item x contributes (x − mean)/n.
A difference, a ratio (to first order) or a mean over languages has the error that results when the
contributions of one item are combined before they are squared and summed. With the same items on
both sides this is the paired standard error, with different ones the unpaired, with some in common
what lies between; and translations of one item, which languages share under one id, are not
counted as independent. A score of which only a standard error is known contributes that, alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subnet.forgetting._matrix import Array, Items, ScoreMatrix, masked_means

#: A denominator counts as positive when it is this many of its standard errors above zero.
CLEARLY = 2.0

ALL, HALF_A, HALF_B = 0, 1, 2
_PART = ("", " in half a", " in half b")


@dataclass(frozen=True)
class Cells:
    """The scores of one language as cells: each row on all items, then on half a, then on half b.

    Attributes:
        language: The language.
        names: [c], how messages call each cell; c is three times the rows of the score matrix.
        values: [c], signed so that larger is better, NaN where missing.
        influence: [c, u], contribution of each unit (an item, or a cell whose items are not
            known) to the error of each cell.
        numbers: [u], number of each unit; an item has the same in every language.
        known: [c], whether the error of the cell is known.
        item_sets: [c], equal where two rows rest on the same items, −1 where on none.
    """

    language: str
    names: Sequence[str]
    values: Array
    influence: Array
    numbers: NDArray[np.int64]
    known: NDArray[np.bool_]
    item_sets: NDArray[np.int64]


@dataclass(frozen=True)
class Estimates:
    """Quantities estimated from scores.

    Attributes:
        values: [m], NaN where undefined.
        influence: [m, u], contribution of each unit to the error; NaN where the error is unknown.
        numbers: [u], number of each unit.
        sources: [m], what the error rests on: `items (paired)`, `items (unpaired)`, `scores
            (unpaired)`, or `""`.
        reasons: [m], why a value, or else its error, is undefined; `""` where both are there.
    """

    values: Array
    influence: Array
    numbers: NDArray[np.int64]
    sources: Sequence[str]
    reasons: Sequence[str]

    @property
    def stderrs(self) -> Array:
        """Standard errors [m]."""
        squares: Array = np.square(self.influence).sum(axis=1)
        return np.sqrt(squares)

    def row(self, index: int) -> Estimates:
        """One of the quantities, by itself."""
        return Estimates(
            self.values[[index]],
            self.influence[[index]],
            self.numbers,
            [self.sources[index]],
            [self.reasons[index]],
        )

    def scaled(self, factor: float, offset: float = 0.0) -> Estimates:
        """The quantities times `factor`, plus `offset`."""
        return Estimates(
            factor * self.values + offset,
            factor * self.influence,
            self.numbers,
            self.sources,
            self.reasons,
        )


def cells_of(matrix: ScoreMatrix, column: int) -> Cells:
    """The cells of one language of a score matrix."""
    n_rows = len(matrix.scores)
    block = matrix.items[column]
    language = matrix.languages[column]
    rows = [f"stage {stage}" for stage in matrix.stages]
    rows += ["the reference"] * matrix.has_reference
    names = [f"{row}{part}" for part in _PART for row in rows]
    values = np.full((3, n_rows), np.nan)
    values[ALL] = matrix.scores[:, column]
    if block is None:
        influence = np.zeros((3, n_rows, 0))
        has_items = np.zeros((3, n_rows), dtype=bool)
        numbers = np.empty(0, dtype=np.int64)
        item_sets = np.full(n_rows, -1)
    else:
        values[HALF_A], values[HALF_B] = (half_means(block, half) for half in (HALF_A, HALF_B))
        influence, has_items = _item_influence(block)
        numbers = block.numbers
        present = ~np.isnan(block.scores)
        item_sets = np.unique(present, axis=0, return_inverse=True)[1].reshape(-1)
        item_sets = np.where(present.any(axis=1), item_sets, -1)
    # Cells without items of their own contribute the error that came with them, each by itself.
    lone = np.flatnonzero(~has_items[ALL] & ~np.isnan(matrix.stderrs[:, column]))
    alone = np.zeros((3, n_rows, len(lone)))
    alone[ALL, lone, np.arange(len(lone))] = matrix.stderrs[lone, column]
    known = has_items.copy()
    known[ALL, lone] = True
    return Cells(
        language=language,
        names=names,
        values=matrix.sign * values.reshape(-1),
        influence=matrix.sign
        * np.concatenate([influence, alone], axis=2).reshape(3 * n_rows, len(numbers) + len(lone)),
        numbers=np.concatenate([numbers, matrix.n_items + column * n_rows + lone]),
        known=known.reshape(-1),
        item_sets=np.tile(item_sets, 3),
    )


def half_means(block: Items, half: int) -> Array:
    """Scores on one half of the items: [r], NaN where the half has none."""
    chosen = block.first_half if half == HALF_A else ~block.first_half
    return masked_means(block.scores, ~np.isnan(block.scores) & chosen)


def combine(weights: Array, cells: Cells) -> Estimates:
    """Weighted sums of cells.

    Args:
        weights: [m, c].
        cells: The scores of one language.
    """
    used = weights != 0
    missing = used & np.isnan(cells.values)
    unknown = used & ~cells.known
    defined = used.any(axis=1) & ~missing.any(axis=1)
    values = np.where(defined, weights @ np.nan_to_num(cells.values), np.nan)
    influence = weights @ cells.influence
    influence[unknown.any(axis=1) | ~defined] = np.nan
    numbers = cells.numbers
    if not len(numbers):  # no unit at all: an unknown error must not read as zero
        influence, numbers = np.full((len(weights), 1), np.nan), np.zeros(1, dtype=np.int64)
    sources, reasons = [], []
    for row in range(len(weights)):
        sources.append("" if np.isnan(influence[row, 0]) else _source(cells, used[row]))
        if missing[row].any():
            halves = all(
                cells.names[c].endswith(_PART[1:]) for c in np.flatnonzero(missing[row]).tolist()
            )
            what = "per-item results" if halves else "score"
            reasons.append(f"no {what} for {cells.language!r} at {_list(cells, missing[row])}")
        elif unknown[row].any():
            reasons.append(
                "no standard error: neither per-item results nor a stderr for "
                f"{cells.language!r} at {_list(cells, unknown[row])}"
            )
        else:
            reasons.append("")
    return Estimates(values, influence, numbers, sources, reasons)


def divide(top: Estimates, bottom: Estimates, name: str) -> Estimates:
    """Ratios of which the bottom is clearly positive, with the error to first order.

    Args:
        top: Numerators [m].
        bottom: Denominators [m], over the same units.
        name: How the reason calls a denominator that is not clearly positive.
    """
    errors = np.nan_to_num(bottom.stderrs)
    with np.errstate(invalid="ignore"):
        positive = (bottom.values > 0) & (bottom.values > CLEARLY * errors)
    safe = np.where(positive, bottom.values, np.nan)
    values = top.values / safe
    influence = (top.influence - values[:, None] * bottom.influence) / safe[:, None]
    reasons = []
    for row, reason in enumerate(top.reasons):
        if np.isnan(top.values[row]):
            reasons.append(reason)
        elif np.isnan(bottom.values[row]):
            reasons.append(bottom.reasons[row])
        else:
            reasons.append(reason if positive[row] else name)
    defined = ~np.isnan(influence[:, 0])
    sources = [source if ok else "" for source, ok in zip(top.sources, defined, strict=True)]
    return Estimates(values, influence, top.numbers, sources, reasons)


class MeanOverLanguages:
    """Running means of estimates over languages, each estimate over languages of its own.

    Args:
        n_estimates: m.
        n_units: u, units of all languages together.
    """

    def __init__(self, n_estimates: int, n_units: int) -> None:
        self.values = np.zeros(n_estimates)
        self.influence = np.zeros((n_estimates, n_units))
        self.counts = np.zeros(n_estimates, dtype=np.int64)
        self.sources: list[set[str]] = [set() for _ in range(n_estimates)]
        self.missing: list[list[str]] = [[] for _ in range(n_estimates)]
        self.unknown: list[list[str]] = [[] for _ in range(n_estimates)]

    def add(self, estimates: Estimates, include: NDArray[np.bool_]) -> None:
        """Add one language to the estimates named by `include` [m]."""
        rows = np.flatnonzero(include)
        self.values[rows] += estimates.values[rows]
        # A language's units are distinct, so plain indexed addition loses none.
        self.influence[np.ix_(rows, estimates.numbers)] += estimates.influence[rows]
        self.counts[rows] += 1
        for row in rows.tolist():
            self.sources[row].add(estimates.sources[row])
            if estimates.reasons[row]:
                undefined = np.isnan(estimates.values[row])
                (self.missing if undefined else self.unknown)[row].append(estimates.reasons[row])

    def estimates(self) -> Estimates:
        """The means; undefined where a language included was."""
        count = np.where(self.counts > 0, self.counts, np.nan)
        values = self.values / count
        influence = self.influence / count[:, None]
        influence[np.isnan(influence).any(axis=1)] = np.nan
        reasons = [
            _first(missing or unknown)
            for missing, unknown in zip(self.missing, self.unknown, strict=True)
        ]
        sources = [
            "" if unknown else "; ".join(sorted(source))
            for source, unknown in zip(self.sources, np.isnan(influence[:, 0]), strict=True)
        ]
        return Estimates(values, influence, np.arange(influence.shape[1]), sources, reasons)


def dense(weights: Sequence[Mapping[int, float]], n_cells: int) -> Array:
    """Weights by cell as rows: [m, c]."""
    rows = np.zeros((len(weights), n_cells))
    for row, entries in enumerate(weights):
        for cell, weight in entries.items():
            rows[row, cell] += weight
    return rows


def _item_influence(block: Items) -> tuple[Array, NDArray[np.bool_]]:
    """Contribution of each item to the error of each cell: [3, r, n], and where it is known."""
    present = ~np.isnan(block.scores)
    parts = np.stack([present, present & block.first_half, present & ~block.first_half])
    count = parts.sum(axis=2, keepdims=True)
    centred = np.where(
        parts,
        block.scores - np.stack([masked_means(block.scores, p) for p in parts])[..., None],
        0,
    )
    known = count > 1
    # √(n/(n−1)): the variance of a mean with n − 1 in place of n.
    scale = np.where(known, 1 / np.sqrt(np.maximum(count, 1) * np.maximum(count - 1, 1)), 0.0)
    return centred * scale, known[..., 0]


def _source(cells: Cells, used: NDArray[np.bool_]) -> str:
    sets = np.unique(cells.item_sets[used])
    if len(sets) == 1 and sets[0] >= 0:
        return "items (paired)" if used.sum() > 1 else "items"
    if (sets >= 0).all():
        return "items (unpaired)"
    if (sets < 0).all():
        return "scores (unpaired)" if used.sum() > 1 else "scores"
    return "items and scores (unpaired)"


def _list(cells: Cells, chosen: NDArray[np.bool_]) -> str:
    names = [cells.names[cell] for cell in np.flatnonzero(chosen).tolist()]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first(reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    more = len(reasons) - 1
    return reasons[0] + (f" (and so for {more} more)" if more else "")
