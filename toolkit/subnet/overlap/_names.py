"""The names that tables and arguments use."""

from __future__ import annotations

#: From the whole model down to one parameter matrix.
LEVELS = ("all", "layer", "type", "module")

MASK_MEASURES = ("jaccard", "dice", "overlap_coefficient", "containment", "sign_agreement")

#: Of the left (output) side; `_right` is the input side.
UPDATE_MEASURES = (
    "cosine",
    "subspace_similarity",
    "subspace_similarity_right",
    "principal_angle",
    "principal_angle_right",
)


def headline_null(measure: str) -> str:
    """The null model of headlines and significant edges."""
    return "rotation" if measure.startswith("principal_angle") else "structure"
