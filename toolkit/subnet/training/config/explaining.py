"""`subnet train --explain`: a file with every default and what it means."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from subnet.training.config.whole import TrainingConfig


def explain() -> str:
    """A configuration with every default and what it means: a file that `subnet train` takes."""
    return "\n".join(_lines(TrainingConfig(), "")).strip() + "\n"


def _lines(part: BaseModel, name: str) -> Iterator[str]:
    """TOML of a part: its own keys first, then its tables."""
    fields = type(part).model_fields
    tables = []
    if name:
        yield ""
        yield f"# {(type(part).__doc__ or '').strip().splitlines()[0].partition(': ')[2]}"
        yield f"[{name}]"
    for key, field in fields.items():
        value = getattr(part, key)
        if isinstance(value, BaseModel):
            tables.append((key, value))
        else:
            yield from textwrap.wrap(
                str(field.description), 100, initial_indent="# ", subsequent_indent="# "
            )
            yield f"{key} = {_toml(value)}"
    for key, value in tables:
        yield from _lines(value, key)


def _toml(value: Any) -> str:
    """A value in TOML, which writes strings, numbers, truth values and lists as JSON does."""
    return json.dumps(value)
