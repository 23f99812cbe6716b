"""Scores from what lm-evaluation-harness writes: `results_*.json` and `samples_*.jsonl`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.checkpoint.records import ItemFile, Records, ScoreRow
from subnet.errors import FileFormatError, InputError, NotComparableError
from subnet.language import LanguageIndex, parse_language

_SAMPLES = re.compile(r"^samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl$")
_SCRIPTED = re.compile(r"^(?P<family>.+)_(?P<label>[a-z]{2,3}[-_][A-Z][a-z]{3})$")


@dataclass(frozen=True)
class Evaluation:
    """One `results_*.json`."""

    path: Path
    results: Mapping[str, Mapping[str, Any]]
    higher_is_better: Mapping[str, Mapping[str, bool]]
    hashes: Mapping[str, str]
    versions: Mapping[str, Any]
    shots: Mapping[str, Any]
    groups: frozenset[str]
    model: str

    @property
    def time(self) -> str:
        """The time in the file's name: two evaluations of a stage are told apart by it."""
        return self.path.stem.removeprefix("results_")


def read_evaluation(path: Path) -> Evaluation:
    """Content of a results file.

    Raises:
        FileFormatError: It was not written by lm-evaluation-harness.
    """
    content = _files.read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or not all(isinstance(r, dict) for r in results.values()):
        raise FileFormatError(
            "has no results", path=path, expected="output of lm-evaluation-harness"
        )
    config = content.get("config") or {}
    arguments = config.get("model_args") or ""
    if isinstance(arguments, dict):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    return Evaluation(
        path,
        results,
        content.get("higher_is_better") or {},
        content.get("task_hashes") or {},
        content.get("versions") or {},
        content.get("n-shot") or {},
        frozenset(content.get("groups") or ()) | frozenset(content.get("group_subtasks") or ()),
        f"{arguments},{content.get('model_name') or ''}",
    )


def stage_of(evaluation: Evaluation, stages: Mapping[str, int], root: Path) -> int | None:
    """Stage whose folder's name is in the path of the results, or in the evaluated model's.

    Of a model with an adapter (`pretrained=base,peft=stages/03-de`) the adapter is the stage.
    """
    relative = evaluation.path.relative_to(root).parent.as_posix()
    adapter = re.findall(r"(?:peft|lora|delta)=([^,]+)", evaluation.model)
    for place in (relative, *adapter, evaluation.model):
        parts = re.split(r"/|__|,|=|\\", place)
        found = [stages[part] for part in reversed(parts) if part in stages]
        if found:
            return found[0]
    return None


def split_task(task: str, index: LanguageIndex) -> tuple[str, str] | None:
    """(benchmark, language label) of a task, None where its name says no language.

    `xnli_de` and `belebele_deu_Latn` say one. A last part of three letters without a script counts
    only if it stands for a language with a two-letter code, as `deu` does: many benchmarks have
    parts such as `mmlu_law`, and Law is a language too.
    """
    if index.declared(task):
        return task, task
    scripted = _SCRIPTED.match(task)
    if scripted and index.recognises(scripted["label"]):
        return scripted["family"], scripted["label"]
    family, _, label = task.rpartition("_")
    if not family or not index.recognises(label):
        return None
    primary = parse_language(label, tag=None).language if not index.declared(label) else "xx"
    return (family, label) if len(primary) == 2 else None


def read_rows(
    evaluation: Evaluation, run: str, stage: int, index: LanguageIndex, records: Records
) -> tuple[list[ScoreRow], list[str]]:
    """Rows of one evaluation, and the tasks whose names say no language.

    With more than one benchmark the metric carries its name, as in `xnli:acc`. A filter other than
    `none` stays part of the metric, as in `exact_match,strict-match`.
    """
    named = {task: split_task(task, index) for task in sorted(evaluation.results)}
    unnamed = [t for t, found in named.items() if found is None and t not in evaluation.groups]
    several = len({found[0] for found in named.values() if found}) > 1
    rows = []
    for task, found in named.items():
        if found is None:
            continue
        family, label = found
        language = index.add(label, path=evaluation.path).label
        prefix = f"{family}:" if several else ""
        result = evaluation.results[task]
        for key, value in result.items():
            name, comma, suffix = key.partition(",")
            if name.endswith("_stderr") or name in ("alias", "sample_len", "sample_count", "name"):
                continue
            if not isinstance(value, int | float):
                continue
            metric = prefix + (name if suffix in ("", "none") else key)
            if not math.isfinite(value):
                raise InputError(
                    f"{key} of {task} is {value}", path=evaluation.path, expected="a finite number"
                )
            stderr = result.get(f"{name}_stderr{comma}{suffix}")
            error = float(stderr) if isinstance(stderr, int | float) else None
            rows.append(
                ScoreRow(run, stage, language, metric, float(value), error, evaluation.path)
            )
            direction = evaluation.higher_is_better.get(task, {}).get(name)
            if isinstance(direction, bool):
                records.directions.setdefault(metric, direction)
        for path in _samples(evaluation, task):
            records.items.append(ItemFile(path, run, language, stage, prefix))
    return rows, unnamed


def check_comparable(evaluations: Mapping[int, Evaluation]) -> None:
    """Refuse to follow a task through stages that were given different tasks or prompts.

    Raises:
        NotComparableError: Names the task and both files.
    """
    seen: dict[tuple[str, str], tuple[Any, Path]] = {}
    for stage in sorted(evaluations):
        evaluation = evaluations[stage]
        for what, values in (
            ("prompts", evaluation.hashes),
            ("version", evaluation.versions),
            ("number of shots", evaluation.shots),
        ):
            for task, value in values.items():
                other, path = seen.setdefault((what, task), (value, evaluation.path))
                if other != value:
                    raise NotComparableError(
                        f"{task} has another {what} than in {path}",
                        path=evaluation.path,
                        expected="the same task at every stage",
                        fix="evaluate both stages with the same harness and settings",
                    )


def _samples(evaluation: Evaluation, task: str) -> list[Path]:
    return [
        path
        for path in sorted(evaluation.path.parent.glob("samples_*.jsonl"))
        if (match := _SAMPLES.match(path.name))
        and match["task"] == task
        and match["time"] == evaluation.time
    ]
