"""Translation as a task: losses, translations and scores against loops and sacrebleu itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import transformers
from sacrebleu.metrics import BLEU, CHRF

import checkpoint_makers as makers
import translation_makers as tiny
from subnet.errors import InputError, MissingInputError, UnknownLanguageError
from subnet.training.tasks import INSTRUCTION, Outcome, Translation
from subnet.training.tasks import _translation_language as language_module
from subnet.training.tasks import _translation_scores as scores_module
from subnet.training.tasks._translation_language import identified, why_not
from subnet.training.tasks._translation_rows import parse_direction
from subnet.training.tokenizer import build_tokenizer

ENCODER_DECODERS, DECODERS = ("t5", "bart", "marian"), ("llama", "gpt2")


@pytest.fixture(scope="module", params=[*ENCODER_DECODERS, *DECODERS])
def case(request):
    """A model, its task, and what it makes of the rows in one batch."""
    options = {} if request.param == "t5" else {"instruction": "{target_code} {source}"}
    model, task = tiny.build(request.param), tiny.task_for(request.param, **options)
    return model, task, task.evaluate(model, tiny.ROWS, batch_size=len(tiny.ROWS))


def prompt_of(task, row):
    text = row["source"]
    if task.instruction:
        text = task.instruction.format(target_code=row["language"][3:], source=text)
    elif not task.encoder_decoder:
        text += "\n"
    return task.tokenizer(text)["input_ids"]


def by_hand(model, task, row):
    """Loss and translation of one row: no padding, no cache, no collator."""
    prompt = torch.tensor([prompt_of(task, row)])
    text = task.tokenizer(row["target"])["input_ids"]  # [CLS], bytes, [SEP]
    if task.encoder_decoder:
        target, begun = text, [model.config.decoder_start_token_id]

        def logits(tokens):
            return model(input_ids=prompt, decoder_input_ids=torch.tensor([tokens])).logits[0]

        predicted = logits([*begun, *target[:-1]])
    else:
        target, begun = text[1:], prompt[0].tolist()

        def logits(tokens):
            return model(input_ids=torch.tensor([tokens])).logits[0]

        predicted = logits([*begun, *target[:-1]])[len(begun) - 1 :]
    with torch.no_grad():
        chosen = predicted.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
        written = tiny.greedy(lambda so_far: logits([*begun, *so_far])[-1], 8, {2})
    return -float(chosen.mean()), written


def test_losses_and_greedy_translations_are_those_of_single_examples(case):
    model, task, outcome = case
    for place, row in enumerate(tiny.ROWS):
        loss, written = by_hand(model, task, row)
        assert outcome.items["loss"][place] == pytest.approx(loss, rel=1e-9)
        text = task.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert outcome.outputs[place] == text
    assert len(set(outcome.outputs)) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_neither_company_nor_padding_changes_a_result(case, beams):
    model, task, _ = case
    task = Translation(**{**vars_of(task), "beams": beams, "max_new_tokens": 5})
    model.train()
    calls = []
    rows = tiny.ROWS[:6]
    whole = task.evaluate(model, rows, batch_size=6, on_batch=lambda: calls.append(1))
    assert len(calls) == 1
    assert model.training
    parts = task.evaluate(model, rows, batch_size=2, on_batch=lambda: calls.append(1))
    assert len(calls) == 4
    turned = task.evaluate(model, rows[::-1], batch_size=4)
    assert list(parts.outputs) == list(whole.outputs) == list(turned.outputs)[::-1]
    np.testing.assert_allclose(parts.items["loss"], whole.items["loss"], rtol=1e-9)
    np.testing.assert_allclose(turned.items["loss"][::-1], whole.items["loss"], rtol=1e-9)


def vars_of(task):
    return {name: getattr(task, name) for name in task.__dataclass_fields__}


def test_the_prompt_is_not_in_the_loss_and_the_target_is_to_its_end(case):
    _, task, _ = case
    for feature, row in zip(task.encode(tiny.ROWS), tiny.ROWS, strict=True):
        labels = [label for label in feature["labels"] if label != -100]
        assert labels[-1] == task.tokenizer.sep_token_id
        assert task.tokenizer.decode(labels, skip_special_tokens=True) == row["target"]
        prompt = prompt_of(task, row)
        if task.encoder_decoder:
            assert feature["input_ids"] == prompt
            assert len(labels) == len(feature["labels"])
        else:
            assert feature["input_ids"] == [*prompt, *labels]
            assert feature["labels"] == [*[-100] * len(prompt), *labels]


def test_a_model_trains_on_the_loss_that_is_evaluated(case):
    """The mean over tokens that the model itself returns, of one row at a time."""
    model, task, outcome = case
    for place in (0, 3):
        batch = task.collate(task.encode([tiny.ROWS[place]]))
        with torch.no_grad():
            assert float(model.eval()(**batch).loss) == pytest.approx(outcome.items["loss"][place])
    batch = task.collate(task.encode(tiny.ROWS[:3]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert int(batch["attention_mask"].sum()) == sum(
        len(feature["input_ids"]) for feature in task.encode(tiny.ROWS[:3])
    )


def test_what_a_model_s_own_generation_settings_ask_for_does_not_count():
    model, task = tiny.build("llama"), tiny.task_for("llama")
    expected = task.evaluate(model, tiny.ROWS, batch_size=4)
    model.generation_config.update(
        do_sample=True, temperature=9.0, repetition_penalty=5.0, max_length=3, min_length=30,
        no_repeat_ngram_size=1,
    )  # fmt: skip
    assert task.evaluate(model, tiny.ROWS, batch_size=4).outputs == expected.outputs
    # But a token that it takes for an end is one.
    letter = expected.outputs[0][2]
    model.generation_config.eos_token_id = [2, task.tokenizer(letter)["input_ids"][1]]
    ended = task.evaluate(model, tiny.ROWS, batch_size=4).outputs
    assert ended == [text.partition(letter)[0].strip() for text in expected.outputs]
    assert model.generation_config.repetition_penalty == 5.0  # as it was


LETTERS = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdef"])}
CODES = ["deu_Latn", "eng_Latn", "rus_Cyrl"]


@pytest.mark.parametrize("kind", ["m2m", "mbart"])
def test_generation_begins_with_the_code_of_each_row_s_target_language(kind):
    """M2M: by the token that generation is forced to begin with; mBART: by the decoder's start."""
    size = {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "vocab_size": 20, "max_position_embeddings": 40, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "m2m":
        tokenizer = transformers.NllbTokenizer(vocab=LETTERS, merges=[], extra_special_tokens=CODES)
        model = transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**size))
    else:
        # The layout of mBART's first version: what follows the text, not what precedes it.
        tokenizer = transformers.NllbTokenizer(
            vocab=LETTERS, merges=[], extra_special_tokens=CODES, legacy_behaviour=True
        )
        model = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**size))
    makers.move(model, *{"m2m": (5, 1.0), "mbart": (1, 0.3)}[kind])
    model = model.double().eval()
    task = Translation.of(model, tokenizer, max_length=12, max_new_tokens=6)
    rows = [
        {"language": language, "source": source, "target": "bad"}
        for language in ("de>en", "en>de", "de>ru")
        for source in ("abc", "f")
    ]
    outputs = task.evaluate(model, rows, batch_size=6).outputs
    codes = dict(zip(("de", "en", "ru"), tokenizer.convert_tokens_to_ids(CODES), strict=True))
    labels = task.encode(rows[:1])[0]["labels"]
    assert labels[{"m2m": 0, "mbart": -1}[kind]] == codes["en"]
    seen = set()
    for row, output in zip(rows, outputs, strict=True):
        before, after = row["language"].split(">")
        tokenizer.src_lang = {"de": CODES[0], "en": CODES[1]}[before]
        prompt = torch.tensor([tokenizer(row["source"])["input_ids"]])
        assert codes[before] in prompt[0].tolist()
        forced = (
            {"forced_bos_token_id": codes[after]}
            if kind == "m2m"
            else {"decoder_start_token_id": codes[after]}
        )
        written = model.generate(prompt, max_new_tokens=6, **forced)
        assert tokenizer.decode(written[0], skip_special_tokens=True).strip() == output
        seen.add(output)
    assert len(seen) > 2


def test_a_decoder_that_chats_reads_the_instruction_in_its_template():
    tokenizer = build_tokenizer(64)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    task = Translation(tokenizer, False, instruction=INSTRUCTION, chat=True)
    (feature,) = task.encode([{"language": "de>zh", "source": "gut", "target": "好"}])
    shown = "<user>Translate from German to Chinese: gut<assistant>"
    expected = tokenizer(shown, add_special_tokens=False)["input_ids"]
    assert feature["input_ids"][: len(expected)] == expected
    assert feature["labels"][: len(expected)] == [-100] * len(expected)
    assert feature["labels"][len(expected) :] == tokenizer("好")["input_ids"][1:]


def test_a_long_source_loses_its_end_and_the_instruction_stays_whole():
    tokenizer = build_tokenizer(64)
    task = Translation(
        tokenizer, False, instruction="<{source}> in {target_language}:", max_length=24
    )
    row = {"language": "de>en", "source": "ä" * 30, "target": "b" * 40}
    (feature,) = task.encode([row])
    prompt = [i for i, label in zip(feature["input_ids"], feature["labels"], strict=True)
              if label == -100]  # fmt: skip
    # 16 tokens are [CLS], [SEP] and the instruction; the others hold four letters of two bytes.
    assert tokenizer.decode(prompt, skip_special_tokens=True) == "<ääää> in English:"
    target = [label for label in feature["labels"] if label != -100]
    assert len(target) == 24
    assert target[-1] == tokenizer.sep_token_id
    other = Translation(tokenizer, True, max_length=24)
    (feature,) = other.encode([row])
    assert len(feature["input_ids"]) <= 24
    assert tokenizer.decode(feature["input_ids"], skip_special_tokens=True) == "ä" * 11
    assert (len(feature["labels"]), feature["labels"][-1]) == (24, tokenizer.sep_token_id)
    table = other.references([row, {**row, "source": "a", "target": "b"}])
    assert list(table[["source_cut_share", "target_cut_share"]].iloc[0]) == [0.5, 0.5]


TEXTS = {
    "de>en": [
        ("Die Sonne scheint heute.", "The sun is shining today.", "The sun is shining today."),
        ("Wo ist der Bahnhof?", "Where is the station?", "Where is a station now?"),
        ("Paris", "Paris", ""),
        ("1990", "1990", "Der Bahnhof ist hier."),
    ],
    "en>zh": [
        ("Where is the station?", "车站在哪里?", "车站在这里?"),
        ("The sun is shining.", "阳光明媚。", "阳光明媚。"),
    ],
    "en>th": [("Where is the station?", "สถานีอยู่ที่ไหน", "สถานีอยู่นี่")],
    "en>nb": [("Where is the station?", "Hvor ligger stasjonen?", "Hvor er jernbanestasjonen nå?")],
}
SACREBLEU = {"de>en": "13a", "en>zh": "zh", "en>th": "char", "en>nb": "13a"}


@pytest.fixture(scope="module")
def answered():
    """Rows of several directions, and a model that answers them as told."""
    rows = [
        {"language": language, "source": source, "target": target}
        for language, texts in TEXTS.items()
        for source, target, _ in texts
    ]
    return rows, [output for texts in TEXTS.values() for _, _, output in texts]


def outcome_of(task, rows, outputs, monkeypatch):
    module = sys.modules["subnet.training.tasks.translation"]
    monkeypatch.setattr(
        module, "translate", lambda *a, **k: (np.arange(len(rows), dtype=float), list(outputs))
    )
    return task.evaluate(None, rows, batch_size=4)


def test_scores_are_those_of_sacrebleu(answered, monkeypatch):
    rows, outputs = answered
    task = Translation(build_tokenizer(64), True)
    outcome = outcome_of(task, rows, outputs, monkeypatch)
    directions = np.array([row["language"] for row in rows])
    for direction, tokenizer in SACREBLEU.items():
        places = np.flatnonzero(directions == direction)
        own = [rows[i] for i in places]
        part = outcome.select(places)
        for item, row in enumerate(own):
            pair = part.outputs[item], [row["target"]]
            bleu = BLEU(effective_order=True, tokenize=tokenizer).sentence_score(*pair).score
            assert part.items["sentence_chrf"][item] == CHRF().sentence_score(*pair).score
            assert part.items["sentence_bleu"][item] == min(bleu, 100.0)
        found = {score.metric: score for score in task.summarise(own, part)}
        whole = list(part.outputs), [[row["target"] for row in own]]
        assert found["chrf"].value == CHRF().corpus_score(*whole).score
        bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
        assert found["bleu"].value == bleu.corpus_score(*whole).score
        assert found["sentence_chrf"].value == part.items["sentence_chrf"].mean()
        assert found["loss"].value == places.mean()
        assert found["chrf"].stderr is None
        assert set(found) == set(task.metrics)
        chrf.corpus_score(*whole)
        table = task.references(own).iloc[0]
        assert table["chrf_signature"] == str(chrf.get_signature())
        assert table["bleu_signature"] == str(bleu.get_signature())
        recorded = task.describe(own)
        assert recorded["bleu_tokenizer"] == {direction: tokenizer}
        assert recorded["signatures"][tokenizer]["bleu"] == str(bleu.get_signature())
    # The corpus is no mean of sentences, and must not bear the name of one.
    assert abs(found["chrf"].value - found["sentence_chrf"].value) < 1e-9  # one sentence only
    german = outcome.select(np.flatnonzero(directions == "de>en"))
    scores = {s.metric: s.value for s in task.summarise(rows[:4], german)}
    assert abs(scores["chrf"] - scores["sentence_chrf"]) > 1


def test_a_perfect_translation_scores_100_and_not_more(monkeypatch):
    rows = [{"language": "de>en", "source": "x", "target": "The cat sat on the mat here."}] * 3
    task = Translation(build_tokenizer(64), True)
    outcome = outcome_of(task, rows, [row["target"] for row in rows], monkeypatch)
    found = {score.metric: score.value for score in task.summarise(rows, outcome)}
    assert (found["chrf"], found["bleu"]) == (100.0, 100.0)
    assert outcome.items["sentence_bleu"].max() == 100.0


def test_the_language_of_an_output_is_told_and_of_an_empty_one_is_not(answered, monkeypatch):
    rows, outputs = answered
    task = Translation(build_tokenizer(64), True, identify_among=("en", "de", "zh", "th", "nb"))
    found = outcome_of(task, rows, outputs, monkeypatch).items["language_accuracy"]
    assert found.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]  # nothing is no English, nor is German
    english = parse_direction("de>en")[1]
    # py3langid answers its first language, Afrikaans, where it sees nothing it knows.
    afrikaans = parse_direction("de>af")[1]
    assert identified(["", "1990", "!"], [afrikaans] * 3).tolist() == [0, 0, 0]
    assert identified(["The sun is shining today."], [english]).tolist() == [1]


def test_beside_the_scores_stand_references_and_copies(answered):
    rows, _ = answered
    task = Translation(build_tokenizer(64), True, identify_among=("en", "de", "zh", "th", "nb"))
    table = task.references(rows).set_index("language")
    assert list(table.index) == list(TEXTS)
    german = table.loc["de>en"]
    assert (german["n"], german["copy_share"]) == (4, 0.5)
    # The two sentences are told; a year is not; what Paris is taken for is py3langid's affair.
    assert german["reference_language_accuracy"] in (0.5, 0.75)
    assert german["copy_language_accuracy"] in (0.0, 0.25)
    copies = [source for source, _, _ in TEXTS["de>en"]]
    expected = CHRF().corpus_score(copies, [[target for _, target, _ in TEXTS["de>en"]]]).score
    assert german["copy_chrf"] == expected
    assert table.loc["en>zh", "reference_language_accuracy"] == 1
    assert table.loc["en>zh", "copy_language_accuracy"] == 0
    assert set(table["reason"]) == {""}


def test_a_language_that_cannot_be_told_is_left_out_and_says_why():
    quechua_like = {"language": "en>chr", "source": "a", "target": "ᎣᏏᏲ"}
    task = Translation(build_tokenizer(64), True)
    row = task.references([quechua_like]).iloc[0]
    assert np.isnan(row["reference_language_accuracy"])
    assert row["reason"] == "py3langid does not know Cherokee"
    outcome = Outcome(
        {name: np.array([np.nan if "language" in name else 1.0])
         for name in ("loss", "sentence_chrf", "sentence_bleu", "language_accuracy")},
        ["a"],
    )  # fmt: skip
    names = [score.metric for score in task.summarise([quechua_like], outcome)]
    assert names == ["loss", "sentence_chrf", "sentence_bleu", "chrf", "bleu"]
    english = parse_direction("de>en")[1]
    assert "fewer than two" in why_not(english, ("en", "chr"))
    assert "not among the languages" in why_not(english, ("de", "fr"))
    assert np.isnan(identified(["The sun is shining."], [english], ("de", "fr"))).all()


def test_sentences_to_align_carry_no_instruction_and_a_number_of_their_meaning():
    task = Translation(
        build_tokenizer(64), True, instruction="to {target_code}: {source}", align=True
    )
    rows = [
        {"language": "de>en", "source": "gut", "target": "good", "concept": "g"},
        {"language": "ru>en", "source": "да", "target": "yes"},
        {"language": "de>ru", "source": "gut", "target": "хорошо", "concept": "g"},
    ]
    parts = [feature["alignment"] for feature in task.encode(rows)]
    for part, row in zip(parts, rows, strict=True):
        assert part["a"] == task.tokenizer(row["source"])["input_ids"]
        assert part["b"] == task.tokenizer(row["target"])["input_ids"]
    assert parts[0]["group"] == parts[2]["group"] != parts[1]["group"]
    batch = task.collate(task.encode(rows))["alignment"]
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "group": (3,), "a": (3, 6), "a_mask": (3, 6), "b": (3, 14), "b_mask": (3, 14),
    }  # fmt: skip
    assert "alignment" not in tiny.task_for("t5").collate(tiny.task_for("t5").encode(rows))


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"target": None}, InputError, "row 2 (x) has no 'target'; expected {"),
        ({"target": "  "}, InputError, "row 2 (x) has no 'target' but ' '"),
        ({"source": 3}, InputError, "row 2 (x) has no 'source' but 3"),
        ({"language": "de"}, InputError, "'de' is no direction of translation; expected source>t"),
        ({"language": "de>en>fr"}, InputError, "'de>en>fr' is no direction"),
        ({"language": "de>q1"}, UnknownLanguageError, "'q1' is no language code"),
        ({"language": "de>deu"}, InputError, "'de>deu' translates German into itself"),
        ({"source_language": "fr"}, InputError,
         "row 2 (x) has the language 'de>en' and the source_language 'fr'; expected the same"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(row, error, message):
    task = Translation(build_tokenizer(64), True)
    good = {"id": "x", "language": "de>en", "source": "a", "target": "b"}
    for use in (task.encode, task.references, lambda rows: task.evaluate(None, rows, batch_size=1)):
        with pytest.raises(error) as caught:
            use([good, {**good, **row}])
        assert message in str(caught.value)
    # The same languages by other names agree.
    assert task.encode([{**good, "source_language": "deu", "target_language": "eng_Latn"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instruction": "to {language}: {source}"}, "names {language}; expected {source}, and if"),
        ({"instruction": "to {target_code}"}, "does not name {source} once"),
        ({"instruction": "{source} {source}"}, "does not name {source} once"),
        ({"instruction": "{source.__class__}"}, "names {source.__class__}"),
        ({"instruction": "{source"}, "cannot be read"),
        ({"chat": True}, "chat was asked for with an encoder-decoder"),
        ({"encoder_decoder": False, "chat": True}, "a tokenizer without template"),
        ({"beams": 0}, "beams is 0"),
        ({"max_length": 1}, "max_length is 1"),
        ({"tokenizer": "endless"}, "has no token that ends a text"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options, message):
    given = {"tokenizer": build_tokenizer(64), "encoder_decoder": True, **options}
    if given["tokenizer"] == "endless":
        given["tokenizer"] = build_tokenizer(64)
        given["tokenizer"].sep_token = None
    with pytest.raises(InputError) as caught:
        Translation(**given)
    assert message in str(caught.value)


def test_models_and_lengths_that_do_not_fit_are_refused():
    tokenizer = build_tokenizer(64)
    with pytest.raises(InputError, match="need 200 positions and the model has 128"):
        Translation.of(tiny.build("gpt2"), tokenizer, max_length=100)
    with pytest.raises(InputError, match="need 65 positions and the model has 64"):
        Translation.of(tiny.build("bart"), tokenizer, max_length=64, max_new_tokens=65)
    with pytest.raises(InputError, match="BertForSequenceClassification cannot generate"):
        Translation.of(makers.bert(), tokenizer)
    long = Translation(
        tokenizer, True, instruction="a very long instruction: {source}", max_length=9
    )
    with pytest.raises(InputError, match="the instruction alone takes 27 tokens; expected less"):
        long.encode(tiny.ROWS)
    task = Translation(tokenizer, True)
    with pytest.raises(InputError, match="there are no rows"):
        task.encode([])
    outcome = Outcome({}, ["a"] * len(tiny.ROWS))
    with pytest.raises(InputError, match="rows of de>en and en>ru are summarised together"):
        task.summarise(tiny.ROWS, outcome)


@pytest.mark.parametrize("package", ["sacrebleu", "py3langid"])
def test_without_the_extra_it_says_what_to_install(package, monkeypatch):
    caches = (scores_module._chrf, scores_module._bleu, language_module._identifier,
              language_module._subtags, language_module._known)  # fmt: skip
    for cache in caches:
        monkeypatch.setattr(sys.modules[cache.__module__], cache.__name__, cache.__wrapped__)
    for module in (package, f"{package}.metrics", f"{package}.langid"):
        monkeypatch.setitem(sys.modules, module, None)
    task = Translation(build_tokenizer(64), True)
    rows = [{"language": "de>en", "source": "a", "target": "b"}]
    with pytest.raises(MissingInputError) as caught:
        task.references(rows)
    assert str(caught.value) == (
        f"scoring translations needs {package}, which is not installed; "
        'pip install "subnet-toolkit[translation]"'
    )
    assert task.encode(rows)  # training needs neither
