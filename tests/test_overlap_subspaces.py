"""Chance for subspaces: random signs, exactly; adapters with outlier coordinates; steps."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from overlap_things import SHAPES, Adapter, AdapterStep, adapter, adapters, one_row, rejected
from subnet import _projections
from subnet._projections import sign_moments
from subnet._statistics import beta_sf
from subnet.overlap import UPDATE_MEASURES, measure_overlap

NAME = "encoder.layer.0.query.weight"
OTHER = "encoder.layer.1.query.weight"
SIDES = ("subspace_similarity", "subspace_similarity_right")


def basis(matrix, side):
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    k = int((s > 1e-5 * s[0]).sum())
    return u[:, :k] if side == "subspace_similarity" else vh[:k].T


def under_all_signs(u, v):
    """tr(P D Q D) for every pattern D of signs."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(u))))
    return (np.einsum("sn,nk,nl->skl", signs, u, v) ** 2).sum((1, 2))


# --- the null model ------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["factors", "dense"])
@pytest.mark.parametrize("measure", SIDES)
def test_rows_carry_the_moments_of_every_pattern_of_signs(measure, whole):
    """Two modules of 2⁷ and 2⁶ patterns (left), 2⁵ and 2⁴ (right), ranks 2 and 3; and both."""
    shapes = {NAME: (7, 5), OTHER: (6, 4)}
    things = [
        adapter(label, seed=k, shapes=shapes, rank=k, is_low_rank=not whole)
        for label, k in (("de", 2), ("fr", 3))
    ]
    overlap = measure_overlap(things, measures=SIDES)
    values = [under_all_signs(*(basis(u.dense(name), measure) for u in things)) for name in shapes]
    rows = [
        one_row(overlap, measure, level="module", module=name.removesuffix(".weight"))
        for name in shapes
    ]
    sums = np.add.outer(*values).ravel()
    for row, x, high in ((rows[0], values[0], 2), (rows[1], values[1], 2),
                         (one_row(overlap, measure), sums, 4)):  # fmt: skip
        assert row["value"] == pytest.approx(x[0] / high, rel=1e-5)  # all signs +
        assert row["expected"] == pytest.approx(x.mean() / high, rel=1e-5)
        assert row["z"] == pytest.approx((x[0] - x.mean()) / x.std(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("tile", [7, 13, 100])
def test_products_and_tiles_are_the_projections_squared(monkeypatch, tile):
    rng = np.random.default_rng(0)
    n, ranks = 50, (4, 2, 0, 1)
    bases = np.zeros((n, 4, 4))
    for at, k in enumerate(ranks):
        scale = np.exp(rng.standard_normal((n, 1)))
        bases[:, at, :k] = np.linalg.qr(scale * rng.standard_normal((n, k)))[0]
    apart = 1 - np.eye(n)
    projections = np.einsum("nlk,mlk->lnm", bases, bases)
    expected = np.einsum("anm,bnm,nm->ab", projections**2, projections**2, apart)
    mean = np.einsum("ann,bnn->ab", projections, projections)
    monkeypatch.setattr(_projections, "_TILE", 4 * tile**2)
    found = sign_moments(bases)  # 4 · 5 squared over 2 is more than 50: tiles
    np.testing.assert_allclose(found[0], mean, atol=1e-12)
    np.testing.assert_allclose(found[1], 2 * expected, rtol=1e-5, atol=1e-9)
    narrow = sign_moments(bases[:, 1:, :2])  # 2 · 3 squared over 2 is less: products
    np.testing.assert_allclose(narrow[1], 2 * expected[1:, 1:], rtol=1e-9, atol=1e-12)


def test_turning_signs_of_coordinates_changes_the_value_and_not_the_null():
    rng = np.random.default_rng(3)
    one, other = (adapter(label, seed=k, rank=4) for label, k in (("de", 1), ("fr", 2)))
    turned = {
        name: tuple(
            factor * torch.from_numpy(rng.choice([-1.0, 1.0], shape)).float()
            for factor, shape in ((b, (len(b), 1)), (a, (1, a.shape[1])))
        )
        for name, (b, a) in other.weights.items()
    }
    before = measure_overlap([one, other], measures=SIDES).frame
    after = measure_overlap([one, Adapter(other.language, turned)], measures=SIDES).frame
    before, after = (f[f["null"] == "structure"] for f in (before, after))
    assert not np.allclose(before["value"], after["value"], atol=1e-3)
    np.testing.assert_allclose(before["expected"], after["expected"], rtol=1e-5)
    spread = [(f["value"] - f["expected"]) / f["z"] for f in (before, after)]
    np.testing.assert_allclose(*spread, rtol=1e-3)


@pytest.mark.parametrize("ranks", [(1, 2), (8, 8)])
def test_tail_follows_sampled_signs_of_subspaces_on_few_coordinates(ranks):
    rng = np.random.default_rng(ranks)
    scale = np.exp(rng.standard_normal((96, 1)))  # the same in both
    u, v = (np.linalg.qr(scale * rng.standard_normal((96, k)))[0] for k in ranks)
    signs = rng.choice([1.0, -1.0], (20_000, 96))
    drawn = (np.einsum("sn,nk,nl->skl", signs, u, v, optimize=True) ** 2).sum((1, 2))
    bases = np.zeros((96, 2, 8))
    bases[:, 0, : ranks[0]], bases[:, 1, : ranks[1]] = u, v
    mean, variance = (moment[0, 1] for moment in sign_moments(bases))
    assert mean == pytest.approx(drawn.mean(), rel=0.02)
    assert variance == pytest.approx(drawn.var(), rel=0.05)
    for quantile in (0.5, 0.9, 0.95, 0.99):
        x = np.quantile(drawn, quantile)
        p = float(beta_sf(x, mean, variance, np.array(0.0), np.array(float(min(ranks)))))
        assert p == pytest.approx(1 - quantile, rel=0.3, abs=0.003)


def test_a_distribution_of_two_values_keeps_their_probabilities():
    zero, one = np.array(0.0), np.array(1.0)
    for share in (0.5, 0.2):
        ends = np.array(share), np.array(share * (1 - share)), zero, one
        assert beta_sf(one, *ends) == pytest.approx(share, abs=1e-3)
        assert beta_sf(zero, *ends) == 1
    assert np.isnan(beta_sf(one, np.array(0.5), zero, zero, one))


def test_few_coordinates_never_say_more_than_their_signs_can():
    # ± + + + spans the same line as its negative: 2³ lines, one of which is that of the other
    b, a = torch.ones(4, 1), torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    things = [Adapter(label, {NAME: (b, a)}) for label in ("x0", "x1")]
    row = one_row(measure_overlap(things, measures=SIDES[:1]), SIDES[0])
    assert row["value"] == pytest.approx(1)
    assert row["expected"] == pytest.approx(1 / 4)
    assert row["p_value"] == pytest.approx(1 / 8)


def test_subspaces_of_the_same_few_coordinates_are_undefined_with_a_reason():
    b = torch.eye(12)[:, :3]
    things = [adapter(f"x{n}", seed=n, shapes={NAME: (12, 40)}, rank=3) for n in range(2)]
    things = [Adapter(u.language, {NAME: (b, u.weights[NAME][1])}) for u in things]
    row = one_row(measure_overlap(things), SIDES[0])
    assert (row["value"], row["expected"]) == pytest.approx((1, 1))
    assert row["reason"] == "the null model allows one value only"
    assert np.isnan(row["p_value"])


# --- independent adapters, and a shared subspace -------------------------------------------------

HALF = {name: shape for name, shape in SHAPES.items() if "layer.0" in name}


def outliers(rng, n):
    """Scales of coordinates: five that are fifteen times as large, all others log-normal."""
    scale = np.exp(0.5 * rng.standard_normal(n))
    scale[rng.choice(n, 5, replace=False)] *= 15
    return scale


def scaled_adapters(count, *, seed, rank, kind, shapes=HALF):
    """Independent adapters with even coordinates, outliers of their own, or the same outliers."""
    rng = np.random.default_rng((seed, rank))
    common = {n: [outliers(rng, width) for width in shape] for n, shape in shapes.items()}
    things = []
    for number in range(count):
        weights = {}
        for name, shape in shapes.items():
            rows, columns = (
                {"even": np.ones(width), "own": outliers(rng, width), "common": given}[kind]
                for width, given in zip(shape, common[name], strict=True)
            )
            b = rows[:, None] * rng.standard_normal((shape[0], rank))
            a = rng.standard_normal((rank, shape[1])) * columns
            weights[name] = (torch.from_numpy(b).float(), torch.from_numpy(a).float())
        things.append(Adapter(f"x{number}", weights))
    return things


@pytest.mark.parametrize("kind", ["even", "own", "common"])
@pytest.mark.parametrize("rank", [2, 8])
def test_outlier_coordinates_of_independent_adapters_are_no_sharing(rank, kind):
    things = scaled_adapters(200, seed=1, rank=rank, kind=kind)
    overlap = measure_overlap(things, measures=SIDES, levels=("all", "module"))
    for measure in SIDES:
        for level in ("all", "module"):
            share = rejected(overlap, measure, null="structure", level=level)
            assert 0.03 <= share <= 0.07, (measure, level, share)
            tiny = rejected(overlap, measure, null="structure", level=level, alpha=0.001)
            assert tiny <= 0.004, (measure, level, tiny)
        fooled = rejected(overlap, measure, null="rotation", level="all")
        assert (fooled > 0.9) == (kind == "common")


def test_chance_is_larger_where_all_languages_have_the_same_outliers():
    expected = {}
    for kind in ("even", "common"):
        overlap = measure_overlap(
            scaled_adapters(12, seed=0, rank=4, kind=kind), measures=SIDES, levels=("all",)
        )
        rows = overlap.rows(SIDES[0])
        expected[kind] = rows["expected"].mean()
        assert rows["value"].mean() == pytest.approx(rows["expected"].mean(), rel=0.05)
    assert expected["common"] > 4 * expected["even"]


@pytest.mark.parametrize("kind", ["even", "common"])
def test_a_shared_subspace_is_found_beside_outliers_that_all_have(kind):
    """de and nl have two of eight directions in common, on every side; fi and hu none."""
    rng = np.random.default_rng(8)
    things = scaled_adapters(4, seed=5, rank=8, kind=kind)
    for name, shape in HALF.items():
        spread = [rng.standard_normal((width, 2)) for width in shape]
        for thing in things[:2]:
            b, a = thing.weights[name]
            b[:, :2] = torch.from_numpy(spread[0])
            a[:2] = torch.from_numpy(spread[1].T)
    overlap = measure_overlap(things, measures=SIDES)
    frame = overlap.frame[(overlap.frame["null"] == "structure")]
    planted = (frame["language_a"] == "x0") & (frame["language_b"] == "x1")
    for measure in SIDES:
        at = (frame["measure"] == measure) & (frame["level"] == "all")
        assert (frame.loc[at & planted, "p_value"] < 1e-6).all()
        assert (frame.loc[at & planted, "z"] > 5).all()
        assert (frame.loc[at & ~planted, "p_value"] > 0.005).all()
    assert [set(edge) for edge in overlap.graph(SIDES[0]).edges] == [{"x0", "x1"}]


# --- steps ---------------------------------------------------------------------------------------


def carried(labels, *, seed, rank=3, drift=0.5, run="main", shapes=HALF):
    """Steps of one LoRA whose factors take independent random steps: no two share what they learn.

    ΔW_s = B_s A_s − B_{s−1} A_{s−1}, B from 0.
    """
    rng = np.random.default_rng(seed)
    b = {name: np.zeros((o, rank)) for name, (o, _) in shapes.items()}
    a = {name: rng.standard_normal((rank, i)) for name, (_, i) in shapes.items()}
    steps = []
    for stage, label in enumerate(labels, 1):
        weights = {}
        for name, (o, i) in shapes.items():
            before = b[name], a[name]
            b[name] = b[name] + rng.standard_normal((o, rank))
            a[name] = a[name] + drift * rng.standard_normal((rank, i))
            left, right = [b[name], -before[0]], [a[name], before[1]]
            if stage == 1:
                left, right = left[:1], right[:1]
            weights[name] = (
                torch.from_numpy(np.concatenate(left, axis=1)).float(),
                torch.from_numpy(np.concatenate(right)).float(),
            )
        steps.append(AdapterStep(adapter(label, seed=0).language, weights, run=run, stage=stage))
    return steps


def rows_of(overlap, *measures, **where):
    rows = overlap.frame[overlap.frame["measure"].isin(measures)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def test_subspaces_of_steps_have_a_value_and_no_test():
    overlap = measure_overlap(carried(("de", "fr", "fi", "hu"), seed=1))
    assert overlap.source == "steps"
    rows = rows_of(overlap, *UPDATE_MEASURES[1:])
    assert rows["value"].notna().all()
    assert rows["expected"].notna().all()
    assert rows[["z", "p_value", "q_value"]].isna().all(axis=None)
    stages = {"de": 1, "fr": 2, "fi": 3, "hu": 4}
    apart = (rows["language_a"].map(stages) - rows["language_b"].map(stages)).abs()
    assert set(rows.loc[apart == 1, "reason"]) == {
        "neighbouring steps share a factor by construction"
    }
    assert set(rows.loc[apart > 1, "reason"]) == {
        "steps of one run carry one LoRA on, and share subspaces by construction"
    }
    # what the reason says: half of either subspace and more, where chance would give a tenth
    near = rows[(apart == 1) & rows["measure"].isin(SIDES) & (rows["level"] == "all")]
    assert (near["value"] > 0.5).all()
    assert (near["expected"] < 0.12).all()
    cosine = rows_of(overlap, "cosine")
    assert cosine["p_value"].notna().all()
    assert set(cosine["reason"]) == {""}
    (warning,) = overlap.warnings
    assert warning.startswith("the steps of a run continue one LoRA")
    assert "left and right" in warning
    assert "read the cosine" in warning
    assert overlap.graph().graph["measure"] == "cosine"


def test_cosine_of_independent_steps_is_near_chance_while_every_subspace_looks_shared():
    steps, cosine, near = [], [], []
    for seed in range(40):
        steps = carried(("de", "fr", "fi", "hu", "it"), seed=seed)
        rows = rows_of(measure_overlap(steps, levels=("all",)), "cosine", null="structure")
        cosine.append(rows[["value", "p_value"]])
        bare = [Adapter(f"x{n}", step.weights) for n, step in enumerate(steps)]  # no steps to it
        tested = rows_of(measure_overlap(bare, levels=("all",)), *SIDES, null="structure")
        near.append((tested["p_value"] < 0.05).mean())
    value, p_value = np.concatenate(cosine).T
    assert abs(value.mean()) < 3 * value.std() / np.sqrt(value.size)
    assert 0.02 < (p_value < 0.05).mean() < 0.12
    assert np.mean(near) > 0.95


def test_steps_of_different_runs_are_tested():
    languages = ("de", "fr", "fi")
    steps = [*carried(languages, seed=1), *carried(languages, seed=2, run="second")]
    frame = measure_overlap(steps, measures=SIDES, levels=("all",)).frame
    again = frame["comparison"] == "replicate"
    assert again.sum() == 2 * 2 * 3
    assert frame.loc[again, "p_value"].notna().all()
    assert (frame.loc[again, "p_value"] > 0.001).all()
    assert frame.loc[~again, "p_value"].isna().all()


def test_a_step_beside_adapters_is_tested_unless_their_language_came_before():
    languages = ("de", "fr", "fi")
    stages = {label: at for at, label in enumerate(languages)}
    steps = carried(languages, seed=1)
    others = [adapter(label, seed=7 + n, shapes=HALF) for n, label in enumerate(languages)]
    overlap = measure_overlap(steps, others=others)
    rows = rows_of(overlap, *UPDATE_MEASURES[1:])
    before = rows["language_b"].map(stages) < rows["language_a"].map(stages)
    assert before.any()
    assert rows.loc[before, "p_value"].isna().all()
    assert rows.loc[~before, "p_value"].notna().all()
    fr = rows[(rows["language_a"] == "fr") & before]
    assert set(fr["reason"]) == {"the step also changes what was learnt before it, de among it"}
    assert rows_of(overlap, "cosine")["p_value"].notna().all()
    (warning,) = overlap.warnings
    assert "beside languages trained before a step" in warning


def test_steps_of_whole_models_are_tested_like_any_update():
    steps = [
        dataclasses.replace(step, is_low_rank=False) for step in carried(("de", "fr", "fi"), seed=1)
    ]
    overlap = measure_overlap(steps)
    assert overlap.warnings == ()
    assert overlap.frame["p_value"].notna().all()


def test_one_step_of_a_run_continues_nothing():
    steps = [s for seed, run in enumerate("ab") for s in carried(("de",), seed=seed, run=run)]
    assert measure_overlap(steps).warnings == ()
    assert measure_overlap(adapters(3, seed=5)).warnings == ()


def test_runs_that_start_alike_are_told_from_steps_that_carry_on():
    languages = ("de", "fr")
    alike, own = (carried(languages, seed=seed, drift=0.1, run="second") for seed in (1, 2))
    main = carried(languages, seed=1, drift=0.1)
    first, second = measure_overlap([*main, *alike], measures=("cosine",)).warnings
    assert first.startswith("the steps of a run continue one LoRA")
    assert second.startswith("de (run main), de (run second) started from the same LoRA")
    assert len(measure_overlap([*main, *own], measures=("cosine",)).warnings) == 1


def test_a_shared_start_counts_only_among_what_is_compared():
    steps = carried(("de", "fr"), seed=1)
    others = [adapter(label, seed=7, shapes=HALF, shared_a=3) for label in ("de", "fr")]
    (warning,) = measure_overlap(steps, others=others).warnings
    assert "continue one LoRA" in warning
