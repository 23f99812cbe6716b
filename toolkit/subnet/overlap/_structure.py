"""The structure-preserving null of updates: what two share if only sizes and places stay.

Weights are not evenly spread: models have outlier dimensions, in which the updates of all languages
are large, and LoRA's A stays near where it started. Both widen the distribution of the cosine
without making two updates agree, so each measure forgets no more than it is about.

Cosine: each row (output) of one update keeps its size, place and direction and gets a random sign.
Then ⟨ΔW₁, ΔW₂⟩ = Σᵢ εᵢ rᵢ with rᵢ the inner product of rows i, mean 0 and variance Σ rᵢ², exactly;
the tail is normal. Such a test is exact for rows with symmetric errors however unequal they are
(Efron 1969, Student's t-test under symmetry conditions), whatever the columns have in common.
Permuting rows and columns instead has the variance of a rotation, ‖ΔW₁‖²‖ΔW₂‖²/(o·i) up to a
common mean, and so does not know about outlier dimensions.

Subspaces: the coordinates of one are permuted and get random signs, which keeps how it is
concentrated on few of them, and forgets on which. With projections P, Q on p and q of n dimensions
and c = Σ P_aa², d = Σ Q_aa², tr(PQ) has mean pq/n and variance

    (c − p²/n)(d − q²/n)/(n − 1) + 2(p − c)(q − d)/(n(n − 1)),

of the diagonals and of the rest, exactly; the tail is a beta distribution's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def signed_rows_sf(inner: Array, variance: Array, rows: Array) -> Array:
    """P(Σ εᵢ rᵢ ≥ inner) for random signs ε, Σ rᵢ² = variance; never below that of all signs right.

    NaN where the variance is 0.
    """
    z = np.divide(inner, np.sqrt(variance), out=np.full(inner.shape, np.nan), where=variance > 0)
    return np.asarray(np.maximum(stats.norm.sf(z), 0.5**rows))


def projection_variance(n: int, p: Array, q: Array, c: Array, d: Array) -> Array:
    """Variance of tr(PQ) when the coordinates of one subspace are permuted with random signs.

    Args:
        n: Dimension of the space.
        p: Dimension of the first subspace.
        q: Dimension of the second.
        c: Σ P_aa², between p²/n (spread evenly) and p (p of the coordinates themselves).
        d: Σ Q_aa².
    """
    if n == 1:
        return np.zeros(np.broadcast_shapes(p.shape, q.shape))
    diagonal = (c - p**2 / n) * (d - q**2 / n) / (n - 1)
    rest = 2 * (p - c) * (q - d) / (n * (n - 1))
    return np.asarray(np.maximum(diagonal, 0.0) + np.maximum(rest, 0.0))
