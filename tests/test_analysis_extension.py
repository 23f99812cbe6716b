"""What extensions of `analyze` add, and probing as one of them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import subnet
from planted_attribution import LANGUAGES, write_scores, write_stages
from subnet.analysis import Addition
from subnet.errors import InputError
from subnet.report import Missing, Section
from subnet_probes import ProbeExtension, report_extension

FAST = {"ablation": False, "influence": False, "n_permutations": 99}


class Planted:
    """An extension that says what it is told, and remembers what it was given."""

    def __init__(self, name="planted", **parts):
        self.name, self.parts = name, parts

    def __call__(self, checkpoint, forgetting):
        self.given = (checkpoint, forgetting)
        return Addition(**self.parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_stages(tmp_path_factory.mktemp("extension") / "small")
    write_scores(root)
    return root


def similarity(runs=("main",)):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "run": run, "stage": 0, "language_a": a, "language_b": b, "layer": "0",
                "measure": "cka", "value": rng.random(),
            }
            for run in runs for i, a in enumerate(LANGUAGES) for b in LANGUAGES[:i]
        ]
    )  # fmt: skip


def test_every_part_of_an_addition_arrives(folder, tmp_path):
    table = pd.DataFrame({"language": ["NA"], "value": [0.5]})
    extension = Planted(
        sections=[Section("planted", "A planted section", lead="Found by the extension.")],
        tables={"planted": table}, representations={"similarity": similarity()},
        summary={"number": 7, "undefined": float("nan")}, key_numbers=["a planted line"],
        missing=[Missing("planted part", "it was not there", "add it")],
        warnings=["a planted warning"], methods="It was planted.", inputs={"seed.txt": "0" * 64},
    )  # fmt: skip
    analysis = subnet.analyze(folder, **FAST, extensions=[extension])
    assert extension.given[0] is analysis.checkpoint
    assert extension.given[1] is analysis.forgetting
    report = analysis.save(tmp_path / "report")
    written = pd.read_csv(report / "tables" / "planted.csv", keep_default_na=False)
    assert written.to_dict("records") == [{"language": "NA", "value": 0.5}]
    summary = json.loads((report / "summary.json").read_text())
    assert summary["extensions"] == {"planted": {"number": 7, "undefined": None}}
    assert "a planted line" in summary["key_numbers"]
    assert "a planted warning" in summary["warnings"]
    wanted = {"analysis": "planted part", "reason": "it was not there", "fix": "add it"}
    assert wanted in summary["missing"]
    page = (report / "report.html").read_text()
    places = [page.index(f'<section id="{name}"') for name in ("influence", "planted", "relation")]
    assert places == sorted(places)
    record = json.loads((report / "run.json").read_text())
    assert record["inputs"]["seed.txt"] == "0" * 64
    assert "It was planted." in record["methods"]
    assert "similarity of representations in the base were related" in record["methods"]
    rows = analysis.relation.frame
    assert set(rows.loc[rows["predictor"] == "representations (base)", "measure"]) == {"cka"}


def test_without_extensions_nothing_is_added(folder):
    analysis = subnet.analyze(folder, **FAST)
    assert analysis.summary()["extensions"] == {}
    assert not (analysis.relation.frame["predictor"] == "representations (base)").any()


def test_names_that_are_taken_are_refused(folder):
    for extensions, message in (
        ([Planted(), Planted()], "two extensions are called 'planted'"),
        ([Planted(tables={"scores": pd.DataFrame()})], "writes the table 'scores', which is there"),
    ):
        with pytest.raises(InputError, match=message):
            subnet.analyze(folder, **FAST, extensions=extensions)


def test_what_is_measured_on_a_base_stands_for_every_run_on_it(folder):
    from subnet.analysis.pipeline import _with_runs_of_the_base

    checkpoint = subnet.open_checkpoint(folder)
    found = _with_runs_of_the_base(checkpoint, similarity(), ["main", "other"])
    pairs = found.set_index(["language_a", "language_b"])["value"]
    assert set(found["run"]) == {"main", "other"}
    pd.testing.assert_series_equal(
        pairs[(found["run"] == "main").to_numpy()], pairs[(found["run"] == "other").to_numpy()]
    )
    # A table of a run that is not in the checkpoint says nothing about this base.
    alien = similarity(["elsewhere"])
    assert _with_runs_of_the_base(checkpoint, alien, ["main"]).equals(alien)


def test_probing_is_skipped_where_it_is_dear_and_where_nobody_wants_it(folder, monkeypatch):
    checkpoint = subnet.open_checkpoint(folder)
    assert ProbeExtension(wanted=False)(checkpoint, None) == Addition()
    monkeypatch.setattr(report_extension, "_PROBE_LIMIT", 1.0)
    monkeypatch.setattr(report_extension, "probe_checkpoint", None)
    (entry,) = ProbeExtension()(checkpoint, None).missing
    assert entry.analysis == "probes"
    assert entry.reason.startswith("probing takes about")
    assert entry.fix == "ask for it with --probes"


def test_what_cannot_be_probed_is_missing_or_an_error_where_it_was_asked_for(folder, tmp_path):
    import shutil

    bare = shutil.copytree(folder, tmp_path / "small")
    (bare / "test.jsonl").unlink()
    checkpoint = subnet.open_checkpoint(bare)
    (entry,) = ProbeExtension()(checkpoint, None).missing
    assert entry.analysis == "probes"
    with pytest.raises(subnet.errors.SubnetError):
        ProbeExtension(wanted=True)(checkpoint, None)
