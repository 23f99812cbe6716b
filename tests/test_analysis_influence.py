"""Influence as a part of `analyze`: what it computes, when, what it passes on and what it wants."""

from __future__ import annotations

import hashlib
import json
import shutil

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import subnet
from planted_attribution import COPIED, LANGUAGES, N_TEST, N_TRAIN, write_scores, write_stages
from subnet._tables import COLUMNS
from subnet.analysis import AttributionSettings, affordable, attribute_checkpoint
from subnet.analysis._attribution_examples import of_half
from subnet.errors import InputError, MissingInputError
from subnet.relation import relate

FAST = {"ablation": False, "n_permutations": 99}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_stages(tmp_path_factory.mktemp("analysis") / "small")
    write_scores(root)
    return root


@pytest.fixture(scope="module")
def analysis(folder):
    return subnet.analyze(folder, **FAST)


@pytest.fixture(scope="module")
def report(analysis, tmp_path_factory):
    return analysis.save(tmp_path_factory.mktemp("out") / "report")


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "small")


def of(summary, name="influence"):
    return [entry for entry in summary["missing"] if entry["analysis"] == name]


def test_its_numbers_are_those_of_attribution(folder, analysis, report):
    settings = AttributionSettings(checkpoints="stages", n_train=64, n_test=32, batch_size=32)
    expected = attribute_checkpoint(subnet.open_checkpoint(folder), settings).to_frame()
    pd.testing.assert_frame_equal(analysis.tables["influence"], expected, rtol=1e-4)
    written = pd.read_csv(report / "tables" / "influence.csv", keep_default_na=False)
    assert tuple(written.columns[:12]) == COLUMNS["influence"]
    assert len(written) == 3 * len(LANGUAGES) ** 2


def test_the_planted_languages_stand_in_table_graph_summary_and_page(analysis, report):
    rows = analysis.tables["influence"]
    shares = rows[rows["measure"] == "share_top_positive"].set_index("test_language")
    # Of ten examples two are copies; in two languages that decides the order.
    for copied in ("fr", "sw"):
        here = shares.loc[copied].set_index("train_language")["value"]
        assert COPIED[here.idxmax()] == copied
    graph = nx.read_graphml(report / "graphs" / "influence-share_top_positive.graphml")
    assert set(graph.nodes) == set(LANGUAGES)
    beyond = shares[
        (shares["q_value"] < 0.05)
        & ((shares["ci_low"] > shares["expected"]) | (shares["ci_high"] < shares["expected"]))
    ]
    pairs = set(zip(beyond["train_language"], beyond.index, strict=True))
    assert set(graph.edges) == {(a, b) for a, b in pairs if a != b}
    assert ("de", "fr") in graph.edges
    summary = json.loads((report / "summary.json").read_text())
    own = rows[rows["train_language"] == rows["test_language"]]
    numbers = summary["influence"]["measures"]["share_top_positive"]
    part = own[own["measure"] == "share_top_positive"]
    assert numbers["own"] == pytest.approx(part["value"].mean())
    assert numbers["expected"] == pytest.approx(0.25)
    assert summary["influence"]["languages"] == len(LANGUAGES)
    assert of(summary) == []
    page = (report / "report.html").read_text()
    assert 'id="influence"' in page
    assert {path.name for path in (report / "figures").glob("influence-*")} == {
        "influence-mean.svg", "influence-share_top_positive.svg", "influence-own.svg",
        "influence-graph.svg",
    }  # fmt: skip


def test_it_says_how_it_was_made(report, folder):
    record = json.loads((report / "run.json").read_text())
    assert "TracIn (Pruthi et al., 2020)" in record["methods"]
    assert "up to 64 training and 32 test examples" in record["methods"]
    assert "pruthi2020estimating" in record["bibtex"]
    made = record["settings"]["influence"]["runs"]["main"]["full"]
    assert [point["stage"] for point in made["checkpoints"]] == list(LANGUAGES)
    assert {"train.jsonl", "test.jsonl", "base/model.safetensors"} <= set(record["inputs"])
    assert str(folder.parent) not in json.dumps(record)


def test_it_is_a_predictor_and_the_headline_stays_about_overlap(folder, analysis):
    without = subnet.analyze(folder, influence=False, **FAST)
    assert "influence" not in without.tables
    assert of(without.summary()) == [], "not asked for is not missing"
    before, after = without.relation, analysis.relation
    new = after.frame[after.frame["predictor"] == "influence (tracin)"]
    assert set(zip(new["measure"], new["expected_sign"], strict=True)) == {
        ("mean", "positive"), ("share_top_positive", "positive"),
        ("share_bottom_negative", "negative"),
    }  # fmt: skip
    assert len(after.frame) == len(before.frame) + len(new)
    for key in ("predictor", "measure", "estimate", "p_value"):
        assert after.headline.row[key] == pytest.approx(before.headline.row[key], nan_ok=True)
    assert "Overlap and influence were related" in _paragraph(analysis)
    assert "Overlap was related" in _paragraph(without)


def in_half_a(item, seed=0):
    """By the rule that `measure_forgetting` records: an even first byte of BLAKE2b-8."""
    return hashlib.blake2b(f"{seed}\n{item}".encode(), digest_size=1).digest()[0] % 2 == 0


def write_items(root, ids):
    """Losses of single items after every stage, and their means."""
    rng = np.random.default_rng(1)
    stages = range(len(LANGUAGES) + 1)
    rows = [(stage, label, item, "loss", rng.random()) for stage in stages for label, item in ids]
    items = pd.DataFrame(rows, columns=["stage", "language", "item", "metric", "value"])
    items.to_csv(root / "items.csv", index=False)
    means = items.groupby(["stage", "language", "metric"], as_index=False)["value"].mean()
    trained = dict(enumerate(("", *LANGUAGES)))
    means = means.assign(trained_language=means["stage"].map(trained))
    means.to_csv(root / "scores.csv", index=False)


def test_influence_and_the_effects_that_it_explains_share_no_item(folder, tmp_path):
    root = copy(folder, tmp_path)
    test = [json.loads(line) for line in (root / "test.jsonl").read_text().splitlines()]
    # Of one language the first example is no item: it shares nothing with any effect.
    free = next(e["id"] for e in test if e["language"] == "sw" and not in_half_a(e["id"]))
    write_items(root, [(e["language"], e["id"]) for e in test if e["id"] != free])
    found = subnet.analyze(root, **FAST)
    used = set(found.influence.scored[0].influence.test["id"])
    assert used == {e["id"] for e in test if in_half_a(e["id"]) or e["id"] == free}
    assert 0 < len(used) < len(test)
    assert found.relation.provenance.settings["half"] == "b"
    made = found.influence.provenance.settings
    assert made["half"] == "a"
    assert made["runs"]["main"]["n_test_in_other_half"] == len(test) - len(used)
    # The numbers are those of a directory that has no other test examples.
    kept = [json.dumps(e) for e in test if e["id"] in used]
    (root / "test.jsonl").write_text("\n".join(kept) + "\n")
    whole = AttributionSettings(checkpoints="stages", n_train=64, n_test=32, batch_size=32)
    expected = attribute_checkpoint(subnet.open_checkpoint(root), whole).to_frame()
    pd.testing.assert_frame_equal(found.tables["influence"], expected, rtol=1e-4)


def test_a_half_is_taken_of_examples_that_are_items_and_only_where_asked(folder, tmp_path):
    root = copy(folder, tmp_path)
    test = [json.loads(line) for line in (root / "test.jsonl").read_text().splitlines()]
    other = [e for e in test if e["language"] == "fr" and not in_half_a(e["id"])]
    write_items(root, [("fr", e["id"]) for e in other] + [("de", "unknown")])
    checkpoint = subnet.open_checkpoint(root)
    for half, n in ((None, len(test)), ("a", len(test) - len(other)), ("b", len(test))):
        kept, warnings = of_half(checkpoint, test, half, 0)
        assert (len(kept), warnings) == (n, [])
    lone = [e for e in test if e["language"] != "fr"] + other
    kept, (warning,) = of_half(checkpoint, lone, "a", 0)
    assert {e["language"] for e in kept} == set(LANGUAGES) - {"fr"}
    assert warning.startswith("influence on fr is not known: all test examples are of the half")
    with pytest.raises(InputError, match="half is 'c'; expected 'a' or 'b' or None"):
        AttributionSettings(half="c")


def test_the_sign_of_influence_is_that_of_the_effects_it_foretells():
    """Effects that are influence itself: the slope is +1 along the mean, −1 along harm."""
    from subnet.forgetting import measure_forgetting

    labels = ("de", "fr", "ru", "sw", "hi", "th")
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(6, 6))
    rows, loss = [], dict.fromkeys(labels, 10.0)
    rows += [(0, "", label, loss[label]) for label in labels]
    for i, trained in enumerate(labels):
        for j, label in enumerate(labels):
            loss[label] -= effect[i, j]
            rows.append((i + 1, trained, label, loss[label]))
    scores = pd.DataFrame(rows, columns=["stage", "trained_language", "language", "value"])
    scores = scores.assign(run="main", metric="loss", stderr=float("nan"))
    table = pd.DataFrame(
        [
            {
                "run": "main", "train_language": a, "test_language": b, "checkpoint": "",
                "method": "tracin", "subnetwork": "", "measure": measure,
                "value": sign * effect[i, j],
            }
            for measure, sign in (("mean", 1), ("share_bottom_negative", -1))
            for i, a in enumerate(labels)
            for j, b in enumerate(labels)
        ]
    )  # fmt: skip
    forgetting = measure_forgetting(scores)
    found = relate(forgetting, influence=table, controls={}, n_permutations=99).frame
    slopes = found[found["method"] == "mrqap_dsp"].set_index("measure")["estimate"]
    assert slopes["mean"] == pytest.approx(1, abs=1e-6)
    assert slopes["share_bottom_negative"] == pytest.approx(-1, abs=1e-6)


def test_what_is_too_dear_is_asked_for(folder, monkeypatch):
    monkeypatch.setattr(affordable, "LIMIT", 1.0)
    left_out = subnet.analyze(folder, **FAST)
    assert left_out.influence is None
    (entry,) = of(left_out.summary())
    assert entry["reason"].startswith("computing influence takes about")
    assert entry["fix"] == "ask for it with --influence"
    assert subnet.analyze(folder, influence=True, **FAST).influence is not None


def test_the_cost_counts_passes_times_weights(folder):
    from safetensors import safe_open

    with safe_open(folder / "base" / "model.safetensors", "np") as file:
        weights = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    n = len(LANGUAGES)
    passes = n * N_TRAIN + n * (n * N_TEST)
    assert affordable.influence_cost(subnet.open_checkpoint(folder)) == 3 * passes * weights


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_without_examples_the_file_is_named(folder, tmp_path, name):
    root = copy(folder, tmp_path)
    (root / name).unlink()
    (entry,) = of(subnet.analyze(root, **FAST).summary())
    assert name in entry["fix"]
    with pytest.raises(MissingInputError, match=name):
        subnet.analyze(root, influence=True, **FAST)


def test_without_rates_the_setting_is_named(folder, tmp_path):
    root = copy(folder, tmp_path)
    (root / "subnet.toml").unlink()
    (entry,) = of(subnet.analyze(root, **FAST).summary())
    assert '[stages."01-de"] of subnet.toml' in entry["fix"]


def test_adapters_alone_are_left_to_the_command(tmp_path):
    root = write_stages(tmp_path / "small", stages=False)
    (entry,) = of(subnet.analyze(root, **FAST).summary())
    assert "subnet attribute" in entry["fix"]
    assert "--learning-rate" in entry["fix"]


def test_examples_that_do_not_fit_are_said_and_the_rest_is_computed(folder, tmp_path):
    root = copy(folder, tmp_path)
    path = root / "test.jsonl"
    path.write_text(path.read_text().replace('"label": 0', '"label": 7'))
    found = subnet.analyze(root, **FAST)
    (entry,) = of(found.summary())
    assert "has the label 7" in entry["reason"]
    assert found.overlaps


def _paragraph(analysis):
    from subnet.analysis.methods import methods_paragraph

    return methods_paragraph(analysis)
