"""Dynamic masks of several languages and of θ·m, each against a loop; and static ones in turns."""

import itertools
from statistics import mean

import pytest
import torch
from safetensors.torch import load_file

from dynamic_mask_oracles import (
    NAMES,
    PATTERNS,
    Breaking,
    NaiveMask,
    Recorder,
    check_masks,
    check_turns,
    dense,
    starts,
    total,
)
from subnet.errors import DivergedError, FileFormatError, InputError, MissingInputError
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import (
    DynamicMask,
    DynamicSettings,
    MaskedUpdates,
    draw_turns,
    fit_in_turns,
    fit_masked,
)
from subnet.training.subnetworks._holding import Held
from subnetwork_training import collate, encoder, quick_collection, same_bits, sentences, state

__all__ = ["quick_collection"]

RECIPE = Recipe(
    steps=7, batch_size=8, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.0,
)  # fmt: skip
SETTINGS = DynamicSettings(0.2, every=2, smoothing=0.5, parameters=PATTERNS)
LANGUAGES = {"de": 0, "sw": 1}
COUNT = round(0.2 * total())


def features():
    return {language: sentences(seed=shift, shift=shift) for language, shift in LANGUAGES.items()}


def in_turns(model, folder, masks, recipe=RECIPE, **arguments):
    return fit_in_turns(model, features(), recipe, masks=masks, collate=collate, seed=4,
                        folder=folder, **arguments)  # fmt: skip


def alone(model, folder, mask, recipe=RECIPE, **arguments):
    return fit_masked(model, sentences(), recipe, mask=mask, collate=collate, seed=4,
                      folder=folder, **arguments)  # fmt: skip


# Against the loop


@pytest.mark.parametrize(
    ("score", "density", "passes", "norm"),
    [("taylor", 0.2, 2, 0.0), ("fisher", 0.2, 1, 0.05), ("taylor", 0.75, 1, 0.0)],
)
def test_a_dynamic_mask_of_the_forward_pass_is_a_loop_of_masked_passes(
    tmp_path, score, density, passes, norm
):
    """Gradients are at θ·m, importance of the whole θ; between steps all of θ is there."""
    recipe = RECIPE.replace(passes=passes, max_grad_norm=norm)
    settings = DynamicSettings(density, every=2, score=score, smoothing=0.3, parameters=PATTERNS)
    count = round(density * total())
    mask, seen, naive = DynamicMask(settings, forward=True), Recorder(), NaiveMask(settings, count)
    alone(encoder(), tmp_path, mask, recipe, callbacks=[seen])
    check_turns(seen, [""] * 7, {"": naive}, recipe, forward=True)
    check_masks(mask, {"de": naive}, named=False)
    assert [row[0] for row in naive.rows] == [0, 2, 4, 6]
    assert all(row[2] > 0 for row in naive.rows)  # what was zero in the forward pass comes in
    assert naive.returned > 0  # and comes back
    assert mask.subnetwork("de", "tiny").settings["forward"] is True
    for found in seen.passes[passes:]:
        assert sum(int((found[name] == 0).sum()) for name in NAMES) == total() - count
    for whole in seen.states:
        assert all(bool((whole[name] != 0).all()) for name in NAMES)


@pytest.mark.parametrize(
    ("forward", "passes", "given", "train"),
    [
        (False, 2, {}, ()),
        (True, 1, {}, ("classifier*",)),
        (True, 2, {"de": 0.1, "sw": 0.4}, ()),
        (True, 1, {"de": 0.75, "sw": 0.99}, ()),
    ],
)
def test_in_turns_each_language_finds_its_mask_by_its_own_steps(
    tmp_path, forward, passes, given, train
):
    settings = DynamicSettings(0.2, every=2, smoothing=0.5, parameters=PATTERNS, train=train)
    recipe = RECIPE.replace(passes=passes)
    start = starts(given)
    mask, seen, model = DynamicMask(settings, start=start, forward=forward), Recorder(), encoder()
    in_turns(model, tmp_path, mask, recipe, forward=forward, callbacks=[seen])
    turns = draw_turns(["de", "sw"], steps=7, seed=4)
    naive = {
        language: NaiveMask(settings, start[language].count, dense(start[language]))
        if given
        else NaiveMask(settings, COUNT)
        for language in dict.fromkeys(turns)
    }
    check_turns(seen, turns, naive, recipe, forward=forward, head=bool(train))
    check_masks(mask, naive)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for language, own in naive.items():
        steps = [step for step, name in enumerate(turns) if name == language]
        assert [row[0] for row in own.rows] == ([0] if given else [steps[0]]) + steps[2::2]
    if given:
        assert {name: own.count for name, own in naive.items()} == {
            name: own.count for name, own in start.items()
        }

    # Each step has examples of its language, and what others moved outside is left as it is.
    for step, language in enumerate(turns):
        rows = [entry["input_ids"] for entry in features()[language]]
        for batch in seen.batches[step * passes : (step + 1) * passes]:
            assert all(row in rows for row in batch["input_ids"].tolist())
    moved = torch.cat([(seen.states[0][n] != seen.states[-1][n]).reshape(-1) for n in NAMES])
    for own in naive.values():
        assert (moved & ~own.flat()).sum() > min(own.count, total() - own.count) / 4


def test_unequal_turns_count_to_every_by_language(tmp_path):
    """Six steps of one language and two of the other: two masks each, at steps of their own."""
    turns = ["de", "sw", "sw", "sw", "sw", "de", "sw", "sw"]
    settings = DynamicSettings(0.2, every=4, parameters=PATTERNS)
    mask, seen = DynamicMask(settings, languages=turns), Recorder()
    recipe = RECIPE.replace(steps=8)
    alone(encoder(), tmp_path, mask, recipe, callbacks=[seen])
    naive = {language: NaiveMask(settings, COUNT) for language in ("de", "sw")}
    check_turns(seen, turns, naive, recipe, forward=False)
    check_masks(mask, naive)
    assert [row[0] for row in naive["de"].rows] == [0]
    assert [row[0] for row in naive["sw"].rows] == [1, 6]


@pytest.mark.parametrize("forward", [False, True])
def test_static_masks_in_turns_are_the_loop_with_masks_that_stay(tmp_path, forward):
    masks, seen = starts({"de": 0.3, "sw": 0.7}), Recorder()
    recipe = RECIPE.replace(passes=2, steps=5)
    in_turns(
        encoder(), tmp_path, masks, recipe, forward=forward, base="tiny", train=("classifier*",),
        callbacks=[seen],
    )  # fmt: skip
    naive = {name: NaiveMask(None, mask.count, dense(mask)) for name, mask in masks.items()}
    turns = draw_turns(["de", "sw"], steps=5, seed=4)
    check_turns(seen, turns, naive, recipe, forward=forward, head=True)


def test_a_static_mask_of_the_forward_pass_leaves_the_model_whole_between_steps(tmp_path):
    mask, seen, recipe = starts({"de": 0.3})["de"], Recorder(), RECIPE.replace(passes=2, steps=4)
    masked = MaskedUpdates(mask, forward=True, train=("classifier*",))
    alone(encoder(), tmp_path, masked, recipe, callbacks=[seen])
    naive = {"": NaiveMask(None, mask.count, dense(mask))}
    check_turns(seen, [""] * 4, naive, recipe, forward=True, head=True)


def test_what_a_language_is_trained_on_does_not_depend_on_the_others(tmp_path):
    masks, seen, more = starts({"de": 0.3, "sw": 0.7, "tr": 0.5}), Recorder(), Recorder()
    two = {name: masks[name] for name in ("de", "sw")}
    in_turns(encoder(), tmp_path, two, RECIPE.replace(steps=4), callbacks=[seen])
    fit_in_turns(
        encoder(), {**features(), "tr": sentences(seed=9)}, RECIPE.replace(steps=6), masks=masks,
        collate=collate, seed=4, folder=tmp_path, callbacks=[more],
    )  # fmt: skip
    turns = [draw_turns(list(two), steps=4, seed=4), draw_turns(list(masks), steps=6, seed=4)]
    for language in two:
        drawn = [
            [batch["input_ids"].tolist() for batch, name in zip(each.batches, order, strict=True)
             if name == language]
            for each, order in zip((seen, more), turns, strict=True)
        ]  # fmt: skip
        assert drawn[0] == drawn[1]


def test_turns_come_round_by_round_in_orders_that_differ():
    turns = draw_turns(["de", "sw", "tr"], steps=31, seed=2)
    assert len(turns) == 31
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 30, 3)]
    assert all(sorted(each) == ["de", "sw", "tr"] for each in rounds)
    assert len(set(rounds)) > 2
    assert turns == draw_turns(["de", "sw", "tr"], steps=31, seed=2)
    assert turns[:9] == draw_turns(["de", "sw", "tr"], steps=9, seed=2)
    assert turns != draw_turns(["de", "sw", "tr"], steps=31, seed=3)


# Broken off, and gone on

KINDS = ["alone", "turns", "turns forward", "turns start forward", "static", "static turns"]


def training(kind):
    """A function that trains, and gives what was found: `(model, folder, **arguments)`."""

    def run(model, folder, **arguments):
        recipe = RECIPE.replace(passes=2)
        forward = kind != "turns"
        if kind == "alone":
            mask = DynamicMask(SETTINGS, forward=True)
            alone(model, folder, mask, recipe, **arguments)
        elif kind == "static":
            mask = MaskedUpdates(starts({"de": 0.5})["de"], forward=True, train=("classifier*",))
            alone(model, folder, mask, recipe, **arguments)
        elif kind == "static turns":
            mask = starts({"de": 0.3, "sw": 0.7})
            in_turns(model, folder, mask, recipe, forward=True, **arguments)
        else:
            start = starts({"de": 0.1, "sw": 0.4}) if "start" in kind else None
            mask = DynamicMask(SETTINGS, start=start, forward=forward)
            in_turns(model, folder, mask, recipe, forward=forward, **arguments)
        return mask

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_broken_off_within_a_step_the_model_is_whole_and_training_goes_on(tmp_path, kind):
    """Exactly as if it had never stopped, from a checkpoint that was moved."""
    train, seen = training(kind), Recorder()
    whole, broken, resumed = encoder(), encoder(), encoder()
    places = {name: value.data_ptr() for name, value in broken.named_parameters()}
    expected = train(whole, tmp_path / "a", callbacks=[seen])
    with pytest.raises(KeyboardInterrupt):  # in the last pass of the sixth step
        train(broken, tmp_path / "b", save_every=3, callbacks=[Breaking(11, "raise")])
    for name, value in broken.named_parameters():
        assert same_bits(value, seen.states[5][name]), name
        assert value.requires_grad
        assert value.data_ptr() == places[name], name

    kept = (tmp_path / "b" / "checkpoint-3").rename(tmp_path / "kept")
    saved = load_file(kept / "model.safetensors")
    for name, value in seen.states[3].items():
        assert same_bits(saved[name], value), name
    again = Recorder()
    found = train(resumed, tmp_path / "b", resume=kept, save_every=3, callbacks=[again])
    for name, value in whole.named_parameters():
        assert same_bits(value, resumed.get_parameter(name)), name
        assert same_bits(value, seen.states[-1][name]), name
    assert len(again.gradients) == 4
    if isinstance(expected, DynamicMask):
        assert found.history.equals(expected.history)
        for language in LANGUAGES:
            assert found.subnetwork(language, "tiny") == expected.subnetwork(language, "tiny")


@pytest.mark.parametrize("what", ["remember", "hide"])
def test_without_memory_for_copies_the_model_is_what_it_was(tmp_path, monkeypatch, what):
    """Whichever copy it is that there is no memory for."""
    done = getattr(Held, what)
    for failing in (0, 3, len(NAMES), 3 * len(NAMES) - 1):
        calls = iter(range(1000))

        def call(held, failing=failing, calls=calls):
            if next(calls) == failing:
                raise MemoryError
            done(held)

        monkeypatch.setattr(Held, what, call)
        seen, model = Recorder(), encoder()
        with pytest.raises(MemoryError):
            training("turns forward")(model, tmp_path, callbacks=[seen])
        for name, value in model.named_parameters():
            assert same_bits(value, seen.begins[-1][name]), (failing, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_diverges_says_so_and_leaves_a_whole_model(tmp_path, kind):
    """At the first step too, where a mask is to be found by gradients that are not numbers."""
    for step in (0, 4):
        model, seen = encoder(), Recorder()
        begun = state(model)
        with pytest.raises(DivergedError, match=rf"not finite at step {step + 1}\b.*learning rate"):
            training(kind)(model, tmp_path, callbacks=[seen, Breaking(2 * step + 1, "nan")])
        assert len(seen.states) == step + 1
        seen.on_train_end()
        for name, value in model.named_parameters():
            assert same_bits(value, seen.states[-1][name]), name
            assert value.requires_grad
        assert step or all(same_bits(begun[n], p) for n, p in model.named_parameters())


# Planted and null


class Parts(torch.nn.Module):
    """Three maps from a token to a class; a language's examples pass through its own above all."""

    def __init__(self, seed, leak):
        super().__init__()
        torch.manual_seed(seed)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(8, 3, bias=False) for _ in range(3))
        self.leak = leak

    def forward(self, input_ids, labels):
        token = torch.nn.functional.one_hot(input_ids[:, 0], 8).float()
        gates = torch.full((len(input_ids), 3), self.leak)
        gates[torch.arange(len(input_ids)), input_ids[:, 1]] = 1.0
        logits = sum(gates[:, [i]] * part(token) for i, part in enumerate(self.parts))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels)}


def tokens(language, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(8, (64,), generator=generator).tolist()
    return [{"input_ids": [token, language], "labels": (token + shift) % 3} for token in drawn]


def parts_found(folder, seed, *, leak, same):
    """How many weights of each part each language's last mask has, and the masks."""
    model = Parts(0, leak)
    data = {"de": tokens(0, 0, 1), "sw": tokens(0, 0, 1) if same else tokens(1, 1, 2)}
    mask = DynamicMask(DynamicSettings(0.25, every=3, smoothing=0.8))
    fit_in_turns(
        model, data, RECIPE.replace(steps=14), masks=mask, collate=collate, seed=seed,
        folder=folder,
    )  # fmt: skip
    return {language: mask.subnetwork(language, "tiny") for language in data}


def jaccard(a, b):
    return (a & b).count / (a | b).count


def gap(a, b):
    """By how many weights of a part they differ, on average over parts."""
    return mean(abs(a.counts[name] - b.counts[name]) for name in a.counts)


def test_each_language_finds_its_planted_part(tmp_path):
    for seed in (0, 1):
        found = parts_found(tmp_path, seed, leak=0.02, same=False)
        assert {name: list(mask.counts.values()) for name, mask in found.items()} == {
            "de": [18, 0, 0],
            "sw": [0, 18, 0],
        }


def test_languages_that_are_the_same_have_masks_that_differ_as_seeds_do(tmp_path):
    found = [parts_found(tmp_path, seed, leak=1.0, same=True) for seed in range(4)]
    languages = [(each["de"], each["sw"]) for each in found]
    seeds = [(a[name], b[name]) for a, b in itertools.combinations(found, 2) for name in a]
    between, across = (mean(jaccard(*pair) for pair in pairs) for pairs in (languages, seeds))
    assert abs(between - across) < 0.2
    assert between > 0.3  # of masks drawn at random: 0.14; of languages with parts of their own: 0
    between, across = (mean(gap(*pair) for pair in pairs) for pairs in (languages, seeds))
    assert abs(between - across) < 1  # weight of six in a part


# Refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ["de"]}, r"1 language is given; expected two or more"),
        ({"steps": 1}, r"1 steps are asked for, and 2 languages take turns.*2 steps or more"),
        ({"masks": ["de"]}, r"sw has no mask, or a mask and no examples"),
        ({"masks": ["de", "sw", "tr"]}, r"tr has no mask, or a mask and no examples"),
        ({"dynamic": {}, "train": ("classifier*",)}, r"train or forward is given beside a dyn"),
        ({"dynamic": {}, "forward": True}, r"train or forward is given beside a dynamic mask"),
        ({"dynamic": {"forward": True}}, r"train or forward is given.*the same forward in both"),
        ({"dynamic": {"start": ["de", "sw"]}, "base": "mbert"}, r"'tiny' and the model on 'mbert'"),
        ({"base": "mbert"}, r"mask of de stands on the base 'tiny' and the model on 'mbert'"),
        ({"dynamic": {"start": ["de"]}}, r"sw is trained and has no mask to start from"),
    ],
)
def test_turns_that_cannot_be_taken_are_refused(tmp_path, change, message):
    given = dict(change)
    data = {name: features()[name] for name in given.pop("data", ["de", "sw"])}
    drawn = starts({"de": 0.3, "sw": 0.7, "tr": 0.5})
    masks = {name: drawn[name] for name in given.pop("masks", data)}
    if "dynamic" in given:
        options = dict(given.pop("dynamic"))
        if "start" in options:
            options["start"] = {name: drawn[name] for name in options["start"]}
        masks = DynamicMask(SETTINGS, **options)
    model = encoder()
    before = state(model)
    with pytest.raises(InputError, match=message):
        fit_in_turns(
            model, data, RECIPE.replace(steps=given.pop("steps", 7)), masks=masks, collate=collate,
            seed=0, folder=tmp_path, **given,
        )  # fmt: skip
    assert all(p.requires_grad and same_bits(p, before[n]) for n, p in model.named_parameters())


def test_too_few_languages_of_steps_and_lost_or_other_checkpoints_are_refused(tmp_path):
    mask = DynamicMask(SETTINGS, languages=["de", "sw"] * 3)
    model = encoder()
    with pytest.raises(InputError, match=r"languages of 6 steps are given.*each of 7 steps"):
        alone(model, tmp_path, mask)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(InputError, match=r"there is no mask of de yet"):
        mask.subnetwork("de", "tiny")
    with pytest.raises(InputError, match=r"sw is trained and has no mask to start from"):
        DynamicMask(SETTINGS, start=starts({"de": 0.1}), languages=["de", "sw"])
    with pytest.raises(InputError, match=r"masks to start from are of de, and no languages"):
        DynamicMask(SETTINGS, start=starts({"de": 0.1})).attach(model)

    short = RECIPE.replace(steps=4)
    in_turns(encoder(), tmp_path, DynamicMask(SETTINGS), short, save_every=2)
    kept = tmp_path / "checkpoint-4"
    for other in (
        DynamicMask(SETTINGS, forward=True),
        DynamicMask(SETTINGS, start=starts({"de": 0.1, "sw": 0.4})),
    ):
        with pytest.raises(FileFormatError, match=r"dynamic_mask.*other settings or over other"):
            in_turns(encoder(), tmp_path, other, resume=kept, forward=other.forward)
    for other in ("alone", "languages"):
        named = {"languages": ["de", "tr"] * 4} if other == "languages" else {}
        with pytest.raises(FileFormatError, match=r"dynamic_mask.*other settings or over other"):
            alone(encoder(), tmp_path, DynamicMask(SETTINGS, **named), resume=kept)
    (kept / "dynamic_mask.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"dynamic_mask.safetensors: is not there"):
        in_turns(encoder(), tmp_path, DynamicMask(SETTINGS), resume=kept)


def test_a_mask_that_has_let_go_can_hold_another_model(tmp_path):
    """With nothing left of the first training: not its languages, not its masks."""
    mask = DynamicMask(SETTINGS)
    in_turns(encoder(), tmp_path, mask)
    again, fresh = encoder(1), encoder(1)
    mask.tell(["de"] * 7)
    alone(again, tmp_path, mask)
    expected = DynamicMask(SETTINGS, languages=["de"] * 7)
    alone(fresh, tmp_path, expected)
    assert mask.history.equals(expected.history)
    assert all(same_bits(p, fresh.get_parameter(n)) for n, p in again.named_parameters())
