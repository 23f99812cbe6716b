"""Heads and neurons as weights and back: whose a weight is, and what restricts gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import model_makers as makers
from subnet.errors import InputError, NotComparableError
from subnet.model import example_losses, find_units, gate_gradients
from subnet.subnetwork import Subnetwork
from subnet.subnetwork.gradient_masks import factor_masks, gradient_masks
from subnet.subnetwork.unit_conversion import units_to_weights, weights_to_units
from subnet.subnetwork.units import selected_units, subnetwork_of_units

KINDS = ("head", "neuron")


def units_of(name):
    return find_units(makers.make(name))


def n_units(units, kind):
    return units.n_heads if kind == "head" else units.n_neurons


def draw(units, kind, seed=0, share=0.4):
    selected = np.random.default_rng(seed).random(n_units(units, kind)) < share
    selected[0], selected[-1] = True, False
    return subnetwork_of_units(selected, units, kind, language="de", base="tiny", seed=seed)


def weights(arrays):
    return Subnetwork.from_arrays(arrays, language="de", base="tiny", method="magnitude")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", makers.ARCHITECTURES)
def test_units_become_weights_and_the_same_units_again(name, kind):
    units = units_of(name)
    for seed in range(3):
        mask = draw(units, kind, seed)
        for shared in ("any", "all"):
            there = units_to_weights(mask, units, shared=shared)
            assert there.granularity == "weight"
            assert (there.language, there.base, there.seed) == ("de", "tiny", seed)
            state = makers.base_of(makers.make(name)).state_dict()
            plain = {k.replace(".base_layer", ""): v for k, v in state.items()}
            assert all(plain[p].shape == shape for p, shape in there.shapes.items())
            for rule in ({}, {"count": mask.count}, {"threshold": 0.01}, {"threshold": 1.0}):
                assert weights_to_units(there, units, kind, **rule) == mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "qwen2", "gpt2", "mt5"])
def test_zeroing_the_weights_of_a_unit_silences_it(name, kind):
    """Oracle: gradients of the loss by a unit's gate vanish without its own weights."""
    model = makers.make(name)
    units = find_units(model)
    mask = draw(units, kind, 1)
    chosen = units_to_weights(mask, units, shared="all")
    with torch.no_grad():
        for path in chosen.shapes:
            model.get_parameter(path)[torch.from_numpy(chosen.dense(path))] = 0
    slope = gate_gradients(model, units, makers.batch_of(name), of=f"{kind}s")
    selected = selected_units(mask, units)
    assert not slope[..., selected].any()
    assert slope[..., ~selected].any()


def share_by_hand(model, units, mask, kind):
    """Oracle: one unit at a time, counted in the boolean tensors of that unit alone."""
    found = []
    for i in range(n_units(units, kind)):
        one = torch.zeros(n_units(units, kind), dtype=torch.bool)
        one[i] = True
        # With "all" the rows of a group belong to none of its heads alone.
        own = units.weights_of_heads(one, shared="all") if kind == "head" else (
            units.weights_of_neurons(one))  # fmt: skip
        hits = sum(int(mask.dense(p)[m.numpy()].sum()) for p, m in own.items() if p in mask.shapes)
        size = sum(int(m.sum()) for p, m in own.items() if p in mask.shapes)
        found.append(hits / size)
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "qwen2", "gemma", "gpt2", "mt5", "m2m"])
def test_units_are_ranked_by_the_share_of_their_own_weights(name, kind):
    model = makers.make(name)
    units = find_units(model)
    everything = units_to_weights(draw(units, kind), units)
    rng = np.random.default_rng(0)
    # A density of its own for every row and column, so that no two shares are alike by design.
    arrays = {
        path: rng.random(shape) < rng.random(shape[:1] + (1,) * (len(shape) - 1))
        for path, shape in everything.shapes.items()
    }
    mask = weights(arrays)
    shares = share_by_hand(model, units, mask, kind)
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    for rule, k in (
        ({"count": 3}, 3),
        ({"density": 0.5}, round(0.5 * len(shares))),
        ({}, round(shares.sum())),
        ({"threshold": 0.5}, int((shares >= 0.5).sum())),
    ):
        if k == 0:
            continue
        found = weights_to_units(mask, units, kind, **rule)
        assert sorted(order[:k]) == torch.nonzero(selected_units(found, units))[:, 0].tolist()
        assert found.settings["smallest_share"] == pytest.approx(shares[order[k - 1]])
        assert found.settings["of"]["method"] == "magnitude"


def test_shared_key_and_value_rows_count_for_no_head():
    units = units_of("qwen2")  # four heads in two groups
    empty = units_to_weights(draw(units, "head"), units)
    arrays = {path: np.zeros(shape, dtype=bool) for path, shape in empty.shapes.items()}
    for path in arrays:
        if "k_proj" in path or "v_proj" in path:
            arrays[path][:] = True
    with pytest.raises(InputError, match="selects no weight of a head"):
        weights_to_units(weights(arrays), units, "head")
    only = {path: array for path, array in arrays.items() if "k_proj" in path or "v_proj" in path}
    with pytest.raises(
        NotComparableError, match=r"one head's own in layers\.0\.heads and 1 more.*q_"
    ):
        weights_to_units(weights(only), units, "head")


def test_a_mask_over_other_parameters_compares_with_them():
    units = units_of("bert")
    mask = draw(units, "head")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    shapes = {query: (16, 16), "classifier.weight": (3, 16)}
    found = units_to_weights(mask, units, shapes=shapes)
    assert found.shapes == shapes
    whole = units_to_weights(mask, units)
    assert (found.dense(query) == whole.dense(query)).all()
    assert not found.dense("classifier.weight").any()
    assert found.settings["parameters_left_out"] == len(whole.shapes) - 1
    other = weights({name: np.ones(shape, dtype=bool) for name, shape in shapes.items()})
    assert (found & other).count == found.count
    with pytest.raises(NotComparableError, match=r"query\.weight: \[8, 16\] and \[16, 16\]"):
        units_to_weights(mask, units, shapes={query: (8, 16)})
    with pytest.raises(InputError, match="none of the 1 parameters belongs to heads"):
        units_to_weights(mask, units, shapes={"classifier.weight": (3, 16)})


def test_layers_without_an_adapter_are_refused_or_left_out():
    units = units_of("bert")
    mask = draw(units, "head", 3, share=0.9)
    name = "bert.encoder.layer.{}.attention.self.query.weight"
    part = units_to_weights(mask, units, shapes={name.format(1): (16, 16)})
    with pytest.raises(NotComparableError, match=r"own in layers\.0\.heads.*uncovered='never'"):
        weights_to_units(part, units, "head")
    found = weights_to_units(part, units, "head", uncovered="never")
    assert found.settings["layers_not_covered"] == ["layers.0.heads"]
    assert not found.dense("layers.0.heads").any()
    assert (found.dense("layers.1.heads") == mask.dense("layers.1.heads")).all()
    with pytest.raises(NotComparableError, match="covers no weight that is one neuron's own"):
        weights_to_units(part, units, "neuron", uncovered="never")


def test_bad_requests_are_named():
    units = units_of("bert")
    heads, as_weights = draw(units, "head"), units_to_weights(draw(units, "head"), units)
    rng = np.random.default_rng(0)
    half = weights({path: rng.random(shape) < 0.5 for path, shape in as_weights.shapes.items()})
    cases = [
        (lambda: weights_to_units(heads, units, "head"), NotComparableError, "is of heads"),
        (lambda: units_to_weights(as_weights, units), NotComparableError, "is per weight"),
        (lambda: units_to_weights(heads, units, shared="none"), InputError, "shared is 'none'"),
        (lambda: weights_to_units(as_weights, units, "layer"), InputError, "granularity is"),
        (lambda: weights_to_units(as_weights, units, "head", density=0.0), InputError, "0 < dens"),
        (lambda: weights_to_units(as_weights, units, "head", density=1.5), InputError, "is 1.5"),
        (lambda: weights_to_units(as_weights, units, "head", count=9), InputError, "1 to 4"),
        (lambda: weights_to_units(as_weights, units, "head", count=True), InputError, "is True"),
        (lambda: weights_to_units(as_weights, units, "head", density=0.01), InputError, "to none"),
        (
            lambda: weights_to_units(as_weights, units, "head", count=1, threshold=0.5),
            InputError, "count and threshold were given together",
        ),
        (
            lambda: weights_to_units(half, units, "head", threshold=1.0),
            InputError, "no head has a share of 1",
        ),
        (lambda: weights_to_units(as_weights, units, "head", uncovered="x"), InputError, "uncov"),
        (lambda: weights_to_units(as_weights, units_of("xlm_roberta"), "head"),
         NotComparableError, "covers no weight"),
        (lambda: units_to_weights(heads, units_of("qwen2")), NotComparableError, "differ in"),
        (lambda: gradient_masks(heads), InputError, r"units=find_units\(model\)"),
        (lambda: factor_masks(as_weights, units), NotComparableError, "none of LoRA's"),
    ]  # fmt: skip
    for act, error, message in cases:
        with pytest.raises(error, match=message):
            act()
    wrong = {name: as_weights.dense(name) for name in as_weights.shapes}
    path = "bert.encoder.layer.0.attention.self.query.weight"
    wrong[path] = wrong[path][:8]
    with pytest.raises(NotComparableError, match=r"shape of .*query\.weight: \[8, 16\]"):
        weights_to_units(weights(wrong), units, "head")


def test_either_kind_of_mask_restricts_the_gradient_of_weights():
    units = units_of("gpt2")
    mask = draw(units, "head")
    as_weights = units_to_weights(mask, units)
    of_units, of_weights = gradient_masks(mask, units), gradient_masks(as_weights)
    assert of_units.keys() == of_weights.keys()
    for name, chosen in of_units.items():
        assert chosen.dtype == torch.bool
        assert torch.equal(chosen, of_weights[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert_lora", "qwen3_lora"])
def test_of_lora_factors_units_own_rows_of_b_and_columns_of_a(name, kind):
    """Oracle: ΔW = B A changes only the unit's weights if only those entries of B or A change."""
    model = makers.make(name)
    units = find_units(model)
    mask = draw(units, kind)
    factors = factor_masks(mask, units)
    weights_of = gradient_masks(mask, units)
    assert factors.keys() == {p for p in weights_of if p.endswith(".weight")}
    seen = set()
    for path, selection in factors.items():
        layer = makers.base_of(model).get_submodule(path.removesuffix(".weight"))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        before = layer.get_delta_weight("default").detach().clone()
        assert (selection.rows is None) != (selection.columns is None)
        with torch.no_grad():
            if selection.rows is not None:
                assert selection.rows.shape == (b.shape[0],)
                b[selection.rows] += 1
            else:
                assert selection.columns.shape == (a.shape[1],)
                a[:, selection.columns] += 1
        moved = layer.get_delta_weight("default").detach() != before
        assert torch.equal(moved, weights_of[path])
        seen.add(selection.rows is None)
    assert seen == {True, False}


def test_rows_are_outputs_also_where_a_weight_is_stored_the_other_way_round():
    units = units_of("gpt2")  # c_attn [16, 48]: queries, keys and values of two heads
    selected = np.array([False, True, False, False])
    mask = subnetwork_of_units(selected, units, "head", language="de", base="tiny")
    found = factor_masks(mask, units)
    rows = found["transformer.h.0.attn.c_attn.weight"].rows
    assert torch.nonzero(rows)[:, 0].tolist() == [*range(8, 16), *range(24, 32), *range(40, 48)]
    output = found["transformer.h.0.attn.c_proj.weight"]
    assert output.rows is None
    assert torch.nonzero(output.columns)[:, 0].tolist() == list(range(8, 16))


def test_a_restricted_gradient_step_moves_the_units_alone():
    """A step along the restricted gradient leaves other heads' own weights bitwise as they were."""
    model = makers.make("bert")
    units = find_units(model)
    mask = draw(units, "head")
    chosen = gradient_masks(mask, units)
    example_losses(model, makers.batch_of("bert")).sum().backward()
    rest = ~selected_units(mask, units).numpy()
    left = subnetwork_of_units(rest, units, "head", language="de", base="tiny")
    others = gradient_masks(left, units)
    for name, parameter in model.named_parameters():
        if name in chosen:
            before = parameter.detach().clone()
            with torch.no_grad():
                parameter -= parameter.grad * chosen[name]
            assert torch.equal(parameter[others[name]], before[others[name]])
            assert not torch.equal(parameter, before) or not chosen[name].any()
