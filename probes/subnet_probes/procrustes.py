"""How well one table is a rotation of the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from subnet_probes._measure import Measure, Undefined
from subnet_probes._rows import Rows, centred, cross_product, squares


@dataclass(frozen=True)
class Procrustes(Measure):
    """Orthogonal Procrustes: ‖XᵀY‖_* of centred tables of Frobenius norm 1.

    It is 1 − ½·min over rotations R of ‖X R − Y‖² (Schönemann 1966); the tables may differ in
    width. Its value for unrelated tables is far from 0 where d is not small beside n: read it
    beside that of shuffled rows. O(n·d² + d³), or with n in place of d where that is smaller.
    """

    name: ClassVar[str] = "procrustes"
    smallest: ClassVar[int] = 2

    def prepare(self, x: NDArray[Any]) -> Rows | Undefined:
        """Centred rows of norm 1; in n coordinates where there are more columns than rows."""
        rows = centred(x)
        total = squares(rows)
        if not total:
            return Undefined("a side does not vary")
        rows = replace(rows, scale=math.sqrt(total))
        if len(x) >= rows.width:
            return rows
        # Xᵀ = QR, so X = Rᵀ in an orthonormal basis of the space of its rows.
        return Rows(np.asarray(np.linalg.qr(rows.whole().T, mode="r")).T)

    def permuted(self, state: Rows, order: NDArray[np.int64]) -> Rows:
        """Rows in another order."""
        return state.permuted(order)

    def value(self, a: Rows, b: Rows) -> float:
        """The sum of the singular values of XᵀY."""
        from scipy.linalg import svdvals

        return float(svdvals(cross_product(a, b)).sum())
