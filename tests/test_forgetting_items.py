"""What per-item results make possible: paired errors, honest maxima, uncoupled baselines."""

import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from forgetting_scores import METRICS, long, long_items, value
from subnet.checkpoint import Metric, Scores, open_checkpoint
from subnet.errors import InputError
from subnet.forgetting import measure_forgetting
from subnet.forgetting._matrix import half_of

TWO = ["de", "fr"]


def results(seed, n_stages, n_languages, n_items, p=0.5):
    """Items answered rightly or wrongly [stages, languages, items], each with a difficulty."""
    rng = np.random.default_rng(seed)
    ease = np.clip(p + rng.normal(0, 0.2, size=(1, n_languages, n_items)), 0.02, 0.98)
    return (rng.random((n_stages, n_languages, n_items)) < ease).astype(float)


def measured(items, languages, *, order=None, shared=True, **options):
    options = {"metrics": {"accuracy": METRICS["accuracy"]}} | options
    return measure_forgetting(
        long(np.nanmean(items, axis=2), languages),
        items=long_items(items, languages, shared=shared),
        order=languages if order is None else order,
        **options,
    )


def test_standard_errors_of_a_language_are_those_of_the_paired_t_test():
    x = results(0, 4, 3, 60)
    languages = ["de", "fr", "ru"]
    found = measured(x, languages, reference=None)
    for measure, language, after, before in [
        ("backward_transfer", "de", x[3, 0], x[1, 0]),
        ("forward_transfer", "ru", x[2, 2], x[0, 2]),
        ("loss_since_start", "fr", x[0, 1], x[3, 1]),
        ("own_gain", "fr", x[2, 1], x[1, 1]),
    ]:
        test = stats.ttest_rel(after, before)
        estimate, error = (
            value(found, measure, language),
            value(found, measure, language, column="stderr"),
        )
        assert estimate / error == pytest.approx(test.statistic)
        assert value(found, measure, language, column="stderr_from") == "items (paired)"
    effect = found.effects.set_index(["stage", "language"]).loc[(3, "de")]
    assert effect["stderr"] == pytest.approx(stats.sem(x[3, 0] - x[2, 0]))
    mean_effect = ((x[2, 0] - x[1, 0]) + (x[3, 0] - x[2, 0])) / 2
    error = value(found, "immediate_effect", "de", column="stderr")
    assert error == pytest.approx(stats.sem(mean_effect))
    assert value(found, "average_accuracy", "de", column="stderr") == pytest.approx(
        stats.sem(x[3, 0])
    )


def test_the_error_of_forgetting_is_that_of_the_stage_that_was_picked():
    x = results(1, 5, 1, 40)
    found = measured(x, ["de"])
    best = int(np.argmax(x[:4, 0].mean(axis=1)))
    error = value(found, "forgetting", "de", column="stderr")
    assert error == pytest.approx(stats.sem(x[best, 0] - x[4, 0]))


def test_errors_of_means_treat_the_items_of_different_languages_as_independent():
    x = results(2, 4, 3, 50)
    languages = ["de", "fr", "ru"]
    found = measured(x, languages, shared=False)
    each = [value(found, "loss_since_start", lang, column="stderr") for lang in languages]
    expected = math.sqrt(sum(e**2 for e in each)) / 3
    assert value(found, "loss_since_start", column="stderr") == pytest.approx(expected)
    each = [value(found, "backward_transfer", lang, column="stderr") for lang in ("de", "fr")]
    expected = math.sqrt(sum(e**2 for e in each)) / 2
    assert value(found, "backward_transfer", column="stderr") == pytest.approx(expected)
    # what training de did to the others: fr and ru, independently
    changes = [stats.sem(x[1, j] - x[0, j]) for j in (1, 2)]
    error = value(found, "immediate_effect_given", "de", column="stderr")
    assert error == pytest.approx(math.hypot(*changes) / 2)


def test_translations_of_one_item_count_once_in_errors_of_means():
    x = np.repeat(results(3, 4, 1, 50), 3, axis=1)  # three languages that answer alike
    found = measured(x, ["de", "fr", "ru"])
    one = value(found, "loss_since_start", "de", column="stderr")
    assert value(found, "loss_since_start", column="stderr") == pytest.approx(one)
    y = results(4, 4, 3, 50)
    found = measured(y, ["de", "fr", "ru"])
    expected = stats.sem((y[0] - y[3]).mean(axis=0))
    assert value(found, "loss_since_start", column="stderr") == pytest.approx(expected)


def test_different_items_at_two_stages_give_the_unpaired_error():
    x = results(5, 3, 2, 30)
    items = long_items(x, TWO)
    items["item"] = items["stage"].astype(str) + "/" + items["item"]
    found = measure_forgetting(long(x.mean(axis=2), TWO), items=items, order=TWO)
    expected = math.hypot(stats.sem(x[2, 0]), stats.sem(x[1, 0]))
    assert value(found, "backward_transfer", "de", column="stderr") == pytest.approx(expected)
    assert value(found, "backward_transfer", "de", column="stderr_from") == "items (unpaired)"


def test_errors_cover_the_truth_also_when_only_some_items_are_shared():
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ease = rng.normal(0, 1, size=60)
        x = np.full((2, 1, 60), np.nan)
        x[0, 0, :40] = ease[:40] + rng.normal(0, 0.3, 40)
        x[1, 0, 20:] = ease[20:] + rng.normal(0, 0.3, 40)
        found = measured(x, ["de"])
        estimate, error = (value(found, "own_gain", "de", column=c) for c in ("value", "stderr"))
        covered.append(abs(estimate) < 1.96 * error)
        paired = math.sqrt(2 * 0.3**2 / 40)
        unpaired = math.sqrt(2 * 1.09 / 40)
        assert paired < error < unpaired
    assert 0.90 <= np.mean(covered) <= 0.99


def test_errors_of_relative_measures_are_those_of_a_jackknife():
    x = results(6, 3, 2, 400, p=0.6)

    def ratio(keep):
        part = x[:, 0, keep].mean(axis=1)
        return (part[2] - part[1]) / part[1]

    found = measured(x, TWO)
    n = x.shape[2]
    replicates = np.array([ratio(np.arange(n) != item) for item in range(n)])
    jackknife = math.sqrt((n - 1) / n * ((replicates - replicates.mean()) ** 2).sum())
    estimate = value(found, "backward_transfer_relative", "de")
    error = value(found, "backward_transfer_relative", "de", column="stderr")
    assert estimate == pytest.approx(ratio(np.arange(n)))
    assert error == pytest.approx(jackknife, rel=0.01)


def test_a_denominator_that_noise_could_make_zero_divides_nothing():
    x = results(7, 3, 2, 25, p=0.27)  # chance is .25
    found = measured(x, TWO)
    assert math.isnan(value(found, "backward_transfer_relative_to_chance", "de"))
    reason = value(found, "backward_transfer_relative_to_chance", "de", column="reason")
    assert reason == "the earlier score is not clearly above chance (0.25)"


def test_without_items_errors_come_from_the_scores_and_say_that_they_are_unpaired():
    errors = np.array([[0.01, 0.02], [0.03, 0.04], [0.05, 0.06]])
    scores = np.array([[0.2, 0.3], [0.8, 0.4], [0.7, 0.9]])
    found = measure_forgetting(long(scores, TWO, stderr=errors), order=TWO)
    assert value(found, "backward_transfer", "de", column="stderr") == pytest.approx(
        math.hypot(0.05, 0.03)
    )
    assert value(found, "backward_transfer", "de", column="stderr_from") == "scores (unpaired)"
    expected = math.sqrt(0.01**2 + 0.05**2 + 0.02**2 + 0.06**2) / 2
    assert value(found, "loss_since_start", column="stderr") == pytest.approx(expected)
    # a ratio and its denominator share a score: (a − b)/b = a/b − 1
    expected = math.hypot(0.05 / 0.8, 0.7 * 0.03 / 0.8**2)
    error = value(found, "backward_transfer_relative", "de", column="stderr")
    assert error == pytest.approx(expected)


def test_without_items_and_errors_the_error_is_undefined_and_the_value_is_not():
    found = measure_forgetting(long([[0.2, 0.3], [0.8, 0.4], [0.7, 0.9]], TWO), order=TWO)
    assert value(found, "backward_transfer", "de") == pytest.approx(-0.1)
    assert math.isnan(value(found, "backward_transfer", "de", column="stderr"))
    reason = value(found, "backward_transfer", "de", column="reason")
    assert reason == (
        "no standard error: neither per-item results nor a stderr for 'de' at stage 1, stage 2"
    )
    assert found.effects["stderr"].isna().all()
    for measure in ("forgetting_split_half", "forgetting_since_turn_split_half"):
        assert value(found, measure, "de", column="reason").startswith(
            "no per-item results for 'de' at stage "
        )


def test_items_that_do_not_average_to_the_score_are_not_used_and_that_is_said():
    x = results(8, 3, 2, 30)
    scores = long(x.mean(axis=2), TWO)
    scores.loc[scores["language"] == "de", "value"] *= 100  # per cent
    metrics = {"accuracy": Metric("accuracy", higher_is_better=True)}
    found = measure_forgetting(scores, items=long_items(x, TWO), order=TWO, metrics=metrics)
    assert any("accuracy of 'de' in run 'main': its items average" in w for w in found.warnings)
    assert math.isnan(value(found, "backward_transfer", "de", column="stderr"))
    assert not math.isnan(value(found, "loss_since_start", "fr", column="stderr"))


def test_a_score_rounded_to_two_decimals_still_belongs_to_its_items():
    x = results(9, 3, 2, 30)
    found = measure_forgetting(
        long(x.mean(axis=2).round(2), TWO), items=long_items(x, TWO), order=TWO
    )
    assert not any("items average" in warning for warning in found.warnings)
    assert value(found, "average_accuracy", "de") == round(x[2, 0].mean(), 2)


def test_a_score_that_only_the_items_know_is_their_mean():
    x = results(10, 3, 2, 30)
    scores = long(x.mean(axis=2), TWO)
    part = scores[~((scores["stage"] == 2) & (scores["language"] == "de"))]
    found = measure_forgetting(part, items=long_items(x, TWO), order=TWO)
    assert value(found, "average_accuracy", "de") == pytest.approx(x[2, 0].mean())


def test_two_results_for_one_item_are_refused():
    x = results(11, 3, 2, 5)
    items = long_items(x, TWO)
    with pytest.raises(
        InputError, match="two items for run main, stage 0, language de, metric acc"
    ):
        measure_forgetting(
            long(x.mean(axis=2), TWO), items=pd.concat([items, items.head(1)]), order=TWO
        )


def test_a_reference_with_items_is_paired_too():
    x = results(12, 3, 2, 40)
    joint = results(13, 1, 2, 40)
    reference = long(joint.mean(axis=2), TWO)
    scores = Scores(reference, long_items(joint, TWO), {}, {}, ())
    found = measured(x, TWO, reference=scores)
    assert value(found, "intransigence", "fr") == pytest.approx(joint[0, 1].mean() - x[2, 1].mean())
    error = value(found, "intransigence", "fr", column="stderr")
    assert error == pytest.approx(stats.sem(joint[0, 1] - x[2, 1]))


@pytest.mark.parametrize("n_items", [100, 200])
def test_the_plain_maximum_finds_forgetting_where_none_is_and_the_split_one_does_not(n_items):
    languages = [f"l{j:02d}" for j in range(52)]
    x = (np.random.default_rng(n_items + 7).random((53, 52, n_items)) < 0.75).astype(float)
    found = measured(x, languages, shared=False)
    assert 0.06 <= value(found, "forgetting") <= 0.10
    # 2.26 is the expected maximum of 52 standard normal values
    expected = 2.26 * math.sqrt(0.75 * 0.25 / n_items)
    assert value(found, "forgetting") == pytest.approx(expected, abs=0.015)
    for measure in ("forgetting_split_half", "forgetting_since_turn_split_half"):
        assert abs(value(found, measure)) < 3 * value(found, measure, column="stderr")
        assert value(found, measure, column="stderr") < 0.01


def test_the_split_maximum_still_finds_forgetting_that_is_there():
    rng = np.random.default_rng(14)
    ease = np.full((11, 10, 1), 0.8)
    ease[10] = 0.5  # the last stage takes .3 from everyone
    x = (rng.random((11, 10, 200)) < ease).astype(float)
    found = measured(x, [f"l{j}" for j in range(10)], shared=False)
    error = value(found, "forgetting_split_half", column="stderr")
    assert value(found, "forgetting_split_half") == pytest.approx(0.3, abs=3 * error)
    assert error < 0.02


def test_the_split_maximum_is_picked_on_one_half_and_scored_on_the_other_both_ways():
    x = results(15, 6, 1, 30)
    found = measured(x, ["de"], seed=3)
    a = np.array([half_of(str(item), 3) for item in range(30)])
    halves = [x[:, 0, a].mean(axis=1), x[:, 0, ~a].mean(axis=1)]
    expected = 0.0
    for pick, score in (halves, halves[::-1]):
        expected += (score[int(np.argmax(pick[:5]))] - score[5]) / 2
    assert value(found, "forgetting_split_half", "de") == pytest.approx(expected)


def test_a_baseline_is_coupled_with_its_effect_unless_they_rest_on_different_halves():
    n = 300
    languages = [f"l{j:03d}" for j in range(n)]
    x = (np.random.default_rng(16).random((2, n, 60)) < 0.5).astype(float)
    found = measured(x, languages, order=["other"], shared=False)
    naive = np.corrcoef(x[0].mean(axis=1), found.effect_matrix("accuracy").loc["other", languages])[
        0, 1
    ]
    assert naive == pytest.approx(-0.707, abs=0.07)
    halves = found.effect_matrix("accuracy", half="b").loc["other", languages]
    kept_apart = np.corrcoef(found.baseline("accuracy")[languages], halves)[0, 1]
    assert abs(kept_apart) < 3 / math.sqrt(n)
    together = np.corrcoef(
        found.baseline("accuracy")[languages],
        found.effect_matrix("accuracy", half="a").loc["other", languages],
    )[0, 1]
    assert together < -0.6


def test_baseline_and_effects_of_a_half_are_means_over_exactly_its_items():
    x = results(17, 3, 2, 50)
    found = measured(x, TWO, seed=5)
    a = np.array([half_of(str(item), 5) for item in range(50)])
    assert found.has_halves("accuracy")
    np.testing.assert_allclose(found.baseline("accuracy"), x[0][:, a].mean(axis=1))
    effect = found.effect_matrix("accuracy", half="b").loc["fr", "de"]
    assert effect == pytest.approx(x[2, 0, ~a].mean() - x[1, 0, ~a].mean())
    effect = found.effect_matrix("accuracy", half="a").loc["fr", "de"]
    assert effect == pytest.approx(x[2, 0, a].mean() - x[1, 0, a].mean())
    assert found.provenance.settings["items_in_halves"]["main"] == [2 * a.sum(), 2 * (~a).sum()]


def test_without_items_the_baseline_is_the_score():
    found = measure_forgetting(long([[0.2, 0.3], [0.8, 0.4], [0.7, 0.9]], TWO), order=TWO)
    assert not found.has_halves("accuracy")
    assert found.baseline("accuracy").to_dict() == {"de": 0.2, "fr": 0.3}


def test_the_half_of_an_item_depends_on_its_name_and_the_seed_alone():
    x = results(18, 3, 2, 40)
    scores, items = long(x.mean(axis=2), TWO), long_items(x, TWO)
    plain = measure_forgetting(scores, items=items, order=TWO, seed=1)
    shuffled = measure_forgetting(
        scores.sample(frac=1, random_state=0),
        items=items.sample(frac=1, random_state=1),
        order=TWO,
        seed=1,
    )
    numbers = measure_forgetting(
        scores, items=items.assign(item=items["item"].astype(int)), order=TWO, seed=1
    )
    for other in (shuffled, numbers):
        pd.testing.assert_frame_equal(
            plain.effect_matrix("accuracy", half="b"), other.effect_matrix("accuracy", half="b")
        )
        pd.testing.assert_frame_equal(plain.frame, other.frame)
    other = measure_forgetting(scores, items=items, order=TWO, seed=2)
    assert not plain.baseline("accuracy").equals(other.baseline("accuracy"))
    share = np.mean([half_of(item, 0) for item in range(4000)])
    assert share == pytest.approx(0.5, abs=0.03)
    assert half_of("territory/DE", 0) == half_of("territory/DE", 0)


def test_confidence_intervals_cover_a_true_mean_effect():
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ease = np.array([0.5, 0.7, 0.6])[:, None, None]
        x = (rng.random((3, 2, 150)) < ease).astype(float)
        found = measured(x, TWO, shared=False)
        estimate, error = (value(found, "loss_since_start", column=c) for c in ("value", "stderr"))
        covered.append(abs(estimate + 0.1) < 1.96 * error)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_fifty_two_languages_with_a_million_items_take_seconds():
    languages = [f"l{j:02d}" for j in range(52)]
    x = np.random.default_rng(0).random((53, 52, 150))
    frame = pd.concat(
        [long(x.mean(axis=2), languages, metric=metric) for metric in ("accuracy", "loss")]
    )
    items = pd.concat([long_items(x, languages, metric=metric) for metric in ("accuracy", "loss")])
    start = time.process_time()
    found = measure_forgetting(frame, items=items, order=languages)
    assert time.process_time() - start < 10
    assert len(found.effects) == 2 * 52 * 52


def test_a_checkpoint_directory_is_measured_with_its_items_and_its_own_order(tmp_path):
    x = results(19, 3, 2, 30)
    stages = ["00-base", "01-fr", "02-de"]
    for name in stages:
        (tmp_path / "stages" / name).mkdir(parents=True)
    scores = long(x.mean(axis=2), TWO).drop(columns=["run", "stderr"])
    scores.to_csv(tmp_path / "scores.csv", index=False)
    long_items(x, TWO).drop(columns="run").to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "subnet.toml").write_text(
        'order = ["fr", "de"]\n[scores.accuracy]\nhigher_is_better = true\nchance = 0.25\n'
    )
    found = measure_forgetting(open_checkpoint(tmp_path).scores)
    assert value(found, "backward_transfer") == pytest.approx(x[2, 1].mean() - x[1, 1].mean())
    error = value(found, "backward_transfer", "fr", column="stderr")
    assert error == pytest.approx(stats.sem(x[2, 1] - x[1, 1]))
    assert found.metrics["accuracy"].chance == 0.25
    assert set(found.effects["trained_language"]) == {"fr", "de"}
