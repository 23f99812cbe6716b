"""Hidden states, one row per sentence or word: what the model gives, and nothing of padding."""

import gc
import math

import numpy as np
import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model

import checkpoint_makers
import model_makers as makers
import validation_makers
from subnet.checkpoint import open_checkpoint
from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    NotComparableError,
    OutputError,
)
from subnet.model import find_units, load_model
from subnet.subnetwork import Subnetwork, extract, selected_units
from subnet.training.tokenizer import build_tokenizer
from subnet_probes import Representations, _storage, representations
from subnet_probes._words import align, find_words, read_text

LENGTHS = (6, 3, 4, 7, 2)
TWO_STACKS = ("mt5", "m2m")


def rows_for(name, **options):
    """Examples with input ids, a language and an id each."""
    rows = makers.examples(name, LENGTHS, **options)
    keep = ("input_ids", "labels") if name in TWO_STACKS else ("input_ids",)
    return [
        {**{k: row[k] for k in keep}, "language": "de" if i % 2 else "fr", "id": f"x{i}"}
        for i, row in enumerate(rows)
    ]


def states_of(name, model, row):
    """Hidden states [layers, t, d] of one example, by transformers, without padding."""
    inputs = {"input_ids": torch.tensor([row["input_ids"]]), "output_hidden_states": True}
    with torch.no_grad():
        if name not in TWO_STACKS:
            return torch.stack(model(**inputs).hidden_states)[:, 0], None
        output = model(**inputs, labels=torch.tensor([row["labels"]]))
    decoder = torch.stack(output.decoder_hidden_states)[:, 0]
    return torch.stack(output.encoder_hidden_states)[:, 0], decoder


POOLED = {
    "mean": lambda states: states.mean(dim=1),
    "first": lambda states: states[:, 0],
    "last": lambda states: states[:, -1],
}


@pytest.mark.parametrize("name", makers.ARCHITECTURES)
def test_rows_are_hidden_states_whatever_the_batch_and_its_padding(name):
    model, rows = makers.make(name), rows_for(name)
    expected = [states_of(name, model, row) for row in rows]
    for pool, pooled in POOLED.items():
        for batch_size in (1, 2, 16):
            found = representations(model, rows, pool=pool, batch_size=batch_size)
            for i, (states, _) in enumerate(expected):
                for layer, row in enumerate(pooled(states)):
                    np.testing.assert_allclose(found.array(layer)[i], row, rtol=1e-9, atol=1e-11)
    assert found.layers == tuple(str(k) for k in range(len(expected[0][0])))
    assert found.array(-1).dtype == np.float64
    assert list(found.items["id"]) == [f"x{i}" for i in range(5)]


@pytest.mark.parametrize("name", TWO_STACKS)
def test_the_decoder_is_read_where_it_is_asked_for(name):
    model, rows = makers.make(name), rows_for(name)
    found = representations(model, rows, layers=["decoder", "0"], batch_size=3)
    assert found.layers[0] == "0"
    assert all(layer.startswith("decoder.") for layer in found.layers[1:])
    for i, row in enumerate(rows):
        encoder, decoder = states_of(name, model, row)
        np.testing.assert_allclose(found.array("0")[i], encoder[0].mean(dim=0), rtol=1e-9)
        for layer, state in enumerate(decoder.mean(dim=1)):
            np.testing.assert_allclose(found.array(f"decoder.{layer}")[i], state, rtol=1e-9)
    last = representations(model, rows, layers="decoder.1", pool="last")
    assert last.layers == ("decoder.1",)
    np.testing.assert_allclose(
        last.array("decoder.1")[0], states_of(name, model, rows[0])[1][1, -1]
    )


def test_the_decoder_takes_its_own_ids_too():
    model, rows = makers.make("m2m"), rows_for("m2m")
    given = [
        {k: v for k, v in row.items() if k != "labels"} | {"decoder_input_ids": row["labels"]}
        for row in rows
    ]
    found = representations(model, given, layers="decoder.1", batch_size=4)
    for i, row in enumerate(rows):
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True,
                decoder_input_ids=torch.tensor([row["labels"]]),
            )  # fmt: skip
        mean = output.decoder_hidden_states[1][0].mean(dim=0)
        np.testing.assert_allclose(found.array("decoder.1")[i], mean, rtol=1e-9)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", ["bert", "xlm_roberta", "gpt2", "qwen3"])
def test_padding_that_the_data_bring_does_not_count(name, left):
    model, rows = makers.make(name), rows_for(name)
    padded = []
    for row in rows:
        fill = [model.config.pad_token_id or 0] * 3
        ids, mask = row["input_ids"], [1] * len(row["input_ids"])
        ids, mask = (fill + ids, [0] * 3 + mask) if left else (ids + fill, mask + [0] * 3)
        padded.append({**row, "input_ids": torch.tensor(ids), "attention_mask": np.array(mask)})
    for pool in ("mean", "first", "last"):
        plain, other = (representations(model, data, pool=pool) for data in (rows, padded))
        for layer in plain.layers:
            np.testing.assert_array_equal(plain.array(layer), other.array(layer))


def test_the_mode_is_restored_and_dropout_is_off():
    model = checkpoint_makers.bert(hidden_dropout_prob=0.5)
    model.train()
    model.bert.encoder.layer[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (representations(model, rows_for("bert")) for _ in range(2))
    np.testing.assert_array_equal(first.array(2), second.array(2))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert first.array(2).dtype == np.float32


def counted(module):
    """Calls of a module, counted by a hook."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("name", "block", "head"),
    [
        ("bert", "bert.encoder.layer.0", "classifier"),
        ("qwen3", "model.layers.0", "lm_head"),
        ("mt5", "encoder.block.0", "lm_head"),
    ],
)
def test_one_pass_over_the_data_whatever_the_number_of_layers(name, block, head):
    model, rows = makers.make(name), rows_for(name)
    passes, heads = counted(model.get_submodule(block)), counted(model.get_submodule(head))
    decoders = counted(model.decoder) if name == "mt5" else []
    for layers in ("all", 1, [0, -1]):
        representations(model, rows, layers=layers, batch_size=2)
    assert len(passes) == 3 * math.ceil(len(rows) / 2)
    assert not heads
    assert not decoders


def test_an_adapter_counts_and_is_what_merging_it_gives():
    model = makers.make("bert_lora")
    rows = rows_for("bert")
    found = representations(model, rows)
    with model.disable_adapter():
        base = representations(model, rows)
    merged = representations(model.merge_and_unload(), rows)
    np.testing.assert_allclose(found.array(-1), merged.array(-1), rtol=1e-9)
    assert np.abs(found.array(-1) - base.array(-1)).max() > 0.1


def word_tokenizer(model_max_length=64):
    """WordPiece with a few pieces, fast, with [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##hap", "##py", "dog", "##s", "bark", ",",
              "of", "the", "über", "#", "##a", "a"]  # fmt: skip
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=model_max_length,
    )  # fmt: skip


SENTENCES = [
    {"language": "en", "id": "a", "tokens": ["Unhappy", "dogs", ",", "the", "bark"],
     "tags": ["ADJ", "NOUN", "PUNCT", "DET", "VERB"], "concept": "c"},
    {"language": "de", "tokens": ["Über", "unhappys"], "text": "Über unhappys",
     "tags": ["ADP", "X"]},
    {"language": "en", "tokens": ["the", "dog"], "tags": ["DET", "NOUN"], "text": "the  dog"},
]  # fmt: skip


@pytest.mark.parametrize("subtokens", ["first", "mean", "last"])
def test_words_are_rows_of_their_tokens(subtokens):
    model, tokenizer = makers.make("bert"), word_tokenizer()
    found = representations(
        model, SENTENCES, pool="token", subtokens=subtokens, tokenizer=tokenizer, batch_size=2
    )
    row = 0
    for number, sentence in enumerate(SENTENCES):
        encoded = tokenizer(sentence["tokens"], is_split_into_words=True)
        states, _ = states_of("bert", model, {"input_ids": encoded["input_ids"]})
        for position, word in enumerate(sentence["tokens"]):
            tokens = [i for i, own in enumerate(encoded.word_ids()) if own == position]
            assert tokens
            tokens = {"first": tokens[:1], "mean": tokens, "last": tokens[-1:]}[subtokens]
            expected = states[:, tokens].mean(dim=1)
            for layer in found.layers:
                np.testing.assert_allclose(found.array(layer)[row], expected[int(layer)], rtol=1e-9)
            item = found.items.iloc[row]
            assert (item["sentence"], item["position"], item["word"]) == (number, position, word)
            assert item["tag"] == sentence["tags"][position]
            assert item["language"] == sentence["language"]
            assert item["id"] == sentence.get("id", number)
            row += 1
    assert row == len(found) == 9
    assert found.level == "token"
    assert found.provenance.settings["words_left_out"] == 0


def test_words_without_spaces_are_found_in_the_text_and_bytes_are_told_apart():
    rows = [{"language": "th", "text": "ไปมา né", "tokens": ["ไป", "มา", "né"], "tags": [1, 2, 3]}]
    torch.manual_seed(0)
    config = validation_makers.bert_config()
    config.max_position_embeddings = 64
    model = transformers.BertForSequenceClassification(config).double().eval()
    tokenizer = build_tokenizer(64)
    found = representations(model, rows, pool="token", subtokens="mean", tokenizer=tokenizer)
    ids = tokenizer("ไปมา né")["input_ids"]
    states, _ = states_of("bert", model, {"input_ids": ids})
    # [CLS], two letters of three bytes, two more, a space, n and é of two bytes
    for row, places in enumerate([range(1, 7), range(7, 13), range(14, 17)]):
        np.testing.assert_allclose(found.array(-1)[row], states[-1, list(places)].mean(dim=0))


def test_words_that_the_model_does_not_read_are_left_out_and_counted():
    model = makers.make("bert")
    found = representations(
        model, SENTENCES, pool="token", tokenizer=word_tokenizer(), max_length=6
    )
    # [CLS] un ##hap ##py dog [SEP] and [CLS] über un ##hap ##py [SEP]: of `dogs` a part is read
    assert list(found.items["word"]) == ["Unhappy", "dogs", "Über", "unhappys", "the", "dog"]
    assert found.provenance.settings["words_left_out"] == 3
    assert found.provenance.settings["truncated"] == 2


def test_word_ids_say_which_tokens_are_words():
    model, rows = makers.make("bert"), rows_for("bert")[:1]
    rows[0] |= {"input_ids": [2, 7, 8, 9, 3, 0], "attention_mask": [1, 1, 1, 1, 1, 0],
                "word_ids": [None, 0, 0, 2, None, None], "tokens": ["a", "b", "c"]}  # fmt: skip
    found = representations(model, rows, pool="token", subtokens="mean")
    states, _ = states_of("bert", model, {"input_ids": [2, 7, 8, 9, 3]})
    np.testing.assert_allclose(found.array(1)[0], states[1, 1:3].mean(dim=0))
    np.testing.assert_allclose(found.array(1)[1], states[1, 3])
    assert list(found.items["word"]) == ["a", "c"]
    assert found.provenance.settings["words_left_out"] == 1


def test_spans():
    assert find_words("don't go", ["do", "n't", "go"]) == [(0, 2), (2, 5), (6, 8)]
    assert find_words("a b", ["a"]) is None
    assert find_words("del mel", ["de", "el", "mel"]) is None  # `el` is not the one in `mel`
    text, spans = read_text({"text": "del", "tokens": ["de", "el"]}, by_word=True)
    assert (text, spans) == ("de el", [(0, 2), (3, 5)])
    assert read_text({"tokens": ["de", "el"]}, by_word=False) == ("de el", [])
    assert read_text({"label": 1}, by_word=True) == (None, [])
    # one token over two words, one that is only a space, one of no width, one behind
    tokens = [(0, 3), (2, 3), (3, 3), (3, 5), (0, 0)]
    assert align([(0, 1), (1, 2), (3, 5), (6, 7)], tokens, [0, 0, 0, 0, 1]) == (
        [[0], [0], [3]],
        [0, 1, 2],
    )


def test_special_tokens_count_or_do_not():
    model, tokenizer = makers.make("bert"), word_tokenizer()
    rows = [{"language": "en", "text": "the dogs"}, {"language": "en", "text": "unhappy dog"}]
    for row_number, row in enumerate(rows):
        states, _ = states_of("bert", model, {"input_ids": tokenizer(row["text"])["input_ids"]})
        for with_them, inside in ((True, states), (False, states[:, 1:-1])):
            for pool, pooled in POOLED.items():
                found = representations(
                    model, rows, pool=pool, special_tokens=with_them, tokenizer=tokenizer
                )
                np.testing.assert_allclose(found.array(2)[row_number], pooled(inside)[2], rtol=1e-9)
    given = [{"language": "en", "input_ids": tokenizer(row["text"])["input_ids"]} for row in rows]
    same = representations(model, given, special_tokens=False, tokenizer=tokenizer)
    own = representations(model, rows, special_tokens=False, tokenizer=tokenizer)
    np.testing.assert_allclose(same.array(2), own.array(2), rtol=1e-12)
    with pytest.raises(InputError, match="does not say which are special"):
        representations(model, given, special_tokens=False)
    with pytest.raises(InputError, match="special tokens only"):
        representations(model, [{"text": " "}], special_tokens=False, tokenizer=tokenizer)


def test_what_the_data_say_is_carried_along():
    rows = [
        {"language": "de", "input_ids": [5, 6], "id": "a", "concept": "c1", "label": "city"},
        {"language": "fr", "input_ids": [7], "label": np.int64(2)},
    ]
    items = representations(makers.make("bert"), rows).items
    assert list(items.columns) == ["language", "id", "concept", "label"]
    assert items.iloc[0].tolist() == ["de", "a", "c1", "city"]
    assert items.iloc[1].tolist() == ["fr", 1, None, 2]


# Models on disk, and subnetworks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return validation_makers.write_checkpoint(tmp_path_factory.mktemp("adapters") / "checkpoint")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return validation_makers.write_checkpoint(
        tmp_path_factory.mktemp("stages") / "checkpoint", stages=True
    )


def close(a, b):
    return all(np.allclose(a.array(k), b.array(k), rtol=1e-4, atol=1e-5) for k in a.layers)


def test_base_adapter_and_stage_of_a_checkpoint(checkpoint, stages):
    tokenizer = build_tokenizer(24)
    for path, which in ((checkpoint, {"language": "fr"}), (stages, {"stage": 2}), (stages, {})):
        found = representations(path, **which)
        rows = [{"language": "x", "text": "Paris"}, {"language": "x", "text": "Bonn"}]
        chosen = representations(path, rows, **which)
        own = representations(load_model(path, **which), rows, tokenizer=tokenizer)
        assert close(chosen, own)
        assert len(found) == 15  # test.jsonl
        assert found.languages == ("de", "fr", "sw")
    base, trained = (representations(stages, stage=k) for k in (0, 2))
    assert not close(base, trained)
    assert close(base, representations(stages))
    assert trained.provenance.settings["of"]["which"] == "stage 2"
    assert close(representations(stages / "base", rows), representations(stages, rows))


def full_mask(path):
    return extract(open_checkpoint(path), method="magnitude", density=1.0)


def test_removing_all_that_training_changed_gives_the_base(checkpoint, stages):
    """Values before training take the place of removed weights; kept alone, all is as trained."""
    mask = full_mask(checkpoint)["fr"]
    base, trained = representations(checkpoint), representations(checkpoint, language="fr")
    removed = representations(checkpoint, language="fr", subnetwork=mask)
    kept = representations(checkpoint, language="fr", subnetwork=mask, condition="kept")
    whole = representations(checkpoint, language="fr", subnetwork=mask, condition="whole")
    assert close(removed, base)
    assert close(kept, trained)
    assert close(whole, trained)
    assert not close(removed, trained)
    assert removed.provenance.settings["surgery"]["how"] == "base"
    # of a stage: the stage before
    before, after = (representations(stages, stage=k) for k in (1, 2))
    removed = representations(stages, stage=2, subnetwork=mask)
    assert close(removed, before)
    assert not close(removed, after)
    assert not close(removed, representations(stages, stage=0))


def sparse_mask(model, density=0.3):
    generator = torch.Generator().manual_seed(0)
    chosen = {
        name: (torch.rand(parameter.shape, generator=generator) < density).numpy()
        for name, parameter in model.named_parameters()
        if name.endswith(("query.weight", "output.dense.weight"))
    }
    return chosen, Subnetwork.from_arrays(chosen, language="de", base="b", method="given")


@pytest.mark.parametrize("condition", ["removed", "kept"])
def test_weights_are_zeroed_or_replaced_and_put_back(condition):
    model, other, rows = makers.make("bert"), makers.make("bert"), rows_for("bert")
    checkpoint_makers.move(other, 11, size=0.5)
    chosen, mask = sparse_mask(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for how, source in (("zero", None), (None, None), (other, other)):
        by_hand = makers.make("bert")
        with torch.no_grad():
            for name, selected in chosen.items():
                parameter = by_hand.get_parameter(name)
                out = torch.from_numpy(selected == (condition == "removed"))
                value = 0 * parameter if source is None else source.get_parameter(name)
                parameter.copy_(torch.where(out, value, parameter))
        found = representations(model, rows, subnetwork=mask, condition=condition, how=how)
        expected = representations(by_hand, rows)
        assert all(np.array_equal(found.array(k), expected.array(k)) for k in range(3))
        assert not close(found, representations(model, rows))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("unit", ["head", "neuron"])
def test_units_are_gated(unit):
    model, rows = makers.make("bert"), rows_for("bert")
    units = find_units(model)
    n = units.n_heads if unit == "head" else units.n_neurons
    mask = unit_mask(unit, n, model)
    assert selected_units(mask, units).sum() == n // 2
    weights = units.weights_of_heads if unit == "head" else units.weights_of_neurons
    suffix = "attention.output.dense.weight" if unit == "head" else "output.dense.weight"
    for condition in ("removed", "kept"):
        by_hand = makers.make("bert")
        out = selected_units(mask, units) == (condition == "removed")
        with torch.no_grad():
            for name, selected in weights(out).items():
                if name.endswith(suffix):
                    by_hand.get_parameter(name)[selected] = 0
        found = representations(model, rows, subnetwork=mask, condition=condition)
        expected = representations(by_hand, rows)
        np.testing.assert_allclose(found.array(-1), expected.array(-1), rtol=1e-9)
        assert not close(found, representations(model, rows))


def unit_mask(unit, n, model):
    from subnet.subnetwork import subnetwork_of_units

    chosen = np.arange(n) % 2 == 1
    return subnetwork_of_units(
        chosen, find_units(model), granularity=unit, language="de", base="b", method="given"
    )


# On disk


def test_what_is_streamed_to_disk_is_what_stays_in_memory(tmp_path):
    model, rows = makers.make("bert"), rows_for("bert")
    plain = representations(model, rows)
    stored = representations(model, rows, store=tmp_path / "reps")
    assert isinstance(stored.array(1), np.memmap)
    for found in (stored, Representations.load(tmp_path / "reps")):
        assert found.layers == plain.layers
        assert found.items.equals(plain.items)
        assert all(np.array_equal(found.array(k), plain.array(k)) for k in plain.layers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reps"]
    passes = counted(model.bert)
    again = representations(model, rows, store=tmp_path / "reps", batch_size=2)
    assert not passes
    assert np.array_equal(again.array(2), plain.array(2))


def test_a_folder_of_something_else_is_refused(tmp_path):
    model, rows = makers.make("bert"), rows_for("bert")
    place = tmp_path / "reps"
    representations(model, rows, store=place)
    with pytest.raises(NotComparableError, match="made with other data"):
        representations(model, rows[:-1], store=place)
    with pytest.raises(NotComparableError, match="made with other data"):
        representations(model, [{**row, "label": 1} for row in rows], store=place)
    with pytest.raises(NotComparableError, match="made with other settings"):
        representations(model, rows, store=place, pool="last")
    _, mask = sparse_mask(model)
    with pytest.raises(NotComparableError, match="made with other model"):
        representations(model, rows, store=place, subnetwork=mask)
    heads = unit_mask("head", find_units(model).n_heads, model)
    representations(model, rows, store=tmp_path / "heads", subnetwork=heads)
    with pytest.raises(NotComparableError, match="made with other model"):
        representations(model, rows, store=tmp_path / "heads", subnetwork=~heads)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[0, 0] += 1
    with pytest.raises(NotComparableError, match="made with other model"):
        representations(model, rows, store=place)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="already there"):
        representations(model, rows, store=tmp_path / "taken")


def test_a_run_that_fails_leaves_nothing(tmp_path):
    model, rows = makers.make("bert"), rows_for("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[0] = math.nan
    with pytest.raises(InputError, match=r"layer 2 of item x\d \((de|fr)\) is not finite"):
        representations(model, rows, store=tmp_path / "reps")
    assert not list(tmp_path.iterdir())
    assert len(representations(model, rows, layers=[0, 1])) == 5


def test_undefined_numbers_name_the_item():
    model, rows = makers.make("bert"), rows_for("bert")
    rows[3]["input_ids"][2] = 39
    for row in rows[:3] + rows[4:]:
        row["input_ids"] = [i % 39 for i in row["input_ids"]]
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[39] = math.inf
    with pytest.raises(InputError, match=r"layer 0 of item x3 \(de\) is not finite"):
        representations(model, rows)


def test_large_representations_go_to_a_folder_that_goes_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(_storage, "LARGE", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, rows = makers.make("bert"), rows_for("bert")
    found = representations(model, rows)
    assert isinstance(found.array(1), np.memmap)
    assert len(list(tmp_path.iterdir())) == 1
    part = found.subset([0, 2])
    del found
    gc.collect()
    np.testing.assert_array_equal(part.array(1)[1], representations(model, rows).array(1)[2])
    del part
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_damage_is_seen(tmp_path):
    place = tmp_path / "reps"
    found = Representations.of({"0": np.ones((3, 2)), "5": np.zeros((3, 4))}, {"language": "abc"})
    found.save(place)
    again = Representations.load(place)
    assert again.layers == ("0", "5")
    assert again.items.equals(found.items)
    with pytest.raises(OutputError, match="already there"):
        found.save(place)
    content = (place / "layer-001.npy").read_bytes()
    (place / "layer-001.npy").write_bytes(content[:-8])
    with pytest.raises(FileFormatError, match=r"layer-001.npy: is damaged"):
        Representations.load(place)
    (place / "layer-001.npy").unlink()
    with pytest.raises(MissingInputError, match="is not there"):
        Representations.load(place)
    (place / "items.json").write_text("{}")
    (place / "layer-001.npy").write_bytes(content)
    with pytest.raises(InputError):
        Representations.load(place)
    (place / "items.json").write_text('{"language": ["a"]}')
    with pytest.raises(FileFormatError, match="does not name every row"):
        Representations.load(place)
    header = (place / "representations.json").read_text()
    (place / "representations.json").write_text(header.replace('"version": 1', '"version": 9'))
    with pytest.raises(FileFormatError, match="is of version 9"):
        Representations.load(place)
    with pytest.raises(MissingInputError, match=r"has no representations\.json"):
        Representations.load(tmp_path)


# The result itself


def test_subsets_name_what_they_hold(tmp_path):
    array = np.arange(12.0).reshape(6, 2)
    items = {"language": list("aabbcc"), "id": list(range(6)), "concept": list("xyxyxy")}
    found = Representations.of({"0": array, "1": -array}, items)
    assert found.languages == ("a", "b", "c")
    part = found.subset(found.items["language"] == "b")
    np.testing.assert_array_equal(part.array("1"), -array[2:4])
    assert part.items["id"].tolist() == [2, 3]
    inner = part.subset([1, 0])
    np.testing.assert_array_equal(inner.array(0), array[[3, 2]])
    np.testing.assert_array_equal(found.subset([-1]).array(0), array[[5]])
    inner.save(tmp_path / "part")
    np.testing.assert_array_equal(Representations.load(tmp_path / "part").array(1), -array[[3, 2]])
    assert repr(inner) == "Representations(2 items of 1 languages, layers 0, 1, sentence level)"
    for wrong, message in (
        ([True], "one per item"),
        ([9], "position 9 is none"),
        ([False] * 6, "no item is selected"),
        ([0.5], "float64"),
    ):
        with pytest.raises(InputError, match=message):
            found.subset(wrong)
    with pytest.raises(InputError, match=r"no layer 7; expected one of 0, 1"):
        found.array(7)


@pytest.mark.parametrize(
    ("arrays", "items", "message"),
    [
        ({}, {}, "there is no layer"),
        ({"0": [1.0, 2.0]}, {}, r"layer 0 is float64 \[2\]"),
        ({"0": [[1.0]], "1": [[1.0], [2.0]]}, {}, "layer 1 has 2 rows and there are 1 items"),
        ({"0": [[1.0]]}, {"language": ["a", "b"]}, "2 values of 'language'"),
        ({"0": [[1.0], [math.nan]]}, {"id": ["p", "q"]}, "layer 0 of item q is not finite"),
    ],
)
def test_representations_that_do_not_fit_their_items(arrays, items, message):
    with pytest.raises(InputError, match=message):
        Representations.of(arrays, items)


# Input that cannot be used

BERT = [{"language": "de", "input_ids": [5, 6]}]


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("bert", [], {}, "the data have no example"),
        ("bert", ["text"], {}, "example 0 is a str"),
        ("bert", BERT, {"layers": 3}, "layer 3 is asked for and BertModel has 2 layers;"),
        ("bert", BERT, {"layers": [0, -4]}, "layer -4 is asked for"),
        ("bert", BERT, {"layers": []}, "no layer is asked for"),
        ("bert", BERT, {"layers": "decoder.1"}, "has one stack"),
        ("mt5", BERT, {"layers": "decoder.1"}, "example 0 has no 'target'"),
        ("mt5", BERT, {"layers": "decoder", "pool": "token"}, "words are asked for of a decoder"),
        ("mt5", [{**BERT[0], "labels": [1]}], {"layers": "decoder.7"}, "to decoder.2"),
        ("bert", BERT, {"pool": "max"}, "pool is 'max'"),
        ("bert", BERT, {"subtokens": "all"}, "subtokens is 'all'"),
        ("bert", BERT, {"batch_size": 0}, "batch_size is 0"),
        ("bert", BERT, {"condition": "half"}, "condition is 'half'"),
        ("bert", BERT, {"how": "mean"}, "how is 'mean'"),
        ("bert", BERT, {"stage": 1}, "a live model is given, and stage too"),
        ("bert", BERT, {"pool": "token"}, "has input_ids and no 'word_ids'"),
        ("bert", [{"input_ids": []}], {}, "example 0 has no token"),
        ("bert", [{"input_ids": [5, 0], "id": "q"}], {}, r"example 0 \(q\) is padded with 0"),
        ("bert", [{"input_ids": [5], "attention_mask": [1, 1]}], {}, "2 values of attention_mask"),
        ("bert", [{"input_ids": [5] * 17}], {}, "cannot read 17 tokens"),
        ("bert", [{"input_ids": [99]}], {}, "ids up to 99"),
        ("bert", [{"text": "a"}], {}, "no tokenizer"),
        ("bert", [{"label": 1}], {"tokenizer": word_tokenizer()}, "example 0 has no 'text'"),
        ("bert", [{"text": "a"}], {"tokenizer": word_tokenizer(), "pool": "token"}, "no 'tokens'"),
        ("bert", [{"tokens": ["a"], "tags": [1, 2]}],
         {"tokenizer": word_tokenizer(), "pool": "token"}, "has 1 tokens and 2 tags"),
        ("bert", [{"tokens": [" "]}], {"tokenizer": word_tokenizer(), "pool": "token"},
         "no word has a token"),
        ("bert", [{"text": "a"}], {"tokenizer": word_tokenizer(), "max_length": 0},
         "max_length is 0"),
    ],
)  # fmt: skip
def test_input_that_cannot_be_used(name, data, options, message):
    with pytest.raises((InputError, MissingInputError), match=message):
        representations(makers.make(name), data, **options)


def test_a_tokenizer_without_offsets_gives_no_words():
    class Slow:
        is_fast = False
        model_max_length = 16

    rows = [{"tokens": ["a"], "tags": ["X"]}]
    with pytest.raises(InputError, match=r"the tokenizer \(Slow\) cannot say which token belongs"):
        representations(makers.make("bert"), rows, pool="token", tokenizer=Slow())


def test_models_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="the model is a Linear"):
        representations(torch.nn.Linear(2, 2), BERT)
    prompts = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with checkpoint_makers.quiet():
        model = get_peft_model(checkpoint_makers.bert(), prompts)
    with pytest.raises(InputError, match="prepends tokens"):
        representations(model, BERT)
    with pytest.raises(MissingInputError, match="a live model comes without examples"):
        representations(makers.make("bert"))
    with pytest.raises(MissingInputError, match="no tokenizer; give tokenizer=, or examples with"):
        representations(makers.make("bert"), [{"text": "a"}])
    lora = makers.make("bert_lora")
    _, mask = sparse_mask(makers.make("bert"))
    with pytest.raises(InputError, match="carries an adapter"):
        representations(lora, BERT, subnetwork=mask)
    with pytest.raises(NotComparableError, match="has no such parameter"):
        representations(makers.make("xlm_roberta"), BERT, subnetwork=mask)


class Marking:
    """Puts a token for the language before the text, as M2M's tokenizer does."""

    is_fast = False
    model_max_length = 16
    src_lang = tgt_lang = "fr"

    def __init__(self):
        self.lang_code_to_id = {"de": 30, "fr": 31}

    def __call__(self, text=None, text_target=None, **options):
        language = self.src_lang if text_target is None else self.tgt_lang
        ids = [self.lang_code_to_id[language], *(5 + len(w) for w in (text or text_target).split())]
        return {"input_ids": ids, "special_tokens_mask": [1, *([0] * (len(ids) - 1))]}


def test_tokenizers_that_mark_languages_are_told_them():
    model = makers.make("m2m")
    rows = [
        {"language": "de", "text": "ein Wort"},
        {"language": "de>fr", "source": "ein Wort", "target": "un"},
        {"language": "x", "source_language": "fr", "text": "un mot"},
    ]
    found = representations(model, rows, tokenizer=Marking())
    for row, ids in enumerate(([30, 8, 9], [30, 8, 9], [31, 7, 8])):
        expected, _ = states_of("m2m", model, {"input_ids": ids, "labels": [5]})
        np.testing.assert_allclose(found.array(-1)[row], expected[-1].mean(dim=0), rtol=1e-9)
    decoder = representations(model, rows[1:2], tokenizer=Marking(), layers="decoder")
    _, expected = states_of("m2m", model, {"input_ids": [30, 8, 9], "labels": [31, 7]})
    np.testing.assert_allclose(decoder.array("decoder.1")[0], expected[1].mean(dim=0), rtol=1e-9)
    with pytest.raises(InputError, match="does not know the language 'sw'"):
        representations(model, [{"language": "sw", "text": "neno"}], tokenizer=Marking())
