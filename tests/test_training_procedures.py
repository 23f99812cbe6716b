"""Configurations of subnetworks, of the base's training, and of translation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import subnet
from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.model import load_model
from subnet.subnetwork import load_subnetworks
from subnet.training import train
from training_makers import digests, small_config

LANGUAGES = ["de", "fr", "ru"]
FULL = {"languages": LANGUAGES, "adaptation": {"tuning": "full"}}


def weights(path):
    return load_file(path / "model.safetensors")


def masks_of(directory):
    found = load_subnetworks(subnet.open_checkpoint(directory))
    return {str(mask.language): mask for mask in found}


def stages_of(directory):
    return [directory / "base", *sorted((directory / "stages").iterdir())]


def changed_outside(directory, masks):
    """Per stage: how many weights outside the mask of its language moved, and inside."""
    places = stages_of(directory)
    for before, after in itertools.pairwise(places):
        first, second = weights(before), weights(after)
        mask = masks[after.name.partition("-")[2]]
        outside = inside = 0
        for name, value in second.items():
            moved = (value != first[name]).numpy()
            inside_here = np.zeros(moved.shape, bool)
            if name in mask.counts:
                inside_here = mask.dense(name).reshape(moved.shape)
            outside += int((moved & ~inside_here).sum())
            inside += int((moved & inside_here).sum())
        yield outside, inside


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    directory = tmp_path_factory.mktemp("procedures") / "sparse"
    train(small_config(**FULL, subnetworks={"method": "sparse", "density": 0.1}), directory)
    return directory


def test_sparse_tuning_moves_a_tenth_of_the_weights_of_each_language_and_says_which(sparse):
    masks = masks_of(sparse)
    assert set(masks) == set(LANGUAGES)
    for outside, inside in changed_outside(sparse, masks):
        assert outside == 0
        assert inside > 0
    for mask in masks.values():
        assert mask.density == pytest.approx(0.1, abs=0.001)
    assert len(subnet.measure_overlap(list(masks.values())).to_frame())


def test_static_masks_hold_in_another_training(sparse, tmp_path):
    config = small_config(**FULL, subnetworks={"method": "static", "masks": "sparse"})
    train(config, tmp_path / "static", folder=sparse.parent)
    for outside, inside in changed_outside(tmp_path / "static", masks_of(sparse)):
        assert outside == 0
        assert inside > 0


def test_dynamic_masks_keep_their_size_and_are_recorded(tmp_path):
    wanted = {"method": "dynamic", "density": 0.1, "every": 2}
    config = small_config(**FULL, subnetworks=wanted)
    train(config, tmp_path / "run")
    history = pd.read_csv(tmp_path / "run/mask_history.csv")
    assert set(history["language"]) == set(LANGUAGES)
    assert len(set(history["count"])) == 1
    assert list(history[history["stage"] == 1]["step"]) == [0, 2]
    assert set(masks_of(tmp_path / "run")) == set(LANGUAGES)
    assert not subnet.open_checkpoint(tmp_path / "run").skipped


@pytest.mark.parametrize("method", ["meta", "pcgrad"])
def test_the_base_is_trained_by_another_method_and_its_conflicts_are_recorded(tmp_path, method):
    own = {"meta": {"support": 3, "query": 3}, "pcgrad": {"batch_size": 9}}[method]
    languages = ["de", "fr", "ru"]
    bases = []
    for name, settings in (("plain", {"batch_size": 9}), (method, {"method": method, **own})):
        recorded = {"steps": 6, "conflict_every": 3, **settings}
        config = small_config(languages=languages, base=recorded, training={"steps": 1})
        train(config, tmp_path / name)
        bases.append(weights(tmp_path / name / "base"))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(bases[0][name], bases[1][name])
    frame = pd.read_csv(tmp_path / method / "conflict.csv")
    whole = frame[frame["level"] == "all"]
    assert set(whole["step"]) == {0, 3, 6}
    assert len(whole) == 3 * 3  # pairs of three languages
    assert whole["cosine"].between(-1, 1).all()


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_translation_is_trained_scored_and_goes_on(tmp_path, kind):
    config = small_config(
        task="translation",
        languages=["en>de", "de>en"],
        data={"max_concepts_per_kind": 16, "max_length": 64, "max_test": 3},
        model={"kind": kind, "layers": 2},
        translation={"also_tested": ["en>ru"], "instruction": "{target_code} {source}"},
    )
    train(config, tmp_path / "whole")
    checkpoint = subnet.open_checkpoint(tmp_path / "whole")
    frame = checkpoint.scores.frame
    assert {"loss", "chrf", "bleu"} <= set(frame["metric"])
    assert set(frame["language"]) == {"en>de", "de>en", "en>ru"}
    assert sorted(checkpoint.settings.order) == ["de>en", "en>de"]
    assert len(subnet.measure_overlap(checkpoint.steps).to_frame())
    model = load_model(checkpoint, stage=1)
    assert model.can_generate()
    assert model.config.is_encoder_decoder == (kind == "encoder-decoder")

    class StopError(Exception):
        pass

    def stop(doing, *_):
        if doing.startswith("stage 2"):
            raise StopError

    with pytest.raises(StopError):
        train(config, tmp_path / "stopped", progress=stop)
    train(config, tmp_path / "stopped")
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        (
            {"subnetworks": {"method": "sparse"}},
            InputError,
            r"method is 'sparse' and adaptation.tuning is 'lora'.*tuning = 'full'",
        ),
        ({"translation": {"alignment": True}}, InputError, r"task is 'sequence-classification'"),
        (
            {**FULL, "subnetworks": {"method": "static", "masks": "gone"}},
            MissingInputError,
            r"gone: there is no such directory of masks",
        ),
        (
            {"base": {"method": "pcgrad", "batch_size": 10}, "languages": LANGUAGES},
            InputError,
            r"batch of 10 cannot be divided among 3 languages",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, parts, error, says):
    with pytest.raises(error, match=says):
        train(small_config(**parts), tmp_path / "run", folder=tmp_path)


def test_masks_of_another_base_or_too_few_are_refused(sparse, tmp_path):
    wanted = {"method": "static", "masks": "sparse"}
    other = small_config(**FULL, subnetworks=wanted, seed=5)
    with pytest.raises(NotComparableError, match="base"):
        train(other, tmp_path / "other", folder=sparse.parent)
    more = {**FULL, "languages": [*LANGUAGES, "ar"]}
    with pytest.raises(MissingInputError, match=r"no mask of ar.*masks of de, fr, ru"):
        train(small_config(**more, subnetworks=wanted), tmp_path / "more", folder=sparse.parent)
