"""Scores from `trainer_state.json`, where Hugging Face Trainer logs `eval_<language>_<metric>`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from subnet import _files
from subnet.checkpoint.records import ScoreRow
from subnet.errors import FileFormatError, InputError
from subnet.language import LanguageIndex

TRAINER_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_SPEED = re.compile(r"_(runtime|.+_per_second|model_preparation_time|num_tokens)$")


def trainer_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """`checkpoint-<step>` folders with their steps, in order of training."""
    found = []
    for path in folder.iterdir():
        match = _CHECKPOINT.match(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)


def find_state(folder: Path) -> Path | None:
    """The most complete log of a Trainer output folder: its own, or its last checkpoint's."""
    checkpoints = [path for _, path in reversed(trainer_checkpoints(folder))]
    states = (place / TRAINER_STATE for place in (folder, *checkpoints))
    return next((path for path in states if path.is_file()), None)


def read_history(path: Path, index: LanguageIndex) -> dict[int, dict[tuple[str, str], float]]:
    """Step to (language label, metric) to score; the last evaluation of a step counts.

    Raises:
        FileFormatError: It is no Trainer state.
    """
    content = _files.read_json(path)
    history = content.get("log_history") if isinstance(content, dict) else None
    if not isinstance(history, list):
        raise FileFormatError(
            "has no log_history", path=path, expected="the state that Trainer writes"
        )
    # Trainer logs a run time for every evaluation set, and so names the sets.
    sets = {
        match[1]
        for entry in history
        for key in entry
        if (match := re.match(r"^eval_(.+)_runtime$", key))
    }
    found: dict[int, dict[tuple[str, str], float]] = {}
    for entry in history:
        for key, value in entry.items():
            if not key.startswith("eval_") or _SPEED.search(key):
                continue
            named = _split(key.removeprefix("eval_"), sets, index)
            if named is None:
                continue
            label, metric = named
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(
                    f"{key} at step {entry.get('step')} is {value!r}",
                    path=path,
                    expected="a finite number",
                )
            language = index.add(label, path=path).label
            found.setdefault(int(entry.get("step", 0)), {})[language, metric] = float(value)
    return found


def rows_of_stage(
    history: dict[int, dict[tuple[str, str], float]], run: str, stage: int, path: Path
) -> list[ScoreRow]:
    """Rows of a Trainer run that was one stage: its last evaluation of each language."""
    last: dict[tuple[str, str], float] = {}
    for step in sorted(history):
        last.update(history[step])
    return _rows(last, run, stage, path)


def rows_of_steps(
    history: dict[int, dict[tuple[str, str], float]], run: str, path: Path
) -> list[ScoreRow]:
    """Rows of a Trainer run whose evaluations are the stages, numbered in order."""
    stages = stage_numbers(sorted(history))
    return [
        row for step in sorted(history) for row in _rows(history[step], run, stages[step], path)
    ]


def stage_numbers(steps: Sequence[int]) -> dict[int, int]:
    """Step to stage: 0 is before the first step, the others count from 1."""
    later = [step for step in steps if step > 0]
    return {0: 0} | {step: number for number, step in enumerate(later, start=1)}


def _rows(scores: dict[tuple[str, str], float], run: str, stage: int, path: Path) -> list[ScoreRow]:
    return [
        ScoreRow(run, stage, language, metric, value, None, path)
        for (language, metric), value in sorted(scores.items())
    ]


def _split(name: str, sets: set[str], index: LanguageIndex) -> tuple[str, str] | None:
    """(language, metric) of `de_loss`, None where the evaluation set is no language."""
    parts = name.split("_")
    for end in range(len(parts) - 1, 0, -1):
        label = "_".join(parts[:end])
        if (label in sets if sets else True) and index.recognises(label):
            return label, "_".join(parts[end:])
    return None
