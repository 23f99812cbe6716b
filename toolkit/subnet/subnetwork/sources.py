"""What subnetworks are extracted from: updates, and the models and examples of their languages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet._tables import MAIN_RUN
from subnet.errors import InputError, MissingInputError
from subnet.subnetwork.settings import DataSettings

if TYPE_CHECKING:
    from torch import nn

    from subnet.checkpoint import Checkpoint, Update
    from subnet.inputs import Half, LanguageData

#: Called with the name of the present step, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def updates_of(source: Checkpoint | Update | Iterable[Update]) -> Sequence[Update]:
    """The updates that a source stands for, at least one."""
    from subnet.checkpoint import Checkpoint, Update

    if isinstance(source, Checkpoint):
        updates: Sequence[Update] = source.updates or source.steps
        if not updates:
            raise MissingInputError(
                "holds no update to extract a subnetwork from",
                path=source.path,
                expected="adapters/<language>/ or stages/<number>-<language>/ with a PEFT adapter "
                "or fine-tuned weights",
            )
        return updates
    updates = [source] if isinstance(source, Update) else list(source)
    if not updates:
        raise MissingInputError("there is no update to extract a subnetwork from")
    return updates


def refuse_repeats(updates: Sequence[Update]) -> None:
    """Refuse before the long work what `Subnetworks` would refuse after it."""
    seen: set[tuple[str, str]] = set()
    for update in updates:
        key = (update.language.label, update.run)
        if key in seen:
            raise InputError(
                f"{key[0]} has two updates in the run {key[1]}",
                path=update.source,
                expected="one per language and run",
                fix="extract them apart",
            )
        seen.add(key)


@dataclass(frozen=True)
class LanguageModel:
    """A language's model, and its examples as batches for it.

    Attributes:
        language: Label of the language.
        run: The run.
        base: Identity of the base.
        source: What was loaded, for error messages.
        update: What training changed; None where the checkpoint has no updates.
        model: The model, its adapter merged.
        batches: Model inputs with `labels`, not padded.
        recorded: What the masks have to record of them.
    """

    language: str
    run: str
    base: str
    source: Path
    update: Update | None
    model: nn.Module
    batches: list[dict[str, Any]]
    recorded: dict[str, Any]


def language_models(
    checkpoint: Checkpoint,
    settings: DataSettings,
    data: Iterable[Mapping[str, Any]] | Half | None = None,
    *,
    splits: Sequence[str] = ("train",),
    progress: Progress | None = None,
) -> Iterator[LanguageModel]:
    """Load the model of one language after another, with its examples.

    With `model="base"` there is one per language, for the base is the same in every run; then a
    checkpoint needs no updates, and the languages are those of the data. What is missing is refused
    before the first model is loaded.

    Args:
        checkpoint: With a base, updates (or stages) and, unless given, examples.
        settings: Of the method.
        data: Examples, each with its `language`.
        splits: Where else to take the examples from: the first of these that the checkpoint has.
        progress: Called before each model is loaded, with its language.

    Raises:
        MissingInputError: There is no update, no example of a language, or no tokenizer.
        InputError: An example is a test example or not usable, or a weight is NaN or infinite.
    """
    from subnet.checkpoint import Checkpoint
    from subnet.inputs import read_examples

    if not isinstance(checkpoint, Checkpoint):
        raise InputError(
            f"the method {settings.method!r} is given {type(checkpoint).__name__}",
            expected="a checkpoint, which has the model and the examples",
            fix="open_checkpoint(path)",
        )
    wanted = _wanted(checkpoint, settings)
    examples = read_examples(checkpoint, data, splits)
    labels = [update.language.label for update in wanted] or sorted(examples.examples)
    for label in labels:  # before the long work
        examples.choose(label, settings.n_examples, settings.seed)
    return _load_each(checkpoint, settings, examples, wanted, progress)


def _wanted(checkpoint: Checkpoint, settings: DataSettings) -> list[Update]:
    if settings.model == "base" and not (checkpoint.updates or checkpoint.steps):
        return []
    updates = list(updates_of(checkpoint))
    if settings.model == "base":
        first: dict[str, Update] = {}
        for update in updates:
            first.setdefault(update.language.label, update)
        updates = list(first.values())
    refuse_repeats(updates)
    return updates


def _load_each(
    checkpoint: Checkpoint,
    settings: DataSettings,
    examples: LanguageData,
    wanted: list[Update],
    progress: Progress | None,
) -> Iterator[LanguageModel]:
    from subnet.inputs.encoding import make_batches
    from subnet.model import load_model

    places: list[tuple[str, str, Update | None]]
    places = [(update.language.label, update.run, update) for update in wanted]
    if not places:
        places = [(label, MAIN_RUN, None) for label in sorted(examples.examples)]
    bases: dict[str, nn.Module] = {}
    for done, (language, run, update) in enumerate(places):
        if progress is not None:
            progress(f"{settings.method}: {language}", done, len(places))
        source = checkpoint.path if update is None else update.source
        if settings.model == "base":
            if run not in bases:
                bases = {run: load_model(checkpoint, run=run)}
            model = bases[run]
        else:
            model = _trained(checkpoint, update, language, run)
        refuse_broken(model, source)
        chosen, recorded = examples.choose(language, settings.n_examples, settings.seed)
        folders = [*_base_folders(checkpoint, run), *([source] if update is not None else [])]
        batches, encoding = make_batches(
            chosen, model, folders, settings.batch_size, examples.source
        )
        stage = getattr(update, "stage", None)
        yield LanguageModel(
            language=language,
            run=run,
            base=checkpoint.base_identity() if update is None else update.base,
            source=source,
            update=update,
            model=model,
            batches=batches,
            recorded={**recorded, **encoding, **({} if stage is None else {"stage": stage})},
        )


def _trained(checkpoint: Checkpoint, update: Update | None, language: str, run: str) -> nn.Module:
    from subnet.model import load_model

    stage = getattr(update, "stage", None)
    if stage is not None:
        return load_model(checkpoint, stage=stage, run=run, merge=True)
    return load_model(checkpoint, language=language, run=run, merge=True)


def refuse_broken(model: nn.Module, source: Path) -> None:
    """Name the weight at fault; in what is computed from it NaN is everywhere."""
    for name, parameter in model.named_parameters():
        n_bad = int((~parameter.isfinite()).sum())
        if n_bad:
            raise InputError(
                f"{name} of the model holds {n_bad} values that are NaN or infinite",
                path=source,
                expected="finite weights",
                fix="take a checkpoint from before training diverged",
            )


def _base_folders(checkpoint: Checkpoint, run: str) -> list[Path]:
    """Where the tokenizer may be: the base of the run before others."""
    bases = [entry for entry in checkpoint.entries if entry.kind == "base"]
    bases.sort(key=lambda entry: entry.run != run)
    return [entry.path for entry in bases]
