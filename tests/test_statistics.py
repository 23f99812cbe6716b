"""The conventions that every room shares: corrections, intervals, tests, tables."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from subnet import _statistics as statistics
from subnet import _tables as tables


def test_q_values_are_those_of_statsmodels_and_undefined_p_values_are_no_part_of_the_family():
    rng = np.random.default_rng(0)
    p = rng.random(40) ** 2
    expected = multipletests(p, method="fdr_bh")[1]
    np.testing.assert_allclose(statistics.adjust_p_values(p), expected, rtol=1e-12)
    holes = np.insert(p, [0, 7, 40], np.nan)
    q = statistics.adjust_p_values(holes)
    assert np.isnan(q[np.isnan(holes)]).all()
    np.testing.assert_allclose(q[~np.isnan(holes)], expected, rtol=1e-12)
    assert np.isnan(statistics.adjust_p_values([np.nan, np.nan])).all()
    assert statistics.adjust_p_values([]).size == 0


def test_a_bootstrap_interval_of_a_mean_is_near_the_normal_one_and_repeats():
    sample = np.random.default_rng(1).normal(3, 2, size=400)
    low, high = statistics.bootstrap_interval(sample, seed=5)
    expected = stats.norm.interval(0.95, sample.mean(), stats.sem(sample))
    np.testing.assert_allclose((low, high), expected, atol=0.03)
    assert (low, high) == statistics.bootstrap_interval(sample, seed=5)
    assert (low, high) != statistics.bootstrap_interval(sample, seed=6)
    assert statistics.bootstrap_interval(list(sample), seed=5) == (low, high)


def test_a_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        sample = np.random.default_rng(seed).normal(size=40)
        low, high = statistics.bootstrap_interval(sample, seed=seed, n_resamples=500)
        covered += low <= 0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_paired_bootstrap_keeps_pairs_together():
    x = np.random.default_rng(2).normal(size=60)
    y = x + 0.5

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    low, high = statistics.bootstrap_interval([x, y], difference, seed=0, paired=True)
    np.testing.assert_allclose([low, high], -0.5)
    low, high = statistics.bootstrap_interval([x, y], difference, seed=0)
    assert high - low > 0.3


def test_an_interval_of_one_value_is_undefined_and_of_equal_values_a_point():
    assert all(map(math.isnan, statistics.bootstrap_interval([1.0], seed=0)))
    assert all(map(math.isnan, statistics.bootstrap_interval([], seed=0)))
    assert statistics.bootstrap_interval([2.0, 2.0, 2.0], seed=0) == (2.0, 2.0)


def test_an_exact_group_test_is_the_enumeration_of_all_groups():
    rng = np.random.default_rng(3)
    y = rng.normal(size=9)
    members = np.array([1, 0, 0, 1, 1, 0, 0, 0, 1], dtype=bool)
    found = statistics.group_difference(y, members, seed=0)

    def difference(chosen):
        inside = np.isin(np.arange(9), chosen)
        return y[inside].mean() - y[~inside].mean()

    observed = difference(np.flatnonzero(members))
    every = np.array([difference(chosen) for chosen in itertools.combinations(range(9), 4)])
    above, below = (every >= observed - 1e-12).mean(), (every <= observed + 1e-12).mean()
    assert found.value == pytest.approx(observed)
    assert found.p_value == pytest.approx(min(1.0, 2 * min(above, below)))
    assert (found.n_members, found.n_others, found.reason) == (4, 5, "")


@pytest.mark.parametrize("n", [4, 30])
def test_a_perfect_separation_reaches_the_smallest_p_exactly_or_by_sampling(n):
    y = np.concatenate([np.arange(n) + 100.0, np.arange(n)])
    found = statistics.group_difference(y, np.arange(2 * n) < n, seed=0)
    assert found.p_value == pytest.approx(found.smallest_p)
    assert found.smallest_p == pytest.approx(2 / math.comb(8, 4) if n == 4 else 2 / 10_000)


def test_a_group_test_rejects_exchangeable_values_about_as_often_as_it_says():
    rejected = [
        statistics.group_difference(
            np.random.default_rng(seed).standard_t(3, size=16),
            np.arange(16) < 6,
            seed=seed,
            n_permutations=499,
        ).p_value
        <= 0.05
        for seed in range(400)
    ]
    assert 0.02 <= np.mean(rejected) <= 0.08


def test_groups_too_small_to_test_say_so_and_have_no_p_value():
    y = np.array([1.0, 2.0, 3.0, np.nan])
    one = statistics.group_difference(y, [True, False, False, False], seed=0)
    assert one.value == pytest.approx(-1.5)
    assert math.isnan(one.p_value)
    assert math.isnan(one.ci_low)
    assert one.reason == "fewer than two languages in a group"
    none = statistics.group_difference(y, [False, False, False, True], seed=0)
    assert math.isnan(none.value)
    assert none.reason == "no values for the group"
    everything = statistics.group_difference(y, [True] * 4, seed=0)
    assert everything.reason == "no values for the other languages"


def test_values_that_are_undefined_are_left_out_of_a_group_test():
    rng = np.random.default_rng(4)
    y, members = rng.normal(size=11), np.arange(11) < 5
    holes, more = np.insert(y, [2, 11], np.nan), np.insert(members, [2, 11], [True, False])
    assert statistics.group_difference(holes, more, seed=1) == statistics.group_difference(
        y, members, seed=1
    )


def test_many_measures_at_once_are_tested_like_each_alone():
    rng = np.random.default_rng(5)
    rows, members = rng.normal(size=(6, 20)), np.arange(20) % 3 == 0
    rows[1, 4] = rows[4, 4] = rows[2, 0] = np.nan
    rows[5] = np.nan
    together = statistics.group_differences(rows, members, seed=2, n_permutations=299)
    for row, found in zip(rows, together, strict=True):
        alone = statistics.group_difference(row, members, seed=2, n_permutations=299)
        assert (found.reason, found.n_members) == (alone.reason, alone.n_members)
        numbers = [[v for v in vars(f).values() if not isinstance(v, str)] for f in (found, alone)]
        np.testing.assert_allclose(*numbers, rtol=1e-12)
    assert statistics.group_differences(np.empty((0, 3)), [True, False, True], seed=0) == []


def test_constant_values_give_no_evidence():
    found = statistics.group_difference(np.ones(10), np.arange(10) < 4, seed=0)
    assert (found.value, found.ci_low, found.ci_high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_normal_interval_is_that_of_scipy():
    np.testing.assert_allclose(
        statistics.normal_interval(0.3, 0.02), stats.norm.interval(0.95, 0.3, 0.02)
    )
    assert all(map(math.isnan, statistics.normal_interval(0.3, math.nan)))


def test_a_table_has_its_fixed_columns_first_and_any_further_ones_after_them():
    row = dict.fromkeys(reversed(tables.COLUMNS["forgetting"]), 1)
    found = tables.table("forgetting", [{"extra": 2, **row}])
    assert list(found.columns) == [*tables.COLUMNS["forgetting"], "extra"]
    empty = tables.table("groups", [])
    assert list(empty.columns) == list(tables.COLUMNS["groups"])
    assert empty.empty
    del row["stderr"]
    with pytest.raises(KeyError, match="stderr"):
        tables.table("forgetting", [row])


def test_a_written_table_has_empty_cells_where_it_is_undefined(tmp_path):
    frame = pd.DataFrame({"language": ["zh", 'a,"b"'], "value": [1 / 3, np.nan]})
    tables.write_csv(frame, tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_bytes()
    assert text == b'language,value\nzh,0.3333333\n"a,""b""",\n'
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), frame)


def test_provenance_names_versions_settings_and_seed():
    made = tables.provenance("m", {"k": 3}, seed=7, libraries=("numpy", "no-such-distribution"))
    assert made.to_dict()["settings"] == {"k": 3}
    assert made.seed == 7
    assert made.versions["numpy"] == np.__version__
    assert {"python", "subnet-toolkit"} <= made.versions.keys()
    assert "no-such-distribution" not in made.versions
