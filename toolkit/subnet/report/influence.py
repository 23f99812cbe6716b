"""The section that asks whose training examples moved whose predictions."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pandas as pd

from subnet import figures
from subnet.report._format import format_number
from subnet.report._pieces import draw, has_rows, tidy
from subnet.report.content import Figure, Section, Table

_TITLE = "Whose examples moved whose predictions"
_PAIRS = (
    "train_language", "test_language", "value", "expected", "ci_low", "ci_high", "p_value",
    "q_value", "n", "reason",
)  # fmt: skip
_COMPARED = (
    "comparison", "measure", "test_language", "value", "ci_low", "ci_high", "p_value", "q_value",
    "own", "control", "n", "n_controls", "reason",
)  # fmt: skip
_HEADINGS = {
    "train_language": "trained on",
    "test_language": "tested",
    "expected": "by chance",
    "own": "within own",
    "control": "within the other",
    "n_controls": "controls",
}
_AGAINST = {
    "own - full": "the full model",
    "own - other": "those of other languages",
    "own - random": "random ones of its size",
}
_SHARES = ("share_top_positive", "share_bottom_negative")


def influence_section(
    influence: pd.DataFrame | None,
    comparison: pd.DataFrame | None = None,
    *,
    graph: nx.DiGraph[Any] | None = None,
    languages: pd.DataFrame | None = None,
    missing: str = "",
    seed: int = 0,
) -> Section:
    """Influence between languages, how much of it is in-language, and within subnetworks.

    Args:
        influence: The table `influence`. The first run, method and subnetwork of it is shown.
        comparison: From `subnet.influence.comparison.compare_subnetworks`.
        graph: From `subnet.influence.graph.influence_graph`.
        languages: The table of languages, for their names.
        missing: Why it was not computed.
        seed: Seed of the layout of the graph.
    """
    if not has_rows(influence):
        return Section("influence", _TITLE, empty_reason=missing or "Not computed.")
    rows = _first(influence)
    with_shares = set(_SHARES) <= set(rows["measure"])
    shown = [_matrix(rows, "mean", languages)]
    tables = []
    if with_shares:
        shown.append(_matrix(rows, "share_top_positive", languages))
        own = rows[rows["train_language"] == rows["test_language"]]
        if own["value"].notna().any():
            shown.append(_shares(rows, languages))
        tables.append(_pairs(rows, "share_top_positive"))
    else:
        tables.append(_pairs(rows, "mean"))
    if graph is not None:
        shown.append(_graph(graph, languages, seed))
    if has_rows(comparison):
        tables.append(_compared(comparison))
    several = len(influence) > len(rows)
    return Section(
        "influence", _TITLE, figures=shown, tables=tables, lead=_lead(rows, comparison),
        method=_method(rows)
        + (" Further runs and subnetworks are in tables/influence.csv." if several else ""),
    )  # fmt: skip


def _first(influence: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first result."""
    keep = pd.Series(data=True, index=influence.index)
    for column in ("run", "method", "subnetwork", "checkpoint"):
        keep &= influence[column].fillna("") == influence[column].fillna("").iloc[0]
    found: pd.DataFrame = influence[keep]
    return found


def _matrix(rows: pd.DataFrame, measure: str, languages: pd.DataFrame | None) -> Figure:
    if measure == "mean":
        title = "Mean influence of one language's examples on another's"
        caption = (
            "Positive: training on examples of the row lowered the loss on test examples of the "
            "column. Scores are as large as losses and gradients are, so that columns are better "
            "compared by their order than by their size."
        )
    else:
        title = "Whose examples are among the most helpful"
        caption = (
            f"The share of the row among the {_m(rows)} most helpful training examples of each "
            "test example of the column, less its share of the corpus. Frames: q ≤ .05 against "
            "shuffled languages."
        )
    return draw(
        f"influence-{measure}", title,
        figures.influence_matrix(rows, measure=measure, languages=languages),
        f"{caption} Colours end at the 98th percentile of pairs of two languages.",
    )  # fmt: skip


def _shares(rows: pd.DataFrame, languages: pd.DataFrame | None) -> Figure:
    return draw(
        "influence-own", "How much of what helps, and of what harms, is in-language",
        figures.own_shares(rows, languages=languages),
        f"Share of a language's own examples among the {_m(rows)} most helpful (left) and the "
        f"{_m(rows)} most harmful (right) training examples of its test examples, with 95 % "
        "intervals over test examples. The line across is the share of the corpus, which chance "
        "gives. Filled: q ≤ .05.",
    )  # fmt: skip


def _graph(graph: nx.DiGraph[Any], languages: pd.DataFrame | None, seed: int) -> Figure:
    edges = graph.number_of_edges()
    pairs = len(graph) * (len(graph) - 1)
    caption = (
        f"{edges} of {pairs} directed pairs are joined: those whose share of the most helpful "
        "examples differs from chance (q < .05, and an interval without it). An arrow leads from "
        "the language trained on to the language tested; the wider, the further from chance. "
        "Distances on the page are those of the drawing."
        if edges
        else "No pair of languages differs from chance after correction."
    )
    return draw(
        "influence-graph", "Languages whose examples help others more, or less, than chance",
        figures.influence_graph(graph, languages=languages, seed=seed), caption,
    )  # fmt: skip


def _pairs(rows: pd.DataFrame, measure: str) -> Table:
    part = rows[rows["measure"] == measure]
    by_chance = "expected" in part
    size = part["value"] - part["expected"] if by_chance else part["value"]
    order = part.assign(_size=size.abs()).sort_values("_size", ascending=False, kind="stable")
    columns = [column for column in _PAIRS if column in part.columns]
    captions = {
        "mean": "Largest first. Intervals are over blocks of training and test examples.",
        "share_top_positive": "The furthest from chance first. p shuffles the languages of the "
        "training examples, so one example that leads every list makes no finding.",
    }
    titles = {
        "mean": "Pairs by mean influence",
        "share_top_positive": f"Pairs by share of the {_m(rows)} most helpful examples",
    }
    return Table(
        "influence", titles[measure], tidy(order[columns].rename(columns=_HEADINGS)),
        rest="tables/influence.csv", limit=40, caption=captions[measure],
    )  # fmt: skip


def _compared(comparison: pd.DataFrame) -> Table:
    rows = comparison.assign(_whole=comparison["test_language"] != "all")
    rows = rows.sort_values("_whole", kind="stable")
    columns = [column for column in _COMPARED if column in rows.columns]
    return Table(
        "influence-subnetworks", "In-language share within a language's own subnetwork",
        tidy(rows[columns].rename(columns=_HEADINGS)), rest="comparison.csv", limit=40,
        caption="Difference of the in-language share where gradients are restricted to the test "
        "language's subnetwork, against the full model, the subnetworks of other languages and "
        "random ones of the same size in each module. all: items of every language together.",
    )  # fmt: skip


def _m(rows: pd.DataFrame) -> int:
    return int(rows["m"].dropna().iloc[0]) if "m" in rows and rows["m"].notna().any() else 0


def _lead(rows: pd.DataFrame, comparison: pd.DataFrame | None) -> str:
    """The finding in a few sentences."""
    own = rows[rows["train_language"] == rows["test_language"]]
    parts = []
    if set(_SHARES) <= set(rows["measure"]):
        for measure, words in zip(_SHARES, ("helpful", "harmful"), strict=True):
            part = own[(own["measure"] == measure) & own["value"].notna()]
            if part.empty:
                continue
            above = part[(part["q_value"] <= 0.05) & (part["value"] > part["expected"])]
            names = [str(x) for x in above["test_language"]]
            text = (
                f"Of the {_m(rows)} most {words} training examples of a test example "
                f"{_percent(part['value'].mean())} are in-language on average, where chance gives "
                f"{_percent(part['expected'].mean())}; it is more than chance (q ≤ .05) for "
                f"{len(names)} of {len(part)} languages"
            )
            text += f": {', '.join(names[:12])}{' …' if len(names) > 12 else ''}" * bool(names)
            parts.append(f"{text}.")
    else:
        part = own[(own["measure"] == "mean") & own["ci_low"].notna()]
        above = part[part["ci_low"] > 0]
        parts.append(
            f"A language's own examples lowered its loss, by an interval above 0, for "
            f"{len(above)} of {len(part)} languages."
        )
    if has_rows(comparison):
        whole = comparison[
            (comparison["test_language"] == "all") & (comparison["measure"] == _SHARES[0])
        ]
        parts += [
            "The in-language share among the most helpful, within the own subnetwork against "
            f"{_AGAINST.get(str(row['comparison']), row['comparison'])}: "
            f"{format_number(row['value'], 3)} "
            f"[{format_number(row['ci_low'], 3)}, {format_number(row['ci_high'], 3)}]."
            for row in whole.to_dict("records")
        ]
    return " ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * float(share):.1f} %"


def _method(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    text = (
        f"Method {first['method']}, {first['checkpoint']}: a score says how much training on an "
        "example lowers the loss on a test example, to first order, at the checkpoints of the "
        "stage that trained on it. Dropout is off, and what the optimiser made of gradients is "
        "left out unless the method says so. Long examples and examples of high loss have large "
        "gradients and dominate products: look at cosine beside it (subnet attribute --method "
        "cosine), and at bm25, which uses no gradients. Scores are of the test examples that other "
        "sections measure loss on, so that what they share with measured effects includes the "
        "choice of these examples."
    )
    translations = rows.get("n_translations")
    if translations is not None and float(translations.fillna(0).sum()) > 0:
        kept = str(first.get("translations", "keep")) == "keep"
        text += (
            " Some training examples say the same as a test example in another language; they "
            + ("count like any other." if kept else "are left out.")
        )
    return text
