"""Training and test examples: who they are, batches of them, and what no model takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import find_task
from subnet.model._names import base_model
from subnet.model.evaluation import IGNORED

if TYPE_CHECKING:
    import pandas as pd

#: What a row says of an example beside what the model takes; taken out before collating.
ABOUT = ("id", "language", "concept", "stage")


class Dataset(Protocol):
    """Rows by number: a list, a torch dataset, a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Examples:
    """A dataset and who its examples are.

    Attributes:
        dataset: Rows: mappings of model inputs, or whatever `collate` takes.
        role: `"training"` or `"test"`, for messages.
        about: Each of `ABOUT` that the rows name, to one value per example.
        collate: Makes a batch of rows.
        accepted: Keys that the model takes; None leaves rows as they are.
    """

    dataset: Dataset
    role: str
    about: Mapping[str, tuple[Any, ...]]
    collate: Callable[[list[Any]], Any]
    accepted: frozenset[str] | None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def languages(self) -> tuple[str, ...] | None:
        """Language of every example; None where they name none."""
        return self.about.get("language")

    def name(self, index: int) -> str:
        """What to call an example in a message."""
        names = self.about.get("id")
        place = f"{self.role} example {index}"
        return place if names is None else f"{place} (id {names[index]!r})"

    def batches(
        self, size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Any]]:
        """(numbers of the examples, batch) of all examples, or of some, in their order."""
        order = range(len(self)) if indices is None else indices
        for start in range(0, len(order), size):
            part = [int(i) for i in order[start : start + size]]
            yield part, self._collated([self.row(i) for i in part])

    def to_frame(self) -> pd.DataFrame:
        """One row per example: id (its number where it names none), language and concept."""
        import pandas as pd

        columns = {"id": list(self.about.get("id", range(len(self))))}
        columns |= {key: list(self.about[key]) for key in ABOUT[1:] if key in self.about}
        return pd.DataFrame(columns)

    def row(self, index: int) -> Any:
        """What the model takes of an example."""
        row = self.dataset[index]
        if not isinstance(row, Mapping):
            return row
        return {
            key: value
            for key, value in row.items()
            if key not in ABOUT and (self.accepted is None or key in self.accepted)
        }

    def _collated(self, rows: list[Any]) -> Any:
        try:
            return self.collate(rows)
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise InputError(
                f"{self.role} examples cannot be collated ({error})",
                expected="a collator that pads them, as Trainer takes it",
                fix="give collate_fn=, for example DataCollatorWithPadding(tokenizer)",
            ) from error


def read_examples(
    dataset: Dataset,
    role: str,
    model: nn.Module,
    collate_fn: Callable[[list[Any]], Any] | None,
    *,
    own_loss: bool,
) -> Examples:
    """Go through a dataset once for what its rows say of themselves.

    Raises:
        InputError: There are no examples, some name a language and others do not, or one is empty.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"the {role} examples are a {type(dataset).__name__}",
            expected="a map-style dataset: a list, a torch Dataset, a datasets.Dataset",
        )
    n = len(dataset)
    if n == 0:
        raise InputError(f"there are no {role} examples")
    about: dict[str, list[Any]] = {key: [] for key in ABOUT}
    first: Any = None
    for index in range(n):
        row = dataset[index]
        first = row if index == 0 else first
        if isinstance(row, Mapping):
            for key, values in about.items():
                if key in row:
                    values.append(_plain(row[key]))
    for key, values in about.items():
        if len(values) not in (0, n):
            raise InputError(
                f"{len(values)} of {n} {role} examples have a {key!r}", expected="all, or none"
            )
        empty = [i for i, value in enumerate(values) if value is None or value == ""]
        if key == "language" and empty:
            raise InputError(
                f"{role} example {empty[0]} has an empty language",
                expected="a language for every example, or for none",
            )
    about["language"] = [str(value) for value in about["language"]]
    tokenised = isinstance(first, Mapping) and ("input_ids" in first or "inputs_embeds" in first)
    return Examples(
        dataset=dataset,
        role=role,
        about={key: tuple(values) for key, values in about.items() if values},
        collate=collate_fn or _default_collator(first),
        accepted=_accepted(model) if tokenised and not own_loss else None,
    )


def check_batch(model: nn.Module, batch: Any, examples: Examples, numbers: Sequence[int]) -> None:
    """Refuse what would end in an error inside the model, or on a GPU end the process.

    Raises:
        InputError: A batch has another number of rows, an example is longer than the model takes,
            or has a token or a label out of range; names the example.
    """
    if not isinstance(batch, Mapping):
        return
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if isinstance(ids, Tensor) and ids.ndim == 2:
        if len(ids) != len(numbers):
            raise InputError(
                f"collate_fn made {len(ids)} rows of {len(numbers)} {examples.role} examples",
                expected="one row per example",
            )
        _check_tokens(model, ids, batch.get("attention_mask"), examples, numbers)
    if isinstance(labels, Tensor) and not labels.is_floating_point() and len(labels):
        _check_labels(model, labels, examples, numbers)


def _check_tokens(
    model: nn.Module, ids: Tensor, mask: Any, examples: Examples, numbers: Sequence[int]
) -> None:
    longest = _longest(model)
    if longest is not None and ids.shape[1] > longest:
        own = mask.sum(dim=1) if isinstance(mask, Tensor) and mask.ndim == 2 else None
        place = 0 if own is None else int(own.argmax())
        length = ids.shape[1] if own is None else max(int(own[place]), 0)
        if length > longest:
            found = f"{examples.name(numbers[place])} has {length} tokens"
        else:
            found = f"a batch of {examples.role} examples is padded to {ids.shape[1]} tokens"
        raise InputError(
            found, expected=f"at most {longest}, which the model takes", fix="cut it (truncation)"
        )
    inner: Any = base_model(model)
    embed = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    size = getattr(embed, "num_embeddings", None)
    outside = (ids < 0) | (ids >= size) if size is not None else torch.zeros_like(ids).bool()
    if bool(outside.any()):
        row, column = (int(i) for i in outside.nonzero()[0])
        raise InputError(
            f"{examples.name(numbers[row])} has the token {int(ids[row, column])}",
            expected=f"0 to {int(size or 0) - 1}, the model's vocabulary",
        )


def _check_labels(
    model: nn.Module, labels: Tensor, examples: Examples, numbers: Sequence[int]
) -> None:
    config: Any = getattr(base_model(model), "config", None)
    if config is None:
        return
    task = find_task(model)
    kind = getattr(config, "problem_type", None)
    if task == "sequence-classification" and (
        kind not in (None, "single_label_classification") or config.num_labels == 1
    ):
        return
    tokens = task in ("causal-lm", "sequence-to-sequence-lm")
    size = int(config.get_text_config().vocab_size if tokens else config.num_labels)
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= size))
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise InputError(
            f"{examples.name(numbers[place[0]])} has the label {int(labels[tuple(place)])}",
            expected=f"0 to {size - 1}, or {IGNORED} for none",
            fix="were the labels numbered as the model numbers them?",
        )


def _longest(model: nn.Module) -> int | None:
    """Tokens that the model takes; None where nothing limits them."""
    inner: Any = base_model(model)
    for name, module in inner.named_modules():
        # RoBERTa counts positions from behind its padding index.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = -1 if module.padding_idx is None else module.padding_idx
            return module.num_embeddings - first - 1
    length = getattr(getattr(inner, "config", None), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _accepted(model: nn.Module) -> frozenset[str]:
    """Keys that Trainer would hand on: what `forward` takes, and labels under their names."""
    inner: Any = base_model(model)
    return frozenset(inspect.signature(inner.forward).parameters) | {"label", "label_ids", "labels"}


def _default_collator(first: Any) -> Callable[[list[Any]], Any]:
    """Trainer's own for mappings; tensors of one shape otherwise."""
    if isinstance(first, Mapping):
        from transformers import default_data_collator

        return default_data_collator  # type: ignore[no-any-return]
    return torch.utils.data.default_collate


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
