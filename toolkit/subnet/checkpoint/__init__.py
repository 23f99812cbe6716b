"""What training left on disk: the inventory, and the updates, steps and scores read from it.

Importing this room and opening a checkpoint load neither torch nor pandas.
"""

from subnet.checkpoint.directory import Capability, Checkpoint
from subnet.checkpoint.inventory import Entry, Skipped
from subnet.checkpoint.modules import ParameterPlace, describe_parameter
from subnet.checkpoint.opening import open_checkpoint
from subnet.checkpoint.records import Metric, Scores, describe_metric
from subnet.checkpoint.settings import CheckpointSettings
from subnet.checkpoint.update import Step, Update

__all__ = [
    "Capability",
    "Checkpoint",
    "CheckpointSettings",
    "Entry",
    "Metric",
    "ParameterPlace",
    "Scores",
    "Skipped",
    "Step",
    "Update",
    "describe_metric",
    "describe_parameter",
    "open_checkpoint",
]
