"""The model that a mask is tried on, and what takes the place of what is taken out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.subnetwork.settings import one_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from subnet.checkpoint import Checkpoint, Update
    from subnet.model import Units
    from subnet.subnetwork import Subnetwork

MODELS = ("trained", "base")
REPLACEMENTS = ("base", "zero")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and what masks do to it.

    Attributes:
        key: What tells it from others: masks of one key are tried on one model.
        model: The model, adapters merged.
        which: `"trained"`, `"base"` or `"given"`.
        folders: Where its tokenizer may be.
        before: Base parameter name to its value before training; None where that is unknown.
    """

    key: tuple[Any, ...]
    model: nn.Module
    which: str
    folders: tuple[Path, ...] = ()
    before: Mapping[str, Tensor] | None = None

    def tried(self, subnetwork: Subnetwork, how: str | None) -> Trial:
        """A mask on this model, checked.

        Args:
            subnetwork: The mask.
            how: What takes the place of what is removed; None for `"base"` where training changed
                the masked weights, `"zero"` otherwise.

        Raises:
            InputError: `how` has no meaning for this mask or model.
            NotComparableError: The mask does not fit the model.
        """
        if subnetwork.granularity != "weight":
            from subnet.model import find_units
            from subnet.subnetwork.units import selected_units

            if how == "base":
                raise InputError(
                    f"how is 'base' and the mask of {subnetwork.language} is of "
                    f"{subnetwork.granularity}s",
                    expected="'zero': the output of units is gated",
                )
            units = find_units(self.model)
            selected_units(subnetwork, units)
            return Trial(self.model, "zero", units, None)
        how = how or ("zero" if self.before is None else "base")
        if how == "base" and self.before is None:
            raise InputError(
                f"how is 'base' and the model of {subnetwork.language} is "
                + ("the base itself" if self.which == "base" else "a live one"),
                expected="'zero'",
            )
        self._check(subnetwork)
        return Trial(self.model, how, None, self.before if how == "base" else None)

    def _check(self, subnetwork: Subnetwork) -> None:
        from subnet.model import base_modules, covered_parameters

        adapted = [n for n, m in base_modules(self.model).items() if hasattr(m, "base_layer")]
        if adapted:
            raise InputError(
                f"{adapted[0]} of {type(self.model).__name__} carries an adapter, and the mask of "
                f"{subnetwork.language} is of weights",
                expected="a model whose adapters are merged",
                fix="load_model(..., merge=True), or merge_and_unload()",
            )
        covered_parameters(
            self.model,
            subnetwork.shapes,
            f"the mask of {subnetwork.language}",
            expected="the model that the mask was found in",
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """How masks are put on a model.

    Attributes:
        model: The model.
        how: `"base"` or `"zero"`.
        units: Its units, for masks of units.
        before: Values before training, for `"base"`.
    """

    model: nn.Module
    how: str
    units: Units | None
    before: Mapping[str, Tensor] | None

    @contextlib.contextmanager
    def removed(self, subnetwork: Subnetwork) -> Iterator[None]:
        """Without the subnetwork, meanwhile."""
        with self._without(subnetwork, selected=True):
            yield

    @contextlib.contextmanager
    def kept(self, subnetwork: Subnetwork) -> Iterator[None]:
        """With nothing else of what the mask is over, meanwhile."""
        with self._without(subnetwork, selected=False):
            yield

    @contextlib.contextmanager
    def _without(self, subnetwork: Subnetwork, *, selected: bool) -> Iterator[None]:
        import torch

        from subnet.model import gate_heads, gate_neurons, swap_parameters
        from subnet.subnetwork.units import selected_units

        if self.units is not None:
            stay = selected_units(subnetwork, self.units) != selected
            gate = gate_heads if subnetwork.granularity == "head" else gate_neurons
            with gate(self.model, self.units, stay.float()):
                yield
            return
        where = {
            name: torch.from_numpy(subnetwork.dense(name) == selected) for name in subnetwork.shapes
        }
        values: dict[str, Tensor | float] = (
            dict.fromkeys(where, 0.0)
            if self.before is None
            else {name: self.before[name] for name in where}
        )
        with swap_parameters(self.model, values, where=where):
            yield


@dataclass(frozen=True)
class Place:
    """Where the model is that a mask is tried on.

    Attributes:
        key: What tells its subject from others.
        which: `"trained"`, `"base"` or `"given"`.
        update: Of a trained model, what training changed.
    """

    key: tuple[Any, ...]
    which: str
    update: Update | None


def find_place(source: Checkpoint | nn.Module, subnetwork: Subnetwork, model: str | None) -> Place:
    """Where the model is that a mask is to be tried on; nothing is loaded.

    Args:
        source: A checkpoint, or a live model.
        subnetwork: The mask.
        model: `"trained"`: the model of the mask's language and run (of a stage: of that stage);
            `"base"`. None for the one that the mask was found in.

    Raises:
        MissingInputError: There is no such model.
        InputError: `model` is neither.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        if model is not None:
            raise InputError(f"model is {model!r} and a live model is given", expected="None")
        return Place(("given",), "given", None)
    if model is not None:
        one_of("model", model, MODELS)
    update = _update_of(source, subnetwork)
    which = model or _found_in(subnetwork, update)
    if which == "base":
        return Place(("base", subnetwork.run), which, None)
    if update is None:
        raise MissingInputError(
            f"has no update of {subnetwork.language} in the run {subnetwork.run}",
            path=source.path,
            expected="the adapter or the fine-tuned weights that its mask is of",
            fix='model="base" tries the mask on the base',
        )
    # Values before training are kept for the parameters of one mask.
    names = tuple(subnetwork.shapes) if subnetwork.granularity == "weight" else ()
    return Place(("trained", update.source, subnetwork.run, names), which, update)


def load_subject(source: Checkpoint | nn.Module, place: Place, subnetwork: Subnetwork) -> Subject:
    """The model itself, and of a trained one the values before training where the mask is.

    Raises:
        MissingInputError: A model is not there.
        NotComparableError: The mask covers what the base does not have.
    """
    from torch import nn

    from subnet.model import load_model
    from subnet.subnetwork.sources import refuse_broken

    if isinstance(source, nn.Module):
        return Subject(place.key, source, place.which)
    run = subnetwork.run if subnetwork.run in source.runs else source.runs[0]
    bases = [entry for entry in source.entries if entry.kind == "base"]
    bases.sort(key=lambda entry: entry.run != run)
    folders = [entry.path for entry in bases]
    update = place.update
    if update is None:
        model = load_model(source, run=run)
        refuse_broken(model, folders[0] if folders else source.path)
        return Subject(place.key, model, place.which, tuple(folders))
    stage = getattr(update, "stage", None)
    before = None
    if subnetwork.granularity == "weight":
        earlier = None if stage is None else stage - 1
        before = _values(load_model(source, stage=earlier, run=run, merge=True), subnetwork, update)
    language = update.language.label if stage is None else None
    model = load_model(source, language=language, stage=stage, run=run, merge=True)
    refuse_broken(model, update.source)
    return Subject(place.key, model, place.which, (*folders, update.source), before)


def _values(model: nn.Module, subnetwork: Subnetwork, update: Update) -> dict[str, Tensor]:
    """The model's values where a mask is; the model itself can go."""
    values = model.state_dict()
    absent = next((name for name in subnetwork.shapes if name not in values), None)
    if absent is not None:
        raise NotComparableError(
            f"the mask of {subnetwork.language} covers {absent}, which the base does not have",
            path=update.source,
            expected="the base that the mask is over",
        )
    return {name: values[name].clone() for name in subnetwork.shapes}


def stated(subnetwork: Subnetwork, name: str) -> Any:
    """A setting of the search that found a mask, also where the mask was made of the found one."""
    settings: Any = subnetwork.settings
    while isinstance(settings, Mapping):
        if name in settings:
            return settings[name]
        origin = settings.get("of")
        settings = origin.get("settings") if isinstance(origin, Mapping) else None
    return None


def _update_of(checkpoint: Checkpoint, subnetwork: Subnetwork) -> Update | None:
    """The update that a mask is of."""
    stage = stated(subnetwork, "stage")
    updates = checkpoint.steps if stage is not None else (checkpoint.updates or checkpoint.steps)
    for update in updates:
        same = (update.language.label, update.run) == (subnetwork.language, subnetwork.run)
        if same and (stage is None or getattr(update, "stage", None) == stage):
            return update
    return None


def _found_in(subnetwork: Subnetwork, update: Update | None) -> str:
    """The model that a mask says it was found in."""
    model = stated(subnetwork, "model")
    if model in MODELS:
        return str(model)
    return "base" if update is None else "trained"
