"""Layer, type and module of a parameter, for the architectures that people use."""

import pytest

import checkpoint_makers as makers
from subnet.checkpoint import describe_parameter


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("bert.encoder.layer.3.attention.self.query.weight", "3", "attention.self.query"),
        ("encoder.layer.11.output.dense.weight", "11", "output.dense"),
        ("model.layers.0.self_attn.q_proj.weight", "0", "self_attn.q_proj"),
        ("transformer.h.7.attn.c_attn.weight", "7", "attn.c_attn"),
        ("model.encoder.layers.2.fc1.weight", "encoder.2", "fc1"),
        ("model.decoder.layers.2.encoder_attn.k_proj.weight", "decoder.2", "encoder_attn.k_proj"),
        ("encoder.block.4.layer.0.SelfAttention.q.weight", "encoder.4", "SelfAttention.q"),
        ("decoder.block.4.layer.1.EncDecAttention.v.weight", "decoder.4", "EncDecAttention.v"),
        ("model.layers.5.mlp.experts.3.gate_proj.weight", "5", "mlp.experts.gate_proj"),
        ("roberta.embeddings.word_embeddings.weight", "", "embeddings.word_embeddings"),
        ("classifier.out_proj.weight", "", "classifier.out_proj"),
        ("lm_head.weight", "", "lm_head"),
        ("model.embed_tokens.weight", "", "embed_tokens"),
    ],
)
def test_place_of_a_parameter(name, layer, kind):
    place = describe_parameter(name)
    assert (place.layer, place.type) == (layer, kind)
    assert place.module == name.removesuffix(".weight")


@pytest.mark.parametrize("build", ["bert", "xlm_roberta", "qwen3", "mt5", "m2m", "gpt2"])
def test_every_linear_layer_of_a_stack_has_a_layer_and_types_repeat_over_layers(build):
    import torch

    model = getattr(makers, build)()
    places = [
        describe_parameter(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
    ]
    assert all(place.layer for place in places)
    types = {}
    for place in places:
        types.setdefault(place.type, set()).add(place.layer)
    layers = {place.layer for place in places}
    # In a model with one stack each type stands once in every layer.
    if not any("." in layer for layer in layers):
        assert all(found == layers for found in types.values())
    # The pair of layer and type tells the modules of one model apart.
    assert len({(place.layer, place.type) for place in places}) == len(places)
