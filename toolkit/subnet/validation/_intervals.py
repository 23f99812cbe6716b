"""Means over examples, paired with what the whole model makes of the same examples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet._statistics import CONFIDENCE

N_RESAMPLES = 2000


class Resampling:
    """Percentile bootstrap of the mean over n examples, the same resamples for whatever is asked.

    Differences to the whole model come per example, so resampling examples keeps the pairs.

    Args:
        n: Number of examples.
        seed: Seed of the resamples.
    """

    def __init__(self, n: int, seed: int) -> None:
        self._n = n
        rng = np.random.default_rng([seed, n])
        # How often each example is drawn: a mean over a resample is then a product of matrices.
        share = np.full(n, 1 / n) if n else np.zeros(0)
        self._times = rng.multinomial(n, share, size=N_RESAMPLES) if n else np.zeros((0, 0))

    def interval(self, values: NDArray[np.float64]) -> tuple[float, float]:
        """95 % interval of the mean of values [n]; (NaN, NaN) for fewer than two, or with NaN."""
        if self._n < 2 or np.isnan(values).any():
            return (math.nan, math.nan)
        if np.ptp(values) == 0:
            return (float(values[0]), float(values[0]))
        means = self._times @ values / self._n
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(means, (tail, 1 - tail))
        return (float(low), float(high))


def cell(
    loss: NDArray[np.float64],
    whole: NDArray[np.float64],
    correct: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    resampling: Resampling,
    language: str,
) -> dict[str, Any]:
    """One condition on the examples of one language.

    Args:
        loss: [n] or [seeds, n], of random masks.
        whole: [n], of the whole model.
        correct: Of the shape of `loss`.
        labelled: [n]: which examples have a label; the others are left out.
        resampling: Over the examples that have a label.
        language: For the reason.

    Returns:
        loss, accuracy, change, ci_low, ci_high, seed_low, seed_high (smallest and largest mean
        change over seeds), n, reason.
    """
    n = int(labelled.sum())
    losses = np.atleast_2d(loss)[:, labelled]
    hits = np.atleast_2d(correct)[:, labelled]
    nan = math.nan
    found = dict.fromkeys(
        ("loss", "accuracy", "change", "ci_low", "ci_high", "seed_low", "seed_high"), nan
    )
    if n == 0:
        missing = f"no test example of {language}"
        return {**found, "n": 0, "reason": missing if whole.size == 0 else f"{missing} has a label"}
    usable = np.isfinite(losses).all(axis=0) & np.isfinite(whole[labelled])
    broken = n - int(usable.sum())
    if broken:
        return {**found, "n": n, "reason": f"the loss of {broken} of {n} examples is no number"}
    changes = losses - whole[labelled]
    low, high = resampling.interval(changes.mean(axis=0))
    by_seed = changes.mean(axis=1)
    several = len(by_seed) > 1
    return {
        "loss": float(losses.mean()),
        "accuracy": float(hits.mean()),
        "change": float(changes.mean()),
        "ci_low": low,
        "ci_high": high,
        "seed_low": float(by_seed.min()) if several else nan,
        "seed_high": float(by_seed.max()) if several else nan,
        "n": n,
        "reason": "one example has no interval" if n == 1 else "",
    }
