"""Training that pulls translations together: alignment steps between the steps of a task.

The loss and the layer follow the code of "Conditions for Catastrophic Forgetting in Multilingual
Translation" (2025, arXiv:2510.19546): mean-pooled hidden states of parallel sentences at half
depth, InfoNCE in one direction; steps alternate, the losses are not added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from subnet.errors import InputError
from subnet.model import base_model
from subnet.training._callbacks import EvenTrainer
from subnet.training._processes import n_processes, processes
from subnet.training._turns import Turns
from subnet.training.recipe import Recipe

#: Ways of distributing a model whose layers cannot be called apart from the whole.
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP", "XLA")


def alignment_loss(
    hidden_a: Tensor, hidden_b: Tensor, temperature: float = 0.1, *, group: Tensor | None = None
) -> Tensor:
    """InfoNCE of parallel sentences, from a to b: −mean over i of log softmax_j(cos(aᵢ, bⱼ)/τ)ᵢᵢ.

    Args:
        hidden_a: [n, d] a vector for each sentence.
        hidden_b: [n, d] for its translation.
        temperature: τ.
        group: [n] a number that pairs of one meaning share. They are not held against each other:
            bⱼ of the same meaning as aᵢ is left out of the softmax, but for j = i. None where all
            pairs differ, which is the published loss.

    Returns:
        A scalar; log n where nothing is aligned, 0 of a single pair.

    Raises:
        InputError: The shapes differ, or τ is not above 0.
    """
    if hidden_a.shape != hidden_b.shape or hidden_a.ndim != 2 or not len(hidden_a):
        raise InputError(
            f"hidden states are {list(hidden_a.shape)} and {list(hidden_b.shape)}",
            expected="[n, d] of both, one row per pair",
        )
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}", expected="a number above 0")
    cosines = F.normalize(hidden_a, dim=-1) @ F.normalize(hidden_b, dim=-1).T  # [n, n]
    logits = cosines / temperature
    if group is not None:
        same = group[:, None] == group[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
    loss: Tensor = -logits.log_softmax(dim=-1).diagonal().mean()
    return loss


def sentence_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """A vector for each sentence: its hidden states at half depth, averaged over its tokens.

    Of an encoder-decoder the encoder's; of l layers what layer ⌊l/2⌋ puts out (the first, where
    there is but one).

    Args:
        model: Any `transformers` or PEFT model; gradients flow.
        input_ids: [n, t].
        attention_mask: [n, t], 0 for padding.

    Returns:
        [n, d], float32 at least.
    """
    inner: Any = base_model(model)
    options: dict[str, Any] = {"output_hidden_states": True, "return_dict": True}
    if getattr(inner.config, "is_encoder_decoder", False):
        stack = inner.get_encoder()
    else:
        stack = inner.base_model
        if inner.can_generate():
            options["use_cache"] = False
    states = stack(input_ids=input_ids, attention_mask=attention_mask, **options).hidden_states
    hidden = states[max(1, (len(states) - 1) // 2)]  # the embeddings come first
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    weights = attention_mask.to(hidden)[..., None]  # [n, t, 1]
    pooled: Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return pooled


class AlternatingTrainer(EvenTrainer):
    """A trainer in which steps of the task and steps of alignment take turns.

    Every batch holds `alignment` beside the task's inputs (`Translation(..., align=True)` makes
    it): `a`, `a_mask`, `b`, `b_mask` [n, t] and `group` [n]. A step of the task passes it over, a
    step of alignment uses nothing else. One optimizer and one schedule of learning rates move both;
    parameters behind half depth, and the decoder, are left alone by alignment steps.

    To Trainer both are steps: `max_steps` and `save_steps` count either kind. `alternating` makes
    the number of steps and the batches with which the task is trained as without alignment.

    Several processes compare the pairs of all of them: the result is that of one.

    Args:
        task_steps: Steps of the task in a row.
        alignment_steps: Steps of alignment after them.
        temperature: τ of `alignment_loss`.
        others: Of `Trainer`.

    Raises:
        InputError: A number of steps or τ is not usable, the model is sharded over processes, or a
            batch has no sentences to align.

    Example:
        >>> recipe, further = alternating(features, recipe, seed=0)  # doctest: +SKIP
        >>> fit(model, features, recipe, collate=task.collate, seed=0, folder=scratch,
        ...     **further)  # doctest: +SKIP
    """

    def __init__(
        self,
        *positional: Any,
        task_steps: int = 1,
        alignment_steps: int = 1,
        temperature: float = 0.1,
        **others: Any,
    ) -> None:
        self._turns = Turns(task_steps, alignment_steps)
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}", expected="a number above 0")
        super().__init__(*positional, **others)
        kind = str(self.accelerator.distributed_type.value).upper()
        if kind in _SHARDED:
            raise InputError(
                f"alignment steps do not run under {kind}",
                expected="whole copies of the model on every process (DDP)",
            )
        self._temperature = temperature

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One pass of a task step, or of an alignment step; which, its number says."""
        pairs = inputs.pop("alignment", None)
        if pairs is None:
            raise InputError(
                "a batch has no sentences to align",
                expected="'alignment' in every feature",
                fix="make the task with align=True",
            )
        if self._turns.is_task(self.state.global_step):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        return self._alignment_step(model, pairs)

    def _alignment_step(self, model: Any, pairs: Mapping[str, Any]) -> Tensor:
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        pairs = self._prepare_inputs(dict(pairs))
        inner = self.accelerator.unwrap_model(model)
        with self.compute_loss_context_manager():
            a = sentence_states(inner, pairs["a"], pairs["a_mask"])
            b = sentence_states(inner, pairs["b"], pairs["b_mask"])
            loss = alignment_loss(
                _of_all(a), _of_all(b), self._temperature, group=_of_all(pairs["group"])
            )
        loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            _add_gradients(inner)
        detached: Tensor = loss.detach()
        return detached


def alternating(
    features: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    *,
    seed: int,
    temperature: float = 0.1,
    turns: Turns | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """A training with steps of alignment in addition to the recipe's, which are of the task.

    The task is trained on the batches of a training without alignment, in the same order; the
    schedule of learning rates runs over the steps of both kinds.

    Args:
        features: Of a task with `align=True`.
        recipe: Of the task alone.
        seed: Of the order of examples, as `fit` is given it.
        temperature: τ of `alignment_loss`.
        turns: How many of each; one by one by default.

    Returns:
        The recipe over all steps, and further arguments of `fit`.
    """
    turns = turns or Turns()
    batches = turns.draw_batches(
        [len(entry["input_ids"]) for entry in features],
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        seed=seed,
    )
    return recipe.replace(steps=turns.total(recipe.steps)), {
        "batches": batches,
        "trainer_class": AlternatingTrainer,
        "temperature": temperature,
        **dataclasses.asdict(turns),
    }


def _of_all(values: Tensor) -> Tensor:
    """Rows of every process; gradients flow into this process's own."""
    from accelerate.utils import gather

    state = processes()
    if state.num_processes == 1:
        return values
    parts = list(gather(values.detach().contiguous()).chunk(state.num_processes))
    parts[state.process_index] = values
    return torch.cat(parts)


def _add_gradients(model: Any) -> None:
    """Sum over processes, each of which has the gradient by its own rows of one common loss.

    The model is called apart from its distributed wrapper, which therefore adds up nothing.
    """
    from accelerate.utils import reduce

    if n_processes() == 1:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(reduce(parameter.grad, reduction="sum"))
