"""Tables as pictures: each function takes tidy frames and returns a matplotlib figure.

Figures are drawn without pyplot and hold no state; `to_svg` turns one into text that can stand in a
page or in a file of its own.
"""

from subnet.figures._frames import ceiling_kind, directed_pairs, overlap_reference, overlap_rows
from subnet.figures.charts import (
    Slope,
    density_curves,
    forgetting_by_language,
    group_comparison,
    overlap_against_effect,
    overlap_by_layer,
)
from subnet.figures.heat_maps import ablation_matrix, effect_matrix, overlap_heat_map, score_matrix
from subnet.figures.influence import influence_matrix, own_shares
from subnet.figures.network import influence_graph, overlap_graph
from subnet.figures.svg import to_svg

__all__ = [
    "Slope",
    "ablation_matrix",
    "ceiling_kind",
    "density_curves",
    "directed_pairs",
    "effect_matrix",
    "forgetting_by_language",
    "group_comparison",
    "influence_graph",
    "influence_matrix",
    "overlap_against_effect",
    "overlap_by_layer",
    "overlap_graph",
    "overlap_heat_map",
    "overlap_reference",
    "overlap_rows",
    "own_shares",
    "score_matrix",
    "to_svg",
]
