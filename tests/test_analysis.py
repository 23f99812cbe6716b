"""The main job: what it computes from which files, what it writes, what it leaves alone."""

import json
import math
import re
import shutil
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import checkpoint_makers as makers
import subnet
from planted import LANGUAGES, write_arc
from subnet._tables import COLUMNS
from subnet.errors import InputError, OutputError
from subnet.subnetwork import Subnetwork
from subnet.training import train
from training_makers import small_config


@pytest.fixture(scope="module")
def arc(tmp_path_factory):
    return write_arc(tmp_path_factory.mktemp("planted") / "arc", planted=True)


@pytest.fixture(scope="module")
def analysis(arc):
    return subnet.analyze(arc)


@pytest.fixture(scope="module")
def report(analysis, tmp_path_factory):
    return analysis.save(tmp_path_factory.mktemp("out") / "report")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_planted_relation_is_found_with_its_sign(analysis):
    assert analysis.headline.state == "associated"
    assert analysis.headline.row["estimate"] < -0.5, "the more is shared, the more is lost"
    assert analysis.headline.row["measure"] == "jaccard"


def test_scores_that_have_nothing_to_do_with_sharing_give_no_finding(tmp_path):
    states = [
        subnet.analyze(
            write_arc(tmp_path / str(seed), planted=False, seed=seed), n_permutations=999
        ).headline.state
        for seed in range(1, 4)
    ]
    assert states == ["not associated"] * 3


def test_the_documented_files_are_written_with_their_columns(report, analysis):
    written = set(files(report))
    assert {"report.html", "summary.json", "run.json"} <= written
    for name in ("languages", "overlap", "scores", "effects", "forgetting", "groups", "relation"):
        frame = pd.read_csv(report / "tables" / f"{name}.csv", keep_default_na=False)
        fixed = list(COLUMNS[name])
        assert list(frame.columns[: len(fixed)]) == fixed
        assert len(frame) == len(analysis.tables[name])
    assert any(name.startswith("figures/") and name.endswith(".svg") for name in written)


def test_graphs_are_read_back_by_networkx_and_hold_no_none(report):
    for path in (report / "graphs").glob("*.json"):
        data = json.loads(path.read_text())
        node_link = nx.node_link_graph(data, edges="edges")
        graphml = nx.read_graphml(path.with_suffix(".graphml"))
        assert dict(node_link.nodes(data=True)) == dict(graphml.nodes(data=True))
        assert set(node_link.nodes) == set(LANGUAGES)
        assert ": null" not in path.read_text()
        assert node_link.nodes["ar"]["script_name"] == "Arabic"


def test_every_number_of_the_summary_stands_in_a_table(report, analysis):
    summary = json.loads((report / "summary.json").read_text())
    overlap = analysis.tables["overlap"]
    rows = overlap[
        (overlap["source"] == "masks")
        & (overlap["level"] == "all")
        & (overlap["measure"] == "jaccard")
        & (overlap["null"] == "structure")
    ]
    numbers = summary["overlap"]["masks"]["jaccard"]
    assert numbers["mean"] == pytest.approx(rows["value"].mean())
    assert numbers["floor"] == pytest.approx(rows["expected"].mean())
    assert numbers["ceiling"] is None, "no language was trained twice"
    assert summary["headline"]["sentence"] == analysis.headline.sentence
    # There is no test.jsonl to try the masks on, and no examples whose influence to measure.
    assert {entry["analysis"] for entry in summary["missing"]} == {"ablation", "influence"}


def test_a_replicate_run_gives_the_ceiling_and_is_not_counted_among_the_pairs(tmp_path):
    makers.write_lora_directory(tmp_path / "alone", ("de", "fr", "sw"))
    makers.write_lora_directory(tmp_path / "both", ("de", "fr", "sw"))
    second = tmp_path / "both" / "runs" / "replicate" / "adapters"
    for seed, language in enumerate(("de", "fr"), start=50):
        makers.save_adapter(makers.lora(makers.bert(), seed), second / language)
    alone, both = (subnet.analyze(tmp_path / name).summary() for name in ("alone", "both"))
    for source, measures in alone["overlap"].items():
        for measure, numbers in measures.items():
            beside = both["overlap"][source][measure]
            both_ways = 2 if measure == "containment" else 1
            assert numbers["pairs"] == beside["pairs"] == 3 * both_ways
            assert math.isnan(numbers.pop("ceiling"))
            assert math.isfinite(beside.pop("ceiling"))
            assert beside == pytest.approx(numbers), (source, measure)


def test_run_json_says_how_it_was_made(report, arc):
    import hashlib

    record = json.loads((report / "run.json").read_text())
    assert record["seed"] == 0
    assert record["settings"]["analyze"]["density"] == 0.05
    digest = hashlib.sha256((arc / "scores.csv").read_bytes()).hexdigest()
    assert record["inputs"]["scores.csv"] == digest
    assert "adapters/de/adapter_model.safetensors" in record["inputs"]
    assert "Dekker et al., 2007" in record["methods"]
    cited = re.findall(r"^@\w+\{(\w+),", record["bibtex"], re.M)
    assert "dekker2007sensitivity" in cited


def test_no_output_names_a_place_on_this_machine(report, arc):
    for name, content in files(report).items():
        assert str(arc.parent).encode() not in content, name
        assert str(Path.home()).encode() not in content, name


def test_the_same_seed_gives_the_same_bytes(analysis, report, arc, tmp_path):
    again = subnet.analyze(arc).save(tmp_path / "again")
    assert files(again) == files(report)


def test_nothing_is_written_into_the_checkpoint(tmp_path):
    root = write_arc(tmp_path / "arc", planted=True)
    before = files(root)
    subnet.analyze(root, n_permutations=99).save(tmp_path / "report")
    assert files(root) == before


def test_without_scores_the_headline_says_which_file_is_missing(arc, tmp_path):
    shutil.copytree(arc, tmp_path / "arc")
    (tmp_path / "arc" / "scores.csv").unlink()
    analysis = subnet.analyze(tmp_path / "arc")
    assert analysis.headline.state == "files missing"
    assert "scores.csv" in analysis.headline.sentence
    assert {entry.analysis for entry in analysis.missing} >= {"forgetting", "relation"}
    assert set(analysis.tables) == {"languages", "overlap"}
    assert "scores.csv" in (analysis.save(tmp_path / "out") / "report.html").read_text()


def test_without_weights_forgetting_is_measured_all_the_same(arc, tmp_path):
    (tmp_path / "scores").mkdir()
    shutil.copy(arc / "scores.csv", tmp_path / "scores")
    analysis = subnet.analyze(tmp_path / "scores")
    assert analysis.headline.state == "files missing"
    assert "adapters/<language>/" in analysis.headline.sentence
    assert "forgetting" in analysis.tables
    assert "overlap" not in analysis.tables
    assert analysis.save(tmp_path / "out").is_dir()


def test_scores_without_an_order_say_what_the_relation_wants(tmp_path):
    makers.write_lora_directory(tmp_path / "x", ("de", "fr", "sw"))
    makers.write_scores(tmp_path / "x" / "scores.csv", ("de", "fr", "sw"))
    analysis = subnet.analyze(tmp_path / "x")
    assert analysis.headline.state == "files missing"
    assert "which stage trained which language" in analysis.headline.sentence
    assert analysis.save(tmp_path / "report").is_dir()


def test_below_five_languages_the_relation_is_not_testable(tmp_path):
    makers.write_lora_directory(tmp_path, ("de", "fr", "sw"))
    makers.write_scores(tmp_path / "scores.csv", ("de", "fr", "sw"))
    (tmp_path / "subnet.toml").write_text('order = ["de", "fr", "sw"]')
    assert subnet.analyze(tmp_path).headline.state == "not testable"


def test_steps_are_compared_with_what_each_language_uses(tmp_path):
    languages = ("de", "fr", "sw", "tr", "ru")
    makers.write_lora_directory(tmp_path, languages)
    makers.write_stages(tmp_path, languages)
    makers.write_scores(tmp_path / "scores.csv", languages)
    analysis = subnet.analyze(tmp_path, n_permutations=99)
    assert set(analysis.overlaps) == {"masks", "updates", "step_masks", "step_updates"}
    relation = analysis.tables["relation"]
    assert analysis.headline.row["predictor"] == "step_masks"
    assert set(relation["predictor"]) == set(analysis.overlaps)


def test_masks_from_disk_are_compared_as_they_are(arc, tmp_path):
    masks = subnet.extract(subnet.open_checkpoint(arc), density=0.2)
    masks.save(tmp_path / "masks-only")
    analysis = subnet.analyze(tmp_path / "masks-only")
    direct = subnet.measure_overlap(masks).matrix("jaccard")
    pd.testing.assert_frame_equal(analysis.overlaps["masks"].matrix("jaccard"), direct)


def test_masks_of_another_directory_take_the_place_of_those_by_magnitude(arc, tmp_path):
    masks = subnet.extract(subnet.open_checkpoint(arc), density=0.2)
    masks.save(tmp_path / "mine")
    analysis = subnet.analyze(arc, masks=tmp_path / "mine", n_permutations=99)
    direct = subnet.measure_overlap(masks).matrix("jaccard")
    pd.testing.assert_frame_equal(analysis.overlaps["masks"].matrix("jaccard"), direct)
    assert set(analysis.tables["relation"]["predictor"]) >= {"masks", "updates"}
    inputs = json.loads((analysis.save(tmp_path / "report") / "run.json").read_text())["inputs"]
    assert "masks: masks/de.safetensors" in inputs
    with pytest.raises(InputError, match="'magnitude' is given beside the masks of"):
        subnet.analyze(arc, masks=tmp_path / "mine", method="magnitude")


def test_masks_of_heads_go_through_to_the_report(tmp_path):
    languages = ("de", "fr", "sw", "tr", "ru")
    makers.write_lora_directory(tmp_path / "x", languages)
    makers.write_stages(tmp_path / "x", languages)
    makers.write_scores(tmp_path / "x" / "scores.csv", languages)
    rng = np.random.default_rng(0)
    (tmp_path / "x" / "masks").mkdir()
    for language in languages:
        layers = {f"layers.{i}.heads": rng.random(4) < 0.5 for i in range(3)}
        heads = Subnetwork.from_arrays(layers, language=language, base="b", granularity="head")
        heads.save(tmp_path / "x" / "masks" / f"{language}.safetensors")
    analysis = subnet.analyze(tmp_path / "x", n_permutations=99)
    # What a stage changed is known by weight, not by head.
    assert set(analysis.overlaps) == {"masks", "updates", "step_updates"}
    assert (analysis.save(tmp_path / "report") / "report.html").stat().st_size > 10_000
    by_weight = subnet.analyze(tmp_path / "x", method="magnitude", n_permutations=99)
    assert "step_masks" in by_weight.overlaps


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (makers.qwen3, {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
        (makers.mt5, {"target_modules": ["q", "k", "v"]}),
        (makers.m2m, {"target_modules": ["q_proj", "v_proj"]}),
        (makers.xlm_roberta, {"target_modules": ["query", "value"]}),
    ],
)
def test_every_architecture_goes_through_to_the_report(build, settings, tmp_path):
    languages = ("de", "fr", "sw", "tr", "ru")
    makers.write_lora_directory(tmp_path / "x", languages, build=build, **settings)
    makers.write_scores(tmp_path / "x" / "scores.csv", languages)
    (tmp_path / "x" / "subnet.toml").write_text(f"order = {list(languages)}\n")
    analysis = subnet.analyze(tmp_path / "x", n_permutations=99)
    assert analysis.headline.state in ("associated", "not associated", "not testable")
    assert (analysis.save(tmp_path / "report") / "report.html").stat().st_size > 10_000


def test_fully_fine_tuned_weights_go_through_to_the_report(tmp_path):
    makers.save_base(makers.bert(), tmp_path / "x" / "base")
    for seed, language in enumerate(("de", "fr", "sw"), start=1):
        model = makers.bert()
        makers.move(model, seed)
        makers.save_base(model, tmp_path / "x" / "adapters" / language)
    analysis = subnet.analyze(tmp_path / "x")
    assert set(analysis.overlaps) == {"masks", "updates"}
    assert (analysis.save(tmp_path / "report") / "tables" / "overlap.csv").is_file()


def test_a_language_named_like_markup_stays_text(arc, tmp_path):
    shutil.copytree(arc, tmp_path / "arc")
    label = "<script>alert(1)</script>"
    scores = (tmp_path / "arc" / "scores.csv").read_text()
    (tmp_path / "arc" / "scores.csv").write_text(re.sub(r"\bth\b", label, scores))
    (tmp_path / "arc" / "subnet.toml").write_text(f'[languages."{label}"]\ntag = "th"\n')
    shutil.rmtree(tmp_path / "arc" / "adapters" / "th")
    analysis = subnet.analyze(tmp_path / "arc", n_permutations=99)
    assert label in set(analysis.tables["languages"]["language"])
    html = (analysis.save(tmp_path / "report") / "report.html").read_text()
    assert label not in html
    assert "&lt;script&gt;alert(1)" in html


def test_an_output_directory_that_is_taken_is_refused_and_ours_is_replaced(analysis, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"is already there; .*--overwrite"):
        analysis.save(tmp_path / "mine")
    with pytest.raises(OutputError, match=r"holds no run\.json"):
        analysis.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    analysis.save(tmp_path / "ours")
    (tmp_path / "ours" / "stale").touch()
    analysis.save(tmp_path / "ours", overwrite=True)
    assert not (tmp_path / "ours" / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "ours"]


def test_an_unknown_metric_is_refused_by_name(arc):
    with pytest.raises(InputError, match="there is no metric 'bleu'; expected one of loss"):
        subnet.analyze(arc, metric="bleu")


def test_runs_of_a_training_are_analysed_each_by_its_own_settings(tmp_path):
    """Stages say their rates in the run's own file; adapters that runs share are no replicates."""
    config = small_config(
        languages=["de", "fr", "ru"], sequence={"orders": 2, "adapters": True, "joint": True}
    )
    train(config, tmp_path / "run")
    checkpoint = subnet.open_checkpoint(tmp_path / "run")
    assert "01-" in next(iter(checkpoint.settings_of("order-1").stages))
    analysis = subnet.analyze(checkpoint, ablation=False, influence=True, n_permutations=99)
    assert set(analysis.influence.frame["run"]) >= {"order-1", "order-2"}
    assert not [line for line in analysis.warnings if "same LoRA initialisation" in line]
    frame = analysis.forgetting.frame
    assert frame[frame["measure"] == "intransigence"]["value"].notna().all()
