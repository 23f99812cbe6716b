"""Units inside a model that carry what a probe on top of it reads."""

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import log_softmax

import planted_heads
from model_makers import make
from subnet.errors import InputError, MissingInputError
from subnet.model import find_units, gate_heads, gate_neurons
from subnet.subnetwork.units import subnetwork_of_units
from subnet_probes import Probe, rank_model_units, representations, unit_agreement
from subnet_probes._stacks import find_stacks
from subnet_probes._subject import Surgery, load
from subnet_probes._through_model import BlockAttribution, Composed, attribute_blocks
from subnet_probes.extraction import find_encoder

PLANTED, WIDTH, NEURONS = 5, 16, 12
#: Dimensions of the residual stream that only neurons write to.
WRITTEN = slice(WIDTH // 2, WIDTH)


def planted_decoder():
    """Neuron 5 of the first block fires for the tokens of language a; others for neither."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaModel(config).double().eval()
    block = model.layers[0]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        tokens = model.embed_tokens.weight
        tokens[:, WRITTEN] = 0
        tokens[:, 0] = 0
        tokens[1:15, 0] = 2.0  # language a
        tokens[15:, 0] = -2.0  # language b
        block.self_attn.o_proj.weight[:] = 0
        mlp = block.mlp
        mlp.gate_proj.weight[:, 0] = 0
        mlp.up_proj.weight[:, 0] = 0
        mlp.gate_proj.weight[PLANTED], mlp.up_proj.weight[PLANTED] = 0, 0
        mlp.gate_proj.weight[PLANTED, 0] = 2.0
        mlp.up_proj.weight[PLANTED, 0] = 1.0
        mlp.down_proj.weight[: WIDTH // 2] = 0
    return model


def sentences(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(n):
        language = "ab"[number % 2]
        first = 1 if language == "a" else 15
        ids = torch.randint(first, first + 14, (3 + number % 4,), generator=generator)
        rows.append({"id": str(number), "language": language, "input_ids": ids.tolist()})
    return rows


def probe_of_what_neurons_write(model, rows, labels, c=0.1):
    """Reads nothing that did not pass through the neurons of the first block."""
    x = representations(model, rows, layers=1).array("1").copy()
    x[:, : WIDTH // 2] = 0
    return Probe(c).fit(x, labels)


@pytest.fixture(scope="module")
def planted():
    model, rows = planted_decoder(), sentences()
    probe = probe_of_what_neurons_write(model, rows, [row["language"] for row in rows])
    return model, rows, probe


def signed(model, rows, probe, labels, method, *, units="neuron", layer="1", steps=16, size=8):
    """[n, units] of each block, with signs."""
    stacks = find_stacks(model, decoder=False)
    loaded = load(model, Surgery(None, "whole", None), None, None, "main")
    encode = find_encoder(rows, loaded, stacks, None, None, True, False)
    composed = Composed(model, stacks, probe, layer, "mean")
    numbers = np.searchsorted(probe.classes_, labels)
    request = BlockAttribution(units, method, "mean", steps)
    return attribute_blocks(
        composed, [encode(r, i) for i, r in enumerate(rows)], numbers, request, size
    )


def mean_embedding(model, rows):
    """[d], over all tokens of all texts."""
    return model.embed_tokens(torch.tensor([i for row in rows for i in row["input_ids"]])).mean(0)


def first_layer(model, embedded):
    """[1, t, d]"""
    return model(inputs_embeds=embedded, output_hidden_states=True).hidden_states[1]


def log_p(probe, pooled, label):
    weights, bias = (torch.from_numpy(part) for part in probe.affine())
    logits = torch.cat([torch.zeros(1), pooled @ weights.T + bias]) if len(bias) == 1 else (
        pooled @ weights.T + bias
    )  # fmt: skip
    return log_softmax(logits, dim=-1)[list(probe.classes_).index(label)]


@pytest.mark.parametrize("method", ["conductance", "gradient"])
def test_the_planted_neuron_comes_first_and_meaningless_labels_have_none(planted, method):
    model, rows, probe = planted
    options = {"layer": 1, "method": method, "target": "language"}
    (found,) = rank_model_units(probe, model, rows, **options)
    assert found.layer == "layers.0.neurons"
    assert found.order[0] == PLANTED
    assert found.scores[PLANTED] > 2 * np.delete(found.scores, PLANTED).max()
    chance = []
    for seed in range(4):
        shuffled = np.random.default_rng(seed).permutation([row["language"] for row in rows])
        given = [{**row, "language": str(x)} for row, x in zip(rows, shuffled, strict=True)]
        nothing = probe_of_what_neurons_write(model, given, shuffled, c=0.001)
        (null,) = rank_model_units(nothing, model, given, **options)
        chance.append(null.scores.max() / found.scores[PLANTED])
    assert np.median(chance) < 0.2


def test_the_planted_neuron_agrees_with_the_mask_that_holds_it(planted):
    model, rows, probe = planted
    rankings = rank_model_units(probe, model, rows, layer=1, target="language")
    selected = np.zeros(2 * NEURONS, dtype=bool)
    selected[[PLANTED, NEURONS + 3]] = True
    mask = subnetwork_of_units(selected, find_units(model), "neuron", language="a", base="tiny")
    row = unit_agreement(rankings, mask).iloc[0]
    assert (row["layer"], row["overlap"], row["n_units"]) == ("layers.0.neurons", 1, NEURONS)
    assert row["p_value"] == pytest.approx(1 / NEURONS)
    selected[[PLANTED, 0]] = [False, True]
    other = subnetwork_of_units(selected, find_units(model), "neuron", language="b", base="tiny")
    assert unit_agreement(rankings, other).iloc[0]["overlap"] == 0


def test_conductance_sums_to_the_change_where_everything_passes_through_the_block(planted):
    model, rows, probe = planted
    rows = rows[:4]
    labels = [row["language"] for row in rows]
    (found,) = signed(model, rows, probe, labels, "conductance", steps=400).values()
    for row, label, values in zip(rows, labels, found, strict=True):
        embedded = model.embed_tokens(torch.tensor([row["input_ids"]]))
        starts = mean_embedding(model, rows).expand_as(embedded)
        pooled = [first_layer(model, e)[0].mean(dim=0).detach() for e in (embedded, starts)]
        ends = [log_p(probe, one, label) for one in pooled]
        assert values.sum() == pytest.approx(float(ends[0] - ends[1]), rel=0.02)


def test_conductance_is_the_path_integral_of_each_neuron(planted):
    model, rows, probe = planted
    (found,) = signed(model, rows[:2], probe, ["a", "b"], "conductance", steps=120).values()
    down = model.layers[0].mlp.down_proj
    for row, label, values in zip(rows, "ab", found, strict=False):
        embedded = model.embed_tokens(torch.tensor([row["input_ids"]])).detach()
        points, slopes = [], []
        start = mean_embedding(model, rows[:2]).detach()
        for share in torch.linspace(0, 1, 161, dtype=torch.float64):
            seen = []
            handle = down.register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # noqa: B023
            states = first_layer(model, start + share * (embedded - start))
            handle.remove()
            value = log_p(probe, states[0].mean(dim=0), label)
            (slope,) = torch.autograd.grad(value, seen[0])
            points.append(seen[0].detach()[0])
            slopes.append(slope[0])
        y, g = torch.stack(points), torch.stack(slopes)
        by_hand = ((g[1:] + g[:-1]) / 2 * (y[1:] - y[:-1])).sum(dim=(0, 1))
        np.testing.assert_allclose(
            values, by_hand, rtol=0.02, atol=0.02 * float(by_hand.abs().max())
        )


@pytest.mark.parametrize(
    ("name", "units"), [("bert", "neuron"), ("bert", "head"), ("qwen2", "head")]
)
def test_gradients_are_finite_differences_of_gates(name, units):
    model = make(name)
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, 40, (3 + i % 3,), generator=generator).tolist() for i in range(12)]
    rows = [{"id": str(number), "input_ids": row} for number, row in enumerate(ids)]
    labels = ["x", "y", "z"] * 4
    probe = Probe(0.01).fit(representations(model, rows, layers=2).array("2"), labels)
    found = signed(model, rows, probe, labels, "gradient", units=units, layer="2")
    known = find_units(model)
    n, gate = (known.n_heads, gate_heads) if units == "head" else (known.n_neurons, gate_neurons)
    together = np.concatenate(list(found.values()), axis=1)
    assert together.shape == (12, n)
    weights, bias = probe.affine()

    def scored(gates):
        with gate(model, known, gates):
            x = representations(model, rows, layers=2).array("2")
        logits = torch.from_numpy(x @ weights.T + bias).log_softmax(dim=-1)
        return logits[torch.arange(12), torch.tensor([0, 1, 2] * 4)].numpy()

    # the norms of qwen2 are in single precision whatever the model is in
    size, tolerance = (1e-2, 1e-3) if name == "qwen2" else (1e-5, 1e-7)
    for unit in range(0, n, max(1, n // 6)):
        step = torch.zeros(n, dtype=torch.float64)
        step[unit] = size
        slope = (scored(1 + step) - scored(1 - step)) / (2 * size)
        atol = tolerance * np.abs(together).max()
        np.testing.assert_allclose(together[:, unit], slope, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("method", ["conductance", "gradient"])
def test_neither_padding_nor_the_batch_changes_a_row_and_the_model_stays(planted, method):
    model, rows, probe = planted
    labels = [row["language"] for row in rows]
    model.train()
    one, many = (signed(model, rows[:9], probe, labels[:9], method, size=size) for size in (1, 5))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for block in one:
        np.testing.assert_allclose(one[block], many[block], rtol=1e-8, atol=1e-12)
    model.eval()


def test_heads_that_read_the_property_come_first():
    model = planted_heads.planted_model()
    for bit, head, neurons in ((0, 0, {0}), (1, 2, {4, 5})):
        rows = [
            {"input_ids": row["input_ids"], "label": str(row["labels"] >> 1 - bit & 1)}
            for row in planted_heads.sentences("de", 40)
        ]
        (heads,) = rank_model_units(None, model, rows, layer=1, units="head", pool="first")
        assert heads.order[0] == head
        (found,) = rank_model_units(None, model, rows, layer=-1, pool="first", n_steps=8)
        assert neurons <= set(found.order[:3])
        assert found.provenance.settings["n_items"] == 40


def test_only_blocks_below_the_layer_are_ranked_and_only_items_of_a_label():
    model = make("gpt2")
    rows = [
        {"input_ids": [5 + i, 9, 7 + i % 5], "label": "xy"[i % 2], "language": "de"}
        for i in range(12)
    ]
    one, two = (rank_model_units(None, model, rows, layer=k, method="gradient") for k in (1, 2))
    assert [found.layer for found in one] == ["layers.0.neurons"]
    assert [found.layer for found in two] == ["layers.0.neurons", "layers.1.neurons"]
    own = rank_model_units(None, model, rows, layer=1, method="gradient", label="x")
    assert own[0].provenance.settings["n_items"] == 6
    both = rank_model_units(None, model, rows, layer=1, method="gradient", label="y")
    np.testing.assert_allclose((own[0].scores + both[0].scores) / 2, one[0].scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 0}, "layer 0 has no block of neurons below it; expected layer 1 or higher"),
        ({"layer": 7}, "layer 7 is asked for and LlamaModel has 2 layers"),
        ({"units": "weight"}, "units is 'weight'"),
        ({"method": "weights"}, "method is 'weights'"),
        ({"pool": "token"}, "pool is 'token'"),
        ({"baseline": "blank"}, "baseline is 'blank'"),
        ({"n_steps": 0}, "n_steps is 0; expected 1 or more"),
        ({"label": "z"}, "the probe does not know 'z'; expected a, b"),
        ({"target": "tag"}, "there is no 'tag'"),
        ({"target": "label"}, "no item has a value in the column 'label'"),
        ({"probe": Probe().fit(np.eye(4), list("abab"))}, "fitted on 4 units, the layer has 16"),
    ],
)
def test_bad_input_is_refused(planted, change, message):
    model, rows, probe = planted
    arguments = {"probe": probe, "layer": 1, "target": "language", **change}
    with pytest.raises((InputError, MissingInputError), match=message):
        rank_model_units(arguments.pop("probe"), model, rows, **arguments)
