"""Whether what two languages share goes with what one loses when the other is trained."""

from subnet.relation._controls import control_matrices
from subnet.relation._headline import Headline
from subnet.relation._relate import Relation, relate
from subnet.relation._representations import check_representations
from subnet.relation.association import Association, associate, associate_many

__all__ = [
    "Association",
    "Headline",
    "Relation",
    "associate",
    "associate_many",
    "check_representations",
    "control_matrices",
    "relate",
]
