"""Heat maps of probing: layer × language beside what was forgotten, and language × language."""

from __future__ import annotations

import math
from collections.abc import Collection

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from subnet.figures.drawing import (
    COLOURS,
    INK,
    SMALL,
    Names,
    axes_at,
    canvas,
    clean,
    colour_bar,
    grid,
    heat_map,
    plain_axes,
    robust_limit,
    span_of,
    styled,
    text_width,
    widest,
    write_numbers,
)

_MOST_WITH_NUMBERS = 16


@styled
def layer_map(
    values: pd.DataFrame,
    *,
    bar: str,
    beside: pd.DataFrame | None = None,
    beside_name: str = "",
    signed: bool = True,
    chance: float = math.nan,
    framed: Collection[tuple[str, str]] = (),
    languages: pd.DataFrame | None = None,
) -> Figure:
    """A value of every language (row) at every layer (column), and what the language lost beside.

    Args:
        values: Language × layer; NaN is an empty cell.
        bar: What the colours say.
        beside: Language to `value, low, high`: dots with 95 % intervals to the right.
        beside_name: What the dots say.
        signed: Whether colours are symmetric about 0; else from the least to the largest.
        chance: A mark on the colour bar where it is in its range.
        framed: Cells (language, layer) with a frame.
        languages: Table of languages, for their names.
    """
    names = Names.of(languages)
    labels, layers = [str(x) for x in values.index], [str(x) for x in values.columns]
    matrix = values.to_numpy(dtype=np.float64)
    numbers = max(matrix.shape) <= _MOST_WITH_NUMBERS
    cell, row = (0.44, 0.27) if numbers else (max(0.2, widest(layers) + 0.06), 0.165)
    width, height = max(len(layers) * cell, 1.5), max(len(labels) * row, 0.8)
    rows = [names.long(label) for label in labels]
    left, gap, panel = max(widest(rows) + 0.15, 0.6), 0.3, 2.2
    right = 0.2 if beside is None else gap + panel + 0.2
    beside_bar = 2.2 + 0.3 + text_width(clean(bar, 60))
    norm: Normalize = span_of(matrix)
    if signed:
        limit = robust_limit(matrix)
        norm = TwoSlopeNorm(0.0, -limit, limit)
    marked = math.isfinite(chance) and norm.vmin is not None and norm.vmin <= chance <= norm.vmax  # type: ignore[operator]
    figure, axes = canvas(
        (width, height), left=left, right=max(right, beside_bar - width),
        top=1.0 if marked else 0.78, bottom=0.5,
    )  # fmt: skip
    colours = matplotlib.colormaps["PuOr" if signed else "cividis"]
    colours = colours.with_extremes(bad=(0.0, 0.0, 0.0, 0.0))
    axes.imshow(
        np.ma.masked_invalid(matrix), aspect="auto", interpolation="none", cmap=colours, norm=norm
    )
    plain_axes(axes)
    axes.set_yticks(range(len(labels)), rows)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlabel("layer", fontsize=SMALL)
    cells = [
        (layers.index(layer), labels.index(label))
        for label, layer in framed
        if label in labels and layer in layers
    ]
    if cells:
        # One path for all frames: hundreds of them would make a page of megabytes.
        square = Path.unit_rectangle()
        corners = [np.array(cell) - 0.5 for cell in cells]
        vertices = np.asarray(square.vertices)
        frames = Path.make_compound_path(
            *(Path(corner + vertices, square.codes) for corner in corners)
        )
        for colour, line in (("#ffffff", 2.0), ("#d55e00", 1.0)):
            axes.add_patch(PathPatch(frames, fill=False, edgecolor=colour, linewidth=line))
    if numbers:
        write_numbers(axes, matrix, colours, norm)
    colour_bar(figure, axes, colours, norm, clean(bar, 60), {"shuffled": chance} if marked else {})
    if beside is not None:
        dots = axes_at(figure, (left + width + gap, 0.5, panel, height))
        _dots(dots, beside.reindex(labels))
        dots.set_xlabel(clean(beside_name, 44), fontsize=SMALL)
    return figure


@styled
def similarity_map(
    values: pd.DataFrame,
    *,
    bar: str,
    chance: float,
    span: tuple[float, float],
    directed: bool,
    languages: pd.DataFrame | None = None,
) -> Figure:
    """How alike two languages are represented, in the given order.

    Args:
        values: Language × language.
        bar: What the colours say.
        chance: Mean with the rows of one side shuffled: a mark on the colour bar.
        span: Least and largest value of the colours, the same for pictures to compare.
        directed: Whether a row is something else than a column.
        languages: Table of languages, for their names.
    """
    names = Names.of(languages)
    return heat_map(
        values.to_numpy(dtype=np.float64),
        [names.long(str(label)) for label in values.index],
        [clean(label, 14) for label in values.columns],
        colours="cividis",
        norm=Normalize(*span),
        bar=bar,
        above="rows: language that looks; columns: language looked for" if directed else "",
        marks={"shuffled": chance},
    )


def _dots(axes: matplotlib.axes.Axes, beside: pd.DataFrame) -> None:
    value, low, high = beside[["value", "low", "high"]].to_numpy(float).T
    places = np.arange(len(beside))
    for place in places[~np.isfinite(value)]:
        axes.annotate(
            "undefined", (0.02, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=SMALL, fontstyle="italic",
        )  # fmt: skip
    # One path for all intervals and one for all dots: a page of 52 languages has room for few.
    ends = np.stack([low, high, np.full_like(low, math.nan)], axis=1).ravel()
    axes.plot(ends, np.repeat(places, 3), color=INK, linewidth=0.8, alpha=0.6)
    axes.plot(
        value, places, marker="o", linestyle="", color=COLOURS[0], markersize=5,
        markeredgecolor=INK, markeredgewidth=0.4,
    )  # fmt: skip
    axes.axvline(0.0, color=INK, linewidth=0.6, alpha=0.5)
    axes.set_ylim(len(beside) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
    grid(axes)
