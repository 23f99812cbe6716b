"""How good a model is on batches of examples, by what its task calls good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import evaluation_mode, example_losses, find_task
from subnet.model._names import base_model
from subnet.model.evaluation import IGNORED

Batch = Mapping[str, Any]
Measure = Literal["accuracy", "token accuracy", "loss"]


@dataclass(frozen=True)
class Score:
    """How good a model is.

    Attributes:
        value: Share of labels that it gets right, or its mean loss in nats.
        loss: Mean over the examples of each one's loss, in nats.
    """

    value: float
    loss: float


def find_measure(model: nn.Module, batches: Sequence[Batch]) -> Measure:
    """What the model is judged by.

    `accuracy` for sequence classification with one label per example, `token accuracy` (over all
    labelled tokens together) for token classification; for language models, and for labels that are
    numbers or several at once, `loss`, of which less is better.
    """
    task = find_task(model)
    if task == "token-classification":
        return "token accuracy"
    if task != "sequence-classification":
        return "loss"
    config: Any = base_model(model).config
    kind = config.problem_type or "single_label_classification"
    graded = any(torch.as_tensor(batch["labels"]).is_floating_point() for batch in batches)
    if kind != "single_label_classification" or config.num_labels < 2 or graded:
        return "loss"
    return "accuracy"


def score(model: nn.Module, batches: Sequence[Batch], measure: Measure) -> Score:
    """How good the model is as it stands, in `eval()` mode; one forward pass.

    Raises:
        InputError: No example has a label, or a loss is not finite.
    """
    hits = n_labels = n_examples = 0
    total = 0.0
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, given, output: seen.append(output.logits))  # noqa: ARG005
    try:
        with evaluation_mode(model), torch.no_grad():
            for batch in batches:
                losses = example_losses(model, batch)
                keep = labelled(model, batch).to(losses.device)
                total += float(losses[keep].double().sum())
                n_examples += int(keep.sum())
                logits = seen.pop()
                if measure != "loss":
                    labels = batch["labels"].to(logits.device).reshape(logits.shape[:-1])
                    counted = labels != IGNORED
                    hits += int(((logits.argmax(dim=-1) == labels) & counted).sum())
                    n_labels += int(counted.sum())
    finally:
        handle.remove()
    if n_examples == 0:
        raise InputError("no example has a label", expected="examples with a loss")
    loss = total / n_examples
    if not math.isfinite(loss):
        raise InputError(
            f"the mean loss over {n_examples} examples is {loss}", expected="finite losses"
        )
    return Score(loss if measure == "loss" else hits / n_labels, loss)


def passes(found: Score, full: Score, measure: Measure, threshold: float) -> bool:
    """Whether a score is at least the threshold's share of the full model's.

    Of a loss, less is better: it passes up to the full model's divided by the threshold.
    """
    if measure == "loss":
        least, value = found.value * threshold, full.value
    else:
        least, value = full.value * threshold, found.value
    return value >= least or math.isclose(value, least, rel_tol=1e-9)


def labelled(model: nn.Module, batch: Batch) -> Tensor:
    """[n]: which examples have a label that a loss is taken of."""
    labels: Tensor = batch["labels"]
    if find_task(model) == "causal-lm":
        labels = labels[:, 1:]
    if labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return (labels.reshape(len(labels), -1) != IGNORED).any(dim=1)


def halves(batches: Sequence[Batch], seed: int) -> tuple[list[Batch], list[Batch]]:
    """The examples of the batches as two halves, drawn by the seed; the first is the smaller."""
    n = n_rows(batches)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    first = torch.zeros(n, dtype=torch.bool)
    first[order[: n // 2]] = True
    return _rows(batches, first), _rows(batches, ~first)


def n_rows(batches: Sequence[Batch]) -> int:
    """Number of examples.

    Raises:
        InputError: A batch has no labels.
    """
    if any("labels" not in batch for batch in batches):
        raise InputError("a batch has no labels", expected="model inputs with 'labels'")
    return sum(len(batch["labels"]) for batch in batches)


def _rows(batches: Sequence[Batch], chosen: Tensor) -> list[Batch]:
    """The chosen examples, in batches no larger than they were."""
    found: list[Batch] = []
    start = 0
    for batch in batches:
        n = len(batch["labels"])
        part = chosen[start : start + n]
        start += n
        if part.any():
            found.append(
                {k: v[part.to(v.device)] if isinstance(v, Tensor) else v for k, v in batch.items()}
            )
    return found
