"""Slot filling in every language, from CLDR: terms in a list, to be found and told apart.

"Alemania, Kanadisch und Euro": the list pattern of the language joins two or three terms of
different kinds. A term's tokens are tagged `B-territory`, `I-territory`; what joins them is `O`.
The same lists of concepts exist in all languages, in the same order.
"""

from __future__ import annotations

import random
import re
from typing import Any

from subnet.training.data import DemoData, Example

#: Stands for a term while the language's list pattern is filled; no locale's pattern has it.
_PLACES = tuple(f"\ue000{n}\ue001" for n in range(3))

#: Scripts that write without spaces between words: Thai and Lao, Burmese, Khmer, Han with kana.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff"
#: Their vowel signs and tone marks, which stay with the letter before them.
_MARKS = (
    r"\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    r"\u102b-\u103e\u1056-\u1059\u17b4-\u17d3"
)
#: Words between spaces; letters of scripts that write without spaces stand alone.
_TOKEN = re.compile(f"[{_UNSPACED}][{_MARKS}]*|[^\\s{_UNSPACED}]+")


def load_slots(data: DemoData, part: str, *, seed: int = 0) -> tuple[dict[str, Any], ...]:
    """Lists of two or three terms with a tag for every token.

    Every concept of the part has a list of its own, so that all are seen; the others of a list are
    drawn from concepts of other kinds, and stand before or after it. Concepts never leave their
    part.

    Args:
        data: Terms in all languages.
        part: `train`, `validation` or `test`.
        seed: Seed of the draws.

    Returns:
        Rows with id, language, tokens, tags and concept (the list, the same in every language);
        languages in order, within each the lists in the same order.
    """
    terms: dict[tuple[str, str], Example] = {
        (example.language, example.concept): example for example in getattr(data, part)
    }
    first = data.languages[0].label
    concepts = [concept for language, concept in terms if language == first]
    kind = {concept: terms[first, concept].label for concept in concepts}
    rng = random.Random(f"{seed}/{part}")  # noqa: S311 - no secret
    lists = []
    for concept in concepts:
        chosen = [concept]
        for _ in range(rng.choice((1, 2))):
            others = [c for c in concepts if kind[c] not in {kind[taken] for taken in chosen}]
            if others:
                chosen.append(rng.choice(others))
        rng.shuffle(chosen)
        lists.append(chosen)
    rows = []
    for language in data.languages:
        for number, chosen in enumerate(lists):
            key = "+".join(chosen)
            own = [terms[language.label, concept] for concept in chosen]
            tokens, tags = _tagged(own, language.locale)
            rows.append(
                {
                    "id": f"{language.label}:{part}:{number}",
                    "language": language.label,
                    "tokens": tokens,
                    "tags": tags,
                    "concept": key,
                }
            )
    return tuple(rows)


def _tagged(terms: list[Example], locale: str) -> tuple[list[str], list[str]]:
    """Tokens of a list of terms, and their tags."""
    from babel.lists import format_list

    places = _PLACES[: len(terms)]
    pattern = format_list(list(places), locale=locale)
    tokens: list[str] = []
    tags: list[str] = []
    for piece in re.split(f"({'|'.join(places)})", pattern):
        if piece in places:
            term = terms[places.index(piece)]
            words = _TOKEN.findall(term.text)
            tags += [f"{'I' if n else 'B'}-{term.label}" for n in range(len(words))]
        else:
            words = _TOKEN.findall(piece)
            tags += ["O"] * len(words)
        tokens += words
    return tokens, tags
