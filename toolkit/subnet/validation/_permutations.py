"""One-sided permutation tests over examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

N_PERMUTATIONS = 9999
# Statistics that differ by less are equal up to rounding.
TIE = 1e-9


def sign_flip(differences: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """One-sided p of a mean above 0 when signs are exchanged, and the smallest there could be.

    Exact where there are at most 9999 ways, Monte Carlo beyond.
    """
    n = len(differences)
    ways = 2.0**n
    exact = ways <= N_PERMUTATIONS
    smallest = 1 / ways if exact else 1 / (1 + N_PERMUTATIONS)
    if n < 2 or not differences.any():
        return 1.0, 1.0
    result = stats.permutation_test(
        (differences,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=N_PERMUTATIONS,  # all ways where they are no more
        batch=max(1, 4_000_000 // n),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue), smallest


def relabelled(
    own: NDArray[np.float64], others: Sequence[NDArray[np.float64]], seed: int
) -> tuple[float, float]:
    """One-sided p of the own examples' mean above the others', under exchange of languages.

    What is compared is Welch's t (Janssen 1997): where languages differ in spread, the mean alone
    would reject too often. Monte Carlo.
    """
    pooled = np.concatenate([own, *others])
    n, total = len(own), len(pooled)
    if n < 2 or total - n < 2 or np.ptp(pooled) == 0:
        return 1.0, 1.0
    rng = np.random.default_rng(seed)
    observed = _welch(np.arange(n)[None, :], pooled)[0]
    at_least = 0
    step = max(1, 4_000_000 // total)
    for start in range(0, N_PERMUTATIONS, step):
        size = min(step, N_PERMUTATIONS - start)
        # The places of the n smallest of random numbers are n places drawn at random.
        drawn = np.argpartition(rng.random((size, total)), n - 1, axis=1)[:, :n]
        at_least += int((_welch(drawn, pooled) >= observed - TIE * abs(observed)).sum())
    ways = math.comb(total, n)
    return (1 + at_least) / (1 + N_PERMUTATIONS), max(1 / ways, 1 / (1 + N_PERMUTATIONS))


def _welch(places: NDArray[np.int64], pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k] Welch's t of the values at places [k, n] against all others."""
    centred = pooled - pooled.mean()
    n, m = places.shape[1], len(pooled) - places.shape[1]
    ours = centred[places]
    total, squares = ours.sum(axis=1), (ours**2).sum(axis=1)
    mean, rest_mean = total / n, -total / m
    variance = np.maximum(squares / n - mean**2, 0) * n / (n - 1)
    rest = np.maximum(((centred**2).sum() - squares) / m - rest_mean**2, 0) * m / (m - 1)
    scale = np.sqrt(variance / n + rest / m)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(scale > 0, (mean - rest_mean) / scale, np.sign(mean - rest_mean) * np.inf)
    return np.asarray(t, dtype=np.float64)
