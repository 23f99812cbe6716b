"""What was lost and gained, stage by stage.

Scores of every language after every stage of sequential training become the measures of the
literature, each with its standard error, and the directed matrix of what training one language did
to each of the others.
"""

from subnet.forgetting._adjusted import (
    AdjustedDifference,
    adjusted_difference,
    variance_inflation,
)
from subnet.forgetting._measures import MEASURES
from subnet.forgetting._result import Forgetting, measure_forgetting

__all__ = [
    "MEASURES",
    "AdjustedDifference",
    "Forgetting",
    "adjusted_difference",
    "measure_forgetting",
    "variance_inflation",
]
