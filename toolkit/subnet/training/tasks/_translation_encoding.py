"""From a pair of texts to the tokens that a model reads and those that it is to write."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from subnet.errors import InputError
from subnet.inputs import set_direction, translates
from subnet.training.tasks._translation_rows import Pair

#: What an instruction may name.
FIELDS = ("source", "source_language", "target_language", "source_code", "target_code")
#: What a decoder reads where no instruction is asked for.
BARE = "{source}\n"

Ids = list[int]


@dataclass(frozen=True)
class Encoded:
    """A pair in tokens.

    Attributes:
        prompt: What is read before the translation: by the encoder, or by a decoder.
        target: What is to be written, with the token that ends it.
        source_cut: Whether the source was shortened.
        target_cut: Whether the target was.
    """

    prompt: Ids
    target: Ids
    source_cut: bool
    target_cut: bool


@dataclass(frozen=True)
class Start:
    """How targets in one direction begin.

    Attributes:
        labels: Tokens of some text of the target language.
        code: Tokens that generation is forced to begin with: the code of the target language, where
            the tokenizer puts one before the text. A start of text that is the same for every
            language is the model's own to write, as in `model.generate`.
    """

    labels: Ids
    code: Ids


@dataclass(frozen=True)
class PairEncoder:
    """Makes tokens of pairs; the arguments are those of `Translation`."""

    tokenizer: Any
    encoder_decoder: bool
    instruction: str | None
    chat: bool
    max_length: int

    def __call__(self, pair: Pair) -> Encoded:
        """Prompt and target of a pair.

        Raises:
            InputError: The tokenizer lacks a language, or the instruction leaves no room.
        """
        self.direct(pair.source_language.label, pair.target_language.label)
        prompt, source_cut = self._shortened(lambda text: self._prompt(pair, text), pair)
        target, target_cut = self._target(pair.target)
        return Encoded(prompt, target, source_cut, target_cut)

    def plain(self, pair: Pair) -> tuple[Ids, Ids]:
        """Source and target as sentences to read, each in its own language, no instruction."""
        found = []
        for text, language, other in (
            (pair.source, pair.source_language, pair.target_language),
            (pair.target, pair.target_language, pair.source_language),
        ):
            self.direct(language.label, other.label)
            found.append(self._ids(text, truncation=True, max_length=self.max_length))
        return found[0], found[1]

    def start(self, pair: Pair) -> Start:
        """How every target in the direction of a pair begins."""
        if not self.encoder_decoder:
            return Start([], [])
        self.direct(pair.source_language.label, pair.target_language.label)
        labels = self._ids(text_target="a")
        if not translates(self.tokenizer):
            return Start(labels, [])
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id, self.end}
        n_before = next(n for n, i in enumerate([*labels, None]) if i not in special)
        return Start(labels, labels[:n_before])

    def text(self, ids: Ids) -> str:
        """What tokens that a model wrote say."""
        decoded = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded).strip()

    @property
    def template(self) -> str:
        """What is read: the instruction, or what stands for one where none is asked for."""
        if self.instruction is not None:
            return self.instruction
        return "{source}" if self.encoder_decoder else BARE

    @property
    def end(self) -> int:
        """The token that ends a target."""
        for token in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            if token is not None:
                return int(token)
        raise InputError(
            f"the tokenizer ({type(self.tokenizer).__name__}) has no token that ends a text",
            expected="an eos_token or a sep_token",
            fix='give it one: tokenizer.eos_token = "…"',
        )

    @property
    def padding(self) -> int:
        """The token that fills batches."""
        token = self.tokenizer.pad_token_id
        return self.end if token is None else int(token)

    def direct(self, source: str, target: str) -> None:
        """Tell a tokenizer that marks languages which ones follow."""
        if translates(self.tokenizer):
            row = {"source_language": source, "target_language": target}
            set_direction(self.tokenizer, row, None)

    def _ids(self, *text: str, **options: Any) -> Ids:
        # What is too long for the model is cut here, so the tokenizer need not warn of it.
        return [int(i) for i in self.tokenizer(*text, verbose=False, **options)["input_ids"]]

    def _prompt(self, pair: Pair, source: str) -> Ids:
        text = self.template.format(
            source=source,
            source_language=pair.source_language.name,
            target_language=pair.target_language.name,
            source_code=pair.source_language.label,
            target_code=pair.target_language.label,
        )
        if not self.chat:
            return self._ids(text)
        messages = [{"role": "user", "content": text.strip()}]
        shown = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return self._ids(shown, add_special_tokens=False)

    def _shortened(self, make: Callable[[str], Ids], pair: Pair) -> tuple[Ids, bool]:
        """The prompt, with as much of the source as `max_length` tokens hold: its end is cut."""
        ids = make(pair.source)
        if len(ids) <= self.max_length:
            return ids, False
        shortest = make(pair.source[:1])
        if len(shortest) > self.max_length:
            raise InputError(
                f"the instruction alone takes {len(shortest) - 1} tokens",
                expected=f"less than max_length, which is {self.max_length}",
                fix="raise max_length, or shorten the instruction",
            )
        low, high = 1, len(pair.source)  # `low` characters fit, `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            tried = make(pair.source[:middle])
            if len(tried) <= self.max_length:
                low, shortest = middle, tried
            else:
                high = middle
        return shortest, True

    def _target(self, text: str) -> tuple[Ids, bool]:
        if self.encoder_decoder:
            whole = self._ids(text_target=text)
            if self.end not in whole:
                whole.append(self.end)
            if len(whole) <= self.max_length:
                return whole, False
            ids = self._ids(text_target=text, truncation=True, max_length=self.max_length)
            return (ids if self.end in ids else [*ids[: self.max_length - 1], self.end]), True
        ids = self._ids(text, add_special_tokens=False)
        return [*ids[: self.max_length - 1], self.end], len(ids) > self.max_length - 1


def check_instruction(instruction: str) -> None:
    """Refuse an instruction that cannot be filled in.

    Raises:
        InputError: It names something unknown, or not the source, or its braces do not match.
    """
    expected = "{source}, and if need be " + ", ".join(f"{{{name}}}" for name in FIELDS[1:])
    try:
        named = [name for _, name, *_ in string.Formatter().parse(instruction) if name is not None]
    except ValueError as error:
        raise InputError(
            f"the instruction {instruction!r} cannot be read ({error})", expected=expected
        ) from error
    unknown = [name for name in named if name not in FIELDS]
    if unknown or named.count("source") != 1:
        found = f"names {{{unknown[0]}}}" if unknown else "does not name {source} once"
        raise InputError(f"the instruction {instruction!r} {found}", expected=expected)
