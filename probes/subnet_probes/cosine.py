"""How near parallel items are, in the space as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from subnet_probes._measure import Measure, Undefined
from subnet_probes._rows import SMALL, Rows


@dataclass(frozen=True)
class Cosine(Measure):
    """Mean cosine of row i of the one and row i of the other.

    Nothing is centred: where all rows point the same way it is large for any two, which is what
    the value of shuffled rows shows. O(n·d).
    """

    name: ClassVar[str] = "cosine"
    same_width: ClassVar[bool] = True
    smallest: ClassVar[int] = 1

    def prepare(self, x: NDArray[Any]) -> Rows | Undefined:
        """Rows of length 1."""
        wide = np.array(x, dtype=np.float64 if x.size <= SMALL else np.float32)
        lengths = np.linalg.norm(wide, axis=1, keepdims=True)
        if not lengths.all():
            return Undefined("a row is zero")
        return Rows(np.divide(wide, lengths, out=wide))

    def permuted(self, state: Rows, order: NDArray[np.int64]) -> Rows:
        """Rows in another order."""
        return state.permuted(order)

    def value(self, a: Rows, b: Rows) -> float:
        """Mean over the pairs."""
        total = 0.0
        for left, right in zip(a.chunks(), b.chunks(), strict=True):
            total += float(np.einsum("nd,nd->", left, right))
        return total / len(a)


@dataclass(frozen=True)
class CosineContrast(Cosine):
    """Mean cosine of parallel items minus that of all others.

    (1/n) Σ cos(xᵢ, yᵢ) − 1/(n(n−1)) Σ_{i≠j} cos(xᵢ, yⱼ), from the sums of the rows in O(n·d).
    """

    name: ClassVar[str] = "cosine_contrast"
    smallest: ClassVar[int] = 2
    largest: ClassVar[float | None] = None

    def value(self, a: Rows, b: Rows) -> float:
        """Parallel minus not parallel."""
        n = len(a)
        parallel = super().value(a, b)
        sums = [sum(part.sum(axis=0) for part in side.chunks()) for side in (a, b)]
        every = float(np.asarray(sums[0]) @ np.asarray(sums[1]))
        return parallel - (every - n * parallel) / (n * (n - 1))
