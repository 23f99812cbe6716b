"""Which parameter an optimizer's numbered entry belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from subnet.errors import InputError

#: How entries are matched with parameters, in words.
ORDERS: Mapping[str, str] = {
    "names": "the names in the file",
    "trainer": "Trainer's groups, with weight decay and without",
    "trainer-4": "the groups of former Trainers: no decay for biases and nn.LayerNorm",
    "trainer-4-norms": "the groups of former Trainers: no decay for biases and norm layers",
    "parameters": "one group, in the order of model.parameters()",
}

Groups = Sequence[Mapping[str, Any]]


def order_of(
    model: nn.Module,
    groups: Groups,
    state: Mapping[Any, Mapping[str, Any]],
    parameters: Mapping[str, nn.Parameter],
    file: Path,
) -> tuple[str, dict[Any, str]]:
    """Entry number to parameter name, by the rule whose counts and shapes fit.

    Args:
        model: The model that was trained.
        groups: `param_groups` of the file.
        state: Its `state`.
        parameters: Trained parameters, in the order of the model.
        file: For error messages.

    Returns:
        A key of `ORDERS`, and the names.

    Raises:
        InputError: No rule fits, naming the first entry that does not; or two that differ do.
    """
    counts = [len(group["params"]) for group in groups]
    keys = [key for group in groups for key in group["params"]]
    fitting: dict[str, list[str]] = {}
    misfit: InputError | None = None
    for rule, made in _candidates(model, list(parameters), len(groups)).items():
        if [len(names) for names in made] != counts:
            continue
        names = [name for group in made for name in group]
        wrong = _first_misfit(keys, names, state, parameters)
        if wrong is None:
            fitting[rule] = names
        elif misfit is None:
            key, name, found = wrong
            misfit = InputError(
                f"entry {key} is of shape {found}",
                path=file,
                expected=f"{list(parameters[name].shape)}, of {name} ({ORDERS[rule]})",
                fix="give the model that was trained, with the same parameters trainable",
            )
    if not fitting:
        raise misfit or _wrong_counts(model, counts, parameters, file)
    if len({tuple(names) for names in fitting.values()}) > 1:
        raise InputError(
            f"fits the orders {' and '.join(fitting)}, which differ",
            path=file,
            expected="an order that can be told by counts and shapes",
            fix="train with the installed transformers, so that its rule is known to be the one",
        )
    rule, names = next(iter(fitting.items()))
    return rule, dict(zip(keys, names, strict=True))


def _candidates(model: nn.Module, names: list[str], n_groups: int) -> dict[str, list[list[str]]]:
    """Rule to the groups that it makes of the trained parameters."""
    if n_groups == 1:
        return {"parameters": [names]}
    if n_groups != 2:
        return {}
    rules: dict[str, Callable[[nn.Module], set[str]]] = {
        "trainer": _trainer,
        "trainer-4": lambda model: _by_type(model, ("LayerNorm",), exact=True),
        "trainer-4-norms": lambda model: _by_type(model, ("LayerNorm", "RMSNorm"), exact=False),
    }
    found = {}
    for rule, decayed in rules.items():
        inside = decayed(model)
        found[rule] = [[n for n in names if n in inside], [n for n in names if n not in inside]]
    return found


def _trainer(model: nn.Module) -> set[str]:
    """Parameters with weight decay, as the installed Trainer itself says."""
    from transformers import Trainer

    # The rule is a method that asks nothing of the trainer.
    return set(Trainer.get_decay_parameter_names(None, model))


def _by_type(model: nn.Module, kinds: tuple[str, ...], *, exact: bool) -> set[str]:
    """Parameters outside norm layers, by their type, that no part of the name calls a bias."""
    found = set()
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        norm = kind in kinds if exact else kind.endswith(kinds)
        for leaf, _ in module.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if not norm and "bias" not in name:
                found.add(name)
    return found


def _first_misfit(
    keys: Sequence[int],
    names: Sequence[str],
    state: Mapping[Any, Mapping[str, Any]],
    parameters: Mapping[str, nn.Parameter],
) -> tuple[int, str, list[int]] | None:
    for key, name in zip(keys, names, strict=True):
        held = state.get(key, {}).get("exp_avg")
        if held is not None and held.shape != parameters[name].shape:
            return key, name, list(held.shape)
    return None


def _wrong_counts(
    model: nn.Module, counts: list[int], parameters: Mapping[str, nn.Parameter], file: Path
) -> InputError:
    made = _candidates(model, list(parameters), 2)["trainer"]
    wanted = " and ".join(str(len(names)) for names in made)
    return InputError(
        f"holds groups of {' and '.join(map(str, counts))} parameters",
        path=file,
        expected=f"{wanted} (Trainer's groups of the {len(parameters)} that the model trains)",
        fix="give the model that was trained, with the same parameters trainable",
    )
