"""A table of a configuration: unknown keys are refused, and values of another type than TOML's."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

_NUMBERS = {int: ("int_type", "a whole number"), float: ("float_type", "a number")}


class Part(BaseModel):
    """What all tables of a configuration have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_own_type(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is no number, `"8"` none either, and 1 is not `true`."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if kinds == {bool} and not isinstance(value, bool):
            raise PydanticCustomError("bool_type", "true or false")
        number = next((kind for kind in (float, int) if kind in kinds), None)
        if number and kinds <= {int, float} and _holds(value, (bool, str)):
            raise PydanticCustomError(*_NUMBERS[number])
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a value may consist of."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return {type(value) for value in inner}
    if typing.get_origin(annotation) is typing.Annotated:
        inner = inner[:1]
    if not inner:
        return {annotation} - {Ellipsis}
    return {kind for part in inner for kind in _kinds(part)}


def _holds(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds(entry, kinds) for entry in value)
    return isinstance(value, kinds)
