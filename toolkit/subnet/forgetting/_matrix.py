"""The scores of one run and metric as a matrix stage × language, and the items behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from subnet.checkpoint.records import Metric

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """Per-item results of one language.

    Attributes:
        scores: [r, n], one row per row of the score matrix, NaN where an item has no result.
        numbers: [n], the number of each item; items with one id share it across languages.
        first_half: [n], whether the item belongs to half a.
    """

    scores: Array
    numbers: NDArray[np.int64]
    first_half: NDArray[np.bool_]


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of one run and metric.

    Attributes:
        run: Name of the run.
        metric: Which metric, and which direction of it is better.
        stages: Consecutive stages; the first is 0 where the start of the sequence was evaluated.
        languages: Languages that have at least one score.
        scores: [r, l], NaN where missing: one row per stage, then the reference where there is one.
        stderrs: [r, l], standard errors that came with the scores, NaN where none did.
        items: [l], per-item results or None.
        trained: Stage to the language that it trained, in order; a language may have several.
        has_reference: Whether the last row is the reference.
        n_items: How many item numbers there are.
    """

    run: str
    metric: Metric
    stages: tuple[int, ...]
    languages: tuple[str, ...]
    scores: Array
    stderrs: Array
    items: tuple[Items | None, ...]
    trained: Mapping[int, str]
    has_reference: bool
    n_items: int

    @property
    def sign(self) -> float:
        """+1 where higher is better, −1 where lower is."""
        return 1.0 if self.metric.higher_is_better else -1.0

    def turns(self, language: str) -> list[int]:
        """The stages that trained a language, in order."""
        return [stage for stage, other in self.trained.items() if other == language]


def half_of(item: object, seed: int) -> bool:
    """Whether an item belongs to half a: a hash of its id, so neither order nor company matters."""
    digest = hashlib.blake2b(f"{seed}\n{item}".encode(), digest_size=1).digest()
    return digest[0] % 2 == 0


def masked_means(scores: Array, mask: NDArray[np.bool_]) -> Array:
    """Means over the items that the mask keeps: [r, n] -> [r], NaN for a row that keeps none."""
    count = mask.sum(axis=1)
    total = np.where(mask, scores, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
