"""The nulls of masks: exact moments by enumeration, tails by sampling, calibration on adapters."""

import itertools

import numpy as np
import pytest
from scipy import stats

from overlap_things import SHAPES, adapter, adapters, mask, mask_of, one_row, pack, rejected
from subnet.overlap import _tails, measure_overlap
from subnet.overlap._permutation import pattern_weights, profile

WEIGHT = "encoder.layer.0.query.weight"


def random_signed_mask(rng, shape, density=0.5):
    kept = rng.random(shape) < density
    return kept, kept & (rng.random(shape) < 0.4)


def moments(a, b, shape):
    """Mean, second and third central moments of (X, D), by the closed form."""
    first, second = (profile(pack(kept), pack(negative), shape) for kept, negative in (a, b))
    of_two, of_three = pattern_weights(shape)
    return (
        first.mean * second.mean * shape[0] * shape[1],
        (first.second * second.second) @ of_two,
        (first.third * second.third) @ of_three,
    )


def shared_counts(a, b, permutations):
    """X and D for each (row permutation, column permutation)."""
    (kept_a, negative_a), (kept_b, negative_b) = a, b
    sign_a, sign_b = kept_a * (1 - 2 * negative_a), kept_b * (1 - 2 * negative_b)
    x, d = [], []
    for rows, columns in permutations:
        at = np.ix_(rows, columns)
        x.append(np.sum(kept_a * kept_b[at]))
        d.append(np.sum(sign_a * sign_b[at]))
    return np.array(x, dtype=float), np.array(d, dtype=float)


def central(x, d):
    x, d = x - x.mean(), d - d.mean()
    second = [np.mean(x * x), np.mean(x * d), np.mean(d * d)]
    return second, [np.mean(v) for v in (x**3, x * x * d, x * d * d, d**3)]


@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (4, 3), (2, 5), (4, 4), (6, 1), (1, 6)])
def test_moments_equal_complete_enumeration_of_row_and_column_permutations(shape):
    rng = np.random.default_rng(shape)
    a, b = random_signed_mask(rng, shape), random_signed_mask(rng, shape)
    every = itertools.product(
        itertools.permutations(range(shape[0])), itertools.permutations(range(shape[1]))
    )
    x, d = shared_counts(a, b, every)
    mean, second, third = moments(a, b, shape)
    expected_second, expected_third = central(x, d)
    assert mean == pytest.approx([x.mean(), d.mean()], abs=1e-10)
    assert second == pytest.approx(expected_second, abs=1e-10)
    assert third == pytest.approx(expected_third, abs=1e-10)


def test_moments_of_a_vector_are_hypergeometric():
    rng = np.random.default_rng(0)
    a, b = (random_signed_mask(rng, (40, 1), density) for density in (0.3, 0.6))
    mean, second, third = moments(a, b, (40, 1))
    expected = _tails.hypergeometric(40, a[0].sum(), b[0].sum())
    assert (mean[0], second[0], third[0]) == pytest.approx(tuple(map(float, expected)))


def low_rank_mask(rng, shape, rank, column_spread=0.0):
    o, i = shape
    scale = np.exp(column_spread * rng.standard_normal(i))
    matrix = rng.standard_normal((o, rank)) @ (rng.standard_normal((rank, i)) * scale)
    kept = np.abs(matrix) > np.quantile(np.abs(matrix), 0.95)
    return kept, kept & (matrix < 0)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_tail_follows_sampled_permutations_of_structured_masks(spread):
    rng = np.random.default_rng(7)
    shape = (64, 48)
    a, b = (low_rank_mask(rng, shape, 2, spread) for _ in range(2))
    drawn = ((rng.permutation(shape[0]), rng.permutation(shape[1])) for _ in range(20_000))
    x, _ = shared_counts(a, b, drawn)
    mean, second, third = moments(a, b, shape)
    assert mean[0] == pytest.approx(x.mean(), rel=0.03)
    assert second[0] == pytest.approx(x.var(), rel=0.1)
    for quantile in (0.5, 0.9, 0.95, 0.99):
        at = np.quantile(x, quantile)
        p = _tails.pearson3_sf(at - 0.5, mean[0], second[0], third[0])
        assert p == pytest.approx(np.mean(x >= at), rel=0.25, abs=0.004)


def test_one_heavy_column_is_still_rejected_only_where_the_columns_meet():
    # All weights in one of 96 columns: the two columns meet with probability 1/96.
    shape = (96, 96)
    column = np.zeros(shape, dtype=bool)
    column[:60, 0] = True
    apart = np.roll(column, 1, axis=1)
    together = measure_overlap([mask("de", {WEIGHT: column}), mask("fr", {WEIGHT: column})])
    distinct = measure_overlap([mask("de", {WEIGHT: column}), mask("fr", {WEIGHT: apart})])
    assert one_row(together, "jaccard")["p_value"] < 0.02
    assert one_row(distinct, "jaccard")["p_value"] == 1


def test_element_null_is_the_hypergeometric_distribution():
    rng = np.random.default_rng(3)
    shape = (7, 9)
    a, b = (rng.random(shape) < density for density in (0.3, 0.45))
    row = one_row(
        measure_overlap([mask("de", {WEIGHT: a}), mask("fr", {WEIGHT: b})]),
        "jaccard",
        null="element",
    )
    sizes, x = (int(a.sum()), int(b.sum())), np.arange(64)
    pmf = stats.hypergeom.pmf(x, 63, *sizes)
    expected = np.sum(pmf * x / (sum(sizes) - np.minimum(x, min(sizes))))
    assert row["expected"] == pytest.approx(expected, rel=1e-9)
    assert row["p_value"] == pytest.approx(pmf[(a & b).sum() :].sum(), rel=1e-9)
    deviation = (a & b).sum() - sizes[0] * sizes[1] / 63
    assert row["z"] == pytest.approx(deviation / stats.hypergeom.std(63, *sizes), rel=1e-9)


@pytest.mark.parametrize(("total", "a", "b"), [(2000, 65, 200), (9216, 461, 900), (500, 350, 350)])
def test_expected_jaccard_of_large_masks_equals_the_sum_over_the_pmf(total, a, b):
    x = np.arange(max(0, a + b - total), min(a, b) + 1)
    exact = np.sum(stats.hypergeom.pmf(x, total, a, b) * x / (a + b - x))
    found = _tails.expected_jaccard_hypergeometric(np.array(total), np.array(a), np.array(b))
    assert found == pytest.approx(exact, rel=1e-6)


def test_expected_jaccard_at_keep_rate_seven_tenths_is_far_from_zero():
    # independent masks that keep 70 % each: pq/(p + q − pq) = 0.54
    rng = np.random.default_rng(5)
    masks = [mask(f"x{n}", {WEIGHT: rng.random((96, 96)) < 0.7}) for n in range(2)]
    row = one_row(measure_overlap(masks), "jaccard")
    assert row["expected"] == pytest.approx(0.54, abs=0.01)
    assert row["value"] == pytest.approx(row["expected"], abs=0.01)


def test_expected_jaccard_under_the_structure_null_equals_sampled_permutations():
    rng = np.random.default_rng(11)
    shape = (64, 48)
    a, b = (low_rank_mask(rng, shape, 1) for _ in range(2))
    drawn = ((rng.permutation(shape[0]), rng.permutation(shape[1])) for _ in range(20_000))
    x, d = shared_counts(a, b, drawn)
    masks = [
        mask(label, {WEIGHT: kept}, signs={WEIGHT: pack(negative)})
        for label, (kept, negative) in (("de", a), ("fr", b))
    ]
    overlap = measure_overlap(masks)
    jaccard = x / (a[0].sum() + b[0].sum() - x)
    assert one_row(overlap, "jaccard")["expected"] == pytest.approx(jaccard.mean(), rel=0.02)
    ratio = np.mean((1 + d[x > 0] / x[x > 0]) / 2)
    assert one_row(overlap, "sign_agreement")["expected"] == pytest.approx(ratio, abs=0.02)
    row = one_row(overlap, "sign_agreement", null="element")
    assert row["expected"] == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def independent():
    """Overlap of 200 adapters, each from its own seed, none related to any other."""
    shapes = dict(itertools.islice(SHAPES.items(), 2))
    masks = [mask_of(update) for update in adapters(200, seed=42, shapes=shapes)]
    return measure_overlap(masks, measures=("jaccard", "sign_agreement"), levels=("all", "module"))


@pytest.mark.parametrize("level", ["all", "module"])
@pytest.mark.parametrize("measure", ["jaccard", "sign_agreement"])
def test_headline_null_rejects_three_to_seven_percent_of_independent_adapters(
    independent, measure, level
):
    assert 0.03 <= rejected(independent, measure, null="structure", level=level) <= 0.07


def test_element_null_rejects_too_often_for_independent_adapters(independent):
    assert rejected(independent, "jaccard", null="element", level="all") > 0.08


def test_columns_that_are_heavy_by_chance_do_not_fool_the_headline_null():
    # each adapter has outlier columns of its own
    rng = np.random.default_rng(9)
    masks = [mask(f"x{n}", {WEIGHT: low_rank_mask(rng, (96, 128), 2, 1.0)[0]}) for n in range(100)]
    overlap = measure_overlap(masks, measures=("jaccard",), levels=("module",))
    assert 0.03 <= rejected(overlap, "jaccard", null="structure", level="module") <= 0.07
    assert rejected(overlap, "jaccard", null="element", level="module") > 0.2


def test_planted_sharing_is_found_and_relabelled_controls_are_not():
    # de and nl keep a common core of a tenth of their weights; fi has a core of its own
    rng = np.random.default_rng(21)
    core = {name: rng.random(shape) < 0.01 for name, shape in SHAPES.items()}
    masks = []
    for label in ("de", "nl", "fi"):
        own = mask_of(adapter(label, seed=(5, ord(label[0]))))
        arrays = {name: own.dense(name) for name in SHAPES}
        if label != "fi":
            arrays = {name: array | core[name] for name, array in arrays.items()}
        masks.append(mask(label, arrays))
    overlap = measure_overlap(masks)
    planted = one_row(overlap, "jaccard", language_a="de", language_b="nl")
    assert planted["p_value"] < 1e-6
    assert planted["q_value"] < 1e-6
    assert planted["value"] > planted["expected"]
    for label in ("de", "nl"):
        assert one_row(overlap, "jaccard", language_a=label, language_b="fi")["p_value"] > 0.01


def test_less_than_chance_has_negative_z_and_a_large_p_value():
    left, right = np.zeros((2, 64, 64), dtype=bool)
    left[:, :40], right[:, 40:] = True, True
    rng = np.random.default_rng(0)
    keep = rng.random((64, 64)) < 0.3
    overlap = measure_overlap(
        [mask("de", {WEIGHT: left & keep}), mask("fr", {WEIGHT: right & keep})]
    )
    for null in ("element", "structure"):
        row = one_row(overlap, "jaccard", null=null)
        assert row["value"] == 0
        assert row["z"] < 0
        assert row["p_value"] > 0.9


def test_masks_in_a_few_columns_say_that_their_p_is_rough():
    """All weights in one of 96 columns meet with probability .0104; three moments say .003."""
    column = np.zeros((96, 96), dtype=bool)
    column[:60, 0] = True
    meeting = measure_overlap([mask("de", {WEIGHT: column}), mask("fr", {WEIGHT: column})])
    row = one_row(meeting, "jaccard")
    assert row["p_value"] < 1 / 96
    assert "p is rough" in row["reason"]
    assert one_row(meeting, "jaccard", null="element")["reason"] == ""
    rng = np.random.default_rng(2)
    spread = [mask(f"x{n}", {WEIGHT: low_rank_mask(rng, (96, 96), 2, 1.0)[0]}) for n in range(12)]
    assert (measure_overlap(spread, measures=("jaccard",)).frame["reason"] == "").mean() > 0.9
