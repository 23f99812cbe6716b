"""`subnet train CONFIG`: what is trained on what, in one TOML file, every default explained."""

from subnet.training.config.data import DataConfig, ModelConfig
from subnet.training.config.explaining import explain
from subnet.training.config.recipes import BaseRecipe, RecipeConfig
from subnet.training.config.regimes import SHARINGS, AdaptationConfig, SequenceConfig, Sharing
from subnet.training.config.subnetworks import SubnetworksConfig
from subnet.training.config.translation import TranslationConfig
from subnet.training.config.whole import (
    EvaluationConfig,
    OutputConfig,
    TrainingConfig,
    read_config,
)

__all__ = [
    "SHARINGS",
    "AdaptationConfig",
    "BaseRecipe",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OutputConfig",
    "RecipeConfig",
    "SequenceConfig",
    "Sharing",
    "SubnetworksConfig",
    "TrainingConfig",
    "TranslationConfig",
    "explain",
    "read_config",
]
