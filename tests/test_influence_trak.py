"""TRAK against dense loops, and random projections that are the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import model_makers as makers
from subnet.errors import InputError
from subnet.influence.collecting import collect
from subnet.influence.projection import (
    Projection,
    TwoSidedProjection,
    fidelity,
    packed_signs,
)
from subnet.influence.tracking import track
from subnet.influence.trak import (
    TrakSettings,
    features,
    fit_trak,
    margins_and_doubt,
    margins_of,
    negative_margins,
)


def blocks_of(n, seed, shapes=(("a", (3, 2)), ("b", (4,)))):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, *shape, generator=draw).double() for name, shape in shapes}


def signs(key, seed, n, width):
    """[n, width] of ±1 by NumPy alone."""
    packed = packed_signs(key, seed, 0, n, width)
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, :width]
    return bits.astype(np.float64) * 2 - 1


# --- TRAK --------------------------------------------------------------------------------------


@dataclass
class TrakCheckpoint:
    """φ of the test and of the training examples, and 1 − p of the latter."""

    queries: torch.Tensor
    train: torch.Tensor
    doubt: torch.Tensor


def trak_scores(checkpoints, settings=None):
    """The means over checkpoints of kernel and doubt, multiplied: as the engine pools them."""
    kernels, doubts = [], []
    for made in checkpoints:
        kernels.append(fit_trak(made.train, settings).solve(made.queries) @ made.train.double().T)
        doubts.append(made.doubt.double())
    return sum(kernels) / len(kernels) * (sum(doubts) / len(doubts))


def trak_by_loops(checkpoints, ridge=0.0):
    """The formula, entry by entry."""
    first = checkpoints[0]
    m, n = len(first.queries), len(first.train)
    found = np.zeros((m, n))
    for i, j in itertools.product(range(m), range(n)):
        kernel = doubt = 0.0
        for checkpoint in checkpoints:
            phi = checkpoint.train.numpy()
            products = sum(np.outer(row, row) for row in phi)
            products += ridge * np.trace(products) / len(products) * np.eye(len(products))
            kernel += checkpoint.queries.numpy()[i] @ np.linalg.inv(products) @ phi[j]
            doubt += checkpoint.doubt.numpy()[j]
        found[i, j] = kernel / len(checkpoints) * doubt / len(checkpoints)
    return found


def checkpoint_of(seed, projection=None):
    train, queries = blocks_of(30, seed), blocks_of(4, seed + 100)
    halves = [{k: v[part] for k, v in train.items()} for part in (slice(13), slice(13, 30))]
    draw = torch.Generator().manual_seed(seed)
    return TrakCheckpoint(
        features([queries], projection),
        features(halves, projection),
        torch.rand(30, generator=draw).double(),
    )


@pytest.mark.parametrize("projection", [None, Projection(dimension=7, seed=3)])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("n_checkpoints", [1, 3])
def test_trak_equals_the_formula_by_loops(projection, ridge, n_checkpoints):
    checkpoints = [checkpoint_of(seed, projection) for seed in range(n_checkpoints)]
    found = trak_scores(iter(checkpoints), TrakSettings(ridge=ridge))
    np.testing.assert_allclose(found.numpy(), trak_by_loops(checkpoints, ridge), rtol=1e-9)


def test_features_are_the_gradient_times_a_matrix_of_signs():
    blocks = blocks_of(5, 0)
    found = features([blocks], Projection(dimension=6, seed=3))
    expected = sum(
        blocks[name].flatten(1).numpy() @ signs(name, 3, 6, width).T
        for name, width in (("a", 6), ("b", 4))
    )
    np.testing.assert_allclose(found.numpy(), expected / np.sqrt(6), rtol=1e-12)
    whole = features([blocks])
    assert torch.equal(whole, torch.cat([blocks["a"].flatten(1), blocks["b"]], dim=1))


def test_a_projection_that_loses_no_dimension_changes_no_score():
    # The inverse undoes any invertible map: 10 parameters to 10 numbers.
    whole = np.concatenate([signs("a", 2, 10, 6), signs("b", 2, 10, 4)], axis=1)
    assert np.linalg.matrix_rank(whole) == 10  # which not every square of signs has
    one = trak_scores([checkpoint_of(0)])
    other = trak_scores([checkpoint_of(0, Projection(dimension=10, seed=2))])
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def fit_logistic(x, y):
    """Newton's method; x [n, d], y in {0, 1}."""
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        w -= np.linalg.solve((x.T * (p * (1 - p))) @ x + 1e-9 * np.eye(len(w)), x.T @ (p - y))
    return w


def test_trak_foretells_leaving_out_examples_of_a_logistic_regression():
    draw = np.random.default_rng(0)
    x, x_test = draw.normal(size=(80, 4)), draw.normal(size=(6, 4))
    noise = draw.random(80)
    y = (noise < 1 / (1 + np.exp(-x @ [0.8, -0.5, 0.3, 0.0]))).astype(float)
    y_test = np.array([0, 1, 0, 1, 0, 1.0])
    w = fit_logistic(x, y)
    losses = np.log1p(np.exp(-(2 * y_test - 1) * (x_test @ w)))
    effects = np.zeros((6, 80))
    for j in range(80):
        kept = np.arange(80) != j
        without = fit_logistic(x[kept], y[kept])
        effects[:, j] = np.log1p(np.exp(-(2 * y_test - 1) * (x_test @ without))) - losses
    margin = (2 * y - 1) * (x @ w)
    checkpoint = TrakCheckpoint(
        torch.from_numpy((2 * y_test - 1)[:, None] * x_test),
        torch.from_numpy((2 * y - 1)[:, None] * x),
        torch.from_numpy(1 / (1 + np.exp(margin))),
    )
    found = trak_scores([checkpoint]).numpy()
    ranks = [spearmanr(*rows).statistic for rows in zip(found, effects, strict=True)]
    assert min(ranks) > 0.9  # positive: the example lowered the test loss
    shuffled = [spearmanr(one, draw.permutation(other)).statistic
                for one, other in zip(found, effects, strict=True)]  # fmt: skip
    assert abs(np.mean(shuffled)) < 0.2


def test_the_margin_is_the_log_odds_of_the_label():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    logits[4, 0] = 200.0  # 1 − p is 0 in floating point, its logarithm is not
    labels = torch.tensor([0, 3, 1, 2, 0])
    p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    found = margins_of(logits, labels)
    torch.testing.assert_close(found[:4], (p / (1 - p)).log()[:4], rtol=1e-10, atol=1e-12)
    assert 190 < found[4] < 210
    assert margins_of(logits, torch.full((5,), -100)).tolist() == [0.0] * 5


def test_the_margins_gradient_is_the_losses_over_the_doubt():
    model, collate = makers.make("bert"), makers.collate_for("bert")
    batch = collate(makers.examples("bert", (6, 3, 4)))
    tracked = track(model)
    margin = collect(model, tracked, batch, negative_margins).gradients()
    loss = collect(model, tracked, batch).gradients()
    with torch.no_grad():
        _, doubt = margins_and_doubt(model, batch)
        p = model(**batch).logits.softmax(-1).gather(1, batch["labels"][:, None])[:, 0]
    torch.testing.assert_close(doubt, 1 - p)
    for name, block in loss.items():
        weight = doubt.reshape(-1, *[1] * (block.ndim - 1))
        torch.testing.assert_close(margin[name] * weight, block, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["bert", "bert_tagger", "qwen3", "gpt2", "mt5", "m2m"])
def test_margins_are_means_over_the_labelled_tokens_of_each_example(name):
    model, collate = makers.make(name), makers.collate_for(name)
    rows = makers.examples(name, (6, 3, 4))
    found, doubt = (v.detach() for v in margins_and_doubt(model, collate(rows)))
    for k, row in enumerate(rows):
        batch = collate([row])
        with torch.no_grad():
            logits = model(**batch).logits.double()
        labels = batch["labels"]
        if name in ("qwen3", "gpt2"):
            logits, labels = logits[:, :-1], labels[:, 1:]
        pairs = zip(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), strict=True)
        p = torch.stack([row.softmax(-1)[y] for row, y in pairs if y != -100])
        torch.testing.assert_close(found[k].double(), (p / (1 - p)).log().mean(), rtol=1e-5,
                                   atol=1e-6)  # fmt: skip
        torch.testing.assert_close(doubt[k].double(), (1 - p).mean(), rtol=1e-5, atol=1e-6)


def test_an_example_without_a_label_has_no_margin():
    model, collate = makers.make("bert_tagger"), makers.collate_for("bert_tagger")
    batch = collate(makers.examples("bert_tagger", (4, 3)))
    batch["labels"][1] = -100
    found = negative_margins(model, batch)
    assert found[0].isfinite()
    assert found[1].isnan()
    (gradient,) = torch.autograd.grad(found.nansum(), model.classifier.weight)
    assert gradient.isfinite().all()


def test_planted_duplicates_rank_first_on_a_model_and_its_projection():
    model, collate = makers.make("bert_lora"), makers.collate_for("bert_lora")
    rows = makers.examples("bert_lora", (6, 3, 4, 5, 6, 3, 5, 4, 6, 5, 4, 3), seed=1)
    queries = rows[3:5]
    tracked = track(model)
    projection = Projection(dimension=256, seed=0)
    train = [collect(model, tracked, collate(rows), negative_margins).gradients()]
    test = [collect(model, tracked, collate(queries), negative_margins).gradients()]
    doubt = torch.full((12,), 0.5).double()
    for kind in (None, projection):
        made = TrakCheckpoint(features(test, kind), features(train, kind), doubt)
        found = trak_scores([made], TrakSettings(ridge=0.05))
        assert found.argmax(dim=1).tolist() == [3, 4]


def test_trak_settings_are_recorded():
    assert TrakSettings(ridge=0.1).to_dict() == {
        "method": "trak", "output": "margin", "dimension": None, "ridge": 0.1, "seed": 0,
    }  # fmt: skip


def test_the_usual_dimension_leaves_four_training_examples_to_each():
    for n_train, dimension in ((3, 1), (4, 1), (8, 2), (100, 16), (127, 16), (128, 32)):
        assert TrakSettings(seed=4).projection(n_train, 10**6) == Projection(
            dimension=dimension, seed=4
        )
    assert TrakSettings().projection(128, 32) is None
    assert TrakSettings(dimension=50).projection(8, 51) == Projection(dimension=50)


# --- projections -------------------------------------------------------------------------------


def test_a_smaller_projection_is_the_first_rows_of_a_larger():
    blocks = blocks_of(3, 0)
    large = Projection(dimension=90, seed=5).project(blocks) * 90**0.5
    for k in (1, 7, 64):
        small = Projection(dimension=k, seed=5).project(blocks) * k**0.5
        torch.testing.assert_close(small, large[:, :k], rtol=1e-12, atol=1e-12)
    a, g = torch.randn(2, 3, 40).double(), torch.randn(2, 3, 30).double()
    wide = TwoSidedProjection(inputs=12, outputs=10, seed=5).project({"m": (a, g)})["m"]
    narrow = TwoSidedProjection(inputs=5, outputs=4, seed=5).project({"m": (a, g)})["m"]
    scale = (12 * 10) ** 0.5 / (5 * 4) ** 0.5
    torch.testing.assert_close(narrow, scale * wide[:, :4, :5], rtol=1e-12, atol=1e-12)


def test_rows_are_made_alone_and_bytes_never_change():
    whole = packed_signs("layer.weight", 3, 0, 50, 130)
    assert np.array_equal(packed_signs("layer.weight", 3, 17, 20, 130), whole[17:20])
    assert whole.shape == (50, 17)
    # Recorded once: stored projections stay comparable over releases, machines and processes.
    digest = hashlib.sha256(whole.tobytes()).hexdigest()
    assert digest[:16] == "5c76a33930f181ba"


def test_signs_are_fair_and_independent_of_each_other():
    one = signs("a", 0, 400, 300)
    assert abs(one.mean()) < 4 / np.sqrt(one.size)
    for other in (signs("b", 0, 400, 300), signs("a", 1, 400, 300), np.roll(one, 1, axis=0),
                  np.roll(one, 1, axis=1)):  # fmt: skip
        assert abs((one * other).mean()) < 4 / np.sqrt(one.size)


def test_inner_products_are_kept_in_expectation_and_errors_shrink():
    blocks = blocks_of(6, 0, (("a", (8, 5)), ("b", (20,))))
    flat = torch.cat([blocks["a"].flatten(1), blocks["b"]], dim=1)
    exact = flat @ flat.T
    errors = {}
    for k in (16, 256):
        found = [Projection(dimension=k, seed=s).project(blocks) for s in range(200)]
        products = torch.stack([p @ p.T for p in found])
        spread = products.std(0) / 200**0.5
        assert ((products.mean(0) - exact).abs() < 4.5 * spread + 1e-9).all()
        errors[k] = float((products - exact).square().mean().sqrt())
    assert 3 < errors[16] / errors[256] < 5.3  # as 1/√k: √(256/16) = 4


def test_two_sided_products_are_kept_in_expectation():
    draw = torch.Generator().manual_seed(0)
    factors = {"m": (torch.randn(4, 3, 12, generator=draw).double(),
                     torch.randn(4, 3, 10, generator=draw).double())}  # fmt: skip
    gradient = torch.einsum("nto,nti->noi", factors["m"][1], factors["m"][0]).flatten(1)
    exact = gradient @ gradient.T
    products = []
    for seed in range(400):
        found = TwoSidedProjection(inputs=6, outputs=5, seed=seed).project(factors)["m"].flatten(1)
        products.append(found @ found.T)
    stacked = torch.stack(products)
    assert ((stacked.mean(0) - exact).abs() < 4.5 * stacked.std(0) / 20).all()


def test_two_sided_projection_is_of_the_gradient_itself():
    draw = torch.Generator().manual_seed(0)
    a, g = torch.randn(2, 3, 9, generator=draw).double(), torch.randn(2, 3, 7, generator=draw)
    g = g.double()
    with_bias = torch.cat([a, torch.ones(2, 3, 1).double()], dim=-1)
    gradient = torch.einsum("nto,nti->noi", g, with_bias).numpy()
    found = TwoSidedProjection(inputs=4, outputs=5, seed=2).project({"m": (a, g)}, bias=["m"])
    left, right = signs("m outputs", 2, 5, 7) / 5**0.5, signs("m inputs", 2, 4, 10) / 2
    np.testing.assert_allclose(found["m"].numpy(), left @ gradient @ right.T, rtol=1e-10)
    kept = TwoSidedProjection(inputs=10, outputs=8).project({"m": (a, g)}, bias=["m"])["m"]
    np.testing.assert_allclose(kept.numpy(), gradient, rtol=1e-10)


def test_large_blocks_are_projected_in_parts_with_the_same_result(monkeypatch):
    blocks = blocks_of(3, 0, (("a", (40, 30)),))
    whole = Projection(dimension=50, seed=1).project(blocks)
    for chunk, keep in ((1 << 12, 1 << 28), (1, 0)):
        monkeypatch.setattr("subnet.influence.projection._CHUNK", chunk)
        monkeypatch.setattr("subnet.influence.projection._KEEP", keep)
        projection = Projection(dimension=50, seed=1)
        for _ in range(2):  # made, then kept or made again
            torch.testing.assert_close(projection.project(blocks), whole, rtol=1e-12, atol=1e-12)
    half = Projection(dimension=50, seed=1).project({"a": blocks["a"].half()})
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole.float(), rtol=0.02, atol=0.5)


class Stack(nn.Module):
    """Linear layers of one width, without anything that costs beside them."""

    def __init__(self, width=96, depth=12):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def test_two_sided_projection_costs_at_most_three_quarters_of_a_training_step():
    torch.manual_seed(0)
    model = Stack()
    batch = {"x": torch.randn(4, 16, 96)}

    def loss_fn(model, batch):
        return model(batch["x"]).square().mean(dim=(1, 2))

    with FlopCounterMode(display=False) as step:
        loss_fn(model, batch).mean().backward()
    tracked = track(model)
    projection = TwoSidedProjection(inputs=10, outputs=10)
    with FlopCounterMode(display=False) as ours:
        collected = collect(model, tracked, batch, loss_fn)
        factors = {n: (f.inputs, f.gradients) for n, f in collected.factors.items()}
        found = projection.project(factors)
    assert found["layers.0"].shape == (4, 10, 10)
    ratio = ours.get_total_flops() / step.get_total_flops()
    assert ratio <= 0.75
    with FlopCounterMode(display=False) as whole:
        collect(model, tracked, batch, loss_fn).gradients()
    assert whole.get_total_flops() / step.get_total_flops() > 0.95  # what is saved


def test_fidelity_is_a_rank_correlation_with_an_interval_over_seeds():
    draw = np.random.default_rng(0)
    exact = draw.normal(size=(5, 40))
    same = fidelity(exact, [np.exp(exact), exact**3 + 7])
    assert same.value == pytest.approx(1.0)
    assert (same.ci_low, same.ci_high) == pytest.approx((1.0, 1.0))
    noisy = [exact + draw.normal(size=exact.shape) for _ in range(8)]
    found = fidelity(exact, noisy, seed=1)
    by_seed = [np.mean([spearmanr(a, b).statistic for a, b in zip(exact, n, strict=True)])
               for n in noisy]  # fmt: skip
    np.testing.assert_allclose(found.by_seed, by_seed, rtol=1e-12)
    assert found.value == pytest.approx(np.mean(by_seed))
    assert min(by_seed) <= found.ci_low < found.value < found.ci_high <= max(by_seed)
    assert found == fidelity(exact, noisy, seed=1)
    null = fidelity(exact, [draw.normal(size=exact.shape) for _ in range(8)])
    assert null.ci_low < 0 < null.ci_high
    assert abs(null.value) < 0.1
    exact[2] = 1.0
    assert fidelity(exact, noisy).n_undefined == 1
    assert fidelity(exact, noisy).to_dict()["n_undefined"] == 1
    assert fidelity(exact, [np.zeros((5, 40))]).value == 0.0
    assert np.isnan(fidelity(exact, noisy[:1]).ci_low)


def test_projected_scores_come_nearer_to_the_exact_ones_with_more_dimensions():
    train, queries = (blocks_of(n, s, (("a", (20, 20)),)) for n, s in ((60, 0), (5, 1)))
    queries["a"] += train["a"][:5]
    exact = queries["a"].flatten(1) @ train["a"].flatten(1).T
    values = []
    for dimension in (16, 128, 1024):
        made = [Projection(dimension=dimension, seed=s) for s in range(5)]
        scores = [p.project(queries) @ p.project(train).T for p in made]
        values.append(fidelity(exact, scores).value)
    assert values[0] < values[1] < values[2]
    assert values[2] > 0.8


def test_projection_settings_are_recorded_and_compared():
    assert Projection(dimension=8, seed=2).to_dict() == {
        "projection": "rademacher", "dimension": 8, "seed": 2,
    }  # fmt: skip
    assert TwoSidedProjection(inputs=8, outputs=4).to_dict() == {
        "projection": "two-sided rademacher", "inputs": 8, "outputs": 4, "seed": 0,
    }  # fmt: skip
    used = Projection(dimension=8)
    used.project(blocks_of(2, 0))
    assert used == Projection(dimension=8) != Projection(dimension=8, seed=1)


# --- bad input ---------------------------------------------------------------------------------


def test_features_that_fit_no_formula_are_refused():
    good = checkpoint_of(0)
    few = TrakCheckpoint(good.queries, good.train[:6], good.doubt[:6])
    with pytest.raises(InputError, match="products of 6 training examples' 10 features have no"):
        trak_scores([few])
    assert trak_scores([few], TrakSettings(ridge=0.01)).isfinite().all()
    broken = good.train.clone()
    broken[7, 2] = float("nan")
    with pytest.raises(InputError, match="features of training example 7 are not finite"):
        fit_trak(broken)
    with pytest.raises(InputError, match="ridge is -1"):
        TrakSettings(ridge=-1)
    with pytest.raises(InputError, match="no examples to make features of"):
        features([])
    with pytest.raises(InputError, match="an earlier batch have a gradient of b"):
        features([blocks_of(2, 0), {"a": torch.ones(1, 3, 2)}])


def test_models_without_a_margin_are_refused():
    model = makers.make("bert")
    model.config.problem_type = "regression"
    batch = makers.collate_for("bert")(makers.examples("bert"))
    with pytest.raises(InputError, match="no single label with a probability"):
        negative_margins(model, batch)


def test_projections_and_scores_that_fit_nothing_are_refused():
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(InputError, match=r"dimension is .*a whole number, 1 or more"):
            Projection(dimension=wrong)
        with pytest.raises(InputError, match="inputs is"):
            TwoSidedProjection(inputs=wrong, outputs=2)
    with pytest.raises(InputError, match="seed is -1"):
        Projection(dimension=2, seed=-1)
    with pytest.raises(InputError, match="there is no gradient to project"):
        Projection(dimension=2).project({})
    exact = np.arange(6.0).reshape(2, 3)
    with pytest.raises(InputError, match="there are no projected scores"):
        fidelity(exact, [])
    with pytest.raises(InputError, match=r"are of shape \[3, 2\]; expected \[2, 3\]"):
        fidelity(exact, [exact.T])
    with pytest.raises(InputError, match="one training example has no rank"):
        fidelity(exact[:, :1], [exact[:, :1]])
    with pytest.raises(InputError, match="are all equal"):
        fidelity(exact * 0, [exact])
