"""Projected gradients of tracked modules, from factors or from gradients that were made."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from subnet.errors import InputError
from subnet.influence.collecting import Blocks, Collected
from subnet.influence.projection import Projection, TwoSidedProjection
from subnet.influence.tracking import Tracked, TrackedModule


@dataclass(frozen=True, eq=False)
class Projector:
    """Projects the gradients of tracked modules.

    Two-sided, a linear module gives one block under its own name, its bias as one more input; what
    is no linear module or shares its weight with another gives one block per parameter: vectors as
    they are, matrices as those of a linear module. Otherwise all parameters together give one
    block.

    Attributes:
        tracked: The tracked modules.
        settings: How.
    """

    tracked: Tracked
    settings: TwoSidedProjection | Projection

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of the block to its shape for one example."""
        if isinstance(self.settings, Projection):
            return {_WHOLE: (self.settings.dimension,)}
        found: dict[str, tuple[int, ...]] = {m.name: self._sides(*_width(m)) for m in self._linear}
        for name, shape in self._rest.shapes.items():
            found[name] = self._sides(*shape) if len(shape) == 2 else shape
        return found

    def of_collected(self, found: Collected) -> Blocks:
        """Projected gradients of a batch; two-sided, those of linear modules are never formed."""
        if isinstance(self.settings, Projection):
            return self.of_gradients(found.gradients())
        factors = {
            m.name: (found.factors[m.name].inputs, found.factors[m.name].gradients)
            for m in self._linear
        }
        made = self.settings.project(factors, bias=[m.name for m in self._linear if m.bias])
        if len(self._rest):
            made |= self._of_rest(dataclasses.replace(found, tracked=self._rest).gradients())
        return made

    def of_gradients(self, blocks: Blocks) -> Blocks:
        """The same of gradients by parameter, [n, *shape].

        Raises:
            InputError: They are no gradients by the tracked parameters.
        """
        shapes = {name: tuple(block.shape[1:]) for name, block in blocks.items()}
        if shapes != dict(self.tracked.shapes):
            raise InputError(
                "what the method makes of gradients is no gradient by the tracked parameters",
                expected="no projection, or another method",
            )
        if isinstance(self.settings, Projection):
            return {_WHOLE: self.settings.project(blocks)}
        matrices = {}
        for module in self._linear:
            matrix = blocks[module.weight or ""]
            matrix = matrix.transpose(1, 2) if module.kind == "conv1d" else matrix  # [n, o, i]
            if module.bias is not None:
                matrix = torch.cat([matrix, blocks[module.bias][..., None]], dim=2)
            matrices[module.name] = matrix
        rest = {name: blocks[name] for name in self._rest.shapes}
        return self.settings.project_gradients(matrices) | self._of_rest(rest)

    @functools.cached_property
    def _linear(self) -> tuple[TrackedModule, ...]:
        """Linear modules that share no parameter with another."""
        uses: dict[str, int] = {}
        for module in self.tracked:
            for name in module.parameters:
                uses[name] = uses.get(name, 0) + 1
        return tuple(
            module
            for module in self.tracked
            if module.kind in ("linear", "conv1d")
            and module.weight is not None
            and all(uses[name] == 1 for name in module.parameters)
        )

    @functools.cached_property
    def _rest(self) -> Tracked:
        names = {name for module in self._linear for name in module.parameters}
        modules = tuple(module for module in self.tracked if module not in self._linear)
        shapes = {n: shape for n, shape in self.tracked.shapes.items() if n not in names}
        return Tracked(modules, shapes)

    def _of_rest(self, blocks: Blocks) -> Blocks:
        settings: Any = self.settings
        matrices = {name: block for name, block in blocks.items() if block.ndim == 3}
        return {**blocks, **settings.project_gradients(matrices)}

    def _sides(self, o: int, i: int) -> tuple[int, int]:
        settings: Any = self.settings
        return min(o, settings.outputs), min(i, settings.inputs)


#: Name of the block that all parameters are projected to together.
_WHOLE = "gradient"


def read_projection(projection: Any, seed: int) -> TwoSidedProjection | Projection | None:
    """What `attribute(projection=…)` takes: k stands for both sides of each linear module.

    Raises:
        InputError: It is none of these.
    """
    if projection is None or isinstance(projection, TwoSidedProjection | Projection):
        return projection
    if isinstance(projection, int) and not isinstance(projection, bool) and projection >= 1:
        return TwoSidedProjection(inputs=projection, outputs=projection, seed=seed)
    raise InputError(
        f"projection is {projection!r}",
        expected="a whole number of dimensions on each side of a layer, 1 or more, or a "
        "TwoSidedProjection or Projection",
    )


def n_numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers an example's blocks hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def _width(module: TrackedModule) -> tuple[int, int]:
    """(outputs, inputs) of a linear module, a bias as one more input."""
    o, i = module.shape if module.kind == "linear" else module.shape[::-1]
    return o, i + (module.bias is not None)
