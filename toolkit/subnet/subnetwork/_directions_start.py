"""LoRA adapters that started from the same random A have their inputs' directions in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subnet.checkpoint.starts import SharedStarts, row_cosines

if TYPE_CHECKING:
    from subnet.checkpoint import Update


class Starts:
    """Compares the A of all low-rank updates of a run, module by module."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._updates = [update for update in updates if update.is_low_rank]
        self._starts = SharedStarts()

    def add(self, parameter: str) -> None:
        """Read one module's A of every adapter."""
        factors = [
            np.asarray(update.first_factor(parameter).detach().float().numpy(), dtype=np.float64)
            for update in self._updates
        ]
        if len(factors) < 2:
            return
        ranks, width = [len(factor) for factor in factors], factors[0].shape[1]
        rows = np.zeros((len(factors), max(ranks), width))
        for row, factor in zip(rows, factors, strict=True):
            row[: len(factor)] = factor
        flat = rows.reshape(-1, width)
        products = (flat @ flat.T).reshape(2 * rows.shape[:2])
        self._starts.add(row_cosines(products), width * min(ranks))

    def warnings(self) -> list[str]:
        """One per group of adapters whose A are near-identical."""
        return [
            f"{', '.join(self._updates[n].language.label for n in members)} started from the same "
            f"LoRA initialisation (cosine of their A {cosine:.2f}): their right directions are "
            "shared by construction; take side='left', or give each adapter a seed of its own"
            for members, cosine in self._starts.groups()
        ]
