"""Subnetworks from a model and data: the weights that matter most to a language's examples.

Fisher information, gradient × weight, and weight × input, each for every weight of linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.extraction import TIES, check_density, one_of, refuse_repeats, updates_of
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection, top_k

if TYPE_CHECKING:
    from torch import Tensor, nn

    from subnet.checkpoint import Checkpoint, Update
    from subnet.subnetwork._examples import LanguageData
    from subnet.subnetwork._per_example import Layers


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings:
    """What a mask by importance depends on, whichever the importance is.

    Attributes:
        density: Share of the weights to select, 0 < density ≤ 1.
        scope: `"global"` ranks all weights together, `"module"` selects the same share of each
            parameter, `"row"` the same share of the inputs of each output.
        model: `"trained"`: the base with that language's adapter or weights (of a sequence of
            stages, with the stage's); `"base"`: the base as it was before.
        n_examples: Most examples of a language that are looked at, drawn by the seed.
        batch_size: Examples per pass. Changes results by rounding only.
        seed: Seed of the draw.
    """

    method: ClassVar[str]

    density: float = 0.05
    scope: str = "global"
    model: str = "trained"
    n_examples: int = 1024
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        one_of("scope", self.scope, ("global", "module", "row"))
        one_of("model", self.model, ("trained", "base"))
        for name, least in (("n_examples", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"{name} is {value!r}", expected=f"a whole number, {least} or more"
                )


@dataclass(frozen=True, kw_only=True)
class FisherSettings(ImportanceSettings):
    """Diagonal of the Fisher information: the mean over examples of the squared gradient.

    F = 1/n Σ_n (∂ log p(y_n|x_n) / ∂w)², each example's gradient squared before the mean (Sung,
    Nair and Raffel 2021, arXiv 2111.09839, who select 0.5 %).

    Attributes:
        labels: `"true"`: y_n is the example's label (the empirical Fisher); `"model"`: the exact
            expectation over the labels y ~ p(y|x_n) that the model itself gives, for sequence
            classification.
    """

    method: ClassVar[str] = "fisher"

    labels: str = "true"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("labels", self.labels, ("true", "model"))


@dataclass(frozen=True, kw_only=True)
class TaylorSettings(ImportanceSettings):
    """Gradient × weight: 1/n Σ_n |∂L_n/∂w · w|, the loss's change without w to first order.

    After Molchanov et al. (2019, arXiv 1906.10771). The magnitude is taken of each example's
    product, so that examples that pull apart do not cancel.
    """

    method: ClassVar[str] = "taylor"


@dataclass(frozen=True, kw_only=True)
class WandaSettings(ImportanceSettings):
    """Weight × input: |W_oi| · ‖x_i‖₂, the norm over all tokens of all examples.

    After Sun et al. (2024, arXiv 2306.11695), who compare the weights of one output with each
    other: `scope="row"`. No gradient is needed.
    """

    method: ClassVar[str] = "wanda"


#: Method to its settings.
SETTINGS: Mapping[str, type[ImportanceSettings]] = {
    kind.method: kind for kind in (FisherSettings, TaylorSettings, WandaSettings)
}


def extract_by_importance(
    checkpoint: Checkpoint,
    settings: ImportanceSettings,
    data: Iterable[Mapping[str, Any]] | None = None,
) -> Subnetworks:
    """Find the subnetwork of each language by what its examples do in the model.

    The masks are over the weight matrices that training changed, so that they compare with masks by
    magnitude. A weight whose importance is exactly zero is never selected. One model is in memory
    at a time, with one number of 8 bytes per weight.

    Args:
        checkpoint: With a base, updates (or stages) and, unless given, `train.jsonl`.
        settings: Of one of the methods.
        data: Examples, each with its `language`; see `extract`.

    Returns:
        One subnetwork per language and run; with `model="base"` one per language, for the base is
        the same in every run.

    Raises:
        MissingInputError: There is no update, no example of a language, or no tokenizer.
        InputError: An example is a test example or not usable, importance holds NaN (names the
            tensor), or the density selects nothing.
    """
    from subnet.subnetwork._examples import read_examples

    updates = updates_of(checkpoint)
    if settings.model == "base":
        first: dict[str, Update] = {}
        for update in updates:
            first.setdefault(update.language.label, update)
        updates = list(first.values())
    refuse_repeats(updates)
    examples = read_examples(checkpoint, data)
    for update in updates:  # before the long work
        examples.choose(update.language.label, settings.n_examples, settings.seed)
    return Subnetworks(_extract(checkpoint, update, settings, examples) for update in updates)


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


def _extract(
    checkpoint: Checkpoint, update: Update, settings: ImportanceSettings, data: LanguageData
) -> Subnetwork:
    from subnet.subnetwork._examples import make_batches
    from subnet.subnetwork._per_example import find_layers

    language = update.language.label
    model = _model(checkpoint, update, settings)
    _refuse_broken(model, update.source)
    chosen, recorded = data.choose(language, settings.n_examples, settings.seed)
    batches, encoding = make_batches(
        chosen, model, _folders(checkpoint, update), settings.batch_size, data.source
    )
    layers = find_layers(model, update.shapes)
    importance = {
        name: values.cpu().float().numpy()
        for name, values in _importance(model, layers, batches, settings).items()
    }
    shapes = {name: tuple(values.shape) for name, values in importance.items()}
    for name, shape in shapes.items():
        if shape != tuple(update.shapes[name]):
            raise NotComparableError(
                f"{name} has shape {list(shape)} in the model",
                path=update.source,
                expected=f"{list(update.shapes[name])}, as the update has",
            )
    found, wanted = _select(importance, shapes, layers, settings, update.source)
    size = sum(math.prod(shape) for shape in shapes.values())
    if wanted == 0:
        raise InputError(
            f"density {settings.density:g} selects none of the {size} weights of {language}",
            path=update.source,
            fix="take a larger one",
        )
    count = sum(selection.count for selection in found)
    if count == 0:
        raise InputError(
            f"the importance by {settings.method} is zero everywhere for {language}",
            path=update.source,
            expected="weights that its examples use",
            fix="are its labels those that the model was trained for?",
        )
    values: dict[str, Any] = {
        **asdict(settings),
        **recorded,
        **encoding,
        "parameters": "linear",
        "ties": TIES,
        "k": wanted,
        "zeros_left_out": wanted - count,
    }
    if settings.scope == "global":
        values["threshold"] = found[0].threshold
    if layers.left_out:
        values["parameters_left_out"] = list(layers.left_out)
    if hasattr(update, "stage"):
        values["stage"] = update.stage
    return Subnetwork(
        language=language,
        bits={name: bits for selection in found for name, bits in selection.bits.items()},
        shapes=shapes,
        base=update.base,
        run=update.run,
        method=settings.method,
        settings=values,
        seed=settings.seed,
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


def _refuse_broken(model: nn.Module, source: Path) -> None:
    """Name the weight at fault; in the importance its NaN is everywhere."""
    for name, parameter in model.named_parameters():
        n_bad = int((~parameter.isfinite()).sum())
        if n_bad:
            raise InputError(
                f"{name} of the model holds {n_bad} values that are NaN or infinite",
                path=source,
                expected="finite weights",
                fix="take a checkpoint from before training diverged",
            )


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


def _model(checkpoint: Checkpoint, update: Update, settings: ImportanceSettings) -> nn.Module:
    from subnet.model import load_model

    if settings.model == "base":
        return load_model(checkpoint, run=update.run)
    stage = getattr(update, "stage", None)
    if stage is not None:
        return load_model(checkpoint, stage=stage, run=update.run, merge=True)
    return load_model(checkpoint, language=update.language.label, run=update.run, merge=True)


def _folders(checkpoint: Checkpoint, update: Update) -> list[Path]:
    """Where the tokenizer may be: the base first, that of the update's run before others."""
    bases = [entry for entry in checkpoint.entries if entry.kind == "base"]
    bases.sort(key=lambda entry: entry.run != update.run)
    return [*(entry.path for entry in bases), update.source]
