"""Finding what was planted: examples whose labels are known to be wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet.errors import InputError
from subnet.influence._resampling import tail_levels


@dataclass(frozen=True)
class Detection:
    """How well a score finds what was planted.

    Attributes:
        auroc: Probability that a planted example has a larger score than another; ties count half.
        ci_low, ci_high: 95 % bootstrap interval, drawn within the planted and within the others.
        n_planted, n_others: Numbers of examples.
    """

    auroc: float
    ci_low: float
    ci_high: float
    n_planted: int
    n_others: int


def mislabelled_auroc(
    self_influence: ArrayLike, is_mislabelled: ArrayLike, *, seed: int = 0, n_resamples: int = 1000
) -> Detection:
    """Does self-influence put mislabelled examples first (Pruthi et al. 2020, arXiv 2002.08484)?

    Args:
        self_influence: [n_train], the score of each training example for itself.
        is_mislabelled: [n_train], boolean.
        seed: Seed of the bootstrap.
        n_resamples: Bootstrap samples.

    Raises:
        InputError: The shapes differ, a score is not finite, or there is only one kind of example.
    """
    from sklearn.metrics import roc_auc_score

    values = np.asarray(self_influence, dtype=np.float64)
    planted = np.asarray(is_mislabelled, dtype=bool)
    if values.ndim != 1 or values.shape != planted.shape or not np.isfinite(values).all():
        raise InputError(
            f"self-influence is {list(values.shape)} for {list(planted.shape)} labels",
            expected="one finite number per training example",
        )
    n_planted, n_others = int(planted.sum()), int((~planted).sum())
    if not n_planted or not n_others:
        raise InputError(
            f"{n_planted} of {len(planted)} examples are mislabelled", expected="some, and not all"
        )
    rng = np.random.default_rng(seed)
    wrong, right = values[planted], np.sort(values[~planted])
    draws = np.empty(n_resamples)
    for at in range(n_resamples):
        ours = wrong[rng.integers(n_planted, size=n_planted)]
        others = right[np.sort(rng.integers(n_others, size=n_others))]
        below = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
        draws[at] = below.mean() / (2 * n_others)
    low, high = math.nan, math.nan
    if min(n_planted, n_others) > 1:
        low, high = np.quantile(draws, tail_levels(min(n_planted, n_others))).tolist()
    auroc = float(roc_auc_score(planted, values))
    return Detection(auroc, low, high, n_planted, n_others)


def plant_mislabelled(
    labels: ArrayLike, *, share: float, n_labels: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give a share of the examples another label, drawn evenly from the wrong ones.

    Args:
        labels: [n], 0 to n_labels − 1.
        share: Share of the examples.
        n_labels: At least 2.
        seed: Seed of the choice.

    Returns:
        Labels [n], and which were changed [n].
    """
    given = np.asarray(labels, dtype=np.int64)
    n = round(share * len(given))
    if n_labels < 2 or not 0 < n < len(given):
        raise InputError(
            f"a share {share} of {len(given)} examples with {n_labels} labels",
            expected="some examples, not all, and at least 2 labels",
        )
    rng = np.random.default_rng(seed)
    changed = np.zeros(len(given), dtype=bool)
    changed[rng.permutation(len(given))[:n]] = True
    moved = (given + rng.integers(1, n_labels, size=len(given))) % n_labels
    return np.where(changed, moved, given), changed
