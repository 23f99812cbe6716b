"""Representations on disk: one `.npy` per layer, mapped into memory, and JSON that says of what.

`representations.json` names the layers with their files and shapes and how they were made,
`items.json` says what each row is of. A folder is there complete or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet import _files
from subnet._tables import Provenance
from subnet.errors import FileFormatError, MissingInputError, NotComparableError
from subnet_probes.representation import Representations, frame_of

if TYPE_CHECKING:
    import pandas as pd

HEADER, ITEMS = "representations.json", "items.json"
_FORMAT, _VERSION = "subnet-probes representations", 1
#: Bytes above which representations without a folder of their own go to a temporary one.
LARGE = 2 << 30
#: Rows that are copied at a time.
_ROWS = 4096


class Sheets:
    """Arrays that rows are written into as they come.

    Attributes:
        arrays: Layer to numbers [n, d].
    """

    def __init__(self, folder: Path | None) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._folder = folder
        self._scratch: Path | None = None

    def add(self, layers: Mapping[str, int], n: int, dtype: np.dtype[Any]) -> None:
        """Room for n rows of each layer, whose widths are given."""
        size = sum(layers.values()) * n * dtype.itemsize
        if self._folder is None and size > LARGE:
            self._folder = self._scratch = Path(tempfile.mkdtemp(prefix="representations-"))
        for number, (name, width) in enumerate(layers.items()):
            self.arrays[name] = (
                np.empty((n, width), dtype)
                if self._folder is None
                else np.lib.format.open_memmap(
                    self._folder / _file(number), mode="w+", dtype=dtype, shape=(n, width)
                )
            )

    def close(self) -> None:
        """Write what is still in memory."""
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()

    def discard(self) -> None:
        """Remove a temporary folder."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def keep_with(self, owner: Any) -> None:
        """Let a temporary folder go when nothing refers to the owner any more."""
        if self._scratch is not None:
            weakref.finalize(owner, shutil.rmtree, self._scratch, ignore_errors=True)


def write_header(
    folder: Path, arrays: Mapping[str, NDArray[Any]], items: pd.DataFrame, provenance: Provenance
) -> None:
    """What the arrays of a folder are, and what their rows are of."""
    layers = [
        {"name": name, "file": _file(number), "shape": list(array.shape), "dtype": str(array.dtype)}
        for number, (name, array) in enumerate(arrays.items())
    ]
    content = {"format": _FORMAT, "version": _VERSION, "layers": layers}
    _files.write_json(folder / HEADER, content | {"provenance": provenance.to_dict()})
    _files.write_json(folder / ITEMS, {name: items[name].tolist() for name in items.columns})


def save(found: Representations, path: Path) -> None:
    """Write representations to a new folder, some rows at a time."""
    with _files.new_directory(path) as folder:
        arrays: dict[str, NDArray[Any]] = {}
        for number, name in enumerate(found.layers):
            array = found.arrays[name]
            shape = (len(found), array.shape[1])
            place = folder / _file(number)
            target = np.lib.format.open_memmap(place, mode="w+", dtype=array.dtype, shape=shape)
            for start in range(0, len(found), _ROWS):
                part = slice(start, start + _ROWS)
                target[part] = array[part if found.rows is None else found.rows[part]]
            target.flush()
            arrays[name] = target
        write_header(folder, arrays, found.items, found.provenance)


def load(path: Path) -> tuple[dict[str, NDArray[Any]], pd.DataFrame, Provenance]:
    """Arrays mapped from disk, items, and how they were made.

    Raises:
        MissingInputError: There is no such folder.
        FileFormatError: It is damaged, or of another format.
    """
    header = read_header(path)
    try:
        layers = [(str(e["name"]), str(e["file"]), tuple(e["shape"]), str(e["dtype"]))
                  for e in header["layers"]]  # fmt: skip
        made = header["provenance"]
        provenance = Provenance(made["method"], made["settings"], made["seed"], made["versions"])
    except (KeyError, TypeError) as error:
        raise FileFormatError(
            f"does not say {error}", path=path / HEADER, expected=f"version {_VERSION}"
        ) from error
    columns = _files.read_json(path / ITEMS)
    n = layers[0][2][0] if layers else 0
    if not isinstance(columns, dict) or any(len(values) != n for values in columns.values()):
        raise FileFormatError("does not name every row", path=path / ITEMS, expected=f"{n} items")
    arrays = {name: _mapped(path, file, shape, kind) for name, file, shape, kind in layers}
    return arrays, frame_of(columns, n), provenance


def read_header(path: Path) -> dict[str, Any]:
    """What a folder says of itself.

    Raises:
        MissingInputError: There is no such folder.
        FileFormatError: It is of another format.
    """
    if not (path / HEADER).is_file():
        raise MissingInputError(
            f"has no {HEADER}", path=path, expected="a folder that representations were saved to"
        )
    header = _files.read_json(path / HEADER)
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise FileFormatError("is no header of representations", path=path / HEADER)
    if header.get("version") != _VERSION:
        raise FileFormatError(
            f"is of version {header.get('version')}", path=path / HEADER, expected=str(_VERSION)
        )
    return header


def reopen(path: Path, fingerprint: Mapping[str, str]) -> Representations | None:
    """What a folder holds, if it is of the same model, data and settings; None without a folder.

    Raises:
        NotComparableError: It is of others; says which.
    """
    if not (path / HEADER).is_file():
        return None
    found = Representations.load(path)
    stored = found.provenance.settings.get("fingerprint") or {}
    for what, digest in fingerprint.items():
        if stored.get(what) != digest:
            raise NotComparableError(
                f"holds representations made with other {what} "
                f"(SHA-256 {str(stored.get(what))[:12]}…)",
                path=path,
                expected=f"{digest[:12]}…",
                fix="choose another folder, or remove this one",
            )
    return found


def _mapped(path: Path, file: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    place = _files.inside(file, path, source=path / HEADER)
    damaged = FileFormatError(
        "is damaged", path=place, expected=f"{dtype} {list(shape)}", fix="make the folder again"
    )
    try:
        array: NDArray[Any] = np.load(place, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingInputError("is not there", path=place, fix="make the folder again") from error
    except (ValueError, OSError, EOFError) as error:
        raise damaged from error
    if array.shape != shape or str(array.dtype) != dtype:
        raise damaged
    return array


def _file(number: int) -> str:
    return f"layer-{number:03d}.npy"
