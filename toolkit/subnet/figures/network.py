"""Which languages share more than chance allows, as a graph."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from subnet.figures._style import (
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
    figure, axes = canvas(size, left=0.1, right=widest(scripts) + 0.5, top=0.1, bottom=0.1)
    plain_axes(axes)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(0, size[0])
    axes.set_ylim(0, size[1])
    boxes = np.array([[0.22 + text_width(label) + 0.06, 0.19] for label in shown]).reshape(-1, 2)
    places = layout(graph, boxes, size, value=value, seed=seed)
    index = {label: i for i, label in enumerate(labels)}
    weights = np.array([float(data.get(value, 1.0)) for *_, data in graph.edges(data=True)])
    spread = float(np.ptp(weights)) if weights.size else 0.0
    faint = float(np.clip(12 / max(len(weights), 1), 0.1, 0.35))  # labels stand on the edges
    for (a, b), weight in zip(graph.edges(), weights, strict=True):
        share = (weight - weights.min()) / spread if spread else 0.5
        ends = places[[index[str(a)], index[str(b)]]]
        axes.plot(*ends.T, color=INK, alpha=faint, linewidth=0.4 + 2.6 * share)
    for label, text, (x, y) in zip(labels, shown, places, strict=True):
        colour, marker = look(scripts.index(script[label]))
        axes.plot(
            x,
            y,
            marker=marker,
            color=colour,
            markersize=8,
            markeredgecolor=INK,
            markeredgewidth=0.6,
        )
        axes.text(x + 0.1, y, text, va="center", fontsize=SMALL + 0.5)
    handles, entries = legend_entries(scripts)
    axes.legend(
        handles, entries, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.1,
        borderaxespad=0.2,
    )  # fmt: skip
    return figure


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
