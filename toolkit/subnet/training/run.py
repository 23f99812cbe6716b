"""`train`: from one configuration to checkpoint directories that `subnet analyze` reads."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from subnet import _files
from subnet.errors import MissingInputError, OutputError
from subnet.training._experiment import Experiment
from subnet.training._plan import plan_cells, plan_runs
from subnet.training._procedure import (
    check_procedure,
)
from subnet.training._processes import is_first, wait_for_all
from subnet.training._progress import Progress, reporter
from subnet.training._stages import RESUME
from subnet.training.config import TrainingConfig, read_config
from subnet.training.corpora import load_corpus

_CONFIG = "config.json"


@dataclass(frozen=True)
class Trained:
    """What a training wrote.

    Attributes:
        path: The directory.
        cells: Checkpoint directories, one for each sharing regime and rank.
        runs: Names of the runs of each, in `runs/<name>/` where there are several.
    """

    path: Path
    cells: tuple[Path, ...]
    runs: tuple[str, ...]


def train(
    config: TrainingConfig | str | Path,
    directory: str | Path,
    *,
    progress: Progress | bool = False,
    overwrite: bool = False,
    folder: str | Path | None = None,
) -> Trained:
    """Train what a configuration asks for, and write checkpoint directories.

    With one sharing regime at one rank the directory is a checkpoint directory; with several each
    has one of its own in it, `full-r8/` and so on. Several orders or seeds are its `runs/<name>/`.
    A run that was stopped goes on where it was when it is called again with the same configuration:
    at the last finished stage, or within it with `output.save_every`. The result is the same, byte
    for byte, with the same library versions and number of threads. Under `accelerate launch` or
    `torchrun` processes share the batches, and the first one writes.

    Args:
        config: A configuration, or its file.
        directory: Where to write.
        progress: True for a bar on the terminal, or a function called with what is going on, the
            optimizer steps done, and those in all.
        overwrite: Start again where the directory holds another training of ours.
        folder: What paths of the configuration are relative to; by default where its file is.

    Raises:
        InputError: The configuration is not usable.
        MissingInputError: There is no such model, or no data of a language.
        DivergedError: A loss is not finite; says at which stage and step. What was finished stays.
        OutputError: The directory holds something else, or cannot be written.

    Example:
        >>> trained = train("run.toml", "out", progress=True)  # doctest: +SKIP
        >>> subnet.analyze(trained.cells[0]).save("report")  # doctest: +SKIP
    """
    from subnet.training._engine import undisturbed

    if isinstance(config, TrainingConfig):
        root = Path(folder or ".")
    else:
        root = Path(folder or Path(config).absolute().parent)
        config = read_config(config)
    target = Path(directory)
    check_procedure(config)
    corpus = load_corpus(config, root)
    cells, runs = plan_cells(config), plan_runs(config, corpus.names)
    places = tuple(target if len(cells) == 1 else target / cell.name for cell in cells)
    result = Trained(target, places, tuple(run.name for run in runs))
    if _is_done(target, config, overwrite=overwrite):
        return result
    with reporter(progress if is_first() else False) as report, undisturbed():
        experiment = Experiment(config, corpus, root, target, report, len(cells) * len(runs))
        experiment.train_base()
        for cell, place in zip(cells, places, strict=True):
            experiment.train_cell(cell, place, runs)
        experiment.finish(cells, runs)
    return result


def _is_done(target: Path, config: TrainingConfig, *, overwrite: bool) -> bool:
    """Whether the directory holds the result already; otherwise it is ready to be written to.

    Raises:
        OutputError: It holds something else.
    """
    marker, run_file = target / RESUME / _CONFIG, target / _files.RUN_FILE
    found = None
    if run_file.is_file():
        found = _files.read_json(run_file).get("fingerprint")
        if found == config.fingerprint:
            return True
    elif marker.is_file():
        found = _files.read_json(marker).get("fingerprint")
        if found == config.fingerprint:
            return False
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(
            "is there already, and is no training of ours",
            path=target,
            fix="choose another --out",
        )
    if found is not None and not overwrite:
        raise OutputError(
            "holds a training with other settings",
            path=target,
            fix="choose another --out, or give --overwrite to start again",
        )
    if is_first():
        if found is not None:
            shutil.rmtree(target)
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror})", path=target) from error
        _files.write_json(
            marker, {"fingerprint": config.fingerprint, "settings": config.model_dump(mode="json")}
        )
    wait_for_all()
    return False


def find_cells(directory: str | Path) -> dict[str, Path]:
    """The checkpoint directories that a training wrote, by name; `""` where it is one itself.

    Raises:
        MissingInputError: There is no finished training.
    """
    path = Path(directory)
    if not (path / _files.RUN_FILE).is_file():
        raise MissingInputError(
            "holds no finished training",
            path=path,
            expected=_files.RUN_FILE,
            fix="run subnet train with the same configuration: it goes on where it was stopped",
        )
    cells = _files.read_json(path / _files.RUN_FILE).get("cells", [])
    return {"": path} if len(cells) <= 1 else {name: path / name for name in cells}
