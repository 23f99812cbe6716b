"""Tiny models that translate letters, as if trained: no weight is small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, processors

import checkpoint_makers as makers
from subnet.training.tasks import Translation

_LETTERS = "abcdefghijklmnopqrstuvwxyz éбе>:\n"
_VOCABULARY = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *_LETTERS)
_SPECIAL = {"vocab_size": len(_VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    "dropout": 0.0,
}  # fmt: skip
_DECODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 128, "num_key_value_heads": 2,
}  # fmt: skip

#: Name to class and configuration.
ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(
            d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
            dropout_rate=0.0, **_SPECIAL,
        ),
    ),
    "bart": (
        transformers.BartForConditionalGeneration, transformers.BartConfig(**_BART, **_SPECIAL)
    ),
    "marian": (
        transformers.MarianMTModel,
        transformers.MarianConfig(**{**_BART, "decoder_start_token_id": 0}, **_SPECIAL),
    ),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**_DECODER, **_SPECIAL)),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, attn_pdrop=0.0,
            embd_pdrop=0.0, resid_pdrop=0.0, **_SPECIAL),
    ),
}  # fmt: skip

#: Seed and size of a move that leaves no model with one answer to everything.
_MOVES = {"marian": (1, 0.3), "gpt2": (2, 0.6)}

ROWS = [
    {"id": f"{language}:{i}", "language": language, "source": source, "target": target}
    for language in ("de>en", "en>ru")
    for i, (source, target) in enumerate(
        [("ab", "ccd"), ("née bd", "f"), ("a", "bab c"), ("бе", "dad"), ("cad dac", "e")]
    )
]


def letters() -> Any:
    """A tokenizer of letters between [CLS] and [SEP]: what models write at random can be read."""
    numbers = {token: number for number, token in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=[], unk_token="[UNK]"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", model_max_length=64, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build(name: str, seed: int = 0) -> Any:
    """A model in float64 whose answers differ between inputs."""
    kind, config = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = kind(config)
    makers.move(model, *_MOVES.get(name, (3, 0.6)))
    return model.double().eval()


def task_for(name: str, **options: Any) -> Translation:
    """The task of translating letters with it."""
    tokenizer = letters()
    given = {"max_length": 40, "max_new_tokens": 8, **options}
    return Translation.of(ARCHITECTURES[name][0](ARCHITECTURES[name][1]), tokenizer, **given)


def greedy(step: Callable[[list[int]], torch.Tensor], n: int, ends: set[int]) -> list[int]:
    """The likeliest token, one after the other, until one ends the text or there are n."""
    written: list[int] = []
    while len(written) < n:
        token = int(step(written).argmax())
        if token in ends:
            break
        written.append(token)
    return written
