"""Influence between languages as a directed graph, for networkx and for tools that read it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import networkx as nx

from subnet.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

#: What tells one summary from another in a table of several.
_ONE_OF = ("run", "checkpoint", "method", "subnetwork")


def influence_graph(
    summary: pd.DataFrame,
    measure: str = "share_top_positive",
    *,
    alpha: float = 0.05,
    all_edges: bool = False,
) -> nx.DiGraph[str]:
    """Which languages' training examples move which languages' predictions more than chance.

    An edge leads from the training language to the test language. It is there where the interval
    excludes what shuffled languages give and q < alpha.

    Args:
        summary: Table of `summarise`, of one run, checkpoint, method and subnetwork.
        measure: One of its measures.
        alpha: Largest q-value of an edge.
        all_edges: Add the others too.

    Returns:
        Nodes: every language, with its in-language `value`, `expected` and whether it is `found`
        (beyond chance). Edges between different languages: `value`, `expected`, `ci_low`,
        `ci_high`, `q`, `weight` (distance from chance, at least 0) and `sign`: 1 where the training
        language helps more (or harms less) than chance, −1 where it is the other way round.

    Raises:
        InputError: The table has no such measure, or several results.
    """
    several = [c for c in _ONE_OF if len(summary[c].drop_duplicates()) > 1]
    if several:
        raise InputError(
            f"the table holds several of {', '.join(several)}",
            expected="one result",
            fix=f"choose the rows of one {several[0]}",
        )
    rows = summary[summary["measure"] == measure]
    if rows.empty:
        raise InputError(
            f"the table has no measure {measure!r}",
            expected=" or ".join(sorted(set(summary["measure"]))),
        )
    graph: nx.DiGraph[str] = nx.DiGraph(
        measure=measure, alpha=alpha, edges_shown="all" if all_edges else "significant"
    )
    for language in dict.fromkeys([*rows["test_language"], *rows["train_language"]]):
        graph.add_node(str(language), label=str(language))
    harm = measure == "share_bottom_negative"
    for row in rows.to_dict("records"):
        if not math.isfinite(row["value"]):
            continue
        beyond = _beyond_chance(row, alpha)
        excess = float(row["value"] - row["expected"])
        source, target = str(row["train_language"]), str(row["test_language"])
        if source == target:
            graph.nodes[source].update(
                value=float(row["value"]), expected=float(row["expected"]), found=beyond
            )
        elif beyond or all_edges:
            graph.add_edge(
                source,
                target,
                **_known(row),
                weight=abs(excess),
                sign=(-1 if harm else 1) * ((excess > 0) - (excess < 0)),
            )
    return graph


def _beyond_chance(row: Any, alpha: float) -> bool:
    """False where interval or q-value are undefined: a comparison with NaN is false."""
    outside = row["ci_low"] > row["expected"] or row["ci_high"] < row["expected"]
    return bool(outside and row["q_value"] < alpha)


def _known(row: Any) -> dict[str, float]:
    """Attributes that are numbers: GraphML knows no missing value."""
    names = {"value": "value", "expected": "expected", "ci_low": "ci_low", "ci_high": "ci_high"}
    return {
        name: float(row[column])
        for name, column in {**names, "q": "q_value"}.items()
        if math.isfinite(row[column])
    }
