"""Score tables: long (`stage,language,metric,value`) and square (stages down, languages across)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from subnet import _files
from subnet.checkpoint.records import Records, ScoreRow, parse_number
from subnet.errors import FileFormatError, InputError
from subnet.language import Language, LanguageIndex

_STAGE = re.compile(r"^(\d+)(?:[-_](.+))?$")
_NOT_METRICS = frozenset({"run", "stage", "language", "trained_language", "stderr", "n"})
#: Names of a stage before any training.
_START = frozenset({"base", "start", "init", "none", "pretrained"})


def parse_stage(text: str, path: Path, line: int | None = None) -> tuple[int, str | None]:
    """Number of a stage and the label in its name, from `3` or `03-de`.

    Raises:
        InputError: It is neither.
    """
    match = _STAGE.match(text.strip())
    if match is None:
        where = "" if line is None else f"line {line}: "
        raise InputError(
            f"{where}stage is {text!r}",
            path=path,
            expected="its number or the name of its folder, as in 3 or 03-de",
        )
    return int(match[1]), match[2]


def is_long(header: list[str]) -> bool:
    """Whether a table has one row per stage and language."""
    return {"stage", "language"} <= set(header)


def is_square(header: list[str], index: LanguageIndex) -> bool:
    """Whether a table has one row per stage and one column per language."""
    return len(header) > 2 and all(index.recognises(label) for label in header[1:])


def _rows_of(path: Path) -> list[tuple[int, dict[str, str]]]:
    table = list(_files.read_csv_rows(path))
    if not table:
        raise FileFormatError("has a header and no rows", path=path, expected="scores")
    return table


def read_long(path: Path, run: str, index: LanguageIndex, records: Records) -> list[ScoreRow]:
    """Rows of a long table; beside `metric,value` a column per metric is understood too.

    Raises:
        InputError: A cell is not usable; the line is named.
        UnknownLanguageError: A label names no language, or two name the same.
    """
    table = _rows_of(path)
    header = list(table[0][1])
    if not is_long(header):
        raise FileFormatError(
            f"has the columns {', '.join(header)}",
            path=path,
            expected="stage,language,metric,value or one column per language",
        )
    narrow = {"metric", "value"} <= set(header)
    wide = [] if narrow else [name for name in header if name not in _NOT_METRICS]
    if not narrow and not wide:
        raise FileFormatError(
            f"has the columns {', '.join(header)}", path=path, expected="metric,value beside them"
        )
    languages = index.add_distinct(sorted({cells["language"] for _, cells in table}), path=path)
    rows = []
    for line, cells in table:
        stage, label = parse_stage(cells["stage"], path, line)
        row_run = cells.get("run", "").strip() or run
        label = cells.get("trained_language", "").strip() or label
        if label and stage > 0:
            note_trained(records, row_run, stage, index.add(label, path=path), path)
        for metric in (cells["metric"],) if narrow else wide:
            what = f"{metric} of {cells['language']}"
            value = parse_number(cells["value" if narrow else metric], what, path, line)
            if value is None:
                continue
            stderr = parse_number(cells.get("stderr", "") if narrow else "", "stderr", path, line)
            if stderr is not None and stderr < 0:
                raise InputError(
                    f"line {line}: stderr is {stderr:g}", path=path, expected="zero or more"
                )
            language = languages[cells["language"]].label
            rows.append(ScoreRow(row_run, stage, language, metric, value, stderr, path, line))
    return rows


def read_square(
    path: Path, run: str, index: LanguageIndex, records: Records, *, metric: str
) -> list[ScoreRow]:
    """Rows of a square table: first column the stage, its folder's name, or its language.

    Rows are numbered as they stand, from 0 if the first is the base and from 1 otherwise.

    Raises:
        InputError: A cell is not usable; the line is named.
    """
    table = _rows_of(path)
    first, *labels = list(table[0][1])
    languages = index.add_distinct(labels, path=path)
    starts = table[0][1][first].strip().lower() in _START
    rows = []
    for position, (line, cells) in enumerate(table, start=0 if starts else 1):
        stage, trained = _square_stage(cells[first].strip(), position, index, path, line)
        if trained is not None and stage > 0:
            note_trained(records, run, stage, trained, path)
        for label, language in languages.items():
            value = parse_number(cells[label], f"{metric} of {label}", path, line)
            if value is not None:
                rows.append(ScoreRow(run, stage, language.label, metric, value, None, path, line))
    return rows


def _square_stage(
    text: str, position: int, index: LanguageIndex, path: Path, line: int
) -> tuple[int, Language | None]:
    if text.lower() in _START:
        return 0, None
    if _STAGE.match(text):
        stage, label = parse_stage(text, path, line)
        return stage, index.add(label, path=path) if label and stage else None
    if not text:
        raise InputError(
            f"line {line}: the row has no name",
            path=path,
            expected="its stage's number or folder, or the language that it trained",
            fix="call the row before training base",
        )
    return position, index.add(text, path=path)


def metric_of(path: Path, declared: Mapping[str, object]) -> str:
    """Metric of a square table: from its name (`scores_accuracy.csv`, `accuracy.csv`).

    A plain `scores.csv` holds the metric that `subnet.toml` describes, if that is one.
    """
    name = re.sub(r"^(scores?|matrix|results?)[-_.]?", "", path.stem)
    if name:
        return name
    return next(iter(declared)) if len(declared) == 1 else "score"


def note_trained(records: Records, run: str, stage: int, language: Language, path: Path) -> None:
    """Enter which language a stage trained.

    Raises:
        InputError: Somebody else says another.
    """
    known = records.trained.setdefault((run, stage), language.label)
    if known != language.label:
        raise InputError(
            f"says that stage {stage} of run {run!r} trained {language.label}",
            path=path,
            expected=f"{known}, as the stage's folder or another row says",
        )
