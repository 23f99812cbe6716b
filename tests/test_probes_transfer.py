"""Cross-lingual transfer, and distances between languages."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from probe_data import noise, parallel_items, plant
from subnet.errors import InputError, MissingInputError
from subnet.relation import associate
from subnet_probes._ridge_distances import held_out_prediction
from subnet_probes.distances import regress
from subnet_probes.probe import Probe
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.probing import probe_labels
from subnet_probes.splits import grouped_folds, split_groups
from subnet_probes.transfer import cross_lingual_transfer

QUICK = ProbeSettings(mdl=False, n_resamples=200)


def planted(strength=3.0):
    """de and fr carry the label in the same units, sw in others, xx nowhere."""
    items = parallel_items(languages=("de", "fr", "sw", "xx"), concepts=90)
    arrays = noise(len(items), d=10, layers=("0", "1"))
    for language, units in (("de", [0, 1, 2]), ("fr", [0, 1, 2]), ("sw", [5, 6, 7])):
        mine = (items["language"] == language).to_numpy()
        block = arrays["1"][mine]
        plant(block, items["label"][mine], units, strength)
        arrays["1"][mine] = block
    return items, arrays


def test_transfer_is_found_between_languages_that_share_units_only():
    items, arrays = planted()
    found = cross_lingual_transfer(arrays, items=items, settings=QUICK)
    score = found.matrix()
    assert list(score.index) == list(score.columns) == ["de", "fr", "sw", "xx"]
    high = {("de", "de"), ("fr", "fr"), ("de", "fr"), ("fr", "de"), ("sw", "sw")}
    for a in score.index:
        for b in score.columns:
            assert (score.loc[a, b] > 0.8) == ((a, b) in high), (a, b, score.loc[a, b])
    assert (found.matrix("0") < 0.5).all().all()
    chance = found.matrix(value="random_labels")
    assert (chance < 0.5).all().all()
    gap = found.frame.set_index(["layer", "metric", "train_language", "test_language"])
    assert gap.loc[("1", "accuracy", "sw", "de"), "gap_high"] < -0.3
    diagonal = gap.loc[("1", "accuracy", "de", "de")]
    assert diagonal["gap"] == diagonal["gap_low"] == diagonal["gap_high"] == 0
    assert (found.frame["n"] == 90).all()
    assert (found.frame["n_train"] == 72).all()


def test_transfer_is_directed():
    items, arrays = planted()
    fr = (items["language"] == "fr").to_numpy()
    # fr also carries the label where sw does, so that a probe of fr leans on both
    block = arrays["1"][fr]
    plant(block, items["label"][fr], [5, 6, 7], 6.0)
    arrays["1"][fr] = block
    score = cross_lingual_transfer(arrays, items=items, layers=["1"], settings=QUICK).matrix()
    both = replace(QUICK, n_jobs=2)
    other = cross_lingual_transfer(arrays, items=items, layers=["1"], settings=both).matrix()
    pd.testing.assert_frame_equal(score, other)
    assert score.loc["de", "fr"] > 0.8  # its units are there
    assert score.loc["fr", "sw"] > score.loc["sw", "de"] + 0.2


def test_scores_equal_a_loop_and_no_concept_is_on_both_sides():
    items, arrays = planted(1.5)
    exact = Probe(tol=1e-7, max_iter=5000)
    found = cross_lingual_transfer(
        arrays, items=items, layers=["1"], probe=exact, settings=QUICK, seed=2
    )
    groups, _ = split_groups(items)
    y, language = items["label"].to_numpy(), items["language"].to_numpy()
    pairs = np.array([f"{a}/{b}" for a, b in zip(language, y, strict=True)])
    order = {name: at for at, name in enumerate(found.languages)}
    codes = np.array([order[p.split("/")[0]] * 3 + "abc".index(p.split("/")[1]) for p in pairs])
    fold = grouped_folds(codes, groups, folds=5, seed=2)
    for a, b in (("de", "fr"), ("sw", "de"), ("fr", "fr")):
        hits = []
        for number in range(5):
            train = (language == a) & (fold != number)
            test = (language == b) & (fold == number)
            assert not set(items["concept"][train]) & set(items["concept"][test])
            probe = clone(exact).fit(arrays["1"][train], y[train])
            hits += list(probe.predict(arrays["1"][test]) == y[test])
        assert found.matrix().loc[a, b] == pytest.approx(np.mean(hits))


def test_concepts_that_were_trained_on_would_have_given_themselves_away():
    # every concept has its own vector in all languages and a random label
    items = parallel_items(languages=("de", "fr"), concepts=60)
    concept = items["concept"].str[1:].astype(int).to_numpy()
    array = np.random.default_rng(0).normal(size=(60, 80))[concept]
    score = cross_lingual_transfer(array, items=items, settings=QUICK).matrix()
    assert (score < 0.55).all().all()
    fr = (items["language"] == "fr").to_numpy()
    leaked = Probe().fit(array[~fr], items["label"][~fr]).score(array[fr], items["label"][fr])
    assert leaked == 1.0


def test_labels_that_not_all_languages_have_are_left_out_and_said():
    items, arrays = planted()
    items.loc[(items["language"] == "sw") & (items["label"] == "c"), "label"] = "a"
    shared = cross_lingual_transfer(arrays, items=items, layers=["1"], settings=QUICK)
    assert shared.warnings == ("label 'c' does not occur in sw; left out",)
    assert set(shared.frame["n_classes"]) == {2}
    assert shared.matrix(value="n").loc["de", "fr"] == 60
    every = cross_lingual_transfer(
        arrays, items=items, layers=["1"], settings=QUICK, label_sets="all"
    )
    frame = every.frame.set_index(["metric", "train_language", "test_language"])
    assert (
        frame.loc[("accuracy", "sw", "de"), "reason"]
        == "sw does not have labels of de, which count as errors: c"
    )
    assert frame.loc[("accuracy", "de", "sw"), "reason"] == ""
    assert frame.loc[("accuracy", "de", "fr"), "n"] == 90


def test_the_diagonal_is_what_a_probe_within_the_language_scores():
    items, arrays = planted(1.5)
    transfer = cross_lingual_transfer(arrays, items=items, layers=["1"], settings=QUICK).matrix()
    within = probe_labels(arrays, items=items, layers=["1"], settings=QUICK).matrix().loc["1"]
    assert np.abs(np.diag(transfer) - within[transfer.index]).max() < 0.12  # other folds


def test_meaningless_labels_do_not_transfer_in_nearly_all_seeds():
    items = parallel_items(languages=("de", "fr"), concepts=80, labels=("a", "b"))
    inside = []
    for seed in range(12):
        arrays = noise(len(items), seed=seed, layers=("0",))
        frame = cross_lingual_transfer(arrays, items=items, settings=QUICK, seed=seed).frame
        frame = frame[(frame["metric"] == "accuracy")]
        cross = frame[frame["train_language"] != frame["test_language"]]
        inside += list((cross["ci_low"] <= 0.5) & (cross["ci_high"] >= 0.5))
    assert np.mean(inside) >= 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": ["de"]}, "the only language is de; expected at least two languages"),
        ({"label_sets": "both"}, "label_sets is 'both'; expected 'shared' or 'all'"),
        ({"settings": ProbeSettings(folds=91)}, "de has 90 groups for 91 folds"),
        ({"target": "tag"}, "the items have no column 'tag'"),
    ],
)
def test_bad_input_is_refused(change, message):
    items, arrays = planted()
    with pytest.raises((InputError, MissingInputError), match=message):
        cross_lingual_transfer(arrays, items=items, **{"settings": QUICK, **change})


def test_languages_without_a_label_in_common_are_refused():
    items = parallel_items(languages=("de", "fr"))
    items.loc[items["language"] == "fr", "label"] = items["label"].str.upper()
    with pytest.raises(InputError, match=r"the languages share 0 labels.*label_sets='all'"):
        cross_lingual_transfer(noise(len(items)), items=items, settings=QUICK)
    items.loc[items["language"] == "fr", "label"] = None
    with pytest.raises(InputError, match="no item of fr has a label; leave it out"):
        cross_lingual_transfer(noise(len(items)), items=items, settings=QUICK)


def languages_on_a_plane(count=12, concepts=20, d=15, seed=0, signal=1.0):
    """Languages whose centroids lie on a plane in layer 1; distances on the plane."""
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(count, 2))
    names = [f"l{i}" for i in range(count)]
    items = pd.DataFrame(
        {
            "language": np.repeat(names, concepts),
            "concept": np.tile(np.arange(concepts), count),
        }
    )
    arrays = noise(len(items), d=d, seed=seed + 1, layers=("0", "1"))
    arrays["1"][:, :2] += 3 * signal * np.repeat(place, concepts, axis=0).astype(np.float32)
    between = np.linalg.norm(place[:, None] - place[None], axis=-1)
    return items, arrays, pd.DataFrame(between, index=names, columns=names)


def test_distances_are_mirrored_in_the_layer_that_holds_them():
    items, arrays, distances = languages_on_a_plane()
    found = regress(arrays, distances, items=items, n_permutations=499)
    frame = found.frame.set_index("layer")
    assert frame.loc["1", "score"] > 0.8
    assert frame.loc["1", "q_value"] < 0.01
    assert abs(frame.loc["0", "score"]) < 0.5
    assert set(frame["n_languages"]) == {12}
    again = associate(found.centroids["1"], distances, method="qap", n_permutations=499)
    assert frame.loc["1", "score"] == pytest.approx(again.estimate)


@pytest.mark.parametrize("measure", ["euclidean", "cosine"])
def test_distances_that_nothing_mirrors_are_rejected_as_often_as_it_says(measure):
    rejected = 0
    for seed in range(60):
        items, arrays, distances = languages_on_a_plane(seed=1000 + 2 * seed, concepts=5)
        frame = regress(
            arrays, distances, items=items, layers=["0"], measure=measure, n_permutations=99
        ).frame
        rejected += frame["p_value"].iloc[0] <= 0.05
    assert rejected <= 8  # binomial(60, .05): P(more) < .01


def test_centroids_are_over_concepts_that_all_languages_have():
    items, arrays, distances = languages_on_a_plane(count=5)
    kept = (items["language"] != "l0") | (items["concept"] < 10)
    arrays = {layer: array[kept] for layer, array in arrays.items()}
    items = items[kept].reset_index(drop=True)
    # what l0 does not have is far away, and must not move the others
    far = (items["concept"] >= 10).to_numpy()
    moved = {layer: array.copy() for layer, array in arrays.items()}
    for array in moved.values():
        array[far] += 100
    one = regress(arrays, distances, items=items, n_permutations=20).centroids["1"]
    other = regress(moved, distances, items=items, n_permutations=20).centroids["1"]
    pd.testing.assert_frame_equal(one, other)
    x = arrays["1"][~far].astype(float)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    at = [z[(items["language"][~far] == f"l{i}").to_numpy()].mean(axis=0) for i in range(5)]
    assert one.loc["l1", "l3"] == pytest.approx(np.linalg.norm(at[1] - at[3]), rel=1e-5)


def test_ridge_predicts_distances_of_languages_that_it_has_not_seen():
    items, arrays, distances = languages_on_a_plane(count=24)
    frame = regress(
        arrays, distances, items=items, method="ridge", folds=4, n_permutations=199
    ).frame.set_index("layer")
    assert frame.loc["1", "score"] > 0.7
    assert frame.loc["1", "p_value"] == pytest.approx(1 / 200)
    assert frame.loc["0", "p_value"] > 0.05
    assert frame.loc["1", "n_pairs"] == 4 * 15  # six languages in each fold


def test_ridge_rejects_chance_as_often_as_it_says():
    rejected = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        place = rng.normal(size=(15, 2))
        given = np.linalg.norm(place[:, None] - place[None], axis=-1)
        row = held_out_prediction(
            rng.normal(size=(15, 8)), given, alpha=1.0, folds=3, n_permutations=99, seed=seed
        )
        rejected.append(row["p_value"] <= 0.05)
    assert sum(rejected) <= 6  # binomial(40, .05): P(more) < .02


def test_few_languages_say_so():
    items, arrays, distances = languages_on_a_plane(count=4)
    found = regress(arrays, distances, items=items)
    assert "4 languages: a weak relation cannot be seen" in found.warnings
    assert not found.frame["testable"].any()
    assert found.frame["reason"].str.contains("4 languages; a test needs at least 5").all()
    ridge = regress(arrays, distances, items=items, method="ridge").frame
    assert (ridge["reason"] == "4 languages for 5 folds of at least three").all()
    assert ridge["score"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lasso"}, "method is 'lasso'; expected 'mantel' or 'ridge'"),
        ({"measure": "l3"}, "measure is 'l3'"),
        ({"method": "ridge", "controls": {"x": 1}}, "expected method='mantel'"),
        ({"distances": "few"}, "2 languages have representations and distances"),
        ({"distances": "askew"}, "rows and columns of the distances differ"),
    ],
)
def test_distances_that_do_not_fit_are_refused(change, message):
    items, arrays, distances = languages_on_a_plane()
    given = {"few": distances.iloc[:2, :2], "askew": distances.iloc[:, ::-1]}
    rest = {name: value for name, value in change.items() if name != "distances"}
    with pytest.raises(InputError, match=message):
        regress(arrays, given.get(change.get("distances"), distances), items=items, **rest)


def test_languages_without_distances_and_texts_without_concepts_are_said():
    items, arrays, distances = languages_on_a_plane()
    found = regress(
        arrays, distances.iloc[1:, 1:], items=items.drop(columns="concept"), n_permutations=20
    )
    assert found.warnings == (
        "no distance of l0; left out",
        "no concepts: centroids are over different texts in each language",
    )
