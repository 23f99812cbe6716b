"""At which levels an overlap is reported: whole model, layer, type of module, module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.checkpoint import describe_parameter
from subnet.errors import InputError
from subnet.overlap._names import LEVELS


@dataclass(frozen=True)
class Levels:
    """The groups of parameters over which overlap is summed.

    Attributes:
        level: [g], one of `LEVELS`.
        module: [g], name of the layer, type or module; `""` for the whole model.
        members: [g, m], 1 where parameter m belongs to group g.
    """

    level: tuple[str, ...]
    module: tuple[str, ...]
    members: NDArray[np.float64]

    def total(self, per_parameter: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over the parameters of each group: [..., m] to [..., g]."""
        return np.asarray(per_parameter, dtype=np.float64) @ self.members.T


def group_parameters(parameters: Sequence[str], levels: Sequence[str]) -> Levels:
    """Groups at the levels asked for, in the order of the parameters.

    A parameter outside the repeated layers (an embedding) belongs to no layer.

    Raises:
        InputError: A level has an unknown name.
    """
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise InputError(
            f"level {unknown[0]!r} is unknown" if unknown else "no level was asked for",
            expected=f"some of {', '.join(LEVELS)}",
        )
    places = [describe_parameter(name) for name in parameters]
    groups: dict[tuple[str, str], list[int]] = {}
    for level in LEVELS:
        if level not in levels:
            continue
        for m, place in enumerate(places):
            name = "" if level == "all" else str(getattr(place, level))
            if name or level == "all":
                groups.setdefault((level, name), []).append(m)
    members = np.zeros((len(groups), len(places)))
    for g, indices in enumerate(groups.values()):
        members[g, indices] = 1.0
    return Levels(
        level=tuple(level for level, _ in groups),
        module=tuple(name for _, name in groups),
        members=members,
    )
