"""The methods that do more with gradients than multiply them, as `attribute` knows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    stream = FactorStream(situation.model, situation.collect, settings)
    fitted = fit_curvature(
        stream,
        settings,
        bias=[module.name for module in situation.tracked if module.bias],
        transposed=[module.name for module in situation.tracked if module.kind == "conv1d"],
    )
    return Transform(test=fitted.precondition, settings=fitted.to_dict())


def _datainf(situation: Situation) -> Transform:
    fitted = fit_datainf(Again(situation.gradients), situation.settings)
    return Transform(test=fitted.precondition, settings=fitted.to_dict(), whole=True)


def _trak(situation: Situation) -> Transform:
    settings: TrakSettings = situation.settings
    members = situation.members
    projection = settings.projection(len(members), situation.tracked.n_parameters)
    doubt = np.zeros(len(situation.train))

    def note_doubt(batch: Any, numbers: Sequence[int]) -> Any:
        with evaluation_mode(situation.model), torch.no_grad():
            doubt[list(numbers)] = margins_and_doubt(situation.model, batch)[1].double().cpu()
        return batch

    def gradients() -> Iterator[Blocks]:
        for _, _, found in situation.collect(note_doubt):
            blocks = found.gradients()
            yield blocks if situation.restrict is None else situation.restrict(blocks)

    rows = features(gradients(), projection)  # [n, k]
    fitted = fit_trak(rows, settings)
    place = {number: row for row, number in enumerate(members)}
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


register_method(GradientMethod("adam", prepare=_adam, settings=AdamSettings))
register_method(
    GradientMethod(
        "less",
        pooling="mean",
        normalised=True,
        bilinear=False,
        prepare=_less,
        settings=LessSettings,
        adapt=_by_similarity,
    )
)
for _name in ("ekfac", "kfac"):
    register_method(
        GradientMethod(
            _name, prepare=_curvature, settings=CurvatureSettings, fixed={"method": _name}
        )
    )
register_method(GradientMethod("datainf", prepare=_datainf, settings=DataInfSettings))
register_method(
    GradientMethod(
        "trak",
        pooling="mean",
        bilinear=False,
        prepare=_trak,
        settings=TrakSettings,
        output=negative_margins,
        rated=False,
    )
)
