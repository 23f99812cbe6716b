"""What makes probes fast changes no result: scikit-learn's fits in a loop are the oracle."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

import subnet_probes._fitting as fitting
from probe_data import noise, parallel_items, plant
from subnet_probes import Probe, ProbeSettings, cross_lingual_transfer, probe_labels
from subnet_probes._design import IllConditionedError, Kernel, Primal, design
from subnet_probes._fitting import answers
from subnet_probes._logistic import fit_logistic
from subnet_probes.mdl import codelengths, online_codelength
from subnet_probes.splits import grouped_folds


def examples(n, d, k, seed=0, dtype=np.float64):
    """Units of unequal scale, offset and variance; one of them constant; labels partly seen."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.5
    y = np.arange(n) % k
    x[np.arange(n), y] += 0.7
    x = x @ np.linalg.qr(rng.normal(size=(d, d)))[0] * rng.uniform(0.1, 30, d) + rng.normal(size=d)
    x[:, d // 2] = 7.25
    order = rng.permutation(n)
    return x[order].astype(dtype), y[order]


def by_scikit_learn(x, y, test, c, *, standardize=True):
    """Probabilities [t, classes seen] of its own solver, run until nothing changes."""
    scaler = StandardScaler(with_std=standardize).fit(x.astype(float))
    model = LogisticRegression(C=c, tol=1e-9, max_iter=20000)
    model.fit(scaler.transform(x.astype(float)), y)
    return model.predict_proba(scaler.transform(test.astype(float)))


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize(
    ("n", "d", "kind"), [(60, 90, Kernel), (150, 12, Primal), (40, 40, Primal)]
)
def test_fits_together_are_scikit_learns_one_by_one(n, d, kind, k, standardize):
    x, y = examples(n + 30, d, k)
    train, test = x[:n], x[n:]
    made = design(train, test, standardize=standardize)
    assert isinstance(made, kind)
    rng = np.random.default_rng(1)
    labels = np.stack([y[:n], rng.permutation(y[:n]), rng.permutation(y[:n])])
    penalties = [1.0, 0.1, 0.01]
    found = fit_logistic(made, labels, k, penalties, tol=1e-7, max_iter=2000)
    for own, c, probabilities in zip(labels, penalties, found.probabilities, strict=True):
        expected = by_scikit_learn(train, own, test, c, standardize=standardize)
        np.testing.assert_allclose(probabilities, expected, atol=5e-5)
    assert (found.predicted == found.probabilities.argmax(axis=-1)).all()


def test_classes_that_a_fit_has_not_seen_are_out_of_its_question():
    x, y = examples(90, 120, 4)
    y[:60][y[:60] == 2] = 0  # the first fit knows three of four, the second two
    labels = np.stack([y[:60], np.where(y[:60] == 3, 3, 1)])
    found = fit_logistic(
        design(x[:60], x[60:], standardize=True), labels, 4, 0.1, tol=1e-7, max_iter=2000
    ).probabilities
    for own, probabilities in zip(labels, found, strict=True):
        seen = np.unique(own)
        np.testing.assert_allclose(
            probabilities[:, seen], by_scikit_learn(x[:60], own, x[60:], 0.1), atol=5e-5
        )
        assert (np.delete(probabilities, seen, axis=1) == 0).all()


def data_of(kind, seed, k):
    """90 examples in 90 units, or fewer; 60 of them are fitted."""
    rng = np.random.default_rng(100 + seed)
    if kind == "repeated":  # twenty examples three times each, under unlike labels
        x, y = examples(50, 90, k, seed=seed)
        y = np.concatenate([rng.permutation(np.arange(60) % k), y[20:]])
        return np.concatenate([np.repeat(x[:20], 3, axis=0), x[20:]]), y
    if kind == "of rank 6":
        x = rng.normal(size=(90, 6)) @ rng.normal(size=(6, 90)) * rng.uniform(0.1, 30, 90)
        return x, np.arange(90) % k
    x, y = examples(90, 40 if kind == "narrow" else 90, k, seed=seed)
    return (x + 300 if kind == "far from 0" else x), y


def loss_of(z, y, weights, bias, c):
    """Sum of −log p and ‖W‖² / 2C, of two classes that of the difference of their weights."""
    if len(bias) == 1:  # as scikit-learn has two classes
        weights, bias = np.concatenate([0 * weights, weights]), np.append(0, bias)
    logits = z @ weights.T + bias
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    if len(bias) == 2:
        weights = weights[1] - weights[0]
    return -log_p[np.arange(len(y)), y].sum() + (weights**2).sum() / (2 * c)


def weights_of(made, y, k, c, tol):
    """[k, units] and [k] of a fit, read off its logits at 0 and at each unit of a design."""
    at = np.concatenate([np.zeros((1, made.z.shape[1])), np.eye(made.z.shape[1])])
    asked = type(made)(made.z, at.astype(made.z.dtype))
    with np.errstate(all="ignore"):
        found = fit_logistic(asked, y[None], k, c, tol=tol, max_iter=1000)
    logits = found.logits[0].astype(float)
    return (logits[1:] - logits[0]).T, logits[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("kind", ["full", "narrow", "far from 0", "repeated", "of rank 6"])
def test_no_fit_goes_astray_where_scikit_learns_does_not(kind, standardize, dtype):
    refused = 0
    for seed, k, c, tol in itertools.product(range(4), (2, 4), (10.0, 0.1), (1e-3, 1e-6)):
        x, y = data_of(kind, seed, k)
        y = np.random.default_rng(1).permutation(y[:60]) if seed % 2 else y[:60]
        made = design(x[:60].astype(dtype), x[:1].astype(dtype), standardize=standardize)
        z = made.z.astype(float)

        def theirs(z, tol, y=y, c=c):
            model = LogisticRegression(C=c, tol=tol, max_iter=20000).fit(z, y)
            return model.coef_.astype(float), model.intercept_.astype(float)

        try:
            ours = loss_of(z, y, *weights_of(made, y, k, c, tol), c)
        except IllConditionedError:
            refused += 1
            continue
        least = loss_of(z, y, *theirs(z, 1e-9), c)
        most = loss_of(z, y, *theirs(made.z, tol), c)
        assert ours - least <= max(2 * (most - least), 0.01), (seed, k, c, tol)
    # What is refused is fitted in double precision, or by scikit-learn, which takes longer.
    assert refused <= (16 if (kind, standardize, dtype) == ("of rank 6", False, np.float32) else 2)


@pytest.mark.parametrize("d", [30, 300])
def test_at_the_default_tolerance_it_is_nearer_to_the_optimum_than_scikit_learn(d):
    x, y = examples(260, d, 5, dtype=np.float32)
    train, test = slice(0, 180), slice(180, None)
    optimum = by_scikit_learn(x[train], y[train], x[test], 0.1)
    ours = answers(Probe(), x[train], y[None, train], x[test], 5, probabilities=True)
    theirs = Probe().fit(x[train], y[train]).predict_proba(x[test])
    error = np.abs(ours.probabilities[0] - optimum).max()
    assert error < 0.02
    assert error <= np.abs(theirs - optimum).max()
    assert ours.failed == 0


def experiment(d=40):
    items = parallel_items(languages=("de", "fr"), concepts=30)
    arrays = noise(len(items), d=d, seed=3, layers=("0", "1"))
    plant(arrays["1"], items["label"], [0, 1, 2], 1.5)
    return items, arrays


def without_the_fast_way(monkeypatch):
    monkeypatch.setattr(fitting, "_together", lambda *arguments: None)


@pytest.mark.parametrize("d", [12, 60])
def test_experiments_give_what_a_loop_of_scikit_learn_fits_gives(d, monkeypatch):
    items, arrays = experiment(d)
    probe = Probe(tol=1e-6, max_iter=5000)
    settings = ProbeSettings(n_resamples=50, folds=3)
    arrays = {"1": arrays["1"].astype(np.float64)}

    def both():
        return (
            probe_labels(arrays, items=items, probe=probe, settings=settings).frame,
            cross_lingual_transfer(arrays, items=items, probe=probe, settings=settings).frame,
        )

    fast = both()
    without_the_fast_way(monkeypatch)
    for quick, slow in zip(fast, both(), strict=True):
        lengths = [c for c in quick.columns if "codelength" in c or c == "compression"]
        others = quick.columns.drop(lengths)
        # one item of 30 may lie on a border in single precision
        pd.testing.assert_frame_equal(quick[others], slow[others], rtol=0, atol=0.035)
        for column in lengths:
            np.testing.assert_allclose(quick[column], slow[column], rtol=2e-3)


def test_codelengths_of_several_sets_of_labels_are_those_of_each():
    x, y = examples(160, 70, 4)
    other = np.random.default_rng(0).permutation(y)
    probes = [Probe(C=c, tol=1e-7) for c in (0.1, 0.01)]
    both = codelengths(probes, x, [y, other], seed=2)
    for labels, found in zip((y, other), both, strict=True):
        alone = online_codelength(probes, x, labels, seed=2)
        assert found.bits == pytest.approx(alone.bits, rel=1e-4)
        assert found.prior_bits == pytest.approx(alone.prior_bits)
        assert found.ends == alone.ends


def test_labels_that_share_examples_share_their_gram_matrix(monkeypatch):
    made = []

    def counted(*arguments, **options):
        made.append(arguments[0].shape[0])
        return design(*arguments, **options)

    monkeypatch.setattr(fitting, "design", counted)
    items, arrays = experiment()
    settings = ProbeSettings(mdl=False, n_random=3, n_controls=2, n_resamples=20)
    probe_labels(arrays, items=items, settings=settings)
    assert len(made) == 2 * 2 * 5  # layers, languages, folds; not times six sets of labels
    made.clear()
    coded = ProbeSettings(n_random=0, n_controls=2, n_resamples=20, holdout=True)
    probe_labels(arrays, items=items, settings=coded)
    assert len(made) <= 2 * 2 * (1 + 10)  # one fold, ten blocks; not times three penalties


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "folds"), [(2, 5), (7, 3), (4, 10)])
def test_folds_are_scikit_learns(seed, k, folds):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), rng.integers(1, 6, size=60))
    labels = rng.integers(k, size=len(groups)) if seed % 2 else groups % k
    expected = np.empty(len(groups), dtype=int)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(splitter.split(groups, labels, groups)):
        expected[test] = number
    np.testing.assert_array_equal(grouped_folds(labels, groups, folds=folds, seed=seed), expected)


def test_few_steps_are_enough():
    x, y = examples(400, 500, 7, dtype=np.float32)
    found = fit_logistic(
        design(x, x[:1], standardize=True), y[None], 7, 0.1, tol=1e-3, max_iter=1000
    )
    scaled = StandardScaler().fit_transform(x)
    theirs = LogisticRegression(C=0.1, tol=1e-3, max_iter=1000).fit(scaled, y)
    assert found.n_iter[0] < 25
    assert found.n_iter[0] < theirs.n_iter_[0]


@pytest.mark.parametrize(
    "probe",
    [
        Probe(components=4),
        Probe(class_weight="balanced"),
        type("Other", (Probe,), {})(),
        LogisticRegression(max_iter=500),
    ],
    ids=["components", "balanced", "subclass", "scikit-learn"],
)
def test_probes_of_another_kind_are_fitted_one_by_one(probe):
    x, y = examples(80, 20, 3)
    labels = np.stack([y[:60], np.random.default_rng(0).permutation(y[:60])])
    found = answers(probe, x[:60], labels, x[60:], 3, probabilities=True)
    for own, probabilities in zip(labels, found.probabilities, strict=True):
        expected = type(probe)(**probe.get_params()).fit(x[:60], own)
        np.testing.assert_allclose(probabilities, expected.predict_proba(x[60:]))


def test_a_penalty_too_weak_for_single_precision_is_left_to_scikit_learn():
    x, y = examples(40, 80, 2, dtype=np.float32)
    x[20:] = x[:20]  # rank 20 of 40
    with pytest.raises(IllConditionedError):
        fit_logistic(design(x, x, standardize=True), y[None], 2, 1e12, tol=1e-3, max_iter=50)
    found = answers(Probe(C=1e12, max_iter=50), x, y[None], x, 2)
    assert (found.predicted[0] == Probe(C=1e12, max_iter=50).fit(x, y).predict(x)).all()


def test_what_is_too_coarse_in_single_precision_is_fitted_in_double(monkeypatch):
    x, y = data_of("of rank 6", 0, 4)
    x = x.astype(np.float32)
    with pytest.raises(IllConditionedError):
        fit_logistic(design(x, x, standardize=False), y[None], 4, 10.0, tol=1e-3, max_iter=50)
    monkeypatch.setattr(fitting, "_one_by_one", lambda *_: pytest.fail("was not fitted together"))
    probe = Probe(C=10.0, tol=1e-6, standardize=False)
    found = answers(probe, x, y[None], x, 4, probabilities=True)
    expected = by_scikit_learn(x, y, x, 10.0, standardize=False)
    np.testing.assert_allclose(found.probabilities[0], expected, atol=1e-4)


def test_one_label_or_nothing_to_test_needs_no_fit():
    x, y = examples(20, 5, 2)
    same = answers(Probe(), x, np.ones((1, 20), dtype=int), x, 2, probabilities=True)
    assert (same.predicted == 1).all()
    np.testing.assert_array_equal(same.probabilities[0], np.tile([0.0, 1.0], (20, 1)))
    assert answers(Probe(), x, y[None], x[:0], 2).predicted.shape == (1, 0)
