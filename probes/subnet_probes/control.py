"""Labels that mean nothing: control tasks, and permutations that leave the data as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def control_labels(labels: ArrayLike, types: ArrayLike, *, seed: int) -> NDArray[Any]:
    """Labels of a control task: every type gets one label at random, everywhere the same.

    What a probe scores on them it has memorised by type. Labels are drawn independently for each
    type from the distribution of the labels over the items (Hewitt and Liang 2019, D19-1275).

    Args:
        labels: [n] labels of the task.
        types: [n] what the control label depends on: the word of a token, the concept of a
            sentence.
        seed: Seed of the draw.

    Returns:
        [n] labels.

    Example:
        >>> words = ["the", "dog", "the", "cat"]
        >>> drawn = control_labels(["DET", "NOUN", "DET", "NOUN"], words, seed=0)
        >>> bool(drawn[0] == drawn[2])
        True
    """
    y = np.asarray(labels)
    _, codes = np.unique(np.asarray(types).astype(str), return_inverse=True)
    rng = np.random.default_rng([seed, 1])
    return np.asarray(y[rng.integers(len(y), size=codes.max() + 1)[codes]])


def permuted_labels(labels: ArrayLike, groups: ArrayLike, *, seed: int) -> NDArray[Any]:
    """The same labels given to other items: what a probe scores on them is chance.

    Within groups whose labels differ (the languages of a concept, the tags of a sentence) labels
    change places inside the group, so that what the group tells is kept; groups of one label
    exchange it with each other.

    Args:
        labels: [n].
        groups: [n].
        seed: Seed of the permutation.

    Returns:
        [n] labels.
    """
    y = np.asarray(labels)
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng([seed, 2])
    # Shuffle everything, then bring each group's members together again: a shuffle in each group.
    shuffled = rng.permutation(len(y))
    source = np.empty(len(y), dtype=np.intp)
    source[np.argsort(codes, kind="stable")] = shuffled[np.argsort(codes[shuffled], kind="stable")]
    found = y[source]
    numbers = np.unique(y, return_inverse=True)[1]
    low = np.full(codes.max() + 1, np.iinfo(np.intp).max)
    high = np.full(codes.max() + 1, -1)
    np.minimum.at(low, codes, numbers)
    np.maximum.at(high, codes, numbers)
    constant = np.flatnonzero(low == high)
    first = np.empty(codes.max() + 1, dtype=np.intp)
    first[codes[::-1]] = np.arange(len(y))[::-1]
    given = np.arange(codes.max() + 1)
    given[constant] = rng.permutation(constant)
    alike = (low == high)[codes]
    found[alike] = y[first[given[codes[alike]]]]
    return np.asarray(found)
