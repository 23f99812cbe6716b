"""What the measures of updates have in common: numbers per pair and module, summed over groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.overlap._inputs import Entries
from subnet.overlap._levels import Levels
from subnet.overlap._modules import Module
from subnet.overlap._rows import Measured, reasons

Array = NDArray[np.float64]

#: Why there is no test where chance cannot vary.
ONE_VALUE = "the null model allows one value only"


class Collector:
    """Gathers numbers per pair and module, [p] each, and sums them over groups at the end."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.a, self.b = entries.pairs.a, entries.pairs.b
        self.columns: dict[str, list[Array]] = {}

    def add(self, module: Module, shape: tuple[int, int]) -> None:
        raise NotImplementedError

    def measured(self, name: str, levels: Levels) -> list[Measured]:
        """One entry per null model."""
        raise NotImplementedError

    def keep(self, **values: Any) -> None:
        """Append one module's numbers, each [p]."""
        for name, value in values.items():
            column = np.broadcast_to(np.asarray(value, dtype=np.float64), self.a.shape)
            self.columns.setdefault(name, []).append(column)

    def totals(self, levels: Levels) -> dict[str, Array]:
        """Sums over each group, [p, g]."""
        return {
            name: levels.total(np.stack(columns, axis=-1)) for name, columns in self.columns.items()
        }

    def reasons(self, shape: tuple[int, ...], k_a: Array, k_b: Array) -> NDArray[np.object_]:
        """Which of the two updates is zero here."""
        labels = np.array(self.entries.labels, dtype=object)
        return reasons(
            shape,
            (k_a == 0, "the update of " + labels[self.a][:, None] + " is zero here"),
            (k_b == 0, "the update of " + labels[self.b][:, None] + " is zero here"),
        )
