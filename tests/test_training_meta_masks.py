"""First-order MAML inside masks that stay, and inside masks that its episodes find: as loops."""

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_makers import lora
from dynamic_mask_oracles import (
    HEAD,
    NAMES,
    PATTERNS,
    Breaking,
    NaiveMask,
    Outer,
    Recorder,
    check_masks,
    dense,
    starts,
    total,
    zeroed,
)
from subnet.errors import DivergedError, InputError, NotComparableError
from subnet.model import find_units, gate_heads
from subnet.subnetwork import Subnetwork, subnetwork_of_units
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import (
    DynamicMask,
    DynamicSettings,
    MetaSettings,
    draw_episodes,
    fit_masked,
    fit_meta,
)
from subnetwork_training import collate, encoder, quick_collection, same_bits, sentences, state

__all__ = ["quick_collection"]

RECIPE = Recipe(steps=4, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.0)
SETTINGS = DynamicSettings(0.2, every=2, smoothing=0.3, parameters=PATTERNS)
COUNT = round(0.2 * total())
FEATURES = {"de": sentences(seed=1), "sw": sentences(seed=2, shift=1)}
SIZES = dict.fromkeys(FEATURES, 24)


def episodes(forward=False, rate=0.1):
    return MetaSettings(support=4, query=3, inner_steps=2, inner_rate=rate, forward=forward)


def meta(model, folder, masks, recipe=RECIPE, *, forward=False, rate=0.1, **arguments):
    return fit_meta(
        model, FEATURES, recipe, settings=episodes(forward, rate), collate=collate, seed=5,
        folder=folder, masks=masks, **arguments,
    )  # fmt: skip


def query_gradient(theta, episode, mask, head, *, forward, rate):
    """By a copy that learns: (gradients at θ', θ'); all moves where there is no mask yet."""
    learner = encoder().train()
    learner.load_state_dict(zeroed(theta, mask if forward else None), strict=False)
    own = FEATURES[episode.language]
    for part, learns in [(episode.support, True)] * 2 + [(episode.query, False)]:
        learner.zero_grad()
        learner(**collate([own[place] for place in part])).loss.backward()
        for name, parameter in learner.named_parameters():
            inside = 1 if name in head else 0
            if name in NAMES:
                inside = 1 if mask is None else mask[name]
            if learns:
                parameter.data -= rate * parameter.grad * inside
    return {name: parameter.grad for name, parameter in learner.named_parameters()}, state(learner)


def check_episodes(seen, masks, recipe, *, forward, head=frozenset(), rate=0.1):
    """Hold meta-training against a loop: what episodes saw, the gradient, where weights moved."""
    outer = Outer(recipe, {*head, *NAMES})
    drawn = draw_episodes(SIZES, episodes(), steps=recipe.steps, seed=5)
    passes = iter(seen.passes)
    for step, (before, after) in enumerate(zip(seen.states, seen.states[1:], strict=False)):
        expected = {name: torch.zeros_like(before[name]) for name in {*head, *NAMES}}
        for episode in drawn[step]:
            own = masks[episode.language]
            gradients, learnt = query_gradient(
                before, episode, own.mask, head, forward=forward, rate=rate
            )
            shown = [next(passes) for _ in range(3)]  # two of support, one of query
            for name, value in zeroed(before, own.mask if forward else None).items():
                assert torch.equal(shown[0][name], value), name
                torch.testing.assert_close(shown[2][name], learnt[name], rtol=1e-4, atol=1e-6)
                if name in NAMES and own.mask is not None:
                    outside = ~own.mask[name]
                    assert torch.equal(shown[2][name][outside], value[outside])
                elif name not in {*head, *NAMES}:
                    assert same_bits(shown[2][name], value)
            own.see(step, gradients, before)
            for name in expected:
                inside = own.mask[name] if name in NAMES else 1
                expected[name] += gradients[name] * inside / 2
        assert seen.gradients[step].keys() == expected.keys()
        for name, gradient in seen.gradients[step].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
        either = {n: masks["de"].mask[n] | masks["sw"].mask[n] for n in NAMES}
        outer.check(before, after, seen.gradients[step], either, set(head))
    assert step == recipe.steps - 1


@pytest.mark.parametrize(("forward", "passes"), [(False, 1), (False, 2), (True, 2)])
def test_the_head_learns_beside_masks_that_stay(tmp_path, forward, passes):
    model, seen, masks = encoder(), Recorder(), starts({"de": 0.3, "sw": 0.6})
    recipe = RECIPE.replace(passes=passes, steps=3)
    meta(
        model, tmp_path, masks, recipe, forward=forward, callbacks=[seen], base="tiny",
        train=("classifier*",),
    )  # fmt: skip
    naive = {name: NaiveMask(None, mask.count, dense(mask)) for name, mask in masks.items()}
    check_episodes(seen, naive, recipe, forward=forward, head=HEAD)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("forward", "passes", "every", "score", "given", "train"),
    [
        (False, 1, 1, "taylor", False, ()),
        (True, 2, 2, "taylor", False, ("classifier*",)),
        (True, 1, 2, "fisher", True, ()),
    ],
)
def test_masks_are_found_by_the_query_gradients_of_episodes(
    tmp_path, forward, passes, every, score, given, train
):
    """Scores |g(θ')·θ|; the outer step, decay and momentum too, stays in the present union."""
    settings = DynamicSettings(
        0.2, every=every, score=score, smoothing=0.3, parameters=PATTERNS, train=train
    )
    recipe, head = RECIPE.replace(passes=passes, steps=5), HEAD if train else set()
    rate = 0.1 if train else 30.0  # at which θ' is far from θ
    start = starts({"de": 0.1, "sw": 0.4}) if given else {}
    mask, seen, model = DynamicMask(settings, start=start, forward=forward), Recorder(), encoder()
    meta(model, tmp_path, mask, recipe, forward=forward, rate=rate, callbacks=[seen])
    naive = {
        language: NaiveMask(settings, start[language].count, dense(start[language]))
        if given
        else NaiveMask(settings, COUNT)
        for language in FEATURES
    }
    check_episodes(seen, naive, recipe, forward=forward, head=head, rate=rate)
    check_masks(mask, naive)
    assert all(parameter.requires_grad for parameter in model.parameters())
    found = mask.subnetwork("sw", "tiny")
    assert "query batch" in found.settings["of"]
    assert found.settings["forward"] is forward
    # Momentum would have moved what left the union: there is some.
    assert all(row[2] > 20 for own in naive.values() for row in own.rows)
    for whole in seen.states:
        assert all(bool((whole[name] != 0).all()) for name in NAMES)


def test_with_all_weights_in_the_mask_it_is_meta_training_without_one(tmp_path):
    plain, masked = encoder(), encoder()
    meta(plain, tmp_path, None)
    everything = DynamicSettings(1.0, every=2)
    meta(masked, tmp_path, DynamicMask(everything, forward=True), forward=True)
    for name, value in plain.named_parameters():
        assert same_bits(value, masked.get_parameter(name)), name


@pytest.mark.parametrize("kind", ["static", "dynamic", "start forward"])
def test_broken_off_within_an_episode_the_model_is_whole_and_training_goes_on(tmp_path, kind):
    def train(model, folder, **arguments):
        forward = kind != "dynamic"
        masks = starts({"de": 0.1, "sw": 0.4})
        if kind != "static":
            start = masks if "start" in kind else None
            masks = DynamicMask(SETTINGS, start=start, forward=forward)
        meta(model, folder, masks, RECIPE.replace(steps=5, passes=2), forward=forward, **arguments)
        return masks

    whole, broken, resumed, seen = encoder(), encoder(), encoder(), Recorder()
    expected = train(whole, tmp_path / "a", callbacks=[seen])
    with pytest.raises(KeyboardInterrupt):  # in the query of the second episode of the fourth step
        train(broken, tmp_path / "b", save_every=3, callbacks=[Breaking(23, "raise")])
    for name, value in broken.named_parameters():
        assert same_bits(value, seen.states[3][name]), name
        assert value.requires_grad
    kept = (tmp_path / "b" / "checkpoint-3").rename(tmp_path / "kept")
    saved = load_file(kept / "model.safetensors")
    assert all(same_bits(saved[name], value) for name, value in seen.states[3].items())
    found = train(resumed, tmp_path / "b", save_every=3, resume=kept)
    for name, value in whole.named_parameters():
        assert same_bits(value, resumed.get_parameter(name)), name
    if isinstance(found, DynamicMask):
        assert found.history.equals(expected.history)
        assert all(found.subnetwork(n, "") == expected.subnetwork(n, "") for n in FEATURES)


@pytest.mark.parametrize("step", [0, 3])
def test_a_query_whose_loss_is_not_finite_ends_it_and_leaves_a_whole_model(tmp_path, step):
    model, seen = encoder(), Recorder()
    settings = DynamicSettings(0.2, every=3, parameters=PATTERNS)
    mask = DynamicMask(settings, forward=True)
    breaking = [seen, Breaking(6 * step + 2, "nan")]
    with pytest.raises(DivergedError, match=rf"not finite at step {step + 1}\b.*learning rate"):
        meta(model, tmp_path, mask, forward=True, callbacks=breaking)
    for name, value in model.named_parameters():
        assert same_bits(value, seen.states[step][name]), name
        assert value.requires_grad


# What the forward pass is not to see although no episode moves it


def first_losses(model, folder, masks):
    """Losses of the first step's episodes on their support batches, as its forward pass has them.

    Each language's first forward pass is at θ·m itself.
    """
    losses = []
    hook = model.register_forward_hook(lambda *given: losses.append(float(given[-1].loss.detach())))
    meta(model, folder, masks, RECIPE.replace(steps=1), forward=True)
    hook.remove()
    return losses[0], losses[3]


def supports():
    (drawn,) = draw_episodes(SIZES, episodes(), steps=1, seed=5)
    return {
        e.language: collate([FEATURES[e.language][place] for place in e.support]) for e in drawn
    }


def test_a_matrix_of_which_no_mask_selects_anything_is_zero_in_the_forward_pass(tmp_path):
    model = encoder()
    before = state(model)
    keys = [name for name in NAMES if "key" in name]
    masks = {}
    for language, mask in starts({"de": 0.3, "sw": 0.6}).items():
        drawn = {name: mask.dense(name) & (name not in keys) for name in NAMES}
        masks[language] = Subnetwork.from_arrays(drawn, language=language, base="tiny")
    expected = []
    for language, batch in supports().items():
        twin = encoder()
        twin.load_state_dict(zeroed(before, dense(masks[language])), strict=False)
        expected.append(twin.train()(**batch).loss.item())
    assert first_losses(model, tmp_path, masks) == pytest.approx(expected, rel=1e-5)
    for name in keys:
        assert same_bits(model.get_parameter(name), before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_under_a_lora_episodes_see_heads_gated_off_and_move_their_factors(tmp_path):
    targets = r".*encoder\.layer.*(query|value|attention\.output\.dense)"
    model = lora(encoder(), 3, target_modules=targets)
    before = state(model)
    units = find_units(model)
    masks, expected = {}, []
    chosen = {"de": torch.tensor([1.0, 0, 1, 1]), "sw": torch.tensor([0, 1.0, 1, 1])}
    for language, batch in supports().items():
        gates = chosen[language]
        masks[language] = subnetwork_of_units(
            gates.bool().numpy(), units, "head", language=language, base="tiny"
        )
        with torch.no_grad(), gate_heads(model, units, gates):
            expected.append(model.train()(**batch).loss.item())
    assert first_losses(model, tmp_path, masks) == pytest.approx(expected, rel=1e-5)
    for name, value in model.named_parameters():
        ours = name.endswith(("query.lora_B.default.weight", "value.lora_B.default.weight"))
        if ours or name.endswith("output.dense.lora_A.default.weight"):
            assert (value != before[name]).float().mean() > 0.5, name
        else:
            assert same_bits(value, before[name]), name


# Refused


@pytest.mark.parametrize(
    ("masks", "arguments", "error", "message"),
    [
        ("dynamic", {"train": ("classifier*",)}, InputError, r"train or forward is given beside"),
        ("dynamic", {"forward": True}, InputError, r"train or forward is given beside a dynamic"),
        ("dynamic forward", {}, InputError, r"expected train in Dyn.*the same forward in both"),
        ("no start of sw", {}, InputError, r"sw is trained and has no mask to start from"),
        ("other base", {"base": "mbert"}, NotComparableError, r"'tiny' and the model on 'mbert'"),
        ("static", {"base": "mbert"}, NotComparableError, r"'tiny' and the model on 'mbert'"),
        ("static", {"train": ("head*",)}, InputError, r"train names 'head\*', which matches no"),
        ("static", {"train": ("*query.weight",)}, InputError, r"train names '\*query.weight'"),
        ("none", {"train": ("classifier*",)}, InputError, r"train is given without masks"),
    ],
)
def test_masks_and_settings_that_do_not_go_together_are_refused(
    tmp_path, masks, arguments, error, message
):
    drawn = starts({"de": 0.3, "sw": 0.6})
    given = {
        "dynamic": DynamicMask(SETTINGS),
        "dynamic forward": DynamicMask(SETTINGS, forward=True),
        "no start of sw": DynamicMask(SETTINGS, start={"de": drawn["de"]}),
        "other base": DynamicMask(SETTINGS, start=drawn),
        "static": drawn,
        "none": None,
    }[masks]
    model = encoder()
    before = state(model)
    with pytest.raises(error, match=message):
        meta(model, tmp_path, given, **arguments)
    assert all(p.requires_grad and same_bits(p, before[n]) for n, p in model.named_parameters())


def test_a_mask_of_episodes_is_not_taken_for_plain_training(tmp_path):
    mask = DynamicMask(DynamicSettings(0.1, every=2))
    mask.tell(["de", "sw"], episodes=True)
    with pytest.raises(InputError, match=r"was told of episodes.*make a new one"):
        fit_masked(
            encoder(), sentences(), RECIPE, mask=mask, collate=collate, seed=1, folder=tmp_path
        )
