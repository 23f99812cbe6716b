"""`subnet train` from the command line."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from subnet.errors import InputError, SubnetError
from subnet.training import TrainingConfig, explain, read_config
from subnet_cli.app import app

SMALL = """
languages = ["de", "fr"]
[data]
max_concepts_per_kind = 12
[model]
width = 16
layers = 2
heads = 2
feed_forward = 32
[base]
steps = 4
[training]
steps = 3
batch_size = 8
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_it_trains_prints_what_was_learnt_and_says_what_comes_next(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(SMALL, encoding="utf-8")
    result = call("train", file, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output
    assert f"next: subnet analyze {tmp_path / 'run'}" in result.output
    again = call("train", file, "--out", tmp_path / "run", "--json")
    rows = json.loads(again.stdout)
    assert {row["metric"] for row in rows} == {"accuracy", "loss", "macro_f1"}
    assert set(rows[0]) == {"cell", "run", "metric", "at_the_end", "since_own_turn", "forgetting"}


def test_explain_prints_a_configuration_with_every_default_explained(tmp_path):
    result = call("train", "--explain")
    assert result.exit_code == 0
    file = tmp_path / "run.toml"
    file.write_text(result.output, encoding="utf-8")
    assert read_config(file) == TrainingConfig()
    keys = re.findall(r"^(\w+) = ", explain(), flags=re.MULTILINE)
    comments = re.findall(r"^# (.+)$", explain(), flags=re.MULTILINE)
    assert len(comments) >= len(keys)
    assert "None" not in comments
    above: list[str] = []
    for line in explain().splitlines():
        if line.startswith("#"):
            above.append(line.removeprefix("#").strip())
        else:  # a section, a key or a blank line: of the first two a sentence stands right above
            assert not line or (above and all(above)), line
            above = []
    assert max(map(len, explain().splitlines())) <= 105


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[adaptation]\nrnk = 8", r"unknown key 'adaptation.rnk'.*did you mean 'rank'"),
        ("[trainin]\nsteps = 8", r"unknown key 'trainin'.*did you mean 'training'"),
        ("[training]\nsteps = 0", r"training.steps is 0; expected greater than 0"),
        ("[model]\nwidth = 97", r"model.width is 97; expected a width that is a multiple of heads"),
        ('[adaptation]\nsharing = "some"', r"adaptation.sharing is 'some'.*'none'.*'full'"),
        ('[subnetworks]\nmethod = "static"', r"masks with method = 'static'"),
        ("[training]\noptimizer = 'adamw'", r"optimizer is 'adamw'.*such as adamw_torch"),
        ("[training]\nwarmup = 0.1", r"'constant_with_warmup' where warmup is above 0"),
        ("[data]\ntest_share = 0.95", r"test_share and validation_share below 1 together"),
        ("[adaptation]\nrank = [4, 4]", r"adaptation.rank is \[4, 4\].*each once"),
        ("[adaptation]\nrank = [4, 999]", r"rank is 999, and bert.*96 wide.*96 or less"),
        ("[adaptation]\ntargets = '(('", r"targets is '\(\('.*regular expression"),
        ("[sequence]\norders = []", r"sequence.orders is \[\]"),
        (
            'task = "translation"\n[translation]\nidentify_among = ["de", "q1"]',
            r"run.toml: translation.identify_among has 'q1', which is no language",
        ),
        (
            'task = "translation"\n[translation]\nidentify_among = ["de", "mi"]',
            r"identify_among has 'mi', which py3langid does not know; expected some of the \d+",
        ),
        (
            'task = "translation"\n[translation]\nidentify_among = ["de", "deu"]',
            r"identify_among is \['de', 'deu'\]; expected two languages or more, or none for all",
        ),
        ("[training\n", r"not.* TOML|TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path, text, says):
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    error = call("train", file, "--out", tmp_path / "run").exception
    assert isinstance(error, InputError)  # which the program prints, and exits with 2
    assert re.search(says, str(error)), error
    assert "\n" not in str(error)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    error = call("train", tmp_path / "gone.toml").exception
    assert isinstance(error, SubnetError)
    assert "gone.toml" in str(error)
    assert "\n" not in str(error)
