"""What a directory holds, what is skipped and why, and which file each analysis wants."""

import json

import pytest

import checkpoint_makers as makers
from subnet.checkpoint import open_checkpoint
from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    UnknownLanguageError,
    UnsafeFileError,
)

ORDER = ("de", "fr", "sw", "ru", "ja")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A directory with every part of the documented layout."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("complete") / "checkpoint"
    makers.write_lora_directory(root, ORDER)
    makers.write_stages(root, ORDER)
    makers.write_scores(root / "scores.csv", ORDER)
    makers.write_items(root / "items.csv", ORDER)
    makers.save_adapter(
        makers.lora(makers.bert(), 99), root / "runs" / "replicate" / "adapters" / "de"
    )
    (root / "masks").mkdir()
    import torch

    save_file({"w": torch.zeros(2, dtype=torch.uint8)}, root / "masks" / "de.safetensors")
    (root / "languages.csv").write_text(
        "language,family,speakers\nde,Indo-European,90\nsw,Atlantic-Congo,\n"
    )
    rows = [{"id": "1", "language": "de", "text": "a", "label": 0}]
    makers.write_json_lines(root / "train.jsonl", rows)
    makers.write_json_lines(root / "test.jsonl", rows)
    (root / "subnet.toml").write_text(
        'format = 1\ntask = "kinds"\n[scores.accuracy]\nchance = 0.25\n'
        + "".join(
            f'[stages."{number:02d}-{label}"]\nlearning_rate = 0.01\nsteps = 4\n'
            for number, label in enumerate(ORDER, start=1)
        )
    )
    (root / "README.md").write_text("what this is")
    return root


def test_every_part_of_the_layout_is_recognised(complete):
    found = open_checkpoint(complete)
    kinds = [entry.kind for entry in found.entries]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "adapter": 6, "base": 1, "items": 1, "languages_table": 1, "mask": 1, "scores": 1,
        "settings": 1, "stage": 5, "test_examples": 1, "train_examples": 1,
    }  # fmt: skip
    assert found.skipped == ()
    assert found.name == "checkpoint"
    assert [language.label for language in found.languages] == sorted(ORDER)
    assert all(capability.possible for capability in found.capabilities)
    assert found.families == {"de": "Indo-European", "sw": "Atlantic-Congo"}
    assert found.language_table["de"] == {"family": "Indo-European", "speakers": "90"}
    assert next(found.examples("train"))["text"] == "a"
    assert found.scores.metrics["accuracy"].chance == 0.25
    assert {entry.recognised_as for entry in found.entries if entry.kind == "adapter"} == {
        "PEFT adapter (LoRA, rank 4, 4 modules)"
    }


def test_examples_carry_the_label_that_the_tables_carry(tmp_path):
    makers.write_lora_directory(tmp_path, ("zh_Hans",))
    rows = [{"id": i, "language": code} for i, code in enumerate(("zh-CN", "cmn", "zh_Hans"))]
    makers.write_json_lines(tmp_path / "test.jsonl", rows)
    found = open_checkpoint(tmp_path)
    assert found.holds("test_examples")
    assert not found.holds("train_examples")
    assert [example["language"] for example in found.examples("test")] == ["zh_Hans"] * 3
    with pytest.raises(MissingInputError, match=r"has no train\.jsonl"):
        found.examples("train")
    makers.write_json_lines(tmp_path / "test.jsonl", [*rows, {"id": 4, "language": "klingonish"}])
    with pytest.raises(UnknownLanguageError, match=r"test\.jsonl: 'klingonish'"):
        list(open_checkpoint(tmp_path).examples("test"))


def test_the_inventory_is_the_same_twice_and_holds_no_absolute_path(complete):
    first, second = (json.dumps(open_checkpoint(complete).to_dict()) for _ in range(2))
    assert first == second
    assert str(complete) not in first


def test_files_read_are_all_there_and_leave_out_what_no_analysis_reads(complete):
    files = open_checkpoint(complete).read_files()
    names = {path.relative_to(complete).as_posix() for path in files}
    assert all(path.is_file() for path in files)
    assert {
        "scores.csv",
        "items.csv",
        "subnet.toml",
        "adapters/de/adapter_model.safetensors",
        "runs/replicate/adapters/de/adapter_config.json",
        "masks/de.safetensors",
    } <= names
    assert "README.md" not in names
    assert "base/model.safetensors" not in names  # a plain LoRA is read without its base


def test_files_read_contain_the_base_where_updates_are_differences_to_it(tmp_path):
    makers.save_base(makers.bert(), tmp_path / "base")
    makers.save_base(makers.bert(1), tmp_path / "adapters" / "de")
    names = {
        path.relative_to(tmp_path).as_posix() for path in open_checkpoint(tmp_path).read_files()
    }
    assert names == {"base/model.safetensors", "adapters/de/model.safetensors"}


def wanted(root):
    return {c.name: c.missing for c in open_checkpoint(root).capabilities if not c.possible}


def test_each_analysis_that_is_not_possible_names_the_file_that_it_wants(tmp_path):
    makers.write_lora_directory(tmp_path, ("de",))
    missing = wanted(tmp_path)
    assert missing["overlap"] == ("adapters/<language>/ for at least two languages",)
    assert missing["forgetting"] == ("scores.csv with at least two stages",)
    assert set(missing["relation"]) == {*missing["overlap"], *missing["forgetting"]}


def test_influence_wants_model_examples_checkpoints_and_their_rates(tmp_path):
    makers.write_stages(tmp_path, ("de", "fr"))
    rated = 'learning_rate and steps in [stages."{}"] of subnet.toml, or Trainer\'s log'
    files = ("base/ with the model", "train.jsonl", "test.jsonl")
    assert wanted(tmp_path)["influence"] == (*files, rated.format("01-de"))
    makers.save_base(makers.bert(), tmp_path / "base")
    for split in ("train", "test"):
        makers.write_json_lines(tmp_path / f"{split}.jsonl", [{"language": "de", "text": "a"}])
    settings = tmp_path / "subnet.toml"
    settings.write_text('[stages."01-de"]\nlearning_rate = 0.1\nsteps = 2\n')
    assert wanted(tmp_path)["influence"] == (rated.format("02-fr"),)
    with settings.open("a") as file:
        file.write('[stages."02-fr"]\nlearning_rate = 0.1\nsteps = 2\n')
    assert "influence" not in wanted(tmp_path)


def test_influence_at_adapters_has_to_be_told_their_rates(tmp_path):
    makers.write_lora_directory(tmp_path, ("de", "fr"))
    for split in ("train", "test"):
        makers.write_json_lines(tmp_path / f"{split}.jsonl", [{"language": "de", "text": "a"}])
    found = next(c for c in open_checkpoint(tmp_path).capabilities if c.name == "influence")
    assert found.possible
    assert "--learning-rate" in found.missing[0]


def test_scores_of_one_stage_show_no_forgetting(tmp_path):
    (tmp_path / "scores.csv").write_text("stage,language,metric,value\n0,de,loss,1\n")
    assert "forgetting" in wanted(tmp_path)
    (tmp_path / "scores.csv").write_text("stage,language,metric,value\n0,de,loss,1\n1,de,loss,1\n")
    assert "forgetting" not in wanted(tmp_path)


def test_few_languages_are_said_to_be_too_few_for_a_test(tmp_path):
    makers.write_lora_directory(tmp_path, ("de", "fr"))
    makers.write_stages(tmp_path, ("de", "fr"))
    makers.write_scores(tmp_path / "scores.csv", ("de", "fr"))
    relation = next(c for c in open_checkpoint(tmp_path).capabilities if c.name == "relation")
    assert relation.possible
    assert relation.missing == ("for a test at least 5 languages, here 2",)


def test_ordinary_words_are_no_languages_unless_declared(tmp_path):
    makers.write_lora_directory(tmp_path, ("de", "all"))
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["de"]
    assert "'all' is not taken for a language" in found.skipped[0].reason
    (tmp_path / "subnet.toml").write_text('[languages.all]\ntag = "en"')
    assert [update.language.tag for update in open_checkpoint(tmp_path).updates] == ["en", "de"]


def test_a_translation_direction_stands_where_a_language_stands(tmp_path):
    makers.write_lora_directory(tmp_path, ("de>en", "en>de"))
    assert [str(update.language) for update in open_checkpoint(tmp_path).updates] == [
        "de>en",
        "en>de",
    ]


def test_what_is_not_recognised_is_listed(tmp_path):
    makers.write_lora_directory(tmp_path, ("de",))
    (tmp_path / "notes.csv").write_text("when,what\n1,2\n")
    (tmp_path / "extra").mkdir()
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "adapters" / "fr").mkdir()
    (tmp_path / "stages" / "late").mkdir(parents=True)
    skipped = {entry.path.name: entry.reason for entry in open_checkpoint(tmp_path).skipped}
    assert skipped == {
        "notes.csv": "has the columns when, what",
        "extra": "is not recognised",
        "fr": "holds no adapter and no model",
        "late": "is no stage",
    }


def test_the_base_may_be_stage_zero(tmp_path):
    makers.save_base(makers.bert(), tmp_path / "stages" / "00-base")
    makers.write_stages(tmp_path, ("de",))
    makers.save_base(makers.bert(1), tmp_path / "adapters" / "fr")
    found = open_checkpoint(tmp_path)
    assert len(found.updates) == len(found.steps) == 1


def test_the_base_may_be_named_in_the_settings(tmp_path):
    makers.write_lora_directory(tmp_path, ("de",), use_dora=True)
    (tmp_path / "base").rename(tmp_path / "model0")
    with pytest.raises(MissingInputError, match="DoRA rescales the base's weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "subnet.toml").write_text('base = "model0"')
    assert len(open_checkpoint(tmp_path).updates) == 1


def test_a_moved_directory_still_knows_its_base(tmp_path):
    makers.write_lora_directory(tmp_path, ("de",), base="/home/somebody/checkpoint/base")
    makers.save_adapter(makers.lora(makers.bert(), 7), tmp_path / "adapters" / "fr")
    german, french = open_checkpoint(tmp_path).updates
    assert german.base == french.base


def test_several_directories_are_runs_named_apart(tmp_path):
    for run in ("one", "two"):
        makers.write_lora_directory(tmp_path / run / "checkpoint", ("de",))
    found = open_checkpoint(
        [tmp_path / "one" / "checkpoint", tmp_path / "two" / "checkpoint"], name="both"
    )
    assert found.runs == ("one", "two")
    assert found.name == "both"
    assert len(found.updates) == 2
    with pytest.raises(InputError, match="the same directory was given twice"):
        open_checkpoint([tmp_path / "one", tmp_path / "one"])


def test_files_of_several_directories_are_told_apart_by_their_run(tmp_path):
    for run in ("one", "two", "three"):
        makers.write_lora_directory(tmp_path / run / "checkpoint", ("de", "fr"))
    found = open_checkpoint([tmp_path / run / "checkpoint" for run in ("one", "two", "three")])
    places = [found.relative(path) for path in found.read_files()]
    assert len(set(places)) == len(places)
    assert "three/adapters/de/adapter_config.json" in places
    assert found.name == "one+two+three"


def test_directories_that_no_single_parent_tells_apart_keep_their_whole_path(tmp_path):
    paths = [tmp_path / a / b / "checkpoint" for a in "xy" for b in "xy"]
    for path in paths:
        makers.write_lora_directory(path, ("de",), with_base=False)
    runs = open_checkpoint(paths).runs
    assert len(set(runs)) == 4
    assert not any("/" in run for run in runs)


@pytest.mark.parametrize("inner", ["fr", "final", "checkpoint-500/best"])
def test_weights_one_folder_down_are_the_languages(tmp_path, inner):
    """PEFT writes an adapter that has a name into a folder of that name."""
    makers.write_lora_directory(tmp_path, ("de",))
    makers.save_adapter(makers.lora(makers.bert(), 2), tmp_path / "adapters" / "fr" / inner)
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["de", "fr"]
    assert not found.skipped


def test_of_two_folders_one_down_none_is_chosen(tmp_path):
    makers.write_lora_directory(tmp_path, ("de",))
    for inner in ("best", "last"):
        makers.save_adapter(makers.lora(makers.bert(), 2), tmp_path / "adapters" / "fr" / inner)
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["de"]
    assert [skipped.reason for skipped in found.skipped] == ["holds no adapter and no model"]


def test_a_model_that_is_no_languages_may_be_a_pickle(tmp_path):
    makers.save_adapter(makers.lora(makers.bert(), 1), tmp_path / "de")
    (tmp_path / "old_model").mkdir()
    (tmp_path / "old_model" / "pytorch_model.bin").write_bytes(b"")
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["de"]
    assert [skipped.path.name for skipped in found.skipped] == ["old_model"]


def test_languages_of_different_runs_make_no_pair(tmp_path):
    for run, language in (("one", "de"), ("two", "fr")):
        makers.write_lora_directory(tmp_path / "runs" / run, (language,))
    assert not open_checkpoint(tmp_path).can("overlap")


def test_a_described_metric_that_nobody_measured_is_named(tmp_path):
    makers.write_scores(tmp_path / "scores.csv", ORDER)
    (tmp_path / "subnet.toml").write_text("[scores.acuracy]\nrange = [0, 100]\n")
    (skipped,) = open_checkpoint(tmp_path).skipped
    assert skipped.reason == "describes the metric 'acuracy', of which there are no scores"
    assert skipped.fix == "measured are accuracy, loss"


@pytest.mark.parametrize("name", ["00_base", "0-base", "000-start"])
def test_the_stage_before_training_is_the_base_however_it_is_written(tmp_path, name):
    makers.write_stages(tmp_path, ("de", "fr"))
    makers.save_base(makers.bert(), tmp_path / "stages" / name)
    found = open_checkpoint(tmp_path)
    assert [entry.path.name for entry in found.entries if entry.kind == "base"] == [name]


class TestBadInput:
    """Each is one line that names the place, what was found and what to do."""

    def refuse(self, path, error, *parts):
        with pytest.raises(error) as caught:
            open_checkpoint(path)
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message
        return message

    def test_no_such_directory(self, tmp_path):
        self.refuse(tmp_path / "nowhere", MissingInputError, "nowhere: there is no such directory")

    def test_a_file(self, tmp_path):
        (tmp_path / "scores.csv").write_text("")
        self.refuse(tmp_path / "scores.csv", InputError, "is a file", "expected the directory")

    def test_an_empty_directory(self, tmp_path):
        self.refuse(tmp_path, MissingInputError, "is empty; expected adapters/<language>/")

    def test_a_directory_of_other_things(self, tmp_path):
        (tmp_path / "photo.png").write_bytes(b"x")
        self.refuse(tmp_path, MissingInputError, "holds nothing that is recognised")

    def test_only_things_that_cannot_be_used(self, tmp_path):
        makers.save_base(makers.bert(), tmp_path / "adapters" / "de")
        self.refuse(tmp_path, MissingInputError, "holds nothing that an analysis can use",
                    "put the base model's folder into the directory as base/")  # fmt: skip

    def test_a_part_of_a_checkpoint(self, tmp_path):
        (tmp_path / "masks").mkdir()
        (tmp_path / "masks/de.safetensors").write_bytes(b"x")
        self.refuse(tmp_path / "masks", MissingInputError, "masks: holds nothing that an analysis",
                    f"expected the directory that it lies in; try {tmp_path}")  # fmt: skip

    @pytest.mark.parametrize("keep", [4, 100, -3])
    def test_truncated_adapters(self, tmp_path, keep):
        makers.write_lora_directory(tmp_path, ("de",))
        path = tmp_path / "adapters" / "de" / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        self.refuse(tmp_path, FileFormatError, "adapter_model.safetensors", "truncated", "again")

    def test_a_corrupt_header(self, tmp_path):
        makers.write_lora_directory(tmp_path, ("de",))
        path = tmp_path / "adapters" / "de" / "adapter_model.safetensors"
        content = bytearray(path.read_bytes())
        content[8:12] = b"oops"
        path.write_bytes(content)
        self.refuse(tmp_path, FileFormatError, "has a damaged header")

    def test_a_truncated_shard(self, tmp_path):
        makers.save_base(makers.bert(), tmp_path / "base", max_shard_size="4KB")
        path = sorted((tmp_path / "base").glob("*.safetensors"))[1]
        path.write_bytes(path.read_bytes()[:-7])
        self.refuse(tmp_path, FileFormatError, path.name, "truncated")

    def test_a_missing_shard(self, tmp_path):
        makers.save_base(makers.bert(), tmp_path / "base", max_shard_size="4KB")
        path = sorted((tmp_path / "base").glob("*.safetensors"))[1]
        path.unlink()
        self.refuse(tmp_path, MissingInputError, f"lists the shard {path.name}, which is not there")

    def test_a_shard_outside_the_folder(self, tmp_path):
        makers.save_base(makers.bert(), tmp_path / "base", max_shard_size="4KB")
        index = tmp_path / "base" / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"] = dict.fromkeys(content["weight_map"], "../../elsewhere.safetensors")
        index.write_text(json.dumps(content))
        self.refuse(tmp_path, InputError, "leaves the directory")

    @pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin"])
    def test_a_pickle_where_safetensors_belongs(self, tmp_path, name):
        import torch

        makers.write_lora_directory(tmp_path, ("de", "fr"))
        folder = tmp_path / "adapters" / "de"
        (folder / "adapter_model.safetensors").unlink()
        if name == "pytorch_model.bin":
            (folder / "adapter_config.json").unlink()
        torch.save({"w": torch.zeros(1)}, folder / name)
        self.refuse(
            tmp_path,
            UnsafeFileError,
            name,
            "is a pickle",
            "expected safetensors",
            "save_pretrained",
        )

    def test_a_pickle_named_safetensors(self, tmp_path):
        import pickle

        makers.write_lora_directory(tmp_path, ("de",))
        path = tmp_path / "adapters" / "de" / "adapter_model.safetensors"
        path.write_bytes(pickle.dumps({"w": [1.0] * 100}))
        self.refuse(tmp_path, UnsafeFileError, "is a pickle")

    def test_weights_that_are_missing(self, tmp_path):
        makers.write_lora_directory(tmp_path, ("de",))
        (tmp_path / "adapters" / "de" / "adapter_model.safetensors").unlink()
        self.refuse(tmp_path, MissingInputError, "has adapter_config.json but no adapter_model")

    def test_half_of_a_lora(self, tmp_path):
        from safetensors.torch import load_file, save_file

        makers.write_lora_directory(tmp_path, ("de",))
        path = tmp_path / "adapters" / "de" / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors.pop("base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight")
        save_file(tensors, path)
        self.refuse(tmp_path, FileFormatError, "layer.0.attention.self.query has only factor B")

    def test_an_unknown_language_code(self, tmp_path):
        makers.write_lora_directory(tmp_path, ("de", "germanish"))
        self.refuse(tmp_path, UnknownLanguageError, "'germanish' is no language code",
                    '[languages."germanish"] tag')  # fmt: skip

    def test_an_unknown_language_of_a_stage(self, tmp_path):
        makers.write_stages(tmp_path, ("de", "germanish"))
        self.refuse(tmp_path, UnknownLanguageError, "02-germanish: 'germanish' is no language code")

    def test_duplicate_languages(self, tmp_path):
        makers.write_lora_directory(tmp_path, ("de", "deu"))
        self.refuse(tmp_path, UnknownLanguageError, "'de' and 'deu' are the same language (de)")

    def test_settings_that_are_not_toml(self, tmp_path):
        (tmp_path / "subnet.toml").write_text("order = [")
        self.refuse(tmp_path, FileFormatError, "subnet.toml: is not TOML")

    def test_examples_that_are_not_json(self, tmp_path):
        makers.write_lora_directory(tmp_path, ("de",))
        (tmp_path / "train.jsonl").write_text("{'id': 1}\n")
        self.refuse(tmp_path, FileFormatError, "train.jsonl: line 1 is not JSON")

    def test_an_adapter_configuration_that_is_not_json(self, tmp_path):
        makers.write_lora_directory(tmp_path, ("de",))
        (tmp_path / "adapters" / "de" / "adapter_config.json").write_text("{")
        self.refuse(tmp_path, FileFormatError, "adapter_config.json: is not JSON")

    def test_nothing_at_all_was_given(self):
        self.refuse([], InputError, "no directory was given")

    def test_weights_that_lie_too_deep(self, tmp_path):
        for language in ("de", "fr"):
            makers.save_adapter(makers.lora(makers.bert(), 1), tmp_path / "lora" / language)
        self.refuse(tmp_path, MissingInputError, "lora/de holds weights", "give lora/ itself")

    def test_what_the_system_forbids(self, tmp_path, monkeypatch):
        makers.write_lora_directory(tmp_path, ("de",))
        is_file = type(tmp_path).is_file

        def forbidden(path):
            if "adapters" in path.parts:
                raise PermissionError(13, "Permission denied", str(path))
            return is_file(path)

        monkeypatch.setattr(type(tmp_path), "is_file", forbidden)
        self.refuse(tmp_path, InputError, "adapters/de", "cannot be read (Permission denied)")
