"""Which rows belong together: the same items under two models, or parallel ones of languages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError, NotComparableError
from subnet_probes.representation import Representations

Positions = NDArray[np.int64]

#: Fewest items that a comparison is made of.
FEWEST = 4


def parallel_rows(found: Representations) -> dict[str, Positions]:
    """Language to the rows of the concepts that all languages have, in one order.

    Raises:
        NotComparableError: There are fewer than two languages, or hardly a concept is common.
        InputError: An item has no concept, or a language has a concept twice.
    """
    places = {label: _by_concept(found, label) for label in found.languages}
    if len(places) < 2:
        raise NotComparableError(
            f"the items are of {len(places)} language{'s' * (len(places) != 1)}",
            expected="two languages or more",
        )
    common = _common(places)
    return {label: np.array([own[key] for key in common]) for label, own in places.items()}


def matched_rows(a: Representations, b: Representations, by: str) -> tuple[Positions, Positions]:
    """Rows of a, and the rows of b that belong to them.

    Args:
        a: One side.
        b: The other.
        by: `"item"`: language, id and, of words, position; `"concept"`: items that say the same.

    Raises:
        NotComparableError: Hardly any do.
        InputError: An item or a concept is there twice.
    """
    if by == "concept":
        places = {"the first": _by_concept(a, None), "the second": _by_concept(b, None)}
    else:
        places = {"the first": _by_item(a), "the second": _by_item(b)}
    common = _common(places, by)
    left, right = ([own[key] for key in common] for own in places.values())
    return np.array(left), np.array(right)


def rows_by_language(found: Representations, rows: Positions) -> dict[str, Positions]:
    """Language to the places, among given rows, of its items."""
    labels = found.items["language"].to_numpy()[rows]
    return {
        label: np.flatnonzero(labels == label)
        for label in dict.fromkeys(str(x) for x in labels if x is not None)
    }


def _common(places: dict[str, dict[Any, int]], by: str = "concept") -> list[Any]:
    first, *others = places.values()
    common = [key for key in first if all(key in other for other in others)]
    if len(common) < FEWEST:
        counts = ", ".join(f"{len(own)} of {name}" for name, own in list(places.items())[:12])
        more = "" if len(places) <= 12 else f" and {len(places) - 12} more"
        fix = "are they given in all of them under one key?"
        if by == "item":
            fix = "by='concept' compares items of two languages"
        raise NotComparableError(
            f"the items are not aligned: {len(common)} {by}s are common to {counts}{more}",
            expected=f"{FEWEST} or more",
            fix=fix,
        )
    return common


def _by_concept(found: Representations, label: str | None) -> dict[str, int]:
    if found.level == "token":
        raise InputError(
            "words have no concept", expected="representations of sentences", fix="take pool='mean'"
        )
    items = found.items
    places: dict[str, int] = {}
    for row, (language, concept) in enumerate(
        zip(items["language"], items["concept"], strict=True)
    ):
        if label is not None and language != label:
            continue
        if concept is None:
            raise InputError(
                f"{found.name_of(row)} of {language} has no 'concept'",
                expected="a key that parallel items share",
            )
        if concept in places:
            raise InputError(
                f"the concept {concept!r} is there twice"
                + (f" in {label}" if label is not None else ""),
                expected="once in each language",
                fix="" if label is not None else "subset() each side to one language",
            )
        places[concept] = row
    return places


def _by_item(found: Representations) -> dict[Any, int]:
    items = found.items
    names = ["language", "id"] + (["position"] if found.level == "token" else [])
    places: dict[Any, int] = {}
    for row, key in enumerate(zip(*(items[name] for name in names), strict=True)):
        if key in places:
            raise InputError(
                f"{found.name_of(row)} of {key[0]} is there twice",
                expected="an id of its own for every item",
            )
        places[key] = row
    return places
