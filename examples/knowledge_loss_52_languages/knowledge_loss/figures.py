"""Three pictures: group differences in every cell, the same by language, and what is held fixed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from knowledge_loss.answers import (
    HEADLINE_METRIC,
    HEADLINES,
    WITHIN,
    Answers,
    covariates_of,
    members_of,
    values_of,
)
from knowledge_loss.design import HEADLINE_CELL
from knowledge_loss.reading import Study
from subnet.figures import to_svg
from subnet.figures._style import INK, axes_at, canvas, clean, grid, look, styled, widest

_ROW = 0.24  # inches
_ROLES = {
    "receiver": "other scripts lose more (nats) →",
    "donor": "Latin script helps others more (nats) →",
}


def write_figures(study: Study, answers: Answers, folder: Path) -> list[str]:
    """Draw everything; names of the files."""
    made = {
        "cells": (_intervals_by(answers.groups, "cell"), "Difference between scripts in each cell"),
        "covariates": (
            _intervals_by(answers.ladder, "given"),
            f"Difference between scripts in {HEADLINE_CELL}, given what is held fixed",
        ),
        "bytes": (
            against_bytes(study),
            "What each language lost, and gave, against its bytes per character",
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (figure, title) in made.items():
        text = to_svg(figure, name=name, title=title)
        (folder / f"{name}.svg").write_text(text + "\n", encoding="utf-8")
    return [f"{name}.svg" for name in made]


@styled
def _intervals_by(table: pd.DataFrame, column: str) -> Figure:
    """Differences on the headline's outcome, with both 95 % intervals, a panel per role."""
    stated = table["measure"] == table["role"].map(HEADLINES)
    rows = table[(table["metric"] == HEADLINE_METRIC) & stated]
    rows = rows[rows[column] != WITHIN]
    names = list(dict.fromkeys(rows[column]))
    labels = [clean(name) for name in names]
    left, width, gap, height = widest(labels) + 0.25, 2.5, 0.35, _ROW * len(names)
    figure, axes = canvas((width, height), left=left, right=width + gap + 0.2, top=0.15, bottom=0.7)
    for place, (role, title) in enumerate(_ROLES.items()):
        if place:
            axes = axes_at(figure, (left + place * (width + gap), 0.7, width, height))
        colour, marker = look(place)
        axes.axvline(0, color=INK, linewidth=0.6)
        for row in rows[rows["role"] == role].itertuples():
            y = -names.index(getattr(row, column))
            axes.plot([row.ci_low, row.ci_high], [y, y], color=colour, linewidth=1.8)
            under = [y - 0.22] * 2
            axes.plot([row.orders_low, row.orders_high], under, color=colour, linewidth=0.7)
            axes.plot([row.value], [y], marker=marker, color=colour, markersize=4.5)
        axes.set_ylim(-len(names) + 0.5, 0.5)
        axes.set_yticks([-i for i in range(len(names))], labels if not place else [])
        axes.set_xlabel(f"{title}\n95 %: thick over languages, thin over orders")
        grid(axes)
    return figure


@styled
def against_bytes(study: Study) -> Figure:
    """One dot per language, Latin script or other."""
    left, width, gap, height = 0.75, 2.6, 0.75, 2.3
    figure, axes = canvas((width, height), left=left, right=width + gap + 0.2, bottom=0.75)
    for place, (role, label) in enumerate(
        (("receiver", "lost since its turn (nats)"), ("donor", "helped others (nats)"))
    ):
        if place:
            axes = axes_at(figure, (left + place * (width + gap), 0.75, width, height))
        found = values_of(study, HEADLINE_CELL, role, HEADLINE_METRIC, HEADLINES[role])
        table = covariates_of(study, HEADLINE_METRIC, found["position"])
        latin = members_of(study, "donor").reindex(found.index)
        for index, (name, chosen) in enumerate((("Latin", latin), ("other", ~latin))):
            colour, marker = look(index)
            axes.plot(
                table.loc[chosen, "bytes_per_character"], found.loc[chosen, "value"],
                linestyle="", marker=marker, color=colour, markersize=4, label=f"{name} script",
            )  # fmt: skip
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xlabel("bytes per character")
        axes.set_ylabel(label)
        grid(axes, "both")
        if not place:
            axes.legend(loc="upper left", bbox_to_anchor=(-0.2, -0.2), ncols=2)
    return figure
