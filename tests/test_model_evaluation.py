"""Loss per example: against the models' own loss of one unpadded example at a time."""

import math

import numpy as np
import pytest
import torch
import transformers

from checkpoint_makers import _seeded, bert
from model_makers import ARCHITECTURES, batch_of, collate_for, examples, make
from subnet.errors import InputError
from subnet.model import (
    evaluate_languages,
    example_losses,
    find_task,
    per_example_loss,
)

LENGTHS = (6, 3, 4, 7, 2, 5, 3)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def named(request):
    return request.param, make(request.param)


def one_by_one(name, model, rows):
    """The loss that transformers computes, of each example alone and without padding."""
    losses = []
    for row in rows:
        labels = row["labels"]
        inputs = {
            "input_ids": torch.tensor([row["input_ids"]]),
            "labels": torch.tensor([labels]),
        }
        with torch.no_grad():
            losses.append(model(**inputs).loss.item())
    return np.array(losses)


def test_the_loss_is_the_models_own_loss_of_each_example_alone(named):
    name, model = named
    rows = examples(name, LENGTHS)
    found = per_example_loss(model, rows, collate_for(name), batch_size=3)
    np.testing.assert_allclose(found.loss, one_by_one(name, model, rows), rtol=1e-5)
    assert found.language == ()


def test_the_loss_depends_neither_on_the_batch_size_nor_on_padding(named):
    name, model = named
    rows = examples(name, LENGTHS)
    alone = per_example_loss(model, rows, collate_for(name), batch_size=1).loss
    for size in (2, 7, 100):
        loss = per_example_loss(model, rows, collate_for(name), batch_size=size).loss
        np.testing.assert_allclose(loss, alone, rtol=1e-5)
    wide = per_example_loss(model, rows, collate_for(name, extra=4), batch_size=4).loss
    np.testing.assert_allclose(wide, alone, rtol=1e-5)


def test_the_loss_does_not_depend_on_the_attention_kernel(named):
    name, model = named
    rows = examples(name, LENGTHS)
    losses = []
    for attention in ("eager", "sdpa"):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.set_attn_implementation(attention)
        losses.append(per_example_loss(model, rows, collate_for(name)).loss)
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "llama", "gemma"])
def test_padding_on_the_left_of_a_decoder_changes_nothing(name):
    model, rows = make(name), examples(name, LENGTHS)
    alone = per_example_loss(model, rows, collate_for(name), batch_size=1).loss
    left = per_example_loss(model, rows, collate_for(name, left=True), batch_size=7).loss
    np.testing.assert_allclose(left, alone, rtol=1e-5)


def test_the_mean_over_a_batch_of_unequal_lengths_is_not_the_mean_of_examples():
    """The trap: a model's own loss of a batch weighs examples by their tokens."""
    model, batch = make("bert_tagger"), batch_of("bert_tagger")
    losses = example_losses(model, batch).detach()
    assert not torch.isclose(model(**batch).loss, losses.mean(), rtol=1e-3)


def test_gradients_flow_through_the_losses():
    model, batch = make("bert"), batch_of("bert")
    example_losses(model, batch).mean().backward()
    ours = model.classifier.weight.grad.clone()
    model.zero_grad()
    model(**batch).loss.backward()
    torch.testing.assert_close(ours, model.classifier.weight.grad)


def test_dropout_left_on_by_the_caller_is_off_and_put_back():
    model, rows = make("bert"), examples("bert", LENGTHS)
    expected = per_example_loss(model, rows, collate_for("bert")).loss
    model.train()
    assert np.array_equal(per_example_loss(model, rows, collate_for("bert")).loss, expected)
    assert model.training
    assert model.bert.encoder.layer[0].attention.self.dropout.training


def test_several_labels_and_real_labels_have_the_models_own_losses():
    batch = {k: v for k, v in batch_of("bert").items() if k != "labels"}
    sides = {
        "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]]),
        "regression": torch.tensor([[0.5, 1, 1], [0, -2, 1], [1, 1, 0.25]]),
    }
    for problem, labels in sides.items():
        model = bert(problem_type=problem)
        losses = example_losses(model, {**batch, "labels": labels})
        assert losses.shape == (3,)
        with torch.no_grad():
            expected = model(**batch, labels=labels).loss
        torch.testing.assert_close(losses.mean().detach(), expected)


def languages(rows):
    return [{**row, "language": "de" if i % 3 else "sw"} for i, row in enumerate(rows)]


def test_languages_are_carried_along_and_averaged():
    model, rows = make("qwen3"), languages(examples("qwen3", LENGTHS))
    losses = per_example_loss(model, rows, collate_for("qwen3"), batch_size=2)
    assert losses.language == ("sw", "de", "de", "sw", "de", "de", "sw")
    assert losses.to_frame().columns.tolist() == ["example", "language", "loss"]
    frame = evaluate_languages(model, rows, collate_for("qwen3"), batch_size=2)
    expected = losses.to_frame().groupby("language")["loss"].agg(["mean", "sem", "count"])
    assert frame["language"].tolist() == ["de", "sw"]
    np.testing.assert_allclose(frame[["loss", "stderr", "n"]], expected)
    assert set(frame["reason"]) == {""}


def test_an_example_without_a_label_is_undefined_and_counts_for_no_language():
    name = "bert_tagger"
    model, rows = make(name), languages(examples(name, LENGTHS))
    rows[0]["labels"] = [-100] * LENGTHS[0]
    rows.append({**rows[0], "language": "fr"})
    losses = per_example_loss(model, rows, collate_for(name))
    assert np.isnan(losses.loss).tolist() == [True, *[False] * 6, True]
    frame = evaluate_languages(model, rows, collate_for(name)).set_index("language")
    assert frame.loc["sw", "n"] == 2
    assert frame.loc["sw", "loss"] == pytest.approx(np.mean(losses.loss[[3, 6]]))
    assert math.isnan(frame.loc["fr", "loss"])
    assert frame.loc["fr", "reason"] == "no example has a label"
    one = evaluate_languages(model, rows[1:2], collate_for(name))
    assert math.isnan(one["stderr"][0])
    assert one["reason"][0] == "one example has no standard error"


def test_what_a_model_is_built_for_is_told_by_its_class():
    tasks = {name: find_task(make(name)) for name in ("bert", "bert_tagger", "qwen3_lora", "m2m")}
    assert list(tasks.values()) == [
        "sequence-classification", "token-classification", "causal-lm", "sequence-to-sequence-lm",
    ]  # fmt: skip
    config = transformers.BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1,
                                     num_attention_heads=1, intermediate_size=4)  # fmt: skip
    with pytest.raises(InputError, match="BertModel is built for no known task"):
        find_task(_seeded(0, transformers.BertModel, config))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: [], "the dataset has no examples"),
        (lambda rows: [*rows, {**rows[0], "language": "de"}], "1 of 4 examples name a language"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused(change, found):
    with pytest.raises(InputError, match=found):
        per_example_loss(make("bert"), change(examples("bert")), collate_for("bert"))


def test_batches_that_cannot_be_used_are_refused():
    model, rows = make("bert"), examples("bert")
    batch = batch_of("bert")
    with pytest.raises(InputError, match="a batch has no labels"):
        example_losses(model, {k: v for k, v in batch.items() if k != "labels"})
    with pytest.raises(InputError, match="a batch is padded and has no attention_mask"):
        example_losses(model, {k: v for k, v in batch.items() if k != "attention_mask"})
    with pytest.raises(InputError, match="batch_size is 0; expected 1 or more"):
        per_example_loss(model, rows, collate_for("bert"), batch_size=0)
    with pytest.raises(InputError, match="collate_fn made 2 rows of 3 examples"):
        per_example_loss(model, rows, lambda r: collate_for("bert")(r[:2]))
    with pytest.raises(InputError, match="the examples name no language"):
        evaluate_languages(model, rows, collate_for("bert"))
