"""Changing weights of a live model for a while."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.model._names import base_parameters


@contextlib.contextmanager
def swap_parameters(
    model: nn.Module,
    values: Mapping[str, Tensor | float],
    *,
    where: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Put other values into parameters meanwhile; afterwards they are bitwise what they were.

    That holds when the body raises, and when it changes the parameters itself. To remove a
    subnetwork set its weights to 0 (or back to the base's) `where` its mask is true; to keep it
    alone, where its mask is false.

    Args:
        model: A model; under PEFT the base's own weights are meant, not the factors.
        values: Base parameter name to a tensor of its shape, or one number for all of it.
        where: Base parameter name to booleans of its shape: only there the value is put. Of a
            parameter that it does not name, all is replaced.

    Raises:
        MissingInputError: The model has no such parameter.
        InputError: A shape does not fit, a mask is not boolean, or tied weights are given twice.

    Example:
        >>> removed = {name: 0.0 for name in masks}  # doctest: +SKIP
        >>> with swap_parameters(model, removed, where=masks):  # doctest: +SKIP
        ...     without = per_example_loss(model, dataset, collate_fn)
    """
    where = where or {}
    parameters = base_parameters(model)
    targets = {name: _find(parameters, name, model) for name in values}
    _check(targets, values, where)
    before = {name: parameter.detach().clone() for name, parameter in targets.items()}
    try:
        with torch.no_grad():
            for name, parameter in targets.items():
                value = torch.as_tensor(values[name], dtype=parameter.dtype).to(parameter.device)
                if name in where:
                    parameter.copy_(torch.where(where[name].to(parameter.device), value, parameter))
                else:
                    parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in targets.items():
                parameter.copy_(before[name])


def covered_parameters(
    model: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    what: str,
    *,
    among: Mapping[str, nn.Parameter] | None = None,
    expected: str = "a mask of this model's base",
) -> dict[str, nn.Parameter]:
    """The live parameters that a mask, or a change of weights, is about.

    Args:
        model: A model; under PEFT the base's own weights are meant, not the factors.
        shapes: Base parameter name to its shape.
        what: Whose they are, for the message: `"the mask of de"`.
        among: Where to look them up; by default `base_parameters(model)`.
        expected: What would have fitted.

    Raises:
        NotComparableError: The model has no such parameter, or has it in another shape.
    """
    parameters = base_parameters(model) if among is None else among
    for name, shape in shapes.items():
        parameter = parameters.get(name)
        if parameter is None or tuple(parameter.shape) != tuple(shape):
            near = [] if parameter is not None else difflib.get_close_matches(name, parameters, n=1)
            has = "no such parameter" if parameter is None else f"it as {list(parameter.shape)}"
            raise NotComparableError(
                f"{what} covers {name} {list(shape)}, and {type(model).__name__} has {has}",
                expected=expected,
                fix=f"did you mean {near[0]}?" if near else None,
            )
    return {name: parameters[name] for name in shapes}


def _find(parameters: Mapping[str, nn.Parameter], name: str, model: nn.Module) -> nn.Parameter:
    if name not in parameters:
        near = difflib.get_close_matches(name, parameters, n=1)
        raise MissingInputError(
            f"{type(model).__name__} has no parameter {name}",
            expected=f"one of its {len(parameters)}",
            fix=f"did you mean {near[0]}?" if near else None,
        )
    return parameters[name]


def _check(
    targets: Mapping[str, nn.Parameter],
    values: Mapping[str, Tensor | float],
    where: Mapping[str, Tensor],
) -> None:
    lone = next((name for name in where if name not in targets), None)
    if lone is not None:
        raise InputError(f"{lone} has a mask but no value", fix="give 0.0 to remove what is masked")
    owners: dict[int, str] = {}
    for name, parameter in targets.items():
        other = owners.setdefault(id(parameter), name)
        if other != name:
            raise InputError(f"{other} and {name} are one tied weight", fix="give one of them")
        value, mask = values[name], where.get(name)
        if isinstance(value, Tensor) and value.shape != parameter.shape:
            raise InputError(
                f"the value for {name} is {list(value.shape)}",
                expected=str(list(parameter.shape)),
            )
        if mask is not None and (mask.shape != parameter.shape or mask.dtype != torch.bool):
            raise InputError(
                f"the mask for {name} is {str(mask.dtype).removeprefix('torch.')} "
                f"{list(mask.shape)}",
                expected=f"bool {list(parameter.shape)}",
            )
