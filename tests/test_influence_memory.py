"""A bound on the memory of kept gradients changes how often data are gone through, not scores."""

from __future__ import annotations

import numpy as np
import pytest

import influence_oracles as oracles
import model_makers as makers
from influence_oracles import data
from subnet.errors import InputError
from subnet.influence import GradientMethod, Transform, attribute, register_method, track
from subnet.influence import engine as engine_room


def examples(n_train=23, n_test=9):
    train = oracles.rows_of("bert", [2 + i % 5 for i in range(n_train)], 1, "abc")
    return train, oracles.rows_of("bert", [2 + i % 4 for i in range(n_test)], 2, "ca")


def count(monkeypatch, function):
    """What it gives, and how many examples went through the model."""
    seen = []
    original = engine_room.collect

    def watched(model, tracked, batch, loss_fn=None):
        found = original(model, tracked, batch, loss_fn)
        seen.append(len(found))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(engine_room, "collect", watched)
        return function(), sum(seen)


@pytest.mark.parametrize("method", ["tracin", "cosine"])
def test_test_examples_are_taken_in_parts_that_fit(monkeypatch, method):
    model = makers.make("bert").float()
    train, test = examples()
    options = {"collate_fn": makers.collate_for("bert"), "batch_size": 2, "method": method}
    exact = attribute(model, train, test, **options).scores
    each = 4 * track(model).n_parameters
    for fit, passes in ((9, 1), (5, 3), (4, 3), (1, 9)):
        found, seen = count(
            monkeypatch,
            lambda fit=fit: attribute(model, train, test, memory=fit * each, **options),
        )
        np.testing.assert_allclose(found.scores, exact, rtol=1e-5, atol=1e-6 * abs(exact).max())
        assert seen == len(test) + passes * len(train)
        assert found.provenance.settings["memory"] == fit * each
    with pytest.raises(InputError, match=rf"memory is {each - 1:,} bytes, and .* take {each:,}; "):
        attribute(model, train, test, memory=each - 1, **options)
    with pytest.raises(InputError, match="memory is 0; expected bytes, above 0"):
        attribute(model, train, test, memory=0, **options)


@pytest.mark.parametrize(
    ("modules", "method", "projection"),
    [(None, "tracin", None), ("all", "cosine", None), (None, "cosine", 3), ("all", "tracin", 3)],
)
def test_sums_of_languages_are_made_for_some_modules_at_a_time(
    monkeypatch, method, modules, projection
):
    model = makers.make("bert")
    train, test = examples()
    options = {
        "collate_fn": makers.collate_for("bert"), "batch_size": 4, "method": method,
        "level": "language", "modules": modules, "projection": projection,
    }  # fmt: skip
    exact, once = count(monkeypatch, lambda: attribute(model, train, test, **options))
    assert once == len(train) + len(test)
    groups = 9 + 11  # every test example is a block of its own
    widest = max(np.prod(shape) for shape in track(model, modules).shapes.values())
    width = 8 * groups * 2 * int(widest if projection is None else 16)
    found, seen = count(monkeypatch, lambda: attribute(model, train, test, memory=width, **options))
    assert seen > 2 * once
    np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-9, atol=1e-12)
    numbers = ["value", "ci_low", "ci_high"]
    np.testing.assert_allclose(found.languages()[numbers], exact.languages()[numbers], rtol=1e-7)
    with pytest.raises(InputError, match=r"memory is 99 bytes, and sums of gradients of \S+ take"):
        attribute(model, train, test, memory=99, **options)


def test_no_more_than_the_bound_is_kept_at_language_level(monkeypatch):
    """The sums of a pass, by the sizes of the tensors that they stand in."""
    from subnet.influence import _language_sums

    model = makers.make("bert").float()
    train, test = examples(60, 40)
    kept = []
    original = _language_sums.Summing.__call__

    def watched(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        kept.append(sum(block.nbytes for block in found.values()))
        return found

    monkeypatch.setattr(_language_sums.Summing, "__call__", watched)
    memory = 100_000
    attribute(
        model, train, test, memory=memory, level="language",
        collate_fn=makers.collate_for("bert"),
    )  # fmt: skip
    # Of each part: the test languages' together, and one training language's beside them.
    tests, trains = kept[::4], [max(kept[i + 1 : i + 4]) for i in range(0, len(kept), 4)]
    assert len(tests) > 3
    assert all(a + b <= memory for a, b in zip(tests, trains, strict=True))


def test_a_method_that_needs_all_parameters_says_so():
    register_method(GradientMethod("memory-plain", prepare=lambda situation: Transform()))
    model, (train, test) = makers.make("bert"), data("bert")
    with pytest.raises(InputError, match="'memory-plain' needs all parameters at once; expected "):
        attribute(
            model, train, test, method="memory-plain", level="language", memory=10_000,
            collate_fn=makers.collate_for("bert"),
        )  # fmt: skip


def test_test_gradients_that_a_method_wants_at_once_are_not_taken_in_parts():
    register_method(GradientMethod("memory-whole", prepare=lambda situation: Transform(whole=True)))
    model, (train, test) = makers.make("bert"), data("bert")
    options = {"method": "memory-whole", "collate_fn": makers.collate_for("bert")}
    exact = attribute(model, train, test, **{**options, "method": "tracin"}).scores
    found = attribute(model, train, test, **options).scores
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    each = 8 * track(model).n_parameters
    with pytest.raises(InputError, match=f"gradients of all test examples take {4 * each:,}"):
        attribute(model, train, test, memory=3 * each, **options)
