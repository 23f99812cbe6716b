"""`[adaptation]` and `[sequence]`: what the languages share, and when each is learnt."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from subnet.training.config._part import Part, refuse

#: How much the languages of a sequence share, from nothing to everything.
SHARINGS = ("none", "partial", "full")

Sharing = Literal["none", "partial", "full"]


class AdaptationConfig(Part):
    """`[adaptation]`: which parameters learn, and which of them the languages share."""

    tuning: Literal["lora", "full"] = Field(
        default="lora", description="lora: low-rank factors; full: all weights"
    )
    sharing: Sharing | tuple[Sharing, ...] = Field(
        default="full",
        description="none: parameters of its own for each language; full: one set through the "
        "whole sequence; partial: as below. A list trains one after the other",
    )
    partial: Literal["shared_a", "lower_layers"] = Field(
        default="shared_a",
        description="shared_a: LoRA's A is shared, B each language's own; lower_layers: layers up "
        "to shared_layers are shared, the others each language's own",
    )
    shared_layers: float = Field(
        default=0.5, gt=0, lt=1, description="share of the layers that lower_layers shares"
    )
    rank: PositiveInt | tuple[PositiveInt, ...] = Field(
        default=8, description="rank r of LoRA; a list trains one after the other"
    )
    alpha_over_rank: PositiveFloat = Field(
        default=2.0, description="scale of LoRA's update, the same at every rank"
    )
    targets: str = Field(
        default="",
        description="pattern of the modules that get LoRA; empty: all linear layers but heads",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of LoRA")
    head: Literal["frozen", "shared", "per_language"] = Field(
        default="frozen",
        description="the classification head: frozen after the base, trained by all in turn, or "
        "each language's own. A shared head is sharing, too",
    )

    @property
    def sharings(self) -> tuple[Sharing, ...]:
        """All that are asked for."""
        return self.sharing if isinstance(self.sharing, tuple) else (self.sharing,)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All that are asked for; 0 where all weights are trained."""
        if self.tuning == "full":
            return (0,)
        return self.rank if isinstance(self.rank, tuple) else (self.rank,)


class SequenceConfig(Part):
    """`[sequence]`: in which orders the languages are learnt."""

    orders: PositiveInt | tuple[tuple[str, ...], ...] = Field(
        default=1, description="how many random orders, or the orders themselves"
    )
    seeds: tuple[int, ...] = Field(
        default=(0,),
        min_length=1,
        description="of adapters and batches; every order is run with each",
    )
    joint: bool = Field(
        default=False,
        description="also train on all languages at once, for as many steps as the sequence: the "
        "reference for intransigence",
    )
    adapters: bool = Field(
        default=False,
        description="also train an adapter for each language from the base, so that their overlap "
        "can be related to what the sequence forgot; none has them anyhow",
    )
    replicates: int = Field(
        default=0,
        ge=0,
        description="with adapters: languages, the first of the first order, that get a second one "
        "from another seed, in runs/replicate/. What two of one language share is the ceiling of "
        "every overlap",
    )

    @field_validator("orders", mode="before")
    @classmethod
    def _a_number_or_orders(cls, value: Any) -> Any:
        is_list = isinstance(value, list | tuple) and all(
            isinstance(order, list | tuple) and all(isinstance(name, str) for name in order)
            for order in value
        )
        if isinstance(value, bool) or not (is_list or isinstance(value, int)):
            raise PydanticCustomError("orders", "a number, or a list of lists of languages")
        return value

    @model_validator(mode="after")
    def _adapters_to_replicate(self) -> Self:
        if self.replicates and not self.adapters:
            raise refuse(self, ("replicates",), "adapters = true with replicates")
        return self
