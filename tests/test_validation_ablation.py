"""Removing subnetworks: equal to surgery by hand, found where planted, nowhere else."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import model_makers as makers
import validation_makers as planted
from checkpoint_makers import write_json_lines
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.model import find_units, load_model
from subnet.subnetwork import Subnetwork, extract, random_like
from subnet.subnetwork.unit_conversion import units_to_weights
from subnet.subnetwork.units import subnetwork_of_units
from subnet.training.tokenizer import build_tokenizer
from subnet.validation import ablate, ablation_cost
from subnet.validation._permutations import relabelled, sign_flip
from subnet.validation._specificity import Effects, _contrasts, _overall, specificity

FEW = {"n_random": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return planted.write_checkpoint(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def checkpoint(root):
    return open_checkpoint(root)


@pytest.fixture(scope="module")
def subnets(checkpoint):
    return extract(checkpoint, density=0.3)


@pytest.fixture(scope="module")
def found(checkpoint, subnets):
    return ablate(checkpoint, subnets, **FEW)


def copy_of(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def losses_by_hand(model, language):
    """Oracle: one example at a time, through the loss that transformers computes."""
    tokenizer = build_tokenizer(24)
    texts = planted.TEXTS[language][4:]
    model.eval()
    found = []
    for i, text in enumerate(texts, start=4):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        label = model.config.label2id[planted.KINDS[i]]
        out = model(input_ids=ids, labels=torch.tensor([label]))
        found.append((out.loss.item(), float(out.logits.argmax() == label)))
    return np.array(found).T


def edited(model, mask, values, *, keep):
    """Oracle: a copy of the model with weights set by hand, one by one."""
    other = copy.deepcopy(model)
    state = other.state_dict()
    for name in mask.shapes:
        chosen = mask.dense(name)
        for place in np.argwhere(chosen != keep):
            at = tuple(place)
            state[name][at] = 0.0 if values is None else values[name][at]
    return other


@pytest.mark.parametrize("how", ["base", "zero"])
def test_every_cell_equals_surgery_by_hand(checkpoint, subnets, how):
    result = ablate(checkpoint, subnets["fr"], how=how, **FEW)
    frame = result.frame.set_index(["condition", "test_language"])
    model = load_model(checkpoint, language="fr", merge=True)
    values = load_model(checkpoint).state_dict() if how == "base" else None
    mask = subnets["fr"]
    randoms = [random_like(mask, seed) for seed in range(3)]
    variants = {
        "whole": [model],
        "removed": [edited(model, mask, values, keep=False)],
        "kept": [edited(model, mask, values, keep=True)],
        "random_removed": [edited(model, other, values, keep=False) for other in randoms],
        "random_kept": [edited(model, other, values, keep=True) for other in randoms],
    }
    assert len(frame) == 5 * 3
    seen = set()
    for condition, models in variants.items():
        for language in planted.TEXTS:
            whole, _ = losses_by_hand(model, language)
            loss, correct = np.mean([losses_by_hand(m, language) for m in models], axis=0)
            row = frame.loc[(condition, language)]
            assert row["loss"] == pytest.approx(loss.mean(), rel=1e-5)
            assert row["accuracy"] == pytest.approx(correct.mean())
            assert row["change"] == pytest.approx((loss - whole).mean(), rel=1e-4, abs=1e-6)
            assert (row["n"], row["how"], row["n_masks"]) == (5, how, len(models))
            if condition == "whole":
                assert (row["change"], row["ci_low"], row["ci_high"]) == (0, 0, 0)
                continue
            assert row["ci_low"] <= row["change"] <= row["ci_high"]
            if len(models) > 1:
                by_seed = [losses_by_hand(m, language)[0].mean() - whole.mean() for m in models]
                assert row["seed_low"] == pytest.approx(min(by_seed), abs=1e-5)
                assert row["seed_high"] == pytest.approx(max(by_seed), abs=1e-5)
            seen.add(round(row["loss"], 6))
    assert len(seen) == 12


def test_removing_all_that_changed_is_the_base_and_keeping_all_is_the_whole(checkpoint, subnets):
    most = extract(checkpoint, density=0.999)["de"]
    assert most.count == most.size - 3
    result = ablate(checkpoint, most, n_random=0)
    removed = result.matrix("removed", value="loss").loc["de"]
    base = [losses_by_hand(load_model(checkpoint), label)[0].mean() for label in removed.index]
    np.testing.assert_allclose(removed, base, atol=1e-3)
    assert result.matrix("kept").abs().to_numpy().max() < 1e-3
    assert result.matrix("removed").abs().to_numpy().max() > 0.1


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_units_are_gated_as_if_their_columns_were_zero(checkpoint, kind):
    model = load_model(checkpoint, language="sw", merge=True)
    units = find_units(model)
    n = units.n_heads if kind == "head" else units.n_neurons
    chosen = np.random.default_rng(0).random(n) < 0.3
    base = checkpoint.updates[0].base
    mask = subnetwork_of_units(chosen, units, kind, language="sw", base=base)
    result = ablate(checkpoint, mask, **FEW)
    blocks = units.split_heads if kind == "head" else units.split_neurons
    for condition, dead in (("removed", chosen), ("kept", ~chosen)):
        other = copy.deepcopy(model)
        for block, part in blocks(torch.from_numpy(dead)):
            out = block.output if kind == "head" else block.down
            columns = part.repeat_interleave(block.head_dim) if kind == "head" else part
            with torch.no_grad():
                other.get_submodule(out.module).weight[:, columns] = 0
        row = result.matrix(condition, value="loss").loc["sw"]
        for label in planted.TEXTS:
            assert row[label] == pytest.approx(losses_by_hand(other, label)[0].mean(), rel=1e-5)
    assert set(result.frame["how"]) == {"zero"}


def test_batch_size_changes_nothing_but_rounding(checkpoint, subnets, found):
    other = ablate(checkpoint, subnets, n_random=3, batch_size=1)
    for column in ("loss", "change", "accuracy", "ci_low", "ci_high"):
        np.testing.assert_allclose(other.frame[column], found.frame[column], rtol=1e-4, atol=1e-6)
    same = ablate(checkpoint, subnets, **FEW)
    pd.testing.assert_frame_equal(same.frame, found.frame)
    pd.testing.assert_frame_equal(same.specificity, found.specificity)


def test_a_stage_is_put_back_to_the_stage_before(tmp_path):
    checkpoint = open_checkpoint(planted.write_checkpoint(tmp_path / "run", stages=True))
    masks = extract(checkpoint, density=0.3)
    result = ablate(checkpoint, masks, n_random=0, conditions=["removed"])
    for number, label in enumerate(planted.TEXTS, start=1):
        after = load_model(checkpoint, stage=number, merge=True)
        before = load_model(checkpoint, stage=number - 1, merge=True).state_dict()
        other = edited(after, masks[label], before, keep=False)
        expected = [losses_by_hand(other, test)[0].mean() for test in result.languages]
        row = result.matrix("removed", value="loss").loc[label]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_masks_of_the_base_are_tried_on_the_base(checkpoint):
    masks = extract(checkpoint, method="wanda", density=0.1, model="base")
    result = ablate(checkpoint, masks, n_random=0)
    base = load_model(checkpoint)
    row = result.matrix("whole", value="loss")
    for label in planted.TEXTS:
        expected = losses_by_hand(base, label)[0].mean()
        np.testing.assert_allclose(row[label], expected, rtol=1e-5)
    removed = losses_by_hand(edited(base, masks["de"], None, keep=False), "fr")[0].mean()
    assert result.matrix("removed", value="loss").loc["de", "fr"] == pytest.approx(removed)
    assert set(result.frame["how"]) == {"zero"}
    control = random_like(masks["de"], 5)  # says where it is from in `of`
    again = ablate(checkpoint, control, n_random=0).matrix("whole", value="loss")
    np.testing.assert_allclose(again.loc["de"], row.loc["de"])
    with pytest.raises(InputError, match="how is 'base' and the model of de is the base itself"):
        ablate(checkpoint, masks["de"], how="base")


def heads_of(label, units):
    chosen = np.zeros(units.n_heads, dtype=bool)
    chosen[list(planted.CARRIERS[label])] = True
    return subnetwork_of_units(chosen, units, "head", language=label, base="hand-made")


@pytest.mark.parametrize(("granularity", "concepts"), [("head", True), ("weight", False)])
def test_a_planted_subnetwork_hurts_its_language_and_no_other(granularity, concepts):
    model = planted.carried()
    units = find_units(model)
    masks = [heads_of(label, units) for label in planted.LANGUAGES]
    if granularity == "weight":
        masks = [units_to_weights(mask, units) for mask in masks]
    data = planted.carried_examples(24, concepts=concepts)
    result = ablate(model, masks, data=data)
    removed = result.matrix("removed")
    own = np.diag(removed)
    assert (own > 0.2).all()
    assert np.abs(removed.to_numpy()[~np.eye(4, dtype=bool)]).max() < 1e-6
    without = result.matrix("removed", value="loss")
    np.testing.assert_allclose(np.diag(without), np.log(3), rtol=1e-5)
    kept = result.matrix("kept", value="loss")
    np.testing.assert_allclose(np.diag(kept), np.diag(result.matrix("whole", value="loss")))
    np.testing.assert_allclose(kept.to_numpy()[~np.eye(4, dtype=bool)], np.log(3), rtol=1e-5)
    verdict = result.specificity.set_index("language")
    assert verdict["specific"].all()
    assert (verdict["paired"] == concepts).all()
    assert (verdict["q_value"] <= 0.05).all()
    np.testing.assert_allclose(verdict["own"], own)
    np.testing.assert_allclose(verdict["others"], 0, atol=1e-6)
    value = verdict["own"] - verdict["random_own"] - verdict["others"] + verdict["random_others"]
    np.testing.assert_allclose(verdict["value"], value)
    assert ((verdict["ci_low"] < value) & (value < verdict["ci_high"])).all()
    (overall,) = result.overall.to_dict("records")
    assert overall["p_value"] < 0.001
    assert bool(result.warnings) != concepts


def test_anothers_subnetwork_is_not_specific():
    """Masks go round by one: each hurts a language, and never its own."""
    model = planted.carried()
    units = find_units(model)
    labels = planted.LANGUAGES
    masks = [
        subnetwork_of_units(
            np.concatenate(list(map(heads_of(other, units).dense, ["layers.0.heads"]))),
            units, "head", language=label, base="hand-made",
        )
        for label, other in zip(labels, labels[1:] + labels[:1], strict=True)
    ]  # fmt: skip
    result = ablate(model, masks, data=planted.carried_examples(16), conditions=["removed"])
    assert not result.specificity["specific"].any()
    assert (result.specificity["p_value"] > 0.5).all()
    assert result.overall["p_value"].item() > 0.5


@pytest.mark.usefixtures("quick")
def test_one_language_under_four_names_has_no_subnetwork_of_its_own():
    """Null: the examples are one language's, the masks hurt it, and names are drawn at random."""
    model = makers.make("bert").float()
    units = find_units(model)
    n_found = n_tested = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        data = []
        for number in range(40):
            ids = rng.integers(5, 40, size=6).tolist()
            row = {"input_ids": ids, "labels": int(rng.integers(3))}
            data.append({**row, "language": planted.LANGUAGES[number % 4]})
        masks = []
        for label in planted.LANGUAGES:
            chosen = rng.permutation(units.n_neurons) < 8
            details = {"language": label, "base": "random"}
            masks.append(subnetwork_of_units(chosen, units, "neuron", **details))
        result = ablate(model, masks, data=data, conditions=["removed"], seed=seed)
        assert result.frame["change"].abs().max() > 0.01
        n_found += int(result.specificity["specific"].sum())
        n_tested += int(result.specificity["testable"].sum())
    assert n_tested == 24
    assert n_found <= 1


def simulated(rng, *, planted_effect=0.0, n=30, n_random=20, labels=planted.LANGUAGES, paired=True):
    """Effects of masks: fragile languages, destructive masks, items of their own."""
    fragile = {label: np.exp(rng.normal(0, 0.5)) for label in labels}
    concepts = [f"c{i}" for i in range(n)]
    found = []
    for label in labels:
        removed, random = {}, {}
        # Masks hit languages differently, the found one no more than the random ones.
        hits = rng.gamma(2, 0.1, size=(1 + n_random, len(labels)))
        item = rng.normal(0, 0.1, size=n)
        for j, test in enumerate(labels):
            noise = rng.normal(0, 0.1, size=(1 + n_random, n))
            values = fragile[test] * (hits[:, [j]] + noise + item)
            if test == label:
                values[0] += planted_effect
            removed[test], random[test] = values[0], values[1:]
        said = dict.fromkeys(labels, concepts) if paired else None
        found.append(Effects(label, removed, random, said))
    return found


@pytest.fixture
def quick(monkeypatch):
    for module in ("_permutations", "_specificity"):
        monkeypatch.setattr(f"subnet.validation.{module}.N_PERMUTATIONS", 999)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("paired", [True, False])
def test_masks_that_are_like_random_ones_are_not_called_specific(paired):
    """Null: languages differ in what they lose to any mask. The examples alone would say yes."""
    n_seeds, found, p_random, naive = 40, 0, [], 0
    for seed in range(n_seeds):
        rows, _ = specificity(simulated(np.random.default_rng(seed), paired=paired), seed=seed)
        found += any(row["specific"] for row in rows)
        p_random += [row["p_random"] for row in rows]
        naive += any(row["p_examples"] <= 0.05 / len(rows) for row in rows)
    assert naive > 0.5 * n_seeds  # which is why random masks are needed
    assert found <= 0.1 * n_seeds
    assert np.mean(np.array(p_random) <= 0.05) <= 0.08
    assert 0.35 < np.mean(p_random) < 0.65


def test_masks_that_hurt_their_own_language_are_found_together_and_alone():
    rng = np.random.default_rng(0)
    rows, overall = specificity(simulated(rng, planted_effect=3.0), seed=0)
    assert all(row["specific"] for row in rows)
    assert overall["p_value"] < 0.001
    effects = simulated(rng, planted_effect=3.0)[:1] + simulated(rng)[1:]
    rows, _ = specificity(effects, seed=0)
    assert [row["specific"] for row in rows] == [True, False, False, False]


@pytest.mark.usefixtures("quick")
def test_the_test_over_all_languages_rejects_as_often_as_it_says():
    p = []
    for seed in range(200):
        effects = simulated(np.random.default_rng(seed), n=4, n_random=5)
        p.append(_overall([_contrasts(e) for e in effects], seed)["p_value"])
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1
    assert 0.42 < np.mean(p) < 0.58


def test_intervals_are_percentiles_of_resampled_means():
    from subnet.validation._intervals import Resampling

    values = np.random.default_rng(0).gamma(1, 1, size=40)
    low, high = Resampling(40, 0).interval(values)
    oracle = stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, method="percentile", rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=0.03)
    assert Resampling(3, 0).interval(np.full(3, 2.0)) == (2, 2)
    assert np.isnan(Resampling(1, 0).interval(np.ones(1))).all()


def test_p_values_over_examples_are_those_of_scipy():
    rng = np.random.default_rng(0)
    few = rng.normal(0.3, 1, size=9)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1).T
    exact = np.mean((signs * few).mean(axis=1) >= few.mean() - 1e-12)
    assert sign_flip(few, 0) == (pytest.approx(exact), 1 / 512)
    many = rng.normal(0.2, 1, size=60)
    p, smallest = sign_flip(many, 0)
    assert p == pytest.approx(stats.ttest_1samp(many, 0, alternative="greater").pvalue, abs=0.02)
    assert smallest == 1e-4
    own, rest = rng.normal(0.5, 2, size=30), rng.normal(0, 1, size=90)
    p, _ = relabelled(own, [rest[:50], rest[50:]], 0)
    welch = stats.ttest_ind(own, rest, equal_var=False, alternative="greater").pvalue
    assert p == pytest.approx(welch, abs=0.02)
    assert sign_flip(np.zeros(5), 0) == (1.0, 1.0)


def test_what_too_few_masks_or_examples_cannot_say_is_not_said():
    model = planted.carried()
    units = find_units(model)
    masks = [heads_of(label, units) for label in planted.LANGUAGES]
    data = planted.carried_examples(24)
    few = ablate(model, masks, data=data, n_random=3, conditions=["removed"])
    assert few.specificity["smallest_p"].to_list() == pytest.approx([1 / 13] * 4)
    assert not few.specificity["testable"].any()
    assert not few.specificity["specific"].any()
    assert few.specificity["reason"].str.contains("no q-value below 0.077").all()
    assert few.overall["p_value"].item() <= 1 / 4**4 + 1e-12  # together they can
    none = ablate(model, masks, data=data, n_random=0)
    assert none.specificity["p_value"].isna().all()
    assert none.specificity["reason"].str.contains("no random mask").all()
    assert "random_removed" not in set(none.frame["condition"])
    two = ablate(model, masks, data=planted.carried_examples(2), conditions=["removed"])
    assert not two.specificity["testable"].any()
    alone = [row for row in data if row["language"] == "de"]
    one = ablate(model, masks[:1], data=alone)
    assert "no other language" in one.specificity["reason"].item()
    assert one.overall["p_value"].isna().all()
    assert "no language has" in one.overall["reason"].item()


def test_parallel_examples_are_drawn_together():
    model = planted.carried()
    units = find_units(model)
    data = planted.carried_examples(30)
    rng = np.random.default_rng(0)
    data = [data[i] for i in rng.permutation(len(data))]
    result = ablate(model, [heads_of("de", units)], data=data, n_examples=12, n_random=3)
    assert result.specificity["paired"].all()
    assert (result.frame["n"] == 12).all()


def test_a_live_model_is_left_bitwise_as_it_was_and_with_dropout_on():
    model = makers.make("bert").float()
    units = find_units(model)
    rng = np.random.default_rng(0)
    mask = subnetwork_of_units(rng.random(4) < 0.5, units, "head", language="de", base="x")
    as_weights = units_to_weights(mask, units)
    data = [
        {"language": label, "input_ids": rng.integers(5, 40, 5).tolist(), "labels": 1}
        for label in ("de", "fr")
        for _ in range(4)
    ]
    still = {}
    for subnetwork in (mask, as_weights):
        still[subnetwork.granularity] = ablate(model, subnetwork, data=data, **FEW).frame
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    model.bert.pooler.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for subnetwork in (mask, as_weights):
        again = ablate(model, subnetwork, data=data, **FEW).frame
        pd.testing.assert_frame_equal(again, still[subnetwork.granularity])

    def fail(module, given, output):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("on the way")

    calls = []
    hook = model.classifier.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        ablate(model, as_weights, data=data, n_random=3, batch_size=2)
    hook.remove()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_units_of_an_adapted_model_are_those_of_the_merged_one():
    model = makers.make("bert_lora").float()
    merged = copy.deepcopy(model).merge_and_unload()
    units = find_units(model)
    rng = np.random.default_rng(1)
    mask = subnetwork_of_units(rng.random(4) < 0.5, units, "head", language="de", base="x")
    data = [
        {"language": label, "input_ids": rng.integers(5, 40, 5).tolist(), "labels": i % 3}
        for label in ("de", "fr")
        for i in range(4)
    ]
    apart = ablate(model, mask, data=data, **FEW).frame
    together = ablate(merged, mask, data=data, **FEW).frame
    np.testing.assert_allclose(apart["loss"], together["loss"], rtol=1e-4)
    assert apart["change"].abs().max() > 0.01
    with pytest.raises(InputError, match="carries an adapter, and the mask of de is of weights"):
        ablate(model, units_to_weights(mask, units), data=data)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mt5", "m2m", "bert_tagger"])
def test_other_tasks_and_architectures(name):
    model = makers.make(name).float()
    units = find_units(model)
    chosen = np.arange(units.n_heads) % 2 == 0
    mask = subnetwork_of_units(chosen, units, "head", language="de", base="x")
    rows = makers.examples(name, (6, 4, 6, 5, 6))
    data = [{**row, "language": "de" if i % 2 else "fr"} for i, row in enumerate(rows)]
    result = ablate(model, mask, data=data, **FEW)
    collate = makers.collate_for(name)
    for label in ("de", "fr"):
        own = [row for row in data if row["language"] == label]
        plain = [{k: v for k, v in row.items() if k != "language"} for row in own]
        expected = [model(**collate([row])).loss.item() for row in plain]
        assert result.matrix("whole", value="loss").loc["de", label] == pytest.approx(
            np.mean(expected), rel=1e-5
        )
    assert result.frame["accuracy"].isna().all() == (name != "bert_tagger")


def test_the_cost_is_what_is_computed(checkpoint, subnets, monkeypatch):
    from subnet.validation._examples import Batches

    n_calls = []
    score = Batches.score
    monkeypatch.setattr(Batches, "score", lambda b, m: (n_calls.append(1), score(b, m))[1])
    ablate(checkpoint, subnets, n_random=7)
    cost = ablation_cost(checkpoint, subnets, n_random=7)
    assert (cost.n_masks, cost.n_passes, cost.n_examples) == (3, 3 * (3 + 7 + 5), 15)
    assert cost.n_passes == len(n_calls)
    assert cost.forward_examples == cost.n_passes * 15
    assert ablation_cost(checkpoint, subnets, conditions=["kept"], n_random=0).n_passes == 6
    assert ablation_cost(checkpoint, subnets, n_examples=2).n_examples == 6


def test_the_matrix_and_the_table_say_the_same(found, subnets):
    assert found.languages == ("de", "fr", "sw")
    table = found.matrix("kept", value="accuracy")
    assert list(table.index) == list(table.columns) == ["de", "fr", "sw"]
    for _, row in found.frame[found.frame["condition"] == "kept"].iterrows():
        assert table.loc[row["mask_language"], row["test_language"]] == row["accuracy"]
    assert found.provenance.settings["data"] == "test.jsonl"
    assert found.provenance.seed == 0
    for arguments, message in (
        ({"condition": "gone"}, "condition is 'gone'"),
        ({"value": "language"}, "value is 'language'"),
        ({"run": "other"}, "run is 'other'"),
    ):
        with pytest.raises(InputError, match=message):
            found.matrix(**arguments)


def test_a_language_without_test_examples_has_cells_with_a_reason(root, subnets, tmp_path):
    other = copy_of(root, tmp_path)
    lines = (other / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["language"] != "sw"]
    write_json_lines(other / "test.jsonl", rows)
    result = ablate(open_checkpoint(other), subnets, **FEW)
    assert result.matrix("removed")["sw"].isna().all()
    assert result.matrix("removed").loc["sw", ["de", "fr"]].notna().all()
    cells = result.frame[result.frame["test_language"] == "sw"]
    assert set(cells["reason"]) == {"no test example of sw"}
    assert "there is no test example of sw" in result.warnings
    verdict = result.specificity.set_index("language").loc["sw"]
    assert np.isnan(verdict["p_value"])
    assert verdict["reason"] == "no test example of sw"


def test_training_examples_are_never_taken_unasked(root, subnets, tmp_path):
    other = copy_of(root, tmp_path)
    (other / "test.jsonl").unlink()
    checkpoint = open_checkpoint(other)
    with pytest.raises(
        MissingInputError, match=r"has no test\.jsonl, and what a model was trained"
    ):
        ablate(checkpoint, subnets)
    result = ablate(checkpoint, subnets["de"], data=checkpoint.examples("train"), n_random=0)
    assert any("4 of 4 examples of de are training examples" in w for w in result.warnings)


def test_the_examples_that_a_mask_was_found_on_are_refused(checkpoint):
    masks = extract(checkpoint, method="taylor", density=0.1)
    with pytest.raises(InputError, match="the mask of de was found on these very 4 examples"):
        ablate(checkpoint, masks, data=checkpoint.examples("train"))
    assert len(ablate(checkpoint, masks, n_random=0).frame) == 27


def test_losses_that_are_no_numbers_are_said_to_be_so():
    model = makers.make("bert").float()
    name = "classifier.weight"
    shape = tuple(model.classifier.weight.shape)
    chosen = np.ones(shape, dtype=bool)
    chosen[0, 0] = False
    mask = Subnetwork.from_arrays({name: chosen}, language="de", base="x")
    with torch.no_grad():
        model.classifier.weight[0, 0] = np.nan
    data = [
        {"language": label, "input_ids": [7, 8, 9], "labels": 1} for label in ("de", "de", "fr")
    ]
    result = ablate(model, mask, data=data, n_random=3)
    cells = result.frame[result.frame["condition"] == "removed"]
    assert cells["loss"].isna().all()
    assert cells["reason"].to_list() == [
        "the loss of 2 of 2 examples is no number", "the loss of 1 of 1 examples is no number",
    ]  # fmt: skip
    assert any("losses that are no numbers" in line for line in result.warnings)
    assert not result.specificity["specific"].any()


def test_an_example_without_a_label_counts_for_nothing():
    model = makers.make("bert_tagger").float()
    units = find_units(model)
    mask = subnetwork_of_units(np.arange(units.n_heads) < 3, units, "head", language="de", base="x")
    rows = makers.examples("bert_tagger", (6, 4, 6, 5))
    data = [{**row, "language": "de" if i % 2 else "fr"} for i, row in enumerate(rows)]
    empty = {"input_ids": [5, 6, 7], "labels": [-100] * 3, "language": "de"}
    with_it = ablate(model, mask, data=[*data, empty], **FEW)
    without = ablate(model, mask, data=data, **FEW)
    pd.testing.assert_frame_equal(with_it.frame, without.frame)
    nothing = ablate(model, mask, data=[empty, *[r for r in data if r["language"] == "fr"]], **FEW)
    cells = nothing.frame[nothing.frame["test_language"] == "de"]
    assert set(cells["reason"]) == {"no test example of de has a label"}


def test_bad_requests_are_named(checkpoint, subnets):
    de = subnets["de"]
    arrays = {name: de.dense(name) for name in de.shapes}
    details = {"language": "de", "base": de.base}
    none = Subnetwork.from_arrays({n: np.zeros_like(a) for n, a in arrays.items()}, **details)
    foreign = Subnetwork.from_arrays({"other.weight": np.eye(4) > 0}, **details)
    name = next(iter(arrays))
    narrow = Subnetwork.from_arrays({name: arrays[name][:4]}, **details)
    unknown = Subnetwork.from_arrays(arrays, language="xx", base=de.base)
    heads = subnetwork_of_units(
        [True] + [False] * 7, find_units(load_model(checkpoint)), "head", **details
    )
    cases = [
        (lambda: ablate("here", de), InputError, "the source is str"),
        (lambda: ablate(checkpoint, []), MissingInputError, "no subnetwork to try"),
        (lambda: ablate(checkpoint, [de, de]), InputError, "two masks in the run main"),
        (lambda: ablate(checkpoint, none), InputError, "de selects nothing"),
        (lambda: ablate(checkpoint, ~none), InputError, "selects everything that it is over"),
        (lambda: ablate(checkpoint, foreign), NotComparableError, r"covers other\.weight"),
        (lambda: ablate(checkpoint, narrow), NotComparableError, r"\[4, .*has it as \[16, 16\]"),
        (lambda: ablate(checkpoint, de, how="mean"), InputError, "how is 'mean'"),
        (lambda: ablate(checkpoint, de, model="best"), InputError, "model is 'best'"),
        (lambda: ablate(checkpoint, heads, how="base"), InputError, "is of heads"),
        (lambda: ablate(checkpoint, de, conditions=[]), InputError, "conditions are"),
        (lambda: ablate(checkpoint, de, conditions=["gone"]), InputError, "condition is 'gone'"),
        (lambda: ablate(checkpoint, de, n_examples=0), InputError, "n_examples is 0"),
        (lambda: ablate(checkpoint, de, n_random=-1), InputError, "n_random is -1"),
        (lambda: ablate(checkpoint, de, batch_size=0), InputError, "batch_size is 0"),
        (lambda: ablate(checkpoint, de, seed=-1), InputError, "seed is -1"),
        (lambda: ablate(checkpoint, de, data=[{"text": "a"}]), InputError, "names no language"),
        (lambda: ablate(checkpoint, de, data=[]), MissingInputError, "no example is of a language"),
        (lambda: ablate(checkpoint, unknown), MissingInputError, r"no example .* \(xx\)"),
        (
            lambda: ablate(checkpoint, unknown, model="trained", data=[
                {"language": "xx", "text": "a", "label": "unit"}]),
            MissingInputError, "has no update of xx in the run main",
        ),
        (lambda: ablate(planted.carried(), de), MissingInputError, "without examples; give data="),
        (
            lambda: ablate(planted.carried(), de, data=planted.carried_examples(2), model="base"),
            InputError, "a live model is given",
        ),
        (
            lambda: ablate(checkpoint, de, data=[{"language": "de", "text": "a", "label": "x"}]),
            InputError, "the label 'x'",
        ),
    ]  # fmt: skip
    for act, error, message in cases:
        with pytest.raises(error, match=message):
            act()
