"""Control tasks, permuted labels, selectivity."""

import numpy as np
import pandas as pd
import pytest

from probe_data import noise, parallel_items, token_items
from subnet_probes.control import control_labels, permuted_labels
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.probing import probe_labels, probe_tokens

QUICK = ProbeSettings(mdl=False, n_controls=3, n_resamples=200)


def test_a_type_has_one_control_label_and_types_have_the_labels_frequencies():
    words = np.array([f"w{i % 3000}" for i in range(9000)])
    labels = np.where(
        np.arange(9000) % 10 < 7, "NOUN", np.where(np.arange(9000) % 10 < 9, "VERB", "X")
    )
    control = control_labels(labels, words, seed=0)
    assert len(set(zip(words, control, strict=True))) == 3000
    by_type = pd.Series(control).groupby(words).first().value_counts(normalize=True)
    assert by_type.to_dict() == pytest.approx({"NOUN": 0.7, "VERB": 0.2, "X": 0.1}, abs=0.03)
    assert (control != control_labels(labels, words, seed=1)).any()
    # nothing of the word's own label is left
    agreement = (pd.Series(control) == labels).mean()
    assert agreement == pytest.approx(0.49 + 0.04 + 0.01, abs=0.03)


def test_labels_are_permuted_inside_groups_that_hold_several():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(50), 6))
    labels = rng.integers(4, size=300)
    found = permuted_labels(labels, groups, seed=0)
    for group in range(50):
        mine = groups == group
        assert sorted(found[mine]) == sorted(labels[mine])
    assert (found == labels).mean() < 0.6


def test_groups_of_one_label_exchange_it():
    groups = np.repeat(np.arange(90), 3)
    labels = np.array(list("abc"))[np.arange(90) % 3][groups]
    found = permuted_labels(labels, groups, seed=0)
    assert len(set(zip(groups, found, strict=True))) == 90
    assert sorted(found) == sorted(labels)
    assert (found == labels).mean() == pytest.approx(1 / 3, abs=0.15)


def test_permutations_inside_a_group_are_uniform():
    counts = np.zeros((3, 3))
    for seed in range(1500):
        found = permuted_labels([0, 1, 2, 3, 4, 5], [1, 0, 1, 0, 1, 0], seed=seed)
        counts[np.arange(3), found[[0, 2, 4]] // 2] += 1
    np.testing.assert_allclose(counts / 1500, 1 / 3, atol=0.05)


def test_a_probe_that_memorises_words_is_not_selective():
    # random vectors of words say which word it is and nothing of its tag beyond that
    items, words = token_items(types=12)
    vectors = np.random.default_rng(1).normal(size=(12, 30))
    memorised = vectors[words]
    row = probe_tokens(memorised, items=items, settings=QUICK).frame.iloc[0]
    assert row["score"] > 0.95
    assert row["control"] > 0.95
    assert abs(row["selectivity"]) < 0.03
    assert row["random_labels"] < 0.5


def test_a_tag_that_is_encoded_is_selective():
    items, words = token_items(types=200, sentences=150)
    vectors = np.random.default_rng(2).normal(size=(200, 6))
    vectors[np.arange(200), np.arange(200) % 3] += 6  # ids of words do not fit into 6 units
    row = probe_tokens(vectors[words], items=items, settings=QUICK).frame.iloc[0]
    assert row["score"] > 0.95
    assert row["selectivity_low"] > 0.3
    assert row["selectivity"] == pytest.approx(row["score"] - row["control"])


def test_selectivity_is_about_zero_where_labels_mean_nothing():
    settings = ProbeSettings(mdl=False, n_controls=2, n_resamples=200)
    items, _ = token_items(types=400, sentences=50)
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shuffled = items.assign(tag=rng.permutation(items["tag"]))
        array = rng.normal(size=(len(items), 8))
        found.append(
            probe_tokens(array, items=shuffled, settings=settings, seed=seed).frame.iloc[0]
        )
    table = pd.DataFrame(found)
    covers = (table["selectivity_low"] <= 0) & (table["selectivity_high"] >= 0)
    assert covers.sum() >= 10
    assert abs(table["selectivity"].mean()) < 0.03


def test_a_concepts_control_is_chance_where_concepts_are_split():
    items = parallel_items(concepts=90)
    arrays = noise(len(items), d=40, layers=("0",))
    # the concept can be read off perfectly, and is of no use for concepts that were not trained on
    concept = items["concept"].str[1:].astype(int).to_numpy()
    arrays["0"] = np.random.default_rng(3).normal(size=(90, 40))[concept]
    row = probe_labels(arrays, items=items, pooled=True, settings=QUICK).frame.iloc[0]
    assert row["control_seen"] == 0
    assert row["control"] < 0.45


def test_controls_and_codelengths_stand_in_the_table():
    items, words = token_items(types=40)
    vectors = np.random.default_rng(4).normal(size=(40, 6))
    vectors[np.arange(40), np.arange(40) % 3] += 4
    row = probe_tokens(
        vectors[words], items=items, settings=ProbeSettings(n_resamples=50)
    ).frame.iloc[0]
    assert row["control_codelength"] > row["codelength"]
    assert row["compression"] == pytest.approx(480 * np.log2(3) / row["codelength"])
    assert row["prior_codelength"] == pytest.approx(480 * np.log2(3), rel=0.05)
