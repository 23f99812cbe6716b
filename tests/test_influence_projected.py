"""`attribute(projection=…)`: the projection that it says, at the price that it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import influence_oracles as oracles
import model_makers as makers
from influence_oracles import data
from subnet.errors import InputError
from subnet.influence import attribute, track
from subnet.influence.projection import Projection, TwoSidedProjection, packed_signs
from test_influence_cost import N_TEST, N_TRAIN, encoder, flops, rows, training


def signs(key, k, width, seed=0):
    """P [k, width] of a side, spelt out; the identity where it is no wider than k."""
    if width <= k:
        return torch.eye(width, dtype=torch.float64)
    bits = np.unpackbits(packed_signs(key, seed, 0, k, width), axis=1, bitorder="little")
    return torch.from_numpy(bits[:, :width] * 2.0 - 1) / math.sqrt(k)


def projected(model, tracked, gradients, k):
    """[n, …] by hand: P_g G P_aᵀ of every linear module, its bias as the last column of G."""
    uses = [name for module in tracked for name in module.parameters]
    rest = dict(gradients)
    found = []
    for module in tracked:
        alone = all(uses.count(name) == 1 for name in module.parameters)
        if module.kind not in ("linear", "conv1d") or not alone:
            continue
        matrix = rest.pop(module.weight)
        matrix = matrix if module.kind == "linear" else matrix.transpose(1, 2)
        if module.bias:
            matrix = torch.cat([matrix, rest.pop(module.bias)[..., None]], dim=2)
        left = signs(f"{module.name} outputs", k, matrix.shape[1])
        right = signs(f"{module.name} inputs", k, matrix.shape[2])
        found.append((left @ matrix @ right.T).flatten(1))
    for name, block in rest.items():
        if block.ndim == 3:
            left = signs(f"{name} outputs", k, block.shape[1])
            right = signs(f"{name} inputs", k, block.shape[2])
            block = left @ block @ right.T
        found.append(block.flatten(1))
    return torch.cat(found, dim=1).numpy()


@pytest.mark.parametrize("modules", [None, "all"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3", "mt5", "bert_lora"])
def test_scores_are_products_of_the_projection_by_hand(name, modules):
    model = oracles.adapted(name)
    train, test = data(name)
    tracked = track(model, modules)
    collate = makers.collate_for(name)
    sides = [
        projected(model, tracked, oracles.gradients(model, part, collate, list(tracked.shapes)), 5)
        for part in (train, test)
    ]
    found = attribute(
        model, train, test, modules=modules, projection=5, collate_fn=collate, batch_size=3
    )
    expected = sides[1] @ sides[0].T
    np.testing.assert_allclose(found.scores, expected, rtol=1e-8, atol=1e-10 * abs(expected).max())
    exact = attribute(model, train, test, modules=modules, collate_fn=collate, batch_size=3)
    assert not np.allclose(exact.scores, found.scores, rtol=1e-3)


def test_all_parameters_may_be_projected_together():
    model = makers.make("bert")
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert"), "batch_size": 3}
    settings = Projection(dimension=300, seed=4)
    found = attribute(model, train, test, projection=settings, **options)
    g, q = oracles.oracle_sides(model, "bert", list(track(model).shapes))
    assert np.corrcoef(found.scores.ravel(), (q @ g.T).ravel())[0, 1] > 0.9
    assert found.provenance.settings["projection"] == settings.to_dict()


def test_a_projection_as_wide_as_the_layers_changes_nothing():
    model = makers.make("bert")
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert")}
    exact = attribute(model, train, test, **options).scores
    found = attribute(model, train, test, projection=40, **options).scores
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_nothing_is_projected_unless_asked_and_what_is_is_recorded():
    model = makers.make("bert")
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert")}
    assert attribute(model, train, test, **options).provenance.settings["projection"] is None
    found = attribute(model, train, test, projection=4, seed=9, **options)
    expected = TwoSidedProjection(inputs=4, outputs=4, seed=9)
    assert found.provenance.settings["projection"] == expected.to_dict()
    assert "fidelity" not in found.provenance.settings
    same = attribute(model, train, test, projection=expected, **options)
    assert np.array_equal(same.scores, found.scores)


def test_fidelity_is_a_rank_correlation_over_seeds_that_grows_with_the_dimension():
    from scipy.stats import spearmanr

    model = makers.make("bert").float()
    train = oracles.rows_of("bert", [2 + i % 5 for i in range(40)], 1, "ab")
    _, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert")}
    exact = attribute(model, train, test, **options).scores
    values = {}
    for k in (2, 12):
        found = attribute(model, train, test, projection=k, fidelity=3, **options)
        said = found.provenance.settings["fidelity"]
        assert said["seeds"] == [0, 1, 2]
        for seed, value in zip(said["seeds"], said["by_seed"], strict=True):
            scores = attribute(model, train, test, projection=k, seed=seed, **options).scores
            own = [spearmanr(a, b).statistic for a, b in zip(exact, scores, strict=True)]
            assert value == pytest.approx(np.mean(own), abs=1e-9)
        assert said["ci_low"] <= said["value"] <= said["ci_high"]
        values[k] = said["value"]
    assert values[2] < values[12]
    by_language = attribute(
        model, train, test, projection=4, fidelity=2, level="language", **options
    ).provenance.settings["fidelity"]
    assert -1 <= by_language["value"] <= 1
    with pytest.raises(InputError, match="fidelity is given without a projection"):
        attribute(model, train, test, fidelity=2, **options)
    with pytest.raises(InputError, match=r"fidelity is -1; expected a number of seeds"):
        attribute(model, train, test, fidelity=-1, projection=2, **options)


def test_a_subnetwork_is_projected_after_it_was_cut_out():
    from subnet.subnetwork import Subnetwork

    model = makers.make("bert")
    train, test = data("bert")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    keep = np.random.default_rng(0).random((16, 16)) < 0.3
    mask = Subnetwork.from_arrays({name: keep}, language="de", base="tiny")
    collate = makers.collate_for("bert")
    found = attribute(model, train, test, subnetwork=mask, projection=4, collate_fn=collate)
    sides = []
    for part in (train, test):
        own = oracles.gradients(model, part, collate, [name])[name] * torch.from_numpy(keep)
        module = name.removesuffix(".weight")
        left, right = signs(f"{module} outputs", 4, 16), signs(f"{module} inputs", 4, 16)
        sides.append((left @ own @ right.T).flatten(1).numpy())
    np.testing.assert_allclose(found.scores, sides[1] @ sides[0].T, rtol=1e-8, atol=1e-12)


def test_projected_scores_cost_at_most_three_quarters_of_a_training_step():
    model, train, test = encoder(), rows(N_TRAIN, 1), rows(N_TEST, 2)
    tracked = track(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tracked.shapes)
    pass_ = flops(lambda: training(model, [*train, *test]))
    own = flops(lambda: attribute(model, train, test, modules="linear", batch_size=8, projection=8))
    assert own <= 0.75 * pass_


def test_features_of_a_methods_own_are_not_projected():
    from subnet.influence import GradientMethod, Transform, register_method

    def sums(blocks):
        return {"sum": torch.stack([b.flatten(1).sum(1) for b in blocks.values()], dim=1)}

    register_method(
        GradientMethod("projected-sums", prepare=lambda s: Transform(test=sums, train=sums))
    )
    model = nn.Linear(3, 2)
    examples = [{"x": torch.ones(3)}]
    with pytest.raises(InputError, match="is no gradient by the tracked parameters; expected no p"):
        attribute(
            model, examples, examples, method="projected-sums", projection=2,
            loss_fn=lambda m, batch: m(batch["x"]).sum(dim=1),
        )  # fmt: skip
