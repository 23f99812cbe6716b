"""Kinds of training: how examples are fed to a model, and how its answers are scored."""

from subnet.training.tasks._task import Metric, Outcome, Row, Score, Task, mean_score
from subnet.training.tasks.classification import SequenceClassification
from subnet.training.tasks.tagging import TokenClassification
from subnet.training.tasks.translation import INSTRUCTION, Translation

__all__ = [
    "INSTRUCTION",
    "Metric",
    "Outcome",
    "Row",
    "Score",
    "SequenceClassification",
    "Task",
    "TokenClassification",
    "Translation",
    "mean_score",
]
