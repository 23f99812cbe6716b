"""The examples of a directory as influence takes them: which, by what names, in what batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from subnet.inputs import Example, by_language, content, draw_alike

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint

#: Label of a token that no loss is taken of.
_IGNORED = -100


def of_half(
    checkpoint: Checkpoint, examples: Sequence[Example], half: str | None, seed: int
) -> tuple[list[Example], list[str]]:
    """Test examples without those that are items of the other half, and what to know of it.

    Effects of training, where results of single items are known, are taken on half b of them
    (`subnet.relate`). Influence on the same items would share their noise: easy and hard items, and
    how the last steps happened to go on them.

    Args:
        checkpoint: With or without results of items.
        examples: Test examples; one is an item if its language has an item of its `id`.
        half: `"a"`, `"b"`, or None for all examples.
        seed: Of `measure_forgetting`.
    """
    from subnet.forgetting._matrix import half_of

    items = checkpoint.scores.items if half and checkpoint.holds("scores") else None
    if items is None:
        return list(examples), []
    known = set(zip(items["language"].astype(str), items["item"].astype(str), strict=True))
    kept = [
        example
        for example in examples
        if (str(example["language"]), str(example.get("id"))) not in known
        or half_of(str(example["id"]), seed) == (half == "a")
    ]
    left = {example["language"] for example in kept}
    lone = list(dict.fromkeys(e["language"] for e in examples if e["language"] not in left))
    if not lone:
        return kept, []
    warning = (
        f"influence on {', '.join(lone)} is not known: all test examples are of the half of the "
        "items on which effects are measured"
    )
    return kept, [warning]


def draw_examples(examples: Iterable[Example], n: int | None, seed: int) -> list[Example]:
    """At most n examples of each language, in their order; all of them for None.

    Which ones depends on the seed and on what they say, not on the language, so that of parallel
    examples the same concepts are drawn in every language.
    """
    parts = by_language(examples, None)
    return [example for members in parts.values() for example in draw_alike(members, n, seed)]


def padding_collator(pad_token: int, task: str) -> Callable[[list[Any]], Any]:
    """Rows of `input_ids` and `labels` to a batch, padded on the right.

    Args:
        pad_token: What is written behind an input, where no attention goes.
        task: Whether labels are one per token, and so padded too.
    """

    def collate(rows: list[Any]) -> dict[str, Any]:
        import torch

        def padded(name: str, value: int) -> Any:
            values = [list(row[name]) for row in rows]
            width = max(map(len, values))
            return torch.tensor([row + [value] * (width - len(row)) for row in values])

        of_tokens = task != "sequence-classification"
        length = torch.tensor([len(row["input_ids"]) for row in rows])
        ids = padded("input_ids", pad_token)
        labels = [row["labels"] for row in rows]
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < length[:, None]).long(),
            "labels": padded("labels", _IGNORED) if of_tokens else torch.tensor(labels),
        }

    return collate


def shown(example: Example) -> str:
    """What an example says, for people."""
    if isinstance(example.get("text"), str):
        return str(example["text"])
    if isinstance(example.get("source"), str):
        return f"{example['source']} → {example.get('target', '')}"
    return " ".join(map(str, example.get("tokens", example.get("input_ids", ()))))


def rows_of(examples: Sequence[Example], encoded: Sequence[Example]) -> list[dict[str, Any]]:
    """Encoded examples with who they are."""
    with_concepts = all(example.get("concept") is not None for example in examples)
    rows = []
    for name, example, row in zip(_names(examples), examples, encoded, strict=True):
        about = {"id": name, "language": example["language"]}
        if with_concepts:
            about["concept"] = str(example["concept"])
        if isinstance(example.get("text"), str):
            about["text"] = example["text"]
        rows.append({**about, "input_ids": row["input_ids"], "labels": row["labels"]})
    return rows


def _names(examples: Sequence[Example]) -> list[str]:
    """A name for each example and no other: its id, with its language if needed, or its number."""
    ids = [example.get("id") for example in examples]
    if all(isinstance(name, str | int) for name in ids):
        for names in (
            [str(name) for name in ids],
            [f"{example['language']}/{name}" for example, name in zip(examples, ids, strict=True)],
        ):
            if len(set(names)) == len(names):
                return names
    return [str(number) for number in range(len(examples))]


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of what the examples say, in their order."""
    return hashlib.sha256("\n".join(map(content, examples)).encode()).hexdigest()
