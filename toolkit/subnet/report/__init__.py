"""The page that answers: what was found, what it comes to, how sure that is, how it was computed.

`render_report` turns a `ReportContent` into one self-contained HTML file; `standard_sections` fills
most of it from the tables of an analysis.
"""

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
    "influence_section",
    "render_report",
    "standard_sections",
    "validation_section",
]
