"""`train`: what it writes is what the regimes say, and what an independent reader finds again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import subnet
from subnet.errors import DivergedError, InputError, MissingInputError, OutputError
from subnet.training import _procedure, find_cells, read_config, train
from subnet.training.corpora import PARTS, load_corpus
from training_makers import digests, small_config

REGIMES = {
    "adaptation": {"rank": 4, "sharing": ["none", "partial", "full"]},
    "sequence": {"adapters": True, "joint": True},
}


@pytest.fixture(scope="module")
def regimes(tmp_path_factory):
    """One order under three sharing regimes."""
    directory = tmp_path_factory.mktemp("train") / "regimes"
    trained = train(small_config(**REGIMES), directory)
    return {cell.name.partition("-")[0]: cell for cell in trained.cells}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three languages, never stopped."""
    directory = tmp_path_factory.mktemp("train") / "whole"
    train(small_config(languages=["de", "fr", "ru"]), directory)
    return directory


def table(cell: Path, name: str, metric: str = "loss") -> pd.DataFrame:
    frame = pd.read_csv(cell / f"{name}.csv", keep_default_na=False)
    return frame[frame["metric"] == metric]


def wide(cell: Path) -> pd.DataFrame:
    """Loss by stage × language."""
    rows = table(cell, "scores")
    return rows.set_index(["stage", "language"])["value"].unstack()  # noqa: PD010 nothing to aggregate


def order_of(cell: Path) -> list[str]:
    return list(subnet.open_checkpoint(cell).settings.order)


def results_by_loop(cell: Path, adapter: Path | None) -> dict[str, tuple[float, float]]:
    """Mean loss and accuracy of each language, one example at a time, by PEFT's own loader."""
    model = AutoModelForSequenceClassification.from_pretrained(cell / "base")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(cell / "base")
    found: dict[str, list[tuple[float, float]]] = {}
    for line in (cell / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ids = tokenizer(row["text"], truncation=True, max_length=96, return_tensors="pt")
        label = torch.tensor([model.config.label2id[row["label"]]])
        with torch.no_grad():
            output = model(**ids, labels=label)
        right = float(output.logits.argmax(-1) == label)
        found.setdefault(row["language"], []).append((float(output.loss), right))
    return {name: tuple(np.mean(values, axis=0)) for name, values in found.items()}


def test_scores_of_a_stage_are_those_of_the_weights_it_delivers(regimes):
    cell = regimes["full"]
    for number in (0, 2):
        adapter = None
        if number:
            adapter = cell / "stages" / f"{number:02d}-{order_of(cell)[number - 1]}"
        expected = results_by_loop(cell, adapter)
        for metric, place in (("loss", 0), ("accuracy", 1)):
            rows = table(cell, "scores", metric)
            rows = rows[rows["stage"] == number].set_index("language")["value"].astype(float)
            for language, values in expected.items():
                assert rows[language] == pytest.approx(values[place], rel=2e-5)


def test_where_nothing_is_shared_a_language_changes_on_its_own_turn_and_never_again(regimes):
    cell = regimes["none"]
    values = wide(cell)
    for turn, language in enumerate(order_of(cell), start=1):
        changed = values[language].diff().to_numpy()[1:] != 0
        assert list(np.flatnonzero(changed) + 1) == [turn]
    for language in order_of(cell)[:2]:
        loss, _ = results_by_loop(cell, cell / "adapters" / language)[language]
        assert values[language].iloc[-1] == pytest.approx(loss, rel=2e-5)


def test_transfer_is_what_the_adapter_of_one_language_does_on_every_other(regimes):
    cell = regimes["none"]
    first = order_of(cell)[0]
    rows = table(cell, "transfer")
    rows = rows[rows["trained_language"] == first].set_index("language")["value"].astype(float)
    for language, (loss, _) in results_by_loop(cell, cell / "adapters" / first).items():
        assert rows[language] == pytest.approx(loss, rel=2e-5)
    assert not (regimes["full"] / "transfer.csv").exists()


def test_with_a_shared_a_the_adapters_have_one_a_and_each_its_own_b(regimes):
    cell = regimes["partial"]
    adapters = {
        path.name: load_file(path / "adapter_model.safetensors")
        for path in (cell / "adapters").iterdir()
    }
    first, second = list(adapters.values())[:2]
    for name in first:
        assert torch.equal(first[name], second[name]) == ("lora_A" in name)
    # A moved after the first language's turn, and its own B did not: it forgets by A alone.
    values = wide(cell)
    early, late = order_of(cell)[0], order_of(cell)[-1]
    assert (values[early].diff().to_numpy()[1:] != 0).all()
    # B = 0 before its turn: the base answers for it, whatever A is.
    assert (values[late].diff().to_numpy()[1:-1] == 0).all()


def test_with_shared_lower_layers_only_the_upper_ones_differ(tmp_path):
    config = small_config(adaptation={"sharing": "partial", "partial": "lower_layers"})
    train(config, tmp_path / "run")
    adapters = [
        load_file(path / "adapter_model.safetensors")
        for path in sorted((tmp_path / "run/adapters").iterdir())
    ]
    for name, value in adapters[0].items():
        assert torch.equal(value, adapters[1][name]) == ("layer.0." in name)


def test_each_adapter_starts_from_a_seed_of_its_own(regimes):
    a = [
        load_file(path / "adapter_model.safetensors")
        for path in sorted((regimes["full"] / "adapters").iterdir())
    ]
    name = next(name for name in a[0] if "lora_A" in name)
    cosine = torch.nn.functional.cosine_similarity(a[0][name].flatten(), a[1][name].flatten(), 0)
    assert abs(cosine) < 0.6


def test_adapters_beside_a_shared_sequence_are_not_those_of_another_regime(regimes, tmp_path):
    """Each of its own seed, from the base, whichever regimes stand before it in the list."""
    alone = REGIMES | {"adaptation": {"rank": 4, "sharing": "full"}}
    train(small_config(**alone), tmp_path / "alone")
    for language in sorted(path.name for path in (regimes["full"] / "adapters").iterdir()):
        file = f"adapters/{language}/adapter_model.safetensors"
        found, own = (load_file(regimes[cell] / file) for cell in ("full", "none"))
        assert not any(torch.equal(own[name], found[name]) for name in found if "lora_" in name)
        expected = load_file(tmp_path / "alone" / file)
        assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_where_languages_have_their_own_parameters_those_are_their_adapters(regimes):
    """A is one and the same in all of them, as the sequence trained it."""
    tensors = [
        load_file(path / "adapter_model.safetensors")
        for path in sorted((regimes["partial"] / "adapters").iterdir())
    ]
    for name, value in tensors[0].items():
        if "lora_A" in name:
            assert all(torch.equal(value, other[name]) for other in tensors[1:])


@pytest.mark.parametrize("head", ["shared", "per_language"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_head_is_shared_or_each_languages_own(tmp_path, head, tuning):
    languages = ["de", "fr", "ru"]
    parts = {"languages": languages, "adaptation": {"head": head, "tuning": tuning}}
    train(small_config(**parts, training={"steps": 1}), tmp_path / "run")
    stages = sorted((tmp_path / "run/stages").iterdir())
    file = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
    heads = [
        value
        for stage in stages
        for name, value in load_file(stage / file).items()
        if name.endswith("classifier.weight")
    ]
    base = load_file(tmp_path / "run/base/model.safetensors")["classifier.weight"]
    assert len(heads) == len(languages)
    # A first step of Adam moves every weight by its rate; so it is from where a head has begun.
    begun = [base, *heads[:-1]] if head == "shared" else [base] * 3
    for before, after in zip(begun, heads, strict=True):
        assert not torch.equal(before, after)
        torch.testing.assert_close(
            (after - before).abs().max(), torch.tensor(0.01), rtol=1e-3, atol=0
        )
    if head == "per_language":
        assert not torch.equal(heads[0], heads[1])
    assert (tmp_path / "run/heads").is_dir() == (head == "per_language")
    checkpoint = subnet.open_checkpoint(tmp_path / "run")
    assert checkpoint.can("forgetting")
    assert not checkpoint.skipped


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_last_model_with_a_languages_own_head_gives_its_last_scores(tmp_path, tuning):
    adaptation = {"head": "per_language", "tuning": tuning}
    config = small_config(languages=["de", "fr"], adaptation=adaptation, output={"stages": "last"})
    train(config, tmp_path)
    assert len(list((tmp_path / "stages").iterdir())) == 1
    last = next((tmp_path / "stages").iterdir())
    folder = last if tuning == "full" else tmp_path / "base"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if tuning == "lora":
        model = PeftModel.from_pretrained(model, last).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    items = pd.read_csv(tmp_path / "items.csv", dtype={"item": str})
    losses = items[(items["metric"] == "loss") & (items["stage"] == 2)]
    with (tmp_path / "test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    labels = {label: number for number, label in model.config.id2label.items()}
    for language in ("de", "fr"):
        head = load_file(tmp_path / f"heads/{language}.safetensors")
        assert set(head) == {"classifier.weight", "classifier.bias"}
        model.load_state_dict(head, strict=False)
        known = losses[losses["language"] == language].set_index("item")["value"]
        for row in [row for row in rows if row["language"] == language][:5]:
            fed = tokenizer(row["text"], return_tensors="pt")
            with torch.no_grad():
                loss = model(**fed, labels=torch.tensor([labels[row["label"]]])).loss
            assert float(loss) == pytest.approx(known[row["id"]], rel=1e-4)


def test_a_frozen_head_stays_what_it_was_when_all_weights_are_trained(tmp_path):
    train(small_config(languages=["de", "fr"], adaptation={"tuning": "full"}), tmp_path / "run")
    base = load_file(tmp_path / "run/base/model.safetensors")
    for stage in (tmp_path / "run/stages").iterdir():
        found = load_file(stage / "model.safetensors")
        assert torch.equal(found["classifier.weight"], base["classifier.weight"])
        name = "bert.encoder.layer.0.attention.self.query.weight"
        assert not torch.equal(found[name], base[name])


def test_the_scale_of_the_update_is_the_same_at_every_rank(tmp_path):
    config = small_config(languages=["de", "fr"], adaptation={"rank": [2, 4], "sharing": "full"})
    trained = train(config, tmp_path / "run")
    assert [cell.name for cell in trained.cells] == ["full-r2", "full-r4"]
    for cell in trained.cells:
        stage = next((cell / "stages").iterdir())
        found = json.loads((stage / "adapter_config.json").read_text())
        assert found["lora_alpha"] / found["r"] == 2.0
    assert list(find_cells(tmp_path / "run")) == ["full-r2", "full-r4"]


def test_every_part_is_recognised_and_analysed(regimes):
    for cell in regimes.values():
        checkpoint = subnet.open_checkpoint(cell)
        assert checkpoint.can("forgetting")
        assert checkpoint.can("overlap")
        assert not [entry for entry in checkpoint.skipped if "joint" in str(entry)]
    overlap = subnet.measure_overlap(subnet.open_checkpoint(regimes["full"]).updates)
    assert len(overlap.to_frame())


def test_joint_training_takes_as_many_steps_as_the_sequence_and_is_the_reference(regimes):
    scores = {name: (cell / "joint/scores.csv").read_bytes() for name, cell in regimes.items()}
    assert len(set(scores.values())) == 1  # of one rank, whatever is shared afterwards
    cell = subnet.open_checkpoint(regimes["full"])
    frame = subnet.measure_forgetting(cell.scores, reference=cell.joint).frame
    values = frame[frame["measure"] == "intransigence"]["value"].astype(float)
    assert values.notna().all()


def test_the_seeds_of_a_cell_are_those_of_its_own_trainings(regimes):
    for name, cell in regimes.items():
        seeds = json.loads((cell / "run.json").read_text())["seeds"]
        assert "r4/joint" in seeds
        lone = {key.rpartition("/")[2] for key in seeds if key.startswith("r4/adapters/")}
        assert lone == ({"de", "fr", "ru", "ar"} if name == "full" else set())


def test_orders_and_seeds_are_runs(tmp_path):
    config = small_config(
        languages=["de", "fr"],
        sequence={"orders": 2, "seeds": [0, 1]},
        base={"steps": 2},
        training={"steps": 2},
        output={"stages": "none"},
    )
    trained = train(config, tmp_path / "run")
    assert trained.runs == (
        "order-1-seed-0", "order-1-seed-1", "order-2-seed-0", "order-2-seed-1",
    )  # fmt: skip
    checkpoint = subnet.open_checkpoint(tmp_path / "run")
    orders = {run: tuple(order) for run, order in checkpoint.scores.order.items()}
    assert orders["order-1-seed-0"] == orders["order-1-seed-1"] != orders["order-2-seed-0"]
    frame = checkpoint.scores.frame
    first, second = (
        frame[(frame["run"] == f"order-1-seed-{seed}") & (frame["stage"] == 1)]["value"].to_numpy()
        for seed in (0, 1)
    )
    assert not np.allclose(first, second)


def test_tags_are_learnt_and_scored(tmp_path):
    config = small_config(
        task="token-classification",
        languages=["de", "fr", "th"],
        base={"steps": 60, "learning_rate": 3e-3},
    )
    train(config, tmp_path / "run")
    scores = subnet.open_checkpoint(tmp_path / "run").scores
    assert set(scores.frame["metric"]) == {"loss", "accuracy", "slot_f1"}
    losses = table(tmp_path / "run", "scores")["value"].astype(float)
    assert losses.iloc[0] < np.log(13)  # less than a guess among all tags


def test_of_a_few_terms_a_tag_may_be_among_those_tested_alone(tmp_path):
    """With so few terms the only name of a language in two words is one to be tested."""
    config = small_config(task="token-classification", languages=["de", "fr", "ru"])
    corpus = load_corpus(config, tmp_path)
    tags = {part: {t for row in getattr(corpus, part) for t in row["tags"]} for part in PARTS}
    assert tags["test"] - tags["train"]
    assert set(corpus.labels) == tags["train"] | tags["test"]


class _Stop(Exception):
    pass


def _train_with_stops(config, directory, stops):
    """Train, thrown out after these numbers of steps, called again until it is done."""
    for stop in [*stops, None]:
        done = 0

        def count(*_, limit=stop):
            nonlocal done
            done += 1
            if limit is not None and done > limit:
                raise _Stop

        try:
            train(config, directory, progress=count)
        except _Stop:
            continue
        return


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, whole):
    config = small_config(languages=["de", "fr", "ru"])
    _train_with_stops(config, tmp_path / "stopped", [3, 11, 9])
    assert digests(tmp_path / "stopped") == digests(whole)


@pytest.mark.parametrize("sharing", [pytest.param("none", marks=pytest.mark.slow), "partial"])
def test_languages_find_their_own_parameters_again(tmp_path, sharing):
    config = small_config(adaptation={"sharing": sharing}, languages=["de", "fr", "ru"])
    train(config, tmp_path / "whole")
    _train_with_stops(config, tmp_path / "stopped", [16, 9])
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_it_goes_on_within_a_stage_too(tmp_path):
    config = small_config(
        languages=["de", "fr"],
        training={"steps": 9, "schedule": "linear"},
        output={"save_every": 2},
    )
    train(config, tmp_path / "whole")
    counted = []
    _train_with_stops(config, tmp_path / "stopped", [14])
    train(config, tmp_path / "stopped", progress=lambda *step: counted.append(step))
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def paths_in(directory):
    """What lies in a directory that somebody else is writing."""
    return {path for path, *_ in os.walk(directory)} | {
        f"{path}/{name}" for path, _, names in os.walk(directory) for name in names
    }


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_bytes(tmp_path):
    file, target = tmp_path / "run.toml", tmp_path / "killed"
    config = small_config(
        languages=["de", "fr", "ru"], training={"steps": 200}, output={"save_every": 10}
    )
    lines = [f"languages = {json.dumps(['de', 'fr', 'ru'])}"]
    for name in ("data", "model", "base", "adaptation", "training", "output"):
        lines.append(f"[{name}]")
        lines += [
            f"{key} = {json.dumps(value)}"
            for key, value in getattr(config, name).model_dump().items()
        ]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert read_config(file) == config
    command = [sys.executable, "-m", "subnet_cli", "train", str(file), "--quiet", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=300)
    draw = random.Random(0)
    for _ in range(5):
        # At a moment of its own: after so many files and folders that were never there, and more.
        before, wanted, deadline = paths_in(target), draw.randrange(1, 60), time.monotonic() + 120
        seen = set(before)
        with subprocess.Popen([*command, str(target)]) as process:
            while len(seen) < len(before) + wanted:
                assert time.monotonic() < deadline
                assert process.poll() is None
                seen |= paths_in(target)
                time.sleep(0.002)
            time.sleep(draw.random() * 0.05)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run([*command, str(target)], check=True, timeout=300)
    assert digests(target) == digests(tmp_path / "whole")
    assert not list(target.rglob(".*"))


def test_two_processes_give_the_result_of_one(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'languages = ["de", "fr"]\n[data]\nmax_concepts_per_kind = 12\n'
        "[model]\nwidth = 16\nlayers = 2\nheads = 2\nfeed_forward = 32\n"
        "[base]\nsteps = 4\nbatch_size = 16\n[training]\nsteps = 4\nbatch_size = 8\n",
        encoding="utf-8",
    )
    train(file, tmp_path / "one")
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
            "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
            "-m", "subnet_cli", "train", str(file), "--quiet", "--out", str(tmp_path / "two"),
        ],
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    one, two = (
        pd.read_csv(tmp_path / name / "items.csv", keep_default_na=False) for name in ("one", "two")
    )
    assert list(one["item"]) == list(two["item"])
    losses = one["metric"] == "loss"
    np.testing.assert_allclose(one["value"][losses], two["value"][losses], rtol=1e-4)
    assert set(digests(tmp_path / "one")) == set(digests(tmp_path / "two"))


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification"])
def test_a_step_in_several_passes_is_the_step_in_one(tmp_path, task):
    parts = {"task": task, "languages": ["de", "th"]}
    for passes in (1, 4):
        recipe = {"passes": passes, "batch_size": 8}
        train(small_config(training=recipe, base=recipe, **parts), tmp_path / f"{passes}")
    one, four = (
        load_file(next((tmp_path / name / "stages").glob("02-*")) / "adapter_model.safetensors")
        for name in ("1", "4")
    )
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-3, atol=1e-5)


def test_a_finished_run_is_not_run_again_and_another_is_not_overwritten(tmp_path):
    config = small_config(languages=["de", "fr"])
    train(config, tmp_path / "run")
    before = digests(tmp_path / "run")
    train(config, tmp_path / "run", progress=lambda *_: pytest.fail("a step was taken"))
    other = small_config(languages=["de", "fr"], seed=1)
    with pytest.raises(OutputError, match=r"other settings.*--overwrite"):
        train(other, tmp_path / "run")
    assert digests(tmp_path / "run") == before
    train(other, tmp_path / "run", overwrite=True)
    assert digests(tmp_path / "run") != before


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match="no training of ours"):
        train(small_config(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_loss_that_is_not_finite_stops_with_stage_and_step_and_keeps_what_was_good(
    tmp_path, monkeypatch, whole
):
    config = small_config(languages=["de", "fr", "ru"])
    fitted = _procedure.fit

    calls = []

    def spoil(model, *arguments, **named):
        calls.append(model)
        if len(calls) == 2:  # the second stage
            with torch.no_grad():
                next(value for value in model.parameters() if value.requires_grad).fill_(np.nan)
        return fitted(model, *arguments, **named)

    monkeypatch.setattr(_procedure, "fit", spoil)
    with pytest.raises(DivergedError, match=r"stage 2 of 3 .*step 1 of 4.*stage 1 is kept"):
        train(config, tmp_path / "run")
    assert [path.name[:2] for path in (tmp_path / "run/stages").iterdir()] == ["01"]
    monkeypatch.undo()
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(whole)


def test_a_rate_that_is_far_too_high_is_called_so(tmp_path):
    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0}
    with pytest.raises(DivergedError, match=r"loss is not finite at step \d of 4.*learning rate"):
        train(small_config(training=wild), tmp_path / "run")


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_done(tmp_path, monkeypatch, whole):
    config = small_config(languages=["de", "fr", "ru"])
    from subnet.training import _stages

    save, calls = _stages.save_tensors, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", str(path))
        save(tensors, path)

    monkeypatch.setattr(_stages, "save_tensors", full)
    with pytest.raises(OutputError, match=r"No space left.*free some space.*goes on from there"):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(whole)


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        ({"adaptation": {"rank": 99}}, InputError, r"rank is 99.*16 wide.*16 or less"),
        (
            {"sequence": {"orders": [["de", "fr", "de", "ar"]]}},
            InputError,
            r"'de' 2 times.*each language once",
        ),
        ({"sequence": {"orders": [["de", "fr", "ru"]]}}, InputError, r"lacks 'ar'"),
        ({"sequence": {"orders": [["de", "fr", "ru", "xh"]]}}, InputError, r"'xh'.*not trained"),
        ({"languages": ["de", "fr"], "sequence": {"orders": 3}}, InputError, r"2 orders.*3 were"),
        ({"adaptation": {"targets": "nothing"}}, InputError, r"'nothing'.*no module"),
        ({"model": {"name": "./gone"}}, MissingInputError, r"gone: there is no such model folder"),
        ({"data": {"source": "files", "path": "gone"}}, MissingInputError, r"gone: .*no such"),
        (
            {"adaptation": {"sharing": "partial", "tuning": "full"}},
            InputError,
            r"shared_a.*lower_layers",
        ),
        (
            {"adaptation": {"sharing": "partial", "partial": "lower_layers", "shared_layers": 0.9}},
            InputError,
            r"0.9 of 2 layers.*both sides",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(tmp_path, parts, error, says):
    with pytest.raises(error, match=says):
        train(small_config(**parts), tmp_path / "run", folder=tmp_path)


def test_batches_that_cannot_be_divided_are_refused(tmp_path):
    config = small_config(training={"batch_size": 9, "passes": 2})
    with pytest.raises(InputError, match=r"batch of 9.*2 passes.*multiple of 2"):
        train(config, tmp_path / "run")


def test_examples_from_files(tmp_path, regimes):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(regimes["full"] / name, folder / name)
    config = small_config(languages=["ar", "de"], data={"source": "files", "path": "data"})
    train(config, tmp_path / "run", folder=tmp_path)
    assert order_of(tmp_path / "run") in (["ar", "de"], ["de", "ar"])
    wanted = small_config(languages=["xh", "de"], data={"source": "files", "path": "data"})
    with pytest.raises(MissingInputError, match="xh has no example to train on"):
        train(wanted, tmp_path / "other", folder=tmp_path)
    rows = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "test.jsonl").write_text("\n".join([*rows, rows[0]]), encoding="utf-8")
    with pytest.raises(InputError, match="stands 2 times"):
        train(config, tmp_path / "other", folder=tmp_path)


def test_transfer_is_read_and_is_no_second_table_of_scores(regimes):
    checkpoint = subnet.open_checkpoint(regimes["none"])
    frame = checkpoint.transfer
    assert len(frame) == 4 * 4 * 3
    assert not checkpoint.skipped
    with pytest.raises(MissingInputError, match="holds no scores of languages under each other"):
        _ = subnet.open_checkpoint(regimes["full"]).transfer
