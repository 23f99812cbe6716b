"""Which units a model has, and which weights are theirs, by what actually depends on them."""

import pytest
import torch
import transformers
from transformers.activations import ACT2FN

from checkpoint_makers import bert, gpt2, lora, quiet, qwen3
from model_makers import (
    ARCHITECTURES,
    base_of,
    batch_of,
    down_projections,
    make,
    output_projections,
)
from subnet.errors import InputError
from subnet.model import capture, find_units


@pytest.fixture(scope="module", params=ARCHITECTURES)
def named(request):
    return request.param, make(request.param)


def test_every_head_and_neuron_is_found_where_the_models_source_has_it(named):
    name, model = named
    units = find_units(model)
    _, _, _, n_heads, head_dim, _ = ARCHITECTURES[name]
    assert [b.output.module for b in units.attentions] == output_projections(name, model)
    assert [b.down.module for b in units.feed_forwards] == down_projections(name, model)
    assert {(b.n_heads, b.head_dim) for b in units.attentions} == {(n_heads, head_dim)}
    assert units.n_heads == n_heads * len(units.attentions)
    assert len(units.heads_to_frame()) == units.n_heads
    assert len(units.neurons_to_frame()) == units.n_neurons


def weight(model, projection_weight):
    """The parameter itself, by a walk of its own."""
    module = base_of(model).get_submodule(projection_weight.rpartition(".")[0])
    leaf = projection_weight.rpartition(".")[2]
    return getattr(getattr(module, "base_layer", module), leaf)


def inputs_of(model, paths, batch):
    """Inputs of modules in one forward pass, with their graphs."""
    seen, handles = {}, []
    for path in paths:
        module = base_of(model).get_submodule(path)
        handles.append(
            module.register_forward_pre_hook(
                lambda _, given, path=path: seen.update({path: given[0]})
            )
        )
    model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def test_a_heads_output_depends_on_its_own_rows_and_on_its_groups_and_on_no_other(named):
    name, model = named
    units = find_units(model)
    n_heads, head_dim = ARCHITECTURES[name][3:5]
    outputs = output_projections(name, model)
    seen = inputs_of(model, outputs, batch_of(name))
    generator = torch.Generator().manual_seed(0)
    for number, block in enumerate(units.attentions):
        context = seen[outputs[number]]
        probe = torch.randn(context.shape, generator=generator, dtype=context.dtype)
        own = {p.weight for p in (block.query, block.key, block.value)}
        own_biases = {p.bias for p in (block.query, block.value) if p.has_bias}
        tensors = {path: weight(model, path) for path in sorted(own | own_biases)}
        for head in range(n_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            gradients = torch.autograd.grad(
                (context * probe)[..., part].sum(), list(tensors.values()), retain_graph=True
            )
            mask = torch.zeros(units.n_heads, dtype=torch.bool)
            mask[number * n_heads + head] = True
            selected = units.weights_of_heads(mask)
            for path, gradient in zip(tensors, gradients, strict=True):
                chosen = selected[path]
                assert not gradient[~chosen].any(), (path, head)
                # the bias of fused keys is selected, and softmax does not see it
                moved = (gradient != 0)[chosen].double().mean()
                assert moved > (0.6 if path in own_biases else 0.9), (path, head)


def test_a_neuron_depends_on_its_own_rows_and_on_no_other(named):
    name, model = named
    units = find_units(model)
    downs = down_projections(name, model)
    seen = inputs_of(model, downs, batch_of(name))
    before = 0
    for block, path in zip(units.feed_forwards, downs, strict=True):
        ups = [p for p in (block.up, block.gate) if p is not None]
        names = [p.weight for p in ups]
        moved = 0
        for neuron in (0, 5, block.n_neurons - 1):
            gradients = torch.autograd.grad(
                seen[path][..., neuron].sum(), [weight(model, n) for n in names], retain_graph=True
            )
            mask = torch.zeros(units.n_neurons, dtype=torch.bool)
            mask[before + neuron] = True
            selected = units.weights_of_neurons(mask)
            for parameter, gradient in zip(names, gradients, strict=True):
                assert not gradient[~selected[parameter]].any()
                moved += int((gradient != 0).sum())
        assert moved > 0
        before += block.n_neurons


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma", "mt5"])
def test_of_two_projections_up_the_gate_is_the_one_that_is_activated(name):
    model = make(name)
    units = find_units(model)
    config = model.config
    activation = ACT2FN[getattr(config, "dense_act_fn", None) or config.hidden_act]
    outs = {}
    for block in units.feed_forwards:
        for projection in (block.gate, block.up):
            model.get_submodule(projection.module).register_forward_hook(
                lambda _, __, out, path=projection.module: outs.update({path: out})
            )
    with capture(model, units, heads=False) as captured:
        model(**batch_of(name))
    for block in units.feed_forwards:
        expected = activation(outs[block.gate.module]) * outs[block.up.module]
        torch.testing.assert_close(captured.neuron_activations()[block.down.module], expected)


def test_a_gate_is_known_by_its_name_before_its_place():
    model = qwen3()
    for layer in model.model.layers:
        gate = layer.mlp.gate_proj
        del layer.mlp.gate_proj
        layer.mlp.gate_proj = gate  # now defined last
    assert find_units(model).feed_forwards == find_units(qwen3()).feed_forwards


@pytest.mark.parametrize("name", ["bert", "qwen3", "gpt2", "mt5"])
def test_units_own_disjoint_weights_which_together_are_all_but_biases_norms_and_embeddings(name):
    model = make(name)
    units = find_units(model)
    counts = {}
    for total, weights_of in (
        (units.n_heads, units.weights_of_heads),
        (units.n_neurons, units.weights_of_neurons),
    ):
        everything = weights_of(torch.ones(total, dtype=torch.bool))
        nothing = weights_of(torch.zeros(total, dtype=torch.bool))
        assert not any(mask.any() for mask in nothing.values())
        for parameter, mask in everything.items():
            assert mask.all()
            assert mask.shape == model.get_parameter(parameter).shape
            counts[parameter] = 0
    for unit in range(units.n_heads):
        mask = torch.zeros(units.n_heads, dtype=torch.bool)
        mask[unit] = True
        for parameter, chosen in units.weights_of_heads(mask).items():
            counts[parameter] += int(chosen.sum())
    group = units.attentions[0].group_size
    for block in units.attentions:
        assert counts[block.output.weight] == model.get_parameter(block.output.weight).numel()
        expected = model.get_parameter(block.key.weight).numel()
        assert counts[block.key.weight] == expected * (group if block.key != block.query else 1)
    within = {
        parameter
        for parameter, tensor in model.named_parameters()
        if any(part.isdigit() for part in parameter.split("."))
        and tensor.ndim == 2
        and "relative_attention_bias" not in parameter
    }
    assert {p for p in counts if p.endswith(".weight")} == within
    for block in units.attentions:
        assert block.output.bias not in counts
    for feed_forward in units.feed_forwards:
        assert feed_forward.down.bias not in counts


def test_rows_of_a_group_are_kept_with_any_of_its_heads_and_removed_with_all():
    model = qwen3()  # per block four heads in two groups, eight wide
    units = find_units(model)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[0] = True
    kept, removed = units.weights_of_heads(mask), units.weights_of_heads(mask, shared="all")
    key = "model.layers.0.self_attn.k_proj.weight"
    assert kept[key].any(dim=1).tolist() == [True] * 8 + [False] * 8
    assert not removed[key].any()
    for parameter, chosen in units.weights_of_heads(~mask, shared="all").items():
        assert torch.equal(chosen, ~kept[parameter])


def test_heads_of_a_fused_matrix_are_columns_in_three_parts():
    units = find_units(gpt2())  # two heads, eight wide
    mask = torch.tensor([False, True, False, False])
    chosen = units.weights_of_heads(mask)["transformer.h.0.attn.c_attn.weight"]  # [16, 48]
    expected = torch.zeros(16, 48, dtype=torch.bool)
    for start in (8, 24, 40):
        expected[:, start : start + 8] = True
    assert torch.equal(chosen, expected)


def test_an_adapted_model_has_the_units_of_its_base():
    plain = find_units(qwen3())
    adapted = find_units(lora(qwen3(), 1, target_modules="all-linear"))
    assert adapted == plain


def test_layers_are_told_apart_by_stack_and_attention_by_what_it_attends_to():
    frame = find_units(make("mt5")).heads_to_frame()
    assert set(zip(frame["layer"], frame["kind"], strict=True)) == {
        ("encoder.0", "self"), ("encoder.1", "self"), ("decoder.0", "self"), ("decoder.0", "cross"),
        ("decoder.1", "self"), ("decoder.1", "cross"),
    }  # fmt: skip


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
REFUSED = {
    "MambaForCausalLM": "backbone.layers.0 (MambaBlock) has no attention",
    "Qwen3MoeForCausalLM": "model.layers.0.mlp.experts (Qwen3MoeExperts)",
    "GPTNeoXForCausalLM": "query_key_value [48, 16]",
    "BloomForCausalLM": "query_key_value [48, 16]",
    "GPTBigCodeForCausalLM": "c_attn",
    "AlbertForSequenceClassification": "no list of 2 layers",
    "FNetForSequenceClassification": "has no attention",
    "DebertaForSequenceClassification": "in_proj [48, 16]",
    "Gemma3ForConditionalGeneration": "made of several models (text_config, vision_config)",
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_is_not_understood_is_refused_by_name(architecture):
    kind = getattr(transformers, architecture)
    sizes = {} if "Gemma3" in architecture else SIZES
    if "Moe" in architecture:
        sizes = {**SIZES, "num_key_value_heads": 2}
    with quiet(), torch.device("meta"):
        config = kind.config_class(**sizes)
        model = kind(config)
    with pytest.raises(InputError) as error:
        find_units(model)
    assert f"the architecture {architecture} is not understood" in str(error.value)
    assert REFUSED[architecture] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_module_that_is_no_transformer_is_refused():
    with pytest.raises(InputError, match="Linear is not understood: it has no transformers conf"):
        find_units(torch.nn.Linear(2, 2))


def test_an_additional_matrix_in_a_layer_is_refused():
    model = bert()
    model.bert.encoder.layer[1].adapter = torch.nn.Conv1d(16, 16, 1)
    with pytest.raises(InputError, match=r"bert.encoder.layer.1.adapter \(Conv1d\) has a weight"):
        find_units(model)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.ones(4), r"the mask of heads is float32 \[4\]"),
        (torch.ones(2, 2, dtype=torch.bool), r"the mask of heads is bool \[2, 2\]"),
        ([True] * 5, "5 values were given for the heads of Bert.*; expected 4, one per head"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_refused(mask, found):
    with pytest.raises(InputError, match=found):
        find_units(bert()).weights_of_heads(mask)
