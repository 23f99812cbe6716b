"""Singular directions of updates: which are shared, against dense oracles and planted truths."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from checkpoint_makers import (
    delta_weights,
    gpt2,
    lora,
    save_adapter,
    write_lora_directory,
    write_stages,
)
from subnet._projections import rotation_moments, sign_moments
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.language import Language, parse_language
from subnet.overlap import measure_overlap
from subnet.subnetwork import Subnetwork, load_subnetwork
from subnet.subnetwork._directions_basis import joint_rotation, read_basis, thin_svd
from subnet.subnetwork._directions_null import chance
from subnet.subnetwork.directions import (
    DirectionSettings,
    extract_directions,
    measure_directions,
    read_directions,
)

QUERY = "encoder.layer.0.attention.self.query.weight"
DENSE = "encoder.layer.1.intermediate.dense.weight"
EXACT = DirectionSettings(energy=1.0, ties=0.0)
LABELS = ("de", "fr", "sw", "ru")


@dataclass
class Given:
    """An update in memory: the interface of `subnet.checkpoint.Update` that directions read."""

    label: str
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]
    run: str = "main"
    base: str = "tiny"
    kind: str = "lora"
    is_low_rank: bool = True
    transposed: frozenset[str] = frozenset()
    source: Path = field(default=Path("adapters/any"))

    @property
    def language(self) -> Language:
        return parse_language(self.label)

    @property
    def shapes(self):
        return {name: (b.shape[0], a.shape[1]) for name, (b, a) in self.weights.items()}

    def factors(self, parameter):
        assert self.is_low_rank
        return self.weights[parameter]

    def first_factor(self, parameter):
        return self.weights[parameter][1]

    def dense(self, parameter):
        b, a = self.weights[parameter]
        return b @ a


def orthonormal(rng, n, k):
    return np.linalg.qr(rng.standard_normal((n, k)))[0]


def pair(b, a):
    return torch.from_numpy(b).float(), torch.from_numpy(a).float()


def random_update(label, seed, *, ranks=(4, 4), rows=None, **details):
    """Independent Gaussian factors; `rows` scales the outputs (outlier coordinates)."""
    rng = np.random.default_rng((seed, *label.encode()))
    weights = {}
    for name, (o, i), rank in zip((QUERY, DENSE), ((64, 40), (96, 40)), ranks, strict=True):
        b = rng.standard_normal((o, rank))
        if rows is not None:
            b *= (rows(rng, o) if callable(rows) else rows[o])[:, None]
        weights[name] = pair(b, rng.standard_normal((rank, i)))
    return Given(label, weights, **details)


def rows_of(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_numbers_are_those_of_the_dense_singular_value_decomposition(side, transposed):
    ranks = {"de": (4, 7), "fr": (2, 5), "sw": (6, 1)}
    updates = [random_update(label, 0, ranks=r) for label, r in ranks.items()]
    if transposed:  # the same ΔW, stored as [input, output]
        updates = [
            replace(
                u, weights={n: (a.T, b.T) for n, (b, a) in u.weights.items()},
                transposed=frozenset({QUERY, DENSE}),
            )
            for u in updates
        ]  # fmt: skip
    frame = measure_directions(updates, replace(EXACT, side=side)).to_frame()
    assert len(frame) == 2 * sum(map(sum, ranks.values()))
    for at, name in enumerate((QUERY, DENSE)):
        spectra = {}
        for update in updates:
            matrix = update.dense(name).double()
            u, s, vh = torch.linalg.svd(matrix.T if transposed else matrix, full_matrices=False)
            k = ranks[update.label][at]
            spectra[update.label] = ((u if side == "left" else vh.T)[:, :k], s[:k])
        for one, other in itertools.permutations(ranks, 2):
            found = rows_of(frame, module=name[: -len(".weight")], language=one, other=other)
            (u, s), (v, _) = spectra[one], spectra[other]
            assert found["direction"].tolist() == list(range(len(s)))
            np.testing.assert_allclose(found["singular_value"], s, rtol=1e-5)
            np.testing.assert_allclose(found["energy"], s**2 / (s**2).sum(), rtol=1e-5)
            np.testing.assert_allclose(found["captured"], ((v.T @ u) ** 2).sum(0), atol=1e-6)
    assert set(frame["side"]) == {side}
    assert set(frame["layer"]) == {"0", "1"}
    assert set(frame["type"]) == {"attention.self.query", "intermediate.dense"}


def test_thin_svd_never_needs_the_product():
    rng = np.random.default_rng(0)
    for n, m, r in ((9, 7, 3), (3, 7, 5), (5, 5, 5)):  # more factors than rows, too
        b, a = rng.standard_normal((n, r)), rng.standard_normal((m, r))
        u, s = thin_svd(b, a)
        expected = np.linalg.svd(b @ a.T, compute_uv=False)[: s.size]
        np.testing.assert_allclose(s, expected, atol=1e-12)
        np.testing.assert_allclose(u.T @ (b @ a.T) @ (b @ a.T).T @ u, np.diag(s**2), atol=1e-10)


def test_refactoring_scale_and_order_of_languages_change_nothing():
    updates = [random_update(label, 3, ranks=(5, 3)) for label in LABELS]
    settings = DirectionSettings(ties=0.2, min_captured=0.1)  # so that blocks are turned
    expected = measure_directions(updates, settings)
    rng = np.random.default_rng(1)
    changed = []
    for update in reversed(updates):
        weights = {}
        for name, (b, a) in update.weights.items():
            mix = rng.standard_normal((b.shape[1], b.shape[1])) + 2 * np.eye(b.shape[1])
            scale = 7.0 if update.label == "fr" else 1.0
            weights[name] = pair(scale * b.numpy() @ mix, np.linalg.inv(mix) @ a.numpy())
        changed.append(replace(update, weights=weights))
    found = measure_directions(changed, settings)
    keys = ["language", "module", "direction", "other"]
    one, other = (f.to_frame().sort_values(keys, ignore_index=True) for f in (expected, found))
    assert (one[keys] == other[keys]).all(axis=None)
    for column in ("energy", "captured", "expected", "p_value", "q_value"):
        np.testing.assert_allclose(one[column], other[column], atol=2e-4, rtol=2e-2)
    assert (expected.per_direction()["tied"] > 1).any()
    summaries = (f.summary().set_index("language").sort_index() for f in (expected, found))
    first, second = (s.select_dtypes("number") for s in summaries)
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_weak_directions_are_left_out_and_their_energy_is_told():
    rng = np.random.default_rng(0)
    strengths = np.array([3.0, 2.0, 1.0, 0.1, 0.001])
    updates = [
        Given(
            label,
            {QUERY: pair(orthonormal(rng, 64, 5) * strengths, orthonormal(rng, 40, 5).T)},
        )
        for label in ("de", "fr")
    ]
    total = (strengths**2).sum()
    for energy, kept in ((0.99, 3), (0.9995, 4), (0.9, 2), (1.0, 5)):
        found = measure_directions(updates, DirectionSettings(energy=energy))
        summary = found.summary().set_index("language").loc["de"]
        assert summary["n_directions"] == kept
        left_out = (strengths[kept:] ** 2).sum() / total
        assert summary["energy_left_out"] == pytest.approx(left_out, abs=1e-6)
        shares = [summary[f"energy_{s}"] for s in ("alone", "shared", "undecided", "left_out")]
        assert sum(shares) == pytest.approx(1)
        assert summary["energy_alone"] == pytest.approx(1 - left_out)


def test_a_block_of_equal_singular_values_is_never_cut():
    rng = np.random.default_rng(0)
    strengths = np.array([2.0, 1.0, 0.99, 0.98, 0.1])
    updates = [
        Given(label, {QUERY: pair(orthonormal(rng, 64, 5) * strengths, orthonormal(rng, 40, 5).T)})
        for label in ("de", "fr")
    ]
    for ties, kept in ((0.05, 4), (0.0, 2)):  # the second holds 72 %
        settings = DirectionSettings(energy=0.7, ties=ties)
        assert (
            measure_directions(updates, settings).summary()["n_directions"].tolist() == [kept] * 2
        )


def test_updates_without_factors_are_decomposed_themselves():
    updates = [random_update(label, 2, ranks=(4, 6)) for label in ("de", "fr")]
    expected = measure_directions(updates, EXACT).to_frame()
    whole = [replace(update, is_low_rank=False, kind="full") for update in updates]
    found = measure_directions(whole, EXACT)
    numbers = expected.select_dtypes("number").columns
    np.testing.assert_allclose(found.to_frame()[numbers], expected[numbers], atol=1e-4)
    assert found.subnetworks()["de"].seed == 0
    assert measure_directions(updates).subnetworks()["de"].seed is None
    three = measure_directions(whole, replace(EXACT, dense_rank=3)).summary()
    assert three["n_directions"].tolist() == [6, 6]  # three of each of two modules
    names = (QUERY, DENSE)
    square = sum(torch.linalg.svdvals(updates[0].dense(n))[3:].square().sum() for n in names)
    total = sum(updates[0].dense(n).square().sum() for n in names)
    assert three["energy_left_out"][0] == pytest.approx(float(square / total), rel=1e-4)


def test_a_large_update_without_factors_is_sketched_well_enough():
    rng = np.random.default_rng(0)
    u, v = orthonormal(rng, 300, 40), orthonormal(rng, 280, 40)
    strengths = 0.9 ** np.arange(40)
    update = Given("de", {QUERY: pair(u * strengths, v.T)}, is_low_rank=False)
    basis = read_basis(update, QUERY, side="left", energy=1.0, ties=0.0, dense_rank=8, seed=0)
    np.testing.assert_allclose(basis.values, strengths[:8], rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(basis.vectors * u[:, :8], axis=0)), 1, atol=1e-3)
    assert basis.square == pytest.approx((strengths**2).sum(), rel=1e-5)


# --- null models ---------------------------------------------------------------------------------


def two_languages(rng, n, b, r):
    """A block of b directions of one language, r directions of another."""
    vectors = np.concatenate([orthonormal(rng, n, b), orthonormal(rng, n, r)], axis=1)
    owner = np.repeat([0, 1], [b, r])
    return vectors, np.concatenate([np.zeros(b, int), np.arange(1, r + 1)]), owner


@pytest.mark.parametrize(("n", "b", "r"), [(6, 1, 2), (6, 2, 3), (5, 1, 4), (7, 3, 1)])
def test_moments_of_signs_equal_complete_enumeration(n, b, r):
    vectors, blocks, owner = two_languages(np.random.default_rng(n + b + r), n, b, r)
    u, basis = vectors[:, :b], vectors[:, b:]
    signs = np.array(list(itertools.product((1, -1), repeat=n)), dtype=float)
    inside = np.einsum("sn,nk,nr->skr", signs, u, basis) ** 2
    found = chance("signs", vectors, blocks, owner, 2)
    np.testing.assert_allclose(found.expected[:b, 1], inside.sum(2).mean(0))
    whole = inside.sum((1, 2))
    np.testing.assert_allclose(found.mean[:b, 1], whole.mean())
    np.testing.assert_allclose(found.variance[:b, 1], whole.var(), atol=1e-12)


@pytest.mark.parametrize(("n", "b", "r"), [(5, 1, 2), (5, 2, 2), (4, 1, 3)])
def test_moments_of_permutations_equal_complete_enumeration(n, b, r):
    vectors, blocks, owner = two_languages(np.random.default_rng(n + b + r), n, b, r)
    u, basis = vectors[:, :b], vectors[:, b:]
    signs = np.array(list(itertools.product((1, -1), repeat=n)), dtype=float)
    orders = np.array(list(itertools.permutations(range(n))))
    moved = signs[:, None, :, None] * u[orders][None]  # [signs, orders, n, b]
    whole = (np.einsum("sonk,nr->sokr", moved, basis) ** 2).sum((2, 3))
    found = chance("permutation", vectors, blocks, owner, 2)
    np.testing.assert_allclose(found.expected[:b, 1], r / n)
    np.testing.assert_allclose(found.mean[:b, 1], whole.mean())
    np.testing.assert_allclose(found.variance[:b, 1], whole.var(), atol=1e-12)


def test_the_rotation_null_of_a_direction_is_the_beta_distribution():
    rng = np.random.default_rng(0)
    vectors, blocks, owner = two_languages(rng, 20, 1, 3)
    found = chance("rotation", vectors, blocks, owner, 2)
    for x in (0.05, 0.2, 0.6):
        p = found.p_value(np.full((4, 2), x))[0, 1]
        assert p == pytest.approx(stats.beta.sf(x, 3 / 2, 17 / 2), rel=1e-9)
    drawn = rng.standard_normal((20_000, 20))
    inside = ((drawn @ vectors[:, 1:]) ** 2).sum(1) / (drawn**2).sum(1)
    assert found.variance[0, 1] == pytest.approx(inside.var(), rel=0.05)


@pytest.mark.parametrize("n", [30, 2000])  # by tiles, and by products of basis vectors
def test_moments_of_a_whole_language_are_those_of_subspace_similarity(n):
    vectors, blocks, owner = two_languages(np.random.default_rng(0), n, 3, 5)
    bases = np.zeros((n, 2, 5))
    bases[:, 0, :3], bases[:, 1] = vectors[:, :3], vectors[:, 3:]
    signs = chance("signs", vectors, blocks, owner, 2)
    for found, expected in zip((signs.mean, signs.variance), sign_moments(bases), strict=True):
        np.testing.assert_allclose(found[0, 1], expected[0, 1], rtol=1e-5)
    turned = chance("rotation", vectors, blocks, owner, 2)
    for found, expected in zip(
        (turned.mean, turned.variance), rotation_moments(n, np.array(3.0), np.array(5.0)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(found[0, 1], expected)


@pytest.mark.parametrize("r", [2, 20])  # 20 directions: more products than coordinates
def test_tail_of_signs_follows_sampled_signs_of_concentrated_directions(r):
    rng = np.random.default_rng(4)
    scale = np.exp(rng.standard_normal(48))[:, None]
    u = np.linalg.qr(scale * rng.standard_normal((48, 1)))[0]
    basis = np.linalg.qr(scale * rng.standard_normal((48, r)))[0]
    vectors = np.concatenate([u, basis], axis=1)
    found = chance("signs", vectors, np.arange(r + 1), np.repeat([0, 1], [1, r]), 2)
    signs = rng.choice([1.0, -1.0], (40_000, 48))
    inside = ((signs * u.T @ basis) ** 2).sum(1)
    assert found.mean[0, 1] == pytest.approx(inside.mean(), rel=0.02)
    assert found.variance[0, 1] == pytest.approx(inside.var(), rel=0.04)
    for quantile in (0.5, 0.9, 0.95, 0.99):
        x = np.quantile(inside, quantile)
        p = found.p_value(np.full((r + 1, 2), x))[0, 1]
        assert 0.75 * (1 - quantile) - 0.002 < p < 2.5 * (1 - quantile)  # rather too large


def outliers(rng, n):
    scale = np.ones(n)
    scale[rng.choice(n, 5, replace=False)] = 15
    return scale


def common_outliers():
    rng = np.random.default_rng(99)
    return {n: outliers(rng, n) * np.exp(0.5 * rng.standard_normal(n)) for n in (64, 96)}


def null_findings(rows, **settings):
    frames = []
    for seed in range(12):
        updates = [random_update(label, seed, rows=rows) for label in LABELS]
        found = measure_directions(updates, DirectionSettings(energy=1.0, **settings))
        frames.append(found.to_frame())
    p = np.concatenate([frame["p_value"] for frame in frames])
    shared = np.concatenate([frame["shared"] for frame in frames])
    assert not np.isnan(p).any()
    assert len(p) == 12 * 4 * 8 * 3
    return p, shared


@pytest.mark.parametrize("rows", [None, outliers, common_outliers()], ids=["even", "own", "common"])
def test_independent_adapters_share_nothing(rows):
    # own outlier coordinates, and, harder, those of the model, the same in every language
    p, shared = null_findings(rows, ties=0.0)
    assert 0.03 < (p < 0.05).mean() < 0.07
    assert (p < 0.001).mean() < 0.004
    assert shared.mean() < 0.001
    p, shared = null_findings(rows)  # chosen within blocks: never more often
    assert (p < 0.05).mean() < 0.06
    assert shared.mean() < 0.001


def test_only_signs_hold_their_level_where_languages_have_outlier_coordinates_in_common():
    for null, least in (("permutation", 0.3), ("rotation", 0.4)):
        p, shared = null_findings(common_outliers(), null=null, ties=0.0)
        assert (p < 0.05).mean() > least
        assert shared.mean() > 0.05
    p, _ = null_findings(outliers, null="permutation", ties=0.0)
    assert 0.02 < (p < 0.05).mean() < 0.075


def test_directions_on_common_outliers_are_undecided_rather_than_alone():
    updates = [random_update(label, 0, rows=common_outliers()) for label in LABELS]
    found = measure_directions(updates).per_direction()
    held = found["most_captured"] >= 0.5
    assert held.sum() > 10
    assert set(found["status"][held]) == {"undecided"}
    assert set(found["status"][~held]) == {"alone"}


# --- planted truth -------------------------------------------------------------------------------

#: Columns of a common orthonormal basis that each language uses; 0 is everyone's.
PLAN = {"de": (0, 1, 2, 3), "fr": (0, 1, 4, 5), "sw": (0, 6, 7, 8), "ru": (9, 10, 11, 5)}
SHARED = {
    (language, column): {
        other for other in PLAN if other != language and column in PLAN[other]
    }
    for language in PLAN
    for column in PLAN[language]
}  # fmt: skip


def planted(seed, strengths, *, noise=0.02):
    """The languages' updates and the basis of each module."""
    rng = np.random.default_rng(seed)
    bases = {name: orthonormal(rng, n, 12) for name, n in ((QUERY, 64), (DENSE, 96))}
    updates = []
    for label, columns in PLAN.items():
        weights = {}
        for name, basis in bases.items():
            b = basis[:, columns] * rng.permutation(strengths)
            b = b + noise * rng.standard_normal(b.shape) / np.sqrt(len(b))
            weights[name] = pair(b, orthonormal(rng, 40, 4).T)
        updates.append(Given(label, weights))
    return updates, bases


def recovered(updates, bases, settings):
    """Whether every common column is found, with those that share it, and all others are alone."""
    frame = measure_directions(updates, settings).per_direction()
    for name, basis in bases.items():
        for update, directions in zip(
            updates, read_directions(updates, name, settings), strict=True
        ):
            rows = rows_of(frame, module=name[: -len(".weight")], language=update.label)
            np.testing.assert_allclose(rows["singular_value"], directions.values)
            inside = (basis.T @ directions.vectors) ** 2  # [12, k]
            # columns of its own may be mixed with each other, where they are equally strong
            own = [column for column in PLAN[update.label] if not SHARED[update.label, column]]
            for at, (status, labels) in enumerate(
                zip(rows["status"], rows["shared_with"], strict=True)
            ):
                column = int(np.argmax(inside[:, at]))
                others = SHARED.get((update.label, column), set())
                part = inside[column, at] if others else inside[own, at].sum()
                expected = ("shared" if others else "alone", others)
                if part < 0.95 or (status, set(labels.split(", ")) - {""}) != expected:
                    return False
            if len(rows) != 4 or (rows["status"] == "alone").sum() != len(own):
                return False
    return True


@pytest.mark.parametrize(
    "strengths",
    [[4.0, 3.0, 2.0, 1.0], [1.0, 0.99, 0.98, 0.97], [2.0, 2.0, 1.0, 1.0]],
    ids=["apart", "nearly equal", "equal pairs"],
)
def test_planted_directions_are_recovered_exactly(strengths):
    for seed in range(8):
        assert recovered(*planted(seed, strengths), DirectionSettings())


def test_without_blocks_nearly_equal_directions_come_out_mixed():
    for seed in range(4):
        updates, bases = planted(seed, [1.0, 0.999, 0.998, 0.997])
        assert recovered(updates, bases, DirectionSettings())
        assert not recovered(updates, bases, DirectionSettings(ties=0.0))


def test_masks_of_planted_languages_are_a_set_algebra():
    updates, _ = planted(0, [4.0, 3.0, 2.0, 1.0])
    found = measure_directions(updates)
    masks = found.subnetworks()
    de, fr, sw, ru = masks
    assert masks.languages == tuple(PLAN)
    assert {m.granularity for m in masks} == {"direction"}
    entry = QUERY.replace(".weight", ".directions")
    assert dict(de.shapes) == {entry: (16,), DENSE.replace(".weight", ".directions"): (16,)}
    # own four, and of each common one the copy of every language that has it
    assert de.counts[entry] == 4 + 2 + 1  # fr has columns 0 and 1, sw column 0
    assert ru.counts[entry] == 4 + 1
    assert (de & fr).counts[entry] == 5  # columns 0 and 1 of both, and sw's column 0
    assert (de & sw).counts[entry] == 3
    assert (de & ru).count == 0
    assert (de & fr & sw).counts[entry] == 3  # column 0, from three sides
    alone = de - fr - sw - ru
    assert alone.counts[entry] == 2
    frame = rows_of(found.per_direction(), module=QUERY[: -len(".weight")], language="de")
    assert np.flatnonzero(alone.dense(entry)).tolist() == frame.loc[
        frame["status"] == "alone", "direction"
    ].tolist()  # fmt: skip
    start = sum(fr.settings["ranks"][entry][:1])
    assert fr.settings["languages"] == list(PLAN)
    assert fr.dense(entry)[start : start + 4].all()
    assert (fr.settings["n_alone"], fr.settings["n_shared"]) == (2, 6)
    assert fr.settings["null"] == "signs"
    assert fr.settings["energy"] == 0.99


def test_summary_weighs_directions_by_energy():
    rng = np.random.default_rng(0)
    common, own = orthonormal(rng, 64, 3)[:, :1], orthonormal(rng, 64, 2)
    own -= common @ (common.T @ own)
    own, _ = np.linalg.qr(own)
    strengths = {"de": (3.0, 1.0), "fr": (1.0, 2.0)}
    updates = []
    for at, (label, (together, alone)) in enumerate(strengths.items()):
        b = np.concatenate([together * common, alone * own[:, [at]]], axis=1)
        updates.append(Given(label, {QUERY: pair(b, orthonormal(rng, 40, 2).T)}))
    summary = measure_directions(updates).summary().set_index("language")
    assert summary["energy_shared"].to_dict() == pytest.approx({"de": 0.9, "fr": 0.2})
    assert summary["energy_alone"].to_dict() == pytest.approx({"de": 0.1, "fr": 0.8})
    assert summary["n_shared"].tolist() == summary["n_alone"].tolist() == [1, 1]


def test_q_values_are_corrected_over_all_tests_of_a_run():
    first = [random_update(label, 0) for label in ("de", "fr", "sw")]
    second = [random_update(label, 1, run="again") for label in ("de", "fr")]
    frame = measure_directions([*first, *second]).to_frame()
    for run in ("main", "again"):
        rows = rows_of(frame, run=run)
        expected = stats.false_discovery_control(rows["p_value"])
        np.testing.assert_allclose(rows["q_value"], expected)
    alone = measure_directions(second).to_frame()
    np.testing.assert_allclose(rows_of(frame, run="again")["q_value"], alone["q_value"])
    masks = measure_directions([*first, *second]).subnetworks()
    with pytest.raises(NotComparableError, match="de and fr number different directions"):
        _ = masks["de", "main"] & masks["fr", "again"]


def test_sharing_needs_both_size_and_more_than_chance():
    updates, _ = planted(0, [4.0, 3.0, 2.0, 1.0])
    frame = measure_directions(updates).to_frame()
    enough = frame["captured"] >= 0.5
    assert (frame["shared"] == (enough & (frame["q_value"] <= 0.05))).all()
    strict = measure_directions(updates, DirectionSettings(min_captured=0.999999)).to_frame()
    assert not strict["shared"].any()
    careful = measure_directions(updates, DirectionSettings(alpha=1e-30)).per_direction()
    assert set(careful["status"]) == {"alone", "undecided"}


def test_joint_rotation_finds_the_common_axes():
    rng = np.random.default_rng(0)
    axes = orthonormal(rng, 4, 4)
    diagonals = ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0])
    matrices = np.stack([axes * np.array(d, float) @ axes.T for d in diagonals])
    found = joint_rotation(matrices)
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(np.sort(np.abs(axes.T @ found), axis=0)[-1], 1, atol=1e-9)
    half = np.full((1, 2, 2), 0.5)  # half a turn away, where the gradient is zero
    np.testing.assert_allclose(np.abs(joint_rotation(half)), np.sqrt(0.5), atol=1e-12)


# --- what is refused or told ---------------------------------------------------------------------


def test_a_zero_update_is_refused_by_name():
    updates = [random_update(label, 0) for label in ("de", "fr")]
    zero = {name: (torch.zeros_like(b), a) for name, (b, a) in updates[1].weights.items()}
    updates[1] = replace(updates[1], weights=zero)
    with pytest.raises(InputError, match="the update of fr is zero everywhere; expected weights"):
        measure_directions(updates)
    with pytest.raises(InputError, match=r"adapters/any: the update of fr is zero"):
        extract_directions(updates, DirectionSettings(side="right"))


def test_a_module_that_a_language_did_not_change_is_not_shared_with_it():
    updates = [random_update(label, 0) for label in ("de", "fr", "sw")]
    b, a = updates[1].weights[QUERY]
    updates[1].weights[QUERY] = (torch.zeros_like(b), a)
    found = measure_directions(updates, EXACT)
    rows = rows_of(found.to_frame(), module=QUERY[: -len(".weight")])
    assert set(rows["language"]) == {"de", "sw"}
    towards = rows_of(rows, other="fr")
    assert (towards["captured"] == 0).all()
    assert towards["p_value"].isna().all()
    assert set(towards["reason"]) == {"the update of fr is zero here"}
    assert set(rows_of(rows, other="sw")["reason"]) == {""}
    assert set(found.per_direction()["status"]) == {"alone"}
    # in no language
    for update in updates:
        update.weights[QUERY] = (torch.zeros(64, 2), torch.zeros(2, 40))
    assert set(measure_directions(updates).to_frame()["module"]) == {DENSE[: -len(".weight")]}
    assert measure_directions(updates).subnetworks()["de"].sizes[QUERY[:-6] + "directions"] == 0


def test_where_chance_allows_one_value_nothing_is_tested_and_nothing_called_alone():
    a = np.eye(2, 40)
    one = Given("de", {QUERY: pair(np.eye(64)[:, :2] * [2.0, 1.0], a)})
    other = replace(one, label="fr")
    found = measure_directions([one, other])
    assert found.to_frame()["p_value"].isna().all()
    assert set(found.to_frame()["reason"]) == {
        "on so few coordinates the null model allows one value only"
    }
    assert set(found.per_direction()["status"]) == {"undecided"}
    everything = Given(
        "sw", {QUERY: pair(orthonormal(np.random.default_rng(0), 64, 64), np.eye(64))}
    )
    rng = np.random.default_rng(1)
    small = Given("de", {QUERY: pair(rng.standard_normal((64, 2)), rng.standard_normal((2, 64)))})
    for null in ("signs", "permutation", "rotation"):
        frame = measure_directions([small, everything], replace(EXACT, null=null)).to_frame()
        towards = rows_of(frame, other="sw")
        assert set(towards["reason"]) == {"the directions of sw fill the space"}
        np.testing.assert_allclose(towards["captured"], 1)


def test_a_single_language_has_nothing_to_share():
    with pytest.raises(InputError, match="run main holds the update of de only; expected at least"):
        measure_directions([random_update("de", 0)])
    updates = [random_update(label, 0) for label in ("de", "fr")]
    with pytest.raises(InputError, match="the run b holds the update of de only"):
        measure_directions([*updates, random_update("de", 1, run="b")])
    with pytest.raises(MissingInputError, match="no update"):
        measure_directions([])
    with pytest.raises(InputError, match="de has two updates in the run main"):
        measure_directions([updates[0], updates[0]])


def test_what_has_no_common_ground_is_refused():
    de, fr = (random_update(label, 0) for label in ("de", "fr"))
    with pytest.raises(NotComparableError, match="different bases, 'tiny' and 'other'"):
        measure_directions([de, replace(fr, base="other")])
    only = replace(fr, weights={"other.weight": fr.weights[QUERY]})
    with pytest.raises(NotComparableError, match="no weight matrix was changed in all of de, fr"):
        measure_directions([de, only])
    swapped = replace(fr, weights={QUERY: fr.weights[DENSE]})
    with pytest.raises(
        NotComparableError, match=r"has shape \[96, 40\] in fr; expected \[64, 40\]"
    ):
        measure_directions([de, swapped])
    part = replace(fr, weights={QUERY: fr.weights[QUERY]})
    found = measure_directions([de, part])
    changed = f"changed them, for example {DENSE}"
    assert set(found.to_frame()["module"]) == {QUERY[: -len(".weight")]}
    assert found.warnings == (
        f"1 of 2 weight matrices are left out because not every language of the run main {changed}",
    )
    assert found.subnetworks()["de"].settings["warnings"] == list(found.warnings)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": "top"}, "side is 'top'; expected 'left' or 'right'"),
        ({"min_captured": 1.0}, "min_captured is 1.0; expected a number, 0 < min_captured < 1"),
        ({"alpha": 0}, "alpha is 0; expected"),
        ({"null": "element"}, "null is 'element'; expected 'signs' or"),
        ({"energy": 1.5}, "energy is 1.5"),
        ({"ties": -0.1}, "ties is -0.1"),
        ({"dense_rank": 0}, "dense_rank is 0; expected a whole number, 1 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(InputError, match=message):
        DirectionSettings(**wrong)


def test_right_directions_of_a_shared_initialisation_are_warned_about():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((4, 40))
    updates = []
    for label in ("de", "fr", "sw"):
        a = start if label != "sw" else rng.standard_normal((4, 40))
        a = a + 0.1 * rng.standard_normal((4, 40))
        updates.append(Given(label, {QUERY: pair(rng.standard_normal((64, 4)), a)}))
    right = measure_directions(updates, DirectionSettings(side="right"))
    assert len(right.warnings) == 1
    assert (
        "de, fr started from the same LoRA initialisation (cosine of their A 0.9"
        in (right.warnings[0])
    )
    assert rows_of(right.summary(), language="de")["energy_shared"].iloc[0] > 0.9
    assert rows_of(right.summary(), language="sw")["energy_shared"].iloc[0] == 0
    left = measure_directions(updates)
    assert left.warnings == ()
    assert (left.summary()["energy_shared"] == 0).all()
    own = [random_update(label, 0) for label in LABELS]
    assert measure_directions(own, DirectionSettings(side="right")).warnings == ()


# --- masks ---------------------------------------------------------------------------------------


def test_masks_survive_being_saved(tmp_path):
    updates, _ = planted(0, [4.0, 3.0, 2.0, 1.0])
    masks = extract_directions(updates, DirectionSettings())
    masks["de"].save(tmp_path / "de.safetensors")
    loaded = load_subnetwork(tmp_path / "de.safetensors")
    assert loaded == masks["de"]
    assert loaded.settings == masks["de"].settings
    assert (loaded & masks["fr"]) == (masks["de"] & masks["fr"])
    assert (~loaded).granularity == "direction"


def test_masks_of_different_extractions_do_not_mix():
    one = extract_directions(planted(0, [4.0, 3.0, 2.0, 1.0])[0], DirectionSettings())
    other = extract_directions(planted(1, [4.0, 3.0, 2.0, 1.0])[0], DirectionSettings())
    assert one["de"].shapes == other["de"].shapes
    for left, right in ((one["de"], other["fr"]), (one["de"] - one["fr"], ~other["sw"])):
        with pytest.raises(NotComparableError, match="number different directions; expected masks"):
            _ = left & right
    assert one["de"] != other["de"]
    assert one["de"] == extract_directions(
        planted(0, [4.0, 3.0, 2.0, 1.0])[0], DirectionSettings()
    )["de"]  # fmt: skip


def test_overlap_refuses_masks_of_directions():
    masks = extract_directions(planted(0, [4.0, 3.0, 2.0, 1.0])[0], DirectionSettings())
    with pytest.raises(InputError, match=r"masks are of singular directions.*measure_directions"):
        measure_overlap(masks)


def test_a_mask_of_directions_has_one_bit_each():
    with pytest.raises(
        InputError, match=r"shape \[2, 2\] for a.directions; expected \[directions\]"
    ):
        Subnetwork.from_arrays(
            {"a.directions": np.eye(2)}, language="de", base="b", granularity="direction"
        )
    with pytest.raises(
        InputError, match=r"bits for a.weight; expected names such as .*\.directions"
    ):
        Subnetwork.from_arrays(
            {"a.weight": np.ones(2)}, language="de", base="b", granularity="direction"
        )


# --- real adapters -------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ["bert", "gpt2"])
def test_real_adapters_agree_with_the_update_that_peft_makes(tmp_path, build):
    import checkpoint_makers

    make = getattr(checkpoint_makers, build)
    options = {"fan_in_fan_out": True, "target_modules": ["c_attn"]} if build == "gpt2" else {}
    models = {}
    for seed, label in enumerate(("de", "fr"), start=1):
        models[label] = lora(make(), seed, r=2 + seed, **options)
        save_adapter(models[label], tmp_path / "adapters" / label)
    checkpoint_makers.save_base(make(), tmp_path / "base")
    found = measure_directions(open_checkpoint(tmp_path), EXACT)
    frame = found.to_frame()
    deltas = {label: delta_weights(model) for label, model in models.items()}
    for name in deltas["de"]:
        bases = {}
        for label in models:
            matrix = deltas[label][name].double()
            # gpt2's layers keep [input, output]: left is the output side all the same
            u, s, _ = torch.linalg.svd(matrix.T if build == "gpt2" else matrix)
            k = 3 if label == "de" else 4
            bases[label] = (u[:, :k], s[:k])
        rows = rows_of(frame, module=name[: -len(".weight")], language="de")
        (u, s), (v, _) = bases["de"], bases["fr"]
        np.testing.assert_allclose(rows["singular_value"], s, rtol=1e-5)
        np.testing.assert_allclose(rows["captured"], ((v.T @ u) ** 2).sum(0), atol=1e-5)
    masks = extract_directions(open_checkpoint(tmp_path), DirectionSettings())
    assert masks.languages == ("de", "fr")
    assert masks["de"].method == "directions"
    assert masks["de"].settings["update"] == "lora"
    assert masks["de"].base == open_checkpoint(tmp_path).updates[0].base
    assert not found.warnings


def test_steps_of_one_adapter_are_warned_about(tmp_path):
    write_stages(tmp_path, ("de", "fr", "sw"))
    found = measure_directions(open_checkpoint(tmp_path))
    assert len(found.warnings) == 1
    assert "in common by construction" in found.warnings[0]
    assert found.subnetworks()["fr"].settings["stage"] == 2


def test_a_directory_written_by_peft_is_read_whole(tmp_path):
    write_lora_directory(tmp_path, with_base=False, build=gpt2, target_modules=["c_attn"],
                         fan_in_fan_out=True)  # fmt: skip
    found = measure_directions(open_checkpoint(tmp_path), DirectionSettings(side="right"))
    assert found.summary()["language"].tolist() == ["de", "fr", "sw"]
    assert repr(found).startswith("Directions(")
    assert found.provenance.settings["side"] == "right"
