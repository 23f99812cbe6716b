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

Subspaces: each coordinate of one keeps its size and place and gets a random sign (`_projections`).
Permuting the coordinates instead, which forgets where a subspace is large, takes outlier dimensions
that all languages have for sharing: it rejects every pair of independent adapters there.
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
