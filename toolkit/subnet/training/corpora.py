"""Examples in several languages for a run of training: generated from CLDR, or read from files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import InputError, MissingInputError
from subnet.language import Language, LanguageIndex
from subnet.training.config import TrainingConfig
from subnet.training.data import load_data
from subnet.training.languages import FAMILIES, resolve_languages
from subnet.training.slots import load_slots
from subnet.training.tasks import Row
from subnet.training.terms import TERM_KINDS
from subnet.training.tokenizer import ADDED_TOKENS

#: Names of things are learnt by heart; phrases follow patterns that a small model can learn.
_TRANSLATED_KINDS = ("date", "duration", "money")

PARTS = ("train", "validation", "test")

#: What an example of a task needs.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "translation": ("source", "target"),
    "sequence-classification": ("text", "label"),
    "token-classification": ("tokens", "tags"),
}

#: What it must be.
_TYPES: Mapping[str, Mapping[str, Any]] = {
    "sequence-classification": {"text": str, "label": str | int},
    "token-classification": {"tokens": list, "tags": list},
}


@dataclass(frozen=True)
class Corpus:
    """The examples of a run.

    Attributes:
        languages: In the order asked for; of translation they are directions.
        labels: What the model tells apart; nothing where it writes.
        train, validation, test: Examples; each names its language and has an `id` of its own.
        report: Per language, what could make it differ from the others: a row of `languages.csv`.
        also_tested: Labels of those languages that are tested and not trained.
    """

    languages: tuple[Language, ...]
    labels: tuple[str, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    report: tuple[Mapping[str, Any], ...]
    also_tested: tuple[str, ...] = ()

    @property
    def tested(self) -> tuple[str, ...]:
        """Labels of all languages."""
        return tuple(language.label for language in self.languages)

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the languages that are trained."""
        return tuple(label for label in self.tested if label not in self.also_tested)


def load_corpus(config: TrainingConfig, folder: Path) -> Corpus:
    """The examples that a configuration asks for.

    Args:
        config: The run.
        folder: What paths of the configuration are relative to.

    Raises:
        MissingInputError: A file is not there, or a language has no examples.
        InputError: A language is unknown, an example lacks what the task needs.
    """
    if config.task == "translation":
        corpus = _translations(config, folder)
    else:
        corpus = _generated(config) if config.data.source == "cldr" else _from_files(config, folder)
    return dataclasses.replace(
        corpus,
        train=_capped(corpus.train, config.data.max_train, config.seed),
        test=_capped(corpus.test, config.data.max_test, config.seed),
    )


def _translations(config: TrainingConfig, folder: Path) -> Corpus:
    """Directions between languages, those that are only tested last."""
    from subnet.training.translation_data import (
        directions_between,
        load_directions,
        read_translations,
    )

    also = config.translation.also_tested
    directions: tuple[str, ...] | None = None
    if not isinstance(config.languages, str):
        directions = (*config.languages, *also)
    if config.data.source == "files":
        data = read_translations(
            folder / config.data.path,
            directions=directions,
            test_share=config.data.test_share,
            validation_share=config.data.validation_share,
            seed=config.seed,
        )
    else:
        if directions is None:
            chosen = resolve_languages(config.languages)
            directions = directions_between([entry.label for entry in chosen], pivot="en")
        data = load_directions(
            directions,
            kinds=config.data.kinds or _TRANSLATED_KINDS,
            max_concepts_per_kind=config.data.max_concepts_per_kind,
            test_share=config.data.test_share,
            validation_share=config.data.validation_share,
            seed=config.seed,
        )
    index = LanguageIndex()
    return Corpus(
        tuple(index.add(label) for label in data.directions),
        (),
        tuple(row for row in data.train if row["language"] not in also),
        data.validation,
        data.test,
        data.report,
        also,
    )


def _generated(config: TrainingConfig) -> Corpus:
    languages = resolve_languages(
        config.languages if isinstance(config.languages, str) else list(config.languages)
    )
    settings: dict[str, Any] = {
        "kinds": config.data.kinds or TERM_KINDS,
        "max_concepts_per_kind": config.data.max_concepts_per_kind,
        "test_share": config.data.test_share,
        "validation_share": config.data.validation_share,
        "max_bytes": config.data.max_length - ADDED_TOKENS,
        "seed": config.seed,
    }
    data = load_data(languages, **settings)
    named = tuple(entry.language for entry in data.languages)
    if config.task == "sequence-classification":
        parts: dict[str, Any] = {
            part: tuple(dataclasses.asdict(example) for example in getattr(data, part))
            for part in PARTS
        }
        return Corpus(named, data.kinds, **parts, report=data.report)
    parts = {part: load_slots(data, part, seed=config.seed) for part in PARTS}
    tags = {tag for row in parts["train"] for tag in row["tags"]}
    longest = config.data.max_length - ADDED_TOKENS
    return Corpus(named, _tag_order(tags), **parts, report=_counted(data.report, parts, longest))


def _from_files(config: TrainingConfig, folder: Path) -> Corpus:
    path = folder / config.data.path
    if not config.data.path or not path.is_dir():
        raise MissingInputError(
            "there is no such folder of examples" if config.data.path else "data.path is empty",
            path=path if config.data.path else None,
            expected="a folder with train.jsonl and test.jsonl, or with <language>.tsv",
        )
    wanted = None if config.languages in ("default", "all") else tuple(config.languages)
    parts = _read_json_lines(path) if (path / "train.jsonl").is_file() else _read_tables(path)
    index = LanguageIndex()
    for part in parts:
        parts[part] = [
            {**row, "language": index.add(str(row.get("language", "")), path=path).label}
            for row in parts[part]
        ]
    found = list(dict.fromkeys(row["language"] for part in PARTS for row in parts[part]))
    labels = found if wanted is None else [index.add(name).label for name in wanted]
    _check(parts, labels, config.task, path)
    kept: dict[str, Any] = {
        part: tuple(row for label in labels for row in rows if row["language"] == label)
        for part, rows in parts.items()
    }
    key = "label" if config.task == "sequence-classification" else "tags"
    outputs = {
        name
        for row in (*kept["train"], *kept["test"])
        for name in ([row[key]] if key == "label" else row[key])
    }
    languages = tuple(index.add(label) for label in labels)
    return Corpus(
        languages,
        tuple(sorted(map(str, outputs))) if key == "label" else _tag_order(outputs),
        **kept,
        report=tuple(_described(language, kept) for language in languages),
    )


def _read_json_lines(path: Path) -> dict[str, list[dict[str, Any]]]:
    """`train.jsonl`, `validation.jsonl` (where there is one) and `test.jsonl`."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in PARTS:
        file = path / f"{part}.jsonl"
        if part == "test" and not file.is_file():
            raise MissingInputError("is not there", path=file, expected="examples to test on")
        rows = list(_files.read_json_lines(file)) if file.is_file() else []
        parts[part] = [{"id": f"{part}:{n}", **row} for n, row in enumerate(rows)]
    return parts


def _read_tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    """`<language>.tsv` with index_id, split, category and text, as SIB-200 has them."""
    files = sorted(path.glob("*.tsv"))
    if not files:
        raise MissingInputError(
            "holds neither train.jsonl nor <language>.tsv",
            path=path,
            expected="train.jsonl and test.jsonl, or tables with index_id, split, category, text",
        )
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for file in files:
        for line, row in _files.read_csv_rows(file):
            split = {"dev": "test", "validation": "test"}.get(
                row.get("split", ""), row.get("split")
            )
            if split not in parts or not {"index_id", "category", "text"} <= set(row):
                raise InputError(
                    f"line {line} has {', '.join(row)} and split {row.get('split')!r}",
                    path=file,
                    expected="columns index_id, split (train, dev or test), category and text",
                )
            parts[split].append(
                {
                    "id": f"{file.stem}:{row['index_id']}",
                    "language": file.stem,
                    "text": row["text"],
                    "label": row["category"],
                    "concept": row["index_id"],
                }
            )
    return parts


def _check(
    parts: Mapping[str, Sequence[Row]], labels: Sequence[str], task: str, path: Path
) -> None:
    for part in ("train", "test"):
        counts = Counter(row["language"] for row in parts[part])
        for label in labels:
            if not counts[label]:
                raise MissingInputError(
                    f"{label} has no example to {'train on' if part == 'train' else 'test'}",
                    path=path,
                    expected=f"examples of every language ({', '.join(sorted(counts)) or 'none'} "
                    "have some)",
                    fix="add some, or leave it out of languages",
                )
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f"languages has {twice!r} twice", expected="each language once")
    for part, rows in parts.items():
        for row in rows:
            lacking = [name for name in _NEEDED[task] if name not in row]
            if lacking:
                raise InputError(
                    f"example {row['id']!r} of {part} has no {lacking[0]!r}",
                    path=path,
                    expected=f"{' and '.join(_NEEDED[task])} for {task}",
                )
            wrong = [name for name, kind in _TYPES[task].items() if not isinstance(row[name], kind)]
            if wrong:
                raise InputError(
                    f"example {row['id']!r} of {part} has {row[wrong[0]]!r} as its {wrong[0]}",
                    path=path,
                    expected="a list" if _TYPES[task][wrong[0]] is list else "a string",
                )
            if task != "token-classification":
                continue
            n_tokens, n_tags = len(row["tokens"]), len(row["tags"])
            if n_tokens != n_tags or not n_tags:
                raise InputError(
                    f"example {row['id']!r} of {part} has {n_tokens} tokens and {n_tags} tags",
                    path=path,
                    expected="one or more tokens, and a tag for every token",
                )
    ids = Counter(row["id"] for row in parts["test"])
    if ids and max(ids.values()) > 1:
        raise InputError(
            f"id {ids.most_common(1)[0][0]!r} stands {ids.most_common(1)[0][1]} times in the test "
            "examples",
            path=path,
            expected="an id of its own for each",
        )


def _tag_order(tags: Iterable[str]) -> tuple[str, ...]:
    """`O` first, the others by name."""
    return tuple(sorted(set(tags), key=lambda tag: (tag != "O", tag)))


def _capped(rows: Sequence[Row], most: int, seed: int) -> tuple[Row, ...]:
    """At most so many examples of each language: the same concepts in all of them.

    Which ones depends on the seed and an example's concept (else its id) alone.
    """
    if not most:
        return tuple(rows)

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}/{row.get('concept', row['id'])}".encode()).hexdigest()

    kept: set[int] = set()
    for language in dict.fromkeys(row["language"] for row in rows):
        own = [place for place, row in enumerate(rows) if row["language"] == language]
        kept.update(sorted(own, key=lambda place: rank(rows[place]))[:most])
    return tuple(row for place, row in enumerate(rows) if place in kept)


def _text(row: Row) -> str:
    return str(row["text"]) if "text" in row else " ".join(map(str, row["tokens"]))


def _described(language: Language, parts: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    own = {
        part: [r for r in rows if r["language"] == language.label] for part, rows in parts.items()
    }
    texts = [_text(row) for rows in own.values() for row in rows]
    n_bytes, n_characters = sum(len(text.encode()) for text in texts), sum(map(len, texts))
    return {
        "language": language.label,
        "tag": language.tag,
        "script": language.script,
        "family": FAMILIES.get(language.language, ""),
        **{f"{part}_examples": len(rows) for part, rows in own.items()},
        "bytes_per_character": n_bytes / max(n_characters, 1),
    }


def _counted(
    report: Sequence[Mapping[str, Any]], parts: Mapping[str, Sequence[Row]], longest: int
) -> tuple[Mapping[str, Any], ...]:
    """A report of terms as one of the lists that they are put into.

    Args:
        report: Of the terms.
        parts: The lists.
        longest: Bytes beyond which the small model's tokenizer cuts.
    """
    found = []
    for row in report:
        own = {
            part: [entry for entry in rows if entry["language"] == row["language"]]
            for part, rows in parts.items()
        }
        sizes = [sum(len(t.encode()) for t in e["tokens"]) for rows in own.values() for e in rows]
        kept = {key: row[key] for key in row if not key.endswith("_share") or "equal" in key}
        found.append(
            kept
            | {f"{part}_examples": len(rows) for part, rows in own.items()}
            | {"truncated_share": sum(size > longest for size in sizes) / max(len(sizes), 1)}
        )
    return tuple(found)
