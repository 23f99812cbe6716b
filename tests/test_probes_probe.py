"""Probes: the estimators, their splits, and what they find where something was planted."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import estimator_checks_generator

from probe_data import noise, parallel_items, plant, token_items
from subnet._statistics import bootstrap_interval
from subnet.errors import InputError, MissingInputError
from subnet_probes._resampling import GroupBootstrap, interval
from subnet_probes.probe import Probe, RegressionProbe
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.probing import probe_labels, probe_language, probe_tokens
from subnet_probes.splits import grouped_folds, sampled_groups, split_groups

QUICK = ProbeSettings(mdl=False, n_resamples=200)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("probe", [Probe(), RegressionProbe()], ids=["Probe", "RegressionProbe"])
def test_scikit_learn_accepts_the_probes_as_estimators(probe):
    failed = {}
    for estimator, check in estimator_checks_generator(probe):
        name = check.func.__name__
        try:
            check(estimator)
        except pytest.skip.Exception:
            continue
        except Exception as error:  # noqa: BLE001 all are listed
            if type(error).__name__ != "SkipTest":
                failed[name] = str(error)[:300]
    assert failed == {}


def test_probe_is_scikit_learns_logistic_regression_on_standardised_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 6)) * [1, 10, 0.1, 1, 1, 5] + 3
    y = np.array(list("abc"))[(x[:, 1] > 3).astype(int) + (x[:, 2] > 3)]
    probe = Probe(C=0.3, tol=1e-8).fit(x, y)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=0.3, tol=1e-8, max_iter=1000).fit(scaler.transform(x), y)
    np.testing.assert_allclose(probe.coef_, model.coef_, atol=1e-6)
    np.testing.assert_allclose(
        probe.predict_proba(x), model.predict_proba(scaler.transform(x)), atol=1e-6
    )


def test_default_tolerance_and_single_precision_change_no_prediction_that_matters():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 40)).astype(np.float32)
    y = rng.integers(4, size=300)
    plant(x, y, [0, 1, 2, 3], 1.5)
    quick, exact = Probe().fit(x, y), Probe(tol=1e-9, max_iter=5000).fit(x.astype(float), y)
    difference = np.abs(quick.predict_proba(x) - exact.predict_proba(x.astype(float)))
    assert difference.max() < 0.01
    assert (quick.predict(x) == exact.predict(x.astype(float))).mean() > 0.99


@pytest.mark.parametrize("components", [None, 4])
@pytest.mark.parametrize("standardize", [True, False])
def test_affine_is_the_decision_function_in_units_as_they_are(components, standardize):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 6)) * [1, 4, 1, 1, 0.2, 1] + 2
    y = np.array(list("abc"))[np.arange(80) % 3]
    probe = Probe(components=components, standardize=standardize).fit(x, y)
    weights, bias = probe.affine()
    np.testing.assert_allclose(x @ weights.T + bias, probe.decision_function(x), atol=1e-8)
    values = RegressionProbe(components=components, standardize=standardize).fit(x, x[:, 0])
    weights, bias = values.affine()
    np.testing.assert_allclose((x @ weights.T + bias)[:, 0], values.predict(x), atol=1e-8)


def test_regression_probe_is_ridge_with_a_penalty_per_dimension():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 5))
    y = x @ rng.normal(size=5)
    scaled = StandardScaler().fit_transform(x)
    expected = Ridge(alpha=2.0 * 5).fit(scaled, y)
    np.testing.assert_allclose(RegressionProbe(alpha=2.0).fit(x, y).coef_, expected.coef_)


def test_probe_works_in_scikit_learns_own_tools():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(90, 4))
    probe = clone(Probe(C=2.0).set_params(components=3))
    assert probe.get_params()["C"] == 2.0
    assert cross_val_score(probe, x, x[:, 0] > 0, cv=3).mean() > 0.7


def test_a_concept_is_never_on_both_sides_and_labels_are_spread_evenly():
    items = parallel_items(concepts=31)
    groups, used = split_groups(items)
    assert used == "concept"
    fold = grouped_folds(items["label"], groups, folds=5, seed=0)
    by_concept = pd.Series(fold).groupby(items["concept"].to_numpy()).nunique()
    assert (by_concept == 1).all()
    counts = pd.crosstab(fold, items["label"].to_numpy()).to_numpy()
    assert (np.ptp(counts, axis=0) <= 6).all()  # two concepts of three languages
    assert set(fold) == set(range(5))
    assert (fold != grouped_folds(items["label"], groups, folds=5, seed=1)).any()


def test_items_without_a_concept_fall_back_to_their_sentence_and_their_id():
    items = pd.DataFrame(
        {
            "concept": ["x", "x", None, None, None],
            "sentence": [1, 2, 7, 7, None],
            "id": list("abcde"),
        }
    )
    groups, used = split_groups(items)
    assert used == "concept or sentence or id"
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 3
    with pytest.raises(MissingInputError, match="1 of 5 items have no concept, sentence or id"):
        split_groups(items.drop(columns="id"))


def test_a_sample_is_of_whole_groups():
    groups = np.repeat(np.arange(20), 5)
    kept = sampled_groups(groups, 32, seed=0)
    assert kept.sum() == 30
    assert set(np.bincount(groups[kept], minlength=20)) == {0, 5}


def test_scores_are_scikit_learns_and_intervals_those_of_the_project():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), rng.integers(1, 6, size=40))
    actual = rng.integers(3, size=len(groups))
    easy = rng.random(40)[groups] < 0.6  # whole groups are easy
    predicted = np.where(easy, actual, rng.integers(3, size=len(groups)))
    found = GroupBootstrap(groups, 0, 4000).scores(actual, predicted[None], 4)
    assert found.point[0, 0] == pytest.approx(accuracy_score(actual, predicted))
    assert found.point[1, 0] == pytest.approx(f1_score(actual, predicted, average="macro"))
    hits = np.bincount(groups, weights=actual == predicted)
    expected = bootstrap_interval(
        [hits, np.bincount(groups)],
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        seed=1,
        n_resamples=4000,
        paired=True,
    )
    assert interval(found.resampled[0, 0]) == pytest.approx(expected, abs=0.015)
    single = bootstrap_interval((actual == predicted).astype(float), seed=1)
    assert np.ptp(interval(found.resampled[0, 0])) > 1.2 * np.ptp(single)  # items are not alone


def test_a_property_is_found_in_the_layer_where_it_lies_and_nowhere_else():
    items = parallel_items()
    arrays = noise(len(items), seed=6)
    plant(arrays["2"], items["label"], [4, 5, 6])
    found = probe_labels(arrays, items=items, settings=QUICK)
    score = found.matrix()
    assert list(score.index) == ["0", "1", "2", "3"]
    assert list(score.columns) == ["de", "fr", "sw"]
    assert (score.loc["2"] > 0.85).all()
    assert (score.drop("2") < 0.6).all().all()
    assert (found.matrix("selectivity_low").loc["2"] > 0.2).all()
    assert (
        (found.matrix("ci_low").drop("2") < found.matrix("majority").drop("2") + 0.15).all().all()
    )
    frame = found.to_frame()
    assert ((frame["ci_low"] <= frame["score"]) & (frame["score"] <= frame["ci_high"])).all()
    assert (frame["n_groups"] == 60).all()
    assert (frame["control_seen"] == 0).all()
    assert found.provenance.settings["grouped_by"] == "concept"
    assert found.provenance.settings["probe_settings"]["C"] == 0.1


def test_majority_and_held_out_scores_equal_a_loop_of_scikit_learn_fits():
    items = parallel_items(languages=("de",), labels=("a", "a", "b", "c"))
    arrays = noise(len(items), seed=7, layers=("0",))
    plant(arrays["0"], items["label"], [0, 1, 2], 1.5)
    settings = ProbeSettings(mdl=False, n_random=0, n_controls=0, n_resamples=50)
    row = probe_labels(arrays, items=items, settings=settings, seed=3).frame.iloc[0]
    groups, _ = split_groups(items)
    y = items["label"].to_numpy()
    fold = grouped_folds(y, groups, folds=5, seed=3)
    hits, often = [], []
    for number in range(5):
        train = fold != number
        fitted = Probe().fit(arrays["0"][train], y[train])
        hits += list(fitted.predict(arrays["0"][~train]) == y[~train])
        often += list(y[~train] == pd.Series(y[train]).mode()[0])
    assert row["score"] == pytest.approx(np.mean(hits))
    assert row["majority"] == pytest.approx(np.mean(often))
    assert np.isnan(row["random_labels"])


def test_a_hold_out_tests_one_fold_only():
    items = parallel_items(languages=("de",))
    settings = ProbeSettings(mdl=False, holdout=True, n_resamples=50)
    row = probe_labels(noise(len(items), layers=("0",)), items=items, settings=settings).frame.iloc[
        0
    ]
    assert row["n"] == 12


def test_language_is_found_where_it_lies_and_topic_does_not_help():
    items = parallel_items()
    arrays = noise(len(items), seed=8)
    plant(arrays["1"], items["language"], [0, 1, 2])
    # the concept itself, alike in all languages: of no use for the language
    arrays["3"][:, :] = (
        np.random.default_rng(0)
        .normal(size=(60, 12))
        .repeat(1, axis=0)[items["concept"].str[1:].astype(int)]
    )
    found = probe_language(arrays, items=items, settings=QUICK)
    accuracy = found.matrix()["all"]
    low, high = accuracy.min(), accuracy.max()
    assert repr(found) == (
        "Probing(language of all languages together, layers 0, 1, 2, 3, "
        f"accuracy {low:.2f} to {high:.2f})"
    )
    assert accuracy["1"] > 0.85
    assert (accuracy[["0", "2", "3"]] < 0.45).all()


def test_labels_without_meaning_score_within_chance_in_nearly_all_seeds():
    inside = selective = 0
    seeds = 20
    items = parallel_items(languages=("de", "fr"), concepts=80, labels=("a", "b"))
    for seed in range(seeds):
        arrays = noise(len(items), seed=100 + seed, layers=("0",))
        row = probe_language(arrays, items=items, settings=QUICK, seed=seed).frame.iloc[0]
        inside += row["ci_low"] <= 0.5 <= row["ci_high"]
        selective += row["selectivity_low"] > 0
    assert inside >= seeds - 3
    assert selective <= 3


def test_any_scikit_learn_classifier_serves_as_probe():
    items = parallel_items(languages=("de",))
    arrays = noise(len(items), layers=("0",))
    plant(arrays["0"], items["label"], [0, 1, 2])
    found = probe_labels(arrays, items=items, probe=LinearSVC(), settings=QUICK)
    assert found.frame["score"].iloc[0] > 0.8
    assert found.provenance.settings["probe"] == "LinearSVC"


def test_results_do_not_depend_on_processes_or_on_other_languages():
    items = parallel_items()
    arrays = noise(len(items), layers=("0", "1"))
    settings = ProbeSettings(n_resamples=50, n_jobs=2)
    one = probe_labels(arrays, items=items, settings=settings).frame
    alone = ProbeSettings(n_resamples=50)
    other = probe_labels(arrays, items=items, languages=["fr"], settings=alone).frame
    mine = one[one["language"] == "fr"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, other)


def test_one_probe_for_all_languages_keeps_concepts_together():
    items = parallel_items()
    arrays = noise(len(items), layers=("0",))
    row = probe_labels(arrays, items=items, pooled=True, settings=QUICK).frame.iloc[0]
    assert row["language"] == "all"
    assert row["n"] == 180
    assert row["n_groups"] == 60
    assert row["score"] < 0.5


class _Duck:
    layers = ("0", "1")

    def __init__(self, items):
        self.items = items
        self._arrays = noise(len(items), layers=self.layers)

    def array(self, layer):
        return self._arrays[layer]


def test_representations_are_taken_by_their_shape():
    items = parallel_items()
    duck = _Duck(items)
    found = probe_labels(duck, layers=[-1], settings=QUICK).frame
    plain = probe_labels(duck.array("1"), items=items, settings=QUICK).frame
    assert set(found["layer"]) == {"1"}
    pd.testing.assert_frame_equal(found.drop(columns="layer"), plain.drop(columns="layer"))


def test_a_label_seen_once_is_left_out_and_said():
    items = parallel_items(languages=("de",))
    items.loc[7, "label"] = "rare"
    found = probe_labels(noise(len(items)), items=items, settings=QUICK)
    assert found.warnings == (
        "de: label 'rare' occurs once and cannot be both trained and tested; left out",
    )
    assert (found.frame["n"] == 59).all()


def test_constant_units_are_said_and_change_nothing():
    items = parallel_items(languages=("de",))
    arrays = noise(len(items), layers=("0", "1"))
    arrays["1"] = np.hstack([arrays["0"], np.full((60, 2), 7.0, dtype=np.float32)])
    found = probe_labels(arrays, items=items, settings=QUICK)
    assert found.warnings == ("layer 1: 2 of 14 units are constant and carry nothing",)
    scores = found.matrix()["de"]
    assert scores["0"] == scores["1"]
    dead = probe_labels({"0": np.zeros((60, 3))}, items=items, settings=QUICK)
    assert dead.warnings == ("layer 0: every unit is constant and carry nothing",)
    assert dead.frame["score"].iloc[0] == dead.frame["majority"].iloc[0]


def test_fits_that_stop_short_are_counted():
    items = parallel_items(languages=("de",))
    found = probe_labels(noise(60), items=items, probe=Probe(max_iter=1), settings=QUICK)
    assert found.warnings == (
        "60 fits stopped at the most iterations; raise the probe's max_iter",
    )  # 4 layers, 5 folds, labels and random and control ones


def test_a_language_that_cannot_be_probed_has_a_reason_beside_the_others():
    items = parallel_items(languages=("de", "fr"))
    items.loc[items["language"] == "fr", "label"] = "a"
    frame = probe_labels(noise(120), items=items, settings=QUICK).frame
    fr = frame[frame["language"] == "fr"]
    assert (fr["reason"] == "fr has one label left to tell apart").all()
    assert fr["score"].isna().all()
    assert frame[frame["language"] == "de"]["score"].notna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [9]}, r"layer 9 is asked for; expected one of the 4 layers 0, 1, 2, 3"),
        ({"layers": []}, "no layer is asked for"),
        ({"languages": ["xx"]}, "no representations of xx; expected some of de, fr, sw"),
        ({"settings": ProbeSettings(folds=61)}, "de has 60 groups for 61 folds; take fewer folds"),
        ({"target": "tag"}, "the items have no column 'tag'.*take representations at token level"),
        ({"items": None}, "arrays come without items"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    items = parallel_items()
    arguments = {"items": items, "settings": QUICK, **change}
    with pytest.raises((InputError, MissingInputError), match=message):
        probe_labels(noise(len(items)), **arguments)


def test_broken_arrays_are_refused():
    items = parallel_items()
    broken = noise(len(items))
    broken["1"][3, 2] = np.nan
    with pytest.raises(InputError, match="1 of 180 representations of layer 1 are not finite"):
        probe_labels(broken, items=items, settings=QUICK)
    with pytest.raises(InputError, match=r"layer 0 have shape \[5, 12\]; expected \[180, d\]"):
        probe_labels(noise(5), items=items, settings=QUICK)
    with pytest.raises(InputError, match="the only language is de"):
        probe_language(noise(60), items=parallel_items(languages=("de",)))
    with pytest.raises(MissingInputError, match="no item has a value in the column 'label'"):
        probe_labels(noise(180), items=items.assign(label=None), settings=QUICK)
    with pytest.raises(InputError, match="representations are a list"):
        probe_labels([1, 2], items=items)


@pytest.mark.parametrize(
    "setting",
    [
        {"folds": 1},
        {"n_random": -1},
        {"mdl_C": ()},
        {"max_examples": 1},
        {"folds": True},
        {"n_jobs": 0},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=f"{next(iter(setting))} is"):
        ProbeSettings(**setting)


def test_tokens_are_probed_by_sentence():
    items, words = token_items()
    array = np.random.default_rng(0).normal(size=(25, 10))[words]
    array += 0.1 * np.random.default_rng(1).normal(size=array.shape)
    frame = probe_tokens(array, items=items, settings=QUICK).frame
    assert (frame["n_groups"] == 60).all()
    assert (frame["control_seen"] > 0.99).all()
    with pytest.raises(MissingInputError, match=r"no column 'sentence'.*token level"):
        probe_tokens(array, items=items.drop(columns="sentence"), settings=QUICK)
