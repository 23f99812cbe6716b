"""What cannot be attributed is refused in a line that names it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import model_makers as makers
from influence_oracles import data
from subnet.errors import InputError
from subnet.influence import attribute


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("bert", {"labels": 3}, r"training example 1 \(id '1-1'\) has the label 3; expected 0 to "),
        ("bert", {"labels": -1}, "has the label -1"),
        ("bert_tagger", {"labels": [-100, 5, 2]}, "has the label 5; expected 0 to 4, or -100"),
        ("gpt2", {"labels": [1, 2, 40]}, "has the label 40; expected 0 to 39"),
        ("bert", {"input_ids": [40, 1, 2]}, "has the token 40; expected 0 to 39"),
        ("bert", {"input_ids": [5] * 17}, r"\(id '1-1'\) has 17 tokens; expected at most 16, "),
        ("xlm_roberta", {"input_ids": [5] * 19}, "has 19 tokens; expected at most 18"),
        ("bert", {"labels": -100}, r"NaN is the loss of training example 1 \(id '1-1'\)"),
        ("bert", {"language": ""}, "training example 1 has an empty language"),
        ("bert", {"language": None}, "training example 1 has an empty language"),
    ],
)  # fmt: skip
def test_an_example_that_cannot_be_used_is_named(name, changed, message):
    model = makers.make(name)
    train, test = data(name)
    train[1] = {**train[1], **changed}
    with pytest.raises(InputError, match=message):
        attribute(model, train, test, collate_fn=makers.collate_for(name), batch_size=2)


def test_a_loss_that_is_not_a_number_names_the_example():
    model = nn.Linear(3, 1)
    rows = [{"x": torch.ones(3), "id": "fine"}, {"x": torch.full((3,), torch.nan), "id": "bad"}]

    def loss(m, batch):
        return m(batch["x"])[:, 0]

    with pytest.raises(InputError, match=r"NaN is the loss of test example 1 \(id 'bad'\)"):
        attribute(model, rows[:1], rows, loss_fn=loss)


def test_a_zero_gradient_has_no_cosine():
    model = nn.Linear(3, 1)
    rows = [{"x": torch.ones(3)}, {"x": torch.zeros(3)}]

    def loss(m, batch):
        return m(batch["x"])[:, 0]

    options = {"loss_fn": loss, "method": "cosine"}
    with pytest.raises(InputError, match=r"zero is the gradient of training example 1; expected a "
                       r"direction.*method='tracin'"):  # fmt: skip
        attribute(model, rows, rows[:1], **options)
    with pytest.raises(InputError, match="zero is the gradient of test example 1"):
        attribute(model, rows[:1], rows, **options)
    named = [{**row, "language": "de"} for row in rows]
    with pytest.raises(InputError, match="zero is the gradient of training example 1"):
        attribute(model, named, named[:1], level="language", **options)
    assert attribute(model, rows, rows, loss_fn=loss).scores[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "traicn"}, r"method is 'traicn'; expected one of .*cosine.*final.*tracin"),
        ({"level": "word"}, "level is 'word'; expected 'example' or 'language'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"modules": ["nothing"]}, "'nothing' matches no module"),
        ({"collate_fn": None}, r"test examples cannot be collated.*give collate_fn="),
        ({"collate_fn": lambda rows: makers.collate_for("bert")(rows[:1])}, "made 1 rows of"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(options, message):
    train, test = data("bert")
    with pytest.raises(InputError, match=message):
        attribute(
            makers.make("bert"), train, test,
            **{"collate_fn": makers.collate_for("bert"), **options},
        )  # fmt: skip


def test_data_that_cannot_be_used_are_refused():
    model, (train, test) = makers.make("bert"), data("bert")
    options = {"collate_fn": makers.collate_for("bert")}
    with pytest.raises(InputError, match="there are no training examples"):
        attribute(model, [], test, **options)
    with pytest.raises(InputError, match="the test examples are a generator; expected a map-style"):
        attribute(model, train, (row for row in test), **options)
    del test[0]["language"]
    with pytest.raises(InputError, match="3 of 4 test examples have a 'language'"):
        attribute(model, train, test, **options)
    silent = [{k: v for k, v in row.items() if k != "language"} for row in test]
    with pytest.raises(InputError, match="the test examples name no language"):
        attribute(model, train, silent, level="language", **options)
    with pytest.raises(InputError, match="the test examples name no language"):
        attribute(model, train, silent, **options).languages()


def test_rows_may_hold_what_the_model_does_not_take_as_for_trainer():
    model = makers.make("bert")
    train, test = data("bert")
    collate = makers.collate_for("bert")
    scores = attribute(model, train, test, collate_fn=collate).scores

    def strict(rows):
        assert all(row.keys() == {"input_ids", "labels"} for row in rows)
        return collate(rows)

    wordy = [{**row, "text": "wörtlich", "concept": 7} for row in train]
    found = attribute(model, wordy, test, collate_fn=strict)
    assert np.array_equal(found.scores, scores)
    assert found.train["concept"].tolist() == [7] * len(train)
