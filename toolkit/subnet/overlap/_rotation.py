"""The rotation null: what two updates share if their directions are random.

One update is turned by independent Haar-random rotations U (output side) and V (input side): its
singular values stay, its directions are forgotten. Modules are turned independently.

A random rotation spreads a direction over all coordinates. Updates concentrated on few of them
(outlier dimensions) are no random rotations of each other. With log-normal column scales of their
own, independent adapters of rank 2 to 8 are rejected in 8 to 20 % of the pairs at .05 for subspace
similarity on that side; with scales that all share, in 15 to 40 % for the cosine. Headlines rest
on the structure-preserving null (`_structure`) instead, but for principal angles, which have none.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def inner_product_moments(
    shape: tuple[int, int], two: tuple[Array, Array], four: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Variance and fourth cumulant of ⟨ΔW₁, U ΔW₂ Vᵀ⟩; its mean and skewness are 0.

    Args:
        shape: (o, i) of the module.
        two: Σσ² of both updates.
        four: Σσ⁴ of both updates.

    From the fourth-order Weingarten function of the orthogonal group (Collins and Śniady 2006):
    variance = Σσ²·Στ²/(o·i), and the fourth moment needs only Σσ² and Σσ⁴. At rank one the
    product has kurtosis near 9, so a normal approximation would not do.
    """
    o, i = shape
    variance = two[0] * two[1] / (o * i)
    symmetric = np.prod([t**2 + 2 * f for t, f in zip(two, four, strict=True)], axis=0)
    fourth = symmetric / (o * (o + 2.0) * i * (i + 2.0))
    if o > 1 and i > 1:
        rest = np.prod([t**2 - f for t, f in zip(two, four, strict=True)], axis=0)
        fourth = fourth + 2 * rest / (o * (o - 1.0) * i * (i - 1.0))
    return variance, fourth - 3 * variance**2


@functools.lru_cache(maxsize=1024)
def largest_angles(n: int, p: int, q: int, draws: int, seed: int) -> Array:
    """Largest principal angle between random p- and q-dimensional subspaces of ℝⁿ, sampled.

    The squared cosines are the eigenvalues of W₁(W₁ + W₂)⁻¹ for Wishart matrices with max(p, q)
    and n − max(p, q) degrees of freedom (Muirhead 1982, section 11.3): no n-dimensional vector is
    drawn, so the cost does not depend on n.

    Returns:
        [draws], radians.
    """
    small, large = min(p, q), max(p, q)
    rng = np.random.default_rng((seed, n, small, large))
    if small + large > n:  # they intersect: the angle comes from the orthogonal complements
        small, large = n - large, n - small
        if small == 0:
            return np.zeros(draws)
    ours = _wishart(rng, large, small, draws)
    others = _wishart(rng, n - large, small, draws)
    root = np.linalg.cholesky(ours + others)
    half = np.linalg.solve(root, ours)
    inner = np.linalg.solve(root, np.swapaxes(half, 1, 2))
    smallest = np.linalg.eigvalsh((inner + np.swapaxes(inner, 1, 2)) / 2)[:, 0]
    return np.asarray(np.arccos(np.sqrt(np.clip(smallest, 0.0, 1.0))))


def _wishart(rng: np.random.Generator, freedom: int, size: int, draws: int) -> Array:
    """[draws, size, size] by Bartlett's decomposition; needs freedom ≥ size."""
    lower = np.tril(rng.standard_normal((draws, size, size)), -1)
    steps = np.arange(size)
    lower[:, steps, steps] = np.sqrt(rng.chisquare(freedom - steps, (draws, size)))
    return np.asarray(lower @ np.swapaxes(lower, 1, 2))
