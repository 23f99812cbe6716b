"""Masks beside a checkpoint's probes: its own or a directory's, by run and language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subnet.checkpoint import open_checkpoint
from subnet.errors import MissingInputError
from subnet.subnetwork import Subnetwork, load_subnetworks

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint
    from subnet_probes._checkpoint_models import Point
    from subnet_probes._checkpoint_tables import Tables
    from subnet_probes.checkpoint_probing_settings import CheckpointProbingSettings

_FIND = (
    "subnet extract --method attribution --set units=neuron writes some, and "
    "--subnetwork takes them"
)


def find_masks(
    checkpoint: Checkpoint,
    settings: CheckpointProbingSettings,
    points: Sequence[Point],
    tables: Tables,
) -> Mapping[str, Mapping[str, Subnetwork]]:
    """Run to language to mask; empty where none is wanted or there is none, which is noted.

    Raises:
        MissingInputError: The directory that is named, or the checkpoint whose masks are asked for,
            holds none.
        FileFormatError: A mask is damaged.
    """
    asked, units = settings.subnetwork, settings.wants("units")
    if not (asked or units):
        return {}
    elsewhere = not isinstance(asked, bool)
    source = checkpoint if isinstance(asked, bool) else open_checkpoint(Path(asked))
    if not source.holds("mask"):
        if asked:
            raise MissingInputError(
                "holds no masks", path=source.path, expected="masks/<language>.safetensors",
                fix="write them with subnet extract",
            )  # fmt: skip
        tables.miss("units", "there are no masks of neurons or heads", _FIND)
        return {}
    members = load_subnetworks(source)
    kinds = sorted({member.granularity for member in members})
    if units and not {"neuron", "head"} & set(kinds):
        found = f"the masks are of {' and '.join(kinds)}s, and ranked are neurons and heads"
        tables.miss("units", found, _FIND)
    masks: dict[str, dict[str, Subnetwork]] = {}
    for member in members:
        # Masks of one run, in a directory of their own, are of the first run here.
        run = points[0].run if elsewhere and len(members.runs) == 1 else member.run
        masks.setdefault(run, {})[member.language] = member
    return masks


def own_model(points: Sequence[Point], run: str, language: str) -> Point | None:
    """The model that is a language's own: after its last stage, else its adapter, else the base."""
    mine = [point for point in points if point.run == run]
    own = [point for point in mine if point.trained == language]
    stages = [point for point in own if point.model == "stage"]
    return next(iter([*stages[::-1], *own, *mine]), None)
