"""Masks on disk: safetensors, one tensor of packed bits per parameter, one JSON string beside.

A parameter's tensor stands under its name in the base's `state_dict` and holds uint8
[ceil(o·i / 8)]: row-major, lowest bit first, padding zero. In a mask of attention heads or of
feed-forward neurons, the units of layer 3 stand under `layers.3.heads` or `layers.3.neurons`; in
one of singular directions, those of a module under `<module>.directions`. The metadata key
`subnetwork` holds JSON with the format version, shapes, granularity, language, run, base, method,
settings, density and seed.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from subnet import _files
from subnet._tables import MAIN_RUN
from subnet.errors import FileFormatError, InputError, MissingInputError
from subnet.subnetwork import _bits
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint, Entry

FORMAT = 1
_KEY = "subnetwork"
_SUFFIX = ".safetensors"


class _Metadata(BaseModel):
    """What the JSON string says; `format` has been looked at before."""

    model_config = ConfigDict(strict=True)

    granularity: Literal["weight", "head", "neuron", "direction"]
    language: str
    run: str
    base: str
    method: str
    settings: dict[str, Any]
    seed: int | None
    density: float
    shapes: dict[str, list[NonNegativeInt]]


def save_subnetwork(subnetwork: Subnetwork, path: str | Path) -> None:
    """Write a mask; the same content gives the same bytes.

    Raises:
        OutputError: The file cannot be written.
    """
    from safetensors.numpy import save

    content = {
        "format": FORMAT,
        "granularity": subnetwork.granularity,
        "language": subnetwork.language,
        "run": subnetwork.run,
        "base": subnetwork.base,
        "method": subnetwork.method,
        "settings": subnetwork.settings,
        "density": subnetwork.density,
        "seed": subnetwork.seed,
        "shapes": subnetwork.shapes,
    }
    text = json.dumps(
        json.loads(_files.to_json(content)),
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
    )
    with _files.new_file(path) as building:
        building.write_bytes(save(dict(subnetwork.bits), metadata={_KEY: text}))


def load_subnetwork(path: str | Path) -> Subnetwork:
    """Read a mask that `Subnetwork.save` wrote, and check everything that the file says.

    Raises:
        MissingInputError: There is no such file.
        UnsafeFileError: The file is a pickle.
        FileFormatError: It is truncated, holds no mask, is of an unknown format version, or bits
            and shapes do not belong together.
    """
    path = Path(path)
    infos, header = _files.read_safetensors_header(path)
    metadata = _read_metadata(header, path)
    shapes = {name: tuple(shape) for name, shape in metadata.shapes.items()}
    lone = sorted(infos.keys() ^ shapes.keys())
    if lone:
        state = "bits but no shape" if lone[0] in infos else "a shape but no bits"
        raise FileFormatError(f"has {state} for {lone[0]}", path=path, expected="both")
    if any(info.dtype != "U8" for info in infos.values()):
        name = next(name for name, info in infos.items() if info.dtype != "U8")
        raise FileFormatError(
            f"holds {infos[name].dtype} values for {name}", path=path, expected="packed bits (U8)"
        )
    try:
        subnetwork = Subnetwork(
            language=metadata.language,
            bits=_read_tensors(path),
            shapes=shapes,
            base=metadata.base,
            run=metadata.run,
            method=metadata.method,
            settings=metadata.settings,
            seed=metadata.seed,
            granularity=metadata.granularity,
        )
    except InputError as error:
        raise FileFormatError(
            error.found, path=path, expected=error.expected, fix=error.fix
        ) from error
    if abs(subnetwork.density - metadata.density) * subnetwork.size > 0.5:
        raise FileFormatError(
            f"has {subnetwork.count} of {subnetwork.size} bits set, density "
            f"{subnetwork.density:.6g}",
            path=path,
            expected=f"density {metadata.density:.6g}, as its metadata says",
            fix="extract it again",
        )
    return subnetwork


def load_subnetworks(source: Checkpoint) -> Subnetworks:
    """All masks of a checkpoint, under the labels and runs of its inventory.

    Raises:
        MissingInputError: The checkpoint holds no masks.
        FileFormatError: A mask is damaged, or says another language than the name of its file.
    """
    entries = [entry for entry in source.entries if entry.kind == "mask"]
    if not entries:
        raise MissingInputError(
            "holds no masks",
            path=source.path,
            expected=f"masks/<language>{_SUFFIX}",
            fix="extract them with subnet extract",
        )
    return Subnetworks(_load_entry(entry) for entry in entries)


def save_subnetworks(subnetworks: Subnetworks, directory: str | Path) -> None:
    """Write masks into a new directory; see `Subnetworks.save`.

    Raises:
        InputError: A label cannot be the name of a file, or two differ in case only.
        OutputError: The directory is already there, or cannot be written.
    """
    with _files.new_directory(directory) as building:
        for place, member in places(subnetworks, _SUFFIX).items():
            save_subnetwork(member, building / place)


def places(subnetworks: Subnetworks, suffix: str) -> dict[str, Subnetwork]:
    """Where each mask stands in a directory of masks.

    Raises:
        InputError: A label cannot be the name of a file, or two differ in case only.
    """
    only = subnetworks.runs[0] if len(subnetworks.runs) == 1 else MAIN_RUN
    found: dict[str, Subnetwork] = {}
    for member in subnetworks:
        for label in (member.language, member.run):
            if not label or label.startswith(".") or set(label) & set('/\\\0:*?"<|'):
                raise InputError(
                    f"{label!r} cannot be the name of a file",
                    expected='a label without / \\ : * ? " < |',
                    fix="rename it with dataclasses.replace(subnetwork, language=…)",
                )
        folder = "masks" if member.run == only else f"runs/{member.run}/masks"
        found[f"{folder}/{member.language}{suffix}"] = member
    folded = Counter(place.lower() for place in found)
    for place in found:
        if folded[place.lower()] > 1:
            raise InputError(
                f"{place} and another mask differ in upper and lower case only",
                expected="labels that stay apart on every file system",
            )
    return found


def _read_metadata(header: dict[str, str], path: Path) -> _Metadata:
    if _KEY not in header:
        raise FileFormatError(
            f"is a safetensors file but no mask: it has no metadata under the key {_KEY!r}",
            path=path,
            expected="a mask written by subnet extract",
            fix="extract it again, or convert it with subnet convert",
        )
    try:
        content = json.loads(header[_KEY])
    except ValueError as error:
        raise FileFormatError(f"has metadata that is no JSON ({error})", path=path) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise FileFormatError(
            f"is of format version {version!r}",
            path=path,
            expected=f"{FORMAT}",
            fix="read it with a newer version of subnet-toolkit",
        )
    try:
        return _Metadata.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileFormatError(
            f"has metadata that cannot be used: {where}: {first['msg']}", path=path
        ) from error


def _read_tensors(path: Path) -> dict[str, _bits.Bits]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise FileFormatError(
            f"cannot be read ({error})", path=path, fix="copy it again"
        ) from error


def _load_entry(entry: Entry) -> Subnetwork:
    from subnet.errors import UnknownLanguageError
    from subnet.language import parse_language

    subnetwork = load_subnetwork(entry.path)
    language = entry.language
    if language is None:
        return replace(subnetwork, run=entry.run)
    if subnetwork.language != language.label:
        try:
            same = parse_language(subnetwork.language).identity == language.identity
        except UnknownLanguageError:
            same = False
        if not same:
            raise FileFormatError(
                f"holds the mask of {subnetwork.language}",
                path=entry.path,
                expected=f"{language.label}, as its name says",
                fix="rename the file",
            )
    return replace(subnetwork, language=language.label, run=entry.run)
