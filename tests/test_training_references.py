"""`references.csv`: what the scores of a translation are to be read beside, in every directory."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import sacrebleu
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from transformers import AutoTokenizer

from file_trainings import write_lines
from subnet.checkpoint import open_checkpoint
from subnet.training import train

SENTENCES = {
    "de": ["Wo ist der Bahnhof bitte?", "Das Wetter ist heute schön.", "Berlin", "Ich bin müde."],
    "en": ["Where is the station please?", "The weather is nice today.", "Berlin", "I am tired."],
    "th": ["สถานีอยู่ที่ไหน", "วันนี้อากาศดี", "เบอร์ลิน", "ฉันเหนื่อย"],
    "mi": ["Kei hea te teihana?", "He pai te rangi i tēnei rā.", "Berlin", "Kua ngenge ahau."],
}
DIRECTIONS = ("de>en", "en>de", "en>th", "en>mi")
MOST = 36

CONFIG = f"""
task = "translation"
languages = ["de>en"]
[data]
source = "files"
path = "data"
max_length = {MOST}
[model]
layers = 1
width = 16
heads = 2
feed_forward = 16
[base]
steps = 1
batch_size = 4
[adaptation]
rank = 2
[training]
steps = 1
batch_size = 4
[translation]
also_tested = ["en>de", "en>th", "en>mi"]
identify_among = ["de", "en", "th"]
max_new_tokens = 2
[output]
stages = "none"
"""


def rows(directions, part):
    return [
        {"id": f"{d}:{part}{i}", "language": d, "source": source, "target": target}
        for d in directions
        for i, (source, target) in enumerate(
            zip(*(SENTENCES[side] for side in d.split(">")), strict=True)
        )
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    write_lines(folder / "data/train.jsonl", rows(("de>en",), "train"))
    write_lines(folder / "data/test.jsonl", rows(DIRECTIONS, "test"))
    (folder / "run.toml").write_text(CONFIG, encoding="utf-8")
    return train(folder / "run.toml", folder / "run")


def expected(base):
    """Language, baseline and metric to a value, by the libraries themselves and loops."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(["de", "en", "th"])  # Māori is none that it knows
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = {}
    for direction in DIRECTIONS:
        before, after = direction.split(">")
        sources, targets = SENTENCES[before], SENTENCES[after]
        for baseline, texts in (("reference", targets), ("copy", sources)):
            right = [identifier.classify(text)[0] == after for text in texts]
            accuracy = float("nan") if after == "mi" else sum(right) / len(right)
            found[direction, baseline, "language_accuracy"] = accuracy
            cut = [len(tokenizer(text)["input_ids"]) > MOST for text in texts]
            found[direction, baseline, "cut_share"] = sum(cut) / len(cut)
        kind = "char" if after == "th" else "13a"
        bleu = sacrebleu.corpus_bleu(sources, [targets], tokenize=kind).score
        found[direction, "copy", "bleu"] = bleu
        found[direction, "copy", "chrf"] = sacrebleu.corpus_chrf(sources, [targets]).score
        same = [source == target for source, target in zip(sources, targets, strict=True)]
        found[direction, "copy", "equal_share"] = sum(same) / len(same)
    return found


def test_references_and_copies_score_what_the_libraries_say(trained):
    wanted = expected(trained.path / "base")
    assert len({value for (_, _, name), value in wanted.items() if name == "chrf"}) == 3
    assert 0 < wanted["en>th", "reference", "cut_share"] < 1
    for cell in trained.cells:
        frame = pd.read_csv(cell / "references.csv", keep_default_na=False, na_values={"value": ""})
        assert list(frame) == [
            "language", "baseline", "metric", "value", "n", "signature", "reason",
        ]  # fmt: skip
        found = frame.set_index(["language", "baseline", "metric"])["value"]
        assert set(found.index) == set(wanted)
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, rel=1e-6, nan_ok=True), key
        assert set(frame["n"]) == {4}
        unknown = frame[frame["reason"] != ""]
        assert set(unknown["language"]) == {"en>mi"}
        assert set(unknown["metric"]) == {"language_accuracy"}
        assert unknown["reason"].str.contains("Maori|Māori").all()
        assert unknown["value"].isna().all()
        signed = frame[frame["signature"] != ""]
        assert set(signed["metric"]) == {"chrf", "bleu"}
        thai = signed[(signed["language"] == "en>th") & (signed["metric"] == "bleu")]
        assert "tok:char" in thai["signature"].iloc[0]


def test_they_join_the_scores_and_are_none(trained):
    for cell in trained.cells:
        checkpoint = open_checkpoint(cell)
        frame = pd.read_csv(cell / "references.csv")
        scores = checkpoint.scores.frame
        assert set(frame["language"]) == set(scores["language"])
        assert {"language_accuracy", "chrf", "bleu"} <= set(scores["metric"])
        assert not {"cut_share", "equal_share"} & set(scores["metric"])
        losses = scores[scores["metric"] == "chrf"]["value"]
        assert np.isfinite(losses).all()
        assert not checkpoint.skipped


def test_inspect_shows_them(subnet, trained):
    code, out, _ = subnet("inspect", trained.cells[0], "--json")
    assert code == 0
    (entry,) = [e for e in json.loads(out)["recognised"] if e["path"] == "references.csv"]
    assert entry["kind"] == "training_record"
    assert entry["recognised_as"] == "what references and copies of the source score"


def test_other_tasks_have_none(tmp_path):
    from subnet.training._directory import write_references

    write_references(None, object(), tmp_path)
    assert not list(tmp_path.iterdir())
