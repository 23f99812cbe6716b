"""Masked training, static and dynamic: what is outside stays to the bit."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import Trainer

from checkpoint_makers import lora
from subnet.errors import DivergedError, InputError, MissingInputError, NotComparableError
from subnet.model import find_units, gate_heads
from subnet.subnetwork import Subnetwork, gradient_masks, subnetwork_of_units
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import DynamicMask, DynamicSettings, MaskedUpdates, fit_masked
from subnetwork_training import (
    collate,
    encoder,
    quick_collection,
    random_mask,
    same_bits,
    sentences,
    state,
)

__all__ = ["quick_collection"]

HARD = Recipe(
    steps=6, batch_size=8, learning_rate=3e-3, weight_decay=0.1, max_grad_norm=0.5, passes=2,
)  # fmt: skip
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def train(model, recipe=HARD, *, folder, features=None, seed=1, **arguments):
    features = sentences() if features is None else features
    return fit(model, features, recipe, collate=collate, seed=seed, folder=folder, **arguments)


def dense(subnetwork, name):
    return torch.from_numpy(subnetwork.dense(name))


def heads(model, chosen, base="tiny"):
    units = find_units(model)
    selected = np.zeros(units.n_heads, dtype=bool)
    selected[list(chosen)] = True
    return subnetwork_of_units(selected, units, "head", language="de", base=base)


def check_outside(model, before, masks):
    """What a mask names moved only inside, and there moved; all else did not."""
    for name, value in model.named_parameters():
        if name not in masks:
            assert same_bits(value, before[name]), name
            continue
        mask = masks[name]
        assert same_bits(value[~mask], before[name][~mask]), name
        if mask.any():
            assert (value[mask] != before[name][mask]).float().mean() > 0.5, name


@pytest.mark.parametrize(("density", "precision"), [(0.1, "float32"), (0.8, "bfloat16")])
def test_outside_the_mask_nothing_moves_under_decay_and_momentum(tmp_path, density, precision):
    model = encoder()
    mask = random_mask(model, density)
    before = state(model)
    recipe = HARD.replace(precision=precision)
    train(model, recipe, folder=tmp_path, callbacks=[MaskedUpdates(mask, base="tiny")])
    check_outside(model, before, gradient_masks(mask))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_zeroed_gradient_alone_would_not_have_frozen_it(tmp_path):
    """What the test above guards against: AdamW's decay moves weights without a gradient."""
    model = encoder()
    parameter = model.get_parameter(QUERY)
    before = parameter.detach().clone()

    def zero(parameter):
        parameter.grad.zero_()

    parameter.register_post_accumulate_grad_hook(zero)
    train(model, folder=tmp_path)
    assert not same_bits(parameter, before)


def test_inside_the_mask_it_is_plain_training_by_the_masked_gradient(tmp_path):
    """Oracle: torch's own AdamW and clipping on the same batches, gradients multiplied by masks."""
    model, oracle = encoder(), encoder()
    recipe = Recipe(steps=4, batch_size=8, learning_rate=3e-3, weight_decay=0.1, max_grad_norm=0.05)
    features = sentences()
    batches = [list(range(8 * (s % 3), 8 * (s % 3) + 8)) for s in range(recipe.steps)]
    mask = random_mask(model)
    train(
        model, recipe, features=features, folder=tmp_path, batches=batches,
        callbacks=[MaskedUpdates(mask)],
    )  # fmt: skip

    masks = gradient_masks(mask)
    names = dict(oracle.named_parameters())
    moved = [names[name] for name in masks]
    optimizer = torch.optim.AdamW(moved, lr=3e-3, weight_decay=0.1)
    oracle.train()
    for batch in batches:
        before = state(oracle)
        oracle(**collate([features[place] for place in batch])).loss.backward()
        for name, selected in masks.items():
            names[name].grad *= selected
        torch.nn.utils.clip_grad_norm_(moved, 0.05)
        optimizer.step()
        oracle.zero_grad()
        with torch.no_grad():
            for name, selected in masks.items():
                names[name].copy_(torch.where(selected, names[name], before[name]))
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, names[name], rtol=1e-5, atol=1e-6)


def test_parameters_without_a_mask_are_frozen_unless_asked_for(tmp_path):
    model = encoder()
    mask = random_mask(model)
    before = state(model)
    train(model, folder=tmp_path, callbacks=[MaskedUpdates(mask, train=("classifier*",))])
    moved = {name for name, value in model.named_parameters() if not same_bits(value, before[name])}
    assert moved == {*mask.shapes, "classifier.weight", "classifier.bias"}

    model = encoder()
    train(model, folder=tmp_path, callbacks=[MaskedUpdates(mask, others="trained")])
    moved = {name for name, value in model.named_parameters() if not same_bits(value, before[name])}
    assert len(moved) > len(mask.shapes) + 10
    name = QUERY
    outside = ~dense(mask, name)
    assert same_bits(model.get_parameter(name)[outside], before[name][outside])


@pytest.mark.parametrize("forward", [False, True])
def test_heads_under_a_lora_move_rows_of_b_and_columns_of_a(tmp_path, forward):
    model = lora(encoder(), 3, target_modules=r".*encoder\.layer.*(query|value|output\.dense)")
    before = state(model)
    mask = heads(model, [1])  # of layer 0; each is 8 of 16 rows
    recipe = HARD
    train(model, recipe, folder=tmp_path, callbacks=[MaskedUpdates(mask, forward=forward)])
    for name, value in model.named_parameters():
        moved = value != before[name]
        own = "layer.0.attention" in name
        if own and name.endswith(("query.lora_B.default.weight", "value.lora_B.default.weight")):
            assert moved[8:].any()
            assert not moved[:8].any()
        elif own and name.endswith("output.dense.lora_A.default.weight"):
            assert moved[:, 8:].any()
            assert not moved[:, :8].any()
        else:
            assert same_bits(value, before[name]), name


def test_the_forward_pass_sees_zeros_outside_and_they_go_away_again(tmp_path):
    """Oracle: zeroed rows and columns of heads are heads gated off."""
    model = encoder()
    mask = heads(model, [0, 3])
    before, features = state(model), sentences()
    units = find_units(model)
    batch = collate(features[:8])
    with torch.no_grad(), gate_heads(model, units, torch.tensor([1.0, 0, 0, 1])):
        expected = model.eval()(**batch).loss.item()
    seen = []

    class Losses(Trainer):
        def training_step(self, *arguments, **named):
            seen.append(super().training_step(*arguments, **named).item())
            return torch.tensor(seen[-1])

    masked = MaskedUpdates(mask, forward=True)
    train(
        model, Recipe(steps=3, batch_size=8, weight_decay=0.1), folder=tmp_path, features=features,
        batches=[range(8)] * 3, callbacks=[masked], trainer_class=Losses,
    )  # fmt: skip
    assert seen[0] == pytest.approx(expected, rel=1e-5)
    assert seen[2] < seen[0]
    check_outside(model, before, gradient_masks(mask, units) | {})


@pytest.mark.parametrize("forward", [False, True])
def test_each_language_moves_its_own_weights_in_its_steps(tmp_path, forward):
    """Momentum of German steps must not move German weights in a Swahili step."""
    model = encoder()
    masks = {"de": random_mask(model, 0.3, seed=1), "sw": random_mask(model, 0.7, seed=2)}
    order = ["de", "sw", "sw", "de", "de", "sw"]
    states = [state(model)]
    train(
        model, folder=tmp_path, on_step=lambda: states.append(state(model)),
        callbacks=[MaskedUpdates(masks, languages=order, forward=forward)],
    )  # fmt: skip
    for language, (before, after) in zip(order, itertools.pairwise(states), strict=True):
        for name in before:
            outside = ~dense(masks[language], name) if name in masks[language].shapes else ...
            assert same_bits(after[name][outside], before[name][outside])
        assert not same_bits(after[QUERY], before[QUERY])


def test_tied_weights_are_held_once(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs = torch.nn.Embedding(6, 4)
            self.outputs = torch.nn.Linear(4, 6, bias=False)
            self.outputs.weight = self.inputs.weight

        def forward(self, input_ids, labels):
            logits = self.outputs(self.inputs(input_ids).mean(dim=1))
            return {"loss": torch.nn.functional.cross_entropy(logits, labels)}

    model = Tied()
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    features = [{"input_ids": [i % 6, 2], "labels": i % 3} for i in range(8)]
    before = model.inputs.weight.detach().clone()
    masked = MaskedUpdates({"outputs.weight": mask})
    train(model, HARD, features=features, folder=tmp_path,
          callbacks=[masked])  # fmt: skip
    assert same_bits(model.inputs.weight[~mask], before[~mask])
    assert not same_bits(model.outputs.weight[mask], before[mask])
    with pytest.raises(InputError, match=r"inputs.weight and outputs.weight.*one tied weight"):
        MaskedUpdates({"inputs.weight": mask, "outputs.weight": ~mask}).attach(model)


def test_a_failed_training_leaves_a_model_that_is_free(tmp_path):
    model = encoder()
    before = state(model)
    reckless = Recipe(steps=5, batch_size=8, learning_rate=1e30, max_grad_norm=0)
    mask = random_mask(model)
    masked = MaskedUpdates(mask, forward=True)
    with pytest.raises(DivergedError):
        fit_masked(model, sentences(), reckless, mask=masked, collate=collate, seed=0,
                   folder=tmp_path)  # fmt: skip
    assert not masked.attached
    assert all(parameter.requires_grad for parameter in model.parameters())
    outside = ~dense(mask, QUERY)
    assert same_bits(model.get_parameter(QUERY)[outside], before[QUERY][outside])


@pytest.mark.parametrize("forward", [False, True])
def test_an_interrupted_masked_training_ends_the_same(tmp_path, forward):
    recipe = HARD
    whole, resumed = encoder(), encoder()
    mask = random_mask(whole)
    train(whole, recipe, folder=tmp_path / "a", callbacks=[MaskedUpdates(mask, forward=forward)])
    stop(resumed, recipe, tmp_path / "b", MaskedUpdates(mask, forward=forward))
    resumed = encoder()
    train(
        resumed, recipe, folder=tmp_path / "b", save_every=2,
        resume=tmp_path / "b" / "checkpoint-4", callbacks=[MaskedUpdates(mask, forward=forward)],
    )  # fmt: skip
    for name, value in whole.named_parameters():
        assert same_bits(value, resumed.get_parameter(name)), name


def stop(model, recipe, folder, mask, at=5):
    """Train until a step and break off there."""
    done = []

    def count():
        done.append(1)
        if len(done) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_masked(
            model, sentences(), recipe, mask=mask, collate=collate, seed=1, folder=folder,
            save_every=2, on_step=count,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("masks", "options", "error", "message"),
    [
        ("mask", {"base": "mbert"}, NotComparableError, r"de stands on the base 'tiny'.*'mbert"),
        ("empty", {}, InputError, r"mask of de selects no weight"),
        ("wide", {}, NotComparableError, r"\[17, 16\].*has it as \[16, 16\]"),
        ("absent", {}, NotComparableError, r"no such parameter.*did you mean bert.encoder"),
        ("floats", {}, InputError, r"holds float32 values.*expected booleans"),
        ("mask", {"train": ("head*",)}, InputError, r"train names 'head\*', which matches no"),
        ("mask", {"others": "kept"}, InputError, r"others is 'kept'"),
        ("mask", {"languages": ["de"]}, InputError, r"one mask is given for several languages"),
        ("by language", {"languages": ["de", "sw"]}, InputError, r"sw is trained and has no mask"),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_used_are_refused(masks, options, error, message):
    model = encoder()
    mask = random_mask(model)
    given = {
        "mask": mask,
        "empty": mask - mask,
        "wide": Subnetwork.from_arrays(
            {QUERY: np.ones((17, 16), bool)}, language="de", base="tiny"
        ),
        "absent": {QUERY.replace("query", "queries"): torch.ones(16, 16, dtype=torch.bool)},
        "floats": {QUERY: torch.ones(16, 16)},
        "by language": {"de": mask},
    }[masks]
    if masks == "empty":
        message = r"selects no weight"
    with pytest.raises(error, match=message):
        MaskedUpdates(given, **options).attach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_mask_of_weights_is_refused_under_a_lora():
    model = lora(encoder(), 0)
    with pytest.raises(
        NotComparableError, match=r"per weight and the model has a LoRA.*weights_to"
    ):
        MaskedUpdates(random_mask(encoder())).attach(model)


def test_too_few_steps_of_languages_are_refused(tmp_path):
    model = encoder()
    masked = MaskedUpdates({"de": random_mask(model)}, languages=["de"] * 5)
    with masked, pytest.raises(InputError, match=r"languages of 5 steps.*each of 6 steps"):
        train(model, folder=tmp_path, callbacks=[masked])


def test_a_checkpoint_of_an_unmasked_training_is_refused(tmp_path):
    recipe = HARD
    train(encoder(), recipe.replace(steps=2), folder=tmp_path, save_every=2)
    model = encoder()
    masked = MaskedUpdates(random_mask(model), others="trained")
    with masked, pytest.raises(NotComparableError, match=r"not what it was.*checkpoint of step 2"):
        train(model, recipe, folder=tmp_path, callbacks=[masked], resume=tmp_path / "checkpoint-2")


# Dynamic masks


DYNAMIC = DynamicSettings(0.2, every=2, smoothing=0.5, parameters=("*encoder.layer*.weight",))


def dynamic(model, folder, settings=DYNAMIC, recipe=HARD, **arguments):
    mask = DynamicMask(settings)
    fit_masked(model, sentences(), recipe, mask=mask, collate=collate, seed=1, folder=folder,
               **arguments)  # fmt: skip
    return mask


@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_a_dynamic_mask_holds_the_largest_averaged_scores(tmp_path, score):
    """Oracle: gradients of the same steps, averaged and sorted by hand."""
    recipe = Recipe(steps=5, batch_size=8, learning_rate=3e-3, weight_decay=0.1, passes=2)
    settings = DynamicSettings(0.2, every=2, score=score, smoothing=0.5,
                               parameters=("*query.weight", "*key.weight"))  # fmt: skip
    model, features = encoder(), sentences()
    batches = [list(range(8 * (s % 3), 8 * (s % 3) + 8)) for s in range(5)]
    states = [state(model)]
    mask = DynamicMask(settings)
    fit_masked(
        model, features, recipe, mask=mask, collate=collate, seed=1, folder=tmp_path,
        batches=batches, on_step=lambda: states.append(state(model)),
    )  # fmt: skip
    names = sorted(n for n in states[0] if n.endswith(("query.weight", "key.weight")))
    replica, average, chosen, found = encoder(), None, None, []
    k = round(0.2 * sum(states[0][n].numel() for n in names))
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        replica.load_state_dict(before, strict=False)
        replica.zero_grad()
        replica(**collate([features[place] for place in batches[step]])).loss.backward()
        flat = torch.cat([replica.get_parameter(n).grad.reshape(-1) for n in names])
        weights = torch.cat([before[n].reshape(-1) for n in names])
        new = (flat * weights).abs() if score == "taylor" else flat**2
        average = new if average is None else 0.5 * average + 0.5 * new
        if step % 2 == 0:
            chosen = torch.zeros(len(flat), dtype=torch.bool)
            chosen[average.argsort(descending=True, stable=True)[:k]] = True
            found.append(chosen)
        moved = torch.cat([after[n].reshape(-1) for n in names]) != weights
        assert not moved[~chosen].any()
        assert moved[chosen].float().mean() > 0.9
        for name in before:
            assert name in names or same_bits(before[name], after[name])
    history = mask.history
    assert history["step"].tolist() == [0, 2, 4]
    assert history["count"].tolist() == [k] * 3
    assert math.isnan(history["jaccard"][0])
    for i in (1, 2):
        a, b = found[i - 1], found[i]
        assert history["jaccard"][i] == pytest.approx(float((a & b).sum() / (a | b).sum()))
        assert history["entered"][i] == int((b & ~a).sum())
    last = mask.subnetwork("de", "tiny")
    assert last.count == k
    assert np.concatenate([last.dense(n).reshape(-1) for n in names]).tolist() == chosen.tolist()


def test_an_interrupted_dynamic_mask_goes_on_where_it_was(tmp_path):
    recipe = HARD
    whole = encoder()
    expected = dynamic(whole, tmp_path / "a", recipe=recipe)
    stop(encoder(), recipe, tmp_path / "b", DynamicMask(DYNAMIC))
    moved = (tmp_path / "b" / "checkpoint-4").rename(tmp_path / "kept")
    resumed = encoder()
    found = dynamic(resumed, tmp_path / "b", recipe=recipe, resume=moved, save_every=2)
    for name, value in whole.named_parameters():
        assert same_bits(value, resumed.get_parameter(name)), name
    assert found.history.equals(expected.history)

    (moved / "dynamic_mask.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"dynamic_mask.safetensors: is not there"):
        dynamic(encoder(), tmp_path / "b", recipe=recipe, resume=moved)


def test_a_dynamic_mask_finds_the_planted_part_and_a_null_finds_none(tmp_path):
    """Only one layer's feed-forward is of use where all else is multiplied away."""

    class Planted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.used = torch.nn.Linear(8, 3)
            self.idle = torch.nn.Linear(8, 3)

        def forward(self, input_ids, labels, share=1e-3):
            x = torch.nn.functional.one_hot(input_ids[:, 0] % 8, 8).float()
            logits = self.used(x) + share * self.idle(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels)}

    settings = DynamicSettings(0.4, every=2, parameters=("*.weight",))
    model = Planted()
    mask = dynamic(model, tmp_path, settings, HARD)
    assert mask.subnetwork("de", "tiny").counts == {"used.weight": 19, "idle.weight": 0}
    model = Planted()
    model.forward = lambda input_ids, labels: Planted.forward(model, input_ids, labels, share=1.0)
    mask = dynamic(model, tmp_path, settings, HARD)
    assert 5 <= mask.subnetwork("de", "tiny").counts["used.weight"] <= 14


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_dynamic_mask_without_its_trainer_is_refused(tmp_path, given, forward):
    start = dynamic(encoder(), tmp_path / "start").subnetwork("de", "tiny") if given else None
    mask = DynamicMask(DYNAMIC, start=start, forward=forward)
    with mask, pytest.raises(InputError, match=r"has seen no gradients.*fit_masked"):
        train(encoder(), folder=tmp_path, callbacks=[mask])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0, "every": 1}, r"density is 0.0; expected 0 < density <= 1"),
        ({"density": 1.5, "every": 1}, r"density is 1.5"),
        ({"density": 0.1, "every": 0}, r"every is 0; expected 1 or more steps"),
        ({"density": 0.1, "every": 1, "score": "size"}, r"score is 'size'.*taylor, fisher"),
        ({"density": 0.1, "every": 1, "smoothing": 1.0}, r"smoothing is 1.0"),
        ({"density": 1e-9, "every": 1}, r"density 1e-09 selects none of \d+ weights"),
        ({"density": 0.1, "every": 1, "parameters": ("x*",)}, r"parameters names 'x\*', which"),
    ],
)
def test_dynamic_masks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DynamicMask(DynamicSettings(**settings)).attach(encoder())
