"""Numbers and tables as a reader wants them: few digits, undefined values with their reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from subnet.report.content import Table

#: Headings of columns whose name in the files says less.
HEADINGS = {
    "p_value": "p",
    "q_value": "q",
    "ci_low": "95 % from",
    "ci_high": "95 % to",
    "stderr": "std. error",
    "n_languages": "languages",
    "n_permutations": "permutations",
    "n_pairs": "pairs",
    "n_runs": "runs",
    "language_a": "language A",
    "language_b": "language B",
    "trained_language": "trained",
    "bytes_per_character": "bytes per character",
    "truncated_share": "truncated",
    "position": "position in order",
    "smallest_p": "smallest possible p",
}

UNDEFINED = "–"
_LANGUAGE_COLUMNS = frozenset(
    {"language", "language_a", "language_b", "trained_language", "trained on", "tested"}
)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    """Text of a cell; `sort` is its number, `reason` why it is undefined."""

    text: str
    sort: str | None = None
    undefined: bool = False
    reason: str = ""
    language: bool = False


@dataclass(frozen=True)
class TableView:
    """A table ready for the template."""

    name: str
    title: str
    caption: str
    columns: tuple[tuple[str, bool], ...]  # heading, whether numbers
    rows: tuple[tuple[Cell, ...], ...]
    note: str


def format_p(value: float) -> str:
    """A p- or q-value: never 0, two digits."""
    if not math.isfinite(value):
        return UNDEFINED
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.01 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def format_number(value: float, decimals: int | None = None) -> str:
    """A number with about three digits, or with so many decimals.

    Example:
        >>> format_number(-0.12345), format_number(123456), format_number(1.2e-7)
        ('−0.123', '123 456', '1.2×10⁻⁷')
    """
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if decimals is None:
        decimals = _decimals(np.array([value]))
    if value and abs(value) < 0.5 * 10.0**-decimals:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits}×10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    text = f"{value:,.{decimals}f}"
    # a narrow space from five digits on, so that years and small counts stay whole
    text = text.replace(",", "\u202f" if abs(value) >= 10_000 else "")
    return text.replace("-", "−")


def view(table: Table) -> TableView:
    """What the page shows of a table: its first rows, formatted column by column."""
    shown = table.frame.head(table.limit)
    formats = {column: _formatter(str(column), shown[column]) for column in shown.columns}
    reasons = table.reasons
    rows = []
    for index, row in zip(shown.index, shown.to_dict("records"), strict=True):
        cells = []
        for column in shown.columns:
            reason = str(row.get("reason") or "") if _is_text(row.get("reason")) else ""
            if reasons is not None and column in reasons.columns and index in reasons.index:
                found = reasons.loc[index, column]
                reason = found if isinstance(found, str) else ""
            cells.append(formats[column](row[column], reason))
        rows.append(tuple(cells))
    more = len(table.frame) - len(shown)
    note = ""
    if more > 0:
        note = f"The first {len(shown)} of {len(table.frame)} rows"
        note += f"; all of them are in {table.rest}." if table.rest else "."
    elif table.rest:
        note = f"Also in {table.rest}."
    columns = tuple((_heading(str(c)), _is_numeric(shown[c])) for c in shown.columns)
    return TableView(table.name, table.title, table.caption, columns, tuple(rows), note)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as lines: nested mappings become `a.b`, lists are joined by commas."""
    lines: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines.update(flatten(value, f"{name}."))
        elif isinstance(value, list | tuple | set | frozenset):
            lines[name] = ", ".join(str(entry) for entry in value) or "none"
        else:
            lines[name] = "none" if value is None or value == "" else str(value)
    return lines


def _heading(column: str) -> str:
    return HEADINGS.get(column, column.replace("_", " "))


def _is_numeric(column: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _decimals(values: np.ndarray[Any, np.dtype[np.float64]]) -> int:
    known = np.abs(values[np.isfinite(values) & (values != 0)])
    if not known.size or (known == np.round(known)).all():
        return 0
    middle = float(np.median(known))
    return int(np.clip(2 - math.floor(math.log10(middle)), 0, 3 if middle >= 0.01 else 5))


def _formatter(name: str, column: pd.Series[Any]) -> Callable[[Any, str], Cell]:
    if _is_numeric(column):
        values = column.to_numpy(dtype=np.float64, na_value=math.nan)
        is_p = name in {"p_value", "q_value", "smallest_p"}
        is_share = name.endswith("_share")
        decimals = _decimals(values * 100 if is_share else values)

        def number(value: Any, reason: str) -> Cell:
            x = math.nan if value is None or value is pd.NA else float(value)
            if math.isnan(x):
                return Cell(UNDEFINED, "", undefined=True, reason=reason or "not known")
            if is_p:
                text = format_p(x)
            elif is_share:
                text = f"{format_number(100 * x, min(decimals, 1))} %" if x else "0 %"
            else:
                text = format_number(x, decimals)
            return Cell(text, f"{x:.6g}")

        return number

    is_language = name in _LANGUAGE_COLUMNS

    def text(value: Any, reason: str) -> Cell:
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            return Cell(UNDEFINED, "", undefined=True, reason=reason or "not known")
        if isinstance(value, bool | np.bool_):
            return Cell("yes" if value else "no")
        return Cell(str(value), language=is_language)

    return text
