"""What do our fit() and masked training cost beside the plain Trainer?

    python benchmarks/training.py            # minutes
    python benchmarks/training.py --quick    # a small model, seconds
    python benchmarks/training.py --optimizer adamw_torch
    python benchmarks/training.py --batch 32   # half as many tokens a step

All ways train the same encoder on the same batches for the same number of steps, one after another
in each round, in an order that is drawn anew for every round, all in one process. A ratio is that
of one round's two times, so that what else the machine does weighs on both alike; shown is the
median over rounds, with the smallest and largest. CPU seconds are those of all threads. A time is
that of everything from model to trained model: drawing the batches, making the Trainer, the masks'
copy of the weights. The first round of all ways is not counted.

Masks are over all weights (embeddings too) and every masked weight is trained, so that nothing is
saved by freezing, except where the way says so.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from subnet.model import find_units
from subnet.subnetwork import subnetwork_of_units
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import (
    DynamicMask,
    DynamicSettings,
    MaskedUpdates,
    fit_masked,
)

PLAIN = "plain Trainer"


@dataclass(frozen=True)
class Sizes:
    """A model, and how long it is trained."""

    width: int
    layers: int
    vocabulary: int
    tokens: int
    batch: int
    steps: int
    rounds: int


FULL = Sizes(width=256, layers=2, vocabulary=4000, tokens=32, batch=64, steps=20, rounds=7)
QUICK = Sizes(width=64, layers=2, vocabulary=500, tokens=16, batch=16, steps=20, rounds=3)


def encoder(sizes: Sizes) -> Any:
    """The same model every time."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.width // 32,
            intermediate_size=4 * sizes.width,
            max_position_embeddings=sizes.tokens,
            num_labels=5,
        )
    )


def collate(features: Any) -> dict[str, torch.Tensor]:
    """A batch of examples of one length."""
    return {
        "input_ids": torch.tensor([entry["input_ids"] for entry in features]),
        "labels": torch.tensor([entry["labels"] for entry in features]),
    }


def random_masks(model: Any, density: float, seed: int) -> dict[str, torch.Tensor]:
    """Masks over all parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=generator) < density
        for name, parameter in model.named_parameters()
    }


def half_of_the_heads(model: Any) -> Any:
    """Every second head."""
    units = find_units(model)
    chosen = np.arange(units.n_heads) % 2 == 0
    return subnetwork_of_units(chosen, units, "head", language="half", base="benchmark")


def ways(sizes: Sizes, optimizer: str) -> dict[str, Callable[[str], None]]:
    """What is compared: name to a training in a folder."""
    rng = random.Random(0)
    features = [
        {
            "input_ids": [rng.randrange(sizes.vocabulary) for _ in range(sizes.tokens)],
            "labels": rng.randrange(5),
        }
        for _ in range(sizes.batch * sizes.steps)
    ]
    recipe = Recipe(
        steps=sizes.steps,
        batch_size=sizes.batch,
        learning_rate=1e-4,
        weight_decay=0.01,
        optimizer=optimizer,
    )

    def plain(folder: str) -> None:
        trainer = Trainer(
            model=encoder(sizes),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=sizes.steps,
                per_device_train_batch_size=sizes.batch,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                weight_decay=0.01,
                optim=optimizer,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=features,
            data_collator=collate,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def ours(folder: str, mask: Callable[[], Any] | None = None) -> None:
        model = encoder(sizes)
        shared: dict[str, Any] = {"collate": collate, "seed": 0, "folder": folder}
        if mask is None:
            fit(model, features, recipe, **shared)
        else:
            fit_masked(model, features, recipe, mask=mask(), **shared)

    def masked(mask: Callable[[], Any]) -> Callable[[str], None]:
        return lambda folder: ours(folder, mask)

    few, others, half = (
        random_masks(encoder(sizes), density, seed)
        for density, seed in ((0.05, 1), (0.05, 2), (0.5, 1))
    )
    heads = half_of_the_heads(encoder(sizes))
    languages = [("a", "b")[step % 2] for step in range(sizes.steps)]
    return {
        PLAIN: plain,
        "fit(), no mask": ours,
        "static mask of 5 % of the weights": masked(lambda: MaskedUpdates(few)),
        "static mask of 50 %": masked(lambda: MaskedUpdates(half)),
        "static mask of 5 %, in the forward pass too": masked(
            lambda: MaskedUpdates(few, forward=True)
        ),
        "half of the heads, all else frozen": masked(lambda: MaskedUpdates(heads)),
        "two languages taking turns, 5 % each": masked(
            lambda: MaskedUpdates({"a": few, "b": others}, languages=languages)
        ),
        "dynamic mask of 5 %, new every 10 steps": masked(
            lambda: DynamicMask(DynamicSettings(0.05, every=10))
        ),
        "dynamic mask of 5 %, in the forward pass too": masked(
            lambda: DynamicMask(DynamicSettings(0.05, every=10), forward=True)
        ),
    }


def measure(sizes: Sizes, optimizer: str) -> dict[str, list[tuple[float, float]]]:
    """Way to (CPU seconds, wall seconds) of each round."""
    compared = ways(sizes, optimizer)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    rng = random.Random(1)
    gc.freeze()
    for number in range(sizes.rounds + 1):
        for name in rng.sample(list(compared), len(compared)):
            with tempfile.TemporaryDirectory() as folder:
                cpu, wall = time.process_time(), time.perf_counter()
                compared[name](folder)
                taken = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                found[name].append(taken)
        print(f"round {number} of {sizes.rounds} done", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[tuple[float, float]]]) -> str:
    """Markdown: median seconds, and ratios to the plain Trainer of the same round."""
    lines = [
        "| way | CPU s | wall s | CPU ratio (median, range) | wall ratio (median) |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, rounds in found.items():
        cpu, wall = (
            [own[i] / plain[i] for own, plain in zip(rounds, found[PLAIN], strict=True)]
            for i in (0, 1)
        )
        seconds = [statistics.median(taken[i] for taken in rounds) for i in (0, 1)]
        lines.append(
            f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} | {statistics.median(cpu):.3f} "
            f"({min(cpu):.3f}–{max(cpu):.3f}) | {statistics.median(wall):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, seconds")
    parser.add_argument("--rounds", type=int, help="how often everything is trained")
    parser.add_argument("--optimizer", default=Recipe(steps=1).optimizer, help="of all ways alike")
    parser.add_argument("--batch", type=int, help="examples of a step")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    sizes = replace(
        sizes, rounds=options.rounds or sizes.rounds, batch=options.batch or sizes.batch
    )
    parameters = sum(p.numel() for p in encoder(sizes).parameters())
    print(
        f"{parameters / 1e6:.1f} million parameters (width {sizes.width}, {sizes.layers} layers), "
        f"{sizes.steps} steps of {sizes.batch} examples of {sizes.tokens} tokens, "
        f"{sizes.rounds} rounds, {options.optimizer}; {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; torch {torch.__version__}\n"
    )
    print(table(measure(sizes, options.optimizer)))


if __name__ == "__main__":
    main()
