"""Representations as a fit sees them: standardised, and as narrow as the examples allow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

Floats = NDArray[np.floating[Any]]
#: Largest condition number, times the precision of the type, of a matrix whose inverse is used.
_ILL = 2e-3


class IllConditionedError(Exception):
    """A penalty too weak for the numbers of the type: a longer one or another solver must do it."""


class Design(ABC):
    """Training examples [m, d] and test examples [t, d] of several fits.

    The weights of a fit are [k, width] numbers u, of which the classes' values F = K(u) at the
    training examples are linear. Directions in which to change them come from one matrix,
    M = (curvature · ZᵀZ + penalty · I)⁻¹ (in more dimensions than examples of ZZᵀ), the inverse
    Hessian where all probabilities are alike.

    Attributes:
        width: Numbers per class.
    """

    width: int

    def __init__(self, z: Floats, test: Floats) -> None:
        self.z, self.test_z = z, test
        self.curvature: Any = 1.0
        self.penalty: Any = 1.0
        self.inverse: Any = None
        self.product: Any = None

    def precondition(self, curvature: float, penalties: Floats) -> None:
        """Form M for the penalties [p] of p fits: one matrix where they are the same."""
        self.curvature, self.penalty = self.z.dtype.type(curvature), penalties[:, None, None]
        several, which = np.unique(penalties, return_inverse=True)
        made = [self._inverted(float(penalty)) for penalty in several]
        self.inverse = made[0] if len(made) == 1 else np.stack(made)[which]

    @abstractmethod
    def gradient(self, residuals: Floats, u: Floats) -> Floats:
        """[p, k, width] from ∂loss/∂values [p, k, m] and weights."""

    @abstractmethod
    def step(self, q: Floats) -> tuple[Floats, Floats]:
        """M q, and its dual: what others are multiplied by in the inner product with it."""

    @abstractmethod
    def values(self, u: Floats, dual: Floats) -> Floats:
        """[p, k, m], values at the training examples."""

    @abstractmethod
    def test(self, u: Floats) -> Floats:
        """[p, k, t], values at the test examples."""

    def times(self, q: Floats) -> Floats:
        """M q of each fit."""
        if self.inverse.ndim == 3:
            return np.asarray(q @ self.inverse)
        return np.asarray((q.reshape(-1, q.shape[-1]) @ self.inverse).reshape(q.shape))

    def _inverted(self, penalty: float) -> Floats:
        matrix = self.product * self.curvature
        diagonal = np.diag_indices(len(matrix))
        matrix[diagonal] += penalty
        factorise = lapack.spotrf if matrix.dtype == np.float32 else lapack.dpotrf
        invert = lapack.spotri if matrix.dtype == np.float32 else lapack.dpotri
        # Symmetric, so its transpose is it, in the order of columns that LAPACK works in.
        factor, failed = factorise(matrix.T, overwrite_a=True)
        scales = np.square(factor[diagonal])
        precision = np.finfo(matrix.dtype).eps
        if failed or not precision * scales.max() <= _ILL * scales.min():
            raise IllConditionedError
        triangle, _ = invert(factor, overwrite_c=True)
        inverse = triangle + triangle.T
        inverse[diagonal] /= 2
        return np.asarray(inverse)


class Primal(Design):
    """At least as many examples as dimensions: u is weights."""

    def __init__(self, z: Floats, test: Floats) -> None:
        super().__init__(z, test)
        self.width = z.shape[1]
        self.product = z.T @ z

    def gradient(self, residuals: Floats, u: Floats) -> Floats:
        """Zᵀr + penalty · u."""
        return np.asarray(residuals @ self.z + self.penalty * u)

    def step(self, q: Floats) -> tuple[Floats, Floats]:
        """M q, twice."""
        direction = self.times(q)
        return direction, direction

    def values(self, u: Floats, dual: Floats) -> Floats:  # noqa: ARG002
        """Z u."""
        return np.asarray(u @ self.z.T)

    def test(self, u: Floats) -> Floats:
        """Z_test u."""
        return np.asarray(u @ self.test_z.T)


class Kernel(Design):
    """More dimensions than examples: u is coefficients of the examples, the weights are Zᵀu.

    The weights of a penalised fit lie in the span of the examples, so nothing is lost. All is seen
    through G = ZZᵀ [m, m]: the inner product of the weights of u and v is uᵀGv.
    """

    def __init__(self, z: Floats, test: Floats) -> None:
        super().__init__(z, test)
        self.width = len(z)
        self.product = z @ z.T
        self.test_product = test @ z.T

    def gradient(self, residuals: Floats, u: Floats) -> Floats:
        """Coefficients r + penalty · u, whose weights are the gradient, less their mean.

        G does not see a mean, as the examples have none themselves. Left in, it would grow with
        every step longer than 1, unseen, until its rounding ruled the steps.
        """
        found = residuals + self.penalty * u
        return np.asarray(found - found.mean(axis=-1, keepdims=True))

    def step(self, q: Floats) -> tuple[Floats, Floats]:
        """M q and G M q, without a product: curvature · G M q + penalty · M q = q."""
        direction = self.times(q)
        return direction, (q - self.penalty * direction) / self.curvature

    def values(self, u: Floats, dual: Floats) -> Floats:  # noqa: ARG002
        """G u, which is the dual."""
        return dual

    def test(self, u: Floats) -> Floats:
        """Z_test Zᵀ u."""
        return np.asarray(u @ self.test_product.T)


def design(train: NDArray[Any], test: NDArray[Any], *, standardize: bool) -> Design:
    """The design of training examples [m, d] and test examples [t, d].

    Both are shifted by the training mean, which changes no fit that has an intercept, and where
    asked divided by the training deviation, as scikit-learn's `StandardScaler` would.
    """
    x = train if train.dtype in (np.float32, np.float64) else train.astype(np.float64)
    mean = x.mean(axis=0, dtype=np.float64)
    z = x - mean.astype(x.dtype)
    shifted = test - mean.astype(x.dtype)
    if standardize:
        scale = _deviation(z, mean).astype(x.dtype)
        z /= scale
        shifted = shifted / scale
    kind = Kernel if z.shape[1] > len(z) else Primal
    return kind(z, np.asarray(shifted, dtype=x.dtype))


def _deviation(z: Floats, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """[d], 1 where a unit is constant up to rounding."""
    n = len(z)
    variance = np.einsum("nd,nd->d", z, z).astype(np.float64) / n
    eps = float(np.finfo(z.dtype).eps)
    constant = variance <= n * eps * variance + (n * mean * np.finfo(np.float64).eps) ** 2
    constant |= variance <= (4 * eps * mean) ** 2
    return np.where(constant, 1.0, np.sqrt(variance))
