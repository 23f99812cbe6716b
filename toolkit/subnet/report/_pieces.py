"""What all sections are put together from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, TypeGuard

import matplotlib.figure
import pandas as pd

from subnet import figures
from subnet.report.content import Figure


def draw(name: str, title: str, figure: matplotlib.figure.Figure, caption: str) -> Figure:
    """A picture of a section; its name becomes that of a file."""
    name = re.sub(r"[^\w-]+", "-", name, flags=re.ASCII).strip("-")
    svg = figures.to_svg(figure, name=name, title=title, description=caption)
    return Figure(name, title, svg, caption)


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Without columns that say nothing: one run only, no reason at all."""
    drop = []
    if "run" in frame.columns and len(frame["run"].unique()) <= 1:
        drop.append("run")
    drop += [
        column
        for column in ("reason", "module", "between chance (0) and other seed (1)")
        if column in frame.columns and not says_anything(frame[column])
    ]
    return frame.drop(columns=drop)


def says_anything(column: Iterable[Any]) -> bool:
    """Whether any value is there."""
    return any(
        value != "" for value in column if not (isinstance(value, float) and math.isnan(value))
    )


def has_rows(frame: pd.DataFrame | None) -> TypeGuard[pd.DataFrame]:
    """Whether there is a table with rows."""
    return frame is not None and not frame.empty
