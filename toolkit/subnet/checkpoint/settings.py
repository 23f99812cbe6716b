"""`subnet.toml`: what a checkpoint directory cannot say by its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from subnet import _files
from subnet._toml import read_toml

#: Name of the settings file in a checkpoint directory.
SETTINGS_FILE = "subnet.toml"


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
    settings = read_toml(CheckpointSettings, path)
    if settings.base is not None:
        _files.inside(settings.base, directory, source=path)
    for stage in settings.stages.values():
        if isinstance(stage.examples, str):
            _files.inside(stage.examples, directory, source=path)
    return settings
