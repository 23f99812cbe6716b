"""Small trainings for tests: four languages, a tiny encoder, few steps."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from subnet.training import TrainingConfig, train

SMALL: dict[str, Any] = {
    "languages": ["de", "fr", "ru", "ar"],
    "data": {"max_concepts_per_kind": 12, "max_length": 96},
    "model": {"width": 16, "layers": 2, "heads": 2, "feed_forward": 32},
    "base": {"steps": 6, "batch_size": 16},
    "adaptation": {"rank": 4},
    "training": {"steps": 4, "batch_size": 8, "learning_rate": 1e-2},
}


def small_config(**parts: Any) -> TrainingConfig:
    """The small training with some entries changed: `small_config(adaptation={"rank": 2})`."""
    content = dict(SMALL)
    for name, value in parts.items():
        both = isinstance(value, dict) and isinstance(content.get(name), dict)
        content[name] = {**content[name], **value} if both else value
    for table, key, value, idle in (  # ours that have no effect then, and would be refused
        ("adaptation", "tuning", "full", ("rank",)),
        ("base", "method", "meta", ("batch_size",)),
        ("data", "source", "files", ("max_concepts_per_kind",)),
    ):
        if content[table].get(key) == value:
            content[table] = {k: v for k, v in content[table].items() if k not in idle}
    if content["model"].get("name"):
        content["model"] = {k: v for k, v in content["model"].items() if k not in SMALL["model"]}
    return TrainingConfig.model_validate(content)


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def train_until(config: TrainingConfig, directory: Path, phase: str, times: int) -> None:
    """A training that ends when progress has told of a phase so many times."""

    class StopError(Exception):
        pass

    seen: list[str] = []

    def stop(doing: str, *_: Any) -> None:
        seen.append(doing)
        if doing.startswith(phase) and seen.count(doing) == times:
            raise StopError

    with pytest.raises(StopError):
        train(config, directory, progress=stop)
