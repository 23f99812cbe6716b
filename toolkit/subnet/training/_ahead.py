"""What is told before any training: batches that cannot be made, optimizers, weights, masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from subnet.errors import InputError
from subnet.training._models import heads_of, is_of
from subnet.training._processes import n_processes
from subnet.training.config import TrainingConfig
from subnet.training.corpora import Corpus


def check_batches(config: TrainingConfig, corpus: Corpus) -> None:
    """Refuse batches that cannot be divided among passes, processes or languages.

    Raises:
        InputError: Says which setting, and what would do.
    """
    counts = Counter(row["language"] for row in corpus.train)
    base, least = config.base, min(corpus.names, key=lambda label: counts[label])
    divided = [("training", config.training.batch_size, n_processes() * config.training.passes)]
    if base.steps and base.method in ("plain", "turns"):
        divided.append(("base", base.batch_size, n_processes() * base.passes))
    for name, size, parts in divided:
        if size % parts:
            raise InputError(
                f"{name}.batch_size is {size}, and a batch of {size} cannot be divided among "
                f"{n_processes()} processes in {parts // n_processes()} passes",
                expected=f"a multiple of {parts}",
            )
    every = {"base": base.steps and base.conflict_every, "training": config.training.conflict_every}
    for name, steps in every.items():
        if steps and len(corpus.names) < 2:
            raise InputError(
                f"{name}.conflict_every is {steps}, and one language is trained",
                expected="two or more, whose gradients can be compared",
            )
    if not base.steps or base.method == "plain":
        return
    if len(corpus.names) < 2:
        raise InputError(
            f"base.method is {base.method!r}, and one language is trained",
            expected="two or more, or base.method = 'plain'",
        )
    if base.method == "turns":
        if base.steps < len(corpus.names):
            raise InputError(
                f"base.steps is {base.steps}, and {len(corpus.names)} languages take turns",
                expected=f"{len(corpus.names)} or more",
            )
        return
    needed, what = base.support + base.query, "base.support and base.query"
    if base.method == "pcgrad":
        if base.batch_size % len(corpus.names):
            raise InputError(
                f"base.batch_size is {base.batch_size}, and a batch of {base.batch_size} cannot be "
                f"divided among {len(corpus.names)} languages",
                expected=f"a multiple of {len(corpus.names)}",
            )
        needed, what = base.batch_size // len(corpus.names), "its part of base.batch_size"
    if counts[least] < needed:
        raise InputError(
            f"{least} has {counts[least]} examples to train on",
            expected=f"{needed} or more, for {what}",
            fix="add some, or ask for fewer at a time",
        )


def check_finite(model: Any, place: str | Path) -> None:
    """Refuse weights that are no numbers, as a training that diverged leaves them.

    Raises:
        InputError: Says which tensor.
    """
    import torch

    for name, value in model.state_dict().items():
        wrong = int((~torch.isfinite(value)).sum()) if value.is_floating_point() else 0
        if wrong:
            raise InputError(
                f"the tensor {name} holds {wrong} values that are NaN or infinite",
                path=place,
                expected="finite weights",
                fix="the training of this model diverged: take an earlier checkpoint",
            )


def check_optimizers(config: TrainingConfig, model: Any, folder: Path) -> None:
    """Refuse optimizers that Trainer knows by name and cannot make here.

    Args:
        config: The run.
        model: What is trained.
        folder: Of the run; nothing is written.

    Raises:
        InputError: Says which one, and what Trainer lacks for it.
    """
    from transformers import Trainer

    from subnet.training._trainer import arguments

    recipes = {"training": config.training.recipe}
    if config.base.steps:
        recipes["base"] = config.base.recipe
    for name, recipe in recipes.items():
        asked = arguments(recipe, folder, seed=0, save_every=0)
        try:
            Trainer.get_optimizer_cls_and_kwargs(asked, model)
        except (ImportError, ValueError, RuntimeError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "")
            raise InputError(
                f"{name}.optimizer is {recipe.optimizer!r}, which cannot be made here "
                f"({reason.strip().rstrip('.')})",
                fix="install what it needs, or take another one, such as 'adamw_torch'",
            ) from error


def check_density(config: TrainingConfig, model: Any) -> None:
    """Refuse a density at which no weight of the model would move.

    Args:
        config: The run.
        model: What is trained: weights that require gradients, but for heads, can be selected.

    Raises:
        InputError: Says of how many weights, and how many they must be.
    """
    if config.subnetworks.method not in ("dynamic", "sparse"):
        return
    whole = heads_of(model)
    size = sum(
        value.numel()
        for name, value in model.named_parameters()
        if value.requires_grad and not is_of(name, whole)
    )
    density = config.subnetworks.density
    if round(density * size) == 0:
        raise InputError(
            f"subnetworks.density is {density:g}, which selects none of {size} weights",
            expected=f"{1 / size:.1e} or more, which is one weight",
        )
