"""Matrices over languages: scores after each stage, effects of training, overlap of pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from subnet.figures._frames import (
    ceiling_kind,
    each,
    overlap_reference,
    overlap_rows,
    overlap_values,
)
from subnet.figures._style import (
    INK,
    SMALL,
    Names,
    axes_at,
    canvas,
    clean,
    plain_axes,
    styled,
    text_width,
    widest,
)

#: With at most so many rows and columns the cells carry their numbers.
_MOST_WITH_NUMBERS = 16
_BAR = 2.2  # inches


@styled
def score_matrix(
    scores: pd.DataFrame,
    *,
    metric: str,
    run: str | None = None,
    higher_is_better: bool = True,
    languages: pd.DataFrame | None = None,
) -> Figure:
    """Score of every language after every stage, the stage that trained a language framed.

    Rows stand in the order of training; lighter is better whatever the metric's direction; a cell
    that was not measured is empty.

    Args:
        scores: Columns `run, stage, trained_language, language, metric, value`.
        metric: Which metric.
        run: Which run, the first if not said.
        higher_is_better: Direction of the metric.
        languages: Table of languages, for their names.
    """
    own = _one_run(scores[scores["metric"] == metric], run)
    trained = _trained(own)
    stages = sorted(int(stage) for stage in own["stage"].unique())
    stage_of = {language: stage for stage, language in trained.items()}
    rows = sorted(
        (str(label) for label in own["language"].unique()),
        key=lambda label: stage_of.get(label, math.inf),
    )
    values = own.pivot_table(index="language", columns="stage", values="value", aggfunc="mean")
    matrix = values.reindex(index=rows, columns=stages).to_numpy(dtype=np.float64)
    names = Names.of(languages)
    columns = [f"{clean(trained[s], 14)} {s}" if s in trained else str(s) for s in stages]
    framed = [
        (rows.index(label), stages.index(s)) for label, s in stage_of.items() if label in rows
    ]
    return heat_map(
        matrix,
        [names.long(row) for row in rows],
        columns,
        colours="viridis" if higher_is_better else "viridis_r",
        norm=span_of(matrix),
        bar=f"{clean(metric)} ({'higher' if higher_is_better else 'lower'} is better)",
        above="columns: after the stage that trained … (0: before the sequence)",
        framed=framed,
    )


@styled
def effect_matrix(
    effects: pd.DataFrame,
    *,
    metric: str,
    run: str | None = None,
    languages: pd.DataFrame | None = None,
) -> Figure:
    """What training one language (row) did at once to every other (column).

    Positive is better for the language, whatever the metric's direction. Own cells are empty: a
    language's gain on its own turn is another quantity.

    Args:
        effects: Columns `run, stage, trained_language, language, metric, value`.
        metric: Which metric.
        run: Which run, the first if not said.
        languages: Table of languages, for their names.
    """
    own = _one_run(effects[effects["metric"] == metric], run)
    trained = _trained(own)
    order = [trained[stage] for stage in sorted(trained)]
    others = [str(x) for x in own["language"].unique() if str(x) not in order]
    values = own.pivot_table(
        index="trained_language", columns="language", values="value", aggfunc="mean"
    ).reindex(index=order, columns=order + others)
    matrix = values.to_numpy(dtype=np.float64, copy=True)
    matrix[np.arange(len(order)), np.arange(len(order))] = np.nan
    limit = robust_limit(matrix)
    names = Names.of(languages)
    return heat_map(
        matrix,
        [names.long(row) for row in order],
        [clean(label, 14) for label in values.columns],
        colours="PuOr",
        norm=TwoSlopeNorm(0.0, -limit, limit),
        bar=f"effect on {clean(metric)} (positive: improved)",
        above="rows: language trained; columns: language evaluated",
    )


@styled
def ablation_matrix(
    ablation: pd.DataFrame,
    *,
    condition: str = "removed",
    run: str | None = None,
    specific: Sequence[str] = (),
    languages: pd.DataFrame | None = None,
) -> Figure:
    """How much more each language (column) loses by a language's mask (row) than by random ones.

    The value is the mean change of the loss under the mask less that under random masks with as
    many weights or units in each parameter; positive is worse. Without random masks it is the
    change alone.

    Args:
        ablation: Columns `run, mask_language, test_language, condition, change`.
        condition: `removed` or `kept`.
        run: Which run, the first if not said.
        specific: Languages whose own cell is framed.
        languages: Table of languages, for their names.
    """
    own = _one_run(ablation, run)
    order = [str(x) for x in dict.fromkeys(own["mask_language"])]
    others = [str(x) for x in dict.fromkeys(own["test_language"]) if str(x) not in order]

    def changes(name: str) -> pd.DataFrame:
        rows = own[own["condition"] == name]
        return rows.pivot_table(
            index="mask_language", columns="test_language", values="change", aggfunc="mean"
        ).reindex(index=order, columns=order + others)

    random = f"random_{condition}"
    controlled = bool((own["condition"] == random).any())
    values = changes(condition) - changes(random) if controlled else changes(condition)
    matrix = values.to_numpy(dtype=np.float64)
    limit = robust_limit(matrix)
    names = Names.of(languages)
    return heat_map(
        matrix,
        [names.long(row) for row in order],
        [clean(label, 14) for label in values.columns],
        colours="PuOr_r",
        norm=TwoSlopeNorm(0.0, -limit, limit),
        bar="loss beyond random masks, nats (positive: worse)"
        if controlled
        else "change of the loss, nats (positive: worse)",
        above=f"rows: whose subnetwork is {condition}; columns: language evaluated",
        framed=[(order.index(label), order.index(label)) for label in specific if label in order],
    )


@styled
def overlap_heat_map(
    overlap: pd.DataFrame,
    *,
    measure: str,
    source: str | None = None,
    level: str = "all",
    module: str = "",
    languages: pd.DataFrame | None = None,
) -> Figure:
    """Overlap of every pair of languages, similar ones side by side.

    The order comes from hierarchical clustering (average linkage, optimal leaf order). The colour
    bar bears the value expected by chance (floor) and the mean over the same language trained
    twice, or found on two halves of its examples (ceiling), where they are known; such a language
    has that value on the diagonal.

    Args:
        overlap: The table of overlaps.
        measure: Which measure.
        source: Which source, if the table holds several.
        level: `all`, `layer`, `type` or `module`.
        module: Which module at that level.
        languages: Table of languages, for their names.
    """
    values = overlap_values(overlap, measure=measure, source=source, level=level, module=module)
    floor, ceiling = overlap_reference(
        overlap, measure=measure, source=source, level=level, module=module
    )
    # the larger an angle, the less is shared
    order = cluster_order(-values if measure.startswith("principal_angle") else values)
    values = values.iloc[order, order]
    matrix = values.to_numpy(dtype=np.float64)
    names = Names.of(languages)
    rows = overlap_rows(overlap, measure=measure, source=source, level=level, module=module)
    marks = {"chance": floor, ceiling_kind(rows): ceiling}
    return heat_map(
        matrix,
        [names.long(str(row)) for row in values.index],
        [clean(label, 14) for label in values.columns],
        colours="cividis",
        norm=span_of(matrix, *marks.values()),
        bar=clean(measure.replace("_", " ")),
        above="",
        marks=marks,
    )


def cluster_order(values: pd.DataFrame) -> list[int]:
    """Order of the rows of a square matrix of similarities, by average linkage.

    A pair without a value is taken to be as similar as the average pair.

    Args:
        values: [l, l]; the diagonal is not read.
    """
    n = len(values)
    if n < 3:
        return list(range(n))
    matrix = values.to_numpy(dtype=np.float64, copy=True)
    np.fill_diagonal(matrix, np.nan)
    if np.isnan(matrix).all():
        return list(range(n))
    matrix = np.where(np.isnan(matrix), np.nanmean(matrix), matrix)
    matrix = (matrix + matrix.T) / 2
    distance = matrix.max() - matrix
    np.fill_diagonal(distance, 0.0)
    links = hierarchy.linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(place) for place in hierarchy.leaves_list(links)]


def _one_run(frame: pd.DataFrame, run: str | None) -> pd.DataFrame:
    return frame[frame["run"] == (frame["run"].iloc[0] if run is None else run)]


def _trained(frame: pd.DataFrame) -> dict[int, str]:
    """Stage to the language that it trained."""
    pairs = frame[["stage", "trained_language"]].drop_duplicates()
    return {
        int(row.stage): str(row.trained_language)
        for row in each(pairs)
        if isinstance(row.trained_language, str) and row.trained_language
    }


def span_of(matrix: NDArray[np.float64], *further: float) -> Normalize:
    """Colours from the least to the largest of the values that are there."""
    known = np.append(matrix[np.isfinite(matrix)], [x for x in further if math.isfinite(x)])
    if not known.size:
        return Normalize(0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def robust_limit(matrix: NDArray[np.float64]) -> float:
    """The 98th percentile of the absolute values: one outlier must not bleach the rest."""
    known = np.abs(matrix[np.isfinite(matrix)])
    return float(np.quantile(known, 0.98)) or 1.0 if known.size else 1.0


def heat_map(
    matrix: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colours: str,
    norm: Normalize,
    bar: str,
    above: str,
    framed: Sequence[tuple[int, int]] = (),
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """A matrix of coloured cells, with numbers in them where there are few.

    Args:
        matrix: Rows × columns; NaN is an empty cell.
        rows: Their names.
        columns: Theirs, upright where they are too wide for a cell.
        colours: Name of a matplotlib colour map.
        norm: Value to place on it.
        bar: What the colours say.
        above: A line above the matrix.
        framed: Cells (row, column) with a frame.
        marks: Name to value of marks on the colour bar.
    """
    n_rows, n_columns = matrix.shape
    numbers = max(n_rows, n_columns) <= _MOST_WITH_NUMBERS
    cell_width, cell_height = (0.42, 0.27) if numbers else (0.14, 0.15)
    width, height = max(n_columns * cell_width, 1.5), max(n_rows * cell_height, 0.8)
    turned = widest(columns) > cell_width - 0.05
    column_space = widest(columns) + 0.12 if turned else 0.25
    beside_bar = _BAR + 0.3 + text_width(clean(bar, 60))
    figure, axes = canvas(
        (width, height),
        left=max(widest(rows) + 0.15, 0.6),
        right=max(0.15, max(beside_bar, text_width(above)) - width),
        top=0.95 if marks else 0.75,
        bottom=column_space,
    )
    colour_map = matplotlib.colormaps[colours].with_extremes(bad=(0.0, 0.0, 0.0, 0.0))
    axes.imshow(
        np.ma.masked_invalid(matrix),
        aspect="auto",
        interpolation="none",
        cmap=colour_map,
        norm=norm,
    )
    plain_axes(axes)
    axes.set_yticks(range(n_rows), rows)
    axes.set_xticks(range(n_columns), columns)
    if turned:
        for label in axes.get_xticklabels():
            label.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
    axes.set_title(above, fontsize=SMALL)
    for row, column in framed:
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#ffffff", linewidth=2)
        )
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=1)
        )
    if numbers:
        write_numbers(axes, matrix, colour_map, norm)
    colour_bar(figure, axes, colour_map, norm, clean(bar, 60), marks or {})
    return figure


def write_numbers(
    axes: Axes, matrix: NDArray[np.float64], colour_map: Colormap, norm: Normalize
) -> None:
    """Each value in its cell, in black or white, whichever is easier to read there."""
    known = np.abs(matrix[np.isfinite(matrix)])
    top = float(known.max()) if known.size else 0.0
    digits = 2 if 0 < top < 10 else 0 if top >= 100 else 1
    if 0 < top < 0.1:
        digits = 3
    for (row, column), value in np.ndenumerate(matrix):
        if not math.isfinite(value):
            continue
        red, green, blue, _ = colour_map(norm(value))
        light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
        text = f"{value:.{digits}f}".replace("-", "−")
        if float(value) and not text.strip("−0."):
            text = "0"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=7.5,
            color="#000000" if light > 0.18 else "#ffffff",
        )  # fmt: skip


def colour_bar(
    figure: Figure,
    axes: Axes,
    colour_map: Colormap,
    norm: Normalize,
    label: str,
    marks: Mapping[str, float],
) -> None:
    """Above the matrix, so that 52 columns fit into a page."""
    width, height = figure.get_size_inches()
    box = axes.get_position()
    left, top = float(box.x0) * width, float(box.y1) * height
    bar = axes_at(figure, (left, top + 0.53, _BAR, 0.13))
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    bar.imshow(
        np.linspace(low, high, 64)[None, :], aspect="auto", cmap=colour_map, norm=norm,
        extent=(low, high, 0, 1), interpolation="none",
    )  # fmt: skip
    bar.set_yticks([])
    bar.spines[:].set_visible(False)
    bar.locator_params(axis="x", nbins=5)
    bar.set_xlim(low, high)
    bar.annotate(
        label, (1.0, 0.5), (8, 0), xycoords="axes fraction", textcoords="offset points",
        va="center", fontsize=SMALL,
    )  # fmt: skip
    known = {name: value for name, value in marks.items() if math.isfinite(value)}
    names = [f"{name} {value:.3g}".replace("-", "−") for name, value in known.items()]
    per_inch = (high - low) / _BAR
    places = _apart(list(known.values()), (widest(names) + 0.08) * per_inch)
    for name, value, place in zip(names, known.values(), places, strict=True):
        bar.plot([value, value], [-0.3, 1.3], color="#ffffff", linewidth=2.4, clip_on=False)
        bar.plot([value, value], [-0.3, 1.3], color="#d55e00", linewidth=1.4, clip_on=False)
        bar.annotate(
            name, (value, 1.3), (place, 1.9), textcoords="data", ha="center", va="bottom",
            annotation_clip=False, fontsize=SMALL,
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "alpha": 0.5,
                        "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _apart(values: list[float], gap: float) -> list[float]:
    """Places for labels, in the order given, no two closer than the gap."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = list(values)
    for before, after in itertools.pairwise(order):
        places[after] = max(places[after], places[before] + gap)
    return places
