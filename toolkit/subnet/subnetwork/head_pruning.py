"""Attention heads that a language needs: what is left after pruning on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from subnet.model import Units, find_units
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.pruning import prune_heads
from subnet.subnetwork.settings import HeadPruningSettings
from subnet.subnetwork.sources import LanguageModel, Progress, language_models
from subnet.subnetwork.units import subnetwork_of_units, unit_parameters

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint
    from subnet.inputs import Half


def extract_by_head_pruning(
    checkpoint: Checkpoint,
    settings: HeadPruningSettings,
    data: Iterable[Mapping[str, Any]] | Half | None = None,
    *,
    progress: Progress | None = None,
) -> Subnetworks:
    """Find the attention heads that each language needs.

    Held-out examples are asked for: `validation.jsonl`, or `data` that training did not see. Where
    there is only `train.jsonl` it is taken, and `settings["held_out"]` of the masks is False (of
    given data it is None: only the caller knows). Test examples are refused. Every mask records the
    raw importance of every head and the curve of density and score.

    Args:
        checkpoint: With a base, updates (or stages) and, unless given, examples.
        settings: Of the method.
        data: Examples, each with its `language`; see `extract`.
        progress: See `extract`.

    Returns:
        One mask of heads per language and run; with `model="base"` one per language.

    Raises:
        MissingInputError: There is no update, no example of a language, or no tokenizer.
        InputError: An example is a test example or not usable, the model gets no example right, or
            the density leaves no head.
    """
    members = language_models(
        checkpoint, settings, data, splits=("validation", "train"), progress=progress
    )
    return Subnetworks(_extract(member, settings) for member in members)


def _extract(member: LanguageModel, settings: HeadPruningSettings) -> Subnetwork:
    units = find_units(member.model)
    found = prune_heads(member.model, units, member.batches, settings)
    split = str(member.recorded["data"]).partition(".")[0]
    return subnetwork_of_units(
        found.mask.numpy(),
        units,
        "head",
        language=member.language,
        run=member.run,
        base=member.base,
        method=settings.method,
        seed=settings.seed,
        settings={
            **asdict(settings),
            **member.recorded,
            "held_out": {"validation": True, "train": False}.get(split),
            "measure": found.measure,
            "stopped": found.stopped,
            "reason": found.reason,
            "n_importance": found.n_importance,
            "n_score": found.n_score,
            "disjoint": found.disjoint,
            "ties": "of equal importance the later head in the order of the units goes first",
            "history": {
                "density": [round(entry.density, 6) for entry in found.history],
                "score": [round(entry.score, 6) for entry in found.history],
                "loss": [round(entry.loss, 6) for entry in found.history],
            },
            "importance": _by_layer(found.importance, units),
        },
    )


def _by_layer(importance: Tensor, units: Units) -> dict[str, list[float]]:
    """Name of each entry of the mask to its heads' numbers, six digits of each."""
    parts = [part for _, part in units.split_heads(importance)]
    names = unit_parameters(units, "head")
    return {
        name: [float(f"{value:.6g}") for value in part.tolist()]
        for name, part in zip(names, parts, strict=True)
    }
