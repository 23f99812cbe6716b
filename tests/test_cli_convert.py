"""`subnet convert` reads every format, and answers every bad input with one line."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoint_makers as makers
import subnet_cli

FIXTURES = Path(__file__).parent / "fixtures"
BASE = FIXTURES / "masks_base" / "base"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def convert(monkeypatch, capsys, tmp_path):
    """Run `subnet convert` in an empty directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["subnet", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            subnet_cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("source", "options", "languages"),
    [
        ("prune/de.pt", [], "de"),
        ("prune/fr.safetensors", ["--base", BASE], "fr"),
        ("composable_sft/released", ["--base", BASE], "de"),
        ("composable_sft/body", ["--base", BASE], "fr"),
        ("composable_sft/bare/sw", ["--base", BASE], "sw"),
        ("lape/tiny.neuron.pth", ["--languages", "en, zh,fr", "--units", 12], "en zh fr"),
        ("head_masks/de.npy", ["--base", BASE], "de"),
        ("head_masks/de.npz", [], "de"),
        ("head_masks/both.pt", [], "de fr"),
        ("head_masks/both.json", ["--to", "npz"], "de fr"),
        ("head_masks/stacked.npy", ["--languages", "de,fr"], "de fr"),
        ("kohya/de.safetensors", ["--base", BASE, "--density", 0.1], "de"),
        ("sparse/de", ["--base", BASE], "de"),
        ("sparse/de.bin", ["--base", BASE], "de"),
    ],
)
def test_every_format_is_converted_and_again_from_ours(convert, source, options, languages):
    code, out, err = convert(FIXTURES / source, "masks", *options)
    assert (code, err) == (0, "")
    assert "written to masks/" in out
    assert {path.stem for path in Path("masks/masks").iterdir()} == set(languages.split())
    rows = json.loads(convert("masks", "again", "--json")[1])
    assert {row["language"] for row in rows} == set(languages.split())
    assert sum(row["count"] for row in rows) > 0


def test_adapters_are_converted(convert):
    makers.save_adapter(makers.lora(makers.bert(), 0), Path("adapters/de"))
    rows = json.loads(convert("adapters", "masks", "--density", "0.25", "--json")[1])
    assert sum(row["count"] for row in rows) == round(0.25 * sum(row["size"] for row in rows))


def folder(name):
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def pruned(mask, name=QUERY):
    torch.save({f"{name}_mask": mask, f"{name}_orig": torch.ones(mask.shape)}, "de.pt")
    return ["de.pt", "--base", BASE]


def array(value, name="de.npy"):
    np.save(name, np.asarray(value))
    return [name, "--base", BASE]


def sparse():
    shutil.copytree(FIXTURES / "sparse/de", "de", copy_function=shutil.copyfile)
    return Path("de"), sorted(Path("de").glob("*.safetensors"))[1]


def truncated_shard():
    path, shard = sparse()
    shard.write_bytes(shard.read_bytes()[:-10])
    return [path, "--base", BASE]


def missing_shard():
    path, shard = sparse()
    shard.unlink()
    return [path, "--base", BASE]


def shard_outside():
    path, _ = sparse()
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    return [path, "--base", BASE]


def weights_with_nan():
    path, shard = sparse()
    tensors = load_file(shard)
    name = next(n for n, tensor in tensors.items() if tensor.ndim == 2 and ".layer." in n)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, shard)
    return [path, "--base", BASE]


def adapter(change=None):
    makers.save_adapter(makers.lora(makers.bert(), 0), Path("de"))
    if change is not None:
        path = Path("de/adapter_model.safetensors")
        save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)
    return ["de"]


def mixed():
    pruned(torch.eye(8))
    np.save("fr.npy", np.eye(2))
    for name in ("de.pt", "fr.npy"):
        Path(name).rename(folder("both") / name)
    return ["both", "--base", BASE]


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def pickled(name, *, by_torch=True):
    if by_torch:
        torch.save({"mask": Harmful()}, name)
    else:
        Path(name).write_bytes(pickle.dumps(Harmful()))
    return [name]


def pickled_model():
    torch.save({"a.weight": torch.ones(2)}, folder("de") / "pytorch_model.bin")
    return ["de", "--base", BASE]


def boolean_npz(value):
    np.savez("de.npz", **{QUERY: np.asarray(value)})
    return ["de.npz", "--base", BASE]


def written(name, content):
    Path(name).write_bytes(content)
    return [name]


#: What is wrong: how it is made, and what the line says: where, what, what instead, what to do.
BAD = {
    "empty mask": (
        lambda: pruned(torch.zeros(8, 8)),
        "de.pt: the mask of de is empty: it selects none of 64 weights; leave this language out",
    ),
    "empty heads": (
        lambda: array(np.zeros((2, 2))),
        "de.npy: the mask of de is empty: it selects none of 4 heads; leave this language out",
    ),
    "tensor that the base lacks": (
        lambda: pruned(torch.eye(8), QUERY.replace("0", "7")),
        "de.pt: covers bert.encoder.layer.7.attention.self.query.weight, which the base",
    ),
    "wrong shape": (
        lambda: pruned(torch.eye(9)),
        (
            f"de.pt: has a mask of shape [9, 9] for {QUERY}; expected [8, 8], as in {BASE}; was it "
            "made for another base?"
        ),
    ),
    "wrong number of heads": (
        lambda: array(np.eye(3)),
        f"de.npy: has 3 layers of 3 heads; expected 2 layers of 2, as in {BASE}; was it",
    ),
    "mixed granularity": (
        mixed,
        (
            "both: holds masks of mixed granularity: de by weight, fr by head; expected one "
            "granularity; convert fr.npy apart"
        ),
    ),
    "density 0": (
        lambda: [*adapter(), "--density", "0"],
        "density is 0.0; expected 0 < density <= 1; 0.05 selects 5 %",
    ),
    "density above 1": (
        lambda: [*adapter(), "--density", "1.5"],
        "density is 1.5; expected 0 < density <= 1; 0.05 selects 5 %",
    ),
    "density NaN": (
        lambda: [*adapter(), "--density", "nan"],
        "density is nan; expected 0 < density <= 1",
    ),
    "adapter with NaN": (
        lambda: adapter(lambda tensor: tensor * float("nan")),
        "de/adapter_model.safetensors: the tensor base_model.model.bert.encoder",
    ),
    "adapter that changes nothing": (
        lambda: adapter(lambda tensor: 0 * tensor),
        "de: the update of de is zero everywhere; expected",
    ),
    "heads with NaN": (
        lambda: array([[np.nan, 1], [0, 1]]),
        "de.npy: holds the value nan; expected heads: 0 and 1",
    ),
    "importances of heads": (
        lambda: array([[0.3, 1], [0, 1]]),
        "importances are no mask: compare them with a threshold first",
    ),
    "importances of weights": (
        lambda: boolean_npz(np.full((8, 8), 0.25)),
        (
            f"de.npz: the mask of {QUERY} holds 0.25, other values than 0 and 1; expected 1 where "
            "a weight is kept, 0 where it is not; importances are no mask"
        ),
    ),
    "weights with NaN": (
        lambda: boolean_npz(np.full((8, 8), np.nan)),
        f"de.npz: the mask of {QUERY} holds nan, other values than 0 and 1",
    ),
    "words for weights": (
        lambda: boolean_npz([["yes", "no"]]),
        f"de.npz: the mask of {QUERY} holds <U3 values, other values than 0 and 1",
    ),
    "no weight at all": (
        lambda: boolean_npz(np.zeros((0, 8), bool)),
        "de.npz: the mask of de covers no weight",
    ),
    "truncated shard": (truncated_shard, "de/model-00002-of-00002.safetensors: is truncated: "),
    "missing shard": (
        missing_shard,
        (
            "de/model.safetensors.index.json: lists the shard model-00002-of-00002.safetensors, "
            "which is not there; copy it too"
        ),
    ),
    "shard outside": (
        shard_outside,
        "de/model.safetensors.index.json: the path '../elsewhere.safetensors' leaves the directory",
    ),
    "checkpoint with NaN": (
        weights_with_nan,
        "de/model-00002-of-00002.safetensors: the tensor bert.encoder.layer.",
    ),
    "pickle with code": (
        lambda: pickled("de.pt"),
        (
            "de.pt: holds objects whose loading would run code; expected tensors, lists, "
            "dictionaries and numbers; load it where you trust it"
        ),
    ),
    "pickle with code, not by torch": (
        lambda: pickled("de.bin", by_torch=False),
        "de.bin: is a pickle that torch.save did not write, whose loading could run code",
    ),
    "pickle with code called npy": (
        lambda: pickled("de.npy", by_torch=False),
        "de.npy: holds Python objects, whose loading would run code; expected arrays of numbers",
    ),
    "pickle with code called safetensors": (
        lambda: pickled("de.safetensors", by_torch=False),
        "de.safetensors: is a pickle, which can execute code when it is read; expected safetensors",
    ),
    "model that is a pickle": (
        pickled_model,
        (
            "de/pytorch_model.bin: is a pickle, which can execute code when it is read; expected "
            "safetensors"
        ),
    ),
    "text called npy": (
        lambda: written("de.npy", b"not an array at all"),
        "de.npy: is truncated or no .npy file; copy or download it again",
    ),
    "empty file": (lambda: written("de.pt", b""), "de.pt: is truncated or no .pt file; copy"),
    "json that is none": (lambda: written("de.json", b"[[1,"), "de.json: is not JSON"),
    "nothing there": (lambda: ["nowhere"], "nowhere: is not there"),
    "languages not named": (
        lambda: [FIXTURES / "lape/tiny.neuron.pth"],
        (
            "holds masks of 3 languages without their names; name them in the file's order with "
            "--languages"
        ),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(convert, case):
    make, line = BAD[case]
    arguments = make()
    before = sorted(Path.cwd().iterdir())
    code, out, err = convert(arguments[0], "masks", *arguments[1:])
    assert (code, out) == (2, ""), err
    assert err.startswith("subnet: ")
    assert err.count("\n") == 1, err
    assert line in err
    assert sorted(Path.cwd().iterdir()) == before


#: A file of another format, by the name of the format that is claimed.
CLAIMED = {
    "prune": ("head_masks/de.npy", "holds one value of type ndarray; expected tensors by name"),
    "composable-sft": ("head_masks/de.npy", "holds one value of type ndarray"),
    "sparse": ("head_masks/de.npy", "holds one value of type ndarray"),
    "npz": ("prune/de.pt", "is a .pt file; expected a file ending in .npz"),
    "lape": ("head_masks/de.npy", "holds no lists of neurons; expected per language"),
    "peft": ("prune/de.pt", "is no folder with an adapter_config.json; expected a PEFT adapter"),
    "heads": ("kohya/de.safetensors", "is a .safetensors file, which holds nothing in the format"),
    "kohya": ("prune/de.pt", "is a pickle, which can execute code when it is read"),
    "subnet": ("kohya/de.safetensors", "is a safetensors file but no mask"),
}


@pytest.mark.parametrize("claim", CLAIMED)
def test_a_claimed_format_that_is_not_there_is_one_line(convert, claim):
    name, line = CLAIMED[claim]
    options = ["--base", BASE, "--languages", "de"]
    code, out, err = convert(FIXTURES / name, "masks", "--format", claim, *options)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert f"{FIXTURES / name}: {line}" in err


def test_pruning_without_a_mask_is_one_line(convert):
    path = FIXTURES / "kohya/de.safetensors"
    code, _, err = convert(path, "masks", "--format", "prune")
    assert code == 2
    assert "holds no …_mask beside its …_orig; expected both" in err


def test_a_full_mask_is_converted_with_a_warning(convert):
    pruned(torch.ones(8, 8))
    code, _, err = convert("de.pt", "masks")
    assert code == 0
    assert err == "warning: de.pt: the mask of de is full: it selects all 64 weights\n"
