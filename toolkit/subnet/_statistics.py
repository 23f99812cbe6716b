"""Corrections, permutation p-values and intervals, so that every room means the same by them.

scipy does the work; this module fixes the conventions: two-sided unless said otherwise, a Monte
Carlo p-value is (1 + count) / (1 + n) and never 0, an undefined p-value stays undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

#: Confidence of every interval in the project.
CONFIDENCE = 0.95


def adjust_p_values(p_values: ArrayLike) -> NDArray[np.float64]:
    """q-values by Benjamini and Hochberg (1995); undefined p-values are left out of the family.

    Args:
        p_values: [m], NaN where undefined.

    Returns:
        [m], NaN where undefined.
    """
    p = np.asarray(p_values, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    defined = ~np.isnan(p)
    if defined.any():
        q[defined] = stats.false_discovery_control(p[defined], method="bh")
    return q


def beta_sf(
    x: NDArray[np.float64],
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """P(X ≥ x) for the beta distribution on [low, high] with the given mean and variance.

    NaN where the variance is 0 or low = high. A distribution that lives on its two ends only keeps
    the probability of the upper one.
    """
    x, mean, variance, low, high = np.broadcast_arrays(x, mean, variance, low, high)
    result = np.full(x.shape, np.nan)
    ok = (variance > 0) & (high > low)
    width = high[ok] - low[ok]
    m = (mean[ok] - low[ok]) / width
    size = np.maximum(m * (1 - m) / (variance[ok] / width**2) - 1, 1e-9)
    at = np.clip((x[ok] - low[ok]) / width, 0.0, 1 - 1e-9)
    result[ok] = special.betaincc(m * size, (1 - m) * size, at)
    return result


def bootstrap_interval(
    samples: Sequence[ArrayLike] | ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    seed: int,
    n_resamples: int = 2000,
    paired: bool = False,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (Efron 1979).

    Args:
        samples: One sample [n], or a list of samples that the statistic takes in order.
        statistic: Function of the samples; must take `axis`.
        seed: Seed of the resampling.
        n_resamples: Number of bootstrap samples.
        paired: Resample the samples together.

    Returns:
        (low, high) at 95 %; (NaN, NaN) where a sample has fewer than two values.
    """
    data = [np.asarray(s, dtype=np.float64) for s in _as_samples(samples)]
    if any(sample.size < 2 for sample in data):
        return (math.nan, math.nan)
    if all(np.ptp(sample) == 0 for sample in data):
        value = float(statistic(*data, axis=-1))
        return (value, value)
    result = stats.bootstrap(
        data,
        statistic,
        n_resamples=n_resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        paired=paired,
        rng=np.random.default_rng(seed),
    )
    return (float(result.confidence_interval.low), float(result.confidence_interval.high))


@dataclass(frozen=True)
class GroupDifference:
    """Difference of the means of two groups, members minus the others.

    Attributes:
        value: mean(members) − mean(others).
        ci_low, ci_high: Bootstrap interval, resampling within each group.
        p_value: Two-sided permutation p-value over the labels.
        smallest_p: The smallest p-value that this grouping could have given.
        n_members, n_others: Sizes of the groups.
        reason: Why the p-value is undefined, `""` where it is defined.
    """

    value: float
    ci_low: float
    ci_high: float
    p_value: float
    smallest_p: float
    n_members: int
    n_others: int
    reason: str = ""


def group_difference(
    values: ArrayLike, members: ArrayLike, *, seed: int, n_permutations: int = 9999
) -> GroupDifference:
    """Test whether a group of languages differs from the rest, by permuting group labels.

    Exact where there are at most `n_permutations` ways to choose the group, Monte Carlo beyond.

    Args:
        values: [l], one value per language; NaN is left out.
        members: [l], boolean.
        seed: Seed of the permutations and of the bootstrap.
        n_permutations: Most permutations drawn.
    """
    return group_differences(
        np.atleast_2d(np.asarray(values, dtype=np.float64)),
        members,
        seed=seed,
        n_permutations=n_permutations,
    )[0]


def group_differences(
    values: ArrayLike, members: ArrayLike, *, seed: int, n_permutations: int = 9999
) -> list[GroupDifference]:
    """`group_difference` of several measures at once, under the same permutations.

    Args:
        values: [m, l], one row per measure; a row leaves out its NaN.
        members: [l], boolean.
        seed: Seed of the permutations and of the bootstrap.
        n_permutations: Most permutations drawn.

    Returns:
        One entry per row.
    """
    rows = np.asarray(values, dtype=np.float64)
    inside = np.asarray(members, dtype=bool)
    defined = ~np.isnan(rows)
    found: dict[int, GroupDifference] = {}
    for pattern in np.unique(defined, axis=0) if rows.size else defined:
        alike = np.flatnonzero((defined == pattern).all(axis=1))
        ours, others = rows[np.ix_(alike, pattern & inside)], rows[np.ix_(alike, pattern & ~inside)]
        found.update(
            zip(alike.tolist(), _differences(ours, others, seed, n_permutations), strict=True)
        )
    return [found[row] for row in range(len(rows))]


def _differences(
    ours: NDArray[np.float64], others: NDArray[np.float64], seed: int, n_permutations: int
) -> list[GroupDifference]:
    """Differences of complete rows: ours [m, n], others [m, k]."""
    n, k = ours.shape[1], others.shape[1]
    if n == 0 or k == 0:
        missing = "the group" if n == 0 else "the other languages"
        nan = math.nan
        return [GroupDifference(nan, nan, nan, nan, nan, n, k, f"no values for {missing}")] * len(
            ours
        )
    means = _mean_difference(ours, others)
    ways = math.comb(n + k, n)
    # scipy doubles the smaller tail, and counts the data themselves among those drawn
    smallest = min(1.0, 2.0 / (ways if ways <= n_permutations else 1 + n_permutations))
    if n < 2 or k < 2:
        reason = "fewer than two languages in a group"
        return [
            GroupDifference(float(mean), math.nan, math.nan, math.nan, smallest, n, k, reason)
            for mean in means
        ]
    interval = stats.bootstrap(
        (ours, others),
        _mean_difference,
        n_resamples=2000,
        confidence_level=CONFIDENCE,
        method="percentile",
        axis=-1,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    test = stats.permutation_test(
        (ours, others),
        _mean_difference,
        permutation_type="independent",
        n_resamples=n_permutations,
        batch=1000,  # m × batch × l values in memory
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    low, high, p_values = (np.asarray(a) for a in (interval.low, interval.high, test.pvalue))
    return [
        GroupDifference(
            float(means[row]),
            float(low[row]),
            float(high[row]),
            float(p_values[row]),
            smallest,
            n,
            k,
        )
        for row in range(len(ours))
    ]


def normal_interval(value: float, stderr: float) -> tuple[float, float]:
    """Interval from a standard error under normality; (NaN, NaN) where it is undefined."""
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * stderr
    return (value - half, value + half)


def _mean_difference(x: NDArray[Any], y: NDArray[Any], axis: int = -1) -> Any:
    return np.mean(x, axis=axis) - np.mean(y, axis=axis)


def _as_samples(samples: Sequence[ArrayLike] | ArrayLike) -> Sequence[ArrayLike]:
    if isinstance(samples, list | tuple) and samples and np.ndim(samples[0]) > 0:
        return samples
    return [samples]  # type: ignore[list-item]
