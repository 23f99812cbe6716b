"""`[data]` and `[model]`: what is learnt from, and where learning starts."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from subnet.training.config._part import Part, refuse


class DataConfig(Part):
    """`[data]`: examples in every language."""

    source: Literal["cldr", "files"] = Field(
        default="cldr",
        description="cldr: names of territories, languages, currencies, ... generated in any "
        "language; files: train.jsonl, test.jsonl (and validation.jsonl) or <language>.tsv in path",
    )
    path: str = Field(default="", description="folder of the files, relative to this file")
    kinds: tuple[str, ...] = Field(
        default=(),
        description="cldr: territory, language, script, currency, city, unit (the default but for "
        "translation), date, time, duration, money, list (of translation date, duration, money)",
    )
    max_concepts_per_kind: PositiveInt = Field(
        default=180, description="cldr: concepts kept of each kind, so that no kind dominates"
    )
    test_share: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="cldr: share of concepts that is tested; and of translations whose files have "
        "no split",
    )
    validation_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="of the same: share that neither training nor tests see",
    )
    max_train: int = Field(
        default=0, ge=0, description="most training examples of a language; 0: all"
    )
    max_test: int = Field(default=0, ge=0, description="most test examples of a language; 0: all")
    max_length: int = Field(default=160, ge=4, description="tokens beyond which an input is cut")

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.test_share + self.validation_share >= 1:
            both = self.test_share + self.validation_share
            expected = f"test_share and validation_share below 1 together, and not {both:g}"
            raise refuse(self, ("test_share", "validation_share"), expected)
        return self


class ModelConfig(Part):
    """`[model]`: where training starts."""

    name: str = Field(
        default="",
        description="a model folder (relative to this file) or a name on the hub; empty: a small "
        "byte-level model of the sizes below, from random weights",
    )
    kind: Literal["encoder-decoder", "decoder"] = Field(
        default="encoder-decoder", description="translation: of the small model"
    )
    layers: PositiveInt = Field(default=3, description="of the small model")
    width: PositiveInt = Field(default=96, description="hidden size of the small model")
    heads: PositiveInt = Field(
        default=4, description="attention heads of a layer of the small model"
    )
    feed_forward: PositiveInt = Field(
        default=256, description="feed-forward width of the small model"
    )
    initializer_range: PositiveFloat = Field(
        default=0.1, description="standard deviation of its weights; about 1/sqrt(width)"
    )

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        if self.width % self.heads:
            expected = f"a width that is a multiple of heads; {self.width} is none of {self.heads}"
            raise refuse(self, ("heads", "width"), expected)
        return self
