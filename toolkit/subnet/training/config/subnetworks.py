"""`[subnetworks]`: training that moves only a part of the weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from subnet.training.config._part import Part, refuse


class SubnetworksConfig(Part):
    """`[subnetworks]`: training that moves only a subnetwork of each language."""

    method: Literal["none", "static", "dynamic", "sparse"] = Field(
        default="none",
        description="static: the masks of a directory; dynamic: found anew every some steps, at "
        "constant size; sparse: full training, the largest changes kept, those trained again "
        "(LT-SFT, tuning = full)",
    )
    masks: str = Field(
        default="",
        description="static: a directory of masks, as subnet extract writes it, relative to this "
        "file",
    )
    density: float = Field(
        default=0.05, gt=0, le=1, description="dynamic, sparse: share of the weights that may move"
    )
    forward: bool = Field(
        default=False, description="static: the forward pass of training sees zeros outside"
    )
    every: PositiveInt = Field(
        default=10, description="dynamic: steps, of either kind, between two masks"
    )
    score: Literal["taylor", "fisher"] = Field(
        default="taylor", description="dynamic: |g w| or g^2 of the training's own gradients"
    )
    smoothing: float = Field(
        default=0.9, ge=0, lt=1, description="dynamic: of the average of scores over steps"
    )

    @model_validator(mode="after")
    def _masks_for_static(self) -> SubnetworksConfig:
        if (self.method == "static") != bool(self.masks):
            expected = "masks with method = 'static', and with it only"
            raise refuse(self, ("masks", "method"), expected)
        return self
