"""Influence restricted to a subnetwork: which entries of which parameters take part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import influence_oracles as oracles
import model_makers as makers
from checkpoint_makers import bert, lora, quiet
from influence_oracles import cosine_of, data, mean_by_language, oracle_sides
from subnet.errors import InputError, NotComparableError
from subnet.influence import attribute
from subnet.model import find_units, gate_heads
from subnet.subnetwork import Subnetwork


def weight_mask(model, parameters, seed=0):
    rng = np.random.default_rng(seed)
    base = makers.base_of(model)
    plain = {k.replace(".base_layer", ""): v for k, v in base.named_parameters()}
    return Subnetwork.from_arrays(
        {name: rng.random(tuple(plain[name].shape)) < 0.3 for name in parameters},
        language="de", base="tiny",
    )  # fmt: skip


MASKED = (
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.1.output.dense.weight",
)


def test_a_mask_of_weights_restricts_gradients_of_a_full_model():
    model, mask = makers.make("bert"), weight_mask(makers.make("bert"), MASKED)
    train, test = data("bert")
    kept = np.concatenate([mask.dense(name).ravel() for name in MASKED])
    g, q = oracle_sides(model, "bert", MASKED)
    options = {"collate_fn": makers.collate_for("bert"), "subnetwork": mask, "batch_size": 3}
    found = attribute(model, train, test, **options)
    np.testing.assert_allclose(found.scores, (q * kept) @ (g * kept).T, rtol=1e-9)
    assert abs(found.scores - q @ g.T).max() > 1e-3 * abs(found.scores).max()
    cosine = attribute(model, train, test, method="cosine", **options)
    np.testing.assert_allclose(cosine.scores, cosine_of(g * kept, q * kept), rtol=1e-9)
    for method, scores in (("tracin", found.scores), ("cosine", cosine.scores)):
        table = attribute(model, train, test, level="language", method=method, **options)
        np.testing.assert_allclose(table.scores, mean_by_language(scores, train, test, table))
    assert found.provenance.settings["subnetwork"]["density"] == mask.density
    assert found.languages()["subnetwork"].eq("de").all()


def test_under_a_lora_a_mask_of_weights_restricts_the_gradient_of_the_effective_weight():
    """Oracle: the merged model, whose weight is W + s·B·A itself."""
    model = oracles.adapted("bert_lora")
    mask = weight_mask(model, MASKED)
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert"), "subnetwork": mask}
    found = attribute(model, train, test, **options)
    with quiet():
        merged = oracles.adapted("bert_lora").merge_and_unload()
    merged.requires_grad_(True)
    kept = np.concatenate([mask.dense(name).ravel() for name in MASKED])
    g, q = oracle_sides(merged, "bert", MASKED)
    np.testing.assert_allclose(found.scores, (q * kept) @ (g * kept).T, rtol=1e-9)


def heads_mask(model, selected, granularity="head"):
    from subnet.subnetwork.units import subnetwork_of_units

    return subnetwork_of_units(
        np.array(selected), find_units(model), granularity, language="de", base="tiny"
    )


@pytest.mark.parametrize(("name", "granularity"), [
    ("bert", "head"), ("gpt2", "head"), ("qwen3", "head"), ("bert", "neuron"), ("qwen3", "neuron"),
])  # fmt: skip
def test_a_mask_of_units_restricts_a_full_model_to_their_weights(name, granularity):
    model = makers.make(name)
    units = find_units(model)
    n = units.n_heads if granularity == "head" else units.n_neurons
    selected = np.arange(n) % 2 == 0
    owned = (units.weights_of_heads if granularity == "head" else units.weights_of_neurons)(
        torch.from_numpy(selected)
    )
    owned = {k: v.numpy().ravel() for k, v in owned.items() if v.ndim == 2}
    train, test = data(name)
    found = attribute(model, train, test, subnetwork=heads_mask(model, selected, granularity),
                      collate_fn=makers.collate_for(name))  # fmt: skip
    g, q = oracle_sides(model, name, list(owned))
    kept = np.concatenate(list(owned.values()))
    np.testing.assert_allclose(found.scores, (q * kept) @ (g * kept).T, rtol=1e-7, atol=1e-12)


def test_under_a_lora_a_mask_of_heads_takes_rows_of_b_and_columns_of_a():
    """Written out for BERT: width 16, two heads of 8, the second head of layer 1 alone."""
    model = oracles.adapted("bert_lora")
    train, test = data("bert")
    found = attribute(model, train, test, collate_fn=makers.collate_for("bert"),
                      subnetwork=heads_mask(model, [False, False, False, True]))  # fmt: skip
    start = "base_model.model.bert.encoder.layer.1.attention"
    names = [f"{start}.self.{part}.lora_B.default.weight" for part in ("query", "key", "value")]
    names.append(f"{start}.output.dense.lora_A.default.weight")
    assert set(found.provenance.settings["parameters"]) == set(names)
    collate = makers.collate_for("bert")
    sides = [oracles.gradients(model, rows, collate, names) for rows in (train, test)]
    for blocks in sides:
        for name in names[:3]:
            blocks[name][:, :8] = 0
        blocks[names[3]][:, :, :8] = 0
    g, q = (oracles.flat(blocks).numpy() for blocks in sides)
    np.testing.assert_allclose(found.scores, q @ g.T, rtol=1e-9)


def test_gradients_of_all_units_add_up_to_those_of_the_factors():
    """A mask of everything leaves out only what belongs to no unit."""
    model = oracles.adapted("qwen3_lora")
    train, test = data("qwen3_lora")
    everything = heads_mask(model, [True] * find_units(model).n_heads)
    options = {"collate_fn": makers.collate_for("qwen3_lora")}
    found = attribute(model, train, test, subnetwork=everything, **options)
    whole = attribute(
        model, train, test, modules=["*q_proj.lora_B*", "*k_proj.lora_B*", "*v_proj.lora_B*",
                                     "*o_proj.lora_A*"], **options,
    )  # fmt: skip
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-10)


def test_a_subnetwork_can_be_alone_in_the_forward_pass():
    model = makers.make("bert")
    selected = [True, False, True, True]
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert"), "subnetwork_in_forward": True}
    mask = heads_mask(model, selected)
    found = attribute(model, train, test, subnetwork=mask, **options)
    units = find_units(model)
    owned = units.weights_of_heads(torch.tensor(selected))
    owned = {k: v.numpy().ravel() for k, v in owned.items() if v.ndim == 2}
    with gate_heads(model, units, torch.tensor(selected).double()):
        g, q = oracle_sides(model, "bert", list(owned))
    kept = np.concatenate(list(owned.values()))
    np.testing.assert_allclose(found.scores, (q * kept) @ (g * kept).T, rtol=1e-9)
    assert found.provenance.settings["subnetwork"]["in_forward"]
    weights = weight_mask(model, MASKED)
    found = attribute(model, train, test, subnetwork=weights, **options)
    alone = makers.make("bert")
    with torch.no_grad():
        for name in MASKED:
            alone.get_parameter(name).mul_(torch.from_numpy(weights.dense(name)))
    g, q = oracle_sides(alone, "bert", MASKED)
    kept = np.concatenate([weights.dense(name).ravel() for name in MASKED])
    np.testing.assert_allclose(found.scores, (q * kept) @ (g * kept).T, rtol=1e-9)


def test_combinations_without_a_meaning_are_refused():
    adapted, full = oracles.adapted("bert_lora"), makers.make("bert")
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert")}
    mask = weight_mask(full, MASKED)
    with pytest.raises(InputError, match=r"modules and subnetwork are given together.*restrict\("):
        attribute(adapted, train, test, subnetwork=mask, modules="lora", **options)
    with pytest.raises(InputError, match="cannot be applied in the forward pass of a LoRA"):
        attribute(adapted, train, test, subnetwork=mask, subnetwork_in_forward=True, **options)
    with pytest.raises(InputError, match="subnetwork_in_forward is given without a subnetwork"):
        attribute(full, train, test, subnetwork_in_forward=True, **options)
    foreign = Subnetwork.from_arrays(
        {"bert.other.weight": np.ones((2, 2), bool)}, language="de", base="x"
    )
    with pytest.raises(NotComparableError, match=r"covers bert\.other\.weight \[2, 2\], and Bert.* "
                       "has no such parameter"):  # fmt: skip
        attribute(full, train, test, subnetwork=foreign, **options)
    only_ffn = lora(bert(), 1, target_modules=["intermediate.dense"]).double()
    heads = heads_mask(only_ffn, [True, False, False, False])
    with pytest.raises(NotComparableError, match="no head of de has a LoRA on its projections"):
        attribute(only_ffn, train, test, subnetwork=heads, **options)
    with pytest.raises(InputError, match="the subnetwork of ~de is empty"):
        attribute(full, train, test, subnetwork=~Subnetwork.from_arrays(
            {MASKED[0]: np.ones((16, 16), bool)}, language="de", base="x"), **options)  # fmt: skip
    with quiet():
        dora = lora(bert(), 1, use_dora=True).double()
    with pytest.raises(InputError, match=r"update is not s·B·A \(such as DoRA\)"):
        attribute(dora, train, test, subnetwork=mask, **options)
