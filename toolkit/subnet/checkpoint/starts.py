"""Adapters that started from the same random numbers look as if they shared something.

LoRA's A starts random and moves little. Adapters trained from one seed therefore agree in their
right subspaces, and in where |ΔW| is large, whatever they learnt. Row by row their A still resemble
each other, which two independent initialisations never do: not even adapters that learn the same
thing end up with the same rows in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Cosine of A, mean over modules, from which two adapters count as started alike.
ALIKE = 0.3
# ... and how many standard deviations of that mean for independent random A it must exceed.
_DEVIATIONS = 6.0


class SharedStarts:
    """Finds the adapters with near-identical A, from one module after the other."""

    def __init__(self) -> None:
        self._cosines: list[Array] = []
        self._sizes: list[int] = []

    def add(self, cosines: Array, size: int) -> None:
        """Take a module's cosines of A row for row, [l, l], each of `size` numbers."""
        self._cosines.append(cosines)
        self._sizes.append(size)

    def groups(self) -> list[tuple[list[int], float]]:
        """Groups of adapters that started alike, each with its median cosine of A."""
        from scipy.sparse.csgraph import connected_components

        if not self._cosines:
            return []
        mean = np.mean(self._cosines, axis=0)
        # the cosine of n independent numbers has variance 1/n
        deviation = np.sqrt(np.sum(1 / np.array(self._sizes))) / len(self._sizes)
        alike = mean > max(ALIKE, _DEVIATIONS * deviation)
        _, group = connected_components(alike, directed=False)
        found = []
        for number in np.unique(group):
            members = np.flatnonzero(group == number)
            if members.size > 1:
                pairs = mean[np.ix_(members, members)][np.triu_indices(members.size, 1)]
                found.append((members.tolist(), float(np.median(pairs))))
        return found


def row_cosines(products: Array) -> Array:
    """Cosine of every two factors A compared row for row, over the rows that both have.

    Args:
        products: [l, r, l, r], products of all rows of all factors; zero beyond a factor's rows.

    Returns:
        [l, l].
    """
    squares = np.einsum("akak->ak", products)
    has = (squares > 0).astype(np.float64)
    across = np.einsum("akbk->ab", products)
    norm = np.sqrt((squares @ has.T) * (has @ squares.T))
    return np.asarray(np.divide(across, norm, out=np.zeros_like(norm), where=norm > 0))
