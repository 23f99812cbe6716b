"""What is said of adapters that started alike, which `subnet.checkpoint.starts` finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from subnet.checkpoint.starts import SharedStarts
from subnet.overlap._inputs import Entries


class Beginnings:
    """Compares the A of all adapters, module by module; of the steps of a run that of the first.

    The later ones carry it on (`_steps`).
    """

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        first: dict[str, int] = {}
        places = []
        for at, item in enumerate(entries.items):
            if not hasattr(item, "stage"):
                places.append(at)
            elif item.run not in first or item.stage < entries.items[first[item.run]].stage:
                first[item.run] = at
        self._places = sorted([*places, *first.values()])
        self._starts = SharedStarts()

    def add(self, cosines: NDArray[np.float64], size: int) -> None:
        """Take a module's cosines of A row for row, [l, l], each of `size` numbers."""
        self._starts.add(cosines[np.ix_(self._places, self._places)], size)

    def warnings(self) -> tuple[str, ...]:
        """One per group of adapters that started alike, if any two of them are compared."""
        pairs = list(
            zip(self._entries.pairs.a.tolist(), self._entries.pairs.b.tolist(), strict=True)
        )
        found = []
        for numbers, cosine in self._starts.groups():
            members = [self._places[number] for number in numbers]
            if any(a in members and b in members for a, b in pairs):
                found.append(_warning(self._entries, members, cosine))
        return tuple(found)


def _warning(entries: Entries, members: Sequence[int], cosine: float) -> str:
    one_run = len({entries.items[n].run for n in members}) == 1
    names = ", ".join(
        entries.labels[n] if one_run else f"{entries.labels[n]} (run {entries.items[n].run})"
        for n in members
    )
    return (
        f"{names} started from the same LoRA initialisation (cosine of their A {cosine:.2f}): "
        "right subspaces, cosine and masks look shared by construction; read subspace_similarity "
        "(left), and give each adapter a seed of its own"
    )
