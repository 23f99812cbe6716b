"""`overwrite`: the training that was there is lost only to one that has something to show."""

from __future__ import annotations

import shutil

import pytest
import torch

from file_trainings import file_config, write_examples, write_model
from subnet.errors import DivergedError, OutputError, SubnetError
from subnet.training import _sequence, train
from training_makers import digests

OTHER = file_config(seed=1)
WILD = {"learning_rate": 1e30, "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overwrite") / "project"
    write_examples(folder / "data")
    model = write_model(folder / "model")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[5, 0] = torch.nan
    model.save_pretrained(folder / "ruined")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / name, folder / "ruined")
    (folder / "old/base").mkdir(parents=True)
    (folder / "old/base/model.safetensors").write_text("years of work")
    (folder / "old/run.json").write_text('{"fingerprint": "another", "cells": ["full-r2"]}')
    return folder


@pytest.fixture(scope="module")
def replaced(project):
    """What was seen of the old training while another one replaced it, which is in `other`."""
    shutil.copytree(project / "old", project / "place/other")
    before, aside = digests(project / "old"), project / "place/.other-replaced"
    seen = {}

    def look(doing, *_):
        seen[doing] = digests(aside) == before

    train(OTHER, project / "place/other", folder=project, overwrite=True, progress=look)
    shutil.move(project / "place/other", project / "other")
    return seen


@pytest.fixture
def run(project, tmp_path):
    """A place that holds the old training."""
    shutil.copytree(project / "old", tmp_path / "run")
    return tmp_path / "run"


def begin(config, run, project, **options):
    train(config, run, folder=project, overwrite=True, **options)


def stopping_at(name):
    def stop(doing, done, _):
        if doing == name and done:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(
    "parts",
    [
        {"data": {"path": "gone"}},
        {"languages": ["de", "fr", "ru"]},
        {"model": {"name": "./gone"}},
        {"model": {"name": "ruined"}},
        {"adaptation": {"rank": 99}},
        {"data": {"max_length": 99}},
        {"sequence": {"orders": 3}},
        {"training": {"passes": 3}},
        {"base": {"method": "pcgrad", "batch_size": 5}},
        {"base": {"method": "meta", "support": 5}},
        {"adaptation": {"tuning": "full"}, "subnetworks": {"method": "static", "masks": "gone"}},
        {"base": {**WILD, "steps": 3}},
        {"training": WILD},
    ],
    ids=str,
)
def test_one_that_fails_leaves_the_old_training_as_it_was(project, run, parts):
    before = digests(run)
    with pytest.raises(SubnetError):
        begin(file_config(**parts), run, project)
    assert digests(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_what_cannot_begin_leaves_no_directory(project, tmp_path):
    for parts in ({"training": {"passes": 3}}, {"base": {**WILD, "steps": 3}}):
        with pytest.raises(SubnetError):
            train(file_config(**parts), tmp_path / "run", folder=project)
        assert not (tmp_path / "run").exists()


def test_the_old_one_stays_aside_until_the_new_one_has_a_stage(project, replaced):
    kept = {doing.partition(" of ")[0]: there for doing, there in replaced.items()}
    assert kept["base"]
    assert kept["stage 1"]
    assert not kept["stage 2"]
    assert len(list((project / "other/stages").iterdir())) == 2
    assert not list((project / "place").iterdir())


@pytest.mark.usefixtures("replaced")
def test_a_full_disk_in_the_first_stage_keeps_both_and_the_same_command_goes_on(
    project, run, monkeypatch
):
    before = digests(run)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_sequence, "save_model", full)
    with pytest.raises(OutputError, match="No space left"):
        begin(OTHER, run, project)
    monkeypatch.undo()
    assert digests(run.with_name(".run-replaced")) == before
    assert (run / "base").is_dir()
    begin(OTHER, run, project)
    assert digests(run) == digests(project / "other")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.slow
def test_of_several_that_were_begun_the_finished_one_is_kept(project, run):
    before = digests(run)
    for seed in (2, 3):  # interrupted before anything was finished
        with pytest.raises(KeyboardInterrupt):
            begin(file_config(seed=seed), run, project, progress=stopping_at("base"))
        assert digests(run.with_name(".run-replaced")) == before
    with pytest.raises(DivergedError):
        begin(file_config(training=WILD), run, project)
    assert digests(run) == before


@pytest.mark.slow
@pytest.mark.usefixtures("replaced")
def test_a_later_failure_keeps_the_new_one(project, run):
    def fail(doing, *_):
        if doing.startswith("stage 2"):
            raise DivergedError("made up", path=run)

    with pytest.raises(DivergedError, match="made up"):
        begin(OTHER, run, project, progress=fail)
    assert len(list((run / "stages").iterdir())) == 1
    train(OTHER, run, folder=project)
    assert digests(run) == digests(project / "other")
