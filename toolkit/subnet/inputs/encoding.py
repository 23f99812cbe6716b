"""Examples as model inputs: tokenised for the model's task, in batches of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError
from subnet.inputs.examples import Example
from subnet.inputs.tokenizing import load_tokenizer, set_direction, translates
from subnet.model import find_task

if TYPE_CHECKING:
    from torch import nn

#: Label that takes no part in a loss.
_IGNORED = -100


def make_batches(
    examples: Sequence[Example],
    model: nn.Module,
    folders: Sequence[Path],
    batch_size: int,
    source: Path | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Batches of examples of one length, so that nothing is padded, and what to record of them.

    Args:
        examples: As of `encode_examples`.
        model: Where they go.
        folders: Where its tokenizer may be.
        batch_size: Most examples in a batch.
        source: For error messages.
    """
    import torch

    rows, recorded = encode_examples(examples, model, folders, source)
    config: Any = model.config
    if find_task(model) == "sequence-classification" and config.pad_token_id is None:
        batch_size = 1  # decoders then cannot tell where a row of a larger batch ends
    batches = []
    for group in _of_one_length(rows):
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


def encode_examples(
    examples: Sequence[Example], model: nn.Module, folders: Sequence[Path], source: Path | None
) -> tuple[list[Example], dict[str, Any]]:
    """Examples with `input_ids` and `labels`, in their order, and what to record of them.

    What an example needs depends on the model's task:

    - sequence classification: `text` and `label` (a name or a number);
    - token classification: `tokens` and `tags`, one per word. The first token of each word has its
      tag, the others no label;
    - causal LM: `text`, all of which is predicted; or `source` and `target`, of which the target
      is. They are tokenised as one string, so a space between them is theirs to have;
    - sequence-to-sequence LM: `text` (or `source`) and `target`. Tokenizers that mark languages
      need `source_language` and `target_language`, or a `language` such as `de>en`.

    Or `input_ids` and `labels` as the model takes them (without labels a causal LM predicts all).

    Args:
        examples: With a `language` each, for error messages.
        model: Where they go.
        folders: Where its tokenizer may be.
        source: For error messages.

    Raises:
        InputError: An example lacks something, or has a label or tag that the model does not know.
        MissingInputError: There is no tokenizer.
    """
    task = find_task(model)
    config: Any = model.config
    recorded: dict[str, Any] = {}
    rows: list[Example] = list(examples)
    if any("input_ids" not in example for example in rows):
        tokenizer, recorded["max_length"] = load_tokenizer(folders, config)
        encode = Encoder(tokenizer, recorded["max_length"], task, config, source)
        rows = [row if "input_ids" in row else encode(row) for row in rows]
        if task == "token-classification":
            recorded["labelled_tokens"] = "first of each word"
        elif task == "causal-lm":
            asked = any(_is_prompted(row) for row in examples)
            recorded["labelled_tokens"] = "those of the target" if asked else "all"
    for number, row in enumerate(rows):
        if "labels" in row:
            continue
        if task != "causal-lm":
            raise InputError(
                f"an example of {row.get('language')} has input_ids and no labels",
                path=source,
                expected="'labels' as the model takes them",
            )
        rows[number] = {**row, "labels": row["input_ids"]}
    return rows, recorded


@dataclass(frozen=True)
class Encoder:
    """Makes model inputs of an example's text; see `encode_examples`."""

    tokenizer: Any
    max_length: int
    task: str
    config: Any
    source: Path | None

    def __call__(self, example: Example) -> dict[str, Any]:
        """`input_ids` and `labels`."""
        if self.task == "token-classification":
            return self._tagged(example)
        if self.task == "sequence-to-sequence-lm":
            return self._translated(example)
        if self.task == "causal-lm" and _is_prompted(example):
            return self._prompted(example)
        ids = self._encode(self._text(example, "text"))["input_ids"]
        labels = ids if self.task == "causal-lm" else self._label(example)
        return {"input_ids": ids, "labels": labels}

    def _encode(self, *text: Any, **options: Any) -> Any:
        return self.tokenizer(*text, truncation=True, max_length=self.max_length, **options)

    def _tagged(self, example: Example) -> dict[str, Any]:
        words, tags = self._words(example)
        self._ask_for_a_fast_tokenizer("which token belongs to which word")
        encoded = self._encode(words, is_split_into_words=True)
        labels, before = [], None
        for word in encoded.word_ids():
            labels.append(_IGNORED if word in (None, before) else tags[word])
            before = word
        return {"input_ids": encoded["input_ids"], "labels": labels}

    def _prompted(self, example: Example) -> dict[str, Any]:
        prompt, answer = self._text(example, "source"), self._text(example, "target")
        self._ask_for_a_fast_tokenizer("where the target begins")
        encoded = self._encode(
            prompt + answer, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        ids, labels = encoded["input_ids"], []
        answering = False
        for token, (_, end), special in zip(
            ids, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
        ):
            # A token across the border holds a part of the target; what is added after it ends it.
            answering = answering or (not special and end > len(prompt))
            labels.append(token if answering else _IGNORED)
        return {"input_ids": ids, "labels": labels}

    def _translated(self, example: Example) -> dict[str, Any]:
        text = self._text(example, "text" if "text" in example else "source")
        target = self._text(example, "target")
        if translates(self.tokenizer):
            set_direction(self.tokenizer, example, self.source)
        return {
            "input_ids": self._encode(text)["input_ids"],
            "labels": self._encode(text_target=target)["input_ids"],
        }

    def _text(self, example: Example, name: str) -> str:
        value = example.get(name)
        if not isinstance(value, str) or not value:
            raise self._error(example, f"has no {name!r}", f"a text, for {self.task}")
        return value

    def _words(self, example: Example) -> tuple[list[str], list[int]]:
        """The words, and the number of each one's tag."""
        words, tags = (self._several(example, name) for name in ("tokens", "tags"))
        if len(words) != len(tags):
            raise self._error(
                example, f"has {len(words)} tokens and {len(tags)} tags", "one tag per token"
            )
        wrong = next((word for word in words if not isinstance(word, str)), None)
        if wrong is not None:
            raise self._error(example, f"has the token {wrong!r}", "words")
        return list(words), [self._number(example, "tag", tag) for tag in tags]

    def _several(self, example: Example, name: str) -> Sequence[Any]:
        value = example.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise self._error(
                example, f"has no {name!r}", f"'tokens' and 'tags', one per word, {self._for()}"
            )
        return value

    def _label(self, example: Example) -> Any:
        label = example.get("label", example.get("labels"))
        if label is None:
            raise self._error(example, "has no 'label'", f"its class, {self._for()}")
        if isinstance(label, str) or type(label) is int:
            return self._number(example, "label", label)
        return label  # several labels, or a number to predict

    def _number(self, example: Example, what: str, label: Any) -> int:
        """Number of a class that is given by its name or number."""
        if isinstance(label, str):
            known = dict(self.config.label2id)
            if label not in known:
                shown = ", ".join(sorted(known)[:8]) + (", …" if len(known) > 8 else "")
                raise self._error(
                    example, f"has the {what} {label!r}", f"one that the model knows: {shown}"
                )
            return int(known[label])
        if type(label) is not int or not 0 <= label < max(2, self.config.num_labels):
            raise self._error(
                example,
                f"has the {what} {label!r}",
                f"0 to {self.config.num_labels - 1}, or a name that the model knows",
            )
        return label

    def _ask_for_a_fast_tokenizer(self, why: str) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError(
                f"the tokenizer ({type(self.tokenizer).__name__}) cannot say {why}",
                path=self.source,
                expected="a fast tokenizer (tokenizer.json)",
                fix="save the fast one beside the base, or give tokenised examples as data=",
            )

    def _for(self) -> str:
        return f"for {self.task}"

    def _error(self, example: Example, found: str, expected: str) -> InputError:
        return InputError(
            f"an example of {example.get('language')} {found}", path=self.source, expected=expected
        )


def _is_prompted(example: Example) -> bool:
    """Beside a text, `source` is where the text is from."""
    return "text" not in example and "source" in example


def _of_one_length(rows: Sequence[Example]) -> Iterator[list[Example]]:
    """The rows, those of one length together."""
    groups: dict[tuple[int, int], list[Example]] = {}
    for row in rows:
        labels = row["labels"]
        n_labels = len(labels) if hasattr(labels, "__len__") else 0
        groups.setdefault((len(row["input_ids"]), n_labels), []).append(row)
    yield from (groups[key] for key in sorted(groups))
