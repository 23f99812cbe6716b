"""How much subspaces share by chance: moments of tr(PQ), for the projections P and Q on two.

Null models, each with exact mean and variance; the tail is that of the beta distribution with
them (`_statistics.beta_sf`):

- Random signs: every coordinate keeps its size and place and gets a random sign. With signs ε,
  tr(PQ) becomes Σ_ab ε_a ε_b P_ab Q_ab: mean Σ_a P_aa Q_aa, variance 2 Σ_{a≠b} P_ab² Q_ab². Exact
  for coordinates with symmetric errors however unequal they are (Efron 1969, Student's t-test under
  symmetry conditions), so that a model's outlier coordinates, on which everything acts strongly,
  are chance and not sharing.
- Rotation: one subspace is turned at random, which takes the coordinates of a model for alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Numbers of all projections that are squared at a time: a block that stays in the cache.
_TILE = 1 << 18


def rotation_moments(n: int, p: Array, q: Array) -> tuple[Array, Array]:
    """Mean and variance of tr(PQ) for random p- and q-dimensional subspaces of ℝⁿ.

    Mean pq/n; variance 2pq(n−p)(n−q) / (n²(n−1)(n+2)).
    """
    mean = p * q / n
    variance = 2 * p * q * (n - p) * (n - q) / (n**2 * max(n - 1.0, 1.0) * (n + 2.0))
    return np.asarray(mean), np.asarray(variance)


def sign_moments(bases: Array) -> tuple[Array, Array]:
    """Mean and variance of tr(PQ) under random signs of the coordinates, for all pairs.

    No n×n projection is kept: P squared entry by entry is H Hᵀ with H the products of basis vectors
    two by two (`pair_products`), so that Σ_ab P_ab² Q_ab² = ‖H_PᵀH_Q‖²; where these products are
    many, the projections are compared tile by tile.

    Args:
        bases: [n, l, k], orthonormal columns of each of the l subspaces, zero beyond its dimension.

    Returns:
        ([l, l], [l, l]).
    """
    n, count, k = bases.shape
    diagonals = np.einsum("nlk,nlk->ln", bases, bases)
    mean = diagonals @ diagonals.T
    # multiply-adds per pair and coordinate; the tiles need half of n, and single precision
    if (k * (k + 1)) ** 2 // 2 < n:
        total = _from_products(bases) - diagonals**2 @ (diagonals**2).T
    else:
        total = _from_tiles(bases, max(1, int(np.sqrt(_TILE / count))))
    return mean, np.maximum(2 * total, 0.0)


def pair_products(basis: Array) -> Array:
    """H [n, k(k+1)/2] with H Hᵀ = (basis basisᵀ) squared entry by entry, of a basis [n, k]."""
    one, other = np.triu_indices(basis.shape[1])
    return np.asarray(basis[:, one] * basis[:, other] * np.where(one == other, 1.0, np.sqrt(2.0)))


def _from_products(bases: Array) -> Array:
    """[l, l], Σ_ab P_ab² Q_ab², the diagonal included."""
    count = bases.shape[1]
    flat = np.concatenate([pair_products(bases[:, at]) for at in range(count)], axis=1)
    width = flat.shape[1] // count
    found = np.zeros((count, count))
    for at in range(count):
        across = flat[:, at * width : (at + 1) * width].T @ flat[:, at * width :]
        found[at, at:] = np.square(across).reshape(width, -1, width).sum(axis=(0, 2))
    return found + np.triu(found, 1).T


def _from_tiles(bases: Array, side: int) -> Array:
    """[l, l], Σ_{a≠b} P_ab² Q_ab²: sums of squares, for which single precision is enough."""
    n, count, _ = bases.shape
    vectors = np.ascontiguousarray(bases.transpose(1, 0, 2), dtype=np.float32)  # [l, n, k]
    buffer = np.empty(count * min(side, n) ** 2, dtype=np.float32)
    found = np.zeros((count, count))
    for top in range(0, n, side):
        for left in range(top, n, side):
            rows, columns = vectors[:, top : top + side], vectors[:, left : left + side]
            shape = count, rows.shape[1], columns.shape[1]
            tile = buffer[: count * shape[1] * shape[2]].reshape(shape)
            np.matmul(rows, columns.transpose(0, 2, 1), out=tile)
            np.square(tile, out=tile)
            if top == left:
                diagonal = np.arange(rows.shape[1])
                tile[:, diagonal, diagonal] = 0.0
            flat = tile.reshape(count, -1)
            found += (1 if top == left else 2) * (flat @ flat.T)
    return found
