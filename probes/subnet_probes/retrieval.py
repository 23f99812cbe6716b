"""Finding the translation of an item among all items of another language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet.errors import InputError
from subnet_probes._measure import Measure, Undefined
from subnet_probes._rows import Floats

SCORES = ("csls", "ratio", "cosine")
#: Rows and columns of the part of the cosines that is in memory at a time.
_TILE = 1024

Indices = NDArray[np.int64]


def nearest_neighbours(
    x: ArrayLike, y: ArrayLike, *, score: str = "csls", k: int = 10
) -> tuple[Indices, Indices]:
    """The row of y that is nearest to each row of x, and the other way.

    With r(x) the mean cosine of x with its k nearest rows of the other side, `"csls"` is
    2·cos(x, y) − r(x) − r(y) (Conneau et al. 2018, 1710.04087): rows that are near to everything
    come down. `"ratio"` is the margin of xsim, 2·cos(x, y) / (r(x) + r(y)) (Artetxe and Schwenk
    2019, 1811.01136; it takes k = 4).

    O(n·m·d) in time, twice; the [n, m] cosines are never there at once.

    Args:
        x: [n, d].
        y: [m, d].
        score: `"csls"`, `"ratio"` or `"cosine"`.
        k: Neighbours; at most as many as there are rows.

    Returns:
        (for each row of x a row of y [n], for each row of y a row of x [m]); the first of equals.

    Raises:
        InputError: The widths differ, a row is zero, or a setting is out of range.
    """
    if score not in SCORES:
        raise InputError(f"score is {score!r}", expected=" or ".join(SCORES))
    if k < 1:
        raise InputError(f"k is {k}", expected="1 or more")
    left, right = np.asarray(x), np.asarray(y)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise InputError(
            f"the sides are {list(left.shape)} and {list(right.shape)}", expected="[items, width]"
        )
    units = _unit(left), _unit(right)
    if any(isinstance(side, Undefined) for side in units):
        raise InputError("a row is zero", expected="rows that have a direction")
    return _nearest(units[0], units[1], score, k)


@dataclass(frozen=True)
class Retrieval(Measure):
    """Precision@1: the share of items whose nearest neighbour is their translation.

    Directed: from a to b, rows of a ask and rows of b are found. 1 − value with `score="ratio"`
    and `k=4` is the error rate that xsim reports. Its chance is 1/n.

    Attributes:
        score: As of `nearest_neighbours`.
        k: As of `nearest_neighbours`.
    """

    name: ClassVar[str] = "retrieval"
    directed: ClassVar[bool] = True
    same_width: ClassVar[bool] = True
    smallest: ClassVar[int] = 2
    score: str = "csls"
    k: int = 10

    def __post_init__(self) -> None:
        if self.score not in SCORES or self.k < 1:
            raise InputError(
                f"score is {self.score!r} and k is {self.k}",
                expected=f"{' or '.join(SCORES)}, and 1 or more",
            )

    def prepare(self, x: NDArray[Any]) -> Any:
        """Rows of length 1."""
        return _unit(x)

    def permuted(self, state: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
        """Rows in another order."""
        return np.asarray(state[order])

    def value(self, a: NDArray[Any], b: NDArray[Any]) -> float:
        """From a to b."""
        return float(np.mean(_nearest(a, b, self.score, self.k)[0] == np.arange(len(a))))

    def against(
        self, others: Sequence[Any], own: Any, orders: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """Both directions and all orders from one pass: who is nearest does not depend on order."""
        places = np.arange(len(own))
        values = np.empty((len(others), 2))
        shuffled = np.empty((len(orders), len(others), 2))
        for number, other in enumerate(others):
            to_own, to_other = _nearest(other, own, self.score, self.k)
            values[number] = np.mean(to_own == places), np.mean(to_other == places)
            shuffled[:, number, 0] = (to_own == orders).mean(axis=1)
            shuffled[:, number, 1] = (to_other[orders] == places).mean(axis=1)
        return values, shuffled


def _unit(x: NDArray[Any]) -> Any:
    found = np.array(x, dtype=np.promote_types(x.dtype, np.float32))
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not lengths.all():
        return Undefined("a row is zero")
    return np.divide(found, lengths, out=found)


def _nearest(x: NDArray[Any], y: NDArray[Any], score: str, k: int) -> tuple[Indices, Indices]:
    n, m = len(x), len(y)
    density = (np.zeros(n), np.zeros(m)) if score == "cosine" else _densities(x, y, k)
    best = np.full(n, -np.inf), np.full(m, -np.inf)
    found = np.zeros(n, dtype=np.int64), np.zeros(m, dtype=np.int64)
    for rows, columns, tile in _tiles(x, y):
        around = density[0][rows, None] + density[1][None, columns]
        marked = 2 * tile / around if score == "ratio" else 2 * tile - around
        for side, (own, other, axis) in enumerate(((rows, columns, 1), (columns, rows, 0))):
            top = marked.max(axis=axis)
            better = top > best[side][own]
            at = marked.argmax(axis=axis) + other.start
            best[side][own] = np.where(better, top, best[side][own])
            found[side][own] = np.where(better, at, found[side][own])
    return found


def _densities(x: NDArray[Any], y: NDArray[Any], k: int) -> tuple[Floats, Floats]:
    """Mean cosine of every row of each side with its k nearest of the other."""
    k_x, k_y = min(k, len(y)), min(k, len(x))
    top_x, top_y = np.full((len(x), k_x), -np.inf), np.full((len(y), k_y), -np.inf)
    for rows, columns, tile in _tiles(x, y):
        top_x[rows] = _largest(np.hstack([top_x[rows], tile]), k_x)
        top_y[columns] = _largest(np.hstack([top_y[columns], tile.T]), k_y)
    return top_x.mean(axis=1), top_y.mean(axis=1)


def _largest(values: Floats, k: int) -> Floats:
    return np.partition(values, -k, axis=1)[:, -k:]


def _tiles(x: NDArray[Any], y: NDArray[Any]) -> Iterator[tuple[slice, slice, Floats]]:
    for i in range(0, len(x), _TILE):
        rows = slice(i, min(i + _TILE, len(x)))
        for j in range(0, len(y), _TILE):
            columns = slice(j, min(j + _TILE, len(y)))
            yield rows, columns, np.asarray(x[rows] @ y[columns].T, dtype=np.float64)
