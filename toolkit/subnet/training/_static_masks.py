"""The masks that static training is given: there, one for each language, and of the base."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet import _files
from subnet._tables import MAIN_RUN
from subnet.errors import InputError, MissingInputError, NotComparableError, SubnetError
from subnet.training.config import TrainingConfig

if TYPE_CHECKING:
    from subnet.subnetwork import Subnetwork

Masks = Mapping[str, "Subnetwork"]

#: Settings that what a base becomes by training depends on, without those of tests and stages.
_OF_THE_BASE = ("task", "languages", "seed", "data", "model", "base", "translation")
_OF_TESTS = {"data": ("max_test",), "base": ("conflict_every", "conflict_examples"),
             "translation": ("beams", "max_new_tokens", "also_tested", "identify_among",
                             "alignment", "temperature")}  # fmt: skip
#: The part of an identity that speaks of the content.
_CONTENT = re.compile(r"\(([0-9a-f]{16})\)$")


def mask_files(config: TrainingConfig, root: Path, languages: Collection[str]) -> Iterator[Path]:
    """The files of the masks that static training reads; none where there is no such directory."""
    from subnet.checkpoint import open_checkpoint

    place = root / config.subnetworks.masks
    if config.subnetworks.method != "static" or not place.is_dir():
        return
    entries = [entry for entry in open_checkpoint(place).entries if entry.kind == "mask"]
    whole = {entry.language for entry in entries if entry.run == MAIN_RUN}
    for entry in entries:
        in_use = entry.run == MAIN_RUN or entry.language not in whole
        if in_use and entry.language is not None and entry.language.label in languages:
            yield entry.path


def read_masks(
    config: TrainingConfig, root: Path, languages: Sequence[str]
) -> dict[str, Subnetwork]:
    """The masks that static training is given, one for each language.

    Beside the masks of a directory those of its runs (of halves of the examples) do not count.

    Raises:
        MissingInputError: There is no such directory, or a language has no mask in it.
        InputError: A language has several masks in it.
    """
    from subnet.checkpoint import open_checkpoint
    from subnet.subnetwork import load_subnetworks

    if config.subnetworks.method != "static":
        return {}
    place = root / config.subnetworks.masks
    if not place.is_dir():
        raise MissingInputError(
            "there is no such directory of masks",
            path=place,
            expected="masks/<language>.safetensors, as subnet extract writes them",
        )
    found: dict[str, Subnetwork] = {}
    for mask in load_subnetworks(open_checkpoint(place)):
        other = found.setdefault(mask.language, mask)
        if MAIN_RUN in (other.run, mask.run):
            found[mask.language] = other if other.run == MAIN_RUN else mask
        elif other is not mask and mask.language in languages:
            raise InputError(
                f"holds several masks of {mask.language}, of the runs {other.run} and {mask.run}",
                path=place,
                expected="one of each language",
                fix=f"name the directory of one run, such as {place / 'runs' / mask.run}",
            )
    lacking = [language for language in languages if language not in found]
    if lacking:
        raise MissingInputError(
            f"holds no mask of {lacking[0]}",
            path=place,
            expected=f"one of each of {', '.join(languages)}",
            fix=f"there are masks of {', '.join(found) or 'no language'}",
        )
    return {language: found[language] for language in languages}


def masks_in(place: Path, languages: Sequence[str], identity: str) -> dict[str, Subnetwork]:
    """The masks that training found for a base, from the base's own folder.

    Args:
        place: The folder of masks.
        languages: Whose they are, one each.
        identity: Of the base.

    Raises:
        MissingInputError: One is not there any more.
        NotComparableError: One is of another language, or of another base.
        FileFormatError: One is damaged.
    """
    from subnet.subnetwork import load_subnetwork

    again = f"remove {place.parent}, and the same command trains it again"
    found = {}
    for name in languages:
        path = place / f"{name}.safetensors"
        try:
            mask = load_subnetwork(path)
        except SubnetError as error:  # gone, or damaged
            wanted = f"the mask of {name} that the base was trained with"
            raise type(error)(error.found, path=path, expected=wanted, fix=again) from error
        if (mask.language, mask.base) != (name, identity):
            raise NotComparableError(
                f"is the mask of {mask.language} and stands on the base {mask.base!r}",
                path=path,
                expected=f"that of {name}, on {identity!r}",
                fix=again,
            )
        found[name] = mask
    return found


def check_masks_fit(masks: Masks, model: Any, place: Path) -> None:
    """Refuse masks over other parameters than the model has, or of what cannot hold in it.

    Args:
        masks: One for each language.
        model: That they are to hold.
        place: The directory that they are from.

    Raises:
        NotComparableError: Says which mask and parameter.
        InputError: A mask selects nothing.
    """
    from subnet.training.subnetworks._targets import masks_of

    for mask in masks.values():
        try:
            masks_of(model, mask)
        except SubnetError as error:
            file = place / "masks" / f"{mask.language}.safetensors"
            raise type(error)(
                error.found,
                path=file if file.is_file() else place,
                expected=error.expected,
                fix=error.fix,
            ) from error


def check_base_ahead(
    masks: Masks,
    config: TrainingConfig,
    root: Path,
    *,
    model: Any,
    there: Path | None,
    inputs: Mapping[str, str],
) -> None:
    """Refuse masks of which it is known before any training that they are of another base.

    A base that is to be trained here is not known yet; masks can be of it only if the same training
    made theirs, as the `run.json` beside them says. Masks that hold while the base is trained are
    of the model before.

    Args:
        masks: One for each language.
        config: The run.
        root: What paths of the configuration are relative to.
        model: What training starts from.
        there: Where the base of a run that goes on stands, once it is trained.
        inputs: SHA-256 of what the run reads.

    Raises:
        NotComparableError: Says whose mask, of which base, and what to set.
    """
    from subnet.checkpoint.tensors import has_model

    masks = {language: mask for language, mask in masks.items() if _is_stated(mask.base)}
    known = _given(config, root)
    if there is not None and has_model(there):
        _check(masks, [*known, _identity(there)])
    elif config.base.steps and config.subnetworks.in_base == "none":
        _check_same_training(masks, config, root / config.subnetworks.masks, inputs)
    elif not _others(masks, known):
        return
    else:  # masks of what loading and saving makes of the model, as runs before this one had it
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "base"
            model.save_pretrained(place)
            _check(masks, [*known, _identity(place)])


def on_this_base(masks: Masks, identity: str, config: TrainingConfig, root: Path) -> Masks:
    """The masks under the identity of the base as the run has saved it.

    A mask may also name no base, or the model that was given where it is taken as it is.

    Raises:
        NotComparableError: One stands on another base.
    """
    stated = {language: mask for language, mask in masks.items() if _is_stated(mask.base)}
    _check(stated, [*_given(config, root), identity])
    return {name: dataclasses.replace(mask, base=identity) for name, mask in masks.items()}


def _check(masks: Masks, known: Sequence[str]) -> None:
    """Refuse masks of a base that has none of these identities."""
    other = next(iter(_others(masks, known)), None)
    if other is not None:
        raise NotComparableError(
            f"the mask of {other.language} stands on the base {other.base!r} and this training on "
            f"{known[-1]!r}",
            expected="masks of the model that is trained",
            fix="extract them from this base, or train theirs: model.name is its folder, "
            "base.steps = 0",
        )


def _check_same_training(
    masks: Masks, config: TrainingConfig, place: Path, inputs: Mapping[str, str]
) -> None:
    """Refuse masks of another base than the one that this configuration trains."""
    for mask in masks.values():
        trained = next((p for p in (place, *place.absolute().parents[:2]) if _record(p)), None)
        if trained is None or _others({"": mask}, [_identity(trained / "base")]):
            why = f"and base.steps = {config.base.steps} trains another"
        else:
            different = _difference(_record(trained), config, inputs)
            if different is None:
                continue
            why = f"which was trained with {different}"
        raise NotComparableError(
            f"the mask of {mask.language} stands on the base {mask.base!r}, {why}",
            path=place,
            expected="masks of the base that is trained here",
            fix="take theirs as it is: model.name is its folder, base.steps = 0",
        )


def _record(place: Path) -> dict[str, Any]:
    """What a training of ours says of itself in a directory; nothing where there is none."""
    file = place / _files.RUN_FILE
    found = _files.read_json(file) if file.is_file() else {}
    is_training = isinstance(found, dict) and found.get("experiment") == "train"
    return found if is_training and isinstance(found.get("settings"), dict) else {}


def _difference(
    record: Mapping[str, Any], config: TrainingConfig, inputs: Mapping[str, str]
) -> str | None:
    """A setting, or a file, in which the training of a base was another one."""
    theirs, ours = record["settings"], config.model_dump(mode="json")
    during = theirs.get("subnetworks", {}).get("during", "stages")
    if during != "stages":
        return f"subnetworks.during {during!r} and not 'stages'"
    for part in _OF_THE_BASE:
        before, now = theirs.get(part), ours[part]
        if not isinstance(now, dict) or not isinstance(before, dict):
            if before != now:
                return f"{part} {before!r} and not {now!r}"
            continue
        for name in sorted((before.keys() & now.keys()) - set(_OF_TESTS.get(part, ()))):
            if before[name] != now[name]:
                return f"{part}.{name} {before[name]!r} and not {now[name]!r}"
    read = record.get("inputs") or {}
    names = [name for name in inputs if not name.endswith("test.jsonl") and name in read]
    return next((f"another {name}" for name in names if read[name] != inputs[name]), None)


def _given(config: TrainingConfig, root: Path) -> list[str]:
    """Under which identity the model that was given is known, where it is taken as it is."""
    name = config.model.name
    if (config.base.steps and config.subnetworks.in_base == "none") or not name:
        return []
    place = root / name
    return [_identity(place) if place.is_dir() else name]


def _identity(folder: Path) -> str:
    """What makes two bases the same: the folder's name, and its content."""
    from subnet.checkpoint.base import Bases

    bases = Bases()
    store = bases.store(folder)
    return "" if store is None else bases.fingerprint(store)


def identity_as(name: str, folder: Path) -> str:
    """The identity that a base will have under another name."""
    found = _CONTENT.search(_identity(folder))
    return "" if found is None else f"{name} {found.group()}"


def _others(masks: Masks, known: Sequence[str]) -> list[Subnetwork]:
    """The masks of a base that has none of these identities; a folder may have been renamed."""

    def content(identity: str) -> str:
        found = _CONTENT.search(identity)
        return identity if found is None else found.group(1)

    contents = {content(identity) for identity in known}
    return [mask for mask in masks.values() if content(mask.base) not in contents]


def _is_stated(base: str) -> bool:
    from subnet.checkpoint import base as bases

    return base not in ("", bases.NOT_STATED)
