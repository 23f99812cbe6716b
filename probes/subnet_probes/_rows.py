"""Rows of one side of a comparison, gone through in parts: never a second copy, never [n, n]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Rows that are in double precision at a time.
CHUNK = 4096


#: Numbers up to which the rows of one side are kept in double precision.
SMALL = 1 << 24


@dataclass(frozen=True, eq=False)
class Rows:
    """n rows, minus a constant, in an order.

    Attributes:
        x: [n, d], in memory or mapped from disk.
        shift: [d] that is still to be subtracted from every row; None for nothing.
        scale: What the rows are divided by.
        order: [n] which row stands where; None for as they are.
        mean: [d] that is subtracted in all; None for nothing.
    """

    x: NDArray[Any]
    shift: Floats | None = None
    scale: float = 1.0
    order: NDArray[np.int64] | None = None
    mean: Floats | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.x.shape[1])

    def chunks(self) -> Iterator[Floats]:
        """The rows in double precision, some at a time."""
        for start in range(0, len(self.x), CHUNK):
            part = slice(start, start + CHUNK)
            rows = self.x[part] if self.order is None else self.x[self.order[part]]
            rows = np.asarray(rows, dtype=np.float64)
            if self.shift is not None:
                rows = rows - self.shift
            yield rows if self.scale == 1 else rows / self.scale

    def permuted(self, order: NDArray[np.int64]) -> Rows:
        """Row `order[i]` of these in place i."""
        if self.order is None and self.x.size <= SMALL:
            return replace(self, x=self.x[order])
        return replace(self, order=order if self.order is None else self.order[order])

    def whole(self) -> Floats:
        """[n, d] at once."""
        return np.concatenate(list(self.chunks()))


def centred(x: NDArray[Any]) -> Rows:
    """Rows minus their mean."""
    total = sum(part.sum(axis=0) for part in Rows(x).chunks())
    mean = np.asarray(total) / len(x)
    if x.size > SMALL:
        return Rows(x, mean, mean=mean)
    return Rows(np.asarray(x, dtype=np.float64) - mean, mean=mean)


def squares(rows: Rows) -> float:
    """Σ of all squared numbers of centred rows; 0 where that is the rounding of their mean."""
    total = sum(float(np.einsum("nd,nd->", part, part)) for part in rows.chunks())
    mean = 0.0 if rows.mean is None else float(rows.mean @ rows.mean) * len(rows)
    return total if total > 1e-12 * (total + mean) else 0.0


def cross_product(a: Rows, b: Rows) -> Floats:
    """aᵀb, [d, e], in O(n·d·e)."""
    total = np.zeros((a.width, b.width))
    for left, right in zip(a.chunks(), b.chunks(), strict=True):
        total += left.T @ right
    return total
