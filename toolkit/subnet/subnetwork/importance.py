"""Subnetworks from a model and data: the weights that matter most to a language's examples.

Fisher information, gradient × weight, and weight × input, each for every weight of linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork._selected import subnetwork_of_weights
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection, top_k
from subnet.subnetwork.settings import FisherSettings, ImportanceSettings, WandaSettings
from subnet.subnetwork.sources import LanguageModel, Progress, language_models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from subnet.checkpoint import Checkpoint
    from subnet.inputs import Half
    from subnet.subnetwork._per_example import Layers


def extract_by_importance(
    checkpoint: Checkpoint,
    settings: ImportanceSettings,
    data: Iterable[Mapping[str, Any]] | Half | None = None,
    *,
    progress: Progress | None = None,
) -> Subnetworks:
    """Find the subnetwork of each language by what its examples do in the model.

    The masks are over the weight matrices that training changed, so that they compare with masks by
    magnitude; of a base without updates, over those of attention and feed-forward layers. A weight
    whose importance is exactly zero is never selected. One model is in memory at a time, with one
    number of 8 bytes per weight.

    Args:
        checkpoint: With a base, updates (or stages) and, unless given, `train.jsonl`.
        settings: Of one of the methods.
        data: Examples, each with its `language`; see `extract`.
        progress: See `extract`.

    Returns:
        One subnetwork per language and run; with `model="base"` one per language.

    Raises:
        MissingInputError: There is no update, no example of a language, or no tokenizer.
        InputError: An example is a test example or not usable, importance holds NaN (names the
            tensor), or the density selects nothing.
    """
    return Subnetworks(
        _extract(member, settings)
        for member in language_models(checkpoint, settings, data, progress=progress)
    )


def weight_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    settings: ImportanceSettings,
    parameters: Iterable[str],
) -> dict[str, Tensor]:
    """Importance of every weight of some linear layers of a live model.

    The model is put into `eval()` mode meanwhile and left as it was; nothing accumulates in it.

    Args:
        model: A model for one of the tasks of `subnet.model.find_task`, adapters merged.
        batches: Model inputs with `labels`. Padding is allowed for gradients; for `wanda` it would
            count as input.
        settings: Which importance; density, scope and what concerns data are not used.
        parameters: Names of weights, as in its `state_dict`.

    Returns:
        Name to importance, float64 of the weight's shape.

    Raises:
        InputError: A parameter is not the weight of a linear layer of its own, a layer was not
            called or mixes examples, or no example has a label.

    Example:
        >>> found = weight_importance(model, batches, FisherSettings(), names)  # doctest: +SKIP
    """
    from subnet.subnetwork._per_example import find_layers

    layers = find_layers(model, parameters)
    if layers.left_out:
        raise InputError(
            f"{layers.left_out[0]} is not the weight of a linear layer",
            expected="weights of linear layers that are tied to no other",
        )
    return _importance(model, layers, batches, settings)


def _extract(member: LanguageModel, settings: ImportanceSettings) -> Subnetwork:
    from subnet.subnetwork._per_example import find_layers

    layers = find_layers(member.model, _parameters(member))
    importance = {
        name: values.cpu().float().numpy()
        for name, values in _importance(member.model, layers, member.batches, settings).items()
    }
    shapes = {name: tuple(values.shape) for name, values in importance.items()}
    if member.update is not None:
        _check_shapes(shapes, member.update.shapes, member.source)
    found, wanted = _select(importance, shapes, layers, settings, member.source)
    return subnetwork_of_weights(
        found,
        shapes,
        wanted,
        settings,
        language=member.language,
        run=member.run,
        base=member.base,
        source=member.source,
        zero=(
            f"the importance by {settings.method} is zero everywhere for {member.language}",
            "are its labels those that the model was trained for?",
        ),
        left_out=layers.left_out,
        recorded={**member.recorded, "parameters": "linear"},
    )


def _parameters(member: LanguageModel) -> list[str]:
    """Weights that are ranked: those that training changed, else those of the layers."""
    if member.update is not None:
        return list(member.update.shapes)
    from subnet.model import find_units

    units = find_units(member.model)
    heads = units.weights_of_heads([False] * units.n_heads)
    neurons = units.weights_of_neurons([False] * units.n_neurons)
    return sorted(name for name in {**heads, **neurons} if name.endswith(".weight"))


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], source: Path
) -> None:
    for name, shape in shapes.items():
        if shape != tuple(expected[name]):
            raise NotComparableError(
                f"{name} has shape {list(shape)} in the model",
                path=source,
                expected=f"{list(expected[name])}, as the update has",
            )


def _importance(
    model: nn.Module,
    layers: Layers,
    batches: Iterable[Mapping[str, Any]],
    settings: ImportanceSettings,
) -> dict[str, Tensor]:
    from subnet.subnetwork._per_example import sum_of_powers, sum_of_squared_inputs

    if isinstance(settings, WandaSettings):
        squares, n = sum_of_squared_inputs(model, layers, batches)
        _refuse_none(n)
        return {
            name: layers.weight(name).double().abs()
            * (square.sqrt()[:, None] if name in layers.transposed else square.sqrt())
            for name, square in squares.items()
        }
    if isinstance(settings, FisherSettings):
        sums, n = sum_of_powers(
            model, layers, batches, power=2, expected=settings.labels == "model"
        )
        _refuse_none(n)
        return {name: total / n for name, total in sums.items()}
    sums, n = sum_of_powers(model, layers, batches, power=1)
    _refuse_none(n)
    return {name: total / n * layers.weight(name).abs() for name, total in sums.items()}


def _refuse_none(n: int) -> None:
    if n == 0:
        raise InputError("no example has a label", expected="examples with a loss")


def _select(
    importance: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    layers: Layers,
    settings: ImportanceSettings,
    source: Path,
) -> tuple[list[Selection], int]:
    """The selections and how many weights they should hold."""
    density = settings.density
    if settings.scope == "global":
        k = round(density * sum(math.prod(shape) for shape in shapes.values()))
        selection = top_k(importance.__getitem__, shapes, k, skip_zeros=True, source=source)
        return [selection], k
    found, wanted = [], 0
    for name, shape in shapes.items():
        values = importance[name]
        if settings.scope == "module":
            k = round(density * math.prod(shape))
        else:
            inputs = 0 if name in layers.transposed else 1
            k = round(density * shape[inputs]) * shape[1 - inputs]
            values = _ranks(values, inputs)
        read = {name: values}.__getitem__
        found.append(top_k(read, {name: shape}, k, skip_zeros=True, source=source))
        wanted += k
    return found, wanted


def _ranks(values: Any, axis: int) -> Any:
    """Numbers that order values along an axis, largest first from its length down; zeros stay 0.

    The k largest of each row are then the largest k · rows of all. Ties go to the lower index.
    """
    import numpy as np

    if not np.isfinite(values).all():
        return values  # for the selection to refuse
    order = np.argsort(-values, axis=axis, kind="stable")
    ranks = np.empty_like(values)
    positions = np.arange(values.shape[axis], 0, -1, dtype=values.dtype)
    np.put_along_axis(ranks, order, np.expand_dims(positions, 1 - axis), axis=axis)
    return np.where(values == 0, 0, ranks)
