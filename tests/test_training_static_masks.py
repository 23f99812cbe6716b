"""Masks that are given to a training: of its base, or refused before anything is trained."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from file_trainings import LANGUAGES, file_config, write_examples, write_model
from subnet.checkpoint import open_checkpoint
from subnet.checkpoint.tensors import open_model_store
from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.subnetwork import Subnetwork
from subnet.training import train
from subnet.training._inputs import read_inputs
from subnet.training._static_masks import mask_files, read_masks
from training_makers import digests

WEIGHT = "bert.encoder.layer.0.attention.self.query.weight"
STATIC = {"adaptation": {"tuning": "full"}, "subnetworks": {"method": "static", "masks": "found"}}
AS_IT_IS = {**STATIC, "base": {"steps": 0}}


PLAIN = file_config(adaptation={"tuning": "full"}, output={"stages": "none"})


class Stop(Exception):
    pass


def stop(doing, *_):
    if doing.startswith("stage 1"):
        raise Stop


def no_step(*_):
    pytest.fail("something was trained")


def write_masks(folder, base, shape=(16, 16)):
    mask = np.zeros(shape, bool)
    mask[::2] = True
    for language in LANGUAGES:
        place = folder / f"masks/{language}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        Subnetwork.from_arrays({WEIGHT: mask}, language=language, base=base).save(place)


def identity(folder):
    return f"{folder.name} ({open_model_store(folder).fingerprint()})"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of the base, whose masks others may take; the model was saved by other means."""
    folder = tmp_path_factory.mktemp("masks") / "project"
    write_examples(folder / "data")
    write_model(folder / "model")
    file = folder / "model/model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "by": "another library"})
    # What a training leaves that masks are told by; the slow tests have a real one.
    write_model(folder / "trained/base")
    inputs = read_inputs(PLAIN, folder, LANGUAGES)
    record = {"experiment": "train", "settings": PLAIN.model_dump(mode="json"), "inputs": inputs}
    (folder / "trained/run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def project(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "project")
    return tmp_path / "project"


def refused(project, words, error=NotComparableError, **parts):
    with pytest.raises(error, match=words) as found:
        train(file_config(**parts), project / "run", folder=project, progress=no_step)
    assert "\n" not in str(found.value)
    assert not (project / "run").exists()


def begins(project, **parts):
    with pytest.raises(Stop):
        train(file_config(**parts), project / "run", folder=project, progress=stop)


def test_masks_of_another_base_are_refused_at_once_where_the_base_is_given(project):
    write_masks(project / "found", "other (0123456789abcdef)")
    words = r"mask of de stands on the base 'other \(0123456789abcdef\)' and this training on 'base"
    refused(project, words + r".*extract them from this base", **AS_IT_IS)
    write_masks(project / "found", "xlm-roberta-base")
    refused(project, r"stands on the base 'xlm-roberta-base'", **AS_IT_IS)


def test_masks_of_the_folder_that_is_given_hold_though_it_is_saved_as_other_bytes(project):
    given = identity(project / "model").replace("model", "renamed")
    write_masks(project / "found", given)
    train(file_config(**AS_IT_IS), project / "run", folder=project)
    assert open_checkpoint(project / "run").base_identity().rpartition(" ")[2] not in given
    before = load_file(project / "run/base/model.safetensors")
    (last,) = (project / "run/stages").glob("02-*")
    after = load_file(last / "model.safetensors")
    moved = {name: (after[name] != value).numpy() for name, value in before.items()}
    assert moved.pop(WEIGHT).any(axis=1).tolist() == [True, False] * 8
    assert not any(value.any() for value in moved.values())


def test_masks_of_the_base_as_another_run_saved_it_hold(project):
    model = BertForSequenceClassification.from_pretrained(project / "model")
    model.save_pretrained(project / "first/base")
    write_masks(project / "found", identity(project / "first/base"))
    begins(project, **AS_IT_IS)


def test_masks_that_name_no_base_are_taken(project):
    write_masks(project / "found", "not stated")
    begins(project, **STATIC)
    shutil.rmtree(project / "run")
    begins(project, **AS_IT_IS)


def test_masks_of_another_base_are_refused_at_once_where_the_base_is_yet_to_be_trained(project):
    write_masks(project / "found", identity(project / "model"))
    words = r"stands on the base 'model .*base.steps = 1 trains another.*is its folder, base.steps"
    refused(project, words + " = 0", **STATIC)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"seed": 5}, "which was trained with seed 0 and not 5"),
        ({"base": {"learning_rate": 0.5}}, r"base.learning_rate 0.001 and not 0.5"),
        ({"data": {"max_length": 16}}, r"data.max_length 32 and not 16"),
    ],
)
def test_masks_of_a_training_with_another_base_are_refused_with_what_differs(project, parts, says):
    shutil.copytree(project / "trained", project / "found")
    write_masks(project / "found", identity(project / "trained/base"))
    refused(project, says, **STATIC, **parts)


def test_masks_of_a_training_whose_examples_were_others_are_refused(project):
    shutil.copytree(project / "trained", project / "found")
    write_masks(project / "found", identity(project / "trained/base"))
    file = project / "data/train.jsonl"
    file.write_text(file.read_text().replace("aaa", "bbb"))
    refused(project, r"trained with another data/train.jsonl", **STATIC)


@pytest.mark.slow
def test_masks_of_a_training_with_the_same_base_hold_whatever_is_tested(project):
    train(PLAIN, project / "found", folder=project)
    write_masks(project / "found", identity(project / "found/base"))
    refused(project, "which was trained with seed 0 and not 5", **STATIC, seed=5)
    train(file_config(**STATIC, data={"max_test": 1}), project / "run", folder=project)
    assert identity(project / "run/base") == identity(project / "found/base")


@pytest.mark.slow
def test_a_run_that_goes_on_knows_its_base(project):
    """Whatever the masks' own directory says of it."""
    train(PLAIN, project / "real", folder=project)
    write_masks(project / "found", "not stated")
    begins(project, **STATIC)
    shutil.rmtree(project / "found")
    write_masks(project / "found", identity(project / "real/base"))
    marker = project / "run/.resume/config.json"
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps({**content, "inputs": None}))  # as of a version that had none
    train(file_config(**STATIC), project / "run", folder=project)
    assert "masks/de" not in " ".join(digests(project / "run"))


def test_masks_that_do_not_fit_are_refused_at_once(project):
    write_masks(project / "found", "not stated", shape=(8, 16))
    says = r"found/masks/de\.safetensors: .*covers bert.*\[8, 16\].*has it as \[16, 16\]"
    refused(project, says, **STATIC)
    write_masks(project / "found", "not stated")
    refused(project, "per weight and the model has a LoRA", **{**STATIC, "adaptation": {"rank": 2}})
    nothing = Subnetwork.from_arrays({WEIGHT: np.zeros((16, 16), bool)}, language="fr", base="")
    nothing.save(project / "found/masks/fr.safetensors")
    says = r"found/masks/fr\.safetensors: the mask of fr selects no weight"
    refused(project, says, InputError, **STATIC)


def test_the_folder_of_masks_itself_is_refused_with_the_directory_that_it_lies_in(project):
    write_masks(project / "found", "not stated")
    given = {**STATIC, "subnetworks": {"method": "static", "masks": "found/masks"}}
    refused(project, r"found/masks: holds nothing.*; try \S*/found$", MissingInputError, **given)


def test_of_several_masks_of_a_language_nobody_says_which_counts(project):
    for run in ("order-1", "order-2"):
        write_masks(project / "found/runs" / run, "not stated")
    says = r"found: holds several masks of de, of the runs order-1 and order-2.*runs/order-2"
    refused(project, says, InputError, **STATIC)
    one = {**STATIC, "subnetworks": {"method": "static", "masks": "found/runs/order-2"}}
    assert list(read_masks(file_config(**one), project, LANGUAGES)) == list(LANGUAGES)


def test_masks_of_halves_do_not_count_beside_those_of_all(project):
    for place in ("runs/half-1", ".", "runs/half-2"):
        write_masks(project / "found" / place, f"the base of {place}")
    config = file_config(**STATIC)
    masks = read_masks(config, project, LANGUAGES)
    assert {mask.base for mask in masks.values()} == {"the base of ."}
    files = [path.relative_to(project / "found") for path in mask_files(config, project, ("fr",))]
    assert [str(path) for path in files] == ["masks/fr.safetensors"]
