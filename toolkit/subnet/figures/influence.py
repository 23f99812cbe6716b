"""Influence between languages: every pair, and how much each language's own examples count."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from subnet.figures._frames import each
from subnet.figures._style import (
    COLOURS,
    INK,
    SMALL,
    Names,
    axes_at,
    canvas,
    clean,
    grid,
    styled,
    widest,
)
from subnet.figures.heat_maps import heat_map, robust_limit

_ROW = 0.185  # inches for one language
_WORDS = {
    "mean": "mean influence",
    "share_top_positive": "share of the most helpful",
    "share_bottom_negative": "share of the most harmful",
}


@styled
def influence_matrix(
    influence: pd.DataFrame,
    *,
    measure: str = "mean",
    languages: pd.DataFrame | None = None,
) -> Figure:
    """What the training examples of one language (row) did to the predictions of another (column).

    Means are shown as they are, shares as what they differ from the language's share of the corpus.
    Colours end at the 98th percentile of pairs of two languages, so that what a language does to
    itself does not bleach the rest. Shares are framed where q ≤ .05.

    Args:
        influence: The table `influence`, of one result.
        measure: Which measure.
        languages: Table of languages, for their names.
    """
    rows = influence[influence["measure"] == measure]
    order = _order(rows)
    trained = set(rows["train_language"])
    above = [label for label in order if label in trained]
    beside = [label for label in order if label in set(rows["test_language"])]
    found = rows.pivot_table(
        index="train_language", columns="test_language", values="value", aggfunc="mean"
    ).reindex(index=above, columns=beside)
    matrix = found.to_numpy(dtype=np.float64, copy=True)
    beyond = measure != "mean" and "expected" in rows
    if beyond:
        expected = rows.pivot_table(
            index="train_language", columns="test_language", values="expected", aggfunc="mean"
        ).reindex(index=above, columns=beside)
        matrix -= expected.to_numpy(dtype=np.float64)
    own = np.equal.outer(np.array(above, dtype=object), np.array(beside, dtype=object))
    between = np.where(own, np.nan, matrix)
    limit = robust_limit(between if np.isfinite(between).any() else matrix)
    certain = rows[rows["q_value"] <= 0.05] if beyond and "q_value" in rows else rows.iloc[:0]
    names = Names.of(languages)
    harm = measure == "share_bottom_negative"
    words = _WORDS.get(measure, measure.replace("_", " "))
    return heat_map(
        matrix,
        [names.long(label) for label in above],
        [clean(label, 14) for label in beside],
        colours="PuOr_r" if harm else "PuOr",
        norm=TwoSlopeNorm(0.0, -limit, limit),
        bar=f"{words}, beyond chance" if beyond else f"{words} (positive: helped)",
        above="rows: language trained on; columns: language tested",
        framed=[
            (above.index(str(row.train_language)), beside.index(str(row.test_language)))
            for row in each(certain)
        ],
    )


@styled
def own_shares(influence: pd.DataFrame, *, languages: pd.DataFrame | None = None) -> Figure:
    """How many of the most helpful (left) and most harmful (right) examples are in-language.

    The dot is the share of the test language's own examples, with its 95 % interval; the line
    across is their share of the corpus. Dots are filled where q ≤ .05.

    Args:
        influence: The table `influence`, of one result.
        languages: Table of languages, for their names.
    """
    own = influence[influence["train_language"] == influence["test_language"]]
    panels = [
        (measure, own[own["measure"] == measure].set_index("test_language"))
        for measure in ("share_top_positive", "share_bottom_negative")
    ]
    first = panels[0][1]["value"].astype(float)
    order = [str(label) for label in first.sort_values(na_position="first").index]
    names = Names.of(languages)
    labels = [names.long(label) for label in order]
    height, width, gap = max(len(order) * _ROW, 0.8), 2.3, 0.35
    left = widest(labels) + 0.15
    known = own.loc[own["measure"] != "mean", ["value", "ci_high", "expected"]].astype(float)
    end = min(1.0, 1.1 * float(np.nan_to_num(known.to_numpy()).max(initial=0.1)))
    figure, axes = canvas((2 * width + gap, height), left=left, top=0.4, bottom=0.5)
    axes.set_axis_off()
    for number, (measure, rows) in enumerate(panels):
        panel = axes_at(figure, (left + number * (width + gap), 0.5, width, height))
        columns = rows[["value", "ci_low", "ci_high", "expected", "q_value"]].to_numpy(np.float64)
        numbers = dict(zip(rows.index, columns.tolist(), strict=True))
        panel.set_ylim(-0.6, len(order) - 0.4)
        panel.set_xlim(-0.02 * end, 1.02 * end)
        panel.set_yticks(range(len(order)), labels if number == 0 else [""] * len(order))
        panel.tick_params(axis="y", length=0)
        panel.set_title(_WORDS[measure], fontsize=SMALL)
        panel.set_xlabel("share that is in-language", fontsize=SMALL)
        grid(panel)
        colour = COLOURS[0] if number == 0 else COLOURS[4]
        for place, label in enumerate(order):
            value, low, high, chance, q_value = numbers[label]
            if not math.isfinite(value):
                continue
            panel.plot([low, high], [place, place], color=colour, linewidth=1.2)
            panel.plot([chance] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=1.0)
            sure = q_value <= 0.05
            panel.plot(
                value, place, marker="o", markersize=5, markeredgecolor=colour,
                markerfacecolor=colour if sure else "none", markeredgewidth=1.0,
            )  # fmt: skip
    return figure


def _order(rows: pd.DataFrame) -> list[str]:
    """Languages in the order of the tests, those only trained on after them."""
    return [str(x) for x in dict.fromkeys([*rows["test_language"], *rows["train_language"]])]
