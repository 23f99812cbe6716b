"""`sequence.replicates`: second adapters of some languages, the ceiling of every overlap."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, set_seed

import subnet
from subnet.errors import InputError
from subnet.training import read_config, train
from subnet.training._plan import plan_cells, plan_lone, plan_runs
from training_makers import small_config

LORA = "adapter_model.safetensors"
LANGUAGES = ["de", "fr", "ru"]
SEQUENCE = {
    "orders": [["ru", "de", "fr"], ["fr", "ru", "de"]],
    "adapters": True,
    "replicates": 2,
}


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """Two orders of three languages; the first two of the first order get a second adapter."""
    directory = tmp_path_factory.mktemp("train") / "replicates"
    short = {"base": {"steps": 1}, "training": {"steps": 2}}
    return train(small_config(languages=LANGUAGES, sequence=SEQUENCE, **short), directory).path


def test_a_second_adapter_starts_from_its_recorded_seed(cell):
    second = cell / "runs/replicate/adapters"
    assert sorted(path.name for path in second.iterdir()) == ["de", "ru"]
    assert sorted(path.name for path in (cell / "adapters").iterdir()) == LANGUAGES
    seeds = json.loads((cell / "run.json").read_text())["seeds"]
    targets = json.loads((cell / "adapters/de/adapter_config.json").read_text())["target_modules"]
    for language in ("de", "ru"):
        base = AutoModelForSequenceClassification.from_pretrained(cell / "base")
        set_seed(seeds[f"r4/replicate/{language}"])
        drawn = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        first, again = (load_file(at / language / LORA) for at in (cell / "adapters", second))
        for name, value in drawn.named_parameters():
            if "lora_A" in name:
                place = name.replace(".default", "")
                # AdamW moves a weight by about the rate: two steps of 0.01 beside ±0.25.
                assert (again[place] - value).abs().max() < 0.05
                assert (first[place] - value).abs().max() > 0.1


def test_they_are_the_ceiling_of_overlap_and_nothing_else(cell):
    checkpoint = subnet.open_checkpoint(cell)
    overlap = subnet.measure_overlap(checkpoint.updates, measures=("cosine",))
    twice = overlap.replicates
    whole = twice[(twice["level"] == "all") & (twice["null"] == "structure")]
    assert sorted(whole["language_a"]) == sorted(whole["language_b"]) == ["de", "ru"]
    between = overlap.frame.query("comparison == 'between' and level == 'all'")
    assert set(between["run"]) == {"main", "replicate"}  # pairs within each run alone
    assert set(subnet.measure_forgetting(checkpoint.scores).frame["run"]) == {"order-1", "order-2"}


@pytest.mark.parametrize(
    ("parts", "folders"),
    [
        ({}, ["adapters/de", "adapters/fr", "adapters/ru", "runs/replicate/adapters/ru"]),
        ({"adaptation": {"sharing": "none"}}, ["runs/replicate/adapters/ru"]),
        (
            {"adaptation": {"sharing": "none"}, "subnetworks": {"method": "static", "masks": "m"}},
            [],
        ),
        (
            {"adaptation": {"tuning": "full"}},
            ["weights/de", "weights/fr", "weights/ru", "runs/replicate/weights/ru"],
        ),
    ],
)
def test_what_is_trained_beside_the_sequence(parts, folders):
    config = small_config(languages=LANGUAGES, sequence={**SEQUENCE, "replicates": 1}, **parts)
    runs = plan_runs(config, LANGUAGES)
    found = plan_lone(config, plan_cells(config)[0], LANGUAGES, runs)
    assert [entry.folder for entry in found] == folders
    assert [entry.language for entry in found] == [folder[-2:] for folder in folders]
    assert len({entry.name for entry in found}) == len(found)


def test_without_adapters_there_is_nothing_to_replicate(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[sequence]\nreplicates = 2\n")
    with pytest.raises(InputError, match="adapters = true with replicates"):
        read_config(file)
