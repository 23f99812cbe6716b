"""Intervals and p-values when test items come in clusters: translations of one concept."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from subnet._statistics import CONFIDENCE

Array = NDArray[np.float64]

#: Numbers in memory at once.
_CHUNK = 1 << 22


def cluster_interval(
    values: Array, clusters: NDArray[np.intp], *, seed: int, n_resamples: int
) -> tuple[Array, Array]:
    """Bootstrap intervals of column means, clusters of rows drawn together.

    Percentile interval with the quantiles widened for few clusters (the "expanded percentile" of
    Hesterberg 2015, arXiv 1411.5279: Φ(−√(c/(c−1)) t) in place of 2.5 %), without which it is too
    narrow below some twenty clusters.

    Args:
        values: [n, k], NaN where a row has no value.
        clusters: [n].
        seed: Seed of the draws, the same for every column.
        n_resamples: Number of bootstrap samples.

    Returns:
        Low and high ends [k]; NaN where fewer than two clusters have a value.
    """
    defined = ~np.isnan(values)
    low, high = np.full((2, values.shape[1]), np.nan)
    for pattern in np.unique(defined, axis=1).T:
        columns = np.flatnonzero((defined == pattern[:, None]).all(axis=0))
        numbers = np.unique(clusters[pattern], return_inverse=True)[1]
        n_clusters = int(numbers.max(initial=-1)) + 1
        if n_clusters < 2:
            continue
        kept = values[np.ix_(pattern, columns)]
        sums = np.zeros((n_clusters, len(columns)))
        np.add.at(sums, numbers, kept)
        sizes = np.bincount(numbers).astype(np.float64)
        means = np.concatenate(
            [
                draw @ sums / (draw @ sizes)[:, None]
                for draw in _draws(n_clusters, n_resamples, seed)
            ]
        )
        low[columns], high[columns] = np.quantile(means, tail_levels(n_clusters), axis=0)
        constant = np.ptp(kept, axis=0) == 0
        low[columns[constant]] = high[columns[constant]] = kept[0, constant]
    return low, high


def two_way_interval(
    differences: Array, clusters: NDArray[np.intp], *, seed: int, n_resamples: int
) -> tuple[float, float]:
    """Bootstrap interval of the mean of a table whose rows and columns are both drawn.

    Args:
        differences: [n, k], rows in clusters, one column per control; NaN where undefined.
        clusters: [n].
        seed: Seed of the draws.
        n_resamples: Number of bootstrap samples.

    Returns:
        (low, high); (NaN, NaN) with fewer than two clusters or two columns.
    """
    columns = ~np.isnan(differences).all(axis=0)
    rows = ~np.isnan(differences).all(axis=1)
    table = differences[np.ix_(rows, columns)]
    numbers = np.unique(clusters[rows], return_inverse=True)[1]
    n_clusters, k = int(numbers.max(initial=-1)) + 1, int(columns.sum())
    if n_clusters < 2 or k < 2:
        return (math.nan, math.nan)
    sums, sizes = np.zeros((2, n_clusters, k))
    np.add.at(sums, numbers, np.nan_to_num(table))
    np.add.at(sizes, numbers, (~np.isnan(table)).astype(np.float64))
    rng = np.random.default_rng(seed + 1)
    found = []
    for draw in _draws(n_clusters, n_resamples, seed):
        chosen = rng.multinomial(k, np.full(k, 1 / k), size=len(draw)).astype(np.float64)
        totals, counts = (((draw @ part) * chosen).sum(axis=1) for part in (sums, sizes))
        found.append(totals[counts > 0] / counts[counts > 0])
    low, high = np.quantile(np.concatenate(found), tail_levels(min(n_clusters, k)))
    return (float(low), float(high))


def tail_levels(n: int) -> tuple[float, float]:
    """The two quantiles of a 95 % percentile interval of a mean of n things."""
    t = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)
    level = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * t))
    return (level, 1 - level)


def sign_flip_p_value(
    values: Array, clusters: NDArray[np.intp], *, seed: int, n_permutations: int
) -> tuple[float, float]:
    """Test that a mean is 0 by turning the signs of whole clusters.

    Args:
        values: [n], NaN where undefined.
        clusters: [n].
        seed: Seed of the draws; exact where there are at most `n_permutations` ways.
        n_permutations: Most sign patterns drawn.

    Returns:
        Two-sided p-value and the smallest that these clusters could give; NaN without a value.
    """
    defined = ~np.isnan(values)
    if not defined.any():
        return (math.nan, math.nan)
    numbers = np.unique(clusters[defined], return_inverse=True)[1]
    sums = np.bincount(numbers, weights=values[defined])
    moved = sums[sums != 0]  # turning a zero does nothing
    ways = 2.0 ** (len(moved) or len(sums))
    smallest = min(1.0, 2.0 / (ways if ways <= n_permutations else 1 + n_permutations))
    if len(moved) < 2:
        return (1.0, smallest)
    test = stats.permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        n_resamples=n_permutations,
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return (float(test.pvalue), smallest)


def label_p_values(
    contrasts: Array, labels: NDArray[np.intp], n_labels: int, *, seed: int, n_permutations: int
) -> Array:
    """Test whether the label of the columns matters, by shuffling the labels over the columns.

    Args:
        contrasts: [r, n], each row a sum over columns that is 0 on average over shuffles.
        labels: [n].
        n_labels: Number of labels, l.
        seed: Seed of the shuffles.
        n_permutations: Number of shuffles.

    Returns:
        Two-sided p-values [r, l]: the smaller tail doubled, the data counted among the shuffles.
    """
    n = len(labels)
    columns = np.ascontiguousarray(contrasts.T)
    steps = np.arange(n + 1)

    def totals(of: NDArray[np.intp]) -> Array:
        return np.asarray(
            (sparse.csc_array((np.ones(n), of, steps), shape=(n_labels, n)) @ columns).T
        )

    seen = totals(labels)
    # Sums of the same numbers in another order differ in the last digits, and are ties.
    slack = 1e-9 * np.abs(contrasts).sum(axis=1, keepdims=True) / max(n, 1)
    rng = np.random.default_rng(seed)
    larger, smaller = np.ones_like(seen), np.ones_like(seen)
    for _ in range(n_permutations):
        shuffled = totals(rng.permutation(labels))
        larger += shuffled >= seen - slack
        smaller += shuffled <= seen + slack
    return np.asarray(np.minimum(1.0, 2 * np.minimum(larger, smaller) / (1 + n_permutations)))


def _draws(n_clusters: int, n_resamples: int, seed: int) -> Iterator[Array]:
    """How often each cluster is drawn, in blocks of bootstrap samples: [b, c]."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n_clusters)
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        yield rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=size).astype(
            np.float64
        )
