"""Which languages share more than chance allows, as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from subnet.figures._style import (
    COLOURS,
    INK,
    SMALL,
    Names,
    canvas,
    clean,
    legend_entries,
    look,
    plain_axes,
    styled,
    text_width,
    widest,
)


@styled
def overlap_graph(
    graph: nx.Graph[Any],
    *,
    value: str = "value",
    languages: pd.DataFrame | None = None,
    seed: int = 0,
) -> Figure:
    """Languages as nodes, coloured by script; the wider an edge, the larger its value.

    Args:
        graph: Nodes are language labels; edges carry their value.
        value: Name of the edge attribute.
        languages: Table of languages, for scripts; else the node attribute `script` is used.
        seed: Seed of the layout.
    """
    drawing = _Drawing.of(graph, value, languages, seed)
    figure, axes, places = drawing.figure, drawing.axes, drawing.places
    index = {label: i for i, label in enumerate(drawing.labels)}
    weights = np.array([float(data.get(value, 1.0)) for *_, data in graph.edges(data=True)])
    spread = float(np.ptp(weights)) if weights.size else 0.0
    faint = float(np.clip(12 / max(len(weights), 1), 0.1, 0.35))  # labels stand on the edges
    for (a, b), weight in zip(graph.edges(), weights, strict=True):
        share = (weight - weights.min()) / spread if spread else 0.5
        ends = places[[index[str(a)], index[str(b)]]]
        axes.plot(*ends.T, color=INK, alpha=faint, linewidth=0.4 + 2.6 * share)
    drawing.draw_nodes()
    return figure


@styled
def influence_graph(
    graph: nx.DiGraph[Any], *, languages: pd.DataFrame | None = None, seed: int = 0
) -> Figure:
    """Arrows from the training language to the test language, the wider the further from chance.

    Blue and solid where the examples help more (or harm less) than chance, orange and dashed where
    it is the other way round. Two arrows between two languages are bent apart.

    Args:
        graph: From `subnet.influence.influence_graph`: edges carry `weight` and `sign`.
        languages: Table of languages, for scripts; else the node attribute `script` is used.
        seed: Seed of the layout.
    """
    drawing = _Drawing.of(graph, "weight", languages, seed)
    axes = drawing.axes
    place = dict(zip(drawing.labels, drawing.places, strict=True))
    largest = max((float(data["weight"]) for *_, data in graph.edges(data=True)), default=1.0)
    faint = float(np.clip(16 / max(graph.number_of_edges(), 1), 0.25, 0.9))
    for source, target, data in graph.edges(data=True):
        share = float(data["weight"]) / (largest or 1.0)
        helps = float(data["sign"]) > 0
        axes.annotate(
            "", place[str(target)], place[str(source)], annotation_clip=False,
            arrowprops={
                "arrowstyle": "-|>", "mutation_scale": 5 + 5 * share, "shrinkA": 5, "shrinkB": 5,
                "connectionstyle": "arc3,rad=0.12", "linewidth": 0.4 + 1.8 * share,
                "alpha": faint, "color": COLOURS[0] if helps else COLOURS[4],
                "linestyle": "-" if helps else (0, (4, 2)),
            },
        )  # fmt: skip
    drawing.draw_nodes(
        [
            Line2D([], [], color=COLOURS[0], linewidth=1.4),
            Line2D([], [], color=COLOURS[4], linewidth=1.4, linestyle=(0, (4, 2))),
        ],
        list(DIRECTIONS),
    )
    return drawing.figure


#: What the two kinds of arrows mean.
DIRECTIONS = ("helps more than chance", "helps less than chance")


@dataclass(frozen=True, eq=False)
class _Drawing:
    """A figure with room for a graph, and where its nodes are."""

    figure: Figure
    axes: Axes
    labels: list[str]
    shown: list[str]
    script: dict[str, str]
    scripts: list[str]
    places: NDArray[np.float64]

    @classmethod
    def of(
        cls, graph: nx.Graph[Any], value: str, languages: pd.DataFrame | None, seed: int
    ) -> _Drawing:
        """Room for the labels, and the layout."""
        names = Names.of(languages)
        labels = [str(node) for node in graph]
        script = {
            str(node): names.script.get(str(node)) or str(data.get("script") or "unknown")
            for node, data in graph.nodes(data=True)
        }
        scripts = Names({}, script).scripts(labels)
        shown = [clean(label, 14) for label in labels]
        side = min(3.4 + 0.08 * len(labels), 7.2)
        size = (side * 1.15, side)
        entries = [*scripts, *(DIRECTIONS if graph.is_directed() else ())]
        figure, axes = canvas(size, left=0.1, right=widest(entries) + 0.5, top=0.1, bottom=0.1)
        plain_axes(axes)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlim(0, size[0])
        axes.set_ylim(0, size[1])
        widths = [[0.22 + text_width(label) + 0.06, 0.19] for label in shown]
        boxes = np.array(widths).reshape(-1, 2)
        places = layout(graph, boxes, size, value=value, seed=seed)
        return cls(figure, axes, labels, shown, script, scripts, places)

    def draw_nodes(self, handles: Sequence[Line2D] = (), entries: Sequence[str] = ()) -> None:
        """Nodes with their labels, above the edges, and the legend with further entries."""
        for label, text, (x, y) in zip(self.labels, self.shown, self.places, strict=True):
            colour, marker = look(self.scripts.index(self.script[label]))
            self.axes.plot(
                x, y, marker=marker, color=colour, markersize=8, markeredgecolor=INK,
                markeredgewidth=0.6,
            )  # fmt: skip
            self.axes.text(x + 0.1, y, text, va="center", fontsize=SMALL + 0.5)
        scripts, names = legend_entries(self.scripts)
        self.axes.legend(
            [*scripts, *handles], [*names, *entries], loc="upper left", bbox_to_anchor=(1.0, 1.0),
            handletextpad=0.7 if handles else 0.1, borderaxespad=0.2,
            handlelength=1.6 if handles else None,
        )  # fmt: skip


def layout(
    graph: nx.Graph[Any],
    boxes: NDArray[np.float64],
    size: tuple[float, float],
    *,
    value: str = "value",
    seed: int = 0,
) -> NDArray[np.float64]:
    """Places of the nodes, seeded, with room for every label.

    Force-directed (Fruchterman and Reingold 1991), then labels that overlap are moved apart along
    the shorter way.

    Args:
        graph: The graph.
        boxes: [n, 2], width and height of each node with the label to its right, inches.
        size: Width and height of the drawing, inches.
        value: Edge attribute that pulls nodes together.
        seed: Seed of the layout.

    Returns:
        [n, 2], inches.
    """
    if not len(graph):
        return np.zeros((0, 2))
    if graph.number_of_edges():
        # A weak tie between all keeps a language without edges from drifting off the page.
        tied: nx.Graph[Any] = nx.complete_graph(list(graph))
        for *_, data in tied.edges(data=True):
            data["tie"] = 0.04
        largest = max(float(data.get(value, 1.0)) for *_, data in graph.edges(data=True))
        for a, b, data in graph.edges(data=True):
            tied[a][b]["tie"] = 0.3 + 0.7 * float(data.get(value, 1.0)) / (largest or 1.0)
        found = nx.spring_layout(tied, weight="tie", seed=seed, iterations=300)
    else:
        found = nx.circular_layout(graph)
    places = np.array([found[node] for node in graph], dtype=np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.array(size) - boxes.max(axis=0) - 0.2
    scaled = (places - low) / np.where(high > low, high - low, 1.0)
    places = np.where(high > low, scaled, 0.5) * room + [0.2, boxes[:, 1].max() / 2 + 0.1]
    furthest = np.array(size) - boxes
    for _ in range(500):
        if not _push_apart(places, boxes):
            break
        places = np.clip(places, [0.15, 0.12], furthest)
    return np.asarray(places)


def _push_apart(places: NDArray[np.float64], boxes: NDArray[np.float64]) -> bool:
    """Move every overlapping pair of boxes half of the way each; whether any pair overlapped."""
    # boxes begin at the node and reach to the right
    centres = places + np.stack([boxes[:, 0] / 2, np.zeros(len(boxes))], axis=1)
    apart = centres[:, None] - centres[None]  # [n, n, 2]
    overlap = (boxes[:, None] + boxes[None]) / 2 - np.abs(apart)
    pairs = np.argwhere(np.triu((overlap > 1e-6).all(axis=2), k=1))
    for i, j in pairs:
        axis = int(overlap[i, j, 1] < overlap[i, j, 0])
        way = 1.0 if apart[i, j, axis] >= 0 else -1.0
        places[i, axis] += way * overlap[i, j, axis] / 2
        places[j, axis] -= way * overlap[i, j, axis] / 2
    return len(pairs) > 0
