"""What training without a language does to every language, against what influence predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from subnet.errors import InputError
from subnet.influence._resampling import tail_levels
from subnet.influence.retraining import RetrainedWithout

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
_ALPHA = 0.05
_PAIRS = ("all", "between languages")


@dataclass(frozen=True, eq=False)
class LanguageRemoval:
    """How well language-level influence predicts what leaving a language out does.

    Attributes:
        pairs: One row per test and training language: test_language, train_language, predicted
            (summed influence), actual (how much worse the outcome got without the language).
        correlations: One row per set of pairs (`all`; `between languages`, without the diagonal,
            which any method gets right that finds a language useful for itself): pairs, value
            (mean over test languages of the Spearman correlation over training languages), ci_low,
            ci_high (bootstrap over test examples), p_value, smallest_p, n_languages, reason.
    """

    pairs: pd.DataFrame
    correlations: pd.DataFrame


def leave_one_language_out(
    scores: ArrayLike | pd.DataFrame,
    retrained: RetrainedWithout,
    test_languages: Sequence[str],
    *,
    lower_is_better: bool = True,
    seed: int = 0,
    n_resamples: int = 1000,
    n_permutations: int = 9999,
) -> LanguageRemoval:
    """Rank correlation of language-level influence with the effect of leaving a language out.

    Leaving a language out removes all of its examples, so what is compared is the *sum* of their
    scores, averaged over the test examples of a language. The p-value is from permuting languages:
    training languages for all pairs; for pairs between languages rows and columns together, so
    that the diagonal stays where it is.

    Args:
        scores: [n_test, n_train]; or mean scores as a table of test languages (index) by training
            languages (columns), where a method gives no more.
        retrained: Of `retrain_without_languages`.
        test_languages: [n_test].
        lower_is_better: Whether the outcome is a loss.
        seed: Seed of the bootstrap and of the permutations.
        n_resamples: Bootstrap samples.
        n_permutations: Most permutations; exact where there are no more.

    Raises:
        InputError: The scores or languages do not fit the retrained models.
    """
    import pandas as pd

    n_test = retrained.whole.shape[1]
    names, codes = np.unique(np.asarray(test_languages, dtype=str), return_inverse=True)
    if len(codes) != n_test:
        raise InputError(
            f"{len(codes)} test languages for {n_test} outcomes", expected="one per test example"
        )
    worse = retrained.without.mean(axis=1) - retrained.whole.mean(axis=0)  # [l, n_test]
    actual = (worse if lower_is_better else -worse).T
    predicted = _summed(scores, retrained, names, codes)
    # [n_test] rows of both; of a table, every test example of a language has its language's row
    groups = [np.flatnonzero(codes == code) for code in range(len(names))]
    x, y = (np.stack([v[rows].mean(axis=0) for rows in groups]) for v in (predicted, actual))
    same = np.equal.outer(names, np.array(retrained.languages))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n_resamples):
        chosen = [rows[rng.integers(len(rows), size=len(rows))] for rows in groups]
        again = [np.stack([v[rows].mean(axis=0) for rows in chosen]) for v in (predicted, actual)]
        draws.append(
            [_mean_spearman(again[0], again[1], same & hidden) for hidden in (False, True)]
        )
    fewest = min(map(len, groups))
    correlations = []
    for which, together, sample in zip(_PAIRS, (False, True), np.array(draws).T, strict=True):
        left_out = same & together
        p_value, smallest, reason = _permuted(
            x, y, left_out, together=together, seed=seed, n_permutations=n_permutations
        )
        low, high = math.nan, math.nan
        if fewest > 1 and np.isfinite(sample).any():
            low, high = np.nanquantile(sample, tail_levels(fewest)).tolist()
        correlations.append(
            {
                "pairs": which,
                "value": _mean_spearman(x, y, left_out),
                "ci_low": low,
                "ci_high": high,
                "p_value": p_value,
                "smallest_p": smallest,
                "n_languages": len(retrained.languages),
                "reason": reason,
            }
        )
    pairs = [
        {
            "test_language": str(name), "train_language": other,
            "predicted": float(x[i, j]), "actual": float(y[i, j]),
        }
        for i, name in enumerate(names)
        for j, other in enumerate(retrained.languages)
    ]  # fmt: skip
    return LanguageRemoval(pd.DataFrame(pairs), pd.DataFrame(correlations))


def _summed(
    scores: Any, retrained: RetrainedWithout, names: NDArray[np.str_], codes: NDArray[np.intp]
) -> Array:
    """Summed scores of each training language for each test example: [n_test, l]."""
    import pandas as pd

    counts = np.bincount(retrained.train)
    if isinstance(scores, pd.DataFrame):
        absent = [n for n in names if n not in scores.index]
        absent += [n for n in retrained.languages if n not in scores.columns]
        if absent:
            raise InputError(
                f"the table of scores has no {absent[0]}",
                expected="test languages as index, training languages as columns",
            )
        means = scores.loc[list(names), list(retrained.languages)].to_numpy(dtype=np.float64)
        return np.asarray((means * counts)[codes])
    given = np.asarray(scores, dtype=np.float64)
    if given.shape != (len(codes), len(retrained.train)) or not np.isfinite(given).all():
        raise InputError(
            f"scores are {list(given.shape)}",
            expected=f"[{len(codes)}, {len(retrained.train)}] finite numbers",
        )
    members = np.equal.outer(retrained.train, np.arange(len(counts))).astype(np.float64)
    return np.asarray(given @ members)


def _unit_ranks(values: Array, left_out: NDArray[np.bool_]) -> Array:
    """Ranks within each row, centred and of length 1; 0 where left out or nothing differs.

    The product of two such rows is their Spearman correlation.
    """
    found = np.zeros(values.shape)
    for row, out, into in zip(values, left_out, found, strict=True):
        keep = ~out
        if keep.sum() >= 3 and np.ptp(row[keep]) > 0:
            ranks = stats.rankdata(row[keep])
            ranks -= ranks.mean()
            into[keep] = ranks / np.linalg.norm(ranks)
    return found


def _mean_spearman(x: Array, y: Array, left_out: NDArray[np.bool_]) -> float:
    """Mean over rows of the Spearman correlation over the columns that are not left out."""
    ranks = _unit_ranks(x, left_out), _unit_ranks(y, left_out)
    defined = ranks[0].any(axis=1) & ranks[1].any(axis=1)
    return float((ranks[0] * ranks[1]).sum() / defined.sum()) if defined.any() else math.nan


def _permuted(
    x: Array,
    y: Array,
    left_out: NDArray[np.bool_],
    *,
    together: bool,
    seed: int,
    n_permutations: int,
) -> tuple[float, float, str]:
    """Two-sided p-value, the smallest there could be, and why there is none."""
    n = x.shape[1]
    if math.isnan(_mean_spearman(x, y, left_out)):
        return (math.nan, math.nan, "fewer than three training languages differ")
    if together and not (x.shape[0] == n and np.array_equal(left_out, np.eye(n, dtype=bool))):
        return (math.nan, math.nan, "no p-value: test and training languages are not the same")
    ways = math.factorial(n)
    smallest = 2 / (ways if ways <= n_permutations else 1 + n_permutations)
    if smallest >= _ALPHA:
        reason = f"no p-value: {n} languages cannot give one below {smallest:.2g}"
        return (math.nan, smallest, reason)
    # A row's ranks go with it, so what is permuted are the ranks.
    ours, theirs = _unit_ranks(x, left_out), _unit_ranks(y, left_out)

    def statistic(order: Any) -> float:
        moved = np.asarray(order, dtype=np.intp)
        again = ours[moved][:, moved] if together else ours[:, moved]
        return float((again * theirs).sum())

    test = stats.permutation_test(
        (np.arange(n),),
        statistic,
        permutation_type="pairings",
        n_resamples=n_permutations,
        vectorized=False,
        rng=np.random.default_rng(seed),
    )
    return (float(test.pvalue), smallest, "")
