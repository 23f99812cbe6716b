"""`subnet relate --representations`: tables of `subnet probe` as predictors, read first."""

from __future__ import annotations

import functools
import json
import sys

import pytest

import subnet_cli
from planted_attribution import write_scores, write_stages
from subnet.analysis import analyze
from test_analysis_extension import similarity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_stages(tmp_path_factory.mktemp("relate") / "small")
    write_scores(root)
    return root


@pytest.fixture
def relate(folder, monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*tables):
        given = [part for table in tables for part in ("--representations", str(table))]
        options = ("--permutations", "99", "--json")
        monkeypatch.setattr(sys, "argv", ["subnet", "relate", str(folder), *options, *given])
        with pytest.raises(SystemExit) as exit_:
            subnet_cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


def test_similarity_of_representations_stands_beside_overlap(relate, tmp_path, monkeypatch):
    quick = functools.partial(analyze, influence=False)
    monkeypatch.setattr("subnet.analysis.analyze", quick)
    table = similarity()
    table.to_csv(tmp_path / "representation_similarity.csv", index=False)
    code, out, err = relate(tmp_path / "representation_similarity.csv")
    assert code == 0, err
    found = {(row["predictor"], row["measure"]) for row in json.loads(out)}
    assert ("representations (base)", "cka") in found
    assert any(predictor != "representations (base)" for predictor, _ in found)


def test_tables_that_cannot_be_used_are_named_before_anything_is_computed(
    relate, tmp_path, monkeypatch
):
    def too_early(*_, **__):
        raise AssertionError("computed first")

    monkeypatch.setattr("subnet.analysis.analyze", too_early)
    code, _, err = relate(tmp_path / "nope.csv")
    assert code == 2
    assert f"{tmp_path / 'nope.csv'}: does not exist; expected a table that subnet probe" in err
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    code, _, err = relate(tmp_path / "binary.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "binary.csv: is no table" in err

    similarity().drop(columns="value").to_csv(tmp_path / "probes.csv", index=False)
    code, _, err = relate(tmp_path / "probes.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert f"the table of representations {tmp_path / 'probes.csv'} has no column value" in err
