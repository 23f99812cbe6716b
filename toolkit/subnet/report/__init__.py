"""The page that answers: what was found, what it comes to, how sure that is, how it was computed.

`render_report` turns a `ReportContent` into one self-contained HTML file; `standard_sections` fills
most of it from the tables of an analysis. `draw`, `tidy`, `has_rows` and `format_number` are what
sections are put together from, for those that an extension writes.
"""

from subnet.report._format import format_number
from subnet.report._pieces import draw, has_rows, tidy
from subnet.report.confounds import confounds_section
from subnet.report.content import (
    Figure,
    Found,
    HeadlineLike,
    Method,
    Missing,
    ReportContent,
    Section,
    Skipped,
    Table,
)
from subnet.report.influence import influence_section
from subnet.report.page import render_report
from subnet.report.sections import standard_sections
from subnet.report.validation import validation_section

__all__ = [
    "Figure",
    "Found",
    "HeadlineLike",
    "Method",
    "Missing",
    "ReportContent",
    "Section",
    "Skipped",
    "Table",
    "confounds_section",
    "draw",
    "format_number",
    "has_rows",
    "influence_section",
    "render_report",
    "standard_sections",
    "tidy",
    "validation_section",
]
