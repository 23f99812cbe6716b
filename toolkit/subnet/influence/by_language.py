"""Mean influence of every training language on every test language, without storing examples.

The mean over pairs of a bilinear score is the product of two mean gradients, so that one pass per
checkpoint over each set, with one summed gradient per language, gives it exactly. Each language's
examples are split into blocks at random, whose sums give its interval. Where memory for the sums is
bounded, one part of the modules after another is summed, with a pass over both sets for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.influence._examples import Examples
from subnet.influence._language_sums import Summing, parts_of
from subnet.influence.checkpoints import Point
from subnet.influence.engine import Engine
from subnet.influence.methods import GradientMethod
from subnet.influence.scoring import (
    as_float64,
    members_of,
    refuse_not_finite,
    refuse_ready,
    score_examples,
    stored,
    weight_of,
)
from subnet.influence.weights import put_weights, restored

#: Blocks per language; fewer where it has fewer examples.
N_BLOCKS = 10


@dataclass(frozen=True, eq=False)
class Grouping:
    """Examples by language and block.

    Attributes:
        languages: Each once, in order of appearance.
        of: [groups] index of the language of each group.
        members: Numbers of the examples of each group.
    """

    languages: tuple[str, ...]
    of: NDArray[np.intp]
    members: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> NDArray[np.float64]:
        """[groups] examples in each."""
        return np.array([len(numbers) for numbers in self.members], dtype=float)

    def count(self, language: int) -> int:
        """Examples of a language."""
        return int(self.sizes[self.of == language].sum())


@dataclass(frozen=True, eq=False)
class LanguageScores:
    """Mean scores of languages and of their blocks.

    Attributes:
        means: [n_test_languages, n_train_languages] mean over all pairs of examples.
        blocks: [test groups, train groups] mean over the pairs of two blocks.
        test: The test examples by language and block.
        train: The training examples.
        settings: What the method recorded at each checkpoint.
    """

    means: NDArray[np.float64]
    blocks: NDArray[np.float64]
    test: Grouping
    train: Grouping
    settings: tuple[Mapping[str, Any], ...]


def group(examples: Examples, seed: int) -> Grouping:
    """Split each language's examples into blocks of equal size (to one), drawn by the seed."""
    named = examples.languages
    assert named is not None  # noqa: S101 - attribute refuses
    languages = tuple(dict.fromkeys(named))
    generator = np.random.default_rng(seed)
    of, members = [], []
    for index, language in enumerate(languages):
        numbers = np.flatnonzero(np.array(named) == language)
        drawn = generator.permutation(numbers)
        for part in np.array_split(drawn, min(N_BLOCKS, len(drawn))):
            of.append(index)
            members.append(tuple(sorted(part.tolist())))
    return Grouping(languages, np.array(of, dtype=np.intp), tuple(members))


def score_languages(
    engine: Engine,
    method: GradientMethod,
    points: Sequence[Point],
    train: Examples,
    test: Examples,
) -> LanguageScores:
    """Mean scores of a method: from sums where it is bilinear, else from every pair's score.

    Raises:
        InputError: As `score_examples`.
    """
    if not method.by_sums:
        scored = score_examples(engine, method, points, train, test)
        means = group_scores(scored.scores, train, test, engine.seed)
        return replace(means, settings=scored.settings)
    rows, columns = group(test, engine.seed), group(train, engine.seed)
    sums = np.zeros((len(rows.members), len(columns.members)))
    total = np.zeros(len(train))
    for point, members in members_of(points, train):
        total[list(members)] += weight_of(point)
    share = 1 / total if method.pooling == "mean" else np.ones(len(train))
    settings = []
    with restored(engine.model, points):
        places = list(members_of(points, train))
        kept_in = stored(engine, places, train)
        for (point, members), source in zip(places, kept_in, strict=True):
            put_weights(engine.model, point)
            transform = engine.transform(method, point, train, members)
            refuse_ready(engine, method, transform)
            settings.append(transform.settings)
            inside = set(members)
            whole = transform.whole
            for part in parts_of(engine, method, len(rows.members), N_BLOCKS, whole=whole):
                summing = Summing(engine, method, part)
                kept = summing(test, rows.members, transform.test, whole=whole)
                for language in range(len(columns.languages)):
                    here = np.flatnonzero(columns.of == language)
                    groups = [[i for i in columns.members[g] if i in inside] for g in here]
                    here = here[[bool(members) for members in groups]]
                    if not len(here):
                        continue
                    groups = [members for members in groups if members]
                    made = summing(train, groups, transform.train, share, source)
                    for name, left in kept.items():
                        product = left.flatten(1) @ made[name].to(left).flatten(1).T
                        sums[:, here] += weight_of(point) * as_float64(product)
    refuse_not_finite(sums, train, test)
    return _from_sums(sums, rows, columns, tuple(settings))


def group_scores(
    scores: NDArray[np.float64], train: Examples, test: Examples, seed: int
) -> LanguageScores:
    """Means over languages and their blocks of scores [n_test, n_train] that are known."""
    rows, columns = group(test, seed), group(train, seed)
    return _from_sums(_summed_pairs(scores, rows, columns), rows, columns, ())


def language_table(found: LanguageScores, **labels: str) -> list[dict[str, Any]]:
    """Rows of the table `influence`: the mean of every pair of languages with its interval.

    The interval is a t interval (95 %) from the means of blocks, over training and test blocks
    both: se² = s²/b over the means of the b test blocks + the same over training blocks.
    """
    rows = []
    for i, test_language in enumerate(found.test.languages):
        for j, train_language in enumerate(found.train.languages):
            part = found.blocks[np.ix_(found.test.of == i, found.train.of == j)]
            low, high = _interval(found.means[i, j], part)
            few = min(part.shape) < 2
            rows.append(
                {
                    **labels,
                    "train_language": train_language,
                    "test_language": test_language,
                    "measure": "mean",
                    "value": found.means[i, j],
                    "ci_low": low,
                    "ci_high": high,
                    "n": found.test.count(i),
                    "reason": "no interval: one example of a language" if few else "",
                    "n_train": found.train.count(j),
                    "n_blocks": min(part.shape),
                }
            )
    return rows


def _interval(mean: float, blocks: NDArray[np.float64]) -> tuple[float, float]:
    from scipy import stats

    if min(blocks.shape) < 2:
        return float("nan"), float("nan")
    variance = sum(blocks.mean(axis=1 - axis).var(ddof=1) / blocks.shape[axis] for axis in (0, 1))
    half = stats.t.ppf(0.975, min(blocks.shape) - 1) * np.sqrt(variance)
    return float(mean - half), float(mean + half)


def _summed_pairs(
    scores: NDArray[np.float64], rows: Grouping, columns: Grouping
) -> NDArray[np.float64]:
    by_rows = np.stack([scores[list(members)].sum(axis=0) for members in rows.members])
    return np.stack([by_rows[:, list(members)].sum(axis=1) for members in columns.members], axis=1)


def _from_sums(
    sums: NDArray[np.float64],
    rows: Grouping,
    columns: Grouping,
    settings: tuple[Mapping[str, Any], ...],
) -> LanguageScores:
    means = np.zeros((len(rows.languages), len(columns.languages)))
    for i in range(len(rows.languages)):
        for j in range(len(columns.languages)):
            total = sums[np.ix_(rows.of == i, columns.of == j)].sum()
            means[i, j] = total / (rows.count(i) * columns.count(j))
    blocks = sums / np.outer(rows.sizes, columns.sizes)
    return LanguageScores(means, blocks, rows, columns, settings)
