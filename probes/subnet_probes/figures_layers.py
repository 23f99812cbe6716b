"""Lines over layers: what probes find, and how alike languages are, beside what chance gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subnet.figures.drawing import (
    COLOURS,
    INK,
    SMALL,
    Names,
    axes_at,
    canvas,
    clean,
    grid,
    styled,
    text_width,
)

#: Panels in a row.
_ACROSS = 4
#: Baselines of a probe: column, name, colour, line.
_BASELINES = (
    ("majority", "most frequent label", INK, ":"),
    ("random_labels", "random labels", COLOURS[4], "--"),
    ("control", "control task", COLOURS[2], "-."),
)
#: Models of a small multiple: colour, marker, line.
_LOOKS: Mapping[str, tuple[str, str, str]] = {
    "at the base": ("#8a8a8a", "", "-"),
    "after its own stage": (COLOURS[0], "o", "-"),
    "its own adapter": (COLOURS[0], "o", "-"),
    "at the end": (COLOURS[4], "s", "--"),
}


@dataclass(frozen=True)
class Panel:
    """One small picture of a row of them.

    Attributes:
        title: Above it.
        rows: One row per layer and language: `layer, language` and values.
    """

    title: str
    rows: pd.DataFrame


@styled
def scores_by_layer(panels: Sequence[Panel], *, metric: str) -> Figure:
    """Score of probes at every layer: a faint line per language, their mean, baselines.

    Where there is one probe alone, its 95 % interval is the band.

    Args:
        panels: Rows with `score, ci_low, ci_high, majority, random_labels, control`.
        metric: Name of the score.
    """
    columns = ["score", "majority", "random_labels"]
    known = [panel.rows[columns].to_numpy(np.float64) for panel in panels]
    known += [
        panel.rows[["ci_low", "ci_high"]].to_numpy(np.float64)
        for panel in panels
        if len(set(panel.rows["language"])) == 1
    ]
    figure, axes = _small_panels(panels, known, clean(metric.replace("_", " ")))
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, panels, strict=True):
        layers, places = _layers(panel.rows)
        wide = _wide(panel.rows, "score", layers)
        alone = wide.shape[1] == 1
        if alone:
            low, high = (_wide(panel.rows, c, layers).iloc[:, 0] for c in ("ci_low", "ci_high"))
            band = ax.fill_between(places, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
            handles["95 % interval"] = band
        else:
            # One path for all, interrupted between languages: a page has room for few.
            gapped = np.column_stack([wide.to_numpy().T, np.full(wide.shape[1], math.nan)])
            across = np.tile(np.append(places, places[-1]), wide.shape[1])
            (handles["a language"],) = ax.plot(
                across, gapped.ravel(), color=COLOURS[0], linewidth=0.6, alpha=0.35
            )
        handles["probe" if alone else "probe, mean of languages"] = _line(
            ax, places, wide.mean(axis=1), COLOURS[0], "o", "-"
        )
        for column, name, colour, style in _BASELINES:
            means = _wide(panel.rows, column, layers).mean(axis=1)
            if means.notna().any():
                handles[name] = _line(ax, places, means, colour, "", style)
    _legend(figure, handles)
    return figure


@styled
def similarity_by_layer(panels: Sequence[Panel]) -> Figure:
    """Similarity of pairs of languages at every layer, before and after, with shuffled rows.

    The thick line is the mean over pairs, the band holds 90 % of them.

    Args:
        panels: One per measure, rows with `value, shuffled` and `moment`.
    """
    known = [panel.rows[["value", "shuffled"]].to_numpy(np.float64) for panel in panels]
    figure, axes = _small_panels(panels, known, "similarity", shared=False)
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, panels, strict=True):
        layers, places = _layers(panel.rows)
        moments = list(dict.fromkeys(panel.rows["moment"]))
        for number, moment in enumerate(moments):
            rows = panel.rows[panel.rows["moment"] == moment]
            by_layer = rows.groupby("layer")["value"]
            colour, marker = (COLOURS[0], "o") if number == 0 else (COLOURS[4], "s")
            low, high = (by_layer.quantile(q).reindex(layers) for q in (0.05, 0.95))
            ax.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            mean = by_layer.mean().reindex(layers)
            handles[f"{moment}, mean of pairs"] = _line(ax, places, mean, colour, marker, "-")
        chance = panel.rows.groupby("layer")["shuffled"].mean().reindex(layers)
        handles["shuffled rows"] = _line(ax, places, chance, INK, "", ":")
    _legend(figure, handles)
    return figure


@styled
def languages_by_layer(
    moments: Mapping[str, pd.DataFrame],
    *,
    metric: str,
    notes: Mapping[str, str] | None = None,
    languages: pd.DataFrame | None = None,
) -> Figure:
    """A small picture for each language: probe score by layer at each model, with intervals.

    Args:
        moments: Name of the model (of `at the base`, `after its own stage`, `its own adapter`,
            `at the end`) to rows `layer, language, score, ci_low, ci_high, majority`.
        metric: Name of the score.
        notes: A line beneath the name of a language.
        languages: Table of languages, for their names.
    """
    every = pd.concat(list(moments.values()))
    labels = [str(label) for label in dict.fromkeys(every["language"])]
    names, notes = Names.of(languages), notes or {}
    across = min(len(labels), 4 if len(labels) <= 16 else 6)
    down = math.ceil(len(labels) / across)
    width, height = (1.95, 1.1) if across <= 4 else (1.4, 0.85)
    gap, head = 0.15, 0.46 if notes else 0.3
    left, bottom, top = 0.6, 0.5, 0.32
    figure, first = canvas(
        (across * (width + gap) - gap, down * (height + head) - 0.1), left=left, bottom=bottom,
        top=top,
    )  # fmt: skip
    first.set_axis_off()
    low, high = _limits([every[["score", "ci_low", "ci_high", "majority"]].to_numpy(np.float64)])
    layers, places = _layers(every)
    handles: dict[str, Any] = {}
    # Bands of three models hide each other, and thousands of bands and markers would make a page
    # of megabytes.
    few = across <= 4
    banded = [moment for moment in moments if moment != "at the base"] or list(moments)
    banded = banded if few else banded[:1]
    for place, label in enumerate(labels):
        row, column = divmod(place, across)
        box = (
            left + column * (width + gap),
            bottom + (down - 1 - row) * (height + head),
            width,
            height,
        )
        ax = axes_at(figure, box)
        for moment, rows in moments.items():
            own = rows[rows["language"] == label].set_index("layer").reindex(layers)
            if not own["score"].notna().any():
                continue
            colour, marker, style = _LOOKS[moment]
            if moment in banded:
                ax.fill_between(
                    places, own["ci_low"], own["ci_high"], color=colour, alpha=0.18, linewidth=0
                )
            marker = marker if few else ""
            handles[moment] = _line(ax, places, own["score"], colour, marker, style, 3.2)
        majority = every[every["language"] == label].groupby("layer")["majority"].mean()
        majority = majority.reindex(layers)
        level = places if majority.min() < majority.max() else places[[0, -1]]
        handles["most frequent label"] = _line(ax, level, majority.iloc[level], INK, "", ":", 3.2)
        ax.set_ylim(low, high)
        _layer_ticks(ax, layers, width, shown=place + across >= len(labels))
        ax.locator_params(axis="y", nbins=4)
        if column:
            ax.set_yticklabels([])
            ax.tick_params(axis="y", length=0)
        grid(ax, "y")
        name = _fitting(label, names, width)
        ax.set_title("\n".join(filter(None, (name, notes.get(label, "")))), fontsize=SMALL, pad=3)
    figure.text(left / figure.get_figwidth(), 0.08 / figure.get_figheight(), "layer", ha="left")
    figure.legend(
        list(handles.values()), list(handles), loc="upper left", ncols=4, borderaxespad=0.1,
        bbox_to_anchor=(0.0, 1.0), columnspacing=1.4, title=None,
    )  # fmt: skip
    figure.text(
        0.1 / figure.get_figwidth(), 0.5, clean(metric.replace("_", " ")), rotation=90, va="center"
    )
    return figure


def _small_panels(
    panels: Sequence[Panel], known: Sequence[np.ndarray], ylabel: str, *, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    """Panels four in a row, room for a legend beneath.

    Args:
        panels: What to draw.
        known: Values that have to fit.
        ylabel: What they are.
        shared: Whether panels have one range of values, or each that of its part of `known`.
    """
    longest = max(len(_layers(panel.rows)[0]) for panel in panels)
    across = min(len(panels), _ACROSS)
    down = math.ceil(len(panels) / across)
    width = max(min(0.3 * longest, 2.2), 1.8, *(text_width(p.title) + 0.1 for p in panels))
    height, gap, left, bottom, head = 1.8, 0.25 if shared else 0.55, 0.65, 1.0, 0.75
    figure, first = canvas(
        (across * (width + gap) - gap, down * (height + head) - head), left=left, bottom=bottom,
        right=max(0.2, 6.0 - across * (width + gap)),
    )  # fmt: skip
    first.set_axis_off()
    axes = []
    for place, panel in enumerate(panels):
        row, column = divmod(place, across)
        box = (left + column * (width + gap), bottom + (down - 1 - row) * (height + head))
        ax = axes_at(figure, (*box, width, height))
        ax.set_title(clean(panel.title, 60), fontsize=SMALL)
        ax.set_ylim(*_limits(known if shared else known[place : place + 1]))
        _layer_ticks(ax, _layers(panel.rows)[0], width, shown=True)
        if not column:
            ax.set_ylabel(ylabel)
        elif shared:
            ax.set_yticklabels([])
        ax.set_xlabel("layer", fontsize=SMALL)
        grid(ax, "y")
        axes.append(ax)
    return figure, axes


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    figure.legend(
        list(handles.values()), list(handles), loc="lower left", bbox_to_anchor=(0.0, 0.0),
        ncols=3, columnspacing=1.4, borderaxespad=0.1,
    )  # fmt: skip


def _layers(rows: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    layers = [str(layer) for layer in dict.fromkeys(rows["layer"])]
    return layers, np.arange(len(layers))


def _wide(rows: pd.DataFrame, value: str, layers: Sequence[str]) -> pd.DataFrame:
    """Layer × language."""
    wide = rows.pivot_table(
        index="layer", columns="language", values=value, aggfunc="mean", sort=False, dropna=False
    )
    return wide.reindex(index=list(layers))


def _line(
    axes: Axes, x: Any, y: Any, colour: str, marker: str, style: str, size: float = 4.5
) -> Any:
    (handle,) = axes.plot(
        x, y, color=colour, marker=marker, linestyle=style, markersize=size, linewidth=1.4,
        markeredgecolor=INK, markeredgewidth=0.3,
    )  # fmt: skip
    return handle


def _limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    every = np.concatenate([value.ravel() for value in values])
    every = every[np.isfinite(every)]
    if not every.size:
        return 0.0, 1.0
    low, high = float(every.min()), float(every.max())
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _layer_ticks(axes: Axes, layers: Sequence[str], width: float, *, shown: bool) -> None:
    """Names of as many layers as there is room for, the last among them."""
    room = max(1, int(width / (max(text_width(clean(x, 10)) for x in layers) + 0.1)))
    step = math.ceil(len(layers) / room)
    places = list(range(len(layers) - 1, -1, -step))[::-1]
    axes.set_xticks(places if shown else [], [clean(layers[i], 10) for i in places if shown])
    axes.set_xlim(-0.3, max(len(layers) - 0.7, 0.3))


def _fitting(label: str, names: Names, width: float) -> str:
    """Label and name where there is room for both."""
    long, name = names.long(label), names.name.get(label, "")
    return next((t for t in (long, clean(name)) if t and text_width(t) < width), clean(label, 16))
