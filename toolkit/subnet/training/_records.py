"""What the demo writes beside its models: scores, items, examples, settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from subnet._files import RUN_FILE, write_json
from subnet._tables import versions, write_csv
from subnet.training._engine import OPTIMIZER, Outcome
from subnet.training.data import DemoData, Example
from subnet.training.settings import DemoSettings

_LIBRARIES = (
    "subnet-toolkit", "torch", "transformers", "peft", "accelerate", "tokenizers", "babel",
)  # fmt: skip

_SHARING = (
    "The classification head is trained with the base on all languages and frozen afterwards: what "
    "languages share in the sequence is the LoRA alone. Every stage starts with a fresh optimizer."
)


@dataclass(frozen=True)
class AdapterRecord:
    """One language's adapter: where it stands, the seed of its initialisation, its own results."""

    path: str
    language: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class StageRecord:
    """One stage of the sequence: number (0 before it starts), language trained, all results."""

    number: int
    language: str
    outcome: Outcome

    @property
    def folder(self) -> str:
        """Its folder under `stages/`."""
        return f"{self.number:02d}-{self.language}"


def write_records(
    folder: Path,
    *,
    data: DemoData,
    settings: DemoSettings,
    seed: int,
    seeds: Mapping[str, int],
    order: Sequence[str],
    adapters: Sequence[AdapterRecord],
    stages: Sequence[StageRecord],
    base_steps: int,
    schedules: Mapping[str, str],
) -> None:
    """Write everything but the models into a checkpoint directory."""
    _write_examples(data.train, folder / "train.jsonl")
    _write_examples(data.validation, folder / "validation.jsonl")
    _write_examples(data.test, folder / "test.jsonl")
    write_csv(pd.DataFrame(list(data.report)), folder / "languages.csv")
    write_csv(_scores(data, stages), folder / "scores.csv")
    # Six digits are more than a float32 loss is good for, and items.csv is the largest file.
    _items(data, stages).to_csv(
        folder / "items.csv", index=False, lineterminator="\n", float_format="%.6g"
    )
    (folder / "subnet.toml").write_text(
        _settings_toml(data, settings, order, stages), encoding="utf-8"
    )
    write_json(
        folder / RUN_FILE,
        {
            "experiment": "demo",
            "seed": seed,
            "languages": [language.label for language in data.languages],
            "order": list(order),
            "sharing": _SHARING,
            "settings": dataclasses.asdict(settings),
            "optimizer": OPTIMIZER,
            "base_steps": base_steps,
            "schedules": dict(schedules),
            "seeds": dict(seeds),
            "threads": torch.get_num_threads(),
            "versions": versions(*_LIBRARIES),
            "adapters": [
                {
                    "path": adapter.path,
                    "language": adapter.language,
                    "initialisation_seed": adapter.seed,
                    **{metric: value for metric, value, _ in adapter.outcome.summary()},
                }
                for adapter in adapters
            ],
        },
    )


def _write_examples(examples: Sequence[Example], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")


def _scores(data: DemoData, stages: Sequence[StageRecord]) -> pd.DataFrame:
    tested = np.array([example.language for example in data.test])
    return pd.DataFrame(
        {
            "stage": stage.number,
            "language": language.label,
            "metric": metric,
            "value": value,
            "stderr": stderr,
        }
        for stage in stages
        for language in data.languages
        for metric, value, stderr in stage.outcome[tested == language.label].summary()
    )


def _items(data: DemoData, stages: Sequence[StageRecord]) -> pd.DataFrame:
    one_metric = {
        "language": [example.language for example in data.test],
        "item": [example.id for example in data.test],
    }
    return pd.concat(
        [
            pd.DataFrame({"stage": stage.number, **one_metric, "metric": metric, "value": values})
            for stage in stages
            for metric, values in (
                ("loss", stage.outcome.loss),
                ("accuracy", stage.outcome.correct),
            )
        ],
        ignore_index=True,
    )


def _settings_toml(
    data: DemoData, settings: DemoSettings, order: Sequence[str], stages: Sequence[StageRecord]
) -> str:
    """`subnet.toml`; a JSON string is a TOML string too."""
    majority = data.majority_share
    examples = {language.label: 0 for language in data.languages}
    for example in data.train:
        examples[example.language] += 1
    lines = [
        "format = 1",
        'base = "base"',
        f"order = {json.dumps(list(order))}",
        'task = "sequence-classification"',
    ]
    for language in data.languages:
        lines += ["", f"[languages.{json.dumps(language.label)}]"]
        lines += [f"tag = {json.dumps(language.language.tag)}"]
    for metric, better, chance in (
        ("loss", "false", f"{np.log(len(data.kinds)):.6g}"),
        ("accuracy", "true", f"{majority:.6g}"),
        ("macro_f1", "true", f"{2 * majority / (1 + majority) / len(data.kinds):.6g}"),
    ):
        lines += ["", f"[scores.{metric}]", f"higher_is_better = {better}", f"chance = {chance}"]
        if metric != "loss":
            lines += ["range = [0.0, 1.0]"]
    for stage in stages[1:]:
        lines += [
            "",
            f"[stages.{json.dumps(stage.folder)}]",
            f"learning_rate = {settings.adapter_learning_rate!r}",
            f"steps = {settings.adapter_steps}",
            f"optimizer = {json.dumps(OPTIMIZER)}",
            f"examples = {examples[stage.language]}",
        ]
    return "\n".join(lines) + "\n"
