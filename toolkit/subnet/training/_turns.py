"""In which order steps of a task and steps of alignment come, and on which examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from subnet.errors import InputError
from subnet.training._batches import draw_batches


@dataclass(frozen=True)
class Turns:
    """Steps of a task, and steps of alignment in addition to them.

    A training of n task steps takes the same batches for them, in the same order, with alignment
    and without it; what it is aligned on is drawn apart, from the same examples.

    Attributes:
        task_steps: Steps of the task in a row.
        alignment_steps: Steps of alignment after them.

    Raises:
        InputError: One of them is below 1.

    Example:
        >>> turns = Turns(task_steps=2)
        >>> turns.total(5), [turns.is_task(step) for step in range(7)]
        (7, [True, True, False, True, True, False, True])
    """

    task_steps: int = 1
    alignment_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("task_steps", "alignment_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}", expected="1 or more")

    def total(self, steps: int) -> int:
        """Steps in all: n of the task, and those of alignment after every `task_steps` of them."""
        return steps + steps // self.task_steps * self.alignment_steps

    def is_task(self, step: int) -> bool:
        """Whether a step is one of the task; they are counted from 0, both kinds together."""
        return step % (self.task_steps + self.alignment_steps) < self.task_steps

    def draw_batches(
        self, lengths: Sequence[int], *, steps: int, batch_size: int, seed: int
    ) -> list[list[int]]:
        """Places of the examples of every step, of both kinds, in the order of the steps.

        Args:
            lengths: [n] tokens of each example.
            steps: Steps of the task; theirs are the batches that `draw_batches` makes of it all.
            batch_size: Examples of a step of either kind.
            seed: Seed of the order; steps of alignment have one that is derived from it.

        Returns:
            `total(steps)` lists of `batch_size` places.
        """
        own = random.Random(f"{seed}/alignment").getrandbits(32)  # noqa: S311 - no secret
        total = self.total(steps)
        task = iter(draw_batches(lengths, steps=steps, batch_size=batch_size, seed=seed))
        aligned = iter(draw_batches(lengths, steps=total - steps, batch_size=batch_size, seed=own))
        return [next(task if self.is_task(step) else aligned) for step in range(total)]
