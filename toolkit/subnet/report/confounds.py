"""What else differs between the languages, as the section that follows the answer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from subnet.report.content import Section, Table

_MOST_METRICS = 3


def confounds_section(
    languages: pd.DataFrame,
    scores: pd.DataFrame | None = None,
    *,
    metrics: Sequence[str] | None = None,
) -> Section:
    """What differs between the languages besides their script and family.

    Args:
        languages: One row per language: `language, tag, script, family`, then what was measured
            (`bytes_per_character`, `truncated_share`, `train_examples`, `position`, …).
        scores: The table of scores; the score before the sequence becomes a column per metric.
        metrics: Which metrics, all of them (three at most) if not said.
    """
    frame = languages.drop(columns=["script_name"], errors="ignore").copy()
    first = [c for c in ("language", "name", "script") if c in frame.columns]
    last = [c for c in ("family", "tag") if c in frame.columns]
    if scores is not None and len(scores):
        before = scores[scores["stage"] == 0]
        for metric in list(metrics or dict.fromkeys(scores["metric"]))[:_MOST_METRICS]:
            start = before[before["metric"] == metric].groupby("language")["value"].mean()
            frame[f"baseline {metric}"] = frame["language"].map(start).astype(float)
    frame = frame[first + [c for c in frame.columns if c not in first + last] + last]
    numbers = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])]
    tables = [
        Table(
            "languages",
            "Per language",
            frame,
            rest="tables/languages.csv",
            caption="A position averages over the orders of training; a baseline is the score "
            "before the sequence began.",
        )
    ]
    latin = frame["script"].fillna("").map(_latin)
    known = frame[latin != ""]
    if known.size and latin[latin != ""].nunique() == 2 and numbers:
        means = known.groupby(latin[latin != ""])[numbers].mean().dropna(axis="columns", how="all")
        sizes = latin.value_counts()
        means.insert(0, "group", [f"{name} ({sizes[name]})" for name in means.index])
        tables.insert(
            0, Table("confounds-by-script", "Latin script and other scripts, on average", means)
        )
    return Section(
        "confounds",
        "What else differs between the languages",
        lead="Languages differ in more than what they share: in how many bytes a character takes, "
        "how much of a text the model never sees, how much data there was, when their turn came, "
        "and how well they did before. A difference in forgetting between groups that also differ "
        "in these is no finding about language.",
        tables=tables,
    )


def _latin(script: str) -> str:
    if not script:
        return ""
    return "Latin script" if set(script.split(">")) == {"Latn"} else "other scripts"
