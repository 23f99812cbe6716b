"""What the probes of a checkpoint cost, and which are made where nobody says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subnet_probes.probe_settings import ProbeSettings

if TYPE_CHECKING:
    from subnet_probes._checkpoint_models import Point
    from subnet_probes.representation import Representations

#: Operations up to which probes are cross-validated and codelengths computed, unasked: about ten
#: minutes of one core.
LIMIT = 4e12
#: Operations from which probes are fitted on all cores, unasked: half a minute of one core.
PARALLEL = LIMIT / 20
#: Operations of a fit, whatever its size, and per item, unit and class: both measured, the latter
#: as the iterations that it usually takes.
_PER_FIT, _PER_NUMBER = 3e7, 240
#: Items of a probe where that limit is exceeded.
_MOST = 2000


def affordable_probe(
    points: Sequence[Point], found: Representations, level: str
) -> tuple[ProbeSettings, str]:
    """How probes are made of all models, judged by the representations of one.

    Args:
        points: The models.
        found: Representations of one of them.
        level: `"sentence"` or `"word"`.

    Returns:
        The settings, and what a reader must know of them.
    """
    full = ProbeSettings()
    cost = probe_cost(points, found, level, full)
    if cost <= LIMIT:
        return full, ""
    minutes = cost / LIMIT * 10
    return ProbeSettings(holdout=True, mdl=False, max_examples=_MOST), (
        f"probes of {level}s are tested on one held-out fold of at most {_MOST} items, without "
        f"codelengths: cross-validation takes about {minutes:.0f} minutes (probe=ProbeSettings(), "
        "--mdl)"
    )


def probe_cost(
    points: Sequence[Point], found: Representations, level: str, settings: ProbeSettings
) -> float:
    """Operations of all label probes, and of language identity."""
    sizes = found.items["language"].value_counts()
    d = found.arrays[found.layers[0]].shape[1]
    target = "label" if level == "sentence" else "tag"
    k = found.items[target].nunique()
    n, n_languages = int(sizes.max()), len(sizes)
    probed = sum(n_languages if point.end else 1 for point in points)
    cost = probed * cost_of_one(n, d, k, settings)
    if level == "sentence":
        ends = sum(point.end for point in points)
        cost += ends * cost_of_one(int(sizes.sum()), d, n_languages, settings)
    return cost * len(found.layers)


def cost_of_one(n: int, d: int, k: int, settings: ProbeSettings) -> float:
    """Operations of one probe at one layer."""
    if k < 2:
        return 0.0
    whole = _PER_NUMBER * float(n * d * k)
    targets = 1 + settings.n_random + settings.n_controls
    fits = (1 if settings.holdout else settings.folds) * targets
    cost = fits * (whole * (1 - 1 / settings.folds) + _PER_FIT)
    if settings.mdl:
        # Of the task and its control; the blocks before the last add up to all items once.
        passes = 2 * len(settings.mdl_C)
        cost += passes * (whole + len(settings.fractions) * _PER_FIT)
    return cost
