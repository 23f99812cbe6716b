"""What scores depend on beside data and weights, for their record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from subnet.model._names import base_model

if TYPE_CHECKING:
    from subnet.influence.checkpoints import Point
    from subnet.influence.engine import Engine
    from subnet.influence.methods import GradientMethod


def settings_of(
    engine: Engine, points: Sequence[Point], level: str, method: GradientMethod
) -> dict[str, Any]:
    """Everything that scores depend on beside data and weights."""
    store = engine.store
    return {
        "level": level,
        "checkpoints": [point.to_dict() for point in points],
        "pooling": method.pooling,
        "modules": [module.name for module in engine.tracked],
        "parameters": list(engine.tracked.shapes),
        "n_parameters": engine.tracked.n_parameters,
        "parameters_left_out": list(engine.tracked.left_out),
        **settings_of_gradients(engine),
        "loss": _loss(engine),
        "store": None if store is None else {"path": str(store.path), "dtype": store.dtype},
        "memory": engine.memory,
    }


def settings_of_gradients(engine: Engine) -> dict[str, Any]:
    """What the gradients of a dataset depend on beside weights and modules."""
    model: Any = base_model(engine.model)
    config = getattr(model, "config", None)
    dtypes = {str(p.dtype).removeprefix("torch.") for p in engine.model.parameters()}
    return {
        "subnetwork": _subnetwork_of(engine),
        "projection": None if engine.projection is None else engine.projection.settings.to_dict(),
        "reduction": "sum over examples",
        "mode": "eval",
        "batch_size": engine.batch_size,
        "dtype": sorted(dtypes),
        "attention": getattr(config, "_attn_implementation", None),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _loss(engine: Engine) -> str:
    if engine.output is not None:
        return getattr(engine.output, "__name__", "of the method").replace("_", " ")
    return "given" if engine.loss_fn else "mean over the example's own labels"


def _subnetwork_of(engine: Engine) -> dict[str, Any] | None:
    if engine.restriction is None:
        return None
    mask = engine.restriction.subnetwork
    return {
        "language": mask.language,
        "run": mask.run,
        "granularity": mask.granularity,
        "method": mask.method,
        "settings": dict(mask.settings),
        "seed": mask.seed,
        "density": mask.density,
        "in_forward": engine.in_forward,
    }
