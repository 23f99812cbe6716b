"""Extracted subnetworks hold the weights that changed most, and say how they were found."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import BertConfig, BertModel

from subnet.checkpoint import Checkpoint, open_checkpoint
from subnet.errors import InputError, MissingInputError
from subnet.language import Language, parse_language
from subnet.subnetwork import extract, load_subnetworks


@dataclass
class GivenUpdate:
    """An update whose ΔW is given; counts what is held at once."""

    changes: dict[str, np.ndarray]
    language: Language = field(default_factory=lambda: parse_language("de"))
    run: str = "main"
    base: str = "tiny"
    source: Path = Path("adapters/de")
    kind: str = "lora"
    others: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def shapes(self):
        return {name: change.shape for name, change in self.changes.items()}

    @property
    def apart(self):
        return (*self.others, "head.weight")

    def dense(self, parameter):
        if parameter == "head.weight":
            raise MissingInputError("is not in the base")
        found = {**self.changes, **self.others}[parameter]
        return torch.from_numpy(np.asarray(found, dtype=np.float32))

    def blocks(self, parameter):
        yield self.dense(parameter)


def random_update(seed=0, **details):
    rng = np.random.default_rng(seed)
    shapes = {"layer.1.weight": (9, 8), "layer.0.weight": (10, 12), "layer.2.weight": (4, 4)}
    scales = {"layer.1.weight": 3.0, "layer.0.weight": 1.0, "layer.2.weight": 0.01}
    return GivenUpdate(
        {n: rng.standard_normal(s).astype(np.float32) * scales[n] for n, s in shapes.items()},
        **details,
    )


def largest(changes, k):
    """Oracle: every (magnitude, name, index) in one sorted list."""
    listed = [
        (-abs(float(value)), name, i)
        for name, change in changes.items()
        for i, value in enumerate(change.reshape(-1))
    ]
    return {(name, i) for _, name, i in sorted(listed)[:k]}


def elements(subnetwork):
    return {
        (name, int(i))
        for name in subnetwork.shapes
        for i in np.flatnonzero(subnetwork.dense(name).reshape(-1))
    }


@pytest.mark.parametrize("density", [0.005, 0.05, 0.5, 1.0])
def test_global_scope_selects_the_largest_changes_of_the_model(density):
    update = random_update()
    (found,) = extract([update], density=density)
    assert found.size == 208
    assert elements(found) == largest(update.changes, round(density * 208))


def test_module_scope_selects_the_same_share_of_every_parameter():
    update = random_update()
    (found,) = extract([update], density=0.25, scope="module")
    expected = set()
    for name, change in update.changes.items():
        expected |= largest({name: change}, round(0.25 * change.size))
    assert elements(found) == expected
    assert found.counts == {"layer.0.weight": 30, "layer.1.weight": 18, "layer.2.weight": 4}


def test_signs_are_those_of_the_change():
    update = random_update()
    for scope in ("global", "module"):
        (found,) = extract([update], density=0.3, scope=scope)
        for name, change in update.changes.items():
            expected = np.packbits(found.dense(name) & (change < 0), bitorder="little")
            np.testing.assert_array_equal(found.signs[name], expected)


def test_a_mask_says_how_it_was_found():
    update = random_update(run="second")
    (found,) = extract([update], density=0.05)
    assert (found.language, found.run, found.base) == ("de", "second", "tiny")
    assert (found.method, found.seed, found.granularity) == ("magnitude", None, "weight")
    ranked = sorted((abs(float(v)) for c in update.changes.values() for v in c.flat), reverse=True)
    assert found.settings == {
        "density": 0.05,
        "scope": "global",
        "parameters": "linear",
        "update": "lora",
        "ties": "parameter name (sorted), then row-major index",
        "k": 10,
        "zeros_left_out": 0,
        "threshold": ranked[9],
    }
    json.dumps(found.settings)


def test_k_is_rounded_half_to_even():
    change = {"w": np.arange(1, 11, dtype=np.float32).reshape(2, 5)}
    for density, k in ((0.25, 2), (0.35, 4), (0.34, 3), (0.05001, 1)):
        assert extract([GivenUpdate(change)], density=density)[0].count == k


def test_weights_that_did_not_change_are_never_selected():
    change = {"a": np.zeros((4, 5), np.float32), "b": np.zeros((2, 10), np.float32)}
    change["b"][1, 3], change["b"][0, 0] = -2.0, 1e-40
    for scope, k in (("global", 20), ("module", 20)):
        (found,) = extract([GivenUpdate(change)], density=0.5, scope=scope)
        assert elements(found) == {("b", 0), ("b", 13)}
        assert found.settings["k"] == k
        assert found.settings["zeros_left_out"] == 18


def test_an_update_that_changed_nothing_is_refused():
    zero = GivenUpdate({"a": np.zeros((4, 5), np.float32)})
    for scope in ("global", "module"):
        with pytest.raises(InputError, match="adapters/de: the update of de is zero everywhere"):
            extract([zero], scope=scope)


def test_a_density_that_selects_nothing_is_refused():
    for scope in ("global", "module"):
        with pytest.raises(InputError, match="selects none of the 208 weights of de"):
            extract([random_update()], density=0.001, scope=scope)


def test_a_change_that_is_not_finite_is_named():
    update = random_update()
    update.changes["layer.2.weight"][1, 1] = math.nan
    for scope in ("global", "module"):
        with pytest.raises(InputError, match=r"adapters/de: layer\.2\.weight holds 1 values"):
            extract([update], scope=scope)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0}, "density is 0; expected 0 < density <= 1"),
        ({"density": -0.1}, "density is -0.1"),
        ({"density": 1.5}, "density is 1.5"),
        ({"density": math.nan}, "density is nan"),
        ({"density": "half"}, "density is 'half'; expected a number"),
        ({"density": True}, "density is True; expected a number"),
        ({"scope": "layer"}, "scope is 'layer'; expected 'global' or 'module'"),
        ({"parameters": "some"}, "parameters is 'some'; expected 'linear' or 'all'"),
        ({"method": "size"}, "method is 'size'; expected 'magnitude'"),
    ],
)
def test_wrong_settings_are_one_clear_line(settings, message):
    with pytest.raises(InputError, match=message):
        extract([random_update()], **settings)


def test_what_stands_apart_is_included_on_request_as_far_as_the_base_has_it():
    update = random_update(others={"layer.0.bias": np.full(6, 9.0, np.float32)})
    (linear,) = extract([update])
    assert "layer.0.bias" not in linear.shapes
    (everything,) = extract([update], parameters="all", density=6 / 214)
    assert everything.shapes["layer.0.bias"] == (6,)
    expected = largest({**update.changes, **update.others}, 6)
    assert elements(everything) == expected
    assert everything.settings["parameters_left_out"] == ["head.weight"]


def test_two_updates_of_one_language_and_run_are_refused_before_the_work():
    update = random_update()
    update.dense = None
    with pytest.raises(InputError, match="de has two updates in the run main"):
        extract([update, update])
    with pytest.raises(MissingInputError, match="there is no update"):
        extract([])


def _save_adapter(folder, base, seed):
    torch.manual_seed(seed)
    # A scale of 8 / 4 is a power of two, so PEFT's order of multiplication gives the same floats.
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "dense"])
    model = get_peft_model(BertModel(base.config), config)
    deltas = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            torch.nn.init.normal_(module.lora_B["default"].weight, std=0.02)
            plain = name.removeprefix("base_model.model.") + ".weight"
            deltas[plain] = module.get_delta_weight("default").detach().numpy()
    model.save_pretrained(folder)
    return deltas


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint with a base, two real adapters, and what PEFT says their ΔW is."""
    root = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    base = BertModel(config)
    base.save_pretrained(root / "base")
    deltas = {
        label: _save_adapter(root / "adapters" / label, base, seed)
        for seed, label in enumerate(("de", "fr"), start=1)
    }
    return root, deltas


def test_real_adapters_give_the_largest_of_the_change_that_peft_states(trained):
    root, deltas = trained
    checkpoint = open_checkpoint(root)
    assert isinstance(checkpoint, Checkpoint)
    subnets = extract(checkpoint, density=0.05)
    assert subnets.languages == ("de", "fr")
    for label, changes in deltas.items():
        found = subnets[label]
        assert found.shapes == {name: c.shape for name, c in sorted(changes.items())}
        assert elements(found) == largest(changes, round(0.05 * found.size))
    assert subnets["de"] != subnets["fr"]
    assert (subnets["de"] & subnets["fr"]).count < subnets["de"].count


def test_one_update_alone_can_be_given(trained):
    checkpoint = open_checkpoint(trained[0])
    (found,) = extract(checkpoint.updates[0], density=0.1)
    assert found.language == "de"


def test_full_fine_tuning_selects_by_difference_to_the_base(trained, tmp_path):
    root, _ = trained
    base = BertModel.from_pretrained(root / "base")
    (tmp_path / "base").symlink_to(root / "base")
    tuned = BertModel.from_pretrained(root / "base")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(tmp_path / "adapters" / "sw")
    (found,) = extract(open_checkpoint(tmp_path), density=0.02)
    before, after = base.state_dict(), tuned.state_dict()
    changes = {name: (after[name] - before[name]).numpy() for name in found.shapes}
    assert len(changes) >= 12
    assert elements(found) == largest(changes, round(0.02 * found.size))


def test_saved_subnetworks_are_a_checkpoint_of_masks(trained, tmp_path):
    subnets = extract(open_checkpoint(trained[0]))
    subnets.save(tmp_path / "masks-only")
    back = load_subnetworks(open_checkpoint(tmp_path / "masks-only"))
    assert sorted(back.languages) == ["de", "fr"]
    for label in back.languages:
        assert back[label] == subnets[label]
        assert back[label].settings == subnets[label].settings


def test_a_checkpoint_of_stages_alone_gives_what_each_stage_changed(tmp_path):
    import checkpoint_makers as makers

    makers.write_stages(tmp_path, ("de", "fr"))
    checkpoint = open_checkpoint(tmp_path)
    found = extract(checkpoint)
    assert found.languages == ("de", "fr")
    assert [member.settings["stage"] for member in found] == [1, 2]
