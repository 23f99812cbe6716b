"""A run that goes on finds the files that it reads as they were, or says which are not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from file_trainings import examples, file_config, write_examples, write_lines, write_model
from subnet.errors import InputError
from subnet.subnetwork import Subnetwork
from subnet.training import train
from subnet.training._inputs import check_inputs, read_inputs
from training_makers import digests

CONFIG = file_config()


class Stop(Exception):
    pass


def stop(doing, *_):
    if doing.startswith("stage 2"):
        raise Stop


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Data, a model, a finished run, and one that was stopped after its first stage."""
    folder = tmp_path_factory.mktemp("inputs") / "project"
    write_examples(folder / "data")
    write_model(folder / "model")
    train(CONFIG, folder / "whole", folder=folder)
    with pytest.raises(Stop):
        train(CONFIG, folder / "begun", folder=folder, progress=stop)
    return folder


@pytest.fixture
def copy(project, tmp_path):
    """The project at another place."""
    shutil.copytree(project, tmp_path / "moved")
    return tmp_path / "moved"


def no_step(*_):
    pytest.fail("something was trained")


def edit(path):
    path.write_text(path.read_text(encoding="utf-8").replace("aaa", "bbb", 1), encoding="utf-8")


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("run", ["begun", "whole"])
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("data/train.jsonl", edit),
        ("data/test.jsonl", edit),
        ("model/model.safetensors", flip_last_byte),
        ("model/tokenizer_config.json", lambda path: path.write_text("{}\n")),
    ],
)
def test_a_file_with_other_content_is_named_and_nothing_is_trained(copy, run, file, change):
    change(copy / file)
    before = digests(copy / run)
    says = rf"{file}: has changed since the training in .*{run} began.*SHA-256.*put it back.*--over"
    with pytest.raises(InputError, match=says) as error:
        train(CONFIG, copy / run, folder=copy, progress=no_step)
    assert "\n" not in str(error.value)
    assert digests(copy / run) == before


def test_a_file_that_came_is_named(copy):
    write_lines(copy / "data/validation.jsonl", examples(1))
    with pytest.raises(InputError, match=r"validation.jsonl: was not there when"):
        train(CONFIG, copy / "begun", folder=copy, progress=no_step)


def test_a_file_that_went_is_named_where_it_would_be_read(tmp_path):
    recorded = {"data/validation.jsonl": "ab"}
    with pytest.raises(InputError, match=r"validation.jsonl: is gone.*put it back"):
        check_inputs(recorded, {}, tmp_path, tmp_path / "run", finished=False)
    check_inputs(recorded, {}, tmp_path, tmp_path / "run", finished=True)
    check_inputs(None, {"data/train.jsonl": "ab"}, tmp_path, tmp_path, finished=False)


def test_the_same_content_goes_on_at_another_place_and_time(copy):
    """Also beside files that nobody reads."""
    for path in (copy / "data/train.jsonl", copy / "model/model.safetensors"):
        os.utime(path, (1, 1))
    (copy / "model/README.md").write_text("better than before")
    (copy / "data/notes.tsv").write_text("not read")
    train(CONFIG, copy / "begun", folder=copy)
    assert digests(copy / "begun") == digests(copy / "whole")
    train(CONFIG, copy / "whole", folder=copy, progress=no_step)


def test_overwrite_starts_again_with_what_is_there_now(copy):
    edit(copy / "data/train.jsonl")
    before = digests(copy / "begun")
    seen = []

    def look(doing, *_):
        seen.append(doing)
        if doing.startswith("stage 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, copy / "begun", folder=copy, overwrite=True, progress=look)
    assert seen[0] == "base"
    now = digests(copy / "begun")
    assert now["base/model.safetensors"] != before["base/model.safetensors"]
    assert now["train.jsonl"] != before["train.jsonl"]


def test_a_run_records_the_sha_256_of_what_it_read(project):
    recorded = json.loads((project / "whole/run.json").read_text())["inputs"]
    assert {"data/train.jsonl", "data/test.jsonl", "model/model.safetensors"} <= set(recorded)
    for name, digest in recorded.items():
        assert digest == hashlib.sha256((project / name).read_bytes()).hexdigest()


def test_of_tables_by_language_those_count_that_are_used(tmp_path):
    for name in ("deu", "fr", "ru"):
        (tmp_path / f"data/{name}.tsv").parent.mkdir(exist_ok=True)
        (tmp_path / f"data/{name}.tsv").write_text("index_id\tsplit\tcategory\ttext\n")
    config = file_config(model={"name": ""})
    assert list(read_inputs(config, tmp_path, ())) == ["data/deu.tsv", "data/fr.tsv"]
    every = file_config(model={"name": ""}, languages="default")
    assert len(read_inputs(every, tmp_path, ())) == 3


def test_of_translations_all_files_count_or_the_one_that_is_named(tmp_path):
    for name in ("a.jsonl", "b.tsv", "notes.txt"):
        write_lines(tmp_path / "data" / name, [])
    config = file_config(task="translation", languages=["de>en"], model={"name": ""})
    assert list(read_inputs(config, tmp_path, ())) == ["data/a.jsonl", "data/b.tsv"]
    one = config.model_copy(
        update={"data": config.data.model_copy(update={"path": "data/a.jsonl"})}
    )
    assert list(read_inputs(one, tmp_path, ())) == ["data/a.jsonl"]


def test_masks_count_of_the_languages_that_are_trained(tmp_path, monkeypatch):
    (tmp_path / "found/masks").mkdir(parents=True)
    for language in ("de", "ru"):
        arrays = {"w": np.ones((2, 2), bool)}
        mask = Subnetwork.from_arrays(arrays, language=language, base="tiny")
        mask.save(tmp_path / f"found/masks/{language}.safetensors")
    wanted = {"method": "static", "masks": "found"}
    config = file_config(subnetworks=wanted, data={"source": "cldr"}, model={"name": ""})
    assert list(read_inputs(config, tmp_path, ("de", "fr"))) == ["found/masks/de.safetensors"]
    (tmp_path / "found").rename(tmp_path / "elsewhere")
    (tmp_path / "found").symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path)
    assert list(read_inputs(config, Path(), ("de", "fr"))) == ["found/masks/de.safetensors"]
