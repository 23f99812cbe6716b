"""The main job: everything that a checkpoint directory says about its languages, and the report."""

from subnet.analysis._attribution_examples import draw_examples
from subnet.analysis.attribution import AttributionSettings, attribute_checkpoint
from subnet.analysis.attribution_result import Attribution, write_attribution
from subnet.analysis.extension import Addition, Extension
from subnet.analysis.output import write_run_record
from subnet.analysis.pipeline import Analysis, Progress, analyze, overlap_by_measure
from subnet.analysis.search import Search

__all__ = [
    "Addition",
    "Analysis",
    "Attribution",
    "AttributionSettings",
    "Extension",
    "Progress",
    "Search",
    "analyze",
    "attribute_checkpoint",
    "draw_examples",
    "overlap_by_measure",
    "write_attribution",
    "write_run_record",
]
