"""Scores of single test items by the language of the training examples, ties shared fairly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from subnet.errors import InputError

Array = NDArray[np.float64]
Translations = Literal["keep", "exclude"]

MEASURES = ("mean", "share_top_positive", "share_bottom_negative")

#: Scores in memory at once, in double precision.
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Pool:
    """The items that scores are about.

    Attributes:
        test_languages: Names, in the order in which they first occur.
        train_languages: The same for the training examples.
        test: [n_test] number of each item's language.
        train: [n_train] the same.
        test_concepts: [n_test] number of each item's concept, −1 where it has none.
        train_concepts: [n_train] the same, numbered alike.
    """

    test_languages: tuple[str, ...]
    train_languages: tuple[str, ...]
    test: NDArray[np.intp]
    train: NDArray[np.intp]
    test_concepts: NDArray[np.intp]
    train_concepts: NDArray[np.intp]

    @property
    def clusters(self) -> NDArray[np.intp]:
        """[n_test] number of what is resampled together: the concept, else the item itself."""
        alone = self.test_concepts < 0
        clusters = self.test_concepts.copy()
        clusters[alone] = self.test_concepts.max(initial=-1) + 1 + np.arange(alone.sum())
        return clusters

    @property
    def own(self) -> NDArray[np.intp]:
        """[n_test] number of the item's language among the training languages, −1 if absent."""
        number = {name: at for at, name in enumerate(self.train_languages)}
        return np.array([number.get(self.test_languages[code], -1) for code in self.test])

    def same_concept(self, rows: slice) -> NDArray[np.bool_]:
        """Whether a training example has the concept of a test item: [rows, n_train]."""
        concepts = self.test_concepts[rows, None]
        return np.asarray((concepts == self.train_concepts) & (concepts >= 0))


@dataclass(frozen=True, eq=False)
class ItemValues:
    """Measures of every test item, before anything is averaged.

    Attributes:
        measured: Measure to [n_test, l], NaN where undefined.
        expected: Measure to [n_test, l]: what shuffled training languages give on average.
        contrasts: Measure to [l_test, n_train]: summed over the training examples of a language,
            how far the test language's mean is from what is expected, in units of its own.
        n_same_concept: [n_test, l], training examples with the item's concept.
    """

    measured: Mapping[str, Array]
    expected: Mapping[str, Array]
    contrasts: Mapping[str, Array]
    n_same_concept: Array


def read_pool(test_items: Any, train_items: Any, shape: tuple[int, ...]) -> Pool:
    """Languages and concepts of the items, checked against the shape of the scores.

    Raises:
        InputError: An item has no language, or the tables do not fit the scores.
    """
    import pandas as pd

    frames = [pd.DataFrame(items).reset_index(drop=True) for items in (test_items, train_items)]
    if len(shape) != 2 or shape != (len(frames[0]), len(frames[1])) or 0 in shape:
        raise InputError(
            f"scores are {list(shape)} for {len(frames[0])} test and {len(frames[1])} "
            "training items",
            expected="[n_test, n_train] with one item per row and per column",
        )
    named = []
    for name, frame in zip(("test", "training"), frames, strict=True):
        if "language" not in frame:
            raise InputError(f"the {name} items have no column 'language'")
        missing = frame["language"].isna() | (frame["language"].astype(str) == "")
        if missing.any():
            raise InputError(f"{name} item {int(missing.to_numpy().argmax())} names no language")
        codes, names = pd.factorize(frame["language"].astype(str))
        named.append((np.asarray(codes, dtype=np.intp), tuple(map(str, names))))
    keys = [
        frame["concept"] if "concept" in frame else pd.Series([None] * len(frame), dtype=object)
        for frame in frames
    ]
    concepts, _ = pd.factorize(pd.concat(keys, ignore_index=True).astype(object))
    (test, test_languages), (train, train_languages) = named
    parts = np.split(np.asarray(concepts, dtype=np.intp), [len(test)])
    return Pool(test_languages, train_languages, test, train, parts[0], parts[1])


def item_values(scores: ArrayLike, pool: Pool, *, m: int, translations: Translations) -> ItemValues:
    """Mean score and shares of every test item, by training language.

    Args:
        scores: [n_test, n_train]; read in blocks of rows, so a memory-mapped array stays on disk.
        pool: The items.
        m: How many training examples are "the most".
        translations: Whether training examples with the test item's concept take part.

    Raises:
        InputError: m is out of range, a score is not a number, or nothing is left of the training
            examples.
    """
    given = np.asanyarray(scores)
    n_test, n_train = given.shape
    if not 1 <= m <= n_train:
        raise InputError(f"m is {m}", expected=f"1 to {n_train}, the number of training examples")
    if translations not in ("keep", "exclude"):
        raise InputError(f"translations is {translations!r}", expected="'keep' or 'exclude'")
    members = _members(pool.train, len(pool.train_languages))  # [l, n_train]
    tested = _members(pool.test, len(pool.test_languages)).tocsc()  # [l_test, n_test]
    shape = (n_test, len(pool.train_languages))
    values = {measure: np.full(shape, np.nan) for measure in MEASURES}
    expected = {measure: np.full(shape, np.nan) for measure in MEASURES}
    contrasts = {m_: np.zeros((len(pool.test_languages), n_train)) for m_ in MEASURES}
    n_same = np.zeros(shape)
    for rows in _row_blocks(n_test, n_train):
        block = np.asarray(given[rows], dtype=np.float64)
        _refuse_undefined(block, rows.start)
        same = pool.same_concept(rows)
        n_same[rows] = (members @ same.T.astype(np.float64)).T
        allowed = ~same if translations == "exclude" else np.ones_like(same)
        count = allowed.sum(axis=1, keepdims=True)
        if not count.all():
            raise InputError(
                f"every training example has the concept of test item "
                f"{rows.start + int((count == 0).argmax())}",
                expected="some that are no translation of it",
                fix="take translations='keep'",
            )
        uniform = allowed / count
        corpus = (members @ uniform.T).T  # [rows, l]
        mean = (block * uniform).sum(axis=1, keepdims=True)
        sums = (members @ (block * allowed).T).T
        with np.errstate(invalid="ignore", divide="ignore"):
            values["mean"][rows] = sums / (corpus * count)
        expected["mean"][rows] = np.where(corpus > 0, mean, np.nan)
        contrasts["mean"] += tested[:, rows] @ ((block - mean) * uniform)
        for measure, signed in (("share_top_positive", block), ("share_bottom_negative", -block)):
            weights = share_weights(signed, allowed, m)
            some = np.asarray(weights.any(axis=1))
            values[measure][rows][some] = (members @ weights.T).T[some]
            expected[measure][rows][some] = corpus[some]
            contrasts[measure] += tested[:, rows] @ np.where(some[:, None], weights - uniform, 0.0)
    return ItemValues(values, expected, contrasts, n_same)


def share_weights(scores: Array, allowed: NDArray[np.bool_], m: int) -> Array:
    """Weights of the m largest positive scores of each row, summing to 1.

    Where fewer than m scores are positive, those that are share the weight; a score of 0 or less
    never has any. Scores tied for the last places share those places equally, which is the mean
    over all ways to break the tie.

    Args:
        scores: [r, n].
        allowed: [r, n], which may count.
        m: At least 1.

    Returns:
        [r, n]; a row without a positive score is zero.
    """
    positive = np.where(allowed & (scores > 0), scores, 0.0)
    n = positive.shape[1]
    last = np.partition(positive, n - m, axis=1)[:, n - m, None]  # the m-th largest, 0 if none
    above = np.asarray(positive > last)
    tied = (positive == last) & (last > 0)
    places = m - above.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = above + np.where(tied, places / tied.sum(axis=1, keepdims=True), 0.0)
        total = weights.sum(axis=1, keepdims=True)
        return np.asarray(np.where(total > 0, weights / total, 0.0))


def _members(codes: NDArray[np.intp], n_codes: int) -> Any:
    """Sparse [n_codes, n]: 1 where an item has the code."""
    n = len(codes)
    return sparse.csr_array((np.ones(n), (codes, np.arange(n))), shape=(n_codes, n))


def _row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK // n_columns)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _refuse_undefined(block: Array, start: int) -> None:
    bad = ~np.isfinite(block)
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        raise InputError(
            f"the score of training example {column} for test item {start + row} is "
            f"{block[row, column]}",
            expected="a finite number",
        )
