"""Subnetworks by magnitude: the weights that training changed most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from subnet.errors import MissingInputError, NotComparableError
from subnet.subnetwork._selected import subnetwork_of_weights
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection, top_k
from subnet.subnetwork.settings import MagnitudeSettings
from subnet.subnetwork.sources import refuse_repeats, updates_of

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint, Update


def extract_by_magnitude(
    source: Checkpoint | Update | Iterable[Update], settings: MagnitudeSettings
) -> Subnetworks:
    """The weights of largest |ΔW|, with the signs of ΔW; see `extract` and `MagnitudeSettings`.

    ΔW is formed for one parameter at a time, three times over. Memory is the packed bits and, of
    LoRA, the largest ΔW; of fine-tuned weights, a block of rows.
    """
    updates = updates_of(source)
    refuse_repeats(updates)
    return Subnetworks(_by_magnitude(update, settings) for update in updates)


def _by_magnitude(update: Update, settings: MagnitudeSettings) -> Subnetwork:
    shapes, left_out = _parameters(update, settings.parameters)
    if settings.scope == "global":
        wanted = round(settings.density * sum(map(math.prod, shapes.values())))
        found = [_select(update, shapes, wanted)]
    else:
        ks = {name: round(settings.density * math.prod(shape)) for name, shape in shapes.items()}
        wanted = sum(ks.values())
        found = [_select(update, {name: shapes[name]}, ks[name]) for name in shapes]
    language = update.language.label
    recorded = {"update": update.kind}
    if hasattr(update, "stage"):
        recorded["stage"] = update.stage
    return subnetwork_of_weights(
        found,
        shapes,
        wanted,
        settings,
        language=language,
        run=update.run,
        base=update.base,
        source=update.source,
        zero=(
            f"the update of {language} is zero everywhere",
            "was the adapter saved before training?",
        ),
        signed=True,
        left_out=left_out,
        recorded=recorded,
    )


def _select(update: Update, shapes: Mapping[str, tuple[int, ...]], k: int) -> Selection:
    return top_k(update.blocks, shapes, k, skip_zeros=True, source=update.source)


def _parameters(update: Update, which: str) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """(name to shape, what was trained but has no counterpart in the base to differ from)."""
    shapes = {name: tuple(update.shapes[name]) for name in sorted(update.shapes)}
    left_out: list[str] = []
    if which == "all":
        for name in update.apart:
            try:
                shapes[name] = tuple(update.dense(name).shape)
            except (MissingInputError, NotComparableError):
                left_out.append(name)
    return dict(sorted(shapes.items())), sorted(left_out)
