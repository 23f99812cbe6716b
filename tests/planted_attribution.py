"""Directories in which it is known whose training examples matter to whose tests, with texts.

The training examples of one language are copies of another's test examples: gradients of equal
inputs are equal at one checkpoint, and far from those of random texts. In the null directory all
languages draw their texts from one source and every stage has the same weights, so that names of
languages say nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import checkpoint_makers as makers
from subnet.training.tokenizer import build_tokenizer

LANGUAGES = ("de", "fr", "sw", "ru")
#: Language whose training examples are the test examples of which other.
COPIED = {"de": "fr", "fr": "de", "sw": "ru", "ru": "sw"}
N_TRAIN, N_TEST, RATE, STEPS = 12, 6, 0.01, 5
#: Letters of each language, of which no two share one.
_LETTERS = {"de": "abcdef", "fr": "ghijkl", "sw": "mnopqr", "ru": "stuvwx"}


def config() -> transformers.BertConfig:
    """Bytes in, three labels out."""
    return transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=24, num_labels=3, pad_token_id=0,
    )  # fmt: skip


def write_stages(
    root: Path, *, planted: bool = True, stages: bool = True, seed: int = 0, rates: bool = True
) -> Path:
    """A base with tokenizer, one LoRA carried through the languages, train and test examples.

    Args:
        root: Where to write.
        planted: Whether training examples are copies (`COPIED`), or all texts from one source.
        stages: Stages of one LoRA, else an adapter per language.
        seed: Seed of weights and texts.
        rates: Whether `subnet.toml` states the stages' rates.
    """
    torch.manual_seed(seed)
    base = transformers.BertForSequenceClassification(config())
    makers.move(base, seed + 3, size=0.3)
    makers.save_base(base, root / "base")
    build_tokenizer(24).save_pretrained(root / "base")
    clean = transformers.BertForSequenceClassification.from_pretrained(root / "base")
    adapted = makers.lora(clean, seed, target_modules=r".*layer\.\d\..*(query|value|dense)")
    lines = ["format = 1"]
    for number, label in enumerate(LANGUAGES, start=1):
        if planted:  # else checkpoints, too, are alike but for their names
            makers.move(adapted, seed + number, size=0.02)
        name = f"{number:02d}-{label}"
        makers.save_adapter(adapted, root / (f"stages/{name}" if stages else f"adapters/{label}"))
        if stages and rates:
            lines.append(f'[stages."{name}"]\nlearning_rate = {RATE}\nsteps = {STEPS}')
    (root / "subnet.toml").write_text("\n".join(lines) + "\n")
    train, test = _examples(planted=planted, seed=seed)
    makers.write_json_lines(root / "train.jsonl", train)
    makers.write_json_lines(root / "test.jsonl", test)
    return root


def write_scores(root: Path, seed: int = 0) -> None:
    """Losses over the stages, with which nothing has anything to do."""
    rng = np.random.default_rng(seed)
    lines = ["stage,trained_language,language,metric,value"]
    for stage, trained in enumerate(("", *LANGUAGES)):
        lines += [f"{stage},{trained},{label},loss,{1 + rng.random():.4f}" for label in LANGUAGES]
    (root / "scores.csv").write_text("\n".join(lines) + "\n")


def _examples(*, planted: bool, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)

    def text(letters: str) -> str:
        return "".join(rng.choice(list(letters), int(rng.integers(3, 15))))

    def rows(split: str, label: str, n: int, letters: str) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{label}-{split}-{i}", "language": label, "text": text(letters),
                "label": int(rng.integers(3)),
            }
            for i in range(n)
        ]  # fmt: skip

    everything = "".join(_LETTERS.values())
    test = {
        label: rows("test", label, N_TEST, _LETTERS[label] if planted else everything)
        for label in LANGUAGES
    }
    train: list[dict[str, Any]] = []
    for label in LANGUAGES:
        made = rows("train", label, N_TRAIN, everything)
        if planted:
            for place, row in enumerate(made):
                copied = test[COPIED[label]][place % N_TEST]
                row |= {"text": copied["text"], "label": copied["label"]}
        train += made
    return train, [row for rows_ in test.values() for row in rows_]
