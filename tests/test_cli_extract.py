"""`subnet extract`: every setting from the command line, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import BertConfig, BertForSequenceClassification

import checkpoint_makers as makers
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError
from subnet.overlap import measure_overlap
from subnet.subnetwork import (
    METHODS,
    Subnetwork,
    Subnetworks,
    extract,
    load_subnetwork,
    load_subnetworks,
    random_like,
    write_controls,
)
from subnet.subnetwork.random_masks import share_out
from subnet.training.tokenizer import build_tokenizer
from subnet_cli.extract import recorded_settings

LANGUAGES = ("de", "fr", "sw")


def tiny():
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=40, max_position_embeddings=24, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    makers.move(model, 3, size=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "small"
    makers.save_base(tiny(), root / "base")
    build_tokenizer(24).save_pretrained(root / "base")
    for seed, language in enumerate(LANGUAGES, start=1):
        adapted = makers.lora(tiny(), seed, target_modules=["query", "value", "dense"])
        makers.save_adapter(adapted, root / "adapters" / language)
    rng = np.random.default_rng(0)
    rows = [
        {"language": k, "text": k + "".join(rng.choice(list("abcdefghij"), 6)), "label": i % 3}
        for k in LANGUAGES
        for i in range(10 + LANGUAGES.index(k))
    ]
    makers.write_json_lines(root / "train.jsonl", rows)
    return root


@pytest.fixture
def small(original, tmp_path, monkeypatch):
    """The checkpoint, in the working directory; nothing may be written into it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "small")
    return Path("small")


def read(folder="small-masks"):
    return load_subnetworks(open_checkpoint(folder))


def record(folder="small-masks"):
    return json.loads((Path(folder) / "run.json").read_text())


def test_every_option_reaches_the_method(small, subnet):
    code, out, err = subnet(
        "extract", small, "--method", "fisher", "--density", "0.1", "--scope", "module",
        "--examples", "5", "--seed", "7", "--model", "base", "--set", "batch_size=2",
        "--set", "labels=model",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "Subnetworks by fisher, written to" in out
    expected = extract(
        open_checkpoint(small), method="fisher", density=0.1, scope="module", n_examples=5,
        seed=7, model="base", batch_size=2, labels="model",
    )  # fmt: skip
    found = read()
    for mask in expected:
        assert found[mask.language] == mask
        assert dict(found[mask.language].settings) == dict(mask.settings)


@pytest.mark.parametrize(
    ("method", "arguments", "settings"),
    [
        ("taylor", ("--density", "0.1"), {"density": 0.1}),
        ("wanda", ("--scope", "row"), {"scope": "row"}),
        ("random", ("--density", "0.2", "--seed", "4"), {"density": 0.2, "seed": 4}),
        (
            "lape",
            ("--density", "0.3", "--set", "activity-percentile=60"),
            {"density": 0.3, "activity_percentile": 60.0},
        ),
    ],
)
def test_masks_are_those_of_the_library(small, subnet, method, arguments, settings):
    assert subnet("extract", small, "--method", method, *arguments, "--out", "masks")[0] == 0
    expected = extract(open_checkpoint(small), method=method, **settings)
    found = read("masks")
    assert [found[mask.language] == mask for mask in expected] == [True] * 3
    assert record("masks")["settings"]["method"] == method
    assert subnet("overlap", "masks", "--quiet")[0] == 0


def test_the_record_has_the_settings_of_every_mask(small, subnet):
    assert subnet("extract", small, "--method", "wanda")[0] == 0
    settings = record()["settings"]
    found = read()
    assert settings["scope"] == "global"
    assert settings["checked_against_test"] is False
    for language, n in zip(LANGUAGES, (10, 11, 12), strict=True):
        own = settings["masks"]["main"][language]
        assert own["n_examples_used"] == n
        assert len(own["examples_sha256"]) == 64
        # The shared ones and its own are all of them.
        rest = {k: v for k, v in settings.items() if k not in ("masks", "method", "controls")}
        assert {**rest, **own} == dict(found[language].settings)


def test_settings_that_all_masks_share_stand_once():
    masks = [
        Subnetwork.from_arrays(
            {"w": np.eye(2) > 0}, language=k, run=run, base="b", settings=settings
        )
        for k, run, settings in (
            ("de", "main", {"a": 1, "b": 2}),
            ("fr", "main", {"a": 1, "b": 3, "c": None}),
            ("de", "other", {"a": 1, "b": 2}),
        )
    ]
    assert recorded_settings(masks[:1]) == {"a": 1, "b": 2}
    assert recorded_settings(masks) == {
        "a": 1,
        "masks": {"main": {"de": {"b": 2}, "fr": {"b": 3, "c": None}}, "other": {"de": {"b": 2}}},
    }


def test_json_lists_the_modules_and_nothing_else(small, subnet):
    code, out, _ = subnet("extract", small, "--method", "random", "--density", "0.25", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {row["language"] for row in rows} == set(LANGUAGES)
    assert all(row["density"] == 0.25 for row in rows)


def test_quiet_prints_nothing_and_a_warning_goes_to_stderr(small, subnet):
    lape = ("--method", "lape", "--density", "0.0125", "--set", "activity_percentile=97")
    code, out, err = subnet("extract", small, *lape)
    assert code == 0
    empty = [mask.language for mask in read() if not mask.count]
    assert err.splitlines() == [
        f"warning: no neuron is specific to {language}: its mask is empty" for language in empty
    ]
    assert empty
    assert "Subnetworks by lape" in out
    assert subnet("extract", small, *lape, "--overwrite", "--quiet") == (0, "", "")


def test_halves_are_two_runs_and_give_the_ceiling(small, subnet):
    code, out, _ = subnet("extract", small, "--method", "fisher", "--density", "0.1", "--halves")
    assert code == 0
    assert "half-1" in out
    found = read()
    assert sorted(found.runs) == ["half-1", "half-2"]
    overlap = measure_overlap(found)
    replicates = overlap.replicates
    assert set(replicates["run"]) == {"half-1|half-2"}
    one, other = found["de", "half-1"], found["de", "half-2"]
    of_de = replicates[(replicates["language_a"] == "de") & (replicates["level"] == "all")]
    of_de = of_de[of_de["measure"] == "jaccard"]
    assert of_de["value"].iloc[0] == (one & other).count / (one | other).count
    texts = record()["settings"]["masks"]
    assert texts["half-1"]["de"]["half"] == "1 of 2"
    assert texts["half-1"]["de"]["n_examples_used"] == 5
    assert subnet("analyze", "small-masks", "--quiet", "--permutations", "99")[0] == 0


def test_controls_are_no_run_and_no_ceiling(small, subnet):
    code, _, _ = subnet("extract", small, "--density", "0.1", "--random", "2")
    assert code == 0
    found = read()
    assert found.runs == ("main",)
    assert measure_overlap(found).replicates.empty
    for seed in (1, 2):
        for language in LANGUAGES:
            control = load_subnetwork(
                Path(f"small-masks/controls/random-{seed}/{language}.safetensors")
            )
            assert control == random_like(found[language], seed)
            assert control.counts == found[language].counts
            assert (control.method, control.seed) == ("random", seed)
    assert record()["settings"]["controls"] == [1, 2]
    assert subnet("analyze", "small-masks", "--quiet", "--permutations", "99")[0] == 0
    assert subnet("extract", small, "--method", "random", "--seed", "5", "--random", "1",
                  "--overwrite")[0] == 0  # fmt: skip
    assert [p.name for p in Path("small-masks/controls").iterdir()] == ["random-6"]


def test_controls_of_further_runs_stand_beside_their_masks(tmp_path):
    masks = Subnetworks(
        Subnetwork.from_arrays({"w": np.arange(20) < 7}, language="de", run=run, base="b")
        for run in ("main", "masks")
    )
    masks.save(tmp_path / "out")
    write_controls(masks, tmp_path / "out", [3])
    for run, folder in (("main", "out"), ("masks", "out/runs/masks")):
        control = load_subnetwork(tmp_path / folder / "controls/random-3/de.safetensors")
        assert control == random_like(masks["de", run], 3)


def test_two_methods_are_listed_with_every_setting(subnet):
    code, out, _ = subnet("extract", "--list-methods")
    assert code == 0
    for name, kind in METHODS.items():
        assert f"{name} (masks of {kind.granularity.split(' ')[0]}" in out
    assert "model=base n_examples=1024 batch_size=16 seed=0 density=0.01 activity_perc" in out


def test_help_names_every_method_and_loads_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['subnet', 'extract', {0!r}]\nimport subnet_cli\n"
        "try:\n    subnet_cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'pandas', 'scipy') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    for argument in ("--help", "--list-methods"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(argument)],
            capture_output=True, text=True, check=True, env={"COLUMNS": "100", "PATH": "/usr/bin"},
        )  # fmt: skip
        words = done.stdout.replace("\n", " ").replace(",", " ").replace(".", " ").split()
        assert set(METHODS) - {word.strip(":()") for word in words} == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "fischer"), "method is 'fischer'; expected 'magnitude' or 'fisher'"),
        (("--density", "0"), "density is 0.0; expected 0 < density <= 1"),
        (("--method", "wanda", "--scope", "layer"), "scope is 'layer'; expected 'global' or"),
        (("--method", "wanda", "--model", "both"), "model is 'both'; expected 'trained' or"),
        (("--examples", "5"), "n_examples is given for the method 'magnitude'; expected some of"),
        (("--set", "densitty=0.1"), "density, scope, parameters; did you mean density?"),
        (("--set", "parameters"), "--set is 'parameters'; expected NAME=VALUE"),
        (("--set", "=3"), "--set is '=3'; expected NAME=VALUE"),
        (("--density", "0.1", "--set", "density=0.2"), "density is given twice"),
        (("--set", "density=much"), "density is 'much'; expected a number"),
        (("--method", "fisher", "--set", "batch_size=2.5"),
         "batch_size is '2.5'; expected a whole number"),
        (("--method", "fisher", "--set", "labels=guess"), "labels is 'guess'"),
        (("--method", "lape", "--set", "activity_percentile=100"), "activity_percentile is 100"),
        (("--method", "head-pruning", "--set", "rescore=maybe"),
         "rescore is 'maybe'; expected true or false"),
        (("--halves",), "halves are asked for by the method 'magnitude', which looks at no data"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(small, subnet, arguments, message):
    code, out, err = subnet("extract", small, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("subnet: ")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["small"]


def test_settings_are_checked_before_the_checkpoint_is_opened(subnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = subnet("extract", "nowhere", "--set", "size=1")
    assert (code, "size is given for the method" in err) == (2, True)
    code, _, err = subnet("extract", "nowhere")
    assert (code, "nowhere" in err) == (2, True)


def test_missing_examples_are_one_line(small, subnet):
    (small / "train.jsonl").unlink()
    code, out, err = subnet("extract", small, "--method", "lape")
    assert (code, out) == (2, "")
    assert err.endswith(
        "/small: has no train.jsonl; expected examples to find a language's subnetwork by; "
        "put examples there, or give data=\n"
    )


def test_progress_is_told_language_by_language(original):
    told = []
    checkpoint = open_checkpoint(original)
    for method in ("fisher", "lape"):
        extract(
            checkpoint, method=method, density=0.3, progress=lambda *step: told.append(step),
            n_examples=2,
        )  # fmt: skip
    steps = [(language, done, 3) for done, language in enumerate(LANGUAGES)]
    assert told == [
        (f"{method}: {language}", done, n)
        for method in ("fisher", "lape")
        for language, done, n in steps
    ]


# The random method.


def test_random_masks_have_the_size_asked_for_and_nothing_in_common(original):
    checkpoint = open_checkpoint(original)
    magnitude = extract(checkpoint, density=0.2)
    by_module = extract(checkpoint, method="random", density=0.2)
    everywhere = extract(checkpoint, method="random", density=0.2, scope="global")
    for language in LANGUAGES:
        assert by_module[language].shapes == magnitude[language].shapes
        for name, size in by_module[language].sizes.items():
            assert by_module[language].counts[name] == round(0.2 * size)
        mask = everywhere[language]
        assert mask.count == round(0.2 * mask.size) == mask.settings["k"]
        assert mask.settings["scope"] == "global"
    assert extract(checkpoint, method="random", density=0.2) == by_module
    assert extract(checkpoint, method="random", density=0.2, seed=1)["de"] != by_module["de"]
    assert by_module["de"].seed == 0
    for found in (by_module, everywhere):
        pairs = measure_overlap(found).pairs("jaccard")
        # Independent masks of density q: q / (2 − q).
        np.testing.assert_allclose(pairs["value"], 0.2 / 1.8, atol=0.02)


def test_every_set_of_a_size_is_as_likely():
    """Counts over parameters follow the multivariate hypergeometric law."""
    sizes = {"a": 6, "b": 10, "c": 4}
    rng = np.random.default_rng(0)
    drawn = [share_out(5, sizes, rng) for _ in range(4000)]
    assert all(sum(counts.values()) == 5 for counts in drawn)
    for name, size in sizes.items():
        seen = np.bincount([counts[name] for counts in drawn], minlength=6)
        law = scipy.stats.hypergeom(20, size, 5).pmf(np.arange(len(seen)))
        kept = law * 4000 >= 5
        rest = 4000 - np.array([seen[kept].sum(), 4000 * law[kept].sum()])
        if rest[1] < 1e-6:
            test = scipy.stats.chisquare(seen[kept], 4000 * law[kept])
        else:
            test = scipy.stats.chisquare([*seen[kept], rest[0]], [*(4000 * law[kept]), rest[1]])
        assert test.pvalue > 1e-3, name
    assert share_out(20, sizes, rng) == sizes
    # Beyond what NumPy's own draw takes.
    huge = share_out(10**8, {"a": 3 * 10**9, "b": 10**9}, rng)
    assert sum(huge.values()) == 10**8
    assert abs(huge["a"] / 10**8 - 0.75) < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1e-6}, r"selects none of the \d+ weights of de"),
        ({"density": 2}, "density is 2"),
        ({"scope": "row"}, "scope is 'row'; expected 'global' or 'module'"),
        ({"seed": -1}, "seed is -1"),
        ({"data": []}, "data is given for the method 'random'"),
    ],
)
def test_random_masks_that_cannot_be_are_refused(original, settings, message):
    with pytest.raises(InputError, match=message):
        extract(open_checkpoint(original), method="random", **settings)


def test_random_masks_need_weights_to_be_masks_of(tmp_path):
    makers.save_base(tiny(), tmp_path / "base")
    with pytest.raises(MissingInputError, match="holds no update to extract a subnetwork from"):
        extract(open_checkpoint(tmp_path), method="random")
