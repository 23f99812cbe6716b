"""Canonical correlations of the leading directions of two tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError
from subnet_probes._measure import Measure, Undefined
from subnet_probes._rows import Floats, centred, cross_product, squares


@dataclass(frozen=True, eq=False)
class _Leading:
    """The leading directions of a table, X ≈ basis · loadings.

    Attributes:
        basis: [n, k], orthonormal columns.
        loadings: [k, d].
    """

    basis: Floats
    loadings: Floats


@dataclass(frozen=True)
class SVCCA(Measure):
    """Mean canonical correlation of leading directions (Raghu et al. 2017, 1706.05806).

    With as many directions as rows any two tables correlate perfectly, and with half as many
    nearly so. So each side keeps the directions that hold `variance` of its variance, but at most
    one for every `items_per_component` rows; and unrelated tables still have about
    1/√items_per_component: read it beside the value of shuffled rows.

    Attributes:
        variance: Share of the variance that is kept, where there are rows enough.
        items_per_component: Fewest rows for each direction kept.
    """

    name: ClassVar[str] = "svcca"
    variance: float = 0.99
    items_per_component: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise InputError(f"variance is {self.variance}", expected="0 < variance <= 1")
        if self.items_per_component < 3:
            raise InputError(
                f"items_per_component is {self.items_per_component}",
                expected="3 or more: below, any two tables correlate perfectly",
            )

    def prepare(self, x: NDArray[Any]) -> _Leading | Undefined:
        """Leading directions, from the smaller of XᵀX and XXᵀ."""
        rows, n = centred(x), len(x)
        most = n // self.items_per_component
        if not squares(rows):
            return Undefined("a side does not vary")
        if most < 1:
            return Undefined(f"fewer than {self.items_per_component} items")
        if n > rows.width:
            values, vectors = np.linalg.eigh(cross_product(rows, rows))
            k = self._count(values, most)
            directions = vectors[:, ::-1][:, :k]
            lengths = np.sqrt(values[::-1][:k])
            basis = np.concatenate([part @ directions for part in rows.chunks()]) / lengths
            return _Leading(basis, directions.T * lengths[:, None])
        x = rows.whole()
        values, vectors = np.linalg.eigh(x @ x.T)
        basis = vectors[:, ::-1][:, : self._count(values, most)]
        return _Leading(basis, basis.T @ x)

    def permuted(self, state: _Leading, order: NDArray[np.int64]) -> _Leading:
        """Rows in another order."""
        return _Leading(state.basis[order], state.loadings)

    def value(self, a: _Leading, b: _Leading) -> float:
        """Mean over the directions of the side that has fewer."""
        from scipy.linalg import svdvals

        return float(svdvals(a.basis.T @ b.basis).clip(max=1).mean())

    def _count(self, values: Floats, most: int) -> int:
        """How many directions, given the squared singular values in ascending order."""
        largest = values[::-1]
        there = int((largest > 1e-10 * largest[0]).sum())
        held = np.cumsum(largest) / largest.sum()
        return min(most, there, int(np.searchsorted(held, self.variance - 1e-12)) + 1)


@dataclass(frozen=True)
class PWCCA(SVCCA):
    """Canonical correlations, weighted by what they explain of a (Morcos et al. 2018, 1806.05759).

    Σ αᵢρᵢ / Σ αᵢ with αᵢ = Σ_j |⟨hᵢ, x_j⟩| over the columns of a, hᵢ its i-th canonical variate:
    directed, and the one measure here that a rotation of a changes a little, since its columns
    count. The directions are those of `SVCCA`, and the caution is the same.
    """

    name: ClassVar[str] = "pwcca"
    directed: ClassVar[bool] = True

    def value(self, a: _Leading, b: _Leading) -> float:
        """Weighted mean; a gives the weights."""
        from scipy.linalg import svd

        rotation, correlations, _ = svd(a.basis.T @ b.basis, full_matrices=False)
        weights = np.abs(rotation.T @ a.loadings).sum(axis=1)
        return float(weights @ correlations.clip(max=1) / weights.sum())
