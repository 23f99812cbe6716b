"""Which parameters of a live model a mask means, and which entries of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from subnet.errors import InputError, NotComparableError
from subnet.model import base_modules, base_parameters, covered_parameters, find_units
from subnet.model.units import Sharing
from subnet.subnetwork import Subnetwork, factor_masks, gradient_masks

#: A subnetwork, or parameter name (as in the model, or as in its base) to booleans of its shape.
Mask = Subnetwork | Mapping[str, Tensor]


def masks_of(
    model: nn.Module, mask: Mask, *, base: str | None = None, shared: Sharing = "any"
) -> dict[str, Tensor]:
    """What of a live model's parameters a mask selects.

    Under a LoRA a mask of heads or neurons selects rows of B where units are outputs and columns of
    A where they are inputs; the other factor of each matrix belongs to none (`factor_masks`).

    Args:
        model: A full model, or one with a LoRA.
        mask: A subnetwork, or parameter name to booleans.
        base: Identity of the model's base, which a subnetwork must then stand on.
        shared: With grouped queries, whose the shared rows are; see `units_to_weights`.

    Returns:
        Name in `model.named_parameters()` to booleans of its shape, on its device; tied weights
        once.

    Raises:
        NotComparableError: The mask is of another base or model, or is of weights under a LoRA.
        InputError: It selects nothing, is not boolean, or gives a tied weight twice.
    """
    if isinstance(mask, Subnetwork):
        if base is not None and mask.base != base:
            raise NotComparableError(
                f"the mask of {mask.language} stands on the base {mask.base!r} and the model on "
                f"{base!r}",
                expected="a mask of the model's own base",
                fix="extract it from this base",
            )
        what = f"the mask of {mask.language}"
        wanted = _of_subnetwork(model, mask, shared)
    else:
        what, wanted = "the mask", dict(mask)
    found: dict[str, Tensor] = {}
    live = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in live.items()}
    known = {**base_parameters(model), **live}
    shapes = {given: tuple(selected.shape) for given, selected in wanted.items()}
    parameters = covered_parameters(model, shapes, what, among=known)
    for given, selected in wanted.items():
        parameter = parameters[given]
        if selected.dtype != torch.bool:
            raise InputError(
                f"{what} holds {str(selected.dtype).removeprefix('torch.')} values for {given}",
                expected="booleans",
            )
        name = names[id(parameter)]
        selected = selected.to(parameter.device)
        if name in found and not torch.equal(found[name], selected):
            raise InputError(
                f"{what} selects differently in {name} and {given}, which are one tied weight",
                fix="give one of them",
            )
        found[name] = selected
    if not any(bool(selected.any()) for selected in found.values()):
        raise InputError(f"{what} selects no weight", expected="a mask that selects some")
    return found


def matching(names: Iterable[str], patterns: Iterable[str], what: str) -> set[str]:
    """Names that equal or match some of the patterns, as `Subnetwork.restrict` has them.

    Raises:
        InputError: A pattern matches no name.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in known if name == pattern or fnmatchcase(name, pattern)}
        if not hits:
            near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.3)
            raise InputError(
                f"{what} names {pattern!r}, which matches no parameter",
                expected=f"such as {near[0]}" if near else f"some of {len(known)} parameters",
            )
        found |= hits
    return found


def has_lora(model: nn.Module) -> bool:
    """Whether some layer is wrapped in a LoRA."""
    return any(isinstance(getattr(m, "lora_A", None), nn.ModuleDict) for m in model.modules())


def base_names(model: nn.Module) -> dict[str, str]:
    """Name in `model.named_parameters()` to that in the base's `state_dict`; factors have none."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, str] = {}
    for base_name, parameter in base_parameters(model).items():
        found.setdefault(names[id(parameter)], base_name)
    return found


def _of_subnetwork(model: nn.Module, subnetwork: Subnetwork, shared: Sharing) -> dict[str, Tensor]:
    if subnetwork.granularity == "direction":
        raise NotComparableError(
            f"the mask of {subnetwork.language} is of singular directions, which are no weights",
            expected="a mask of weights, heads or neurons",
        )
    lora = has_lora(model)
    if subnetwork.granularity == "weight":
        if lora:
            raise NotComparableError(
                f"the mask of {subnetwork.language} is per weight and the model has a LoRA: a "
                "weight of W is none of its factors",
                expected="a mask of heads or neurons, or the full model",
                fix="convert the mask with weights_to_units",
            )
        return gradient_masks(subnetwork)
    units = find_units(model)
    if not lora:
        return gradient_masks(subnetwork, units, shared=shared)
    modules = base_modules(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for weight, selection in factor_masks(subnetwork, units, shared=shared).items():
        module = modules[weight.removesuffix(".weight")]
        for part, selected in (("lora_A", selection.columns), ("lora_B", selection.rows)):
            factors = getattr(module, part, None)
            if not isinstance(factors, nn.ModuleDict):
                continue
            for factor in factors.values():
                value = factor.get_parameter("weight")  # A [r, i], B [o, r]
                mask = torch.zeros(value.shape, dtype=torch.bool)
                if selected is not None:
                    mask |= selected[:, None] if part == "lora_B" else selected
                found[names[id(value)]] = mask
    if not found:
        raise NotComparableError(
            f"no {subnetwork.granularity} of {subnetwork.language} has a LoRA on its projections",
            expected="a LoRA on them",
        )
    return found
