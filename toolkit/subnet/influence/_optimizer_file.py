"""An optimizer's state as it lies beside a checkpoint."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from subnet.errors import FileFormatError, MissingInputError, UnsafeFileError

#: Files that hold an optimizer's state: Trainer's, and accelerate's (FSDP with a full state).
FILES = ("optimizer.pt", "optimizer.bin")


def find_state(path: Path) -> Path:
    """The file itself, or the one of a checkpoint folder.

    Raises:
        MissingInputError: There is none, or one in shards.
    """
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    if any(path.glob("optimizer_*/*.distcp")):
        raise MissingInputError(
            "holds the optimizer in shards only, whose index is a pickle",
            path=path,
            expected=f"{' or '.join(FILES)}",
            fix="save with the FSDP option state_dict_type=FULL_STATE_DICT",
        )
    raise MissingInputError(
        "has no state of the optimizer",
        path=path,
        expected=f"{' or '.join(FILES)}",
        fix="train with save_only_model=False, or take a method without moments",
    )


def load_state(file: Path) -> Mapping[str, Any]:
    """`state` and `param_groups`, read as tensors and plain values.

    Raises:
        UnsafeFileError: Reading it would run code.
        FileFormatError: It is damaged, or no state of an optimizer.
    """
    try:
        content = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise _damaged(file) from error
        raise UnsafeFileError(
            "holds objects whose loading would run code",
            path=file,
            expected="tensors, lists, dictionaries and numbers",
            fix="load it where you trust it and save optimizer.state_dict() again",
        ) from error
    except PermissionError:
        raise
    except (RuntimeError, EOFError, KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise _damaged(file) from error
    if not isinstance(content, Mapping) or not {"state", "param_groups"} <= content.keys():
        raise FileFormatError(
            "is no state of an optimizer", path=file, expected="'state' and 'param_groups'"
        )
    return content


def _damaged(file: Path) -> FileFormatError:
    return FileFormatError("is truncated or no file of torch.save", path=file, fix="copy it again")
