"""What a run writes beside its models: examples, languages, settings, scores."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subnet._files import new_directory, new_file
from subnet._tables import write_csv
from subnet.training._procedure import turns_of
from subnet.training._stages import StageLog
from subnet.training._turns import Turns
from subnet.training.corpora import PARTS, Corpus
from subnet.training.recipe import Recipe
from subnet.training.tasks import Row, Task, Translation
from subnet.training.tasks._translation_references import baseline_rows


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """`train.jsonl`, `validation.jsonl`, `test.jsonl` and `languages.csv`."""
    import pandas as pd

    for part in PARTS:
        rows = getattr(corpus, part)
        if rows:
            write_examples(rows, folder / f"{part}.jsonl")
    write_csv(pd.DataFrame(list(corpus.report)), folder / "languages.csv")


def write_references(corpus: Corpus, task: Task, folder: Path) -> None:
    """`references.csv` of a translation: what its scores are to be read beside."""
    place = folder / "references.csv"
    if isinstance(task, Translation) and not place.is_file():
        with new_file(place) as building:
            write_csv(baseline_rows(task.references(corpus.test)), building)


def write_examples(rows: Iterable[Row], path: Path) -> None:
    """One example per line, as JSON."""
    with new_file(path) as building, building.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")


def settings_toml(
    corpus: Corpus,
    task: Task,
    *,
    order: Sequence[str] = (),
    recipe: Recipe | None = None,
    stages: bool = True,
    described: bool = True,
) -> str:
    """`subnet.toml` of a cell, of a run, or of both in one; a JSON string is a TOML string too.

    Args:
        corpus: Whose languages.
        task: Whose metrics.
        order: Of a run.
        recipe: How its stages were trained; of steps of alignment beside the task's, nothing is
            said here: rate and steps are those of the task.
        stages: Whether they are delivered.
        described: Whether base, task, languages and metrics are described, as a cell's file does.
    """
    lines = ["format = 1"]
    lines += ['base = "base"'] * described
    lines += [f"order = {json.dumps(list(order))}"] if order else []
    if described:
        lines += [f"task = {json.dumps(task.name)}"]
        for language in corpus.languages:
            lines += ["", f"[languages.{json.dumps(language.label)}]"]
            lines += [f"tag = {json.dumps(language.tag)}"]
        for name, metric in task.metrics.items():
            lines += ["", f"[scores.{name}]"]
            lines += [f"higher_is_better = {json.dumps(metric.higher_is_better)}"]
            if metric.chance is not None:
                lines += [f"chance = {metric.chance:.6g}"]
            if metric.range is not None:
                lines += [f"range = {json.dumps(list(metric.range))}"]
    if recipe is not None and stages:
        counts = dict.fromkeys(corpus.names, 0)
        for row in corpus.train:
            counts[row["language"]] += 1
        for number, label in enumerate(order, start=1):
            lines += [
                "",
                f"[stages.{json.dumps(f'{number:02d}-{label}')}]",
                *_rate(recipe, turns_of(task)),
                f"steps = {recipe.steps}",
                f"optimizer = {json.dumps(recipe.optimizer)}",
                f"examples = {counts[label]}",
            ]
    return "\n".join(lines) + "\n"


def _rate(recipe: Recipe, turns: Turns | None) -> list[str]:
    """The mean rate of a stage's task steps: times their number, it is what they sum to.

    With steps of alignment between them the schedule runs over both kinds.
    """
    import torch
    from transformers import get_scheduler

    steps = recipe.steps
    if turns is not None:
        recipe = recipe.replace(steps=turns.total(steps))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.learning_rate)
    schedule = get_scheduler(
        recipe.schedule,
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=recipe.steps,
    )
    total = 0.0
    for step in range(recipe.steps):
        if turns is None or turns.is_task(step):
            total += schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
    return [f"learning_rate = {float(f'{total / steps:.12g}')!r}"]


def write_scores(log: StageLog, folder: Path) -> None:
    """`scores.csv`, `items.csv`, and what else the stages left.

    `scores.csv` comes last: where it is, the run is done.
    """
    for name in ("items", "transfer", "mask_history", "stage_conflict", "scores"):
        frame = log.table(name)
        if frame is not None:
            with new_file(folder / f"{name}.csv") as building:
                write_csv(frame, building)


def link_folder(source: Path, target: Path) -> None:
    """The same files in a second place, without a second copy where the disk allows that."""
    if target.exists():
        return
    with new_directory(target) as building:
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            place = building / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:
                shutil.copy2(file, place)


def described(
    config: Mapping[str, Any], seeds: Mapping[str, int], task: Task, rows: Sequence[Row]
) -> dict[str, Any]:
    """What `run.json` says of how a directory came about.

    Args:
        config: Settings, resolved.
        seeds: Of every initialisation.
        task: A translation says what its scores depend on, under `translation`.
        rows: What is tested.
    """
    from subnet._tables import versions

    libraries = (
        "subnet-toolkit", "torch", "transformers", "peft", "accelerate", "tokenizers", "babel",
    )  # fmt: skip
    import torch

    return {
        "experiment": "train",
        "settings": dict(config),
        "seeds": dict(seeds),
        "threads": torch.get_num_threads(),
        "versions": versions(*libraries),
        **({"translation": task.describe(rows)} if isinstance(task, Translation) else {}),
    }
