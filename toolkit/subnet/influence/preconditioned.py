"""The methods that do more with gradients than multiply them, as `attribute` knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from subnet.errors import InputError
from subnet.influence._blocks import Again, Blocks, check_choice
from subnet.influence.datainf import DataInfSettings, fit_datainf
from subnet.influence.kfac import CurvatureSettings, FactorStream, fit_curvature
from subnet.influence.methods import GradientMethod, Situation, Transform, register_method
from subnet.influence.moments import Adam, Less, Moments, read_moments
from subnet.influence.trak import (
    TrakSettings,
    features,
    fit_trak,
    margins_and_doubt,
    negative_margins,
)
from subnet.model import evaluation_mode


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """⟨h, g / (√v̂ + ε)⟩ at every checkpoint: the metric in which Adam steps (`Adam`).

    Attributes:
        moments: Where the optimizer's state is; None looks into each checkpoint's folder for
            `optimizer.pt`. A path given is taken for every checkpoint.
    """

    moments: str | Path | None = None


@dataclass(frozen=True, kw_only=True)
class LessSettings(AdamSettings):
    """The step that Adam would take on the training example alone, against the test gradient.

    LESS (`Less`; Xia et al. 2024, arXiv 2402.04333): not linear in the training gradient.

    Attributes:
        similarity: `"cosine"`, as published, pooled over checkpoints as the method `cosine` is; or
            `"dot"`, pooled as `tracin`.
    """

    similarity: Literal["cosine", "dot"] = "cosine"

    def __post_init__(self) -> None:
        check_choice("similarity", self.similarity, ("cosine", "dot"))


def _by_similarity(method: GradientMethod, settings: LessSettings) -> GradientMethod:
    if settings.similarity == "cosine":
        return method
    return replace(method, pooling="sum", normalised=False)


def _adam(situation: Situation) -> Transform:
    adam = Adam(_moments(situation))
    return Transform(test=adam.precondition, settings=adam.to_dict())


def _less(situation: Situation) -> Transform:
    less, restrict = Less(_moments(situation)), situation.restrict

    def step(blocks: Blocks) -> dict[str, Tensor]:
        # Momentum gives a step outside of the subnetwork too, which would count in its norm.
        made = less.transform(blocks)
        return made if restrict is None else restrict(made)

    similarity = situation.settings.similarity
    return Transform(train=step, settings={**less.to_dict(), "similarity": similarity})


def _moments(situation: Situation) -> Moments:
    """Of the checkpoint, or where the settings say."""
    path, weights = situation.settings.moments, situation.point.weights
    if path is None and isinstance(weights, Path):
        path = weights if weights.is_dir() else weights.parent
    if path is None:
        raise InputError(
            f"{situation.point.name} has no state of the optimizer",
            expected="a checkpoint's folder with optimizer.pt",
            fix="give checkpoints= as folders that Trainer saved, or moments=",
        )
    model = situation.model
    # Of a model that was loaded for inference nothing takes gradients.
    is_frozen = not any(p.requires_grad for p in model.parameters())
    trained = list(situation.tracked.shapes) if is_frozen else None
    moments = read_moments(path, model, trained=trained)
    return moments.to(next(model.parameters()).device)


def _curvature(situation: Situation) -> Transform:
    settings: CurvatureSettings = situation.settings
    if situation.restrict is not None:
        raise InputError(
            f"a subnetwork is given for the method {settings.method!r}",
            expected="whole layers: the curvature of a part of one has no Kronecker factors",
            fix="take 'tracin', 'adam' or 'datainf'",
        )
    stream = FactorStream(situation.model, situation.collect_own, settings)
    fitted = fit_curvature(
        stream,
        settings,
        bias=[module.name for module in situation.tracked if module.bias],
        transposed=[module.name for module in situation.tracked if module.kind == "conv1d"],
        shared=True,
    )
    return Transform(test=fitted.precondition, settings=fitted.to_dict())


def _datainf(situation: Situation) -> Transform:
    fitted = fit_datainf(Again(situation.gradients_own), situation.settings, shared=True)
    return Transform(test=fitted.precondition, settings=fitted.to_dict(), whole=True)


def _trak(situation: Situation) -> Transform:
    settings: TrakSettings = situation.settings
    members = situation.members
    projection = settings.projection(len(members), situation.tracked.n_parameters)
    doubt = np.zeros(len(situation.train))
    place = {number: row for row, number in enumerate(members)}

    def note_doubt(batch: Any, numbers: Sequence[int]) -> Any:
        with evaluation_mode(situation.model), torch.no_grad():
            doubt[list(numbers)] = margins_and_doubt(situation.model, batch)[1].double().cpu()
        return batch

    made: dict[str, Tensor] = {}  # [n, k], here with rows of this process's share only
    for numbers, _, found in situation.collect_own(note_doubt):
        blocks = found.gradients()
        if situation.restrict is not None:
            blocks = situation.restrict(blocks)
        some = features([blocks], projection)
        if not made:
            made["features"] = some.new_zeros(len(members), some.shape[1])
        made["features"][[place[number] for number in numbers]] = some
    rows = situation.summed(made)["features"]
    doubt = situation.summed({"doubt": torch.from_numpy(doubt)})["doubt"].numpy()
    fitted = fit_trak(rows, settings)
    return Transform(
        test=lambda blocks: {"features": fitted.solve(features([blocks], projection))},
        train=lambda blocks: {"features": features([blocks], projection).double()},
        ready=lambda numbers: {"features": rows[[place[number] for number in numbers]]},
        factors=doubt,
        settings={
            **settings.to_dict(),
            "projection": None if projection is None else projection.to_dict(),
            "n_features": rows.shape[1],
            "n_examples": len(members),
        },
    )


register_method(
    GradientMethod(
        "adam",
        prepare=_adam,
        settings=AdamSettings,
        summary="Products of gradients in the metric in which Adam steps (from optimizer.pt).",
    )
)
register_method(
    GradientMethod(
        "less",
        pooling="mean",
        normalised=True,
        bilinear=False,
        prepare=_less,
        settings=LessSettings,
        adapt=_by_similarity,
        summary="The step that Adam would take on the training example, against test gradients.",
    )
)
for _name, _what in (("ekfac", "eigenvalue-corrected"), ("kfac", "Kronecker-factored")):
    register_method(
        GradientMethod(
            _name,
            prepare=_curvature,
            settings=CurvatureSettings,
            fixed={"method": _name},
            summary=f"Influence functions, through the inverse of the {_what} curvature.",
        )
    )
register_method(
    GradientMethod(
        "datainf",
        prepare=_datainf,
        settings=DataInfSettings,
        summary="Influence functions, through an inverse in closed form made for LoRA.",
    )
)
register_method(
    GradientMethod(
        "trak",
        pooling="mean",
        bilinear=False,
        prepare=_trak,
        settings=TrakSettings,
        output=negative_margins,
        rated=False,
        summary="A linear model on projected gradients of the label's margin.",
    )
)
