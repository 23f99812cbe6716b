"""K-FAC, EK-FAC and DataInf against dense matrices, closed forms and kronfluence."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch.nn import functional as F

import model_makers as makers
from influence_oracles import joined, products
from subnet.errors import InputError, MissingInputError
from subnet.influence._labels import sample_labels
from subnet.influence.collecting import collect
from subnet.influence.datainf import DataInfSettings, fit_datainf
from subnet.influence.kfac import (
    CurvatureSettings,
    FactorBatch,
    FactorStream,
    fit_curvature,
    linear_factors,
)
from subnet.influence.tracking import track
from subnet.model import example_losses

FIXTURE = Path(__file__).parent / "fixtures" / "kronfluence" / "scores.safetensors"


def random_factors(n=12, t=3, i=4, o=3, seed=0):
    """Inputs and output gradients whose directions differ in size, correlated over tokens."""
    draw = torch.Generator().manual_seed(seed)
    mix_in, mix_out = (torch.randn(d, d, generator=draw).double() for d in (i, o))
    a = torch.randn(n, t, i, generator=draw).double() @ mix_in + 0.5
    g = (a[..., :o].tanh() + torch.randn(n, t, o, generator=draw).double()) @ mix_out
    return a, g


def weight_gradients(a, g):
    """[n, o, i] by a loop."""
    return torch.stack([sum(torch.outer(g[n, t], a[n, t]) for t in range(a.shape[1]))
                        for n in range(len(a))])  # fmt: skip


def dense_fisher(gradients):
    """1/n Σ vec(G) vec(G)ᵀ, rows of G one after another."""
    flat = gradients.flatten(1).numpy()
    return flat.T @ flat / len(flat)


def dense_solve(matrix, damping, gradients):
    flat = gradients.flatten(1).numpy()
    found = np.linalg.solve(matrix + damping * np.eye(len(matrix)), flat.T).T
    return torch.from_numpy(found).reshape(gradients.shape)


def close(found, expected, rtol=1e-9):
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * scale)


# --- EK-FAC and K-FAC ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
@pytest.mark.parametrize("damping", [None, 0.3])
def test_equals_inversion_of_the_same_kronecker_matrix(method, damping):
    a, g = random_factors()
    a = torch.cat([a, torch.ones(*a.shape[:2], 1)], -1)  # the bias column, by hand
    n, t = a.shape[:2]
    tokens = [(a[n, t].numpy(), g[n, t].numpy()) for n, t in itertools.product(range(n), range(t))]
    _, u_in = np.linalg.eigh(sum(np.outer(x, x) for x, _ in tokens) / len(tokens))
    _, u_out = np.linalg.eigh(sum(np.outer(y, y) for _, y in tokens) / len(tokens))
    basis = np.kron(u_out, u_in)
    if method == "ekfac":
        along = weight_gradients(a, g).flatten(1).numpy() @ basis
        values = (along**2).mean(0)
    else:
        a_cov = sum(np.outer(x, x) for x, _ in tokens) / len(tokens)
        g_cov = sum(np.outer(y, y) for _, y in tokens) / len(tokens)
        values = np.diag(basis.T @ np.kron(g_cov, a_cov) @ basis) * t
    matrix = basis @ np.diag(values) @ basis.T
    expected_damping = 0.1 * values.mean() if damping is None else damping
    gradients = weight_gradients(a, g)
    expected = dense_solve(matrix, expected_damping, gradients)

    settings = CurvatureSettings(method=method, damping=damping)
    plain = [{"layer": (a[:5, :, :-1], g[:5])}, {"layer": (a[5:, :, :-1], g[5:])}]
    fitted = fit_curvature(plain, settings, bias=["layer"])
    assert fitted.damping["layer"] == pytest.approx(expected_damping, rel=1e-10)
    found = fitted.precondition(
        {"layer.bias": gradients[..., -1], "layer.weight": gradients[..., :-1]}
    )
    assert list(found) == ["layer.bias", "layer.weight"]
    close(found["layer.weight"], expected[..., :-1])
    close(found["layer.bias"], expected[..., -1])
    turned = fit_curvature(plain, settings, bias=["layer"], transposed=["layer"])
    found = turned.precondition(
        {"layer.weight": gradients[..., :-1].transpose(1, 2), "layer.bias": gradients[..., -1]}
    )
    close(found["layer.weight"], expected[..., :-1].transpose(1, 2))


def factorial(n_tokens):
    """All ways to give each token one of three inputs and one of four gradients of mean zero."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 3, generator=draw).double() + 1
    half = torch.randn(2, 2, generator=draw).double()
    gradients = torch.cat([half, -half])
    one = list(itertools.product(range(3), range(4)))
    rows = list(itertools.product(one, repeat=n_tokens))
    a = torch.stack([torch.stack([inputs[i] for i, _ in row]) for row in rows])
    g = torch.stack([torch.stack([gradients[j] for _, j in row]) for row in rows])
    return a, g


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
@pytest.mark.parametrize("n_tokens", [1, 2])
def test_is_the_fisher_itself_where_inputs_and_gradients_are_independent(method, n_tokens):
    a, g = factorial(n_tokens)
    gradients = weight_gradients(a, g)
    settings = CurvatureSettings(method=method, damping=0.05)
    fitted = fit_curvature([{"layer": (a, g)}], settings)
    found = fitted.precondition({"layer.weight": gradients})["layer.weight"]
    close(found, dense_solve(dense_fisher(gradients), 0.05, gradients))


def test_ekfac_is_nearer_to_the_fisher_than_kfac_where_they_are_not_independent():
    a, g = random_factors(n=400, t=1)
    gradients = weight_gradients(a, g)
    truth = dense_solve(dense_fisher(gradients), 0.5, gradients)
    errors = {}
    for method in ("ekfac", "kfac"):
        fitted = fit_curvature([{"layer": (a, g)}], CurvatureSettings(method=method, damping=0.5))
        found = fitted.precondition({"layer.weight": gradients})["layer.weight"]
        errors[method] = float((found - truth).norm() / truth.norm())
    assert 0.01 < errors["ekfac"] < errors["kfac"]


def fixture_factors(data, part):
    """Factors and gradients of the fixture's network by autograd alone."""
    x, mask, y = (data[f"{part}.{name}"] for name in ("x", "mask", "y"))
    first, bias, second = (data[f"model.{n}"] for n in ("first.weight", "first.bias",
                                                        "second.weight"))  # fmt: skip
    z = (x @ first.T + bias).requires_grad_()
    h = torch.tanh(z)
    s = h @ second.T
    s.retain_grad()
    out = (s * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    F.cross_entropy(out, y, reduction="sum").backward()
    blocks = {
        "first.weight": weight_gradients(x, z.grad),
        "first.bias": z.grad.sum(1),
        "second.weight": weight_gradients(h.detach(), s.grad),
    }
    return {"first": (x, z.grad), "second": (h.detach(), s.grad)}, blocks, mask


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
@pytest.mark.parametrize("damping", ["heuristic", "small"])
def test_equals_kronfluence(method, damping):
    data = load_file(FIXTURE)
    factors, train, mask = fixture_factors(data, "train")
    _, queries, _ = fixture_factors(data, "query")
    value = {"heuristic": None, "small": 1e-3}[damping]
    expected = data[f"scores.{method}.{damping}"]
    for tokens in ("mask", "active"):  # the same here: gradients are zero at padding alone
        settings = CurvatureSettings(method=method, tokens=tokens, scale="token", damping=value)
        fitted = fit_curvature([FactorBatch(factors, mask)], settings, bias=["first"])
        close(products([queries], [train], fitted), expected, rtol=1e-12)
    settings = CurvatureSettings(method=method, tokens="all", scale="token", damping=value)
    fitted = fit_curvature([FactorBatch(factors, mask)], settings, bias=["first"])
    assert not torch.allclose(products([queries], [train], fitted), expected, rtol=0.02)


def test_padding_and_batches_change_nothing():
    a, g = random_factors()
    gradients = {"layer.weight": weight_gradients(a, g)}
    wide_a = torch.cat([a, torch.full((12, 2, 4), 7.0).double()], dim=1)
    wide_g = torch.cat([g, torch.zeros(12, 2, 3).double()], dim=1)
    for method in ("ekfac", "kfac"):
        settings = CurvatureSettings(method=method)
        narrow = fit_curvature([{"layer": (a, g)}], settings)
        wide = [{"layer": (wide_a[k : k + 1], wide_g[k : k + 1])} for k in range(12)]
        padded = fit_curvature(wide, settings)
        close(*(f.precondition(gradients)["layer.weight"] for f in (padded, narrow)))
        assert padded.n_examples == 12
        assert padded.modules["layer"].n_tokens == 36


def test_influence_is_the_effect_of_a_weight_on_the_solution_of_a_linear_regression():
    # Upweighting example i by ε moves the test loss by −ε ⟨h, H⁻¹ g⟩ / n: here by solving again.
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(15, 3)) * [1, 2, 0.5], draw.normal(size=15)
    x_test, y_test = draw.normal(size=(4, 3)), draw.normal(size=4)

    def solve(weights):
        return np.linalg.solve((x.T * weights) @ x, (x.T * weights) @ y)

    def losses(w):
        return (x_test @ w - y_test) ** 2 / 2

    w = solve(np.ones(15))
    eps = 1e-5
    each = np.eye(15)
    slopes = [(losses(solve(1 + eps * e)) - losses(solve(1 - eps * e))) / (2 * eps) for e in each]
    effects = np.stack(slopes, axis=1)
    # The Fisher of a unit Gaussian: gradients ±x at both signs of a unit residual.
    a = torch.from_numpy(np.concatenate([x, x]))[:, None]
    g = torch.cat([torch.ones(15, 1, 1), -torch.ones(15, 1, 1)]).double()
    train = torch.from_numpy((x @ w - y)[:, None] * x)[:, None]
    test = torch.from_numpy((x_test @ w - y_test)[:, None] * x_test)[:, None]
    for method in ("ekfac", "kfac"):
        fitted = fit_curvature([{"m": (a, g)}], CurvatureSettings(method=method, damping=0.0))
        found = products([{"m.weight": test}], [{"m.weight": train}], fitted) / 15
        np.testing.assert_allclose(found.numpy(), -effects, rtol=0, atol=1e-7)


def test_ranks_are_those_of_a_damped_gauss_newton_inverse():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=draw).double() * torch.tensor([3.0, 1, 0.3, 0.1, 1]).double()
    truth = torch.randn(5, 3, generator=draw).double() / 2
    p_true = (x @ truth).softmax(-1)
    y = torch.multinomial(p_true, 1, generator=draw)[:, 0]
    weight = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T, y) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    p = (x @ weight.detach().T).softmax(-1)
    each = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # Hessian by the logits
    hessian = torch.einsum("nab,ni,nj->aibj", each, x, x).reshape(15, 15) / 300
    delta = p - F.one_hot(y, 3)
    gradients = delta[:, :, None] * x[:, None]
    damping = 0.1 * float(hessian.trace()) / 15
    solved = dense_solve(hessian.numpy(), damping, gradients[:20])
    exact = solved.flatten(1) @ gradients.flatten(1).T
    # The model's own labels in expectation: every class, its gradient by the root of its p.
    classes = torch.eye(3).double()
    g = (p[:, None, :] - classes) * p[:, :, None].sqrt()  # [n, class, o]
    factors = {"m": (x.repeat_interleave(3, 0)[:, None], g.reshape(900, 1, 3) * 3**0.5)}
    kinds = {"plain": None}
    for method in ("ekfac", "kfac"):
        kinds[method] = fit_curvature([factors], CurvatureSettings(method=method, damping=damping))
    ranks = {}
    for name, curvature in kinds.items():
        found = products([{"m.weight": gradients[:20]}], [{"m.weight": gradients}], curvature)
        rows = zip(found.numpy(), exact.numpy(), strict=True)
        ranks[name] = np.mean([spearmanr(one, other).statistic for one, other in rows])
    assert ranks["ekfac"] > 0.95
    assert ranks["ekfac"] > ranks["kfac"] > ranks["plain"] + 0.1


def test_modules_are_independent_and_each_has_its_own_damping():
    one, two = random_factors(seed=1), random_factors(seed=2, i=5, o=2)
    blocks = {"x.weight": weight_gradients(*one), "y.weight": weight_gradients(*two)}
    both = fit_curvature([{"x": one, "y": two}])
    alone = fit_curvature([{"y": two}])
    close(both.precondition(blocks)["y.weight"],
          alone.precondition({"y.weight": blocks["y.weight"]})["y.weight"])  # fmt: skip
    assert both.damping["x"] != both.damping["y"]
    recorded = both.to_dict()
    assert recorded["method"] == "ekfac"
    assert recorded["labels"] == "true"
    assert recorded["tokens"] == "active"
    assert recorded["damping_scale"] == 0.1
    assert recorded["damping_by_module"] == both.damping
    assert recorded["n_examples"] == 12


# --- on models ---------------------------------------------------------------------------------


def factor_stream(model, batches, tracked, settings):
    def each(relabel=None):
        first = 0
        for batch in batches:
            n = len(batch["input_ids"])
            numbers, first = range(first, first + n), first + n
            seen = batch if relabel is None else relabel(batch, numbers)
            yield list(numbers), batch, collect(model, tracked, seen)

    return FactorStream(model, each, settings)


@pytest.mark.parametrize("name", ["bert_lora", "gpt2", "mt5"])
@pytest.mark.parametrize("labels", ["true", "model"])
def test_preconditions_what_the_engine_collects(name, labels):
    model, collate = makers.make(name), makers.collate_for(name)
    rows = makers.examples(name, (6, 3, 4, 6, 5, 4))
    batches = [collate(rows[:4]), collate(rows[4:])]
    tracked = track(model, biases=name == "gpt2")
    settings = CurvatureSettings(labels=labels, damping=1e-3)
    stream = factor_stream(model, batches, tracked, settings)
    biased = [m.name for m in tracked if m.bias]
    turned = [m.name for m in tracked if m.kind == "conv1d"]
    assert bool(turned) == (name == "gpt2")
    fitted = fit_curvature(stream, settings, bias=biased, transposed=turned)
    queries = [collect(model, tracked, batches[0]).gradients()]
    train = [collect(model, tracked, batch).gradients() for batch in batches]
    found = products(queries, train, fitted)
    assert found.shape == (4, 6)
    # Oracle: gradients by autograd, one example and one parameter at a time, in the fitted basis.
    expected = torch.zeros(4, 6, dtype=torch.float64)
    parameters = [model.get_parameter(name) for name in tracked.shapes]
    singles = [example_losses(model, collate([row])).sum() for row in rows]
    vectors = [
        dict(zip(tracked.shapes, torch.autograd.grad(loss, parameters), strict=True))
        for loss in singles
    ]
    for module in tracked:
        each = torch.stack([v[module.weight] for v in vectors]).double()
        each = each.transpose(1, 2) if module.kind == "conv1d" else each
        if module.bias:
            bias = torch.stack([v[module.bias] for v in vectors]).double()
            each = torch.cat([each, bias[:, :, None]], dim=2)
        k = fitted.modules[module.name]
        basis = torch.kron(k.outputs, k.inputs)
        along = each.flatten(1) @ basis
        if labels == "true":  # the eigenvalues are the variances of these very gradients
            close(k.eigenvalues.flatten(), along.square().mean(0), rtol=1e-5)
        expected += along[:4] / (k.eigenvalues.flatten() + 1e-3) @ along.T
    close(found, expected, rtol=1e-5)


def test_drawn_labels_follow_the_model_and_not_the_batch():
    model, collate = makers.make("bert"), makers.collate_for("bert")
    rows = makers.examples("bert", (6, 3, 4))
    batch = collate(rows)
    with torch.no_grad():
        p = model(**batch).logits.softmax(-1)
    n_draws = 300
    counts = torch.zeros(3, 3)
    for seed in range(n_draws):
        drawn = sample_labels(model, batch, seed=seed)["labels"]
        counts += F.one_hot(drawn, 3)
    errors = (p * (1 - p) / n_draws).sqrt()
    assert ((counts / n_draws - p).abs() < 4 * errors).all()
    whole = sample_labels(model, batch, seed=5, numbers=[2, 3, 4])["labels"]
    alone = [sample_labels(model, collate([r]), seed=5, numbers=[2 + k])["labels"]
             for k, r in enumerate(rows)]  # fmt: skip
    assert torch.equal(whole, torch.cat(alone))
    assert torch.equal(batch["labels"], collate(rows)["labels"])


@pytest.mark.parametrize("name", ["bert_tagger", "qwen3", "mt5", "m2m"])
def test_drawn_tokens_are_those_the_model_would_say_after_the_true_text(name):
    model, collate = makers.make(name), makers.collate_for(name)
    rows = makers.examples(name, (6, 3, 4))
    batch = collate(rows)
    drawn = sample_labels(model, batch, seed=0)
    assert torch.equal(drawn["labels"] == -100, batch["labels"] == -100)
    assert not torch.equal(drawn["labels"], batch["labels"])
    with torch.no_grad():
        logits = model(**batch).logits
        again = model(**drawn).logits
    torch.testing.assert_close(again, logits)  # the decoder still reads the true text
    if name in ("mt5", "m2m"):
        assert "decoder_input_ids" in drawn
    # A model that is sure says what it is sure of: as its weights grow the draw becomes the argmax.
    head = model.get_output_embeddings() if name != "bert_tagger" else model.classifier
    with torch.no_grad():
        head.weight.mul_(1e4)
        if name == "bert_tagger":
            head.bias.zero_()
        sure = model(**batch).logits.argmax(-1)
    drawn = sample_labels(model, batch, seed=1)["labels"]
    if name == "qwen3":
        sure, drawn = sure[:, :-1], drawn[:, 1:]
    kept = drawn != -100
    assert torch.equal(drawn[kept], sure[kept])


def test_curvature_of_drawn_labels_does_not_depend_on_the_batches():
    model, collate = makers.make("bert"), makers.collate_for("bert")
    rows = makers.examples("bert", (6, 3, 4, 5, 6, 4))
    tracked = track(model, ["classifier"])
    settings = CurvatureSettings(labels="model", seed=3)
    found = []
    for size in (1, 4, 6):
        batches = [collate(rows[k : k + size]) for k in range(0, 6, size)]
        fitted = fit_curvature(factor_stream(model, batches, tracked, settings), settings)
        gradients = collect(model, tracked, collate(rows)).gradients()
        found.append(fitted.precondition(gradients)["classifier.weight"].double())
    close(found[0], found[1], rtol=1e-5)
    close(found[0], found[2], rtol=1e-5)


def test_fisher_of_drawn_labels_tends_to_the_exact_expectation():
    model, collate = makers.make("bert"), makers.collate_for("bert")
    batches = [collate(makers.examples("bert", (6, 3, 4, 5)))]
    tracked = track(model, ["classifier"])
    with torch.no_grad():
        p = model(**batches[0]).logits.softmax(-1)
    expected = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    total = torch.zeros(3, 3, dtype=torch.float64)
    for seed in range(60):
        settings = CurvatureSettings(labels="model", seed=seed)
        (factors,) = list(factor_stream(model, batches, tracked, settings))
        g = factors.factors["classifier"][1][:, 0].double()
        total += g.T @ g / 4 / 60
    assert (total - expected).abs().max() < 0.25 * expected.abs().max()


# --- DataInf -----------------------------------------------------------------------------------


def datainf_scores(queries, train, settings=None):
    """All queries at once, then products with the training gradients as they are."""
    fitted = fit_datainf(train, settings)
    return products([fitted.precondition(joined(queries))], train)


def lora_blocks(n, seed):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"m.lora_A.weight": (2, 5), "m.lora_B.weight": (4, 2), "n.lora_B.weight": (3, 2)}
    sizes = (1.0, 3.0, 0.2)
    return {name: size * torch.randn(n, *shape, generator=draw).double()
            for (name, shape), size in zip(shapes.items(), sizes, strict=True)}  # fmt: skip


def dense_datainf(queries, train, layers, settings, *, swapped=True):
    """Dense matrices: the mean of inverses as stated, or the inverse of the mean."""
    total = 0.0
    for names in layers:
        g = np.concatenate([train[name].flatten(1).numpy() for name in names], axis=1)
        h = np.concatenate([queries[name].flatten(1).numpy() for name in names], axis=1)
        n, d = g.shape
        damping = settings.damping or settings.damping_scale * (g**2).sum() / (n * d)
        ridge = damping * np.eye(d)
        if swapped:
            inverse = sum(np.linalg.inv(np.outer(row, row) + ridge) for row in g) / n
        else:
            inverse = np.linalg.inv(sum(np.outer(row, row) for row in g) / n + ridge)
        total = total + h @ inverse @ g.T
    return torch.from_numpy(total)


A, B, C = "m.lora_A.weight", "m.lora_B.weight", "n.lora_B.weight"


@pytest.mark.parametrize(
    ("layer", "layers"),
    [("parameter", [[A], [B], [C]]), ("module", [[A, B], [C]])],
)
@pytest.mark.parametrize("damping", [None, 0.7])
def test_datainf_is_the_mean_of_dense_inverses(layer, layers, damping):
    queries, train = lora_blocks(3, 0), lora_blocks(9, 1)
    settings = DataInfSettings(layer=layer, damping=damping)
    batches = [{k: v[part] for k, v in train.items()} for part in (slice(4), slice(4, 9))]
    parts = [{k: v[part] for k, v in queries.items()} for part in (slice(1), slice(1, 3))]
    found = datainf_scores(parts, batches, settings)
    close(found, dense_datainf(queries, train, layers, settings), rtol=1e-10)


def test_datainf_swaps_mean_and_inverse_and_that_is_its_only_error():
    queries, train = lora_blocks(3, 0), lora_blocks(9, 1)
    layers = [[A], [B], [C]]
    errors = []
    for damping in (1.0, 100.0, 1e5):
        settings = DataInfSettings(damping=damping)
        exact = dense_datainf(queries, train, layers, settings, swapped=False)
        found = datainf_scores([queries], [train], settings)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] > 0.05  # it is an approximation
    assert errors[0] > 5 * errors[1] > 50 * errors[2]  # that damping makes exact
    one = {name: block[:1] for name, block in train.items()}  # as is a single example
    exact = dense_datainf(queries, one, layers, DataInfSettings(), swapped=False)
    close(datainf_scores([queries], [one]), exact, rtol=1e-10)


def test_datainf_records_its_settings():
    fitted = fit_datainf([lora_blocks(9, 1)])
    recorded = fitted.to_dict()
    assert recorded["method"] == "datainf"
    assert recorded["layer"] == "parameter"
    assert recorded["damping_scale"] == 0.1
    assert recorded["n_examples"] == 9
    g = lora_blocks(9, 1)[B]
    assert recorded["damping_by_layer"][B] == pytest.approx(0.1 * float(g.square().mean()))


# --- bad input ---------------------------------------------------------------------------------


def test_settings_are_checked():
    for wrong in ({"method": "x"}, {"labels": "x"}, {"tokens": "x"}, {"scale": "x"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is 'x'; expected '"):
            CurvatureSettings(**wrong)
    with pytest.raises(InputError, match="damping is -1"):
        CurvatureSettings(damping=-1)
    with pytest.raises(InputError, match="seed is -1"):
        CurvatureSettings(seed=-1)
    with pytest.raises(InputError, match="damping is 0; expected a positive number"):
        DataInfSettings(damping=0)
    with pytest.raises(InputError, match="damping_scale is nan"):
        DataInfSettings(damping_scale=float("nan"))
    with pytest.raises(InputError, match="layer is 'x'"):
        DataInfSettings(layer="x")


def test_parameters_without_curvature_are_refused():
    a, g = random_factors()
    blocks = {"layer.weight": weight_gradients(a, g), "layer.bias": g.sum(1)}
    fitted = fit_curvature([{"layer": (a, g)}])
    with pytest.raises(MissingInputError, match=r"no curvature of norm\.weight"):
        fitted.precondition({"norm.weight": torch.ones(2, 3)})
    with pytest.raises(InputError, match=r"are layer\.weight and layer\.bias; expected layer\.wei"):
        fitted.precondition(blocks)
    biased = fit_curvature([{"layer": (a, g)}], bias=["layer"])
    with pytest.raises(InputError, match=r"expected layer\.weight and layer\.bias"):
        biased.precondition({"layer.weight": blocks["layer.weight"]})
    with pytest.raises(InputError, match="other is none of the modules"):
        fit_curvature([{"layer": (a, g)}], bias=["other"])


def test_factors_that_give_no_curvature_are_refused():
    a, g = random_factors()
    with pytest.raises(InputError, match="no examples to fit the curvature on"):
        fit_curvature([])
    with pytest.raises(InputError, match="are an iterator, which can be read once"):
        fit_curvature(iter([{"layer": (a, g)}]))
    with pytest.raises(InputError, match=r"gradients of layer are zero in every example; .*LoRA's"):
        fit_curvature([{"layer": (a, g * 0)}])
    fit_curvature([{"layer": (a, g * 0)}], CurvatureSettings(damping=0.1))
    with pytest.raises(InputError, match="the curvature of layer is singular"):
        fit_curvature([{"layer": (a * 0, g)}], CurvatureSettings(damping=0.0), bias=["layer"])
    with pytest.raises(InputError, match="tokens is 'mask' and a batch has no mask"):
        fit_curvature([{"layer": (a, g)}], CurvatureSettings(tokens="mask"))
    with pytest.raises(InputError, match=r"layer has inputs \[12, 3, 4\] and output gradients"):
        fit_curvature([{"layer": (a, g[:, :2])}], CurvatureSettings(tokens="all"))
    g[3, 1, 0] = float("nan")
    with pytest.raises(InputError, match="an input or a gradient of layer is not finite"):
        fit_curvature([{"layer": (a, g)}])


def test_models_without_a_label_distribution_are_refused():
    model = makers.make("bert")
    model.config.problem_type = "multi_label_classification"
    batch = makers.collate_for("bert")(makers.examples("bert"))
    with pytest.raises(InputError, match="no single label with a probability"):
        sample_labels(model, batch, seed=0)


def test_embeddings_are_no_linear_modules():
    model, collate = makers.make("bert"), makers.collate_for("bert")
    tracked = track(model, ["classifier"], embeddings=True)
    collected = collect(model, tracked, collate(makers.examples("bert")))
    with pytest.raises(InputError, match="embeddings is no linear module"):
        linear_factors(collected)


def test_gradients_that_give_no_inverse_are_refused():
    blocks = {"w": torch.ones(2, 3)}
    with pytest.raises(InputError, match="there are no training examples"):
        fit_datainf([])
    with pytest.raises(InputError, match="an earlier batch have a gradient of w, and a later one"):
        fit_datainf([blocks, {}])
    with pytest.raises(InputError, match="are an iterator"):
        fit_datainf(iter([blocks]))
    with pytest.raises(InputError, match="gradients of w are zero in every training example"):
        fit_datainf([{"w": torch.zeros(2, 3)}])
    with pytest.raises(InputError, match="the queries have a gradient of v"):
        fit_datainf([blocks]).precondition({**blocks, "v": torch.ones(2, 3)})
