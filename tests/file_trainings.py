"""The smallest trainings from files: a folder of examples, a model folder, a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from subnet.training import TrainingConfig, build_tokenizer

LANGUAGES = ("de", "fr")


def examples(n: int = 6, languages: tuple[str, ...] = LANGUAGES, **fields: Any) -> list[dict]:
    """Texts with one of two labels."""
    return [
        {
            "id": f"{language}{i}", "language": language, "text": f"{'ab'[i % 2] * 3} {i}",
            "label": "xy"[i % 2], **fields,
        }
        for language in languages
        for i in range(n)
    ]  # fmt: skip


def write_lines(path: Path, rows: list[Any]) -> None:
    """A file of JSON lines, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_examples(folder: Path) -> None:
    """`train.jsonl` and `test.jsonl`."""
    write_lines(folder / "train.jsonl", examples())
    write_lines(folder / "test.jsonl", examples(2))


def write_model(folder: Path, kind: str = "BertForSequenceClassification") -> Any:
    """A small encoder with its tokenizer."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    config.id2label, config.label2id = {0: "x", 1: "y"}, {"x": 0, "y": 1}
    model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    build_tokenizer(64).save_pretrained(folder)
    return model


def file_config(**parts: Any) -> TrainingConfig:
    """Two languages of `data/`, one step each, from the model in `model/`."""
    content: dict[str, Any] = {
        "languages": list(LANGUAGES),
        "data": {"source": "files", "path": "data", "max_length": 32},
        "model": {"name": "model"},
        "base": {"steps": 1, "batch_size": 4},
        "adaptation": {"rank": 2},
        "training": {"steps": 1, "batch_size": 4},
    }
    for name, value in parts.items():
        both = isinstance(value, dict) and isinstance(content.get(name), dict)
        content[name] = {**content[name], **value} if both else value
    # What has no effect would be refused.
    if content["adaptation"].get("tuning") == "full":
        content["adaptation"] = {k: v for k, v in content["adaptation"].items() if k != "rank"}
    if content["base"].get("method") == "meta":
        content["base"] = {k: v for k, v in content["base"].items() if k != "batch_size"}
    return TrainingConfig.model_validate(content)
