"""Values per language, per layer, per pair and per group, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subnet._statistics import normal_interval
from subnet.figures._frames import between, ceiling_kind, each, overlap_rows, replicates
from subnet.figures._style import (
    COLOURS,
    INK,
    SMALL,
    Names,
    axes_at,
    canvas,
    clean,
    grid,
    legend_entries,
    look,
    styled,
    widest,
)

_ROW = 0.185  # inches for one language
_ROLES = {"donor": "effect on others (donor)", "receiver": "effect of others (receiver)"}


@styled
def forgetting_by_language(
    forgetting: pd.DataFrame,
    *,
    metric: str,
    measures: Sequence[str] = ("forgetting_since_turn", "loss_since_start"),
    languages: pd.DataFrame | None = None,
) -> Figure:
    """What each language lost, sorted, coloured by script; one panel per measure.

    Bars are 95 % intervals from the standard errors; with several runs the dot is the mean over
    runs and the bar spans them. A language without a value keeps an empty row.

    Args:
        forgetting: Columns `run, language, metric, measure, value, stderr`.
        metric: Which metric.
        measures: Which measures, the first decides the order.
        languages: Table of languages, for names and scripts.
    """
    rows = forgetting[(forgetting["metric"] == metric) & (forgetting["language"] != "")]
    panels = [_per_language(rows[rows["measure"] == measure]) for measure in measures]
    first = panels[0]["value"].reindex(list(dict.fromkeys(rows["language"])))
    order = [str(label) for label in first.sort_values(na_position="first").index]
    names = Names.of(languages)
    scripts = names.scripts(order)
    legend_columns = _legend_columns(scripts, 6.4)
    legend_height = 0.2 * math.ceil(len(scripts) / legend_columns) + 0.1
    height = max(len(order), 3) * _ROW
    left, panel, gap = widest(map(names.long, order)) + 0.2, 5.6 / len(panels), 0.3
    figure, axes = canvas(
        (panel, height), left=left, right=(panel + gap) * (len(panels) - 1) + 0.25, top=0.32,
        bottom=0.4 + legend_height,
    )  # fmt: skip
    for place, (measure, values) in enumerate(zip(measures, panels, strict=True)):
        if place:
            box = (left + place * (panel + gap), 0.4 + legend_height, panel, height)
            axes = axes_at(figure, box)
        _dots(axes, values.reindex(order), [names.script.get(x, "unknown") for x in order], scripts)
        axes.set_title(_plain(measure), fontsize=SMALL + 0.5)
        axes.set_yticks(range(len(order)), map(names.long, order) if not place else [])
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.locator_params(axis="x", nbins=5)
    handles, labels = legend_entries(scripts)
    figure.legend(
        handles, labels, loc="lower left", ncols=legend_columns, bbox_to_anchor=(0.0, 0.0),
        handletextpad=0.1, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
    return figure


@styled
def overlap_by_layer(overlap: pd.DataFrame, *, measure: str, source: str | None = None) -> Figure:
    """Overlap in each layer: mean over pairs, with the range that holds 90 % of the pairs.

    Beside it the value expected by chance and the mean over the same language trained twice, where
    they are known.

    Args:
        overlap: The table of overlaps.
        measure: Which measure.
        source: Which source, if the table holds several.
    """
    rows = overlap_rows(overlap, measure=measure, source=source, level="layer")
    pairs = between(rows)
    layers = list(dict.fromkeys(pairs["module"]))
    by_layer = pairs.groupby("module")
    mean = by_layer["value"].mean().reindex(layers)
    low, high = (by_layer["value"].quantile(q).reindex(layers) for q in (0.05, 0.95))
    floor = by_layer["expected"].mean().reindex(layers)
    ceiling = replicates(rows).groupby("module")["value"].mean().reindex(layers)
    names = [clean(layer, 16) for layer in layers]
    step = min(max(0.45, 4.6 / max(len(layers), 1)), 1.2)
    turned = widest(names) > step - 0.06
    space = widest(names) + 0.1 if turned else 0.22
    figure, axes = canvas(
        (max(step * len(layers), 3.2), 2.5), left=0.75, bottom=space + 0.35, top=0.2, right=2.4
    )
    places = np.arange(len(layers))
    labels = []
    entries = [
        (ceiling, f"same language, {ceiling_kind(rows)}", COLOURS[2], "^", "--"),
        (mean, "pairs of languages (90 % range)", COLOURS[0], "o", "-"),
        (floor, "expected by chance", INK, "", ":"),
    ]
    handles = []
    for values, label, colour, marker, line in entries:
        if values.notna().any():
            (handle,) = axes.plot(
                places, values, color=colour, marker=marker, linestyle=line, markersize=5,
                linewidth=1.3, markeredgecolor=INK, markeredgewidth=0.4,
            )  # fmt: skip
            handles.append(handle)
            labels.append(label)
    axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.set_xticks(places, names)
    if turned:
        for text in axes.get_xticklabels():
            text.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
    axes.set_xlabel("layer")
    axes.set_ylabel(_plain(measure))
    axes.set_xlim(-0.5, max(len(layers) - 0.5, 0.5))
    grid(axes, "y")
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


@dataclass(frozen=True)
class Slope:
    """A standardised slope with its interval, as a line to draw.

    Attributes:
        estimate: Standard deviations of the outcome per standard deviation of the predictor.
        ci_low, ci_high: 95 % interval, NaN where undefined.
    """

    estimate: float
    ci_low: float = math.nan
    ci_high: float = math.nan


@styled
def overlap_against_effect(
    pairs: pd.DataFrame,
    *,
    measure: str,
    metric: str,
    slope: Slope | None = None,
    languages: pd.DataFrame | None = None,
) -> Figure:
    """Every directed pair of languages: how much they share, what training one did to the other.

    The line is the slope that the headline tests, given its controls, through the mean of the dots,
    with its interval. It is no least-squares line through these dots, whose pairs depend on
    each other.

    Args:
        pairs: Columns `run, trained_language, language, overlap, effect` (`directed_pairs`).
        measure: Name of the overlap.
        metric: Name of the metric.
        slope: Standardised slope, if there is one.
        languages: Table of languages, for scripts.
    """
    names = Names.of(languages)
    figure, axes = canvas((5.6, 3.7), left=0.85, bottom=0.8, top=0.15, right=0.3)
    script = pairs[["trained_language", "language"]].map(lambda x: names.script.get(x, ""))
    same = (script["trained_language"] == script["language"]) & (script["language"] != "")
    known = bool((script != "").to_numpy().any())
    size = 4.5 if len(pairs) < 400 else 3.0
    groups = [(~same, "different script", "o", COLOURS[0]), (same, "same script", "^", COLOURS[1])]
    handles, labels = [], []
    for chosen, label, marker, colour in groups:
        if chosen.any():
            (handle,) = axes.plot(
                pairs.loc[chosen, "overlap"], pairs.loc[chosen, "effect"], linestyle="",
                marker=marker, color=colour, markersize=size, markeredgewidth=0.3,
                markeredgecolor=INK, alpha=0.75,
            )  # fmt: skip
            handles.append(handle)
            labels.append(label)
    axes.axhline(0.0, color=INK, linewidth=0.6, alpha=0.4)
    if slope is not None and math.isfinite(slope.estimate) and len(pairs) > 2:
        _draw_slope(axes, pairs, slope)
    axes.set_xlabel(f"overlap ({_plain(measure)})")
    axes.set_ylabel(f"immediate effect on {clean(metric)}")
    if known:
        figure.legend(
            handles, labels, loc="lower left", ncols=2, bbox_to_anchor=(0.1, 0.0), handletextpad=0.1
        )
    grid(axes, "both")
    return figure


@styled
def group_comparison(
    groups: pd.DataFrame, *, metric: str, measure: str = "immediate_effect"
) -> Figure:
    """Means of groups of languages with 95 % intervals, as donors and as receivers.

    The p beside a row tests the group's mean against that of the other languages by permuting which
    languages belong to it.

    Args:
        groups: The table of groups.
        metric: Which metric.
        measure: Which measure.
    """
    rows = groups[(groups["metric"] == metric) & (groups["measure"] == measure)]
    roles = [role for role in _ROLES if (rows["role"] == role).any()]
    keys = list(dict.fromkeys(zip(rows["grouping"], rows["group"], strict=True)))
    keys.sort(key=lambda key: list(dict.fromkeys(rows["grouping"])).index(key[0]))
    counts = rows.groupby(["grouping", "group"])["n"].max()
    labels = [f"{clean(group, 24)} ({int(counts[(g, group)])})" for g, group in keys]
    groupings = list(dict.fromkeys(g for g, _ in keys))
    # one free row above each grouping for its name
    places = {key: -(i + groupings.index(key[0]) + 1) for i, key in enumerate(keys)}
    lowest = min(places.values(), default=-1)
    height = (1 - lowest) * _ROW
    left, panel, gap = max(widest(labels), widest(groupings)) + 0.2, 2.3, 0.95
    figure, axes = canvas(
        (panel, height),
        left=left,
        right=(panel + gap) * (len(roles) - 1) + gap,
        bottom=0.5,
        top=0.3,
    )
    for place, role in enumerate(roles):
        if place:
            axes = axes_at(figure, (left + place * (panel + gap), 0.5, panel, height))
        for row in each(rows[rows["role"] == role]):
            y = places[(row.grouping, row.group)]
            colour, marker = look(place)
            if not math.isfinite(row.value):
                continue
            if math.isfinite(row.ci_low):
                axes.plot([row.ci_low, row.ci_high], [y, y], color=INK, linewidth=0.8, alpha=0.6)
            axes.plot(
                row.value, y, marker=marker, color=colour, markersize=5, markeredgewidth=0.4,
                markeredgecolor=INK,
            )  # fmt: skip
            axes.annotate(
                _p_text(row.p_value),
                (1.02, y),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=SMALL,
            )
        axes.axvline(0.0, color=INK, linewidth=0.6, alpha=0.5)
        axes.set_title(_ROLES[role], fontsize=SMALL + 0.5)
        axes.set_ylim(lowest - 0.7, 0.6)
        axes.set_yticks(list(places.values()), labels if not place else [])
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"{_plain(measure)}, {clean(metric)}")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        grid(axes, "x")
        if not place:
            for grouping in groupings:
                y = max(v for k, v in places.items() if k[0] == grouping) + 1
                axes.annotate(
                    {"latin": "Latin or not"}.get(grouping, clean(grouping)), (-0.04, y),
                    xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=SMALL,
                    fontweight="bold",
                )  # fmt: skip
    return figure


@styled
def density_curves(sweep: pd.DataFrame, *, value: str = "change", run: str | None = None) -> Figure:
    """Score against the density of what is kept: a faint line per language, and their mean.

    Densities stand at equal distances, since they span orders of magnitude and 0.

    Args:
        sweep: Columns `run, language, density, condition` and the value.
        value: `recovered`, `change`, `loss` or `accuracy`.
        run: Which run, the first if not said.
    """
    rows = sweep[sweep["run"] == (sweep["run"].iloc[0] if run is None else run)]
    densities = sorted(rows["density"].unique())
    places = np.arange(len(densities))
    figure, axes = canvas(
        (max(0.62 * len(densities), 3.2), 2.5), left=0.75, bottom=0.6, top=0.2, right=2.4
    )
    handles, labels = [], []
    conditions = (
        ("kept", "the subnetwork alone", COLOURS[0], "o", "-"),
        ("random_kept", "random masks alone", COLOURS[4], "s", "--"),
    )
    for condition, label, colour, marker, line in conditions:
        own = rows[rows["condition"] == condition]
        if not own[value].notna().any():
            continue
        table = own.pivot_table(index="density", columns="language", values=value, dropna=False)
        table = table.reindex(densities)
        for language in table.columns:
            axes.plot(places, table[language], color=colour, linewidth=0.6, alpha=0.35)
        (handle,) = axes.plot(
            places, table.mean(axis=1), color=colour, marker=marker, linestyle=line, markersize=5,
            linewidth=1.6, markeredgecolor=INK, markeredgewidth=0.4,
        )  # fmt: skip
        handles.append(handle)
        labels.append(f"{label} (mean)")
    axes.set_xticks(places, [f"{100 * density:g} %" for density in densities])
    axes.set_xlabel("kept share of the weights or units")
    axes.set_ylabel(_VALUES.get(value, value))
    grid(axes, "y")
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)
    return figure


#: What the values of a sweep are called on an axis.
_VALUES = {
    "recovered": "recovered share of the gain",
    "change": "loss against the whole, nats",
    "loss": "loss, nats",
    "accuracy": "accuracy",
}


def _per_language(rows: pd.DataFrame) -> pd.DataFrame:
    """value, low, high per language; over runs the mean and the range."""
    found = {}
    for label, own in rows.groupby("language", sort=False):
        values = own["value"].dropna()
        if len(values) > 1:
            found[label] = (values.mean(), values.min(), values.max())
        elif len(values) == 1:
            row = own.loc[values.index[0]]
            found[label] = (row["value"], *normal_interval(row["value"], row["stderr"]))
    return pd.DataFrame.from_dict(found, orient="index", columns=["value", "low", "high"])


def _dots(
    axes: Axes, values: pd.DataFrame, scripts: Sequence[str], all_scripts: Sequence[str]
) -> None:
    for y, (row, script) in enumerate(zip(each(values), scripts, strict=True)):
        if not math.isfinite(row.value):
            axes.annotate(
                "undefined", (0.02, y), xycoords=("axes fraction", "data"), va="center",
                fontsize=SMALL, fontstyle="italic",
            )  # fmt: skip
            continue
        colour, marker = look(all_scripts.index(script))
        if math.isfinite(row.low):
            axes.plot([row.low, row.high], [y, y], color=INK, linewidth=0.8, alpha=0.6)
        axes.plot(
            row.value, y, marker=marker, color=colour, markersize=5.5, markeredgewidth=0.5,
            markeredgecolor=INK,
        )  # fmt: skip
    axes.axvline(0.0, color=INK, linewidth=0.6, alpha=0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    grid(axes, "both")


def _draw_slope(axes: Axes, pairs: pd.DataFrame, slope: Slope) -> None:
    """The line through the mean of the dots; standard deviations are those within runs."""
    within = pairs[["overlap", "effect"]] - pairs.groupby("run")[["overlap", "effect"]].transform(
        "mean"
    )
    deviation = within.std(ddof=0)
    if not deviation["overlap"] > 0:
        return
    unit = float(deviation["effect"] / deviation["overlap"])
    middle = pairs[["overlap", "effect"]].mean()
    x = np.array([pairs["overlap"].min(), pairs["overlap"].max()])
    across = np.linspace(x[0], x[1], 50)

    def line(estimate: float, at: np.ndarray) -> np.ndarray:
        return np.asarray(middle["effect"] + estimate * unit * (at - middle["overlap"]))

    limits = axes.get_ylim()
    if math.isfinite(slope.ci_low):
        edges = np.stack([line(slope.ci_low, across), line(slope.ci_high, across)])
        axes.fill_between(
            across, edges.min(axis=0), edges.max(axis=0), color=INK, alpha=0.12, linewidth=0
        )
    axes.plot(x, line(slope.estimate, x), color=INK, linewidth=1.4)
    axes.set_ylim(*limits)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    return max(1, min(len(labels), int(width / (widest(labels) + 0.35))))


def _plain(name: str) -> str:
    return clean(name.replace("_", " "), 40)


def _p_text(p: float) -> str:
    if not math.isfinite(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"
