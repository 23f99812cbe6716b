"""The analyses of a checkpoint's models: what is computed of each, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from subnet.checkpoint import Checkpoint
from subnet.errors import InputError, NotComparableError, SubnetError
from subnet.subnetwork import Subnetwork
from subnet_probes._checkpoint_masks import own_model
from subnet_probes._checkpoint_models import Point
from subnet_probes._checkpoint_pairs import (
    compared_labels,
    pair_layers,
    similarity_layers,
    transferable,
)
from subnet_probes._checkpoint_tables import Tables
from subnet_probes._probe_cost import PARALLEL, affordable_probe, probe_cost
from subnet_probes.checkpoint_probing_settings import CheckpointProbingSettings
from subnet_probes.extraction import representations
from subnet_probes.languages import language_similarity
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.probing import probe_labels, probe_language, probe_tokens
from subnet_probes.probing_result import Probing
from subnet_probes.representation import Representations
from subnet_probes.stages import drift
from subnet_probes.transfer import cross_lingual_transfer

Example = Mapping[str, Any]


@dataclass(eq=False)
class Analyses:
    """Everything that is asked for of a checkpoint's models, one model in memory at a time.

    Attributes:
        checkpoint: The checkpoint.
        settings: What is asked for.
        examples: All of them.
        points: The models, in order.
        masks: Run to language to mask.
        tables: Where rows go.
        probes: Level (`sentence`, `word`) to how its probes are made.
    """

    checkpoint: Checkpoint
    settings: CheckpointProbingSettings
    examples: Sequence[Example]
    points: Sequence[Point]
    masks: Mapping[str, Mapping[str, Subnetwork]]
    tables: Tables
    probes: dict[str, ProbeSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.languages = {example["language"] for example in self.examples}
        self.labelled = any(example.get("label") is not None for example in self.examples)
        self.tagged = [example for example in self.examples if example.get("tags")]
        #: Run to the last model that was run on all examples.
        self._before: dict[str, tuple[Point, Representations]] = {}
        #: Folder of a base to the run that came first, and what other runs need of it.
        self._bases: dict[str, tuple[str, Representations | None]] = {}

    def probe(self, point: Point) -> None:
        """All that is asked for of one model."""
        first, kept = self._bases.get(point.key, ("", None))
        if point.model == "base" and first:
            self.tables.repeat_base(first, point.run)
            if kept is not None:
                self._before[point.run] = (point, kept)
            return
        found = self._sentences(point)
        if found is not None:
            self._of_sentences(point, found)
        if self.tagged and self._wants_labels(point, "tokens"):
            self._of_words(point)
        if point.model == "base":
            others = any(p.key == point.key and p.run != point.run for p in self.points)
            self._bases[point.key] = (point.run, found if others else None)

    def without_subnetworks(self) -> None:
        """Labels of each language at its own model, without its own subnetwork."""
        levels = [("labels", "sentence", self.settings.pool, self.examples, self.labelled),
                  ("tokens", "word", "token", self.tagged, bool(self.tagged))]  # fmt: skip
        for run, masks in self.masks.items():
            for label, mask in masks.items():
                point = own_model(self.points, run, label)
                for analysis, level, pool, examples, there in levels:
                    rows = [row for row in examples if row["language"] == label]
                    if point is None or not rows or not there or not self.settings.wants(analysis):
                        continue
                    with self.tables.attempt(analysis, f"{point.name} without a subnetwork"):
                        found = self._extract(point, rows, pool, mask)
                        self._labels(point, found, level, [label], subnetwork="removed")

    # Representations

    def _sentences(self, point: Point) -> Representations | None:
        """Hidden states of sentences; None where nothing that is asked for needs them."""
        wanted = self.settings.wants
        drifts = point.whole and wanted("drift") and any(
            other.whole and other is not point for other in self.points if other.run == point.run
        )  # fmt: skip
        of_end = wanted("language", "similarity") or (self.labelled and wanted("transfer"))
        of_end = of_end or bool(self._unit_masks(point))
        if not (drifts or (point.end and of_end) or
                (self.labelled and self._wants_labels(point, "labels"))):  # fmt: skip
            return None
        rows = [e for e in self.examples if point.whole or e["language"] == point.trained]
        try:
            return self._extract(point, rows, self.settings.pool)
        except SubnetError as error:
            if point.model != "adapter":
                raise
            self.tables.fail("labels", error, point.name)
            return None

    def _extract(
        self, point: Point, rows: Sequence[Example], pool: str, mask: Subnetwork | None = None
    ) -> Representations:
        store = self.settings.store
        if store is not None:
            level = "words" if pool == "token" else "sentences"
            without = [] if mask is None else ["without", mask.language]
            store = Path(store) / point.run / "-".join([*point.name.split(), level, *without])
        return representations(
            self.checkpoint, rows, layers=self.settings.layers, pool=pool, subnetwork=mask,
            batch_size=self.settings.batch_size, store=store, **point.which,
        )  # fmt: skip

    # Analyses

    def _of_sentences(self, point: Point, found: Representations) -> None:
        wanted = self.settings.wants
        if point.end and wanted("language"):
            with self.tables.attempt("language", point.name):
                made, seed = self._settings(found, "sentence"), self.settings.seed
                self._add(point, probe_language(found, settings=made, seed=seed))
        if self.labelled and self._wants_labels(point, "labels"):
            with self.tables.attempt("labels", point.name):
                languages = None if point.end else [point.trained]
                self._labels(point, found, "sentence", languages)
        if point.end and self.labelled and wanted("transfer"):
            self._transfer(point, found, "label", "sentence")
        if point.end and wanted("similarity"):
            self._similarity(point, found)
        if point.whole and wanted("drift"):
            self._drift(point, found)
        if self._unit_masks(point):
            self._units(point, found)

    def _of_words(self, point: Point) -> None:
        rows = [row for row in self.tagged if point.end or row["language"] == point.trained]
        if not rows:
            return
        try:
            found = self._extract(point, rows, "token")
        except NotComparableError:
            raise  # the store holds something else
        except InputError as error:
            # Words may be out of reach where sentences are not: a tokenizer without offsets.
            self.tables.fail("tokens", error)
            self.tagged = []
            return
        if self.settings.wants("tokens"):
            with self.tables.attempt("tokens", point.name):
                self._labels(point, found, "word", None if point.end else [point.trained])
        if point.end and self.settings.wants("transfer"):
            self._transfer(point, found, "tag", "word")

    def _labels(
        self,
        point: Point,
        found: Representations,
        level: str,
        languages: list[str] | None,
        subnetwork: str = "",
    ) -> None:
        probe = probe_labels if level == "sentence" else probe_tokens
        made, seed = self._settings(found, level), self.settings.seed
        self._add(point, probe(found, languages=languages, settings=made, seed=seed), subnetwork)

    def _transfer(self, point: Point, found: Representations, target: str, level: str) -> None:
        with self.tables.attempt("transfer", point.name):
            made = self._settings(found, level)
            languages, lines = transferable(found, target, made.folds)
            which, line = compared_labels(found, target, languages)
            lines += [line] if line else []
            moved = cross_lingual_transfer(
                found, target=target, languages=languages, settings=made, seed=self.settings.seed,
                layers=pair_layers(found, self.settings.pair_layers), label_sets=which,
            )  # fmt: skip
            for line in (*lines, *moved.warnings):
                self.tables.note(f"transfer of {target}s: {line}", point.name)
            self.tables.add("transfer", moved.frame, {"run": point.run, "stage": point.stage})

    def _similarity(self, point: Point, found: Representations) -> None:
        concepts = found.items["concept"].notna()
        if not concepts.any():
            return
        if not concepts.all():
            n = int((~concepts).sum())
            self.tables.note(f"similarity: {n} examples have no concept; left out", point.name)
        parallel = found.subset(concepts.to_numpy())
        with self.tables.attempt("similarity", point.name):
            layers = similarity_layers(parallel, self.settings.pair_layers)
            for measure in self.settings.measures:
                frame = language_similarity(
                    parallel, measure, layers, n_shuffles=self.settings.n_shuffles,
                    seed=self.settings.seed,
                ).drop(columns="run")  # fmt: skip
                self.tables.add("similarity", frame, {"run": point.run, "stage": point.stage})

    def _drift(self, point: Point, found: Representations) -> None:
        earlier = self._before.get(point.run)
        self._before[point.run] = (point, found)
        if earlier is None:
            return
        with self.tables.attempt("drift", point.name):
            stages = {earlier[0].stage or 0: earlier[1], point.stage or 0: found}
            moved = drift(stages, n_shuffles=self.settings.n_shuffles, seed=self.settings.seed)
            self.tables.add("drift", moved.drop(columns="run"), {"run": point.run})

    def _units(self, point: Point, found: Representations) -> None:
        from subnet_probes._checkpoint_units import units_of_languages

        with self.tables.attempt("units", point.name):
            frame = units_of_languages(
                self.checkpoint, point, found, self.examples, self._unit_masks(point),
                pool=self.settings.pool, batch_size=self.settings.batch_size,
            )  # fmt: skip
            place = {"run": point.run, "stage": point.stage, "model": point.model}
            self.tables.add("units", frame, place)

    def _add(self, point: Point, found: Probing, subnetwork: str = "") -> None:
        for line in found.warnings:
            self.tables.note(line, point.name)
        self.tables.add("probes", found.frame.assign(subnetwork=subnetwork), point.place)

    # Settings

    def _wants_labels(self, point: Point, analysis: str) -> bool:
        """Whether labels (of words, where it is `tokens`) are probed at a model."""
        of_pairs = analysis == "tokens" and point.end and self.settings.wants("transfer")
        mine = point.end or point.trained in self.languages
        return (self.settings.wants(analysis) and mine) or of_pairs

    def _unit_masks(self, point: Point) -> dict[str, Subnetwork]:
        """Masks of neurons and heads to compare a model's units with: those of the base's run."""
        if point.model != "base" or not self.settings.wants("units"):
            return {}
        masks = self.masks.get(point.run, {})
        return {k: mask for k, mask in masks.items() if mask.granularity in ("neuron", "head")}

    def _settings(self, found: Representations, level: str) -> ProbeSettings:
        """How probes of a level are made: as asked for, else as is affordable."""
        if level not in self.probes:
            made, line = self.settings.probe, ""
            if made is None:
                made, line = affordable_probe(self.points, found, level)
            if made.n_jobs is None:
                jobs = self.settings.n_jobs
                if jobs is None and probe_cost(self.points, found, level, made) > PARALLEL:
                    jobs = -1
                made = replace(made, n_jobs=jobs)
            self.probes[level] = made
            self.tables.warnings += [line] if line else []
        return self.probes[level]
