"""Gates, captures and modes, on every architecture with either attention kernel."""

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from checkpoint_makers import bert, lora, quiet
from model_makers import (
    ARCHITECTURES,
    base_of,
    batch_of,
    collate_for,
    down_projections,
    examples,
    make,
    output_projections,
)
from subnet.errors import InputError
from subnet.model import (
    capture,
    evaluation_mode,
    example_losses,
    find_units,
    gate_gradients,
    gate_heads,
    gate_neurons,
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def named(request):
    return request.param, make(request.param)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def merged(model):
    """A copy without wrappers, for surgery on its weights."""
    model = copy.deepcopy(model)
    if hasattr(model, "merge_and_unload"):
        with quiet():
            return model.merge_and_unload()
    return model


def zero_columns(module, columns):
    """Zero the columns of a linear layer that read a part of its input."""
    with torch.no_grad():
        if isinstance(module, Conv1D):
            module.weight[columns] = 0
        else:
            module.weight[:, columns] = 0


def one_gate_closed(n, unit):
    gates = torch.ones(n)
    gates[unit] = 0
    return gates


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_closing_a_heads_gate_equals_zeroing_its_columns_of_the_output_projection(named, attention):
    name, model = named
    units, batch = find_units(model), batch_of(name)
    n_heads, head_dim = ARCHITECTURES[name][3:5]
    base_of(model).set_attn_implementation(attention)
    whole = logits(model, batch)
    for number, path in enumerate(output_projections(name, model)):
        for head in range(n_heads):
            unit = number * n_heads + head
            with gate_heads(model, units, one_gate_closed(units.n_heads, unit)):
                gated = logits(model, batch)
            cut = merged(model)
            zero_columns(cut.get_submodule(path), slice(head * head_dim, (head + 1) * head_dim))
            torch.testing.assert_close(gated, logits(cut, batch), rtol=1e-6, atol=1e-8)
            assert not torch.allclose(gated, whole, atol=1e-4), f"{path} head {head} does nothing"


def test_closing_a_neurons_gate_equals_zeroing_its_column_of_the_down_projection(named):
    name, model = named
    units, batch = find_units(model), batch_of(name)
    whole, changed, before = logits(model, batch), 0, 0
    for block, path in zip(units.feed_forwards, down_projections(name, model), strict=True):
        for neuron in (0, 7, block.n_neurons - 1):
            with gate_neurons(model, units, one_gate_closed(units.n_neurons, before + neuron)):
                gated = logits(model, batch)
            cut = merged(model)
            zero_columns(cut.get_submodule(path), neuron)
            torch.testing.assert_close(gated, logits(cut, batch), rtol=1e-6, atol=1e-8)
            changed += not torch.allclose(gated, whole, atol=1e-4)
        before += block.n_neurons
    assert changed >= len(units.feed_forwards)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_open_gates_change_nothing_bitwise_and_closed_ones_all(named, attention):
    name, model = named
    units, batch = find_units(model), batch_of(name)
    base_of(model).set_attn_implementation(attention)
    whole = logits(model, batch)
    for gate, n in ((gate_heads, units.n_heads), (gate_neurons, units.n_neurons)):
        with gate(model, units, torch.ones(n)):
            assert torch.equal(logits(model, batch), whole)
        with gate(model, units, torch.zeros(n)):
            assert not torch.allclose(logits(model, batch), whole, atol=1e-3)
        assert torch.equal(logits(model, batch), whole)


def test_rows_of_gates_belong_to_the_examples_of_the_batch(named):
    name, model = named
    units, rows, collate = find_units(model), examples(name), collate_for(name)
    gates = torch.rand(len(rows), units.n_heads, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), gate_heads(model, units, gates):
        together = example_losses(model, collate(rows))
    for row, gate, loss in zip(rows, gates, together, strict=True):
        with torch.no_grad(), gate_heads(model, units, gate):
            alone = example_losses(model, collate([row]))
        torch.testing.assert_close(alone[0], loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", ["heads", "neurons"])
def test_gradients_agree_with_ablation_by_a_little(named, of):
    """L(1 + δ) − L(1 − δ) over 2δ for each gate alone, every example by itself."""
    name, model = named
    units, batch = find_units(model), batch_of(name)
    gate, n = (gate_heads, units.n_heads) if of == "heads" else (gate_neurons, units.n_neurons)
    gradients = gate_gradients(model, units, batch, of=of)
    assert gradients.shape == (3, n)
    assert gradients.abs().max() > 1e-2
    delta = 3e-3 if name == "mt5" else 1e-3  # its norms compute in float32
    for unit in range(0, n, 1 if of == "heads" else 5):
        losses = []
        for sign in (1, -1):
            gates = torch.ones(n, dtype=torch.float64)
            gates[unit] += sign * delta
            with torch.no_grad(), gate(model, units, gates):
                losses.append(example_losses(model, batch))
        slope = (losses[0] - losses[1]) / (2 * delta)
        torch.testing.assert_close(gradients[:, unit], slope, rtol=2e-2, atol=5e-4)


def test_small_ablation_follows_the_first_order_score_and_large_need_not(named):
    """L(1 − δ) − L(1) = −δ ∂L/∂ξ + O(δ²): halving δ quarters what is left over."""
    name, model = named
    units, batch = find_units(model), batch_of(name)
    gradients = gate_gradients(model, units, batch).sum(dim=0)
    with torch.no_grad():
        whole = example_losses(model, batch).sum()
    left = []
    for delta in (0.04, 0.02, 0.01):  # small, because ReLU has corners
        errors = []
        for unit in range(units.n_heads):
            gates = torch.ones(units.n_heads, dtype=torch.float64)
            gates[unit] -= delta
            with torch.no_grad(), gate_heads(model, units, gates):
                change = example_losses(model, batch).sum() - whole
            errors.append((change + delta * gradients[unit]).abs())
        left.append(float(torch.stack(errors).sum()))
    assert 3 < left[0] / left[1] < 5.5
    assert 3 < left[1] / left[2] < 5.5


def test_nothing_accumulates_over_batches_and_parameters_get_no_gradient(named):
    name, model = named
    units = find_units(model)
    collate, rows = collate_for(name), examples(name)
    first = gate_gradients(model, units, collate(rows[:2]))
    second = gate_gradients(model, units, collate(rows[2:]))
    torch.testing.assert_close(gate_gradients(model, units, collate(rows[:2])), first)
    whole = gate_gradients(model, units, collate(rows))
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_captured_gradient_is_each_examples_own_and_of_the_latest_batch(named):
    """Against autograd through gates: two ways to the same derivative."""
    name, model = named
    units, batch = find_units(model), batch_of(name)
    other = collate_for(name)(examples(name, lengths=(5, 2), seed=3))
    with capture(model, units) as captured:
        example_losses(model, other).sum().backward()
        example_losses(model, batch).sum().backward()
    model.zero_grad()
    expected = gate_gradients(model, units, batch)
    torch.testing.assert_close(captured.head_gradients(), expected)
    expected = gate_gradients(model, units, batch, of="neurons")
    torch.testing.assert_close(captured.neuron_gradients(), expected)
    # the mean of |gradients| is not |the mean of gradients|
    assert not torch.allclose(expected.abs().mean(dim=0), expected.mean(dim=0).abs())


def test_captured_activations_are_what_the_output_projection_sees(named):
    name, model = named
    units, batch = find_units(model), batch_of(name)
    seen = {}
    path = output_projections(name, model)[-1]
    handle = base_of(model).get_submodule(path).register_forward_pre_hook(
        lambda _, given: seen.update(x=given[0])
    )  # fmt: skip
    with torch.no_grad(), capture(model, units, neurons=False) as captured:
        model(**batch)
    handle.remove()
    n_heads, head_dim = ARCHITECTURES[name][3:5]
    heads = captured.head_activations()[units.attentions[-1].module]
    assert heads.shape[-2:] == (n_heads, head_dim)
    assert torch.equal(heads[:, :, 1], seen["x"][:, :, head_dim : 2 * head_dim])
    assert captured.neuron_activations() == {}
    assert not captured.gradients


def test_a_frozen_model_has_gradients_at_its_units():
    model = make("bert")
    units, batch = find_units(model), batch_of("bert")
    expected = gate_gradients(model, units, batch)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with capture(model, units) as captured:
        example_losses(model, batch).sum().backward()
    torch.testing.assert_close(captured.head_gradients(), expected)


def test_gradients_can_be_taken_where_some_heads_are_already_pruned():
    model = make("qwen3")
    units, batch = find_units(model), batch_of("qwen3")
    gates = one_gate_closed(units.n_heads, 2)
    pruned = gate_gradients(model, units, batch, gates=gates)
    assert not torch.allclose(pruned, gate_gradients(model, units, batch))
    with gate_heads(model, units, gates):  # gates multiply
        nested = gate_gradients(model, units, batch)
    others = [unit for unit in range(units.n_heads) if unit != 2]
    torch.testing.assert_close(nested[:, others], pruned[:, others])
    assert not nested[:, 2].any()


def test_the_users_gates_get_gradients():
    model = make("bert")
    units, batch = find_units(model), batch_of("bert")
    gates = torch.ones(units.n_heads, requires_grad=True)
    with gate_heads(model, units, gates):
        example_losses(model, batch).sum().backward()
    expected = gate_gradients(model, units, batch).sum(dim=0)
    torch.testing.assert_close(gates.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_an_example_without_a_label_leaves_the_others_gradients_alone():
    model = make("bert_tagger")
    units, batch = find_units(model), batch_of("bert_tagger")
    expected = gate_gradients(model, units, batch)
    batch["labels"][1] = -100
    gradients = gate_gradients(model, units, batch)
    assert not gradients[1].any()
    torch.testing.assert_close(gradients[[0, 2]], expected[[0, 2]])


def test_hooks_are_gone_after_an_error():
    model = make("bert")
    units, batch = find_units(model), batch_of("bert")
    whole = logits(model, batch)
    with (
        pytest.raises(RuntimeError, match="stop"),
        capture(model, units) as captured,
        gate_heads(model, units, torch.zeros(units.n_heads)),
    ):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, batch), whole)
    assert not captured.activations


def test_every_modules_mode_is_restored_also_after_an_error():
    model = bert()
    model.train()
    model.bert.encoder.layer[0].eval()
    model.bert.encoder.layer[0].attention.self.dropout.train()
    before = {name: module.training for name, module in model.named_modules()}
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(RuntimeError, match="stop"), evaluation_mode(model):
        raise RuntimeError("stop")
    assert {name: module.training for name, module in model.named_modules()} == before


def test_gradients_are_taken_without_the_callers_dropout():
    model = make("bert")
    units, batch = find_units(model), batch_of("bert")
    expected = gate_gradients(model, units, batch)
    model.train()
    torch.testing.assert_close(gate_gradients(model, units, batch), expected)
    assert model.training


@pytest.mark.parametrize(
    ("gates", "found"),
    [
        (torch.ones(3), "3 values were given for the heads of Bert.*expected 4, one per head"),
        (torch.ones(4, dtype=torch.bool), r"gates are bool \[4\].*mask.float\(\)"),
        (torch.tensor(1.0), r"gates are float32 \[\]"),
        (torch.ones(2, 4), r"gates for 2 examples meet \[3, 6, 16\] values at bert.encoder.layer"),
    ],
)
def test_gates_that_do_not_fit_are_refused(gates, found):
    model = make("bert")
    units = find_units(model)
    with pytest.raises(InputError, match=found), gate_heads(model, units, gates):
        model(**batch_of("bert"))


def test_units_of_another_model_are_refused():
    units = find_units(make("qwen3"))
    with (
        pytest.raises(InputError, match=r"has no module model.layers.0.self_attn.o_proj"),
        gate_heads(lora(bert(), 1), units, torch.ones(8)),
    ):
        pass


def test_a_gradient_without_a_backward_pass_is_refused():
    model = make("bert")
    with capture(model, find_units(model)) as captured:
        model(**batch_of("bert"))
    with pytest.raises(InputError, match=r"there is no gradient of bert.encoder.layer.0.attention"):
        captured.head_gradients()
    with capture(model, find_units(model)) as captured:
        example_losses(model, batch_of("bert")).sum().backward()
        model(**batch_of("bert"))
    with pytest.raises(InputError, match=r"there is no gradient"):  # that was another batch's
        captured.head_gradients()
    with pytest.raises(InputError, match="of is 'layers'; expected 'heads' or 'neurons'"):
        gate_gradients(model, find_units(model), batch_of("bert"), of="layers")
