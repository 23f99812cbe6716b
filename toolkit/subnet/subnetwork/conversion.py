"""Masks of any format that is read, written in one of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from subnet import _files
from subnet.errors import InputError
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.foreign import read_masks
from subnet.subnetwork.formats import places
from subnet.subnetwork.mask import Subnetwork

#: What masks are written as.
TARGETS = ("safetensors", "npz")


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: str = "safetensors",
    format: str | None = None,  # noqa: A002 - the word for it
    languages: Sequence[str] | None = None,
    base: str | Path | None = None,
    units: int | None = None,
    density: float = 0.05,
) -> Subnetworks:
    """Read masks or adapters of any known format and write them in ours.

    Args:
        src: What to read; see `read_masks`, also for the other arguments.
        dst: A new directory: `masks/<language>.safetensors`, which can be analysed like any
            checkpoint, or `masks/<language>.npz`.
        to: `"safetensors"` (packed bits) or `"npz"` (boolean arrays by parameter).
        format: One of `FORMATS`; None to recognise it.
        languages: Labels in the file's order, where it does not say them.
        base: Folder or name of the base.
        units: Neurons per layer, for `lape`.
        density: Share of the weights to select, for adapters.

    Returns:
        What was written.

    Raises:
        InputError: As `read_masks`, or `to` is neither.
        OutputError: The directory is already there, or cannot be written.

    Example:
        >>> convert("head_mask.npy", "masks/", languages=["de"], base="base/")  # doctest: +SKIP
    """
    found = read_masks(
        src, format=format, languages=languages, base=base, units=units, density=density
    )
    write_masks(found, dst, to=to)
    return found


def write_masks(subnetworks: Subnetworks, dst: str | Path, *, to: str = "safetensors") -> None:
    """Write masks into a new directory, one file per language.

    Raises:
        InputError: `to` is neither `"safetensors"` nor `"npz"`.
        OutputError: The directory is already there, or cannot be written.
    """
    if to not in TARGETS:
        raise InputError(f"the target format is {to!r}", expected=" or ".join(map(repr, TARGETS)))
    if to == "safetensors":
        subnetworks.save(dst)
        return
    with _files.new_directory(dst) as building:
        for place, member in places(subnetworks, ".npz").items():
            _write_npz(member, building / place)


def _write_npz(subnetwork: Subnetwork, path: Path) -> None:
    """Boolean arrays by parameter, and under `subnetwork` a JSON string of what is known of it."""
    keys = ("language", "run", "base", "method", "settings", "seed", "granularity")
    content = {key: getattr(subnetwork, key) for key in keys}
    arrays = {name: subnetwork.dense(name) for name in subnetwork.shapes}
    stated = np.array(json.dumps(json.loads(_files.to_json(content)), ensure_ascii=False))
    with _files.new_file(path) as building, building.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays, subnetwork=stated)
