"""Gradients of one example by layers that are not linear: embeddings and normalisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812


def rows_of(module: nn.Module, ids: Tensor, delta: Tensor) -> Tensor:
    """What each looked-up row receives: scaled as the output was, nothing for padding."""
    embedding: Any = module
    scale = getattr(embedding, "embed_scale", 1.0)
    delta = delta * scale
    if embedding.padding_idx is not None:
        delta = delta.masked_fill((ids == embedding.padding_idx)[..., None], 0)
    return delta


def scale_of_norm(module: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """[n, d]: each example's gradient by the scale of a normalisation."""
    layer: Any = module
    shape = tuple(layer.weight.shape)
    if isinstance(module, nn.LayerNorm):
        return (F.layer_norm(x, shape, None, None, layer.eps) * delta).flatten(1, -2).sum(dim=1)
    if isinstance(module, nn.RMSNorm):
        return (F.rms_norm(x, shape, None, layer.eps) * delta).flatten(1, -2).sum(dim=1)
    # Others multiply by their weight in a way of their own: with one weight per example the
    # module's own code gives the derivative.
    each = layer.weight.detach().expand(len(x), 1, *shape).clone().requires_grad_()
    with torch.enable_grad():
        output = functional_call(module, {"weight": each}, (x,))
        (gradient,) = torch.autograd.grad(output, each, grad_outputs=delta.to(output.dtype))
    return gradient[:, 0].detach()  # type: ignore[no-any-return]
