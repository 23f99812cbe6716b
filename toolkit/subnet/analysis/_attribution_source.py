"""What influence is computed from in a checkpoint directory: a model, its checkpoints, examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.analysis._attribution_examples import (
    digest,
    draw_examples,
    of_half,
    padding_collator,
    rows_of,
)
from subnet.checkpoint.inventory import Entry, weights_of_stages
from subnet.checkpoint.trainer_logs import TRAINER_STATE, trainer_checkpoints
from subnet.errors import InputError, MissingInputError
from subnet.inputs import Example

if TYPE_CHECKING:
    from torch import nn

    from subnet.checkpoint import Checkpoint
    from subnet.influence.methods import Method

__all__ = ["REGIMES", "Source", "draw_examples", "find_regime", "load_source"]

#: Which checkpoints of a directory influence may be summed over.
REGIMES = ("stages", "languages", "base")


@dataclass(frozen=True, eq=False)
class Source:
    """A model of one run, the checkpoints that it went through, and examples encoded for it.

    Attributes:
        run: The run.
        regime: One of `REGIMES`.
        model: The model into which each checkpoint's weights are put.
        checkpoints: As `attribute` takes them.
        train, test: Rows with `id`, `language`, what the model takes and, where all have one,
            `concept`.
        examples: Split to the examples as they stand in the file, in the order of the rows.
        batch_size: Examples per pass that the model can be given.
        collate: Pads rows to a batch.
        recorded: How the rows were made.
        warnings: What a reader must know.
    """

    run: str
    regime: str
    model: nn.Module
    checkpoints: Any
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    examples: Mapping[str, Sequence[Example]]
    batch_size: int
    collate: Callable[[list[Any]], Any]
    recorded: Mapping[str, Any]
    warnings: tuple[str, ...]


def find_regime(checkpoint: Checkpoint, run: str, asked: str | None) -> str:
    """Which checkpoints of a run to take: its stages where it has any, else its languages' own.

    Raises:
        InputError: There is no such kind of checkpoints.
        MissingInputError: The run has none of that kind, or none but a base.
    """
    if asked is not None and asked not in REGIMES:
        raise InputError(f"checkpoints is {asked!r}", expected=" or ".join(map(repr, REGIMES)))
    known = {
        "stages": bool(_stages(checkpoint, run)),
        "languages": bool(_languages(checkpoint, run)),
    }
    found = asked or next((name for name, there in known.items() if there), None)
    if found is None or not known.get(found, True):
        raise MissingInputError(
            f"has no {found or 'checkpoints of training'}"
            + (f" in the run {run}" if len(checkpoint.runs) > 1 else ""),
            path=checkpoint.path,
            expected={
                "stages": "stages/<NN>-<language>/ with weights",
                "languages": "adapters/<language>/",
            }.get(found or "", "stages/<NN>-<language>/ with weights, or adapters/<language>/"),
            fix="checkpoints='base' (--checkpoints base) takes the base as trained on all examples"
            if found is None
            else None,
        )
    return found


def load_source(
    checkpoint: Checkpoint,
    *,
    run: str,
    regime: str,
    method: Method,
    n_train: int | None,
    n_test: int | None,
    learning_rate: float | None,
    batch_size: int,
    seed: int,
    half: str | None = None,
) -> Source:
    """Load a run's model and encode the examples that influence is asked for.

    Args:
        checkpoint: With a base, `train.jsonl` and `test.jsonl`.
        run: The run.
        regime: One of `REGIMES`.
        method: Whose scores are asked for: some need no learning rates, or no checkpoints.
        n_train: Most training examples of a language.
        n_test: Most test examples of a language.
        learning_rate: η of every checkpoint where the directory does not say it.
        batch_size: Examples per pass.
        seed: Seed of the draw of examples, and of the halves of items.
        half: Which half of the items of evaluation test examples may be of; None for all.

    Raises:
        MissingInputError: A file, a model or a learning rate is not there.
        InputError: An example is not usable.
    """
    from subnet.inputs.encoding import encode_examples
    from subnet.model import find_task, load_model
    from subnet.subnetwork.sources import refuse_broken

    paths = {split: _examples_of(checkpoint, run, split) for split in ("train", "test")}
    checkpoints, loaded, labels = _checkpoints(checkpoint, run, regime, method, learning_rate)
    every: dict[str, list[Example]] = {split: list(checkpoint.examples(split)) for split in paths}
    n_all = len(every["test"])
    every["test"], warnings = of_half(checkpoint, every["test"], half, seed)
    kept = {split: draw_examples(every[split], n, seed)
            for split, n in (("train", n_train), ("test", n_test))}  # fmt: skip
    if labels is not None:
        lone = list(
            dict.fromkeys(e["language"] for e in kept["train"] if e["language"] not in labels)
        )
        kept["train"] = [e for e in kept["train"] if e["language"] in labels]
        if lone:
            warnings.append(
                f"the training examples of {', '.join(lone)} are left out: no checkpoint is of "
                f"{'them' if len(lone) > 1 else 'it'}"
            )
    for split, examples in kept.items():
        if not examples:
            raise MissingInputError(
                "holds no example of a language that was trained" if every[split] else "is empty",
                path=paths[split],
                expected=f"examples of {', '.join(sorted(labels or ())) or 'each language'}",
            )
    model = load_model(checkpoint, run=run, **loaded)
    refuse_broken(model, checkpoint.path)
    folders = [e.path for e in checkpoint.entries if e.kind == "base"]
    rows: dict[str, list[dict[str, Any]]] = {}
    recorded: dict[str, Any] = {}
    for split, examples in kept.items():
        encoded, recorded = encode_examples(examples, model, folders, paths[split])
        rows[split] = rows_of(examples, encoded)
    config: Any = model.config
    alone = find_task(model) == "sequence-classification" and config.pad_token_id is None
    return Source(
        run=run,
        regime=regime,
        model=model,
        checkpoints=checkpoints,
        train=rows["train"],
        test=rows["test"],
        examples=kept,
        # Decoders without a padding token cannot tell where a row of a larger batch ends.
        batch_size=1 if alone else batch_size,
        collate=padding_collator(config.pad_token_id or 0, find_task(model)),
        recorded={
            **recorded,
            "regime": regime,
            "half": half,
            "n_test_in_other_half": n_all - len(every["test"]),
            "n_train_per_language": n_train,
            "n_test_per_language": n_test,
            "n_train": len(rows["train"]),
            "n_test": len(rows["test"]),
            "examples_sha256": {split: digest(examples) for split, examples in kept.items()},
        },
        warnings=tuple(warnings),
    )


def _stages(checkpoint: Checkpoint, run: str) -> list[Entry]:
    """Stages with weights that trained a language, in order."""
    stages = weights_of_stages(checkpoint.entries, run)
    return [entry for number, entry in stages.items() if number and entry.language is not None]


def _languages(checkpoint: Checkpoint, run: str) -> list[Entry]:
    """Adapters and fine-tuned weights of a run's languages."""
    return [
        entry
        for entry in checkpoint.entries
        if entry.kind in ("adapter", "weights") and entry.run == run and entry.language is not None
    ]


def _checkpoints(
    checkpoint: Checkpoint, run: str, regime: str, method: Method, learning_rate: float | None
) -> tuple[Any, dict[str, Any], frozenset[str] | None]:
    """What `attribute` takes, what `load_model` takes, and the languages that were trained."""
    from subnet.influence import DataMethod, checkpoints_of

    if regime == "base":
        return None, {}, None
    entries = (_stages if regime == "stages" else _languages)(checkpoint, run)
    labels = frozenset(str(entry.language) for entry in entries)
    last = entries[-1]
    in_order = regime == "stages"
    loaded: dict[str, Any] = {"stage": last.stage} if in_order else {"language": str(last.language)}
    if isinstance(method, DataMethod):
        # Of the model a baseline takes the state at the end; of several languages the base.
        return (None, loaded, labels) if in_order else (None, {}, labels)
    if method.pooling == "last":
        if not in_order:
            raise InputError(
                f"the method {method.name!r} takes the last checkpoint, and the adapters of "
                "languages are no sequence",
                path=checkpoint.path,
                expected="stages/<NN>-<language>/, or another method",
            )
        return [last.path], loaded, labels
    if in_order and method.rated and learning_rate is None:
        return checkpoints_of(checkpoint, run=run), loaded, labels
    found: dict[str, list[Any]] = {}
    for entry in entries:
        logged = (entry.path / TRAINER_STATE).is_file() or bool(trainer_checkpoints(entry.path))
        if learning_rate is None and method.rated and not logged:
            raise MissingInputError(
                "has no learning rate",
                path=entry.path,
                expected="Trainer's log, or the learning rates of the steps that led there, summed",
                fix="give the sum as learning_rate (--learning-rate)",
            )
        place: Any = entry.path if learning_rate is None else (entry.path, learning_rate)
        found.setdefault(str(entry.language), []).append(place)
    return found, loaded, labels


def _examples_of(checkpoint: Checkpoint, run: str, split: str) -> Path:
    """The file of a split.

    Raises:
        MissingInputError: There is none.
        InputError: The run has one of its own that says something else.
    """
    from subnet._files import sha256

    entries = [entry for entry in checkpoint.entries if entry.kind == f"{split}_examples"]
    if not entries:
        raise MissingInputError(
            f"has no {split}.jsonl",
            path=checkpoint.path,
            expected="what models were trained on (train.jsonl) and tested on (test.jsonl)",
        )
    own = next((entry for entry in entries if entry.run == run), entries[0])
    if own.path != entries[0].path and sha256(own.path) != sha256(entries[0].path):
        raise InputError(
            f"is not the {split}.jsonl of the run {entries[0].run}",
            path=own.path,
            expected="one set of examples for all runs",
            fix="attribute the runs apart",
        )
    return entries[0].path
