"""One configuration: the base, the cells, and what their runs are compared with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.checkpoint import open_checkpoint
from subnet.errors import DivergedError
from subnet.training import _directory
from subnet.training._ahead import check_density, check_optimizers
from subnet.training._base import MASKS, LeftByBase, fit_base
from subnet.training._building import build_task
from subnet.training._models import adapted
from subnet.training._plan import Cell, Lone, Run, plan_cells, plan_lone, plan_runs
from subnet.training._procedure import Procedure, steps_of, steps_of_a_stage, with_alignment
from subnet.training._processes import first_says, is_first, wait_for_all
from subnet.training._progress import Progress, Steps
from subnet.training._sequence import SequenceRun, Setting, derived_seed, run_seed
from subnet.training._stages import StageLog, item_rows, score_rows
from subnet.training._starting import labels_of, starting_model
from subnet.training._static_masks import (
    check_base_ahead,
    check_masks_fit,
    identity_as,
    masks_in,
    on_this_base,
    read_masks,
)
from subnet.training._trainer import fit
from subnet.training.config import TrainingConfig
from subnet.training.corpora import Corpus
from subnet.training.recipe import Recipe
from subnet.training.sharing import own_parameters, save_model


class Experiment:
    """One configuration: its data, its base, and the directory that it fills."""

    def __init__(
        self,
        config: TrainingConfig,
        corpus: Corpus,
        root: Path,
        target: Path,
        report: Progress,
        n_sequences: int,
        *,
        inputs: Mapping[str, str] | None = None,
        entered: Callable[[], None] = lambda: None,
        going_on: bool = False,
    ) -> None:
        self.config, self.target, self._root = config, target, root
        self._inputs, self._entered = dict(inputs or {}), entered
        self.base, self.tokenizer = starting_model(config, corpus.labels, root, self._seed("base"))
        #: A model that tells the same labels apart may have them in another order.
        self.corpus = dataclasses.replace(corpus, labels=labels_of(self.base, corpus.labels))
        corpus = self.corpus
        self.task = build_task(config, corpus, self.base, self.tokenizer)
        self._masks = read_masks(config, root, corpus.names)
        per_sequence = len(corpus.names) * steps_of_a_stage(config, self.task)
        joint = config.sequence.joint * steps_of(
            self.task, len(corpus.names) * config.training.steps
        )
        self.cells = plan_cells(config)
        self.runs = runs = plan_runs(config, corpus.names)
        lone = {
            entry.name
            for cell in self.cells
            for entry in plan_lone(config, cell, corpus.names, runs)
        }
        for rank in config.adaptation.ranks:  # what cannot be trained is said before training
            model = adapted(self.base, config.adaptation, rank, seed=0)
            for cell in self.cells:
                own_parameters(model, config.adaptation, cell.sharing)
            if rank == config.adaptation.ranks[0]:
                for masked in self._masked_models(model):
                    check_masks_fit(self._masks, masked, root / config.subnetworks.masks)
                    check_density(config, masked)
                check_optimizers(config, model, target)
        there = target / "base" if going_on else None
        check_base_ahead(
            self._masks, config, root, model=self.base, there=there, inputs=self._inputs
        )
        n_ranks = len(config.adaptation.ranks)
        total = config.base.steps + n_sequences * per_sequence + n_ranks * joint
        self.steps = Steps(report, total + len(lone) * steps_of(self.task, config.training.steps))
        self._counted: set[str] = set()

    def train_base(self) -> None:
        """The model before the sequence, trained on all languages together; then as it was saved.

        Everything starts from what is on the disk, so that a run that goes on starts from the same.
        """
        place = self.target / "base"
        if first_says(place.is_dir()):
            self.steps.passed(self.config.base.steps)
        else:
            left = self._fit_base() if self.config.base.steps else LeftByBase()
            if is_first():
                with _files.new_directory(place) as building:
                    self.tokenizer.save_pretrained(building)
                    self.base.save_pretrained(building)
                    identity = identity_as(place.name, building)
                    left.save_masks(building, self.corpus.names, identity)
            wait_for_all()
        self.base = type(self.base).from_pretrained(place, dtype="float32")
        identity = open_checkpoint(self.target).base_identity()
        masks = on_this_base(self._masks, identity, self.config, self._root)
        wanted = self.config.subnetworks
        if wanted.in_base == "dynamic" and wanted.in_stages == "dynamic":
            masks = masks_in(place / MASKS, self.corpus.names, identity)
        self.procedure = Procedure(self.config, self.task, self.corpus, self.base, identity, masks)

    def train_cell(self, cell: Cell, place: Path, runs: Sequence[Run]) -> None:
        """One sharing regime at one rank: every order, and what they are compared with."""
        if (place / _files.RUN_FILE).is_file():
            steps = steps_of_a_stage(self.config, self.task)
            self.steps.passed(sum(len(run.order) for run in runs) * steps)
            return
        setting = Setting(
            self.config, cell.sharing, cell.rank, self.corpus, self.task, self.base,
            self.steps.named, self.steps.passed, self.procedure, self._entered,
        )  # fmt: skip
        alone = len(runs) == 1
        if is_first():
            place.mkdir(parents=True, exist_ok=True)
            _directory.link_folder(self.target / "base", place / "base")
            _directory.write_corpus(self.corpus, place)
            _directory.write_references(self.corpus, self.task, place)
        wait_for_all()
        for entry in plan_lone(self.config, cell, self.corpus.names, runs):
            self._train_lone(cell, place, entry)
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
                what = {"sharing": cell.sharing, "rank": cell.rank}
                self._write_run_file(place, what, [cell], runs)
        wait_for_all()

    def finish(self, cells: Sequence[Cell], runs: Sequence[Run]) -> None:
        """Say that all is done."""
        if is_first():
            what = {"cells": [cell.name for cell in cells]}
            self._write_run_file(self.target, what, cells, runs)
            StageLog(self.target).remove()
        wait_for_all()

    def _train_sequence(self, setting: Setting, folder: Path, run: Run, *, alone: bool) -> None:
        if (folder / "scores.csv").is_file():
            self.steps.passed(len(run.order) * steps_of_a_stage(self.config, self.task))
            if is_first() and folder != self.target:
                StageLog(folder).remove()
            return
        sequence = SequenceRun(setting, folder, run.order, run.seed)
        sequence.run()
        if is_first():
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
            if folder != self.target:  # whose own log says that the training is ours
                sequence.log.remove()
        wait_for_all()

    def _train_lone(self, cell: Cell, place: Path, entry: Lone) -> None:
        """A language's adapter from the base, from a seed of its own."""
        steps = self.config.training.steps
        if self._have(self._with_lone(entry), place, entry.folder, entry.name, steps):
            return
        model = adapted(self.base, self.config.adaptation, cell.rank, self._seed(entry.name))
        self._fit(model, (entry.language,), entry.name, self.config.training.recipe)
        self._save(model, place / entry.folder)

    def _train_joint(self, cell: Cell, place: Path) -> None:
        """One model trained on all languages at once, for as many steps as the sequence."""
        target, name = place / "joint", f"r{cell.rank}/joint"
        recipe = self.config.training.recipe
        recipe = recipe.replace(steps=recipe.steps * len(self.corpus.names))
        same = [other for other in self.cells if other.rank == cell.rank]
        if self._have(same, place, "joint", name, recipe.steps):
            return
        model = adapted(self.base, self.config.adaptation, cell.rank, self._seed(name))
        self._fit(model, self.corpus.names, name, recipe)
        rows = self.corpus.test
        outcome = self.task.evaluate(model, rows, batch_size=self.config.evaluation.batch_size)
        if is_first():
            import pandas as pd

            from subnet._tables import write_csv

            scores = pd.DataFrame(score_rows(self.task, rows, outcome, self.corpus.tested))
            with _files.new_directory(target) as building:
                for file, frame in (("scores", scores), ("items", item_rows(rows, outcome))):
                    frame.insert(0, "stage", 1)
                    write_csv(frame, building / f"{file}.csv")
                save_model(model, building / "model")
        wait_for_all()

    def _with_lone(self, entry: Lone) -> list[Cell]:
        """The cells in which this very training is wanted, in the same folder."""
        languages = self.corpus.names
        return [
            cell
            for cell in self.cells
            if entry in plan_lone(self.config, cell, languages, self.runs)
        ]

    def _have(
        self, cells: Sequence[Cell], place: Path, name: str, training: str, steps: int
    ) -> bool:
        """Whether a folder is there, or in another of the cells, which share this training."""
        known, steps = training in self._counted, steps_of(self.task, steps)
        self._counted.add(training)
        others = [self.target / other.name for other in cells]
        source = next((other / name for other in others if (other / name).is_dir()), None)
        if source is not None and is_first():
            _directory.link_folder(source, place / name)
        wait_for_all()
        found = first_says((place / name).is_dir())
        self.steps.passed(steps if found and not known else 0)
        return bool(found)

    def _masked_models(self, adapted: Any) -> list[Any]:
        """The models in which masks hold: the base while it is trained, and what a stage trains."""
        wanted = self.config.subnetworks
        return [self.base] * (wanted.in_base != "none") + [adapted] * (wanted.in_stages != "none")

    def _fit_base(self) -> LeftByBase:
        """The base on all languages, by the method of the configuration."""
        with self._naming("base"):
            left = fit_base(
                self.base,
                self.config,
                self.task,
                self.corpus,
                masks=self._masks,
                seed=self._seed("base/batches"),
                folder=StageLog(self.target).trainer_folder(0),
                on_step=self.steps.named("base"),
            )
        if left.conflict is not None and is_first():
            from subnet._tables import write_csv

            with _files.new_file(self.target / "conflict.csv") as building:
                write_csv(left.conflict, building)
        return left

    def _fit(
        self,
        model: Any,
        languages: Sequence[str],
        name: str,
        recipe: Recipe,
    ) -> None:
        """One training outside the sequences, with steps of alignment where they are asked for."""
        chosen = set(languages)
        rows = [row for row in self.corpus.train if row["language"] in chosen]
        log, seed = StageLog(self.target), self._seed(f"{name}/batches")
        features = self.task.encode(rows)
        recipe, further = with_alignment(self.config, self.task, features, recipe, seed)
        with self._naming(name):
            fit(
                model,
                features,
                recipe,
                collate=self.task.collate,
                seed=seed,
                folder=log.trainer_folder(0),
                on_step=self.steps.named(name),
                **further,
            )

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Let an error of training say which one it was."""
        try:
            yield
        except DivergedError as error:
            raise DivergedError(
                f"{name}: {error.found}", path=self.target, fix=error.fix
            ) from error

    def _save(self, model: Any, target: Path) -> None:
        if is_first():
            with _files.new_directory(target) as building:
                save_model(model, building)
        wait_for_all()

    def _write_run_file(
        self, place: Path, what: dict[str, Any], cells: Sequence[Cell], runs: Sequence[Run]
    ) -> None:
        orders = {run.name: list(run.order) for run in runs}
        settings = self.config.model_dump(mode="json")
        _files.write_json(
            place / _files.RUN_FILE,
            {
                "fingerprint": self.config.fingerprint,
                "inputs": self._inputs,
                **what,
                "orders": orders,
                **_directory.described(
                    settings, self._seeds(cells, runs), self.task, self.corpus.test
                ),
            },
        )

    def _seed(self, name: str) -> int:
        return derived_seed(self.config.seed, name)

    def _seeds(self, cells: Sequence[Cell], runs: Sequence[Run]) -> dict[str, int]:
        """The seed of every initialisation: adapters that share theirs look alike."""
        found = {"base": self._seed("base")}
        for cell in cells:
            lone = plan_lone(self.config, cell, self.corpus.names, runs)
            names = [entry.name for entry in lone]
            names += [f"r{cell.rank}/joint"] * self.config.sequence.joint
            found |= {name: self._seed(name) for name in names}
        for run in runs:
            parts = [("initialisation",), *(("adapter", name) for name in run.order)]
            found |= {
                "/".join((run.name, *part)): run_seed(self.config, run.order, run.seed, *part)
                for part in parts
            }
        return found
