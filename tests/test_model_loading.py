"""Models as training left them: the same outputs as the model that was saved."""

import json
import shutil
import warnings

import peft
import pytest
import torch
import transformers

from checkpoint_makers import (
    bert,
    gpt2,
    lora,
    m2m,
    move,
    mt5,
    quiet,
    qwen3,
    save_adapter,
    save_base,
    write_lora_directory,
    write_stages,
)
from subnet.checkpoint import open_checkpoint
from subnet.errors import FileFormatError, InputError, MissingInputError, UnsafeFileError
from subnet.model import find_units, load_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def logits(model, **inputs):
    with torch.no_grad():
        return model(input_ids=IDS, **inputs).logits


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("load") / "experiment"
    write_lora_directory(root, ("de", "fr"))
    write_stages(root, ("de", "fr"))
    save_adapter(lora(bert(), 9), root / "runs" / "second" / "adapters" / "de")
    return root


def test_a_languages_adapter_is_on_its_base(directory):
    for language, seed in (("de", 1), ("fr", 2)):
        model = load_model(directory, language=language)
        assert torch.equal(logits(model), logits(lora(bert(), seed)))
        assert not any(module.training for module in model.modules())
    again = load_model(open_checkpoint(directory), language="de")
    assert torch.equal(logits(again), logits(lora(bert(), 1)))


def test_a_stages_adapter_is_the_one_after_that_stage(directory):
    model = lora(bert(), 1)
    move(model, 101)
    assert torch.equal(logits(load_model(directory, stage=1)), logits(model))
    move(model, 102)
    assert torch.equal(logits(load_model(directory, stage=2)), logits(model))
    assert torch.equal(logits(load_model(directory, stage=0)), logits(bert()))


def test_without_a_request_it_is_the_base(directory):
    model = load_model(directory)
    assert type(model) is transformers.BertForSequenceClassification
    assert torch.equal(logits(model), logits(bert()))
    assert torch.equal(logits(load_model(directory / "base")), logits(bert()))


def test_folders_of_their_own_and_other_runs(directory):
    expected = logits(lora(bert(), 2))
    adapter = directory / "adapters" / "fr"
    assert torch.equal(logits(load_model(adapter)), expected)
    assert torch.equal(logits(load_model(directory, adapter=adapter)), expected)
    assert torch.equal(logits(load_model(directory / "base", adapter=adapter)), expected)
    other = load_model(directory, language="de", run="second")
    assert torch.equal(logits(other), logits(lora(bert(), 9)))


def test_merged_it_has_the_bases_class_and_the_adapters_outputs(directory):
    model = load_model(directory, language="de", merge=True)
    assert type(model) is transformers.BertForSequenceClassification
    torch.testing.assert_close(logits(model), logits(lora(bert(), 1)))
    assert find_units(model) == find_units(load_model(directory, language="de"))


@pytest.mark.parametrize("build", [qwen3, mt5, m2m, gpt2])
def test_the_class_is_the_one_that_the_weights_were_saved_from(tmp_path, build):
    model = build()
    model.config.pad_token_id = None if build is gpt2 else model.config.pad_token_id
    save_base(model, tmp_path / "model", max_shard_size="4KB")
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is type(model)
    more = {"labels": IDS} if model.config.is_encoder_decoder else {}
    assert torch.equal(logits(loaded, **more), logits(model, **more))


def test_the_type_is_the_one_asked_for(directory):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = load_model(directory, language="de", dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_whole_fine_tuned_models_are_loaded(tmp_path):
    save_base(bert(), tmp_path / "base")
    tuned = bert()
    move(tuned, 5)
    save_base(tuned, tmp_path / "weights" / "sw")
    assert torch.equal(logits(load_model(tmp_path, language="sw")), logits(tuned))


def encoder(seed=0):
    """A base without a task's head, as it comes from a hub."""
    config = bert().config
    torch.manual_seed(seed)
    return transformers.BertModel(config)


@pytest.mark.parametrize("named_by", ["task in subnet.toml", "task_type of the adapter"])
def test_a_head_that_the_adapter_brings_is_put_on_a_base_without_one(tmp_path, named_by):
    base = encoder()
    save_base(base, tmp_path / "base")
    torch.manual_seed(1)
    config = transformers.BertConfig(**{**base.config.to_dict(), "num_labels": 5})
    model = transformers.BertForSequenceClassification(config)
    model.bert.load_state_dict(base.state_dict())
    settings = {"modules_to_save": ["classifier"]}
    if named_by == "task in subnet.toml":
        (tmp_path / "subnet.toml").write_text('task = "sequence-classification"\n')
    else:
        settings["task_type"] = "SEQ_CLS"
    tuned = lora(model, 3, **settings).eval()
    save_adapter(tuned, tmp_path / "adapters" / "de")
    loaded = load_model(tmp_path, language="de")
    assert torch.equal(logits(loaded), logits(tuned))
    assert logits(loaded).shape == (2, 5)


def test_embeddings_that_were_saved_with_the_adapter_count(tmp_path):
    save_base(bert(), tmp_path / "base")
    tuned = lora(bert(), 1, target_modules=["query", "word_embeddings"])
    with torch.no_grad():
        tuned.get_base_model().bert.embeddings.word_embeddings.base_layer.weight.add_(0.5)
    with quiet():
        tuned.save_pretrained(tmp_path / "adapters" / "de", save_embedding_layers=True)
    assert torch.equal(logits(load_model(tmp_path, language="de")), logits(tuned.eval()))


def test_loading_says_nothing_and_draws_no_random_number(directory, capfd):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        load_model(directory, language="de")
    assert torch.equal(torch.rand(3), expected)
    assert not heard
    assert capfd.readouterr() == ("", "")


def refused(match, kind, *arguments, **settings):
    with pytest.raises(kind, match=match) as error:
        load_model(*arguments, **settings)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named(directory):
    refused("no adapter and no fine-tuned weights of 'pt'; expected de or fr", MissingInputError,
            directory, language="pt")  # fmt: skip
    refused("has no weights of stage 7; expected one of the stages 1, 2", MissingInputError,
            directory, stage=7)  # fmt: skip
    refused("has no run 'third'; expected main or second", MissingInputError,
            directory, language="de", run="third")  # fmt: skip
    refused("has no adapter_config.json", MissingInputError,
            directory, adapter=directory / "base")  # fmt: skip
    refused("language and stage were given together", InputError, directory, language="de", stage=1)


@pytest.fixture
def copied(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "copy")
    return tmp_path / "copy"


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def test_a_head_that_would_be_random_is_refused(copied, tmp_path):
    base = copied / "base"
    shutil.rmtree(base)
    save_base(encoder(), base)
    (copied / "subnet.toml").write_text('task = "sequence-classification"\n')
    refused("base: has no classifier.bias, which would be random", FileFormatError, copied)


def test_an_adapter_of_another_base_is_refused(copied):
    other = save_adapter(lora(qwen3(), 1, target_modules=["q_proj"]), copied / "other")
    refused("does not fit the base", FileFormatError, copied, adapter=other)
    shutil.rmtree(copied / "base")
    small = transformers.BertConfig(**{**bert().config.to_dict(), "num_hidden_layers": 1})
    save_base(transformers.BertForSequenceClassification(small), copied / "base")
    refused("holds base_model.model.bert.encoder.layer.1.* has no place in the base",
            FileFormatError, copied, language="de")  # fmt: skip


def test_an_adapter_that_lacks_factors_is_refused(copied):
    from safetensors.torch import load_file, save_file

    path = copied / "adapters" / "de" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors = {name: t for name, t in tensors.items() if "layer.1" not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    refused("has no .*layer.1.*, which would be random", FileFormatError, copied, language="de")


def test_pickles_and_code_of_the_models_own_are_refused(copied):
    base = copied / "base"
    edit(base / "config.json", auto_map={"AutoModel": "modeling.Mine"})
    refused("names code of its own", UnsafeFileError, base)
    edit(base / "config.json", auto_map={})
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    refused("is a pickle", UnsafeFileError, base)


def test_a_base_that_is_only_known_by_name_is_not_downloaded(tmp_path):
    adapter = save_adapter(lora(bert(), 1, base="nobody/no-such-model"), tmp_path / "de")
    with quiet():
        refused("the base 'nobody/no-such-model' is neither in the directory nor in the local",
                MissingInputError, adapter)  # fmt: skip


def test_an_architecture_unknown_to_transformers_is_named(copied):
    edit(copied / "base" / "config.json", architectures=["MyBert"])
    refused("the architecture MyBert is not known to transformers", InputError, copied)
    (copied / "base" / "config.json").unlink()
    refused("has no config.json", MissingInputError, copied)


def test_several_adapters_in_one_file_are_refused(tmp_path):
    model = lora(bert(), 1)
    config = peft.LoraConfig(r=4, target_modules=["query", "value"])
    with quiet():
        model.add_adapter("fr", config)
    from safetensors.torch import save_file

    folder = tmp_path / "adapters"
    save_base(bert(), tmp_path / "base")
    save_adapter(model, tmp_path / "scratch", selected_adapters=["default"])
    shutil.copytree(tmp_path / "scratch", folder / "de")
    tensors = {
        name.replace(".default.", ".fr.") if part == "fr" else name.replace(".default.", ".de."):
        tensor.detach().clone().contiguous()
        for part in ("fr", "de")
        for name, tensor in model.state_dict().items() if "lora_" in name and ".default." in name
    }  # fmt: skip
    save_file(tensors, folder / "de" / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(tmp_path / "scratch")
    refused(
        "holds several adapters in one file, fr among them", InputError, tmp_path, language="fr"
    )
