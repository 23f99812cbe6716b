"""Influence through a subnetwork alone: which parameters it owns, and which entries of them.

A mask of weights indexes W. It restricts ∂L/∂W, which under a LoRA is the gradient by the effective
weight W + s·B·A: that of the wrapped layer, at the cost of tracking whole layers. A mask of heads
or neurons restricts in a full model the weights of these units, and under a LoRA the rows of B
where the units are outputs and the columns of A where they are inputs: A of the former and B of the
latter belong to no unit. Biases take no part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError, NotComparableError
from subnet.influence.collecting import Blocks
from subnet.influence.tracking import Tracked, track_parameters
from subnet.model import covered_parameters, find_units, gate_heads, gate_neurons, swap_parameters
from subnet.model._names import base_modules, base_parameters

if TYPE_CHECKING:
    from subnet.model import Projection, Units
    from subnet.subnetwork import Subnetwork


@dataclass(frozen=True, eq=False)
class Restriction:
    """Parameters of a subnetwork in a live model.

    Attributes:
        tracked: The parameters of which it owns a part.
        masks: Parameter name to booleans of its shape.
        subnetwork: Whose they are.
    """

    tracked: Tracked
    masks: Mapping[str, Tensor]
    subnetwork: Subnetwork

    def restrict(self, blocks: Blocks) -> Blocks:
        """Gradients [n, *shape] or [*shape] with zeros outside of the subnetwork."""
        return {name: block * self.masks[name].to(block.device) for name, block in blocks.items()}

    def alone(self, model: nn.Module) -> AbstractContextManager[None]:
        """Leave only the subnetwork in the forward pass meanwhile.

        Weights outside of a mask of weights are 0 where the mask covers their parameter; heads or
        neurons outside of a mask of units are gated off.

        Raises:
            InputError: A mask of weights meets a LoRA, whose effective weight is never there.
        """
        if self.subnetwork.granularity == "weight":
            if _has_lora(model):
                raise InputError(
                    "a mask of weights cannot be applied in the forward pass of a LoRA",
                    expected="a merged model, or a mask of heads or neurons",
                    fix="merge the adapter (merge_and_unload), or leave the forward pass whole",
                )
            outside = {
                name: torch.from_numpy(~self.subnetwork.dense(name))
                for name in self.subnetwork.shapes
            }
            return swap_parameters(model, dict.fromkeys(outside, 0.0), where=outside)
        return self._gated(model)

    @contextlib.contextmanager
    def _gated(self, model: nn.Module) -> Iterator[None]:
        from subnet.subnetwork.units import selected_units

        units = find_units(model)
        gates = selected_units(self.subnetwork, units).float()
        gate = gate_heads if self.subnetwork.granularity == "head" else gate_neurons
        with gate(model, units, gates):
            yield


def restrict_to(model: nn.Module, subnetwork: Subnetwork) -> Restriction:
    """What of a model's parameters belongs to a subnetwork.

    Args:
        model: A full model or one with a LoRA.
        subnetwork: A mask of weights, heads or neurons of its base.

    Raises:
        NotComparableError: The mask is of another model, or no unit's projection has a LoRA.
        InputError: The subnetwork is empty, or the adapter's update is not W + s·B·A.
    """
    if subnetwork.count == 0:
        raise InputError(f"the subnetwork of {subnetwork.language} is empty")
    if subnetwork.granularity == "weight":
        masks = _of_weights(model, subnetwork)
    else:
        masks = _of_units(model, subnetwork)
    masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
    if not masks:
        raise NotComparableError(
            f"no {subnetwork.granularity} of {subnetwork.language} has a LoRA on its projections",
            expected="a LoRA on them",
            fix="train one there, or give the merged model",
        )
    tracked = track_parameters(model, masks)
    return Restriction(tracked, masks, subnetwork)


def _of_weights(model: nn.Module, subnetwork: Subnetwork) -> dict[str, Tensor]:
    """Name in the live model to the mask: of a wrapped layer, the weight inside."""
    if any(len(getattr(module, "lora_variant", {})) for module in model.modules()):
        raise InputError(
            "a mask of weights is given for a LoRA whose update is not s·B·A (such as DoRA)",
            expected="a plain LoRA, or a merged model",
            fix="merge the adapter first (merge_and_unload)",
        )
    parameters = covered_parameters(model, subnetwork.shapes, f"the mask of {subnetwork.language}")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: torch.from_numpy(subnetwork.dense(name))
        for name, parameter in parameters.items()
    }


def _of_units(model: nn.Module, subnetwork: Subnetwork) -> dict[str, Tensor]:
    from subnet.subnetwork.units import selected_units

    units = find_units(model)
    selected = selected_units(subnetwork, units)
    if _has_lora(model):
        return _of_factors(model, units, selected, subnetwork.granularity)
    if subnetwork.granularity == "head":
        owned = units.weights_of_heads(selected)
    else:
        owned = units.weights_of_neurons(selected)
    parameters = base_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameters[name])]: mask for name, mask in owned.items() if mask.ndim == 2}


def _of_factors(
    model: nn.Module, units: Units, selected: Tensor, granularity: str
) -> dict[str, Tensor]:
    """Rows of B where units are outputs, columns of A where they are inputs."""
    owned: list[tuple[Projection, Tensor, bool]] = []
    if granularity == "head":
        for block, part in units.split_heads(selected):
            rows = part.repeat_interleave(block.head_dim)
            groups = part.reshape(block.n_kv_heads, block.group_size).any(dim=1)
            shared = groups.repeat_interleave(block.head_dim)
            owned += [(block.query, rows, True), (block.key, shared, True)]
            owned += [(block.value, shared, True), (block.output, rows, False)]
    else:
        for ffn, part in units.split_neurons(selected):
            owned += [(ffn.up, part, True), (ffn.down, part, False)]
            if ffn.gate is not None:
                owned.append((ffn.gate, part, True))
    modules = base_modules(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    for projection, part, of_outputs in owned:
        layer: Any = modules[projection.module]
        factors = getattr(layer, "lora_B" if of_outputs else "lora_A", None)
        if not isinstance(factors, nn.ModuleDict):
            continue
        for adapter in layer.active_adapters:
            if adapter not in factors:
                continue
            weight: Any = factors[adapter].weight  # B [o, r], A [r, i]
            mask = masks.setdefault(
                names[id(weight)], torch.zeros(tuple(weight.shape), dtype=torch.bool)
            )
            if of_outputs:
                mask[projection.start : projection.stop] |= part[:, None]
            else:
                mask |= part
    return masks


def _has_lora(model: nn.Module) -> bool:
    return any(isinstance(getattr(m, "lora_A", None), nn.ModuleDict) for m in model.modules())
