"""Sparse fine-tuning: what it selects, what it leaves, and how deltas compose."""

import dataclasses

import numpy as np
import pytest
import torch

from checkpoint_makers import lora, xlm_roberta
from subnet.errors import FileFormatError, InputError, MissingInputError, NotComparableError
from subnet.subnetwork import load_subnetwork
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import (
    MaskedUpdates,
    SparseDelta,
    composed,
    load_delta,
    sparse_fine_tune,
)
from subnetwork_training import collate, encoder, quick_collection, same_bits, sentences, state

__all__ = ["quick_collection"]

RECIPE = Recipe(steps=6, batch_size=8, learning_rate=3e-3, schedule="linear", weight_decay=0.01)
FULL = RECIPE.replace(steps=8)
LAYERS = ("*encoder.layer*",)


def tune(model, folder, *, language="de", shift=0, **arguments):
    settings = {
        "density": 0.1, "full_recipe": FULL, "parameters": LAYERS, "train": ("classifier*",),
    }  # fmt: skip
    return sparse_fine_tune(
        model, sentences(shift=shift), RECIPE, collate=collate, seed=1, folder=folder,
        language=language, base="tiny", **(settings | arguments),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lt-sft")
    model = encoder()
    return model, tune(model, folder), folder


def test_it_is_full_training_then_top_k_then_masked_training_from_the_start(tuned, tmp_path):
    """Oracle: the three parts one by one, the largest changes by sorting."""
    model, tuning, _ = tuned
    full, sparse = encoder(), encoder()
    before = state(full)
    fit(full, sentences(), FULL, collate=collate, seed=1, folder=tmp_path / "full")
    names = sorted(name for name in before if "encoder.layer" in name)
    change = torch.cat([(full.get_parameter(n).detach() - before[n]).reshape(-1) for n in names])
    chosen = torch.zeros(len(change), dtype=torch.bool)
    chosen[change.abs().argsort(descending=True, stable=True)[: round(0.1 * len(change))]] = True
    found = np.concatenate([tuning.subnetwork.dense(n).reshape(-1) for n in names])
    assert found.tolist() == chosen.tolist()
    assert tuning.subnetwork.count == round(0.1 * len(change))

    masks = dict(zip(names, chosen.split([before[n].numel() for n in names]), strict=True))
    masked = MaskedUpdates(
        {n: mask.reshape(before[n].shape) for n, mask in masks.items()}, train=("classifier*",)
    )
    fit(
        sparse, sentences(), RECIPE, collate=collate, seed=1, folder=tmp_path / "sparse",
        callbacks=[masked],
    )  # fmt: skip
    for name, value in model.named_parameters():
        assert same_bits(value, sparse.get_parameter(name)), name


def test_outside_the_mask_the_model_is_the_base(tuned):
    model, tuning, _ = tuned
    before = state(encoder())
    for name, value in model.named_parameters():
        if name.startswith("classifier"):
            assert not same_bits(value, before[name])
        elif name in tuning.subnetwork.shapes:
            outside = ~torch.from_numpy(tuning.subnetwork.dense(name))
            assert same_bits(value[outside], before[name][outside])
        else:
            assert same_bits(value, before[name])


def test_a_delta_on_its_base_is_the_tuned_model_and_goes_away_again(tuned, tmp_path):
    model, tuning, folder = tuned
    tuning.delta.save(tmp_path / "de")
    delta = load_delta(tmp_path / "de")
    assert delta.subnetwork == tuning.subnetwork == load_subnetwork(folder / "mask.safetensors")
    other = encoder()
    before = state(other)
    with composed(other, delta, base="tiny"):
        for name, value in other.named_parameters():
            assert same_bits(value, model.get_parameter(name)), name
        with (
            pytest.raises(InputError, match=r"carries deltas already"),
            composed(other, delta),
        ):
            pass
    for name, value in other.named_parameters():
        assert same_bits(value, before[name]), name


def test_it_comes_back_exactly_after_a_failure_and_repeatedly(tuned):
    """Subtracting what was added would not: (θ + δ) − δ is not θ in floating point."""
    _, tuning, _ = tuned
    model = encoder()
    before = state(model)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), composed(model, tuning.delta):
            raise ZeroDivisionError
    assert all(same_bits(value, before[name]) for name, value in model.named_parameters())
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    change = tuning.delta.dense(name).float()
    assert not same_bits((before[name] + change) - change, before[name])


def test_two_deltas_add_up(tuned, tmp_path):
    _, language, _ = tuned
    task = tune(encoder(), tmp_path, language="task", shift=1, train=(), density=0.05)
    model = encoder()
    before = state(model)
    with composed(model, language.delta, task.delta):
        for name, value in model.named_parameters():
            expected = before[name].double()
            for delta in (language.delta, task.delta):
                if name in delta.parameters:
                    expected = expected + delta.dense(name)
            assert same_bits(value, expected.float()), name
    again = dataclasses.replace(task.delta, whole=language.delta.whole)
    with (
        pytest.raises(InputError, match=r"de and task both trained classifier.* whole"),
        composed(model, language.delta, again),
    ):
        pass


def test_an_interrupted_tuning_ends_the_same(tuned, tmp_path):
    expected, tuning, _ = tuned
    for at in (5, 8):  # in the full training, in the sparse one
        done = []

        def count(at=at, done=done):
            done.append(1)
            if len(done) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(encoder(), tmp_path, save_every=2, on_step=count, resume=at == 8)
    model = encoder()
    found = tune(model, tmp_path, save_every=2, resume=True)
    assert found.subnetwork == tuning.subnetwork
    for name, value in expected.named_parameters():
        assert same_bits(value, model.get_parameter(name)), name


def test_a_planted_part_is_selected_and_a_null_has_none(tmp_path):
    class Planted(torch.nn.Module):
        def __init__(self, share):
            super().__init__()
            torch.manual_seed(0)
            self.used, self.idle, self.share = torch.nn.Linear(8, 3), torch.nn.Linear(8, 3), share

        def forward(self, input_ids, labels):
            x = torch.nn.functional.one_hot(input_ids[:, 0] % 8, 8).float()
            logits = self.used(x) + self.share * self.idle(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels)}

    plain = RECIPE.replace(optimizer="sgd", learning_rate=0.1, weight_decay=0.0)
    counts = {}
    for share in (1e-3, 1.0):
        tuning = sparse_fine_tune(
            Planted(share), sentences(), plain, k=20, collate=collate, seed=1,
            folder=tmp_path / str(share), language="de", base="toy", parameters=("*.weight",),
        )  # fmt: skip
        counts[share] = tuning.subnetwork.counts
    assert counts[1e-3] == {"used.weight": 20, "idle.weight": 0}
    assert counts[1.0] == {"used.weight": 10, "idle.weight": 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": None}, r"neither density nor k is given; expected one of them"),
        ({"k": 5}, r"density and k are given together"),
        ({"density": 1.2}, r"density is 1.2; expected 0 < density <= 1"),
        ({"density": 1e-9}, r"density 1e-09 selects none of \d+ weights"),
        ({"density": None, "k": 10**9}, r"k is 1000000000; expected 1 to \d+"),
        ({"train": ("head*",)}, r"train names 'head\*', which matches no parameter"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tune(encoder(), tmp_path, **arguments)
    assert not any(tmp_path.iterdir())


def test_a_lora_is_refused(tmp_path):
    with pytest.raises(NotComparableError, match=r"it has a LoRA; expected a full model"):
        tune(lora(encoder(), 0), tmp_path)


def test_deltas_of_other_models_are_refused(tuned, tmp_path):
    _, tuning, _ = tuned
    model = encoder()

    def opening(*deltas, **options):
        with composed(model, *deltas, **options):
            pass

    with pytest.raises(NotComparableError, match=r"de is of the base 'tiny' and.*model of 'mbert'"):
        opening(tuning.delta, base="mbert")
    foreign = dataclasses.replace(
        tuning.delta, subnetwork=dataclasses.replace(tuning.subnetwork, base="mbert", language="sw")
    )
    with pytest.raises(
        NotComparableError, match=r"sw is of the base 'mbert' and that of de of 'ti"
    ):
        opening(tuning.delta, foreign)
    with pytest.raises(InputError, match=r"no delta was given"):
        opening()
    model = xlm_roberta()
    with pytest.raises(NotComparableError, match=r"XLMRoberta\w+ has no such parameter"):
        opening(tuning.delta)
    with pytest.raises(InputError, match=r"has \[1\] values for .*one for each selected weight"):
        SparseDelta(tuning.subnetwork, dict.fromkeys(tuning.delta.values, torch.zeros(1)), {})
    tuning.delta.save(tmp_path / "de")
    (tmp_path / "de" / "delta.safetensors").rename(tmp_path / "delta.safetensors")
    with pytest.raises(MissingInputError, match=r"delta.safetensors"):
        load_delta(tmp_path / "de")
    some = tuning.subnetwork.restrict("*layer.0*")
    some.save(tmp_path / "mask.safetensors")
    with pytest.raises(FileFormatError, match=r"do not both have bert.encoder.layer.1"):
        load_delta(tmp_path)
