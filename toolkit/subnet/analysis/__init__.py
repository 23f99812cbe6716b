"""The main job: everything that a checkpoint directory says about its languages, and the report."""

from subnet.analysis.output import write_run_record
from subnet.analysis.pipeline import Analysis, Progress, Search, analyze, overlap_by_measure

__all__ = ["Analysis", "Progress", "Search", "analyze", "overlap_by_measure", "write_run_record"]
