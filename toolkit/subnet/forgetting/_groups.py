"""Whether groups of languages differ in what happened to them and in what they did to others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from subnet._statistics import (
    adjust_p_values,
    bootstrap_interval,
    group_differences,
)
from subnet._tables import table

#: A score, not a change.
_NOT_COMPARED = ("average_accuracy",)

_GIVEN = "immediate_effect_given"


def compare_groups(
    frame: pd.DataFrame,
    groupings: Mapping[str, Mapping[str, str]],
    *,
    seed: int,
    n_permutations: int,
) -> pd.DataFrame:
    """The table of groups, from the table of measures; see `Forgetting.groups`."""
    single = frame[(frame["language"] != "") & ~frame["measure"].isin(_NOT_COMPARED)]
    # measures [m] × languages [l]; a language's value is its mean over the runs that have one
    values = single.pivot_table(
        index=["metric", "measure"],
        columns="language",
        values="value",
        aggfunc="mean",
        dropna=False,
        sort=False,
    )
    values = values[values.notna().any(axis=1)]  # the table of measures says why it has none
    rows: list[dict[str, Any]] = []
    for grouping, group_of in groupings.items():
        groups = pd.Series({lang: str(group_of.get(lang) or "") for lang in values.columns})
        inside = values.loc[:, (groups != "").to_numpy()]
        labels = groups[inside.columns].to_numpy()
        names = sorted(set(labels))
        for name in names:
            rows += _group_rows(inside, grouping, name, labels, names, seed, n_permutations)
    found = table("groups", rows)
    if len(found):
        found["q_value"] = adjust_p_values(found["p_value"])
    return found


def _group_rows(
    values: pd.DataFrame,
    grouping: str,
    group: str,
    labels: np.ndarray[Any, np.dtype[Any]],
    names: list[str],
    seed: int,
    n_permutations: int,
) -> list[dict[str, Any]]:
    members = labels == group
    numbers = values.to_numpy(dtype=np.float64)
    differences = group_differences(numbers, members, seed=seed, n_permutations=n_permutations)
    rows = []
    for (metric, measure), row, difference in zip(values.index, numbers, differences, strict=True):
        own = row[members & ~np.isnan(row)]
        low, high = bootstrap_interval(own, seed=seed)
        donor = str(measure).startswith(_GIVEN)
        reason = difference.reason
        if len(names) < 2:
            reason = f"every language belongs to {group!r}"
        elif not len(own):
            reason = "no language of the group has a value"
        elif len(own) == 1:
            reason = "the group has one language only"
        elif difference.n_others < 2:
            reason = "fewer than two languages outside the group have a value"
        rows.append(
            {
                "grouping": grouping,
                "group": group,
                "role": "donor" if donor else "receiver",
                "metric": metric,
                "measure": str(measure).replace("_given", "", 1) if donor else measure,
                "value": float(own.mean()) if len(own) else math.nan,
                "ci_low": low,
                "ci_high": high,
                "p_value": difference.p_value,
                "n": len(own),
                "reason": reason,
                "difference": difference.value,
                "difference_ci_low": difference.ci_low,
                "difference_ci_high": difference.ci_high,
                "n_others": difference.n_others,
                "smallest_p": difference.smallest_p,
            }
        )
    return rows
