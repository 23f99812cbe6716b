"""The language-level summary: against loops, planted truth, and worlds without any."""

from __future__ import annotations

import io
import itertools
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from subnet import _tables
from subnet.errors import InputError
from subnet.influence._resampling import (
    cluster_interval,
    label_p_values,
    sign_flip_p_value,
    tail_levels,
)
from subnet.influence._shares import share_weights
from subnet.influence.comparison import compare_subnetworks
from subnet.influence.graph import influence_graph
from subnet.influence.summary import summarise

LANGUAGES = ("de", "hi", "sw")
FAST: dict[str, Any] = {"n_resamples": 400, "n_permutations": 199}


def items(counts: dict[str, int], *, parallel: bool = False) -> pd.DataFrame:
    names = [name for name, n in counts.items() for _ in range(n)]
    frame = pd.DataFrame({"language": names})
    if parallel:
        frame["concept"] = [f"c{k}" for n in counts.values() for k in range(n)]
    return frame


def one_hot(frame: pd.DataFrame) -> NDArray[np.bool_]:
    return np.array([[name == other for other in LANGUAGES] for name in frame["language"]])


def cell(table: pd.DataFrame, measure: str, test: str, train: str) -> pd.Series[Any]:
    rows = table[
        (table["measure"] == measure)
        & (table["test_language"] == test)
        & (table["train_language"] == train)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


def share_by_loop(row: NDArray[np.float64], languages: list[str], language: str, m: int) -> float:
    """Mean over every way to break ties among the m largest positive scores."""
    positive = [(score, name) for score, name in zip(row, languages, strict=True) if score > 0]
    k = min(m, len(positive))
    if not k:
        return np.nan
    best = sum(sorted((score for score, _ in positive), reverse=True)[:k])
    shares = [
        sum(name == language for _, name in chosen) / k
        for chosen in itertools.combinations(positive, k)
        if np.isclose(sum(score for score, _ in chosen), best)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("translations", ["keep", "exclude"])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_measures_are_those_of_a_loop(m: int, translations: Any) -> None:
    rng = np.random.default_rng(m)
    test = items({"de": 3, "hi": 2, "sw": 3}, parallel=True)
    train = items({"sw": 2, "de": 4, "hi": 2}, parallel=True)
    test.loc[7, "concept"] = None
    train.loc[0, "concept"] = None
    scores = rng.integers(-3, 4, (8, 8)).astype(float)  # many ties, some zeros
    scores[0] = -np.abs(scores[0])  # an item without a positive score
    table = summarise(scores, test, train, m=m, translations=translations, **FAST)
    for own, other in itertools.product(LANGUAGES, LANGUAGES):
        seen: dict[str, list[float]] = {name: [] for name in ("mean", "top", "bottom", "corpus")}
        chance: dict[str, list[float]] = {"mean": [], "top": [], "bottom": []}
        for i in np.flatnonzero(test["language"] == own):
            concept = test["concept"][i]
            left = [
                j
                for j in range(len(train))
                if translations == "keep" or concept is None or train["concept"][j] != concept
            ]
            names = [train["language"][j] for j in left]
            row = scores[i, left]
            inside = [score for score, name in zip(row, names, strict=True) if name == other]
            seen["mean"].append(float(np.mean(inside)) if inside else np.nan)
            chance["mean"].append(float(row.mean()) if inside else np.nan)
            for key, signed in (("top", row), ("bottom", -row)):
                share = share_by_loop(signed, names, other, m)
                seen[key].append(share)
                chance[key].append(np.nan if np.isnan(share) else len(inside) / len(left))
        for measure, key in (
            ("mean", "mean"), ("share_top_positive", "top"), ("share_bottom_negative", "bottom"),
        ):  # fmt: skip
            found = cell(table, measure, own, other)
            assert found["value"] == pytest.approx(np.nanmean(seen[key]))
            assert found["expected"] == pytest.approx(np.nanmean(chance[key]))
            assert found["n"] == np.isfinite(seen[key]).sum()


def test_the_table_has_the_fixed_columns_and_says_how_it_was_made() -> None:
    test, train = items({"de": 3, "sw": 3}), items({"de": 4, "sw": 4})
    scores = np.random.default_rng(0).standard_normal((6, 8))
    table = summarise(
        scores, test, train, m=2, run="r", checkpoint="c", method="tracin", subnetwork="s", **FAST
    )
    fixed = _tables.COLUMNS["influence"]
    assert tuple(table.columns[: len(fixed)]) == fixed
    assert len(table) == 3 * 2 * 2
    assert set(table["run"]) == {"r"}
    assert set(table["checkpoint"]) == {"c"}
    assert set(table["method"]) == {"tracin"}
    assert set(table["subnetwork"]) == {"s"}
    assert set(table["m"]) == {2}
    again = summarise(
        scores, test.to_dict("records"), train.to_dict("records"), m=2, run="r", checkpoint="c",
        method="tracin", subnetwork="s", **FAST,
    )  # fmt: skip
    pd.testing.assert_frame_equal(table, again)


def test_shares_sum_to_one_and_do_not_depend_on_the_order_of_examples() -> None:
    rng = np.random.default_rng(1)
    test, train = items({"de": 5, "sw": 7}), items({"de": 9, "hi": 6, "sw": 12})
    scores = rng.integers(-4, 5, (12, 27)).astype(float)
    table = summarise(scores, test, train, m=5, **FAST)
    shares = table[table["measure"] != "mean"]
    np.testing.assert_allclose(shares.groupby(["measure", "test_language"])["value"].sum(), 1)
    np.testing.assert_allclose(shares.groupby(["measure", "test_language"])["expected"].sum(), 1)
    rows, columns = rng.permutation(12), rng.permutation(27)
    moved = summarise(
        scores[np.ix_(rows, columns)], test.iloc[rows], train.iloc[columns], m=5, **FAST
    )
    keys = ["measure", "test_language", "train_language"]
    for column in ("value", "expected", "n"):
        np.testing.assert_allclose(
            table.sort_values(keys)[column].to_numpy(float),
            moved.sort_values(keys)[column].to_numpy(float),
        )


def test_blocks_of_a_memory_mapped_array_give_the_same(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, train = items({"de": 5, "sw": 7}), items({"de": 9, "sw": 12})
    scores = np.random.default_rng(2).standard_normal((12, 21)).astype(np.float32)
    whole = summarise(scores, test, train, m=4, **FAST)
    np.save(tmp_path / "scores.npy", scores)
    monkeypatch.setattr("subnet.influence._shares._CHUNK", 50)
    parts = summarise(np.load(tmp_path / "scores.npy", mmap_mode="r"), test, train, m=4, **FAST)
    pd.testing.assert_frame_equal(whole, parts)


def test_blocks_of_one_language_give_a_share_of_one() -> None:
    test = items(dict.fromkeys(LANGUAGES, 6))
    train = items(dict.fromkeys(LANGUAGES, 10))
    same = one_hot(test) @ one_hot(train).T
    scores = np.where(same, 1.0, -1.0) * np.random.default_rng(0).uniform(0.5, 1, same.shape)
    table = summarise(scores, test, train, m=5, n_permutations=999)
    for name, other in itertools.product(LANGUAGES, LANGUAGES):
        own = name == other
        top = cell(table, "share_top_positive", name, other)
        assert top["value"] == pytest.approx(float(own))
        assert top["expected"] == pytest.approx(1 / 3)
        assert (top["ci_low"], top["ci_high"]) == pytest.approx((float(own), float(own)))
        assert cell(table, "share_bottom_negative", name, other)["value"] == pytest.approx(
            0.0 if own else 0.5, abs=0.2
        )
        assert (cell(table, "mean", name, other)["value"] > 0) == own
    graph = influence_graph(table)
    assert all(graph.nodes[name]["found"] for name in LANGUAGES)
    assert all(data["sign"] == -1 for _, _, data in graph.edges(data=True))
    harm = influence_graph(table, "share_bottom_negative")
    assert all(data["sign"] == -1 for _, _, data in harm.edges(data=True))


def test_one_donor_is_found_as_an_edge_and_nothing_else() -> None:
    """Hindi examples help Swahili; all else is noise."""
    rng = np.random.default_rng(3)
    test = items(dict.fromkeys(LANGUAGES, 30))
    train = items(dict.fromkeys(LANGUAGES, 40))
    scores = rng.standard_normal((90, 120))
    scores[np.ix_(test["language"] == "sw", train["language"] == "hi")] += 1.5
    table = summarise(scores, test, train, m=10, n_permutations=1999)
    edges = {(a, b): d["sign"] for a, b, d in influence_graph(table).edges(data=True)}
    assert edges[("hi", "sw")] == 1
    assert set(edges) <= {("hi", "sw"), ("de", "sw")}
    assert edges.get(("de", "sw"), -1) == -1
    whole = influence_graph(table, all_edges=True)
    assert whole.number_of_edges() == 6
    assert max(whole.edges(data="weight"), key=lambda edge: edge[2])[:2] == ("hi", "sw")


@pytest.mark.parametrize(
    "world",
    ["noise", "one large example", pytest.param("heavy tails", marks=pytest.mark.slow)],
)
def test_without_a_relation_intervals_cover_and_nothing_is_found(world: str) -> None:
    """Also where one training example leads every list, which no language is to be blamed for."""
    covered, edges, tables = [], 0, 25
    for seed in range(tables):
        rng = np.random.default_rng(seed)
        test = items(dict.fromkeys(LANGUAGES, 15))
        train = items({"de": 15, "hi": 25, "sw": 40})
        scores = rng.standard_normal((45, 80))
        if world == "one large example":
            scores[:, int(rng.integers(80))] = 100
        elif world == "heavy tails":
            scores *= np.exp(2 * rng.standard_normal(80))
        table = summarise(scores, test, train, m=10, seed=seed, **FAST)
        shares = table[table["measure"] == "share_top_positive"]
        covered += list(shares["expected"].between(shares["ci_low"], shares["ci_high"]))
        for measure in ("mean", "share_top_positive", "share_bottom_negative"):
            edges += influence_graph(read_back(table), measure).number_of_edges()
    if world == "noise":
        assert 0.91 < np.mean(covered) < 0.99
    # 25 tables of three measures with six edges each: at most one table in twenty finds anything
    assert edges <= 0.05 * 3 * tables


def read_back(table: pd.DataFrame) -> pd.DataFrame:
    """As a user has it who reads the file, where empty columns are undefined numbers."""
    return pd.read_csv(io.StringIO(table.to_csv(index=False)))


def test_zero_and_negative_scores_are_never_positive() -> None:
    test, train = items({"de": 2, "sw": 2}), items({"de": 3, "sw": 3})
    scores = np.zeros((4, 6))
    scores[2:, 0] = 1.0
    scores[2:, 1:] = -1.0
    table = summarise(scores, test, train, m=4, **FAST)
    nothing = cell(table, "share_top_positive", "de", "de")
    assert np.isnan(nothing["value"])
    assert np.isnan(nothing["p_value"])
    assert nothing["n"] == 0
    assert nothing["reason"] == "no training example has a positive score"
    assert cell(table, "share_bottom_negative", "de", "sw")["reason"] == (
        "no training example has a negative score"
    )
    # one positive score among four places: it is the whole of what is positive
    assert cell(table, "share_top_positive", "sw", "de")["value"] == 1
    assert cell(table, "share_bottom_negative", "sw", "sw")["value"] == pytest.approx(3 / 5)


def test_ties_for_the_last_places_share_them() -> None:
    weights = share_weights(np.array([[3.0, 1, 1, 1, 0, -1], [1, 1, 1, 1, 1, 1]]), *_all(2, 6), 3)
    np.testing.assert_allclose(weights[0], [1 / 3, 2 / 9, 2 / 9, 2 / 9, 0, 0])
    np.testing.assert_allclose(weights[1], 1 / 6)


def _all(*shape: int) -> tuple[NDArray[np.bool_]]:
    return (np.ones(shape, dtype=bool),)


def test_translations_are_counted_and_can_be_left_out() -> None:
    """Parallel data where an item is influenced by its own translations alone."""
    test = items(dict.fromkeys(LANGUAGES, 5), parallel=True)
    train = items(dict.fromkeys(LANGUAGES, 5), parallel=True)
    same = test["concept"].to_numpy()[:, None] == train["concept"].to_numpy()
    rng = np.random.default_rng(0)
    scores = np.where(same, 10.0, 0.0) + rng.uniform(0.1, 1, same.shape)
    kept = summarise(scores, test, train, m=3, **FAST)
    for name, other in itertools.product(LANGUAGES, LANGUAGES):
        found = cell(kept, "share_top_positive", name, other)
        assert found["value"] == pytest.approx(1 / 3)
        assert found["n_translations"] == (0 if name == other else 5)
        assert found["translations"] == "keep"
    without = summarise(scores, test, train, m=3, translations="exclude", **FAST)
    assert without[without["measure"] == "mean"]["value"].max() < 1
    assert cell(without, "share_top_positive", "de", "hi")["n_translations"] == 5
    # the item's own language loses its example of the concept too: no language is favoured
    own = cell(without, "share_top_positive", "de", "de")
    assert own["expected"] == pytest.approx(1 / 3)


def test_translations_are_no_independent_items() -> None:
    """Several test items of one concept in a language: as many clusters as concepts."""
    test = items({"de": 12})
    test["concept"] = np.repeat(["a", "b", "c"], 4)
    train = items({"de": 5, "sw": 5})
    each = np.random.default_rng(0).standard_normal((3, 10))
    scores = np.repeat(each, 4, axis=0)
    grouped = cell(summarise(scores, test, train, m=3, **FAST), "mean", "de", "sw")
    alone = cell(summarise(scores, test[["language"]], train, m=3, **FAST), "mean", "de", "sw")
    single = cell(summarise(each, test.iloc[::4], train, m=3, **FAST), "mean", "de", "sw")
    assert grouped["n_concepts"] == 3
    assert grouped["n"] == 12
    assert grouped["value"] == pytest.approx(alone["value"])
    assert (grouped["ci_low"], grouped["ci_high"]) == pytest.approx(
        (single["ci_low"], single["ci_high"])
    )
    assert grouped["ci_high"] - grouped["ci_low"] > 1.5 * (alone["ci_high"] - alone["ci_low"])


def test_few_items_and_languages_say_why_nothing_is_known() -> None:
    scores = np.random.default_rng(0).standard_normal((1, 4))
    table = summarise(scores, items({"de": 1}), items({"de": 4}), m=2, **FAST)
    row = cell(table, "mean", "de", "de")
    assert row["value"] == pytest.approx(scores.mean())
    assert np.isnan(row["ci_low"])
    assert np.isnan(row["p_value"])
    assert "no interval: 1 test item" in row["reason"]
    assert "all training examples are of one language" in row["reason"]


class TestResampling:
    def test_the_interval_is_scipys_at_the_same_levels(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.exponential(size=(40, 2))
        low, high = cluster_interval(values, np.arange(40), seed=0, n_resamples=20000)
        level = tail_levels(40)
        for column in range(2):
            expected = stats.bootstrap(
                (values[:, column],), np.mean, n_resamples=20000, method="percentile",
                confidence_level=1 - 2 * level[0], rng=rng,
            ).confidence_interval  # fmt: skip
            assert low[column] == pytest.approx(expected.low, abs=0.01)
            assert high[column] == pytest.approx(expected.high, abs=0.01)

    def test_it_covers_with_few_items_where_the_plain_one_does_not(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.standard_normal((6, 1500))
        low, high = cluster_interval(values, np.arange(6), seed=0, n_resamples=1000)
        assert 0.93 < np.mean((low < 0) & (high > 0)) < 0.97
        draws = values[rng.integers(6, size=(1000, 6))].mean(axis=1)
        plain = np.quantile(draws, [0.025, 0.975], axis=0)
        assert np.mean((plain[0] < 0) & (plain[1] > 0)) < 0.9

    def test_missing_values_are_left_out(self) -> None:
        values = np.array([[1.0, 1], [2, np.nan], [3, 3], [np.nan, 4]])
        low, high = cluster_interval(values, np.arange(4), seed=0, n_resamples=500)
        for column in range(2):
            kept = values[~np.isnan(values[:, column]), column][:, None]
            expected = cluster_interval(kept, np.arange(3), seed=0, n_resamples=500)
            assert (low[column], high[column]) == (expected[0][0], expected[1][0])

    def test_shuffled_labels_are_the_exact_test(self) -> None:
        """Seven columns, two labels: every way to place them."""
        contrasts = np.array([[3.0, 2, 1, -1, -1, -2, -2]])
        labels = np.array([0, 0, 0, 1, 1, 1, 1])
        found = label_p_values(contrasts, labels, 2, seed=0, n_permutations=9999)
        sums = [sum(c) for c in itertools.combinations(contrasts[0], 3)]
        larger = np.mean([value >= 6 for value in sums])
        smaller = np.mean([value <= 6 for value in sums])
        assert found[0, 0] == pytest.approx(2 * min(larger, smaller), abs=0.01)
        assert found[0, 1] == pytest.approx(found[0, 0])

    def test_signs_are_turned_by_cluster(self) -> None:
        values = np.array([1.0, 1, 1, 1, 1, 1])
        assert sign_flip_p_value(values, np.arange(6), seed=0, n_permutations=999) == (
            pytest.approx(2 / 64), pytest.approx(2 / 64),
        )  # fmt: skip
        clustered = sign_flip_p_value(
            values, np.array([0, 0, 1, 1, 2, 2]), seed=0, n_permutations=999
        )
        assert clustered == (pytest.approx(2 / 8), pytest.approx(2 / 8))


class TestComparison:
    test = items(dict.fromkeys(LANGUAGES, 20))
    train = items(dict.fromkeys(LANGUAGES, 30))
    same = one_hot(test) @ one_hot(train).T

    def world(self, seed: int, pull: float) -> NDArray[np.float64]:
        rng = np.random.default_rng(seed)
        return rng.standard_normal(self.same.shape) + pull * self.same

    def compare(self, *scores: Any, **more: Any) -> pd.DataFrame:
        settings: dict[str, Any] = {"m": 10, "n_resamples": 500, "n_permutations": 999, **more}
        return compare_subnetworks(
            *scores, test_items=self.test, train_items=self.train, **settings
        )

    def row(self, table: pd.DataFrame, comparison: str, language: str = "all") -> Any:
        rows = table[
            (table["comparison"] == comparison)
            & (table["test_language"] == language)
            & (table["measure"] == "share_top_positive")
        ]
        assert len(rows) == 1
        return rows.iloc[0]

    def test_a_more_specialised_subnetwork_is_found(self) -> None:
        full, own = self.world(0, 0.2), self.world(1, 1.5)
        other = {name: self.world(5 + k, 0.2) for k, name in enumerate(LANGUAGES)}
        random = [self.world(100 + k, 0.2) for k in range(60)]
        table = self.compare(full, own, other=other, random=random)
        shares = {}
        for name, scores in (("own", own), ("full", full)):
            summary = summarise(scores, self.test, self.train, m=10, **FAST)
            shares[name] = cell(summary, "share_top_positive", "hi", "hi")["value"]
        found = self.row(table, "own - full", "hi")
        assert found["value"] == pytest.approx(shares["own"] - shares["full"])
        assert (found["own"], found["control"]) == pytest.approx((shares["own"], shares["full"]))
        for comparison in ("own - full", "own - random"):
            for language in (*LANGUAGES, "all"):
                row = self.row(table, comparison, language)
                assert row["ci_low"] > 0.1
                assert row["q_value"] < 0.05
        row = self.row(table, "own - random")
        assert row["n_controls"] == 60
        assert row["p_value"] == pytest.approx(2 / 61)
        row = self.row(table, "own - other", "de")
        assert row["n_controls"] == 2  # not its own
        assert row["ci_low"] > 0.1
        assert np.isnan(row["p_value"])
        assert row["reason"] == "no p-value: with 2 control(s) it cannot be below 0.67"

    def test_differences_are_item_by_item_means(self) -> None:
        own, other = self.world(1, 1.0), {n: self.world(7 + k, 0) for k, n in enumerate(LANGUAGES)}
        table = self.compare(self.world(0, 0), own, other=other)

        def share(scores: NDArray[np.float64], i: int) -> float:
            best = np.argsort(-scores[i])[:10]
            return float(self.same[i, best].mean())

        expected = [
            share(own, i) - share(other[name], i)
            for i in range(60)
            for name in LANGUAGES
            if self.test["language"][i] != name
        ]
        found = self.row(table, "own - other")
        assert found["value"] == pytest.approx(np.mean(expected))
        assert found["n"] == 60
        assert found["n_controls"] == 3

    def test_scores_by_language_give_each_item_its_own(self) -> None:
        by_language = {name: self.world(k, 1.0) for k, name in enumerate(LANGUAGES)}
        rows = np.stack([by_language[name][i] for i, name in enumerate(self.test["language"])])
        full = self.world(9, 0)
        pd.testing.assert_frame_equal(self.compare(full, by_language), self.compare(full, rows))
        with pytest.raises(InputError, match="no scores within the subnetwork of sw"):
            self.compare(full, dict.fromkeys(("de", "hi"), full))

    def test_the_same_scores_differ_by_nothing(self) -> None:
        full = self.world(0, 0.5)
        row = self.row(self.compare(full, full), "own - full")
        assert (row["value"], row["ci_low"], row["ci_high"], row["p_value"]) == (0, 0, 0, 1)

    def test_subnetworks_that_do_nothing_are_not_found(self) -> None:
        """Own, full and random are draws of one kind."""
        p_values, covered = [], []
        for seed in range(15):
            worlds = [self.world(1000 * seed + k, 0.5) for k in range(45)]
            table = self.compare(
                worlds[0], worlds[1], random=worlds[2:], n_resamples=100, n_permutations=99
            )
            row = self.row(table, "own - full")
            p_values.append(row["p_value"])
            covered.append(row["ci_low"] <= 0 <= row["ci_high"])
            p_values.append(self.row(table, "own - random")["p_value"])
        assert np.mean(np.array(p_values) < 0.05) < 0.17
        assert np.mean(covered) > 0.8

    def test_one_random_control_is_no_test(self) -> None:
        table = self.compare(self.world(0, 0), self.world(1, 2), random=[self.world(2, 0)])
        row = self.row(table, "own - random")
        assert row["ci_low"] > 0
        assert np.isnan(row["p_value"])
        assert "with 1 control(s) it cannot be below 1" in row["reason"]

    def test_a_test_language_that_was_not_trained_has_no_share_of_its_own(self) -> None:
        train = items({"de": 45, "hi": 45})
        table = compare_subnetworks(
            self.world(0, 0), self.world(1, 0), test_items=self.test, train_items=train, m=5,
            n_resamples=100, n_permutations=99,
        )  # fmt: skip
        row = self.row(table, "own - full", "sw")
        assert np.isnan(row["value"])
        assert row["reason"] == "no test item has both shares"
        assert self.row(table, "own - full")["n"] == 40


class TestGraph:
    def table(self) -> pd.DataFrame:
        test, train = items(dict.fromkeys(LANGUAGES, 6)), items(dict.fromkeys(LANGUAGES, 9))
        same = one_hot(test) @ one_hot(train).T
        return summarise(np.where(same, 1.0, -1.0), test, train, m=4, n_permutations=999)

    def test_it_can_be_written_and_read(self, tmp_path: Any) -> None:
        graph = influence_graph(self.table())
        assert graph.is_directed()
        nx.write_graphml_xml(graph, tmp_path / "g.graphml")
        back = nx.read_graphml(tmp_path / "g.graphml")
        assert set(back.nodes) == set(LANGUAGES)
        assert dict(back.edges) == dict(graph.edges)

    def test_attributes(self) -> None:
        graph = influence_graph(self.table())
        assert graph.graph == {
            "measure": "share_top_positive", "alpha": 0.05, "edges_shown": "significant",
        }  # fmt: skip
        edge = graph.edges["de", "sw"]
        assert edge["value"] == 0
        assert edge["weight"] == pytest.approx(1 / 3)
        assert graph.nodes["de"]["value"] == pytest.approx(1)

    def test_several_results_are_not_mixed(self) -> None:
        both = pd.concat([self.table(), self.table().assign(method="other")])
        with pytest.raises(InputError, match="several of method; expected one result"):
            influence_graph(both)
        with pytest.raises(InputError, match="no measure 'median'; expected mean or share_bottom"):
            influence_graph(self.table(), "median")


class TestBadInput:
    scores = np.zeros((2, 3))
    test = items({"de": 2})
    train = items({"de": 2, "sw": 1})

    def test_tables_that_do_not_fit(self) -> None:
        with pytest.raises(InputError, match=r"scores are \[2, 3\] for 3 test and 2 training"):
            summarise(self.scores, self.train, self.test)
        with pytest.raises(InputError, match=r"scores are \[0, 3\] for 0 test and 3"):
            summarise(np.zeros((0, 3)), self.test.iloc[:0], self.train)
        with pytest.raises(InputError, match="the training items have no column 'language'"):
            summarise(self.scores, self.test, pd.DataFrame({"lang": ["a"] * 3}))
        with pytest.raises(InputError, match="training item 1 names no language"):
            summarise(self.scores, self.test, pd.DataFrame({"language": ["de", None, "sw"]}))

    def test_settings(self) -> None:
        with pytest.raises(InputError, match="m is 4; expected 1 to 3"):
            summarise(self.scores, self.test, self.train, m=4)
        with pytest.raises(InputError, match="translations is 'drop'; expected 'keep' or"):
            summarise(self.scores, self.test, self.train, m=1, translations="drop")  # type: ignore[arg-type]

    def test_scores_that_are_no_numbers(self) -> None:
        scores = self.scores.copy()
        scores[1, 2] = np.nan
        with pytest.raises(InputError, match="training example 2 for test item 1 is nan"):
            summarise(scores, self.test, self.train, m=1)

    def test_nothing_left(self) -> None:
        test = self.test.assign(concept=["a", "b"])
        train = self.train.assign(concept="b")
        with pytest.raises(
            InputError, match="every training example has the concept of test item 1"
        ):
            summarise(self.scores, test, train, m=1, translations="exclude")
