"""Whether a training compares the gradients of languages, and on which examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from subnet.training._building import unaligned
from subnet.training.config import RecipeConfig
from subnet.training.corpora import Corpus
from subnet.training.tasks import Row, Task

if TYPE_CHECKING:
    from subnet.training.subnetworks import ConflictRecorder


def compared(
    settings: RecipeConfig, task: Task, corpus: Corpus, seed: int
) -> ConflictRecorder | None:
    """What records the cosine between the gradients of all languages; None where it is not asked.

    Args:
        settings: How often, and on how many training examples of each language.
        task: How examples are fed.
        corpus: Examples.
        seed: Which examples. Languages with equally many give those of the same places, which are
            the same concepts where data are parallel.
    """
    if not settings.conflict_every:
        return None
    from subnet.training.subnetworks import ConflictRecorder

    task = unaligned(task)
    features = {
        language: task.encode(
            _some(
                [row for row in corpus.train if row["language"] == language],
                settings.conflict_examples,
                seed,
            )
        )
        for language in corpus.names
    }
    return ConflictRecorder(features, task.collate, every=settings.conflict_every)


def _some(rows: Sequence[Row], most: int, seed: int) -> Sequence[Row]:
    if not most or len(rows) <= most:
        return rows
    rng = random.Random(f"{seed}/compared")  # noqa: S311 - no secret
    return [rows[place] for place in sorted(rng.sample(range(len(rows)), most))]
