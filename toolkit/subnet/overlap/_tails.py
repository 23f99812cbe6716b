"""Tail probabilities and expectations from the first moments of a null distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]

# Below this skewness the gamma distribution is numerically normal.
_NO_SKEW = 1e-4
# Mean plus this many standard deviations holds all of a hypergeometric distribution that counts.
_SMALL_SUPPORT = 64


def pearson3_sf(x: Array, mean: Array, variance: Array, third: Array) -> Array:
    """P(X ≥ x) for the Pearson type III distribution with the given central moments.

    A shifted gamma distribution: it follows the skewness of the null, which a normal does not.
    NaN where the variance is 0.
    """
    x, mean, variance, third = np.broadcast_arrays(x, mean, variance, third)
    result = np.full(x.shape, np.nan)
    ok = variance > 0
    sd = np.sqrt(variance[ok])
    z = (x[ok] - mean[ok]) / sd
    skew = third[ok] / sd**3
    normal = np.abs(skew) < _NO_SKEW
    shape = 4.0 / np.where(normal, 1.0, skew) ** 2
    root = np.sqrt(shape)
    right = special.gammaincc(shape, np.maximum(shape + z * root, 0.0))
    left = special.gammainc(shape, np.maximum(shape - z * root, 0.0))
    result[ok] = np.where(normal, stats.norm.sf(z), np.where(skew > 0, right, left))
    return result


def student_sf(x: Array, variance: Array, excess: Array) -> Array:
    """P(X ≥ x) for a symmetric distribution about 0 with given variance and excess kurtosis.

    Student's t with 4 + 6/excess degrees of freedom, scaled to the variance; the normal
    distribution where there is no excess.
    """
    x, variance, excess = np.broadcast_arrays(x, variance, excess)
    result = np.full(x.shape, np.nan)
    ok = variance > 0
    z = x[ok] / np.sqrt(variance[ok])
    heavy = excess[ok] > 1e-3
    freedom = 4.0 + 6.0 / np.where(heavy, excess[ok], 1.0)
    t = stats.t.sf(z * np.sqrt(freedom / (freedom - 2.0)), freedom)
    result[ok] = np.where(heavy, t, stats.norm.sf(z))
    return result


def hypergeometric(total: Any, a: Any, b: Any) -> tuple[Array, Array, Array]:
    """Mean, variance and third central moment of |A∩B| for independent sets of sizes a, b."""
    total, a, b = (np.asarray(v, dtype=np.float64) for v in (total, a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = a * b / total
        variance = mean * (total - a) / total * (total - b) / (total - 1)
        third = variance * (total - 2 * a) / total * (total - 2 * b) / (total - 2)
    return mean, np.nan_to_num(variance), np.nan_to_num(third)


def hypergeometric_sf(x: Any, total: Any, a: Any, b: Any) -> Array:
    """P(|A∩B| ≥ x), exactly."""
    return np.asarray(stats.hypergeom.sf(np.asarray(x) - 1, total, a, b), dtype=np.float64)


def expected_jaccard(a: Array, b: Array, mean: Array, variance: Array, third: Array) -> Array:
    """E[x / (a + b − x)] by expansion around the mean to fourth order.

    The union never falls below max(a, b), so the expansion converges; the fourth moment is taken
    as that of a normal, and contributes only at counts of a few dozen.
    """
    size = a + b
    with np.errstate(divide="ignore", invalid="ignore"):
        union = size - mean
        value = (
            mean / union
            + size * variance / union**3
            + size * third / union**4
            + 3 * size * variance**2 / union**5
        )
    return np.asarray(value, dtype=np.float64)


def expected_jaccard_hypergeometric(total: Array, a: Array, b: Array) -> Array:
    """E[Jaccard] of independent sets of the given sizes: summed over the hypergeometric pmf.

    The sum is taken term by term for small sets, by expansion for larger ones, where the two agree
    to better than one part in 10⁵.
    """
    total, a, b = (np.asarray(v, dtype=np.float64) for v in np.broadcast_arrays(total, a, b))
    result = expected_jaccard(a, b, *hypergeometric(total, a, b))
    small = (np.minimum(a, b) <= _SMALL_SUPPORT) & (a + b > 0)
    if small.any():
        keys = np.stack([total[small], a[small], b[small]], axis=1)
        unique, back = np.unique(keys, axis=0, return_inverse=True)
        n, k, m = (unique[:, [c]] for c in range(3))
        x = np.arange(_SMALL_SUPPORT + 1)[None, :]
        possible = (x <= np.minimum(k, m)) & (x >= k + m - n)
        pmf = np.where(possible, stats.hypergeom.pmf(x, n, k, m), 0.0)
        ratio = np.where(possible, x / np.maximum(k + m - x, 1.0), 0.0)
        result[small] = (pmf * ratio).sum(axis=1)[back.ravel()]
    return result
