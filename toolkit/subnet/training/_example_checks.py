"""What examples of files must be: complete, of every language, with labels that are trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subnet.errors import InputError, MissingInputError
from subnet.training.tasks import Row

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

Parts = Mapping[str, Sequence[Row]]


def file_of(path: Path, part: str) -> Path:
    """The file that holds a part of the examples; the folder, where that is tables by language."""
    file = path / f"{part}.jsonl"
    return file if file.is_file() else path


def check_languages(rows: Sequence[Row], part: str, path: Path) -> None:
    """Refuse examples that name no language.

    Raises:
        InputError: Says which example of which file.
    """
    for row in rows:
        found = row.get("language")
        if not isinstance(found, str) or not found:
            raise InputError(
                f"example {row['id']!r} has "
                + ("no 'language'" if found in (None, "") else f"{found!r} as its language"),
                path=file_of(path, part),
                expected='a code in each line, such as "language": "de"',
            )


def check_examples(parts: Parts, labels: Sequence[str], task: str, path: Path) -> None:
    """Refuse examples that cannot be trained and tested on.

    Args:
        parts: `train`, `validation` and `test`.
        labels: Languages that are wanted.
        task: What is learnt.
        path: The folder.

    Raises:
        MissingInputError: A language has no examples.
        InputError: An example lacks something, or a label is tested and never trained.
    """
    _check_counts(parts, labels, path)
    for part, rows in parts.items():
        for row in rows:
            _check_example(row, task, file_of(path, part))
    wanted = set(labels)
    kept = {
        part: [row for row in rows if row["language"] in wanted] for part, rows in parts.items()
    }
    if task == "sequence-classification":
        _check_labels(kept, path)
    else:
        _check_tags(kept, path)
    ids = Counter(row["id"] for row in parts["test"])
    if ids and max(ids.values()) > 1:
        raise InputError(
            f"id {ids.most_common(1)[0][0]!r} stands {ids.most_common(1)[0][1]} times in the test "
            "examples",
            path=file_of(path, "test"),
            expected="an id of its own for each",
        )


def _check_counts(parts: Parts, labels: Sequence[str], path: Path) -> None:
    for part in ("train", "test"):
        counts = Counter(row["language"] for row in parts[part])
        for label in labels:
            if not counts[label]:
                raise MissingInputError(
                    f"{label} has no example to {'train on' if part == 'train' else 'test'}",
                    path=file_of(path, part),
                    expected=f"examples of every language ({', '.join(sorted(counts)) or 'none'} "
                    "have some)",
                    fix="add some, or leave it out of languages",
                )


def _check_example(row: Row, task: str, path: Path) -> None:
    lacking = [name for name in _NEEDED[task] if name not in row]
    if lacking:
        raise InputError(
            f"example {row['id']!r} has no {lacking[0]!r}",
            path=path,
            expected=f"{' and '.join(_NEEDED[task])} for {task}",
        )
    wrong = [name for name, kind in _TYPES[task].items() if not isinstance(row[name], kind)]
    if wrong:
        raise InputError(
            f"example {row['id']!r} has {row[wrong[0]]!r} as its {wrong[0]}",
            path=path,
            expected="a list" if _TYPES[task][wrong[0]] is list else "a string",
        )
    if task != "token-classification":
        return
    n_tokens, n_tags = len(row["tokens"]), len(row["tags"])
    if n_tokens != n_tags or not n_tags:
        raise InputError(
            f"example {row['id']!r} has {n_tokens} tokens and {n_tags} tags",
            path=path,
            expected="one or more tokens, and a tag for every token",
        )
    for name in ("tokens", "tags"):
        kinds = str if name == "tokens" else str | int
        other = [value for value in row[name] if not isinstance(value, kinds)]
        if other:
            raise InputError(
                f"example {row['id']!r} has {other[0]!r} among its {name}",
                path=path,
                expected="strings",
            )


def _check_labels(parts: Parts, path: Path) -> None:
    """Refuse labels that nothing can be learnt of."""
    trained = {str(row["label"]) for row in parts["train"]}
    if len(trained) < 2:
        raise InputError(
            f"all examples have the label {next(iter(trained))!r}",
            path=file_of(path, "train"),
            expected="two labels or more",
        )
    _refuse_untrained([str(row["label"]) for row in parts["test"]], trained, "label", path)


def _check_tags(parts: Parts, path: Path) -> None:
    """Refuse kinds of spans that are tested and never trained; a rare `I-` of a known kind is."""
    kinds = {
        part: [tag.partition("-")[2] or tag for row in parts[part] for tag in map(str, row["tags"])]
        for part in ("train", "test")
    }
    _refuse_untrained(kinds["test"], set(kinds["train"]), "tag", path)


def _refuse_untrained(tested: Sequence[str], trained: set[str], what: str, path: Path) -> None:
    unknown = Counter(label for label in tested if label not in trained)
    if unknown:
        label, n = unknown.most_common(1)[0]
        raise InputError(
            f"{n} of the test examples have the {what} {label!r}, which none to train on has"
            if what == "label"
            else f"the tag {label!r} stands {n} times, and never in the training examples",
            path=file_of(path, "test"),
            expected=f"{what}s that are trained ({', '.join(sorted(trained)[:8])})",
            fix="correct its spelling, add training examples of it, or leave these out",
        )
