"""How far training went between two checkpoints: the learning rates of its steps, summed.

`trainer_state.json` holds the rate of some steps. The rates of the others lie on the line between
(exact for a constant and for a linear schedule). The last `optimizer.pt` of a linear decay holds 0
and the last entry of the log another rate, so no single one of them stands for an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subnet import _files
from subnet.checkpoint.trainer_logs import TRAINER_STATE, find_state
from subnet.errors import FileFormatError, InputError


def step_of(folder: Path) -> int:
    """Optimizer steps that a Trainer checkpoint is after.

    Raises:
        FileFormatError: Its `trainer_state.json` does not say.
    """
    step = _state(folder / TRAINER_STATE).get("global_step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise FileFormatError(
            f"global_step is {step!r}", path=folder / TRAINER_STATE, expected="a whole number"
        )
    return step


def sum_of_interval(folder: Path, start: int, stop: int) -> tuple[float, str]:
    """Σ of the learning rates of steps start + 1 … stop of a Trainer run.

    Args:
        folder: Checkpoint that the interval ends at.
        start: Step that it begins after.
        stop: Its last step.

    Returns:
        (the sum, how it was found).

    Raises:
        InputError: The log has too few rates to tell.
    """
    path = folder / TRAINER_STATE
    state = _state(path)
    logged = _rates(state, path)
    whole = find_state(folder.parent)
    if whole is not None and whole != path:
        logged = {**_rates(_state(whole), whole), **logged}
    maximum = state.get("max_steps")
    points = sorted(logged.items())
    if isinstance(maximum, int) and _is_of_next_step(points, maximum):
        points = [(step + 1, rate) for step, rate in points]
    steps = np.arange(start + 1, stop + 1)
    known = {step for step, _ in points}
    if len(steps) and known.issuperset(steps.tolist()):
        rates = dict(points)
        return math.fsum(rates[int(step)] for step in steps), "every step is in the log"
    if len(points) < 2:
        raise InputError(
            f"the learning rates of steps {start + 1} to {stop} are unknown: the log has "
            f"{len(points)} of them",
            path=path,
            expected="two or more logged rates (logging_steps below the number of steps)",
            fix=f"give the sum of the rates: checkpoints=[({folder.name!r}, …)]",
        )
    total = math.fsum(_on_lines(points, steps))
    return total, f"interpolated between {len(points)} logged rates"


def _on_lines(points: Sequence[tuple[int, float]], steps: Any) -> list[float]:
    """Rates by linear interpolation; beyond the ends the nearest line goes on, down to 0."""
    x = np.array([step for step, _ in points], dtype=float)
    y = np.array([rate for _, rate in points])
    rates = np.interp(steps, x, y)
    first = y[0] + (steps - x[0]) * (y[1] - y[0]) / (x[1] - x[0])
    last = y[-1] + (steps - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
    rates = np.where(steps < x[0], first, np.where(steps > x[-1], last, rates))
    return [max(0.0, float(rate)) for rate in rates]


def _is_of_next_step(points: Sequence[tuple[int, float]], max_steps: int) -> bool:
    """Whether the log names the rate of the step after: Trainer did, until version 4.49.

    A decay then reaches 0 in the log at the last step, and one step later otherwise.
    """
    rates = dict(points)
    if max_steps in rates:
        return rates[max_steps] == 0
    if len(points) < 2:
        return False
    (x1, y1), (x2, y2) = points[-2:]
    if y2 >= y1:
        return False
    return abs(x2 - y2 * (x2 - x1) / (y2 - y1) - max_steps) < 0.25


def _rates(state: dict[str, Any], path: Path) -> dict[int, float]:
    history = state.get("log_history")
    if not isinstance(history, list):
        raise FileFormatError(
            "has no log_history", path=path, expected="the state that Trainer writes"
        )
    found: dict[int, float] = {}
    for entry in history:
        if isinstance(entry, dict) and "learning_rate" in entry:
            rate, step = entry["learning_rate"], entry.get("step")
            if not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 0:
                raise InputError(
                    f"the learning rate of step {step} is {rate!r}",
                    path=path,
                    expected="0 or more",
                )
            found[int(step or 0)] = float(rate)
    return found


def _state(path: Path) -> dict[str, Any]:
    state = _files.read_json(path)
    if not isinstance(state, dict):
        raise FileFormatError("is no object", path=path, expected="the state that Trainer writes")
    return state
