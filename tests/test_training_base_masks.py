"""`[subnetworks] during`: masks that hold while the base is trained, in episodes and without."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import subnet
from file_trainings import file_config, write_examples, write_model
from subnet.errors import InputError, NotComparableError, SubnetError
from subnet.subnetwork import Subnetwork, load_subnetwork, load_subnetworks
from subnet.training import train
from training_makers import digests, small_config, train_until

LANGUAGES = ["de", "fr", "ru"]
FULL = {"languages": LANGUAGES, "adaptation": {"tuning": "full"}}
META = {"method": "meta", "steps": 6, "support": 3, "query": 3}
BASES = {"turns": {"method": "turns", "steps": 6}, "meta": META}
DYNAMIC = {"method": "dynamic", "density": 0.1, "every": 2}
ENCODER = "encoder.layer"


def weights(folder):
    return load_file(folder / "model.safetensors")


def masks_of(directory):
    found = load_subnetworks(subnet.open_checkpoint(directory))
    return {str(mask.language): mask for mask in found}


def moved_outside(before, after, mask):
    """How many weights outside a mask differ, and inside; heads and poolers left aside."""
    first, second = weights(before), weights(after)
    outside = inside = 0
    for name, value in second.items():
        if "classifier" in name or "pooler" in name:
            continue
        moved = (value != first[name]).numpy()
        within = np.zeros(moved.shape, bool)
        if name in mask.shapes:
            within = mask.dense(name).reshape(moved.shape)
        outside += int((moved & ~within).sum())
        inside += int((moved & within).sum())
    return outside, inside


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A trained model in `start/base`, and `masks/` on it: random ones, each language's own."""
    folder = tmp_path_factory.mktemp("base_masks")
    train(small_config(**FULL, output={"stages": "none"}), folder / "start")
    identity = subnet.open_checkpoint(folder / "start").base_identity()
    for number, language in enumerate(LANGUAGES):
        rng = np.random.default_rng(number)
        parts = {
            name: rng.random(tuple(value.shape)) < 0.3
            for name, value in weights(folder / "start/base").items()
            if ENCODER in name and value.ndim == 2
        }
        mask = Subnetwork.from_arrays(parts, language=language, base=identity)
        (folder / "found/masks").mkdir(parents=True, exist_ok=True)
        mask.save(folder / f"found/masks/{language}.safetensors")
    return folder


def static(start, out, base, during="both", **parts):
    config = small_config(
        **FULL,
        model={"name": "start/base"},
        base=base,
        subnetworks={"method": "static", "masks": "found", "during": during, **parts},
    )
    train(config, out, folder=start)
    return out


@pytest.mark.parametrize("method", BASES)
@pytest.mark.parametrize("forward", [False, True])
def test_given_masks_hold_in_the_base_and_then_in_the_stages(start, tmp_path, method, forward):
    out = static(start, tmp_path / "run", BASES[method], forward=forward)
    masks = masks_of(start / "found")
    union = masks["de"] | masks["fr"] | masks["ru"]
    outside, inside = moved_outside(start / "start/base", out / "base", union)
    assert outside == 0
    assert inside > 0.9 * union.count
    before, after = weights(start / "start/base"), weights(out / "base")
    for part in ("classifier.weight", "bert.pooler.dense.weight"):  # trained whole beside them
        assert (before[part] != after[part]).all()
    stages = [out / "base", *sorted((out / "stages").iterdir())]
    for first, second in itertools.pairwise(stages):
        outside, inside = moved_outside(first, second, masks[second.name.partition("-")[2]])
        assert outside == 0
        assert inside > 0


@pytest.mark.slow
def test_methods_masks_and_forward_are_all_asked_for_apart(start, tmp_path):
    """Six bases that differ by one setting each are six different models."""
    found = {
        "turns": static(start, tmp_path / "a", BASES["turns"], "base"),
        "turns, forward": static(start, tmp_path / "b", BASES["turns"], "base", forward=True),
        "meta": static(start, tmp_path / "c", META, "base"),
        "meta, forward": static(start, tmp_path / "d", META, "base", forward=True),
    }
    for name, base in BASES.items():
        out = tmp_path / f"unmasked-{name}"
        train(small_config(**FULL, model={"name": "start/base"}, base=base), out, folder=start)
        found[f"{name}, unmasked"] = out
    key = "bert.encoder.layer.0.attention.self.query.weight"
    for a, b in itertools.combinations(found.values(), 2):
        assert not torch.equal(weights(a / "base")[key], weights(b / "base")[key])


def test_masks_of_the_base_alone_leave_the_stages_free(start, tmp_path):
    out = static(start, tmp_path / "run", META, during="base")
    first = next(path for path in (out / "stages").iterdir() if path.name.startswith("01"))
    mask = masks_of(start / "found")[first.name.partition("-")[2]]
    outside, inside = moved_outside(out / "base", first, mask)
    assert outside > inside > 0


@pytest.mark.parametrize("method", BASES)
def test_dynamic_masks_of_the_base_are_those_that_the_stages_begin_with(tmp_path, method):
    wanted = {**DYNAMIC, "during": "both", "every": 3}
    config = small_config(**FULL, base={**BASES[method], "steps": 9}, subnetworks=wanted)
    train(config, tmp_path / "run")
    base = masks_of(tmp_path / "run/base")
    assert set(base) == set(LANGUAGES)
    identity = subnet.open_checkpoint(tmp_path / "run").base_identity()
    assert {mask.base for mask in base.values()} == {identity}
    assert len({mask.count for mask in base.values()}) == 1
    history = pd.read_csv(tmp_path / "run/base/mask_history.csv")
    each = 9 if method == "meta" else 3  # its own steps: an episode in all of them, or a turn
    assert history.groupby("language").size().to_dict() == dict.fromkeys(LANGUAGES, each // 3)
    stages = [tmp_path / "run/base", *sorted((tmp_path / "run/stages").iterdir())]
    later = pd.read_csv(tmp_path / "run/mask_history.csv")
    for first, second in itertools.pairwise(stages):
        language = second.name.partition("-")[2]
        own = later[later["language"] == language]
        assert list(own["step"]) == [0, 3]  # of 4 steps: with the base's, then one of its own
        # Both together are all that may have moved.
        either = base[language] | masks_of(tmp_path / "run")[language]
        outside, inside = moved_outside(first, second, either)
        assert outside == 0
        assert inside > 0
    assert not subnet.open_checkpoint(tmp_path / "run").skipped


def test_masks_that_a_base_found_hold_in_another_training(tmp_path):
    wanted = {**DYNAMIC, "during": "base"}
    config = small_config(languages=LANGUAGES, base=META, subnetworks=wanted)  # stages are LoRA
    train(config, tmp_path / "first")
    second = small_config(
        **FULL,
        model={"name": "first/base"},
        base={"steps": 0},
        subnetworks={"method": "static", "masks": "first/base"},
    )
    train(second, tmp_path / "second", folder=tmp_path)
    masks = masks_of(tmp_path / "first/base")
    stages = [tmp_path / "first/base", *sorted((tmp_path / "second/stages").iterdir())]
    for before, after in itertools.pairwise(stages):
        outside, inside = moved_outside(before, after, masks[after.name.partition("-")[2]])
        assert outside == 0
        assert inside > 0


@pytest.mark.parametrize("phase", ["base", "stage 2"])
def test_a_training_with_masks_of_the_base_goes_on(tmp_path, phase):
    wanted = {**DYNAMIC, "during": "both"}
    config = small_config(**FULL, base=META, subnetworks=wanted, output={"save_every": 1})
    train(config, tmp_path / "whole")
    train_until(config, tmp_path / "run", phase, 3)
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def lost(masks):
    shutil.rmtree(masks)


def of_another_language(masks):
    shutil.copy(masks / "fr.safetensors", masks / "de.safetensors")


def of_another_base(masks):
    mask = load_subnetwork(masks / "de.safetensors")
    replace(mask, base="base (0123456789abcdef)").save(masks / "de.safetensors")


def damaged(masks):
    path = masks / "de.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.fixture(scope="module")
def with_a_base(tmp_path_factory):
    """A training that was stopped when the base was there, and what it is at its end."""
    folder = tmp_path_factory.mktemp("with_a_base")
    wanted = {**DYNAMIC, "during": "both"}
    config = small_config(
        languages=["de", "fr"],
        adaptation={"tuning": "full"},
        data={"max_concepts_per_kind": 6},
        base={**META, "steps": 2},
        training={"steps": 1},
        subnetworks=wanted,
        output={"stages": "none"},
    )

    def stop(doing, *_):
        if doing.startswith("stage 1"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, folder / "stopped", progress=stop)
    train(config, folder / "whole")
    return config, folder


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lost, r"de\.safetensors: is not there; expected the mask of de"),
        (of_another_language, r"de\.safetensors: is the mask of fr"),
        (of_another_base, r"is the mask of de and stands on the base 'base \(0123456789abcdef\)'"),
        (damaged, r"de\.safetensors: is truncated"),
    ],
)
def test_stages_begin_with_the_masks_of_their_base_or_not_at_all(with_a_base, tmp_path, harm, says):
    config, folder = with_a_base
    run = shutil.copytree(folder / "stopped", tmp_path / "run")
    harm(run / "base/masks")
    with pytest.raises(SubnetError, match=says + r".*; remove .*base, and the same command trains"):
        train(config, run)
    if harm is lost:
        shutil.rmtree(run / "base")  # as it says
        train(config, run)
        assert digests(run) == digests(folder / "whole")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"during": "both"},
            r"during is 'both', which has no effect: subnetworks.m",
        ),
        ({"method": "sparse", "density": 0.1, "during": "base"}, r"'static' or 'dynamic'"),
        ({**DYNAMIC, "during": "base", "base": {"steps": 0}}, r"during.*base.steps is 0"),
        (
            {**DYNAMIC, "during": "base", "base": {"method": "pcgrad", "batch_size": 9}},
            r"during is 'base' and base.method is 'pcgrad'.*'meta' or 'turns'",
        ),
        (
            {"method": "static", "masks": "found", "during": "base", "base": META},
            r"model.name is ''.*masks are of",
        ),
        (
            {**DYNAMIC, "during": "base", "base": {"method": "turns", "steps": 2}},
            r"base.steps is 2, and 3 languages take turns",
        ),
        (
            {**DYNAMIC, "during": "both", "adaptation": {"tuning": "lora"}},
            r"method is 'dynamic' and adaptation.tuning is 'lora'",
        ),
        (
            {**DYNAMIC, "density": 1e-7, "during": "base", "base": META},
            r"density is 1e-07, which selects none",
        ),
        ({**DYNAMIC, "during": "base"}, r"during is 'base' and base.method is 'plain'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(start, tmp_path, parts, says):
    tables = {name: parts.pop(name) for name in ("base", "adaptation") if name in parts}
    config = small_config(**{**FULL, **tables}, subnetworks=parts)
    with pytest.raises(InputError, match=says):
        train(config, tmp_path / "run", folder=start)
    assert not (tmp_path / "run/base").exists()


def test_one_language_takes_no_turns(tmp_path):
    write_examples(tmp_path / "data")
    write_model(tmp_path / "model")
    config = file_config(languages=["de"], base={"method": "turns"})
    with pytest.raises(InputError, match=r"base.method is 'turns', and one language is trained"):
        train(config, tmp_path / "run", folder=tmp_path)


def test_turns_without_masks_move_all_and_take_the_batches_of_turns_with_them(start, tmp_path):
    """A mask of everything changes nothing, to the bit; without masks all weights move."""
    free = small_config(**FULL, model={"name": "start/base"}, base=BASES["turns"])
    train(free, tmp_path / "free", folder=start)
    everything = {**DYNAMIC, "density": 1.0, "during": "base"}
    masked = small_config(
        **FULL, model={"name": "start/base"}, base=BASES["turns"], subnetworks=everything
    )
    train(masked, tmp_path / "masked", folder=start)
    before = weights(start / "start/base")
    found, same = weights(tmp_path / "free/base"), weights(tmp_path / "masked/base")
    for name, value in found.items():
        assert torch.equal(value, same[name]), name
        if name.endswith("query.weight"):
            assert (value != before[name]).float().mean() > 0.9
    assert not (tmp_path / "free/base/masks").exists()


def test_masks_of_another_model_are_refused_before_the_base_is_trained(start, tmp_path):
    train(small_config(**FULL, seed=3, output={"stages": "none"}), tmp_path / "other")
    config = small_config(
        **FULL,
        model={"name": str(tmp_path / "other/base")},
        base=META,
        subnetworks={"method": "static", "masks": "found", "during": "base"},
    )
    with pytest.raises(NotComparableError, match=r"the mask of de stands on the base"):
        train(config, tmp_path / "run", folder=start)
    assert not (tmp_path / "run").exists()


def test_a_base_that_was_trained_in_masks_is_another_one(tmp_path):
    """Masks of a training stand on its base; without its masks the same steps give another."""
    train(
        small_config(**FULL, base=META, subnetworks={**DYNAMIC, "during": "both"}), tmp_path / "a"
    )
    wanted = {"method": "static", "masks": "a"}
    config = small_config(**FULL, base=META, subnetworks=wanted)
    with pytest.raises(NotComparableError, match=r"during 'both' and not 'stages'"):
        train(config, tmp_path / "b", folder=tmp_path)
