"""Gradient of each example's loss with respect to the gates of heads or neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model.evaluation import example_losses
from subnet.model.hooks import evaluation_mode, gate_heads, gate_neurons
from subnet.model.units import Units


def gate_gradients(
    model: nn.Module,
    units: Units,
    batch: Mapping[str, Any],
    *,
    of: Literal["heads", "neurons"] = "heads",
    gates: Tensor | None = None,
) -> Tensor:
    """∂L_b/∂ξ_u of every example b and unit u of a batch, in `eval()` mode.

    Each example has gates of its own, so that one backward pass gives every example's gradient and
    none is lost by averaging: |mean of gradients| is not the mean of |gradients|. Nothing
    accumulates, neither over calls nor in the parameters.

    The first-order score of a head is the mean of |∂L_b/∂ξ_h| over examples (Michel et al. 2019,
    arXiv 1905.10650); ξ − 1 times the gradient is the loss's change to first order.

    Args:
        model: A model for one of the tasks of `find_task`.
        units: Its units.
        batch: Model inputs with `labels`.
        of: Which units.
        gates: [n_heads] or [n_neurons] at which to take the gradient, such as 0 for heads that
            were pruned; all 1 by default.

    Returns:
        [n, n_heads] or [n, n_neurons]: 0 in the rows of examples without a label.

    Raises:
        InputError: `of` names no kind of unit, or the batch is not usable.
    """
    if of not in ("heads", "neurons"):
        raise InputError(f"of is {of!r}", expected="'heads' or 'neurons'")
    n_units = units.n_heads if of == "heads" else units.n_neurons
    gate = gate_heads if of == "heads" else gate_neurons
    weight = next(model.parameters())
    start = torch.ones(n_units) if gates is None else gates.detach()
    n = len(batch["labels"]) if "labels" in batch else 1
    dtype = torch.promote_types(weight.dtype, torch.float32)
    each = start.to(weight.device, dtype).expand(n, -1).clone().requires_grad_()
    with evaluation_mode(model), torch.enable_grad(), gate(model, units, each):
        losses = example_losses(model, batch)
        (gradients,) = torch.autograd.grad(losses.nansum(), each)
    return gradients
