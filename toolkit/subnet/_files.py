"""Files, safely: nothing half-written, nothing executed, every failure one line.

Output directories are built beside their final place and renamed, so that a killed run leaves
nothing behind. Input is read without pickles; safetensors headers are checked against the size of
the file before any tensor is touched.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    OutputError,
    UnsafeFileError,
)

#: The file by which a directory is known to be ours, and so may be replaced.
RUN_FILE = "run.json"

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@contextlib.contextmanager
def new_directory(
    target: str | Path, *, overwrite: bool = False, outside: Iterable[Path] = ()
) -> Iterator[Path]:
    """Build a directory that appears under its name only when it is complete.

    Args:
        target: The final place. Its parents are created.
        overwrite: Replace a directory that is there, provided it holds our `run.json`; it is moved
            aside first and removed only once the new one stands.
        outside: Directories that are read, into which nothing is written.

    Yields:
        A temporary sibling to write into.

    Raises:
        OutputError: The place is taken, is not ours to replace, is inside what is read, or cannot
            be written.
    """
    target = Path(target)
    check_output(target, overwrite=overwrite, outside=outside)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        with contextlib.suppress(OSError):  # a file system that knows no permissions
            building.chmod(0o777 & ~_umask())
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield building
        _open_to_readers(building)
        aside = None
        if target.exists():
            aside = building.with_name(building.name + "-old")
            target.rename(aside)
        try:
            building.rename(target)
        except BaseException:
            if aside is not None:
                aside.rename(target)
            raise
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_output(
    target: str | Path, *, overwrite: bool = False, outside: Iterable[Path] = ()
) -> None:
    """Refuse an output directory early, before any work is done for it.

    Args:
        target: The final place.
        overwrite: Whether a directory that is there and ours may be replaced.
        outside: Directories that are read, into which nothing is written.

    Raises:
        OutputError: The place is taken, is not ours to replace, is inside what is read, or cannot
            be written.
    """
    target = Path(target)
    try:
        _check_output(target, overwrite, outside)
    except OSError as error:
        raise _cannot_write(target, error) from error


def _check_output(target: Path, overwrite: bool, outside: Iterable[Path]) -> None:
    for directory in outside:
        if target.resolve().is_relative_to(directory.resolve()):
            raise OutputError(
                "is inside the directory that is read, into which nothing is written",
                path=target,
                fix=f"choose another place to write to, such as {directory.parent / target.name}",
            )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if not overwrite:
            raise OutputError(
                "is already there",
                path=target,
                expected="a new directory",
                fix="choose another place, or replace it with --overwrite",
            )
        if not (target / RUN_FILE).is_file():
            raise OutputError(
                f"holds no {RUN_FILE}, so it was not written by this tool and is not replaced",
                path=target,
                fix="choose another place to write to, or remove it yourself",
            )
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        state = "not writable" if parent.is_dir() else "no directory"
        raise OutputError(
            f"cannot be written: {parent} is {state}",
            path=target,
            fix="choose another place to write to",
        )


@contextlib.contextmanager
def new_file(target: str | Path) -> Iterator[Path]:
    """Write one file that appears under its name only when it is complete.

    It is written in a directory of its own, `.<name>-<eight letters>` beside its final place: what
    a library puts beside the file that it writes is in there too, and goes with it.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        building = around / target.name
        building.touch()
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield building
        _open_to_readers(around)
        building.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(around, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a directory that a killed run left; one that is gone is left at that."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(path: str, root: Path, *, source: Path) -> Path:
    """Resolve a relative path that must stay inside a directory.

    Args:
        path: As written in the user's file.
        root: The directory it must not leave (symbolic links are followed first).
        source: The file that says so, for the message.

    Raises:
        InputError: The path is absolute or leaves the directory.
    """
    resolved = (root / path).resolve()
    if Path(path).is_absolute() or not resolved.is_relative_to(root.resolve()):
        raise InputError(
            f"the path {path!r} leaves the directory",
            path=source,
            expected=f"a relative path inside {root}",
        )
    return root / path


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        FileFormatError: It is not JSON in UTF-8.
    """
    return _parse(path, json.loads, "JSON")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Content of a TOML file.

    Raises:
        FileFormatError: It is not TOML in UTF-8.
    """
    content: dict[str, Any] = _parse(path, tomllib.loads, "TOML")
    return content


def read_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file, one per line; blank lines are passed over.

    Raises:
        FileFormatError: A line is no JSON object; the message names the line.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise FileFormatError(
                    f"line {number} is not JSON ({error.msg})",
                    path=path,
                    expected="one object per line",
                ) from error
            if not isinstance(entry, dict):
                raise FileFormatError(
                    f"line {number} is a JSON {type(entry).__name__}",
                    path=path,
                    expected="an object",
                )
            yield entry


def read_csv_rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV or TSV file with a header, each with its line number, cells stripped.

    Raises:
        FileFormatError: It is not text, has no header, or a row has too many or too few fields.
    """
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter_of(path))
        try:
            header = [name.strip() for name in next(reader, [])]
            if not any(header):
                raise FileFormatError("is empty", path=path, expected="a header line")
            if len(header) == 1 and ";" in header[0]:
                raise FileFormatError(
                    "is separated by semicolons",
                    path=path,
                    expected="commas, or tabs in a .tsv, and decimal points",
                )
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise FileFormatError(f"names the column {twice!r} twice", path=path)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise FileFormatError(
                        f"line {reader.line_num} has {len(row)} fields",
                        path=path,
                        expected=f"{len(header)} ({', '.join(header)})",
                    )
                yield reader.line_num, dict(zip(header, map(str.strip, row), strict=True))
        except csv.Error as error:
            raise FileFormatError(f"line {reader.line_num}: {error}", path=path) from error


def delimiter_of(path: str | Path) -> str:
    """What separates the cells of a table: tabs in `.tsv`, commas otherwise."""
    return "\t" if Path(path).suffix == ".tsv" else ","


@contextlib.contextmanager
def open_text(path: str | Path) -> Iterator[Any]:
    """Open a text file in UTF-8; wrong bytes and missing files become errors of ours."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"byte {error.start} is not UTF-8", path=path, expected="a text file in UTF-8"
        ) from error
    except FileNotFoundError as error:
        raise MissingInputError("is not there", path=path) from error
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error


@contextlib.contextmanager
def saying_unreadable() -> Iterator[None]:
    """Turn what the system forbids into an error that names the file; also a decorator."""
    try:
        yield
    except PermissionError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", path=error.filename, fix="ask for access to it"
        ) from error


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor: dtype (`F32`, `BF16`, …) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_safetensors_header(path: str | Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Names, types and shapes of the tensors in a safetensors file, and its metadata.

    Reads the header only and checks that the file holds all the bytes that the header promises, so
    a truncated download is found without loading it. Needs neither torch nor numpy.

    Returns:
        (tensor name to info in file order, metadata).

    Raises:
        UnsafeFileError: The file is a pickle or a zip archive of one.
        FileFormatError: The file is truncated or not safetensors.
        MissingInputError: There is no such file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(start, "little") if len(start) == 8 else 0
            # A header of 640 bytes starts like a pickle does; only the size tells them apart.
            if length > size - 8 and start.startswith((*_PICKLES, b"PK\x03\x04")):
                raise UnsafeFileError(
                    "is a pickle, which can execute code when it is read",
                    path=path,
                    expected="safetensors",
                    fix="save it again with save_pretrained(..., safe_serialization=True)",
                )
            if length == 0 or length > size - 8:
                raise FileFormatError(
                    f"is truncated or no safetensors file ({size} bytes)",
                    path=path,
                    expected=f"a header of {length} bytes" if length else "a safetensors header",
                    fix="copy or download it again",
                )
            raw = file.read(length)
    except FileNotFoundError as error:
        raise MissingInputError("is not there", path=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    try:
        header: dict[str, Any] = json.loads(raw)
        metadata = {str(k): str(v) for k, v in (header.pop("__metadata__", None) or {}).items()}
        tensors = {
            name: TensorInfo(entry["dtype"], tuple(int(n) for n in entry["shape"]))
            for name, entry in header.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (
        UnicodeDecodeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise FileFormatError(
            "has a damaged header", path=path, expected="a safetensors file", fix="copy it again"
        ) from error
    if end != size - 8 - length:
        raise FileFormatError(
            f"is truncated: {size} bytes",
            path=path,
            expected=f"{8 + length + end}",
            fix="copy it again",
        )
    return tensors, metadata


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that is the same bytes for the same content; NaN and infinity become null."""
    Path(path).write_text(to_json(content) + "\n", encoding="utf-8")


def to_json(content: Any) -> str:
    """JSON text with undefined numbers as null, keys in the order given."""
    return json.dumps(_plain(content), ensure_ascii=False, indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """Plain JSON types from nested dataclass-free content, numpy scalars and paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        entries = sorted(value) if isinstance(value, set | frozenset) else value
        return [_plain(entry) for entry in entries]
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _parse(path: str | Path, parser: Any, kind: str) -> Any:
    with open_text(path) as file:
        text = file.read()
    try:
        return parser(text)
    except ValueError as error:
        raise FileFormatError(f"is not {kind} ({error})", path=path) from error


def _cannot_write(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot be written ({error.strerror or error})",
        path=target,
        fix="choose another place to write to",
    )


def _open_to_readers(directory: Path) -> None:
    """Give files the permissions of any new file; safetensors gives its own to the owner only.

    A file system that knows no permissions keeps the files as they are.
    """
    usual = 0o666 & ~_umask()
    for folder, _, names in os.walk(directory):
        for name in names:
            file = Path(folder, name)
            mode = file.lstat().st_mode
            if stat.S_ISREG(mode) and usual & ~mode:
                with contextlib.suppress(OSError):
                    file.chmod(stat.S_IMODE(mode) | usual)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
