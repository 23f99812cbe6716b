"""Density against score: equal to surgery by hand, from the base to the whole model."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

import validation_makers as planted
from checkpoint_makers import lora, save_adapter, write_json_lines
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError
from subnet.model import load_model
from subnet.subnetwork import extract, random_like
from subnet.training.tokenizer import build_tokenizer
from subnet.validation import sweep

DENSITIES = (0.5, 0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return planted.write_checkpoint(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def checkpoint(root):
    return open_checkpoint(root)


@pytest.fixture(scope="module")
def found(checkpoint):
    return sweep(checkpoint, densities=DENSITIES, n_random=2)


def by_hand(model, language):
    """Oracle: (loss, hit) of one example at a time."""
    tokenizer = build_tokenizer(24)
    rows = []
    for i, text in list(enumerate(planted.TEXTS[language]))[4:]:
        label = model.config.label2id[planted.KINDS[i]]
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        out = model(input_ids=ids, labels=torch.tensor([label]))
        rows.append((out.loss.item(), float(out.logits.argmax() == label)))
    return np.array(rows).T


def keeping(checkpoint, language, mask):
    """Oracle: the base, with ΔW added where the mask is true."""
    model = copy.deepcopy(load_model(checkpoint))
    update = next(u for u in checkpoint.updates if u.language.label == language)
    state = model.state_dict()
    for name in mask.shapes:
        state[name] += update.dense(name) * torch.from_numpy(mask.dense(name))
    return model.eval()


def test_every_point_equals_the_base_with_a_part_of_the_update(checkpoint, found):
    frame = found.frame.set_index(["language", "density", "condition"])
    assert len(frame) == 3 * 4 * 2
    for density in DENSITIES:
        masks = extract(checkpoint, density=density)
        for language in planted.TEXTS:
            whole, _ = by_hand(load_model(checkpoint, language=language, merge=True), language)
            mask = masks[language]
            randoms = [random_like(mask, seed) for seed in range(2)]
            for condition, several in (("kept", [mask]), ("random_kept", randoms)):
                models = [keeping(checkpoint, language, one) for one in several]
                loss, hits = np.mean([by_hand(model, language) for model in models], axis=0)
                row = frame.loc[(language, density, condition)]
                assert row["loss"] == pytest.approx(loss.mean(), rel=1e-4)
                assert row["accuracy"] == pytest.approx(hits.mean())
                assert row["change"] == pytest.approx((loss - whole).mean(), rel=1e-3, abs=1e-5)
                assert row["ci_low"] <= row["change"] <= row["ci_high"]
                assert (row["n_kept"], row["n"]) == (mask.count, 5)
                assert (row["n_masks"], row["how"]) == (len(several), "base")


def test_the_ends_are_the_base_and_the_whole_model(checkpoint, found):
    frame = found.frame.set_index(["language", "density", "condition"])
    base = load_model(checkpoint)
    for language in planted.TEXTS:
        whole = load_model(checkpoint, language=language, merge=True)
        for condition in ("kept", "random_kept"):
            none, full = (frame.loc[(language, d, condition)] for d in (0.0, 1.0))
            assert none["loss"] == pytest.approx(by_hand(base, language)[0].mean(), rel=1e-5)
            assert full["loss"] == pytest.approx(by_hand(whole, language)[0].mean(), rel=1e-5)
            assert (full["change"], full["n_kept"], none["n_kept"]) == (0, 3072, 0)
    for density in (0.0, 0.1, 0.5, 1.0):
        for language in planted.TEXTS:
            row = frame.loc[(language, density, "kept")]
            none, full = (frame.loc[(language, d, "kept"), "loss"] for d in (0.0, 1.0))
            if none > full:
                expected = (none - row["loss"]) / (none - full)
                assert row["recovered"] == pytest.approx(expected)
                assert row["reason"] == ""
            else:
                assert np.isnan(row["recovered"])
                assert "no better than nothing" in row["reason"]


def test_the_curve_has_densities_in_order(found):
    curve = found.curve(value="loss")
    assert list(curve.index) == [0.0, 0.1, 0.5, 1.0]
    assert list(curve.columns) == list(found.languages) == ["de", "fr", "sw"]
    rows = found.frame[found.frame["condition"] == "kept"]
    for _, row in rows.iterrows():
        assert curve.loc[row["density"], row["language"]] == row["loss"]
    assert found.provenance.settings["method"] == "magnitude"
    assert found.provenance.settings["densities"] == [0.1, 0.5]
    for arguments, message in (
        ({"condition": "whole"}, "condition is 'whole'"),
        ({"value": "run"}, "value is 'run'"),
        ({"run": "other"}, "run is 'other'"),
    ):
        with pytest.raises(InputError, match=message):
            found.curve(**arguments)


def test_a_sweep_by_a_method_that_runs_the_model_zeroes_or_restores(checkpoint):
    options = {"densities": [0.3], "n_random": 1, "method": "taylor"}
    base = sweep(checkpoint, **options)
    zero = sweep(checkpoint, how="zero", **options)
    masks = extract(checkpoint, method="taylor", density=0.3)
    for result, how in ((base, "base"), (zero, "zero")):
        assert set(result.frame["how"]) == {how}
        row = result.frame.query("language == 'fr' and density == 0.3 and condition == 'kept'")
        model = keeping(checkpoint, "fr", masks["fr"])
        if how == "zero":
            model = load_model(checkpoint, language="fr", merge=True)
            for name in masks["fr"].shapes:
                weight = model.get_parameter(name)
                weight.data *= torch.from_numpy(masks["fr"].dense(name))
        assert row["loss"].item() == pytest.approx(by_hand(model, "fr")[0].mean(), rel=1e-4)


def test_a_planted_sparse_update_is_kept_whole_by_its_own_density(tmp_path):
    """A rank-one update of a few large entries amid small ones: the curve bends where it ends."""
    root = planted.write_checkpoint(tmp_path / "sparse")
    target = r".*layer\.1\.intermediate\.dense"
    for seed, label in enumerate(planted.TEXTS, start=1):
        shutil.rmtree(root / "adapters" / label)
        clean = BertForSequenceClassification.from_pretrained(root / "base")
        adapted = lora(clean, seed, target_modules=target, r=1, lora_alpha=1)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.fill_(1e-6)
                    side = 6 if "lora_B" in name else 4  # of 24 × 16: 6.25 %
                    part = parameter[:side] if "lora_B" in name else parameter[:, :side]
                    part.copy_(torch.randn(part.shape) * 2)
        save_adapter(adapted, root / "adapters" / label)
    result = sweep(open_checkpoint(root), densities=[0.03, 24 / 384, 0.3], n_random=3)
    kept, random = result.curve(value="change"), result.curve("random_kept", value="change")
    assert (kept.loc[[24 / 384, 0.3, 1.0]].abs() < 1e-4).all(axis=None)
    assert (kept.loc[0.0].abs() > 1e-2).all()
    assert (random.loc[24 / 384].abs() > 1e-3).all()


def test_a_stage_starts_from_the_stage_before(tmp_path):
    checkpoint = open_checkpoint(planted.write_checkpoint(tmp_path / "stages", stages=True))
    result = sweep(checkpoint, densities=[0.2], n_random=0)
    for number, label in enumerate(planted.TEXTS, start=1):
        curve = result.curve()[label]
        for density, stage in ((0.0, number - 1), (1.0, number)):
            model = load_model(checkpoint, stage=stage, merge=True)
            assert curve[density] == pytest.approx(by_hand(model, label)[0].mean(), rel=1e-5)
    assert set(result.frame["condition"]) == {"kept"}


def test_a_language_without_examples_has_empty_cells_with_a_reason(root, tmp_path):
    other = shutil.copytree(root, tmp_path / "copy")
    lines = (other / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["language"] != "fr"]
    write_json_lines(other / "test.jsonl", rows)
    result = sweep(open_checkpoint(other), densities=[0.2], n_random=1)
    empty = result.frame[result.frame["language"] == "fr"]
    assert len(empty) == 6
    assert empty["loss"].isna().all()
    assert set(empty["reason"]) == {"no test example of fr"}
    assert result.warnings == ("there is no test example of fr",)
    assert result.curve()["fr"].isna().all()
    (other / "test.jsonl").unlink()
    with pytest.raises(MissingInputError, match=r"has no test\.jsonl"):
        sweep(open_checkpoint(other), densities=[0.2])


def test_bad_requests_are_named(checkpoint):
    cases = [
        ({"densities": []}, "densities are"),
        ({"densities": 0.1}, "several shares"),
        ({"densities": [0.0]}, "density is 0"),
        ({"densities": [1.5]}, "density is 1.5"),
        ({"densities": [1.0]}, "one below 1 at least"),
        ({"densities": [1e-9]}, "selects none of the"),
        ({"how": "mean"}, "how is 'mean'"),
        ({"n_examples": 0}, "n_examples is 0"),
        ({"n_random": -1}, "n_random is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"scope": "galaxy"}, "scope is 'galaxy'"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            sweep(checkpoint, **arguments)
