"""`[subnetworks]`: training that moves only a part of the weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from subnet.training.config._part import Part, refuse

Method = Literal["none", "static", "dynamic", "sparse"]


class SubnetworksConfig(Part):
    """`[subnetworks]`: training that moves only a subnetwork of each language."""

    method: Method = Field(
        default="none",
        description="static: the masks of a directory; dynamic: found anew every some steps, at "
        "constant size; sparse: full training, the largest changes kept, those trained again "
        "(LT-SFT). In the stages all but static masks of heads and neurons want tuning = full",
    )
    during: Literal["stages", "base", "both"] = Field(
        default="stages",
        description="static, dynamic: where masks hold. base: while [base] is trained, in the "
        "episodes of meta or in turns; static ones are then of the model in model.name",
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
        default=False,
        description="static, dynamic: the forward pass of training sees zeros outside",
    )
    every: PositiveInt = Field(
        default=10,
        description="dynamic: steps, of either kind, between two masks; in [base] of a language's "
        "own",
    )
    score: Literal["taylor", "fisher"] = Field(
        default="taylor", description="dynamic: |g w| or g^2 of the training's own gradients"
    )
    smoothing: float = Field(
        default=0.9, ge=0, lt=1, description="dynamic: of the average of scores over steps"
    )

    @property
    def in_stages(self) -> Method:
        """The method by which a language's own stage is trained."""
        return "none" if self.during == "base" else self.method

    @property
    def in_base(self) -> Method:
        """The method by which the base is trained."""
        return "none" if self.during == "stages" else self.method

    @model_validator(mode="after")
    def _masks_for_static(self) -> SubnetworksConfig:
        if (self.method == "static") != bool(self.masks):
            expected = "masks with method = 'static', and with it only"
            raise refuse(self, ("masks", "method"), expected)
        return self
