"""How much two languages share: overlap of masks and of updates, against chance and a ceiling."""

from subnet.overlap._counting import count_intersections
from subnet.overlap._names import MASK_MEASURES, UPDATE_MEASURES
from subnet.overlap.graph import write_graph
from subnet.overlap.measure import measure_overlap
from subnet.overlap.result import Overlap

__all__ = [
    "MASK_MEASURES",
    "UPDATE_MEASURES",
    "Overlap",
    "count_intersections",
    "measure_overlap",
    "write_graph",
]
