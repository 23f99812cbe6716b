"""The standard sections of a report, from the tables of an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import pandas as pd

from subnet import figures
from subnet.report._format import format_number
from subnet.report._pieces import draw, has_rows, tidy
from subnet.report.content import Figure, HeadlineLike, Section, Table

_LOWER_IS_BETTER = ("loss", "perplexity")
_MOST_METRICS = 3

#: Per kind of overlap: what was compared, and the measures that get pictures where they are there.
_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "masks": ("the parameters that each language uses", ("jaccard", "sign_agreement")),
    "updates": ("the whole change that each language makes", ("cosine", "subspace_similarity")),
    "step_masks": ("what a training stage changed against what each language uses", ("jaccard",)),
    "step_updates": ("a stage's change against each language's", ("cosine",)),
}

#: In words, what the ceiling compares a language with.
_CEILINGS = {
    "other seed": "from another seed",
    "other half": "found on the other half of its examples",
}

_FORGETTING = (
    ("forgetting_since_turn_split_half", "forgetting_since_turn"),
    ("loss_since_start",),
)

_FORGETTING_COLUMNS = (
    "forgetting", "forgetting_split_half", "forgetting_since_turn",
    "forgetting_since_turn_split_half", "loss_since_start", "backward_transfer",
    "forward_transfer", "own_gain", "intransigence", "immediate_effect", "immediate_effect_given",
)  # fmt: skip

_GROUP_COLUMNS = (
    "grouping", "group", "role", "measure", "value", "ci_low", "ci_high", "n", "difference",
    "p_value", "q_value", "reason",
)  # fmt: skip

_HEADINGS = {
    "immediate_effect": "mean effect received",
    "immediate_effect_given": "mean effect given",
}


def standard_sections(
    *,
    languages: pd.DataFrame,
    scores: pd.DataFrame | None = None,
    effects: pd.DataFrame | None = None,
    forgetting: pd.DataFrame | None = None,
    groups: pd.DataFrame | None = None,
    overlaps: Mapping[str, pd.DataFrame] | None = None,
    graph: nx.Graph[Any] | None = None,
    relation: pd.DataFrame | None = None,
    headline: HeadlineLike | None = None,
    metric: str | None = None,
    higher_is_better: Mapping[str, bool] | None = None,
    missing: Mapping[str, str] | None = None,
    relation_caveats: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Section, ...]:
    """Sections on scores, forgetting, overlap and their relation.

    A section without its tables stands with the reason why they are not there.

    Args:
        languages: The table of languages, with `name` and `script_name` where known.
        scores: The table of scores.
        effects: The table of effects.
        forgetting: The table of forgetting.
        groups: The table of groups.
        overlaps: Tables of overlap by what was compared: `masks`, `updates`, `step_masks`,
            `step_updates`.
        graph: Languages that overlap more than chance allows; edges carry `value` or `weight`.
        relation: The table of relations.
        headline: The answer, whose row gives the slope in the picture of the relation.
        metric: Metric of the effects, `loss` or the first if not said.
        higher_is_better: Direction of each metric; those not named are taken by their name.
        missing: Why an analysis (`forgetting`, `overlap`, `relation`) was not possible.
        relation_caveats: What to keep in mind when reading the relation.
        seed: Seed of the layout of the graph.

    Returns:
        The sections `scores`, `forgetting`, `overlap`, `relation`.
    """
    missing = missing or {}
    metrics = list(dict.fromkeys(scores["metric"])) if has_rows(scores) else []
    metric = metric or ("loss" if "loss" in metrics else metrics[0] if metrics else "")
    metrics = sorted(metrics, key=lambda name: name != metric)[:_MOST_METRICS]
    return (
        _scores_section(scores, effects, metrics, languages, higher_is_better or {}, missing),
        _forgetting_section(forgetting, groups, metrics, languages, missing),
        _overlap_section(overlaps or {}, graph, languages, missing, seed),
        _relation_section(
            relation, headline, effects, overlaps or {}, metric, languages, missing,
            relation_caveats,
        ),
    )  # fmt: skip


def _scores_section(
    scores: pd.DataFrame | None,
    effects: pd.DataFrame | None,
    metrics: Sequence[str],
    languages: pd.DataFrame,
    directions: Mapping[str, bool],
    missing: Mapping[str, str],
) -> Section:
    title = "Scores after every stage"
    if not has_rows(scores):
        return Section("scores", title, empty_reason=_reason(missing, "forgetting", "no scores"))
    run = str(scores["run"].iloc[0])
    several = len(scores["run"].unique()) > 1
    of_run = f" Run {run}; the others are in tables/scores.csv." if several else ""
    shown = []
    for metric in metrics:
        rows = scores[(scores["metric"] == metric) & (scores["run"] == run)]
        if rows.empty:
            continue
        higher = directions.get(metric, metric not in _LOWER_IS_BETTER)
        figure = figures.score_matrix(
            scores, metric=metric, run=run, higher_is_better=higher, languages=languages
        )
        shown.append(
            draw(
                f"scores-{metric}", f"{metric.capitalize()} of every language after every stage",
                figure,
                "Each row is a language, in the order of training; each column the state of the "
                "model after a stage. Brighter is better. The frame marks the stage that trained "
                f"the language; an empty cell was not measured.{of_run}",
            )
        )  # fmt: skip
    if has_rows(effects) and metrics:
        rows = effects[(effects["metric"] == metrics[0]) & (effects["run"] == run)]
        rows = rows[rows["trained_language"].fillna("") != ""]
        if len(rows) and rows["value"].notna().any():
            shown.append(
                draw(
                    f"effects-{metrics[0]}", "What training one language did to each other",
                    figures.effect_matrix(effects, metric=metrics[0], run=run, languages=languages),
                    "The change from one stage to the next: positive where the language of the "
                    "column improved while that of the row was trained. Colours end at the 98th "
                    f"percentile.{of_run}",
                )
            )  # fmt: skip
    return Section("scores", title, figures=shown)


def _forgetting_section(
    forgetting: pd.DataFrame | None,
    groups: pd.DataFrame | None,
    metrics: Sequence[str],
    languages: pd.DataFrame,
    missing: Mapping[str, str],
) -> Section:
    title = "What was forgotten"
    if not has_rows(forgetting):
        return Section(
            "forgetting", title, empty_reason=_reason(missing, "forgetting", "no scores")
        )
    metrics = metrics or list(dict.fromkeys(forgetting["metric"]))[:_MOST_METRICS]
    shown, tables = [], []
    several = len(forgetting["run"].unique()) > 1
    bars = "the range over runs" if several else "95 % intervals from the standard errors"
    for metric in metrics:
        rows = forgetting[(forgetting["metric"] == metric) & (forgetting["language"] != "")]
        known = set(rows.loc[rows["value"].notna(), "measure"])
        measures = [next((m for m in names if m in known), "") for names in _FORGETTING]
        measures = [measure for measure in measures if measure]
        if not measures:
            continue
        shown.append(
            draw(
                f"forgetting-{metric}", f"Forgetting per language ({metric})",
                figures.forgetting_by_language(
                    forgetting, metric=metric, measures=measures, languages=languages
                ),
                f"Positive: the language lost. Left ({measures[0].replace('_', ' ')}): from the "
                "best stage since its own turn to the end. "
                + ("" if "split_half" in measures[0] else "Picking the best makes this too large. ")
                + (f"Right ({measures[1].replace('_', ' ')}): from before the sequence to the end. "
                   if len(measures) > 1 else "")
                + f"Bars are {bars}. Colour and shape: script.",
            )
        )  # fmt: skip
    if metrics:
        tables.append(_wide(forgetting, metrics[0], several))
    if has_rows(groups):
        shown += _group_figures(groups, metrics)
        tables.append(_groups_table(groups, metrics[0]))
    return Section(
        "forgetting", title, figures=shown, tables=tables,
        lead="Every measure has its own name and its own blind spot: a language that was trained "
        "last has had no time to be forgotten, and a maximum over stages is biased upward.",
    )  # fmt: skip


def _wide(forgetting: pd.DataFrame, metric: str, several: bool) -> Table:
    """Language × measure, with the reasons of what is undefined."""
    rows = forgetting[(forgetting["metric"] == metric) & (forgetting["language"] != "")]
    columns = [m for m in _FORGETTING_COLUMNS if (rows["measure"] == m).any()]
    labels = list(dict.fromkeys(rows["language"]))
    cells = rows.groupby(["language", "measure"], sort=False)
    values, reasons = (
        found.unstack("measure").reindex(index=labels, columns=columns)  # noqa: PD010
        for found in (cells["value"].mean(), cells["reason"].first())
    )
    values = values.rename(columns=_HEADINGS)
    reasons = reasons.rename(columns=_HEADINGS)
    values.insert(0, "language", values.index)
    return Table(
        "forgetting", f"Measures per language ({metric})", values, reasons=reasons,
        rest="tables/forgetting.csv",
        caption=("Means over runs. " if several else "")
        + "Forgetting and loss are positive, transfer and effects negative, where something was "
        "lost.",
    )  # fmt: skip


def _groups_table(groups: pd.DataFrame, metric: str) -> Table:
    """The plain measures in the order of the table: sorted by p, chance would come first."""
    relative = groups["measure"].str.contains("_relative")
    rows = groups[(groups["metric"] == metric) & ~relative]
    columns = [c for c in _GROUP_COLUMNS if c in groups.columns]
    return Table(
        "groups", f"Groups of languages ({metric})", tidy(rows[columns]), rest="tables/groups.csv",
        caption="Mean of each group with its interval. The difference is that to the other "
        "languages, and p permutes which languages belong to the group. Relative measures and "
        "other metrics are in tables/groups.csv.",
    )  # fmt: skip


def _group_figures(groups: pd.DataFrame, metrics: Sequence[str]) -> list[Figure]:
    own = groups[(groups["metric"] == metrics[0]) & (groups["measure"] == "immediate_effect")]
    if not own["value"].notna().any():
        return []
    return [
        draw(
            f"groups-{metrics[0]}", f"Groups as donors and as receivers ({metrics[0]})",
            figures.group_comparison(groups, metric=metrics[0]),
            "Mean immediate effect of training a language of the group on the others (left) and of "
            "the others on it (right), with 95 % intervals; the number of languages in brackets. "
            "Each p compares the group with all other languages.",
        )
    ]  # fmt: skip


def _overlap_section(
    overlaps: Mapping[str, pd.DataFrame],
    graph: nx.Graph[Any] | None,
    languages: pd.DataFrame,
    missing: Mapping[str, str],
    seed: int,
) -> Section:
    title = "Which languages share which parameters"
    shown: list[Figure] = []
    tables: list[Table] = []
    for kind, frame in overlaps.items():
        what, measures = _KINDS.get(
            kind, (kind.replace("_", " "), tuple(frame["measure"].unique()))
        )
        for measure in measures:
            rows = figures.overlap_rows(frame, measure=measure)
            if rows["value"].notna().any():
                shown += _overlap_figures(frame, kind, measure, what, languages)
                if measure == measures[0]:
                    tables.append(_pairs_table(rows, kind, measure, what))
    if not shown:
        return Section("overlap", title, empty_reason=_reason(missing, "overlap", "no overlap"))
    if graph is not None:
        shown.append(_graph_figure(graph, languages, seed))
    return Section(
        "overlap", title, figures=shown, tables=tables,
        lead="Chance is not zero, and the same language trained twice, or found on two halves of "
        "its examples, does not overlap fully with itself: read every overlap between that floor "
        "and that ceiling.",
        method="Headlines and edges rest on the null model that keeps the structure of a weight "
        "matrix: for masks its rows and columns permuted, for the cosine random signs of its rows, "
        "for subspaces random signs of the coordinates of one. The element null, which takes "
        "weights for exchangeable, rejects far too often; it stands in the table under its own "
        "name. Rows for single modules are in tables/overlap.csv.",
    )  # fmt: skip


def _overlap_figures(
    frame: pd.DataFrame, kind: str, measure: str, what: str, languages: pd.DataFrame
) -> list[Figure]:
    name = measure.replace("_", " ")
    floor, ceiling = figures.overlap_reference(frame, measure=measure)
    lines = []
    if math.isfinite(floor):
        lines.append(f"By chance {format_number(floor)} is expected.")
    if math.isfinite(ceiling):
        lines.append(
            f"The same language {_CEILINGS[figures.ceiling_kind(frame)]} reaches "
            f"{format_number(ceiling)}: no pair of languages can be told to share more than that. "
            "Those values stand on the diagonal."
        )
    elif not kind.startswith("step_"):
        lines.append("No language was trained twice, so how high overlap can go is not known.")
    found = [
        draw(
            f"overlap-{kind}-{measure}", f"{name.capitalize()}: {what}",
            figures.overlap_heat_map(frame, measure=measure, languages=languages),
            "Clustered so that similar languages stand together. " + " ".join(lines),
        )
    ]  # fmt: skip
    layers = figures.overlap_rows(frame, measure=measure, level="layer")
    if len(layers["module"].unique()) > 1 and layers["value"].notna().any():
        found.append(
            draw(
                f"layers-{kind}-{measure}", f"{name.capitalize()} in each layer: {what}",
                figures.overlap_by_layer(frame, measure=measure),
                "Mean over all pairs of languages; the band holds 90 % of the pairs.",
            )
        )  # fmt: skip
    return found


def _pairs_table(rows: pd.DataFrame, kind: str, measure: str, what: str) -> Table:
    kind_of_ceiling = figures.ceiling_kind(rows)
    order = rows.sort_values("value", ascending=False, kind="stable")
    columns = ["run", "language_a", "language_b", "value", "expected", "z", "p_value", "q_value"]
    columns += [c for c in ("position", "reason") if c in rows.columns]
    shown = order[columns].rename(
        columns={"position": f"between chance (0) and {kind_of_ceiling} (1)"}
    )
    null = ", ".join(dict.fromkeys(rows["null"]))
    return Table(
        f"overlap-{kind}", f"Pairs by {measure.replace('_', ' ')}: {what}",
        tidy(shown), rest="tables/overlap.csv",
        caption=f"Largest first, over all parameters. Null model: {null}. A language beside itself "
        f"is the same language {_CEILINGS[kind_of_ceiling]}.",
    )  # fmt: skip


def _graph_figure(graph: nx.Graph[Any], languages: pd.DataFrame, seed: int) -> Figure:
    edges = graph.number_of_edges()
    keys = {key for *_, data in graph.edges(data=True) for key in data}
    # a weight is the strength of a tie, whichever way the measure counts
    value = next((key for key in ("weight", "value") if key in keys), "value")
    pairs = len(graph) * (len(graph) - 1) // (1 if graph.is_directed() else 2)
    measure = str(graph.graph.get("measure", "overlap")).replace("_", " ")
    caption = (
        f"{edges} of {pairs} pairs are joined: those that exceed the "
        "structure-preserving null after correction. The wider an edge, the larger the overlap. "
        "Distances on the page are those of the drawing, not of the languages."
        if edges
        else "No pair of languages exceeds the structure-preserving null after correction."
    )
    return draw(
        "graph", f"Languages that share more than chance allows ({measure})",
        figures.overlap_graph(graph, value=value, languages=languages, seed=seed), caption,
    )  # fmt: skip


def _relation_section(
    relation: pd.DataFrame | None,
    headline: HeadlineLike | None,
    effects: pd.DataFrame | None,
    overlaps: Mapping[str, pd.DataFrame],
    metric: str,
    languages: pd.DataFrame,
    missing: Mapping[str, str],
    caveats: Sequence[str],
) -> Section:
    title = "Does sharing go with forgetting?"
    if not has_rows(relation):
        reason = _reason(missing, "relation", "overlap or scores are not there")
        return Section("relation", title, empty_reason=reason)
    row = headline.row if headline is not None else None
    shown = []
    if row is not None and effects is not None:
        frame = overlaps.get(str(row["predictor"]))
        measure = str(row["measure"])
        if frame is not None:
            pairs = figures.directed_pairs(frame, effects, measure=measure, metric=metric)
            if len(pairs):
                shown.append(_relation_figure(row, pairs, measure, metric, languages))
    order = relation.assign(
        _first=relation["method"] != "mrqap_dsp",
        _module=relation["module"].fillna("") != "",
        _p=relation["p_value"].astype(float),
    ).sort_values(["_module", "_first", "_p"], kind="stable")
    columns = [c for c in relation.columns if c not in {"exact", "n_permutations", "outcome"}]
    return Section(
        "relation", title, figures=shown,
        tables=[
            Table(
                "relation", "Every relation that was tested", tidy(order[columns]),
                rest="tables/relation.csv", limit=40,
                caption="Estimates are standard deviations of the effect per standard deviation of "
                "the predictor, given the controls. Rows over all parameters first. qap ignores "
                "the controls and stands beside the other for comparison only.",
            )
        ],
        method="\n\n".join(caveats),
    )  # fmt: skip


def _relation_figure(
    row: Mapping[str, Any], pairs: pd.DataFrame, measure: str, metric: str, languages: pd.DataFrame
) -> Figure:
    slope = figures.Slope(*(float(row[key]) for key in ("estimate", "ci_low", "ci_high")))
    figure = figures.overlap_against_effect(
        pairs, measure=measure, metric=metric, slope=slope, languages=languages
    )
    return draw(
        "relation", "Overlap and what training one language did to the other", figure,
        f"Each dot is one of {len(pairs)} directed pairs: one language was trained, the other "
        "evaluated before and after, on all items; positive means that it improved. The line is "
        "the slope of the headline, which rests on half of the items where they are known, "
        "given its controls, the band its 95 % interval. Pairs depend on each other, so "
        "the p-value does not count dots: it comes from permuting the names of the languages.",
    )  # fmt: skip


def _reason(missing: Mapping[str, str], name: str, otherwise: str) -> str:
    return missing.get(name) or f"{otherwise.capitalize()}."
