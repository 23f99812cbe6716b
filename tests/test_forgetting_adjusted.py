"""Group differences given covariates: statsmodels' numbers, planted truth, no false findings."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.outliers_influence import variance_inflation_factor

from subnet.errors import InputError
from subnet.forgetting import adjusted_difference, variance_inflation

N = 40
LABELS = [f"l{place:02d}" for place in range(N)]
MEMBERS = pd.Series(np.arange(N) % 5 < 2, index=LABELS)


def languages(seed, *, difference=0.0, slope=0.0, spread=1.0, closeness=0.7):
    """Values and two covariates; `bytes` follows from membership to some degree."""
    rng = np.random.default_rng(seed)
    group = MEMBERS.to_numpy().astype(float)
    table = pd.DataFrame(
        {
            "bytes": 1 + closeness * group + rng.normal(0, 0.5, N),
            "position": rng.permutation(N).astype(float),
        },
        index=LABELS,
    )
    noise = rng.normal(0, 1, N) * np.where(group > 0, spread, 1.0)
    y = 10 + difference * group + slope * table["bytes"] - 0.03 * table["position"] + noise
    return pd.Series(y, index=LABELS), table


def by_statsmodels(values, members, table):
    design = sm.add_constant(table.assign(member=members.astype(float)))
    found = sm.OLS(values, design).fit(cov_type="HC3", use_t=True)
    return found.params["member"], found.bse["member"], found.conf_int().loc["member"]


def test_coefficient_error_and_interval_are_those_of_statsmodels():
    values, table = languages(0, difference=1.0, slope=2.0)
    found = adjusted_difference(values, MEMBERS, table, n_permutations=99)
    value, stderr, interval = by_statsmodels(values, MEMBERS, table)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.stderr == pytest.approx(stderr, rel=1e-9)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(interval), rel=1e-9)
    design = sm.add_constant(table.assign(member=MEMBERS.astype(float))).to_numpy()
    assert found.variance_inflation == pytest.approx(variance_inflation_factor(design, 3))
    assert (found.n_members, found.n_others) == (16, 24)


def test_without_covariates_it_is_the_difference_of_means_and_a_studentised_permutation_test():
    values, _ = languages(1, difference=0.8)
    found = adjusted_difference(values, MEMBERS)
    ours, others = values[MEMBERS], values[~MEMBERS]
    assert found.value == pytest.approx(ours.mean() - others.mean())
    assert found.variance_inflation == pytest.approx(1.0)

    def statistic(x, y, axis=-1):
        # HC3 of a two-group design: (n/(n−1))² times the mean squared deviation, over n
        spread = sum(
            np.var(s, axis=axis) * s.shape[axis] / (s.shape[axis] - 1) ** 2 for s in (x, y)
        )
        return (np.mean(x, axis=axis) - np.mean(y, axis=axis)) / np.sqrt(spread)

    test = stats.permutation_test(
        (ours.to_numpy(), others.to_numpy()), statistic, vectorized=True, n_resamples=9999, rng=3
    )
    assert found.p_value == pytest.approx(test.pvalue, abs=0.02)
    assert found.value / found.stderr == pytest.approx(test.statistic)


def test_the_permutation_p_value_is_that_of_a_loop_over_all_permutations():
    y = np.array([1.0, 2.5, 2.0, 4.0, 3.5, 6.0])
    z = np.array([0.3, 0.1, 0.9, 0.4, 0.8, 0.5])
    group = np.array([False, False, False, True, True, True])
    labels = list("abcdef")
    reduced = sm.OLS(y, sm.add_constant(z)).fit()

    def t_value(outcome):
        design = sm.add_constant(np.column_stack([z, group.astype(float)]))
        return abs(sm.OLS(outcome, design).fit(cov_type="HC3").tvalues[2])

    every = [
        t_value(reduced.fittedvalues + reduced.resid[list(order)])
        for order in itertools.permutations(range(6))
    ]
    exact = np.mean(np.array(every) >= t_value(y) * (1 - 1e-9))
    found = adjusted_difference(
        dict(zip(labels, y, strict=True)),
        dict(zip(labels, group, strict=True)),
        pd.DataFrame({"z": z}, index=labels),
        n_permutations=20_000,
    )
    assert found.p_value == pytest.approx(exact, abs=0.015)


def test_a_difference_that_a_covariate_makes_goes_and_one_of_the_group_stays():
    made, given = [], []
    for seed in range(20):
        values, table = languages(seed, slope=3.0, closeness=1.5)
        made.append(adjusted_difference(values, MEMBERS, n_permutations=9).value)
        given.append(adjusted_difference(values, MEMBERS, table, n_permutations=9).value)
    assert np.mean(made) == pytest.approx(3.0 * 1.5, abs=0.5)
    assert np.mean(given) == pytest.approx(0.0, abs=0.5)
    values, table = languages(3, slope=3.0, closeness=1.5, difference=4.0)
    kept = adjusted_difference(values, MEMBERS, table)
    assert kept.p_value < 0.01
    assert kept.ci_low < 4.0 < kept.ci_high
    assert kept.variance_inflation > 1.5


@pytest.mark.parametrize(
    ("spread", "closeness", "most"),
    [(1.0, 0.7, 0.07), pytest.param(3.0, 0.0, 0.09, marks=pytest.mark.slow)],
)
def test_no_difference_is_found_about_as_often_as_chance_allows(spread, closeness, most):
    """With a covariate that follows from the group; nearly so where the groups spread unequally."""
    rejected, covered = 0, 0
    for seed in range(300):
        values, table = languages(seed, slope=1.0, spread=spread, closeness=closeness)
        found = adjusted_difference(values, MEMBERS, table, seed=seed, n_permutations=99)
        rejected += found.p_value <= 0.05
        covered += found.ci_low <= 0 <= found.ci_high
    assert 0.03 <= rejected / 300 <= most
    assert 0.92 <= covered / 300 <= 0.98


def test_what_cannot_be_told_apart_is_said():
    values, table = languages(3)
    twin = table.assign(copy=MEMBERS.astype(float) * 2)
    found = adjusted_difference(values, MEMBERS, twin)
    assert math.isnan(found.value)
    assert "tell the groups apart" in found.reason
    found = adjusted_difference(
        values, MEMBERS, table.assign(size=100.0, same=2 * table["position"] + 1)
    )
    assert found.dropped == ("size", "same")
    assert found.covariates == ("bytes", "position")
    assert found.value == pytest.approx(adjusted_difference(values, MEMBERS, table).value)


def test_a_language_without_value_group_or_covariate_is_left_out():
    values, table = languages(4)
    values["l00"] = math.nan
    table.loc["l01", "bytes"] = math.nan
    found = adjusted_difference(values, MEMBERS.drop("l02"), table, n_permutations=9)
    rest = LABELS[3:]
    same = adjusted_difference(values[rest], MEMBERS[rest], table.loc[rest], n_permutations=9)
    assert found == same
    assert found.n_members + found.n_others == N - 3


def test_too_few_languages_give_a_reason_and_no_number():
    found = adjusted_difference({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": True, "b": False, "c": False})
    assert found.reason == "fewer than two languages in a group"
    values, table = languages(5)
    few = [*LABELS[:2], *LABELS[2:4]]
    found = adjusted_difference(values[few], MEMBERS[few], table)
    assert "too few for 2 covariates" in found.reason
    flat = adjusted_difference(pd.Series(1.0, index=LABELS), MEMBERS)
    assert "no spread" in flat.reason


def test_a_covariate_of_words_is_refused():
    values, table = languages(6)
    with pytest.raises(InputError, match="covariate 'script' is not numeric"):
        adjusted_difference(values, MEMBERS, table.assign(script="Latn"))


def test_variance_inflation_is_that_of_statsmodels():
    _, table = languages(7)
    table = table.assign(member=MEMBERS.astype(float), constant=3.0)
    found = variance_inflation(table)
    design = sm.add_constant(table.drop(columns="constant")).to_numpy()
    for place, name in enumerate(("bytes", "position", "member"), start=1):
        assert found[name] == pytest.approx(variance_inflation_factor(design, place))
    assert math.isnan(found["constant"])
    assert variance_inflation(table.assign(twice=2 * table["bytes"] + 1))["twice"] == math.inf
