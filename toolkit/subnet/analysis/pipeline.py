"""The main job: from a directory that training left behind to the page that answers.

This is the only module that knows all the rooms, and reads in the order in which data flows:
open → extract → overlap → influence → forgetting → extensions → relation → report. What cannot be
computed from what is there is listed with the file that it wants; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from subnet._tables import COLUMNS, Provenance, provenance, table
from subnet.analysis import output
from subnet.analysis.affordable import InfluenceTrial, find_influence
from subnet.analysis.attribution_result import Attribution
from subnet.analysis.extension import Addition, Extension
from subnet.analysis.search import Search, find_halves, find_subnetworks
from subnet.analysis.trial import Trial, try_subnetworks
from subnet.checkpoint import Checkpoint, open_checkpoint
from subnet.confounds import Confounds, groupings, measure_confounds
from subnet.errors import InputError, MissingInputError
from subnet.forgetting import Forgetting, measure_forgetting
from subnet.overlap import MASK_MEASURES, UPDATE_MEASURES, Overlap, measure_overlap
from subnet.relation import Headline, Relation, control_matrices, relate
from subnet.report import Missing, Section
from subnet.subnetwork import Subnetworks, extract
from subnet.validation import Ablation, Sweep

#: Called with the name of the present step, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

#: Steps against languages stand both ways, l² pairs: with single modules a table of gigabytes.
_DIRECTED_LEVELS = ("all", "layer")

_STEPS = (
    "languages", "subnetworks", "overlap", "ablation", "influence", "forgetting", "extensions",
    "relation",
)  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """Everything that one checkpoint directory says about its languages.

    Attributes:
        checkpoint: What was found.
        confounds: What else differs between the languages.
        subnetworks: One mask per language and run; None without weights or masks.
        overlaps: By what was compared: `masks`, `updates` (every pair of languages), `step_masks`,
            `step_updates` (what a training stage changed against what each language uses).
        ablation: What is lost without each mask, and with it alone; None where it was not tried.
        sweep: How much of each mask is needed; None where it was not tried.
        influence: Whose training examples moved whose predictions; None where it was not computed.
        forgetting: What was lost and gained; None without scores over stages.
        groups: Differences between groups of languages; None without scores.
        relation: Whether overlap goes with what training one language did to the others.
        missing: Analyses that were not possible, and what each wants.
        warnings: What a reader must know before believing a number.
        provenance: Settings, seed and versions.
        sections: Further sections of the report.
        additions: By name of the extension, what it added.
        masks: Where the masks were read, if not in the checkpoint.
    """

    checkpoint: Checkpoint
    confounds: Confounds
    subnetworks: Subnetworks | None
    overlaps: Mapping[str, Overlap]
    ablation: Ablation | None
    sweep: Sweep | None
    influence: Attribution | None
    forgetting: Forgetting | None
    groups: pd.DataFrame | None
    relation: Relation | None
    missing: tuple[Missing, ...]
    warnings: tuple[str, ...]
    provenance: Provenance
    sections: Sequence[Section] = field(default=(), repr=False)
    additions: Mapping[str, Addition] = field(default_factory=dict, repr=False)
    masks: Checkpoint | None = field(default=None, repr=False)

    @property
    def headline(self) -> Headline:
        """The answer in one sentence, in one of four states."""
        if self.relation is not None:
            return self.relation.headline
        wanted = next(entry for entry in self.missing if entry.analysis == "relation")
        return Headline("files missing", f"{wanted.reason.capitalize()}: {wanted.fix}.", None)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by file name; an analysis that was not possible has none."""
        found = {"languages": table("languages", self.confounds.frame)}
        if self.overlaps:
            frames = [overlap_table(name, overlap) for name, overlap in self.overlaps.items()]
            found["overlap"] = table("overlap", pd.concat(frames, ignore_index=True))
        if self.ablation is not None:
            found["ablation"] = self.ablation.to_frame()
            found["specificity"] = self.ablation.specificity
        if self.sweep is not None:
            found["sweep"] = self.sweep.to_frame()
        if self.influence is not None:
            found["influence"] = table("influence", self.influence.frame)
        if self.checkpoint.holds("scores"):
            found["scores"] = table("scores", self.checkpoint.scores.frame)
        if self.forgetting is not None:
            found["effects"] = table("effects", self.forgetting.effects)
            found["forgetting"] = table("forgetting", self.forgetting.frame)
        if self.groups is not None:
            found["groups"] = table("groups", self.groups)
        if self.relation is not None:
            found["relation"] = table("relation", self.relation.to_frame())
        for addition in self.additions.values():
            found |= addition.tables
        return found

    def key_numbers(self) -> list[str]:
        """The main numbers in plain words, a line each."""
        return output.key_numbers(self)

    def summary(self) -> dict[str, Any]:
        """Headline numbers, what was recognised, what was skipped and why: `summary.json`."""
        return output.summary(self)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write report, summary, tables, graphs and figures; all of it or nothing.

        Args:
            directory: A new directory.
            overwrite: Replace one that an earlier analysis wrote.

        Returns:
            The directory.

        Raises:
            OutputError: The directory is taken, is not ours to replace, or cannot be written.
        """
        return output.save(self, Path(directory), overwrite=overwrite)


def analyze(
    paths: str | Path | Sequence[str | Path] | Checkpoint,
    *,
    method: str | None = None,
    density: float | None = None,
    scope: str | None = None,
    settings: Mapping[str, Any] | None = None,
    masks: str | Path | None = None,
    ablation: bool | None = None,
    influence: bool | None = None,
    metric: str | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
    sections: Sequence[Section] = (),
    extensions: Sequence[Extension] = (),
    progress: Progress | None = None,
) -> Analysis:
    """Compute everything that a checkpoint allows.

    Args:
        paths: A checkpoint directory, several runs, or a `Checkpoint`.
        method: How subnetworks are found, as for `subnet.extract`. Where it is not given, the masks
            that the checkpoint holds are taken, else those by magnitude.
        density: Share that a language's subnetwork keeps; the default of the method if not given.
        scope: Rank weights over the whole model (`global`) or within each module (`module`).
        settings: Further settings of the method.
        masks: A directory of masks (as `subnet extract` writes) to take instead.
        ablation: Whether to remove each mask from its model, keep it alone, and see what is lost;
            by default where that takes about a minute (`subnet.analysis.trial.LIMIT`).
        influence: Whether to compute which language's training examples moved which language's
            predictions, over the stages of training; by default where that takes about a minute.
        metric: Metric whose changes are explained; `loss` where there is one, else the first.
        n_permutations: Most permutations for a p-value; exact where fewer exist.
        seed: Seed of everything random.
        sections: Further sections of the report.
        extensions: Further analyses, called once what was forgotten is known: they add tables,
            predictors of the relation, sections and numbers (`subnet.analysis.Addition`).
        progress: Called with the name of the step, how much is done and how much there is.

    Raises:
        SubnetError: The input cannot be used; the message says which file and why.

    Example:
        >>> analysis = subnet.analyze("checkpoint/")  # doctest: +SKIP
        >>> print(analysis.headline.sentence)  # doctest: +SKIP
        >>> analysis.save("report/")  # doctest: +SKIP
    """
    checkpoint = paths if isinstance(paths, Checkpoint) else open_checkpoint(paths)

    def step(name: str) -> None:
        if progress is not None:
            progress(f"analysing: {name}", _STEPS.index(name), len(_STEPS))

    step("languages")
    confounds = measure_confounds(checkpoint)

    step("subnetworks")
    search = Search(method, density, scope, settings or {}, masks)
    subnetworks = find_subnetworks(checkpoint, search)

    step("overlap")
    overlaps = find_overlaps(checkpoint, subnetworks, search, seed=seed)

    step("ablation")
    trial = try_subnetworks(checkpoint, subnetworks, search, wanted=ablation, seed=seed)

    step("influence")
    moved = find_influence(checkpoint, wanted=influence, seed=seed)

    step("forgetting")
    forgetting, groups = None, None
    if checkpoint.can("forgetting"):
        forgetting = measure_forgetting(checkpoint.scores, reference=checkpoint.joint, seed=seed)
        metric = _metric(forgetting, metric)
        groups = forgetting.groups(groupings(confounds.frame), n_permutations=n_permutations)

    step("extensions")
    additions = _extended(checkpoint, forgetting, extensions)

    step("relation")
    relation = None
    if forgetting is not None and metric and overlaps and checkpoint.can("relation"):
        relation = relate(
            forgetting,
            overlap=overlaps,
            influence=moved.attribution,
            representations=_representations(checkpoint, forgetting, additions),
            controls=_controls(checkpoint, confounds, forgetting, metric),
            metric=metric,
            n_permutations=n_permutations,
            seed=seed,
        )

    recorded = {
        **search.to_dict(),
        "metric": metric,
        "n_permutations": n_permutations,
    }
    return Analysis(
        checkpoint=checkpoint,
        confounds=confounds,
        subnetworks=subnetworks,
        overlaps=overlaps,
        ablation=trial.ablation,
        sweep=trial.sweep,
        influence=moved.attribution,
        forgetting=forgetting,
        groups=groups,
        relation=relation,
        missing=(
            *_missing(checkpoint, subnetworks, overlaps, forgetting, relation),
            *trial.missing,
            *moved.missing,
            *(entry for addition in additions.values() for entry in addition.missing),
        ),
        warnings=_warnings(subnetworks, overlaps, trial, moved, forgetting, additions),
        provenance=provenance("analyze", recorded, seed=seed, libraries=output.LIBRARIES),
        sections=sections,
        additions=additions,
        masks=search.opened_masks,
    )


def _extended(
    checkpoint: Checkpoint, forgetting: Forgetting | None, extensions: Sequence[Extension]
) -> dict[str, Addition]:
    """What each extension adds, by its name."""
    found: dict[str, Addition] = {}
    taken = set(COLUMNS) | {"ablation", "specificity", "sweep"}
    for extension in extensions:
        if extension.name in found:
            raise InputError(f"two extensions are called {extension.name!r}")
        addition = extension(checkpoint, forgetting)
        repeated = sorted(taken & set(addition.tables))
        if repeated:
            raise InputError(
                f"the extension {extension.name!r} writes the table {repeated[0]!r}, which is there"
            )
        taken |= set(addition.tables)
        found[extension.name] = addition
    return found


def _representations(
    checkpoint: Checkpoint, forgetting: Forgetting, additions: Mapping[str, Addition]
) -> dict[str, pd.DataFrame] | None:
    """Predictors of the extensions; what was measured on a base stands for every run on it."""
    given = [addition.representations for addition in additions.values()]
    frames = {name: frame for one in given for name, frame in one.items() if len(frame)}
    return {
        name: _with_runs_of_the_base(checkpoint, frame, forgetting.runs)
        for name, frame in frames.items()
    } or None


def _with_runs_of_the_base(
    checkpoint: Checkpoint, frame: pd.DataFrame, runs: Sequence[str]
) -> pd.DataFrame:
    """With rows for the runs that start from a base on which another run was measured."""
    measured = [str(run) for run in frame["run"].unique() if run in checkpoint.runs]
    others = [run for run in runs if run not in measured]
    if not others or not checkpoint.holds("base"):
        return frame
    identity = {run: checkpoint.base_identity(run) for run in (*measured, *others)}
    parts = [frame]
    for run in others:
        like = next((m for m in measured if identity[m] == identity[run]), None)
        if like is not None:
            parts.append(frame[frame["run"] == like].assign(run=run))
    return pd.concat(parts, ignore_index=True)


def find_overlaps(
    checkpoint: Checkpoint, subnetworks: Subnetworks | None, search: Search, *, seed: int
) -> dict[str, Overlap]:
    """Every comparison that the directory allows, by what was compared with what.

    Masks of singular directions are left out: `_missing` says why.
    """
    updates, steps = checkpoint.updates, checkpoint.steps
    found: dict[str, Overlap] = {}
    if subnetworks is not None and _has_pairs(subnetworks) and not _of_directions(subnetworks):
        halves = find_halves(checkpoint, search, subnetworks)
        found["masks"] = measure_overlap(subnetworks, halves=halves, seed=seed)
    if _has_pairs(updates or steps):
        found["updates"] = measure_overlap(updates or steps, seed=seed)
    if steps and updates:
        directed: dict[str, Any] = {"levels": _DIRECTED_LEVELS, "seed": seed}
        # What a stage changed is known by weight; units have no counterpart in it.
        if subnetworks is not None and subnetworks[0].granularity == "weight":
            by_weight = search.settings if search.method in (None, "magnitude") else {}
            changed = extract(steps, **by_weight)
            found["step_masks"] = measure_overlap(changed, others=subnetworks, **directed)
        found["step_updates"] = measure_overlap(steps, others=updates, **directed)
    return found


def overlap_by_measure(
    checkpoint: Checkpoint, measure: str, search: Search, *, seed: int
) -> Overlap:
    """The overlap of all languages that defines a measure.

    Raises:
        InputError: There is no such measure.
        MissingInputError: The checkpoint holds nothing that it could be measured on.
    """
    if measure not in (*MASK_MEASURES, *UPDATE_MEASURES):
        known = ", ".join((*MASK_MEASURES, *UPDATE_MEASURES))
        raise InputError(f"there is no measure {measure!r}", expected=f"one of {known}")
    if measure in MASK_MEASURES:
        things: Any = find_subnetworks(checkpoint, search)
    else:
        things = checkpoint.updates or checkpoint.steps
    if not things:
        raise MissingInputError(
            f"holds nothing that {measure} could be measured on",
            path=checkpoint.path,
            expected="adapters/<language>/ for two languages or more",
        )
    return measure_overlap(things, seed=seed)


def overlap_table(name: str, overlap: Overlap) -> pd.DataFrame:
    """Rows of `overlap.csv`, their source told apart by what was compared."""
    return overlap.to_frame().assign(source=name)


def _of_directions(subnetworks: Subnetworks | None) -> bool:
    """Whether masks are of singular directions, whose overlap has no null model."""
    return bool(subnetworks) and any(mask.granularity == "direction" for mask in subnetworks or ())


def _has_pairs(things: Sequence[Any]) -> bool:
    """Whether any run holds two languages."""
    runs: dict[str, set[str]] = {}
    for thing in things:
        runs.setdefault(thing.run, set()).add(str(thing.language))
    return any(len(languages) > 1 for languages in runs.values())


def _metric(forgetting: Forgetting, metric: str | None) -> str:
    """The metric that was asked for, else `loss`, which does not saturate, else the first."""
    if metric is not None and metric not in forgetting.metrics:
        raise InputError(
            f"there is no metric {metric!r}", expected=f"one of {', '.join(forgetting.metrics)}"
        )
    return metric or ("loss" if "loss" in forgetting.metrics else next(iter(forgetting.metrics)))


def _controls(
    checkpoint: Checkpoint, confounds: Confounds, forgetting: Forgetting, metric: str
) -> dict[str, Any]:
    """What else two languages have in common; `relate` drops what is constant or incomplete."""
    # Without items, the baseline would share its errors with the effects that it is to explain.
    baseline = None
    if forgetting.has_halves(metric):
        baseline = {run: forgetting.baseline(metric, run) for run in forgetting.runs}
    return control_matrices(
        checkpoint.languages,
        checkpoint.families,
        baseline=baseline,
        position={run: dict(order) for run, order in checkpoint.scores.order.items()},
        examples=_by_language(confounds.frame, "train_examples"),
        bytes_per_character=_by_language(confounds.frame, "bytes_per_character"),
        shared_tokens=confounds.shared_tokens,
    )


def _by_language(frame: pd.DataFrame, column: str) -> dict[str, float]:
    return dict(zip(frame["language"], frame[column].astype(float), strict=True))


def _missing(
    checkpoint: Checkpoint,
    subnetworks: Subnetworks | None,
    overlaps: Mapping[str, Overlap],
    forgetting: Forgetting | None,
    relation: Relation | None,
) -> tuple[Missing, ...]:
    """What was not computed, and which files it wants by the inventory's word."""
    untested: tuple[Missing, ...] = ()
    if _of_directions(subnetworks):
        untested = (
            Missing(
                "overlap" if not overlaps else "overlap of masks",
                "the masks are of singular directions, whose overlap has no null model",
                "measure_directions tests them one by one; the overlap of updates compares whole "
                "subspaces",
            ),
        )
    done = {
        "overlap": bool(overlaps) or bool(untested),
        "forgetting": forgetting is not None,
        "relation": relation is not None,
    }
    wanted = tuple(
        Missing(
            capability.name,
            f"{capability.name} was not measured",
            f"add {'; '.join(capability.missing) or 'what was skipped'}",
        )
        for capability in checkpoint.capabilities
        if not done.get(capability.name, True)  # of influence its trial says more
    )
    return (*untested, *wanted)


def _warnings(
    subnetworks: Subnetworks | None,
    overlaps: Mapping[str, Overlap],
    trial: Trial,
    moved: InfluenceTrial,
    forgetting: Forgetting | None,
    additions: Mapping[str, Addition],
) -> tuple[str, ...]:
    """Every room's warnings, each once."""
    found: list[str] = []
    for subnetwork in subnetworks or ():
        unit = f"{subnetwork.granularity}s"
        short = int(subnetwork.settings.get("zeros_left_out", 0))
        if short:
            why = "were changed" if subnetwork.method == "magnitude" else "matter at all"
            found.append(
                f"the subnetwork of {subnetwork.language} is smaller than asked for: {short} "
                f"{unit} short, since no more {why}"
            )
    for overlap in overlaps.values():
        found += overlap.warnings
    found += [*trial.warnings, *moved.warnings]
    if forgetting is not None:
        found += forgetting.warnings
    for addition in additions.values():
        found += addition.warnings
    return tuple(dict.fromkeys(found))
