"""The file as a whole: its tables, how it is read, and what tells two of them apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

from subnet._toml import read_toml
from subnet.errors import SubnetError
from subnet.training.config._part import Part
from subnet.training.config.data import DataConfig, ModelConfig
from subnet.training.config.recipes import BaseRecipe, RecipeConfig
from subnet.training.config.regimes import AdaptationConfig, SequenceConfig
from subnet.training.config.subnetworks import SubnetworksConfig
from subnet.training.config.translation import TranslationConfig


class EvaluationConfig(Part):
    """`[evaluation]`: every language after every stage."""

    batch_size: PositiveInt = Field(default=256, description="examples of a pass without gradients")
    transfer: bool = Field(
        default=True,
        description="where languages have parameters of their own, test each one's on all "
        "languages, too (transfer.csv)",
    )


class OutputConfig(Part):
    """`[output]`: what is kept."""

    stages: Literal["all", "last", "none"] = Field(
        default="all", description="whose weights are delivered; scores are of all stages anyhow"
    )
    save_every: int = Field(
        default=0,
        ge=0,
        description="steps within a stage, of either kind, after which it can go on; 0: stages are "
        "whole",
    )


class TrainingConfig(Part):
    """One file of `subnet train`.

    Attributes:
        task: What is learnt.
        languages: Their labels, `default` (twelve) or `all` (the 52 of MASSIVE).
        seed: Of the data, the base and the orders.
    """

    format: Literal[1] = Field(default=1, description="of this file")
    task: Literal["sequence-classification", "token-classification", "translation"] = Field(
        default="sequence-classification",
        description="sequence-classification, token-classification (slot filling) or translation",
    )
    languages: Literal["default", "all"] | tuple[str, ...] = Field(
        default="default",
        description="codes, or default (twelve), or all (the 52 of MASSIVE); of translation "
        "directions such as de>en, or default (into and out of English)",
    )
    seed: int = Field(default=0, ge=0, description="of the data, the base and the orders")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    base: BaseRecipe = BaseRecipe()
    adaptation: AdaptationConfig = AdaptationConfig()
    sequence: SequenceConfig = SequenceConfig()
    training: RecipeConfig = RecipeConfig()
    subnetworks: SubnetworksConfig = SubnetworksConfig()
    translation: TranslationConfig = TranslationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()

    @field_validator("languages", mode="before")
    @classmethod
    def _a_list_of_languages(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("default", "all"):
            raise PydanticCustomError("languages", "a list of codes, or 'default' or 'all'")
        return value

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the resolved settings: a run goes on only where they are the same."""
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_config(path: str | Path) -> TrainingConfig:
    """Settings of a run.

    Raises:
        MissingInputError: There is no such file.
        FileFormatError: The file is not TOML.
        InputError: A key is unknown (the nearest known one is named), or a value is of the wrong
            type or out of range.
    """
    try:
        return read_toml(TrainingConfig, Path(path))
    except SubnetError as error:
        if error.fix:
            raise
        raise type(error)(
            error.found,
            path=error.path,
            expected=error.expected or "a TOML file",
            fix="subnet train --explain prints one with every key",
        ) from error
