"""Masks of other tools are read as their own files say, and wrong ones are refused in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_makers import bert, delta_weights, lora, save_adapter
from model_makers import m2m, mt5
from subnet.checkpoint import open_checkpoint
from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    NotComparableError,
    OutputError,
    UnknownLanguageError,
    UnsafeFileError,
)
from subnet.model import find_units
from subnet.overlap import measure_overlap
from subnet.subnetwork import Subnetwork, convert, extract, load_subnetworks, read_masks
from subnet.subnetwork.units import selected_units, unit_parameters

FIXTURES = Path(__file__).parent / "fixtures"
BASE = FIXTURES / "masks_base" / "base"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def expected(folder):
    return json.loads((FIXTURES / folder / "expected.json").read_text())


def coordinates(mask):
    """Parameter to what is selected, as lists of indices."""
    return {name: np.argwhere(mask.dense(name)).tolist() for name in mask.shapes}


def base_tensors():
    return load_file(BASE / "model.safetensors")


# Every format


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("name", ["de.pt", "fr.pt", "fr.safetensors"])
def test_pruned_models_keep_what_torch_kept(name, base):
    (mask,) = read_masks(FIXTURES / "prune" / name, base=base)
    assert coordinates(mask) == expected("prune")[mask.language]
    assert mask.language == name[:2]
    assert (mask.granularity, mask.method) == ("weight", "pruning")
    assert mask.settings == {"format": "prune", "file": name}


@pytest.mark.parametrize("folder", ["released/de", "body/fr", "bare/sw"])
def test_sparse_fine_tunings_of_every_generation_are_their_differences(folder):
    (mask,) = read_masks(FIXTURES / "composable_sft" / folder, base=BASE)
    differences = expected("composable_sft")[mask.language]
    assert mask.language == folder[-2:]
    assert coordinates(mask) == {
        name: [place for place, _ in entries] for name, entries in differences.items()
    }
    for name, entries in differences.items():
        signs = np.unpackbits(mask.signs[name], bitorder="little")[: mask.sizes[name]]
        negative = np.argwhere(signs.reshape(mask.shapes[name])).tolist()
        assert negative == [place for place, value in entries if value < 0]
    (again,) = read_masks(FIXTURES / "composable_sft" / folder / "pytorch_diff.bin", base=BASE)
    assert again == mask
    whole = mask.settings.get("saved_whole")
    assert whole == (None if folder == "bare/sw" else ["classifier.weight"])


def test_neurons_of_lape_get_their_languages_and_width():
    path = FIXTURES / "lape" / "tiny.neuron.pth"
    labels = ["en", "zh", "fr"]
    masks = read_masks(path, languages=labels, base=BASE)
    assert list(masks.languages) == labels
    for label, layers in expected("lape").items():
        assert masks[label].granularity == "neuron"
        assert masks[label].shapes == {"layers.0.neurons": (12,), "layers.1.neurons": (12,)}
        for layer, neurons in enumerate(layers):
            dense = masks[label].dense(f"layers.{layer}.neurons")
            assert np.flatnonzero(dense).tolist() == neurons
    by_hand = read_masks(path, languages=labels, units=12)
    assert [mask.bits["layers.0.neurons"].tolist() for mask in by_hand] == [
        mask.bits["layers.0.neurons"].tolist() for mask in masks
    ]
    assert read_masks(path, languages=["en", "-", "fr"], units=12).languages == ("en", "fr")


HEADS = {"de": [[1, 0], [0, 1]], "fr": [[1, 1], [0, 1]]}


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("de.npy", None), ("de.npz", None), ("de.pt", None), ("de.json", None),
        ("both.json", None), ("both.pt", None), ("languages.npz", None),
        ("stacked.npy", ["de", "fr"]),
    ],
)  # fmt: skip
def test_head_masks_are_layers_by_heads_in_every_container(name, languages):
    masks = read_masks(FIXTURES / "head_masks" / name, languages=languages, base=BASE)
    assert masks.languages == (("de",) if name.startswith("de") else ("de", "fr"))
    for mask in masks:
        assert mask.granularity == "head"
        found = [mask.dense(f"layers.{layer}.heads").tolist() for layer in range(2)]
        assert found == HEADS[mask.language]
        frame = mask.to_frame()
        assert list(frame["layer"]) == ["0", "1"]
        assert set(frame["type"]) == {"heads"}


@pytest.mark.parametrize("name", ["de", "de.bin"])
def test_a_sparse_checkpoint_keeps_what_is_not_zero(name):
    (mask,) = read_masks(FIXTURES / "sparse" / name, base=BASE)
    assert coordinates(mask) == expected("sparse")
    assert "classifier.weight" in mask.settings["parameters_left_out"]


def kohya_by_hand():
    """ΔW per parameter, from the file by its definition."""
    tensors = load_file(FIXTURES / "kohya" / "de.safetensors")
    found = {}
    for layer in range(2):
        for module in ("attention.self.query", "intermediate.dense"):
            name = f"bert.encoder.layer.{layer}.{module}"
            flat = "lora_te_" + name.replace(".", "_")
            up = tensors[f"{flat}.lora_up.weight"].float()
            down = tensors[f"{flat}.lora_down.weight"].float()
            scale = 6.0 / 2 if layer == 0 else 1.0
            found[f"{name}.weight"] = scale * up @ down
    return found


def largest(changes, k):
    ranked = sorted(
        (-abs(float(value)), name, i)
        for name, change in changes.items()
        for i, value in enumerate(change.flatten())
    )
    return {(name, i) for _, name, i in ranked[:k]}


def selected(mask):
    return {(n, int(i)) for n in mask.shapes for i in np.flatnonzero(mask.dense(n).reshape(-1))}


def test_kohya_names_are_restored_and_scaled_by_alpha_over_rank():
    (mask,) = read_masks(FIXTURES / "kohya" / "de.safetensors", base=BASE, density=0.1)
    changes = kohya_by_hand()
    assert mask.shapes == {name: tuple(change.shape) for name, change in sorted(changes.items())}
    assert selected(mask) == largest(changes, round(0.1 * mask.size))
    unscaled = {n: c / 3 if "layer.0" in n else c for n, c in changes.items()}
    assert selected(mask) != largest(unscaled, round(0.1 * mask.size))


def test_adapters_of_peft_become_the_masks_that_extract_finds(tmp_path):
    for seed, language in enumerate(["de", "fr"]):
        save_adapter(lora(bert(), seed), tmp_path / "ck" / "adapters" / language)
    masks = read_masks(tmp_path / "ck", density=0.1)
    again = extract(open_checkpoint(tmp_path / "ck"), density=0.1)
    assert list(masks) == list(again)
    (mask,) = read_masks(tmp_path / "ck/adapters/de", languages=["sw"], density=0.1)
    assert mask.language == "sw"
    assert selected(mask) == largest(delta_weights(lora(bert(), 0)), round(0.1 * mask.size))


def test_adapters_are_over_the_base_that_they_state_where_it_is_here(tmp_path):
    root = tmp_path / "ck"
    for seed, language in enumerate(["de", "fr"]):
        save_adapter(lora(bert(), seed), root / "adapters" / language)
    stated = json.loads((root / "adapters/de/adapter_config.json").read_text())
    by_name = read_masks(root / "adapters", density=0.1)
    assert {mask.base for mask in by_name} == {stated["base_model_name_or_path"]}
    bert().save_pretrained(root / "base")
    here = read_masks(root / "adapters", density=0.1)
    found = extract(open_checkpoint(root), density=0.1)
    assert {mask.base for mask in here} == {mask.base for mask in found}
    assert {mask.base for mask in here} == {
        mask.base for mask in read_masks(root / "adapters", base=root / "base")
    }
    measure_overlap([here["de"], found["fr"]])
    shutil.copytree(root / "adapters/de", tmp_path / "sw")
    stated["base_model_name_or_path"] = str(root / "base")
    (tmp_path / "sw/adapter_config.json").write_text(json.dumps(stated))
    (mask,) = read_masks(tmp_path / "sw", density=0.1)
    assert mask.base == here["de"].base
    assert mask.settings["format"] == "peft"


def test_names_follow_the_base_where_it_is_stored_without_its_wrapper(tmp_path):
    bare = {n.removeprefix("bert."): t for n, t in base_tensors().items() if n.startswith("bert.")}
    (tmp_path / "base").mkdir()
    save_file(bare, tmp_path / "base/model.safetensors")
    (mask,) = read_masks(FIXTURES / "prune" / "de.pt", base=tmp_path / "base")
    assert coordinates(mask) == {
        name.removeprefix("bert."): entries for name, entries in expected("prune")["de"].items()
    }


# Conversion


@pytest.mark.parametrize("to", ["safetensors", "npz"])
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("prune/de.pt", {"base": "tiny"}),
        ("composable_sft/released", {"base": BASE}),
        ("lape/tiny.neuron.pth", {"languages": ["en", "zh", "fr"], "base": BASE}),
        ("head_masks/both.json", {}),
    ],
)
def test_what_is_converted_comes_back_as_it_was(tmp_path, source, options, to):
    masks = convert(FIXTURES / source, tmp_path / "out", to=to, **options)
    assert {path.suffix for path in (tmp_path / "out/masks").iterdir()} == {f".{to}"}
    back = read_masks(tmp_path / "out")
    assert set(back.languages) == set(masks.languages)
    for mask in masks:
        other = back[mask.language]
        assert other == mask
        for field in ("run", "base", "method", "settings", "seed", "granularity"):
            assert getattr(other, field) == getattr(mask, field)
    if to == "safetensors":
        opened = load_subnetworks(open_checkpoint(tmp_path / "out"))
        assert {mask.language for mask in opened} == set(masks.languages)


def test_npz_holds_plain_boolean_arrays(tmp_path):
    (mask,) = convert(FIXTURES / "prune" / "de.pt", tmp_path / "out", to="npz")
    with np.load(tmp_path / "out/masks/de.npz") as arrays:
        assert set(arrays) == {*mask.shapes, "subnetwork"}
        np.testing.assert_array_equal(arrays[QUERY], mask.dense(QUERY))
    np.savez(tmp_path / "fr.npz", **{QUERY: mask.dense(QUERY)})
    (plain,) = read_masks(tmp_path / "fr.npz", base="tiny")
    assert (plain.language, plain.base) == ("fr", "tiny")
    np.testing.assert_array_equal(plain.dense(QUERY), mask.dense(QUERY))


def test_masks_of_heads_can_be_compared_and_combined_with_each_other_only():
    heads = read_masks(FIXTURES / "head_masks" / "both.json")
    assert (heads["de"] & heads["fr"]).count == 2
    assert (heads["fr"] - heads["de"]).count == 1
    frame = measure_overlap(heads, measures=("jaccard",), levels=("all",)).to_frame()
    assert set(frame["value"]) == {2 / 3}
    own = Subnetwork.from_arrays(
        {"layers.0.heads": np.array([True, False])}, language="sw", base="b", granularity="head"
    )
    other = Subnetwork.from_arrays({"w": np.ones((2, 2), bool)}, language="de", base="b")
    with pytest.raises(NotComparableError, match="mixed granularity, head and weight; expected"):
        own & other


def test_a_folder_is_read_file_by_file_under_their_names(tmp_path):
    for name in ("de.pt", "fr.safetensors"):
        shutil.copy(FIXTURES / "prune" / name, tmp_path)
    (tmp_path / "notes.txt").write_text("no mask")
    (tmp_path / "results.json").write_text("{}")
    masks = read_masks(tmp_path)
    assert masks.languages == ("de", "fr")
    with pytest.raises(InputError, match="holds 2 files, and languages are named for one"):
        read_masks(tmp_path, languages=["sw", "en"])
    shutil.copy(FIXTURES / "head_masks/de.npy", tmp_path / "sw.npy")
    with pytest.raises(NotComparableError, match="mixed granularity: de by weight, sw by head"):
        read_masks(tmp_path)


# Bad input


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def saved(path, value):
    torch.save(value, path)
    return path


def pair(mask, name=QUERY):
    return {f"{name}_mask": mask, f"{name}_orig": torch.ones(mask.shape)}


def test_an_empty_mask_is_refused_and_a_full_one_is_warned_about(tmp_path):
    path = saved(tmp_path / "de.pt", pair(torch.zeros(8, 8)))
    with pytest.raises(InputError) as error:
        read_masks(path)
    one_line(error, f"{path}: the mask of de is empty: it selects none of 64 weights", "leave")
    saved(path, pair(torch.ones(8, 8)))
    with pytest.warns(UserWarning, match="the mask of de is full: it selects all 64 weights"):
        (mask,) = read_masks(path)
    assert mask.density == 1


def test_a_mask_that_does_not_fit_the_base_is_refused(tmp_path):
    mask = torch.eye(8)
    path = saved(tmp_path / "de.pt", pair(mask, QUERY.replace("layer.0", "layer.7")))
    with pytest.raises(NotComparableError) as error:
        read_masks(path, base=BASE)
    one_line(error, f"{path}: covers", f"which the base {BASE} does not have", "another base?")
    saved(path, pair(torch.eye(9)))
    with pytest.raises(NotComparableError) as error:
        read_masks(path, base=BASE)
    one_line(error, f"a mask of shape [9, 9] for {QUERY}; expected [8, 8], as in {BASE}")
    np.save(tmp_path / "fr.npy", np.eye(4))
    with pytest.raises(NotComparableError) as error:
        read_masks(tmp_path / "fr.npy", base=BASE)
    one_line(error, "has 4 layers of 4 heads; expected 2 layers of 2, as in")
    lape = FIXTURES / "lape" / "tiny.neuron.pth"
    with pytest.raises(InputError) as error:
        read_masks(lape, languages=["en", "zh", "fr"], units=11)
    one_line(error, "layer 0 of en holds the neuron 11; expected 0 to 10")
    with pytest.raises(NotComparableError, match="2 layers of 13 neurons; expected 2 layers of 12"):
        read_masks(lape, languages=["en", "zh", "fr"], units=13, base=BASE)


def test_which_stack_heads_belong_to_is_not_guessed(tmp_path):
    (tmp_path / "base").mkdir()
    config = {"is_encoder_decoder": True, "num_layers": 2, "num_heads": 2}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    with pytest.raises(NotComparableError, match="whether of the encoder or the decoder") as error:
        read_masks(FIXTURES / "head_masks/de.npy", base=tmp_path / "base")
    one_line(error, "save head_mask, decoder_head_mask, cross_attn_head_mask as one .npz")
    lape = FIXTURES / "lape" / "tiny.neuron.pth"
    with pytest.raises(NotComparableError, match="whether of the encoder or the decoder"):
        read_masks(lape, languages=["en", "zh", "fr"], units=12, base=tmp_path / "base")


def save_stacks(path, **changes):
    """Head masks of an encoder of two layers and a decoder of two, all different."""
    rng = np.random.default_rng(0)
    names = ("head_mask", "decoder_head_mask", "cross_attn_head_mask")
    arrays = {name: rng.permutation([[1, 0], [1, 1]]) for name in names} | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize("build", [mt5, m2m])
def test_heads_of_two_stacks_are_those_of_the_model(tmp_path, build):
    model = build()
    model.config.save_pretrained(tmp_path / "base")
    units = find_units(model)
    layers = 2 if build is mt5 else 1
    ones = np.ones((layers, 2), int)
    arrays = save_stacks(
        tmp_path / "de.npz",
        **({} if layers == 2 else {"head_mask": [[1, 0]], "decoder_head_mask": [[0, 1]]}),
        **({} if layers == 2 else {"cross_attn_head_mask": ones}),
    )
    (mask,) = read_masks(tmp_path / "de.npz", base=tmp_path / "base")
    gates = selected_units(mask, units).tolist()
    for block, name in zip(units.attentions, unit_parameters(units, "head"), strict=True):
        stack, _, layer = block.layer.rpartition(".")
        part = "cross_attn_head_mask" if block.kind == "cross" else "decoder_head_mask"
        by_hand = arrays["head_mask" if stack == "encoder" else part][int(layer)]
        assert mask.dense(name).tolist() == [bool(bit) for bit in by_hand]
        assert [gates.pop(0) for _ in by_hand] == [bool(bit) for bit in by_hand]
    assert not gates
    convert(tmp_path / "de.npz", tmp_path / "out", base=tmp_path / "base")
    (again,) = read_masks(tmp_path / "out", base=tmp_path / "base")
    assert again == mask


def test_heads_of_two_stacks_that_do_not_fit_are_refused(tmp_path):
    mt5().config.save_pretrained(tmp_path / "base")
    path = tmp_path / "de.npz"
    save_stacks(path, cross_attn_head_mask=None)
    with pytest.raises(FileFormatError) as error:
        read_masks(path)
    one_line(error, f"{path}: has no cross_attn_head_mask; expected head_mask, decoder_head_mask")
    save_stacks(path, more=np.eye(2))
    with pytest.raises(FileFormatError, match="has an array under 'more'; expected head_mask"):
        read_masks(path)
    save_stacks(path, decoder_head_mask=np.ones((3, 2)))
    with pytest.raises(NotComparableError) as error:
        read_masks(path, base=tmp_path / "base")
    one_line(error, "has 3 layers of 2 heads in the decoder; expected 2 layers of 2, as in")
    save_stacks(path)
    with pytest.raises(NotComparableError, match="of an encoder and a decoder; expected a base"):
        read_masks(path, base=BASE)


def test_layers_of_a_unit_mask_that_are_missing_are_noticed(tmp_path):
    masks = {f"layers.{layer}.heads": np.array([True, False]) for layer in (0, 2)}
    mask = Subnetwork.from_arrays(masks, language="de", base="b", granularity="head")
    mask.save(tmp_path / "de.safetensors")
    with pytest.raises(NotComparableError, match="has 2 layers of 2 heads; expected 2 layers of 2"):
        read_masks(tmp_path / "de.safetensors", base=BASE)


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    lape = FIXTURES / "lape" / "tiny.neuron.pth"
    with pytest.raises(MissingInputError) as error:
        read_masks(lape, base=BASE)
    one_line(error, "holds masks of 3 languages without their names", "--languages en,zh,fr")
    with pytest.raises(InputError, match="holds masks of 3 languages, and 2 are named"):
        read_masks(lape, languages=["en", "zh"], base=BASE)
    with pytest.raises(InputError, match="en is named twice"):
        read_masks(lape, languages=["en", "en", "fr"], base=BASE)
    with pytest.raises(UnknownLanguageError, match="xyzzy"):
        read_masks(lape, languages=["en", "zh", "xyzzy"], base=BASE)
    with pytest.raises(MissingInputError, match="how many neurons a layer has; name the base's"):
        read_masks(lape, languages=["en", "zh", "fr"])
    shutil.copy(FIXTURES / "head_masks/de.npy", tmp_path / "head_mask.npy")
    with pytest.raises(MissingInputError, match="does not say its language: 'head_mask' is none"):
        read_masks(tmp_path / "head_mask.npy")
    (mask,) = read_masks(tmp_path / "head_mask.npy", languages="sw")
    assert mask.language == "sw"
    with pytest.raises(MissingInputError, match="only against a stated base; name the base's"):
        read_masks(FIXTURES / "sparse" / "de")
    with pytest.raises(MissingInputError, match=r"flattened names .* only the base's names"):
        read_masks(FIXTURES / "kohya" / "de.safetensors")
    with pytest.raises(MissingInputError, match="there is no such base"):
        read_masks(FIXTURES / "prune/de.pt", base=tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="holds no mask and no adapter that is known"):
        read_masks(BASE.parent.parent / "lm_eval")
    with pytest.raises(MissingInputError, match="is not there"):
        read_masks(tmp_path / "no.npy")
    with pytest.raises(InputError, match="the format is 'kohia'; expected one of subnet, npz"):
        read_masks(FIXTURES / "prune/de.pt", format="kohia")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.2, 1.0]], r"holds the value 0.2; expected heads: 0 and 1 .* importances are no mask"),
        ([1, 0], r"holds int64 \[2\]; expected heads"),
        ([[1, 0], [1]], "holds rows of different lengths"),
        ({"de": [[1, 0]], "xyzzy": [[1, 0]]}, "an array under 'xyzzy', which is no language"),
        ([["a", "b"]], "holds <U1"),
        ([[float("nan"), 1.0]], "holds the value nan"),
    ],
)
def test_what_is_no_head_mask_is_refused(tmp_path, value, message):
    (tmp_path / "de.json").write_text(json.dumps(value))
    with pytest.raises(FileFormatError, match=message) as error:
        read_masks(tmp_path / "de.json")
    one_line(error, f"{tmp_path / 'de.json'}: ")


def test_incomplete_pruning_is_refused(tmp_path):
    path = tmp_path / "de.pt"
    whole = pair(torch.eye(8)) | pair(torch.eye(8), "b.weight")
    for missing in ("b.weight_mask", "b.weight_orig"):
        saved(path, {k: v for k, v in whole.items() if k != missing})
        with pytest.raises(FileFormatError, match=f"without {missing}; expected both"):
            read_masks(path)
    saved(path, {**whole, "b.weight_orig": torch.ones(3)})
    with pytest.raises(FileFormatError, match=r"shape \[8, 8\] for b.weight; expected \[3\]"):
        read_masks(path)
    saved(path, pair(0.5 * torch.eye(8)))
    with pytest.raises(FileFormatError, match=r"holds 0\.5, other values than 0 and 1"):
        read_masks(path)


@pytest.mark.parametrize(
    "encoded",
    [
        {"size": [8, 8], "index_steps": [63, 1], "values": torch.ones(2)},
        {"size": [8, 8], "index_steps": [3, 1], "values": torch.ones(3)},
        {"size": [8, 8], "indices": [[0, 8], [0, 0]], "values": [1.0, 2.0]},
        {"size": [8, 8], "values": [1.0]},
        {"size": [8, 8], "index_steps": [-1], "values": torch.ones(1)},
        3,
    ],
)
def test_differences_that_cannot_be_used_are_refused(tmp_path, encoded):
    (tmp_path / "de").mkdir()
    saved(tmp_path / "de/pytorch_diff.bin", {"diffs": {QUERY: encoded}, "abs": {}})
    with pytest.raises(FileFormatError, match=f"a difference for {QUERY} that cannot be used"):
        read_masks(tmp_path / "de")


def test_diverged_differences_are_refused(tmp_path):
    (tmp_path / "de").mkdir()
    encoded = {"size": [8, 8], "index_steps": [1], "values": torch.tensor([float("nan")])}
    saved(tmp_path / "de/pytorch_diff.bin", {"diffs": {QUERY: encoded}})
    with pytest.raises(InputError, match="holds NaN or infinity"):
        read_masks(tmp_path / "de")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("name", ["de.pt", "de.bin", "de.pth", "de/pytorch_diff.bin"])
def test_nothing_that_a_pickle_brings_along_is_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"diffs": Harmful()}, path)
    with pytest.raises(UnsafeFileError) as error:
        read_masks(path)
    one_line(error, "holds objects whose loading would run code", "save its state_dict()")
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Harmful(), protocol))
        with pytest.raises(UnsafeFileError, match="code"):
            read_masks(path)
    np.save(tmp_path / "de.npy", np.array([Harmful()], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeFileError, match="holds Python objects"):
        read_masks(tmp_path / "de.npy")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("source", ["prune/de.pt", "head_masks/de.npz", "head_masks/de.npy"])
def test_a_file_cut_anywhere_is_refused(tmp_path, source):
    whole = (FIXTURES / source).read_bytes()
    path = tmp_path / Path(source).name
    for length in range(0, len(whole), max(1, len(whole) // 9)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="is truncated or no"):
            read_masks(path)


def test_a_file_of_an_old_torch_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "de.pt"
    torch.save(pair(torch.eye(8)), path, _use_new_zipfile_serialization=False)
    (mask,) = read_masks(path)
    assert mask.count == 8
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises((FileFormatError, UnsafeFileError)) as error:
            read_masks(path)
        one_line(error, f"{path}: ")


def kohya(path, **changes):
    tensors = load_file(FIXTURES / "kohya" / "de.safetensors") | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    return path


FLAT = "lora_te_bert_encoder_layer_0_attention_self_query"


def test_kohya_files_that_are_not_plain_lora_are_refused(tmp_path):
    path = tmp_path / "de.safetensors"
    cases = {
        "Tucker": {f"{FLAT}.lora_mid.weight": torch.ones(2, 2)},
        "LoHa": {f"{FLAT}.hada_w1_a": torch.ones(2, 2)},
        "DoRA": {f"{FLAT}.dora_scale": torch.ones(2)},
        "has no": {f"{FLAT}.lora_up.weight": None},
        r"factors of shapes \[8, 3\] and \[2, 8\]": {f"{FLAT}.lora_up.weight": torch.ones(8, 3)},
        "no module of": {
            "lora_te_other_0.lora_up.weight": torch.ones(8, 2),
            "lora_te_other_0.lora_down.weight": torch.ones(2, 8),
        },
        r"a change of shape \[9, 8\] .* expected \[8, 8\]": {
            f"{FLAT}.lora_up.weight": torch.ones(9, 2)
        },
    }
    for message, changes in cases.items():
        with pytest.raises((NotComparableError, FileFormatError), match=message):
            read_masks(kohya(path, **changes), base=BASE)


def test_lora_on_convolutions_is_left_out_by_name(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    names = [f"layers.0.{part}.weight" for part in ("conv", "fc")]
    save_file(
        {names[0]: torch.ones(6, 4, 3, 3), names[1]: torch.ones(6, 4)}, base / "model.safetensors"
    )
    linear = {"lora_up.weight": torch.randn(6, 2), "lora_down.weight": torch.randn(2, 4)}
    convolution = {
        "lora_up.weight": torch.randn(6, 2, 1, 1),
        "lora_down.weight": torch.randn(2, 4, 3, 3),
    }
    path = tmp_path / "de.safetensors"
    save_file(
        {f"lora_unet_layers_0_fc.{key}": value for key, value in linear.items()}
        | {f"lora_unet_layers_0_conv.{key}": value for key, value in convolution.items()},
        path,
    )
    (mask,) = read_masks(path, base=base, density=0.25)
    assert list(mask.shapes) == [names[1]]
    assert mask.settings["parameters_left_out"] == [names[0]]
    assert (mask.settings["format"], mask.settings["file"]) == ("kohya", "de.safetensors")
    assert "parameters_left_out" not in read_masks(
        FIXTURES / "kohya/de.safetensors", base=BASE
    )["de"].settings  # fmt: skip
    save_file({f"lora_unet_layers_0_conv.{key}": value for key, value in convolution.items()}, path)
    with pytest.raises(FileFormatError, match="LoRA on convolutions only; expected LoRA on linear"):
        read_masks(path, base=base)


def test_a_flattened_name_is_decided_by_shape_and_refused_where_that_is_ambiguous(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    up, down = torch.randn(6, 2), torch.randn(2, 4)
    flat = "lora_unet_layers_0_a_b"
    save_file(
        {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down},
        tmp_path / "de.safetensors",
    )
    wide, tall = torch.ones(4, 6), torch.ones(6, 4)
    save_file(
        {"layers.0.a.b.weight": wide, "layers.0.a_b.weight": tall}, base / "model.safetensors"
    )
    (mask,) = read_masks(tmp_path / "de.safetensors", base=base, density=0.25)
    assert selected(mask) == largest({"layers.0.a_b.weight": up @ down}, 6)
    both = {"layers.0.a.b.weight": tall, "layers.0.a_b.weight": tall.clone()}
    save_file(both, base / "model.safetensors")
    with pytest.raises(NotComparableError) as error:
        read_masks(tmp_path / "de.safetensors", base=base)
    one_line(error, "is ambiguous: layers.0.a.b.weight and layers.0.a_b.weight of the base")


def test_layer_eleven_is_not_layer_one(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    names = [f"text_model.encoder.layers.{i}.fc1.weight" for i in (1, 11)]
    save_file({name: torch.ones(6, 4) for name in names}, base / "model.safetensors")
    flat = "lora_te1_text_model_encoder_layers_11_fc1"
    factors = {"lora_up.weight": torch.randn(6, 2), "lora_down.weight": torch.randn(2, 4)}
    save_file({f"{flat}.{k}": v for k, v in factors.items()}, tmp_path / "de.safetensors")
    (mask,) = read_masks(tmp_path / "de.safetensors", base=base)
    assert list(mask.shapes) == [names[1]]


def test_a_target_format_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="target format is 'pt'; expected 'safetensors' or 'npz'"):
        convert(FIXTURES / "prune/de.pt", tmp_path / "out", to="pt")
    convert(FIXTURES / "prune/de.pt", tmp_path / "out")
    with pytest.raises(OutputError, match="is already there"):
        convert(FIXTURES / "prune/de.pt", tmp_path / "out")
