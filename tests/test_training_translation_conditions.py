"""Translation under conditions that are compared: alignment on top of the task, whose languages."""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
import pandas as pd
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF
from safetensors.torch import load_file

from file_trainings import write_lines
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError
from subnet.training import train
from subnet.training._batches import draw_batches
from subnet.training._callbacks import EvenTrainer
from subnet.training._directory import described
from subnet.training._static_masks import _difference
from subnet.training._turns import Turns
from subnet.training.alignment import AlternatingTrainer
from subnet.training.tasks import INSTRUCTION
from training_makers import digests, small_config

LANGUAGES = ["en>de", "de>en"]
BASE, STAGE, RATE = 3, 4, 1e-2


def config_of(*, aligned, **parts):
    return small_config(
        **{
            "task": "translation",
            "languages": LANGUAGES,
            "data": {"max_concepts_per_kind": 16, "max_length": 64, "max_test": 2},
            "model": {"layers": 2},
            "base": {"steps": BASE},
            "training": {"steps": STAGE, "batch_size": 4, "schedule": "linear"},
            "translation": {"alignment": aligned, "max_new_tokens": 2},
            **parts,
        }
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same training without alignment and with it, and what every step was made of."""
    folder = tmp_path_factory.mktemp("conditions")
    found = {}
    loss, step = EvenTrainer.compute_loss, AlternatingTrainer._alignment_step
    with pytest.MonkeyPatch.context() as patch:
        for aligned in (False, True):
            task, pairs, told = [], [], []

            def compute_loss(self, model, inputs, *others, task=task, **named):
                rate = self.lr_scheduler.get_last_lr()[0]
                task.append((rate, inputs["input_ids"].tolist(), inputs["labels"].tolist()))
                return loss(self, model, inputs, *others, **named)

            def alignment_step(self, model, given, pairs=pairs):
                pairs.append((self.lr_scheduler.get_last_lr()[0], sorted(given["group"].tolist())))
                return step(self, model, given)

            patch.setattr(EvenTrainer, "compute_loss", compute_loss)
            patch.setattr(AlternatingTrainer, "_alignment_step", alignment_step)
            wanted = {"joint": True, "adapters": True, "replicates": 1}
            train(
                config_of(aligned=aligned, sequence=wanted), folder / str(aligned),
                progress=lambda *said, told=told: told.append(said),
            )  # fmt: skip
            found[aligned] = (folder / str(aligned), task, pairs, told)
    return found


def test_the_task_takes_the_same_batches_in_the_same_order_with_alignment(pair):
    _, plain, none, _ = pair[False]
    _, task, pairs, _ = pair[True]
    assert [batch for _, *batch in task] == [batch for _, *batch in plain]
    outside = STAGE * (3 + 2 + 2)  # adapters, the joint model, the sequence
    assert len(plain) == BASE + outside
    assert none == []
    assert len(pairs) == outside  # one after each step of the task, and none in the base
    assert len({tuple(groups) for _, groups in pairs}) > outside / 2


def test_the_base_is_the_same_to_the_byte_and_what_follows_is_not(pair):
    plain, both = (pair[aligned][0] for aligned in (False, True))
    assert digests(plain / "base") == digests(both / "base")
    first, second = open_checkpoint(plain).settings.order
    names = [f"stages/01-{first}", f"stages/02-{second}", f"adapters/{second}", "joint/model"]
    for name in (*names, f"runs/replicate/adapters/{first}"):
        file = f"{name}/adapter_model.safetensors"
        before, after = load_file(plain / file), load_file(both / file)
        assert any(not torch.equal(before[key], after[key]) for key in before), name


def test_progress_counts_the_steps_of_both_kinds_to_the_last(pair):
    for place, task, pairs, told in pair.values():
        _, done, total = told[-1]
        assert done == total == len(task) + len(pairs), place


def test_rate_and_steps_that_influence_reads_are_those_of_the_task(pair):
    for aligned, (place, task, pairs, _) in pair.items():
        stages = open_checkpoint(place).settings.stages
        for number, stated in enumerate(stages.values()):
            end = len(task) - (len(stages) - 1 - number) * STAGE
            rates = [rate for rate, *_ in task[end - STAGE : end]]
            assert stated.steps == STAGE
            assert stated.learning_rate * stated.steps == pytest.approx(sum(rates), rel=1e-9)
            # A line to 0 over the steps of both kinds.
            n = 2 * STAGE if aligned else STAGE
            line = [RATE * (1 - i / n) for i in range(n)]
            assert rates == pytest.approx(line[:: 2 if aligned else 1])
            if aligned:
                last = len(pairs) - (len(stages) - 1 - number) * STAGE
                between = [rate for rate, _ in pairs[last - STAGE : last]]
                assert between == pytest.approx(line[1::2])


def test_masks_found_without_alignment_are_of_the_base_that_is_trained_with_it():
    record = {"settings": config_of(aligned=False).model_dump(mode="json")}
    assert _difference(record, config_of(aligned=True), {}) is None
    other = config_of(aligned=True, base={"steps": BASE + 1})
    assert _difference(record, other, {}) == f"base.steps {BASE} and not {BASE + 1}"


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 1), (1, 2), (2, 3), (9, 1)])
def test_turns_are_those_of_a_loop(k, m):
    kinds, done = [], 0
    while done < 7:
        kinds.append("task")
        done += 1
        if done % k == 0:
            kinds += ["alignment"] * m
    turns = Turns(k, m)
    assert turns.total(7) == len(kinds)
    assert [turns.is_task(place) for place in range(len(kinds))] == [x == "task" for x in kinds]
    lengths = [1 + i % 5 for i in range(20)]
    found = turns.draw_batches(lengths, steps=7, batch_size=4, seed=3)
    own = [batch for batch, kind in zip(found, kinds, strict=True) if kind == "task"]
    assert own == draw_batches(lengths, steps=7, batch_size=4, seed=3)
    others = [batch for batch, kind in zip(found, kinds, strict=True) if kind != "task"]
    assert others != own[: len(others)] or not others
    if len(others) >= 5:  # an epoch
        assert sorted(i for batch in others[:5] for i in batch) == list(range(20))
    with pytest.raises(InputError, match="alignment_steps is 0"):
        Turns(k, 0)


def test_stopped_between_a_step_of_the_task_and_its_alignment_it_goes_on_the_same(tmp_path):
    """What it goes on from was saved after an odd number of steps of both kinds."""
    config = config_of(
        aligned=True, output={"save_every": 3}, sequence={"orders": [["de>en", "en>de"]]}
    )

    class StopError(Exception):
        pass

    seen = []

    def stop(doing, *_):
        seen.append(doing)
        if sum(name.startswith("stage 2") for name in seen) == 1 + 5:  # its start, and five steps
            raise StopError

    train(config, tmp_path / "whole")
    with pytest.raises(StopError):
        train(config, tmp_path / "stopped", progress=stop)
    assert (tmp_path / "stopped/.resume/trainer-02/checkpoint-3").is_dir()
    train(config, tmp_path / "stopped")
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


# What language accuracy is told of.

FRENCH = "Le président de la commission a parlé hier."
SENTENCES = {
    "de": ["Wo ist der Bahnhof bitte?", "Das Wetter ist heute schön.", "Ich bin müde."],
    "en": ["Where is the station please?", "The weather is nice today.", "I am tired."],
    "fr": ["Où est la gare ?", "Il fait beau aujourd'hui.", "Je suis fatigué."],
}
SMALL = """
task = "translation"
languages = ["de>en", "en>de"]
[data]
source = "files"
path = "data"
max_length = 96
[model]
layers = 1
width = 16
heads = 2
feed_forward = 16
kind = "decoder"
[base]
steps = 0
[adaptation]
rank = 2
[training]
steps = 1
batch_size = 4
[output]
stages = "none"
[translation]
"""


@pytest.fixture(scope="module")
def french(tmp_path_factory):
    """Trainings of a model whose every output is French, under several settings."""
    folder = tmp_path_factory.mktemp("languages")
    for part in ("train", "test"):
        rows = [
            {"id": f"{a}>{b}{i}", "language": f"{a}>{b}", "source": source, "target": target}
            for a, b in (("de", "en"), ("en", "de"), ("en", "fr"))
            for i, (source, target) in enumerate(zip(SENTENCES[a], SENTENCES[b], strict=True))
        ]
        write_lines(folder / f"data/{part}.jsonl", rows)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "subnet.training.tasks.translation.translate",
            lambda model, encoder, encoded, *_, **__: (
                np.zeros(len(encoded)), [FRENCH] * len(encoded),
            ),
        )  # fmt: skip
        for name, settings in {
            "two": 'instruction = "default"\nmax_new_tokens = 7\nbeams = 2',
            "three": 'also_tested = ["en>fr"]',
            "among": 'also_tested = ["en>fr"]\nidentify_among = ["de", "en"]',
        }.items():
            file = folder / f"{name}.toml"
            file.write_text(SMALL + settings, encoding="utf-8")
            found[name] = train(file, folder / name).path
    return found


def accuracies(place):
    frame = pd.read_csv(place / "scores.csv")
    frame = frame[(frame["metric"] == "language_accuracy") & (frame["stage"] == 0)]
    return dict(zip(frame["language"], frame["value"], strict=True))


def test_further_directions_do_not_change_the_language_accuracy_of_others(french):
    """A third language is seen where no direction is of it; a list hides it."""
    assert accuracies(french["two"]) == {"de>en": 0, "en>de": 0}
    assert accuracies(french["three"]) == {"de>en": 0, "en>de": 0, "en>fr": 1}
    among = accuracies(french["among"])
    assert sorted(among) == ["de>en", "en>de"]  # whether it is French cannot be told
    assert sum(among.values()) == 1  # French counts as one of the two
    table = pd.read_csv(french["among"] / "references.csv")
    reasons = table[table["metric"] == "language_accuracy"].set_index("language")["reason"]
    assert reasons["en>fr"].unique() == ["French is not among the languages to choose from"]


def test_run_json_says_what_the_scores_depend_on(french):
    two, three, among = (
        json.loads((french[name] / "run.json").read_text())["translation"] for name in french
    )
    assert two["instruction"] == INSTRUCTION  # of which the settings say `default`
    assert three["instruction"] == "{source}\n"  # what a decoder reads without one
    assert two["generation"] == {"do_sample": False, "num_beams": 2, "max_new_tokens": 7}
    assert three["generation"] == {"do_sample": False, "num_beams": 1, "max_new_tokens": 96}
    assert two["identify_among"] == three["identify_among"] == "all"
    assert among["identify_among"] == ["de", "en"]
    for package in ("sacrebleu", "py3langid"):
        assert two["versions"][package] == importlib.metadata.version(package)
    assert two["bleu_tokenizer"] == {"de>en": "13a", "en>de": "13a"}
    for name, metric in (("bleu", BLEU(tokenize="13a")), ("chrf", CHRF())):
        metric.corpus_score(["a b"], [["a b"]])
        assert two["signatures"]["13a"][name] == str(metric.get_signature())


def test_other_tasks_say_nothing_of_it():
    assert "translation" not in described({}, {}, object(), [])
