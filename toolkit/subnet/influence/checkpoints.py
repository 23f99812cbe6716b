"""The points in training that influence is summed over, and how much each counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from subnet.checkpoint import Checkpoint
from subnet.checkpoint.inventory import weights_of_stages
from subnet.checkpoint.trainer_logs import TRAINER_STATE, trainer_checkpoints
from subnet.errors import InputError, MissingInputError
from subnet.influence.learning_rates import step_of, sum_of_interval

#: Weights: a folder or file, or the tensors themselves.
Weights = str | Path | Mapping[str, Tensor]
#: A Trainer folder, or weights with their learning rate.
Entry = str | Path | tuple[Weights, float]
#: What `attribute(checkpoints=…)` takes.
Checkpoints = Entry | Sequence[Entry] | Mapping[str, Entry | Sequence[Entry]]

#: The name of the only point where no checkpoints are given.
AS_GIVEN = "the model as given"


@dataclass(frozen=True, eq=False)
class Point:
    """A point in training.

    Attributes:
        name: What to call it.
        weight: η, the summed learning rates of the steps that led there; None where unknown.
        source: Where η is from, in words.
        weights: Its weights; None leaves the model as it is.
        stage: Whose training it belongs to; None for that of all examples.
    """

    name: str
    weight: float | None
    source: str
    weights: Path | Mapping[str, Tensor] | None = None
    stage: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {
            "checkpoint": self.name,
            "learning_rate": self.weight,
            "from": self.source,
            "stage": self.stage,
        }


def read_points(
    checkpoints: Checkpoints | None, *, only_last: bool = False, rated: bool = True
) -> tuple[Point, ...]:
    """The points of `attribute(checkpoints=…)`.

    Args:
        checkpoints: None for the model as given, with weight 1. Otherwise Trainer folders (an
            output folder stands for all of its `checkpoint-<step>`), whose learning rates are
            summed from the checkpoint before in the list (or from the start) on, and
            (weights, η) pairs. A mapping gives the checkpoints of each stage.
        only_last: Whether the last point alone is wanted, with weight 1.
        rated: Whether learning rates count; otherwise every point has the weight 1.

    Raises:
        InputError: A learning rate is unknown, negative, or zero everywhere.
        MissingInputError: A folder is not there or holds no weights.
    """
    if checkpoints is None:
        return (Point(AS_GIVEN, 1.0, "no checkpoints: weight 1"),)
    if isinstance(checkpoints, Mapping):
        if not checkpoints:
            raise InputError("checkpoints is empty", expected="checkpoints of each stage")
        groups = [(str(stage), _listed(entry)) for stage, entry in checkpoints.items()]
    else:
        groups = [("", _listed(checkpoints))]
    found: list[Point] = []
    for stage, entries in groups:
        if not entries:
            where = f" of {stage}" if stage else ""
            raise InputError(f"there are no checkpoints{where}", expected="at least one")
        found += _points(entries, stage or None, rates=rated and not only_last)
    if only_last:
        last = found[-1]
        return (Point(last.name, 1.0, "last checkpoint: weight 1", last.weights),)
    if not rated:
        return tuple(replace(p, weight=1.0, source="all alike: weight 1") for p in found)
    if not any(point.weight for point in found):
        raise InputError(
            "the learning rates of all checkpoints are 0", expected="one above 0 at least"
        )
    return tuple(found)


def checkpoints_of(checkpoint: Checkpoint, *, run: str = "main") -> dict[str, list[Entry]]:
    """The stages of sequential training as `attribute(checkpoints=…)` takes them, by language.

    η of a stage is the rate times the steps that `subnet.toml` states for it; of a stage that is a
    Trainer folder it is left to the log.

    Raises:
        MissingInputError: There are no stages, or one has neither rate and steps nor a log.

    Example:
        >>> points = checkpoints_of(subnet.open_checkpoint("checkpoint/"))  # doctest: +SKIP
        >>> attribute(model, train, test, checkpoints=points)  # doctest: +SKIP
    """
    found: dict[str, list[Entry]] = {}
    for number, entry in weights_of_stages(checkpoint.entries, run).items():
        if number == 0 or entry.language is None:
            continue
        stated = checkpoint.settings_of(run).stages.get(entry.path.name)
        rate = None if stated is None else stated.learning_rate
        if stated is not None and isinstance(rate, float) and stated.steps is not None:
            found.setdefault(entry.language.label, []).append((entry.path, rate * stated.steps))
        elif (entry.path / TRAINER_STATE).is_file() or trainer_checkpoints(entry.path):
            found.setdefault(entry.language.label, []).append(entry.path)
        else:
            raise MissingInputError(
                "has no learning rate",
                path=entry.path,
                expected=f"learning_rate and steps in [stages.{entry.path.name!r}] of subnet.toml, "
                "or Trainer's log",
            )
    if not found:
        raise MissingInputError(
            "has no stages with weights", path=checkpoint.path, expected="stages/<NN>-<language>/"
        )
    return found


def _listed(entries: Any) -> list[Any]:
    single = isinstance(entries, str | Path) or _is_pair(entries)
    return [entries] if single else list(entries)


def _is_pair(entry: Any) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == 2
        and isinstance(entry[1], int | float)
        and not isinstance(entry[0], tuple)
    )


def _points(entries: Sequence[Any], stage: str | None, *, rates: bool) -> list[Point]:
    found: list[Point] = []
    ends: dict[Path, int] = {}
    for entry in _expanded(entries):
        if _is_pair(entry):
            weights, rate = entry
            if isinstance(rate, bool) or not math.isfinite(rate) or rate < 0:
                raise InputError(
                    f"the learning rate of {_name(weights)} is {rate!r}", expected="0 or more"
                )
            place = Path(weights) if isinstance(weights, str | Path) else weights
            found.append(Point(_name(weights), float(rate), "given", place, stage))
            continue
        if not isinstance(entry, str | Path):
            raise InputError(
                f"a checkpoint is a {type(entry).__name__}",
                expected="a Trainer folder, or a pair (weights or their folder, learning rate)",
            )
        folder = Path(entry)
        if not folder.exists():
            raise MissingInputError("is not there", path=folder)
        if not (folder / TRAINER_STATE).is_file():
            if rates:
                raise InputError(
                    f"has no {TRAINER_STATE}, so its learning rate is unknown",
                    path=folder,
                    expected="a Trainer folder, or the rate beside it",
                    fix="give the sum of the rates of the steps that led there: "
                    f"checkpoints=[({folder.name!r}, …)]",
                )
            found.append(Point(str(entry), None, "not needed", folder, stage))
            continue
        # Intervals follow each other within one run.
        run, stop = folder.resolve().parent, step_of(folder)
        start = ends.get(run, 0)
        if rates and stop <= start:
            raise InputError(
                f"is after step {stop}, and the checkpoint before it in the list after {start}",
                path=folder,
                expected="checkpoints in the order of training, each once",
            )
        ends[run] = stop
        eta, source = sum_of_interval(folder, start, stop) if rates else (None, "not needed")
        how = f"steps {start + 1}–{stop}: {source}" if rates else source
        found.append(Point(str(entry), eta, how, folder, stage))
    return found


def _expanded(entries: Sequence[Any]) -> Iterator[Any]:
    """The entries, an output folder replaced by its checkpoints."""
    for entry in entries:
        folder = entry[0] if _is_pair(entry) else entry
        inner: list[tuple[int, Path]] = []
        if isinstance(folder, str | Path) and Path(folder).is_dir():
            inner = trainer_checkpoints(Path(folder))
        if not inner or (_is_pair(entry) and _holds_weights(Path(folder))):
            yield entry
        elif _is_pair(entry):
            raise InputError(
                f"one learning rate is given for {len(inner)} checkpoints",
                path=folder,
                expected="one for each of them, or none",
            )
        else:
            yield from (path for _, path in inner)


def _holds_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _name(weights: Any) -> str:
    return str(weights) if isinstance(weights, str | Path) else "the given tensors"
