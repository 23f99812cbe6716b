"""The examples run, and print numbers that the library gives."""

import subprocess
import sys
from pathlib import Path

import pytest

import subnet
from planted import write_arc
from planted_attribution import write_stages
from subnet.analysis import AttributionSettings, attribute_checkpoint

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def arc(tmp_path_factory):
    return write_arc(tmp_path_factory.mktemp("examples") / "arc", planted=True)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """With texts and a tokenizer, which influence needs."""
    return write_stages(tmp_path_factory.mktemp("examples") / "stages")


def output(example: Path, *arguments: object) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", str(example), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_says_how_to_run_it_and_runs(example, arc, stages):
    assert f"python examples/{example.name}" in example.read_text()
    assert output(example, stages if "attribute" in example.read_text() else arc)


def test_the_attribution_example_prints_the_largest_scores(stages):
    (example,) = (path for path in EXAMPLES if path.stem == "whose_examples_helped")
    settings = AttributionSettings(n_train=64, n_test=32)
    found = attribute_checkpoint(subnet.open_checkpoint(stages), settings)
    (scored,) = found.scored
    printed = output(example, stages)
    assert f": {scored.influence.scores.max():.3g}" in printed
    assert "helped most by examples of" in printed


def test_the_graph_example_draws(arc, tmp_path):
    (example,) = (path for path in EXAMPLES if path.stem == "which_languages_share")
    output(example, arc, tmp_path / "graph.svg")
    assert "<svg" in (tmp_path / "graph.svg").read_text()


def test_the_worst_effect_is_the_smallest_of_the_matrix(arc):
    (example,) = (path for path in EXAMPLES if path.stem == "who_was_forgotten")
    forgetting = subnet.measure_forgetting(subnet.open_checkpoint(arc).scores)
    worst = forgetting.effect_matrix("loss").stack()
    trained, language = worst.idxmin()
    assert f"training {trained} cost {language} {-worst.min():.3f}" in output(example, arc)
