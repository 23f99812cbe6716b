"""The section that asks whether the masks are subnetworks at all."""

from __future__ import annotations

import pandas as pd

from subnet import figures
from subnet.report._format import format_number
from subnet.report._pieces import draw, has_rows, tidy
from subnet.report.content import Figure, Section, Table

_VERDICTS = (
    "run", "language", "own", "others", "random_own", "random_others", "value", "ci_low",
    "ci_high", "p_value", "q_value", "specific", "n", "n_random", "reason",
)  # fmt: skip

_HEADINGS = {
    "own": "own change",
    "others": "others' change",
    "random_own": "own, random",
    "random_others": "others, random",
    "value": "specific to own",
}


def validation_section(
    ablation: pd.DataFrame | None = None,
    specificity: pd.DataFrame | None = None,
    overall: pd.DataFrame | None = None,
    sweep: pd.DataFrame | None = None,
    *,
    languages: pd.DataFrame | None = None,
    missing: str = "",
) -> Section:
    """What is lost without each mask, and what it can do alone.

    Args:
        ablation: `subnet.validation.Ablation.frame`.
        specificity: Its verdicts.
        overall: Its verdict over all languages.
        sweep: `subnet.validation.Sweep.frame`.
        languages: The table of languages, for their names.
        missing: Why it was not measured.
    """
    title = "Are they subnetworks?"
    if not has_rows(ablation):
        return Section("validation", title, empty_reason=missing or "Not measured.")
    run = str(ablation["run"].iloc[0])
    several = bool((ablation["run"] != run).any())
    of_run = f" Run {run}; the others are in tables/ablation.csv." if several else ""
    random = bool(ablation["condition"].str.startswith("random_").any())
    specific = _specific(specificity, run)
    shown = []
    for condition, words in (
        ("removed", "What is lost without each language's subnetwork"),
        ("kept", "What is lost with each language's subnetwork alone"),
    ):
        if (ablation["condition"] == condition).any():
            shown.append(
                draw(
                    f"ablation-{condition}", words,
                    figures.ablation_matrix(
                        ablation, condition=condition, run=run, languages=languages,
                        specific=specific if condition == "removed" else (),
                    ),
                    "Each row is the model of one language with that language's subnetwork "
                    f"{condition if condition == 'removed' else 'kept alone'}, each column a "
                    "language that it is tested on. "
                    + ("The mean change under random masks of the same size is taken off. "
                       if random else "")
                    + ("Frames: what is lost is specific to the language (q ≤ .05). "
                       if specific and condition == "removed" else "")
                    + "Intervals are in tables/ablation.csv." + of_run,
                )
            )  # fmt: skip
    if has_rows(sweep) and sweep["change"].notna().any():
        shown.append(_sweep_figure(sweep, run))
    tables = []
    if has_rows(specificity):
        columns = [column for column in _VERDICTS if column in specificity.columns]
        rows = specificity[columns].sort_values("value", ascending=False, kind="stable")
        tables.append(
            Table(
                "specificity", "Does removing a language's subnetwork hurt that language most?",
                tidy(rows.rename(columns=_HEADINGS)), rest="tables/specificity.csv",
                caption="Changes of the loss in nats, positive is worse. Specific to own: what the "
                "language's own loss rises more than the others', beyond what random masks of the "
                "same size give. p is the larger of two: over examples, and among random masks.",
            )
        )  # fmt: skip
    return Section(
        "validation", title, figures=shown, tables=tables, lead=_lead(specificity, overall, run),
        method="Removed weights go back to what they were before training (or to zero, where the "
        "masks are of the base itself); heads and neurons are gated by 0. Tested on held-out "
        "examples that neither training nor the search has seen.",
    )  # fmt: skip


def _specific(specificity: pd.DataFrame | None, run: str) -> list[str]:
    if not has_rows(specificity):
        return []
    rows = specificity[(specificity["run"] == run) & specificity["specific"].astype(bool)]
    return [str(label) for label in rows["language"]]


def _lead(specificity: pd.DataFrame | None, overall: pd.DataFrame | None, run: str) -> str:
    """The finding in one sentence, and what it rests on."""
    if not has_rows(specificity):
        return "There were no random masks to compare with, so there is no verdict."
    rows = specificity[specificity["run"] == run]
    tested = rows[rows["testable"].astype(bool)]
    found = _specific(specificity, run)
    if tested.empty:
        return "Too few examples or random masks for a verdict on any language."
    text = (
        f"Removing a language's subnetwork hurts that language more than the others, and more "
        f"than random masks do, for {len(found)} of {len(tested)} languages (q ≤ .05)"
    )
    if found:
        text += f": {', '.join(found[:12])}" + (" …" if len(found) > 12 else "")
    if has_rows(overall):
        row = overall[overall["run"] == run].iloc[0]
        if pd.notna(row["p_value"]):
            text += (
                f". Over all languages the difference is {format_number(row['value'])} nats, "
                f"p = {format_number(row['p_value'])}"
            )
    return text + "."


def _sweep_figure(sweep: pd.DataFrame, run: str) -> Figure:
    here = run if run in set(sweep["run"]) else str(sweep["run"].iloc[0])
    return draw(
        "density-curve", "How much of the subnetwork is needed",
        figures.density_curves(sweep, run=here),
        "The loss of each language's model, on that language's own examples, where only the top "
        "part of what training changed is kept, against the whole: below 0 the part is better than "
        "the whole. Faint lines are languages, the thick ones their mean.",
    )  # fmt: skip
