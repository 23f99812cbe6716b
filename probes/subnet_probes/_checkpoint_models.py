"""Which models of a checkpoint are probed, on whose examples, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from subnet.checkpoint.inventory import weights_of_stages
from subnet.checkpoint.tensors import has_model, open_model_store
from subnet.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint
    from subnet_probes.checkpoint_probing_settings import CheckpointProbingSettings

#: Forward passes of single examples times weights up to which all stages are run: about a minute's.
LIMIT = 2e11


@dataclass(frozen=True)
class Point:
    """A model of a run that is probed.

    Attributes:
        run: The run.
        model: `"base"`, `"stage"` or `"adapter"`.
        stage: Number of the stage; None of an adapter.
        trained: Language that it was trained on last; `""` of the base.
        whole: Whether it is run on all examples, else on those of `trained`.
        end: Whether it is the first or the last of its run, where all languages are probed.
        key: Folder of the weights: what tells that two runs start from one base.
    """

    run: str
    model: str
    stage: int | None
    trained: str
    whole: bool
    end: bool
    key: str

    @property
    def name(self) -> str:
        """In plain words."""
        if self.model == "adapter":
            return f"adapter of {self.trained}"
        return "base" if not self.stage else f"stage {self.stage}"

    @property
    def which(self) -> dict[str, Any]:
        """What `representations` is asked for."""
        if self.model == "adapter":
            return {"run": self.run, "language": self.trained}
        return {"run": self.run, "stage": self.stage}

    @property
    def place(self) -> dict[str, Any]:
        """The columns that say which model a row is of."""
        return {
            "run": self.run,
            "stage": self.stage,
            "trained_language": self.trained,
            "model": self.model,
        }


@dataclass(frozen=True)
class Plan:
    """What is probed.

    Attributes:
        points: Models, run by run, stages in order, adapters last.
        warnings: What was left out.
        base_lacks: Runs that have no base to compare with.
    """

    points: tuple[Point, ...]
    warnings: tuple[str, ...]
    base_lacks: tuple[str, ...]


def plan_models(
    checkpoint: Checkpoint, settings: CheckpointProbingSettings, counts: Mapping[str, int]
) -> Plan:
    """The base, stages and adapters of every run, as far as they are asked for and affordable.

    Args:
        checkpoint: The checkpoint.
        settings: Which stages.
        counts: Language to its number of examples.

    Raises:
        MissingInputError: There is no model.
        InputError: A stage is asked for that does not exist.
    """
    found = {run: _models_of(checkpoint, run) for run in checkpoint.runs}
    trained = {run: models for run, models in found.items() if models.stages or models.adapters}
    # A run that has scores or masks only has no model of its own.
    found = trained or dict(list(found.items())[:1])
    if not any(models.base or models.stages or models.adapters for models in found.values()):
        raise MissingInputError(
            "holds no model to probe",
            path=checkpoint.path,
            expected="base/, stages/<NN>-<language>/ or adapters/<language>/ with weights",
        )
    _refuse_unknown(settings.stages, found, checkpoint)
    passes = sum(counts.values()) * sum(1 + len(models.stages) for models in found.values())
    cost = float(passes * n_weights(checkpoint))
    # Languages other than the trained one matter to drift alone.
    whole = settings.wants("drift") and (settings.stages != "auto" or cost <= LIMIT)
    points: list[Point] = []
    warnings: list[str] = []
    for run, models in found.items():
        points += models.points(run, settings.stages, set(counts), whole=whole)
        unknown = sorted(
            {label for label in models.adapters if label not in counts}
            | {label for _, label in models.stages.values() if label and label not in counts}
        )
        if unknown:
            warnings.append(
                f"there are no examples of {', '.join(unknown)}, which {run} was trained on"
            )
    several = any(len(models.stages) > 1 for models in found.values())
    if settings.wants("drift") and not whole and several:
        warnings.append(
            "drift is from the base to the last stage: the stages between are run on the examples "
            f"of their own language alone, since all take about {math.ceil(cost / LIMIT)} minutes "
            "(stages='all', --stages all)"
        )
    lacking = tuple(run for run, models in found.items() if not models.base)
    return Plan(tuple(points), tuple(warnings), lacking)


def n_weights(checkpoint: Checkpoint) -> int:
    """Weights of a model of the checkpoint, as its files say; 0 where they are not here."""
    folders = [e.path for e in checkpoint.entries if e.kind in ("base", "weights", "stage")]
    for folder in folders:
        if has_model(folder):
            return sum(math.prod(info.shape) for info in open_model_store(folder).infos.values())
    return 0


@dataclass(frozen=True)
class _Models:
    """Models of a run.

    Attributes:
        base: Folder of the base; `""` where it is not here.
        stages: Number to folder and language.
        adapters: Language to folder.
    """

    base: str
    stages: Mapping[int, tuple[str, str]]
    adapters: Mapping[str, str]

    def points(
        self, run: str, wanted: str | Sequence[int], languages: set[str], *, whole: bool
    ) -> list[Point]:
        """Those that are looked at, in order."""
        chosen = [0, *self.stages] if self.base else list(self.stages)
        if wanted == "ends":
            chosen = list(dict.fromkeys((chosen[0], chosen[-1]))) if chosen else []
        elif not isinstance(wanted, str):
            chosen = [number for number in chosen if number in wanted]
        found = []
        for number in chosen:
            end = number in (chosen[0], chosen[-1])
            folder, label = self.stages[number] if number else (self.base, "")
            if end or whole or label in languages:
                kind = "stage" if number else "base"
                found.append(Point(run, kind, number, label, end or whole, end, folder))
        for label, folder in self.adapters.items():
            if label in languages:
                found.append(Point(run, "adapter", None, label, False, False, folder))
        return found


def _models_of(checkpoint: Checkpoint, run: str) -> _Models:
    stages = weights_of_stages(checkpoint.entries, run)
    bases = [entry for entry in checkpoint.entries if entry.kind == "base"]
    bases.sort(key=lambda entry: entry.run != run)
    base = stages[0].path if 0 in stages else bases[0].path if bases else None
    return _Models(
        "" if base is None else str(base),
        {
            number: (str(entry.path), "" if entry.language is None else entry.language.label)
            for number, entry in stages.items()
            if number
        },
        {
            entry.language.label: str(entry.path)
            for entry in checkpoint.entries
            if entry.kind in ("adapter", "weights") and entry.run == run and entry.language
        },
    )


def _refuse_unknown(
    wanted: str | Sequence[int], found: Mapping[str, _Models], checkpoint: Checkpoint
) -> None:
    known = sorted({0, *(number for models in found.values() for number in models.stages)})
    unknown = [] if isinstance(wanted, str) else [n for n in wanted if n not in known]
    if unknown:
        raise InputError(
            f"has no stage {unknown[0]}",
            path=checkpoint.path,
            expected=f"some of {', '.join(map(str, known))}",
        )
