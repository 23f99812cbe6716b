"""Cutting texts of every script into tokens that can be counted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from subnet.errors import InputError

# Scripts that put no spaces between words: Thai and Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = (
    "\u0e01-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17d3\u3005\u3007\u3041-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_RUN = re.compile(f"([{_UNSPACED}]+)")


def split_words(text: str) -> list[str]:
    r"""Tokens of `bm25(tokens="words")`: words, and pairs of characters where no space parts them.

    Combining marks belong to their word: `\w` of Python's `re` leaves them out, which cuts Hindi
    at every vowel sign.

    Example:
        >>> split_words("Der Hund, हिन्दी 東京都")
        ['der', 'hund', 'हिन्दी', '東京', '京都']
    """
    found: list[str] = []
    for word in _words(text):
        for part in _UNSPACED_RUN.split(word):
            if _UNSPACED_RUN.fullmatch(part) and len(part) > 1:
                found.extend(part[at : at + 2] for at in range(len(part) - 1))
            elif part:
                found.append(part)
    return found


def _words(text: str) -> list[str]:
    """Runs of letters, marks and digits, normalised and without case."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return "".join(kept).split()


def tokeniser(tokens: Any, n: int) -> Callable[[str], Sequence[Hashable]]:
    """The function from a text to its tokens that a setting of `bm25` names."""
    if callable(tokens):
        cut: Callable[[str], Sequence[Hashable]] = tokens
        return cut
    if tokens == "words":
        return split_words
    if tokens != "characters":
        raise InputError(
            f"tokens is {tokens!r}", expected="'words', 'characters', or a function of a text"
        )
    if n < 1:
        raise InputError(f"n is {n}", expected="1 or more characters")

    def grams(text: str) -> list[str]:
        framed = [f" {word} " for word in _words(text)]
        return [w[at : at + n] for w in framed for at in range(max(1, len(w) - n + 1))]

    return grams
