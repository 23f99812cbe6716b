"""What models read: examples of languages, which of them are looked at, tokenised, in batches."""

from subnet.inputs.examples import (
    Example,
    Half,
    LanguageData,
    by_language,
    content,
    draw_alike,
    read_examples,
)
from subnet.inputs.tokenizing import load_tokenizer, set_direction, translates

__all__ = [
    "Example",
    "Half",
    "LanguageData",
    "by_language",
    "content",
    "draw_alike",
    "load_tokenizer",
    "read_examples",
    "set_direction",
    "translates",
]
