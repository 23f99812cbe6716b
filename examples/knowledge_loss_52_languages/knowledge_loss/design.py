"""What is trained: three sharing regimes at one rank, three ranks where everything is shared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from subnet.training.config import TrainingConfig, read_config
from subnet.training.run import find_cells, train


@dataclass(frozen=True)
class Part:
    """What one process trains, one cell after the other."""

    sharing: tuple[str, ...]
    ranks: tuple[int, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of its cells, as `train` gives them."""
        return tuple(f"{sharing}-r{rank}" for sharing in self.sharing for rank in self.ranks)


#: About equal in cost, so that two cores are busy. Both train the same base from the same seed.
PARTS: Mapping[str, Part] = {
    "sharing": Part(("none", "partial"), (8,)),
    "ranks": Part(("full",), (2, 8, 32)),
}
#: Where the two headlines are read off: everything shared, at the rank that all regimes have.
HEADLINE_CELL = "full-r8"


def train_part(name: str, config: Path, out: Path, *, progress: bool = False) -> None:
    """Train one part, or go on with it; nothing is done twice."""
    part = PARTS[name]
    whole = read_config(config)
    chosen = {"sharing": part.sharing, "rank": part.ranks}
    settings = whole.model_dump() | {"adaptation": whole.adaptation.model_dump() | chosen}
    train(
        TrainingConfig.model_validate(settings), out / name, progress=progress, folder=config.parent
    )


def train_all(run: Path, config: Path, out: Path) -> None:
    """Train both parts at once, a process each, which share the cores.

    With all cores for each, the threads of one would wait for those of the other: three times as
    slow on two cores. `OMP_NUM_THREADS` decides where it is set.

    Args:
        run: The command that trains one, `run.py`.
        config: What to train.
        out: Where to.
    """
    command = [sys.executable, str(run), "--config", str(config), "--out", str(out)]
    threads = str(max(1, (os.cpu_count() or 1) // len(PARTS)))
    variables = {"OMP_NUM_THREADS": threads} | os.environ
    running = [subprocess.Popen([*command, "--part", name], env=variables) for name in PARTS]
    try:
        failed = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()  # those that are still at work when this one is interrupted
    if any(failed):
        sys.exit(f"training stopped ({failed}); the same command goes on where it was")


def trained_cells(out: Path) -> dict[str, Path]:
    """Checkpoint directories of all cells, by name."""
    return {
        name or part.cells[0]: path
        for label, part in PARTS.items()
        for name, path in find_cells(out / label).items()
    }
