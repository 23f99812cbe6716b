"""What an inventory consists of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subnet.checkpoint.records import Records, ScoreRow
from subnet.checkpoint.settings import CheckpointSettings
from subnet.checkpoint.tensors import ADAPTER_CONFIG, has_model
from subnet.checkpoint.trainer_logs import trainer_checkpoints
from subnet.language import Language, LanguageIndex


@dataclass(frozen=True)
class Entry:
    """One recognised thing.

    Attributes:
        kind: `"settings"`, `"base"`, `"adapter"`, `"weights"` (fine-tuned, one per language),
            `"mask"`, `"stage"`, `"scores"`, `"items"`, `"train_examples"`, `"validation_examples"`,
            `"test_examples"`, `"languages_table"`, `"transfer"`, `"training_record"` or
            `"joint"`.
        path: Where it is, absolute.
        run: The run it belongs to.
        language: Its language, None where it has none.
        stage: Its stage, None where it has none.
        recognised_as: In plain words.
        adapter: Its name inside a PEFT file that holds several, else None.
    """

    kind: str
    path: Path
    run: str
    language: Language | None = None
    stage: int | None = None
    recognised_as: str = ""
    adapter: str | None = None


@dataclass(frozen=True)
class Skipped:
    """Something that is there and not used, why, and what would make it usable."""

    path: Path
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Root:
    """A directory that holds one run.

    `base` is the folder of the base model, which a run may share with the directory it stands in.
    """

    path: Path
    run: str
    settings: CheckpointSettings
    base: Path | None


@dataclass
class Findings:
    """What the recognisers found so far."""

    index: LanguageIndex
    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    records: Records = field(default_factory=Records)
    batches: list[list[ScoreRow]] = field(default_factory=list)
    stages: dict[str, dict[int, Path]] = field(default_factory=dict)

    def skip(self, path: Path, reason: str, fix: str = "") -> None:
        """Note what is not used."""
        self.skipped.append(Skipped(path, reason, fix))


def model_folder(folder: Path) -> Path | None:
    """Where the weights of a folder are: in it, in its last Trainer checkpoint, or one folder down.

    PEFT saves an adapter that has a name of its own one folder down (`de/de/`), others save the
    end of training there (`de/final/`); of two such folders nobody says which one counts.
    """
    last_first = [path for _, path in reversed(trainer_checkpoints(folder))]
    for place in (folder, *last_first):
        if has_weights(place):
            return place
        inner = [path for path in children(place) if has_weights(path)]
        if len(inner) == 1:
            return inner[0]
    return None


def count(things: Collection[Any], noun: str) -> str:
    """How many there are, in words: `1 file`, `3 files`."""
    return f"{len(things)} {noun}" + ("" if len(things) == 1 else "s")


def children(folder: Path) -> list[Path]:
    """Subfolders that are not hidden, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds an adapter or a whole model."""
    return (folder / ADAPTER_CONFIG).is_file() or has_model(folder)


def weights_of_stages(entries: Iterable[Entry], run: str) -> dict[int, Entry]:
    """Number to entry of a run's stages that have weights, in order."""
    found = {
        entry.stage: entry
        for entry in entries
        if entry.kind == "stage" and entry.run == run and has_weights(entry.path)
    }
    return {number: found[number] for number in sorted(n for n in found if n is not None)}


def start_of_step(number: int, stages: Mapping[int, Entry], root: Root) -> str | None:
    """What is missing to know what a stage changed; None where nothing is.

    That takes the weights of the stage before. Before the first one stands the base, whose weights
    a LoRA does without.
    """
    if number - 1 in stages:
        return None
    if number > 1:
        return f"stage {number - 1} has no weights"
    is_adapter = (stages[number].path / ADAPTER_CONFIG).is_file()
    if is_adapter or (root.base is not None and has_model(root.base)):
        return None
    return "the base is not here"
