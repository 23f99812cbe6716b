"""`train` where it was stopped at the worst moment, or where what it left is damaged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors import SafetensorError

from subnet.errors import DivergedError, InputError, OutputError, UnsafeFileError
from subnet.training import _experiment, _sequence, _stages, build_tokenizer, run, train
from subnet.training._callbacks import EvenTrainer, watched
from training_makers import digests, small_config

PLAIN = small_config(languages=["de", "fr"])


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A finished training of two languages."""
    directory = tmp_path_factory.mktemp("recovery") / "plain"
    train(PLAIN, directory)
    return directory


def stop_at(call, owner, name, number, *, after=False):
    """Call, with an end when a function is called for the n-th time."""
    original, calls = getattr(owner, name), []

    def ending(*arguments, **named):
        calls.append(name)
        if len(calls) == number and not after:
            raise Stop
        found = original(*arguments, **named)
        if len(calls) == number:
            raise Stop
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, ending)
        with pytest.raises(Stop):
            call()


@pytest.mark.slow
def test_stopped_between_any_two_writings_it_ends_with_the_same_bytes(tmp_path):
    config = small_config(
        languages=["de", "fr"],
        adaptation={"sharing": ["none", "full"]},
        sequence={"orders": 2, "adapters": True},
        training={"steps": 2},
        base={"steps": 2},
    )
    train(config, tmp_path / "whole")

    def go_on():
        train(config, tmp_path / "run")

    write = _experiment._directory
    stop_at(go_on, write.os, "link", 2)  # half of a cell's base
    stop_at(go_on, _sequence.SequenceRun, "_enter", 2)  # trained, not entered
    stop_at(go_on, _sequence, "save_model", 1, after=True)  # adapters half-delivered
    stop_at(go_on, write, "write_csv", 3)  # `items.csv` is there, the next table is not
    stop_at(go_on, write, "write_scores", 1, after=True)  # all is written, nothing cleared away
    stop_at(go_on, _sequence.SequenceRun, "_deliver_stage", 2, after=True)  # delivered, not entered
    stop_at(go_on, _experiment.Experiment, "_write_run_file", 2)  # all but the last word
    for name in ("base", "stages", "scores.csv"):  # as SIGKILL leaves what is half-built
        (tmp_path / f"run/full-r4/.{name}-a_b1c2d3").mkdir()
    stop_at(go_on, _experiment.StageLog, "remove", 1)  # after the last word
    go_on()
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_damaged_stage_is_trained_again(tmp_path, plain):
    stop_at(lambda: train(PLAIN, tmp_path / "run"), _stages.StageLog, "write", 3)
    place = tmp_path / "run/.resume/01/shared.safetensors"
    place.write_bytes(place.read_bytes()[:-5])
    train(PLAIN, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(plain)


SELECTED = {"dynamic": {"density": 0.1, "every": 2}, "sparse": {"density": 0.1}}


@pytest.mark.parametrize(
    "method",
    ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dynamic", "sparse"))],
)
def test_a_stage_goes_on_from_whole_checkpoints_of_its_own(tmp_path, method):
    tuning = "lora" if method == "none" else "full"
    config = small_config(
        languages=["de", "fr"],
        training={"steps": 6},
        adaptation={"tuning": tuning},
        subnetworks={"method": method, **SELECTED.get(method, {})},
        output={"save_every": 2, "stages": "last"},
    )
    train(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        # Killed right after a stage was entered: what Trainer saved in it is still there.
        patch.setattr(_stages.shutil, "rmtree", lambda *_, **__: None)
        stop_at(
            lambda: train(config, tmp_path / "run"), EvenTrainer, "_save_checkpoint",
            5 if method != "sparse" else 10, after=True,
        )  # fmt: skip
    saved = sorted((tmp_path / "run/.resume").rglob("trainer-02/**/checkpoint-*"))
    assert saved
    (saved[-1] / "trainer_state.json").unlink()  # and this one is half-written
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_weights_that_the_last_step_ruined_are_no_finished_stage(tmp_path):
    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0, "steps": 1}
    with pytest.raises(DivergedError, match=r"stage 1 of 2.*after its last step.*not finite"):
        train(small_config(languages=["de", "fr"], training=wild), tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()


def test_the_first_step_that_was_not_finite_is_named(tmp_path):
    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0, "steps": 9}
    with pytest.raises(DivergedError, match=r"base: the loss is not finite at step \d of 9"):
        train(small_config(languages=["de", "fr"], base=wild), tmp_path / "run")
    assert watched(EvenTrainer).__mro__[1] is EvenTrainer


def test_a_full_disk_that_a_library_meets_is_one_line(tmp_path, plain):
    said = SafetensorError("Error while serializing: I/O error: No space left on device")

    def full(*_):
        raise said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sequence, "save_model", full)
        with pytest.raises(OutputError, match=r"No space left.*free some space.*goes on"):
            train(PLAIN, tmp_path / "run")
    train(PLAIN, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(plain)


def test_what_another_command_wrote_is_not_trained_into(tmp_path):
    (tmp_path / "run.json").write_text('{"experiment": "demo"}')
    with pytest.raises(OutputError, match="no training of ours"):
        train(PLAIN, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_training_is_replaced_only_by_one_that_can_begin(tmp_path, plain):
    shutil.copytree(plain, tmp_path / "run")
    for parts in ({"model": {"name": "./gone"}}, {"adaptation": {"rank": [4, 99]}}):
        with pytest.raises((LookupError, InputError)):
            train(small_config(languages=["de", "fr"], **parts), tmp_path / "run", overwrite=True)
    assert digests(tmp_path / "run") == digests(plain)


@pytest.mark.parametrize("marker", ['{"v": 0}', "[]", '{"fingerprint": "", "settings": {}}', None])
def test_a_training_of_another_version_is_not_gone_on_with(tmp_path, marker):
    place = tmp_path / "run/.resume/config.json"
    place.parent.mkdir(parents=True)
    if marker is None:  # the same file, which meant something else: a default was another one
        settings = PLAIN.model_dump(mode="json")
        settings["data"]["test_share"] = 0.5
        marker = json.dumps({"fingerprint": PLAIN.fingerprint, "settings": settings})
    place.write_text(marker)
    with pytest.raises(OutputError, match=r"other settings.*--overwrite"):
        train(PLAIN, tmp_path / "run")
    assert not run._is_same([], PLAIN)


def folder_of(path, labels, **settings):
    """A small encoder with its tokenizer, as somebody's folder."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=96, pad_token_id=0, initializer_range=0.3,
        **settings,
    )  # fmt: skip
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: n for n, label in enumerate(labels)}
        model = transformers.BertForSequenceClassification(config)
    else:
        model = transformers.BertForMaskedLM(config)
    model.save_pretrained(path)
    build_tokenizer(96).save_pretrained(path)
    return model


def test_a_head_keeps_the_order_of_its_labels(tmp_path, plain):
    first = json.loads((plain / "base/config.json").read_text())["id2label"]
    labels = [first[str(n)] for n in reversed(range(len(first)))]
    folder_of(tmp_path / "model", labels)
    parts = {"languages": ["de", "fr"], "model": {"name": "model"}, "base": {"steps": 0}}
    train(small_config(**parts), tmp_path / "run", folder=tmp_path)
    found = json.loads((tmp_path / "run/base/config.json").read_text())["id2label"]
    assert [found[str(n)] for n in range(len(found))] == labels
    # And its answers are read in that order: an answer alone tells the loss of the true label.
    rows = [json.loads(line) for line in (tmp_path / "run/test.jsonl").read_text().splitlines()]
    items = pd.read_csv(tmp_path / "run/items.csv")
    items = items[(items["stage"] == 0) & (items["metric"] == "loss")].set_index("item")["value"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = build_tokenizer(96)
    for row in rows[:5]:
        with torch.no_grad():
            logits = model.eval()(**tokenizer(row["text"], return_tensors="pt")).logits[0]
        expected = -float(logits.log_softmax(-1)[labels.index(row["label"])])
        assert items[row["id"]] == pytest.approx(expected, rel=1e-4)


def test_a_model_that_cannot_be_taken_is_one_line(tmp_path):
    folder_of(tmp_path / "model", ())

    def says(error, words, **parts):
        config = small_config(**{"languages": ["de", "fr"], "model": {"name": "model"}, **parts})
        with pytest.raises(error, match=words):
            train(config, tmp_path / "run", folder=tmp_path)
        assert not (tmp_path / "run").exists()

    says(InputError, r"has no classifier.*would stay random.*base.steps", base={"steps": 0})
    says(InputError, r"max_length is 97.*96 positions", data={"max_length": 97})
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({}, tmp_path / "model/pytorch_model.bin")
    says(UnsafeFileError, "pytorch_model.bin: is a pickle")
    (tmp_path / "model/config.json").write_text('{"auto_map": {"AutoModel": "code.Model"}}')
    says(UnsafeFileError, "config.json: names code of its own")


def test_where_nothing_is_shared_no_loss_moves_in_its_last_digit(tmp_path):
    """Also of languages whose neighbours in a batch were trained meanwhile."""
    languages = ["de", "ru", "th"]
    config = small_config(
        languages=languages,
        adaptation={"sharing": "none"},
        evaluation={"batch_size": 7},
        base={"steps": 1},
        training={"steps": 1},
        output={"stages": "none"},
    )
    train(config, tmp_path / "run")
    frame = pd.read_csv(tmp_path / "run/scores.csv")
    frame = frame[frame["metric"] == "loss"]
    wide = frame.set_index(["stage", "language"])["value"].unstack()  # noqa: PD010 nothing to aggregate
    assert (np.abs(wide.diff().to_numpy()[1:]) > 0).sum() == len(languages)
