"""A tag for every word: slots, entities, parts of speech."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from subnet.errors import InputError
from subnet.training.tasks._passing import in_passes
from subnet.training.tasks._task import Metric, Outcome, Row, Score, mean_score

#: Label of tokens whose loss does not count, as torch has it.
_IGNORED = -100


class TokenClassification:
    """Examples with `tokens` (words) and `tags`, one for each.

    A word's first token is trained and answers for it. Metrics: `loss`, cross-entropy in nats, mean
    over the words of an example that the model reads; `accuracy`, share of an example's words that
    are tagged right, those that the model does not read being wrong; `slot_f1`, micro-averaged F1
    of exact spans, where tags say `B-` and `I-` (a span begins at `B-x`, or at an `I-x` that goes
    on from nothing; as conlleval counts), over the examples of a language together.

    Args:
        tokenizer: A fast tokenizer, which knows a token's word.
        labels: Tags in the order of the model's outputs.
        max_length: Tokens beyond which an input is cut.
        tested: Examples whose tags tell what a guess reaches.

    Raises:
        InputError: The tokenizer does not tell which word a token belongs to.
    """

    name = "token-classification"

    def __init__(
        self, tokenizer: Any, labels: Sequence[str], max_length: int, tested: Sequence[Row] = ()
    ) -> None:
        from transformers import DataCollatorForTokenClassification

        if not tokenizer.is_fast:
            raise InputError(
                "the tokenizer does not tell which word a token belongs to",
                expected="a fast tokenizer (tokenizer.json)",
            )
        self.labels = tuple(labels)
        self._tokenizer, self._max_length = tokenizer, max_length
        self._index = {label: index for index, label in enumerate(self.labels)}
        self._collate = DataCollatorForTokenClassification(tokenizer)
        self._spans = any(label.startswith(("B-", "I-")) for label in self.labels)
        shares: defaultdict[str, float] = defaultdict(
            float
        )  # of a text's words, as accuracy counts them
        for row in tested:
            for tag in row["tags"]:
                shares[str(tag)] += 1 / len(row["tags"])
        largest = max(shares.values()) / len(tested) if shares else None
        self.metrics: Mapping[str, Metric] = {
            "loss": Metric(False, float(np.log(len(self.labels)))),
            "accuracy": Metric(True, largest, (0.0, 1.0)),
            **({"slot_f1": Metric(True, 0.0, (0.0, 1.0))} if self._spans else {}),
        }

    def encode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Words as token ids; the tag's index at each word's first token."""
        return self._encode(rows)[0]

    def _encode(self, rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """Features, and of each the words that the model reads.

        Not all are: the end of a long text is cut, and of some words a tokenizer leaves nothing.
        """
        if not rows:
            return [], []
        encoded = self._tokenizer(
            [list(map(str, row["tokens"])) for row in rows],
            is_split_into_words=True,
            truncation=True,
            max_length=self._max_length,
        )
        features, read = [], []
        for number, row in enumerate(rows):
            labels, words = [], []
            before = None
            for word in encoded.word_ids(number):
                if word is not None and word != before:
                    labels.append(self._index[str(row["tags"][word])])
                    words.append(word)
                else:
                    labels.append(_IGNORED)
                before = word
            features.append({"input_ids": encoded["input_ids"][number], "labels": labels})
            read.append(words)
        return features, read

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A padded batch; padding has no tag."""
        return dict(self._collate([dict(entry) for entry in features]))

    def evaluate(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        batch_size: int,
        on_batch: Callable[[], None] | None = None,
    ) -> Outcome:
        """Mean loss over words, share of words that are right, and the tags themselves."""
        import torch

        def read(output: Any, batch: Mapping[str, Any]) -> list[tuple[float, list[int]]]:
            labels, logits = batch["labels"], output.logits
            losses = torch.nn.functional.cross_entropy(
                logits.double().transpose(1, 2), labels, reduction="none", ignore_index=_IGNORED
            )
            tagged = labels != _IGNORED
            means = losses.sum(1) / tagged.sum(1).clamp(min=1)
            best = logits.argmax(-1)
            return [(float(loss), best[i][tagged[i]].tolist()) for i, loss in enumerate(means)]

        features, words_read = self._encode(rows)
        found = in_passes(
            model,
            features,
            read,
            collate=self.collate,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        outputs, shares = [], []
        for (_, predicted), words, row in zip(found, words_read, rows, strict=True):
            tags = [""] * len(row["tags"])
            for word, index in zip(words, predicted, strict=True):
                tags[word] = self.labels[index]
            outputs.append(tags)
            right = sum(a == str(b) for a, b in zip(tags, row["tags"], strict=True))
            shares.append(right / len(tags))
        return Outcome(
            {
                "loss": np.array([loss for loss, _ in found], dtype=np.float64),
                "accuracy": np.array(shares, dtype=np.float64),
            },
            outputs,
        )

    def summarise(self, rows: Sequence[Row], outcome: Outcome) -> list[Score]:
        """Means over examples with their errors; F1 of spans over all of them together."""
        scores = [mean_score(name, values) for name, values in outcome.items.items()]
        if self._spans:
            expected = [list(map(str, row["tags"])) for row in rows]
            scores.append(Score("slot_f1", span_f1(expected, outcome.outputs)))
        return scores


def span_f1(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Micro-averaged F1 of exact spans: 2·right / (found + expected); 0 where there is none.

    Args:
        expected: Tags of each example, `B-x`, `I-x` and `O`.
        predicted: The same, as the model has them.

    Example:
        >>> span_f1([["B-x", "I-x", "O"]], [["B-x", "O", "B-y"]])
        0.0
    """
    right = n_expected = n_predicted = 0
    for one, other in zip(expected, predicted, strict=True):
        wanted, found = set(spans(one)), set(spans(other))
        right += len(wanted & found)
        n_expected += len(wanted)
        n_predicted += len(found)
    total = n_expected + n_predicted
    return 2 * right / total if total else 0.0


def spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first, behind the last, kind) of every span.

    Example:
        >>> spans(["B-x", "I-x", "O", "I-y", "B-y"])
        [(0, 2, 'x'), (3, 4, 'y'), (4, 5, 'y')]
    """
    found: list[tuple[int, int, str]] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and name == kind
        if kind and not goes_on:
            found.append((start, place, kind))
            kind = ""
        if prefix in ("B", "I") and name and not goes_on:
            start, kind = place, name
    return found
