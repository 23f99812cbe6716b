"""A label for every text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from subnet.training.tasks._passing import in_passes
from subnet.training.tasks._task import Metric, Outcome, Row, Score, mean_score


class SequenceClassification:
    """Examples with `text` and `label`.

    Metrics: `loss`, cross-entropy in nats; `accuracy`; `macro_f1`, averaged over the labels that
    occur among the tested examples.

    Args:
        tokenizer: Turns text into ids.
        labels: In the order of the model's outputs.
        max_length: Tokens beyond which an input is cut.
        tested: Examples whose labels tell what a guess reaches.
    """

    name = "sequence-classification"

    def __init__(
        self, tokenizer: Any, labels: Sequence[str], max_length: int, tested: Sequence[Row] = ()
    ) -> None:
        from transformers import DataCollatorWithPadding

        self.labels = tuple(labels)
        self._tokenizer, self._max_length = tokenizer, max_length
        self._index = {label: index for index, label in enumerate(self.labels)}
        self._collate = DataCollatorWithPadding(tokenizer)
        counts = Counter(str(row["label"]) for row in tested)
        largest = max(counts.values()) / len(tested) if tested else None
        f1 = None if largest is None else 2 * largest / (1 + largest) / len(counts)
        self.metrics: Mapping[str, Metric] = {
            "loss": Metric(False, float(np.log(len(self.labels)))),
            "accuracy": Metric(True, largest, (0.0, 1.0)),
            "macro_f1": Metric(True, f1, (0.0, 1.0)),
        }

    def encode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Texts as token ids; the index of the label."""
        if not rows:
            return []
        ids = self._tokenizer(
            [row["text"] for row in rows], truncation=True, max_length=self._max_length
        )["input_ids"]
        return [
            {"input_ids": tokens, "labels": self._index[str(row["label"])]}
            for tokens, row in zip(ids, rows, strict=True)
        ]

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A padded batch."""
        return dict(self._collate(list(features)))

    def evaluate(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        batch_size: int,
        on_batch: Callable[[], None] | None = None,
    ) -> Outcome:
        """Loss and correctness of every example."""
        import torch

        def read(output: Any, batch: Mapping[str, Any]) -> list[tuple[float, int]]:
            losses = torch.nn.functional.cross_entropy(
                output.logits.double(), batch["labels"], reduction="none"
            )
            return list(zip(losses.tolist(), output.logits.argmax(-1).tolist(), strict=True))

        found = in_passes(
            model,
            self.encode(rows),
            read,
            collate=self.collate,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        outputs = [self.labels[predicted] for _, predicted in found]
        correct = [name == str(row["label"]) for name, row in zip(outputs, rows, strict=True)]
        return Outcome(
            {
                "loss": np.array([loss for loss, _ in found], dtype=np.float64),
                "accuracy": np.array(correct, dtype=np.float64),
            },
            outputs,
        )

    def summarise(self, rows: Sequence[Row], outcome: Outcome) -> list[Score]:
        """Mean loss and accuracy with their errors; macro-F1, which is no mean of items."""
        from sklearn.metrics import f1_score

        expected = [self._index[str(row["label"])] for row in rows]  # numbers are compared faster
        f1 = f1_score(
            expected,
            [self._index[output] for output in outcome.outputs],
            labels=sorted(set(expected)),
            average="macro",
            zero_division=0.0,
        )
        return [
            *(mean_score(name, values) for name, values in outcome.items.items()),
            Score("macro_f1", float(f1)),
        ]
