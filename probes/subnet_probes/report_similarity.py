"""The section that asks how alike languages are represented, before training and after."""

from __future__ import annotations

import pandas as pd

from subnet.figures.drawing import cluster_order
from subnet.report import Figure, Section, Table, draw, format_number, has_rows
from subnet_probes.figures_layers import Panel, similarity_by_layer
from subnet_probes.figures_maps import similarity_map
from subnet_probes.report_selection import mean_over_layers, similarity_moments

TITLE = "How alike languages are represented"
_WORDS = {"cka": "CKA", "retrieval": "retrieval of translations", "svcca": "SVCCA"}
#: Measures that get pictures.
_PICTURED = 2


def similarity_section(
    similarity: pd.DataFrame | None, languages: pd.DataFrame, reason: str = ""
) -> Section:
    """Heat maps at the base and at the end, lines by layer, and every pair.

    Args:
        similarity: Rows of `language_similarity` with `stage`.
        languages: Table of languages, for their names.
        reason: Why there is none.
    """
    moments = {} if not has_rows(similarity) else dict(similarity_moments(similarity))
    if not moments:
        return Section("probes-alike", TITLE, empty_reason=reason or "Not measured.")
    rows = pd.concat([part.assign(moment=name) for name, part in moments.items()])
    measures = list(dict.fromkeys(rows["measure"]))
    pairs = mean_over_layers(rows, ["moment", "measure", "language_a", "language_b"])
    figures: list[Figure] = []
    for measure in measures[:_PICTURED]:
        figures += _maps(pairs[pairs["measure"] == measure], measure, languages)
    if len(set(rows["layer"])) > 1:
        figures.append(
            draw(
                "similarity-layers", "Similarity of two languages by layer",
                similarity_by_layer(
                    [Panel(_name(m), rows[rows["measure"] == m]) for m in measures]
                ),
                "Mean over pairs of languages, with the range that holds 90 % of them; each "
                "measure has a scale of its own. The dotted "
                "line is what shuffled rows of one side give: the measure without what makes items "
                "parallel.",
            )
        )  # fmt: skip
    return Section(
        "probes-alike", TITLE, lead=_lead(pairs, measures), figures=figures,
        tables=[_table(pairs, measures)],
        method="On items that are translations of each other, the same ones for all pairs. CKA is "
        "the unbiased linear one (its value on unrelated rows is about 0, whatever their number); "
        "retrieval is the share of items whose translation is nearest by CSLS, from the language "
        "of the row to that of the column. Pictures and table show the mean over layers, which is "
        "what the relation takes, of the base. Single layers, their standard deviation over "
        "shuffles and p-values are in tables/representation_similarity.csv.",
    )  # fmt: skip


def _maps(pairs: pd.DataFrame, measure: str, languages: pd.DataFrame) -> list[Figure]:
    """One picture per moment, in one order and with one scale."""
    found = {str(moment): _square(part) for moment, part in pairs.groupby("moment", sort=False)}
    first = next(iter(found.values()))
    order = [str(first.index[i]) for i in cluster_order(first)]
    known = pairs[["value", "shuffled"]].astype(float)
    span = float(known.min().min()), float(known.max().max())
    if not span[0] < span[1]:
        span = span[0] - 0.5, span[1] + 0.5
    directed = _is_directed(pairs)
    figures = []
    for moment, square in found.items():
        chance = rounded(float(pairs.loc[pairs["moment"] == moment, "shuffled"].mean()))
        figures.append(
            draw(
                f"similarity-{measure}-{moment}", f"{_capital(_name(measure))} {moment}",
                similarity_map(
                    square.reindex(index=order, columns=order), bar=_name(measure), chance=chance,
                    span=span, directed=directed, languages=languages,
                ),
                "Every pair of languages, mean over layers; alike ones side by side by their "
                "similarity at the base. The mark on the colour bar is the mean with shuffled "
                "rows. Pictures of one measure share their order and their colours.",
            )
        )  # fmt: skip
    return figures


def _square(pairs: pd.DataFrame) -> pd.DataFrame:
    """Language × language; a symmetric measure stands once per pair in the table."""
    labels = list(dict.fromkeys([*pairs["language_a"], *pairs["language_b"]]))
    wide = pairs.pivot_table(index="language_a", columns="language_b", values="value")
    wide = wide.reindex(index=labels, columns=labels)
    return wide if _is_directed(pairs) else wide.where(wide.notna(), wide.T)


def _is_directed(pairs: pd.DataFrame) -> bool:
    ways = set(zip(pairs["language_a"], pairs["language_b"], strict=True))
    return any((b, a) in ways for a, b in ways if a != b)


def _table(pairs: pd.DataFrame, measures: list[str]) -> Table:
    rows = pairs[pairs["measure"] == measures[0]]
    wide = rows.pivot_table(
        index=["language_a", "language_b"], columns="moment", values=["value", "shuffled"],
        sort=False,
    )  # fmt: skip
    moments = list(dict.fromkeys(rows["moment"]))
    table = pd.DataFrame(index=wide.index)
    for moment in moments:
        table[moment] = wide["value"][moment]
        table[f"{moment}, shuffled"] = wide["shuffled"][moment]
    if len(moments) == 2:
        table["change"] = table[moments[1]] - table[moments[0]]
    table = table.sort_values(moments[0], ascending=False).reset_index()
    return Table(
        "similarity", f"Pairs of languages by {_name(measures[0])}", table, limit=30,
        rest="tables/representation_similarity.csv", caption="Mean over layers, the most alike "
        "at the base first, each beside its value with shuffled rows.",
    )  # fmt: skip


def _lead(pairs: pd.DataFrame, measures: list[str]) -> str:
    parts = []
    for measure in measures:
        words = []
        rows = pairs[pairs["measure"] == measure]
        for moment, part in rows.groupby("moment", sort=False):
            value, chance = part["value"].mean(), part["shuffled"].mean()
            words.append(
                f"{format_number(float(value), 3)} {moment} (shuffled rows "
                f"{format_number(rounded(float(chance)), 3)})"
            )
        parts.append(
            f"{_capital(_name(measure))} of two languages is on average {' and '.join(words)}."
        )
    return " ".join(parts)


def rounded(value: float) -> float:
    """To three decimals, so that the noise of a chance value is not written as 10⁻⁴."""
    return round(value, 3) + 0.0


def _name(measure: str) -> str:
    return _WORDS.get(measure, measure.replace("_", " "))


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
