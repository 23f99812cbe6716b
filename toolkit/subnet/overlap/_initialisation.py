"""Adapters that started from the same random numbers look as if they shared something.

LoRA's A starts random and moves little. Adapters trained from one seed therefore agree in their
right subspaces, and in where |ΔW| is large, whatever they learnt. Row by row their A still resemble
each other, which two independent initialisations never do: not even adapters that learn the same
thing end up with the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from subnet.overlap._inputs import Entries

#: Cosine of A, mean over modules, from which two adapters count as started alike.
ALIKE = 0.3
# ... and how many standard deviations of that mean for independent random A it must exceed.
_DEVIATIONS = 6.0


def shared_initialisation(
    entries: Entries, alike: Sequence[tuple[NDArray[np.float64], int]]
) -> tuple[str, ...]:
    """One warning per group of adapters whose A are near-identical; none for their own seeds.

    Args:
        entries: The updates.
        alike: Per module, the cosines of A row for row, [l, l], and how many numbers they compare.
    """
    if entries.source == "steps":
        return _continued(entries)
    if not alike:
        return ()
    mean = np.mean([cosine for cosine, _ in alike], axis=0)
    # the cosine of n independent numbers has variance 1/n
    deviation = np.sqrt(sum(1 / size for _, size in alike)) / len(alike)
    threshold = max(ALIKE, _DEVIATIONS * deviation)
    started_alike: nx.Graph[int] = nx.Graph()
    for a, b in np.argwhere(np.triu(mean > threshold, 1)).tolist():
        started_alike.add_edge(a, b)
    return tuple(
        _warning(entries, sorted(members), mean)
        for members in nx.connected_components(started_alike)
    )


def _warning(entries: Entries, members: Sequence[int], cosines: NDArray[np.float64]) -> str:
    one_run = len({entries.items[n].run for n in members}) == 1
    names = ", ".join(
        entries.labels[n] if one_run else f"{entries.labels[n]} (run {entries.items[n].run})"
        for n in members
    )
    typical = float(np.median([cosines[a, b] for a, b in combinations(members, 2)]))
    return (
        f"{names} started from the same LoRA initialisation (cosine of their A {typical:.2f}): "
        "right subspaces, cosine and masks look shared by construction; read subspace_similarity "
        "(left), and give each adapter a seed of its own"
    )


def _continued(entries: Entries) -> tuple[str, ...]:
    """Steps of one run carry one adapter on."""
    runs = [item.run for item in entries.items if item.is_low_rank]
    if len(set(runs)) == len(runs):
        return ()
    warning = (
        "the steps of a run continue one LoRA, whose A moves little: their right subspaces look "
        "shared by construction; read subspace_similarity (left)"
    )
    return (warning,)
