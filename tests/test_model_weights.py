"""Weights are put back bit by bit, whatever happened meanwhile."""

import pytest
import torch

from checkpoint_makers import bert, lora, mt5, qwen3
from model_makers import ARCHITECTURES, base_of, batch_of, make
from subnet.errors import InputError, MissingInputError
from subnet.model import find_units, gate_heads, gate_neurons, swap_parameters

SHARED = "shared.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def bits(model):
    """Every parameter and buffer as bytes: −0.0 and NaN compare too."""
    return {n: t.detach().contiguous().view(-1).view(torch.uint8).clone()
            for n, t in [*model.named_parameters(), *model.named_buffers()]}  # fmt: skip


def same(before, model):
    after = bits(model)
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


@pytest.fixture(params=["bert", "qwen3_lora", "gpt2", "mt5"])
def model(request):
    return make(request.param)


def every_value(model):
    units = find_units(model)
    chosen = units.weights_of_heads(torch.ones(units.n_heads, dtype=torch.bool))
    return {name: torch.randn(mask.shape) for name, mask in chosen.items()}


def test_restoring_is_bitwise(model):
    values = every_value(model)
    first = next(iter(values))
    with swap_parameters(model, {}):
        pass
    module = base_of(model).get_submodule(first.removesuffix(".weight"))
    weight = getattr(module, "base_layer", module).weight
    with torch.no_grad():
        weight.view(-1)[:3] = torch.tensor([-0.0, float("nan"), 1e-310])
    before, kept = bits(model), dict(model.named_parameters())
    with swap_parameters(model, values):
        assert torch.equal(weight, values[first].to(weight.dtype))
        assert not same(before, model)
    assert same(before, model)
    assert all(kept[name] is parameter for name, parameter in model.named_parameters())


def fail_after_a_step(model, values):
    """Train the swapped weights a little, then fail."""
    with swap_parameters(model, values):
        with torch.no_grad():
            for name in values:
                module = base_of(model).get_submodule(name.rpartition(".")[0])
                getattr(getattr(module, "base_layer", module), name.rpartition(".")[2]).add_(1)
        raise RuntimeError("stop")


def test_restoring_is_bitwise_after_an_error_and_after_training_inside(model):
    before = bits(model)
    with pytest.raises(RuntimeError, match="stop"):
        fail_after_a_step(model, every_value(model))
    assert same(before, model)


def test_nothing_is_changed_where_one_of_the_values_does_not_fit():
    model = bert()
    before = bits(model)
    values = {QUERY: 0.0, QUERY.replace("query", "key"): torch.zeros(2, 2)}
    with (
        pytest.raises(InputError, match=r"key.weight is \[2, 2\]; expected \[16, 16\]"),
        swap_parameters(model, values),
    ):
        pass
    assert same(before, model)


def test_only_what_the_mask_selects_is_replaced():
    model = bert()
    old = model.get_parameter(QUERY).detach().clone()
    new = torch.randn(16, 16)
    mask = torch.rand(16, 16) < 0.3
    with swap_parameters(model, {QUERY: new}, where={QUERY: mask}):
        now = model.get_parameter(QUERY).detach()
        assert torch.equal(now[mask], new[mask])
        assert torch.equal(now[~mask], old[~mask])
    with swap_parameters(model, {QUERY: 0.0}, where={QUERY: mask}):
        assert int((model.get_parameter(QUERY) == 0).sum()) == int(mask.sum())


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "lora" not in name])
def test_removing_the_weights_of_units_equals_closing_their_gates(name):
    """Two independent ways: parameters by name, and hooks."""
    model = make(name)
    units, batch = find_units(model), batch_of(name)
    generator = torch.Generator().manual_seed(0)
    for gate, n, weights_of in (
        (gate_heads, units.n_heads, lambda m: units.weights_of_heads(m, shared="all")),
        (gate_neurons, units.n_neurons, units.weights_of_neurons),
    ):
        removed = torch.rand(n, generator=generator) < 0.4
        removed[0], removed[-1] = False, True
        with torch.no_grad(), gate(model, units, (~removed).float()):
            gated = model(**batch).logits
        masks = weights_of(removed)
        zeros = dict.fromkeys(masks, 0.0)
        with torch.no_grad(), swap_parameters(model, zeros, where=masks):
            cut = model(**batch).logits
        torch.testing.assert_close(cut, gated, rtol=1e-6, atol=1e-8)


def test_under_an_adapter_the_bases_own_weights_are_meant():
    model = lora(bert(), 1)
    name = QUERY
    with swap_parameters(model, {name: 0.0}):
        layer = model.get_base_model().get_submodule(QUERY.removesuffix(".weight"))
        assert not layer.base_layer.weight.any()
        assert layer.lora_B["default"].weight.any()


def test_of_a_module_that_the_adapter_saves_whole_the_trained_copy_is_meant():
    model = lora(bert(), 1, modules_to_save=["classifier"])
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    with (
        torch.no_grad(),
        swap_parameters(model, {"classifier.weight": 0.0, "classifier.bias": 2.0}),
    ):
        assert torch.equal(model(**batch).logits, torch.full((1, 3), 2.0))


def test_tied_weights_are_one_parameter():
    model = qwen3()
    before = bits(model)
    with swap_parameters(model, {"lm_head.weight": 0.0}):
        assert not model.model.embed_tokens.weight.any()
    assert same(before, model)
    both = {"lm_head.weight": 0.0, "model.embed_tokens.weight": 1.0}
    with (
        pytest.raises(
            InputError, match=r"lm_head.weight and model.embed_tokens.weight are one tied"
        ),
        swap_parameters(model, both),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "where", "found"),
    [
        ({"shared.wait": 0.0}, {}, "has no parameter shared.wait.*did you mean shared.weight"),
        ({}, {SHARED: torch.ones(40, 16) > 0}, "shared.weight has a mask but no value"),
        ({SHARED: 0.0}, {SHARED: torch.ones(40, 16)}, "is float32 .*expected bool"),
        ({SHARED: 0.0}, {SHARED: torch.ones(4) > 0}, r"bool \[4\].*bool \[40, 16\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(values, where, found):
    with (
        pytest.raises((InputError, MissingInputError), match=found),
        swap_parameters(mt5(), values, where=where),
    ):
        pass
