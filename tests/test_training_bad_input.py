"""What a user gets wrong in `subnet train`: one line that names the file, and exit code 2."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from file_trainings import examples, write_examples, write_lines, write_model
from training_makers import digests

CONFIG = """
languages = ["de", "fr"]
[data]
source = "files"
path = "data"
max_length = 32
[model]
name = "model"
[base]
steps = 1
batch_size = 4
[adaptation]
rank = 2
[sequence]
orders = 1
[training]
steps = 1
batch_size = 4
"""
BASE = "[base]\nsteps = 1\nbatch_size = 4"
TAGGED = [
    {"id": f"{language}{i}", "language": language, "tokens": ["a", "b"], "tags": ["O", "B-x"]}
    for language in ("de", "fr")
    for i in range(3)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_model(folder / "model")
    write_model(folder / "headless", "BertForMaskedLM")
    return folder


@pytest.fixture
def project(models, tmp_path, monkeypatch):
    """A project in which all is right, with its working directory in it."""
    for name in ("model", "headless"):
        shutil.copytree(models / name, tmp_path / name)
    write_examples(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def says(subnet, project):
    """Train, and expect a refusal in one line that ends before anything is written."""

    def check(words, config=CONFIG):
        if isinstance(config, bytes):
            (project / "run.toml").write_bytes(config)
        elif config is not None:
            (project / "run.toml").write_text(config, encoding="utf-8")
        code, out, err = subnet("train", project / "run.toml", "--out", project / "out", "--quiet")
        line = err.strip().splitlines()[-1]
        assert re.search(words, line), line
        assert line.startswith("subnet: ")
        assert not re.search("Traceback|defect", err)
        assert (code, out) == (2, "")
        assert not (project / "out").exists()

    return check


def changed(before, after):
    assert before in CONFIG
    return CONFIG.replace(before, after)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("rank = 2", "rnk = 2", r"run.toml: unknown key 'adaptation.rnk'.*did you mean 'rank'"),
        ("languages", "langauges", r"unknown key 'langauges'.*did you mean 'languages'"),
        ('["de", "fr"]', '["de", "sw"]', r"train.jsonl: sw has no example to train on.*de, fr"),
        ("rank = 2", "rank = 99", r"run.toml: adaptation.rank is 99.*16 wide.*16 or less"),
        ("rank = 2", "rank = -1", r"run.toml: adaptation.rank is -1; expected greater than 0"),
        ("rank = 2", "rank = true", r"adaptation.rank is True; expected a whole number"),
        ("rank = 2", 'rank = "2"', r"adaptation.rank is '2'; expected a whole number"),
        ("rank = 2", "alpha_over_rank = 0", r"alpha_over_rank is 0; expected greater than 0"),
        ("rank = 2", "alpha_over_rank = nan", r"alpha_over_rank is nan.*finite"),
        ("orders = 1", 'orders = [["de", "fr", "de"]]', r"run.toml: an order.*'de' 2 times"),
        ("orders = 1", "orders = 3", r"run.toml: 2 languages have 2 orders, and 3 were asked"),
        ("orders = 1", "seeds = []", r"sequence.seeds is \[\]; expected a list of one or more"),
        ("orders = 1", "joint = 1", r"sequence.joint is 1; expected true or false"),
        ("orders = 1", 'orders = ["de", "fr"]', r"orders is \['de', 'fr'\].*a list of lists of"),
        ("orders = 1", "orders = 1.5", r"orders is 1.5; expected a number, or a list of lists"),
        ("orders = 1", "orders = true", r"orders is True; expected a number, or a list of lists"),
        ("orders = 1", "replicates = 1", r"sequence.replicates is 1; expected adapters = true"),
        ("orders = 1", "adapters = true\nreplicates = 9", r"run.toml: sequence.replicates is 9"),
        ("[base]\nsteps = 1", "[base]\nsteps = 0\nconflict_every = 2", r"conflict_every is 2"),
        ('["de", "fr"]', '["de", "fra", "fr"]', r"'fra' and 'fr', which are one language.*remove"),
        ('["de", "fr"]', '"de"', r"languages is 'de'; expected a list of codes, or 'default'"),
        ("[training]\nsteps = 1", "[training]\nsteps = 0", r"training.steps is 0.*--explain"),
        ("[training]", "[training]\nlearning_rate = inf", r"training.learning_rate is inf.*finite"),
        ("[training]", "[training]\nwarmup = 0.1", r"training.warmup is 0.1; expected schedule = "),
        ("[training]", "[training]\noptimizer = 'galore_adamw'", r"training.optimizer is 'galore_"),
        ("[base]", "[base]\noptimizer = 'lomo'", r"base.optimizer is 'lomo'.*install what it"),
        ("max_length", "test_share = 0.95\nmax_length", r"data.test_share is 0.95; expected test_"),
        ("[base]", "[subnetworks]\nmasks = 'm'\n[base]", r"subnetworks.masks is 'm'; expected mas"),
        ('name = "model"', "heads = 7", r"model.heads is 7; expected a width that is a mult"),
        ("[training]", "[training]\npasses = 3", r"training.batch_size is 4.*multiple of 3"),
        (BASE, "[base]\nsteps = 1\nmethod = 'meta'\nsupport = 9", r"de has 6 examples.*17 or more"),
        ('"data"', '"gone"', r"gone: there is no such folder of examples"),
        ('"model"', '"./gone"', r"gone: there is no such model folder"),
        ('"model"', '"data/train.jsonl"', r"train.jsonl: is a file; expected the folder"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be(says, before, after, words):
    says(words, changed(before, after))


@pytest.mark.parametrize("method", ["dynamic", "sparse"])
def test_a_density_that_selects_nothing(says, method):
    table = f"[subnetworks]\nmethod = '{method}'\ndensity = 1e-7\n"
    config = changed("rank = 2", "tuning = 'full'") + table
    says(r"run.toml: subnetworks.density is 1e-07, which selects none of \d+ weights", config)


@pytest.mark.parametrize("source", ["cldr", "files"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("q1", r"run.toml: 'q1' is no language code.*correct it, or leave it out"),
        ("got", r"CLDR has no words for 'got'.*those that \"all\" stands|got has no example to tr"),
    ],
)
def test_a_language_that_cannot_be_points_to_nothing_that_is_not_read(says, source, name, words):
    data = "" if source == "cldr" else 'source = "files"\npath = "data"\n'
    text = changed('"fr"', f'"{name}"').replace('source = "files"\npath = "data"\n', data)
    says(rf"^(?!.*(subnet\.toml|--languages)).*({words})", text)


def test_a_model_without_the_head_of_the_task(says):
    config = changed('"model"', '"headless"').replace("[base]\nsteps = 1", "[base]\nsteps = 0")
    says(r"run.toml: the model 'headless' has no classifier.*base.steps above 0", config)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("this is = not", r"run.toml: is not TOML \(.*line 1.*subnet train --explain"),
        (b"\xff\xfea = 1", r"run.toml: byte 0 is not UTF-8.*subnet train --explain"),
    ],
)
def test_a_configuration_that_cannot_be_read(says, content, words):
    says(words, content)


def test_a_directory_or_nothing_for_a_configuration(says, project):
    says(r"run.toml: is not there.*subnet train --explain", None)
    (project / "run.toml").mkdir()
    says(r"run.toml: cannot be read \(Is a directory\).*subnet train --explain", None)


def replaced(rows, **fields):
    return [{**rows[0], **fields}, *rows[1:]]


@pytest.mark.parametrize(
    ("part", "rows", "words"),
    [
        ("train", [], r"train.jsonl: has no examples; expected one JSON object per line"),
        ("test", [], r"test.jsonl: has no examples"),
        ("test", replaced(examples(), label="z"), r"test.jsonl: 1 of the.*label 'z', which none"),
        ("train", [{**row, "label": "x"} for row in examples()], r"train.jsonl: all.*label 'x'"),
        ("train", replaced(examples(), label=0.5), r"train.jsonl: example 'de0' has 0.5 as its la"),
        ("train", replaced(examples(), text=None), r"train.jsonl: example 'de0' has None as its t"),
        ("train", replaced(examples(), language=None), r"train.jsonl: example 'de0' has no 'langu"),
        (
            "train",
            replaced(examples(), language=7),
            r"train.jsonl: example 'de0' has 7 as its lang",
        ),
        ("test", replaced(examples(), id="de1"), r"test.jsonl: id 'de1' stands 2 times"),
        ("train", [*examples(), [1]], r"train.jsonl: line 13 is a JSON list; expected an object"),
    ],
)
def test_an_example_that_cannot_be(says, project, part, rows, words):
    write_lines(project / f"data/{part}.jsonl", rows)
    says(words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "grün"}\n'.encode("latin-1"), r"train.jsonl: byte 12 is not UTF-8"),
        (b'{"id": 1}\n{"id":\n', r"train.jsonl: line 2 is not JSON"),
    ],
)
def test_a_file_of_examples_that_cannot_be_read(says, project, content, words):
    (project / "data/train.jsonl").write_bytes(content)
    says(words)


@pytest.mark.parametrize(
    ("part", "fields", "words"),
    [
        ("test", {"tags": ["O", "B-z"]}, r"test.jsonl: the tag 'z' stands 1 times, and never in"),
        ("train", {"tags": ["O"]}, r"train.jsonl: example 'de0' has 2 tokens and 1 tags"),
        ("train", {"tokens": ["a", 1]}, r"train.jsonl: example 'de0' has 1 among its tokens"),
        ("train", {"tags": ["O", None]}, r"train.jsonl: example 'de0' has None among its tags"),
    ],
)
def test_tags_that_cannot_be(says, project, part, fields, words):
    for name in ("train", "test"):
        write_lines(
            project / f"data/{name}.jsonl", replaced(TAGGED, **fields) if name == part else TAGGED
        )
    says(words, 'task = "token-classification"\n' + CONFIG)


def test_a_rare_tag_inside_a_known_span_is_no_mistake(project):
    from subnet.training._example_checks import check_examples

    tested = replaced(TAGGED, tags=["B-x", "I-x"])
    check_examples({"train": TAGGED, "validation": [], "test": tested}, ["de", "fr"],
                   "token-classification", project)  # fmt: skip


def pair(direction, i):
    return {"id": f"{direction}{i}", "language": direction, "source": f"a {i}", "target": f"b {i}"}


@pytest.mark.parametrize(
    ("languages", "also", "words"),
    [
        ('["de>en", "en>fr"]', "[]", r"data: has no row of en>fr to train.*de>en"),
        ('["de>en"]', '["en>de"]', r"data: has no row of en>de to test"),
        ('["de>en"]', '["de>en"]', r"run.toml: translation.also_tested has 'de>en', which langu"),
        ('["de"]', "[]", r"run.toml: 'de' is no direction.*source>target"),
    ],
)
def test_a_direction_that_is_not_there(says, project, languages, also, words):
    for part in ("train", "test"):
        write_lines(project / f"data/{part}.jsonl", [pair("de>en", i) for i in range(4)])
    config = changed('["de", "fr"]', languages).replace('"model"', '""')
    says(words, f'task = "translation"\n{config}\n[translation]\nalso_tested = {also}\n')


def test_a_direction_that_is_only_tested_needs_no_rows_to_train_on(project):
    from subnet.training.translation_data import read_translations

    write_lines(project / "data/train.jsonl", [pair("de>en", 0)])
    write_lines(project / "data/test.jsonl", [pair("de>en", 1), pair("en>fr", 1)])
    found = read_translations(
        project / "data", directions=("de>en", "en>fr"), tested_only=("en>fr",)
    )
    assert [row["language"] for row in found.test] == ["de>en", "en>fr"]
    assert [row["train_examples"] for row in found.report] == [1, 0]


def test_weights_that_are_no_numbers(says, project):
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(project / "model")
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, :2] = torch.tensor([torch.nan, torch.inf])
    model.save_pretrained(project / "model")
    says(r"model: the tensor bert.pooler.dense.weight holds 2 values that are NaN or inf.*earlier")


def test_a_model_without_its_tokenizer(says, project):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (project / "model" / name).unlink()
    says(r"model: has no tokenizer.*expected tokenizer.json.*copy it")


def test_a_tokenizer_of_another_model(says, project):
    config = json.loads((project / "model/config.json").read_text())
    model = write_small(project / "model", config["vocab_size"] - 9)
    assert model.config.vocab_size == 250
    says(r"model: its tokenizer has 259 tokens and its model embeds 250")


def write_small(folder, size):
    import transformers

    config = transformers.BertConfig.from_pretrained(folder, vocab_size=size)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "[]", r"model/config.json: holds no object"),
        ("config.json", "{", r"model/config.json: is not JSON"),
        ("tokenizer.json", "{", r"model/tokenizer.json: is not JSON"),
    ],
)
def test_a_model_folder_that_is_damaged(says, project, file, content, words):
    (project / "model" / file).write_text(content)
    says(words)


@pytest.mark.slow
def test_a_file_system_that_takes_no_more_is_one_line(project):
    """By the system's own limit, which libraries that write without Python meet as well."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    (project / "run.toml").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "subnet_cli", "train", "run.toml", "--quiet", "--out"]
    said = subprocess.run(
        [*command, "run"], preexec_fn=limit, timeout=300, capture_output=True, text=True
    )
    assert said.returncode == 2
    assert re.search(r"^subnet: \S+: cannot be written \(.*too large.*free some space", said.stderr)
    for name in ("run", "whole"):
        subprocess.run([*command, name], check=True, timeout=300)
    assert digests(project / "run") == digests(project / "whole")
