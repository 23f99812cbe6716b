"""Least squares by projection (Frisch and Waugh 1933; Lovell 1963)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

#: Variance, as a share of the whole, below which nothing is left to relate.
NOTHING = 1e-10


def basis(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis [n, k] of columns [n, c]; linearly dependent ones count once."""
    if not columns.size:
        return np.zeros((len(columns), 0))
    return np.asarray(linalg.orth(columns, rcond=1e-9))


def residual(x: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a regression on columns [n, c] leaves of x [n] or of each column of x [n, m]."""
    q = basis(columns)
    left = x - q @ (q.T @ x)
    # Once more: the first pass leaves rounding errors of the size of a large mean.
    return np.asarray(left - q @ (q.T @ left))


def norms(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean norm of each column."""
    return np.asarray(np.sqrt((x**2).sum(axis=0)))


def has_rest(left: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether residuals are more than rounding errors of what they are left of, by column."""
    return np.asarray(norms(left) > np.sqrt(NOTHING) * norms(whole))
