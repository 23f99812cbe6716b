"""What an inventory consists of."""

from __future__ import annotations

from collections.abc import Mapping
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
            `"mask"`, `"stage"`, `"scores"`, `"items"`, `"train_examples"`, `"test_examples"` or
            `"languages_table"`.
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
    """Where the weights of a folder are: in it, or in its last Trainer checkpoint."""
    last_first = [path for _, path in reversed(trainer_checkpoints(folder))]
    for place in (folder, *last_first):
        if (place / ADAPTER_CONFIG).is_file() or has_model(place):
            return place
    return None


def children(folder: Path) -> list[Path]:
    """Subfolders that are not hidden, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds an adapter or a whole model."""
    return (folder / ADAPTER_CONFIG).is_file() or has_model(folder)


def follows(number: int, weights: Mapping[int | None, Any]) -> bool:
    """Whether the stage before is known: it has weights, or it is the base."""
    return number == 1 or number - 1 in weights
