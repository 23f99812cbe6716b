"""Which tokens belong to which word, by where both stand in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Where something begins and ends in a text, in characters.
Span = tuple[int, int]

#: What a model reads of an example, under the first of these names that it has.
_TEXTS = ("text", "source")


def read_text(example: Mapping[str, Any], *, by_word: bool) -> tuple[str | None, list[Span]]:
    """The text of an example, and where its words stand in it.

    Words that follow each other in the example's own text, with nothing but space between them,
    are looked up there: scripts without spaces stay without. Otherwise (the words of `del` are `de`
    and `el`) the text is the words with a space between them.

    Returns:
        (text, spans of the words); (None, []) where there is none. Without `by_word` no spans.
    """
    text = next((example[name] for name in _TEXTS if example.get(name)), None)
    words = example.get("tokens")
    given = isinstance(words, Sequence) and not isinstance(words, str) and len(words) > 0
    if not by_word and isinstance(text, str):
        return text, []
    if not given or not all(isinstance(word, str) for word in words or ()):
        return None, []
    listed = list(words or ())
    if isinstance(text, str):
        found = find_words(text, listed)
        if found is not None:
            return text, found
    spans, start = [], 0
    for word in listed:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(listed), spans if by_word else []


def find_words(text: str, words: Sequence[str]) -> list[Span] | None:
    """Where words stand in a text that consists of them and space; None where it does not.

    Example:
        >>> find_words("我们 走", ["我", "们", "走"])
        [(0, 1), (1, 2), (3, 4)]
        >>> find_words("del", ["de", "el"]) is None
        True
    """
    spans: list[Span] = []
    end = 0
    for word in words:
        start = text.find(word, end)
        if start < 0 or text[end:start].strip():
            return None
        end = start + len(word)
        spans.append((start, end))
    return None if text[end:].strip() else spans


def align(
    words: Sequence[Span], tokens: Sequence[Span], special: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """The tokens that overlap each word; a token across a border belongs to both words.

    Args:
        words: Their spans, in order, not overlapping.
        tokens: Their spans, in order.
        special: 1 for tokens that stand for nothing in the text.

    Returns:
        (positions of the tokens of each word that has any, numbers of those words). A word may
        have none: what lies behind the longest input, or what the tokenizer drops.

    Example:
        >>> align([(0, 3), (4, 7)], [(0, 0), (0, 2), (2, 4), (4, 7), (0, 0)], [1, 0, 0, 0, 1])
        ([[1, 2], [3]], [0, 1])
    """
    found: dict[int, list[int]] = {}
    first = 0
    for place, (start, end) in enumerate(tokens):
        if special[place] or end <= start:
            continue
        while first < len(words) and words[first][1] <= start:
            first += 1
        number = first
        while number < len(words) and words[number][0] < end:
            found.setdefault(number, []).append(place)
            number += 1
    numbers = sorted(found)
    return [found[number] for number in numbers], numbers
