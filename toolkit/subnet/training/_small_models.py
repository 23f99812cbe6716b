"""Small models of the sizes that a configuration names, from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subnet.training.config import TrainingConfig
from subnet.training.tokenizer import SPECIAL_TOKENS


def small_encoder(config: TrainingConfig, labels: Sequence[str], vocabulary: int) -> Any:
    """A BERT that classifies texts or tokens."""
    import transformers

    sizes = config.model
    settings = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=config.data.max_length,
        type_vocab_size=1,
        initializer_range=sizes.initializer_range,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=SPECIAL_TOKENS.index("[PAD]"),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    if config.task == "sequence-classification":
        return transformers.BertForSequenceClassification(settings)
    return transformers.BertForTokenClassification(settings)


def small_writer(config: TrainingConfig, _: Sequence[str], vocabulary: int) -> Any:
    """A T5, or a Llama, that translates."""
    import transformers

    sizes = config.model
    special = {
        "vocab_size": vocabulary,
        "pad_token_id": SPECIAL_TOKENS.index("[PAD]"),
        "bos_token_id": SPECIAL_TOKENS.index("[CLS]"),
        "eos_token_id": SPECIAL_TOKENS.index("[SEP]"),
    }
    if sizes.kind == "encoder-decoder":
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=sizes.width,
                d_kv=sizes.width // sizes.heads,
                d_ff=sizes.feed_forward,
                num_layers=sizes.layers,
                num_heads=sizes.heads,
                decoder_start_token_id=special["pad_token_id"],
                dropout_rate=0.0,
                **special,
            )
        )
    written = config.translation.max_new_tokens or config.data.max_length
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.feed_forward,
            max_position_embeddings=config.data.max_length + max(config.data.max_length, written),
            initializer_range=sizes.initializer_range,
            **special,
        )
    )
