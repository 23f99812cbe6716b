"""From a language's text to what goes into its model, for each of the four tasks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import checkpoint_makers as makers
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError
from subnet.inputs import read_examples
from subnet.inputs.encoding import encode_examples, make_batches
from subnet.inputs.tokenizing import load_tokenizer
from subnet.subnetwork import METHODS, extract, extract_halves
from subnet.training.tokenizer import build_tokenizer

SMALL = {
    "vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
TAGS = ("O", "PER", "LOC")
NAMED = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
T5 = {"vocab_size": 259, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
M2M = {
    "vocab_size": 259, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
#: Name to class and configuration.
ARCHITECTURES = {
    "bert": (transformers.BertForSequenceClassification, transformers.BertConfig(**SMALL, **NAMED)),
    "xlm_roberta": (
        transformers.XLMRobertaForSequenceClassification,
        transformers.XLMRobertaConfig(**SMALL, **NAMED),
    ),
    "bert_tagger": (
        transformers.BertForTokenClassification,
        transformers.BertConfig(**SMALL, **NAMED),
    ),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**GROUPED)),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**GROUPED)),
    "gemma": (
        transformers.GemmaForCausalLM,
        transformers.GemmaConfig(**{**GROUPED, "num_key_value_heads": 1}),
    ),
    "mt5": (
        transformers.MT5ForConditionalGeneration,
        transformers.MT5Config(**T5, num_decoder_layers=1, decoder_start_token_id=0),
    ),
    "m2m": (
        transformers.M2M100ForConditionalGeneration,
        transformers.M2M100Config(**M2M, decoder_start_token_id=2),
    ),
}


def build(name, seed=0):
    kind, config = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = kind(config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    makers.move(model, 5, size=0.2)
    return model.eval()


def task_of(name):
    return {"bert": "text", "xlm_roberta": "text", "bert_tagger": "tagged", "mt5": "translated",
            "m2m": "translated"}.get(name, "causal")  # fmt: skip


def write_base(root, name, tokenizer=None):
    makers.save_base(build(name), root / "base")
    (tokenizer or build_tokenizer(40)).save_pretrained(root / "base")
    return root


def write(root, rows, split="train"):
    makers.write_json_lines(root / f"{split}.jsonl", rows)
    return open_checkpoint(root)


ROWS = {
    "text": [
        {"language": "de", "text": "Otto", "label": "PER"},
        {"language": "de", "text": "Bonn", "label": 2},
        {"language": "de", "text": "und so", "label": "O"},
        {"language": "fr", "text": "Anne", "label": 1},
        {"language": "fr", "text": "et", "label": "O"},
    ],
    "tagged": [
        {"language": "de", "tokens": ["Otto", "in", "Bonn"], "tags": ["PER", "O", "LOC"]},
        {"language": "de", "tokens": ["Er", "geht"], "tags": [0, 0]},
        {"language": "fr", "tokens": ["Anne", "a"], "tags": [1, "O"]},
    ],
    "causal": [
        {"language": "de", "text": "Otto geht"},
        {"language": "de", "source": "2+2=", "target": "vier"},
        {"language": "fr", "text": "Anne va", "source": "wikipedia"},
        {"language": "fr", "text": "et"},
    ],
    "translated": [
        {"language": "de", "text": "Otto", "target": "he"},
        {"language": "de", "source": "Bonn", "target": "it"},
        {"language": "fr", "text": "Anne", "target": "she"},
    ],
}


def ids(text):
    """The byte tokenizer by its definition, for ASCII without spaces: [CLS] bytes [SEP]."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [1, *(3 + letters.index("Ġ" if letter == " " else letter) for letter in text), 2]


def by_hand(row, task):
    """What a row becomes, written down without the code under test."""
    if task == "text":
        return {"input_ids": ids(row["text"]), "labels": {"O": 0, "PER": 1, "LOC": 2}.get(
            row["label"], row["label"])}  # fmt: skip
    if task == "tagged":
        labels = [-100]
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            labels += [{"O": 0, "PER": 1, "LOC": 2}.get(tag, tag), *([-100] * (len(word) - 1))]
        return {"input_ids": ids("".join(row["tokens"])), "labels": [*labels, -100]}
    if task == "causal":
        if "text" in row:
            return {"input_ids": ids(row["text"]), "labels": ids(row["text"])}
        both = ids(row["source"] + row["target"])
        n = 1 + len(row["source"])
        return {"input_ids": both, "labels": [*([-100] * n), *both[n:]]}
    source = row.get("text", row.get("source"))
    return {"input_ids": ids(source), "labels": ids(row["target"])}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_method_reads_text_as_the_task_wants_it(name, tmp_path):
    """Masks from text equal masks from the same examples encoded by hand."""
    task = task_of(name)
    checkpoint = write(write_base(tmp_path, name), ROWS[task])
    hand = [{"language": row["language"], **by_hand(row, task)} for row in ROWS[task]]
    options = {
        "fisher": {"density": 0.1},
        "taylor": {"density": 0.1},
        "wanda": {"density": 0.1, "scope": "row"},
        "lape": {"density": 0.3, "activity_percentile": 60},
    }
    for method, settings in options.items():
        found = extract(checkpoint, method=method, model="base", **settings)
        given = extract(checkpoint, method=method, model="base", data=hand, **settings)
        assert found.languages == ("de", "fr")
        for mask, other in zip(found, given, strict=True):
            assert mask == other
            assert 0 < mask.count < mask.size
            assert mask.settings["data"] == "train.jsonl"
            assert mask.settings["max_length"] == 40
        assert found["de"] != found["fr"]


@pytest.mark.parametrize("name", ["bert_tagger", "qwen3", "m2m"])
def test_the_language_s_own_adapter_looks_at_its_examples(name, tmp_path):
    write_base(tmp_path, name)
    for seed, label in enumerate(("de", "fr"), start=1):
        targets = r".*\.(query|dense|q_proj|fc1)"
        adapted = makers.lora(build(name), seed, target_modules=targets)
        makers.save_adapter(adapted, tmp_path / "adapters" / label)
    checkpoint = write(tmp_path, ROWS[task_of(name)])
    own = extract(checkpoint, method="fisher", density=0.1)
    base = extract(checkpoint, method="fisher", density=0.1, model="base")
    assert own["de"].shapes == base["de"].shapes
    assert own["de"] != base["de"]


def encode(name, rows, tokenizer=None, tmp_path=None):
    (tokenizer or build_tokenizer(40)).save_pretrained(tmp_path)
    return encode_examples(rows, build(name), [tmp_path], None)


def test_words_are_labelled_at_their_first_token_also_where_text_is_cut(tmp_path):
    row = {"language": "de", "tokens": ["né", "a", "abcd"], "tags": ["PER", "O", "LOC"]}
    (found,), recorded = encode("bert_tagger", [row], tmp_path=tmp_path)
    # né is three bytes.
    assert found["labels"] == [-100, 1, -100, -100, 0, 2, -100, -100, -100, -100]
    assert recorded == {"max_length": 40, "labelled_tokens": "first of each word"}
    (cut,), _ = encode("bert_tagger", [row], build_tokenizer(7), tmp_path)
    assert cut["labels"] == [-100, 1, -100, -100, 0, 2, -100]


def merging_tokenizer():
    """Letters, of which `b` and `c` merge to one token; an end of text after all."""
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[END]", "a", "b", "c", "d", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c")]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]", model_max_length=40
    )


@pytest.mark.parametrize(
    ("source", "target", "tokens", "labels"),
    [
        ("ab", "d", [2, 3, 5, 1], [-100, -100, 5, 1]),
        ("a", "bcd", [2, 6, 5, 1], [-100, 6, 5, 1]),
        ("ab", "cd", [2, 6, 5, 1], [-100, 6, 5, 1]),  # one token of both: it predicts the target
    ],
)
def test_the_target_alone_is_predicted_and_the_end_of_text_after_it(
    source, target, tokens, labels, tmp_path
):
    row = {"language": "de", "source": source, "target": target}
    (found,), recorded = encode("llama", [row], merging_tokenizer(), tmp_path)
    assert (found["input_ids"], found["labels"]) == (tokens, labels)
    assert recorded["labelled_tokens"] == "those of the target"


def nllb():
    letters = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdef"])}
    return transformers.NllbTokenizer(
        vocab=letters, merges=[], extra_special_tokens=["deu_Latn", "eng_Latn", "zho_Hans"]
    )


@pytest.mark.parametrize(
    ("stated", "languages"),
    [
        ({"language": "deu_Latn>eng_Latn"}, ("deu_Latn", "eng_Latn")),
        ({"language": "de>en"}, ("deu_Latn", "eng_Latn")),
        ({"language": "x", "source_language": "zh", "target_language": "de"},
         ("zho_Hans", "deu_Latn")),
    ],
)  # fmt: skip
def test_a_translation_tokenizer_marks_the_languages_of_each_example(stated, languages, tmp_path):
    tokenizer = nllb()
    rows = [
        {**stated, "text": "ab", "target": "c"},
        {"language": "en>de", "text": "ab", "target": "c"},
    ]
    (found, back), _ = encode("m2m", rows, tokenizer, tmp_path)
    source, target = (tokenizer.convert_tokens_to_ids(code) for code in languages)
    assert (found["input_ids"][0], found["labels"][0]) == (source, target)
    assert back["input_ids"][0] == tokenizer.convert_tokens_to_ids("eng_Latn")
    assert back["labels"][0] == tokenizer.convert_tokens_to_ids("deu_Latn")
    assert len(found["input_ids"]) == 5  # its language, ▁ a b, the end
    assert found["labels"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"language": "de"}, "of de has no 'source_language', and the tokenizer marks the lang"),
        ({"language": "de", "source_language": "de"}, "of de has no 'target_language'"),
        ({"language": "de>sw"}, "does not know the language 'sw'; expected one of its 3"),
    ],
)
def test_a_direction_that_is_not_known_is_refused(row, message, tmp_path):
    with pytest.raises(InputError, match=message):
        encode("m2m", [{**row, "text": "ab", "target": "c"}], nllb(), tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("bert_tagger", {"text": "Otto"}, r"of de has no 'tokens'; expected 'tokens' and 'tags'"),
        ("bert_tagger", {"tokens": ["a"]}, "of de has no 'tags'"),
        ("bert_tagger", {"tokens": "a", "tags": ["O"]}, "has no 'tokens'"),
        ("bert_tagger", {"tokens": [], "tags": []}, "has no 'tokens'"),
        ("bert_tagger", {"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens and 1 tags"),
        ("bert_tagger", {"tokens": ["a"], "tags": ["ORG"]},
         "of de has the tag 'ORG'; expected one that the model knows: LOC, O, PER"),
        ("bert_tagger", {"tokens": ["a"], "tags": [3]}, "has the tag 3; expected 0 to 2, or"),
        ("bert_tagger", {"tokens": ["a"], "tags": [None]}, "has the tag None"),
        ("bert_tagger", {"tokens": [7], "tags": ["O"]}, "has the token 7; expected words"),
        ("bert_tagger", {"input_ids": [5]}, "has input_ids and no labels"),
        ("llama", {"source": "a"}, "of de has no 'target'; expected a text, for causal-lm"),
        ("llama", {"label": 1}, "has no 'text'"),
        ("mt5", {"text": "a"}, "has no 'target'; expected a text, for sequence-to-sequence-lm"),
        ("mt5", {"target": "a"}, "has no 'source'"),
    ],
)  # fmt: skip
def test_an_example_that_the_task_cannot_use_is_refused(name, row, message, tmp_path):
    with pytest.raises(InputError, match=message):
        encode(name, [{"language": "de", **row}], tmp_path=tmp_path)


class Slow:
    """A tokenizer that splits text and cannot say where a token is from."""

    is_fast = False
    model_max_length = 40

    def __call__(self, text, **options):
        return {"input_ids": [5] * len(text)}


def test_a_tokenizer_that_does_not_know_words_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "subnet.inputs.encoding.load_tokenizer", lambda folders, config: (Slow(), 40)
    )
    rows = {"bert_tagger": ROWS["tagged"][0], "llama": ROWS["causal"][1]}
    for name, why in (("bert_tagger", "which token belongs to which word"),
                      ("llama", "where the target begins")):  # fmt: skip
        with pytest.raises(InputError, match=rf"the tokenizer \(Slow\) cannot say {why}.*fast"):
            encode_examples([rows[name]], build(name), [tmp_path], None)


def test_tokenised_examples_of_a_causal_model_need_no_labels():
    rows, recorded = encode_examples(
        [{"language": "de", "input_ids": [5, 6, 7]}], build("llama"), [], None
    )
    assert (rows[0]["labels"], recorded) == ([5, 6, 7], {})


def test_a_classifying_decoder_without_padding_sees_one_example_at_a_time():
    config = transformers.LlamaConfig(**{**GROUPED, "pad_token_id": None}, num_labels=3)
    model = transformers.LlamaForSequenceClassification(config)
    rows = [{"language": "de", "input_ids": [5, 6], "labels": 1}] * 3
    batches, _ = make_batches(rows, model, [], 16, None)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(1, 2)] * 3
    rows = [{"language": "de", "input_ids": [5, 6]}] * 3
    batches, _ = make_batches(rows, build("llama"), [], 16, None)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(3, 2)]


def test_batches_hold_every_example_once_and_no_padding(tmp_path):
    build_tokenizer(40).save_pretrained(tmp_path)
    rows = [
        {"language": "de", "tokens": ["a" * (1 + i % 3), "b"], "tags": [i % 3, 0]}
        for i in range(20)
    ]
    batches, _ = make_batches(rows, build("bert_tagger"), [tmp_path], 4, None)
    assert max(len(batch["labels"]) for batch in batches) == 4
    assert all(bool(batch["attention_mask"].all()) for batch in batches)
    seen = sorted(
        (len(ids), int(labels[1])) for b in batches
        for ids, labels in zip(b["input_ids"], b["labels"], strict=True)
    )  # fmt: skip
    assert seen == sorted((4 + i % 3, i % 3) for i in range(20))


def test_a_tokenizer_that_cannot_be_loaded_is_a_missing_one(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(MissingInputError, match="the base's tokenizer cannot be loaded"):
        load_tokenizer([tmp_path], build("bert").config)


# Which examples may be looked at.


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("held"), "bert")


@pytest.fixture
def root(original, tmp_path):
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_validation_set_that_overlaps_the_test_set_is_refused(root):
    rows = ROWS["text"]
    write(root, rows[:2] + rows[3:], "train")
    write(root, [{**rows[2], "label": "PER"}, rows[3]], "validation")
    checkpoint = write(root, [rows[2], {**rows[2], "language": "fr"}], "test")
    held = read_examples(checkpoint, None, splits=("validation", "train"))
    with pytest.raises(
        InputError, match=r"validation\.jsonl: 1 of 1 examples of de are test examples too"
    ):
        held.choose("de", 10, 0)
    held.choose("fr", 10, 0)  # the same text in another language is another example
    given = read_examples(checkpoint, [rows[2]])
    with pytest.raises(InputError, match=r'1 of 1 examples of de .* such as "und so"'):
        given.choose("de", 10, 0)
    trained = read_examples(checkpoint, None)
    assert trained.choose("de", 10, 0)[1]["data"] == "train.jsonl"
    if "head-pruning" in METHODS:
        with pytest.raises(InputError, match="are test examples too"):
            extract(checkpoint, method="head-pruning", model="base")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"text": "ab", "target": "c"}, {"source": "ab", "target": "d"}),
        ({"tokens": ["a", "b"], "tags": [0, 0]}, {"tokens": ["a", "b"], "tags": [1, 0]}),
        ({"input_ids": [5, 6], "labels": 1}, {"input_ids": np.array([5, 6]), "labels": 0}),
        ({"text": "ab", "source": "web"}, {"text": "ab", "source": "book"}),
    ],
)
def test_a_test_example_is_recognised_by_what_the_model_reads(one, other, root):
    checkpoint = write(root, [{"language": "de", **one}], "test")
    with pytest.raises(InputError, match="1 of 1 examples of de are test examples too"):
        read_examples(checkpoint, [{"language": "de", **other}]).choose("de", 1, 0)
    fine = {"language": "de", "text": "another", "source": "web", "target": "c"}
    read_examples(checkpoint, [fine]).choose("de", 1, 0)


def test_a_test_set_that_says_nothing_to_read_refuses_nothing(root):
    checkpoint = write(root, [{"language": "de", "id": "1"}], "test")
    data = read_examples(checkpoint, [{"language": "de", "pixels": [1]}])
    assert len(data.choose("de", 5, 0)[0]) == 1


def test_a_language_without_examples_is_named_with_the_file(root):
    checkpoint = write(root, ROWS["text"][:3])
    with pytest.raises(
        MissingInputError, match=r"train\.jsonl: the data have no example of sw; expected .* of de"
    ):
        read_examples(checkpoint, None).choose("sw", 5, 0)


# Halves.


def many(n=21, languages=("de", "fr")):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(n)]
    return [
        {"language": k, "text": f"{k}{word}", "label": TAGS[i % 3]}
        for k in languages
        for i, word in enumerate(words)
    ]


def test_halves_are_disjoint_and_together_everything(root):
    rows = many()
    rows.append({**rows[0], "label": "LOC", "id": "again"})  # goes where its text goes
    checkpoint = write(root, rows)
    whole = read_examples(checkpoint, None)
    for seed in range(5):
        halves = [whole.take_half(number, seed) for number in (1, 2)]
        for language in ("de", "fr"):
            texts = [{row["text"] for row in half.examples[language]} for half in halves]
            assert not texts[0] & texts[1]
            assert sorted(map(len, texts)) == [10, 11]
            assert sum(len(half.examples[language]) for half in halves) == len(
                whole.examples[language]
            )
    first = [{r["text"] for r in whole.take_half(1, seed).examples["de"]} for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_masks_of_halves_are_those_of_their_examples(root):
    checkpoint = write(root, many())
    one, other = extract_halves(
        checkpoint, method="fisher", model="base", density=0.1, seed=2, n_examples=8
    )
    assert (one.runs, other.runs) == (("half-1",), ("half-2",))
    for number, found in ((1, one), (2, other)):
        half = read_examples(checkpoint, None).take_half(number, 2)
        data = [row for rows in half.examples.values() for row in rows]
        expected = extract(
            checkpoint, method="fisher", model="base", density=0.1, seed=2, n_examples=8, data=data
        )
        for mask in found:
            assert mask == expected[mask.language]
            assert mask.settings["half"] == f"{number} of 2"
            assert mask.settings["data"] == "train.jsonl"
            assert mask.settings["n_examples_used"] == 8
    assert one["de"] != other["de"]
    given = extract_halves(
        checkpoint, method="fisher", model="base", density=0.1, seed=2, n_examples=8,
        data=iter(many()),
    )  # fmt: skip
    assert [mask == was for mask, was in zip(given[0], one, strict=True)] == [True, True]
    assert given[0]["de"].settings["data"] == "given"


def test_two_halves_agree_more_than_two_languages_that_differ(root):
    """What a ceiling is for: the same letters in both halves, other letters in the other language.

    Null: where both languages have the letters of one, they agree as halves do.
    """
    rng = np.random.default_rng(1)

    def rows(alphabets):
        return [
            {"language": k, "text": "".join(rng.choice(list(letters), size=6)),
             "label": TAGS[int(rng.integers(3))]}
            for k, letters in alphabets.items() for _ in range(60)
        ]  # fmt: skip

    def shared(a, b):
        return (a & b).count / (a | b).count

    def gap(alphabets):
        """Agreement of halves minus agreement of languages, over several data sets."""
        gaps = []
        for _ in range(4):
            one, other = extract_halves(
                checkpoint, method="wanda", model="base", density=0.2, data=rows(alphabets),
                scope="row",
            )  # fmt: skip
            within = np.mean([shared(one[k], other[k]) for k in ("de", "fr")])
            gaps.append(within - np.mean([shared(m["de"], m["fr"]) for m in (one, other)]))
        return np.mean(gaps)

    checkpoint = write(root, many(4))
    assert gap({"de": "abcd", "fr": "wxyz"}) > 0.1
    assert abs(gap({"de": "abcd", "fr": "abcd"})) < 0.02


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_halves_of_no_data_are_refused(root, method):
    with pytest.raises(
        InputError, match=f"by the method '{method}', which looks at no data; expected 'fisher' or"
    ):
        extract_halves(open_checkpoint(write_examples(root)), method=method)


def write_examples(root):
    write(root, many(3))
    return root


def test_one_text_has_no_two_halves(root):
    checkpoint = write(root, [*many(4, ("de",)), {**many(1, ("fr",))[0]}])
    with pytest.raises(InputError, match="the examples of fr have no two halves: all 1 are alike"):
        extract_halves(checkpoint, method="fisher", model="base")


def test_what_is_recorded_is_json(root):
    checkpoint = write(root, many(4))
    one, _ = extract_halves(checkpoint, method="taylor", model="base", density=0.1)
    json.dumps(dict(one["de"].settings))
