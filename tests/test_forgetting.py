"""The measures: against the papers' formulas, loops over the definitions, and planted truth."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forgetting_scores import (
    ACCURACY,
    LOSS,
    METRICS,
    by_definition,
    long,
    scores_of,
    value,
)
from subnet import _tables
from subnet.checkpoint.records import Scores
from subnet.errors import InputError, MissingInputError
from subnet.forgetting import MEASURES, measure_forgetting

THREE = ["de", "fr", "ru"]
# rows: before the sequence, after de, after fr, after ru
WORKED = [[0.20, 0.30, 0.10], [0.80, 0.50, 0.20], [0.60, 0.90, 0.30], [0.50, 0.70, 0.80]]
# sums done on paper from Lopez-Paz and Ranzato's ACC, BWT, FWT and Chaudhry et al.'s F
ON_PAPER = {
    "average_accuracy": (2.0 / 3, 0.50, 0.70, 0.80),
    "backward_transfer": (-0.25, -0.30, -0.20, None),
    "forward_transfer": (0.20, None, 0.20, 0.20),
    "forgetting": (0.25, 0.30, 0.20, -0.50),
    "forgetting_since_turn": (0.25, 0.30, 0.20, None),
    "loss_since_start": (-1.4 / 3, -0.30, -0.40, -0.70),
    "intransigence": (0.05, 0.05, 0.00, 0.10),
    "immediate_effect": (-0.05 / 3, -0.15, 0.00, 0.10),
    "immediate_effect_given": (-0.05 / 3, 0.15, -0.05, -0.15),
    "own_gain": (0.50, 0.60, 0.40, 0.50),
}
JOINT = long([[0.85, 0.90, 0.90]], THREE)


def worked(**options):
    return measure_forgetting(
        scores_of(long(WORKED, THREE), {"de": 1, "fr": 2, "ru": 3}), reference=JOINT, **options
    )


@pytest.mark.parametrize("measure", ON_PAPER)
def test_measures_are_those_of_the_papers_on_three_languages(measure):
    found = worked()
    for language, expected in zip(["", *THREE], ON_PAPER[measure], strict=True):
        if expected is None:
            assert math.isnan(value(found, measure, language))
            assert f"{language!r} was trained" in value(found, measure, language, column="reason")
        else:
            assert value(found, measure, language) == pytest.approx(expected, abs=1e-12)


def test_the_effect_matrix_is_directed_and_holds_every_pair_also_before_its_turn():
    expected = [[np.nan, 0.20, 0.10], [-0.20, np.nan, 0.10], [-0.10, -0.20, np.nan]]
    found = worked().effect_matrix("accuracy")
    pd.testing.assert_frame_equal(
        found,
        pd.DataFrame(
            expected,
            index=pd.Index(THREE, name="trained_language"),
            columns=pd.Index(THREE, name="language"),
        ),
    )


def test_relative_versions_divide_by_the_earlier_score_and_by_its_distance_to_chance():
    found = worked()
    for measure, language, change, earlier in [
        ("backward_transfer", "de", -0.30, 0.80),
        ("forward_transfer", "fr", 0.20, 0.30),
        ("forgetting", "ru", -0.50, 0.30),
        ("forgetting_since_turn", "fr", 0.20, 0.90),
        ("loss_since_start", "fr", -0.40, 0.30),
        ("intransigence", "de", 0.05, 0.85),
        ("own_gain", "fr", 0.40, 0.50),
        ("immediate_effect", "de", -0.15, (0.80 + 0.60) / 2),
        ("immediate_effect_given", "fr", -0.05, (0.80 + 0.20) / 2),
    ]:
        assert value(found, f"{measure}_relative", language) == pytest.approx(change / earlier)
        if earlier > 0.25:
            assert value(found, f"{measure}_relative_to_chance", language) == pytest.approx(
                change / (earlier - 0.25)
            )
    # ru starts at .10, below the chance of .25: no distance to divide by, and the mean says so
    assert math.isnan(value(found, "loss_since_start_relative_to_chance", "ru"))
    reason = value(found, "loss_since_start_relative_to_chance", "ru", column="reason")
    assert reason == "the earlier score is not clearly above chance (0.25)"
    mean = value(found, "loss_since_start_relative_to_chance", column="reason")
    assert mean.startswith("mean over 1 of 3 languages, without de, ru: ")
    assert value(found, "loss_since_start_relative_to_chance", column="n") == 1


def test_the_relative_versions_of_a_loss_use_its_own_direction():
    frame = long([[2.0, 1.5], [1.0, 1.2], [1.4, 0.3]], ["de", "fr"], metric="loss")
    chance = replace(LOSS, chance=3.0)
    found = measure_forgetting(frame, order=["de", "fr"], metrics={"loss": chance})
    assert value(found, "backward_transfer", "de", metric="loss") == pytest.approx(-0.4)
    assert value(found, "backward_transfer_relative", "de", metric="loss") == pytest.approx(-0.4)
    to_chance = value(found, "backward_transfer_relative_to_chance", "de", metric="loss")
    assert to_chance == pytest.approx(-0.4 / (3.0 - 1.0))
    assert value(found, "average_accuracy", metric="loss") == pytest.approx((1.4 + 0.3) / 2)


@settings(max_examples=25, deadline=None)
@given(
    scores=st.integers(2, 6).flatmap(
        lambda n: arrays(float, (n + 1, n), elements=st.floats(0.0625, 1.0, width=32))
    ),
    shuffle=st.randoms(use_true_random=False),
    higher=st.booleans(),
)
def test_measures_equal_loops_over_their_definitions(scores, shuffle, higher):
    n = scores.shape[1]
    languages = [f"l{j}" for j in range(n)]
    turns = list(range(1, n + 1))
    shuffle.shuffle(turns)
    metric = "accuracy" if higher else "loss"
    joint = scores.mean(axis=0)
    frame = long(scores, languages, metric=metric)
    frame = frame.sample(frac=1, random_state=shuffle.randint(0, 99))
    found = measure_forgetting(
        frame,
        order=dict(zip(languages, turns, strict=True)),
        metrics=METRICS,
        reference=long([joint], languages, metric=metric),
    )
    expected = by_definition(scores.tolist(), turns, higher=higher, joint=joint)
    for measure in MEASURES:
        if "split_half" in measure:
            continue
        each = [expected[j].get(measure, math.nan) for j in range(n)]
        got = [value(found, measure, language, metric=metric) for language in languages]
        np.testing.assert_allclose(got, each, atol=1e-12)
        if measure == "forgetting":  # Chaudhry's mean is over the languages before the last
            each = [each[j] for j in range(n) if turns[j] < n]
        mean = value(found, measure, metric=metric)
        assert mean == pytest.approx(np.nanmean(each), abs=1e-12)
    effects = found.effect_matrix(metric)
    sign = 1 if higher else -1
    for i in range(n):
        for j in range(n):
            change = sign * (scores[turns[i], j] - scores[turns[i] - 1, j])
            got = effects.loc[f"l{i}", f"l{j}"]
            assert math.isnan(got) if i == j else got == pytest.approx(change, abs=1e-12)
    table = found.effects.set_index(["stage", "language"])
    for j in range(n):
        own = table.loc[(turns[j], f"l{j}")]
        assert own["trained_language"] == f"l{j}"
        assert own["value"] == pytest.approx(expected[j]["own_gain"], abs=1e-12)


def test_a_loss_and_the_accuracy_that_mirrors_it_show_the_same_effects():
    scores = np.random.default_rng(0).random((4, 3))
    frame = pd.concat([long(scores, THREE), long(2 - scores, THREE, metric="loss")])
    found = measure_forgetting(frame, order=THREE, metrics=METRICS)
    for measure in MEASURES:
        if measure != "average_accuracy":
            a, b = (value(found, measure, "fr", metric=m) for m in ("accuracy", "loss"))
            np.testing.assert_allclose(a, b, atol=1e-12)
    pd.testing.assert_frame_equal(found.effect_matrix("accuracy"), found.effect_matrix("loss"))


def test_a_language_that_is_damaged_has_lost_and_one_that_is_helped_has_gained():
    scores = np.full((4, 3), 0.5)
    scores[3, 0], scores[3, 1] = 0.3, 0.7  # training ru takes de down and fr up
    found = measure_forgetting(long(scores, THREE), order=THREE, metrics=METRICS)
    for measure in ("forgetting", "forgetting_since_turn", "loss_since_start"):
        assert value(found, measure, "de") == pytest.approx(0.2)
        assert value(found, measure, "fr") == pytest.approx(-0.2)
    for measure in ("backward_transfer", "immediate_effect"):
        assert value(found, measure, "de") < 0 < value(found, measure, "fr")


def test_tables_have_their_fixed_columns_and_undefined_values_have_a_reason():
    found = worked()
    for name, frame in [("forgetting", found.frame), ("effects", found.effects)]:
        assert tuple(frame.columns[: len(_tables.COLUMNS[name])]) == _tables.COLUMNS[name]
        undefined = frame["value"].isna() | frame["stderr"].isna()
        assert (frame.loc[undefined, "reason"] != "").all()
    names = set(found.frame["measure"])
    assert {"average_accuracy", "intransigence", "immediate_effect_relative"} <= names
    assert "average_accuracy_relative" not in names
    copy = found.to_frame()
    copy["value"] = 0.0
    assert not (found.frame["value"] == 0.0).all()


def test_without_a_reference_intransigence_is_undefined_and_says_what_it_needs():
    found = measure_forgetting(long(WORKED, THREE), order=THREE)
    assert math.isnan(value(found, "intransigence", "de"))
    reason = value(found, "intransigence", "de", column="reason")
    assert reason == "needs the scores of a jointly trained model"
    assert worked().provenance.settings["reference"] == "trained on everything"
    other = worked(reference_trained_on="up to each language")
    assert other.provenance.settings["reference"] == "trained on up to each language"


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", range(3))
def test_a_missing_score_leaves_exactly_what_needs_it_undefined(row, column):
    scores = np.array(WORKED)
    scores[row, column] = np.nan
    found = measure_forgetting(long(scores, THREE), order=THREE, reference=JOINT)
    expected = by_definition(scores.tolist(), [1, 2, 3], joint=[0.85, 0.90, 0.90])
    for measure in ON_PAPER:
        each = np.array([expected[j].get(measure, math.nan) for j in range(3)])
        if measure == "immediate_effect" and math.isnan(each[column]):
            # between two stages that both train others, the score cancels out of the mean
            others = [s for s in (1, 2, 3) if s != column + 1]
            if row in others and row + 1 in others:
                each[column] = (scores[row + 1, column] - scores[row - 1, column]) / 2
        got = np.array([value(found, measure, language) for language in THREE])
        np.testing.assert_allclose(got, each, atol=1e-12)
        complete = np.array([ON_PAPER[measure][1:]], dtype=float)[0]
        lost = np.flatnonzero(np.isnan(got) & ~np.isnan(complete))
        for j in lost:
            reason = value(found, measure, THREE[j], column="reason")
            assert reason.startswith(f"no score for {THREE[column]!r} at stage {row}")
        counted = lost if measure != "forgetting" else lost[lost < 2]
        assert math.isnan(value(found, measure)) == bool(len(counted))
    cells = found.effects.set_index(["stage", "language"])
    for stage in (row, row + 1):
        if (stage, THREE[column]) in cells.index:
            cell = cells.loc[(stage, THREE[column])]
            assert math.isnan(cell["value"])
            assert cell["reason"] == f"no score for {THREE[column]!r} at stage {row}"


def test_one_stage_defines_no_change():
    for first in (0, 1):
        found = measure_forgetting(
            long([[0.5, 0.6]], ["de", "fr"], first=first), order=["de"][:first]
        )
        changes = found.frame[found.frame["measure"] != "average_accuracy"]
        assert changes["value"].isna().all()
        plain = changes[~changes["measure"].str.contains("relative") & (changes["language"] != "")]
        assert set(plain["reason"]) == {"only one stage has scores"}
        assert value(found, "average_accuracy") == pytest.approx(0.55)
        assert found.effects.empty
        assert found.effect_matrix("accuracy").isna().all(axis=None)


def test_a_language_that_was_never_trained_has_no_turn_but_is_a_receiver():
    found = measure_forgetting(long(WORKED, THREE), order={"de": 1, "fr": 3})
    for measure in ("backward_transfer", "forward_transfer", "forgetting_since_turn", "own_gain"):
        assert math.isnan(value(found, measure, "ru"))
        reason = value(found, measure, "ru", column="reason")
        assert reason == "'ru' was not trained in this sequence"
    assert value(found, "immediate_effect", "ru") == pytest.approx((0.10 + 0.50) / 2)
    assert found.effect_matrix("accuracy").loc["ru"].isna().all()
    assert found.effect_matrix("accuracy").loc["fr", "ru"] == pytest.approx(0.5)
    assert found.languages == ("de", "fr", "ru")
    assert set(found.effects.loc[found.effects["stage"] == 2, "trained_language"]) == {""}
    # its mean is over the languages that have a turn
    assert value(found, "backward_transfer") == pytest.approx(-0.3)


def test_without_stage_zero_what_refers_to_the_start_is_undefined():
    found = measure_forgetting(long(WORKED[1:], THREE, first=1), order=THREE)
    for measure in ("forward_transfer", "loss_since_start"):
        assert value(found, measure, "fr", column="reason").startswith("stage 0, the start of the")
    assert math.isnan(value(found, "own_gain", "de"))
    assert value(found, "backward_transfer") == pytest.approx(-0.25)
    assert value(found, "immediate_effect", "de") == pytest.approx(-0.15)
    assert value(found, "immediate_effect", "fr") == pytest.approx(-0.20)
    assert found.effect_matrix("accuracy").loc["de"].isna().all()
    assert found.baseline("accuracy").isna().all()
    assert found.provenance.settings["stages"] == {"main": [1, 3]}


def test_without_an_order_only_what_needs_no_turn_is_defined():
    found = measure_forgetting(long(WORKED, THREE))
    assert value(found, "forgetting", "de") == pytest.approx(0.3)
    assert value(found, "loss_since_start", "de") == pytest.approx(-0.3)
    for measure in ("backward_transfer", "immediate_effect", "immediate_effect_given"):
        reason = value(found, measure, "de", column="reason")
        assert reason == "which stage trained which language is not known"
    assert found.effects["value"].notna().all()


def test_a_language_trained_twice_has_its_last_turn_and_the_mean_effect_of_both():
    frame = long(np.column_stack([WORKED, [0.4, 0.4, 0.5, 0.1]]), [*THREE, "sw"])
    frame["trained_language"] = frame["stage"].map({0: "", 1: "de", 2: "fr", 3: "de"})
    found = measure_forgetting(frame)
    last_turns = Scores(frame, None, METRICS, {"main": {"de": 3, "fr": 2}}, ())
    again = measure_forgetting(last_turns)
    for result in (found, again):
        assert math.isnan(value(result, "backward_transfer", "de"))
        assert value(result, "own_gain", "de") == pytest.approx(-0.1)
        assert value(result, "forward_transfer", "de", column="reason").startswith(
            "'de' was trained first"
        )
        matrix = result.effect_matrix("accuracy")
        assert matrix.loc["de", "fr"] == pytest.approx((0.2 - 0.2) / 2)
        assert matrix.loc["de", "sw"] == pytest.approx((0.0 - 0.4) / 2)
        assert value(result, "immediate_effect_given", "de") == pytest.approx(
            np.nanmean(matrix.loc["de"])
        )


def test_a_language_trained_but_never_evaluated_is_a_donor():
    found = measure_forgetting(long(WORKED, THREE), order=["de", "xx", "ru"])
    assert found.languages == ("de", "xx", "ru", "fr")
    assert found.effect_matrix("accuracy").loc["xx", "ru"] == pytest.approx(0.1)
    assert found.effect_matrix("accuracy")["xx"].isna().all()
    assert value(found, "average_accuracy") == pytest.approx(2 / 3)


def test_runs_are_measured_apart_and_the_effect_matrix_is_their_mean_cell_by_cell():
    rng = np.random.default_rng(1)
    one, two = rng.random((4, 3)), rng.random((4, 3))
    two[0, 2] = np.nan
    frame = pd.concat([long(one, THREE, run="a"), long(two, THREE, run="b")])
    orders = {"a": {"de": 1, "fr": 2, "ru": 3}, "b": {"ru": 1, "de": 2, "fr": 3}}
    found = measure_forgetting(scores_of(frame, orders))
    assert found.runs == ("a", "b")
    assert not found.warnings
    a, b = (found.effect_matrix("accuracy", run=run) for run in "ab")
    assert b.loc["ru", "de"] == pytest.approx(two[1, 0] - two[0, 0])
    mean, count = found.effect_matrix("accuracy"), found.effect_counts("accuracy")
    total = a.fillna(0) + b.fillna(0)
    np.testing.assert_allclose(mean, total / (a.notna().astype(int) + b.notna()))
    assert (count == a.notna().astype(int) + b.notna()).all(axis=None)
    assert count.loc["de", "fr"] == 2
    assert value(found, "backward_transfer", "ru", run="b") == pytest.approx(two[3, 2] - two[1, 2])
    assert found.baseline("accuracy")["ru"] == pytest.approx(one[0, 2])
    assert found.baseline("accuracy")["de"] == pytest.approx((one[0, 0] + two[0, 0]) / 2)
    with pytest.raises(InputError, match="there is no run 'c'; expected one of"):
        found.effect_matrix("accuracy", run="c")


def test_one_order_only_is_warned_about_because_forgetting_measures_position_too():
    assert any("one order of training only" in warning for warning in worked().warnings)


def test_the_order_may_be_given_in_any_usual_form():
    frame = long(WORKED, THREE)
    expected = worked().effects["value"]
    for order in (
        THREE,
        {"de": 1, "fr": 2, "ru": 3},
        {"main": THREE},
        {"main": {"de": np.int64(1), "fr": 2, "ru": 3}},
    ):
        found = measure_forgetting(frame, order=order)
        assert set(found.effects["trained_language"]) == set(THREE)
        pd.testing.assert_series_equal(found.effects["value"], expected)
    column = frame.assign(trained_language=frame["stage"].map(dict(enumerate(["", *THREE]))))
    pd.testing.assert_frame_equal(measure_forgetting(column).effects, found.effects)


def test_only_the_metrics_asked_for_are_measured():
    frame = pd.concat([long(WORKED, THREE), long(WORKED, THREE, metric="loss")])
    found = measure_forgetting(frame, order=THREE, metrics=["loss"])
    assert set(found.metrics) == {"loss"}
    assert not found.metrics["loss"].higher_is_better
    with pytest.raises(InputError, match="there is no metric 'accuracy'"):
        found.effect_matrix("accuracy")
    with pytest.raises(InputError, match="there are no scores of metric bleu"):
        measure_forgetting(frame, metrics=["bleu"])


def test_a_direction_that_nobody_stated_is_warned_about():
    found = measure_forgetting(long(WORKED, THREE, metric="zing"), order=THREE)
    assert any(warning.startswith("zing: nobody says whether") for warning in found.warnings)


def test_every_stage_must_have_scores():
    frame = long(WORKED, THREE)
    expected = (
        "scores.csv: stage 2 of run 'main' has no scores; expected scores after every stage from 0 "
        "to 3; evaluate the model of stage 2 and add its rows"
    )
    turns = {"de": 1, "fr": 2, "ru": 3}
    scores = scores_of(
        frame[frame["stage"] != 2], turns, sources=[Path("items.csv"), Path("scores.csv")]
    )
    with pytest.raises(InputError) as caught:
        measure_forgetting(scores)
    assert str(caught.value) == expected
    with pytest.raises(InputError, match="stage 3 of run 'main' has no scores"):
        measure_forgetting(frame[frame["stage"] != 3], order=THREE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="value"), "the table of scores has no column 'value'; expected"),
        (lambda f: pd.concat([f, f.head(1)]), "two scores for run main, stage 0, language de"),
        (lambda f: f.assign(value="high"), "value 'high' is no number; expected a finite number"),
        (lambda f: f.assign(value=np.inf), "value inf is no number"),
        (lambda f: f.assign(stage=f["stage"] + 0.5), "stage 0.5 is no stage"),
        (lambda f: f.assign(stage=f["stage"] - 1), "stage -1 is no stage"),
        (lambda f: f.assign(language=[None, *f["language"][1:]]), "a score has no language"),
        (lambda f: f.head(0), "there are no scores"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_clear_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        measure_forgetting(change(long(WORKED, THREE)), order=THREE)
    assert "\n" not in str(caught.value)


def test_a_stage_trains_one_language_and_stage_zero_none():
    frame = long(WORKED, THREE)
    with pytest.raises(InputError, match="stage 1 of run 'main' trains both 'de' and 'fr'"):
        measure_forgetting(frame, order={"de": 1, "fr": 1})
    with pytest.raises(InputError, match="trains 'de' at stage 0; expected stages from 1 on"):
        measure_forgetting(frame, order={"de": 0})


def test_a_reference_is_one_model():
    two = pd.concat([JOINT, JOINT.assign(run="b")])
    with pytest.raises(InputError, match="the reference holds 2 runs: main, b"):
        measure_forgetting(long(WORKED, THREE), order=THREE, reference=two)


def test_a_question_about_something_unknown_is_one_clear_line():
    found = worked()
    with pytest.raises(InputError, match="there is no effect 'forgetting'"):
        found.effect_matrix("accuracy", measure="forgetting")
    with pytest.raises(InputError, match="there is no half 'c'"):
        found.effect_matrix("accuracy", half="c")
    with pytest.raises(MissingInputError, match=r"need per-item results of 'accuracy'; add items"):
        found.effect_matrix("accuracy", half="b")


def test_the_relative_effect_matrix_divides_by_the_score_before():
    found = worked()
    relative = found.effect_matrix("accuracy", measure="immediate_effect_relative")
    assert relative.loc["fr", "de"] == pytest.approx(-0.2 / 0.8)
    to_chance = found.effect_matrix("accuracy", measure="immediate_effect_relative_to_chance")
    assert to_chance.loc["fr", "de"] == pytest.approx(-0.2 / (0.8 - ACCURACY.chance))
    assert math.isnan(to_chance.loc["de", "ru"])
