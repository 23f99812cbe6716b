"""Scores of translations are those that a reader finds who loads the delivered models.

What is loaded here, generates and is scored by `transformers`, `peft`, `sacrebleu` and `py3langid`
alone, one example at a time.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import peft
import py3langid
import pytest
import torch
import transformers
from sacrebleu.metrics import BLEU, CHRF

import checkpoint_makers as makers
import translation_makers as tiny
from file_trainings import write_lines
from subnet.training import train
from subnet.training.tasks import Translation
from training_makers import small_config

NEW_TOKENS = 19
CLASSES = {
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    "decoder": transformers.AutoModelForCausalLM,
}
GERMAN = ("gut", "rot", "alt", "neu", "kalt", "warm", "lang", "kurz", "nass", "weit")
ENGLISH = ("good", "red", "old", "new", "cold", "warm", "long", "short", "wet", "wide")


def sentences(numbers):
    """Of one form, which a small model learns in a few steps: some of it right, some too long."""
    rows = []
    for i in numbers:
        german, english = f"Das Haus ist heute {GERMAN[i]}", f"The house is {ENGLISH[i]} now"
        rows += [
            {"id": f"de{i}", "language": "de>en", "source": german, "target": english},
            {"id": f"en{i}", "language": "en>de", "source": english, "target": german},
        ]
    return rows


@pytest.fixture(
    scope="module",
    params=[("encoder-decoder", "full"), ("encoder-decoder", "lora"), ("decoder", "lora")],
    ids="-".join,
)
def delivered(request, tmp_path_factory):
    """Kind of model, directory of a short training, its test examples."""
    kind, tuning = request.param
    folder = tmp_path_factory.mktemp("delivered")
    write_lines(folder / "data/train.jsonl", sentences(range(6)))
    write_lines(folder / "data/test.jsonl", sentences(range(6, 10)))
    config = small_config(
        task="translation",
        languages=["en>de", "de>en"],
        data={"source": "files", "path": "data", "max_length": 64},
        model={"kind": kind, "layers": 1},
        base={"steps": 60, "batch_size": 8, "learning_rate": 1e-2},
        adaptation={"tuning": tuning},
        training={"steps": 30, "batch_size": 4},
        output={"stages": "all"},
        translation={"max_new_tokens": NEW_TOKENS},
    )
    train(config, folder / "run", folder=folder)
    lines = (folder / "run/test.jsonl").read_text(encoding="utf-8").splitlines()
    return kind, folder / "run", [json.loads(line) for line in lines]


def models_of(kind, folder):
    """Number of a stage and its model, the base first."""
    yield 0, CLASSES[kind].from_pretrained(folder / "base").eval()
    for place in sorted((folder / "stages").iterdir()):
        if (place / "adapter_config.json").is_file():
            base = CLASSES[kind].from_pretrained(folder / "base")
            model = peft.PeftModel.from_pretrained(base, place)
        else:
            model = CLASSES[kind].from_pretrained(place)
        yield int(place.name[:2]), model.eval()


def answer(kind, model, tokenizer, row):
    """Loss of one example, what the model writes, and in how many tokens."""
    source = row["source"] if kind == "encoder-decoder" else row["source"] + "\n"
    inputs = tokenizer(source, return_tensors="pt")
    target = tokenizer(row["target"])["input_ids"]
    if kind == "decoder":
        target, read = target[1:], inputs["input_ids"][0].tolist()  # no second start of text
        whole = {
            "input_ids": torch.tensor([read + target]),
            "labels": torch.tensor([[-100] * len(read) + target]),
        }
    else:
        whole = {**inputs, "labels": torch.tensor([target])}
    with torch.no_grad():
        loss = float(model(**whole).loss)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0]
    written = written[1 if kind == "encoder-decoder" else len(read) :]
    return loss, tokenizer.decode(written, skip_special_tokens=True).strip(), len(written)


def test_scores_and_items_are_those_of_generate_and_sacrebleu_on_the_delivered_models(delivered):
    kind, folder, rows = delivered
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    scores = pd.read_csv(folder / "scores.csv").set_index(["stage", "language", "metric"]).value
    items = pd.read_csv(folder / "items.csv").set_index(["stage", "item", "metric"]).value
    stated = json.loads((folder / "run.json").read_text())["translation"]["generation"]
    assert stated == {"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS}
    lengths, stages = [], []
    for stage, model in models_of(kind, folder):
        stages.append(stage)
        found = {row["id"]: answer(kind, model, tokenizer, row) for row in rows}
        for direction in {row["language"] for row in rows}:
            own = [row for row in rows if row["language"] == direction]
            texts = [found[row["id"]][1] for row in own]
            references = [row["target"] for row in own]
            per_item = {
                "loss": [found[row["id"]][0] for row in own],
                "sentence_chrf": [
                    CHRF().sentence_score(text, [reference]).score
                    for text, reference in zip(texts, references, strict=True)
                ],
                "sentence_bleu": [
                    BLEU(effective_order=True).sentence_score(text, [reference]).score
                    for text, reference in zip(texts, references, strict=True)
                ],
                "language_accuracy": [
                    float(py3langid.classify(text)[0] == direction[3:]) for text in texts
                ],
            }
            for metric, values in per_item.items():
                kept = [items[stage, row["id"], metric] for row in own]
                np.testing.assert_allclose(kept, values, rtol=2e-5, atol=1e-9, err_msg=metric)
                mean = scores[stage, direction, metric]
                assert mean == pytest.approx(np.mean(values), rel=2e-5, abs=1e-9), metric
            for name, metric in (("chrf", CHRF()), ("bleu", BLEU())):
                value = metric.corpus_score(texts, [references]).score
                assert scores[stage, direction, name] == pytest.approx(value, rel=1e-6), name
        lengths += [length for *_, length in found.values()]
    assert stages == [0, 1, 2]
    # Outputs that the limit cuts, and others; no score is at its lowest everywhere.
    assert min(lengths) < max(lengths) == NEW_TOKENS
    assert lengths.count(NEW_TOKENS) > len(rows)
    assert (scores.groupby("metric").max() > 0.5).all()


@pytest.fixture(scope="module")
def many_languages():
    """A model and a tokenizer that writes the code of the target language before the text."""
    letters = {
        token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdef"])
    }
    codes = ["deu_Latn", "eng_Latn", "rus_Cyrl"]
    tokenizer = transformers.NllbTokenizer(vocab=letters, merges=[], extra_special_tokens=codes)
    torch.manual_seed(0)
    model = transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=20,
            max_position_embeddings=40, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )  # fmt: skip
    makers.move(model, 5, 0.35)
    return model.double().eval(), tokenizer, dict(zip(("de", "en", "ru"), codes, strict=True))


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("new_tokens", [1, 5, 12])
def test_a_code_that_is_forced_counts_as_generate_counts_it(many_languages, beams, new_tokens):
    """Also in the length by which beams are compared; directions stand in one batch."""
    model, tokenizer, codes = many_languages
    task = Translation.of(model, tokenizer, max_length=12, max_new_tokens=new_tokens, beams=beams)
    rows = [
        {"language": language, "source": source, "target": "bad"}
        for language in ("de>en", "en>de", "de>ru")
        for source in ("abc", "f", "eda", "ccf")
    ]
    outputs = task.evaluate(model, rows, batch_size=5).outputs
    expected = []
    for row in rows:
        before, after = row["language"].split(">")
        tokenizer.src_lang = codes[before]
        written = model.generate(
            **tokenizer(row["source"], return_tensors="pt"),
            forced_bos_token_id=tokenizer.convert_tokens_to_ids(codes[after]),
            max_new_tokens=new_tokens, num_beams=beams, do_sample=False,
        )  # fmt: skip
        expected.append(tokenizer.decode(written[0], skip_special_tokens=True).strip())
    assert outputs == expected
    assert (len(set(outputs)) > 1) == (new_tokens > 1)  # one token is the code: nothing is left


@pytest.mark.parametrize("forced", [None, 1, 7])
def test_a_first_token_is_forced_where_the_model_s_settings_force_it(forced):
    """None: what the model writes first is its own, a start of text or not."""
    model, task = tiny.build("bart"), tiny.task_for("bart")
    model.generation_config.forced_bos_token_id = forced
    outputs = task.evaluate(model, tiny.ROWS, batch_size=4).outputs
    for row, output in zip(tiny.ROWS, outputs, strict=True):
        prompt = torch.tensor([task.tokenizer(row["source"])["input_ids"]])
        written = model.generate(prompt, max_new_tokens=8, do_sample=False)[0]
        assert output == task.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert forced != 7 or {output[:1] for output in outputs} == {task.tokenizer.decode([7])}


def test_a_model_writes_as_many_tokens_as_it_has_positions():
    model, tokenizer = tiny.build("bart"), tiny.letters()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.final_logits_bias[0, :4] = -1e9  # no end, no other special token
    positions = model.config.max_position_embeddings
    task = Translation.of(model, tokenizer, max_length=positions)
    (output,) = task.evaluate(model, tiny.ROWS[:1], batch_size=1).outputs
    assert len(output) == positions
