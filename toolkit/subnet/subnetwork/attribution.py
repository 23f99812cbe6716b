"""Attention heads and FFN neurons to which captum attributes a language's loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import Attention, FeedForward, Units, evaluation_mode, find_units
from subnet.model._names import base_modules
from subnet.model.per_example import frozen
from subnet.subnetwork._captum import QUADRATURE, attribute_layers
from subnet.subnetwork._scores import labelled
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.settings import AttributionSettings
from subnet.subnetwork.sources import LanguageModel, Progress, language_models
from subnet.subnetwork.units import subnetwork_of_units

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint
    from subnet.inputs import Half


def extract_by_attribution(
    checkpoint: Checkpoint,
    settings: AttributionSettings,
    data: Iterable[Mapping[str, Any]] | Half | None = None,
    *,
    progress: Progress | None = None,
) -> Subnetworks:
    """Find the heads or neurons of each language to which captum attributes most of its loss.

    k = round(density · N) units, half to even; of equal units the earlier in the order of the
    model's modules. A unit whose importance is exactly zero is never selected.

    Args:
        checkpoint: With a base, updates (or stages) and, unless given, `train.jsonl`.
        settings: Of the method.
        data: Examples, each with its `language`; see `extract`.
        progress: See `extract`.

    Returns:
        One mask of heads or neurons per language and run; with `model="base"` one per language.

    Raises:
        MissingInputError: There is no update, no example of a language, or no tokenizer.
        InputError: An example is a test example or not usable, importance is not finite or zero
            everywhere, or the density selects nothing.
    """
    members = language_models(checkpoint, settings, data, progress=progress)
    return Subnetworks(_extract(member, settings) for member in members)


def unit_attributions(
    model: nn.Module,
    units: Units,
    batch: Mapping[str, Any],
    settings: AttributionSettings | None = None,
) -> Tensor:
    """Attribution of each example's loss to every head or neuron, by captum's layer methods.

    What is attributed is the loss of the true label, in nats per example (`example_losses`), to
    what the unit gives to its block's output (or down) projection: the sum over tokens and, of a
    head, over its width. With signs: a positive number means that the unit raises the loss.

    - Gradient × activation (`LayerGradientXActivation`): Σ y · ∂L/∂y, which equals ∂L/∂ξ of the
      unit's gate at 1. One forward and one backward pass for all units together.
    - Conductance (`LayerConductance`): Σ ∫ ∂L/∂y dy, the embeddings on a straight path from the
      baseline; of an encoder-decoder the embeddings of both sides. Where all that reaches the loss
      passes through a block (residual streams do not), its units sum up to L − L(baseline).
      `n_steps` + 1 forward and backward passes per block, and one more for each further portion of
      `internal_batch_size`.
    - Integrated gradients (`LayerIntegratedGradients`): Σ (y − y₀) · ∫ ∂L/∂y, the block's own
      outputs y on a straight path from those at the baseline, y₀. Units of a block sum up to L less
      the loss with y₀ in their place (with few steps and sharp bends not quite). `n_steps` forward
      and backward passes and two forward passes per block.

    The model is put into `eval()` mode meanwhile, no parameter takes a gradient, and both are left
    as they were.

    Args:
        model: A model for one of the tasks of `find_task`.
        units: Its units.
        batch: Model inputs with `labels`; padding changes nothing.
        settings: Which units and which attribution; density, scope and what concerns data are not
            used.

    Returns:
        [n, n_heads] or [n, n_neurons]: 0 in the rows of examples without a label.

    Raises:
        InputError: The batch is not usable, the model works on the tokens of all examples together
            or calls a projection several times, or there is no padding token where one is needed.

    Example:
        >>> settings = AttributionSettings(units="neuron", attribution="conductance")
        >>> unit_attributions(model, units, batch, settings)  # doctest: +SKIP
    """
    settings = settings or AttributionSettings()
    modules = base_modules(model)
    blocks = _projections(units, settings)
    layers = {name: modules[name] for name in blocks}
    with evaluation_mode(model), frozen(model), torch.enable_grad():
        found = attribute_layers(model, layers, batch, settings)
    n = len(batch["labels"])
    parts = []
    for name, block in blocks.items():
        values = found[name]
        if values.ndim != 3 or len(values) != n:
            raise InputError(
                f"{name} sees the tokens of all examples together, as {list(values.shape)}",
                expected=f"[{n}, tokens, width]",
            )
        if isinstance(block, Attention):
            values = values.reshape(n, -1, block.n_heads, block.head_dim).sum(dim=-1)
        parts.append(values.sum(dim=1))
    return torch.cat(parts, dim=-1)


def unit_importance(
    model: nn.Module,
    units: Units,
    batches: Iterable[Mapping[str, Any]],
    settings: AttributionSettings | None = None,
) -> Tensor:
    """Mean over the examples of the magnitude of each one's attribution to every unit.

    Args:
        model: As of `unit_attributions`.
        units: Its units.
        batches: Model inputs with `labels`; examples without a label do not count.
        settings: As of `unit_attributions`.

    Returns:
        [n_heads] or [n_neurons] float64.

    Raises:
        InputError: As `unit_attributions`; or no example has a label, or importance is not finite.
    """
    settings = settings or AttributionSettings()
    n_units = units.n_heads if settings.units == "head" else units.n_neurons
    total = torch.zeros(n_units, dtype=torch.float64)
    n_examples = 0
    for batch in batches:
        total += unit_attributions(model, units, batch, settings).double().abs().sum(dim=0).cpu()
        n_examples += int(labelled(model, batch).sum())
    if n_examples == 0:
        raise InputError("no example has a label", expected="examples with a loss")
    n_bad = int((~total.isfinite()).sum())
    if n_bad:
        raise InputError(
            f"the importance of {n_bad} of {n_units} {settings.units}s is NaN or infinite",
            expected="finite gradients",
        )
    return total / n_examples


def _projections(units: Units, settings: AttributionSettings) -> dict[str, Attention | FeedForward]:
    """Name of the projection that the units go into, to their block."""
    if settings.units == "head":
        return {block.output.module: block for block in units.attentions}
    return {block.down.module: block for block in units.feed_forwards}


def _select(
    importance: Tensor, units: Units, settings: AttributionSettings, language: str, source: Path
) -> tuple[Tensor, int]:
    """The selected units, and how many there should be."""
    parts = [importance]
    if settings.scope == "layer":
        split = units.split_heads if settings.units == "head" else units.split_neurons
        parts = [part for _, part in split(importance)]
    ks = [round(settings.density * len(part)) for part in parts]
    if sum(ks) == 0:
        raise InputError(
            f"density {settings.density:g} selects none of the {len(importance)} "
            f"{settings.units}s of {language}",
            path=source,
            fix="take a larger one",
        )
    selected = []
    for part, k in zip(parts, ks, strict=True):
        chosen = torch.zeros(len(part), dtype=torch.bool)
        chosen[torch.argsort(-part, stable=True)[:k]] = True
        selected.append(chosen & (part > 0))
    mask = torch.cat(selected)
    if not mask.any():
        raise InputError(
            f"the attribution to every {settings.units} is zero for {language}",
            path=source,
            expected="some that differ from zero",
            fix="are its labels those that the model was trained for?",
        )
    return mask, sum(ks)


def _extract(member: LanguageModel, settings: AttributionSettings) -> Subnetwork:
    units = find_units(member.model)
    importance = unit_importance(member.model, units, member.batches, settings)
    mask, wanted = _select(importance, units, settings, member.language, member.source)
    return subnetwork_of_units(
        mask.numpy(),
        units,
        settings.units,
        language=member.language,
        run=member.run,
        base=member.base,
        method=settings.method,
        seed=settings.seed,
        settings={
            **_recorded(settings, member),
            "k": wanted,
            "zeros_left_out": wanted - int(mask.sum()),
            "threshold": float(importance[mask].min()),
        },
    )


def _recorded(settings: AttributionSettings, member: LanguageModel) -> dict[str, Any]:
    from importlib.metadata import version

    values = asdict(settings)
    if settings.attribution in QUADRATURE:
        values["quadrature"] = QUADRATURE[settings.attribution]
        both = getattr(member.model.config, "is_encoder_decoder", False)
        values["interpolated"] = f"embeddings of the {'encoder and decoder' if both else 'input'}"
    else:
        for unused in ("baseline", "n_steps", "internal_batch_size"):
            del values[unused]
    return {
        **values,
        **member.recorded,
        "attributed": "loss of the true label, per example",
        "captum": version("captum"),
        "ties": "the earlier unit in the order of the model's modules",
    }
