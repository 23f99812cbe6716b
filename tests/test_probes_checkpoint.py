"""Probing a checkpoint: what was lost is found where it was lost, and nothing where nothing was."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import checkpoint_makers as makers
import planted_probing as planted
from subnet import measure_forgetting, open_checkpoint
from subnet.errors import InputError, MissingInputError, OutputError
from subnet.subnetwork import load_subnetworks
from subnet_probes import (
    CheckpointProbingSettings,
    ProbeSettings,
    _checkpoint_analyses,
    _checkpoint_models,
    _probe_cost,
    cross_lingual_transfer,
    drift,
    language_similarity,
    probe_checkpoint,
    probe_labels,
    probe_language,
    probe_tokens,
    representations,
)
from subnet_probes.probing_result import COLUMNS, TRANSFER_COLUMNS

N, LANGUAGES = planted.N, planted.LANGUAGES
FAST = ProbeSettings(folds=2, n_random=0, mdl=False, n_resamples=20)
#: All that takes no masks.
ANALYSES = ("language", "labels", "tokens", "transfer", "similarity", "drift")


def settings(*analyses, **further):
    options = {"analyses": analyses or ANALYSES, "probe": FAST, "n_shuffles": 3} | further
    return CheckpointProbingSettings(**options)


@contextlib.contextmanager
def counted():
    """Sentences that pass an encoder meanwhile, whoever runs it."""
    seen = []

    def hook(module, arguments, keywords, output):
        if isinstance(module, transformers.BertModel):
            seen.append(len(keywords["input_ids"]))

    handle = torch.nn.modules.module.register_module_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probing")
    return planted.write_checkpoint(folder / "arc", adapter="sw", masks=True)


@pytest.fixture(scope="module")
def passes_and_found(root):
    with counted() as seen:
        found = probe_checkpoint(root, settings=settings())
    return sum(seen), found


@pytest.fixture(scope="module")
def found(passes_and_found):
    return passes_and_found[1]


def accuracies(frame, task="label"):
    return frame[(frame["metric"] == "accuracy") & (frame["task"] == task)]


def same(frame, expected):
    """Equal numbers and names, whatever columns stand around them."""
    left, right = (x.reset_index(drop=True) for x in (frame[list(expected.columns)], expected))
    pd.testing.assert_frame_equal(left, right, check_dtype=False, rtol=1e-9)


# Planted truth and null


def test_what_a_stage_destroys_is_lost_there_and_nowhere_else(found):
    rows = accuracies(found.probes)
    lost = (
        (rows["stage"] == planted.STAGE)
        & (rows["language"] == planted.LOST)
        & (rows["layer"] == planted.LAYER)
    ).fillna(False)
    assert lost.sum() == 1
    assert (rows.loc[~lost, "score"] == 1).all()
    after = rows[lost].iloc[0]
    assert after["ci_low"] < after["majority"]
    assert after["score"] < 0.6
    # Tags and languages are other directions.
    assert (accuracies(found.probes, "tag")["score"] == 1).all()
    assert (accuracies(found.probes, "language")["score"] == 1).all()
    diagonal = found.transfer.query(
        "train_language == test_language and task == 'label' and metric == 'accuracy'"
    )
    low = diagonal[diagonal["score"] < 0.9]
    assert len(diagonal) == 2 * 2 * 3
    assert low[["stage", "layer", "train_language"]].to_numpy().tolist() == [
        [planted.STAGE, planted.LAYER, planted.LOST]
    ]


def test_only_what_was_destroyed_drifts(found):
    moved = found.drift[found.drift["value"].abs() > 1e-6]
    assert set(moved["measure"]) == {"cka_distance", "procrustes_distance", "cosine_distance"}
    assert moved[["stage", "since", "language", "layer"]].drop_duplicates().to_numpy().tolist() == [
        [planted.STAGE, planted.STAGE - 1, planted.LOST, planted.LAYER]
    ]
    assert (moved["value"] > 0.01).all()


def test_stages_that_are_copies_of_the_base_drift_nowhere_and_lose_nothing(tmp_path):
    root = planted.write_checkpoint(tmp_path / "null", destroyed=False)
    found = probe_checkpoint(root, settings=settings("labels", "drift"))
    assert found.drift["value"].abs().max() < 1e-6
    values = found.probes.drop(columns=["run", "stage", "trained_language", "model"])
    base, end = (values[(found.probes["stage"] == n).fillna(False)] for n in (0, 3))
    assert len(base) == 2 * 3 * 3
    same(end, base)


# The numbers are those of the functions


def test_rows_are_those_of_each_function_on_its_model(root, found):
    checkpoint = open_checkpoint(root)
    examples = planted.examples()

    def rows(task, **place):
        chosen = found.probes["task"] == task
        for name, value in place.items():
            chosen &= (found.probes[name] == value).fillna(False)
        return found.probes[chosen]

    assert list(found.probes.columns) == [
        "run", "stage", "trained_language", "model", *COLUMNS, "subnetwork"
    ]  # fmt: skip
    stage = 3
    whole = representations(checkpoint, examples, stage=stage)
    words = representations(checkpoint, examples, stage=stage, pool="token")
    same(rows("label", stage=stage), probe_labels(whole, settings=FAST).frame)
    same(rows("language", stage=stage), probe_language(whole, settings=FAST).frame)
    same(rows("tag", stage=stage), probe_tokens(words, settings=FAST).frame)
    moved = found.transfer[found.transfer["stage"] == stage]
    parts = [
        cross_lingual_transfer(one, target=target, layers=["1", "2"], settings=FAST).frame
        for one, target in ((whole, "label"), (words, "tag"))
    ]
    same(moved, pd.concat(parts))
    alike = found.similarity[found.similarity["stage"] == stage]
    parts = [language_similarity(whole, m, n_shuffles=3) for m in ("cka", "retrieval")]
    same(alike, pd.concat(parts))
    base = representations(checkpoint, examples, stage=0)
    same(rows("label", stage=0), probe_labels(base, settings=FAST).frame)
    assert list(found.transfer.columns) == ["run", "stage", *TRANSFER_COLUMNS]
    assert list(found.similarity.columns[:2]) == ["run", "stage"]
    own = representations(checkpoint, [e for e in examples if e["language"] == "fr"], stage=2)
    same(rows("label", stage=2), probe_labels(own, settings=FAST).frame)
    assert set(rows("label", stage=2)["language"]) == {"fr"}
    mine = [e for e in examples if e["language"] == "sw"]
    adapted = representations(checkpoint, mine, language="sw")
    adapter = rows("label", model="adapter")
    same(adapter, probe_labels(adapted, settings=FAST).frame)
    assert adapter["stage"].isna().all()
    assert set(adapter["trained_language"]) == {"sw"}
    between = {n: representations(checkpoint, examples, stage=n) for n in (1, 2)}
    every = {0: base, **between, 3: whole}
    same(found.drift, drift(every, n_shuffles=3))


def test_one_pass_for_each_model_and_level_whatever_is_probed(root, passes_and_found):
    n = len(LANGUAGES) * N
    sentences = (1 + 3) * n + N  # base, stages, the adapter's own language
    words = 2 * n + 2 * N + N  # base and last, other stages' own, the adapter's own
    assert passes_and_found[0] == sentences + words
    with counted() as seen:
        probe_checkpoint(root, settings=settings("labels", layers=[-1]))
    assert sum(seen) == 2 * n + 2 * N + N


def test_drift_joins_the_effects_of_training(root, found, tmp_path):
    shutil.copytree(root, tmp_path / "arc")
    makers.write_scores(tmp_path / "arc" / "scores.csv", LANGUAGES)
    effects = measure_forgetting(open_checkpoint(tmp_path / "arc").scores).effects
    joined = found.drift.merge(
        effects[effects["metric"] == "loss"], on=["run", "stage", "language"]
    )
    assert len(joined) == len(found.drift) == 3 * 3 * 3 * 3


# Masks


def test_planted_neurons_are_those_of_their_language_and_of_no_other(root):
    found = probe_checkpoint(root, settings=settings("units"))
    assert set(found.tables()) == {"probe_units"}
    rows = found.units[found.units["layer"] == "layers.1.neurons"]
    assert len(rows) == len(LANGUAGES) ** 2
    own = rows["language"] == rows["mask_language"]
    assert (rows.loc[own, "overlap"] == 1).all()
    assert (rows.loc[~own, "overlap"] == 0).all()


def test_labels_without_the_own_subnetwork_are_those_of_the_model_without_it(root):
    found = probe_checkpoint(root, settings=settings("labels", subnetwork=True, stages="ends"))
    removed = found.probes[found.probes["subnetwork"] == "removed"]
    checkpoint = open_checkpoint(root)
    masks = load_subnetworks(checkpoint)
    # Of de and fr the base is the nearest to a model of their own, where the ends are looked at.
    for label, place in (("de", {"stage": 0}), ("sw", {"stage": 3})):
        rows = [e for e in planted.examples() if e["language"] == label]
        without = representations(checkpoint, rows, subnetwork=masks[label], **place)
        mine = removed[removed["language"] == label]
        same(mine, probe_labels(without, settings=FAST).frame)
        assert set(mine["stage"]) == {place["stage"]}
    assert (found.probes.loc[found.probes["subnetwork"] == "", "language"] == "de").any()


def test_masks_that_are_asked_for_must_be_there(root, tmp_path):
    shutil.copytree(root, tmp_path / "arc", ignore=shutil.ignore_patterns("masks"))
    with pytest.raises(MissingInputError, match="holds no masks"):
        probe_checkpoint(tmp_path / "arc", settings=settings("labels", subnetwork=True))
    with pytest.raises(MissingInputError, match="holds no masks"):
        probe_checkpoint(root, settings=settings("labels", subnetwork=tmp_path / "arc"))


# Which models


def test_a_further_run_shares_the_base_and_what_was_found_there(root, tmp_path):
    shutil.copytree(root, tmp_path / "arc", ignore=shutil.ignore_patterns("stages", "masks"))
    shutil.copytree(root / "adapters" / "sw", tmp_path / "arc" / "runs" / "b" / "adapters" / "de")
    with counted() as seen:
        found = probe_checkpoint(tmp_path / "arc", settings=settings("labels", "language"))
    assert sum(seen) == 3 * N + N + N
    probes = found.probes
    base = [probes[(probes["run"] == run) & (probes["model"] == "base")] for run in ("main", "b")]
    same(base[1].drop(columns="run"), base[0].drop(columns="run"))
    own = probes[probes["model"] == "adapter"]
    assert set(zip(own["run"], own["trained_language"], strict=True)) == {
        ("main", "sw"), ("b", "de"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "looked_at", "steps"),
    [
        ("ends", {0, 3}, {(3, 0)}),
        ("auto", {0, 1, 2, 3}, {(3, 0)}),  # where all are too many
        ("all", {0, 1, 2, 3}, {(1, 0), (2, 1), (3, 2)}),
    ],
)
def test_which_stages(root, monkeypatch, stages, looked_at, steps):
    monkeypatch.setattr(_checkpoint_models, "LIMIT", 1.0)
    with counted() as seen:
        found = probe_checkpoint(root, settings=settings("labels", "drift", stages=stages))
    assert set(found.probes["stage"].dropna()) == looked_at
    assert set(zip(found.drift["stage"], found.drift["since"], strict=True)) == steps
    told = [line for line in found.warnings if "drift is from the base to the last" in line]
    assert len(told) == (stages == "auto")
    whole, own = {"ends": (2, 1), "auto": (2, 3), "all": (4, 1)}[stages]
    assert sum(seen) == whole * 3 * N + own * N


def test_examples_are_of_the_same_concepts_in_all_languages(root):
    found = probe_checkpoint(root, settings=settings("similarity", examples=12, stages="ends"))
    assert set(found.similarity["n"]) == {12}
    assert found.provenance.settings["n_examples"] == dict.fromkeys(LANGUAGES, 12)


def test_probes_that_would_take_long_are_thrifty_and_say_so(root, monkeypatch):
    monkeypatch.setattr(_probe_cost, "LIMIT", 1.0)
    thrifty = settings("labels", stages="ends", probe=None)
    found = probe_checkpoint(root, settings=thrifty)
    assert found.probes["codelength"].isna().all()
    assert found.provenance.settings["probe"]["sentence"]["holdout"] is True
    assert (accuracies(found.probes)["n"] < N / 2).all()
    assert any("without codelengths: cross-validation takes about" in x for x in found.warnings)


def test_cost_is_that_of_the_fits(root, monkeypatch):
    """Items × units × classes of all fits, counted where scikit-learn or whatever fits is given."""
    found = representations(root, planted.examples(), layers=[1, 2])
    point = _checkpoint_models.Point("main", "base", 0, "", True, True, "")
    bare = ProbeSettings(folds=2, n_random=0, n_controls=0, mdl=False)
    monkeypatch.setattr(_probe_cost, "_PER_FIT", 0.0)
    per_number = _probe_cost._PER_NUMBER * planted.WIDTH
    labels, languages = 3 * 2 * (N / 2) * 2, 2 * (3 * N / 2) * 3
    cost = _probe_cost.probe_cost([point], found, "sentence", bare)
    assert cost == pytest.approx(2 * per_number * (labels + languages))


# What cannot be done


def rewritten(root, folder, change, **ignore):
    """A copy without stages whose examples were changed."""
    skipped = shutil.ignore_patterns("stages", "masks", "adapters")
    shutil.copytree(root, folder, ignore=skipped)
    rows = [change(dict(row)) for row in planted.examples()]
    makers.write_json_lines(folder / "test.jsonl", [row for row in rows if row])
    return folder


def test_what_the_examples_do_not_say_is_missing_and_the_rest_goes_on(root, tmp_path):
    def plain(row):
        return {name: row[name] for name in ("id", "language", "text")}

    found = probe_checkpoint(
        rewritten(root, tmp_path / "arc", plain),
        settings=settings(*ANALYSES, "units"),
    )
    assert set(found.tables()) == {"probes"}
    assert set(found.probes["task"]) == {"language"}
    reasons = {entry.analysis: entry.reason for entry in found.missing}
    assert reasons == {
        "labels": "no example of test.jsonl has a label",
        "tokens": "no example of test.jsonl has tagged words",
        "transfer": "no example of test.jsonl has a label",
        "similarity": "no example of test.jsonl has a concept",
        "drift": "there are no stages of training",
        "units": "there are no masks of neurons or heads",
    }
    assert all(entry.fix for entry in found.missing)
    with pytest.raises(MissingInputError, match=r"allows nothing that was asked for.*has a label"):
        probe_checkpoint(tmp_path / "arc", settings=settings("labels"))


def test_a_language_that_cannot_be_probed_has_a_reason_and_others_go_on(root, tmp_path):
    def one_label(row):
        return row | ({"label": "A"} if row["language"] == "fr" else {})

    found = probe_checkpoint(
        rewritten(root, tmp_path / "arc", one_label), settings=settings("labels", "transfer")
    )
    rows = accuracies(found.probes)
    assert set(rows.loc[rows["language"] == "fr", "reason"]) == {
        "fr has one label left to tell apart"
    }
    assert rows.loc[rows["language"] != "fr", "score"].notna().all()
    labels = found.transfer[found.transfer["task"] == "label"]
    assert set(labels["train_language"]) == {"de", "sw"}
    assert "transfer of labels: fr has 1 label in 30 groups, and there are 2 folds; left out" in (
        " ".join(found.warnings)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"analyses": ("probes",)}, "analysis is 'probes'; expected one of language, labels"),
        ({"analyses": "labels"}, "analyses is 'labels'; expected some of"),
        ({"pool": "token"}, "pool is 'token'; expected one of mean, first, last"),
        ({"split": "dev"}, "split is 'dev'; expected one of test, validation, train"),
        ({"stages": "last"}, "stages is 'last'; expected auto, all, ends, or numbers"),
        ({"stages": []}, r"stages is \[\]"),
        ({"examples": -1}, "examples is -1; expected 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_settings_out_of_range(given, message):
    with pytest.raises(InputError, match=message):
        CheckpointProbingSettings(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages": [0, 9]}, r"has no stage 9; expected some of 0, 1, 2, 3"),
        ({"layers": [5]}, "layer 5 is asked for and BertModel has 2 layers"),
        ({"split": "train"}, r"has no train\.jsonl"),
        ({"measures": ("ckaa",), "analyses": ("similarity",)}, "measure is 'ckaa'"),
        ({"pair_layers": [7], "analyses": ("transfer",)}, "there is no layer 7"),
    ],
)
def test_what_is_asked_for_and_does_not_exist(root, given, message):
    with pytest.raises((InputError, MissingInputError), match=message):
        probe_checkpoint(root, settings=settings("labels", **given) if "analyses" not in given
                         else settings(*given.pop("analyses"), stages="ends", **given))  # fmt: skip


# Files


def test_tables_are_saved_with_how_they_were_made(root, found, tmp_path):
    found.save(tmp_path / "out")
    names = ["drift", "probe_transfer", "probes", "representation_similarity"]
    assert sorted(found.tables()) == names
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [*(f"{name}.csv" for name in names), "run.json"]
    read = pd.read_csv(
        tmp_path / "out" / "probes.csv", keep_default_na=False, na_values=[""], dtype={"layer": str}
    )
    assert list(read.columns) == list(found.probes.columns)
    np.testing.assert_allclose(read["score"], found.probes["score"], rtol=1e-6)
    assert read["stage"].isna().sum() == (found.probes["model"] == "adapter").sum()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] == "probe"
    assert {"test.jsonl", "base/model.safetensors"} <= set(record["inputs"])
    assert str(tmp_path) not in json.dumps(record)
    with pytest.raises(OutputError, match="is already there"):
        found.save(tmp_path / "out")
    found.save(tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match="is inside the directory that is read"):
        found.save(root / "probes")


def test_what_is_in_the_store_is_not_run_again(root, tmp_path):
    options = {"stages": "ends", "store": tmp_path / "store"}
    first = probe_checkpoint(root, settings=settings("labels", **options))
    with counted() as seen:
        again = probe_checkpoint(root, settings=settings("labels", **options))
    assert seen == []
    pd.testing.assert_frame_equal(again.probes, first.probes)
    with pytest.raises(OutputError, match="is inside the directory that is read"):
        probe_checkpoint(root, settings=settings("labels", store=root / "store"))
    with pytest.raises(InputError, match="holds representations made with other"):
        probe_checkpoint(root, settings=settings("labels", examples=20, **options))


def test_probes_that_take_long_are_fitted_on_all_cores_unasked(root, monkeypatch):
    seen = []
    original = _checkpoint_analyses.probe_labels

    def spied(*given, **further):
        seen.append(further["settings"].n_jobs)
        return original(*given, **further)

    monkeypatch.setattr(_checkpoint_analyses, "probe_labels", spied)
    one = probe_checkpoint(root, settings=settings("labels", stages="ends")).probes
    monkeypatch.setattr(_checkpoint_analyses, "PARALLEL", 0)
    many = probe_checkpoint(root, settings=settings("labels", stages="ends")).probes
    fixed = probe_checkpoint(root, settings=settings("labels", stages="ends", n_jobs=1)).probes
    assert {*seen} == {None, -1, 1}
    pd.testing.assert_frame_equal(one, many)
    pd.testing.assert_frame_equal(one, fixed)
