"""The mask file: what is written is read by others, and nothing wrong is read by us."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.numpy import save_file

from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    OutputError,
    UnsafeFileError,
)
from subnet.language import parse_language
from subnet.subnetwork import Subnetwork, Subnetworks, load_subnetwork, load_subnetworks

NAME = "encoder.layer.0.query.weight"


def make(language="de", **details):
    rng = np.random.default_rng(sum(map(ord, language)))
    masks = {NAME: rng.random((5, 7)) < 0.4, "b": rng.random((8, 2)) < 0.4}
    details = {"method": "magnitude", "settings": {"density": 0.4, "pair": [1, 2]}, **details}
    return Subnetwork.from_arrays(masks, language=language, base="tiny@abc", seed=7, **details)


def test_the_file_is_what_the_documentation_says(tmp_path):
    a = make()
    a.save(tmp_path / "de.safetensors")
    with safe_open(tmp_path / "de.safetensors", framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, shape in a.shapes.items():
        assert tensors[name].dtype == torch.uint8
        expected = np.packbits(a.dense(name), bitorder="little")
        np.testing.assert_array_equal(tensors[name].numpy(), expected)
        back = np.unpackbits(tensors[name].numpy(), bitorder="little")[: np.prod(shape)]
        np.testing.assert_array_equal(back.reshape(shape), a.dense(name))
    assert set(tensors) == set(a.shapes)
    assert list(metadata) == ["subnetwork"]
    assert json.loads(metadata["subnetwork"]) == {
        "format": 1,
        "granularity": "weight",
        "language": "de",
        "run": "main",
        "base": "tiny@abc",
        "method": "magnitude",
        "settings": {"density": 0.4, "pair": [1, 2]},
        "density": a.density,
        "seed": 7,
        "shapes": {NAME: [5, 7], "b": [8, 2]},
    }


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        arrays(np.bool_, array_shapes(min_dims=0, max_dims=3, max_side=6)),
        min_size=1,
        max_size=4,
    ),
    st.text(min_size=1, max_size=4).filter(lambda text: text.isprintable()),
)
@settings(max_examples=60, deadline=None)
def test_any_mask_comes_back_as_it_was(tmp_path_factory, masks, language):
    path = tmp_path_factory.mktemp("masks") / "mask.safetensors"
    a = Subnetwork.from_arrays(masks, language=language, base="tiny")
    a.save(path)
    back = load_subnetwork(path)
    assert back == a
    for field in ("language", "run", "method", "settings", "seed", "granularity", "shapes"):
        assert getattr(back, field) == getattr(a, field)


def test_equal_content_gives_equal_bytes_and_signs_stay_in_memory(tmp_path):
    a = make()
    shuffled = replace(
        a,
        bits=dict(reversed(a.bits.items())),
        shapes=dict(reversed(a.shapes.items())),
        settings=dict(reversed(a.settings.items())),
        signs=a.bits,
    )
    a.save(tmp_path / "a")
    shuffled.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_subnetwork(tmp_path / "b").signs is None


def rewritten(path, *, change=None, tensors=None, drop=()):
    """The file of a good mask with one thing wrong."""
    a = make()
    a.save(path)
    with safe_open(path, framework="numpy") as file:
        content = json.loads(file.metadata()["subnetwork"])
    content = {**content, **(change or {})}
    content = {key: value for key, value in content.items() if key not in drop}
    bits = {**{n: b.copy() for n, b in a.bits.items()}, **(tensors or {})}
    save_file(
        {name: b for name, b in bits.items() if b is not None},
        path,
        metadata={"subnetwork": json.dumps(content)},
    )
    return path


WRONG = {
    "unknown version": (
        {"change": {"format": 2}},
        "format version 2; expected 1; read it with a newer",
    ),
    "no version": ({"drop": ["format"]}, "format version None"),
    "granularity": (
        {"change": {"granularity": "column"}},
        "granularity: Input should be 'weight', 'head', 'neuron' or 'direction'",
    ),
    "unit mask over weights": (
        {"change": {"granularity": "head"}},
        r"has shape \[8, 2\] for b; expected \[heads\], one bit per head",
    ),
    "no language": ({"drop": ["language"]}, "language: Field required"),
    "no base": ({"drop": ["base"]}, "base: Field required"),
    "seed of another type": ({"change": {"seed": "7"}}, "seed: Input should be a valid integer"),
    "negative shape": ({"change": {"shapes": {NAME: [-5, 7], "b": [8, 2]}}}, f"shapes.{NAME}.0"),
    "shape too large": (
        {"change": {"shapes": {NAME: [5, 9], "b": [8, 2]}}},
        rf"uint8 \[5\] for {NAME}; expected uint8 \[6\]",
    ),
    "shape without bits": (
        {"change": {"shapes": {NAME: [5, 7], "b": [8, 2], "c": [1]}}},
        "a shape but no bits for c",
    ),
    "bits without shape": ({"tensors": {"c": np.zeros(1, np.uint8)}}, "bits but no shape for c"),
    "parameter missing": ({"tensors": {"b": None}}, "a shape but no bits for b"),
    "too many bits": ({"tensors": {"b": np.zeros(3, np.uint8)}}, r"uint8 \[3\] for b; expected"),
    "padding": (
        {"tensors": {NAME: np.full(5, 255, np.uint8)}},
        f"padding bits set for {NAME}; expected zeros behind bit 35 of 40",
    ),
    "other type": (
        {"tensors": {"b": np.zeros(2, np.float32)}},
        r"F32 values for b; expected packed",
    ),
    "other bits": (
        {"tensors": {"b": np.full(2, 255, np.uint8)}},
        r"of 51 bits set, density .* expected density .* as its metadata says",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_clear_line(tmp_path, case):
    options, message = WRONG[case]
    path = rewritten(tmp_path / "de.safetensors", **options)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_subnetwork(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_masks_are_refused(tmp_path):
    path = tmp_path / "de.safetensors"
    with pytest.raises(MissingInputError, match="is not there"):
        load_subnetwork(path)
    save_file({"b": np.zeros(2, np.uint8)}, path)
    with pytest.raises(FileFormatError, match="no metadata under the key 'subnetwork'"):
        load_subnetwork(path)
    save_file({"b": np.zeros(2, np.uint8)}, path, metadata={"subnetwork": "{"})
    with pytest.raises(FileFormatError, match="metadata that is no JSON"):
        load_subnetwork(path)
    save_file({"b": np.zeros(2, np.uint8)}, path, metadata={"subnetwork": "[]"})
    with pytest.raises(FileFormatError, match="format version None"):
        load_subnetwork(path)
    path.write_bytes(pickle.dumps({"b": 1}))
    with pytest.raises(UnsafeFileError, match="is a pickle"):
        load_subnetwork(path)
    torch.save({"b": torch.zeros(2)}, path)
    with pytest.raises(UnsafeFileError, match="is a pickle"):
        load_subnetwork(path)
    path.write_bytes(b"not a mask at all")
    with pytest.raises(FileFormatError, match="truncated or no safetensors"):
        load_subnetwork(path)
    path.write_bytes(b"")
    with pytest.raises(FileFormatError, match="truncated or no safetensors"):
        load_subnetwork(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "de.safetensors"
    make().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="truncated"):
            load_subnetwork(path)


def test_what_is_no_json_cannot_be_a_setting(tmp_path):
    with pytest.raises(TypeError, match="cannot write object as JSON"):
        make(settings={"x": object()}).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_saved_masks_lie_as_in_a_checkpoint(tmp_path):
    subnets = Subnetworks([make("de"), make("fr"), make("de", run="replicate")])
    subnets.save(tmp_path / "out")
    files = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.safetensors")
    )
    assert files == [
        "masks/de.safetensors",
        "masks/fr.safetensors",
        "runs/replicate/masks/de.safetensors",
    ]
    assert load_subnetwork(tmp_path / "out" / files[2]) == subnets["de", "replicate"]
    with pytest.raises(OutputError, match="is already there"):
        subnets.save(tmp_path / "out")
    Subnetworks([make("de", run="replicate")]).save(tmp_path / "only")
    assert (tmp_path / "only/masks/de.safetensors").is_file()


@pytest.mark.parametrize("label", ["../de", "a/b", "", ".hidden", "d\0e"])
def test_a_label_never_leaves_the_directory(tmp_path, label):
    with pytest.raises(InputError, match="cannot be the name of a file"):
        Subnetworks([make(label)]).save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_labels_that_meet_on_some_file_systems_are_refused(tmp_path):
    with pytest.raises(InputError, match="upper and lower case only"):
        Subnetworks([make("de"), make("DE")]).save(tmp_path / "out")


def test_a_translation_direction_can_be_saved(tmp_path):
    Subnetworks([make("de>en")]).save(tmp_path / "out")
    assert load_subnetwork(tmp_path / "out/masks/de>en.safetensors").language == "de>en"


def inventory(root, *masks):
    entries = tuple(
        SimpleNamespace(kind="mask", path=path, run=run, language=language)
        for path, run, language in masks
    )
    return SimpleNamespace(path=root, entries=entries)


def test_masks_of_a_checkpoint_bear_the_labels_of_its_inventory(tmp_path):
    path = tmp_path / "deu.safetensors"
    make("deu").save(path)
    german = parse_language("de")
    (mask,) = load_subnetworks(inventory(tmp_path, (path, "second", german)))
    assert (mask.language, mask.run) == ("de", "second")
    (mask,) = load_subnetworks(inventory(tmp_path, (path, "main", None)))
    assert (mask.language, mask.run) == ("deu", "main")
    with pytest.raises(
        FileFormatError, match="holds the mask of deu; expected fr, as its name says"
    ):
        load_subnetworks(inventory(tmp_path, (path, "main", parse_language("fr"))))
    with pytest.raises(MissingInputError, match=r"holds no masks; expected masks/<language>"):
        load_subnetworks(inventory(tmp_path))
