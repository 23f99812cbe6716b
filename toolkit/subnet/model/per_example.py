"""What each example puts into layers, and the derivative of its loss by what comes out.

Both are recorded in one pass over a batch, of which the *sum* of the examples' losses is taken: an
example's rows then hold its own derivatives, and no parameter needs a gradient. The gradient of an
example by a weight W [o, i] is Σ_t δ_t x_tᵀ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError


@dataclass
class LayerRecord:
    """What went into each layer and what came out, once per call of the layer.

    Attributes:
        names: The layers.
        inputs: Layer to its inputs, detached.
        outputs: Layer to its outputs, part of the graph; empty where no gradients were on.
    """

    names: Sequence[str]
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def unused(self) -> str | None:
        """The first layer that was not called; None where all were."""
        return next((name for name in self.names if name not in self.inputs), None)

    def derivatives(
        self, loss: Tensor, *, keep: bool = False
    ) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
        """Each layer with (input, derivative of the loss by the output) of each of its calls.

        Calls whose output leads nowhere are left out.

        Args:
            loss: Sum of the examples' losses.
            keep: Whether another pass through the same graph follows.
        """
        flat = [output for name in self.names for output in self.outputs.get(name, ())]
        found = iter(torch.autograd.grad(loss, flat, retain_graph=keep, allow_unused=True))
        for name in self.names:
            calls = []
            for given, _ in zip(self.inputs.get(name, ()), self.outputs.get(name, ()), strict=True):
                derivative = next(found)
                if derivative is not None:
                    calls.append((given, derivative))
            yield name, calls


@contextlib.contextmanager
def record_layers(
    modules: Mapping[str, nn.Module], n_examples: int | None = None
) -> Iterator[LayerRecord]:
    """Record what the layers are given and give meanwhile.

    Args:
        modules: The layers, by any name.
        n_examples: Size of the batch. A layer that is given one row for all examples, as positions
            are, is then made to give every example its own.
    """
    record = LayerRecord(tuple(modules))

    def own(values: Tensor) -> Tensor:
        if n_examples is None or values.ndim < 2 or len(values) != 1 or n_examples == 1:
            return values
        return values.expand(n_examples, *values.shape[1:])

    def hook_for(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
            record.inputs.setdefault(name, []).append(own(arguments[0].detach()))
            if not torch.is_grad_enabled():
                return output
            output = own(output)
            if not output.requires_grad:
                output.requires_grad_()
            record.outputs.setdefault(name, []).append(output)
            # A copy goes on: what is recorded must stay as it is where an activation function
            # works in place. (Inputs cannot change: training could not either.)
            return output.clone()

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook_for(name)).remove)
        yield record


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient meanwhile: the layers' outputs alone carry the graph.

    So the weights' own gradients are not computed beside those of the examples.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def by_example(values: Tensor, n: int, name: str) -> Tensor:
    """[n, …, d] to [n, t, d]; of a batch of one, all rows are that example's.

    Raises:
        InputError: The layer works on the tokens of all examples together.
    """
    if n != 1 and (values.ndim < 2 or values.shape[0] != n):
        raise InputError(
            f"the layer of {name} works on {list(values.shape)} values for {n} examples",
            expected=f"[{n}, tokens, width], which can be told apart by example",
            fix="take batch_size=1",
        )
    return values.reshape(n, -1, values.shape[-1])
