"""Similarity of tables: by its definition, whatever should not matter, and nothing for chance."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.cross_decomposition import CCA

from subnet.errors import InputError, NotComparableError
from subnet_probes import (
    CKA,
    MEASURES,
    PWCCA,
    SVCCA,
    Procrustes,
    Representations,
    StreamedCKA,
    _rows,
    cka,
    compare,
    linear_cka,
)


def tables(n, d, e, seed=0, shared=0.5):
    """Two tables that share some of their directions, far from the origin."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.2, 2, size=d)
    y = shared * x @ rng.normal(size=(d, e)) + rng.normal(size=(n, e))
    return x + 3, y - 5


def hsic_by_quadruples(k, l):  # noqa: E741
    """The U-statistic itself: mean over ordered quadruples of different items (Gretton 2005)."""
    n = len(k)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def hsic_by_gram(k, l):  # noqa: E741
    """Song et al. 2012, equation 5, with explicit matrices."""
    n, one = len(k), np.ones(len(k))
    k, l = (m - np.diag(np.diag(m)) for m in (k, l))  # noqa: E741
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


def cka_of(hsic, x, y):
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


def biased_cka(x, y):
    """Kornblith et al. 2019, with the n × n centred Gram matrices."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h  # noqa: E741
    return np.trace(k @ l) / math.sqrt(np.trace(k @ k) * np.trace(l @ l))


# Centred kernel alignment


def test_unbiased_hsic_is_the_mean_over_quadruples():
    x, y = tables(7, 3, 4)
    assert linear_cka(x, y) == pytest.approx(cka_of(hsic_by_quadruples, x, y), rel=1e-9)


@pytest.mark.parametrize("shape", [(40, 5, 8), (12, 30, 20), (25, 40, 6), (20, 20, 20), (4, 2, 9)])
def test_cka_is_what_the_gram_matrices_give(shape):
    x, y = tables(*shape)
    assert linear_cka(x, y) == pytest.approx(cka_of(hsic_by_gram, x, y), rel=1e-8, abs=1e-10)
    assert linear_cka(x, y, unbiased=False) == pytest.approx(biased_cka(x, y), rel=1e-9)
    measure = CKA()
    for a, b in ((x, y), (y, x)):
        state = measure.prepare(a), measure.prepare(b)
        assert measure.value(*state) == pytest.approx(linear_cka(x, y), rel=1e-9, abs=1e-12)


def test_cka_of_independent_gaussians():
    """As .96 and .004 in methods.md: 32 items in 768 dimensions."""
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 32, 768)) for _ in range(10)]
    biased = [linear_cka(x, y, unbiased=False) for x, y in pairs]
    unbiased = [linear_cka(x, y) for x, y in pairs]
    assert np.mean(biased) == pytest.approx(0.96, abs=0.005)
    assert abs(np.mean(unbiased)) < 0.02
    assert max(map(abs, unbiased)) < 0.12


def rotation(d, seed=5):
    return scipy.stats.ortho_group(d, seed=seed).rvs()


@pytest.mark.parametrize("name", ["cka", "procrustes", "svcca", "pwcca"])
@pytest.mark.parametrize("n", [120, 15])
def test_rotation_scale_and_a_constant_do_not_matter(name, n):
    x, y = tables(n, 20, 20)
    measure = MEASURES[name]

    def value(a, b):
        return measure.value(measure.prepare(a), measure.prepare(b))

    before = value(x, y)
    # the columns of the first side are what PWCCA weighs by
    first = np.eye(20) if name == "pwcca" else rotation(20)
    after = value(0.01 * x @ first + 7, 30 * y @ rotation(20, seed=6) - 2)
    assert after == pytest.approx(before, rel=1e-7)
    assert value(x, 4 * x @ rotation(20) + 1) == pytest.approx(1, rel=1e-7)
    assert before < 0.999
    stretched = x * np.geomspace(0.01, 1, 20)
    if name in ("cka", "procrustes"):  # not invariant to invertible maps
        assert value(stretched, y) != pytest.approx(before, rel=1e-2)


def test_streamed_sums_are_those_of_the_whole_and_means_of_batches_are_not():
    x, y = tables(600, 12, 9)
    whole = linear_cka(x, y)
    means = []
    for sizes in ([600], [1, 2, 3, 594], [50] * 12):
        streamed = StreamedCKA()
        for a, b in zip(*(np.split(t, np.cumsum(sizes)[:-1]) for t in (x, y)), strict=True):
            streamed.update(a, b)
        assert streamed.value() == pytest.approx(whole, rel=1e-10)
        assert streamed.value(unbiased=False) == pytest.approx(biased_cka(x, y), rel=1e-9)
    for a, b in zip(np.split(x, 60), np.split(y, 60), strict=True):
        parts = [hsic_by_gram(p @ p.T, q @ q.T) for p, q in ((a, b), (a, a), (b, b))]
        means.append(parts)
    between, own_x, own_y = np.mean(means, axis=0)
    assert abs(between / math.sqrt(own_x * own_y) - whole) > 1e-3
    ratios = [p / math.sqrt(q * r) for p, q, r in means]
    assert abs(np.mean(ratios) - whole) > 1e-3


def test_digits_are_kept_far_from_the_origin():
    x, y = tables(300, 6, 6)
    far = StreamedCKA()
    for part in np.split(np.arange(300), 6):
        far.update(x[part] + 1e5, y[part] - 1e5)
    assert far.value() == pytest.approx(linear_cka(x, y), rel=1e-6)
    assert linear_cka(x + 1e5, y - 1e5) == pytest.approx(linear_cka(x, y), rel=1e-6)


def test_orders_of_the_rows_have_mean_zero():
    """Over all n! orders the unbiased HSIC sums up to 0; the biased one does not."""
    x, y = tables(5, 3, 3)
    measure = CKA()
    a, b = measure.prepare(x), measure.prepare(y)
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    assert np.mean([measure.value(a, measure.permuted(b, o)) for o in orders]) == pytest.approx(
        0, abs=1e-12
    )
    assert np.mean([linear_cka(x, y[o], unbiased=False) for o in orders]) > 0.2


# Procrustes and canonical correlations


@pytest.mark.parametrize("shape", [(50, 7, 7), (9, 30, 30), (20, 20, 20)])
def test_procrustes_is_scipys(shape):
    x, y = tables(*shape)
    measure = Procrustes()
    value = measure.value(measure.prepare(x), measure.prepare(y))
    a, b = (t - t.mean(axis=0) for t in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    best, scale = scipy.linalg.orthogonal_procrustes(a, b)
    assert value == pytest.approx(scale, rel=1e-9)
    assert 1 - np.linalg.norm(a @ best - b) ** 2 / 2 == pytest.approx(value, rel=1e-9)
    assert scipy.spatial.procrustes(x, y)[2] == pytest.approx(1 - value**2, rel=1e-6)


def test_tables_of_different_widths_are_filled_up_with_zeros():
    for n in (50, 10, 25):
        x, y = tables(n, 8, 20)
        for name in ("procrustes", "cka", "svcca", "pwcca"):
            measure = MEASURES[name]
            filled = np.hstack([x, np.zeros((n, 12))])
            values = [measure.value(measure.prepare(a), measure.prepare(y)) for a in (x, filled)]
            assert values[0] == pytest.approx(values[1], rel=1e-8)


@pytest.mark.parametrize("shape", [(200, 4, 3), (40, 60, 50)])
def test_canonical_correlations_are_those_of_the_leading_directions(shape):
    """Against scikit-learn's CCA of the truncated tables, and Morcos's weights by a loop."""
    x, y = tables(*shape)
    n = shape[0]
    cut = []
    for table in (x, y):
        centred = table - table.mean(axis=0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        held = np.cumsum(s**2) / (s**2).sum()
        k = min(int(np.argmax(held >= 0.99 - 1e-12)) + 1, n // 10)
        cut.append(((u * s)[:, :k], centred))
    (a, whole), (b, _) = cut
    k = min(a.shape[1], b.shape[1])
    fitted = CCA(n_components=k, scale=False, max_iter=20000, tol=1e-13).fit(a, b)
    left, right = fitted.transform(a, b)
    rho = np.array([np.corrcoef(left[:, i], right[:, i])[0, 1] for i in range(k)])
    measure = SVCCA()
    assert measure.value(measure.prepare(x), measure.prepare(y)) == pytest.approx(
        rho.mean(), rel=1e-4
    )
    weights = np.array(
        [sum(abs(h / np.linalg.norm(h) @ column) for column in whole.T) for h in left.T]
    )
    weighted = PWCCA()
    value = weighted.value(weighted.prepare(x), weighted.prepare(y))
    assert value == pytest.approx(weights @ rho / weights.sum(), rel=1e-3)
    back = weighted.value(weighted.prepare(y), weighted.prepare(x))
    assert back != pytest.approx(value, rel=1e-4)


def frame_of(x, y, measure, **options):
    items = {"language": ["a"] * len(x)}
    sides = [
        Representations.of({"0": t}, items | {"id": range(len(t)), "concept": range(len(t))})
        for t in (x, y)
    ]
    return compare(*sides, measure=measure, **options)


@pytest.mark.parametrize("name", [n for n in MEASURES if n != "retrieval"])
@pytest.mark.parametrize(("n", "d"), [(400, 16), (60, 200)])
def test_independent_gaussians_are_at_chance(name, n, d):
    rng = np.random.default_rng(1)
    for row in frame_of(*rng.normal(size=(2, n, d)), name, n_shuffles=60).itertuples():
        assert abs(row.value - row.shuffled) < 4 * row.shuffled_sd
        assert row.p_value > 0.02
        if MEASURES[name].largest == 1:
            assert abs(row.adjusted) < 0.12
        else:
            assert math.isnan(row.adjusted)


def test_the_cap_keeps_canonical_correlations_away_from_one():
    """With as many directions as items any two tables correlate perfectly."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 200))
    loose, capped = (SVCCA(variance=1.0, items_per_component=k) for k in (3, 10))
    values = [m.value(m.prepare(x), m.prepare(y)) for m in (loose, capped)]
    assert values[1] < 0.45
    assert values[0] > values[1] + 0.1
    for wrong in ({"variance": 0.0}, {"variance": 1.5}, {"items_per_component": 2}):
        with pytest.raises(InputError, match="expected"):
            SVCCA(**wrong)


def test_shuffled_values_are_those_of_shuffled_rows(monkeypatch):
    monkeypatch.setattr(cka, "_BLOCK", 4)
    for n in (30, 6):
        x, y = tables(n, 10, 10)
        orders = np.array([np.random.default_rng(s).permutation(n) for s in range(3)])
        for measure in MEASURES.values():
            states = [measure.prepare(t) for t in (x, y, x + y)]
            if n == 6 and measure.name in ("svcca", "pwcca"):
                assert all(state.reason == "fewer than 10 items" for state in states)
                continue
            values, shuffled = measure.against(states[:2], states[2], orders)
            for i, other in enumerate((x, y)):
                for s, order in [(None, np.arange(n)), *enumerate(orders)]:
                    own = (x + y)[order]
                    pairs = [(other, own), (own, other)][: 2 if measure.directed else 1]
                    expected = [measure.value(*(measure.prepare(t) for t in p)) for p in pairs]
                    got = values[i] if s is None else shuffled[s, i]
                    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-10)


def test_rows_on_disk_and_in_parts_give_the_same(tmp_path, monkeypatch):
    x, y = tables(300, 9, 9)
    place = tmp_path / "x.npy"
    np.save(place, x.astype(np.float32))
    x = x.astype(np.float32).astype(np.float64)
    mapped = np.load(place, mmap_mode="r")
    order = np.random.default_rng(0).permutation(300)
    for measure in MEASURES.values():
        monkeypatch.undo()
        state = measure.prepare(y)
        expected = [measure.value(state, measure.prepare(rows)) for rows in (x, x[order])]
        monkeypatch.setattr(_rows, "SMALL", 10)
        monkeypatch.setattr(_rows, "CHUNK", 64)
        own = measure.prepare(mapped)
        back = measure.permuted(measure.permuted(own, order), np.argsort(order))
        found = [measure.value(state, s) for s in (own, measure.permuted(own, order), back)]
        np.testing.assert_allclose(found, [*expected, expected[0]], rtol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_no_matrix_over_all_pairs_of_items_is_ever_there(name):
    n, d = 6000, 12
    x, y = tables(n, d, d)
    measure = MEASURES[name]
    orders = np.array([np.random.default_rng(0).permutation(n)])
    measure.prepare(x[:50])  # imports
    tracemalloc.start()
    try:
        measure.against([measure.prepare(x)], measure.prepare(y), orders)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * n * 8 / 4  # a quarter of the cosines in double precision
    if name != "retrieval":
        assert peak < 30 * n * d * 8


@pytest.mark.parametrize("name", MEASURES)
def test_what_does_not_vary_has_no_similarity(name):
    x, _ = tables(40, 5, 5)
    constant = np.ones_like(x) if name not in ("cosine", "cosine_contrast", "retrieval") else x * 0
    row = frame_of(x, constant, name).iloc[0]
    assert math.isnan(row["value"])
    assert math.isnan(row["p_value"])
    assert row["reason"] in ("a side does not vary", "a row is zero")
    same = (np.ones_like(x) * 0.1).astype(np.float32)
    assert name == "retrieval" or "cosine" in name or MEASURES[name].prepare(same).reason


def test_a_constant_feature_is_nothing():
    x, y = tables(50, 6, 6)
    for name in ("cka", "procrustes", "svcca", "pwcca"):
        measure = MEASURES[name]
        more = np.hstack([x, np.full((50, 2), 1e3)])
        values = [measure.value(measure.prepare(t), measure.prepare(y)) for t in (x, more)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_input_that_cannot_be_compared():
    x, y = tables(20, 4, 6)
    with pytest.raises(InputError, match="measure is 'cca'; expected one of cka, procrustes"):
        frame_of(x, y, "cca")
    with pytest.raises(NotComparableError, match="layer 0 of a is 4 wide and layer 0 of b 6"):
        frame_of(x, y, "cosine")
    with pytest.raises(InputError, match="n_shuffles is -1"):
        frame_of(x, y, "cka", n_shuffles=-1)
    with pytest.raises(InputError, match="the sides have 20 and 19 rows"):
        linear_cka(x, y[1:])
    with pytest.raises(InputError, match="there are 3 rows; expected at least 4"):
        linear_cka(x[:3], y[:3])
    with pytest.raises(InputError, match=r"a side has shape \[20\]"):
        StreamedCKA().update(x[:, 0], y)
    assert math.isnan(linear_cka(x, np.ones_like(x)))
    assert math.isnan(linear_cka(x, np.ones_like(x), unbiased=False))
    none = frame_of(x, x, "cka", n_shuffles=0).iloc[0]
    assert none["value"] == pytest.approx(1)
    assert math.isnan(none["shuffled"])
    assert math.isnan(none["p_value"])
