"""Predict the distance of two languages from where their centroids differ, both held out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet_probes.probe import RegressionProbe


def held_out_prediction(
    centroids: NDArray[np.float64],
    distances: NDArray[np.float64],
    *,
    alpha: float,
    folds: int,
    n_permutations: int,
    seed: int,
) -> dict[str, Any]:
    """Correlation of predicted with given distances over held-out pairs, and its p-value.

    Languages are dealt into folds. A ridge regression is fitted to the pairs of the other folds'
    languages and tested on the pairs within the fold, so neither language of a tested pair was
    seen; a pair across folds takes no part. Under the null hypothesis languages change names on the
    distances, and everything is fitted again.

    Args:
        centroids: [l, d].
        distances: [l, l]; both directions are averaged.
        alpha: Of `RegressionProbe`.
        folds: Folds over languages.
        n_permutations: Permutations drawn.
        seed: Of folds and permutations.

    Returns:
        score, p_value (one-sided: better than chance), smallest_p, testable, n_languages,
        n_pairs tested, n_permutations, reason.
    """
    count = len(centroids)
    found: dict[str, Any] = {
        "score": math.nan, "p_value": math.nan, "smallest_p": math.nan, "testable": False,
        "n_languages": count, "n_pairs": 0, "n_permutations": 0, "reason": "",
    }  # fmt: skip
    if count < 3 * folds:
        return {**found, "reason": f"{count} languages for {folds} folds of at least three"}
    symmetric = (distances + distances.T) / 2
    one, other = np.triu_indices(count, 1)
    if not np.isfinite(symmetric[one, other]).all():
        return {**found, "reason": "some distances are not known"}
    rng = np.random.default_rng([seed, 4])
    fold = np.empty(count, dtype=np.intp)
    fold[rng.permutation(count)] = np.arange(count) % folds
    orders = np.vstack([np.arange(count), *(rng.permutation(count) for _ in range(n_permutations))])
    values = symmetric[orders[:, one], orders[:, other]].T  # [pairs, 1 + permutations]
    differences = ((centroids[one] - centroids[other]) ** 2).astype(np.float32)
    predicted = np.full(values.shape, np.nan)
    for number in range(folds):
        train = (fold[one] != number) & (fold[other] != number)
        test = (fold[one] == number) & (fold[other] == number)
        probe = RegressionProbe(alpha).fit(differences[train], values[train])
        predicted[test] = np.asarray(probe.predict(differences[test])).reshape(test.sum(), -1)
    tested = fold[one] == fold[other]
    scores = _correlations(predicted[tested], values[tested])
    if np.isnan(scores[0]):
        return {**found, "reason": "distances or predictions do not vary"}
    p = (1 + int((scores[1:] >= scores[0] - 1e-12).sum())) / (1 + n_permutations)
    smallest = 1 / (1 + n_permutations)
    return {
        **found,
        "score": float(scores[0]),
        "p_value": p,
        "smallest_p": smallest,
        "testable": smallest <= 0.05,
        "n_pairs": int(tested.sum()),
        "n_permutations": n_permutations,
    }


def _correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlations of the columns of a and b [n, m]; NaN where one does not vary."""
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.asarray((x * y).sum(axis=0) / np.where(scale > 1e-12, scale, np.nan))
