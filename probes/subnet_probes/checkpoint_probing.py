"""Probing what training left on disk: every analysis that a checkpoint directory allows.

One forward pass per model and level: sentences, and words where examples have tags. All probes,
layers and languages share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from subnet._files import sha256, to_json
from subnet._tables import provenance
from subnet.analysis import draw_examples
from subnet.analysis.output import inputs_of
from subnet.checkpoint import Checkpoint, open_checkpoint
from subnet.errors import MissingInputError, OutputError
from subnet_probes._checkpoint_analyses import Analyses
from subnet_probes._checkpoint_masks import find_masks
from subnet_probes._checkpoint_models import Plan, plan_models
from subnet_probes._checkpoint_tables import Tables
from subnet_probes.checkpoint_probing_result import CheckpointProbing
from subnet_probes.checkpoint_probing_settings import CheckpointProbingSettings

#: Called with the name of the present step, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]
Example = Mapping[str, Any]


def probe_checkpoint(
    checkpoint: Checkpoint | str | Path,
    *,
    settings: CheckpointProbingSettings | None = None,
    progress: Progress | None = None,
) -> CheckpointProbing:
    """What the representations of a checkpoint's models encode, and how they moved.

    - language identity, labels of sentences and tags of words, layer by layer, each with its
      baselines: of all languages at the base and after the last stage, and of each language after
      its own stage and with its own adapter. Labels are split by concept where examples have one.
    - transfer of label probes between languages, and similarity of languages on parallel examples
      (`concept`), at the base and after the last stage;
    - drift of each language from stage to stage;
    - neurons and heads that tell languages apart, beside the checkpoint's masks of them.

    Args:
        checkpoint: With a model (`base/`, `stages/`, `adapters/`) and examples (`test.jsonl`).
        settings: Which of these, where, how.
        progress: Called with the name of the step, how much is done and how much there is.

    Returns:
        What was possible; the rest is listed with what it wants.

    Raises:
        MissingInputError: There is no model, or there are no examples.
        InputError: Nothing that was asked for is possible (the first reason), a layer or stage does
            not exist, an example is not usable, or a hidden state is not finite.
        OutputError: The store is inside the checkpoint.

    Example:
        >>> found = probe_checkpoint("checkpoint/")  # doctest: +SKIP
        >>> rows = found.probes.query("task == 'label' and metric == 'accuracy'")  # doctest: +SKIP
        >>> rows.pivot_table("score", ["language", "layer"], "stage")  # doctest: +SKIP
    """
    settings = settings or CheckpointProbingSettings()
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    _refuse_inside(checkpoint, settings.store)
    examples, path = _examples_of(checkpoint, settings)
    counts: dict[str, int] = {}
    for example in examples:
        counts[example["language"]] = counts.get(example["language"], 0) + 1
    plan = plan_models(checkpoint, settings, counts)
    tables = Tables()
    tables.warnings += plan.warnings
    _note_missing(settings, plan, examples, path.name, tables)
    masks = find_masks(checkpoint, settings, plan.points, tables)
    analyses = Analyses(checkpoint, settings, examples, plan.points, masks, tables)
    several = len(checkpoint.runs) > 1
    for number, point in enumerate(plan.points):
        if progress is not None:
            name = f"{point.name} of {point.run}" if several else point.name
            progress(f"probing: {name}", number, len(plan.points))
        analyses.probe(point)
    if settings.subnetwork:
        if progress is not None:
            progress("probing: without subnetworks", len(plan.points), len(plan.points))
        analyses.without_subnetworks()
    tables.raise_if_empty(checkpoint.path)
    made = {
        **settings.record(),
        "n_examples": counts,
        "examples_sha256": hashlib.sha256(to_json(examples).encode()).hexdigest(),
        "models": [point.place for point in plan.points],
        "probe": {level: asdict(found) for level, found in analyses.probes.items()},
    }
    frames = tables.frames()
    return CheckpointProbing(
        checkpoint=checkpoint,
        probes=frames.get("probes"),
        transfer=frames.get("transfer"),
        similarity=frames.get("similarity"),
        drift=frames.get("drift"),
        units=frames.get("units"),
        missing=tables.missing,
        warnings=tables.lines(),
        provenance=provenance(
            "probe checkpoint", made, seed=settings.seed,
            libraries=("torch", "transformers", "scikit-learn", "numpy"),
        ),
        inputs=_inputs(checkpoint, path),
    )  # fmt: skip


def _note_missing(
    settings: CheckpointProbingSettings,
    plan: Plan,
    examples: Sequence[Example],
    name: str,
    tables: Tables,
) -> None:
    """What the examples and models do not allow, and what it wants."""
    labelled = any(example.get("label") is not None for example in examples)
    tagged = any(example.get("tags") for example in examples)
    parallel = any(example.get("concept") is not None for example in examples)
    staged = any(point.whole and point.model == "stage" for point in plan.points)
    common = any(point.end for point in plan.points)
    lacks = f"no example of {name} has"
    for analysis, there, reason, fix in (
        ("labels", labelled, f"{lacks} a label", "add 'label'"),
        ("tokens", tagged, f"{lacks} tagged words", "add 'tokens' and 'tags', one per word"),
        ("transfer", labelled or tagged, f"{lacks} a label", "add 'label', or 'tokens' and 'tags'"),
        ("similarity", parallel, f"{lacks} a concept", "add 'concept', one key for translations"),
        ("drift", staged, "there are no stages of training", "add stages/<NN>-<language>/"),
        *(
            (analysis, common, "there is no model of all languages", "add base/ or stages/")
            for analysis in ("language", "transfer", "similarity")
        ),
        ("labels", not plan.base_lacks, "there is no base to compare with", "add base/"),
    ):
        if settings.wants(analysis) and not there:
            tables.miss(analysis, reason, fix)


def _examples_of(
    checkpoint: Checkpoint, settings: CheckpointProbingSettings
) -> tuple[list[Example], Path]:
    """Examples of the split, at most so many of a language, and their file."""
    kind = f"{settings.split}_examples"
    paths = [entry.path for entry in checkpoint.entries if entry.kind == kind]
    if not paths:
        others = [
            split for split in ("validation", "train") if checkpoint.holds(f"{split}_examples")
        ]
        raise MissingInputError(
            f"has no {settings.split}.jsonl", path=checkpoint.path,
            expected='a line {"id": …, "language": …, "text": …, "label": …} per example',
            fix=f"{others[0]}.jsonl is there: split='{others[0]}' (--split {others[0]}) takes it"
            if others else None,
        )  # fmt: skip
    examples = draw_examples(
        checkpoint.examples(settings.split), settings.examples or None, settings.seed
    )
    if not examples:
        raise MissingInputError("is empty", path=paths[0], expected="examples of each language")
    return examples, paths[0]


def _refuse_inside(checkpoint: Checkpoint, store: str | Path | None) -> None:
    for directory in checkpoint.directories:
        if store is not None and Path(store).resolve().is_relative_to(directory):
            raise OutputError(
                "is inside the directory that is read, into which nothing is written",
                path=store,
                fix="choose another place with --store",
            )


def _inputs(checkpoint: Checkpoint, examples: Path) -> dict[str, str]:
    """SHA-256 of what was read, the base and its tokenizer too."""
    found = inputs_of(checkpoint)
    files = [examples]
    for entry in checkpoint.entries:
        if entry.kind == "base":
            files += [*entry.path.glob("*.safetensors"), *entry.path.glob("*.json")]
    return found | {checkpoint.relative(path): sha256(path) for path in sorted(files)}
