"""The tests of association over pairs of languages, against loops, statsmodels and scikit-bio."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from subnet._statistics import adjust_p_values
from subnet.errors import InputError, NotComparableError
from subnet.relation import associate, associate_many

Frame = pd.DataFrame


def labelled(values: np.ndarray) -> Frame:
    names = [f"l{index}" for index in range(len(values))]
    return pd.DataFrame(np.asarray(values, dtype=float), names, names)


def noise(n: int, seed: int) -> Frame:
    return labelled(np.random.default_rng(seed).standard_normal((n, n)))


def groups(sizes: Sequence[int]) -> Frame:
    """1 where two languages are in one group."""
    label = np.repeat(np.arange(len(sizes)), sizes)
    return labelled(label[:, None] == label[None, :])


def with_gaps(frame: Frame, *cells: tuple[int, int]) -> Frame:
    values = frame.to_numpy(copy=True)
    for cell in cells:
        values[cell] = np.nan
    return labelled(values)


def dsp_by_loop(
    outcomes: Sequence[Frame], predictors: Sequence[Frame], controls: Sequence[Sequence[Frame]]
) -> list[float]:
    """t of the permuted residual for every permutation, one statsmodels OLS each.

    Written from Dekker, Krackhardt and Snijders (2007), step by step; runs are stacked with an
    intercept each; no projection, no vectorisation, no sharing with the code under test.
    """
    n = len(outcomes[0])
    runs = range(len(outcomes))
    apart = ~np.eye(n, dtype=bool)
    x = [frame.to_numpy() for frame in predictors]
    y = [frame.to_numpy() for frame in outcomes]
    z = [[control[run].to_numpy() for control in controls] for run in runs]

    def design(run: int, cells: np.ndarray) -> np.ndarray:
        intercepts = np.zeros((int(cells.sum()), len(outcomes)))
        intercepts[:, run] = 1
        return np.column_stack([intercepts, *(control[cells] for control in z[run])])

    known = [np.isfinite(x[run]) & apart for run in runs]
    first = sm.OLS(
        np.concatenate([x[run][known[run]] for run in runs]),
        np.concatenate([design(run, known[run]) for run in runs]),
    ).fit()
    residual, start = [], 0
    for run in runs:
        full = np.full((n, n), np.nan)
        stop = start + int(known[run].sum())
        full[known[run]] = first.resid[start:stop]
        residual.append(full)
        start = stop
    found = []
    for order in itertools.permutations(range(n)):
        rows, answers = [], []
        for run in runs:
            moved = residual[run][np.ix_(order, order)]
            cells = np.isfinite(moved) & np.isfinite(y[run]) & apart
            rows.append(np.column_stack([moved[cells], design(run, cells)]))
            answers.append(y[run][cells])
        found.append(sm.OLS(np.concatenate(answers), np.concatenate(rows)).fit().tvalues[0])
    return [float(t) for t in found]


def check_against_loop(
    outcomes: Sequence[Frame], predictors: Sequence[Frame], controls: Sequence[Sequence[Frame]]
) -> None:
    ts = np.abs(dsp_by_loop(outcomes, predictors, controls))
    runs = [f"run{index}" for index in range(len(outcomes))]
    found = associate(
        dict(zip(runs, outcomes, strict=True)),
        dict(zip(runs, predictors, strict=True)),
        {f"c{k}": dict(zip(runs, control, strict=True)) for k, control in enumerate(controls)},
    )
    assert found.exact
    assert found.n_permutations == len(ts)
    assert abs(found.statistic) == pytest.approx(ts[0], rel=1e-9)
    assert found.p_value == pytest.approx(np.mean(ts >= ts[0] - 1e-9), abs=1e-15)
    assert found.smallest_p == pytest.approx(np.mean(ts >= ts.max() - 1e-9), abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_controls", [0, 2])
def test_every_arrangement_has_the_t_of_a_regression_by_statsmodels(
    seed: int, n_controls: int
) -> None:
    controls = [[noise(5, 100 * seed + k)] for k in range(n_controls)]
    outcome, predictor = noise(5, 10 + seed), noise(5, 20 + seed)
    check_against_loop([outcome], [predictor], controls)


def test_six_languages_with_categorical_controls_match_the_loop() -> None:
    receiver = labelled(np.tile(np.random.default_rng(3).standard_normal(6), (6, 1)))
    check_against_loop([noise(6, 1)], [noise(6, 2)], [[groups([3, 3])], [receiver]])


@pytest.mark.parametrize(
    ("outcome", "predictor"),
    [
        (noise(5, 1).where(np.tri(5, k=-1, dtype=bool)), noise(5, 2)),
        (with_gaps(noise(5, 3), (0, 2), (3, 1)), noise(5, 4)),
        (noise(5, 5), with_gaps(noise(5, 6), (1, 2), (3, 0), (4, 1))),
        (with_gaps(noise(5, 7), (0, 2)), with_gaps(noise(5, 8), (0, 2), (2, 4))),
    ],
    ids=["triangular outcome", "outcome", "predictor", "both"],
)
def test_pairs_without_a_value_are_left_out_as_in_the_loop(
    outcome: Frame, predictor: Frame
) -> None:
    check_against_loop([outcome], [predictor], [[noise(5, 9)], [groups([2, 3])]])


def test_runs_are_stacked_with_an_intercept_each_and_one_permutation_for_all() -> None:
    outcomes = [noise(5, 1) + 10, with_gaps(noise(5, 2), (1, 3)) - 5]
    predictors = [noise(5, 3) + 7, noise(5, 4)]
    controls = [[noise(5, 5), noise(5, 6)], [groups([3, 2])] * 2]
    check_against_loop(outcomes, predictors, controls)
    check_against_loop(outcomes, [with_gaps(predictors[0], (0, 1)), predictors[1]], controls)


def test_estimate_is_the_slope_of_a_regression_on_standardised_variables() -> None:
    y, x, z = noise(9, 1), noise(9, 2), noise(9, 3)
    y = y + 0.4 * x + 0.5 * z
    x = x + 0.7 * z
    apart = ~np.eye(9, dtype=bool)
    a, b, c = (frame.to_numpy()[apart] for frame in (y, x, z))
    fit = sm.OLS((a - a.mean()) / a.std(), sm.add_constant(np.c_[(b - b.mean()) / b.std(), c]))
    found = associate(y, x, {"z": z}, n_permutations=99)
    assert found.estimate == pytest.approx(fit.fit().params[1], rel=1e-10)
    assert found.statistic == pytest.approx(fit.fit().tvalues[1], rel=1e-10)
    assert found.n_pairs == 72


def test_interval_is_the_jackknife_over_languages() -> None:
    n = 8
    y, x, z = noise(n, 1), noise(n, 2), noise(n, 3)
    y = y + x

    def slope(keep: list[int]) -> float:
        apart = ~np.eye(len(keep), dtype=bool)
        a, b, c = (f.to_numpy()[np.ix_(keep, keep)][apart] for f in (y, x, z))
        fit = sm.OLS(a / a.std(), sm.add_constant(np.c_[b / b.std(), c])).fit()
        return float(fit.params[1])

    everyone = list(range(n))
    left_out = np.array([slope([k for k in everyone if k != out]) for out in everyone])
    stderr = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    found = associate(y, x, {"z": z}, n_permutations=9)
    student = 2.364624251592785  # 97.5 % of t with 7 degrees of freedom
    assert found.ci_low == pytest.approx(slope(everyone) - student * stderr, rel=1e-9)
    assert found.ci_high == pytest.approx(slope(everyone) + student * stderr, rel=1e-9)


@pytest.mark.parametrize("n", [5, 6, 7])
def test_qap_is_mantel_by_enumeration(n: int) -> None:
    y, x = noise(n, n), noise(n, n + 10)
    apart = ~np.eye(n, dtype=bool)
    a = y.to_numpy()[apart]
    rs = np.array(
        [
            np.corrcoef(a, x.to_numpy()[np.ix_(order, order)][apart])[0, 1]
            for order in itertools.permutations(range(n))
        ]
    )
    found = associate(y, x, {"ignored": noise(n, 99)}, method="qap")
    assert found.estimate == pytest.approx(rs[0], rel=1e-10)
    assert found.statistic == pytest.approx(rs[0], rel=1e-10)
    assert found.ci_low >= -1
    assert found.p_value == pytest.approx(np.mean(np.abs(rs) >= abs(rs[0]) - 1e-12), abs=1e-15)


def test_qap_agrees_with_scikit_bio_on_symmetric_matrices() -> None:
    from skbio.stats.distance import mantel

    n = 14
    y, x = (frame.to_numpy() + frame.to_numpy().T for frame in (noise(n, 1), noise(n, 2)))
    y += 0.5 * x
    np.fill_diagonal(x, 0)
    np.fill_diagonal(y, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r, p, _ = mantel(y, x, permutations=4999, seed=1)
    found = associate(labelled(y), labelled(x), method="qap", n_permutations=4999, seed=2)
    assert found.estimate == pytest.approx(r, rel=1e-10)
    # Both are Monte Carlo: six standard errors of the difference.
    assert abs(found.p_value - p) <= 6 * math.sqrt(2 * p * (1 - p) / 4999) + 2 / 4999


def test_t_gives_the_partial_correlation_of_statsmodels_residuals() -> None:
    y, x, z = noise(7, 4), noise(7, 5), noise(7, 6)
    apart = ~np.eye(7, dtype=bool)
    a, b, c = (frame.to_numpy()[apart] for frame in (y, x, z))
    left = [sm.OLS(v, sm.add_constant(c)).fit().resid for v in (a, b)]
    r = np.corrcoef(*left)[0, 1]
    found = associate(y, x, {"z": z}, n_permutations=9)
    assert found.statistic == pytest.approx(r * math.sqrt((42 - 3) / (1 - r**2)), rel=1e-9)


def test_a_same_script_predictor_over_three_and_two_languages_cannot_go_below_a_tenth() -> None:
    script = groups([3, 2])
    perfect = associate(script, script, method="qap")
    assert perfect.p_value == pytest.approx(0.1, abs=1e-15)
    for seed in range(5):
        found = associate(noise(5, seed), script)
        assert found.smallest_p == pytest.approx(0.1, abs=1e-15)
        assert found.p_value >= 0.1 - 1e-15
        assert not found.testable


@pytest.mark.parametrize(
    ("sizes", "ways"),
    [((4, 2), 15), ((3, 3), 10), ((5, 2), 21), ((2, 2, 2), 15)],
)
def test_smallest_p_counts_the_groupings_that_can_be_told_apart(
    sizes: tuple[int, ...], ways: int
) -> None:
    found = associate(noise(sum(sizes), 1), groups(sizes))
    assert found.exact
    assert found.smallest_p == pytest.approx(1 / ways, abs=1e-15)


def test_smallest_p_sees_ties_also_among_drawn_permutations() -> None:
    found = associate(noise(8, 1), groups([4, 4]), n_permutations=4999)
    assert not found.exact
    assert found.smallest_p == pytest.approx(1 / 35, abs=6 * math.sqrt(1 / 35 / 4999))
    assert associate(noise(8, 1), noise(8, 2), n_permutations=4999).smallest_p == 1 / 5000


def test_a_control_can_tell_apart_what_the_predictor_cannot() -> None:
    found = associate(noise(5, 1), groups([3, 2]), {"z": noise(5, 2)})
    assert found.smallest_p == pytest.approx(1 / 120, abs=1e-15)
    assert found.testable


def test_no_p_value_is_below_the_smallest() -> None:
    for seed in range(20):
        for predictor in (noise(6, seed), groups([3, 3]), groups([4, 2])):
            found = associate(noise(6, 50 + seed), predictor, {"z": groups([2, 4])})
            assert found.p_value >= found.smallest_p - 1e-15


def test_a_perfect_relation_gets_the_smallest_p_and_not_an_infinite_statistic() -> None:
    x = noise(6, 1)
    found = associate(3 * x + 1, x)
    assert found.estimate == pytest.approx(1)
    assert found.p_value == found.smallest_p == pytest.approx(1 / 720)
    assert math.isfinite(found.statistic)


def test_below_five_languages_there_is_an_estimate_and_no_test() -> None:
    x = noise(4, 1)
    found = associate(x + 0.1 * noise(4, 2), x)
    assert found.estimate > 0.5
    assert math.isnan(found.p_value)
    assert math.isnan(found.smallest_p)
    assert not found.testable
    assert found.reason == "4 languages; a test needs at least 5"


@pytest.mark.parametrize(
    ("outcome", "predictor", "controls", "reason"),
    [
        (noise(6, 1), labelled(np.full((6, 6), 0.3)), {}, "the predictor does not vary"),
        (noise(6, 1), noise(6, 2), {"same": noise(6, 2) * 2 + 1}, "the predictor does not vary"),
        (labelled(np.ones((6, 6))), noise(6, 2), {}, "the outcome does not vary"),
        (noise(6, 1), labelled(np.full((6, 6), np.nan)), {}, "no language has both"),
        (
            labelled(np.where(np.eye(6, k=1), 1.0, np.nan)),
            noise(6, 2),
            {"a": noise(6, 3), "b": noise(6, 4), "c": noise(6, 5)},
            "5 pairs are too few for 4 terms",
        ),
    ],
)
def test_what_is_undefined_has_a_reason_and_no_number(
    outcome: Frame, predictor: Frame, controls: dict[str, Frame], reason: str
) -> None:
    found = associate(outcome, predictor, controls)
    assert reason in found.reason
    assert math.isnan(found.estimate)
    assert math.isnan(found.p_value)
    assert not found.testable


def test_an_interval_that_hangs_on_one_language_is_undefined_and_says_so() -> None:
    found = associate(noise(6, 1), groups([2, 1, 1, 1, 1]))
    assert math.isnan(found.ci_low)
    assert "no interval: undefined without l0, l1" in found.reason
    assert not math.isnan(found.p_value)


def test_languages_are_joined_by_name() -> None:
    y, x, z = noise(6, 1), noise(6, 2), noise(6, 3)
    shuffled = ["l3", "l0", "l5", "l1", "l4", "l2"]
    expected = associate(y, x, {"z": z})
    more = pd.DataFrame(np.ones((7, 7)), [*shuffled, "xx"], [*shuffled, "xx"])
    more.loc[shuffled, shuffled] = x.loc[shuffled, shuffled]
    found = associate(y, more, {"z": z.loc[shuffled[::-1], shuffled]})
    assert found.languages == tuple(y.index)
    assert found.p_value == expected.p_value
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-12)


def test_the_diagonal_is_never_used() -> None:
    y, x, z = noise(5, 1), noise(5, 2), noise(5, 3)
    expected = associate(y, x, {"z": z})
    y, x, z = (frame.mask(np.eye(5, dtype=bool), 1e6) for frame in (y, x, z))
    assert associate(y, x, {"z": z}) == expected


def test_a_symmetric_predictor_and_its_transpose_are_one() -> None:
    y, x = noise(7, 1), noise(7, 2)
    both = x + x.T
    assert associate(y, both).p_value == associate(y, both.T).p_value
    assert associate(y, x).p_value != associate(y, x.T).p_value


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-4, 1e4),
    shift=st.floats(-1e3, 1e3),
)
def test_units_and_order_of_languages_do_not_matter(seed: int, scale: float, shift: float) -> None:
    y, x, z = noise(5, seed), noise(5, seed + 1), noise(5, seed + 2)
    order = list(np.random.default_rng(seed).permutation(y.index))
    expected = associate(y, x, {"z": z})
    found = associate(
        (y * scale + shift).loc[order, order], x / scale - shift, {"z": z * scale + shift}
    )
    assert found.p_value == expected.p_value
    assert found.estimate == pytest.approx(expected.estimate, rel=1e-6)


def test_many_predictors_get_what_each_gets_alone() -> None:
    y, controls = noise(9, 1), {"z": noise(9, 2)}
    predictors = {
        "a": noise(9, 3),
        "b": with_gaps(noise(9, 4), (1, 2), (5, 3)),
        "c": noise(9, 5).iloc[:7, :7],
        "d": labelled(np.zeros((9, 9))),
        "e": groups([4, 5]),
    }
    together = associate_many(y, predictors, controls, n_permutations=499, seed=4)
    assert list(together) == list(predictors)
    for name, predictor in predictors.items():
        alone = associate(y, predictor, controls, n_permutations=499, seed=4)
        for field in ("estimate", "ci_low", "statistic", "p_value", "smallest_p"):
            one, other = getattr(together[name], field), getattr(alone, field)
            assert one == pytest.approx(other, rel=1e-9, nan_ok=True), (name, field)
        assert together[name].reason == alone.reason


def test_drawn_permutations_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = noise(10, 1), noise(10, 2)
    first = associate(y, x, n_permutations=999, seed=1)
    assert associate(y, x, n_permutations=999, seed=1) == first
    assert associate(y, x, n_permutations=999, seed=2).p_value != first.p_value
    monkeypatch.setattr("subnet.relation.association._BATCH", 5000)
    assert associate(y, x, n_permutations=999, seed=1).p_value == first.p_value


def test_monte_carlo_p_agrees_with_enumeration() -> None:
    y, x, z = noise(7, 1), noise(7, 2), noise(7, 3)
    exact = associate(y, x, {"z": z}, n_permutations=5040)
    drawn = associate(y, x, {"z": z}, n_permutations=4000)
    assert exact.exact
    assert not drawn.exact
    p = exact.p_value
    assert drawn.p_value == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 4000))


def test_q_values_are_those_of_statsmodels() -> None:
    p = np.random.default_rng(0).random(20) ** 2
    assert adjust_p_values(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], rel=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: associate(noise(5, 1), noise(5, 2), {"z": with_gaps(noise(5, 3), (0, 1))}),
            InputError,
            r"control 'z' has no value for 1 of 20 pairs; expected a value for every pair",
        ),
        (
            lambda: associate(noise(5, 1), labelled(np.full((5, 5), np.inf))),
            InputError,
            "predictor holds infinite values",
        ),
        (
            lambda: associate(noise(5, 1).rename(index={"l1": "l0"}), noise(5, 2)),
            InputError,
            "the outcome names 'l0' twice in its rows; keep one",
        ),
        (
            lambda: associate({"a": noise(5, 1), "b": noise(5, 1)}, {"a": noise(5, 2)}),
            NotComparableError,
            r"predictor has no matrix for run b; expected one for each run of the outcome \(a, b\)",
        ),
        (
            lambda: associate(noise(5, 1), noise(5, 2), method="pearson"),  # type: ignore[arg-type]
            InputError,
            "method 'pearson'; expected mrqap_dsp or qap",
        ),
        (
            lambda: associate(noise(5, 1), noise(5, 2), n_permutations=0),
            InputError,
            "0 permutations; expected at least 1; try 9999",
        ),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
