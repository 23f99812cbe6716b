"""The demo experiment: the documented directory, the same bytes every time, and it learns."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from subnet._files import sha256
from subnet.errors import InputError, OutputError, UnknownLanguageError
from subnet.training import DemoSettings, load_data, resolve_languages, run_demo
from subnet.training.demo import _configuration
from training_makers import digests

LANGUAGES = ["en", "zh-TW", "ru"]
TINY = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "feed_forward": 32,
    "base_steps": 8,
    "base_epochs": 0.1,
    "adapter_steps": 3,
    "adapter_learning_rate": 0.02,
    "replicates": 2,
    "max_concepts_per_kind": 30,
}

pytestmark = pytest.mark.filterwarnings(
    # PEFT asks transformers by the old name when a model is wrapped.
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)


def tiny(target: Path, **arguments) -> Path:
    return run_demo(target, languages=LANGUAGES, settings=DemoSettings(**TINY), **arguments)


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, calls) -> Path:
    target = tmp_path_factory.mktemp("demo") / "checkpoint"
    return tiny(target, progress=lambda *call: calls.append(call))


@pytest.fixture(scope="module")
def run(demo: Path) -> dict:
    return json.loads((demo / "run.json").read_text())


def order_of(run: dict) -> list[str]:
    return run["orders"]["order-1"]


def files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def examples(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load_adapter(demo: Path, path: str):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(demo / "base")
    return PeftModel.from_pretrained(base, demo / path).eval()


def losses_one_by_one(demo: Path, model, tests: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Loss and prediction of each example alone, so without batches or padding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo / "base")
    losses, predicted = [], []
    with torch.no_grad():
        for example in tests:
            logits = model(**tokenizer(example["text"], return_tensors="pt")).logits[0].double()
            label = model.config.label2id[example["label"]]
            losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
            predicted.append(int(logits.argmax()))
    return np.array(losses), np.array(predicted)


def test_the_directory_is_the_documented_one_and_nothing_else(demo: Path, run: dict) -> None:
    order = order_of(run)
    adapter = ("adapter_config.json", "adapter_model.safetensors")
    folders = [
        *(f"adapters/{label}" for label in LANGUAGES),
        *(f"runs/replicate/adapters/{label}" for label in order[:2]),
        *(f"stages/{number:02d}-{label}" for number, label in enumerate(order, start=1)),
    ]
    expected = {f"{folder}/{name}" for folder in folders for name in adapter}
    expected |= {f"base/{name}" for name in ("config.json", "model.safetensors")}
    expected |= {f"base/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
    expected |= {
        "subnet.toml",
        "scores.csv",
        "items.csv",
        "train.jsonl",
        "validation.jsonl",
        "test.jsonl",
    }
    expected |= {"languages.csv", "run.json"}
    assert set(files(demo)) == expected


def test_two_runs_with_one_seed_give_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    code = (
        "from subnet.training import *;"
        f"run_demo('second', languages={LANGUAGES}, settings=DemoSettings(**{TINY}),"
        "overwrite=True)"
    )
    shutil.copytree(demo, tmp_path / "second")
    (tmp_path / "second/scores.csv").write_text("")  # a complete one, trained again
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "12345",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")  # and is silent
    assert digests(demo) == digests(tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["second"]


def test_many_examples_get_more_base_steps_than_the_fewest(demo: Path, run: dict) -> None:
    n = len(examples(demo / "train.jsonl"))
    assert run["settings"]["base"]["steps"] == 8 > 0.1 * n / 64
    settings = DemoSettings(**{**TINY, "base_steps": 1, "base_epochs": 0.5})
    steps = _configuration(settings, LANGUAGES, seed=0).base.steps
    assert steps == -(-n // 128)  # half a pass in batches of 64
    assert steps > 1


def test_another_seed_gives_other_weights_split_and_seeds(demo: Path, run: dict, tmp_path) -> None:
    settings = DemoSettings(**{**TINY, "base_steps": 1, "adapter_steps": 1, "replicates": 0})
    other = run_demo(tmp_path / "other", languages=LANGUAGES, settings=settings, seed=1)
    seeds = json.loads((other / "run.json").read_text())["seeds"]
    assert not set(seeds.values()) & set(run["seeds"].values())
    assert sha256(other / "test.jsonl") != sha256(demo / "test.jsonl")
    assert not (other / "runs").exists()


def test_no_file_holds_an_absolute_path_or_a_pickle(demo: Path) -> None:
    needles = [str(demo), str(demo.parent), str(Path.cwd()), str(Path.home()), sys.prefix, "/tmp"]
    for name, path in files(demo).items():
        content = path.read_bytes()
        assert not [n for n in needles if len(n) > 1 and n.encode() in content], name
        assert path.suffix in {".json", ".safetensors", ".csv", ".jsonl", ".toml"}


def test_scores_and_items_are_what_the_stored_stage_gives_example_by_example(
    demo: Path, run: dict
) -> None:
    tests = examples(demo / "test.jsonl")
    items = pd.read_csv(demo / "items.csv")
    scores = pd.read_csv(demo / "scores.csv").set_index(["stage", "language", "metric"])
    number, label = 2, order_of(run)[1]
    model = load_adapter(demo, f"stages/{number:02d}-{label}")
    losses, predicted = losses_one_by_one(demo, model, tests)
    expected = np.array([model.config.label2id[example["label"]] for example in tests])

    stage = items[items["stage"] == number].pivot_table(
        index="item", columns="metric", values="value"
    )
    stage = stage.loc[[example["id"] for example in tests]]
    np.testing.assert_allclose(stage["loss"], losses, rtol=1e-4)
    np.testing.assert_array_equal(stage["accuracy"], predicted == expected)

    for language in LANGUAGES:
        own = np.array([example["language"] == language for example in tests])
        n = own.sum()
        loss = scores.loc[(number, language, "loss")]
        assert loss["value"] == pytest.approx(losses[own].mean(), rel=1e-5)
        assert loss["stderr"] == pytest.approx(losses[own].std(ddof=1) / n**0.5, rel=1e-4)
        accuracy = scores.loc[(number, language, "accuracy")]
        p = (predicted == expected)[own].mean()
        assert accuracy["value"] == pytest.approx(p)
        assert accuracy["stderr"] == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
        f1 = f1_score(expected[own], predicted[own], average="macro", zero_division=0.0)
        assert scores.loc[(number, language, "macro_f1"), "value"] == pytest.approx(f1)
        assert np.isnan(scores.loc[(number, language, "macro_f1"), "stderr"])


def test_every_language_is_scored_at_every_stage_from_before_the_first(demo: Path) -> None:
    scores = pd.read_csv(demo / "scores.csv")
    assert list(scores.columns) == ["stage", "language", "metric", "value", "stderr"]
    cells = scores.set_index(["stage", "language", "metric"]).index
    assert cells.is_unique
    assert len(cells) == 4 * 3 * 3
    assert set(scores["stage"]) == {0, 1, 2, 3}
    items = pd.read_csv(demo / "items.csv")
    assert list(items.columns) == ["stage", "language", "item", "metric", "value"]
    assert len(items) == 4 * 2 * len(examples(demo / "test.jsonl"))
    assert set(items["item"]) == {example["id"] for example in examples(demo / "test.jsonl")}


def test_stage_zero_is_the_base_itself(demo: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    tests = examples(demo / "test.jsonl")[::5]
    base = AutoModelForSequenceClassification.from_pretrained(demo / "base").eval()
    items = pd.read_csv(demo / "items.csv").query("stage == 0 and metric == 'loss'")
    stored = items.set_index("item")["value"]
    losses, _ = losses_one_by_one(demo, base, tests)
    np.testing.assert_allclose(stored[[example["id"] for example in tests]], losses, rtol=1e-4)


def test_an_adapter_records_the_base_beside_it_and_leaves_the_head_frozen(demo: Path) -> None:
    from safetensors.torch import load_file

    for path in sorted(demo.rglob("adapter_config.json")):
        config = json.loads(path.read_text())
        assert config["base_model_name_or_path"] == "base"
        tensors = load_file(path.with_name("adapter_model.safetensors"))
        assert all("lora_A" in name or "lora_B" in name for name in tensors)
        assert not [name for name in tensors if "classifier" in name or "pooler" in name]
        assert len(tensors) == 6 * 2 * TINY["layers"]  # query, key, value and three dense layers
        assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_every_adapter_starts_from_its_own_recorded_seed(demo: Path, run: dict) -> None:
    from safetensors.torch import load_file

    places = {f"r8/adapters/{label}": f"adapters/{label}" for label in LANGUAGES}
    places |= {
        f"r8/replicate/{label}": f"runs/replicate/adapters/{label}" for label in order_of(run)[:2]
    }
    places["order-1/initialisation"] = f"stages/01-{order_of(run)[0]}"
    assert len({run["seeds"][name] for name in places}) == len(places) == 6
    right = [
        load_file(demo / path / "adapter_model.safetensors")[
            "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
        ].flatten()
        for path in places.values()
    ]
    for i, one in enumerate(right):
        for other in right[:i]:  # same seed: cosine near 1; 128 random values: within 0.5 of 0
            assert abs(torch.cosine_similarity(one, other, dim=0)) < 0.5


def test_stages_carry_one_adapter_on(demo: Path, run: dict) -> None:
    from safetensors.torch import load_file

    stages = [
        load_file(demo / "stages" / f"{n:02d}-{label}" / "adapter_model.safetensors")
        for n, label in enumerate(order_of(run), start=1)
    ]
    for before, after in itertools.pairwise(stages):
        for name in before:
            assert not torch.equal(before[name], after[name])
            if "lora_A" in name:  # moved on from there, not begun anew
                assert (
                    torch.cosine_similarity(before[name].flatten(), after[name].flatten(), dim=0)
                    > 0.8
                )


def test_the_settings_file_says_what_was_trained(demo: Path, run: dict) -> None:
    settings = tomllib.loads((demo / "subnet.toml").read_text(encoding="utf-8"))
    train = examples(demo / "train.jsonl")
    assert settings["format"] == 1
    assert settings["base"] == "base"
    assert settings["order"] == order_of(run)
    assert sorted(settings["order"]) == sorted(LANGUAGES)
    assert settings["languages"]["zh-TW"] == {"tag": "zh-TW"}
    assert settings["scores"]["loss"]["higher_is_better"] is False
    assert settings["scores"]["loss"]["chance"] == pytest.approx(np.log(6), rel=1e-5)
    for metric in ("accuracy", "macro_f1"):
        assert settings["scores"][metric]["higher_is_better"] is True
        assert settings["scores"][metric]["range"] == [0.0, 1.0]
    folders = [f"{n:02d}-{label}" for n, label in enumerate(order_of(run), start=1)]
    assert list(settings["stages"]) == folders
    for folder in folders:
        assert settings["stages"][folder] == {
            "learning_rate": 0.02,
            "steps": 3,
            "optimizer": "adamw_torch_fused",
            "examples": sum(example["language"] == folder[3:] for example in train),
        }


def test_chance_is_what_always_answering_the_largest_kind_scores(demo: Path) -> None:
    settings = tomllib.loads((demo / "subnet.toml").read_text(encoding="utf-8"))["scores"]
    labels = [e["label"] for e in examples(demo / "test.jsonl") if e["language"] == "ru"]
    largest = max(sorted(set(labels)), key=labels.count)
    answers = [largest] * len(labels)
    f1 = f1_score(labels, answers, average="macro", zero_division=0.0)
    assert settings["accuracy"]["chance"] == pytest.approx(
        labels.count(largest) / len(labels), rel=1e-5
    )
    assert settings["macro_f1"]["chance"] == pytest.approx(f1, rel=1e-5)


def test_examples_on_disk_are_those_of_the_data(demo: Path) -> None:
    data = load_data(resolve_languages(LANGUAGES), max_concepts_per_kind=30)
    for split in ("train", "validation", "test"):
        stored = examples(demo / f"{split}.jsonl")
        assert list(stored[0]) == ["id", "language", "text", "label", "concept"]
        assert [entry["text"] for entry in stored] == [e.text for e in getattr(data, split)]


def test_the_languages_table_reports_the_confounds(demo: Path) -> None:
    table = pd.read_csv(demo / "languages.csv", index_col="language")
    assert list(table.index) == LANGUAGES
    assert table.loc["zh-TW", "family"] == "Sino-Tibetan"
    assert table.loc["zh-TW", "script"] == "Hant"
    assert table.loc["en", "equal_to_english_share"] == 1
    assert table.loc["ru", "bytes_per_character"] > 1.8
    assert len(set(table["majority_share"])) == 1


def test_progress_counts_every_step_of_every_part_once(demo: Path, run: dict, calls) -> None:
    total = 8 + (3 + 2 + 3) * 3
    assert {call[2] for call in calls} == {total}
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert set(done) == set(range(total + 1))
    lone = {f"r8/adapters/{label}" for label in LANGUAGES}
    lone |= {f"r8/replicate/{label}" for label in order_of(run)[:2]}
    first = {name.split()[0] for name, _, _ in calls}
    assert first == {"base", "testing", "stage", *lone}


def test_the_callers_random_numbers_and_logging_stay_and_a_bar_is_on_stderr(
    tmp_path: Path, capfd
) -> None:
    from transformers.utils import logging

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = (random.random(), np.random.rand(), float(torch.rand(1)))  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    settings = DemoSettings(**{**TINY, "base_steps": 1, "adapter_steps": 1, "replicates": 0})
    run_demo(tmp_path / "demo", languages=["en", "ru"], settings=settings, progress=True)
    found = (random.random(), np.random.rand(), float(torch.rand(1)))  # noqa: NPY002
    assert found == expected
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr().out == ""


def test_a_demo_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    demo: Path, tmp_path: Path
) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name.startswith("stage 2 of 3"):
            raise KeyboardInterrupt

    named: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path / "demo", progress=interrupt)
    assert not (tmp_path / "demo/run.json").exists()
    tiny(tmp_path / "demo", progress=lambda name, *_: named.append(name))
    assert not [name for name in named if name == "base" or name.startswith(("r8/", "stage 1"))]
    assert digests(tmp_path / "demo") == digests(demo)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_complete_demo_is_left_as_it_is(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    (tmp_path / "demo/scores.csv").write_text("")
    tiny(tmp_path / "demo", progress=lambda *_: pytest.fail("trained"))
    assert (tmp_path / "demo/scores.csv").read_text() == ""
    with pytest.raises(OutputError, match=r"other settings.*--overwrite"):
        tiny(tmp_path / "demo", seed=1, progress=lambda *_: pytest.fail("trained"))


def test_what_stood_there_stays_where_no_demo_can_begin(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    (tmp_path / "demo/scores.csv").write_text("")
    with pytest.raises(InputError, match=r"adaptation.rank is 999"):
        run_demo(
            tmp_path / "demo",
            languages=LANGUAGES,
            settings=DemoSettings(**TINY, rank=999),
            overwrite=True,
        )
    assert (tmp_path / "demo/scores.csv").read_text() == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "demo"]


def test_what_another_command_wrote_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    def stop(*_) -> None:
        raise KeyboardInterrupt

    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/run.json").write_text('{"experiment": "demo"}')  # of an earlier version
    with pytest.raises(OutputError, match="no training of ours"):
        tiny(tmp_path / "demo")
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path / "demo", overwrite=True, progress=stop)
    assert not (tmp_path / "demo/run.json").exists()


def test_a_directory_of_something_else_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"mine: is there already, and is no training of"):
            tiny(tmp_path / "mine", overwrite=overwrite, progress=lambda *_: pytest.fail("trained"))
    assert list(files(tmp_path)) == ["mine/thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_share": 0.6, "validation_share": 0.4}, "less than 1 together"),
        ({"max_length": 3}, "max_length is 3; expected 4 or more"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(changes: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        DemoSettings(**changes)


def test_a_seed_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed is -1; expected 0 or more"):
        tiny(tmp_path / "demo", seed=-1)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_language_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UnknownLanguageError, match="CLDR has no words for 'qqq'"):
        run_demo(tmp_path / "demo", languages=["en", "qqq"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_language_is_learnt_on_its_own_turn_and_others_lose(tmp_path: Path) -> None:
    demo = run_demo(tmp_path / "demo")
    run = json.loads((demo / "run.json").read_text())
    items = pd.read_csv(demo / "items.csv").query("metric == 'accuracy'")
    majority = pd.read_csv(demo / "languages.csv", index_col="language")["majority_share"]
    means = items.groupby(["stage", "language"])["value"].agg(["sum", "count", "mean"])
    for stage, language in enumerate(order_of(run), start=1):
        own = means.loc[(stage, language)]
        interval = binomtest(int(own["sum"]), int(own["count"])).proportion_ci(method="wilson")
        assert interval.low > majority[language], language
    mean = means["mean"]
    gain = np.mean([mean[s, j] - mean[s - 1, j] for s, j in enumerate(order_of(run), 1)])
    loss = np.mean([mean[s, j] - mean[12, j] for s, j in enumerate(order_of(run)[:-1], 1)])
    assert gain > 0.05
    assert loss > 0.03
