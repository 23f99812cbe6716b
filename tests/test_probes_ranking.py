"""Units that carry a property, and whether they are those of a subnetwork."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from probe_data import noise, parallel_items, plant
from subnet.errors import InputError, NotComparableError
from subnet.subnetwork import Subnetwork
from subnet_probes.agreement import unit_agreement
from subnet_probes.probe import Probe
from subnet_probes.ranking import UnitRanking, attribute_units, rank_units

UNITS = [3, 8, 17]


def planted(labels=("a", "b", "c"), d=24):
    items = parallel_items(languages=("de",), concepts=240, labels=labels)
    arrays = noise(len(items), d=d, layers=("0", "1"))
    plant(arrays["1"], items["label"], UNITS)
    arrays["1"] *= np.random.default_rng(0).uniform(0.01, 100, size=d).astype(np.float32)
    return items, arrays


@pytest.mark.parametrize("method", ["weights", "integrated-gradients", "gradient-x-activation"])
def test_planted_units_come_first_whatever_their_scale(method):
    items, arrays = planted()
    found = rank_units(None, arrays, layer="1", items=items, method=method)
    assert set(found.order[:3]) == set(UNITS)
    assert found.scores[UNITS].min() > 2 * np.delete(found.scores, UNITS).max()
    frame = found.to_frame()
    assert list(frame["rank"]) == list(range(1, 25))
    assert frame["score"].is_monotonic_decreasing
    assert frame["share"].sum() == pytest.approx(1)
    assert found.provenance.settings["method"] == method


def test_a_label_has_its_own_unit():
    items, arrays = planted()
    for label, unit in zip("abc", UNITS, strict=True):
        found = rank_units(None, arrays, layer=1, items=items, label=label)
        assert found.order[0] == unit


def test_of_two_labels_both_have_the_same_units():
    items, arrays = planted(labels=("a", "b"))
    found = [rank_units(Probe(), arrays, layer="1", items=items, label=x) for x in (None, "a", "b")]
    np.testing.assert_allclose(found[0].scores, found[1].scores)
    np.testing.assert_allclose(found[1].scores, found[2].scores)
    assert set(found[0].order[:2]) == set(UNITS[:2])


def test_weights_are_centred_mean_absolute_weights_of_the_probe():
    items, arrays = planted()
    probe = Probe().fit(arrays["1"], items["label"])
    weights = probe.coef_ - probe.coef_.mean(axis=0)
    found = rank_units(probe, arrays, layer="1", items=items)
    np.testing.assert_allclose(found.scores, np.abs(weights).mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")])
def test_integrated_gradients_are_the_integral_and_sum_to_the_change(labels):
    items, arrays = planted(labels=labels)
    x, y = arrays["1"][:9].astype(float), items["label"][:9].to_numpy()
    probe = Probe(C=0.01).fit(arrays["1"].astype(float), items["label"])
    numbers = np.searchsorted(probe.classes_, y)
    start = arrays["1"].mean(axis=0).astype(float)
    found = attribute_units(probe, x, numbers, start)
    rows = np.arange(9)
    change = (
        probe.pipeline_.predict_log_proba(x)[rows, numbers]
        - probe.pipeline_.predict_log_proba(start[None])[0, numbers]
    )
    np.testing.assert_allclose(found.sum(axis=1), change, rtol=1e-4)
    # the path integral by a sum over a fine grid, the gradient in closed form
    weights, _ = probe.affine()
    if len(weights) == 1:
        weights = np.vstack([0 * weights, weights])
    by_hand = np.zeros_like(found)
    for t in (np.arange(400) + 0.5) / 400:
        p = probe.predict_proba(start + t * (x - start))
        by_hand += (weights[numbers] - p @ weights) / 400
    np.testing.assert_allclose(found, by_hand * (x - start), rtol=1e-3, atol=1e-6)


def test_gradient_times_activation_is_the_gradient_in_closed_form():
    items, arrays = planted()
    x = arrays["1"][:7].astype(float)
    probe = Probe().fit(arrays["1"], items["label"])
    numbers = np.searchsorted(probe.classes_, items["label"][:7].to_numpy())
    start = x.mean(axis=0)
    found = attribute_units(probe, x, numbers, start, "gradient-x-activation")
    weights, _ = probe.affine()
    gradient = weights[numbers] - probe.predict_proba(x) @ weights
    np.testing.assert_allclose(found, gradient * (x - start), rtol=1e-4, atol=1e-6)


def ranking(scores):
    return UnitRanking(np.asarray(scores, dtype=float), "3", provenance=None)


def test_agreement_is_counted_against_the_hypergeometric_distribution():
    scores = np.arange(20, 0, -1.0)
    mask = np.zeros(20, dtype=bool)
    mask[[0, 1, 2, 10, 15]] = True
    row = unit_agreement(ranking(scores), mask, k=4).iloc[0]
    assert row["overlap"] == 3
    assert row["expected"] == 1.0
    assert row["enrichment"] == 3.0
    assert row["jaccard"] == 3 / 6
    ways = sum(math.comb(5, i) * math.comb(15, 4 - i) for i in (3, 4)) / math.comb(20, 4)
    assert row["p_value"] == pytest.approx(ways)
    assert unit_agreement(ranking(scores), mask).iloc[0]["k"] == 5


def test_agreement_of_random_rankings_is_chance():
    rng = np.random.default_rng(0)
    mask = np.arange(60) < 15
    frame = unit_agreement([ranking(rng.random(60)) for _ in range(300)], mask)
    assert frame["overlap"].mean() == pytest.approx(15 * 15 / 60, abs=0.25)
    assert (frame["p_value"] <= 0.05).mean() <= 0.08
    assert stats.kstest(frame["p_value"], "uniform", alternative="greater").pvalue > 0.01


def test_planted_units_agree_with_the_subnetwork_that_holds_them():
    items, arrays = planted()
    mask = np.zeros(24, dtype=bool)
    mask[UNITS] = True
    subnetwork = Subnetwork.from_arrays(
        {"layers.0.neurons": ~mask, "layers.1.neurons": mask},
        language="de",
        base="tiny",
        granularity="neuron",
    )
    found = [rank_units(None, arrays, layer=layer, items=items) for layer in arrays]
    frame = unit_agreement(found, subnetwork, parameter="layers.1.neurons").set_index("layer")
    assert frame.loc["1", "overlap"] == 3
    assert frame.loc["1", "p_value"] == pytest.approx(1 / math.comb(24, 3))
    assert frame.loc["0", "overlap"] < 3
    with pytest.raises(InputError, match=r"has 2 layers; name one: parameter='layers.0.neurons'"):
        unit_agreement(found, subnetwork)


def test_masks_of_everything_or_nothing_have_a_reason():
    frame = pd.concat([unit_agreement(ranking(np.ones(4)), np.full(4, x)) for x in (True, False)])
    assert list(frame["reason"]) == ["the mask selects all", "the mask selects nothing"]


def test_masks_of_other_units_are_refused():
    with pytest.raises(NotComparableError, match="layer 3 has 4 units and the mask given has 6"):
        unit_agreement(ranking(np.ones(4)), np.ones(6, dtype=bool))
    with pytest.raises(InputError, match=r"the mask is float64 \[4\]"):
        unit_agreement(ranking(np.ones(4)), np.ones(4))
    weights = Subnetwork.from_arrays({"w.weight": np.eye(3)}, language="de", base="tiny")
    with pytest.raises(InputError, match=r"is per weight.*weights_to_units"):
        unit_agreement(ranking(np.ones(3)), weights)
    with pytest.raises(InputError, match="k is 9; expected 1 to 4 units"):
        unit_agreement(ranking(np.ones(4)), np.array([True, False, False, False]), k=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": None}, "there are 2 layers; expected one; name it: layer='1'"),
        ({"method": "votes"}, "method is 'votes'"),
        ({"label": "z"}, "label is 'z'; expected one of a, b, c"),
        ({"probe": object()}, "the probe is a object; expected a Probe"),
    ],
)
def test_bad_input_is_refused(change, message):
    items, arrays = planted()
    arguments = {"probe": None, "layer": "1", **change}
    with pytest.raises(InputError, match=message):
        rank_units(representations=arrays, items=items, **arguments)


def test_a_probe_of_another_layer_or_of_one_label_is_refused():
    items, arrays = planted()
    narrow = Probe().fit(arrays["1"][:, :5], items["label"])
    with pytest.raises(InputError, match="fitted on 5 units, the layer has 24"):
        rank_units(narrow, arrays, layer="1", items=items)
    with pytest.raises(InputError, match="all items are labelled 'a'"):
        rank_units(None, arrays, layer="1", items=items.assign(label="a"))
