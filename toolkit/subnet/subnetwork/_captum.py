"""Captum's layer attributions on transformers: loss in, embeddings interpolated, units out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import example_losses
from subnet.model._names import base_model
from subnet.subnetwork._scores import labelled
from subnet.subnetwork.settings import AttributionSettings

#: Where a path is evaluated. Conductance takes differences between consecutive points, so the
#: path's ends must be among them; integrated gradients are a quadrature.
QUADRATURE = {"conductance": "riemann_trapezoid", "integrated-gradients": "gausslegendre"}


def attribute_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batch: Mapping[str, Any],
    settings: AttributionSettings,
) -> dict[str, Tensor]:
    """Attribution of each example's loss to every element of what layers are given.

    Args:
        model: A model for one of the tasks of `find_task`, in the mode it is in.
        layers: Layers of it, each called once in a forward pass.
        batch: Model inputs with `labels`.
        settings: Which attribution.

    Returns:
        Name to [n, t, width]; 0 for examples without a label.

    Raises:
        InputError: A layer is not called once, or there is no padding token where one is needed.
    """
    from captum.attr import LayerConductance, LayerGradientXActivation, LayerIntegratedGradients

    device = next(model.parameters()).device
    tensors = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}
    constants = {k: v for k, v in batch.items() if not isinstance(v, Tensor)}
    if "labels" not in tensors:
        raise InputError("a batch has no labels", expected="a tensor 'labels'")
    loss = _Loss(model, tuple(tensors), constants, layers)
    given = tuple(tensors.values())
    if settings.attribution == "gradient-x-activation":
        # All layers at once: captum's loop would be one pass for each.
        method = LayerGradientXActivation(loss, list(layers.values()))
        found = method.attribute(given, attribute_to_layer_input=True)
        return {name: _single(part) for name, part in zip(layers, found, strict=True)}
    loss.embeddings = _embedding_modules(model)
    inputs = _embedded(loss, given)
    baselines = _baselines(model, loss.embeddings, inputs, settings)
    kind = LayerConductance if settings.attribution == "conductance" else LayerIntegratedGradients
    return {
        name: _single(
            kind(loss, layer).attribute(
                inputs,
                baselines,
                additional_forward_args=given,
                n_steps=settings.n_steps,
                method=QUADRATURE[settings.attribution],
                internal_batch_size=max(settings.internal_batch_size, 2 * len(inputs[0])),
                attribute_to_layer_input=True,
            )
        )
        for name, layer in layers.items()
    }


@dataclass
class _Loss:
    """What captum attributes: (embeddings…, tensors of the batch…) to the examples' losses [n].

    Token ids go into the model as ever, so that positions and padding are what they are; where
    embeddings are given, they replace what the embedding modules put out.

    Attributes:
        model: The model.
        keys: Names of the batch's tensors, in the order in which they are passed.
        constants: What else the batch holds.
        layers: Layers that must be called once.
        embeddings: Embedding modules, in the order in which embeddings are passed.
    """

    model: nn.Module
    keys: Sequence[str]
    constants: Mapping[str, Any]
    layers: Mapping[str, nn.Module]
    embeddings: Sequence[nn.Module] = field(default_factory=tuple)

    def __call__(self, *tensors: Tensor) -> Tensor:
        n = len(tensors) - len(self.keys)
        batch = {**self.constants, **dict(zip(self.keys, tensors[n:], strict=True))}
        with _replaced(self.embeddings, tensors[:n]), _called_once(self.layers):
            losses = example_losses(self.model, batch)
        # NaN of an example without a label; of any other it is for the caller to see.
        return losses.masked_fill(~labelled(self.model, batch), 0.0)


def _embedding_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """What makes vectors of tokens: of the encoder and the decoder, where there are both."""
    base: Any = base_model(model)
    if not base.config.is_encoder_decoder:
        return (base.get_input_embeddings(),)
    return tuple(part.get_input_embeddings() for part in (base.get_encoder(), base.get_decoder()))


def _embedded(loss: _Loss, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """[n, t, d] of each embedding module, as it puts out of the batch's tokens."""
    found: list[Tensor] = []
    with contextlib.ExitStack() as stack, torch.no_grad():
        for module in dict.fromkeys(loss.embeddings):
            handle = module.register_forward_hook(
                lambda module, arguments, output: found.append(output)  # noqa: ARG005
            )
            stack.callback(handle.remove)
        loss(*given)
    if len(found) != len(loss.embeddings):
        raise InputError(
            f"{type(base_model(loss.model)).__name__} embeds tokens {len(found)} times",
            expected=f"{len(loss.embeddings)}, once per stack of layers",
            fix="take attribution='gradient-x-activation', which needs no embeddings",
        )
    return tuple(found)


def _baselines(
    model: nn.Module,
    modules: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    settings: AttributionSettings,
) -> tuple[Tensor, ...]:
    if settings.baseline == "zero":
        return tuple(torch.zeros_like(values) for values in inputs)
    config: Any = base_model(model).config
    if config.pad_token_id is None:
        raise InputError(
            f"{type(base_model(model)).__name__} has no padding token",
            expected="config.pad_token_id, for baseline='padding'",
            fix="take baseline='zero'",
        )
    with torch.no_grad():
        return tuple(
            module(torch.full(values.shape[:2], config.pad_token_id, device=values.device))
            for module, values in zip(modules, inputs, strict=True)
        )


@contextlib.contextmanager
def _replaced(modules: Sequence[nn.Module], values: Sequence[Tensor]) -> Iterator[None]:
    """Let embedding modules put out given values meanwhile; one that serves twice, in order."""
    waiting: dict[nn.Module, list[Tensor]] = {}
    for module, value in zip(modules, values, strict=False):
        waiting.setdefault(module, []).append(value)

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        return waiting[module].pop(0)

    with contextlib.ExitStack() as stack:
        for module in waiting:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextlib.contextmanager
def _called_once(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Refuse layers that are called several times: captum attributes to the last call alone."""
    calls = dict.fromkeys(layers, 0)

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:  # noqa: ARG001
            calls[name] += 1

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(hook_for(name)).remove)
        yield
    other = next((name for name, n in calls.items() if n != 1), None)
    if other is not None:
        raise InputError(
            f"{other} is called {calls[other]} times in a forward pass",
            expected="once: attribution is to one call",
            fix="take head-pruning, or a method for weights",
        )


def _single(found: Any) -> Tensor:
    """Captum gives a tuple of what a layer is given; the layers here are given one tensor."""
    part = found[0] if isinstance(found, tuple | list) else found
    return part.detach()  # type: ignore[no-any-return]
