"""From selected weights to a subnetwork: what every method records alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from subnet.errors import InputError
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection
from subnet.subnetwork.settings import MethodSettings

#: How the order among equal values is settled, as written into every mask.
TIES = "parameter name (sorted), then row-major index"


def subnetwork_of_weights(
    found: Sequence[Selection],
    shapes: Mapping[str, tuple[int, ...]],
    wanted: int,
    settings: MethodSettings,
    *,
    language: str,
    run: str,
    base: str,
    source: Path,
    zero: tuple[str, str],
    signed: bool = False,
    left_out: Sequence[str] = (),
    recorded: Mapping[str, Any],
) -> Subnetwork:
    """The subnetwork of the weights that were selected.

    Args:
        found: One selection over all parameters, or one of each.
        shapes: Parameter name to shape.
        wanted: How many weights were to be selected; `zeros_left_out` says how many are missing
            because the others are exactly zero.
        settings: Of the method.
        language: Of the mask.
        run: Of the mask.
        base: Of the mask.
        source: For error messages.
        zero: What is said where every value is zero, and what to do then.
        signed: Whether the values have signs, which are kept.
        left_out: Parameters that were asked for and cannot be ranked.
        recorded: Further settings.

    Raises:
        InputError: No weight was selected.
    """
    size = sum(math.prod(shape) for shape in shapes.values())
    if wanted == 0:
        density = getattr(settings, "density", 0.0)
        raise InputError(
            f"density {density:g} selects none of the {size} weights of {language}",
            path=source,
            fix="take a larger one",
        )
    count = sum(selection.count for selection in found)
    if count == 0:
        raise InputError(zero[0], path=source, expected="some that differ from zero", fix=zero[1])
    values: dict[str, Any] = {
        **asdict(settings),
        **recorded,
        "ties": TIES,
        "k": wanted,
        "zeros_left_out": wanted - count,
    }
    if len(found) == 1:
        values["threshold"] = found[0].threshold
    if left_out:
        values["parameters_left_out"] = list(left_out)
    return Subnetwork(
        language=language,
        bits={name: bits for selection in found for name, bits in selection.bits.items()},
        shapes=shapes,
        base=base,
        run=run,
        signs={name: bits for selection in found for name, bits in selection.signs.items()}
        if signed
        else None,
        method=settings.method,
        settings=values,
        seed=getattr(settings, "seed", None),
    )
