import itertools

import numpy as np
import pytest

from overlap_things import adapters, mask, mask_of, one_row, pack
from subnet.overlap import count_intersections, measure_overlap

WEIGHT = "encoder.layer.0.query.weight"


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (13, 17), (64, 1031), (700, 1000)])
def test_counts_equal_those_of_boolean_arrays(shape):
    rng = np.random.default_rng(shape)
    arrays = rng.random((5, 2, *shape)) < rng.random((5, 2, 1, 1))
    counts = count_intersections([[pack(array) for array in row] for row in arrays])
    for a, b, m in itertools.product(range(5), range(5), range(2)):
        assert counts[a, b, m] == (arrays[a, m] & arrays[b, m]).sum()


def test_all_five_measures_of_a_hand_made_pair():
    first = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    second = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    negative = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    overlap = measure_overlap(
        [
            mask("de", {WEIGHT: first}, signs={WEIGHT: pack(negative)}),
            mask("fr", {WEIGHT: second}, signs={WEIGHT: pack(np.zeros_like(first))}),
        ]
    )
    row = one_row(overlap, "jaccard")
    assert (row["n_a"], row["n_b"]) == (6, 4)
    assert row["value"] == pytest.approx(3 / 7)
    assert one_row(overlap, "dice")["value"] == pytest.approx(6 / 10)
    assert one_row(overlap, "overlap_coefficient")["value"] == pytest.approx(3 / 4)
    assert one_row(overlap, "containment", language_a="de")["value"] == pytest.approx(3 / 6)
    assert one_row(overlap, "containment", language_a="fr")["value"] == pytest.approx(3 / 4)
    assert one_row(overlap, "sign_agreement")["value"] == pytest.approx(2 / 3)


def test_layers_types_and_all_are_sets_over_several_modules():
    masks = [mask_of(update) for update in adapters(3, seed=1)]
    overlap = measure_overlap(masks, measures=("jaccard", "sign_agreement"))
    groups = {
        ("all", ""): "",
        ("layer", "1"): "layer.1.",
        ("type", "intermediate.dense"): "intermediate",
        ("module", "bert.encoder.layer.0.attention.self.query"): "layer.0.attention",
    }
    for (level, module), part in groups.items():
        names = [name for name in masks[0].shapes if part in name]
        a, b = (np.concatenate([m.dense(n).ravel() for n in names]) for m in masks[:2])
        s, t = (
            np.concatenate(
                [np.unpackbits(m.signs[n], bitorder="little", count=m.sizes[n]) for n in names]
            )
            for m in masks[:2]
        )
        where = {"level": level, "module": module, "language_a": "x0", "language_b": "x1"}
        assert one_row(overlap, "jaccard", **where)["value"] == (a & b).sum() / (a | b).sum()
        agreement = one_row(overlap, "sign_agreement", **where)["value"]
        assert agreement == pytest.approx(np.mean(s[a & b] == t[a & b]))


def test_an_empty_mask_is_undefined_with_a_reason_and_never_zero():
    some = np.eye(4, dtype=bool)
    none = np.zeros((4, 4), dtype=bool)
    overlap = measure_overlap(
        [mask("de", {WEIGHT: some}), mask("fr", {WEIGHT: none}), mask("it", {WEIGHT: none})]
    )
    both_empty = one_row(overlap, "jaccard", language_a="fr", language_b="it")
    assert np.isnan(both_empty["value"])
    assert both_empty["reason"] == "the mask of fr is empty here"
    assert np.isnan(both_empty["p_value"])
    smaller = one_row(overlap, "overlap_coefficient", language_a="de", language_b="fr")
    assert np.isnan(smaller["value"])
    assert smaller["reason"] == "the mask of fr is empty here"
    defined = one_row(overlap, "containment", language_a="de", language_b="fr")
    assert defined["value"] == 0
    assert np.isnan(defined["p_value"])
    assert defined["reason"] == "the null model allows one value only"


def test_an_empty_and_a_full_mask_are_named_to_the_reader():
    some = np.eye(4, dtype=bool)
    all_of_it, nothing = np.ones_like(some), np.zeros_like(some)
    overlap = measure_overlap(
        [
            mask("de", {WEIGHT: some}),
            mask("fr", {WEIGHT: all_of_it}),
            mask("it", {WEIGHT: nothing}),
        ]
    )
    assert overlap.warnings == (
        (
            "the mask of fr is full: every mask shares all its weights with it, and nothing "
            "follows from that"
        ),
        "the mask of it is empty: it has no overlap that could be measured",
    )
    for null in ("element", "structure"):
        row = one_row(overlap, "jaccard", null=null, language_a="de", language_b="fr")
        # What a full mask shares is the other's density, and chance gives exactly that.
        assert row["value"] == row["expected"] == 4 / 16
        assert np.isnan(row["z"])
        assert np.isnan(row["p_value"])
        assert row["reason"] == "the mask of fr is full here: any mask is inside it"
    with_full = one_row(overlap, "containment", language_a="fr", language_b="it")
    assert with_full["value"] == 0
    assert one_row(overlap, "containment", language_a="it", language_b="fr")["reason"] == (
        "the mask of it is empty here"
    )
    assert not measure_overlap([mask("de", {WEIGHT: some}), mask("fr", {WEIGHT: ~some})]).warnings


def test_a_module_that_a_mask_fills_is_no_full_mask():
    some = np.eye(4, dtype=bool)
    other = WEIGHT.replace("query", "key")
    masks = [
        mask("de", {WEIGHT: np.ones_like(some), other: some}),
        mask("fr", {WEIGHT: some, other: some}),
    ]
    overlap = measure_overlap(masks, measures=("jaccard",))
    assert overlap.warnings == ()
    where = {"level": "module", "module": WEIGHT.removesuffix(".weight")}
    assert "is full here" in one_row(overlap, "jaccard", **where)["reason"]
    assert one_row(overlap, "jaccard")["reason"] == ""


def test_unknown_signs_are_undefined_with_the_language_that_lacks_them():
    some = np.eye(4, dtype=bool)
    with_signs = mask("de", {WEIGHT: some}, signs={WEIGHT: pack(np.zeros((4, 4), dtype=bool))})
    overlap = measure_overlap([with_signs, mask("fr", {WEIGHT: some})])
    row = one_row(overlap, "sign_agreement")
    assert np.isnan(row["value"])
    assert row["reason"] == "the signs of the change are not known for fr"


def test_sign_agreement_is_not_offered_where_no_signs_are_known():
    some = np.eye(4, dtype=bool)
    overlap = measure_overlap([mask("de", {WEIGHT: some}), mask("fr", {WEIGHT: some})])
    assert "sign_agreement" not in overlap.measures


def test_masks_are_not_changed_and_order_of_languages_does_not_matter():
    masks = [mask_of(update) for update in adapters(3, seed=2)]
    before = {name: bits.copy() for name, bits in masks[0].bits.items()}
    forward = measure_overlap(masks).matrix("jaccard")
    backward = measure_overlap(masks[::-1]).matrix("jaccard")
    for name, bits in before.items():
        assert np.array_equal(masks[0].bits[name], bits)
    assert np.allclose(forward, backward.loc[forward.index, forward.columns], equal_nan=True)
