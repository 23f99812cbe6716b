"""Per-example gradients of one batch, from one forward and one backward pass.

The gradient of example n by a weight W [o, i] is G_n = Σ_t δ_nt x_ntᵀ. Inputs x and derivatives δ
are there after a pass that computes no weight's own gradient, so that the product, which a training
step makes for the sum over examples, is made for each example at the same price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.influence._layers import rows_of, scale_of_norm
from subnet.influence.tracking import Tracked, TrackedModule
from subnet.model import evaluation_mode, example_losses
from subnet.model.per_example import LayerRecord, by_example, frozen, record_layers

#: Loss of each example of a batch: (model, batch) to [n].
LossFunction = Callable[[nn.Module, Any], Tensor]
#: Parameter name to something per example, [n, …].
Blocks = dict[str, Tensor]

#: Numbers of per-example gradients that are held at once where only their norm is wanted.
_CHUNK = 1 << 22


class UndefinedExamplesError(InputError):
    """Something is undefined for an example of the batch: its place in the batch, and what."""

    def __init__(self, place: int, what: str, *, expected: str, fix: str) -> None:
        super().__init__(f"{what} of example {place} of the batch", expected=expected, fix=fix)
        self.place, self.what = place, what


@dataclass(frozen=True)
class Factors:
    """What one tracked module saw of a batch; calls of a module that is used twice stand in a row.

    Attributes:
        inputs: [n, t, i]; of an embedding the ids [n, t].
        gradients: [n, t, o], the derivative of each example's loss by the module's output.
    """

    inputs: Tensor
    gradients: Tensor


@dataclass(frozen=True, eq=False)
class Collected:
    """One batch: losses, and from what the gradients of each example are made.

    Attributes:
        losses: [n], detached.
        tracked: The tracked modules.
        factors: Name of the module to its factors; without modules whose parameters are tied to
            others and that were not called themselves.
        live: Name of the module to the module.
    """

    losses: Tensor
    tracked: Tracked
    factors: Mapping[str, Factors]
    live: Mapping[str, nn.Module]

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def called(self) -> tuple[TrackedModule, ...]:
        """The tracked modules that were called."""
        return tuple(module for module in self.tracked if module.name in self.factors)

    def gradients(self) -> Blocks:
        """Gradient of each example by each parameter.

        Returns:
            Parameter name to [n, *shape], float32 at least.
        """
        found: Blocks = {}
        for module in self.called:
            for name, block in self._of(module, slice(None)):
                found[name] = found[name] + block if name in found else block
        return {name: found[name] for name in self.tracked.shapes}

    def group_sums(self, groups: Sequence[slice], scale: Tensor | None = None) -> list[Blocks]:
        """Gradient of each parameter summed over groups of examples, without those of each.

        Args:
            groups: Rows of the batch, which do not overlap.
            scale: [n] factor of each example; 1 by default.

        Returns:
            Per group, parameter name to [*shape], float32 at least.
        """
        sums: list[Blocks] = [{} for _ in groups]
        for module in self.called:
            for found, rows in zip(sums, groups, strict=True):
                weights = None if scale is None else scale[rows]
                for name, block in self._summed(module, rows, weights):
                    found[name] = found[name] + block if name in found else block
        return [{name: found[name] for name in self.tracked.shapes} for found in sums]

    def squared_norms(self) -> Tensor:
        """[n] float64: Σ over all parameters of each example's squared gradient.

        Of a linear layer either from the gradients themselves or, where positions are few
        (t < o·i/(o+i)), as Σ_ts ⟨x_t, x_s⟩⟨δ_t, δ_s⟩.
        """
        total = torch.zeros(len(self), dtype=torch.float64, device=self.losses.device)
        uses: dict[str, int] = {}
        for module in self.called:
            for name in module.parameters:
                uses[name] = uses.get(name, 0) + 1
        tied: Blocks = {}
        for module in self.called:
            alone = all(uses[name] == 1 for name in module.parameters)
            if alone:
                total += self._norms(module).to(total.device)
                continue
            for name, block in self._of(module, slice(None)):
                tied[name] = tied[name] + block if name in tied else block
        return total + _squares(tied.values()).to(total.device) if tied else total

    def _norms(self, module: TrackedModule) -> Tensor:
        x, delta = self.factors[module.name].inputs, self.factors[module.name].gradients
        n, t = delta.shape[:2]
        if module.kind in ("linear", "conv1d") and module.weight is not None:
            o, i = delta.shape[-1], x.shape[-1]
            if t * (o + i) < o * i:
                wide = torch.promote_types(x.dtype, torch.float32)
                a, b = x.to(wide), delta.to(wide)
                both = (a @ a.transpose(1, 2)) * (b @ b.transpose(1, 2))  # [n, t, t]
                norms = both.double().sum(dim=(1, 2)).clamp(min=0)
                if module.bias is not None:
                    norms = norms + b.sum(dim=1).double().square().sum(dim=1)
                return norms
        size = sum(math.prod(self.tracked.shapes[name]) for name in module.parameters)
        step = max(1, _CHUNK // max(1, size))
        parts = []
        for start in range(0, n, step):
            blocks = [block for _, block in self._of(module, slice(start, start + step))]
            parts.append(_squares(blocks))
        return torch.cat(parts)

    def _of(self, module: TrackedModule, rows: slice) -> Iterator[tuple[str, Tensor]]:
        """(parameter, [n, *shape]) of one module, for some examples."""
        factors = self.factors[module.name]
        x, delta = factors.inputs[rows], factors.gradients[rows]
        wide = torch.promote_types(delta.dtype, torch.float32)
        if module.weight is not None:
            if module.kind == "linear":
                weight = torch.einsum("nto,nti->noi", delta, x).to(wide)
            elif module.kind == "conv1d":
                weight = torch.einsum("nti,nto->nio", x, delta).to(wide)
            elif module.kind == "embedding":
                delta = rows_of(self.live[module.name], x, delta)
                weight = torch.zeros(len(x), *module.shape, dtype=wide, device=delta.device)
                for example, ids, own in zip(weight, x, delta, strict=True):
                    example.index_add_(0, ids, own.to(wide))
            else:
                weight = scale_of_norm(self.live[module.name], x, delta).to(wide)
            yield module.weight, weight
        if module.bias is not None:
            yield module.bias, factors.gradients[rows].to(wide).flatten(1, -2).sum(dim=1)

    def _summed(
        self, module: TrackedModule, rows: slice, scale: Tensor | None
    ) -> Iterator[tuple[str, Tensor]]:
        """(parameter, [*shape]) of one module, summed over some examples."""
        factors = self.factors[module.name]
        x, delta = factors.inputs[rows], factors.gradients[rows]
        if scale is not None:
            delta = delta * scale.to(delta).reshape(-1, *[1] * (delta.ndim - 1))
        wide = torch.promote_types(delta.dtype, torch.float32)
        if module.weight is not None:
            if module.kind in ("linear", "conv1d"):
                left, right = (delta, x) if module.kind == "linear" else (x, delta)
                weight = (left.flatten(0, 1).T @ right.flatten(0, 1)).to(wide)
            elif module.kind == "embedding":
                own = rows_of(self.live[module.name], x, delta).flatten(0, 1).to(wide)
                weight = torch.zeros(module.shape, dtype=wide, device=delta.device)
                weight.index_add_(0, x.flatten(), own)
            else:
                weight = scale_of_norm(self.live[module.name], x, delta).to(wide).sum(dim=0)
            yield module.weight, weight
        if module.bias is not None:
            yield module.bias, delta.to(wide).flatten(0, -2).sum(dim=0)


def collect(
    model: nn.Module, tracked: Tracked, batch: Any, loss_fn: LossFunction | None = None
) -> Collected:
    """Run one batch forward and backward, in `eval()` mode.

    Nothing accumulates in the model: which parameters take gradients, every module's mode and
    `.grad` are afterwards what they were.

    Args:
        model: The model.
        tracked: Of this model (`track`).
        batch: Model inputs with `labels`, or what `loss_fn` takes.
        loss_fn: (model, batch) to [n] losses, each of its own example alone; by default
            `subnet.model.example_losses`.

    Raises:
        InputError: A tracked module is not called or mixes examples, or the loss does not depend
            on any.
        UndefinedExamplesError: The loss of an example is not finite.
    """
    batch = to_device(batch, next(model.parameters()).device)
    live = tracked.live(model)
    n = n_examples(batch)
    with (
        evaluation_mode(model),
        frozen(model),
        torch.enable_grad(),
        record_layers(live, n) as record,
    ):
        losses = (loss_fn or example_losses)(model, batch)
        _check(losses, n)
        called = _called(tracked, record)
        if not losses.requires_grad:
            raise InputError(
                "the loss depends on no tracked module",
                expected="a loss through which gradients flow",
                fix="does loss_fn use torch.no_grad() or detach()?",
            )
        calls = dict(record.derivatives(losses.sum()))
    factors = {
        module.name: _factors(
            module, calls[module.name], record.inputs[module.name][0], live[module.name], n
        )
        for module in called
    }
    return Collected(losses.detach(), tracked, factors, live)


def n_examples(batch: Any) -> int:
    """Number of examples of a batch: the length of its first tensor."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(values, Tensor):
        return len(values)
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise InputError("a batch holds no tensor", expected="model inputs, one row per example")


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _check(losses: Any, n: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (n,):
        found = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(
            f"loss_fn gave {found} for {n} examples",
            expected=f"[{n}], one loss per example",
            fix='take the losses apart, for example with reduction="none"',
        )
    wrong = (~losses.detach().isfinite()).nonzero()
    if len(wrong):
        place = int(wrong[0])
        value = "NaN" if bool(losses[place].isnan()) else "infinite"
        raise UndefinedExamplesError(
            place,
            f"{value} is the loss",
            expected="a finite loss",
            fix="does it have a label, and are the weights finite?",
        )


def _called(tracked: Tracked, record: LayerRecord) -> list[TrackedModule]:
    """The modules that were called; a tied parameter may have others that were not."""
    called = [module for module in tracked if module.name in record.inputs]
    reached = {name for module in called for name in module.parameters}
    for module in tracked:
        if not reached.issuperset(module.parameters):
            raise InputError(
                f"{module.name} is tracked and was not called in the forward pass",
                expected="modules that take part in it",
                fix="leave it out of modules=; a merged adapter has to be unmerged first",
            )
    return called


def _squares(blocks: Iterable[Tensor]) -> Tensor:
    """[n] float64: Σ of squares over blocks [n, …]."""
    return torch.stack([block.double().square().flatten(1).sum(dim=1) for block in blocks]).sum(0)


def _factors(
    module: TrackedModule,
    calls: Sequence[tuple[Tensor, Tensor]],
    given: Tensor,
    live: nn.Module,
    n: int,
) -> Factors:
    name = module.name
    if not calls:  # what came out went nowhere: no positions
        weight: Any = live.weight
        width = module.shape[0 if module.kind == "linear" else -1]
        empty = weight.new_zeros(n, 0, width)
        ids = given.new_zeros(n, 0)
        inputs = ids if module.kind == "embedding" else given.new_zeros(n, 0, given.shape[-1])
        return Factors(inputs, empty)
    delta = _in_a_row([by_example(d, n, name) for _, d in calls])
    if module.kind == "embedding":
        return Factors(
            _in_a_row([by_example(x[..., None], n, name)[..., 0] for x, _ in calls]), delta
        )
    return Factors(_in_a_row([by_example(x, n, name) for x, _ in calls]), delta)


def _in_a_row(calls: Sequence[Tensor]) -> Tensor:
    """The positions of all calls of a module; of one call, as they are and without a copy."""
    return calls[0] if len(calls) == 1 else torch.cat(list(calls), dim=1)
