"""Mean influence of languages without examples' own gradients: exact, with honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import influence_oracles as oracles
import model_makers as makers
from influence_oracles import data, mean_by_language, oracle_sides
from subnet.influence import GradientMethod, Transform, attribute, register_method


@pytest.mark.parametrize("method", ["tracin", "cosine", "final"])
@pytest.mark.parametrize("name", ["bert_lora", "gpt2", "mt5"])
def test_language_level_is_the_mean_of_the_example_level(name, method):
    model = oracles.adapted(name).float()
    train = oracles.rows_of(name, [2 + i % 5 for i in range(31)], 1, "abc")
    test = oracles.rows_of(name, [2 + i % 4 for i in range(13)], 2, "cab")
    options = {"collate_fn": makers.collate_for(name), "method": method, "batch_size": 4}
    scores = attribute(model, train, test, **options).scores
    found = attribute(model, train, test, level="language", seed=3, **options)
    expected = np.array(mean_by_language(scores, train, test, found))
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-5 * abs(scores).max())
    table = found.languages()
    assert list(table["measure"].unique()) == ["mean"]
    cell = table[(table["test_language"] == "a") & (table["train_language"] == "c")].iloc[0]
    row = list(found.test["language"]).index("a")
    column = list(found.train["language"]).index("c")
    assert cell["value"] == found.scores[row, column]
    assert (cell["n"], cell["n_train"]) == (4, 10)
    assert cell["ci_low"] < cell["value"] < cell["ci_high"]


def test_intervals_from_blocks_cover_the_mean_they_estimate():
    """Examples drawn from a known population, whose mean the interval should hold 19 in 20 times.

    A linear model makes the population mean known: the gradient of (w·x − y)² at w = 0 is −2yx.
    """
    generator = np.random.default_rng(0)
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    centre = {"a": np.array([1.0, 0, 0.5, 0]), "b": np.array([0.3, 1, 0, 0])}
    truth = 4 * centre["a"] @ centre["b"]

    def draw(language, n):
        x = torch.from_numpy(centre[language] + generator.normal(size=(n, 4)))
        return [{"x": row, "language": language} for row in x]

    def loss(m, batch):
        return (m(batch["x"])[:, 0] - 1) ** 2

    held, widths = 0, []
    for seed in range(60):
        found = attribute(
            model, draw("a", 40), draw("b", 30), loss_fn=loss, level="language", seed=seed,
            batch_size=64,
        ).languages()  # fmt: skip
        low, high = found["ci_low"][0], found["ci_high"][0]
        held += int(low < truth < high)
        widths.append(high - low)
    # The score is 4⟨x, x′⟩ with unit variance in every direction around the centres.
    squares = {name: value @ value for name, value in centre.items()}
    stderr = 4 * np.sqrt(squares["a"] / 30 + squares["b"] / 40 + 4 / 1200)
    assert 54 <= held <= 60
    assert np.mean(widths) == pytest.approx(2 * 2.262 * stderr, rel=0.15)


def test_a_method_that_is_not_bilinear_has_its_means_from_pairs():
    def sign(situation):
        return Transform(train=lambda blocks: {k: v.sign() for k, v in blocks.items()})

    register_method(GradientMethod("test-sign", bilinear=False, prepare=sign))
    model = makers.make("bert")
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert"), "method": "test-sign"}
    scores = attribute(model, train, test, **options).scores
    g, q = oracle_sides(model, "bert", attribute(model, train, test, **options)
                        .provenance.settings["parameters"])  # fmt: skip
    np.testing.assert_allclose(scores, q @ np.sign(g).T, rtol=1e-6, atol=1e-6)
    found = attribute(model, train, test, level="language", **options)
    np.testing.assert_allclose(found.scores, mean_by_language(scores, train, test, found))
