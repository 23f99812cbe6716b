"""Reading pairs of texts from files, and splitting them by what they mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subnet import _files
from subnet.errors import FileFormatError, InputError, MissingInputError
from subnet.language import DIRECTION, parse_language
from subnet.training.tasks._task import Row
from subnet.training.tasks._translation_rows import as_row, read_pair

Rows = list[dict[str, Any]]


def read_split(folder: Path) -> dict[str, Rows]:
    """`train.jsonl` and `test.jsonl` of a folder, and `validation.jsonl` where it has one.

    Raises:
        MissingInputError: There is no `test.jsonl`.
    """
    if not (folder / "test.jsonl").is_file():
        raise MissingInputError("has train.jsonl and no test.jsonl", path=folder)
    validation = folder / "validation.jsonl"
    return {
        "train": read_json_lines(folder / "train.jsonl"),
        "validation": read_json_lines(validation) if validation.is_file() else [],
        "test": read_json_lines(folder / "test.jsonl"),
    }


def read_unsplit(place: Path) -> Rows:
    """Rows of a file, or of the files of a folder, that come without a split.

    Raises:
        MissingInputError: There are no such files.
        InputError: Two rows have one id.
    """
    if (place / "test.jsonl").is_file():
        raise MissingInputError("has test.jsonl and no train.jsonl", path=place)
    files = [place]
    if place.is_dir():
        files = [file for file in sorted(place.iterdir()) if file.suffix in (".jsonl", ".tsv")]
    if not files:
        raise MissingInputError(
            "holds no translations",
            path=place,
            expected="train.jsonl and test.jsonl, or .tsv files",
        )
    rows: Rows = []
    for file in files:
        rows += _read_table(file) if file.suffix == ".tsv" else read_json_lines(file)
    _refuse_twice([row["id"] for row in rows], place)
    return rows


def read_json_lines(path: Path) -> Rows:
    """Rows of the documented form, checked; `id` defaults to the number of the row.

    Raises:
        FileFormatError: A line is no JSON object.
        InputError: A row lacks a text or a direction, two have one id, or there are none.
    """
    rows: Rows = []
    for number, row in enumerate(_files.read_json_lines(path), start=1):
        pair = read_pair(row, number, path=path)
        before, _, after = pair.direction.partition(DIRECTION)
        named = {"source_language": before.strip(), "target_language": after.strip()}
        key = row.get("id", f"{path.stem}:{number}")
        rows.append({**row, "id": str(key), **named, "concept": pair.concept})
    if not rows:
        raise InputError("has no rows", path=path, expected="one object per line")
    _refuse_twice([row["id"] for row in rows], path)
    return rows


def split(rows: Rows, test_share: float, validation_share: float, seed: int) -> dict[str, Rows]:
    """Rows in three parts, none of which has a text, in its language, that another one has.

    Pairs with a text or a concept in common, directly or through others, are one meaning. A
    meaning's part depends on the seed and its smallest text alone; a row without a concept gets its
    meaning's name.

    Raises:
        InputError: The shares leave nothing to train on.
    """
    if test_share <= 0 or validation_share < 0 or test_share + validation_share >= 1:
        raise InputError(
            f"test_share is {test_share} and validation_share {validation_share}",
            expected="shares above 0 and 0 or more, together below 1",
        )
    parts: dict[str, Rows] = {"train": [], "validation": [], "test": []}
    for row, meaning in zip(rows, meanings(rows), strict=True):
        digest = hashlib.blake2b(f"{seed}/{meaning}".encode(), digest_size=7).digest()
        place = int.from_bytes(digest, "big") / 2**56
        held_out = "validation" if place < test_share + validation_share else "train"
        part = "test" if place < test_share else held_out
        parts[part].append({**row, "concept": row["concept"] or meaning})
    return parts


def meanings(rows: Sequence[Row]) -> list[str]:
    """A name for what each row means, the same for rows that a text or a concept connects."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[str, int] = {}
    edges: list[tuple[int, int]] = []
    for row in rows:
        ends = [numbers.setdefault(text, len(numbers)) for text in _texts(row)]
        edges += [(ends[0], end) for end in ends[1:]]
    start, stop = np.array(edges).T
    shape = (len(numbers), len(numbers))
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (start, stop)), shape=shape)
    _, component = connected_components(graph, directed=False)
    smallest: dict[int, str] = {}
    for text, number in numbers.items():
        name = int(component[number])
        smallest[name] = min(smallest.get(name, text), text)
    names = {
        number: hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        for number, text in smallest.items()
    }
    return [names[int(component[numbers[next(_texts(row))]])] for row in rows]


def _texts(row: Row) -> Iterator[str]:
    """What connects a row with others: both texts in their languages, and its concept."""
    for side in ("source", "target"):
        language = "/".join(parse_language(str(row[f"{side}_language"])).identity)
        yield f"{language} {' '.join(str(row[side]).casefold().split())}"
    if row.get("concept"):
        yield f"concept {row['concept']}"


def _read_table(path: Path) -> Rows:
    """Both directions of a table of two columns.

    Sentences stand as they are: a quotation mark quotes nothing.
    """
    with _files.open_text(path) as file:
        lines = [line.rstrip("\r\n") for line in file]
    header = [name.strip() for name in lines[0].split("\t")] if lines else []
    expected = "two columns, a tab between them, under the codes of their languages (eng, deu)"
    if len(header) != 2:
        raise FileFormatError(f"has {len(header)} columns", path=path, expected=expected)
    first, second = (parse_language(name, path=path) for name in header)
    if first.identity == second.identity:
        raise FileFormatError(f"has two columns of {first.name}", path=path, expected=expected)
    rows: Rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        texts = [text.strip() for text in line.split("\t")]
        if len(texts) != 2 or not all(texts):
            found = f"{len(texts)} fields" if len(texts) != 2 else "an empty field"
            raise FileFormatError(f"line {number} has {found}", path=path, expected=expected)
        key = f"{path.stem}:{number}"
        for (a, b), (source, target) in (
            (header, texts),
            (header[::-1], texts[::-1]),
        ):
            rows.append(as_row(f"{a}{DIRECTION}{b}", key, source, target, ""))
    if not rows:
        raise InputError("has no rows under its header", path=path, expected=expected)
    return rows


def _refuse_twice(ids: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for key in ids:
        if key in seen:
            raise InputError(f"has the id {key!r} twice", path=path, expected="one row for each id")
        seen.add(key)
