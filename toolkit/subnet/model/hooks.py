"""Gating heads and neurons of a live model, and looking at what they put out.

All of it is done by hooks on the input of the output projections, where a head is a slice and a
neuron an element. So it works alike with every attention kernel, and under PEFT, whose adapter on
the output projection sees the gated input too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model._names import base_modules
from subnet.model.units import Attention, Units


@contextlib.contextmanager
def gate_heads(model: nn.Module, units: Units, gates: Tensor) -> Iterator[None]:
    """Multiply the output of every attention head by a gate ξ meanwhile.

    A gate of 0 removes the head, and equals zeroing its columns of the output projection; of 1 it
    changes nothing, bitwise. Nested gates multiply.

    Args:
        model: The model that the units were found in.
        units: Its units.
        gates: [n_heads], or [n, n_heads] with one row per example of the batch. Gradients flow
            into them where they ask for it; clearing them between batches is the caller's
            (`gate_gradients` needs no clearing).

    Raises:
        InputError: The number of gates or of examples is not that of the model or the batch.

    Example:
        >>> gates = torch.ones(units.n_heads)  # doctest: +SKIP
        >>> gates[0] = 0  # doctest: +SKIP
        >>> with gate_heads(model, units, gates):  # doctest: +SKIP
        ...     logits = model(**batch).logits
    """
    _check(gates)
    parts = {
        block.output.module: part.repeat_interleave(block.head_dim, dim=-1)
        for block, part in units.split_heads(gates)
    }
    with _multiplied(model, parts):
        yield


@contextlib.contextmanager
def gate_neurons(model: nn.Module, units: Units, gates: Tensor) -> Iterator[None]:
    """Multiply the output of every FFN neuron by a gate meanwhile.

    Args:
        model: The model that the units were found in.
        units: Its units.
        gates: [n_neurons], or [n, n_neurons] with one row per example; as for `gate_heads`.

    Raises:
        InputError: As for `gate_heads`.
    """
    _check(gates)
    parts = {block.down.module: part for block, part in units.split_neurons(gates)}
    with _multiplied(model, parts):
        yield


@dataclass
class Captured:
    """What the units put out in the latest forward pass, and its gradient.

    A new forward pass replaces what the one before left; nothing accumulates over batches.

    Attributes:
        units: The units.
        activations: Name of the output or down projection to its input [n, t, width], detached.
        gradients: The same for ∂L/∂input, there after the backward pass.
    """

    units: Units
    activations: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def head_activations(self) -> dict[str, Tensor]:
        """Attention block to the outputs of its heads [n, t, n_heads, head_dim]."""
        return {
            block.module: _by_head(self.activations[block.output.module], block)
            for block in self.units.attentions
            if block.output.module in self.activations
        }

    def neuron_activations(self) -> dict[str, Tensor]:
        """Name of each down projection to the neurons [n, t, n_neurons]."""
        return {
            block.down.module: self.activations[block.down.module]
            for block in self.units.feed_forwards
            if block.down.module in self.activations
        }

    def head_gradients(self) -> Tensor:
        """∂L/∂ξ of every head at ξ = 1, per example [n, n_heads]: Σ over t of ⟨context, ∂L⟩.

        L is what `backward` was called on: make it the *sum* of the examples' losses, so that each
        row is the gradient of its own example (Michel et al. 2019, 1905.10650).

        Raises:
            InputError: There was no backward pass since the last forward pass.
        """
        return torch.cat(
            [
                _by_head(self._product(block.output.module), block).sum(dim=(1, -1))
                for block in self.units.attentions
            ],
            dim=-1,
        )

    def neuron_gradients(self) -> Tensor:
        """∂L/∂gate of every neuron, per example [n, n_neurons]; as `head_gradients`."""
        return torch.cat(
            [self._product(block.down.module).sum(dim=1) for block in self.units.feed_forwards],
            dim=-1,
        )

    def _product(self, module: str) -> Tensor:
        if module not in self.activations or module not in self.gradients:
            state = "gradient" if module in self.activations else "activation"
            raise InputError(
                f"there is no {state} of {module}",
                expected="a forward pass, then backward(), in capture() with that kind of unit",
            )
        activation = self.activations[module]
        if activation.ndim != 3:
            raise InputError(
                f"{module} sees the tokens of all examples together, as {list(activation.shape)}",
                expected="[examples, tokens, width]",
                fix="give one example at a time",
            )
        return activation * self.gradients[module]


@contextlib.contextmanager
def capture(
    model: nn.Module, units: Units, *, heads: bool = True, neurons: bool = True
) -> Iterator[Captured]:
    """Record what heads and neurons put out meanwhile, and the gradient there.

    Gradients are recorded where a backward pass is made; parameters need not ask for any, so a
    frozen model works.

    Args:
        model: The model that the units were found in.
        units: Its units.
        heads: Whether to record attention heads.
        neurons: Whether to record FFN neurons.

    Yields:
        The record, which can be used after the context has ended too.

    Example:
        >>> with capture(model, units) as captured:  # doctest: +SKIP
        ...     example_losses(model, batch).sum().backward()
        >>> captured.head_gradients().abs().mean(dim=0)  # doctest: +SKIP
    """
    captured = Captured(units)
    names = [block.output.module for block in units.attentions] if heads else []
    names += [block.down.module for block in units.feed_forwards] if neurons else []

    def record(name: str, given: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not given.requires_grad:
            given = given.detach().requires_grad_()
        captured.activations[name] = given.detach()
        captured.gradients.pop(name, None)
        if given.requires_grad:

            def keep(gradient: Tensor) -> None:
                captured.gradients[name] = gradient.detach()

            given.register_hook(keep)  # type: ignore[no-untyped-call]
        return given

    with _on_inputs(model, names, record):
        yield captured


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into `eval()` mode meanwhile; every module's own mode is restored after.

    Dropout makes scores random, and a caller may have left it on in a part of the model only.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _multiplied(model: nn.Module, parts: dict[str, Tensor]) -> Iterator[None]:
    """Multiply the input of each named projection by [width] or [n, width]."""

    def multiply(name: str, given: Tensor) -> Tensor:
        gate = parts[name].to(device=given.device, dtype=given.dtype)
        if gate.ndim == 1:
            return given * gate
        if given.ndim != 3 or len(gate) != len(given):
            raise InputError(
                f"gates for {len(gate)} examples meet {list(given.shape)} values at {name}",
                expected="one row of gates per example of the batch, and [examples, tokens, width]",
            )
        return given * gate[:, None, :]

    with _on_inputs(model, list(parts), multiply):
        yield


@contextlib.contextmanager
def _on_inputs(model: nn.Module, names: list[str], function: Any) -> Iterator[None]:
    """Pass the input of the named modules through a function meanwhile."""
    modules = base_modules(model)
    absent = next((name for name in names if name not in modules), None)
    if absent is not None:
        raise InputError(
            f"{type(model).__name__} has no module {absent}",
            expected="the model in which the units were found",
            fix="call find_units on this model",
        )

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
            return (function(name, arguments[0]), *arguments[1:])

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            handle = modules[name].register_forward_pre_hook(hook_for(name))
            stack.callback(handle.remove)
        yield


def _by_head(values: Tensor, block: Attention) -> Tensor:
    return values.reshape(*values.shape[:-1], block.n_heads, block.head_dim)


def _check(gates: Tensor) -> None:
    if gates.ndim not in (1, 2) or not gates.is_floating_point():
        raise InputError(
            f"gates are {str(gates.dtype).removeprefix('torch.')} {list(gates.shape)}",
            expected="real numbers, [units] or [examples, units]",
            fix="a boolean mask becomes gates by mask.float()",
        )
