"""The examples run, and print numbers that the library gives."""

import subprocess
import sys
from pathlib import Path

import pytest

import planted_heads
import subnet
import subnet_probes
from checkpoint_makers import save_base, write_json_lines
from planted import write_arc
from planted_attribution import write_stages
from subnet.analysis import AttributionSettings, attribute_checkpoint

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
#: Real text beside the checkout, of which nothing is part of the project.
DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def arc(tmp_path_factory):
    return write_arc(tmp_path_factory.mktemp("examples") / "arc", planted=True)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """With texts and a tokenizer, which influence needs."""
    return write_stages(tmp_path_factory.mktemp("examples") / "stages")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A base of which the heads of two languages are known, and its examples."""
    root = tmp_path_factory.mktemp("examples") / "heads"
    save_base(planted_heads.planted_model(), root / "base")
    rows = [row for x in planted_heads.HEADS for row in planted_heads.sentences(x, 300)]
    tested = {str(row["input_ids"]) for row in rows[::3]}
    for split, wanted in (("validation", False), ("test", True)):
        part = [row for row in rows if (str(row["input_ids"]) in tested) == wanted]
        write_json_lines(root / f"{split}.jsonl", part)
    return root


def output(example: Path, *arguments: object) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", str(example), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_says_how_to_run_it_and_runs(example, arc, stages, heads):
    assert f"python examples/{example.name}" in example.read_text()
    needs = {"whose_examples_helped": stages, "which_heads_belong_to_a_language": heads}
    if example.stem.startswith("probing_"):
        return  # they run in tests of their own
    assert output(example, needs.get(example.stem, arc))


def test_the_heads_example_finds_the_planted_heads(heads):
    (example,) = (path for path in EXAMPLES if path.stem == "which_heads_belong_to_a_language")
    printed = output(example, heads)
    for language, own in planted_heads.HEADS.items():
        assert f"{language} needs 2 of 4 heads   layers.0: {sorted(own)}" in printed
    assert "de fr  0.33" in printed
    assert "specific to their language (removing them hurts it most): " in printed


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


def test_the_ten_lines_of_probing_print_what_the_library_gives(stages):
    (example,) = (path for path in EXAMPLES if path.stem == "probing_in_ten_lines")
    body = [line for line in example.read_text().split('"""')[2].splitlines() if line]
    assert len([line for line in body if not line.startswith("import")]) <= 10
    printed = output(example, stages)
    found = subnet_probes.representations(stages, layers="all", pool="mean")
    settings = subnet_probes.ProbeSettings(mdl=False)
    frame = subnet_probes.probe_language(found, settings=settings).frame
    for row in frame.query("metric == 'accuracy'").itertuples():
        assert any(
            line.split()[:3] == [row.layer, "language", f"{row.score:.3f}"]
            for line in printed.splitlines()
        )


def test_the_real_text_example_says_what_it_wants(tmp_path):
    (example,) = (path for path in EXAMPLES if path.stem == "probing_real_text")
    found = subprocess.run(
        [sys.executable, str(example), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert found.stderr.strip() == (
        f"skipped: {tmp_path / 'sib200'} is not there; this example reads SIB-200 and UD"
    )


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real text in {DATA}")
def test_the_real_text_example_finds_language_topic_and_tags():
    (example,) = (path for path in EXAMPLES if path.stem == "probing_real_text")
    printed = output(example, DATA, "--steps", 20, "--concepts", 60, "--sentences", 30).splitlines()
    (at,) = (i for i, line in enumerate(printed) if line.startswith("layer"))
    for number, line in enumerate(printed[at + 1 : at + 6]):
        layer, language, *_, retrieval, shuffled = line.split()
        assert layer == str(number)
        assert float(language) > 0.5  # of 34 languages: scripts alone tell some
        assert float(retrieval) > float(shuffled)
    (mean,) = (line.split() for line in printed if line.strip().startswith("mean"))
    assert float(mean[1]) > 0.3
