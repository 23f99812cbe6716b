"""Examples as a model reads them, and which of their tokens each representation is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet.errors import InputError
from subnet.inputs import set_direction, translates
from subnet_probes._words import align, read_text

Example = Mapping[str, Any]

#: Inputs with one number per token that a row may bring besides `input_ids`.
_PER_TOKEN = ("token_type_ids",)
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """One example as the model reads it, without padding.

    Attributes:
        inputs: `input_ids`, and further inputs with one number per token.
        counted: Whether each token takes part in the representation of the sentence.
        words: Positions of the tokens of each word that has any; empty at sentence level.
        numbers: Which words those are.
        decoder: `labels` or `decoder_input_ids`, where the decoder is read.
        cut: Whether the model does not read all of it.
    """

    inputs: Mapping[str, Sequence[int]]
    counted: Sequence[bool]
    words: Sequence[Sequence[int]] = ()
    numbers: Sequence[int] = ()
    decoder: Mapping[str, Sequence[int]] | None = None
    cut: bool = False


@dataclass(frozen=True)
class Encoder:
    """Makes model inputs of examples.

    Attributes:
        tokenizer: None where all examples bring `input_ids`.
        max_length: Most tokens.
        by_word: Whether tokens are to be told apart by word.
        special_tokens: Whether tokens that the tokenizer adds count.
        decoder: Whether the decoder is read, which needs a target.
        pad: Token that pads, which no unmasked row may begin or end with; None where unknown.
        source: For messages.
    """

    tokenizer: Any
    max_length: int | None
    by_word: bool
    special_tokens: bool
    decoder: bool
    pad: int | None
    source: Path | None

    def __call__(self, example: Example, number: int) -> Encoded:
        """The example of that number in the data.

        Raises:
            InputError: It lacks something; the message names it.
        """
        name = name_of(example, number)
        encoded = (
            self._given(example, name) if "input_ids" in example else self._read(example, name)
        )
        if not encoded.inputs["input_ids"]:
            raise self._error(name, "has no token", "a text, or ids of tokens")
        if not self.by_word and not any(encoded.counted):
            raise self._error(name, "consists of special tokens only", "a text")
        return encoded

    def _read(self, example: Example, name: str) -> Encoded:
        if self.by_word:
            self._ask_for_offsets()
        text, spans = read_text(example, by_word=self.by_word)
        if text is None:
            missing = "'tokens'" if self.by_word else "'text'"
            expected = "'tokens', one per word" if self.by_word else "a text, or 'input_ids'"
            raise self._error(name, f"has no {missing}", expected)
        if translates(self.tokenizer):
            set_direction(self.tokenizer, _directed(example, self.decoder), self.source)
        options: dict[str, Any] = {"return_special_tokens_mask": True, "verbose": False}
        if self.by_word:
            options["return_offsets_mapping"] = True
        encoded = self.tokenizer(text, **options)
        cut = self.max_length is not None and len(encoded["input_ids"]) > self.max_length
        if cut:
            encoded = self.tokenizer(text, truncation=True, max_length=self.max_length, **options)
        special = list(encoded["special_tokens_mask"])
        words: list[list[int]] = []
        numbers: list[int] = []
        if self.by_word:
            words, numbers = align(spans, encoded["offset_mapping"], special)
        return Encoded(
            {"input_ids": list(encoded["input_ids"])}
            | {key: list(encoded[key]) for key in _PER_TOKEN if key in encoded},
            [True] * len(special) if self.special_tokens else [not s for s in special],
            words,
            numbers,
            self._target(example, name) if self.decoder else None,
            cut,
        )

    def _given(self, example: Example, name: str) -> Encoded:
        """An example that was tokenised before, with padding taken out."""
        ids = _numbers(example["input_ids"])
        mask = _numbers(example.get("attention_mask", [1] * len(ids)))
        if "attention_mask" not in example and len(ids) > 1 and self.pad in (ids[0], ids[-1]):
            raise self._error(
                name, f"is padded with {self.pad} and has no attention_mask", "1 for tokens, 0 else"
            )
        rows: dict[str, list[int]] = {"input_ids": ids}
        rows |= {key: _numbers(example[key]) for key in _PER_TOKEN if key in example}
        special = [0] * len(ids)
        if not self.special_tokens:
            special = self._special(example, ids, name)
        by_word = self.by_word
        if by_word and "word_ids" not in example:
            raise self._error(
                name, "has input_ids and no 'word_ids'", "the word of each token, or 'tokens' alone"
            )
        places: list[Any] = list(example["word_ids"]) if by_word else [None] * len(ids)
        lengths: dict[str, list[Any]] = {
            "attention_mask": mask,
            "special_tokens_mask": special,
            "word_ids": places,
        }
        for key, values in {**rows, **lengths}.items():
            if len(values) != len(ids):
                raise self._error(
                    name, f"has {len(values)} values of {key}", f"{len(ids)}, one per input id"
                )
        kept = [i for i, attended in enumerate(mask) if attended]
        words: dict[int, list[int]] = {}
        for place, i in enumerate(kept):
            word = places[i]
            if word is not None:
                words.setdefault(int(word), []).append(place)
        return Encoded(
            {key: [values[i] for i in kept] for key, values in rows.items()},
            [not special[i] for i in kept],
            [words[word] for word in sorted(words)],
            sorted(words),
            self._target(example, name) if self.decoder else None,
        )

    def _special(self, example: Example, ids: Sequence[int], name: str) -> list[int]:
        if "special_tokens_mask" in example:
            return _numbers(example["special_tokens_mask"])
        if self.tokenizer is None:
            raise self._error(
                name,
                "has input_ids and does not say which are special",
                "'special_tokens_mask', or tokenizer=",
            )
        known = set(self.tokenizer.all_special_ids)
        return [int(i in known) for i in ids]

    def _target(self, example: Example, name: str) -> dict[str, list[int]]:
        """What the decoder reads."""
        for key in ("decoder_input_ids", "labels"):
            if key in example:
                values = _numbers(example[key])
                return {key: [v for v in values if key != "labels" or v != -100]}
        target = example.get("target")
        if not isinstance(target, str) or not target or self.tokenizer is None:
            raise self._error(
                name, "has no 'target' for the decoder to read", "a text, 'labels' or "
                "'decoder_input_ids'",
            )  # fmt: skip
        encoded = self.tokenizer(
            text_target=target, truncation=self.max_length is not None, max_length=self.max_length
        )
        return {"labels": list(encoded["input_ids"])}

    def _ask_for_offsets(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError(
                f"the tokenizer ({type(self.tokenizer).__name__}) cannot say which token belongs "
                "to which word: it has no offsets",
                path=self.source,
                expected="a fast tokenizer (tokenizer.json)",
                fix="give input_ids with word_ids, or take pool='mean'",
            )

    def _error(self, name: str, found: str, expected: str) -> InputError:
        return InputError(f"{name} {found}", path=self.source, expected=expected)


def longest(tokenizer: Any, config: Any) -> int | None:
    """How many tokens a model reads with a tokenizer of the user's; None where nothing says."""
    positions = getattr(config, "max_position_embeddings", None)
    stated = [n for n in (tokenizer.model_max_length,) if n < _LONGEST]
    if isinstance(positions, int) and positions > 2:
        # Some models keep the first positions for padding; a stated length accounts for that.
        stated.append(positions if stated else positions - 2)
    return int(min(stated)) if stated else None


def name_of(example: Example, number: int) -> str:
    """What to call an example in a message."""
    return f"example {number}" + (f" ({example['id']})" if example.get("id") is not None else "")


def _directed(example: Example, decoder: bool) -> Example:
    """A text alone has no target language; tokenizers that mark languages ask for one."""
    if decoder or example.get("target_language") or ">" in str(example.get("language", "")):
        return example
    own = example.get("source_language") or example.get("language")
    return {**example, "source_language": own, "target_language": own}


def _numbers(values: Any) -> list[int]:
    """A list, of a tensor or an array too."""
    return [int(v) for v in (values.tolist() if hasattr(values, "tolist") else values)]
