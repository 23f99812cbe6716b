"""Tiny models of every architecture with a padded batch each, as if trained: no weight is small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from checkpoint_makers import _seeded, bert, gpt2, llama, lora, m2m, move, mt5, qwen3, xlm_roberta

LENGTHS = (6, 3, 4)


def gemma(seed: int = 0) -> Any:
    """Decoder whose heads are wider than the model divided by their number; one key head."""
    config = transformers.GemmaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, intermediate_size=24, max_position_embeddings=32,
        pad_token_id=0,
    )  # fmt: skip
    return _seeded(seed, transformers.GemmaForCausalLM, config)


def qwen2(seed: int = 0) -> Any:
    """Decoder with grouped queries and biases on queries, keys and values."""
    config = transformers.Qwen2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    return _seeded(seed, transformers.Qwen2ForCausalLM, config)


def bert_tagger(seed: int = 0) -> Any:
    """Encoder with a label for every token."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=16, num_labels=5,
    )  # fmt: skip
    return _seeded(seed, transformers.BertForTokenClassification, config)


def bert_lora(seed: int = 0) -> Any:
    """PEFT on every matrix of the encoder, the output projections too."""
    return lora(bert(seed), 1, target_modules=r".*encoder\.layer.*(query|key|value|dense)")


def qwen3_lora(seed: int = 0) -> Any:
    """PEFT on every matrix of a decoder."""
    return lora(qwen3(seed), 1, target_modules="all-linear")


#: Name to maker, task, suffixes of the output projections, heads, width of a head, and suffixes of
#: the down projections: written down by hand from the models' source.
ARCHITECTURES: dict[str, tuple[Callable[..., Any], str, str, int, int, tuple[str, ...]]] = {
    "bert": (bert, "sequence", "attention.output.dense", 2, 8, (".output.dense",)),
    "bert_tagger": (bert_tagger, "token", "attention.output.dense", 4, 4, (".output.dense",)),
    "xlm_roberta": (xlm_roberta, "sequence", "attention.output.dense", 2, 8, (".output.dense",)),
    "qwen2": (qwen2, "causal", "self_attn.o_proj", 4, 4, ("mlp.down_proj",)),
    "qwen3": (qwen3, "causal", "self_attn.o_proj", 4, 8, ("mlp.down_proj",)),
    "llama": (llama, "causal", "self_attn.o_proj", 2, 8, ("mlp.down_proj",)),
    "gemma": (gemma, "causal", "self_attn.o_proj", 4, 8, ("mlp.down_proj",)),
    "gpt2": (gpt2, "causal", "attn.c_proj", 2, 8, ("mlp.c_proj",)),
    "mt5": (mt5, "seq2seq", "Attention.o", 2, 8, ("DenseReluDense.wo",)),
    "m2m": (m2m, "seq2seq", "_attn.out_proj", 2, 8, ("fc2",)),
    "bert_lora": (bert_lora, "sequence", "attention.output.dense", 2, 8, (".output.dense",)),
    "qwen3_lora": (qwen3_lora, "causal", "self_attn.o_proj", 4, 8, ("mlp.down_proj",)),
}


def make(name: str) -> Any:
    """The model in float64 with weights of a size that training would give."""
    model = ARCHITECTURES[name][0]()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    move(model, 7, size=0.3)
    return model.double().eval()


def examples(name: str, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[dict[str, Any]]:
    """Unpadded examples of different lengths, with labels that skip some tokens."""
    task = ARCHITECTURES[name][1]
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, n in enumerate(lengths):
        ids = torch.randint(5, 40, (n,), generator=generator).tolist()
        row: dict[str, Any] = {"input_ids": ids}
        if task == "sequence":
            row["labels"] = number % 3
        elif task == "token":
            row["labels"] = [-100, *(int(i) % 5 for i in ids[1:])]
        elif task == "causal":
            row["labels"] = [*([-100] * (n // 2)), *ids[n // 2 :]]
        else:
            row["labels"] = torch.randint(5, 40, (n - 1,), generator=generator).tolist()
        rows.append(row)
    return rows


def collate_for(name: str, *, extra: int = 0, left: bool = False) -> Callable[..., Any]:
    """Pads to the longest of a batch and `extra` tokens more."""
    padding_id = 1 if name == "xlm_roberta" else 0

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows)) + extra
        fill = [[value] * (width - len(row)) for row in rows]
        return torch.tensor([f + r if left else r + f for r, f in zip(rows, fill, strict=True)])

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        assert all("language" not in row for row in rows)
        ids = [row["input_ids"] for row in rows]
        batch = {
            "input_ids": pad(ids, padding_id),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
        }
        if isinstance(rows[0]["labels"], int):
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        else:
            batch["labels"] = pad([row["labels"] for row in rows], -100)
        return batch

    return collate


def batch_of(name: str) -> dict[str, torch.Tensor]:
    """A padded batch of three."""
    return collate_for(name)(examples(name))


def base_of(model: Any) -> Any:
    """The model under PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def ended_by(model: Any, suffixes: str | tuple[str, ...]) -> list[str]:
    """Modules of the repeated layers by the ends of their names, in order of definition."""
    return [
        name
        for name, module in base_of(model).named_modules()
        if name.endswith(suffixes) and any(part.isdigit() for part in name.split("."))
        and ".lora_" not in name
    ]  # fmt: skip


def output_projections(name: str, model: Any) -> list[str]:
    """The attention output projections, by the hand-written names."""
    return ended_by(model, ARCHITECTURES[name][2])


def down_projections(name: str, model: Any) -> list[str]:
    """The FFN down projections, by the hand-written names."""
    found = ended_by(model, ARCHITECTURES[name][5])
    return [path for path in found if path not in output_projections(name, model)]
