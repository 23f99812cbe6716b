"""`subnet attribute`: finds what was planted, equals a loop of backward passes, refuses clearly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

import influence_oracles as oracles
from planted_attribution import (
    COPIED,
    LANGUAGES,
    N_TEST,
    N_TRAIN,
    RATE,
    STEPS,
    config,
    write_scores,
    write_stages,
)
from subnet.influence import Influence, attribute, find_method, method_names, self_influence
from subnet.model import load_model
from subnet.subnetwork import load_subnetworks, random_like
from subnet_cli.further import with_settings

SHARES = ("share_top_positive", "share_bottom_negative")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_stages(tmp_path_factory.mktemp("attribute") / "small")


@pytest.fixture
def small(original, tmp_path, monkeypatch):
    """The checkpoint, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "small")
    return Path("small")


def table(name="influence", folder="small-influence"):
    return pd.read_csv(Path(folder) / f"{name}.csv", keep_default_na=False, na_values=[""])


def matrix(frame, measure):
    rows = frame[frame["measure"] == measure]
    return rows.pivot_table(index="test_language", columns="train_language", values="value")


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def encoded(folder, split):
    """Rows as the model takes them, by the tokenizer itself."""
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "base")
    found = []
    for row in lines(Path(folder) / f"{split}.jsonl"):
        ids = tokenizer(row["text"], truncation=True, max_length=24)["input_ids"]
        about = {"id": row["id"], "language": row["language"]}
        found.append({**about, "input_ids": ids, "labels": row["label"]})
    return found


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    ids = [[*row["input_ids"], *[0] * (width - len(row["input_ids"]))] for row in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": (torch.tensor(ids) != 0).long(),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def loop(folder):
    """[n_test, n_train] by one backward pass per example at the stage of the training example."""
    train, test = encoded(folder, "train"), encoded(folder, "test")
    scores = np.zeros((len(test), len(train)))
    for number, label in enumerate(LANGUAGES, start=1):
        model = load_model(folder, stage=number)
        names = [name for name, _ in model.named_parameters() if "lora_" in name]
        members = [i for i, row in enumerate(train) if row["language"] == label]
        left, right = (
            oracles.flat(oracles.gradients(model, rows, collate, names)).double()
            for rows in (test, [train[i] for i in members])
        )
        scores[:, members] = RATE * STEPS * (left @ right.T).numpy()
    return scores


def test_numbers_are_those_of_a_loop_of_backward_passes(small, subnet):
    code, out, err = subnet("attribute", small, "--top", "5", "--batch-size", "7")
    assert (code, err) == (0, "")
    assert "Influence by tracin, written to small-influence/" in out
    expected = loop(small)
    found = Influence.load("small-influence/scores")
    np.testing.assert_allclose(
        found.scores, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max()
    )
    trained = np.repeat(LANGUAGES, N_TRAIN)
    frame = table()
    assert list(frame.columns[:12]) == [
        "run", "train_language", "test_language", "checkpoint", "method", "subnetwork", "measure",
        "value", "ci_low", "ci_high", "n", "reason",
    ]  # fmt: skip
    for place, label in enumerate(LANGUAGES):
        rows = expected[place * N_TEST : (place + 1) * N_TEST]
        for other in LANGUAGES:
            mean = rows[:, trained == other].mean()
            assert matrix(frame, "mean").loc[label, other] == pytest.approx(mean, rel=1e-3)
            shares = [
                np.mean(trained[order] == other)
                for order in (
                    [i for i in np.argsort(-row, kind="stable")[:5] if row[i] > 0] for row in rows
                )
            ]
            # Copies of one example in a language tie among themselves, never across languages.
            assert matrix(frame, "share_top_positive").loc[label, other] == pytest.approx(
                np.mean(shares), abs=1e-6
            )


def test_copies_in_another_language_come_first_with_their_text(small, subnet):
    assert subnet("attribute", small, "--method", "cosine", "--quiet") == (0, "", "")
    top = table("top")
    best = top[(top["role"] == "helpful") & (top["rank"] == 1)]
    assert len(best) == len(LANGUAGES) * N_TEST
    assert (best["train_text"] == best["test_text"]).all()
    assert (best["train_label"] == best["test_label"]).all()
    assert [COPIED[label] for label in best["train_language"]] == list(best["test_language"])
    np.testing.assert_allclose(best["score"], 1.0, atol=1e-5)
    assert (top.loc[top["role"] == "harmful", "score"] < 0).all()


def test_the_language_that_copied_has_the_largest_share(small, subnet):
    assert subnet("attribute", small, "--top", "2", "--quiet")[0] == 0
    shares = matrix(table(), "share_top_positive")
    for label, copied in COPIED.items():
        assert shares.loc[copied].idxmax() == label
    graph = json.loads(Path("small-influence/share_top_positive.json").read_text())
    helps = {(e["source"], e["target"]) for e in graph["edges"] if e["sign"] > 0}
    assert helps
    assert helps <= set(COPIED.items())


def test_where_languages_are_names_only_nothing_is_found(tmp_path, monkeypatch, subnet):
    monkeypatch.chdir(tmp_path)
    found = []
    for seed in (1, 2, 3):
        folder = write_stages(tmp_path / f"null{seed}", planted=False, seed=seed)
        assert subnet("attribute", folder, "--top", "3", "--quiet")[0] == 0
        frame = table(folder=f"null{seed}-influence")
        found.append(int((frame.loc[frame["measure"].isin(SHARES), "q_value"] < 0.05).sum()))
    assert sorted(found)[:2] == [0, 0], "q < .05 may happen in one of twenty"


def test_language_level_gives_the_same_means(small, subnet):
    assert subnet("attribute", small, "--quiet")[0] == 0
    code, out, _ = subnet("attribute", small, "--level", "language", "--out", "means")
    assert code == 0
    assert "own_share" not in out
    np.testing.assert_allclose(
        matrix(table(folder="means"), "mean"), matrix(table(), "mean"), rtol=1e-4
    )
    assert {path.name for path in Path("means").iterdir()} == {"influence.csv", "run.json"}


def test_json_is_the_table_and_fewer_examples_are_the_same_concepts(small, subnet):
    arguments = ("--examples", "5", "--test-examples", "2", "--top", "3", "--json")
    code, out, _ = subnet("attribute", small, *arguments)
    assert code == 0
    rows = json.loads(out)
    frame = table()
    assert len(rows) == len(frame) == 3 * len(LANGUAGES) ** 2
    assert [row["value"] for row in rows] == pytest.approx(list(frame["value"]), rel=1e-5)
    assert set(frame["n"]) <= {0, 1, 2}
    record = json.loads(Path("small-influence/run.json").read_text())
    assert record["settings"]["runs"]["main"]["n_train"] == 5 * len(LANGUAGES)
    made = record["settings"]["runs"]["main"]["full"]["checkpoints"]
    assert [point["learning_rate"] for point in made] == [RATE * STEPS] * len(LANGUAGES)
    assert made[0]["checkpoint"] == "stages/01-de"
    assert {"train.jsonl", "test.jsonl", "base/model.safetensors"} <= set(record["inputs"])
    assert str(Path.cwd()) not in json.dumps(record)
    assert str(Path.cwd()) not in Path("small-influence/scores/influence.json").read_text()


def test_within_subnetworks_each_test_language_is_scored_in_its_own(small, subnet):
    assert subnet("extract", small, "--density", "0.2", "--out", "masks", "--quiet")[0] == 0
    code, out, _ = subnet("attribute", small, "--subnetwork", "masks", "--random", "2")
    assert code == 0
    assert "own - random" in out
    from subnet.checkpoint import open_checkpoint

    masks = load_subnetworks(open_checkpoint("masks"))
    own = Influence.load("small-influence/scores/own").scores
    train, test = encoded(small, "train"), encoded(small, "test")
    model = load_model(small, stage=len(LANGUAGES))
    points = {
        label: [(small / "stages" / f"{number:02d}-{label}", RATE * STEPS)]
        for number, label in enumerate(LANGUAGES, start=1)
    }
    place = 2
    label = LANGUAGES[place]
    rows = slice(place * N_TEST, (place + 1) * N_TEST)

    def within(mask):
        return attribute(
            model, train, test[rows], checkpoints=points, subnetwork=mask, collate_fn=collate
        ).scores

    expected = within(masks[label])
    np.testing.assert_allclose(own[rows], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    frame = table()
    assert set(frame["subnetwork"].fillna("")) == {"", "own"}
    compared = table("comparison")
    assert set(compared["comparison"]) == {"own - full", "own - other", "own - random"}
    random = compared[compared["comparison"] == "own - random"]
    assert set(random["n_controls"]) == {2}
    trained = np.array([row["language"] for row in train])

    def share(scores):
        order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        return float(np.mean(trained[order] == label))

    here = random[(random["test_language"] == label) & (random["measure"] == SHARES[0])]
    by_hand = share(expected) - np.mean(
        [share(within(random_like(masks[label], seed))) for seed in (1, 2)]
    )
    if (np.sort(-expected, axis=1)[:, 9] < 0).all():  # ten positive scores everywhere
        assert here["value"].iloc[0] == pytest.approx(by_hand, abs=0.02)


def test_adapters_of_languages_score_their_own_examples_and_want_a_rate(
    tmp_path, monkeypatch, subnet
):
    monkeypatch.chdir(tmp_path)
    folder = write_stages(tmp_path / "small", stages=False)
    code, out, err = subnet("attribute", folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "adapters/de: has no learning rate" in err
    assert "--learning-rate" in err
    for rate in ("0.1", "0.2"):
        arguments = ("--learning-rate", rate, "--out", f"at-{rate}", "--quiet")
        assert subnet("attribute", folder, *arguments)[0] == 0
    once, twice = (Influence.load(f"at-{rate}/scores").scores for rate in ("0.1", "0.2"))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)
    # The same weights as the stages, so the same scores but for the rate.
    np.testing.assert_allclose(
        once / 0.1, loop(write_stages(tmp_path / "stages")) / (RATE * STEPS), rtol=1e-3, atol=1e-5
    )
    assert "are no sequence" in subnet("attribute", folder, "--method", "final", "--out", "x")[2]


def test_baselines_need_no_rates_and_bm25_finds_copies(tmp_path, monkeypatch, subnet):
    monkeypatch.chdir(tmp_path)
    folder = write_stages(tmp_path / "small", stages=False)
    assert subnet("attribute", folder, "--method", "bm25", "--quiet")[0] == 0
    top = table("top")
    best = top[(top["role"] == "helpful") & (top["rank"] == 1)]
    assert (best["train_text"] == best["test_text"]).all()


def test_a_store_is_used_again_and_another_draw_is_refused(small, subnet):
    arguments = ("attribute", small, "--store", "gradients", "--projection", "4", "--quiet")
    assert subnet(*arguments)[0] == 0
    kept = {p: p.stat().st_mtime_ns for p in Path("gradients").rglob("*") if p.is_file()}
    assert kept
    assert subnet(*arguments, "--out", "again")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in Path("gradients").rglob("*") if p.is_file()} == kept
    assert table(folder="again").equals(table())
    code, out, err = subnet(*arguments, "--examples", "3", "--out", "other")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert not Path("other").exists()


def test_settings_of_a_method_are_typed_by_its_class():
    found = with_settings("ekfac", ["damping_scale=0.5", "labels=model"], seed=0)
    assert found == {"damping_scale": 0.5, "labels": "model"}
    assert with_settings("bm25", ["n=2", "tokens=characters"], seed=0)["n"] == 2


def test_methods_are_listed_with_their_settings(subnet):
    code, out, _ = subnet("attribute", "--list-methods")
    assert code == 0
    for name in ("tracin", "cosine", "ekfac", "bm25", "trak"):
        assert f"\n{name}\n" in f"\n{out}"
        assert find_method(name).name == name
    assert "damping_scale=0.1" in out
    # Each says in a line what it is.
    assert all(line.startswith("  ") for line in out.splitlines() if line not in method_names())
    assert all(find_method(name).summary in out for name in method_names())
    assert all(find_method(name).summary for name in method_names())


def test_the_fidelity_of_a_projection_is_said(small, subnet):
    code, out, _ = subnet("attribute", small, "--projection", "4", "--fidelity", "2")
    assert code == 0
    kept = Influence.load("small-influence/scores").provenance.settings["fidelity"]
    low, high = kept["ci_low"], kept["ci_high"]
    assert f"Spearman {kept['value']:.3f} [{low:.3f}, {high:.3f}] over 2 seeds" in out


def test_accelerate_that_starts_one_process_of_several_is_said(small, subnet, monkeypatch):
    # What `accelerate launch --num_processes 2` gives the only process it starts without a GPU.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("RANK", raising=False)
    code, _, err = subnet("attribute", small, "--method", "random")
    assert code == 0
    assert err.startswith("warning: accelerate started one process, not several")
    assert "--multi_gpu" in err
    assert subnet("attribute", small, "--method", "random", "--quiet", "--out", "x")[2] == ""


def test_help_ends_with_an_example_and_its_output(subnet):
    code, out, _ = subnet("attribute", "--help")
    assert code == 0
    assert "subnet attribute demo" in out.split("Example:")[1]


def test_self_influence_of_a_copy_is_its_score_for_the_test_example(small, subnet):
    """Two roads to one number: the diagonal, and the score of a copy."""
    assert subnet("attribute", small, "--quiet")[0] == 0
    scores = Influence.load("small-influence/scores")
    train = [row for row in encoded(small, "train") if row["language"] == "de"]
    model = load_model(small, stage=1)
    own = self_influence(
        model, train, collate_fn=collate, checkpoints=[(small / "stages" / "01-de", RATE * STEPS)]
    )
    texts = {row["id"]: row["text"] for split in ("train", "test")
             for row in lines(small / f"{split}.jsonl")}  # fmt: skip
    for number, row in enumerate(train):
        column = list(scores.train["id"]).index(row["id"])
        copies = [i for i, name in enumerate(scores.test["id"]) if texts[name] == texts[row["id"]]]
        assert copies
        assert scores.scores[copies[0], column] == pytest.approx(own[number], rel=1e-4)


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "tracein"), "method is 'tracein'"),
        (("--level", "sentence"), "level is 'sentence'; expected 'example' or 'language'"),
        (("--checkpoints", "last"), "checkpoints is 'last'"),
        (("--checkpoints", "languages"), "has no languages; expected adapters/<language>/"),
        (("--translations", "drop"), "translations is 'drop'"),
        (("--set", "damping=1"), "damping is given for the method 'tracin'"),
        (("--set", "damping"), "--set is 'damping'; expected NAME=VALUE"),
        (("--method", "ekfac", "--set", "damping=much"), "damping is 'much'; expected a number"),
        (("--modules", "nothing.here"), "nothing.here"),
        (("--random", "3"), "3 random masks are asked for"),
        (("--subnetwork", "no-masks"), "no-masks: there is no such directory"),
        (("--subnetwork", "small", "--store", "gradients"), "--store beside --subnetwork"),
        (("--store", "small/gradients"), "is inside the directory that is read"),
        (("--out", "small/influence"), "is inside the directory that is read"),
        (("--method", "bm25", "--projection", "4"), "projection is given for 'bm25'"),
        (("--method", "adam"), "optimizer"),
        (("--learning-rate", "-1"), "the learning rate of"),
    ],
)
def test_a_wrong_option_gets_one_line(small, subnet, arguments, message):
    code, out, err = subnet("attribute", small, *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert message in err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["small"]


def _without(name):
    return lambda folder: (folder / name).unlink()


def _change(split, **values):
    def change(folder):
        path = folder / f"{split}.jsonl"
        rows = lines(path)
        rows[1] |= values
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("train.jsonl"), "has no train.jsonl"),
        (_without("test.jsonl"), "has no test.jsonl"),
        (_without("subnet.toml"), "has no learning rate"),
        (_without("base/tokenizer.json"), "tokenizer"),
        (lambda folder: (folder / "train.jsonl").write_text(""), "is empty"),
        (_change("test", label=9), "has the label 9"),
        (_change("train", text=""), "has no 'text'"),
        (_change("train", language="no such tongue"), "no such tongue"),
    ],
)
def test_a_damaged_directory_gets_one_line(small, subnet, damage, message):
    damage(small)
    code, out, err = subnet("attribute", small)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert message in err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["small"]


def test_a_language_that_no_stage_trained_is_left_out_and_said(small, subnet):
    path = small / "train.jsonl"
    extra = {"id": "hi-1", "language": "hi", "text": "abc", "label": 0}
    path.write_text(path.read_text() + json.dumps(extra) + "\n")
    code, _, err = subnet("attribute", small)
    assert code == 0
    assert err == "warning: the training examples of hi are left out: no checkpoint is of it\n"
    assert "hi" not in set(table()["train_language"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--nproc_per_node", "2",
         "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"),
        ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
         "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
    ids=["torchrun", "accelerate"],
)  # fmt: skip
def test_two_processes_give_the_result_of_one_and_one_of_them_speaks(small, subnet, launcher):
    command = ("attribute", str(small), "--examples", "7")
    launch = [sys.executable, "-m", *launcher, "-m", "subnet_cli", *command]
    stored, ekfac = ("--store", "gradients-{}"), ("--method", "ekfac", "--level", "language")
    for more in (stored, ekfac):
        one, two = ([part.format(name) for part in more] for name in ("one", "two"))
        assert subnet(*command, *one, "--out", "one", "--quiet", "--overwrite")[0] == 0
        done = subprocess.run(
            [*launch, *two, "--out", "two", "--overwrite"],
            capture_output=True, text=True, check=True, timeout=600,
        )  # fmt: skip
        assert done.stdout.count("Influence by ") == 1
        expected, found = (table(folder=name).set_index("measure") for name in ("one", "two"))
        for measure in expected.index.unique():
            values = expected.loc[measure, "value"].astype(float)
            scale = values.abs().max()
            np.testing.assert_allclose(
                found.loc[measure, "value"].astype(float), values, rtol=1e-6, atol=1e-6 * scale
            )
        if more is stored:
            scores = [Influence.load(f"{name}/scores").scores for name in ("one", "two")]
            np.testing.assert_allclose(
                scores[1], scores[0], rtol=1e-6, atol=1e-6 * np.abs(scores[0]).max()
            )
            for path in Path("gradients-one").iterdir():
                assert (Path("gradients-two") / path.name).read_bytes() == path.read_bytes()
    refused = subprocess.run(
        [*launch, "--out", "x", "--set", "a=1"], capture_output=True, text=True, timeout=600
    )
    assert refused.returncode != 0
    assert refused.stderr.count("subnet: a is given for the method") == 1


def test_the_makers_hold_what_they_promise(original):
    assert config().num_labels == 3
    texts = {split: [row["text"] for row in lines(original / f"{split}.jsonl")]
             for split in ("train", "test")}  # fmt: skip
    assert set(texts["train"]) == set(texts["test"])
    assert callable(write_scores)
