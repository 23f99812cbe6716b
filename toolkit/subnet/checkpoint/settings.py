"""`subnet.toml`: what a checkpoint directory cannot say by its layout."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from subnet import _files
from subnet.errors import InputError

#: Name of the settings file in a checkpoint directory.
SETTINGS_FILE = "subnet.toml"


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
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)


class LanguageSettings(_Part):
    """`[languages.<folder>]`: what a label means."""

    tag: str


class ScoreSettings(_Part):
    """`[scores.<metric>]`: how a metric is to be read."""

    higher_is_better: bool | None = None
    chance: float | None = None
    range: tuple[float, float] | None = None

    @field_validator("range")
    @classmethod
    def _lowest_first(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise PydanticCustomError("range_order", "the lowest value first, then the highest")
        return value


class StageSettings(_Part):
    """`[stages.<folder>]`: how a stage was trained.

    `learning_rate` is the rate itself or one rate per checkpoint; `steps` counts optimizer steps;
    `examples` is a file of training examples or their number.
    """

    learning_rate: float | tuple[float, ...] | None = None
    steps: int | None = None
    optimizer: str | None = None
    examples: int | str | None = None


class CheckpointSettings(_Part):
    """Content of `subnet.toml`; every key is optional.

    Attributes:
        format: Version of this file's format.
        base: Folder of the base model, inside the directory.
        order: Labels in the order in which they were trained, first to last.
        task: What was trained, in the user's words.
        languages: Folder or label to what it means.
        scores: Metric to how it is read.
        stages: Stage folder to how it was trained.
    """

    format: Literal[1] = 1
    base: str | None = None
    order: tuple[str, ...] = ()
    task: str | None = None
    languages: dict[str, LanguageSettings] = Field(default_factory=dict)
    scores: dict[str, ScoreSettings] = Field(default_factory=dict)
    stages: dict[str, StageSettings] = Field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        """Label to declared tag, as `LanguageIndex` takes it."""
        return {label: entry.tag for label, entry in self.languages.items()}


def read_settings(directory: Path) -> CheckpointSettings:
    """Settings of a directory; the defaults where it has no `subnet.toml`.

    Raises:
        FileFormatError: The file is not TOML.
        InputError: A key is unknown (the nearest known one is named), a value has the wrong type,
            or a path leaves the directory.
    """
    path = directory / SETTINGS_FILE
    if not path.is_file():
        return CheckpointSettings()
    content = _files.read_toml(path)
    try:
        settings = CheckpointSettings.model_validate(content)
    except ValidationError as error:
        raise _explain(error, path, content) from error
    if settings.base is not None:
        _files.inside(settings.base, directory, source=path)
    for stage in settings.stages.values():
        if isinstance(stage.examples, str):
            _files.inside(stage.examples, directory, source=path)
    return settings


def _explain(error: ValidationError, path: Path, content: dict[str, Any]) -> InputError:
    """One line for one problem that pydantic found: a misspelt key before what it left out."""
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where, value = _place(problem["loc"], content)
    name = ".".join(where)
    if problem["type"] == "extra_forbidden":
        known = _keys(CheckpointSettings, where[:-1])
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
        if isinstance(part, type) and issubclass(part, BaseModel):
            part = part.model_fields[name].annotation
        if typing.get_origin(part) is dict and name not in CheckpointSettings.model_fields:
            part = typing.get_args(part)[1]
        elif isinstance(part, types.UnionType):
            part = typing.get_args(part)[0]
    known = isinstance(part, type) and issubclass(part, BaseModel)
    return sorted(part.model_fields) if known else []
