"""How well projected scores keep the order of exact ones, on the data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError
from subnet.influence._projecting import Projector
from subnet.influence.by_language import score_languages
from subnet.influence.engine import Engine
from subnet.influence.projection import fidelity
from subnet.influence.scoring import score_examples

if TYPE_CHECKING:
    from subnet.influence._examples import Examples
    from subnet.influence.checkpoints import Point
    from subnet.influence.methods import GradientMethod


def measure_fidelity(
    engine: Engine,
    method: GradientMethod,
    points: Sequence[Point],
    train: Examples,
    test: Examples,
    level: str,
    n_seeds: int,
) -> dict[str, Any]:
    """Rank correlation of projected scores with exact ones, over seeds of the projection.

    The seeds are those from the projection's own on. Costs the exact scores and the projected ones
    of each seed.

    Raises:
        InputError: There is no projection, or the number of seeds is none.
    """
    if engine.projection is None:
        raise InputError("fidelity is given without a projection", expected="projection=")
    asked: Any = n_seeds
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"fidelity is {n_seeds!r}", expected="a number of seeds, 1 or more")
    tracked, settings = engine.projection.tracked, engine.projection.settings

    def scores(projection: Projector | None) -> NDArray[np.float64]:
        own = replace(engine, projection=projection, store=None)
        if level == "language":
            return score_languages(own, method, points, train, test).means
        return score_examples(own, method, points, train, test).scores

    seeds = range(settings.seed, settings.seed + n_seeds)
    exact = scores(None)
    projected = (scores(Projector(tracked, replace(settings, seed=seed))) for seed in seeds)
    return {**fidelity(exact, projected, seed=engine.seed).to_dict(), "seeds": list(seeds)}
