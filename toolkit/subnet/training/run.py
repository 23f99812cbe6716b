"""`train`: from one configuration to checkpoint directories that `subnet analyze` reads."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import MissingInputError, OutputError, SubnetError
from subnet.training._ahead import check_batches
from subnet.training._experiment import Experiment
from subnet.training._inputs import check_inputs, read_inputs
from subnet.training._plan import plan_cells, plan_runs
from subnet.training._procedure import check_procedure
from subnet.training._processes import first_says, is_first, wait_for_all
from subnet.training._progress import Progress, reporter
from subnet.training._replacing import Replaced
from subnet.training._stages import RESUME, StageLog
from subnet.training.config import TrainingConfig, read_config
from subnet.training.corpora import load_corpus

_CONFIG = "config.json"
#: What `_files` builds beside its final place, and a killed process leaves there.
_HALF_DONE = re.compile(r"\..+-[a-z0-9_]{8}(-old)?")
#: What the system, and libraries that hide its numbers, say of a disk that takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_SAID_OF_FULL = ("No space left", "File too large", "quota exceeded", "PytorchStreamWriter failed")
_GO_ON = "free some space; what is finished stays, and the same command goes on from there"


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
    for byte, with the same library versions and number of threads. Files that it reads (examples,
    masks, a model folder) must have the content that they had when it began. Under
    `accelerate launch` or `torchrun` processes share the batches, and the first one writes.

    Args:
        config: A configuration, or its file.
        directory: Where to write.
        progress: True for a bar on the terminal, or a function called with what is going on, the
            optimizer steps done, and those in all.
        overwrite: Start again where the directory holds another training of ours, which is kept
            until the new one has finished a stage, and put back where that fails before.
        folder: What paths of the configuration are relative to; by default where its file is.

    Raises:
        InputError: The configuration is not usable, or a file that a run goes on with has changed.
        NotComparableError: A mask stands on another base.
        MissingInputError: There is no such model, or no data of a language.
        DivergedError: A loss is not finite; says at which stage and step. What was finished stays.
        OutputError: The directory holds something else, or cannot be written.

    Example:
        >>> trained = train("run.toml", "out", progress=True)  # doctest: +SKIP
        >>> subnet.analyze(trained.cells[0]).save("report")  # doctest: +SKIP
    """
    target = Path(directory)
    if isinstance(config, TrainingConfig):
        return carry_out(config, target, progress, overwrite, Path(folder or "."))
    with _naming(Path(config)):
        root = Path(folder or Path(config).absolute().parent)
        return carry_out(read_config(config), target, progress, overwrite, root)


def carry_out(
    config: TrainingConfig,
    target: Path,
    progress: Progress | bool,
    overwrite: bool,
    root: Path,
    *,
    anew: bool = False,
) -> Trained:
    """`train` with all that it was told; `anew` replaces whatever is complete, the same too."""
    from subnet.training._quiet import undisturbed

    check_procedure(config)
    corpus = load_corpus(config, root)
    check_batches(config, corpus)
    cells, runs = plan_cells(config), plan_runs(config, corpus.names)
    places = tuple(target if len(cells) == 1 else target / cell.name for cell in cells)
    result = Trained(target, places, tuple(run.name for run in runs))
    inputs = read_inputs(config, root, corpus.names)
    if anew and (target / _files.RUN_FILE).is_file():
        state = "other"
    else:
        state = _state_of(target, config, inputs, root, overwrite=overwrite)
    state = first_says(state)
    replaced = Replaced(target)
    if state == "done":
        if is_first():
            StageLog(target).remove()
            replaced.remove()
        return result
    with reporter(progress if is_first() else False) as report, undisturbed(), _saying_full(target):
        experiment = Experiment(
            config, corpus, root, target, report, len(cells) * len(runs),
            inputs=inputs, entered=replaced.remove, going_on=state == "begun",
        )  # fmt: skip
        if is_first():
            _make_ready(target, config, inputs, state, replaced)
        wait_for_all()
        with replaced.restored_on_failure() if is_first() else contextlib.nullcontext():
            experiment.train_base()
            for cell, place in zip(cells, places, strict=True):
                experiment.train_cell(cell, place, runs)
            experiment.finish(cells, runs)
    return result


def _state_of(
    target: Path, config: TrainingConfig, inputs: Mapping[str, str], root: Path, *, overwrite: bool
) -> str:
    """`new`, `begun`, `done`, or `other`: a training with other settings, to be replaced.

    Raises:
        OutputError: The directory holds something else.
        InputError: A file has changed since.
    """
    marker, run_file = target / RESUME / _CONFIG, target / _files.RUN_FILE
    if run_file.is_file():
        found = _files.read_json(run_file)
        if not (isinstance(found, dict) and "fingerprint" in found and "cells" in found):
            raise _not_ours(target)
        state = "done"
    elif marker.is_file():
        found, state = _files.read_json(marker), "begun"
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _not_ours(target)
    else:
        _files.check_output(target)
        return "new"
    try:
        if not _is_same(found, config):
            raise OutputError(
                "holds a training with other settings",
                path=target,
                fix="choose another directory, or give --overwrite to start again",
            )
        check_inputs(found.get("inputs"), inputs, root, target, finished=state == "done")
    except SubnetError:
        if not overwrite:
            raise
        return "other"
    return state


def _not_ours(target: Path) -> OutputError:
    return OutputError(
        "is there already, and is no training of ours", path=target, fix="choose another directory"
    )


def _is_same(found: Any, config: TrainingConfig) -> bool:
    """Whether an earlier call had these settings, and its version the same defaults."""
    if not isinstance(found, dict) or found.get("fingerprint") != config.fingerprint:
        return False
    return _agrees(found.get("settings"), config.model_dump(mode="json"))


def _agrees(found: Any, now: Any) -> bool:
    """Whether all that was there is still so; what came later had no effect then."""
    if isinstance(found, dict) and isinstance(now, dict):
        return all(name in now and _agrees(value, now[name]) for name, value in found.items())
    return bool(found == now)


def _make_ready(
    target: Path, config: TrainingConfig, inputs: Mapping[str, str], state: str, replaced: Replaced
) -> None:
    """A directory that says which training it holds, without what a killed call left half-done."""
    if state == "begun":
        for path in sorted(target.rglob(".*")):
            if _HALF_DONE.fullmatch(path.name):
                _files.remove(path)
        return
    if state == "other":
        replaced.put_aside()
    marker = target / RESUME / _CONFIG
    marker.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "fingerprint": config.fingerprint,
        "settings": config.model_dump(mode="json"),
        "inputs": dict(inputs),
    }
    with _files.new_file(marker) as building:
        _files.write_json(building, content)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Let what is wrong with a setting say in which file."""
    try:
        yield
    except SubnetError as error:
        if error.path is not None:
            raise
        raise type(error)(error.found, path=file, expected=error.expected, fix=error.fix) from error


@contextlib.contextmanager
def _saying_full(target: Path) -> Iterator[None]:
    """Make what the system says of a disk that is full, or went away, one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        said = str(cause)
        full = getattr(cause, "errno", None) in _FULL or any(word in said for word in _SAID_OF_FULL)
        if not full or (isinstance(error, SubnetError) and not isinstance(error, OutputError)):
            raise
        reason = getattr(cause, "strerror", None) or said.splitlines()[0]
        place = getattr(error, "path", None) or getattr(error, "filename", None) or target
        raise OutputError(f"cannot be written ({reason})", path=place, fix=_GO_ON) from error


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
