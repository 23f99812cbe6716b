"""Selections from the tables that several figures need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from subnet._tables import MAIN_RUN

#: Null models, the one that a headline may rest on first.
NULLS = ("structure", "rotation", "element")


def overlap_rows(
    overlap: pd.DataFrame,
    *,
    measure: str,
    source: str | None = None,
    level: str = "all",
    module: str | None = None,
) -> pd.DataFrame:
    """Rows of one measure at one level, one null model per pair: the one a headline may rest on."""
    rows = overlap[(overlap["measure"] == measure) & (overlap["level"] == level)]
    if source is not None:
        rows = rows[rows["source"] == source]
    if module is not None:
        rows = rows[rows["module"].fillna("") == module]
    if rows.empty:
        return rows
    rank = rows["null"].map(lambda null: NULLS.index(null) if null in NULLS else len(NULLS))
    chosen: pd.DataFrame = rows[rank == rank.min()]
    return chosen


def each(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples, whose values have the types that the columns of our tables have."""
    return frame.itertuples()


def between(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that compare two languages, of one run: `main`, else the first."""
    pairs = rows[rows["language_a"] != rows["language_b"]]
    runs = list(dict.fromkeys(pairs["run"])) if "run" in pairs.columns else []
    if len(runs) < 2:
        return pairs
    return pairs[pairs["run"] == (MAIN_RUN if MAIN_RUN in runs else runs[0])]


def replicates(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that compare a language with itself: trained twice, or else on halves of its data."""
    same = rows["language_a"] == rows["language_b"]
    if "comparison" not in rows.columns:
        return rows[same]
    twice = rows[same & (rows["comparison"] == "replicate")]
    return twice if len(twice) else rows[same & (rows["comparison"] == "half")]


def ceiling_kind(rows: pd.DataFrame) -> str:
    """What the ceiling compares a language with: `other seed`, or `other half` of its examples."""
    found = replicates(rows)
    halves = "comparison" in rows.columns and set(found["comparison"]) == {"half"}
    return "other half" if halves else "other seed"


def overlap_values(
    overlap: pd.DataFrame,
    *,
    measure: str,
    source: str | None = None,
    level: str = "all",
    module: str = "",
) -> pd.DataFrame:
    """Language × language of one run; replicates on the diagonal, NaN where unknown.

    A symmetric measure stands once per pair in the table and twice here; one that stands both ways
    keeps its directions.
    """
    rows = overlap_rows(overlap, measure=measure, source=source, level=level, module=module)
    pairs, twice = between(rows), replicates(rows)
    labels = list(dict.fromkeys([*pairs["language_a"], *pairs["language_b"]]))
    found = pairs.pivot_table(
        index="language_a", columns="language_b", values="value", aggfunc="mean"
    ).reindex(index=labels, columns=labels)
    known = found.notna()
    directed = bool((known & known.T).to_numpy().any())
    matrix = (found if directed else found.where(known, found.T)).astype(np.float64)
    for label, value in twice.groupby("language_a")["value"].mean().items():
        if label in matrix.index:
            matrix.loc[label, label] = value
    return matrix


def overlap_reference(
    overlap: pd.DataFrame,
    *,
    measure: str,
    source: str | None = None,
    level: str = "all",
    module: str = "",
) -> tuple[float, float]:
    """(floor, ceiling): mean expectation under the null model, mean over the same language."""
    rows = overlap_rows(overlap, measure=measure, source=source, level=level, module=module)
    return _mean(between(rows)["expected"]), _mean(replicates(rows)["value"])


def directed_pairs(
    overlap: pd.DataFrame,
    effects: pd.DataFrame,
    *,
    measure: str,
    metric: str,
    source: str | None = None,
) -> pd.DataFrame:
    """Every pair (language trained, other language) with overlap and effect.

    Returns:
        Columns `run, trained_language, language, overlap, effect`, pairs with both values only.
    """
    own = effects[
        (effects["metric"] == metric) & (effects["trained_language"] != effects["language"])
    ]
    parts = []
    for run, part in own.groupby("run", sort=False):
        # What a run's steps changed stands beside its effects; adapters stand beside every order.
        of_run = overlap[overlap["run"] == run]
        beside = overlap if of_run.empty else of_run
        values = overlap_values(beside, measure=measure, source=source)
        known = part["trained_language"].isin(values.index) & part["language"].isin(values.columns)
        here = part[known]
        pairs = zip(here["trained_language"], here["language"], strict=True)
        parts.append(
            here[["run", "trained_language", "language"]].assign(
                overlap=[values.loc[a, b] for a, b in pairs],
                effect=here["value"].astype(np.float64),
            )
        )
    columns = ["run", "trained_language", "language", "overlap", "effect"]
    rows = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return rows.dropna(subset=["overlap", "effect"]).reset_index(drop=True)


def _mean(values: pd.Series) -> float:
    known = values.dropna()
    return float(known.mean()) if len(known) else math.nan
