"""What stands in a report, before it becomes a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd


class HeadlineLike(Protocol):
    """The part of `subnet.relation.Headline` that the report reads."""

    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def sentence(self) -> str: ...  # noqa: D102
    @property
    def row(self) -> Mapping[str, Any] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Found:
    """One thing that was recognised; the page groups them.

    Attributes:
        what: Its kind, in plain words (`adapter`, `scores`).
        recognised_as: As what (`PEFT adapter (LoRA, rank 8)`).
        where: Path inside the checkpoint directory.
        run: Name of the run.
        language: Label of its language, `""` where it has none.
        stage: Number of its stage, None where it has none.
    """

    what: str
    recognised_as: str
    where: str
    run: str = ""
    language: str = ""
    stage: int | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that was not used: where it is, why, what to do."""

    where: str
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Missing:
    """An analysis that was not possible: which, why, what it wants."""

    analysis: str
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        name: Unique in the report; the file is `figures/<name>.svg`.
        title: What it shows, in a few words.
        svg: From `subnet.figures.to_svg`, with the same name; it is put into the page as it is.
        caption: How to read it.
    """

    name: str
    title: str
    svg: str = field(repr=False)
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table, of which the page shows the first rows.

    Attributes:
        name: Unique in the report.
        title: What it shows, in a few words.
        frame: Rows in the order in which they are shown. An undefined number is NaN; why stands in
            a column `reason` or in `reasons`.
        caption: How to read it.
        rest: Where all rows are (`tables/overlap.csv`).
        limit: Most rows shown.
        reasons: Same index and columns as the frame (or some of them): why a cell is undefined.
    """

    name: str
    title: str
    frame: pd.DataFrame = field(repr=False)
    caption: str = ""
    rest: str = ""
    limit: int = 60
    reasons: pd.DataFrame | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading of its own.

    Attributes:
        id: Letters, digits and `-`; unique in the report.
        title: Heading.
        lead: What it shows, in plain words; a blank line begins a new paragraph.
        figures: Pictures, in order.
        tables: Tables, in order, after the pictures.
        method: How it was computed and what to keep in mind.
        empty_reason: Why there is nothing to show, where that is so.
    """

    id: str
    title: str
    lead: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    method: str = ""
    empty_reason: str = ""


@dataclass(frozen=True)
class Method:
    """How the results were made.

    Attributes:
        paragraph: For the methods section of a paper.
        bibtex: References of that paragraph.
        settings: Every value that the results depend on; nested mappings are written `a.b`.
        versions: Library to version.
        seeds: What was drawn at random, to its seed.
        inputs: File read to its SHA-256.
    """

    paragraph: str = ""
    bibtex: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report says.

    Attributes:
        name: Of what was analysed.
        headline: The answer, in one of the four states of `subnet.relation.Headline`.
        key_numbers: Further lines beneath the answer.
        warnings: What a reader must know before believing a number.
        confounds: What else differs between the languages (`confounds_section`); stands right after
            the answer.
        found: What was recognised.
        skipped: Files that were not used.
        missing: Analyses that were not possible.
        sections: The results, in order (`standard_sections`, then those of other packages).
        method: How they were made.
    """

    name: str
    headline: HeadlineLike
    key_numbers: Sequence[str] = ()
    warnings: Sequence[str] = ()
    confounds: Section | None = None
    found: Sequence[Found] = ()
    skipped: Sequence[Skipped] = ()
    missing: Sequence[Missing] = ()
    sections: Sequence[Section] = ()
    method: Method = field(default_factory=Method)
