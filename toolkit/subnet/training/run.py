"""`train`: from one configuration to checkpoint directories that `subnet analyze` reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import DivergedError, MissingInputError, OutputError
from subnet.training import _directory
from subnet.training._models import adapted, starting_model
from subnet.training._plan import Cell, Run, plan_cells, plan_runs
from subnet.training._processes import is_first, wait_for_all
from subnet.training._progress import Progress, Steps, reporter
from subnet.training._sequence import SequenceRun, Setting, derived_seed, run_seed
from subnet.training._stages import RESUME, StageLog, item_rows, score_rows
from subnet.training._trainer import fit
from subnet.training.config import TrainingConfig, read_config
from subnet.training.corpora import Corpus, load_corpus
from subnet.training.sharing import save_model
from subnet.training.tasks import SequenceClassification, Task, TokenClassification

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
    corpus = load_corpus(config, root)
    cells, runs = plan_cells(config), plan_runs(config, corpus.names)
    places = tuple(target if len(cells) == 1 else target / cell.name for cell in cells)
    result = Trained(target, places, tuple(run.name for run in runs))
    if _is_done(target, config, overwrite=overwrite):
        return result
    with reporter(progress if is_first() else False) as report, undisturbed():
        experiment = _Experiment(config, corpus, root, target, report, len(cells) * len(runs))
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


class _Experiment:
    """One configuration: its data, its base, and the directory that it fills."""

    def __init__(
        self,
        config: TrainingConfig,
        corpus: Corpus,
        root: Path,
        target: Path,
        report: Progress,
        n_sequences: int,
    ) -> None:
        self.config, self.corpus, self.target = config, corpus, target
        self.base, self.tokenizer = starting_model(config, corpus.labels, root, self._seed("base"))
        kinds = (SequenceClassification, TokenClassification)
        task = next(kind for kind in kinds if kind.name == config.task)
        limit = config.data.max_length
        self.task: Task = task(self.tokenizer, corpus.labels, limit, corpus.test)
        per_sequence = len(corpus.names) * config.training.steps
        joint = per_sequence * config.sequence.joint
        adapters = per_sequence * config.sequence.adapters
        self.cells = plan_cells(config)
        n_ranks = len(config.adaptation.ranks)
        total = config.base.steps + n_sequences * per_sequence + n_ranks * (joint + adapters)
        self.steps = Steps(report, total)

    def train_base(self) -> None:
        """The model before the sequence, trained on all languages together; then as it was saved.

        Everything starts from what is on the disk, so that a run that goes on starts from the same.
        """
        place = self.target / "base"
        if not place.is_dir():
            if self.config.base.steps:
                self._fit(self.base, self.corpus.names, "base", self.config.base.recipe)
            if is_first():
                with _files.new_directory(place) as building:
                    self.tokenizer.save_pretrained(building)
                    self.base.save_pretrained(building)
            wait_for_all()
        self.base = type(self.base).from_pretrained(place, dtype="float32")

    def train_cell(self, cell: Cell, place: Path, runs: Sequence[Run]) -> None:
        """One sharing regime at one rank: every order, and what they are compared with."""
        if (place / _files.RUN_FILE).is_file():
            return
        setting = Setting(
            self.config, cell.sharing, cell.rank, self.corpus, self.task, self.base,
            self.steps.named,
        )  # fmt: skip
        alone = len(runs) == 1
        if is_first():
            place.mkdir(parents=True, exist_ok=True)
            _directory.link_folder(self.target / "base", place / "base")
            _directory.write_corpus(self.corpus, place)
        wait_for_all()
        if self.config.sequence.adapters and cell.sharing != "none":
            self._train_adapters(cell, place)
        if self.config.sequence.joint:
            self._train_joint(cell, place)
        for run in runs:
            folder = place if alone else place / "runs" / run.name
            self._train_sequence(setting, folder, run, alone=alone)
        if is_first():
            if not alone:
                text = _directory.settings_toml(self.corpus, self.task)
                (place / "subnet.toml").write_text(text, encoding="utf-8")
            if place != self.target:
                self._write_run_file(place, {"sharing": cell.sharing, "rank": cell.rank}, runs)
        wait_for_all()

    def finish(self, cells: Sequence[Cell], runs: Sequence[Run]) -> None:
        """Say that all is done."""
        if is_first():
            shutil.rmtree(self.target / RESUME, ignore_errors=True)
            self._write_run_file(self.target, {"cells": [cell.name for cell in cells]}, runs)
        wait_for_all()

    def _train_sequence(self, setting: Setting, folder: Path, run: Run, *, alone: bool) -> None:
        if (folder / "scores.csv").is_file():
            return
        sequence = SequenceRun(setting, folder, run.order, run.seed)
        sequence.run()
        if is_first():
            adapters = folder.parent.parent / "adapters"
            if not alone and self.config.sequence.adapters and adapters.is_dir():
                _directory.link_folder(adapters, folder / "adapters")
            text = _directory.settings_toml(
                self.corpus,
                self.task,
                order=run.order,
                recipe=self.config.training.recipe,
                stages=sequence.carried and self.config.output.stages == "all",
                described=alone,
            )
            (folder / "subnet.toml").write_text(text, encoding="utf-8")
            _directory.write_scores(sequence.log, folder)
            sequence.log.remove()
        wait_for_all()

    def _train_adapters(self, cell: Cell, place: Path) -> None:
        """An adapter for each language from the base, each from a seed of its own."""
        container = "adapters" if cell.rank else "weights"
        for language in self.corpus.names:
            target = place / container / language
            if self._have(cell, place, f"{container}/{language}"):
                continue
            name = f"r{cell.rank}/adapters/{language}"
            model = adapted(self.base, self.config.adaptation, cell.rank, self._seed(name))
            self._fit(model, (language,), name, self.config.training.recipe)
            self._save(model, target)

    def _train_joint(self, cell: Cell, place: Path) -> None:
        """One model trained on all languages at once, for as many steps as the sequence."""
        target = place / "joint"
        if self._have(cell, place, "joint"):
            return
        name = f"r{cell.rank}/joint"
        model = adapted(self.base, self.config.adaptation, cell.rank, self._seed(name))
        recipe = self.config.training.recipe
        recipe = recipe.replace(steps=recipe.steps * len(self.corpus.names))
        self._fit(model, self.corpus.names, name, recipe)
        rows = self.corpus.test
        outcome = self.task.evaluate(model, rows, batch_size=self.config.evaluation.batch_size)
        if is_first():
            import pandas as pd

            from subnet._tables import write_csv

            scores = pd.DataFrame(score_rows(self.task, rows, outcome, self.corpus.names))
            with _files.new_directory(target) as building:
                for file, frame in (("scores", scores), ("items", item_rows(rows, outcome))):
                    frame.insert(0, "stage", 1)
                    write_csv(frame, building / f"{file}.csv")
                save_model(model, building / "model")
        wait_for_all()

    def _have(self, cell: Cell, place: Path, name: str) -> bool:
        """Whether a folder is there, or is the same as in another cell of this rank."""
        others = [self.target / other.name for other in self.cells if other.rank == cell.rank]
        source = next((other / name for other in others if (other / name).is_dir()), None)
        if source is not None and is_first():
            _directory.link_folder(source, place / name)
        wait_for_all()
        return (place / name).is_dir()

    def _fit(self, model: Any, languages: Sequence[str], name: str, recipe: Any) -> None:
        """One training outside the sequences."""
        chosen = set(languages)
        rows = [row for row in self.corpus.train if row["language"] in chosen]
        log = StageLog(self.target)
        try:
            fit(
                model,
                self.task.encode(rows),
                recipe,
                collate=self.task.collate,
                seed=self._seed(f"{name}/batches"),
                folder=log.trainer_folder,
                on_step=self.steps.named(name),
            )
        except DivergedError as error:
            raise DivergedError(
                f"{name}: {error.found}", path=self.target, fix=error.fix
            ) from error

    def _save(self, model: Any, target: Path) -> None:
        if is_first():
            with _files.new_directory(target) as building:
                save_model(model, building)
        wait_for_all()

    def _write_run_file(self, place: Path, what: dict[str, Any], runs: Sequence[Run]) -> None:
        orders = {run.name: list(run.order) for run in runs}
        settings = self.config.model_dump(mode="json")
        _files.write_json(
            place / _files.RUN_FILE,
            {
                "fingerprint": self.config.fingerprint,
                **what,
                "orders": orders,
                **_directory.described(settings, self._seeds(runs)),
            },
        )

    def _seed(self, name: str) -> int:
        return derived_seed(self.config.seed, name)

    def _seeds(self, runs: Sequence[Run]) -> dict[str, int]:
        """The seed of every initialisation: adapters that share theirs look alike."""
        found = {"base": self._seed("base")}
        for cell in self.cells:
            names = [f"adapters/{language}" for language in self.corpus.names]
            names = names * self.config.sequence.adapters + ["joint"] * self.config.sequence.joint
            found |= {name: self._seed(name) for name in (f"r{cell.rank}/{n}" for n in names)}
        for run in runs:
            parts = [("initialisation",), *(("adapter", name) for name in run.order)]
            found |= {
                "/".join((run.name, *part)): run_seed(self.config, run.order, run.seed, *part)
                for part in parts
            }
        return found


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
