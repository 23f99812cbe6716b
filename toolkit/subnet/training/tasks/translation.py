"""Translation: a language is a direction such as `de>en`; scores are chrF and BLEU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet._tables import versions
from subnet.errors import InputError
from subnet.training.tasks._task import Metric, Outcome, Row, Score, mean_score
from subnet.training.tasks._translation_batches import feature_of, group_of, make_batch
from subnet.training.tasks._translation_encoding import (
    PairEncoder,
    Start,
    check_instruction,
)
from subnet.training.tasks._translation_language import identified
from subnet.training.tasks._translation_passing import translate
from subnet.training.tasks._translation_references import reference_table
from subnet.training.tasks._translation_rows import Pair, read_pairs
from subnet.training.tasks._translation_scores import (
    bleu_tokenizer,
    corpus_scores,
    sentence_scores,
    signatures,
)

if TYPE_CHECKING:
    import pandas as pd

#: An instruction that names both languages in English.
INSTRUCTION = "Translate from {source_language} to {target_language}: {source}\n"

#: Per-item results; those of a corpus have names of their own, since they are no means of items.
ITEM_METRICS = ("loss", "sentence_chrf", "sentence_bleu", "language_accuracy")


@dataclass(frozen=True)
class Translation:
    """The task of translating: implements `Task`, for encoder-decoders and decoders.

    Rows hold `id`, `language` (`de>en`), `source`, `target`, and may hold `source_language` and
    `target_language` (which must agree) and `concept`.

    An encoder reads the source, with the instruction around it where there is one; a tokenizer that
    marks languages (M2M, NLLB, mBART) is told the direction of each row, and generation is forced
    to begin with the code of the target language (`forced_bos_token_id`). A decoder reads the
    instruction and writes the target behind it; prompt and target are tokenised apart, the loss is
    on the target and the token that ends it. An output is the decoded text without special tokens
    and without the spaces around it.

    Per item: `loss` (mean over the target's tokens, nats; of an encoder-decoder also over what its
    tokenizer puts before the text), `sentence_chrf` and `sentence_bleu` (0 to 100, sacrebleu's
    sentence scores), `language_accuracy` (1 where py3langid takes the output for the target
    language, 0 otherwise and for an empty output; NaN where it does not know the language). Of a
    direction: their means, and `chrf` and `bleu` over the corpus.

    Args:
        tokenizer: Of the model.
        encoder_decoder: Whether the model has an encoder; see `of`.
        instruction: What is read, with `{source}` and any of `{source_language}`,
            `{target_language}` (English names) and `{source_code}`, `{target_code}` (labels); such
            as `INSTRUCTION`. None for the source alone (a decoder reads a line break behind it):
            then nothing says which language is asked for, unless the tokenizer marks it.
        chat: Put the instruction into the tokenizer's chat template, as the user's message.
        max_length: Most tokens of what is read, and of the target; a longer source loses its end,
            the instruction stays whole.
        max_new_tokens: Most tokens to write, None for `max_length`; as in `GenerationConfig`, what
            an encoder-decoder writes before the text (a language code, a start of text) and the end
            count among them.
        beams: Width of beam search; 1 for greedy.
        identify_among: Languages among which the output's is identified; None for all that
            py3langid knows. Fewer make short texts easier to tell, and an output in any other
            language counts as one of them.
        align: Encode source and target also as sentences to align, for `AlternatingTrainer`.

    Raises:
        InputError: An option cannot be used, or the tokenizer has no token that ends a text.
    """

    tokenizer: Any
    encoder_decoder: bool
    instruction: str | None = None
    chat: bool = False
    max_length: int = 256
    max_new_tokens: int | None = None
    beams: int = 1
    identify_among: tuple[str, ...] | None = None
    align: bool = False

    def __post_init__(self) -> None:
        for name in ("max_length", "max_new_tokens", "beams"):
            value = getattr(self, name)
            if value is not None and value < (2 if name == "max_length" else 1):
                raise InputError(f"{name} is {value}", expected="1 or more, max_length 2 or more")
        if self.instruction is not None:
            check_instruction(self.instruction)
        if self.chat and (self.encoder_decoder or not self.tokenizer.chat_template):
            raise InputError(
                "chat was asked for with "
                + (
                    "an encoder-decoder" if self.encoder_decoder else "a tokenizer without template"
                ),
                expected="a decoder whose tokenizer has a chat_template",
            )
        _ = self._encoder.end  # refuses a tokenizer that has none

    @classmethod
    def of(cls, model: Any, tokenizer: Any, **options: Any) -> Translation:
        """The task for a model: whether it has an encoder is its configuration's to say.

        Args:
            model: Any `transformers` or PEFT model that generates.
            tokenizer: Its tokenizer.
            options: Of `Translation`.

        Raises:
            InputError: The model cannot generate, or has not enough positions for the lengths.
        """
        from subnet.model import base_model

        inner: Any = base_model(model)
        if not getattr(inner, "can_generate", lambda: False)():
            raise InputError(
                f"{type(inner).__name__} cannot generate",
                expected="a model for causal or sequence-to-sequence language modelling",
            )
        task = cls(tokenizer, bool(inner.config.is_encoder_decoder), **options)
        positions = getattr(inner.config, "max_position_embeddings", None)
        length, new = task.max_length, task.max_new_tokens or task.max_length
        needed = max(length, new)
        if not task.encoder_decoder:
            needed = length + max(length, new)
        if isinstance(positions, int) and positions < needed:
            raise InputError(
                f"max_length {length} and max_new_tokens {new} need {needed} positions and the "
                f"model has {positions}",
                expected="lengths that fit",
                fix="lower max_length and max_new_tokens",
            )
        return task

    @property
    def name(self) -> str:
        """As in `subnet.toml`."""
        return "translation"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured, and how it is read."""
        percent = Metric(higher_is_better=True, range=(0.0, 100.0))
        return {
            "loss": Metric(higher_is_better=False),
            **dict.fromkeys(("chrf", "bleu", "sentence_chrf", "sentence_bleu"), percent),
            "language_accuracy": Metric(higher_is_better=True, range=(0.0, 1.0)),
        }

    @property
    def trainer_class(self) -> Any:
        """What `fit` is to train with: `AlternatingTrainer` with `align`, else None for its own."""
        from subnet.training.alignment import AlternatingTrainer

        return AlternatingTrainer if self.align else None

    def describe(self, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """Everything the numbers depend on, for `run.json`.

        Args:
            rows: Rows whose directions' sacrebleu signatures are wanted.

        Returns:
            instruction (the text that is read, resolved), chat, encoder_decoder, max_length,
            generation (as `GenerationConfig` calls its settings), identify_among (labels, or
            `"all"` that py3langid knows), align, signatures (sacrebleu's, by BLEU's tokenizer and
            metric), bleu_tokenizer (by direction), versions.
        """
        pairs = read_pairs(rows) if rows else []
        tokenizers = sorted({bleu_tokenizer(pair.target_language) for pair in pairs})
        return {
            "encoder_decoder": self.encoder_decoder,
            "instruction": self._encoder.template,
            "chat": self.chat,
            "max_length": self.max_length,
            "generation": {
                "do_sample": False,
                "num_beams": self.beams,
                "max_new_tokens": self._max_new_tokens,
            },
            "identify_among": "all" if self.identify_among is None else list(self.identify_among),
            "align": self.align,
            "signatures": {tokenizer: signatures(tokenizer) for tokenizer in tokenizers},
            "bleu_tokenizer": {
                pair.direction: bleu_tokenizer(pair.target_language) for pair in pairs
            },
            "versions": versions("sacrebleu", "py3langid"),
        }

    def encode(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Examples as the model takes them in training: `input_ids`, `labels`.

        With `align` also `alignment`: the tokens of source and target (`a`, `b`) and a number that
        rows of one concept share (`group`).
        """
        features: list[dict[str, Any]] = []
        for pair in read_pairs(rows):
            encoded = self._encoder(pair)
            feature = feature_of(encoded, encoder_decoder=self.encoder_decoder)
            if self.align:
                a, b = self._encoder.plain(pair)
                feature["alignment"] = {"a": a, "b": b, "group": group_of(pair)}
            features.append(feature)
        return features

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of tensors, padded on the right."""
        return make_batch(features, self._encoder.padding)

    def evaluate(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        batch_size: int,
        on_batch: Callable[[], None] | None = None,
    ) -> Outcome:
        """Loss and translation of every example in one pass sorted by length, without gradients.

        Under several processes each takes every n-th batch, and all return the whole.

        Args:
            model: In any mode, which is restored.
            rows: Examples, of any directions.
            batch_size: Examples of a pass.
            on_batch: Called after each batch of this process.

        Returns:
            Per-item results and the translations, in the order of `rows`.
        """
        pairs = read_pairs(rows)
        losses, outputs = translate(
            model,
            self._encoder,
            [self._encoder(pair) for pair in pairs],
            [self._start(pair) for pair in pairs],
            max_new_tokens=self._max_new_tokens,
            beams=self.beams,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        scores = [
            sentence_scores(output, pair.target, bleu_tokenizer(pair.target_language))
            for output, pair in zip(outputs, pairs, strict=True)
        ]
        return Outcome(
            items={
                "loss": losses,
                "sentence_chrf": np.array([score.chrf for score in scores]),
                "sentence_bleu": np.array([score.bleu for score in scores]),
                "language_accuracy": identified(
                    outputs, [pair.target_language for pair in pairs], self.identify_among
                ),
            },
            outputs=outputs,
        )

    def summarise(self, rows: Sequence[Row], outcome: Outcome) -> list[Score]:
        """Scores of one direction: means of the items, and chrF and BLEU of the corpus.

        The mean of `language_accuracy` is left out where py3langid does not know the language.

        Raises:
            InputError: The rows are of several directions.
        """
        pairs = read_pairs(rows)
        directions = sorted({pair.direction for pair in pairs})
        if len(directions) > 1:
            raise InputError(
                f"rows of {' and '.join(directions[:2])} are summarised together",
                expected="one direction",
            )
        corpus = corpus_scores(
            outcome.outputs,
            [pair.target for pair in pairs],
            bleu_tokenizer(pairs[0].target_language),
        )
        means = [
            mean_score(name, outcome.items[name])
            for name in ITEM_METRICS
            if not np.isnan(outcome.items[name]).all()
        ]
        return [*means, Score("chrf", corpus.chrf), Score("bleu", corpus.bleu)]

    def references(self, rows: Sequence[Row]) -> pd.DataFrame:
        """What the scores of each direction are to be read beside; depends on no model.

        Returns:
            One row per direction: language, n, reference_language_accuracy (share of the references
            that py3langid takes for the target language: the most that outputs can be expected to
            reach), copy_language_accuracy, copy_chrf, copy_bleu (of the source copied as the
            output), copy_share (sources equal to their target), source_cut_share and
            target_cut_share (longer than `max_length`), chrf_signature, bleu_signature, reason (why
            a value is undefined).
        """
        return reference_table(read_pairs(rows), self._encoder, self.identify_among)

    @functools.cached_property
    def _encoder(self) -> PairEncoder:
        return PairEncoder(
            self.tokenizer, self.encoder_decoder, self.instruction, self.chat, self.max_length
        )

    @property
    def _max_new_tokens(self) -> int:
        return self.max_new_tokens or self.max_length

    def _start(self, pair: Pair) -> Start:
        label = pair.direction
        if label not in self._starts:
            self._starts[label] = self._encoder.start(pair)
        return self._starts[label]

    @functools.cached_property
    def _starts(self) -> dict[str, Start]:
        return {}
