"""What a task is to training: how examples are fed, and how a model's answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

#: An example, as it stands in `train.jsonl`: id, language, and what the task needs.
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """How a metric is to be read; a `[scores.<metric>]` of `subnet.toml`.

    Attributes:
        higher_is_better: False of losses.
        chance: What a guess reaches, where that is known.
        range: Lowest and highest value.
    """

    higher_is_better: bool
    chance: float | None = None
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Score:
    """A metric of one language, with its standard error over items where it is a mean of items."""

    metric: str
    value: float
    stderr: float | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """A model's results on examples, aligned with them.

    Attributes:
        items: Metric to [n] results per example.
        outputs: [n] what the model answered: a label, a list of tags, a text.
    """

    items: Mapping[str, NDArray[np.float64]]
    outputs: Sequence[Any]

    def __len__(self) -> int:
        return len(self.outputs)

    def select(self, places: Sequence[int] | NDArray[np.int64]) -> Outcome:
        """The results on some of the examples."""
        chosen = np.asarray(places, dtype=np.int64)
        return Outcome(
            {name: values[chosen] for name, values in self.items.items()},
            [self.outputs[place] for place in chosen],
        )


class Task(Protocol):
    """A kind of training: `sequence-classification`, `token-classification`, `translation`.

    Attributes:
        name: As in `subnet.toml`.
        metrics: What is measured, and how it is read.
    """

    @property
    def name(self) -> str:
        """As in `subnet.toml`."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured, and how it is read."""

    def encode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Examples as the model takes them in training: `input_ids`, `labels` and such."""

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A padded batch of tensors."""

    def evaluate(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        batch_size: int,
        on_batch: Callable[[], None] | None = None,
    ) -> Outcome:
        """Results on every example in one pass sorted by length, without gradients; order as given.

        Under several processes each takes its share and all return the whole.
        """

    def summarise(self, rows: Sequence[Row], outcome: Outcome) -> list[Score]:
        """The scores of one language from the results on its examples."""


def mean_score(metric: str, values: NDArray[np.float64]) -> Score:
    """The mean over items with its standard error s/√n; no error of a single item."""
    n = len(values)
    error = float(values.std(ddof=1) / n**0.5) if n > 1 else None
    return Score(metric, float(values.mean()), error)
