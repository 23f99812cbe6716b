"""From what a report says to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from subnet._version import __version__
from subnet.errors import InputError
from subnet.report._format import flatten, format_number, format_p, view
from subnet.report.content import Found, ReportContent, Section

#: What each state of the headline is called on the page.
STATES = {
    "associated": "Association found",
    "not associated": "No association found",
    "not testable": "Not testable",
    "files missing": "Files missing",
}

_MOST_INPUTS = 40
_MOST_NAMES = 60


def render_report(content: ReportContent) -> str:
    """The report as one self-contained HTML page.

    Nothing in it is fetched, and a content security policy in the page itself forbids any request
    and any script but its own. All text is escaped; only the SVG of figures is put in as it is.
    The same content gives the same page.

    Args:
        content: What to say.

    Raises:
        InputError: The headline is in no known state, or two parts of the page share a name.
    """
    if content.headline.state not in STATES:
        raise InputError(
            f"headline is {content.headline.state!r}", expected=f"one of {', '.join(STATES)}"
        )
    sections = [s for s in (content.confounds, *content.sections) if s is not None]
    _refuse_repeats(sections)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("subnet", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    method = content.method
    inputs = list(method.inputs.items())
    return environment.get_template("template.html").render(
        content=content,
        state=STATES[content.headline.state],
        state_name=content.headline.state.replace(" ", "-"),
        facts=_facts(content.headline.row),
        found=_grouped(content.found),
        sections=content.sections,
        settings=flatten(method.settings),
        inputs=inputs[:_MOST_INPUTS],
        more_inputs=len(inputs) - _MOST_INPUTS,
        # both stand in the package, not in the input
        style=Markup(_asset("style.css")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_hash=f"sha256-{digest}",
        version=__version__,
        view=view,
        svg=Markup,
        paragraphs=lambda text: [p for p in re.split(r"\n\s*\n", text) if p.strip()],
    )


def _asset(name: str) -> str:
    return resources.files("subnet.report").joinpath(name).read_text(encoding="utf-8")


def _facts(row: Any) -> list[tuple[str, str]]:
    """The numbers of the headline, as (name, value)."""
    if row is None:
        return []

    def has(key: str) -> bool:
        return key in row and row[key] is not None and row[key] == row[key]

    facts: list[tuple[str, str]] = []
    if has("estimate"):
        facts.append(("Standardised slope", format_number(float(row["estimate"]), 2)))
    if has("ci_low") and has("ci_high"):
        low, high = (format_number(float(row[key]), 2) for key in ("ci_low", "ci_high"))
        facts.append(("95 % interval", f"{low} to {high}"))
    if has("p_value"):
        facts.append(("p (permutation)", format_p(float(row["p_value"]))))
    if has("q_value"):
        facts.append(("q (corrected)", format_p(float(row["q_value"]))))
    for key, name in (("n_languages", "Languages"), ("n_permutations", "Permutations")):
        if has(key):
            facts.append((name, format_number(float(row[key]), 0)))
    return facts


def _grouped(found: Sequence[Found]) -> list[dict[str, str]]:
    """What was found, things of one kind in one line."""
    groups: dict[tuple[str, str, str], list[Found]] = {}
    for one in found:
        groups.setdefault((one.what, one.recognised_as, one.run), []).append(one)
    rows = []
    for (what, recognised_as, run), members in groups.items():
        names = list(dict.fromkeys(one.language for one in members if one.language))
        stages = sorted({one.stage for one in members if one.stage is not None})
        where = members[0].where
        if len(members) > 1:
            where += f" and {len(members) - 1} more"
        detail = ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")
        if stages:
            numbers = f"{stages[0]}–{stages[-1]}" if len(stages) > 1 else str(stages[0])
            detail = f"stage{'s' * (len(stages) > 1)} {numbers}" + (f": {detail}" if detail else "")
        rows.append(
            {
                "what": what.replace("_", " "), "count": str(len(members)), "run": run,
                "recognised_as": recognised_as, "where": where, "detail": detail,
            }
        )  # fmt: skip
    return rows


def _refuse_repeats(sections: Sequence[Section]) -> None:
    own = ["answer", "contents", "found", "methods", "main"]
    names = own + [section.id for section in sections]
    for section in sections:
        names += [f"figure {figure.name}" for figure in section.figures]
        names += [f"table {table.name}" for table in section.tables]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two parts of the report are called {name!r}",
                expected="a name of its own for every section, figure and table",
            )
