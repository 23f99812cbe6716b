"""Models in which it is known which units carry which language, and checkpoints to try masks on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import checkpoint_makers as makers
from subnet.training.tokenizer import build_tokenizer

LANGUAGES = ("de", "fr", "sw", "th")
N_CLASSES = 3
N_HEADS = 64
#: Language to the eight heads that alone read its tokens; half of all heads read nothing.
CARRIERS = {label: tuple(range(i, N_HEADS, 8)) for i, label in enumerate(LANGUAGES)}
_END = 4 * len(LANGUAGES)


def carried() -> Any:
    """A decoder for classification, written down by hand.

    Tokens of language i are the unit vectors 4i, 4i+1, 4i+2, one for each class. Attention is
    uniform (queries and keys are 0), every language's subspace is read by its eight heads and by no
    other, and what they read is all that the classifier sees. FFNs are 0.
    """
    config = transformers.LlamaConfig(
        vocab_size=_END + 1, hidden_size=64, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=N_HEADS, num_key_value_heads=N_HEADS, head_dim=4, num_labels=N_CLASSES,
        max_position_embeddings=32, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1 if "norm" in name else 0)
        embeddings = model.model.embed_tokens.weight
        for token in range(_END):
            embeddings[token, token] = 1
        embeddings[_END, 23] = 1  # the last token, alike in all languages
        attention = model.model.layers[0].self_attn
        for i, label in enumerate(LANGUAGES):
            for head in CARRIERS[label]:
                for c in range(N_CLASSES):
                    attention.v_proj.weight[4 * head + c, 4 * i + c] = 1
                    attention.o_proj.weight[16 + c, 4 * head + c] = 1
        for c in range(N_CLASSES):
            model.score.weight[c, 16 + c] = 0.3
    return model.eval()


def carried_examples(n: int, seed: int = 0, *, concepts: bool = True) -> list[dict[str, Any]]:
    """Parallel sentences of mixed class tokens, labelled by the most frequent one."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        label = int(rng.integers(N_CLASSES))
        length = int(rng.integers(3, 8))
        classes = np.where(rng.random(length) < 0.7, label, rng.integers(N_CLASSES, size=length))
        for i, language in enumerate(LANGUAGES):
            ids = [*(4 * i + int(c) for c in classes), _END]
            row = {"language": language, "input_ids": ids, "labels": label}
            rows.append({**row, "concept": f"c{number}"} if concepts else row)
    return rows


TEXTS = {
    "de": ("Rom", "Köln", "Meter", "Kilogramm", "Latein", "Zeit", "Bonn", "Elle", "Wien"),
    "fr": ("Nice", "Lyon", "mètre", "gramme", "latin", "heures", "Paris", "aune", "Metz"),
    "sw": ("Roma", "Kampala", "mita", "gramu", "Kilatini", "saa", "Tanga", "pima", "Voi"),
}
KINDS = ("city", "city", "unit", "unit", "script", "unit", "city", "unit", "city")


def bert_config() -> transformers.BertConfig:
    """Bytes in, three kinds out."""
    names = ("city", "unit", "script")
    return transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=24, num_labels=3, pad_token_id=0,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip


def write_checkpoint(root: Path, *, stages: bool = False, **settings: Any) -> Path:
    """A base with tokenizer, an adapter per language (or a stage), train and test examples."""
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(bert_config())
    makers.move(base, 3, size=0.3)
    makers.save_base(base, root / "base")
    build_tokenizer(24).save_pretrained(root / "base")
    options = {"target_modules": r".*layer\.\d\..*(query|value|dense)"} | settings
    for seed, label in enumerate(TEXTS, start=1):
        clean = transformers.BertForSequenceClassification.from_pretrained(root / "base")
        adapted = makers.lora(clean, seed, **options)
        makers.move(adapted, seed, size=0.3)
        place = f"stages/{seed:02d}-{label}" if stages else f"adapters/{label}"
        makers.save_adapter(adapted, root / place)
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 9))):
        rows = [
            {"id": f"{k}{i}", "language": k, "text": text, "label": KINDS[i], "concept": f"c{i}"}
            for k, texts in TEXTS.items()
            for i, text in list(enumerate(texts))[part]
        ]
        makers.write_json_lines(root / f"{split}.jsonl", rows)
    return root
