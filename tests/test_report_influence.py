"""The section on influence: its figures show the table, and its words count what is there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import report_content
from subnet import figures
from subnet.influence.graph import influence_graph
from subnet.influence.summary import summarise
from subnet.report import influence_section

LABELS = ["de", "fr", "ru", "ar"]


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    return report_content.influence_tables(LABELS)


def _image(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array(), dtype=float)


def test_rows_are_trained_on_and_columns_tested(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["influence"]
    frame.loc[
        (frame["train_language"] == "de") & (frame["test_language"] == "ar")
        & (frame["measure"] == "mean"), "value",
    ] = 9.5  # fmt: skip
    figure = figures.influence_matrix(frame, measure="mean")
    assert _image(figure)[0, 3] == 9.5
    assert (_image(figure) == 9.5).sum() == 1
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == LABELS
    assert axes.get_title(loc="left") == "rows: language trained on; columns: language tested"


def test_shares_are_shown_against_the_corpus_and_the_scale_is_that_of_pairs(
    tables: dict[str, pd.DataFrame],
) -> None:
    frame = tables["influence"]
    figure = figures.influence_matrix(frame, measure="share_top_positive")
    rows = frame[frame["measure"] == "share_top_positive"]
    expected = rows.pivot_table(index="train_language", columns="test_language", values="value")
    expected = expected.loc[LABELS, LABELS].to_numpy() - 1 / len(LABELS)
    np.testing.assert_allclose(_image(figure), expected)
    between = np.abs(expected[~np.eye(len(LABELS), dtype=bool)])
    norm = figure.axes[0].images[0].norm
    assert norm.vmax == -norm.vmin == pytest.approx(np.quantile(between, 0.98))
    framed = {  # each frame is two rectangles
        (round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in figure.axes[0].patches
    }
    sure = rows[rows["q_value"] <= 0.05]
    assert framed == {
        (LABELS.index(r.train_language), LABELS.index(r.test_language)) for r in sure.itertuples()
    }


def test_a_language_without_training_examples_has_a_column_and_no_row() -> None:
    train = [{"language": "de"}, {"language": "fr"}] * 3
    test = [{"language": "de"}, {"language": "sw"}] * 2
    table = summarise(np.random.default_rng(0).normal(size=(4, 6)), test, train, m=2)
    assert _image(figures.influence_matrix(table)).shape == (2, 2)
    section = influence_section(table)
    assert "for 0 of 1 languages" in section.lead


def test_own_shares_stand_in_order_with_their_interval_and_chance(
    tables: dict[str, pd.DataFrame],
) -> None:
    figure = figures.own_shares(tables["influence"])
    own = tables["influence"].query(
        "train_language == test_language and measure == 'share_top_positive'"
    )
    panel = figure.axes[1]
    order = own.sort_values("value")
    assert [text.get_text() for text in panel.get_yticklabels()] == list(order["test_language"])
    lines = [np.asarray(line.get_xdata(), dtype=float) for line in panel.lines]
    np.testing.assert_allclose([x[0] for x in lines if len(x) == 1], order["value"])
    np.testing.assert_allclose(lines[0], order[["ci_low", "ci_high"]].iloc[0])
    np.testing.assert_allclose(lines[1], 1 / len(LABELS))


def test_arrows_lead_from_the_trained_to_the_tested_language() -> None:
    items = [{"language": name} for name in ("de", "fr", "ru") for _ in range(10)]
    scores = np.random.default_rng(1).normal(size=(30, 30))
    scores[10:20, :10] += 5  # de helps fr
    graph = influence_graph(summarise(scores, items, items, m=5))
    helps = [(a, b) for a, b, data in graph.edges(data=True) if data["sign"] > 0]
    assert helps == [("de", "fr")]
    figure = figures.influence_graph(graph)
    axes = figure.axes[0]
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    assert len(arrows) == graph.number_of_edges()
    place = {text.get_text(): text.get_position()[1] for text in axes.texts if text.get_text()}
    solid = [a for a in arrows if a.arrow_patch.get_linestyle() in ("-", "solid")]
    (arrow,) = solid
    assert arrow.xyann[1] == pytest.approx(place["de"])
    assert arrow.xy[1] == pytest.approx(place["fr"])
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[-2:] == ["helps more than chance", "helps less than chance"]


def test_the_lead_counts_languages_and_states_the_comparisons(
    tables: dict[str, pd.DataFrame],
) -> None:
    frame = tables["influence"]
    own = (frame["train_language"] == frame["test_language"]) & (
        frame["measure"] == "share_top_positive"
    )
    frame.loc[own, "q_value"] = [0.01, 0.5, 0.5, 0.02]
    frame.loc[own, "value"] = [0.5, 0.5, 0.3, 0.3]
    section = influence_section(**tables)
    assert "40.0 % are in-language on average, where chance gives 25.0 %" in section.lead
    assert "for 2 of 4 languages: de, ar." in section.lead
    assert "against the full model" in section.lead
    assert "0.120 [0.050, 0.190]" in section.lead
    assert {table.name for table in section.tables} == {"influence", "influence-subnetworks"}
    assert "count like any other" in section.method


def test_a_share_below_chance_is_not_counted_as_above(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["influence"]
    own = (frame["train_language"] == frame["test_language"]) & (
        frame["measure"] == "share_top_positive"
    )
    frame.loc[own, ["value", "q_value"]] = [0.01, 0.001]
    assert "for 0 of 4 languages" in influence_section(frame).lead


def test_language_level_shows_means_alone(tables: dict[str, pd.DataFrame]) -> None:
    means = tables["influence"].query("measure == 'mean'")
    means = means.drop(columns=["expected", "p_value", "q_value", "m", "n_translations"])
    section = influence_section(means)
    assert [figure.name for figure in section.figures] == ["influence-mean"]
    assert "for 4 of 4 languages" in section.lead


def test_one_result_of_several_is_shown(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["influence"]
    both = pd.concat([frame, frame.assign(subnetwork="own", value=7.0)], ignore_index=True)
    section = influence_section(both)
    assert section.lead == influence_section(frame).lead
    assert "Further runs and subnetworks are in tables/influence.csv." in section.method


def test_what_was_not_computed_says_why() -> None:
    assert influence_section(None, missing="Add train.jsonl.").empty_reason == "Add train.jsonl."
