"""Does attribution predict what happens when examples are left out?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from subnet.errors import InputError
from subnet.influence._resampling import tail_levels
from subnet.influence.retraining import Retrained

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DatamodellingScore:
    """How well group influence predicts outcomes of retraining.

    Attributes:
        value: Mean over test examples of the Spearman correlation over subsets.
        ci_low, ci_high: 95 % bootstrap interval, test examples and subsets both drawn.
        per_example: [n_test], NaN where the predictions or outcomes of an example are all equal.
        n_test: Test examples with a correlation.
        n_subsets: Subsets.
        reliability: What a perfect prediction could reach in expectation, about: √ of the
            correlation of the outcome means of two halves of the seeds, stepped up to all of them
            (Spearman and Brown); NaN with one seed per subset.
        reason: Why a value is undefined, or `""`.
    """

    value: float
    ci_low: float
    ci_high: float
    per_example: Array
    n_test: int
    n_subsets: int
    reliability: float
    reason: str = ""


def linear_datamodelling_score(
    scores: ArrayLike,
    retrained: Retrained,
    *,
    lower_is_better: bool = True,
    seed: int = 0,
    n_resamples: int = 1000,
) -> DatamodellingScore:
    """Linear datamodelling score (Park et al. 2023, arXiv 2303.14186).

    The predicted outcome of a test example after training on a subset S is Σ_{j∈S} score_j; LDS is
    its Spearman correlation over subsets with the actual outcome, averaged over test examples.

    Args:
        scores: [n_test, n_train], a positive score meaning that the example improves the outcome.
        retrained: Of `retrain_on_subsets`.
        lower_is_better: Whether the outcome is a loss; its sign is turned then.
        seed: Seed of the bootstrap.
        n_resamples: Bootstrap samples.

    Raises:
        InputError: The scores do not fit the subsets and outcomes, or are not finite.
    """
    found = _score(scores, retrained, lower_is_better, seed, n_resamples)
    return found[0]


def compare_methods(
    methods: Mapping[str, ArrayLike],
    retrained: Retrained,
    *,
    reference: str | None = None,
    lower_is_better: bool = True,
    seed: int = 0,
    n_resamples: int = 1000,
) -> pd.DataFrame:
    """Linear datamodelling score of several methods on the same retrained models.

    Args:
        methods: Name to scores [n_test, n_train].
        retrained: Of `retrain_on_subsets`.
        reference: Method that the others are compared with, on the same bootstrap samples.
        lower_is_better: As of `linear_datamodelling_score`.
        seed: As of `linear_datamodelling_score`.
        n_resamples: As of `linear_datamodelling_score`.

    Returns:
        One row per method: method, value, ci_low, ci_high, n (test examples), n_subsets,
        reliability, reason; with a reference also difference, difference_low, difference_high.
    """
    import pandas as pd

    if reference is not None and reference not in methods:
        raise InputError(
            f"reference is {reference!r}", expected=f"one of {', '.join(sorted(methods))}"
        )
    results = {
        name: _score(scores, retrained, lower_is_better, seed, n_resamples)
        for name, scores in methods.items()
    }
    rows = []
    for name, (score, draws) in results.items():
        row = {
            "method": name, "value": score.value, "ci_low": score.ci_low,
            "ci_high": score.ci_high, "n": score.n_test, "n_subsets": score.n_subsets,
            "reliability": score.reliability, "reason": score.reason,
        }  # fmt: skip
        if reference is not None:
            other, theirs = results[reference]
            low, high = _interval(draws - theirs, min(score.n_test, score.n_subsets))
            row |= {
                "difference": score.value - other.value,
                "difference_low": low,
                "difference_high": high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _score(
    scores: ArrayLike, retrained: Retrained, lower_is_better: bool, seed: int, n_resamples: int
) -> tuple[DatamodellingScore, Array]:
    """The score, and its bootstrap samples."""
    given = np.asarray(scores, dtype=np.float64)
    n_subsets, _, n_test = retrained.outcomes.shape
    n_train = retrained.subsets.shape[1]
    if given.shape != (n_test, n_train) or not np.isfinite(given).all():
        raise InputError(
            f"scores are {list(given.shape)}, {int((~np.isfinite(given)).sum())} not finite",
            expected=f"[{n_test}, {n_train}] finite numbers, as the retrained models have them",
        )
    predicted = given @ retrained.subsets.T.astype(np.float64)  # [n_test, s]
    actual = (-1 if lower_is_better else 1) * retrained.outcomes.mean(axis=1).T
    each = _spearman(predicted, actual)
    rng = np.random.default_rng(seed)
    draws = np.full(n_resamples, np.nan)
    for at in range(n_resamples):
        columns = rng.integers(n_subsets, size=n_subsets)
        rows = rng.integers(n_test, size=n_test)
        again = _spearman(predicted[:, columns], actual[:, columns])[rows]
        if not np.isnan(again).all():
            draws[at] = np.nanmean(again)
    n = int((~np.isnan(each)).sum())
    low, high = _interval(draws, min(n, n_subsets))
    reason = "" if n else "the predictions or the outcomes of every test example are all equal"
    if n == 1:
        reason = "no interval: one test example"
    value = float(np.nanmean(each)) if n else math.nan
    return (
        DatamodellingScore(
            value, low, high, each, n, n_subsets, _reliability(retrained.outcomes), reason
        ),
        draws,
    )


def _reliability(outcomes: Array) -> float:
    k = outcomes.shape[1]
    if k < 2:
        return math.nan
    halves = outcomes[:, : k // 2].mean(axis=1).T, outcomes[:, k // 2 :].mean(axis=1).T
    each = _spearman(*halves)
    if np.isnan(each).all():
        return math.nan
    together = max(float(np.nanmean(each)), 0.0)
    return math.sqrt(2 * together / (1 + together))


def _spearman(x: Array, y: Array) -> Array:
    """Spearman correlation of each row of x with that of y; NaN where one is constant."""
    ranks = [stats.rankdata(values, axis=1) for values in (x, y)]
    centred = [r - r.mean(axis=1, keepdims=True) for r in ranks]
    product = (centred[0] * centred[1]).sum(axis=1)
    norms = [np.sqrt(np.square(c).sum(axis=1)) for c in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            np.where(norms[0] * norms[1] > 0, product / (norms[0] * norms[1]), np.nan)
        )


def _interval(draws: Array, n: int) -> tuple[float, float]:
    if n < 2 or np.isnan(draws).all():
        return (math.nan, math.nan)
    low, high = np.nanquantile(draws, tail_levels(n))
    return (float(low), float(high))
