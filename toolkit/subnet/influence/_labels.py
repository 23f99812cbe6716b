"""Labels drawn from the model's own predictions, for the Fisher information that is not empirical.

The draw of an example depends on the seed and on its number alone, not on its batch or padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import evaluation_mode, find_task, logits_of
from subnet.model._names import base_model
from subnet.model.evaluation import IGNORED


def sample_labels(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    seed: int,
    numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The batch with labels y ~ p(y | x) of the model, wherever it had a label.

    One more forward pass, without gradients, in `eval()` mode. Decoders are given the true text
    before each token; a sequence-to-sequence batch gains the `decoder_input_ids` of the true one.

    Args:
        model: For sequence or token classification (one label each), or language modelling.
        batch: Its inputs, with `labels`.
        seed: Seed of the draw.
        numbers: The examples' numbers in the dataset; 0, 1, … by default.

    Raises:
        InputError: The model's labels are several per example, or real numbers.
    """
    task = find_task(model)
    inner: Any = base_model(model)
    kind = inner.config.problem_type or "single_label_classification"
    if task == "sequence-classification" and (
        kind != "single_label_classification" or inner.config.num_labels < 2
    ):
        raise InputError(
            "labels is 'model' and the model has no single label with a probability",
            expected="one of two or more labels per example",
            fix="take labels='true'",
        )
    labels: Tensor = batch["labels"]
    with evaluation_mode(model), torch.no_grad(), _decoder_inputs(model, batch) as given:
        logits = logits_of(model, batch)
    drawn = labels.clone()
    if task == "causal-lm":
        where, logits = drawn[:, 1:], logits[:, :-1]
    elif task == "sequence-classification":
        where, logits = drawn.reshape(-1, 1), logits[:, None]
    else:
        where = drawn
    sampled = _draw(logits, where != IGNORED, seed, numbers or range(len(labels))).to(where)
    where.copy_(torch.where(where == IGNORED, where, sampled))
    return {**batch, **given, "labels": drawn}


@contextlib.contextmanager
def _decoder_inputs(model: nn.Module, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the decoder is given for a text, where the model makes it of the labels."""
    found: dict[str, Any] = {}
    if find_task(model) != "sequence-to-sequence-lm" or "decoder_input_ids" in batch:
        yield found
        return

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:  # noqa: ARG001
        found["decoder_input_ids"] = named.get("input_ids", arguments[0] if arguments else None)

    inner: Any = base_model(model)
    handle = inner.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _draw(logits: Tensor, wanted: Tensor, seed: int, of: Sequence[int]) -> Tensor:
    """One class per position by inversion; the j-th labelled position takes the j-th number."""
    cumulative = logits.double().softmax(-1).cumsum(-1)  # [n, t, c]
    numbers = torch.zeros(wanted.shape, dtype=torch.float64)
    for row, number in enumerate(of):
        count = int(wanted[row].sum())
        philox = np.random.Philox(key=seed, counter=[0, 0, number, 0])
        drawn = (philox.random_raw(max(1, count)) >> np.uint64(11)) * 2.0**-53
        numbers[row, wanted[row].cpu()] = torch.from_numpy(drawn[:count])
    position = numbers.to(cumulative)[..., None] * cumulative[..., -1:]
    picked = torch.searchsorted(cumulative, position, right=True)[..., 0]
    return picked.clamp(max=logits.shape[-1] - 1)
