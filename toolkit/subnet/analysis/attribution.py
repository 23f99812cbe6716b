"""Whose examples moved whose predictions, from what a checkpoint directory holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from subnet._files import sha256
from subnet._tables import Provenance, table
from subnet.analysis._attribution_source import Source, find_regime, load_source
from subnet.analysis.attribution_result import OWN, Attribution, Scored
from subnet.checkpoint import Checkpoint, open_checkpoint
from subnet.errors import InputError, MissingInputError, OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subnet.influence import Influence
    from subnet.subnetwork import Subnetwork

#: Called with the name of the present step, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class AttributionSettings:
    """How influence is computed from a directory.

    Attributes:
        method: As of `subnet.attribute`.
        level: `"example"` or `"language"`.
        checkpoints: `"stages"`: a training example counts at the checkpoints of the stages that
            trained its language. `"languages"`: at its language's own adapter or weights. `"base"`:
            at the base, with weight 1. None takes the first of the former two that there is.
        learning_rate: η of every checkpoint, where neither `subnet.toml` nor a log says it.
        n_train: Most training examples of a language; None for all.
        n_test: Most test examples of a language; None for all.
        top: How many training examples are the most helpful, or harmful.
        half: `"a"` or `"b"`: leave out test examples that are items of the other half of those in
            `items.csv`, as `measure_forgetting` halves them with the same seed. `subnet.relate`
            takes effects on half b. None takes all test examples.
        translations: `"keep"` or `"exclude"` training examples with the test item's concept.
        modules: As of `subnet.attribute`.
        masks: A directory of masks: each test item is also scored within its own language's.
        n_random: Random masks per language, matched to its own, to compare with.
        projection: As of `subnet.attribute`.
        fidelity: As of `subnet.attribute`.
        store: As of `subnet.attribute`.
        memory: As of `subnet.attribute`.
        batch_size: As of `subnet.attribute`.
        seed: Seed of everything random.
        further: Settings of the method.
    """

    method: str = "tracin"
    level: str = "example"
    checkpoints: str | None = None
    learning_rate: float | None = None
    n_train: int | None = 256
    n_test: int | None = 64
    top: int = 10
    half: str | None = None
    translations: str = "keep"
    modules: str | Sequence[str] | None = None
    masks: str | Path | None = None
    n_random: int = 0
    projection: int | None = None
    fidelity: int = 0
    store: str | Path | None = None
    memory: int | None = None
    batch_size: int = 16
    seed: int = 0
    further: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("level", self.level, ("example", "language")),
            ("translations", self.translations, ("keep", "exclude")),
            ("half", self.half, ("a", "b", None)),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}", expected=" or ".join(map(repr, known)))
        for given, needs in (
            (self.modules is not None, "--modules beside --subnetwork: a mask says which weights"),
            (
                self.store is not None,
                "--store beside --subnetwork: gradients of a mask are its own",
            ),
        ):
            if self.masks is not None and given:
                raise InputError(f"there is {needs}", expected="one of them")
        if self.n_random and (self.masks is None or self.level != "example"):
            raise InputError(
                f"{self.n_random} random masks are asked for",
                expected="masks to match, and level 'example'",
            )


def attribute_checkpoint(
    checkpoint: Checkpoint, settings: AttributionSettings, *, progress: Progress | None = None
) -> Attribution:
    """Influence of the training examples of a directory on its test examples.

    Args:
        checkpoint: With a base, `train.jsonl`, `test.jsonl`, and stages or adapters of languages.
        settings: How.
        progress: Called with the name of the step, how much is done and how much there is.

    Raises:
        MissingInputError: A file, a model or a learning rate is not there.
        InputError: Examples or settings are not usable.
        NotComparableError: Checkpoints or masks are of different models.
    """
    from subnet.influence import DataMethod, find_method
    from subnet.influence.methods import resolve_settings

    method = find_method(settings.method)
    resolve_settings(method, settings.further, seed=settings.seed)
    masks = None
    if settings.masks is not None:
        if isinstance(method, DataMethod):
            raise InputError(
                f"--subnetwork is given for {settings.method!r}, which uses no gradients"
            )
        masks = open_checkpoint(settings.masks)
    _refuse_inside(checkpoint, settings.store)
    runs = _runs(checkpoint, settings.checkpoints)
    scored: list[Scored] = []
    frames: list[pd.DataFrame] = []
    comparisons: list[pd.DataFrame] = []
    warnings: list[str] = []
    recorded: dict[str, Any] = {}
    for run, regime in runs.items():
        if progress is not None:
            progress(f"loading {run}", 0, 1)
        source = load_source(
            checkpoint, run=run, regime=regime, method=method, n_train=settings.n_train,
            n_test=settings.n_test, learning_rate=settings.learning_rate,
            batch_size=settings.batch_size, seed=settings.seed, half=settings.half,
        )  # fmt: skip
        warnings += source.warnings
        job = _Job(checkpoint, source, settings, progress, several=len(runs) > 1)
        found, compared = job.run(_masks_of(masks, source))
        scored += found
        frames += [job.table(one) for one in found]
        comparisons += [] if compared is None else [compared]
        recorded[run] = {
            **source.recorded,
            **{one.subnetwork or "full": one.influence.provenance.settings for one in found},
        }
    first = scored[0].influence.provenance
    return Attribution(
        scored=tuple(scored),
        frame=table("influence", pd.concat(frames, ignore_index=True)),
        comparison=pd.concat(comparisons, ignore_index=True) if comparisons else None,
        warnings=tuple(dict.fromkeys(warnings)),
        provenance=Provenance(
            settings.method, {**_asked(settings), "runs": recorded}, settings.seed, first.versions
        ),
        inputs=_inputs(checkpoint, masks),
    )


@dataclass(frozen=True, eq=False)
class _Job:
    """Scores of one run."""

    checkpoint: Checkpoint
    source: Source
    settings: AttributionSettings
    progress: Progress | None
    several: bool

    def run(
        self, masks: Mapping[str, Subnetwork] | None
    ) -> tuple[list[Scored], pd.DataFrame | None]:
        """Scores of the full model and of the subnetworks, and how they compare."""
        controls = self.settings.n_random if masks else 0
        total = 1 + len(masks or ()) * (1 + controls)
        full = self._attribute("full model", 0, total)
        found = [self._scored("", full)]
        if not masks:
            return found, None
        place = iter(range(1, total))
        if full.level == "language":
            parts = [
                self._attribute(f"subnetwork of {label}", next(place), total, mask, label)
                for label, mask in masks.items()
            ]
            return [*found, self._scored(OWN, _stacked(parts))], None
        within = {
            label: self._attribute(f"subnetwork of {label}", next(place), total, mask)
            for label, mask in masks.items()
        }
        scores = {label: influence.scores for label, influence in within.items()}
        own = replace(
            next(iter(within.values())), scores=self._own_rows(scores), provenance=_together(within)
        )
        random = [self._random(masks, number + 1, place, total) for number in range(controls)]
        from subnet.influence.comparison import compare_subnetworks

        translations: Any = self.settings.translations

        compared = compare_subnetworks(
            full.scores, scores, other=scores, random=random, test_items=full.test,
            train_items=full.train, m=self._m(full), run=self.source.run,
            translations=translations, method=self.settings.method,
            checkpoint=full.labels["checkpoint"], seed=self.settings.seed,
        )  # fmt: skip
        return [*found, self._scored(OWN, own)], compared

    def table(self, scored: Scored) -> pd.DataFrame:
        """Its part of the table `influence`."""
        influence = scored.influence
        about = {"run": scored.run, "subnetwork": scored.subnetwork}
        if influence.level == "language":
            return influence.languages().assign(**about)
        return influence.languages(
            **about, m=self._m(influence), translations=self.settings.translations
        )

    def _m(self, influence: Influence) -> int:
        return min(self.settings.top, len(influence.train))

    def _random(
        self, masks: Mapping[str, Subnetwork], seed: int, place: Any, total: int
    ) -> NDArray[np.float64]:
        """Scores of each test item within a random mask like its own language's."""
        from subnet.subnetwork import random_like

        by_language = {
            label: self._attribute(
                f"random mask {seed} like {label}",
                next(place),
                total,
                random_like(mask, seed),
                label,
            )
            for label, mask in masks.items()
        }
        scores = np.empty((len(self.source.test), len(self.source.train)))
        for label, influence in by_language.items():
            scores[self._places(label)] = influence.scores
        return scores

    def _attribute(
        self,
        what: str,
        done: int,
        total: int,
        subnetwork: Subnetwork | None = None,
        language: str | None = None,
    ) -> Influence:
        """Scores of the test examples, of all languages or of one."""
        from subnet.influence import attribute

        if self.progress is not None:
            self.progress(what if not self.several else f"{what} ({self.source.run})", done, total)
        settings, source = self.settings, self.source
        test = source.test
        if language is not None:
            test = [row for row in test if row["language"] == language]
        store: Any = settings.store
        if store is not None and self.several:
            store = Path(store) / source.run
        found = attribute(
            source.model, source.train, test, method=settings.method, level=settings.level,
            checkpoints=source.checkpoints, modules=settings.modules, subnetwork=subnetwork,
            collate_fn=source.collate, batch_size=source.batch_size, seed=settings.seed,
            projection=settings.projection, fidelity=settings.fidelity, store=store,
            memory=settings.memory, **settings.further,
        )  # fmt: skip
        return self._relative(found)

    def _relative(self, influence: Influence) -> Influence:
        """Without places of this machine."""
        made = influence.provenance
        settings = dict(made.settings)
        settings["checkpoints"] = [
            {**point, "checkpoint": self._name(point["checkpoint"])}
            for point in settings.get("checkpoints", ())
        ]
        if settings.get("store"):
            settings["store"] = {**settings["store"], "path": Path(settings["store"]["path"]).name}
        found = replace(influence, provenance=replace(made, settings=settings))
        if found.table is None:
            return found
        label = found.labels["checkpoint"]
        return replace(found, table=found.table.assign(checkpoint=label))

    def _name(self, name: str) -> str:
        return self.checkpoint.relative(Path(name)) if Path(name).is_absolute() else name

    def _scored(self, subnetwork: str, influence: Influence) -> Scored:
        return Scored(self.source.run, subnetwork, influence, self.source.examples)

    def _places(self, language: str) -> NDArray[np.intp]:
        return np.flatnonzero([row["language"] == language for row in self.source.test])

    def _own_rows(self, scores: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack(
            [scores[row["language"]][place] for place, row in enumerate(self.source.test)]
        )


def _runs(checkpoint: Checkpoint, asked: str | None) -> dict[str, str]:
    """Runs to what their checkpoints are: all with stages, else all with checkpoints at all."""
    known: dict[str, str] = {}
    for run in checkpoint.runs:
        try:
            known[run] = find_regime(checkpoint, run, asked)
        except MissingInputError:
            if run == checkpoint.runs[-1] and not known:
                raise
    if "stages" in known.values():
        return {run: regime for run, regime in known.items() if regime == "stages"}
    return known


def _refuse_inside(checkpoint: Checkpoint, store: str | Path | None) -> None:
    """Refuse to write gradients into what is read."""
    for directory in checkpoint.directories:
        if store is not None and Path(store).resolve().is_relative_to(directory):
            raise OutputError(
                "is inside the directory that is read, into which nothing is written",
                path=store,
                fix="choose another place with --store",
            )


def _inputs(checkpoint: Checkpoint, masks: Checkpoint | None) -> dict[str, str]:
    """SHA-256 of what was read, the base and its tokenizer too."""
    from subnet.analysis.output import inputs_of

    found = inputs_of(checkpoint)
    for entry in checkpoint.entries:
        if entry.kind == "base":
            files = [*entry.path.glob("*.safetensors"), *entry.path.glob("*.json")]
            found |= {checkpoint.relative(path): sha256(path) for path in sorted(files)}
    if masks is not None:
        found |= {f"masks: {name}": sha for name, sha in inputs_of(masks).items()}
    return found


def _masks_of(masks: Checkpoint | None, source: Source) -> dict[str, Subnetwork] | None:
    """Language of the test examples to its mask, of the source's run where there are several.

    Raises:
        MissingInputError: A language has none.
    """
    from subnet.subnetwork import load_subnetworks

    if masks is None:
        return None
    found = load_subnetworks(masks)
    run = source.run if source.run in found.runs else found.runs[0]
    labels = list(dict.fromkeys(str(row["language"]) for row in source.test))
    known = {mask.language: mask for mask in found if mask.run == run}
    lone = [label for label in labels if label not in known]
    if lone:
        raise MissingInputError(
            f"holds no mask of {', '.join(lone)}",
            path=masks.path,
            expected="one of every language that is tested",
        )
    return {label: known[label] for label in labels}


def _stacked(parts: Sequence[Influence]) -> Influence:
    """Results at language level, of one test language each, as one."""
    return replace(
        parts[0],
        scores=np.concatenate([part.scores for part in parts]),
        test=pd.concat([part.test for part in parts], ignore_index=True),
        table=pd.concat([part.table for part in parts if part.table is not None]),
        provenance=_together({str(part.test["language"].iloc[0]): part for part in parts}),
    )


def _together(parts: Mapping[str, Influence]) -> Provenance:
    """How the results within the subnetworks of several languages were made."""
    first = next(iter(parts.values())).provenance
    by_language = {name: part.provenance.settings["subnetwork"] for name, part in parts.items()}
    label = {"language": OWN, "of": by_language}
    return replace(first, settings={**first.settings, "subnetwork": label})


def _asked(settings: AttributionSettings) -> dict[str, Any]:
    """The settings, for the record."""
    found = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    for name in ("masks", "store"):
        found[name] = None if found[name] is None else Path(found[name]).name
    return {**found, "further": dict(settings.further)}
