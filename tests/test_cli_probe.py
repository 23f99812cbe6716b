"""`subnet probe`: prints what was lost, writes tables, and says clearly what cannot be done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoint_makers as makers
import planted_probing as planted
from test_imports import loaded_after

FAST = ("--folds", "2", "--no-mdl", "--stages", "ends")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return planted.write_checkpoint(tmp_path_factory.mktemp("cli-probe") / "arc")


@pytest.fixture
def arc(original, tmp_path, monkeypatch):
    """A copy to break, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "arc")
    return Path("arc")


def refused(run, *arguments):
    """The one line that a wrong input gets; checks that nothing is left."""
    code, out, err = run("probe", *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert err.startswith("subnet: ")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["arc"]
    return err


def analyses(*names):
    return [part for name in names for part in ("--analysis", name)]


def rewrite(arc, change):
    """Examples that were changed one by one; those for which nothing comes back are left out."""
    rows = [change(dict(row)) for row in planted.examples()]
    makers.write_json_lines(arc / "test.jsonl", [row for row in rows if row])


def rows_of(out, language):
    """Cells of the printed lines of a language."""
    return [line.split() for line in out.splitlines() if language in line.split()]


# What it does


def test_it_prints_what_was_lost_and_writes_the_tables(arc, subnet):
    code, out, err = subnet(
        "probe", arc, *analyses("language", "labels", "drift"), "--folds", "2", "--no-mdl"
    )
    assert (code, err) == (0, "")
    assert "Accuracy of probes at the last layer, written to arc-probes/" in out
    (lost,), (kept,) = rows_of(out, "de"), rows_of(out, "fr")
    header = next(line.split() for line in out.splitlines() if "own_stage" in line)
    assert header == ["task", "language", "base", "own_stage", "end", "change", "selectivity",
                      "majority", "best_layer", "best"]  # fmt: skip
    cells = dict(zip(header, lost, strict=True))
    assert (cells["base"], cells["own_stage"], cells["best"]) == ("1", "1", "1")
    assert float(cells["end"]) < 0.6
    assert float(cells["change"]) == pytest.approx(float(cells["end"]) - 1, abs=0.002)
    assert cells["best_layer"] in ("0", "1")
    assert kept[2:6] == ["1", "1", "1", "0"]
    assert sorted(path.name for path in Path("arc-probes").iterdir()) == [
        "drift.csv", "probes.csv", "run.json",
    ]  # fmt: skip
    read = pd.read_csv("arc-probes/probes.csv", dtype={"layer": str})
    end = read.query("stage == 3 and layer == '2' and language == 'de' and metric == 'accuracy'")
    assert float(cells["end"]) == pytest.approx(end["score"].item(), abs=0.001)


def test_json_holds_every_table_and_what_was_not_possible(arc, subnet):
    shutil.rmtree(arc / "stages")
    code, out, err = subnet("probe", arc, *analyses("labels", "drift"), *FAST, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["missing"] == [
        {
            "analysis": "drift",
            "reason": "there are no stages of training",
            "fix": "add stages/<NN>-<language>/",
        }
    ]
    assert len(found["probes"]) == 3 * 3 * 2
    assert {row["codelength"] for row in found["probes"]} == {None}
    assert subnet("probe", arc, *analyses("labels"), *FAST, "--quiet", "--out", "b") == (0, "", "")


def test_options_reach_the_settings(arc, subnet):
    code, _, _ = subnet(
        "probe", arc, *analyses("labels", "similarity", "transfer"), "--layers", "0", "--layers",
        "-1", "--pair-layers", "-1", "--pool", "first", "--stages", "0,2", "--examples", "20",
        "--folds", "4", "--holdout", "--seed", "3", "--store", "kept", "--batch-size", "8",
    )  # fmt: skip
    assert code == 0
    made = json.loads(Path("arc-probes/run.json").read_text())["settings"]
    assert made["layers"] == [0, -1]
    assert (made["pool"], made["stages"], made["examples"], made["seed"]) == (
        "first",
        [0, 2],
        20,
        3,
    )
    probe = made["probe"]["sentence"]
    assert (probe["folds"], probe["holdout"], probe["mdl"]) == (4, True, True)
    assert (Path("kept") / "main" / "stage-2-sentences" / "representations.json").is_file()
    for name in ("probe_transfer", "representation_similarity"):
        assert set(pd.read_csv(f"arc-probes/{name}.csv")["layer"]) == {2}


def test_masks_are_taken_from_a_directory(arc, subnet):
    planted.write_masks(Path("found/masks"))
    options = (*analyses("labels", "units"), *FAST, "--subnetwork", "found")
    assert subnet("probe", arc, *options, "--quiet") == (0, "", "")
    units = pd.read_csv("arc-probes/probe_units.csv")
    assert {"language", "mask_language", "enrichment"} <= set(units)
    rows = pd.read_csv("arc-probes/probes.csv", keep_default_na=False)
    assert set(rows["subnetwork"]) == {"", "removed"}


def test_help_is_light():
    code = (
        "import contextlib, io\n"
        "sys.argv = ['subnet', 'probe', '--help']\n"
        "import subnet_cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    subnet_cli.main()\n"
        "import subnet_probes"
    )
    assert loaded_after(code) == set()


# Bad input


def test_a_class_that_is_seen_once_is_left_out_and_named(arc, subnet):
    rewrite(arc, lambda row: row | ({"label": "C"} if row["id"] == "fr-3" else {}))
    code, _, err = subnet("probe", arc, *analyses("labels"), *FAST)
    assert code == 0
    assert err == (
        "warning: fr: label 'C' occurs once and cannot be both trained and tested; left out "
        "(base, stage 3)\n"
    )


def test_a_constant_unit_is_told(arc, subnet):
    path = arc / "base" / "model.safetensors"
    weights = load_file(path)
    for end in ("weight", "bias"):
        weights[f"bert.encoder.layer.0.output.LayerNorm.{end}"][5] = 0
    save_file(weights, path, metadata={"format": "pt"})
    shutil.rmtree(arc / "stages")
    code, _, err = subnet("probe", arc, *analyses("labels"), *FAST)
    assert code == 0
    assert err == "warning: layer 1: 1 of 32 units are constant and carry nothing (base)\n"


def test_a_layer_that_is_not_there(arc, subnet):
    err = refused(subnet, arc, "--layers", "7", *FAST)
    assert err == (
        "subnet: layer 7 is asked for and BertModel has 2 layers; expected 0 (embeddings) to 2\n"
    )


def test_examples_that_are_not_parallel(arc, subnet):
    rewrite(arc, lambda row: row | {"concept": row["id"]})
    shutil.rmtree(arc / "stages")
    code, out, err = subnet("probe", arc, *analyses("labels", "similarity"), *FAST)
    assert (code, err) == (0, "")
    assert (
        "not possible: similarity: the items are not aligned: 0 concepts are common to 30 of de, "
        "30 of fr, 30 of sw; are they given in all of them under one key?\n"
    ) in out
    shutil.rmtree("arc-probes")
    err = refused(subnet, arc, *analyses("similarity"), *FAST)
    assert "the items are not aligned: 0 concepts" in err


def test_a_tokenizer_without_offsets_gives_no_tags(arc, subnet):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (arc / "base" / name).unlink(missing_ok=True)
    (arc / "base" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    shutil.rmtree(arc / "stages")
    path = arc / "base" / "model.safetensors"
    name = "bert.embeddings.word_embeddings.weight"
    rows = torch.randn(400, planted.WIDTH, generator=torch.Generator().manual_seed(0))
    save_file(load_file(path) | {name: rows}, path, metadata={"format": "pt"})
    config = json.loads((arc / "base" / "config.json").read_text())
    (arc / "base" / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    code, out, err = subnet("probe", arc, *analyses("labels", "tokens"), *FAST)
    assert (code, err) == (0, "")
    assert "not possible: tokens: the tokenizer (ByT5Tokenizer) cannot say which token" in out
    shutil.rmtree("arc-probes")
    assert "has no offsets" in refused(subnet, arc, *analyses("tokens"), *FAST)


def test_languages_with_other_labels(arc, subnet):
    def named(row):
        return row | {"label": row["language"] + row["label"]}

    shutil.rmtree(arc / "stages")
    rewrite(arc, lambda row: named(row) if row["language"] == "sw" else row)
    code, out, err = subnet("probe", arc, *analyses("labels", "transfer"), *FAST)
    assert code == 0
    assert err == (
        "warning: transfer of labels: the languages share 0 labels, so all labels count, and those "
        "that a language does not have are errors of its probe (base)\n"
    )
    assert len(rows_of(out, "sw")) == 1
    table = pd.read_csv("arc-probes/probe_transfer.csv", keep_default_na=False)
    cells = table[(table["metric"] == "accuracy") & (table["task"] == "label")]
    cells = cells.set_index(["train_language", "test_language"])
    assert set(cells.loc[("de", "fr"), "reason"]) == {""}
    assert set(cells.loc[("de", "sw"), "score"].astype(float)) == {0.0}
    assert set(cells.loc[("de", "sw"), "reason"]) == {
        "de does not have labels of sw, which count as errors: swA, swB"
    }


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["test.jsonl"], "subnet: {arc}: has no test.jsonl; expected a line"),
        (["base", "stages"], "subnet: {arc}: holds no model to probe; expected base/, stages/"),
    ],
)
def test_what_must_be_there(arc, subnet, gone, message):
    for name in gone:
        path = arc / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refused(subnet, arc).startswith(message.format(arc=arc.resolve()))


def test_other_examples_are_named_where_there_are_no_test_examples(arc, subnet):
    (arc / "test.jsonl").rename(arc / "train.jsonl")
    assert "train.jsonl is there: split='train' (--split train) takes it" in refused(subnet, arc)
    assert subnet("probe", arc, *analyses("labels"), *FAST, "--split", "train")[0] == 0


def test_a_result_is_neither_overwritten_nor_written_into_the_checkpoint(arc, subnet):
    assert "nothing is written" in refused(subnet, arc, "--out", arc / "probes")
    Path("there").mkdir()
    Path("there/file").touch()
    code, _, err = subnet("probe", arc, "--out", "there")
    assert code == 2
    assert "there: is already there" in err
