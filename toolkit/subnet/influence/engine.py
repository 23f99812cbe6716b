"""A model, what is tracked of it, and how batches of examples go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from subnet.errors import InputError
from subnet.influence import _processes
from subnet.influence._examples import Examples, check_batch
from subnet.influence._projecting import Projector, read_projection
from subnet.influence.checkpoints import Point
from subnet.influence.collecting import (
    Blocks,
    Collected,
    LossFunction,
    UndefinedExamplesError,
    collect,
)
from subnet.influence.methods import GradientMethod, Situation, Transform, _unchanged
from subnet.influence.restriction import Restriction, restrict_to
from subnet.influence.store import StoreSettings
from subnet.influence.tracking import Tracked, track

if TYPE_CHECKING:
    from subnet.subnetwork import Subnetwork


@dataclass(frozen=True, eq=False)
class Engine:
    """A model, its tracked parameters, and how batches go through it.

    Attributes:
        model: The model.
        tracked: The tracked modules.
        batch_size: Examples per pass.
        loss_fn: Loss of each example of a batch; None for that of the model's task.
        restriction: The subnetwork that gradients are restricted to.
        in_forward: Whether the subnetwork is alone in the forward pass too.
        seed: For what a method draws.
        output: What the method takes gradients of in place of the loss.
        settings: The method's own.
        projection: What gradients are projected with before they are multiplied or stored.
        store: Where gradients of training examples are kept.
        memory: Bytes that kept gradients may take; None for as many as there are.
    """

    model: nn.Module
    tracked: Tracked
    batch_size: int
    loss_fn: LossFunction | None = None
    restriction: Restriction | None = None
    in_forward: bool = False
    seed: int = 0
    output: LossFunction | None = None
    settings: Any = None
    projection: Projector | None = None
    store: StoreSettings | None = None
    memory: int | None = None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name of what is multiplied to its shape for one example, where no method changes it."""
        return self.tracked.shapes if self.projection is None else self.projection.shapes

    @property
    def n_bytes(self) -> int:
        """Bytes of a number of a gradient, float32 at least."""
        parameter = self.model.get_parameter(next(iter(self.tracked.shapes)))
        return torch.promote_types(parameter.dtype, torch.float32).itemsize

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return next(self.model.parameters()).device

    def collected(
        self,
        examples: Examples,
        indices: Sequence[int] | None = None,
        size: int | None = None,
        relabel: Callable[[Any, Sequence[int]], Any] | None = None,
    ) -> Iterator[tuple[list[int], Any, Collected]]:
        """(numbers, batch, what it gave) of batch after batch.

        Raises:
            InputError: A batch is not usable, or the loss of an example is not finite (names it).
        """
        for numbers, batch in examples.batches(size or self.batch_size, indices):
            _processes.look()
            if self.loss_fn is None:
                check_batch(self.model, batch, examples, numbers)
            with naming(examples, numbers), self._forward():
                seen = batch if relabel is None else relabel(batch, numbers)
                found = collect(self.model, self.tracked, seen, self.output or self.loss_fn)
            if len(found) != len(numbers):
                raise InputError(
                    f"collate_fn made {len(found)} rows of {len(numbers)} {examples.role} examples",
                    expected="one row per example",
                )
            yield numbers, batch, found

    def gradients(
        self, examples: Examples, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Blocks]]:
        """(numbers, gradients [n, *shape] by parameter) of batch after batch, restricted."""
        for numbers, _, found in self.collected(examples, indices):
            yield numbers, self.restricted(found.gradients())

    def ready(
        self,
        examples: Examples,
        indices: Sequence[int] | None = None,
        change: Callable[[Blocks], Blocks] = _unchanged,
    ) -> Iterator[tuple[list[int], Blocks]]:
        """(numbers, gradients restricted, changed and projected) of batch after batch."""
        for numbers, _, found in self.collected(examples, indices):
            if self.projection is not None and change is _unchanged and self.restriction is None:
                yield numbers, self.projection.of_collected(found)
                continue
            with naming(examples, numbers):
                made = change(self.restricted(found.gradients()))
            yield numbers, self.projected(made)

    def projected(self, blocks: Blocks) -> Blocks:
        """Gradients projected, if they are to be."""
        return blocks if self.projection is None else self.projection.of_gradients(blocks)

    def restricted(self, blocks: Blocks) -> Blocks:
        """Gradients with zeros outside of the subnetwork, if there is one."""
        return blocks if self.restriction is None else self.restriction.restrict(blocks)

    def transform(
        self, method: GradientMethod, point: Point, train: Examples, members: Sequence[int]
    ) -> Transform:
        """What the method makes of gradients at a checkpoint whose weights are in place."""
        own = _processes.own_batches(members, self.batch_size)
        return method.prepare(
            Situation(
                model=self.model,
                tracked=self.tracked,
                point=point,
                train=train,
                members=tuple(members),
                collect=lambda relabel=None: self.collected(train, members, relabel=relabel),
                gradients=lambda: (blocks for _, blocks in self.gradients(train, members)),
                collect_own=lambda relabel=None: self.collected(train, own, relabel=relabel),
                gradients_own=lambda: (blocks for _, blocks in self.gradients(train, own)),
                summed=lambda blocks: _processes.summed_blocks(blocks, self.device),
                restrict=None if self.restriction is None else self.restriction.restrict,
                settings=self.settings,
                seed=self.seed,
            )
        )

    def _forward(self) -> AbstractContextManager[None]:
        if self.restriction is not None and self.in_forward:
            return self.restriction.alone(self.model)
        return nullcontext()


class naming:  # noqa: N801 - a context manager, used as a function
    """Say which example it was, where something is undefined for one of a batch meanwhile."""

    def __init__(self, examples: Examples, numbers: Sequence[int]) -> None:
        self._examples, self._numbers = examples, numbers

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UndefinedExamplesError):
            name = self._examples.name(self._numbers[error.place])
            raise InputError(
                f"{error.what} of {name}", expected=error.expected, fix=error.fix
            ) from error


def make_engine(
    model: nn.Module,
    modules: str | Sequence[str] | Tracked | None,
    subnetwork: Subnetwork | None,
    loss_fn: LossFunction | None,
    batch_size: int,
    seed: int,
    *,
    in_forward: bool = False,
    projection: Any = None,
    store: str | Path | StoreSettings | None = None,
    memory: int | None = None,
) -> Engine:
    """An engine of what `attribute` takes.

    Raises:
        InputError: A setting is out of range, or two do not go together.
        NotComparableError: The subnetwork is of another model.
    """
    value: Any
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}", expected=f"a whole number, {least} or more")
    if memory is not None and (isinstance(memory, bool) or not memory > 0):
        raise InputError(f"memory is {memory!r}", expected="bytes, above 0")
    if isinstance(store, str | Path):
        store = StoreSettings(path=store)
    if subnetwork is None and in_forward:
        raise InputError("subnetwork_in_forward is given without a subnetwork")
    if subnetwork is not None and modules is not None:
        raise InputError(
            "modules and subnetwork are given together",
            expected="one of them: a subnetwork says which parameters it owns",
            fix="restrict the subnetwork: subnetwork.restrict(modules)",
        )
    first, parameter = next(iter(model.named_parameters()), ("", None))
    if parameter is not None and parameter.is_meta:
        raise InputError(
            f"{first} is offloaded, so that inputs have no device to go to",
            expected="a model whose first weights are on a device",
            fix="load it with a device_map that offloads later layers, or none",
        )
    restriction = None if subnetwork is None else restrict_to(model, subnetwork)
    tracked = track(model, modules) if restriction is None else restriction.tracked
    chosen = read_projection(projection, seed)
    projector = None if chosen is None else Projector(tracked, chosen)
    return Engine(
        model, tracked, batch_size, loss_fn, restriction, in_forward, seed,
        projection=projector, store=store, memory=memory,
    )  # fmt: skip
