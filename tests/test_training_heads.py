"""Heads: whose labels they tell apart, when they are new, and that no LoRA gets into them."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers

from subnet.errors import InputError
from subnet.training import TrainingConfig, build_tokenizer, train
from subnet.training._models import adapted, heads_of
from subnet.training._starting import labels_of, starting_model
from training_makers import SMALL, small_config

transformers.utils.logging.disable_progress_bar()

OURS = ("script", "city", "unit")
THEIRS = ("territory", "language", "currency")
SIZES = {
    "vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 130, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertForSequenceClassification),
    # Its head has a layer beside the one that gives the labels.
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaForSequenceClassification,
    ),
    "tags": (transformers.BertConfig, transformers.BertForTokenClassification),
}


def write(path, family="bert", labels=THEIRS):
    """A model whose weights, of its head too, are far from any that are drawn."""
    settings, kind = FAMILIES[family]
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "label2id": {a: i for i, a in enumerate(labels)}}
    model = kind(settings(**SIZES, **named))
    with torch.no_grad():
        for name in heads_of(model):
            for value in model.get_submodule(name).parameters():
                value.add_(3.0)
    model.save_pretrained(path)
    build_tokenizer(96).save_pretrained(path)
    return model


def started_from(name, **parts):
    """The small training from a model that is there."""
    return TrainingConfig.model_validate({**SMALL, "model": {"name": name}, **parts})


def start(folder, labels=OURS, *, seed=1, task="sequence-classification", **parts):
    parts = {"task": task, "languages": ["de", "fr"], **parts}
    config = started_from("model", **parts) if folder else small_config(**parts)
    return starting_model(config, labels, folder, seed)[0]


def parts_of(model):
    """Parameters of the head, and of everything else."""
    heads = heads_of(model)
    head, body = {}, {}
    for name, value in model.named_parameters():
        (head if name.partition(".")[0] in heads else body)[name] = value
    return head, body


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_head_of_other_labels_is_drawn_anew_and_the_rest_is_kept(tmp_path, family):
    task = "token-classification" if family == "tags" else "sequence-classification"
    before = parts_of(write(tmp_path / "model", family))
    one, again, other = (
        start(tmp_path, seed=seed, task=task, adaptation={"head": "shared"}, base={"steps": 0})
        for seed in (1, 1, 2)
    )
    assert tuple(one.config.id2label.values()) == OURS
    assert labels_of(one, OURS) == OURS
    assert all(torch.equal(value, before[1][name]) for name, value in parts_of(one)[1].items())
    found = parts_of(one)[0]
    assert set(found) == set(before[0])
    for name, value in found.items():
        assert torch.equal(value, parts_of(again)[0][name])
        if name.endswith("bias"):
            assert not value.any()
        else:  # as a new one: from N(0, 0.02²), n values
            assert abs(float(value.detach().mean())) < 5 * 0.02 / math.sqrt(value.numel())
            assert float(value.detach().std()) == pytest.approx(0.02, rel=0.5)
            assert not torch.equal(value, parts_of(other)[0][name])


def test_a_head_of_the_same_labels_or_of_unnamed_ones_is_kept(tmp_path):
    for labels in (OURS[::-1], ("LABEL_0", "LABEL_1", "LABEL_2")):
        before = parts_of(write(tmp_path / "model", labels=labels))[0]
        model = start(tmp_path, base={"steps": 0})
        assert all(torch.equal(value, before[name]) for name, value in parts_of(model)[0].items())
    assert tuple(model.config.id2label.values()) == OURS  # the unnamed are ours, in our order


def test_a_head_of_other_labels_that_would_stay_random_is_one_line(tmp_path):
    write(tmp_path / "model")
    says = (
        r"^the head of the model 'model' tells other labels apart \(currency, language, territory\)"
        r" than these data have \(city, script, unit\), and a new one would stay random; "
        r"expected base.steps above 0, .*adaptation.head.*; .*rename those in id2label"
    )
    with pytest.raises(InputError, match=says):
        start(tmp_path, base={"steps": 0})
    with pytest.raises(InputError, match=r"territory\) than these data have \(city, script\)"):
        start(tmp_path, OURS[:2], base={"steps": 0})  # of another number too
    many = tuple(f"tag{number}" for number in range(10))
    with pytest.raises(InputError, match=r"\(tag0, tag1, tag2, tag3, tag4, tag5 and 4 others\)"):
        start(tmp_path, many, base={"steps": 0})
    start(tmp_path)  # base.steps train it


def test_the_base_of_one_task_is_not_the_base_of_another_with_as_many_labels(tmp_path):
    data = {"kinds": ["territory", "language"], "max_test": 4, "max_length": 96}
    parts = {"languages": ["de", "fr"], "training": {"steps": 1}}
    train(small_config(**parts, data=data, base={"steps": 1}), tmp_path / "first")
    parts["data"] = data | {"kinds": ["script", "unit"]}
    kept = started_from("first/base", **parts, base={"steps": 0})
    with pytest.raises(InputError, match=r"\(language, territory\).*\(script, unit\)"):
        train(kept, tmp_path / "b", folder=tmp_path)
    assert not (tmp_path / "b").exists()
    drawn = started_from("first/base", **parts, base={"steps": 1})
    train(drawn, tmp_path / "b", folder=tmp_path)
    found = json.loads((tmp_path / "b/base/config.json").read_text())["id2label"]
    assert set(found.values()) == {"script", "unit"}


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification"])
def test_a_small_model_with_a_head_that_would_stay_random_is_refused(task):
    with pytest.raises(
        InputError,
        match=r"^a small model from random weights has no classifier.weight for these labels, and a"
        r" new one would stay random; expected base.steps above 0.*adaptation.head",
    ):
        start(None, task=task, base={"steps": 0})
    start(None, task=task, base={"steps": 0}, adaptation={"head": "per_language"})
    start(None, task=task, base={"steps": 1})


def test_a_small_model_that_writes_has_no_head(tmp_path):
    config = small_config(task="translation", languages=["en>de", "de>en"], base={"steps": 0})
    assert not heads_of(starting_model(config, (), tmp_path, 0)[0])


@pytest.mark.parametrize(
    ("family", "targets", "place"),
    [
        ("bert", ".*(query|classifier)", "classifier"),
        ("xlm-roberta", ".*(query|dense)", "classifier.dense"),
    ],
)
def test_a_pattern_that_matches_the_head_is_refused(tmp_path, family, targets, place):
    model = write(tmp_path / "model", family)
    adaptation = small_config(adaptation={"targets": targets}).adaptation
    with pytest.raises(InputError, match=rf"which matches {place}, a part of the head; .*\(\?!cla"):
        adapted(model, adaptation, 2, 0)
    fixed = {"targets": rf"(?!classifier){targets}"}
    for changed in (fixed, {"head": "shared"}, {"head": "per_language"}):  # or all of it is trained
        wrapped = adapted(model, adaptation.model_copy(update=changed), 2, 0)
        names = [name for name, _ in wrapped.named_parameters() if ".lora_" in name]
        assert names
        assert not any("classifier" in name for name in names)
