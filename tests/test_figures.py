"""Figures show the numbers of the tables, in any script and on any background."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import matplotlib
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import report_content
from subnet import figures
from subnet.figures import Slope, directed_pairs, overlap_reference
from subnet.figures._frames import overlap_values
from subnet.figures._style import INK, clean, look, text_width
from subnet.figures.heat_maps import cluster_order
from subnet.figures.network import layout

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return report_content.tables(12, awkward=True)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


def drawn_image(figure: Figure) -> np.ndarray:
    image = figure.axes[0].images[0].get_array()
    assert image is not None
    return np.ma.filled(image, np.nan)


def test_labels_stay_text_in_every_script(tables: dict[str, pd.DataFrame]) -> None:
    figure = figures.score_matrix(tables["scores"], metric="loss", languages=tables["languages"])
    svg = figures.to_svg(figure, name="scores", title="<b>scores</b> & more")
    shown = " ".join(texts(svg))
    for label in (
        "العربية",
        "हिन्दी",
        "ภาษาไทย",
        "中文（简体）",
        "fr_$x_1$ & co",
        "_swahili",
        "<script>",
    ):
        assert label in shown
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert ET.fromstring(svg).findtext(f"{SVG}title") == "<b>scores</b> & more"


@pytest.mark.parametrize("label", ["a\x00b", "a\nb", "\ud800x", "$\\frac{1}", "x" * 200, ""])
def test_no_label_breaks_the_drawing(label: str) -> None:
    scores = pd.DataFrame(
        [
            {"run": "main", "stage": s, "trained_language": t, "language": x, "metric": "loss",
             "value": 0.5}
            for s, t in ((0, ""), (1, label))
            for x in (label, "en")
        ]
    )  # fmt: skip
    figure = figures.score_matrix(scores, metric="loss")
    assert ET.fromstring(figures.to_svg(figure, name="x", title="x")) is not None
    assert len(clean(label)) <= 26


def test_same_figure_gives_the_same_bytes_whatever_the_users_style(
    tables: dict[str, pd.DataFrame],
) -> None:
    def draw() -> str:
        figure = figures.forgetting_by_language(
            tables["forgetting"], metric="loss", languages=tables["languages"]
        )
        return figures.to_svg(figure, name="forgetting", title="forgetting")

    first = draw()
    with matplotlib.rc_context({"font.size": 40, "text.parse_math": True, "axes.grid": True}):
        assert draw() == first
    assert not re.search(r"\d{4}-\d\d-\d\d|Matplotlib v", first)


def test_identifiers_are_the_figures_own_and_all_references_resolve(
    tables: dict[str, pd.DataFrame],
) -> None:
    frame = tables["overlap"]
    ids = []
    for name in ("one", "two"):
        svg = figures.to_svg(
            figures.overlap_heat_map(frame, measure="jaccard"),
            name=name,
            title="t",
            description="d",
        )
        found = re.findall(r'\bid="([^"]+)"', svg)
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        labelled = re.findall(r'aria-labelledby="([^"]+)"', svg)[0].split()
        assert set(used) | set(labelled) == set(found)
        ids += found
    assert len(ids) == len(set(ids))


def test_figures_take_the_colour_of_the_page(tables: dict[str, pd.DataFrame]) -> None:
    figure = figures.overlap_by_layer(tables["overlap"], measure="jaccard")
    svg = figures.to_svg(figure, name="layers", title="t")
    assert INK not in svg
    assert "currentColor" in svg
    assert "<style" not in svg  # a style sheet would apply to the whole page
    assert "#ffffff" not in svg


def test_score_matrix_shows_every_cell_and_frames_own_stages(
    tables: dict[str, pd.DataFrame],
) -> None:
    scores = tables["scores"]
    order = list(tables["languages"]["language"])
    figure = figures.score_matrix(scores, metric="accuracy")
    image = drawn_image(figure)
    assert image.shape == (12, 13)
    for row in scores[scores["metric"] == "accuracy"].itertuples():
        shown = image[order.index(row.language), row.stage]
        assert shown == row.value or (math.isnan(shown) and math.isnan(row.value))
    places = {(p.get_y() + 0.5, p.get_x() + 0.5) for p in figure.axes[0].patches}
    assert places == {(i, i + 1) for i in range(12)}


def test_effects_are_centred_on_zero_and_own_cells_are_empty(
    tables: dict[str, pd.DataFrame],
) -> None:
    figure = figures.effect_matrix(tables["effects"], metric="loss")
    image = drawn_image(figure)
    assert np.isnan(np.diag(image)).all()
    norm = figure.axes[0].images[0].norm
    assert norm.vmin == -norm.vmax  # type: ignore[operator]
    rows = tables["effects"].query("metric == 'loss' and stage == 5")
    order = list(tables["languages"]["language"])
    for row in rows.itertuples():
        if row.language != row.trained_language:
            assert image[4, order.index(row.language)] == row.value


def test_clustering_puts_planted_groups_side_by_side() -> None:
    rng = np.random.default_rng(0)
    group = np.array([0, 1, 0, 2, 1, 2, 0, 1])
    values = 0.1 * rng.random((8, 8)) + (group[:, None] == group[None])
    order = cluster_order(pd.DataFrame((values + values.T) / 2))
    assert len(list(itertools.groupby(group[order]))) == 3
    assert sorted(order) == list(range(8))


def test_clustering_survives_pairs_without_a_value() -> None:
    values = pd.DataFrame(np.full((4, 4), np.nan))
    assert cluster_order(values) == [0, 1, 2, 3]
    values.iloc[0, 1] = values.iloc[1, 0] = 0.5
    assert sorted(cluster_order(values)) == [0, 1, 2, 3]


def test_floor_is_the_structure_null_and_ceiling_the_replicates(
    tables: dict[str, pd.DataFrame],
) -> None:
    frame = tables["overlap"]
    rows = frame[(frame["measure"] == "jaccard") & (frame["level"] == "all")]
    rows = rows[rows["null"] == "structure"]
    same = [r.value for r in rows.itertuples() if r.language_a == r.language_b]
    floor, ceiling = overlap_reference(frame, measure="jaccard")
    assert floor == pytest.approx(0.055)  # the element null expects 0.026
    assert ceiling == pytest.approx(sum(same) / len(same))
    svg = figures.to_svg(figures.overlap_heat_map(frame, measure="jaccard"), name="x", title="x")
    assert f"other seed {ceiling:.3g}" in texts(svg)
    assert "chance 0.055" in texts(svg)


def test_symmetric_overlap_is_mirrored_and_directed_overlap_is_not() -> None:
    row = {"run": "main", "source": "masks", "level": "all", "module": "", "measure": "jaccard",
           "expected": 0.1, "null": "structure", "comparison": "between"}  # fmt: skip
    once = pd.DataFrame([row | {"language_a": "de", "language_b": "en", "value": 0.3}])
    assert overlap_values(once, measure="jaccard").loc["en", "de"] == 0.3
    both = pd.DataFrame(
        [
            row | {"language_a": "de", "language_b": "en", "value": 0.3},
            row | {"language_a": "en", "language_b": "de", "value": 0.7},
            row | {"language_a": "de", "language_b": "fr", "value": 0.2},
            row | {"language_a": "en", "language_b": "en", "value": 0.9},  # a step and its adapter
        ]
    )
    values = overlap_values(both, measure="jaccard")
    assert (values.loc["de", "en"], values.loc["en", "de"]) == (0.3, 0.7)
    assert math.isnan(values.loc["fr", "de"])
    assert math.isnan(values.loc["en", "en"])


def test_layer_means_leave_out_replicates(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["overlap"]
    figure = figures.overlap_by_layer(frame, measure="jaccard")
    lines = {line.get_linestyle(): line for line in figure.axes[0].lines}
    for layer in range(6):
        values = [
            r.value
            for r in frame.itertuples()
            if r.measure == "jaccard" and r.module == str(layer) and r.null == "structure"
            and r.language_a != r.language_b
        ]  # fmt: skip
        assert lines["-"].get_ydata()[layer] == pytest.approx(np.mean(values))  # type: ignore[index]


def test_forgetting_is_sorted_with_normal_intervals_and_undefined_is_said(
    tables: dict[str, pd.DataFrame],
) -> None:
    figure = figures.forgetting_by_language(
        tables["forgetting"], metric="loss", measures=["forgetting_since_turn"]
    )
    axes = figure.axes[0]
    dots = [line for line in axes.lines if line.get_marker() not in {"None", ""}]
    values = [float(line.get_xdata()[0]) for line in dots]  # type: ignore[index]
    assert values == sorted(values)
    assert len(values) == 11
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_alpha() == 0.6]
    for value, bar in zip(values, bars, strict=True):
        assert bar.get_xdata() == pytest.approx(
            [value - 1.959964 * 0.03, value + 1.959964 * 0.03], abs=1e-6
        )
    assert [text.get_text() for text in axes.texts] == ["undefined"]


def test_over_runs_the_dot_is_the_mean_and_the_bar_the_range() -> None:
    rows = [
        {"run": run, "language": "de", "metric": "loss", "measure": "forgetting", "value": value,
         "stderr": 0.5}
        for run, value in (("a", 0.1), ("b", 0.2), ("c", 0.6))
    ]  # fmt: skip
    figure = figures.forgetting_by_language(
        pd.DataFrame(rows), metric="loss", measures=["forgetting"]
    )
    bar, dot, _ = figure.axes[0].lines
    assert list(bar.get_xdata()) == [0.1, 0.6]
    assert float(dot.get_xdata()[0]) == pytest.approx(0.3)  # type: ignore[index]


def test_slope_without_controls_is_the_least_squares_line(tables: dict[str, pd.DataFrame]) -> None:
    pairs = directed_pairs(tables["overlap"], tables["effects"], measure="jaccard", metric="loss")
    assert len(pairs) == 12 * 11 - 1  # one score is missing
    r = float(np.corrcoef(pairs["overlap"], pairs["effect"])[0, 1])
    figure = figures.overlap_against_effect(
        pairs, measure="jaccard", metric="loss", slope=Slope(r, r - 0.1, r + 0.1)
    )
    line = next(x for x in figure.axes[0].lines if x.get_linewidth() == 1.4)
    slope, intercept = np.polyfit(pairs["overlap"], pairs["effect"], 1)
    assert line.get_ydata() == pytest.approx(slope * np.asarray(line.get_xdata()) + intercept)


def test_a_pair_stands_at_its_own_overlap_and_effect(tables: dict[str, pd.DataFrame]) -> None:
    pairs = directed_pairs(tables["overlap"], tables["effects"], measure="jaccard", metric="loss")
    row = pairs.iloc[17]
    overlap, effects = tables["overlap"], tables["effects"]
    value = [
        r.value
        for r in overlap.itertuples()
        if r.measure == "jaccard" and r.level == "all" and r.null == "structure"
        and {r.language_a, r.language_b} == {row.trained_language, row.language}
    ]  # fmt: skip
    effect = [
        r.value
        for r in effects.itertuples()
        if (r.trained_language, r.language, r.metric)
        == (row.trained_language, row.language, "loss")
    ]
    assert ([row.overlap], [row.effect]) == (value, effect)


@pytest.mark.parametrize("n", [0, 1, 2, 12, 52])
def test_graph_has_room_for_every_label(n: int) -> None:
    rng = np.random.default_rng(n)
    graph: nx.Graph = nx.gnp_random_graph(n, 0.3, seed=1)
    for a, b in graph.edges():
        graph[a][b]["value"] = rng.random()
    boxes = np.array([[0.28 + text_width("abc"), 0.19]] * n).reshape(-1, 2)
    size = (9.0, 7.0)
    places = layout(graph, boxes, size)
    for i, j in itertools.combinations(range(n), 2):
        apart = np.abs(places[i] - places[j])
        assert (apart > boxes[i] - 0.02).any()
    if n:
        assert (places >= 0).all()
        assert (places + np.array([boxes[0, 0], 0.0]) <= size).all()
    assert (layout(graph, boxes, size) == places).all()


def test_groups_that_were_not_tested_say_so(tables: dict[str, pd.DataFrame]) -> None:
    figure = figures.group_comparison(tables["groups"], metric="loss")
    svg = figures.to_svg(figure, name="groups", title="groups")
    rows = tables["groups"].query("metric == 'loss' and measure == 'immediate_effect'")
    assert texts(svg).count("not tested") == int(rows["p_value"].isna().sum())


def test_scripts_differ_in_colour_or_shape() -> None:
    assert len({look(index) for index in range(49)}) == 49
    assert len({look(index)[1] for index in range(7)}) == 7  # without colour vision, too
