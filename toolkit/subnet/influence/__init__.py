"""Whose training examples moved whose predictions: exact, at the price of training."""

from typing import TYPE_CHECKING

from subnet.influence._fingerprints import ModelHash
from subnet.influence.attribution import attribute, self_influence
from subnet.influence.baseline_methods import Bm25Settings, EmbeddingSettings
from subnet.influence.baselines import (
    BaselineScores,
    bm25,
    cosine_scores,
    embedding_similarity,
    random_scores,
)
from subnet.influence.checkpoints import Point, checkpoints_of, read_points
from subnet.influence.collecting import Collected, Factors, collect
from subnet.influence.comparison import compare_subnetworks
from subnet.influence.datainf import DataInf, DataInfSettings, fit_datainf
from subnet.influence.evaluation import (
    DatamodellingScore,
    compare_methods,
    linear_datamodelling_score,
)
from subnet.influence.graph import influence_graph
from subnet.influence.kfac import Curvature, CurvatureSettings, fit_curvature
from subnet.influence.methods import (
    DataMethod,
    DataSituation,
    GradientMethod,
    Situation,
    Transform,
    find_method,
    method_names,
    register_method,
)
from subnet.influence.moments import Adam, Less, Moment, Moments, read_moments
from subnet.influence.planting import Detection, mislabelled_auroc, plant_mislabelled
from subnet.influence.preconditioned import AdamSettings, LessSettings
from subnet.influence.projection import Fidelity, Projection, TwoSidedProjection, fidelity
from subnet.influence.removal import LanguageRemoval, leave_one_language_out
from subnet.influence.restriction import Restriction, restrict_to
from subnet.influence.result import Influence
from subnet.influence.retraining import (
    Retrained,
    RetrainedWithout,
    retrain_on_subsets,
    retrain_without_languages,
)
from subnet.influence.store import GradientStore, StoreSettings
from subnet.influence.storing import store_gradients
from subnet.influence.summary import summarise
from subnet.influence.tracking import Tracked, TrackedModule, track
from subnet.influence.trak import (
    Trak,
    TrakSettings,
    fit_trak,
    margins_and_doubt,
    margins_of,
    negative_margins,
)

if TYPE_CHECKING:
    from subnet.influence.tracin import TracIn

__all__ = [
    "Adam",
    "AdamSettings",
    "BaselineScores",
    "Bm25Settings",
    "Collected",
    "Curvature",
    "CurvatureSettings",
    "DataInf",
    "DataInfSettings",
    "DataMethod",
    "DataSituation",
    "DatamodellingScore",
    "Detection",
    "EmbeddingSettings",
    "Factors",
    "Fidelity",
    "GradientMethod",
    "GradientStore",
    "Influence",
    "LanguageRemoval",
    "Less",
    "LessSettings",
    "ModelHash",
    "Moment",
    "Moments",
    "Point",
    "Projection",
    "Restriction",
    "Retrained",
    "RetrainedWithout",
    "Situation",
    "StoreSettings",
    "TracIn",
    "Tracked",
    "TrackedModule",
    "Trak",
    "TrakSettings",
    "Transform",
    "TwoSidedProjection",
    "attribute",
    "bm25",
    "checkpoints_of",
    "collect",
    "compare_methods",
    "compare_subnetworks",
    "cosine_scores",
    "embedding_similarity",
    "fidelity",
    "find_method",
    "fit_curvature",
    "fit_datainf",
    "fit_trak",
    "influence_graph",
    "leave_one_language_out",
    "linear_datamodelling_score",
    "margins_and_doubt",
    "margins_of",
    "method_names",
    "mislabelled_auroc",
    "negative_margins",
    "plant_mislabelled",
    "random_scores",
    "read_moments",
    "read_points",
    "register_method",
    "restrict_to",
    "retrain_on_subsets",
    "retrain_without_languages",
    "self_influence",
    "store_gradients",
    "summarise",
    "track",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        """Load the class that stands in for captum's, and captum with it, when it is asked for."""
        if name != "TracIn":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from subnet.influence.tracin import TracIn

        globals()[name] = TracIn
        return TracIn
