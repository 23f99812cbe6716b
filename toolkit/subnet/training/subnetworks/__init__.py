"""Training of language subnetworks, and of what they are compared with.

`MaskedUpdates` and `DynamicMask` let Trainer move only the weights of a mask; `sparse_fine_tune`
is LT-SFT and `composed` adds up what it learnt; `fit_meta` is first-order MAML and `fit_in_turns`
the same without episodes, both inside subnetworks;
`gradient_conflict` compares the gradients of languages, and `fit_pcgrad` takes their conflict away.
"""

from subnet.training.subnetworks.dynamic_masks import DynamicMask, DynamicSettings
from subnet.training.subnetworks.gradient_conflict import ConflictRecorder, gradient_conflict
from subnet.training.subnetworks.in_turns import draw_turns, fit_in_turns
from subnet.training.subnetworks.masking import MaskedUpdates, fit_masked
from subnet.training.subnetworks.meta_learning import (
    Episode,
    MetaSettings,
    MetaTrainer,
    draw_episodes,
    fit_meta,
)
from subnet.training.subnetworks.pcgrad import PCGradTrainer, fit_pcgrad
from subnet.training.subnetworks.sparse_delta import SparseDelta, composed, load_delta
from subnet.training.subnetworks.sparse_tuning import SparseTuning, sparse_fine_tune

__all__ = [
    "ConflictRecorder",
    "DynamicMask",
    "DynamicSettings",
    "Episode",
    "MaskedUpdates",
    "MetaSettings",
    "MetaTrainer",
    "PCGradTrainer",
    "SparseDelta",
    "SparseTuning",
    "composed",
    "draw_episodes",
    "draw_turns",
    "fit_in_turns",
    "fit_masked",
    "fit_meta",
    "fit_pcgrad",
    "gradient_conflict",
    "load_delta",
    "sparse_fine_tune",
]
