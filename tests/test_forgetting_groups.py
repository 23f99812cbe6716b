"""Groups of languages: planted differences are found, exchangeable languages are not told apart."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from forgetting_scores import METRICS, long, value
from subnet import _tables
from subnet.forgetting import measure_forgetting

LANGUAGES = [f"l{j:02d}" for j in range(16)]
LATIN = {lang: "Latin" if j % 2 else "non-Latin" for j, lang in enumerate(LANGUAGES)}

COMPARED = ("immediate_effect", "immediate_effect_given", "loss_since_start", "forgetting")


def sequence(seed, *, received=0.0, given=0.0, runs=1, noise=0.02):
    """Runs in random orders; non-Latin languages receive, and Latin ones give, a change."""
    rng = np.random.default_rng(seed)
    n = len(LANGUAGES)
    latin = np.array([LATIN[lang] == "Latin" for lang in LANGUAGES])
    frames, orders = [], {}
    for run in range(runs):
        turns = rng.permutation(n)
        change = rng.normal(0, noise, size=(n, n))  # trained × language
        change += received * ~latin + given * latin[:, None]
        np.fill_diagonal(change, 0.2)
        scores = 0.5 + rng.normal(0, 0.1, size=n) + np.cumsum([np.zeros(n), *change[turns]], axis=0)
        frames.append(long(scores, LANGUAGES, run=f"order{run}"))
        orders[f"order{run}"] = [LANGUAGES[i] for i in turns]
    return measure_forgetting(pd.concat(frames), order=orders, metrics=METRICS)


def row(groups, group, role, measure, grouping="latin"):
    found = groups[
        (groups["grouping"] == grouping)
        & (groups["group"] == group)
        & (groups["role"] == role)
        & (groups["measure"] == measure)
    ]
    assert len(found) == 1
    return found.iloc[0]


def test_a_group_that_others_damage_is_found_as_receiver_and_not_as_donor():
    found = sequence(0, received=-0.03, runs=3).groups({"latin": LATIN})
    damaged = row(found, "non-Latin", "receiver", "immediate_effect")
    assert damaged["value"] == pytest.approx(-0.03, abs=0.006)
    assert damaged["difference"] == pytest.approx(-0.03, abs=0.006)
    assert damaged["ci_low"] < damaged["value"] < damaged["ci_high"] < 0
    assert damaged["p_value"] < 0.001
    assert damaged["q_value"] < 0.01
    assert row(found, "non-Latin", "receiver", "loss_since_start")["difference"] > 0.2
    assert row(found, "non-Latin", "receiver", "loss_since_start")["p_value"] < 0.001
    assert row(found, "non-Latin", "donor", "immediate_effect")["p_value"] > 0.02


def test_a_group_whose_training_helps_others_is_found_as_donor_and_not_as_receiver():
    found = sequence(1, given=0.03, runs=3).groups({"latin": LATIN})
    donors = row(found, "Latin", "donor", "immediate_effect")
    assert donors["value"] == pytest.approx(0.03, abs=0.006)
    assert donors["p_value"] < 0.001
    assert row(found, "Latin", "receiver", "immediate_effect")["p_value"] > 0.02


def test_exchangeable_languages_are_told_apart_about_as_often_as_chance_allows():
    p_values = {("receiver", measure.removesuffix("_given")): [] for measure in COMPARED}
    p_values["donor", "immediate_effect"] = []
    for seed in range(100):
        found = sequence(seed)
        some = found.frame[found.frame["measure"].isin(COMPARED)]
        found = replace(found, frame=some).groups({"latin": LATIN}, n_permutations=199)
        for (role, measure), collected in p_values.items():
            collected.append(row(found, "Latin", role, measure)["p_value"])
    for collected in p_values.values():
        # at most 8 %, and the p-values are spread as those of a null are
        assert np.mean(np.array(collected) <= 0.05) <= 0.08
        assert stats.kstest(collected, "uniform").pvalue > 0.001


def test_values_and_counts_are_those_of_the_table_of_measures():
    found = sequence(2, runs=2)
    groups = found.groups({"latin": LATIN}, n_permutations=99)
    assert tuple(groups.columns[: len(_tables.COLUMNS["groups"])]) == _tables.COLUMNS["groups"]
    for role, source in [("receiver", "immediate_effect"), ("donor", "immediate_effect_given")]:
        each = {
            lang: np.mean([value(found, source, lang, run=run) for run in found.runs])
            for lang in LANGUAGES
        }
        latin = [each[lang] for lang in LANGUAGES if LATIN[lang] == "Latin"]
        rest = [each[lang] for lang in LANGUAGES if LATIN[lang] != "Latin"]
        got = row(groups, "Latin", role, "immediate_effect")
        assert got["value"] == pytest.approx(np.mean(latin))
        assert got["difference"] == pytest.approx(np.mean(latin) - np.mean(rest))
        assert (got["n"], got["n_others"]) == (8, 8)
    assert "average_accuracy" not in set(groups["measure"])
    assert "intransigence" not in set(groups["measure"])  # nothing to compare
    assert not groups["measure"].str.contains("given").any()


def test_two_groups_mirror_each_other():
    groups = sequence(3).groups({"latin": LATIN}, n_permutations=99)
    a, b = (row(groups, g, "receiver", "loss_since_start") for g in ("Latin", "non-Latin"))
    assert a["difference"] == pytest.approx(-b["difference"])
    assert a["p_value"] == pytest.approx(b["p_value"], abs=0.15)


def test_q_values_are_over_the_whole_table():
    groups = sequence(4, received=-0.02).groups({"latin": LATIN})
    p = groups["p_value"].to_numpy()
    expected = multipletests(p[~np.isnan(p)], method="fdr_bh")[1]
    np.testing.assert_allclose(groups["q_value"][~np.isnan(p)], expected)


def test_a_group_of_one_language_has_a_value_and_a_reason_in_place_of_a_p_value():
    script = dict.fromkeys(LANGUAGES, "Latn") | {"l03": "Thai"}
    groups = sequence(5).groups({"script": script}, n_permutations=99)
    one = row(groups, "Thai", "receiver", "immediate_effect", "script")
    assert not math.isnan(one["value"])
    assert math.isnan(one["p_value"])
    assert math.isnan(one["ci_low"])
    assert one["reason"] == "the group has one language only"
    assert one["n"] == 1
    rest = row(groups, "Latn", "receiver", "immediate_effect", "script")
    assert rest["reason"] == "fewer than two languages outside the group have a value"
    assert not math.isnan(rest["ci_low"])


def test_languages_without_a_group_are_left_out_and_one_group_alone_has_nothing_to_differ_from():
    family = dict.fromkeys(LANGUAGES[:5], "A") | {LANGUAGES[5]: ""}
    groups = sequence(6).groups({"family": family}, n_permutations=99)
    assert set(groups["group"]) == {"A"}
    one = row(groups, "A", "receiver", "immediate_effect", "family")
    assert (one["n"], one["n_others"]) == (5, 0)
    assert one["reason"] == "every language belongs to 'A'"
    assert math.isnan(one["p_value"])
    nothing = sequence(6).groups({"family": {}})
    assert nothing.empty
    assert list(nothing.columns) == list(_tables.COLUMNS["groups"])


def test_languages_whose_measure_is_undefined_are_left_out_of_it_alone():
    found = sequence(7)
    groups = found.groups({"latin": LATIN}, n_permutations=99)
    last = found.effects.loc[found.effects["stage"].idxmax(), "trained_language"]
    assert row(groups, LATIN[last], "receiver", "backward_transfer")["n"] == 7
    assert row(groups, LATIN[last], "receiver", "immediate_effect")["n"] == 8


def test_groups_repeat_with_the_seed():
    a, b = (sequence(8).groups({"latin": LATIN}, n_permutations=99) for _ in range(2))
    pd.testing.assert_frame_equal(a, b)
