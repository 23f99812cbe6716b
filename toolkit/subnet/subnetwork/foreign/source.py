"""One file or folder to read masks from, loaded without running code that came with it."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import FileFormatError, InputError, MissingInputError, UnsafeFileError
from subnet.language import looks_like_language, parse_language
from subnet.subnetwork.foreign.base import StatedBase

#: Files that `torch.save` wrote.
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
#: Files whose content is loaded as a whole.
_LOADED = (".npy", ".npz", ".json", *TORCH_SUFFIXES)
#: A label that leaves out one of the languages of a file.
LEFT_OUT = "-"


class SparseDifference:
    """Stands for the class of the same purpose in pickles of the first composable-sft.

    The loader fills it with plain values and runs nothing of what the pickle came from.
    """

    size: tuple[int, ...]
    indices: list[list[int]]
    values: list[float]


@dataclass(frozen=True)
class Wish:
    """What the caller says beyond the file.

    Attributes:
        languages: Labels in the file's order, None where names of files say them.
        base: The base that the masks are over.
        units: Neurons per layer, where the base does not say it.
        density: Share of the weights to select, for adapters.
    """

    languages: tuple[str, ...] | None
    base: StatedBase
    units: int | None = None
    density: float = 0.05


@dataclass(frozen=True)
class Source:
    """A file or folder.

    Attributes:
        path: Where it is.
        format: What it is, one of `FORMATS`.
    """

    path: Path
    format: str = ""

    def as_format(self, name: str) -> Source:
        """The same, recognised; what was loaded stays loaded."""
        named = replace(self, format=name)
        if "content" in self.__dict__:
            named.__dict__["content"] = self.content
        return named

    @cached_property
    def content(self) -> Any:
        """What a file of `torch.save`, NumPy or JSON holds.

        Raises:
            MissingInputError: There is no such file.
            UnsafeFileError: It holds more than tensors and plain values.
            FileFormatError: It is damaged, or a file of another kind.
        """
        if self.path.is_dir() or (self.path.is_file() and self.path.suffix not in _LOADED):
            kind = "a folder" if self.path.is_dir() else f"a {self.path.suffix or 'nameless'} file"
            raise FileFormatError(
                f"is {kind}, which holds nothing in the format {self.format!r}",
                path=self.path,
                expected=f"a file ending in {', '.join(_LOADED)}",
            )
        if not self.path.is_file():
            raise MissingInputError("is not there", path=self.path)
        if self.path.suffix in TORCH_SUFFIXES:
            return _load_torch(self.path)
        if self.path.suffix in (".npy", ".npz"):
            return _load_numpy(self.path)
        return _files.read_json(self.path)

    @property
    def mapping(self) -> Mapping[Any, Any]:
        """The content, where the format wants a dictionary.

        Raises:
            FileFormatError: It is something else.
        """
        if not isinstance(self.content, Mapping):
            raise FileFormatError(
                f"holds one value of type {type(self.content).__name__}",
                path=self.path,
                expected=f"tensors by name, as the format {self.format!r} has them",
            )
        return self.content

    @property
    def label(self) -> str:
        """What the name says of the language: the file's own, or its folder's."""
        generic = self.format == "composable-sft" and self.path.is_file()
        return self.path.parent.name if generic else self.path.name.partition(".")[0]

    def settings(self, **more: Any) -> dict[str, Any]:
        """What is recorded of where a mask came from."""
        return {"format": self.format, "file": self.path.name, **more}

    def language(self, wish: Wish) -> str:
        """Label of the one language that this holds.

        Raises:
            InputError: Several are stated.
            MissingInputError: None is stated and the name says none.
        """
        if wish.languages is not None:
            return self.name_languages(1, wish)[0]
        if looks_like_language(self.label):
            return self.label
        raise MissingInputError(
            f"does not say its language: {self.label!r} is none",
            path=self.path,
            fix="name it with --languages, as in --languages de",
        )

    def name_languages(self, count: int, wish: Wish) -> tuple[str, ...]:
        """Labels of the languages that this holds, in its own order.

        Raises:
            MissingInputError: They are not stated.
            InputError: Their number is not that of the file, or one stands twice.
        """
        if wish.languages is None:
            raise MissingInputError(
                f"holds masks of {count} languages without their names",
                path=self.path,
                fix="name them in the file's order with --languages, as in --languages en,zh,fr",
            )
        if len(wish.languages) != count:
            held = "1 language" if count == 1 else f"{count} languages"
            raise InputError(
                f"holds masks of {held}, and {len(wish.languages)} are named",
                path=self.path,
                expected=f"{count} with --languages ({LEFT_OUT!r} leaves one out)",
            )
        kept = [label for label in wish.languages if label != LEFT_OUT]
        for label in kept:
            parse_language(label)
            if kept.count(label) > 1:
                raise InputError(f"{label} is named twice", fix="name each language once")
        return wish.languages


#: What loaders raise at the content of a file.
_DAMAGES = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError,
    AttributeError, OSError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def _load_torch(path: Path) -> Any:
    import numpy as np
    import torch
    from numpy._core.multiarray import scalar

    # The only things beside tensors and plain values that the formats below need: NumPy's integers
    # (an index among plain ones) and, in place of composable-sft's class, an inert one of ours.
    allowed: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Int64DType,
        (SparseDifference, "sft.sft.SparseTensorDifference"),
        (SparseDifference, "sft.SparseTensorDifference"),
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            # An unusual pickle protocol is its writer's business; what cannot be read is refused.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except PermissionError:
        raise
    except _DAMAGES as error:
        why = str(error).lower()
        if "global" in why:
            found = "holds objects whose loading would run code"
        elif "operand" in why or "magic number" in why:
            found = "is a pickle that torch.save did not write, whose loading could run code"
        else:
            raise _damaged(path) from error
        raise UnsafeFileError(
            found,
            path=path,
            expected="tensors, lists, dictionaries and numbers",
            fix="load it where you trust it and save its state_dict() or mask tensors",
        ) from error


def _load_numpy(path: Path) -> Any:
    import numpy as np

    try:
        # Opened here, since np.load leaves a damaged archive open.
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return dict(found) if isinstance(found, Mapping) else found
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        # NumPy takes everything that it does not know for a pickle.
        if "object arrays" in str(error).lower() or path.read_bytes()[:1] == b"\x80":
            raise UnsafeFileError(
                "holds Python objects, whose loading would run code",
                path=path,
                expected="arrays of numbers",
            ) from error
        raise _damaged(path) from error


def _damaged(path: Path) -> FileFormatError:
    return FileFormatError(
        f"is truncated or no {path.suffix} file", path=path, fix="copy or download it again"
    )
