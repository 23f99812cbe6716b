"""`attribute`: equal to the slow way and to captum, whatever the batches, checkpoints and masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.influence import TracInCP
from torch import nn

import influence_oracles as oracles
import model_makers as makers
from checkpoint_makers import move, quiet, save_adapter
from influence_oracles import TASKS, cosine_of, data, oracle_sides
from subnet.errors import FileFormatError, InputError, MissingInputError
from subnet.influence import DataMethod, Influence, attribute, register_method, self_influence
from subnet.model.evaluation import example_losses


@pytest.mark.parametrize("name", makers.ARCHITECTURES)
def test_scores_equal_a_loop_of_single_backward_passes(name):
    model, collate = oracles.adapted(name), makers.collate_for(name)
    train, test = data(name)
    options = {"collate_fn": collate, "batch_size": 3}
    found = attribute(model, train, test, **options)
    names = found.provenance.settings["parameters"]
    if "lora" in name:
        assert all("lora_" in path for path in names)
        assert all(float(model.get_parameter(path).detach().abs().max()) > 0.05 for path in names)
    g, q = oracle_sides(model, name, names)
    np.testing.assert_allclose(found.scores, q @ g.T, rtol=1e-9, atol=1e-12 * abs(q @ g.T).max())
    cosine = attribute(model, train, test, method="cosine", **options)
    np.testing.assert_allclose(cosine.scores, cosine_of(g, q), rtol=1e-9, atol=1e-12)
    own = self_influence(model, train, **options)
    np.testing.assert_allclose(own, (g**2).sum(axis=1), rtol=1e-9)


@pytest.mark.parametrize("name", ["bert_lora", "qwen3_lora"])
def test_scores_in_single_precision_are_right_to_five_digits(name):
    model = oracles.adapted(name)
    train, test = data(name)
    options = {"collate_fn": makers.collate_for(name), "batch_size": 4}
    exact = attribute(model, train, test, **options).scores
    single = attribute(model.float(), train, test, **options).scores
    np.testing.assert_allclose(single, exact, rtol=1e-5, atol=1e-5 * abs(exact).max())


@pytest.mark.parametrize("name", TASKS)
def test_scores_do_not_depend_on_batch_size_order_or_padding(name):
    model = oracles.adapted(name)
    train, test = data(name)
    scores = attribute(model, train, test, collate_fn=makers.collate_for(name)).scores
    scale = abs(scores).max()
    order = [3, 0, 6, 2, 5, 1, 4]
    for options in ({"batch_size": 1}, {"batch_size": 3},
                    {"collate_fn": makers.collate_for(name, extra=5)}):  # fmt: skip
        options = {"collate_fn": makers.collate_for(name), **options}
        again = attribute(model, train, test, **options).scores
        np.testing.assert_allclose(again, scores, rtol=1e-7, atol=1e-7 * scale)
    shuffled = attribute(
        model, [train[i] for i in order], test[::-1], collate_fn=makers.collate_for(name),
        batch_size=2,
    )  # fmt: skip
    np.testing.assert_allclose(shuffled.scores, scores[::-1][:, order], rtol=1e-7,
                               atol=1e-7 * scale)  # fmt: skip
    assert list(shuffled.train["id"]) == [train[i]["id"] for i in order]


def test_a_linear_model_has_a_closed_form():
    """L = (w·x − y)²: the gradient is 2(w·x − y)x."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(9, generator=generator, dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False).double()
    rows = list(zip(x, y, strict=True))

    def loss(m, batch):
        return (m(batch[0])[:, 0] - batch[1]) ** 2

    found = attribute(model, rows[:6], rows[6:], loss_fn=loss, batch_size=4)
    error = (x @ model.weight.detach()[0] - y).numpy()
    gradients = 2 * error[:, None] * x.numpy()
    np.testing.assert_allclose(found.scores, gradients[6:] @ gradients[:6].T, rtol=1e-12)


def test_training_on_an_example_of_positive_score_lowers_the_loss():
    """The sign, by a small step on each training example."""
    model = makers.make("bert")
    train, test = data("bert")
    found = attribute(model, train, test, collate_fn=makers.collate_for("bert"), modules="all")
    collate = makers.collate_for("bert")
    parameters = list(model.parameters())

    def losses():
        plain = [{k: v for k, v in row.items() if k not in oracles.ABOUT} for row in test]
        with torch.no_grad():
            return example_losses(model, collate(plain)).numpy()

    before, step = losses(), 1e-6
    for column, row in enumerate(train):
        batch = collate([{k: v for k, v in row.items() if k not in oracles.ABOUT}])
        move_by = torch.autograd.grad(example_losses(model, batch).sum(), parameters)
        with torch.no_grad():
            for parameter, value in zip(parameters, move_by, strict=True):
                parameter -= step * value
        change = (losses() - before) / step
        with torch.no_grad():
            for parameter, value in zip(parameters, move_by, strict=True):
                parameter += step * value
        scale = abs(found.scores[:, column]).max()
        np.testing.assert_allclose(-change, found.scores[:, column], atol=1e-3 * scale)


class Small(nn.Module):
    """Three layers with biases: common ground with captum."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(),
                                    nn.Linear(5, 3))  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("sample_wise", [False, True])
def test_captum_agrees_over_two_checkpoints_of_unequal_rate(tmp_path, sample_wise):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)
    rates, paths = (0.1, 0.03), []
    model = Small()
    for number in range(2):
        move(model, number, size=0.4)
        paths.append(str(tmp_path / f"{number}.pt"))
        torch.save(model.state_dict(), paths[-1])

    def load(m, path):
        m.load_state_dict(torch.load(path, weights_only=True))
        return rates[paths.index(path)]

    train = torch.utils.data.TensorDataset(x[:8], y[:8])
    with quiet():
        rival = TracInCP(
            Small(), train, paths, load, batch_size=3,
            loss_fn=nn.CrossEntropyLoss(reduction="sum" if sample_wise else "none"),
            sample_wise_grads_per_batch=sample_wise,
        )  # fmt: skip
        expected = rival.influence((x[8:], y[8:])).detach().numpy()
    test = torch.utils.data.TensorDataset(x[8:], y[8:])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = attribute(
        model, train, test, checkpoints=list(zip(paths, rates, strict=True)), modules="all",
        loss_fn=cross_entropy, batch_size=5,
    )  # fmt: skip
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_and_recomputed_activations_agree_roughly():
    model = oracles.adapted("qwen3_lora").float()
    train, test = data("qwen3_lora")
    options = {"collate_fn": makers.collate_for("qwen3_lora")}
    exact = attribute(model, train, test, **options).scores
    model.train()
    with quiet():
        model.base_model.model.gradient_checkpointing_enable()
    again = attribute(model, train, test, **options).scores
    np.testing.assert_allclose(again, exact, rtol=1e-4, atol=1e-5 * abs(exact).max())
    assert all(module.training for module in model.modules())
    rough = attribute(model.to(torch.bfloat16), train, test, **options)
    assert np.corrcoef(rough.scores.ravel(), exact.ravel())[0, 1] > 0.99
    assert rough.provenance.settings["dtype"] == ["bfloat16"]


def test_the_model_is_left_as_it_was(tmp_path):
    model = oracles.adapted("bert_lora").train()
    save_adapter(model, tmp_path / "a")
    move(model, 9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    model.get_parameter(next(iter(track_names(model)))).grad = None
    train, test = data("bert_lora")
    attribute(model, train, test, checkpoints=[(tmp_path / "a", 0.5)],
              collate_fn=makers.collate_for("bert_lora"))  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def track_names(model):
    return [name for name, _ in model.named_parameters() if "lora_" in name]


def test_the_most_influential_examples_are_listed_by_rank():
    scores = np.array([[0.0, 3, 1], [2, -1, 2]])
    import pandas as pd

    from subnet._tables import provenance

    found = Influence(
        scores, pd.DataFrame({"id": ["x", "y"]}),
        pd.DataFrame({"id": list("abc"), "language": ["de", "fr", "de"]}),
        "tracin", "example", provenance("tracin", {}),
    )  # fmt: skip
    top = found.top(2)
    assert top[top["test"] == "x"]["train"].tolist() == ["b", "c"]
    assert top[top["test"] == "y"]["train"].tolist() == ["a", "c"]
    assert top["train_language"].tolist() == ["fr", "de", "de", "de"]
    assert found.top(9, opponents=True)["train"].tolist() == ["a", "c", "b", "b", "a", "c"]
    assert found.to_frame()["score"].tolist() == [0, 3, 1, 2, -1, 2]
    with pytest.raises(InputError, match="k is 0"):
        found.top(0)
    with pytest.raises(InputError, match=r"scores are \[2, 3\] for 3 test and 3 training items"):
        Influence(scores, found.train, found.train, "tracin", "example", found.provenance)


@pytest.mark.parametrize("level", ["example", "language"])
def test_what_was_saved_is_read_back(tmp_path, level):
    model = makers.make("bert")
    train, test = data("bert")
    found = attribute(model, train, test, level=level, collate_fn=makers.collate_for("bert"))
    found.save(tmp_path / "influence")
    back = Influence.load(tmp_path / "influence")
    assert np.array_equal(back.scores, found.scores)
    assert back.test.equals(found.test)
    assert back.train.equals(found.train)
    assert (back.method, back.level) == ("tracin", level)
    assert back.provenance.settings["checkpoints"] == found.provenance.settings["checkpoints"]
    assert back.languages().equals(found.languages())
    with pytest.raises(MissingInputError, match=r"has no influence\.safetensors"):
        Influence.load(tmp_path)
    (tmp_path / "influence" / "influence.json").write_text('{"format": 2}')
    with pytest.raises(FileFormatError, match="is of another format; expected format 1"):
        Influence.load(tmp_path / "influence")


def test_a_planted_duplicate_in_another_language_ranks_first():
    """The test item itself among the training examples of the other language."""
    model = oracles.adapted("bert_lora")
    train, test = data("bert")
    for number, row in enumerate(test):
        train.append({**row, "id": f"copy-{number}", "language": "ba"[number % 2]})
    found = attribute(model, train, test, method="cosine", collate_fn=makers.collate_for("bert"))
    assert found.top(1)["train"].tolist() == [f"copy-{n}" for n in range(len(test))]
    np.testing.assert_allclose(found.top(1)["score"], 1, rtol=1e-9)


def test_a_baseline_that_needs_no_gradient_can_be_registered():
    def lengths(given):
        return np.ones((len(given.test), len(given.train))), {"kind": "ones"}

    register_method(DataMethod("test-ones", lengths))
    with pytest.raises(InputError, match="there is a method 'test-ones' already"):
        register_method(DataMethod("test-ones", lengths))
    model = makers.make("bert")
    train, test = data("bert")
    found = attribute(model, train, test, method="test-ones")
    assert found.scores.shape == (4, 7)
    assert found.provenance.settings["kind"] == "ones"
    with pytest.raises(InputError, match="'test-ones' uses no gradients"):
        self_influence(model, train, method="test-ones")
    means = attribute(model, train, test, method="test-ones", level="language")
    assert means.scores.tolist() == [[1, 1], [1, 1]]
