"""`conflict_every`: how the gradients of languages turn against each other, stage after stage."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from file_trainings import file_config, write_examples, write_model
from subnet.errors import DivergedError, InputError
from subnet.training import _sequence, train
from training_makers import digests, small_config, train_until

LANGUAGES = ("de", "fr", "ru")
FULL = {"languages": list(LANGUAGES), "adaptation": {"tuning": "full"}}
SMALLER = {"data": {"max_concepts_per_kind": 6}}
RECORDED = {"steps": 4, "conflict_every": 2, "conflict_examples": 0}


def whole(path):
    frame = pd.read_csv(path, keep_default_na=False, na_values={"cosine": [""]})
    return frame[frame["level"] == "all"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("conflict") / "run"
    train(small_config(**FULL, **SMALLER, training=RECORDED), directory)
    return directory


def gradients(folder, examples):
    """A language's gradient, one example at a time, of a model that is read anew."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.parents[1] / "base")
    # The head is frozen after the base.
    learnt = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in learnt]
    for example in examples:
        fed = tokenizer(example["text"], truncation=True, max_length=96, return_tensors="pt")
        label = torch.tensor([model.config.label2id[example["label"]]])
        found = torch.autograd.grad(model(**fed, labels=label).loss, learnt, allow_unused=True)
        for sums, gradient in zip(total, found, strict=True):
            if gradient is not None:
                sums += gradient.double() / len(examples)
    return torch.cat([part.flatten() for part in total])


def test_the_cosines_at_the_end_of_a_stage_are_those_of_the_delivered_model(recorded):
    frame = whole(recorded / "stage_conflict.csv")
    order = [path.name.partition("-")[2] for path in sorted((recorded / "stages").iterdir())]
    with (recorded / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for number, language in enumerate(order, start=1):
        stage = frame[frame["stage"] == number]
        assert set(stage["trained_language"]) == {language}
        assert sorted(set(stage["step"])) == [0, 2, 4]
        assert len(stage) == 3 * 3  # three pairs at three steps
        if number == 2:  # one stage is proof enough
            folder = recorded / "stages" / f"{number:02d}-{language}"
            found = {
                name: gradients(folder, [row for row in rows if row["language"] == name])
                for name in LANGUAGES
            }
            for row in stage[stage["step"] == 4].itertuples():
                a, b = found[row.language_a], found[row.language_b]
                assert row.norm_a == pytest.approx(float(a.norm()), rel=1e-4)
                expected = float(a @ b / (a.norm() * b.norm()))
                assert row.cosine == pytest.approx(expected, abs=1e-4)
    for before, after in itertools.pairwise(
        range(1, 4)
    ):  # what one ends with, the next begins with
        last = frame[(frame["stage"] == before) & (frame["step"] == 4)]
        first = frame[(frame["stage"] == after) & (frame["step"] == 0)]
        np.testing.assert_allclose(first["cosine"], last["cosine"], atol=1e-6)


def test_training_is_the_same_with_and_without_a_record(recorded, tmp_path):
    train(small_config(**FULL, **SMALLER, training={"steps": 4}), tmp_path / "run")
    with_it, without = digests(recorded), digests(tmp_path / "run")
    assert with_it.keys() - without.keys() == {"stage_conflict.csv"}
    for name, digest in without.items():
        if not name.endswith("run.json"):  # which says the settings
            assert with_it[name] == digest, name


@pytest.mark.parametrize("subnetworks", [{}, {"method": "dynamic", "density": 0.1, "every": 2}])
def test_a_record_goes_on_within_a_stage(tmp_path, subnetworks):
    parts = {**FULL, **SMALLER, "training": RECORDED, "subnetworks": subnetworks}
    config = small_config(**parts, output={"save_every": 1})
    train(config, tmp_path / "whole")
    train_until(config, tmp_path / "run", "stage 2", 4)
    assert list((tmp_path / "run/.resume/trainer-02").glob("checkpoint-*"))
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_some_examples_stand_for_all_and_runs_and_cells_have_their_own(tmp_path, monkeypatch):
    counted = []
    original = _sequence.SequenceRun._conflict

    def seen(self, *arguments):
        frame = original(self, *arguments)
        counted.append(frame)
        return frame

    monkeypatch.setattr(_sequence.SequenceRun, "_conflict", seen)
    config = small_config(
        languages=["de", "fr"],
        adaptation={"sharing": ["none", "full"]},
        sequence={"orders": 2},
        training={"steps": 2, "conflict_every": 2, "conflict_examples": 3},
        base={"steps": 2, "conflict_every": 2, "conflict_examples": 3},
    )
    train(config, tmp_path)
    assert len(counted) == 2 * 2 * 2
    for cell in ("none-r4", "full-r4"):
        for run in ("order-1", "order-2"):
            frame = whole(tmp_path / cell / "runs" / run / "stage_conflict.csv")
            assert list(frame["stage"]) == [1, 1, 2, 2]
    assert sorted(set(whole(tmp_path / "conflict.csv")["step"])) == [0, 2]


def test_languages_that_learn_the_same_agree_and_opposite_ones_conflict(tmp_path):
    """Planted: one language's labels are swapped against the two others, of equal texts."""
    texts = [f"{'ab'[i % 2] * 4} {i}" for i in range(24)]
    for part in ("train", "test"):
        with (tmp_path / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for language in ("de", "nl", "ru"):
                for i, text in enumerate(texts):
                    label = "xy"[(i + (language == "ru")) % 2]
                    row = {"id": f"{language}{i}", "language": language, "text": text}
                    file.write(json.dumps({**row, "label": label}) + "\n")
    config = small_config(
        languages=["de", "nl", "ru"],
        data={"source": "files", "path": ".", "max_length": 64},
        training={"steps": 4, "conflict_every": 2},
    )
    train(config, tmp_path / "run", folder=tmp_path)
    frame = whole(tmp_path / "run/stage_conflict.csv")
    pairs = frame.set_index(["language_a", "language_b"])["cosine"]
    np.testing.assert_allclose(pairs.loc[("de", "nl")], 1, atol=1e-5)
    assert (pairs.drop(index=("de", "nl")) < 0).mean() > 0.8


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"training": {"steps": 1, "conflict_examples": 3}}, r"conflict_every is 0"),
        (
            {**FULL, "training": {"steps": 1, "conflict_every": 1},
             "subnetworks": {"method": "sparse"}},
            r"training.conflict_every is 1.*subnetworks.method is 'sparse'",
        ),
    ],
)  # fmt: skip
def test_a_record_of_nothing_is_refused_before_training(tmp_path, parts, says):
    with pytest.raises(InputError, match=says):
        train(small_config(**parts), tmp_path / "run")
    assert not (tmp_path / "run/base").exists()


def test_one_language_has_nothing_to_be_compared_with(tmp_path):
    write_examples(tmp_path / "data")
    write_model(tmp_path / "model")
    config = file_config(languages=["de"], training={"steps": 1, "conflict_every": 1})
    with pytest.raises(InputError, match=r"training.conflict_every is 1, and one language is tr"):
        train(config, tmp_path / "run", folder=tmp_path)


@pytest.mark.parametrize("part", ["base", "training"])
def test_a_training_that_diverges_says_where_also_with_a_record(tmp_path, part):
    """A record must neither stop a training nor hide at which step it would have stopped."""
    lost = {"optimizer": "sgd", "learning_rate": 1e20, "max_grad_norm": 0, "steps": 4}
    said = []
    for every in (0, 1):
        table = {**lost, "conflict_every": every}
        parts = {**FULL, **SMALLER, "languages": ["de", "fr"], "base": {"steps": 1}}
        config = small_config(**{**parts, part: table})
        with pytest.raises(DivergedError) as caught:
            train(config, tmp_path / f"{every}")
        said.append(caught.value.found)
    assert said[0] == said[1]
    named = "base" if part == "base" else "stage 1 of 2"
    assert re.match(rf"{named}.*: the loss is not finite at step \d of 4", said[0])
