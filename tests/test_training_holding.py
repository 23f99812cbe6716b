"""What is outside a mask is put back to the bit, and nothing inside is touched."""

import numpy as np
import pytest
import torch
from torch import nn

from subnet.errors import InputError
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import DynamicMask, DynamicSettings, MaskedUpdates, _holding
from subnet.training.subnetworks._holding import Copies, Held
from subnetwork_training import collate, encoder, quick_collection, random_mask, sentences

__all__ = ["quick_collection"]

INTEGERS = {
    torch.bfloat16: torch.int16, torch.float16: torch.int16,
    torch.float32: torch.int32, torch.float64: torch.int64,
}  # fmt: skip
DENSITIES = [0.0, 0.01, 0.05, 0.3, 0.5, 0.59, 0.61, 0.8, 0.95, 0.99, 1.0]


@pytest.fixture(params=[1 << 17, 16], ids=["one piece", "many pieces"])
def piece(request, monkeypatch):
    """37 × 11 weights are one piece, or 25 full ones and a rest."""
    monkeypatch.setattr(_holding, "_PIECE", request.param)


def weights(dtype, seed):
    """Any bits: numbers of all sizes and both signs, NaN of many patterns, infinities, zeros."""
    drawn = np.random.default_rng(seed).integers(0, 256, (37, 11, dtype.itemsize), dtype=np.uint8)
    found = torch.from_numpy(drawn).view(dtype)[..., 0].clone()
    found.view(-1)[::13] = -0.0
    found.view(-1)[::17] = float("nan")
    found.view(-1)[::19] = -float("inf")
    return found


def bits(tensor):
    return tensor.detach().reshape(-1).view(INTEGERS[tensor.dtype]).tolist()


def chosen(density, seed=0):
    """A mask of exactly that share, rounded."""
    order = torch.randperm(37 * 11, generator=torch.Generator().manual_seed(seed))
    return (order < round(density * 37 * 11)).view(37, 11)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_what_is_outside_comes_back_to_the_bit_and_what_is_inside_stays(density, dtype):
    """Oracle: one weight after the other, as integers."""
    before, after, gradient = (weights(dtype, seed) for seed in (1, 2, 3))
    mask, parameter = chosen(density), nn.Parameter(before.clone())
    inside = mask.reshape(-1).tolist()
    with torch.no_grad():
        held = Held(parameter, mask)
        held.remember()
        assert not held.changed()
        parameter.copy_(after)
        assert held.changed() == (density < 1)
        held.restore()
    expected = [a if i else b for a, b, i in zip(bits(after), bits(before), inside, strict=True)]
    assert bits(parameter) == expected
    assert not held.changed()

    cleared = gradient.clone()
    held.clear(cleared)
    assert bits(cleared) == [g if i else 0 for g, i in zip(bits(gradient), inside, strict=True)]
    held.clear()
    assert bits(parameter) == [v if i else 0 for v, i in zip(expected, inside, strict=True)]
    with torch.no_grad():
        held.restore()
    assert bits(parameter) == expected


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_what_is_hidden_is_zero_until_it_is_shown(density, dtype):
    before, after = weights(dtype, 1), weights(dtype, 2)
    mask, parameter = chosen(density), nn.Parameter(before.clone())
    inside, storage = mask.reshape(-1).tolist(), parameter.data_ptr()
    held = Held(parameter, mask)
    with torch.no_grad():
        for start in (before, after):  # what it hides is what is there at the time
            parameter.copy_(start)
            held.remember()
            for _ in range(2):  # once more is as once
                held.hide()
                expected = [v if i else 0 for v, i in zip(bits(start), inside, strict=True)]
                assert bits(parameter) == expected
                assert parameter.requires_grad
                assert parameter.is_leaf
            for _ in range(2):
                held.show()
                assert bits(parameter) == bits(start)
                assert parameter.data_ptr() == storage


@pytest.mark.parametrize("density", [0.3, 0.8])
def test_gradients_are_those_of_what_was_shown(density):
    weight, mask = nn.Parameter(torch.randn(37, 11)), chosen(density)
    held, inputs = Held(weight, mask), torch.randn(37, 11, requires_grad=True)
    held.remember()
    held.hide()
    (weight * inputs).square().sum().backward()
    held.show()
    slope = 2 * weight.detach() * mask * inputs.detach()
    torch.testing.assert_close(weight.grad, slope * inputs.detach())
    torch.testing.assert_close(inputs.grad, slope * weight.detach())


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_a_single_bit_outside_is_a_change_and_nothing_inside_is(density):
    mask = chosen(density)
    for place in (0, 200, 37 * 11 - 1):
        parameter = nn.Parameter(torch.zeros(37, 11))
        held = Held(parameter, mask)
        held.remember()
        with torch.no_grad():
            parameter.view(-1)[place] = -0.0
        assert held.changed() == (not mask.view(-1)[place])


@pytest.mark.usefixtures("piece")
def test_masks_that_take_turns_share_one_copy_and_remember_anew():
    parameter, copies = nn.Parameter(weights(torch.float32, 0)), Copies()
    held = [Held(parameter, chosen(density, seed), copies)
            for seed, density in enumerate((0.05, 0.5, 0.9))]  # fmt: skip
    with torch.no_grad():
        for step in range(9):
            before = bits(parameter)
            held[step % 3].remember()
            parameter.copy_(weights(torch.float32, step + 1))
            after = bits(parameter)
            held[step % 3].restore()
            inside = chosen((0.05, 0.5, 0.9)[step % 3], step % 3).view(-1).tolist()
            expected = [a if i else b for a, b, i in zip(after, before, inside, strict=True)]
            assert bits(parameter) == expected
    assert list(copies.kept) == [parameter]
    assert not copies.shown


def test_a_mask_of_most_weights_needs_no_copy_of_the_parameter():
    parameter, copies = nn.Parameter(torch.ones(37, 11)), Copies()
    for density, n in [(0.7, 0), (0.5, 1), (0.4, 1)]:
        held = Held(parameter, chosen(density), copies)
        held.remember()
        held.hide()
        held.show()
        assert len(copies.kept) == len(copies.shown) == n


def test_weights_in_several_pieces_of_memory_are_refused():
    parameter = nn.Parameter(torch.ones(11, 37).T)
    message = r"shape \[37, 11\].*not contiguous.*\.contiguous\(\)"
    with pytest.raises(InputError, match=message):
        Held(parameter, chosen(0.5))
    layer = nn.Linear(11, 37, bias=False)
    layer.weight = parameter
    mask = DynamicMask(DynamicSettings(0.3, every=1))
    mask.attach(layer)
    layer(torch.ones(1, 11)).sum().backward()
    with pytest.raises(InputError, match=message):
        mask.see(0)


def test_infinite_gradients_outside_do_not_reach_the_norm_that_clips():
    layer = nn.Linear(3, 2, bias=False)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    MaskedUpdates({"weight": mask}).attach(layer)
    slope = torch.where(mask, 2.0, torch.tensor([float("inf"), float("nan"), -float("inf")]))
    for _ in range(2):  # accumulated passes
        (layer.weight.nan_to_num() * slope).sum().backward()
    assert torch.equal(layer.weight.grad, torch.where(mask, 4.0, 0.0))
    assert nn.utils.clip_grad_norm_(layer.parameters(), 1.0) == pytest.approx(4 * 3**0.5)


@pytest.mark.parametrize("density", [0.1, 0.8])
def test_weights_that_are_bfloat16_themselves_stay_to_the_bit(tmp_path, density):
    model = encoder().bfloat16()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    mask = random_mask(encoder(), density)
    recipe = Recipe(steps=3, batch_size=8, learning_rate=1e-2, weight_decay=0.1)
    fit(
        model, sentences(), recipe, collate=collate, seed=1, folder=tmp_path,
        callbacks=[MaskedUpdates(mask)],
    )  # fmt: skip
    for name, value in model.named_parameters():
        assert value.dtype == torch.bfloat16
        inside = torch.zeros(value.shape, dtype=torch.bool)
        if name in mask.shapes:
            inside = torch.from_numpy(mask.dense(name))
            assert (value != before[name])[inside].float().mean() > 0.5
        assert bits(value[~inside]) == bits(before[name][~inside])


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("score", ["taylor", "fisher"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_scores_are_averaged_in_float32_over_all_pieces(score, dtype):
    layer = nn.Linear(37, 11, dtype=dtype)
    mask = DynamicMask(DynamicSettings(0.3, every=100, score=score, smoothing=0.75))
    mask.attach(layer)
    expected: dict = {}
    for step in range(3):
        for seed, (name, parameter) in enumerate(layer.named_parameters()):
            generator = torch.Generator().manual_seed(10 * step + seed)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            g, w = parameter.grad.double(), parameter.detach().double()
            new = (g * w).abs() if score == "taylor" else g.square()
            expected[name] = 0.75 * expected[name] + 0.25 * new if step else new
        mask.see(step)
        for name, parameter in layer.named_parameters():
            found = mask._rankings[""].scores[name]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), expected[name], rtol=1e-5, atol=1e-9)
            assert torch.count_nonzero(parameter.grad) <= round(0.3 * (37 * 11 + 11))
