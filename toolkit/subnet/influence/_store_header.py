"""What a gradient store says of itself: `header.json`, written before any gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import FileFormatError, MissingInputError, NotComparableError

HEADER, EXAMPLES = "header.json", "examples.json"
_FORMAT = 1
_KIND = "subnet gradient store"


@dataclass(frozen=True)
class StoredPoint:
    """A checkpoint whose gradients are stored.

    Attributes:
        name: What it was called.
        learning_rate: η as it was given or read; `score` multiplies by it.
        source: Where η is from, in words.
        stage: Whose training it belongs to; None for that of all examples.
        model: SHA-256 of the weights.
        members: Numbers of its examples; None for all.
    """

    name: str
    learning_rate: float
    source: str
    stage: str | None
    model: str
    members: tuple[int, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """For the header."""
        return {
            "checkpoint": self.name,
            "learning_rate": self.learning_rate,
            "from": self.source,
            "stage": self.stage,
            "model_sha256": self.model,
            "examples": None if self.members is None else list(self.members),
        }


@dataclass(frozen=True)
class Shard:
    """One file: the examples from `start` to `stop` of those of a point.

    Attributes:
        file: Its name.
        point: Number of the point.
        start: First place among the point's examples.
        stop: The place after the last.
    """

    file: str
    point: int
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """All that is known before gradients are.

    Attributes:
        role: `"training"` or `"test"`.
        n_examples: How many examples.
        points: The checkpoints.
        settings: What gradients depend on beside weights, to be found equal by whoever opens it.
        blocks: Name of what is stored to its shape for one example.
        dtype: Type it is stored in.
        shards: The files, planned.
        versions: Of the libraries that made it; not compared.
    """

    role: str
    n_examples: int
    points: tuple[StoredPoint, ...]
    settings: Mapping[str, Any]
    blocks: Mapping[str, tuple[int, ...]]
    dtype: str
    shards: tuple[Shard, ...]
    versions: Mapping[str, str]

    def members(self, point: int) -> Sequence[int]:
        """Numbers of a point's examples."""
        found = self.points[point].members
        return range(self.n_examples) if found is None else found

    def text(self) -> str:
        """As JSON, the same for the same content."""
        return _files.to_json(
            {
                "format": _FORMAT,
                "kind": _KIND,
                "role": self.role,
                "n_examples": self.n_examples,
                "dtype": self.dtype,
                "settings": dict(self.settings),
                "checkpoints": [point.to_dict() for point in self.points],
                "blocks": {name: list(shape) for name, shape in self.blocks.items()},
                "shards": [[s.file, s.point, s.start, s.stop] for s in self.shards],
                "versions": dict(self.versions),
            }
        )

    def check(self, wanted: Header, path: Path) -> None:
        """Refuse a store that was made of something else than what is wanted now.

        Its checkpoints may be more than the wanted ones, and their learning rates others: gradients
        do not depend on them.

        Raises:
            NotComparableError: Says what differs, what was found and what was expected.
        """
        for what, found, expected in (
            ("role of the examples", self.role, wanted.role),
            ("number of examples", self.n_examples, wanted.n_examples),
            ("dtype", self.dtype, wanted.dtype),
            *((name, self.settings.get(name), own) for name, own in wanted.settings.items()),
        ):
            if _plain(found) != _plain(expected):
                raise _other(path, *_first_difference(what, found, expected))
        for number, point in enumerate(wanted.points):
            if self.find(point) is None:
                same_place = self.points[min(number, len(self.points) - 1)]
                what = f"model at {point.name}"
                raise _other(path, what, _key(same_place), _key(point))
        if self.blocks != wanted.blocks:
            raise _other(path, "shapes of the blocks", dict(self.blocks), dict(wanted.blocks))

    def find(self, point: StoredPoint) -> int | None:
        """Number of the point with the same weights for the same examples."""
        for number, own in enumerate(self.points):
            if (own.model, own.members) == (point.model, point.members):
                return number
        return None


def read_header(path: Path) -> Header:
    """Read `header.json` of a store.

    Raises:
        MissingInputError: There is none.
        FileFormatError: It is damaged, or of another format.
    """
    file = path / HEADER
    if not file.is_file():
        raise MissingInputError(f"has no {HEADER}", path=path, expected="a gradient store")
    content = _files.read_json(file)
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise FileFormatError("is no header of a gradient store", path=file)
    if content.get("format") != _FORMAT:
        raise FileFormatError(
            f"is of format {content.get('format')!r}", path=file, expected=f"format {_FORMAT}"
        )
    try:
        return Header(
            role=content["role"],
            n_examples=content["n_examples"],
            points=tuple(_point(entry) for entry in content["checkpoints"]),
            settings=content["settings"],
            blocks={name: tuple(shape) for name, shape in content["blocks"].items()},
            dtype=content["dtype"],
            shards=tuple(Shard(*entry) for entry in content["shards"]),
            versions=content["versions"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"is damaged ({error!r})", path=file) from error


def _point(entry: Mapping[str, Any]) -> StoredPoint:
    members = entry["examples"]
    return StoredPoint(
        entry["checkpoint"], entry["learning_rate"], entry["from"], entry["stage"],
        entry["model_sha256"], None if members is None else tuple(members),
    )  # fmt: skip


def _key(point: StoredPoint) -> str:
    stage = "" if point.stage is None else f", stage {point.stage}"
    return f"SHA-256 {point.model[:16]}…{stage}"


def _first_difference(what: str, found: Any, expected: Any) -> tuple[str, Any, Any]:
    """Of a mapping the first entry that differs."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in {**expected, **found}:
            mine, theirs = found.get(key), expected.get(key)
            if _plain(mine) != _plain(theirs):
                return f"{what}: {key}", mine, theirs
    return what, found, expected


def _other(path: Path, what: str, found: Any, expected: Any) -> NotComparableError:
    return NotComparableError(
        f"{what} is {_shown(found)}",
        path=path,
        expected=f"{_shown(expected)}, as given now",
        fix="give another folder, or what the store was made of",
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else str(_plain(value))


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
