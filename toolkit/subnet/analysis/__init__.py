"""The main job: everything that a checkpoint directory says about its languages, and the report."""

from subnet.analysis.output import write_run_record
from subnet.analysis.pipeline import Analysis, Progress, analyze, overlap_by_measure
from subnet.analysis.search import Search

__all__ = ["Analysis", "Progress", "Search", "analyze", "overlap_by_measure", "write_run_record"]
