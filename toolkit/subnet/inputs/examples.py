"""The examples of each language that may be looked at: read, split, drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint

Example = Mapping[str, Any]

#: What a model reads of an example, under the first of these names that it has.
_READ = ("text", "source", "tokens", "input_ids")


@dataclass(frozen=True)
class Half:
    """One of two disjoint halves of each language's examples, drawn by a seed.

    Attributes:
        data: The examples, or None for the checkpoint's.
        number: 1 or 2.
        seed: Seed of the draw; both halves have the same.
    """

    data: Sequence[Example] | None
    number: int
    seed: int


@dataclass(frozen=True)
class LanguageData:
    """The examples of each language that may be looked at.

    Attributes:
        source: File that they are from, or None where they were given.
        examples: Language label to its examples.
        test: Language label to what its test examples are recognised by; None without any.
        half: Which half of all examples these are, None for all.
    """

    source: Path | None
    examples: Mapping[str, Sequence[Example]]
    test: Mapping[str, frozenset[str]] | None
    half: int | None = None

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
        recorded: dict[str, Any] = {
            "data": "given" if self.source is None else self.source.name,
            "n_examples_used": len(picked),
            "examples_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "checked_against_test": self.test is not None,
        }
        if self.half is not None:
            recorded["half"] = f"{self.half} of 2"
        return picked, recorded

    def take_half(self, number: int, seed: int) -> LanguageData:
        """One half of each language's examples; what a model reads alike stays together.

        Raises:
            InputError: A language has less than two different examples.
        """
        halves: dict[str, list[Example]] = {}
        for language, examples in self.examples.items():
            different = list(dict.fromkeys(map(content, examples)))
            if len(different) < 2:
                raise InputError(
                    f"the examples of {language} have no two halves: all {len(examples)} are alike",
                    path=self.source,
                    expected="at least two different examples of each language",
                )
            order = np.random.default_rng(seed).permutation(len(different))
            middle = len(different) // 2
            part = order[:middle] if number == 1 else order[middle:]
            mine = {different[i] for i in part.tolist()}
            halves[language] = [example for example in examples if content(example) in mine]
        return replace(self, examples=halves, half=number)


def read_examples(
    checkpoint: Checkpoint,
    data: Iterable[Example] | Half | None,
    splits: Sequence[str] = ("train",),
) -> LanguageData:
    """The given examples, else those of the first of some splits that the checkpoint has.

    Raises:
        MissingInputError: None were given and there is no such split.
        InputError: An example names no language.
    """
    if isinstance(data, Half):
        return read_examples(checkpoint, data.data, splits).take_half(data.number, data.seed)
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
    parts = by_language(data, source)
    test: dict[str, set[str]] | None = None
    if checkpoint.holds("test_examples"):
        test = {}
        for example in checkpoint.examples("test"):
            if any(name in example for name in _READ):  # what reads as nothing is no example twice
                test.setdefault(example["language"], set()).add(content(example))
    frozen = None if test is None else {label: frozenset(keys) for label, keys in test.items()}
    return LanguageData(source, parts, frozen)


def by_language(data: Iterable[Example], source: Path | None) -> dict[str, list[Example]]:
    """The examples of each language, languages in the order in which they first appear.

    Args:
        data: Examples with their `language`.
        source: File that they are from, for messages.

    Raises:
        InputError: An example names no language.
    """
    found: dict[str, list[Example]] = {}
    example: Any
    for number, example in enumerate(data, start=1):
        if not isinstance(example, Mapping) or not isinstance(example.get("language"), str):
            raise InputError(
                f"example {number} of the data names no language",
                path=source,
                expected='a mapping such as {"language": "de", "text": …, "label": …}',
            )
        found.setdefault(example["language"], []).append(example)
    return found


def draw_alike(examples: Sequence[Example], n: int | None, seed: int) -> list[Example]:
    """At most n examples of one language, in their order; all of them for None.

    Which ones depends on the seed and on the concept, else on what they say, not on the language:
    of parallel examples the same concepts are drawn in every language.
    """

    def rank(example: Example) -> str:
        key = str(example["concept"]) if "concept" in example else content(example)
        return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()

    places = sorted(range(len(examples)), key=lambda i: (rank(examples[i]), i))[:n]
    return [examples[i] for i in sorted(places)]


def content(example: Example) -> str:
    """What the model reads of an example: the same for one example under two names.

    Of a source with a target it is the source: whoever has seen it has seen the question.
    """
    read = next((name for name in _READ if name in example), None)
    return json.dumps(None if read is None else example[read], ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """Tensors and arrays of ids as lists."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
