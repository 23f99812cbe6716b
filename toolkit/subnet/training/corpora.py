"""Examples in several languages for a run of training: generated from CLDR, or read from files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import InputError, MissingInputError
from subnet.language import Language, LanguageIndex
from subnet.training._example_checks import check_examples, check_languages, file_of
from subnet.training.config import TrainingConfig
from subnet.training.data import load_data
from subnet.training.languages import FAMILIES, of_a_training, resolve_languages
from subnet.training.slots import load_slots
from subnet.training.tasks import Row
from subnet.training.terms import TERM_KINDS
from subnet.training.tokenizer import ADDED_TOKENS

#: Names of things are learnt by heart; phrases follow patterns that a small model can learn.
_TRANSLATED_KINDS = ("date", "duration", "money")

PARTS = ("train", "validation", "test")


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
    with of_a_training():
        if config.task == "translation":
            corpus = _translations(config, folder)
        elif config.data.source == "cldr":
            corpus = _generated(config)
        else:
            corpus = _from_files(config, folder)
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
    twice = next((label for label in also if label in config.languages), None)
    if twice is not None:
        raise InputError(
            f"translation.also_tested has {twice!r}, which languages has too",
            expected="directions that are tested and not trained",
            fix="remove one",
        )
    if not isinstance(config.languages, str):
        directions = (*config.languages, *also)
    if config.data.source == "files":
        data = read_translations(
            folder / config.data.path,
            directions=directions,
            tested_only=also,
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
    if not isinstance(config.languages, str):
        _labelled(config.languages, LanguageIndex())
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
    # Of a few concepts one may be the only one of several words, and stand among those tested.
    tags = {tag for part in ("train", "test") for row in parts[part] for tag in row["tags"]}
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
    for part, rows in parts.items():
        check_languages(rows, part, path)
        place = file_of(path, part)
        parts[part] = [
            {**row, "language": index.add(row["language"], path=place).label} for row in rows
        ]
    found = list(dict.fromkeys(row["language"] for part in PARTS for row in parts[part]))
    labels = found if wanted is None else _labelled(wanted, index)
    check_examples(parts, labels, config.task, path)
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
        tuple(sorted(map(str, outputs))) if key == "label" else _tag_order(map(str, outputs)),
        **kept,
        report=tuple(_described(language, kept) for language in languages),
    )


def _labelled(names: Sequence[str], index: LanguageIndex) -> list[str]:
    """Labels that the examples carry of the languages that are asked for.

    Raises:
        InputError: Two names are of one language.
    """
    asked: dict[str, str] = {}
    for name in names:
        label = index.add(name).label
        if label in asked:
            raise InputError(
                f"languages has {asked[label]!r} and {name!r}, which are one language"
                if asked[label] != name
                else f"languages has {name!r} twice",
                expected="each language once",
                fix="remove one",
            )
        asked[label] = name
    return list(asked)


def _read_json_lines(path: Path) -> dict[str, list[dict[str, Any]]]:
    """`train.jsonl`, `validation.jsonl` (where there is one) and `test.jsonl`."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in PARTS:
        file = path / f"{part}.jsonl"
        if part == "test" and not file.is_file():
            raise MissingInputError("is not there", path=file, expected="examples to test on")
        rows = list(_files.read_json_lines(file)) if file.is_file() else []
        if not rows and part != "validation":
            raise InputError("has no examples", path=file, expected="one JSON object per line")
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
