"""Parallel texts as directions of translation: generated from CLDR, or read from files.

Texts are split by what they mean: what is tested was trained in no direction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError, MissingInputError
from subnet.language import DIRECTION
from subnet.training._translation_files import read_split, read_unsplit, split
from subnet.training.data import Example, load_data
from subnet.training.languages import resolve_languages
from subnet.training.tasks._task import Row
from subnet.training.tasks._translation_rows import as_row, parse_direction
from subnet.training.terms import TERM_KINDS

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class TranslationData:
    """Rows of several directions; each has id, language (`de>en`), source, target, concept.

    Attributes:
        directions: Labels, in order.
        train: Rows to train on, direction after direction.
        validation: Rows that neither training nor tests see.
        test: Rows to test on.
        report: Per direction, what could make it differ from the others.
    """

    directions: tuple[str, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    report: tuple[Mapping[str, Any], ...]


def directions_between(languages: Sequence[str], *, pivot: str | None = None) -> tuple[str, ...]:
    """Directions between languages: of every ordered pair, or of those with a pivot.

    Args:
        languages: Labels.
        pivot: One of them, where only translation from and into it is wanted.

    Example:
        >>> directions_between(["en", "de", "fr"], pivot="en")
        ('en>de', 'en>fr', 'de>en', 'fr>en')
    """
    if pivot is not None and pivot not in languages:
        raise InputError(f"the pivot {pivot!r} is none of the languages {', '.join(languages)}")
    return tuple(
        f"{a}{DIRECTION}{b}"
        for a in languages
        for b in languages
        if a != b and (pivot is None or pivot in (a, b))
    )


def load_directions(
    directions: Sequence[str],
    *,
    kinds: tuple[str, ...] = TERM_KINDS,
    max_concepts_per_kind: int = 180,
    test_share: float = 0.3,
    validation_share: float = 0.1,
    seed: int = 0,
) -> TranslationData:
    """Names and phrases from CLDR in every direction, the same concepts in all of them.

    Args:
        directions: Labels such as `de>en`; the two sides are languages that CLDR describes.
        kinds: Which kinds of names and phrases; of `load_data`, as all that follow.
        max_concepts_per_kind: Most concepts of a kind.
        test_share: Share of each kind's concepts that is tested.
        validation_share: Share of them that neither training nor tests see.
        seed: Seed of the choice of concepts and of the split.

    Raises:
        InputError: A direction is none, or is asked for twice; or as `load_data`.
        UnknownLanguageError: A side is no language, or one that CLDR does not describe.
    """
    sides = _distinct(directions)
    labels = list(dict.fromkeys(part for direction in sides for part in _labels(direction)))
    data = load_data(
        resolve_languages(labels),
        kinds=kinds,
        max_concepts_per_kind=max_concepts_per_kind,
        test_share=test_share,
        validation_share=validation_share,
        seed=seed,
    )
    parts = {part: _directed(getattr(data, part), sides) for part in PARTS}
    return _with_report(tuple(sides), parts)


def read_translations(
    path: str | Path,
    *,
    directions: Sequence[str] | None = None,
    tested_only: Collection[str] = (),
    test_share: float = 0.2,
    validation_share: float = 0.1,
    seed: int = 0,
) -> TranslationData:
    """Translations in files.

    What is understood: a folder with `train.jsonl` and `test.jsonl` (and `validation.jsonl`), whose
    split is kept; a `.jsonl` file; a `.tsv` file of two columns, whose header names two languages
    (Tatoeba's form), which gives both directions; a folder of such files. Files without a split of
    their own are split by meaning: pairs that share a text in any file, directly or through others,
    fall on the same side.

    Args:
        path: File or folder.
        directions: Which to keep, in this order; None for all. Other labels of the same languages
            are understood, and these are taken.
        tested_only: Those of them that need no rows to train on.
        test_share: Share of the meanings that is tested, where the files have no split.
        validation_share: Share of them that neither training nor tests see.
        seed: Seed of the split.

    Raises:
        MissingInputError: There is nothing of the kind, or a direction has no rows.
        FileFormatError: A file is not of its form; says which line.
        InputError: A row lacks a text or a direction, or two rows have one id.
    """
    place = Path(path)
    if (place / "train.jsonl").is_file():
        parts = read_split(place)
    else:
        parts = split(read_unsplit(place), test_share, validation_share, seed)
    found = list(dict.fromkeys(row["language"] for part in parts.values() for row in part))
    wanted = _distinct(found if directions is None else directions, path=place)
    labels = {sides: label for label, sides in wanted.items()}
    kept = {part: _relabelled(rows, labels) for part, rows in parts.items()}
    for label in wanted:
        for part in ("train", "test"):
            needed = part == "test" or label not in tested_only
            if needed and not any(row["language"] == label for row in kept[part]):
                raise MissingInputError(
                    f"has no row of {label} to {part}",
                    path=place,
                    expected=f"rows of it beside those of {', '.join(found[:8])}",
                )
    return _with_report(tuple(wanted), kept)


def kinds_of_direction(trained: Sequence[str], tested: Sequence[str]) -> pd.DataFrame:
    """What was seen in training of each direction that is tested.

    Args:
        trained: Directions of the training.
        tested: Directions of the evaluation. Labels may differ: `deu>eng` is `de>en`.

    Returns:
        One row per tested direction: language, source_language, target_language, group: `seen_pair`
        (trained), `unseen_source` (its target was translated into, its source never from),
        `unseen_target` (the reverse), `unseen_pair` (both, but never together), `unseen_both`.

    Example:
        >>> list(kinds_of_direction(["de>en"], ["de>en", "fr>en", "de>fr", "en>de"]).group)
        ['seen_pair', 'unseen_source', 'unseen_target', 'unseen_both']
    """
    import pandas as pd

    seen = {tuple(side.identity for side in parse_direction(label)) for label in trained}
    sources, targets = {source for source, _ in seen}, {target for _, target in seen}
    names = {
        (True, True): "unseen_pair",
        (False, True): "unseen_source",
        (True, False): "unseen_target",
        (False, False): "unseen_both",
    }
    rows = []
    for label in tested:
        source, target = (side.identity for side in parse_direction(label))
        group = names[source in sources, target in targets]
        before, after = _labels(label)
        rows.append(
            {
                "language": label,
                "source_language": before,
                "target_language": after,
                "group": "seen_pair" if (source, target) in seen else group,
            }
        )
    return pd.DataFrame(rows, columns=["language", "source_language", "target_language", "group"])


Sides = tuple[tuple[str, str, str], tuple[str, str, str]]


def _distinct(directions: Sequence[str], *, path: Path | None = None) -> dict[str, Sides]:
    """Directions, each with what tells its two languages from others.

    Raises:
        InputError: There are none, one is no direction, or two are the same.
    """
    if not directions:
        raise InputError("no direction was asked for", path=path, expected="such as de>en")
    found: dict[str, Sides] = {}
    for label in directions:
        sides = _sides(label)
        other = next((name for name, entered in found.items() if entered == sides), None)
        if other is not None:
            raise InputError(
                f"{other!r} and {label!r} are the same direction", path=path, fix="remove one"
            )
        found[label] = sides
    return found


def _sides(label: str) -> Sides:
    source, target = parse_direction(label)
    return ((*source.identity, source.territory), (*target.identity, target.territory))


def _labels(direction: str) -> tuple[str, str]:
    before, _, after = direction.partition(DIRECTION)
    return before.strip(), after.strip()


def _directed(examples: Sequence[Example], directions: Iterable[str]) -> list[Row]:
    """Every concept in every direction."""
    texts = {(example.language, example.concept): example.text for example in examples}
    concepts = list(dict.fromkeys(example.concept for example in examples))
    rows: list[Row] = []
    for direction in directions:
        before, after = _labels(direction)
        rows += [
            as_row(direction, key, texts[before, key], texts[after, key], key) for key in concepts
        ]
    return rows


def _relabelled(rows: Sequence[Row], labels: Mapping[Sides, str]) -> list[Row]:
    """Rows of the wanted directions under the labels wanted."""
    own = {label: labels.get(_sides(label)) for label in {row["language"] for row in rows}}
    kept: list[Row] = []
    for row in rows:
        label = own[row["language"]]
        if label is not None:
            before, after = _labels(label)
            named = {"source_language": before, "target_language": after}
            kept.append({**row, "language": label, **named})
    return kept


def _with_report(directions: tuple[str, ...], parts: Mapping[str, list[Row]]) -> TranslationData:
    report = []
    for direction in directions:
        own = {part: [row for row in parts[part] if row["language"] == direction] for part in PARTS}
        every = [row for rows in own.values() for row in rows]
        trained = {side: {row[side] for row in own["train"]} for side in ("source", "target")}
        report.append(
            {
                "language": direction,
                **{f"{part}_examples": len(rows) for part, rows in own.items()},
                **{
                    f"{side}_bytes_per_character": sum(len(row[side].encode()) for row in every)
                    / sum(len(row[side]) for row in every)
                    for side in ("source", "target")
                },
                "copy_share": sum(row["source"] == row["target"] for row in every) / len(every),
                **{
                    f"test_{side}_seen_share": sum(row[side] in texts for row in own["test"])
                    / len(own["test"])
                    for side, texts in trained.items()
                },
            }
        )
    by_direction = {
        part: tuple(row for d in directions for row in rows if row["language"] == d)
        for part, rows in parts.items()
    }
    return TranslationData(directions, **by_direction, report=tuple(report))
