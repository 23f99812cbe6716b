"""`[training]` and `[base]`: how long and how fast."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from subnet.training.config._part import Part, refuse
from subnet.training.recipe import PRECISIONS, SCHEDULES, Recipe


class RecipeConfig(Part):
    """`[training]`: how long and how fast each language is trained."""

    steps: PositiveInt = Field(
        default=60,
        description="optimizer steps of a stage, on the task: translation.alignment adds its own",
    )
    batch_size: PositiveInt = Field(
        default=32, description="examples of a step, over all processes"
    )
    learning_rate: PositiveFloat = Field(default=3e-3, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"] = Field(
        default="constant", description=f"one of {', '.join(SCHEDULES)}"
    )
    warmup: float = Field(
        default=0.0, ge=0, lt=1, description="share of the steps in which the rate rises"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled decay of AdamW")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="gradients are clipped to it; 0: not"
    )
    optimizer: str = Field(
        default="adamw_torch_fused",
        description="as TrainingArguments.optim; its default, and the cheapest with masks",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description=f"one of {', '.join(PRECISIONS)}"
    )
    passes: PositiveInt = Field(
        default=1, description="passes that a step is divided among, for memory"
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time")

    conflict_every: int = Field(
        default=0,
        ge=0,
        description="steps after which the languages' gradients are compared: of [base] into "
        "conflict.csv, of the stages of every run into stage_conflict.csv; 0: never",
    )
    conflict_examples: int = Field(
        default=64,
        ge=0,
        description="most training examples of a language that are compared; 0: all",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_warmup_of_a_constant_rate(cls, given: Any) -> Any:
        """A default of other schedules is not recorded where none happens."""
        if isinstance(given, Mapping) and "warmup" not in given:
            constant = given.get("schedule", cls.model_fields["schedule"].default) == "constant"
            return {**given, "warmup": 0.0} if constant else given
        return given

    @model_validator(mode="after")
    def _warmup_that_happens(self) -> Self:
        if self.warmup and self.schedule == "constant" and "warmup" in self.model_fields_set:
            expected = "schedule = 'constant_with_warmup' where warmup is above 0"
            raise refuse(self, ("warmup",), expected)
        return self

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        from transformers.training_args import OptimizerNames

        known = [entry.value for entry in OptimizerNames]
        if value not in known:
            near = [name for name in known if name.startswith(value)][:3]
            near = near or difflib.get_close_matches(value, known, n=3, cutoff=0)
            raise PydanticCustomError("optimizer", f"one such as {', '.join(near)}")
        return value

    @property
    def recipe(self) -> Recipe:
        """As the functions of this room take it."""
        return Recipe(**{entry.name: getattr(self, entry.name) for entry in fields(Recipe)})


class BaseRecipe(RecipeConfig):
    """`[base]`: training on all languages together before the sequence."""

    steps: int = Field(
        default=600,
        ge=0,
        description="optimizer steps, never of alignment; 0: the model is taken as it is",
    )
    batch_size: PositiveInt = Field(
        default=64,
        description="plain, turns, pcgrad: examples of a step, over all processes; a step of meta "
        "has support + query of each language",
    )
    learning_rate: PositiveFloat = Field(default=1e-3, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"] = Field(
        default="linear", description=f"one of {', '.join(SCHEDULES)}"
    )
    warmup: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the steps in which the rate rises; none where schedule is constant",
    )
    method: Literal["plain", "turns", "meta", "pcgrad"] = Field(
        default="plain",
        description="plain: batches of all languages; turns: a step is of one language, round "
        "after round; meta: first-order MAML, an episode of each language in every step; pcgrad: "
        "conflicting gradients of languages are projected",
    )
    support: PositiveInt = Field(default=8, description="meta: examples of a support batch")
    query: PositiveInt = Field(default=8, description="meta: examples of a query batch")
    inner_steps: PositiveInt = Field(default=1, description="meta: SGD steps on the support batch")
    inner_rate: PositiveFloat = Field(default=1e-2, description="meta: their learning rate")
