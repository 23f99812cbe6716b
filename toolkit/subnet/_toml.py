"""Settings in TOML: read into models of pydantic, every mistake in one line of TOML's words."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from subnet import _files
from subnet.errors import InputError

Settings = TypeVar("Settings", bound=BaseModel)

#: What was expected, in the words of TOML, where pydantic speaks of Python.
_IN_TOML = {
    "string_type": "a string",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "missing": "a list of two numbers",
    "too_long": "a list of two numbers",
    "too_short": "a list of one or more",
}


def read_toml(model: type[Settings], path: Path) -> Settings:
    """Settings of a TOML file.

    Raises:
        FileFormatError: The file is not TOML.
        InputError: A key is unknown (the nearest known one is named), or a value has the wrong
            type or is out of range.
    """
    content = _files.read_toml(path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _explain(model, error, path, content) from error


def _explain(
    model: type[BaseModel], error: ValidationError, path: Path, content: dict[str, Any]
) -> InputError:
    """One line for one problem that pydantic found: a misspelt key before what it left out."""
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where, value = _place(problem["loc"], content)
    name = ".".join(where)
    if problem["type"] == "extra_forbidden":
        known = _keys(model, where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
        return InputError(
            f"unknown key {name!r}",
            path=path,
            expected=f"one of {', '.join(known)}",
            fix=f"did you mean {near[0]!r}?" if near else "remove it",
        )
    if problem["type"] == "missing" and isinstance(value, dict):
        return InputError(f"{name} has no {problem['loc'][-1]!r}", path=path)
    said = str(problem["msg"]).removeprefix("Input should be ").lower()
    return InputError(
        f"{name} is {value!r}", path=path, expected=_IN_TOML.get(problem["type"], said)
    )


def _place(location: tuple[int | str, ...], content: Any) -> tuple[list[str], Any]:
    """Keys that lead to a problem in the file itself, without pydantic's own, and what is there."""
    where = []
    for part in location:
        inside_list = isinstance(content, list) and part in range(len(content))
        if not inside_list and not (isinstance(content, dict) and part in content):
            break
        where.append(str(part))
        content = content[part]
    return where, content


def _keys(model: type[BaseModel], where: list[str]) -> list[str]:
    """Known keys of the table at `where`."""
    part: Any = model
    for name in where:
        if isinstance(part, types.UnionType):
            part = typing.get_args(part)[0]
        if isinstance(part, type) and issubclass(part, BaseModel):
            part = part.model_fields[name].annotation
        elif typing.get_origin(part) is dict:
            part = typing.get_args(part)[1]
    if isinstance(part, types.UnionType):
        part = typing.get_args(part)[0]
    known = isinstance(part, type) and issubclass(part, BaseModel)
    return sorted(part.model_fields) if known else []
