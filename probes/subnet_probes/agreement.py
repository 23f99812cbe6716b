"""Whether the units that carry a property are those of an extracted subnetwork."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from subnet.errors import InputError, NotComparableError
from subnet_probes.ranking import UnitRanking

if TYPE_CHECKING:
    import pandas as pd


def unit_agreement(
    rankings: UnitRanking | Sequence[UnitRanking],
    mask: Any,
    *,
    parameter: str | None = None,
    k: int | None = None,
) -> pd.DataFrame:
    """Whether the first units of a ranking are those of a subnetwork.

    Args:
        rankings: Of layers whose units are the mask's: a ranking of hidden states (width d) and a
            mask of feed-forward neurons (width 4d) are of different units.
        mask: [d] booleans, or a `Subnetwork` of neurons or heads.
        parameter: Which entry of the subnetwork, `layers.3.neurons`; needed where it has several,
            unless the rankings are named as entries are (`rank_model_units`): each then meets its
            own.
        k: How many first units; by default as many as the mask selects.

    Returns:
        One row per ranking: layer, k, n_units, n_mask, overlap, expected (k·m/d by chance),
        enrichment = overlap / expected, jaccard, p_value (hypergeometric, of an overlap as large),
        reason. The p-value takes units for exchangeable, which they are not where some are active
        in everything: compare with the mask of another language.

    Raises:
        NotComparableError: Ranking and mask are of different numbers of units.
        InputError: The mask is none, or `parameter` is needed.
    """
    import pandas as pd

    several = [rankings] if isinstance(rankings, UnitRanking) else list(rankings)
    entries = getattr(mask, "shapes", {})
    rows = []
    for ranking in several:
        own = ranking.layer if parameter is None and ranking.layer in entries else parameter
        name, selected = _selected(mask, own)
        d, m = len(ranking.scores), int(selected.sum())
        if len(selected) != d:
            raise NotComparableError(
                f"layer {ranking.layer} has {d} units and the mask {name} has {len(selected)}",
                expected="the same units",
                fix="rank representations of what the mask selects",
            )
        first = m if k is None else k
        row: dict[str, Any] = {"layer": ranking.layer, "k": first, "n_units": d, "n_mask": m}
        if m in (0, d):
            rows.append({**row, "reason": f"the mask selects {'nothing' if m == 0 else 'all'}"})
            continue
        overlap = int((ranking.top(first) & selected).sum())
        expected = first * m / d
        rows.append(
            {
                **row,
                "overlap": overlap,
                "expected": expected,
                "enrichment": overlap / expected,
                "jaccard": overlap / (first + m - overlap),
                "p_value": float(stats.hypergeom.sf(overlap - 1, d, m, first)),
                "reason": "",
            }
        )
    columns = (
        "layer", "k", "n_units", "n_mask", "overlap", "expected", "enrichment", "jaccard",
        "p_value", "reason",
    )  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns))


def _selected(mask: Any, parameter: str | None) -> tuple[str, NDArray[np.bool_]]:
    """Name and [d] booleans."""
    if not hasattr(mask, "granularity"):
        array = np.asarray(mask)
        if array.dtype != np.bool_ or array.ndim != 1:
            raise InputError(
                f"the mask is {array.dtype} {list(array.shape)}", expected="[units] booleans"
            )
        return "given", array
    if mask.granularity not in ("neuron", "head"):
        raise InputError(
            f"the mask of {mask.language} is per {mask.granularity}",
            expected="a mask of neurons or heads",
            fix="convert it with weights_to_units",
        )
    if parameter is None:
        if len(mask.shapes) > 1:
            raise InputError(
                f"the mask of {mask.language} has {len(mask.shapes)} layers",
                fix=f"name one: parameter={next(iter(mask.shapes))!r}",
            )
        parameter = next(iter(mask.shapes))
    return parameter, mask.dense(parameter)
