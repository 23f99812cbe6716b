"""Loss per example, and per language.

The loss of an example is its own: the mean over its own label tokens, whatever else is in its
batch. The mean that a model returns weighs examples by their length and cannot be taken apart.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from subnet.errors import InputError
from subnet.model._names import base_model
from subnet.model.hooks import evaluation_mode

if TYPE_CHECKING:
    import pandas as pd

Task = Literal[
    "sequence-classification", "token-classification", "causal-lm", "sequence-to-sequence-lm"
]
#: Makes a batch (model inputs with `labels`) of a list of examples.
Collate = Callable[[list[dict[str, Any]]], Mapping[str, Any]]

#: Label that takes no part in a loss.
IGNORED = -100


class Dataset(Protocol):
    """Examples by number: a list, a torch dataset, a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)
class ExampleLosses:
    """Loss of every example, in the order of the dataset.

    Attributes:
        loss: [n] in nats; NaN of an example without a label.
        language: [n] labels, empty where the examples name no language.
    """

    loss: NDArray[np.float64]
    language: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row per example: example, language (where known), loss."""
        import pandas as pd

        columns: dict[str, Any] = {"example": range(len(self.loss))}
        if self.language:
            columns["language"] = list(self.language)
        return pd.DataFrame({**columns, "loss": self.loss})


def find_task(model: nn.Module) -> Task:
    """What a model was built for, by its class.

    Raises:
        InputError: It is built for none of the four tasks whose loss is known here.
    """
    from transformers.models.auto import modeling_auto as auto

    name = type(base_model(model)).__name__
    tasks: dict[Task, Mapping[str, Any]] = {
        "sequence-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token-classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "sequence-to-sequence-lm": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "causal-lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    for task, classes in tasks.items():
        if name in {n for entry in classes.values() for n in _names(entry)}:
            return task
    raise InputError(
        f"{name} is built for no known task",
        expected=" or ".join(tasks),
        fix="load the weights into a model for a task",
    )


def example_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Loss of each example of one batch, through which gradients flow.

    Cross-entropy in nats. Classification: −log p(label); with several labels per example their mean
    binary cross-entropy, with real-valued ones the mean squared error. Tokens and language models:
    the mean over the example's own tokens whose label is not −100.

    Args:
        model: A model for one of the tasks of `find_task`, in the mode it is in.
        batch: Its inputs, with `labels`; on any device.

    Returns:
        [n], float32 at least; NaN of an example without a label.

    Raises:
        InputError: The batch has no labels, or padding that nothing masks.
    """
    task = find_task(model)
    inner: Any = base_model(model)
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise InputError(
            "a batch has no labels", expected=f"a tensor 'labels' for {task}", fix="see collate_fn"
        )
    logits = logits_of(model, batch)
    labels = labels.to(logits.device)
    if task == "sequence-classification":
        return _classification_losses(logits, labels, inner.config)
    if task == "causal-lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return _token_losses(logits, labels)


def logits_of(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Logits of one batch, through which gradients flow.

    Labels are given to a model only where it makes the decoder's input of them. A decoder counts
    positions from the first token of each row, where padding stands on the left.

    Args:
        model: A model for one of the tasks of `find_task`, in the mode it is in.
        batch: Its inputs, with or without `labels`; on any device.

    Returns:
        [n, c] or [n, t, c], float32 at least.

    Raises:
        InputError: The batch has padding that nothing masks.
    """
    task = find_task(model)
    inner: Any = base_model(model)
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    _refuse_unmasked_padding(inputs, inner.config)
    # Sequence-to-sequence models make the decoder's input of the labels.
    if task != "sequence-to-sequence-lm" or "decoder_input_ids" in inputs:
        inputs.pop("labels", None)
    if task in ("causal-lm", "sequence-to-sequence-lm"):
        inputs.setdefault("use_cache", False)
    if task == "causal-lm":
        _count_positions(inputs, inner)
    logits: Tensor = model(**inputs).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def per_example_loss(
    model: nn.Module, dataset: Dataset, collate_fn: Collate, batch_size: int = 16
) -> ExampleLosses:
    """Loss of every example of a dataset, in `eval()` mode and without gradients.

    It depends neither on the batch size nor on padding (to rounding).

    Args:
        model: A model for one of the tasks of `find_task`. Its mode is restored afterwards.
        dataset: Examples, mappings. A `language` in them is carried along and not collated.
        collate_fn: Makes a batch of a list of examples: padded inputs, `attention_mask`, `labels`.
        batch_size: Examples per forward pass.

    Raises:
        InputError: There are no examples, some have a language and others none, or a batch is not
            usable (`example_losses`).

    Example:
        >>> losses = per_example_loss(model, dataset, collator, batch_size=32)  # doctest: +SKIP
        >>> losses.to_frame().groupby("language").loss.mean()  # doctest: +SKIP
    """
    if len(dataset) == 0:
        raise InputError("the dataset has no examples")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}", expected="1 or more")
    losses: list[NDArray[np.float64]] = []
    languages: list[str] = []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(dataset), batch_size):
            stop = min(start + batch_size, len(dataset))
            rows = [dict(dataset[i]) for i in range(start, stop)]
            languages += [str(row.pop("language")) for row in rows if "language" in row]
            batch = example_losses(model, collate_fn(rows))
            if len(batch) != len(rows):
                raise InputError(
                    f"collate_fn made {len(batch)} rows of {len(rows)} examples",
                    expected="one row per example",
                )
            losses.append(batch.double().cpu().numpy())
    if len(languages) not in (0, len(dataset)):
        raise InputError(
            f"{len(languages)} of {len(dataset)} examples name a language",
            expected="all of them, or none",
        )
    return ExampleLosses(np.concatenate(losses), tuple(languages))


def evaluate_languages(
    model: nn.Module, dataset: Dataset, collate_fn: Collate, batch_size: int = 16
) -> pd.DataFrame:
    """Mean loss per language.

    Args:
        model: As of `per_example_loss`.
        dataset: Examples that each have a `language`.
        collate_fn: As of `per_example_loss`.
        batch_size: Examples per forward pass.

    Returns:
        One row per language, sorted: language, loss (mean over its examples), stderr (s/√n, NaN
        below two examples), n (examples with a label), reason (why a value is undefined).

    Raises:
        InputError: The examples name no language.
    """
    import pandas as pd

    result = per_example_loss(model, dataset, collate_fn, batch_size)
    if not result.language:
        raise InputError("the examples name no language", expected="a 'language' in each of them")
    names = np.array(result.language)
    return pd.DataFrame(
        [{"language": name, **_summary(result.loss[names == name])} for name in sorted(set(names))]
    )


def _summary(losses: NDArray[np.float64]) -> dict[str, Any]:
    defined = losses[~np.isnan(losses)]
    n = len(defined)
    reason = {0: "no example has a label", 1: "one example has no standard error"}.get(n, "")
    return {
        "loss": float(defined.mean()) if n else math.nan,
        "stderr": float(defined.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        "n": n,
        "reason": reason,
    }


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, t, c] and [n, t] to [n]: the mean over each row's own labels."""
    losses = F.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )  # [n, t], 0 where ignored
    counted = (labels != IGNORED).sum(dim=1)
    # NaN is filled in afterwards: from 0/0 it would reach the gradients of the other rows.
    means = losses.sum(dim=1) / counted.clamp(min=1)
    return means.masked_fill(counted == 0, math.nan)


def _classification_losses(logits: Tensor, labels: Tensor, config: Any) -> Tensor:
    """[n, c] and the labels to [n], for the kind of problem as transformers tells it."""
    kind = config.problem_type
    if kind is None and logits.shape[1] == 1:
        kind = "regression"
    if kind == "regression":
        errors = F.mse_loss(logits, labels.float().reshape(logits.shape), reduction="none")
        return errors.mean(dim=1)
    if kind == "multi_label_classification" or (kind is None and labels.is_floating_point()):
        each = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return each.mean(dim=1)
    losses = F.cross_entropy(logits, labels.reshape(-1), ignore_index=IGNORED, reduction="none")
    return losses.masked_fill(labels.reshape(-1) == IGNORED, math.nan)


def _refuse_unmasked_padding(inputs: Mapping[str, Any], config: Any) -> None:
    """Without a mask an encoder attends to padding, and the loss depends on the batch."""
    ids, pad = inputs.get("input_ids"), getattr(config, "pad_token_id", None)
    if "attention_mask" in inputs or not isinstance(ids, Tensor) or pad is None or len(ids) < 2:
        return
    if bool((ids[:, [0, -1]] == pad).any()):
        raise InputError(
            "a batch is padded and has no attention_mask",
            expected="1 for tokens, 0 for padding",
            fix="let collate_fn make one (DataCollatorWithPadding does)",
        )


def _count_positions(inputs: dict[str, Any], model: Any) -> None:
    """Count positions from the first token of each row, where padding stands on the left.

    Left to itself a decoder counts from the edge, and learned positions shift with the padding.
    """
    mask = inputs.get("attention_mask")
    if "position_ids" in inputs or not isinstance(mask, Tensor) or mask.ndim != 2:
        return
    if bool(mask[:, 0].all()) or "position_ids" not in inspect.signature(model.forward).parameters:
        return
    inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _names(entry: str | Sequence[str]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)
