"""What is done at every step of a training: loss, counting, and stopping where it diverges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather
from transformers import Trainer, TrainerCallback

from subnet.errors import DivergedError


class Counting(TrainerCallback):  # type: ignore[misc]
    """Calls a function after every optimizer step."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One step is done."""
        self._on_step()


class EvenTrainer(Trainer):  # type: ignore[misc]
    """Trains on the mean loss over a step's labels, however they are divided.

    Trainer leaves the division to models that take `num_items_in_batch`, and takes a model for one
    of them whose forward pass has `**kwargs`. Classification heads have, and ignore it: the loss of
    a step in n passes, or on n processes, would be n times as large. Here a pass counts by its
    share of the step's labels, so that one pass and several, one process and several, do the
    same.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.model_accepts_loss_kwargs = True  # has it count the labels of a step

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's own mean over this pass, weighted by the labels that it rests on."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None:
            labels = inputs["labels"]
            # Where a model predicts the next token, the first one is no label.
            labels = labels[..., 1:] if getattr(self, "_loss_shifts_labels", False) else labels
            share = labels.ne(-100).sum() / num_items_in_batch
            loss = loss * share * self.accelerator.num_processes  # which the mean over them undoes
        return (loss, outputs) if return_outputs else loss


def watched(trainer_class: type[Trainer]) -> type[Trainer]:
    """A trainer that stops at the first step whose loss is not finite.

    On a GPU, and among several processes, the loss is looked at every sixteenth step, since looking
    waits for the device and for the others.
    """

    class Watched(trainer_class):  # type: ignore[misc]
        _first_bad: Any = None  # the first step whose loss was not finite; a large number if none

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            finite = loss.detach().isfinite().all()
            step = torch.where(finite, self.args.max_steps, self.state.global_step)
            self._first_bad = (
                step if self._first_bad is None else torch.minimum(self._first_bad, step)
            )
            alone = loss.device.type == "cpu" and self.accelerator.num_processes == 1
            if alone or self.state.global_step % 16 == 0:
                self.check()
            return loss

        def check(self) -> None:
            """Raise if the loss of a step so far was not finite, on any process."""
            if self._first_bad is None:
                return
            first = int(gather(self._first_bad.reshape(1)).min())
            if first < self.args.max_steps:
                raise DivergedError(
                    f"the loss is not finite at step {first + 1} of {self.args.max_steps}",
                    fix=f"lower the learning rate ({self.args.learning_rate:g}), warm up, or clip "
                    f"gradients (max_grad_norm is {self.args.max_grad_norm:g})",
                )

    return Watched
