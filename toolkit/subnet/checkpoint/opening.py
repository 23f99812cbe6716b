"""Opening a checkpoint directory: which runs it holds, and which analyses they carry."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from subnet import _files
from subnet._tables import MAIN_RUN
from subnet.checkpoint.directory import Capability, Checkpoint
from subnet.checkpoint.inventory import (
    Entry,
    Findings,
    Root,
    Skipped,
    children,
    start_of_step,
    weights_of_stages,
)
from subnet.checkpoint.records import check_stages, describe_metrics, merge_rows
from subnet.checkpoint.settings import SETTINGS_FILE, CheckpointSettings, read_settings
from subnet.checkpoint.survey import survey
from subnet.checkpoint.survey_models import RESERVED
from subnet.checkpoint.tensors import has_model
from subnet.checkpoint.trainer_logs import TRAINER_STATE, trainer_checkpoints
from subnet.errors import InputError, MissingInputError
from subnet.language import LanguageIndex

#: Kinds of which each belongs to one run.
_OF_A_RUN = ("adapter", "weights", "mask", "stage")
#: Folder of the stage before any training.
_START = re.compile(r"^0+[-_]")
#: Languages below which a relation between overlap and forgetting cannot be tested.
LANGUAGES_FOR_RELATION = 5


@_files.saying_unreadable()
def open_checkpoint(
    path: str | Path | Sequence[str | Path], *, name: str | None = None
) -> Checkpoint:
    """Take the inventory of a directory that training left behind.

    Reads names, settings, score tables and headers; loads no tensor.

    Args:
        path: A checkpoint directory, or several that are runs of one experiment. Understood are
            the documented layout, a Trainer output folder, a folder of PEFT adapters, a PEFT
            folder that holds several, and output of lm-evaluation-harness beside them.
        name: What to call it; the directory's own name otherwise.

    Raises:
        MissingInputError: There is no such directory, or nothing in it is recognised.
        InputError: Something in it is damaged or contradicts itself; the file is named.

    Example:
        >>> checkpoint = open_checkpoint("checkpoint/")  # doctest: +SKIP
        >>> [language.label for language in checkpoint.languages]  # doctest: +SKIP
        ['de', 'fr', 'sw']
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    if not paths:
        raise InputError("no directory was given")
    for directory in paths:
        _check_directory(directory)
    paths = [directory.resolve() for directory in paths]
    roots = _find_roots(paths)
    index = LanguageIndex({k: v for root in roots for k, v in root.settings.tags.items()})
    findings = Findings(index)
    for root in roots:
        survey(root, findings)
    if not any(entry.kind != "settings" for entry in findings.entries):
        _refuse_nothing(paths[0], findings.skipped)
    rows, shadowed = merge_rows(findings.batches)
    findings.records.rows = rows
    for source, other in sorted(shadowed.items()):
        findings.skip(source, f"some of its scores stand in {other.name} too, which counts")
    check_stages(rows, findings.stages)
    metrics = describe_metrics(
        findings.records, {k: v for r in reversed(roots) for k, v in r.settings.scores.items()}
    )
    _note_unmeasured(roots[0], metrics, findings)
    steps = _find_steps(roots, findings)
    runs = {entry.run for entry in findings.entries if entry.kind in _OF_A_RUN}
    runs |= {row.run for row in rows}
    _share_order(findings, runs)
    return Checkpoint(
        path=paths[0],
        name=name or (paths[0].name if len(paths) == 1 else "+".join(_run_names(paths))),
        runs=tuple(sorted(runs, key=lambda run: (run != MAIN_RUN, run))) or (MAIN_RUN,),
        languages=tuple(sorted(index, key=lambda language: language.label)),
        entries=tuple(findings.entries),
        skipped=tuple(findings.skipped),
        capabilities=_capabilities(findings, steps, roots),
        settings=roots[0].settings,
        _roots=tuple(roots),
        _records=findings.records,
        _index=index,
    )


def _share_order(findings: Findings, runs: set[str]) -> None:
    """A run that only a column of the directory's table names has the directory's order."""
    trained = findings.records.trained
    own = {run for run, _ in trained}
    shared = {stage: label for (run, stage), label in trained.items() if run == MAIN_RUN}
    for run in runs - own:
        trained.update({(run, stage): label for stage, label in shared.items()})


def _check_directory(path: Path) -> None:
    if not path.exists():
        raise MissingInputError("there is no such directory", path=path)
    if not path.is_dir():
        raise InputError(
            "is a file",
            path=path,
            expected="the directory that training wrote",
            fix=f"try {path.parent}",
        )


def _refuse_nothing(path: Path, skipped: Sequence[Skipped]) -> None:
    if skipped:
        first = skipped[0]
        found = f"holds nothing that an analysis can use ({first.path.name}: {first.reason})"
        inner = path.name in RESERVED  # a part of a checkpoint in place of the whole
        raise MissingInputError(
            found,
            path=path,
            expected="the directory that it lies in" if inner else None,
            fix=f"try {path.parent}" if inner else first.fix,
        )
    empty = not any(path.iterdir())
    raise MissingInputError(
        "is empty" if empty else "holds nothing that is recognised",
        path=path,
        expected="adapters/<language>/, stages/<number>-<language>/, masks/ or scores.csv",
    )


def _find_roots(paths: Sequence[Path]) -> list[Root]:
    """One root per run: each directory given, and each of its `runs/<name>/`."""
    names = _run_names(paths)
    roots: list[Root] = []
    for path, run in zip(paths, names, strict=True):
        root = _root(path, run, None)
        roots.append(root)
        folder = path / "runs"
        for inner in children(folder) if folder.is_dir() else []:
            inner_run = inner.name if len(paths) == 1 else f"{run}-{inner.name}"
            roots.append(_root(inner, inner_run, root))
    for place, root in enumerate(roots):
        if any(root.run == other.run for other in roots[:place]):
            raise InputError(
                f"is the second run named {root.run!r}", path=root.path, fix="rename one of them"
            )
    return roots


def _run_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell the directories apart, fit for a file: their own, or their parents'."""
    if len(paths) == 1:
        return [MAIN_RUN]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise InputError("the same directory was given twice", path=twice, fix="give each run once")
    for depth in range(1, min(len(path.parts) for path in paths)):
        names = [path.parts[-depth] for path in paths]
        if len(set(names)) == len(names):
            return names
    return ["-".join(path.parts[1:]) for path in paths]


def _root(path: Path, run: str, parent: Root | None) -> Root:
    settings = read_settings(path)
    if parent is not None:
        stated = settings.model_dump(exclude_unset=True)
        settings = _inherit(parent.settings, stated)
    base = path / "base"
    if settings.base is not None and (parent is None or (path / settings.base).is_dir()):
        base = path / settings.base
        if not base.is_dir():
            raise MissingInputError(
                f"the base {settings.base!r} is not there", path=path / "subnet.toml"
            )
    if not base.is_dir():
        start = next(
            (p for p in sorted((path / "stages").glob("0*")) if _START.match(p.name)), None
        )
        if start is not None and has_model(start):
            return Root(path, run, settings, start)
        return Root(path, run, settings, None if parent is None else parent.base)
    return Root(path, run, settings, base)


def _inherit(parent: CheckpointSettings, stated: dict[str, Any]) -> CheckpointSettings:
    """Settings of a run inside another directory: its own, and the directory's for the rest."""
    return CheckpointSettings.model_validate({**parent.model_dump(exclude_unset=True), **stated})


def _note_unmeasured(root: Root, metrics: Collection[str], findings: Findings) -> None:
    """Say which metrics are described and nobody measured: most often they are misspelt."""
    if not metrics or findings.records.items:  # metrics of items are not known before they are read
        return
    for name in sorted(root.settings.scores.keys() - set(metrics)):
        findings.skip(
            root.path / SETTINGS_FILE,
            f"describes the metric {name!r}, of which there are no scores",
            f"measured are {', '.join(sorted(metrics))}",
        )


def _find_steps(roots: Sequence[Root], findings: Findings) -> list[Entry]:
    """Stages whose change can be computed; of the others it is said what they want."""
    steps = []
    for root in roots:
        stages = weights_of_stages(findings.entries, root.run)
        for number, entry in stages.items():
            missing = start_of_step(number, stages, root) if number else None
            if missing:
                findings.skip(
                    entry.path,
                    f"what stage {number} changed is unknown: {missing}",
                    f"keep the weights of stage {number - 1}"
                    if number > 1
                    else "put the base model's folder into the directory as base/",
                )
            elif number:
                steps.append(entry)
    return steps


def _most_languages(entries: Iterable[Entry]) -> set[str]:
    """Labels of the languages of the run that has most of them: pairs are within a run."""
    runs: dict[str, set[str]] = {}
    for entry in entries:
        if entry.language is not None:
            runs.setdefault(entry.run, set()).add(entry.language.label)
    return max(runs.values(), key=len, default=set())


def _capabilities(
    findings: Findings, steps: Sequence[Entry], roots: Sequence[Root]
) -> tuple[Capability, ...]:
    changed = [e for e in findings.entries if e.kind in ("adapter", "weights", "mask")]
    shared = max(_most_languages(changed), _most_languages(steps), key=len)
    stages = {(row.run, row.stage) for row in findings.records.rows}
    per_run = max((sum(run == r for r, _ in stages) for run, _ in stages), default=0)

    overlap = [] if len(shared) >= 2 else ["adapters/<language>/ for at least two languages"]
    forgetting = [] if per_run >= 2 else ["scores.csv with at least two stages"]
    trained = set(findings.records.trained.values())
    relation, few = [*overlap, *forgetting], ""
    if not trained and not forgetting:
        relation.append(
            "which stage trained which language: a column trained_language in scores.csv, order in "
            "subnet.toml, or folders stages/<number>-<language>/"
        )
    both = shared & trained
    if not relation and len(both) < LANGUAGES_FOR_RELATION:
        # Possible all the same: the relation itself says that it is not testable.
        few = f"for a test at least {LANGUAGES_FOR_RELATION} languages, here {len(both)}"
    influence, unrated = _wanted_by_influence(findings, roots)
    wanted = {
        "overlap": overlap,
        "forgetting": forgetting,
        "influence": influence,
        "relation": relation,
    }
    notes = {"relation": few, "influence": unrated}
    return tuple(
        Capability(name, not files, tuple(files) or tuple(filter(None, (notes.get(name),))))
        for name, files in wanted.items()
    )


def _wanted_by_influence(findings: Findings, roots: Sequence[Root]) -> tuple[list[str], str]:
    """Files that influence of training examples wants, and what it has to be told."""
    kinds = {entry.kind for entry in findings.entries}
    files = [
        words
        for words, there in (
            ("base/ with the model", any(root.base and has_model(root.base) for root in roots)),
            ("train.jsonl", "train_examples" in kinds),
            ("test.jsonl", "test_examples" in kinds),
        )
        if not there
    ]
    stages = [
        (root, entry)
        for root in roots
        for number, entry in weights_of_stages(findings.entries, root.run).items()
        if number and entry.language is not None
    ]
    if not stages:
        if not kinds & {"adapter", "weights"}:
            return [*files, "stages/<NN>-<language>/ with weights, or adapters/<language>/"], ""
        return files, "told the adapters' learning rates (subnet attribute --learning-rate)"
    for root, entry in stages:
        stated = root.settings.stages.get(entry.path.name)
        known = stated is not None and None not in (stated.learning_rate, stated.steps)
        logged = (entry.path / TRAINER_STATE).is_file() or trainer_checkpoints(entry.path)
        if not known and not logged:
            place = f"[stages.{json.dumps(entry.path.name)}] of {SETTINGS_FILE}"
            return [*files, f"learning_rate and steps in {place}, or Trainer's log"], ""
    return files, ""
