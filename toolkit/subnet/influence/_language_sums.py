"""Gradients summed over groups of examples, whole or for some modules at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subnet.errors import InputError
from subnet.influence import _processes
from subnet.influence._examples import Examples
from subnet.influence.collecting import Blocks, Collected
from subnet.influence.engine import Engine, naming
from subnet.influence.methods import GradientMethod, normalise, refuse_zero
from subnet.influence.scoring import Source, from_store
from subnet.influence.tracking import Tracked


@dataclass(frozen=True, eq=False)
class Summing:
    """Sums what a method multiplies over groups of examples, in all processes together.

    Attributes:
        engine: The engine.
        method: The method.
        part: Names of the blocks that are summed; None for all.
    """

    engine: Engine
    method: GradientMethod
    part: frozenset[str] | None

    def __call__(
        self,
        examples: Examples,
        groups: Sequence[Sequence[int]],
        change: Callable[[Blocks], Blocks],
        share: NDArray[np.float64] | None = None,
        source: Source | None = None,
        *,
        whole: bool = False,
    ) -> Blocks:
        """Block to [groups, …]; `whole`: what changes gradients wants all at once."""
        order = [number for members in groups for number in members]
        own = _processes.own_batches(order, self.engine.batch_size)
        group_of = {number: g for g, members in enumerate(groups) for number in members}
        total: Blocks = {}
        by_sums = source is None and (self.engine.projection is None or whole)
        if by_sums:
            found = self._from_sums(examples, own, group_of, share)
        else:
            found = self._from_examples(examples, own, group_of, change, share, source)
        for group, blocks in found:
            for name, block in blocks.items():
                if name not in total:
                    total[name] = block.new_zeros((len(groups), *block.shape))
                total[name][group] += block
        total = _processes.summed_blocks(total, self.engine.device)
        if by_sums:
            # A projection is linear as the change is: that of a sum is the sum of theirs.
            return self.engine.projected(change(self.engine.restricted(total)))
        return total

    def _from_sums(
        self,
        examples: Examples,
        own: Sequence[int],
        group_of: Mapping[int, int],
        share: NDArray[np.float64] | None,
    ) -> Iterator[tuple[int, Blocks]]:
        """(group, sum over its examples in a batch), without the gradients of each."""
        tracked = self._tracked()
        for numbers, _, found in self.engine.collected(examples, own):
            scale = _scale(self.engine, self.method, examples, numbers, found, share)
            of = [group_of[number] for number in numbers]
            cuts = [i for i in range(len(of)) if i == 0 or of[i] != of[i - 1]]
            slices = [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(of)], strict=True)]
            for rows in slices:
                (blocks,) = replace(found, tracked=tracked).group_sums([rows], scale)
                yield of[rows.start], blocks

    def _from_examples(
        self,
        examples: Examples,
        own: Sequence[int],
        group_of: Mapping[int, int],
        change: Callable[[Blocks], Blocks],
        share: NDArray[np.float64] | None,
        source: Source | None,
    ) -> Iterator[tuple[int, Blocks]]:
        """(group, its examples in a batch, summed), from gradients of each."""
        if source is not None:
            batches = from_store(source, self.method, examples, change, list(group_of))
        else:
            batches = self.engine.ready(examples, own, change)
        for numbers, blocks in batches:
            made = blocks
            if source is None and self.method.normalised:
                with naming(examples, numbers):
                    made = normalise(blocks)
            of = np.array([group_of[number] for number in numbers])
            for group in np.unique(of):
                inside = torch.from_numpy(np.flatnonzero(of == group))
                weights = None
                if share is not None and self.method.pooling == "mean":
                    weights = torch.from_numpy(share[np.array(numbers)[inside.numpy()]])
                yield (
                    int(group),
                    {
                        name: _weighted_sum(block[inside.to(block.device)], weights)
                        for name, block in made.items()
                        if self.part is None or name in self.part
                    },
                )

    def _tracked(self) -> Tracked:
        """The tracked modules of this part."""
        tracked = self.engine.tracked
        if self.part is None:
            return tracked
        shapes = {name: shape for name, shape in tracked.shapes.items() if name in self.part}
        modules = tuple(m for m in tracked if not self.part.isdisjoint(m.parameters))
        return Tracked(modules, shapes)


def _weighted_sum(block: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return block.sum(dim=0)
    total: Tensor = torch.tensordot(weights.to(block), block, dims=1)
    return total


def parts_of(
    engine: Engine, method: GradientMethod, n_groups: int, beside: int, *, whole: bool = False
) -> list[frozenset[str]] | list[None]:
    """Blocks that are summed in one pass: as many as memory holds the sums of all groups of.

    Raises:
        InputError: Memory does not hold those of one block, or the method needs all at once.
    """
    if engine.memory is None:
        return [None]
    rows = n_groups + beside + 1  # the test languages', one training language's, one batch's
    shapes = engine.tracked.shapes if whole else engine.shapes
    sizes = {name: rows * math.prod(shape) * engine.n_bytes for name, shape in shapes.items()}
    if sum(sizes.values()) <= engine.memory:
        return [None]
    if not method.plain:
        raise InputError(
            f"memory is {engine.memory:,} bytes, and the method {method.name!r} needs all "
            "parameters at once",
            expected=f"{sum(sizes.values()):,} for {n_groups} blocks of test examples",
        )
    widest = max(sizes, key=lambda name: sizes[name])
    if sizes[widest] > engine.memory:
        raise InputError(
            f"memory is {engine.memory:,} bytes, and sums of gradients of {widest} take "
            f"{sizes[widest]:,}",
            expected="at least as many",
            fix="track fewer or smaller modules, or take projection=",
        )
    parts: list[set[str]] = [set()]
    taken = 0
    for name, size in sizes.items():
        if taken + size > engine.memory:
            parts.append(set())
            taken = 0
        parts[-1].add(name)
        taken += size
    return [frozenset(part) for part in parts]


def _scale(
    engine: Engine,
    method: GradientMethod,
    examples: Examples,
    numbers: Sequence[int],
    found: Collected,
    share: NDArray[np.float64] | None,
) -> Tensor | None:
    """[n] what each example's gradient is multiplied by; None where that is 1."""
    scale = None
    if method.normalised:
        if engine.restriction is None:
            squares = found.squared_norms()
        else:
            blocks = engine.restricted(found.gradients()).values()
            squares = torch.stack(
                [
                    block.double().square().flatten(1).sum(dim=1).to(found.losses.device)
                    for block in blocks
                ]
            ).sum(dim=0)
        norms = squares.sqrt()
        with naming(examples, numbers):
            refuse_zero(norms)
        scale = 1 / norms
    if share is not None and method.pooling == "mean":
        own = torch.from_numpy(share[list(numbers)]).to(found.losses.device)
        scale = own if scale is None else scale * own
    return scale
