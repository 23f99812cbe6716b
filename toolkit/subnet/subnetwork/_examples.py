"""Batches of a language's examples for a model: chosen, tokenised, none of them a test example."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet.errors import InputError, MissingInputError, SubnetError
from subnet.model import find_task

if TYPE_CHECKING:
    from torch import nn

    from subnet.checkpoint import Checkpoint

#: Where a tokenizer that was saved leaves a trace.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
#: A tokenizer without a length of its own states a number far above this one.
_LONGEST = 1 << 20

Example = Mapping[str, Any]


@dataclass(frozen=True)
class LanguageData:
    """The examples of each language that may be looked at.

    Attributes:
        source: File that they are from, or None where they were given.
        examples: Language label to its examples.
        test: Language label to what its test examples are recognised by; None without any.
    """

    source: Path | None
    examples: Mapping[str, Sequence[Example]]
    test: Mapping[str, frozenset[str]] | None

    def choose(self, language: str, n: int, seed: int) -> tuple[list[Example], dict[str, Any]]:
        """At most n examples of a language, in their order, and what to record of them.

        Raises:
            MissingInputError: There are none.
            InputError: One of them is a test example.
        """
        examples = self.examples.get(language, ())
        if not examples:
            raise MissingInputError(
                f"the data have no example of {language}",
                path=self.source,
                expected=f"examples of it beside those of {', '.join(sorted(self.examples))}"
                if self.examples
                else "examples of it",
                fix=f'each example names its language: {{"language": "{language}", …}}',
            )
        tested = (self.test or {}).get(language, frozenset())
        seen = [example for example in examples if content(example) in tested]
        if seen:
            raise InputError(
                f"{len(seen)} of {len(examples)} examples of {language} are test examples too, "
                f"such as {content(seen[0])[:60]}",
                path=self.source,
                expected="examples that the tests do not hold",
                fix="leave them out of the data",
            )
        chosen = np.random.default_rng(seed).permutation(len(examples))[:n]
        picked = [examples[i] for i in sorted(chosen.tolist())]
        text = "\n".join(map(content, picked))
        return picked, {
            "data": "given" if self.source is None else self.source.name,
            "n_examples_used": len(picked),
            "examples_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "checked_against_test": self.test is not None,
        }


def read_examples(
    checkpoint: Checkpoint, data: Iterable[Example] | None, splits: Sequence[str] = ("train",)
) -> LanguageData:
    """The given examples, else those of the first of some splits that the checkpoint has.

    Raises:
        MissingInputError: None were given and there is no such split.
        InputError: An example names no language.
    """
    source = None
    if data is None:
        split = next((s for s in splits if checkpoint.holds(f"{s}_examples")), None)
        if split is None:
            names = " and no ".join(f"{name}.jsonl" for name in splits)
            raise MissingInputError(
                f"has no {names}",
                path=checkpoint.path,
                expected="examples to find a language's subnetwork by",
                fix="put examples there, or give data=",
            )
        source = next(e.path for e in checkpoint.entries if e.kind == f"{split}_examples")
        data = checkpoint.examples(split)
    by_language: dict[str, list[Example]] = {}
    example: Any
    for number, example in enumerate(data, start=1):
        if not isinstance(example, Mapping) or not isinstance(example.get("language"), str):
            raise InputError(
                f"example {number} of the data names no language",
                path=source,
                expected='a mapping such as {"language": "de", "text": …, "label": …}',
            )
        by_language.setdefault(example["language"], []).append(example)
    test: dict[str, set[str]] | None = None
    if checkpoint.holds("test_examples"):
        test = {}
        for example in checkpoint.examples("test"):
            test.setdefault(example["language"], set()).add(content(example))
    frozen = None if test is None else {label: frozenset(keys) for label, keys in test.items()}
    return LanguageData(source, by_language, frozen)


def content(example: Example) -> str:
    """What the model reads of an example: the same for one example under two names."""
    read = next((key for key in ("text", "tokens", "input_ids") if key in example), None)
    return json.dumps(None if read is None else example[read], ensure_ascii=False, default=_plain)


def make_batches(
    examples: Sequence[Example],
    model: nn.Module,
    folders: Sequence[Path],
    batch_size: int,
    source: Path | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Batches of examples of one length, so that nothing is padded, and what to record of them.

    Args:
        examples: With `text` and what the model's task asks for (`label`; `target`), or with
            `input_ids` and `labels` as they go into the model.
        model: Where they go.
        folders: Where its tokenizer may be.
        batch_size: Most examples in a batch.
        source: For error messages.
    """
    import torch

    task = find_task(model)
    config: Any = model.config
    recorded: dict[str, Any] = {}
    if any("input_ids" not in example for example in examples):
        tokenizer, recorded["max_length"] = _tokenizer(folders, config)
        encode = _Encoder(tokenizer, recorded["max_length"], task, config, source)
        rows = [row if "input_ids" in row else encode(row) for row in examples]
    else:
        rows = list(examples)
    if task == "sequence-classification" and config.pad_token_id is None:
        batch_size = 1  # decoders then cannot tell where a row of a larger batch ends
    batches = []
    for group in _of_one_length(rows, source):
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            ids = torch.tensor([list(row["input_ids"]) for row in part])
            batches.append(
                {
                    "input_ids": ids,
                    "attention_mask": torch.ones_like(ids),
                    "labels": torch.tensor([row["labels"] for row in part]),
                }
            )
    return batches, recorded


@dataclass(frozen=True)
class _Encoder:
    """Makes model inputs of an example's text."""

    tokenizer: Any
    max_length: int
    task: str
    config: Any
    source: Path | None

    def __call__(self, example: Example) -> dict[str, Any]:
        ids = self._ids(self._field(example, "text"))
        if self.task == "causal-lm":
            return {"input_ids": ids, "labels": ids}
        if self.task == "sequence-to-sequence-lm":
            target = self.tokenizer(
                text_target=self._field(example, "target"),
                truncation=True,
                max_length=self.max_length,
            )
            return {"input_ids": ids, "labels": target["input_ids"]}
        if self.task == "token-classification":
            raise InputError(
                "an example has text, and the model labels tokens",
                path=self.source,
                expected="'input_ids' and 'labels', one label per token",
                fix="give tokenised examples as data=",
            )
        return {"input_ids": ids, "labels": self._label(example)}

    def _ids(self, text: str) -> list[int]:
        encoded = self.tokenizer(text, truncation=True, max_length=self.max_length)
        ids: list[int] = encoded["input_ids"]
        return ids

    def _field(self, example: Example, name: str) -> str:
        value = example.get(name)
        if not isinstance(value, str) or not value:
            raise InputError(
                f"an example of {example.get('language')} has no {name!r}",
                path=self.source,
                expected=f"a text, for {self.task}",
            )
        return value

    def _label(self, example: Example) -> Any:
        label = example.get("label", example.get("labels"))
        if isinstance(label, str):
            known = dict(self.config.label2id)
            if label not in known:
                raise InputError(
                    f"an example of {example.get('language')} has the label {label!r}",
                    path=self.source,
                    expected=f"one that the model knows: {', '.join(sorted(known)[:8])}",
                )
            return known[label]
        if label is None:
            raise InputError(
                f"an example of {example.get('language')} has no 'label'",
                path=self.source,
                expected=f"its class, for {self.task}",
            )
        if type(label) is int and not 0 <= label < max(2, self.config.num_labels):
            raise InputError(
                f"an example of {example.get('language')} has the label {label}",
                path=self.source,
                expected=f"0 to {self.config.num_labels - 1}",
            )
        return label


def _of_one_length(rows: Sequence[Example], source: Path | None) -> Iterator[list[Example]]:
    """The rows, those of one length together."""
    groups: dict[tuple[int, int], list[Example]] = {}
    for row in rows:
        if "labels" not in row:
            raise InputError(
                f"an example of {row.get('language')} has input_ids and no labels",
                path=source,
                expected="'labels' as the model takes them",
            )
        labels = row["labels"]
        n_labels = len(labels) if hasattr(labels, "__len__") else 0
        groups.setdefault((len(row["input_ids"]), n_labels), []).append(row)
    yield from (groups[key] for key in sorted(groups))


def _tokenizer(folders: Sequence[Path], config: Any) -> tuple[Any, int]:
    """The tokenizer, and how many tokens the model reads."""
    from transformers import AutoTokenizer

    stated = str(getattr(config, "_name_or_path", "") or "")
    here = [folder for folder in folders if any((folder / n).is_file() for n in _TOKENIZER_FILES)]
    # A hub name leads to the local cache; a folder without a tokenizer leads nowhere.
    places: list[Path | str] = [*here] or ([stated] if stated and not Path(stated).is_dir() else [])
    missing = MissingInputError(
        "the base has no tokenizer",
        path=folders[0] if folders else None,
        expected="tokenizer.json beside its weights",
        fix="save the tokenizer there, or give tokenised examples (input_ids, labels) as data=",
    )
    if not places:
        raise missing
    try:
        tokenizer = AutoTokenizer.from_pretrained(places[0], local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _with_cause(missing, error) from error
    lengths = [n for n in (tokenizer.model_max_length,) if n < _LONGEST]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 2:
        # Some models keep the first positions for padding; a stated length accounts for that.
        lengths.append(positions if lengths else positions - 2)
    return tokenizer, int(min(lengths, default=512))


def _with_cause(error: SubnetError, cause: Exception) -> MissingInputError:
    return MissingInputError(
        f"the base's tokenizer cannot be loaded ({cause})", path=error.path, fix=error.fix
    )


def _plain(value: Any) -> Any:
    """Tensors and arrays of ids as lists."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
