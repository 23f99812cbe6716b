"""Batches that are made up of parts, each of one language."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from subnet.errors import InputError

Features = Sequence[Mapping[str, Any]]
Collate = Callable[[Features], Any]


class Parts:
    """Examples of several languages as one list, and how a batch of them is divided again.

    Each entry carries the part that it belongs to; a batch becomes `{"parts": [...]}`, each with
    its `key`, the number of its examples and its collated `batch`, in order of first appearance.

    Args:
        collate: Makes a batch of examples.
    """

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, entries: Sequence[Any]) -> dict[str, Any]:
        """Divide a batch of (key, example)."""
        found: dict[Any, list[Mapping[str, Any]]] = {}
        for key, example in entries:
            found.setdefault(key, []).append(example)
        return {
            "parts": [
                {"key": key, "n": len(examples), "batch": self._collate(examples)}
                for key, examples in found.items()
            ]
        }


def draw(n: int, size: int, *, seed: int, step: int, language: str) -> list[int]:
    """`size` different places of `n`, which depend on the arguments alone."""
    return random.Random(f"{seed}\0{step}\0{language}").sample(range(n), size)  # noqa: S311


def check_languages(features: Mapping[str, Features], needed: int, what: str) -> None:
    """Refuse fewer than two languages, or one with too few examples.

    Raises:
        InputError: Says which.
    """
    if len(features) < 2:
        raise InputError(
            f"{len(features)} language is given" if features else "no language is given",
            expected="two or more",
        )
    for language, examples in features.items():
        if len(examples) < needed:
            raise InputError(
                f"{language} has {len(examples)} examples", expected=f"{needed} or more, for {what}"
            )
