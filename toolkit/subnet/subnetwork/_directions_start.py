"""LoRA adapters that started from the same random A have their inputs' directions in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from subnet.checkpoint import Update

#: Cosine of A, row by row, mean over modules, from which two adapters count as started alike.
ALIKE = 0.3
# ... and how many standard deviations of that mean for independent random A it must exceed.
_DEVIATIONS = 6.0


class Starts:
    """Compares the A of all low-rank updates of a run, module by module."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._updates = [update for update in updates if update.is_low_rank]
        self._cosines: list[NDArray[np.float64]] = []
        self._sizes: list[int] = []

    def add(self, parameter: str) -> None:
        """Read one module's A of every adapter."""
        factors = [
            np.asarray(update.first_factor(parameter).detach().float().numpy(), dtype=np.float64)
            for update in self._updates
        ]
        if len(factors) < 2:
            return
        rows = min(len(factor) for factor in factors)
        flat = np.stack([factor[:rows].ravel() for factor in factors])
        norm = np.linalg.norm(flat, axis=1, keepdims=True)
        flat = np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
        self._cosines.append(flat @ flat.T)
        self._sizes.append(flat.shape[1])

    def warnings(self) -> list[str]:
        """One per group of adapters whose A are near-identical."""
        from scipy.sparse.csgraph import connected_components

        if not self._cosines:
            return []
        mean = np.mean(self._cosines, axis=0)
        # the cosine of n independent numbers has variance 1/n
        deviation = np.sqrt(np.sum(1 / np.array(self._sizes))) / len(self._sizes)
        alike = mean > max(ALIKE, _DEVIATIONS * deviation)
        _, group = connected_components(alike, directed=False)
        groups = [np.flatnonzero(group == number) for number in np.unique(group)]
        return [self._warning(members, mean) for members in groups if members.size > 1]

    def _warning(self, members: NDArray[np.int64], cosines: NDArray[np.float64]) -> str:
        labels = ", ".join(self._updates[n].language.label for n in members)
        pairs = cosines[np.ix_(members, members)][np.triu_indices(members.size, 1)]
        return (
            f"{labels} started from the same LoRA initialisation (cosine of their A "
            f"{np.median(pairs):.2f}): their right directions are shared by construction; take "
            "side='left', or give each adapter a seed of its own"
        )
