"""Splits that keep together what belongs together: a concept in all languages, a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from subnet.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the items that say what belongs together, the widest first.
_WIDEST_FIRST = ("concept", "sentence", "id")


def split_groups(items: pd.DataFrame) -> tuple[NDArray[np.intp], str]:
    """Number of the group of each item, none of which a split may tear apart.

    The concept where an item has one (parallel data say the same in several languages, and tokens
    of parallel sentences belong to their concept too), else its sentence, else its id. Equal
    names are one group whatever the language, since ids that recur across languages usually number
    translations.

    Args:
        items: [n] rows with at least one of `concept`, `sentence`, `id`.

    Returns:
        [n] numbers, and the columns used, joined by `or`.

    Raises:
        MissingInputError: An item has none of them.
    """
    used = [name for name in _WIDEST_FIRST if name in items.columns]
    keys = np.full(len(items), "", dtype=object)
    needed = []
    for name in used:
        fill = (keys == "") & items[name].notna().to_numpy()
        if fill.any():
            needed.append(name)
            keys[fill] = f"{name}:" + items[name].astype(str).to_numpy(dtype=object)[fill]
    if (keys == "").any():
        raise MissingInputError(
            f"{int((keys == '').sum())} of {len(items)} items have no concept, sentence or id",
            expected="one of them, so that splits keep together what belongs together",
        )
    _, groups = np.unique(keys.astype(str), return_inverse=True)
    return groups.astype(np.intp), " or ".join(needed)


def grouped_folds(
    labels: ArrayLike, groups: ArrayLike, *, folds: int, seed: int
) -> NDArray[np.intp]:
    """Fold of each item: no group in two folds, label shares alike as far as that allows.

    Args:
        labels: [n], what to stratify by.
        groups: [n].
        folds: Number of folds.
        seed: Seed of the shuffle.

    Returns:
        [n], from 0 to folds − 1.

    Raises:
        InputError: There are fewer groups than folds, or fewer than two folds.
    """
    y, members = np.asarray(labels), np.asarray(groups)
    count = len(np.unique(members))
    if isinstance(folds, bool) or folds != int(folds) or folds < 2:
        raise InputError(f"folds is {folds}", expected="a whole number of at least 2")
    if count < folds:
        raise InputError(f"{count} groups for {folds} folds", fix=f"take folds={max(count, 2)}")
    codes = np.unique(y, return_inverse=True)[1]
    if np.bincount(codes).max() < folds:  # no label can be in every fold
        codes = np.zeros_like(codes)
    return _stratified(codes, np.unique(members, return_inverse=True)[1], folds, seed)


def _stratified(
    codes: NDArray[np.intp], groups: NDArray[np.intp], folds: int, seed: int
) -> NDArray[np.intp]:
    """Folds as of scikit-learn's `StratifiedGroupKFold`, all folds tried for a group at once.

    Groups in random order, those with the most uneven labels first, each go where the shares of
    the labels then differ least between folds; of equal ones to the fold with the fewest items.
    """
    totals = np.bincount(codes)
    counts = np.zeros((groups.max() + 1, len(totals)))
    np.add.at(counts, (groups, codes), 1)
    order = np.arange(len(counts))
    check_random_state(seed).shuffle(order)
    order = order[np.argsort(-np.std(counts[order], axis=1), kind="stable")]
    in_fold = np.zeros((folds, len(totals)))
    itself = np.eye(folds)[:, :, None]
    fold_of = np.empty(len(counts), dtype=np.intp)
    for group in order:
        shares = (in_fold + itself * counts[group]) / totals  # [tried, folds, k]
        uneven = np.std(shares, axis=1).mean(axis=1).tolist()
        sizes = in_fold.sum(axis=1).tolist()
        best = 0
        for fold in range(1, folds):
            tied = abs(uneven[fold] - uneven[best]) <= 1e-8 + 1e-5 * abs(uneven[best])
            if uneven[fold] < uneven[best] or (tied and sizes[fold] < sizes[best]):
                best = fold
        in_fold[best] += counts[group]
        fold_of[group] = best
    return fold_of[groups]


def sampled_groups(groups: NDArray[np.intp], at_most: int | None, seed: int) -> NDArray[np.bool_]:
    """Which items stay where whole groups are drawn until `at_most` items are reached: [n]."""
    if at_most is None or len(groups) <= at_most:
        return np.ones(len(groups), dtype=bool)
    names, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 5]).permutation(len(names))
    kept = order[np.cumsum(sizes[order]) <= at_most]
    return np.asarray(np.isin(codes, kept if len(kept) else order[:1]))
