"""Whether what two languages share goes with what one loses when the other is trained."""

from subnet.relation._controls import control_matrices
from subnet.relation._headline import Headline
from subnet.relation._relate import Relation, relate
from subnet.relation.association import Association, associate, associate_many

__all__ = [
    "Association",
    "Headline",
    "Relation",
    "associate",
    "associate_many",
    "control_matrices",
    "relate",
]
