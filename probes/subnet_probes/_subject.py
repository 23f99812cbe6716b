"""The model that representations are taken from: as it is, or with a subnetwork removed or kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.subnetwork.settings import one_of
from subnet.validation import Subject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from subnet.checkpoint import Checkpoint
    from subnet.subnetwork import Subnetwork

CONDITIONS = ("removed", "kept", "whole")


@dataclass(frozen=True, eq=False)
class Surgery:
    """What is done to a model meanwhile.

    Attributes:
        subnetwork: The mask; None for the whole model.
        condition: `"removed"`, `"kept"` or `"whole"`.
        how: What takes the place of what is taken out: `"base"`, `"zero"`, or a model whose values
            do; None for `"base"` where that is known.
    """

    subnetwork: Subnetwork | None
    condition: str
    how: str | nn.Module | None

    def __post_init__(self) -> None:
        one_of("condition", self.condition, CONDITIONS)
        if isinstance(self.how, str):
            one_of("how", self.how, ("base", "zero"))

    @property
    def applies(self) -> bool:
        """Whether anything is taken out."""
        return self.subnetwork is not None and self.condition != "whole"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, and where it is from.

    Attributes:
        model: The model.
        folders: Where its tokenizer may be.
        described: Which it is, for the record.
        before: Values before training of what a mask is over; None where they are not known.
    """

    model: nn.Module
    folders: tuple[Path, ...]
    described: Mapping[str, Any]
    before: Mapping[str, Tensor] | None = None


def load(
    source: nn.Module | Checkpoint | str | Path,
    surgery: Surgery,
    language: str | None,
    stage: int | None,
    run: str,
) -> Loaded:
    """The model that is asked for; a live one as it is, one from disk with its adapter merged.

    Raises:
        MissingInputError: It is not there.
        InputError: A live model is given, and a stage or language too.
    """
    from torch import nn

    from subnet.checkpoint import Checkpoint
    from subnet.model import load_model

    if isinstance(source, nn.Module):
        if language is not None or stage is not None:
            raise InputError(
                f"a live model is given, and {'language' if stage is None else 'stage'} too",
                expected="a checkpoint, or the model alone",
            )
        return Loaded(source, _folders(source, None), {"model": _class(source), "from": "given"})
    chosen: dict[str, Any] = {"language": language, "stage": stage, "run": run}
    model = _merged(load_model(source, **chosen))
    before = None
    trained = language is not None or bool(stage)
    mask = surgery.subnetwork
    wanted = surgery.applies and trained and surgery.how in (None, "base")
    if wanted and mask is not None and mask.granularity == "weight":
        earlier = stage - 1 if stage else None
        before = _values(_merged(load_model(source, stage=earlier, run=run)), mask)
    place = source.path if isinstance(source, Checkpoint) else Path(source)
    which = "base" if not trained else f"stage {stage}" if stage else f"adapter of {language}"
    described = {"model": _class(model), "from": place.name, "which": which, "run": run}
    return Loaded(model, _folders(model, source), described, before)


@contextlib.contextmanager
def operated(loaded: Loaded, surgery: Surgery) -> Iterator[dict[str, Any]]:
    """The model as it is asked for, meanwhile; bitwise what it was, afterwards.

    Yields:
        What to record of it.

    Raises:
        InputError, NotComparableError: The mask does not fit the model, or `how` the mask.
    """
    mask = surgery.subnetwork
    if mask is None or not surgery.applies:
        yield {"subnetwork": None, "condition": "whole", "how": None}
        return
    how, before = surgery.how, loaded.before
    given = how is not None and not isinstance(how, str)
    if given:
        before, how = _values(how, mask), "base"
    which = "trained" if before is not None else "given"
    subject = Subject(("given",), loaded.model, which, loaded.folders, before)
    trial = subject.tried(mask, how if how is None or isinstance(how, str) else None)
    record = {
        "subnetwork": mask.language,
        "method": mask.method,
        "granularity": mask.granularity,
        "density": mask.count / mask.size if mask.size else 0.0,
        "condition": surgery.condition,
        "how": "given model" if given else trial.how,
    }
    with trial.removed(mask) if surgery.condition == "removed" else trial.kept(mask):
        yield record


def _merged(model: Any) -> nn.Module:
    """A PEFT model as one without adapters; an adapter that cannot be merged stays."""
    from peft import PeftModel

    from subnet_probes._stacks import refuse_prompts

    if not isinstance(model, PeftModel):
        return model  # type: ignore[no-any-return]
    refuse_prompts(model)
    return model.merge_and_unload()  # type: ignore[no-any-return]


def _values(model: Any, mask: Subnetwork) -> dict[str, Tensor]:
    """The model's values where a mask is."""
    from subnet.model import base_parameters

    parameters = base_parameters(model)
    for name, shape in mask.shapes.items():
        if name not in parameters or tuple(parameters[name].shape) != shape:
            raise NotComparableError(
                f"the mask of {mask.language} covers {name} {list(shape)}, which the model that "
                f"takes its place ({_class(model)}) does not have so",
                expected="a model of the same architecture",
            )
    return {name: parameters[name].detach().clone() for name in mask.shapes}


def _class(model: nn.Module) -> str:
    from subnet.model import base_model

    return type(base_model(model)).__name__


def _folders(model: nn.Module, source: Any) -> tuple[Path, ...]:
    from subnet.checkpoint import Checkpoint
    from subnet.model import base_model

    stated = str(getattr(getattr(base_model(model), "config", None), "_name_or_path", "") or "")
    found = [Path(stated)] if stated and Path(stated).is_dir() else []
    if isinstance(source, Checkpoint):
        found += [entry.path for entry in source.entries if entry.kind == "base"]
    elif source is not None:
        found += [Path(source), Path(source) / "base"]
    return tuple(found)


def examples_of(source: Any) -> list[Mapping[str, Any]]:
    """Test examples of a checkpoint.

    Raises:
        MissingInputError: There are none.
    """
    from subnet.checkpoint import Checkpoint, open_checkpoint

    if isinstance(source, str | Path):
        source = open_checkpoint(source)
    if not isinstance(source, Checkpoint):
        raise MissingInputError("a live model comes without examples", fix="give data")
    if not source.holds("test_examples"):
        raise MissingInputError(
            "has no test.jsonl", path=source.path, fix="put test.jsonl there, or give data"
        )
    return list(source.examples("test"))
