"""How a model is trained, apart from what it is and on which data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from subnet.errors import InputError

#: Learning-rate schedules, as Trainer calls them.
SCHEDULES = ("constant", "linear", "cosine", "constant_with_warmup")
#: Precisions of the forward and backward pass; weights and optimizer stay in float32.
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """One training: how long, how fast, with which optimizer.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples of a step, over all processes and accumulated passes together.
        learning_rate: Peak of the schedule.
        schedule: One of `SCHEDULES`.
        warmup: Share of the steps in which the rate rises linearly to its peak.
        weight_decay: Decoupled decay of AdamW.
        max_grad_norm: Gradients are clipped to this norm; 0 for no clipping.
        optimizer: As `TrainingArguments.optim` has it.
        precision: One of `PRECISIONS`.
        passes: Forward and backward passes that a step's examples are divided among, on each
            process; more take less memory.
        gradient_checkpointing: Recompute activations in the backward pass; less memory, more time.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    precision: str = "float32"
    passes: int = 1
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{name} is {value!r}", expected=f"one of {', '.join(choices)}")
        for name in ("steps", "batch_size", "passes"):
            if not getattr(self, name) >= 1:
                raise InputError(f"{name} is {getattr(self, name)}", expected="1 or more")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"learning_rate is {self.learning_rate}", expected="a number above 0")
        for name in ("weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}", expected="0 or more")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}", expected="a share, 0 or more, below 1")

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate rises."""
        return round(self.warmup * self.steps)

    def replace(self, **changes: object) -> Recipe:
        """The same recipe but for some entries."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
