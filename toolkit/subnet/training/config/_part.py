"""A table of a configuration: unknown keys are refused, and values of another type than TOML's."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

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


def refuse(part: Part, keys: tuple[str, ...], expected: str) -> ValidationError:
    """What a validator of a whole table raises: it names a key of it, and not the table.

    Args:
        part: The table.
        keys: Those that do not go together; the first one that is set is named.
        expected: What would go.
    """
    key = next((key for key in keys if key in part.model_fields_set), keys[0])
    problem = InitErrorDetails(
        type=PydanticCustomError("together", expected), loc=(key,), input=getattr(part, key)
    )
    return ValidationError.from_exception_data(type(part).__name__, [problem])


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
