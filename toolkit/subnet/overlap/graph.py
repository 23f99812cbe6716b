"""Overlap as a graph of languages, for networkx and for every tool that reads its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx

from subnet import _files
from subnet.language import Language

if TYPE_CHECKING:
    from subnet.overlap.result import Overlap


def build_graph(
    overlap: Overlap,
    measure: str,
    *,
    alpha: float,
    all_edges: bool,
    run: str | None,
    families: Mapping[str, str],
    seed: int,
) -> nx.Graph[str]:
    """See `Overlap.graph`."""
    rows = overlap.pairs(measure, run=run)
    run = str(rows["run"].iloc[0]) if len(rows) else run
    directed = measure == "containment" or overlap.provenance.settings["directed"]
    graph: nx.Graph[str] = nx.DiGraph() if directed else nx.Graph()
    graph.graph.update(
        measure=measure, null=overlap.headline_null(measure), alpha=alpha, run=run or ""
    )
    graph.graph["edges_shown"] = "all" if all_edges else "significant"
    for language in overlap.languages:
        graph.add_node(str(language), **_node(language, families))
    for row in rows.to_dict("records"):
        shares_more = row["q_value"] < alpha and row["z"] > 0  # False where undefined
        if not math.isfinite(row["value"]):
            continue
        if all_edges or shares_more:
            graph.add_edge(row["language_a"], row["language_b"], **_edge(row, measure))
    for number, members in enumerate(_communities(graph, seed)):
        for label in members:
            graph.nodes[label]["community"] = number
    return graph


def write_graph(graph: nx.Graph[str], folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write `<name>.graphml` and `<name>.json` (node-link) into a folder that exists.

    Returns:
        Both paths. `networkx.read_graphml` and `networkx.node_link_graph(…, edges="edges")` give
        back the same nodes, edges and attributes.
    """
    graphml, node_link = Path(folder) / f"{name}.graphml", Path(folder) / f"{name}.json"
    nx.write_graphml_xml(graph, graphml)
    _files.write_json(node_link, nx.node_link_data(graph, edges="edges"))
    return graphml, node_link


def _node(language: Language | str, families: Mapping[str, str]) -> dict[str, str]:
    """Attributes of a node; what is unknown is left out, since GraphML knows no None."""
    label = str(language)
    attributes = {"label": label, "family": families.get(label, "")}
    if isinstance(language, Language):
        attributes |= {
            "tag": language.tag,
            "name": language.name,
            "script": language.script,
            "script_name": language.script_name,
        }
    return {key: value for key, value in attributes.items() if value}


def _edge(row: Mapping[Any, Any], measure: str) -> dict[str, float]:
    attributes = {
        name: float(row[column])
        for name, column in (
            ("value", "value"),
            ("expected", "expected"),
            ("z", "z"),
            ("p", "p_value"),
            ("q", "q_value"),
        )
        if math.isfinite(row[column])
    }
    # a weight is strength: a small angle is a strong tie, a negative cosine none
    strength = math.pi / 2 - row["value"] if measure.startswith("principal_angle") else row["value"]
    return {**attributes, "weight": max(float(strength), 0.0)}


def _communities(graph: nx.Graph[str], seed: int) -> list[list[str]]:
    """Louvain communities (Blondel et al. 2008) by weight, the largest first.

    Louvain divides by the total weight, so without any weight every node is its own community.
    """
    if graph.size(weight="weight") == 0:
        return [[label] for label in graph]
    found = nx.community.louvain_communities(graph, weight="weight", seed=seed)
    order = {label: at for at, label in enumerate(graph)}
    members = [sorted(community, key=order.__getitem__) for community in found]
    return sorted(members, key=lambda community: (-len(community), order[community[0]]))
