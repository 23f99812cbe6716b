"""Overlap of updates: against dense ΔW, scipy's subspace angles, and sampled rotations."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from overlap_things import (
    SHAPES,
    Adapter,
    adapter,
    adapters,
    one_row,
    rejected,
    values,
)
from subnet._projections import rotation_moments
from subnet.overlap import UPDATE_MEASURES, _modules, _rotation, measure_overlap

NAME = "encoder.layer.0.query.weight"


def dense_cosine(a, b, names):
    x, y = (torch.cat([u.dense(n).double().flatten() for n in names]) for u in (a, b))
    return float(x @ y / (x.norm() * y.norm()))


def leading(matrix, k, side):
    u, _, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return u[:, :k] if side == "left" else vh[:k].T


def test_cosine_is_that_of_the_dense_updates_at_every_level():
    things = [adapter("de", seed=1), adapter("fr", seed=2, rank=5)]
    mixed = {
        name: (b + 0.3 * torch.nn.functional.pad(c, (0, 3)), a)
        for (name, (b, a)), (c, _) in zip(
            things[0].weights.items(), things[1].weights.values(), strict=True
        )
    }
    things[0] = Adapter(things[0].language, mixed)
    overlap = measure_overlap(things, measures=("cosine",))
    for level, module, part in (
        ("all", "", ""),
        ("layer", "0", "layer.0."),
        ("type", "attention.self.query", "query"),
    ):
        names = [name for name in SHAPES if part in name]
        row = one_row(overlap, "cosine", level=level, module=module)
        assert row["value"] == pytest.approx(dense_cosine(*things, names), abs=1e-6)
    for name in SHAPES:
        row = one_row(overlap, "cosine", level="module", module=name.removesuffix(".weight"))
        assert row["value"] == pytest.approx(dense_cosine(*things, [name]), abs=1e-6)


def test_subspaces_agree_with_scipy_for_unequal_ranks():
    things = [adapter("de", seed=1, rank=8), adapter("fr", seed=2, rank=3)]
    overlap = measure_overlap(things)
    for name in SHAPES:
        where = {"level": "module", "module": name.removesuffix(".weight")}
        for side, suffix in (("left", ""), ("right", "_right")):
            bases = [leading(u.dense(name), k, side) for u, k in zip(things, (8, 3), strict=True)]
            angles = linalg.subspace_angles(*bases)
            similarity = one_row(overlap, f"subspace_similarity{suffix}", **where)
            assert similarity["value"] == pytest.approx(np.sum(np.cos(angles) ** 2) / 3, abs=1e-6)
            assert (similarity["n_a"], similarity["n_b"]) == (8, 3)
            width = bases[0].shape[0]
            turned = one_row(overlap, f"subspace_similarity{suffix}", null="rotation", **where)
            assert turned["expected"] == pytest.approx(8 / width)  # max(i, j)/n
            angle = one_row(overlap, f"principal_angle{suffix}", **where)
            assert angle["value"] == pytest.approx(angles.max(), abs=1e-6)


def test_spectra_equal_the_singular_values_of_the_dense_update():
    things = [adapter("de", seed=1), adapter("fr", seed=2)]
    spectra = measure_overlap(things, measures=("cosine",)).spectra
    for thing in things:
        for name in SHAPES:
            row = spectra[
                (spectra["language"] == thing.language.label) & (spectra["parameter"] == name)
            ].iloc[0]
            sigma = np.linalg.svd(thing.dense(name).double().numpy(), compute_uv=False)[:8]
            assert row["rank"] == 8
            assert row["largest"] == pytest.approx(sigma[0], rel=1e-5)
            assert row["norm"] == pytest.approx(np.sqrt(np.sum(sigma**2)), rel=1e-5)
            share = sigma / sigma.sum()
            effective = np.exp(-np.sum(share * np.log(share)))
            assert row["effective_rank"] == pytest.approx(effective, rel=1e-5)


@pytest.mark.parametrize("kind", ["random", "scaled", "rotated"])
def test_factoring_the_same_update_differently_changes_nothing(kind):
    things = [adapter("de", seed=1), adapter("fr", seed=2), adapter("it", seed=3)]
    rng = np.random.default_rng(4)
    gauge = {
        "random": rng.standard_normal((8, 8)),
        "scaled": np.diag(10.0 ** np.linspace(-1, 1, 8)),
        "rotated": np.linalg.qr(rng.standard_normal((8, 8)))[0],
    }[kind]
    m, inverse = torch.from_numpy(gauge), torch.from_numpy(np.linalg.inv(gauge))
    other = Adapter(
        things[0].language,
        {
            name: ((b.double() @ m).float(), (inverse @ a.double()).float())
            for name, (b, a) in things[0].weights.items()
        },
    )
    before = measure_overlap(things).frame
    after = measure_overlap([other, *things[1:]]).frame
    columns = ["value", "expected", "z", "p_value"]
    assert before["measure"].nunique() == len(UPDATE_MEASURES)
    assert np.abs(before["value"] - after["value"]).max() < 1e-5
    assert np.allclose(before[columns], after[columns], atol=2e-3)


def test_an_update_compared_with_itself_reaches_the_end_of_every_scale():
    one = adapter("de", seed=1)
    overlap = measure_overlap([one, Adapter("x1", one.weights)])
    ends = {"cosine": 1.0, "subspace_similarity": 1.0, "principal_angle": 0.0}
    for measure, end in ends.items():
        row = one_row(overlap, measure)
        assert row["value"] == pytest.approx(end, abs=1e-5)
        assert row["p_value"] < 1e-3
        assert row["z"] > 5


def test_an_untrained_adapter_is_undefined_with_a_reason():
    one, other = adapter("de", seed=1), adapter("fr", seed=2)
    untrained = Adapter(
        other.language, {n: (torch.zeros_like(b), a) for n, (b, a) in other.weights.items()}
    )
    frame = measure_overlap([one, untrained]).frame
    assert frame[["value", "expected", "z", "p_value", "q_value"]].isna().all(axis=None)
    assert set(frame["reason"]) == {"the update of fr is zero here"}


def test_a_module_that_stayed_zero_only_counts_where_something_is_there():
    one, other = adapter("de", seed=1), adapter("fr", seed=2)
    name = next(iter(SHAPES))
    weights = dict(other.weights)
    weights[name] = (torch.zeros_like(weights[name][0]), weights[name][1])
    partly = Adapter(other.language, weights)
    overlap = measure_overlap([one, partly])
    row = one_row(overlap, "cosine")
    assert row["value"] == pytest.approx(dense_cosine(one, partly, list(SHAPES)), abs=1e-6)
    angle = one_row(overlap, "principal_angle")
    modules = overlap.frame.query("measure == 'principal_angle' and level == 'module'")["value"]
    assert modules.isna().sum() == 1
    assert angle["value"] == pytest.approx(modules.mean())


def test_left_is_the_output_side_also_where_the_base_stores_input_by_output():
    things = [
        adapter(label, seed=s, shapes={NAME: (96, 32)}) for label, s in (("de", 1), ("fr", 2))
    ]
    stored = [
        Adapter(
            u.language,
            {NAME: (u.weights[NAME][1].T, u.weights[NAME][0].T)},
            transposed=frozenset({NAME}),
        )
        for u in things
    ]
    plain, turned = measure_overlap(things).frame, measure_overlap(stored).frame
    assert np.allclose(plain["value"], turned["value"], atol=1e-6)
    assert np.allclose(plain["expected"], turned["expected"], atol=1e-6)


def haar(rng, n):
    return stats.ortho_group.rvs(n, random_state=rng)


@pytest.mark.parametrize(("shape", "ranks"), [((4, 3), (1, 1)), ((6, 5), (2, 3)), ((5, 1), (1, 1))])
def test_inner_product_moments_equal_sampled_rotations(shape, ranks):
    rng = np.random.default_rng(shape)
    a, b = (rng.standard_normal((shape[0], r)) @ rng.standard_normal((r, shape[1])) for r in ranks)
    left = stats.ortho_group.rvs(shape[0], size=40_000, random_state=rng)
    right = (
        stats.ortho_group.rvs(shape[1], size=40_000, random_state=rng)
        if shape[1] > 1
        else rng.choice([-1.0, 1.0], size=(40_000, 1, 1))
    )
    x = np.einsum("oi,nop,pq,niq->n", a, left, b, right, optimize=True)
    sigma = [np.linalg.svd(m, compute_uv=False) for m in (a, b)]
    variance, fourth = _rotation.inner_product_moments(
        shape,
        tuple(np.sum(s**2, keepdims=True) for s in sigma),
        tuple(np.sum(s**4, keepdims=True) for s in sigma),
    )
    assert variance[0] == pytest.approx(np.mean(x**2), rel=0.03)
    assert fourth[0] + 3 * variance[0] ** 2 == pytest.approx(np.mean(x**4), rel=0.06)


def random_bases(rng, n, k, count):
    return np.linalg.qr(rng.standard_normal((count, n, k)))[0]


@pytest.mark.parametrize(("n", "p", "q"), [(5, 1, 1), (12, 3, 5), (30, 8, 8), (7, 5, 4)])
def test_chance_level_of_subspaces_equals_that_of_random_bases(n, p, q):
    rng = np.random.default_rng((n, p, q))
    u, v = random_bases(rng, n, p, 20_000), random_bases(rng, n, q, 20_000)
    cosines = np.linalg.svd(np.swapaxes(u, 1, 2) @ v, compute_uv=False)
    shared = np.sum(cosines**2, axis=1)
    mean, variance = rotation_moments(n, np.array(float(p)), np.array(float(q)))
    assert mean == pytest.approx(shared.mean(), rel=0.02)
    assert variance == pytest.approx(shared.var(), rel=0.06)
    angles = np.arccos(np.clip(cosines.min(axis=1), 0, 1))
    drawn = _rotation.largest_angles(n, p, q, 20_000, 1)
    assert stats.ks_2samp(angles, drawn).pvalue > 0.001


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_three_to_seven_percent_of_independent_adapters_are_rejected(rank):
    shapes = {name: shape for name, shape in SHAPES.items() if "layer.0" in name}
    overlap = measure_overlap(
        adapters(100, seed=rank, rank=rank, shapes=shapes), levels=("all", "module")
    )
    assert overlap.warnings == ()
    for measure in UPDATE_MEASURES:
        for null in dict.fromkeys(("rotation", overlap.headline_null(measure))):
            for level in ("all", "module"):
                share = rejected(overlap, measure, null=null, level=level)
                assert 0.03 <= share <= 0.07, (measure, null, level, share)


def test_a_shared_direction_is_found_and_an_opposed_one_is_not():
    one, other = adapter("de", seed=1), adapter("fr", seed=2)
    weights = {
        name: (torch.cat([b, 0.5 * c], dim=1), torch.cat([a, d], dim=0))
        for (name, (b, a)), (c, d) in zip(one.weights.items(), other.weights.values(), strict=True)
    }
    same = measure_overlap([other, Adapter(one.language, weights)], measures=("cosine",))
    assert one_row(same, "cosine")["p_value"] < 1e-6
    opposed = Adapter(one.language, {name: (-b, a) for name, (b, a) in weights.items()})
    row = one_row(measure_overlap([other, opposed], measures=("cosine",)), "cosine")
    assert row["z"] < -5
    assert row["p_value"] > 0.99


def test_adapters_from_one_seed_are_named_in_one_warning():
    things = [adapter(n, seed=k, shared_a=9) for k, n in enumerate(("de", "fr", "it"))]
    things += [adapter("ru", seed=33), adapter("fi", seed=34)]
    overlap = measure_overlap(things)
    (warning,) = overlap.warnings
    assert warning.startswith("de, fr, it started from the same LoRA initialisation")
    assert "\n" not in warning
    # what the warning is about: the right side looks shared, the left side does not
    pair = {"language_a": "de", "language_b": "fr"}
    assert one_row(overlap, "subspace_similarity_right", **pair)["p_value"] < 1e-6
    assert one_row(overlap, "subspace_similarity", **pair)["p_value"] > 0.01


def test_a_shared_start_is_seen_across_ranks_and_between_replicates():
    rng = np.random.default_rng(0)
    long = {name: rng.standard_normal((8, i)) for name, (_, i) in SHAPES.items()}
    things = []
    for label, run, rank in (("de", "main", 8), ("fr", "main", 4), ("de", "second", 8)):
        own = adapter(label, seed=(rank, len(run)), rank=rank, run=run)
        weights = {n: (own.weights[n][0], torch.from_numpy(long[n][:rank]).float()) for n in SHAPES}
        things.append(Adapter(own.language, weights, run=run))
    (warning,) = measure_overlap(things).warnings
    assert "de (run main), fr (run main), de (run second)" in warning


@pytest.mark.parametrize("shape", [(2, 2), (16, 8), (16, 16), (96, 96)])
def test_different_seeds_are_not_warned_about_however_small_the_adapter(shape):
    for seed in range(5):
        things = adapters(12, seed=seed, rank=2, shapes={NAME: shape})
        assert measure_overlap(things, measures=("cosine",)).warnings == ()


def full(update: Adapter) -> Adapter:
    return dataclasses.replace(update, is_low_rank=False)


def test_full_updates_give_the_cosine_and_subspaces_of_the_same_adapters(monkeypatch):
    things = adapters(5, seed=3)
    low = measure_overlap(things).frame
    dense = measure_overlap([full(u) for u in things]).frame
    assert np.allclose(low["value"], dense["value"], atol=1e-4)
    assert list(low["n_a"]) == list(dense["n_a"])  # numerical rank 8 is below the 16 kept
    # and block by block, when not all of them fit into memory at once
    monkeypatch.setattr(_modules, "DENSE_BYTES", 2 * 256 * 96 * 4)
    blocked = measure_overlap([full(u) for u in things]).frame
    assert np.allclose(dense["value"], blocked["value"], atol=1e-5)


def test_the_stated_number_of_singular_vectors_of_a_wide_full_update():
    rng = np.random.default_rng(1)
    things = []
    for label in ("de", "fr"):
        core = rng.standard_normal((300, 20)) * 2.0 ** -np.arange(20)
        weights = {
            NAME: (
                torch.from_numpy(core).float(),
                torch.from_numpy(rng.standard_normal((20, 280))).float(),
            )
        }
        things.append(Adapter(label, weights, is_low_rank=False))
    overlap = measure_overlap(things, measures=("subspace_similarity",))
    row = one_row(overlap, "subspace_similarity")
    assert (row["n_a"], row["n_b"]) == (_modules.DENSE_RANK, _modules.DENSE_RANK)
    bases = [leading(u.dense(NAME), _modules.DENSE_RANK, "left") for u in things]
    expected = np.sum((bases[0].T @ bases[1]) ** 2) / _modules.DENSE_RANK
    assert row["value"] == pytest.approx(expected, abs=1e-3)
    assert overlap.spectra["effective_rank"].isna().all()
    again = measure_overlap(things, measures=("subspace_similarity",))
    assert np.array_equal(
        values(overlap, "subspace_similarity"), values(again, "subspace_similarity")
    )


def concentrated(count, *, seed, shapes, rank=8, spread=1.0, shared=False, shared_a=False):
    """Independent adapters whose columns, and with them the inputs, have log-normal scales."""
    rng = np.random.default_rng(seed)
    common = {
        n: (rng.standard_normal(i), rng.standard_normal((rank, i))) for n, (_, i) in shapes.items()
    }
    things = []
    for number in range(count):
        weights = {}
        for name, (o, i) in shapes.items():
            scale = np.exp(spread * (common[name][0] if shared else rng.standard_normal(i)))
            a = rng.standard_normal((rank, i))
            a = (common[name][1] + 0.1 * a if shared_a else a) * scale
            b = rng.standard_normal((o, rank))
            weights[name] = (torch.from_numpy(b).float(), torch.from_numpy(a).float())
        things.append(Adapter(f"x{number}", weights))
    return things


HALF = {name: shape for name, shape in SHAPES.items() if "layer.0" in name}


@pytest.mark.parametrize(
    ("rank", "details", "fooled"),
    [
        (2, {"spread": 0.0}, False),
        (2, {}, False),
        (8, {}, False),
        (2, {"shared": True}, True),
        (8, {"shared": True}, True),
        (8, {"spread": 0.0, "shared_a": True}, True),
        (8, {"shared": True, "shared_a": True}, True),
    ],
    ids=str,
)
def test_outlier_columns_and_a_shared_start_do_not_fool_the_headline_null_of_the_cosine(
    rank, details, fooled
):
    things = concentrated(80, seed=rank, shapes=HALF, rank=rank, **details)
    overlap = measure_overlap(things, measures=("cosine",), levels=("all", "module"))
    for level in ("all", "module"):
        assert 0.03 <= rejected(overlap, "cosine", null="structure", level=level) <= 0.07
        assert (rejected(overlap, "cosine", null="rotation", level=level) > 0.12) == fooled


@pytest.mark.parametrize("transposed", [False, True])
def test_variance_under_random_signs_of_the_rows_is_that_of_all_of_them(transposed):
    """Every one of 2⁶ sign patterns of the outputs of dense ΔW, two modules of different ranks."""
    shapes = {NAME: (3, 5), "encoder.layer.1.query.weight": (3, 4)}
    one, other = (adapter(n, seed=k + 4, shapes=shapes, rank=k) for n, k in (("de", 2), ("fr", 3)))
    products = [(one.dense(n).double() * other.dense(n).double()).numpy() for n in shapes]
    x = [
        np.sum(products[0] * np.reshape(signs[:3], (3, 1)))
        + np.sum(products[1] * np.reshape(signs[3:], (3, 1)))
        for signs in itertools.product((-1.0, 1.0), repeat=6)
    ]
    if transposed:
        one, other = (
            Adapter(
                u.language,
                {n: (a.T, b.T) for n, (b, a) in u.weights.items()},
                transposed=frozenset(shapes),
            )
            for u in (one, other)
        )
    row = one_row(measure_overlap([one, other], measures=("cosine",)), "cosine")
    observed = x[-1]  # all signs +1
    assert abs(observed) > np.std(x)  # a sum that does not cancel: its rounding is relative
    assert np.mean(x) == pytest.approx(0, abs=1e-9)
    assert row["z"] == pytest.approx(observed / np.std(x), rel=1e-5)
    assert row["p_value"] == pytest.approx(stats.norm.sf(observed / np.std(x)), rel=1e-5)
    full_rank = measure_overlap([full(one), full(other)], measures=("cosine",))
    assert one_row(full_rank, "cosine")["z"] == pytest.approx(row["z"], rel=1e-5)


def test_a_sign_test_over_few_rows_never_says_more_than_its_rows_can():
    things = [adapter("de", seed=1, shapes={NAME: (3, 40)}, rank=1)]
    b, a = things[0].weights[NAME]
    even = Adapter(things[0].language, {NAME: (torch.ones_like(b), a)})
    row = one_row(
        measure_overlap([even, Adapter("x1", even.weights)], measures=("cosine",)), "cosine"
    )
    assert row["z"] == pytest.approx(np.sqrt(3), rel=1e-5)
    assert row["p_value"] == pytest.approx(1 / 8)  # the normal tail is .042


def test_updates_whose_rows_never_meet_are_undefined_with_a_reason():
    upper, lower = (torch.zeros(6, 2) for _ in range(2))
    upper[:3], lower[3:] = 1.0, 1.0
    a = adapter("de", seed=1, shapes={NAME: (6, 5)}, rank=2).weights[NAME][1]
    overlap = measure_overlap(
        [Adapter("x0", {NAME: (upper, a)}), Adapter("x1", {NAME: (lower, a)})], measures=("cosine",)
    )
    row = one_row(overlap, "cosine")
    assert (row["value"], row["reason"]) == (0.0, "the null model allows one value only")
    assert np.isnan(row["p_value"])
