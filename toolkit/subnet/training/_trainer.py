"""One training by Hugging Face `Trainer`: the same steps on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subnet.errors import DivergedError, InputError
from subnet.training._batches import draw_batches
from subnet.training._processes import n_processes
from subnet.training.recipe import Recipe

#: Draws batches: lengths of the examples to places for every step.
Draw = Callable[..., list[list[int]]]


def fit(
    model: Any,
    features: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    *,
    collate: Callable[[Sequence[Mapping[str, Any]]], Any],
    seed: int,
    folder: str | Path,
    on_step: Callable[[], None] | None = None,
    callbacks: Sequence[Any] = (),
    batches: Sequence[Sequence[int]] | None = None,
    save_every: int = 0,
    resume: str | Path | None = None,
    trainer_class: Any = None,
    **further: Any,
) -> Any:
    """Train a model in place, with a fresh optimizer.

    Args:
        model: With a loss of its own when it is given labels.
        features: Examples as the model takes them.
        recipe: How long, how fast.
        collate: Makes a batch of features.
        seed: Seed of the order of examples, and of dropout.
        folder: Where Trainer may write what it needs to go on.
        on_step: Called after every optimizer step.
        callbacks: `TrainerCallback`s beside ours.
        batches: Places of the examples of each step, where the order matters; drawn otherwise.
        save_every: Steps after which Trainer saves what it needs to go on; 0 for never.
        resume: A checkpoint that Trainer saved in an earlier call with the same arguments.
        trainer_class: A subclass of `Trainer`.
        further: Arguments of `trainer_class`.

    Returns:
        The trainer, after its last step.

    Raises:
        InputError: A batch cannot be divided among the processes and passes.
        DivergedError: The loss is not finite, says at which step; or the weights at the end.
    """
    from transformers import PrinterCallback

    from subnet.training._callbacks import Counting, EvenTrainer, watched

    _keep_freed_memory()
    parts = n_processes() * recipe.passes
    if recipe.batch_size % parts:
        raise InputError(
            f"a batch of {recipe.batch_size} cannot be divided among {n_processes()} processes in "
            f"{recipe.passes} passes",
            expected=f"a batch_size that is a multiple of {parts}",
        )
    if batches is None:
        lengths = [len(entry["input_ids"]) for entry in features]
        batches = draw_batches(lengths, steps=recipe.steps, batch_size=recipe.batch_size, seed=seed)
    ordered = [features[place] for batch in batches for place in batch]
    trainer = watched(trainer_class or EvenTrainer)(
        model=model,
        args=arguments(recipe, folder, seed, save_every),
        train_dataset=ordered,
        data_collator=collate,
        callbacks=[*callbacks, *([] if on_step is None else [Counting(on_step)])],
        **further,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.check()
    _check_weights(model, recipe)
    # Mixed precision wraps the model's forward pass, once more with every trainer.
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    return trainer


def _keep_freed_memory() -> None:
    """Keep what one step frees for the next one, where glibc would give it back to the system.

    It gives back freed memory above a limit, and a page that is taken again is cleared first, which
    in a small model is some hundredths of a step. The limit is twice the largest block of up to
    32 MiB that was ever freed; this one makes it 62 MiB, which then stay with the process. Blocks
    that are larger are given back as before.
    """
    import torch

    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


def _check_weights(model: Any, recipe: Recipe) -> None:
    """What the last step did no loss has seen."""
    for name, value in model.named_parameters():
        if value.requires_grad and not bool(value.isfinite().all()):
            raise DivergedError(
                f"{name} is not finite after step {recipe.steps} of {recipe.steps}",
                fix=f"lower the learning rate ({recipe.learning_rate:g})",
            )


def arguments(recipe: Recipe, folder: str | Path, seed: int, save_every: int) -> Any:
    """`TrainingArguments` of a recipe: quiet, in the order given, on the GPU where there is one."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // (n_processes() * recipe.passes),
        gradient_accumulation_steps=recipe.passes,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=recipe.optimizer,
        bf16=recipe.precision == "bfloat16",
        **_recomputing(recipe),
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        save_total_limit=1,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
    )


def _recomputing(recipe: Recipe) -> dict[str, bool]:
    """The argument that says so, which newer versions call by another name."""
    import dataclasses

    from transformers import TrainingArguments

    if not recipe.gradient_checkpointing:
        return {}
    names = {entry.name for entry in dataclasses.fields(TrainingArguments)}
    new = "activation_checkpointing"
    return {new if new in names else "gradient_checkpointing": True}
