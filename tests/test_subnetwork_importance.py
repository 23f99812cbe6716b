"""Weights that matter by gradients and inputs: equal to a loop over examples, and controlled."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

import model_makers as makers
import subnet_cli
from checkpoint_makers import lora, save_adapter
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError
from subnet.model import load_model
from subnet.subnetwork import (
    FisherSettings,
    Subnetwork,
    TaylorSettings,
    WandaSettings,
    extract,
    load_subnetworks,
    random_like,
)
from subnet.subnetwork.importance import weight_importance
from subnet.training.tokenizer import build_tokenizer

ARCHITECTURES = ("bert", "bert_tagger", "xlm_roberta", "qwen3", "gemma", "gpt2", "mt5", "m2m")


def linear_weights(model):
    """Weights of all linear layers that are not tied, by a rule of the test's own."""
    heads = ("lm_head", "shared", "embed")
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.startswith(heads)
    ]


def loop(model, rows, collate, names, reduce):
    """Oracle: one backward pass per example, through the loss that transformers itself computes."""
    sums = dict.fromkeys(names, 0.0)
    for row in rows:
        model.zero_grad()
        model(**collate([row])).loss.backward()
        for name in names:
            parameter = model.get_parameter(name)
            sums[name] = sums[name] + reduce(parameter.grad.clone(), parameter.detach())
    model.zero_grad(set_to_none=True)
    return {name: total / len(rows) for name, total in sums.items()}


def assert_close(found, oracle):
    assert found.keys() == oracle.keys()
    for name, values in oracle.items():
        assert values.abs().max() > 0, name
        # transformers computes the loss of causal models in float32, whatever the model's type.
        atol = 1e-7 * float(values.max())
        torch.testing.assert_close(found[name], values.double(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fisher_and_taylor_equal_a_loop_of_single_example_passes(name):
    model, collate = makers.make(name), makers.collate_for(name)
    rows = makers.examples(name, (6, 3, 4, 6, 5))
    names = linear_weights(model)
    batches = [collate(rows[:3]), collate(rows[3:])]
    fisher = weight_importance(model, batches, FisherSettings(), names)
    assert_close(fisher, loop(model, rows, collate, names, lambda g, w: g**2))
    taylor = weight_importance(model, batches, TaylorSettings(), names)
    assert_close(taylor, loop(model, rows, collate, names, lambda g, w: (g * w).abs()))


@pytest.mark.parametrize("name", ["bert", "xlm_roberta"])
def test_expected_fisher_weighs_every_label_by_its_probability(name):
    model, collate = makers.make(name), makers.collate_for(name)
    rows, names = makers.examples(name), linear_weights(model)
    expected = dict.fromkeys(names, 0.0)
    for row in rows:
        p = model(**collate([row])).logits.detach().softmax(-1)[0]
        assert p.max() < 0.999
        for label in range(len(p)):
            one = loop(model, [{**row, "labels": label}], collate, names, lambda g, w: g**2)
            for key, values in one.items():
                expected[key] = expected[key] + p[label] * values / len(rows)
    found = weight_importance(model, [collate(rows)], FisherSettings(labels="model"), names)
    assert_close(found, expected)
    true = weight_importance(model, [collate(rows)], FisherSettings(), names)
    assert any(not torch.allclose(found[key], true[key], rtol=1e-2) for key in names)


def test_the_expected_fisher_does_not_depend_on_the_labels():
    model, collate = makers.make("bert"), makers.collate_for("bert")
    rows, names = makers.examples("bert"), linear_weights(model)
    other = [{**row, "labels": (row["labels"] + 1) % 3} for row in rows]
    settings = FisherSettings(labels="model")
    found, again = (weight_importance(model, [collate(r)], settings, names) for r in (rows, other))
    assert all(torch.equal(found[name], again[name]) for name in names)


def test_an_example_without_labels_counts_for_nothing():
    model, collate = makers.make("bert_tagger"), makers.collate_for("bert_tagger")
    rows, names = makers.examples("bert_tagger"), linear_weights(model)
    empty = {"input_ids": [5, 6], "labels": [-100, -100]}
    with_it = weight_importance(model, [collate([*rows, empty])], FisherSettings(), names)
    assert_close(with_it, loop(model, rows, collate, names, lambda g, w: g**2))
    with pytest.raises(InputError, match="no example has a label"):
        weight_importance(model, [collate([empty])], FisherSettings(), names)


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3", "mt5"])
def test_wanda_is_the_weight_times_the_norm_of_its_input(name):
    model, collate = makers.make(name), makers.collate_for(name)
    rows, names = makers.examples(name), linear_weights(model)
    seen = {key: [] for key in names}
    hooks = [
        model.get_submodule(key.removesuffix(".weight")).register_forward_pre_hook(
            lambda module, given, key=key: seen[key].extend(given[0].flatten(0, -2).tolist())
        )
        for key in names
    ]
    for row in rows:
        model(**collate([row]))
    for hook in hooks:
        hook.remove()
    found = weight_importance(model, [collate([row]) for row in rows], WandaSettings(), names)
    for key in names:
        weight = model.get_parameter(key).detach().numpy()
        norm = np.sqrt((np.array(seen[key]) ** 2).sum(axis=0))
        is_conv = isinstance(model.get_submodule(key.removesuffix(".weight")), Conv1D)
        oracle = abs(weight) * (norm[:, None] if is_conv else norm[None, :])
        np.testing.assert_allclose(found[key].numpy(), oracle, rtol=1e-10)


class Shared(BertForSequenceClassification):
    """A classifier that uses one layer twice and changes what it gave in place."""

    def __init__(self, config):
        super().__init__(config)
        self.twice = nn.Linear(config.hidden_size, config.hidden_size)
        self.bert.embeddings.register_forward_hook(self.use)

    def use(self, module, given, output):
        once = self.twice(output)
        once.relu_()
        return self.twice(once)


Shared.__name__ = "BertForSequenceClassification"


def test_a_layer_used_twice_and_changed_in_place_has_its_whole_gradient():
    torch.manual_seed(0)
    model = Shared(tiny_config()).double().eval()
    rows, collate = makers.examples("bert"), makers.collate_for("bert")
    names = ["twice.weight", "bert.encoder.layer.0.attention.self.query.weight"]
    found = weight_importance(model, [collate(rows)], FisherSettings(), names)
    assert_close(found, loop(model, rows, collate, names, lambda g, w: g**2))


def test_dropout_left_on_is_switched_off_and_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    config = tiny_config()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.5
    model = BertForSequenceClassification(config)
    rows, collate = makers.examples("bert"), makers.collate_for("bert")
    names = linear_weights(model)
    settings = (FisherSettings(), FisherSettings(labels="model"), TaylorSettings(), WandaSettings())
    for setting in settings:
        still = weight_importance(model.eval(), [collate(rows)], setting, names)
        model.train()
        model.bert.pooler.eval()
        model.classifier.weight.requires_grad_(False)
        modes = [module.training for module in model.modules()]
        found = weight_importance(model, [collate(rows)], setting, names)
        assert all(torch.equal(found[name], still[name]) for name in names)
        assert [module.training for module in model.modules()] == modes
        assert not model.classifier.weight.requires_grad
        assert model.bert.pooler.dense.weight.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())


def test_what_is_no_layer_of_its_own_is_refused_by_name():
    model, collate = makers.make("bert"), makers.collate_for("bert")
    batch = collate(makers.examples("bert"))
    names = linear_weights(model)
    embedding = "bert.embeddings.word_embeddings.weight"
    with pytest.raises(InputError, match=f"{embedding} is not the weight of a linear layer"):
        weight_importance(model, [batch], FisherSettings(), [*names, embedding])
    adapted = makers.make("bert_lora")
    with pytest.raises(InputError, match=r"carries an adapter.*merge=True"):
        weight_importance(adapted, [batch], FisherSettings(), names)
    tagger = makers.make("bert_tagger")
    tagged = makers.batch_of("bert_tagger")
    with pytest.raises(InputError, match="labels is 'model' and the model is for token"):
        weight_importance(tagger, [tagged], FisherSettings(labels="model"), linear_weights(tagger))
    model.spare = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"the layer of spare\.weight was not called"):
        weight_importance(model, [batch], WandaSettings(), ["spare.weight"])


def tiny_config():
    return BertConfig(
        vocab_size=259,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        num_labels=3,
        id2label={0: "city", 1: "unit", 2: "script"},
        label2id={"city": 0, "unit": 1, "script": 2},
        pad_token_id=0,
    )


DEAD = 5
TEXTS = {
    "de": ("Rom", "Köln", "Meter", "Kilogramm", "Latein", "Zeit", "Bonn am Rhein"),
    "fr": ("Nice", "Lyon", "mètre", "gramme", "latin", "heures", "Paris"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base with a dead neuron, two adapters, and examples."""
    root = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    base = BertForSequenceClassification(tiny_config())
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(8)
        base.bert.encoder.layer[1].output.dense.weight[:, DEAD] = 0
    base.save_pretrained(root / "base")
    build_tokenizer(24).save_pretrained(root / "base")
    for seed, label in enumerate(TEXTS, start=1):
        clean = BertForSequenceClassification.from_pretrained(root / "base")
        adapted = lora(clean, seed, target_modules=r".*layer\.\d\..*(query|dense)")
        save_adapter(adapted, root / "adapters" / label)
    write_examples(root / "train.jsonl", {k: texts[:6] for k, texts in TEXTS.items()})
    write_examples(root / "test.jsonl", {k: texts[6:] for k, texts in TEXTS.items()})
    return root


def write_examples(path, texts):
    kinds = ("city", "city", "unit", "unit", "script", "unit", "city")
    lines = [
        json.dumps({"id": f"{k}{i}", "language": k, "text": text, "label": kinds[i]})
        for k, several in texts.items()
        for i, text in enumerate(several)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_of(trained, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    return root


def encoded(texts):
    """The examples as the tokenizer's definition says: [CLS] bytes [SEP]."""
    tokenizer = build_tokenizer(24)
    labels = (0, 0, 1, 1, 2, 1, 0)
    return [
        {"input_ids": tokenizer(text)["input_ids"], "labels": labels[i]}
        for i, text in enumerate(texts)
    ]


def largest(values, k):
    """Oracle: (name, index) of the k largest, by one sort."""
    listed = sorted(
        (-float(np.float32(value)), name, i)
        for name, array in values.items()
        for i, value in enumerate(np.asarray(array).reshape(-1))
    )
    return {(name, i) for _, name, i in listed[:k]}


def elements(subnetwork):
    return {
        (name, int(i))
        for name in subnetwork.shapes
        for i in np.flatnonzero(subnetwork.dense(name).reshape(-1))
    }


@pytest.mark.parametrize(
    ("method", "reduce"),
    [("fisher", lambda g, w: g**2), ("taylor", lambda g, w: (g * w).abs())],
)
@pytest.mark.parametrize("which", ["trained", "base"])
def test_a_language_keeps_the_weights_its_own_training_examples_move(
    trained, method, reduce, which
):
    checkpoint = open_checkpoint(trained)
    found = extract(checkpoint, method=method, density=0.1, model=which, batch_size=2)
    assert found.languages == ("de", "fr")
    for language in found.languages:
        label = language if which == "trained" else None
        model = load_model(checkpoint, language=label, merge=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        member = found[language]
        collate = makers.collate_for("bert")
        oracle = loop(model, encoded(TEXTS[language][:6]), collate, list(member.shapes), reduce)
        k = round(0.1 * member.size)
        # Float32 sums in another order may exchange two weights at the very edge.
        assert len(elements(member) ^ largest(oracle, k)) <= 2
        assert member.count == k
        assert member.method == method
    assert found["de"] != found["fr"]


def test_masks_cover_what_masks_by_magnitude_cover_and_compare_with_them(trained, tmp_path):
    checkpoint = open_checkpoint(trained)
    magnitude = extract(checkpoint, density=0.1)
    for method in ("fisher", "taylor", "wanda"):
        found = extract(checkpoint, method=method, density=0.1)
        assert found["de"].shapes == magnitude["de"].shapes
        assert 0 < (found["de"] & magnitude["de"]).count < magnitude["de"].count
        assert extract(checkpoint, method=method, density=0.1)["fr"] == found["fr"]
        settings = found["de"].settings
        assert (settings["data"], settings["n_examples_used"]) == ("train.jsonl", 6)
        assert settings["checked_against_test"]
        found.save(tmp_path / method)
        back = load_subnetworks(open_checkpoint(tmp_path / method))
        assert back["de"] == found["de"]
        assert back["de"].settings == settings


def test_a_neuron_that_leads_nowhere_is_never_selected(trained):
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    checkpoint = open_checkpoint(trained)
    for method in ("fisher", "taylor"):
        found = extract(checkpoint, method=method, density=1.0, model="base")["de"]
        mask = found.dense(name)
        assert not mask[DEAD].any()
        assert np.delete(mask, DEAD, axis=0).mean() > 0.99
        assert found.settings["zeros_left_out"] >= mask.shape[1]


def test_one_text_under_two_names_gives_one_mask(trained):
    """Null: in the base nothing but the examples tells languages apart."""
    data = [
        {"language": label, "text": text, "label": "unit"}
        for label in ("de", "fr")
        for text in ("eins", "zwei", "drei")
    ]
    checkpoint = open_checkpoint(trained)
    for method in ("fisher", "taylor", "wanda"):
        found = extract(checkpoint, method=method, density=0.1, model="base", data=data)
        assert found["de"] == found["fr"]
        assert found["de"].settings["data"] == "given"


def test_every_output_keeps_the_same_share_of_its_inputs(trained):
    checkpoint = open_checkpoint(trained)
    (found, _) = extract(checkpoint, method="wanda", density=0.25, scope="row")
    model = load_model(checkpoint, language="de", merge=True)
    batches = [makers.collate_for("bert")([row]) for row in encoded(TEXTS["de"][:6])]
    values = weight_importance(model, batches, WandaSettings(), list(found.shapes))
    for name, shape in found.shapes.items():
        mask = found.dense(name)
        assert (mask.sum(axis=1) == round(0.25 * shape[1])).all()
        importance = values[name].numpy()
        for row, chosen in zip(importance, mask, strict=True):
            assert row[chosen].min() >= row[~chosen].max() * (1 - 1e-6)
    (found, _) = extract(checkpoint, method="fisher", density=0.25, scope="module")
    assert all(found.counts[n] == round(0.25 * size) for n, size in found.sizes.items())


def test_a_sequence_of_stages_is_looked_at_stage_by_stage(trained, tmp_path):
    root = copy_of(trained, tmp_path)
    (root / "stages").mkdir()
    for number, language in enumerate(TEXTS, start=1):
        (root / "adapters" / language).rename(root / "stages" / f"{number:02}-{language}")
    (root / "adapters").rmdir()
    found = extract(open_checkpoint(root), method="fisher", density=0.1)
    by_adapter = extract(open_checkpoint(trained), method="fisher", density=0.1)
    assert [member.settings["stage"] for member in found] == [1, 2]
    assert [a == b for a, b in zip(found, by_adapter, strict=True)] == [True, True]


def test_the_base_is_looked_at_once_whatever_the_number_of_runs(trained, tmp_path):
    root = copy_of(trained, tmp_path)
    shutil.copytree(root / "adapters", root / "runs" / "replicate" / "adapters")
    checkpoint = open_checkpoint(root)
    by_run = extract(checkpoint, method="wanda", density=0.1)
    assert [member.run for member in by_run] == ["main", "main", "replicate", "replicate"]
    once = extract(checkpoint, method="wanda", density=0.1, model="base")
    assert [(member.language, member.run) for member in once] == [("de", "main"), ("fr", "main")]


def test_the_command_line_takes_the_method(trained, tmp_path, monkeypatch, capsys):
    arguments = ["extract", trained, "--method", "taylor", "--out", tmp_path / "masks"]
    monkeypatch.setattr(sys, "argv", ["subnet", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        subnet_cli.main()
    assert not exit_.value.code, capsys.readouterr().err
    found = load_subnetworks(open_checkpoint(tmp_path / "masks"))
    assert found["de"] == extract(open_checkpoint(trained), method="taylor")["de"]
    assert "Subnetworks by taylor" in capsys.readouterr().out


def test_the_draw_of_examples_follows_its_seed(trained):
    checkpoint = open_checkpoint(trained)
    few = [
        extract(checkpoint, method="fisher", n_examples=2, seed=seed)["de"] for seed in (0, 0, 1, 2)
    ]
    assert few[0].settings["n_examples_used"] == 2
    assert few[0] == few[1]
    digests = {found.settings["examples_sha256"] for found in few}
    assert len(digests) > 1
    assert [found.seed for found in few] == [0, 0, 1, 2]


def test_tokenised_examples_go_into_the_model_as_they_are(trained):
    checkpoint = open_checkpoint(trained)
    data = [
        {**row, "language": label} for label, texts in TEXTS.items() for row in encoded(texts[:6])
    ]
    given = extract(checkpoint, method="fisher", density=0.1, data=iter(data))
    assert given["de"] == extract(checkpoint, method="fisher", density=0.1)["de"]


def test_a_test_example_among_the_data_is_refused(trained):
    checkpoint = open_checkpoint(trained)
    data = [
        {"language": label, "text": texts[i], "label": "city", "id": "another"}
        for label, texts in TEXTS.items()
        for i in (0, 6)
    ]
    with pytest.raises(InputError, match=r'1 of 2 examples of de are test examples.*"Bonn am'):
        extract(checkpoint, method="wanda", data=data)


def test_data_without_the_language_are_refused(trained):
    checkpoint = open_checkpoint(trained)
    data = [{"language": "de", "text": "Rom", "label": "city"}]
    with pytest.raises(MissingInputError, match="no example of fr; expected examples of it beside"):
        extract(checkpoint, method="fisher", data=data)
    with pytest.raises(InputError, match="example 1 of the data names no language"):
        extract(checkpoint, method="fisher", data=[{"text": "Rom"}])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": "planet"}, "has the label 'planet'; expected one that the model knows: city"),
        ({"label": 3}, "has the label 3; expected 0 to 2"),
        ({"label": None}, "has no 'label'"),
        ({"text": ""}, "has no 'text'"),
        ({"input_ids": [1, 2]}, "has input_ids and no labels"),
    ],
)
def test_an_example_that_cannot_be_used_is_refused(trained, changed, message):
    data = [{"language": k, "text": "Rom", "label": "city", **changed} for k in ("de", "fr")]
    with pytest.raises(InputError, match=message):
        extract(open_checkpoint(trained), method="fisher", data=data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fischer"}, "method is 'fischer'; expected 'magnitude' or 'fisher'"),
        ({"density": 0}, "density is 0; expected 0 < density <= 1"),
        ({"density": 1.5}, r"density is 1\.5"),
        ({"density": 1e-6}, "selects none of the"),
        ({"scope": "layer"}, "scope is 'layer'"),
        ({"model": "other"}, "model is 'other'"),
        ({"labels": "guess"}, "labels is 'guess'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"n_examples": 0}, "n_examples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"parameters": "all"}, "parameters is given for the method 'fisher'"),
        ({"method": "wanda", "labels": "true"}, "labels is given for the method 'wanda'"),
        ({"method": "magnitude", "seed": 1}, "seed is given for the method 'magnitude'"),
        ({"method": "magnitude", "data": []}, "data is given for the method 'magnitude'"),
    ],
)
def test_a_setting_out_of_place_is_refused(trained, settings, message):
    with pytest.raises(InputError, match=message):
        extract(open_checkpoint(trained), **{"method": "fisher", **settings})


def test_an_update_alone_has_no_model_and_no_data(trained):
    with pytest.raises(InputError, match="'fisher' is given Update; expected a checkpoint"):
        extract(open_checkpoint(trained).updates[0], method="fisher")


def test_missing_examples_and_tokenizer_are_named(trained, tmp_path):
    root = copy_of(trained, tmp_path)
    for file in (root / "base").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        MissingInputError, match=r"base: the base has no tokenizer.*tokenizer\.json"
    ):
        extract(open_checkpoint(root), method="fisher")
    (root / "train.jsonl").unlink()
    with pytest.raises(MissingInputError, match=r"has no train\.jsonl.*give data="):
        extract(open_checkpoint(root), method="fisher")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"classifier\.weight of the model holds 48 values that are NaN"),
        (3e38, r"layer\.0\.attention\.output\.dense\.weight holds \d+ values that are NaN"),
    ],
)
def test_importance_that_is_not_a_number_names_the_tensor(trained, tmp_path, value, message):
    root = copy_of(trained, tmp_path)
    model = BertForSequenceClassification.from_pretrained(root / "base")
    with torch.no_grad():
        model.classifier.weight.fill_(value)
        model.classifier.weight[0] *= -1
    model.save_pretrained(root / "base")
    with pytest.raises(InputError, match=message):
        extract(open_checkpoint(root), method="fisher")


def found_mask(language="de", run="main", seed=0):
    rng = np.random.default_rng(seed)
    masks = {"a.weight": rng.random((9, 7)) < 0.1, "b.weight": rng.random((30, 20)) < 0.4,
             "c.weight": np.zeros((3, 3), bool), "d.weight": np.ones((3, 5), bool)}  # fmt: skip
    return Subnetwork.from_arrays(
        masks, language=language, run=run, base="tiny", method="fisher", settings={"density": 0.3}
    )


def test_a_random_control_has_the_size_of_every_module_and_nothing_else_in_common():
    mask = found_mask()
    control = random_like(mask, seed=1)
    assert control.counts == mask.counts
    assert control.shapes == mask.shapes
    assert control != mask
    assert (control.method, control.seed, control.language) == ("random", 1, "de")
    assert control.settings["of"]["settings"] == {"density": 0.3}
    assert control == random_like(mask, seed=1)
    assert control != random_like(mask, seed=2)
    assert control.restrict("b") == random_like(mask.restrict("b"), seed=1)


def test_controls_of_languages_and_runs_are_drawn_apart():
    """Masks of one size under one seed: a common draw would look like perfect overlap."""
    controls = [
        random_like(found_mask(language, run), seed=3)
        for language, run in (("de", "main"), ("fr", "main"), ("de", "replicate"))
    ]
    assert len({control.bits["b.weight"].tobytes() for control in controls}) == 3


def test_every_weight_is_as_likely_in_a_control():
    mask = found_mask()
    n = 2000
    hits = sum(random_like(mask, seed=s).dense("a.weight").astype(float) for s in range(n))
    share = mask.counts["a.weight"] / 63
    deviation = (hits - n * share) / np.sqrt(n * share * (1 - share))
    assert np.abs(deviation).max() < 4.5
    # Variance: below the binomial's by the finite-population factor 63/62 · …, so close to 1.
    assert 0.5 < deviation.var() < 1.6


def test_a_control_needs_a_seed():
    with pytest.raises(InputError, match="seed is -1; expected a whole number, 0 or more"):
        random_like(found_mask(), seed=-1)
