"""A byte-level tokenizer: 256 bytes and three special tokens, the same for every script."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Special tokens, in the order of their ids.
SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]")

#: Tokens that the tokenizer adds to the bytes of a text.
ADDED_TOKENS = 2


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, one per byte of the UTF-8 text, between [CLS] and [SEP].

    Built of the standard parts of `tokenizers` (the byte alphabet of GPT-2 and no merges), so that
    `AutoTokenizer.from_pretrained` loads it without remote code.

    Args:
        max_length: Most tokens of an input, the two special ones included.

    Example:
        >>> len(build_tokenizer(32)("né")["input_ids"])  # [CLS], n, two bytes, [SEP]
        5
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, start, end = SPECIAL_TOKENS
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        cls_token=start,
        sep_token=end,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
