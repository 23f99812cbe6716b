"""Neurons of a language by when they fire: the published definition, a planted truth, a null."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MT5Config, MT5ForConditionalGeneration
from transformers.activations import ACT2FN

import checkpoint_makers
import model_makers as makers
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError
from subnet.model import find_units
from subnet.overlap import measure_overlap
from subnet.subnetwork import (
    LapeSettings,
    extract,
    load_subnetworks,
    read_masks,
    selected_units,
)
from subnet.subnetwork.lape import activation_probabilities, language_neurons
from subnet.training.tokenizer import build_tokenizer

ARCHITECTURES = ("bert", "xlm_roberta", "llama", "qwen3", "gemma", "gpt2", "mt5", "m2m")


def reference(p, density, percentile):
    """The authors' order of steps on [layers, width, languages], with kthvalue and topk.

    Returns:
        Per language a list per layer of the indices of its neurons, as they save it.
    """
    p = torch.as_tensor(p)
    layers, width, languages = p.shape
    entropies = []
    for neuron in p.reshape(-1, languages):
        shares = [float(x) / float(neuron.sum()) if neuron.sum() else 0.0 for x in neuron]
        entropies.append(-sum(s * np.log(s) for s in shares if s > 0))
    entropy = torch.tensor(entropies, dtype=torch.float64)
    bar = p.flatten().kthvalue(round(p.numel() * percentile / 100)).values
    entropy[(p.reshape(-1, languages) > bar).sum(dim=1) == 0] = torch.inf
    _, chosen = entropy.topk(round(len(entropy) * density), largest=False)
    found = [[[] for _ in range(layers)] for _ in range(languages)]
    for index in sorted(chosen.tolist()):
        for language in range(languages):
            if p[index // width, index % width, language] > bar:
                found[language][index // width].append(index % width)
    return found


def as_lists(selected, layers):
    """[l, n] booleans as the reference lists them."""
    return [[np.flatnonzero(row).tolist() for row in one.reshape(layers, -1)] for one in selected]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("density", "percentile"), [(0.01, 95), (0.05, 95), (0.2, 80), (0.37, 50.5)]
)
def test_the_neurons_are_those_of_the_published_procedure(seed, density, percentile):
    rng = np.random.default_rng(seed)
    p = rng.beta(0.5, 2, size=(3, 70, 4))
    settings = LapeSettings(density=density, activity_percentile=percentile)
    found = language_neurons(p.reshape(-1, 4).T, settings)
    assert as_lists(found.selected, 3) == reference(p, density, percentile)
    np.testing.assert_allclose(found.entropy, scipy.stats.entropy(p.reshape(-1, 4).T), atol=1e-12)
    assert found.selected.any(axis=0).sum() == found.k == round(density * 210)


def test_by_hand():
    #         dead  de    both  quiet noise noise
    p = np.array(
        [
            [0.0, 0.9, 0.9, 0.1, 0.4, 0.5],
            [0.0, 0.0, 0.8, 0.0, 0.5, 0.4],
            [0.0, 0.0, 0.0, 0.0, 0.4, 0.5],
        ]
    )  # fmt: skip
    # Of 18 values the 15th is .5, and above it are .9, .9 and .8.
    found = language_neurons(p, LapeSettings(density=0.34, activity_percentile=85))
    assert (found.threshold, found.k) == (0.5, 2)
    assert found.active.tolist() == [False, True, True, False, False, False]
    assert found.selected.astype(int).tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    one = language_neurons(p, LapeSettings(density=1 / 6, activity_percentile=85))
    assert one.selected.astype(int).sum(axis=0).tolist() == [0, 1, 0, 0, 0, 0]


def test_a_dead_neuron_has_the_lowest_entropy_and_is_never_chosen():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 1, size=(3, 100))
    p[:, :40] = 0
    settings = LapeSettings(density=0.3, activity_percentile=40)
    found = language_neurons(p, settings)
    assert (found.entropy[:40] == 0).all()
    assert found.entropy[40:].min() > 0.5  # without the filter the dead ones would come first
    assert not found.selected[:, :40].any()
    assert found.selected.any(axis=0).sum() == 30
    assert not found.active[:40].any()


def test_fewer_are_found_where_fewer_are_active():
    p = np.full((2, 50), 0.1)
    p[0, :4] = 0.8
    found = language_neurons(p, LapeSettings(density=0.5))
    assert (found.k, int(found.selected.sum())) == (25, 4)


def test_equal_entropies_are_settled_by_order():
    p = np.tile([[0.9], [0.1]], (1, 10))
    p = np.concatenate([p, np.full((2, 20), 0.05)], axis=1)
    found = language_neurons(p, LapeSettings(density=0.1, activity_percentile=60))
    assert np.flatnonzero(found.selected[0]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("p", "settings", "message"),
    [
        (np.ones((1, 9)), {}, "there is one language"),
        (np.ones(9), {}, r"are \[9\]; expected numbers from 0 to 1 in \[languages, neurons\]"),
        (np.full((2, 9), 1.5), {}, "expected numbers from 0 to 1"),
        (np.full((2, 9), np.nan), {}, "expected numbers from 0 to 1"),
        (np.full((2, 9), 0.5), {}, r"density 0\.01 selects none of the 9 neurons"),
        (np.full((2, 9), 0.5), {"density": 1}, r"no activation probability exceeds .* 95, 0\.5"),
    ],
)
def test_what_is_no_set_of_probabilities_is_refused(p, settings, message):
    with pytest.raises(InputError, match=message):
        language_neurons(p, LapeSettings(**settings))


def activations(model, name, row):
    """Oracle: what each FFN's activation function puts out for one unpadded example.

    Its module is found by the architecture's own name for it; [t, n] per FFN, in order.
    """
    names = {"bert": "intermediate.intermediate_act_fn", "xlm_roberta": "intermediate_act_fn",
             "m2m": "activation_fn", "gpt2": "mlp.act", "mt5": "DenseReluDense.act"}  # fmt: skip
    found = []
    suffix = names.get(name, "mlp.act_fn")
    handles = [
        module.register_forward_hook(lambda m, given, output: found.append(output[0].detach()))
        for path, module in model.named_modules()
        if path.endswith(suffix)
    ]
    with torch.no_grad():
        model(**makers.collate_for(name)([row]))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_probabilities_count_the_activation_functions_own_output_over_real_tokens(name):
    model, rows = makers.make(name), makers.examples(name, (6, 3, 4, 5))
    if name == "mt5":
        for row in rows:
            row["labels"] = row["labels"][: max(2, len(row["labels"]) - 2)]
    units = find_units(model)
    each = [activations(model, name, row) for row in rows]
    n_ffn = len(units.feed_forwards)
    assert all(len(one) == n_ffn for one in each)
    tokens = [torch.cat([one[i] for one in each]) for i in range(n_ffn)]
    oracle = np.concatenate([(values > 0).double().mean(dim=0).numpy() for values in tokens])
    assert 0.05 < oracle.mean() < 0.95
    padded = makers.collate_for(name, extra=2)
    for batches in ([padded(rows)], [padded(rows[:1]), padded(rows[1:])]):
        found = activation_probabilities(model, units, batches)
        np.testing.assert_array_equal(found, oracle)


def test_a_gated_ffn_is_judged_by_its_gate_and_not_by_the_product():
    model, rows = makers.make("qwen3"), makers.examples("qwen3")
    units, batch = find_units(model), makers.batch_of("qwen3")
    before = activation_probabilities(model, units, [batch])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.neg_()  # the product changes its sign, act(gate) does not
            layer.mlp.down_proj.weight.neg_()
    np.testing.assert_array_equal(activation_probabilities(model, units, [batch]), before)
    assert len(rows) == 3


def test_an_adapter_is_part_of_the_model():
    adapted = makers.make("qwen3_lora")
    batch = makers.batch_of("qwen3")
    found = activation_probabilities(adapted, find_units(adapted), [batch])
    merged = adapted.merge_and_unload()
    np.testing.assert_array_equal(
        found, activation_probabilities(merged, find_units(merged), [batch])
    )


def test_dropout_left_on_is_switched_off_and_the_model_is_left_as_it_was():
    model = checkpoint_makers.bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    units, batch = find_units(model), makers.batch_of("bert")
    still = activation_probabilities(model.eval(), units, [batch])
    model.train()
    model.bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    np.testing.assert_array_equal(activation_probabilities(model, units, [batch]), still)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_the_sign_of_the_input_is_that_of_the_activation_for_what_is_accepted():
    x = torch.linspace(-20, 20, 20001, dtype=torch.float64)
    x = torch.cat([x, torch.logspace(-30, 0, 100), -torch.logspace(-30, 0, 100)])
    model = makers.make("bert")
    units, batch = find_units(model), makers.batch_of("bert")
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "mish"):
        model.config.hidden_act = name
        activation_probabilities(model, units, [batch])
        assert torch.equal(ACT2FN[name](x) > 0, x > 0), name
    for name in ("sigmoid", "sqrtsoftplus", "laplace", "no_such"):
        model.config.hidden_act = name
        with pytest.raises(InputError, match=rf"activation function '{name}' \(hidden_act\)"):
            activation_probabilities(model, units, [batch])
    model.config = SimpleNamespace()
    with pytest.raises(InputError, match="does not state its activation function"):
        activation_probabilities(model, units, [batch])


SIZES = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_base(root, model):
    checkpoint_makers.save_base(model, root / "base")
    build_tokenizer(32).save_pretrained(root / "base")
    return root


def write_texts(root, texts, name="train.jsonl"):
    rows = [{"language": k, "text": text} for k, several in texts.items() for text in several]
    checkpoint_makers.write_json_lines(root / name, rows)


OWN = {"de": (3, 7), "fr": (11, 20), "sw": (30,)}
ALPHABET = {"de": "abcdef", "fr": "ghijkl", "sw": "mnopqr"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A decoder in which some neurons fire at the letters of one language only, others always."""
    root = tmp_path_factory.mktemp("planted")
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES, intermediate_size=40, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    tokenizer = build_tokenizer(32)
    with torch.no_grad():
        # One direction of the stream per language, untouched by attention.
        table = 0.01 * torch.randn(259, 16)
        for place, letters in enumerate(ALPHABET.values()):
            for letter in letters:
                table[tokenizer(letter)["input_ids"][1], place] = 1
        model.model.embed_tokens.weight.copy_(table)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            gate = 0.01 * torch.randn(40, 16)
            gate[:, :3] = -1  # silent
            gate[35:, :3] = 1  # fire at every language's letters
            layer.mlp.gate_proj.weight.copy_(gate)
        for place, neurons in enumerate(OWN.values()):
            for neuron in neurons:
                model.model.layers[1].mlp.gate_proj.weight[neuron, place] = 5
    write_base(root, model)
    rng = np.random.default_rng(0)
    write_texts(
        root,
        {
            k: ["".join(rng.choice(list(letters), size=12)) for _ in range(20)]
            for k, letters in ALPHABET.items()
        },
    )
    return root


def test_neurons_that_fire_for_one_language_are_found_exactly(planted):
    checkpoint = open_checkpoint(planted)
    found = extract(checkpoint, method="lape", density=5 / 80, activity_percentile=85)
    assert found.languages == ("de", "fr", "sw")
    for language, neurons in OWN.items():
        mask = found[language]
        assert mask.granularity == "neuron"
        assert mask.shapes == {"layers.0.neurons": (40,), "layers.1.neurons": (40,)}
        assert mask.counts["layers.0.neurons"] == 0
        assert np.flatnonzero(mask.dense("layers.1.neurons")).tolist() == list(neurons)
        assert mask.settings["of_this_language_alone"] == len(neurons)


def test_a_mask_says_how_it_was_found_and_reads_back(planted, tmp_path):
    found = extract(
        open_checkpoint(planted), method="lape", density=0.1, activity_percentile=85, seed=3
    )
    settings = found["de"].settings
    # 20 texts of 12 letters between two special tokens.
    assert settings["tokens"] == {"model": 20 * 14}
    assert settings["languages"] == ["de", "fr", "sw"]
    assert (settings["model"], settings["activity_percentile"], settings["k"]) == ("base", 85, 8)
    assert (settings["data"], settings["n_examples_used"]) == ("train.jsonl", 20)
    assert (found["de"].method, found["de"].seed) == ("lape", 3)
    assert settings["largest_entropy"] == pytest.approx(np.log(3))  # of neurons that always fire
    assert settings["entropy_without_difference"] == np.log(3)
    json.dumps(dict(settings))
    found.save(tmp_path / "masks")
    back = load_subnetworks(open_checkpoint(tmp_path / "masks"))
    assert [mask == other for mask, other in zip(found, back, strict=True)] == [True] * 3
    assert dict(back["de"].settings) == dict(settings)
    pairs = measure_overlap(found).pairs("jaccard")
    assert set(zip(pairs["language_a"], pairs["language_b"], strict=True)) == {
        ("de", "fr"), ("de", "sw"), ("fr", "sw"),
    }  # fmt: skip


def test_what_the_authors_save_reads_as_the_same_masks(planted, tmp_path):
    found = extract(open_checkpoint(planted), method="lape", density=0.1, activity_percentile=85)
    saved = [
        [torch.from_numpy(np.flatnonzero(mask.dense(f"layers.{i}.neurons"))) for i in range(2)]
        for mask in found
    ]
    torch.save(saved, tmp_path / "tiny.neuron.pth")
    read = read_masks(
        tmp_path / "tiny.neuron.pth", format="lape", languages=list(found.languages), units=40
    )
    for mask, other in zip(found, read, strict=True):
        assert (mask.language, mask.shapes) == (other.language, other.shapes)
        for name in mask.shapes:
            np.testing.assert_array_equal(mask.dense(name), other.dense(name))
        assert mask.count > 0
    model = LlamaForCausalLM.from_pretrained(planted / "base")
    assert int(selected_units(read[0], find_units(model)).sum()) == found[0].count


def test_languages_with_the_same_texts_have_no_neuron_alone(planted):
    """Null: the data of one language under three names."""
    texts = [json.loads(line) for line in (planted / "train.jsonl").read_text().splitlines()]
    data = [{**row, "language": k} for k in ("de", "fr", "sw") for row in texts]
    checkpoint = open_checkpoint(planted)
    found = extract(checkpoint, method="lape", density=0.2, activity_percentile=80, data=data)
    assert found["de"] == found["fr"] == found["sw"]
    assert found["de"].count > 0
    assert [mask.settings["of_this_language_alone"] for mask in found] == [0, 0, 0]


def test_samples_of_one_language_show_by_their_entropy_that_they_do_not_differ():
    """Null: three samples of one language. k neurons are found as always, and mean nothing.

    Their entropy says so, for it stays at that of an even distribution, and they fall to each
    sample alike.
    """
    rng = np.random.default_rng(0)
    alone = np.zeros(3)
    for _ in range(30):
        chance = rng.beta(0.5, 2, size=2000)
        p = rng.binomial(4000, chance, size=(3, 2000)) / 4000
        found = language_neurons(p, LapeSettings())
        chosen = found.selected.any(axis=0)
        assert found.entropy[chosen].min() > 0.999 * np.log(3)
        alone += found.selected[:, found.selected.sum(axis=0) == 1].sum(axis=1)
    assert scipy.stats.chisquare(alone).pvalue > 0.01


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Adapters of a decoder, in two runs."""
    root = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES, intermediate_size=40, num_key_value_heads=1, max_position_embeddings=64
    )
    checkpoint_makers.move(model := LlamaForCausalLM(config), 1, size=0.2)
    write_base(root, model)
    for seed, label in enumerate(("de", "fr"), start=1):
        base = LlamaForCausalLM.from_pretrained(root / "base")
        adapted = checkpoint_makers.lora(base, seed, target_modules="all-linear")
        checkpoint_makers.save_adapter(adapted, root / "adapters" / label)
    shutil.copytree(root / "adapters", root / "runs" / "second" / "adapters")
    write_texts(root, {"de": ("Haus", "Katze", "Hund"), "fr": ("maison", "chat", "chien")})
    return root


def test_each_language_runs_through_the_base_or_on_request_through_its_own_model(trained):
    checkpoint = open_checkpoint(trained)
    options = {"method": "lape", "density": 0.2, "activity_percentile": 70}
    base = extract(checkpoint, **options)
    own = extract(checkpoint, **options, model="trained")
    assert [(mask.language, mask.run) for mask in base] == [("de", "main"), ("fr", "main")]
    assert [mask.run for mask in own] == ["main", "main", "second", "second"]
    assert own["de", "main"] == own["de", "second"]
    assert own["de", "main"] != base["de"]
    assert (base["de"].settings["model"], own["de", "main"].settings["model"]) == (
        "base",
        "trained",
    )


def test_an_encoder_decoder_has_tokens_of_each_side(tmp_path):
    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=259, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1,
        num_heads=2, decoder_start_token_id=0,
    )  # fmt: skip
    checkpoint_makers.move(model := MT5ForConditionalGeneration(config), 1, size=0.3)
    write_base(tmp_path, model)
    data = [
        {"language": k, "text": text, "target": target}
        for k, text, target in (("de", "Haus", "ab"), ("de", "Tür", "abc"), ("fr", "maison", "b"))
    ]
    found = extract(
        open_checkpoint(tmp_path), method="lape", density=0.3, activity_percentile=50, data=data
    )
    assert set(found["de"].shapes) == {"encoder.layers.0.neurons", "decoder.layers.0.neurons"}
    # Bytes and two special tokens: Haus 4, Tür 4 (two bytes of ü); ab 2, abc 3.
    assert found["de"].settings["tokens"] == {"encoder": 4 + 4 + 4, "decoder": 2 + 3 + 4}
    assert found["fr"].settings["tokens"] == {"encoder": 6 + 2, "decoder": 1 + 2}


def test_one_language_alone_is_refused(planted):
    data = [{"language": "de", "text": "abc"}]
    with pytest.raises(InputError, match="de is the only language of the run main"):
        extract(open_checkpoint(planted), method="lape", density=0.5, data=data)


def test_a_language_without_a_neuron_has_an_empty_mask_and_a_warning(planted):
    checkpoint = open_checkpoint(planted)
    with pytest.warns(UserWarning, match="no neuron is specific to sw: its mask is empty"):
        found = extract(checkpoint, method="lape", density=4 / 80, activity_percentile=85)
    assert [mask.count for mask in found] == [2, 2, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activity_percentile": 0}, "activity_percentile is 0; expected 0 < activity_perc"),
        ({"activity_percentile": 100}, "activity_percentile is 100"),
        ({"activity_percentile": "high"}, "activity_percentile is 'high'; expected a number"),
        ({"density": 0}, "density is 0"),
        ({"density": 1e-4}, "selects none of the 80 neurons"),
        ({"scope": "module"}, "scope is given for the method 'lape'"),
        ({"activity_percentil": 1}, "did you mean activity_percentile"),
    ],
)
def test_a_setting_out_of_place_is_refused(planted, settings, message):
    with pytest.raises(InputError, match=message):
        extract(open_checkpoint(planted), method="lape", **settings)


def test_without_examples_there_is_nothing_to_count(planted, tmp_path):
    shutil.copytree(planted, tmp_path / "copy")
    (tmp_path / "copy" / "train.jsonl").unlink()
    with pytest.raises(MissingInputError, match=r"has no train\.jsonl"):
        extract(open_checkpoint(tmp_path / "copy"), method="lape")
