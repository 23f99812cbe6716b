"""Whose language: influence by training and test language, against what chance gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from subnet import _tables
from subnet._statistics import adjust_p_values
from subnet.influence._resampling import cluster_interval, label_p_values
from subnet.influence._shares import (
    MEASURES,
    Array,
    ItemValues,
    Pool,
    Translations,
    item_values,
    read_pool,
)

if TYPE_CHECKING:
    import pandas as pd

_NONE_SUCH = {
    "mean": "no training example is left",
    "share_top_positive": "no training example has a positive score",
    "share_bottom_negative": "no training example has a negative score",
}


def summarise(
    scores: ArrayLike,
    test_items: pd.DataFrame | Any,
    train_items: pd.DataFrame | Any,
    *,
    m: int = 10,
    translations: Translations = "keep",
    run: str = _tables.MAIN_RUN,
    checkpoint: str = "",
    method: str = "",
    subnetwork: str = "",
    seed: int = 0,
    n_resamples: int = 2000,
    n_permutations: int = 9999,
) -> pd.DataFrame:
    """Influence of every training language on every test language.

    Three measures, each computed per test item and averaged over the items of a test language:

    - `mean`: mean score of the training language's examples.
    - `share_top_positive`: share of the training language among the m training examples with the
      largest scores. Only positive scores count: where fewer than m are positive, the share is
      among those, and an item without any takes no part. Ties for the last places share them.
    - `share_bottom_negative`: the same among the m most negative scores.

    `expected` is what each would be on average if the languages of the training examples were
    shuffled: the mean over all training examples, and the share of the language in the corpus.
    `p_value` is from such shuffles (`n_permutations` of them), so one training example that leads
    every list makes no finding; `q_value` is adjusted over all pairs of a measure (Benjamini and
    Hochberg). The interval is another matter, how much the value depends on the test items that
    were chosen: a 95 % bootstrap over test items, those of one concept drawn together.

    Args:
        scores: [n_test, n_train], a positive score meaning that the example lowered the loss.
        test_items: One row per test example: `language`, and where it is known `concept`, the key
            that translations of one item share.
        train_items: The same for the training examples.
        m: How many training examples are "the most"; a training language with fewer than m
            examples cannot reach a share of 1.
        translations: What becomes of training examples with the test item's concept. `"keep"`
            counts them in (`n_translations` tells how many there are), `"exclude"` leaves them out
            of every measure and of `expected`: those in other languages, and any in its own, which
            would otherwise be left as the only ones of their kind.
        run: Column `run`.
        checkpoint: Column `checkpoint`.
        method: Column `method`.
        subnetwork: Column `subnetwork`.
        seed: Seed of the bootstrap and of the shuffles.
        n_resamples: Bootstrap samples.
        n_permutations: Shuffles.

    Returns:
        A table `influence`: its fixed columns, then `expected`, `p_value`, `q_value`, `m`,
        `n_concepts` (clusters of test items behind the interval), `translations`, and
        `n_translations` (pairs of a test item and a training example of one concept and two
        languages). `n` is the number of test items with a value.

    Raises:
        InputError: The items do not fit the scores, one has no language, a score is not finite, or
            a setting is out of range.

    Example:
        >>> import numpy as np
        >>> items = [{"language": "de"}, {"language": "sw"}] * 4
        >>> same = np.equal.outer(np.arange(8) % 2, np.arange(8) % 2)
        >>> table = summarise(np.where(same, 1.0, -1.0), items, items, m=3)
        >>> own = table[table.train_language == table.test_language]
        >>> own.pivot(index="test_language", columns="measure", values="value").iloc[0].to_dict()
        {'mean': 1.0, 'share_bottom_negative': 0.0, 'share_top_positive': 1.0}
    """
    pool = read_pool(test_items, train_items, np.shape(scores))
    found = item_values(scores, pool, m=m, translations=translations)
    n_labels = len(pool.train_languages)
    contrasts = np.concatenate([found.contrasts[measure] for measure in MEASURES])
    p_values = label_p_values(
        contrasts, pool.train, n_labels, seed=seed, n_permutations=n_permutations
    ).reshape(len(MEASURES), len(pool.test_languages), n_labels)
    if n_labels < 2:
        p_values[:] = np.nan
    common = {"run": run, "checkpoint": checkpoint, "method": method, "subnetwork": subnetwork}
    rows: list[dict[str, Any]] = []
    for number, measure in enumerate(MEASURES):
        part: list[dict[str, Any]] = []
        for code in range(len(pool.test_languages)):
            part += _cells(pool, found, measure, code, seed, n_resamples, p_values[number, code])
        q_values = adjust_p_values([row["p_value"] for row in part])
        for row, q_value in zip(part, q_values.tolist(), strict=True):
            rows.append({**common, **row, "q_value": q_value, "m": m, "translations": translations})
    return _tables.table("influence", rows)


def _cells(
    pool: Pool,
    found: ItemValues,
    measure: str,
    code: int,
    seed: int,
    n_resamples: int,
    p_values: Array,
) -> list[dict[str, Any]]:
    """Rows of one measure and one test language, one per training language."""
    items = pool.test == code
    values, expected = found.measured[measure][items], found.expected[measure][items]
    clusters = pool.clusters[items]
    low, high = cluster_interval(values, clusters, seed=seed, n_resamples=n_resamples)
    language = pool.test_languages[code]
    rows = []
    for column, train_language in enumerate(pool.train_languages):
        defined = ~np.isnan(values[:, column])
        n, n_concepts = int(defined.sum()), len(np.unique(clusters[defined]))
        reasons = []
        if n == 0:
            reasons.append(_NONE_SUCH[measure])
        elif n_concepts < 2:
            reasons.append(f"no interval: {n_concepts} test item or concept")
        if len(pool.train_languages) < 2:
            reasons.append("no p-value: all training examples are of one language")
        same = 0 if language == train_language else int(found.n_same_concept[items, column].sum())
        rows.append(
            {
                "train_language": train_language,
                "test_language": language,
                "measure": measure,
                "value": float(values[defined, column].mean()) if n else np.nan,
                "ci_low": low[column],
                "ci_high": high[column],
                "n": n,
                "reason": "; ".join(reasons),
                "expected": float(expected[defined, column].mean()) if n else np.nan,
                "p_value": p_values[column] if n else np.nan,
                "n_concepts": n_concepts,
                "n_translations": same,
            }
        )
    return rows
