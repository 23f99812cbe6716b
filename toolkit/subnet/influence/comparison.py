"""What a subnetwork does to the share of a test item's own language: against controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet import _tables
from subnet._statistics import adjust_p_values
from subnet.errors import InputError
from subnet.influence._resampling import cluster_interval, sign_flip_p_value, two_way_interval
from subnet.influence._shares import Array, Pool, Translations, item_values, read_pool

if TYPE_CHECKING:
    import pandas as pd

#: Row of a comparison over the items of every language.
ALL_LANGUAGES = "all"
SHARES = ("share_top_positive", "share_bottom_negative")
#: A test that cannot give a p-value below this is no test.
_ALPHA = 0.05


def compare_subnetworks(
    full: ArrayLike,
    own: ArrayLike | Mapping[str, ArrayLike],
    *,
    other: Mapping[str, ArrayLike] | None = None,
    random: Sequence[ArrayLike] = (),
    test_items: pd.DataFrame | Any,
    train_items: pd.DataFrame | Any,
    m: int = 10,
    translations: Translations = "keep",
    run: str = _tables.MAIN_RUN,
    checkpoint: str = "",
    method: str = "",
    seed: int = 0,
    n_resamples: int = 2000,
    n_permutations: int = 9999,
) -> pd.DataFrame:
    """Differences of the in-language share between the own subnetwork and everything else.

    The in-language share of a test item is the share of its own language among the m training
    examples of largest (or most negative) score, as in `summarise`. It is compared item by item:

    - `own - full`: scores restricted to the test language's subnetwork, against unrestricted ones.
    - `own - other`: against the subnetworks of other languages.
    - `own - random`: against random subnetworks matched to the own one per module, one per seed.

    Against `full` the interval is a bootstrap over test items and the p-value from turning signs
    (two-sided), concepts drawn or turned together. Against several controls items and controls are
    both drawn, and the p-value counts the controls that do better than the own subnetwork, doubled:
    with k controls it cannot be below 2/(1 + k), so fewer than 39 give an interval but no test.

    Args:
        full: [n_test, n_train] scores of the full model.
        own: The same where every test item is scored within its own language's subnetwork; or
            scores by language of the subnetwork, of which each item takes its own language's row.
        other: Scores by language of the subnetwork. An item is compared with every language but
            its own.
        random: Scores by seed.
        test_items: One row per test example: `language` and, where known, `concept`.
        train_items: The same for the training examples.
        m: How many training examples are "the most".
        translations: As of `summarise`.
        run: Column `run`.
        checkpoint: Column `checkpoint`.
        method: Column `method`.
        seed: Seed of the resampling.
        n_resamples: Bootstrap samples.
        n_permutations: Most sign patterns drawn.

    Returns:
        One row per comparison, measure and test language, and `all` for the items of every
        language together: run, checkpoint, method, comparison, measure, test_language, value (mean
        difference of shares), ci_low, ci_high, p_value, q_value (Benjamini and Hochberg within a
        comparison and measure, over the single languages; `all` keeps its p), smallest_p, own and
        control (mean shares), expected (0), n (test items), n_controls, m, translations, reason.

    Raises:
        InputError: As of `summarise`, or a language has no subnetwork among `own`.
    """
    import pandas as pd

    pool = read_pool(test_items, train_items, np.shape(full))

    def shares(scores: ArrayLike) -> dict[str, Array]:
        return _in_language(scores, pool, m, translations)

    owned = shares(_own_rows(own, pool))
    controls: dict[str, list[dict[str, Array]]] = {"own - full": [shares(full)]}
    if other:
        controls["own - other"] = [
            _without(shares(scores), _items_of(pool, name)) for name, scores in other.items()
        ]
    if len(random):
        controls["own - random"] = [shares(scores) for scores in random]
    labels = {"run": run, "checkpoint": checkpoint, "method": method}
    rows: list[dict[str, Any]] = []
    for comparison, found in controls.items():
        for measure in SHARES:
            table = np.stack([each[measure] for each in found], axis=1)  # [n_test, k]
            part = [
                {
                    **labels,
                    "comparison": comparison,
                    "measure": measure,
                    "test_language": language,
                    **_difference(
                        owned[measure][items],
                        table[items],
                        pool.clusters[items],
                        comparison != "own - full",
                        seed,
                        n_resamples,
                        n_permutations,
                    ),
                    "m": m,
                    "translations": translations,
                }
                for language, items in _groups(pool)
            ]
            q_values = [*adjust_p_values([r["p_value"] for r in part[:-1]]), part[-1]["p_value"]]
            rows += [{**row, "q_value": float(q)} for row, q in zip(part, q_values, strict=True)]
    columns = (
        "run", "checkpoint", "method", "comparison", "measure", "test_language", "value", "ci_low",
        "ci_high", "p_value", "q_value", "smallest_p", "own", "control", "expected", "n",
        "n_controls", "m", "translations", "reason",
    )  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns))


def _difference(
    own: Array,
    controls: Array,
    clusters: NDArray[np.intp],
    drawn: bool,
    seed: int,
    n_resamples: int,
    n_permutations: int,
) -> dict[str, Any]:
    """Own [n] against controls [n, k], over the items and controls where both are defined.

    `drawn` says that the controls are some of many that could have been taken.
    """
    differences = own[:, None] - controls
    by_control = differences[:, ~np.isnan(differences).all(axis=0)]
    used = ~np.isnan(by_control).all(axis=1)
    n, k = int(used.sum()), by_control.shape[1]
    nothing = {"expected": 0.0, "n": n, "n_controls": k}
    if n == 0:
        undefined = dict.fromkeys(
            ("value", "ci_low", "ci_high", "p_value", "smallest_p", "own", "control"), math.nan
        )
        return {**undefined, **nothing, "reason": "no test item has both shares"}
    both = ~np.isnan(differences)
    reasons = []
    if k == 1:
        low, high = cluster_interval(by_control, clusters, seed=seed, n_resamples=n_resamples)
        ci = (float(low[0]), float(high[0]))
    else:
        ci = two_way_interval(differences, clusters, seed=seed, n_resamples=n_resamples)
    if drawn:
        means = np.nanmean(by_control, axis=0)
        at_most = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
        p_value, smallest = min(1.0, 2 * at_most / (1 + k)), 2 / (1 + k)
    else:
        p_value, smallest = sign_flip_p_value(
            by_control[:, 0], clusters, seed=seed, n_permutations=n_permutations
        )
    if smallest >= _ALPHA:
        few = f"{k} control" if drawn else f"{n} test item"
        reasons.append(f"no p-value: with {few}(s) it cannot be below {smallest:.2g}")
        p_value = math.nan
    if math.isnan(ci[0]):
        reasons.append("no interval: one test item or concept")
    return {
        "value": float(differences[both].mean()),
        "ci_low": ci[0],
        "ci_high": ci[1],
        "p_value": p_value,
        "smallest_p": smallest,
        "own": float(np.broadcast_to(own[:, None], both.shape)[both].mean()),
        "control": float(controls[both].mean()),
        **nothing,
        "reason": "; ".join(reasons),
    }


def _in_language(
    scores: ArrayLike, pool: Pool, m: int, translations: Translations
) -> dict[str, Array]:
    """Share of each test item's own language: measure to [n_test]."""
    found = item_values(scores, pool, m=m, translations=translations)
    rows, own = np.arange(len(pool.test)), pool.own
    return {
        measure: np.where(own >= 0, found.measured[measure][rows, own], np.nan)
        for measure in SHARES
    }


def _own_rows(own: ArrayLike | Mapping[str, ArrayLike], pool: Pool) -> ArrayLike:
    if not isinstance(own, Mapping):
        return own
    absent = [name for name in pool.test_languages if name not in own]
    if absent:
        raise InputError(
            f"no scores within the subnetwork of {', '.join(absent)}",
            expected="one array for every test language",
        )
    rows = np.empty((len(pool.test), len(pool.train)))
    for name, items in list(_groups(pool))[:-1]:
        rows[items] = np.asarray(own[name])[items]
    return rows


def _groups(pool: Pool) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Items of each test language, then all."""
    for code, name in enumerate(pool.test_languages):
        yield name, pool.test == code
    yield ALL_LANGUAGES, np.ones(len(pool.test), dtype=bool)


def _items_of(pool: Pool, language: str) -> NDArray[np.bool_]:
    names = np.array(pool.test_languages, dtype=object)
    return np.asarray(names[pool.test] == language)


def _without(shares: dict[str, Array], items: NDArray[np.bool_]) -> dict[str, Array]:
    return {measure: np.where(items, np.nan, values) for measure, values in shares.items()}
