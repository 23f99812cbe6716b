"""What a row of a translation says: its texts and its direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet.errors import InputError
from subnet.language import DIRECTION, Language, parse_language
from subnet.training.tasks._task import Row


@dataclass(frozen=True)
class Pair:
    """A text and its translation.

    Attributes:
        direction: Label (`de>en`).
        source: Text to translate.
        target: Its translation.
        source_language: Language of the source.
        target_language: Language of the target.
        concept: The key that parallel texts share, `""` where the row names none.
    """

    direction: str
    source: str
    target: str
    source_language: Language
    target_language: Language
    concept: str = ""


def parse_direction(label: str, *, path: str | Path | None = None) -> tuple[Language, Language]:
    """Source and target language of a direction such as `de>en`.

    Raises:
        UnknownLanguageError: A side is no language.
        InputError: The label is no direction, or both sides are the same language.
    """
    parts = [part.strip() for part in label.split(DIRECTION)]
    if len(parts) != 2:
        raise InputError(
            f"{label!r} is no direction of translation",
            path=path,
            expected="source>target, as in de>en",
        )
    source, target = (parse_language(part, path=path) for part in parts)
    if (source.identity, source.territory) == (target.identity, target.territory):
        raise InputError(
            f"{label!r} translates {source.name} into itself",
            path=path,
            expected="two languages, as in de>en",
        )
    return source, target


def read_pair(row: Row, number: int, *, path: str | Path | None = None) -> Pair:
    """What a row says.

    Args:
        row: `language` (`de>en`), `source`, `target`; `source_language` and `target_language`,
            where they stand, name the same two languages.
        number: Of the row, from 1, for the message.
        path: File that it is from.

    Raises:
        InputError: A text is missing or empty, or the direction is not clear.
        UnknownLanguageError: A side of the direction is no language.
    """
    where = f"row {number}" + ("" if row.get("id") is None else f" ({row['id']})")
    for name in ("language", "source", "target"):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(
                f"{where} has no {name!r}" + ("" if value in (None, "") else f" but {value!r}"),
                path=path,
                expected='{"id": …, "language": "de>en", "source": "a text", "target": "a text"}',
            )
    direction = str(row["language"])
    sides = parse_direction(direction, path=path)
    for name, side in zip(("source_language", "target_language"), sides, strict=True):
        stated = row.get(name)
        if stated is None:
            continue
        if parse_language(str(stated), path=path).identity != side.identity:
            raise InputError(
                f"{where} has the language {direction!r} and the {name} {stated!r}",
                path=path,
                expected="the same languages in both",
            )
    concept = str(row.get("concept") or "")
    return Pair(direction, row["source"], row["target"], *sides, concept)


def read_pairs(rows: Sequence[Row], *, path: str | Path | None = None) -> list[Pair]:
    """What each row says; see `read_pair`.

    Raises:
        InputError: There are no rows, or one cannot be used.
    """
    if not rows:
        raise InputError("there are no rows to translate", path=path, expected="at least one")
    return [read_pair(row, number, path=path) for number, row in enumerate(rows, start=1)]


def as_row(direction: str, key: str, source: str, target: str, concept: str) -> dict[str, Any]:
    """A row as `train.jsonl` holds it; its id is unique over directions."""
    before, _, after = direction.partition(DIRECTION)
    return {
        "id": f"{direction}:{key}",
        "language": direction,
        "source": source,
        "target": target,
        "source_language": before,
        "target_language": after,
        "concept": concept,
    }
