"""Parallel examples for the demo: a term or phrase in one of several languages, and its kind.

Data cut carelessly from CLDR manufacture a difference between scripts. Here every language has the
same concepts, on the same side of the split, in the same proportions; a string that stands for two
concepts in any language takes both out of all of them; and what still differs between languages
(bytes per character, truncation, strings equal to the English ones) is reported.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subnet.errors import InputError
from subnet.training.languages import DemoLanguage
from subnet.training.terms import PHRASE_KINDS, TERM_KINDS, kind_of, read_terms

#: A kind with fewer concepts than this in common is left out.
_SMALLEST_KIND = 10


@dataclass(frozen=True)
class Example:
    """One example, as it stands in `train.jsonl` and `test.jsonl`.

    Attributes:
        id: Unique over all languages (`de:territory:FR`).
        language: Label of the language.
        text: The term or phrase.
        label: Its kind.
        concept: What it names: the same key in every language.
    """

    id: str
    language: str
    text: str
    label: str
    concept: str


@dataclass(frozen=True)
class DemoData:
    """The examples of all languages.

    Attributes:
        languages: In the order asked for.
        kinds: The labels, in the order of the model's outputs.
        train: Languages in order, within each the training concepts in the same order.
        validation: The same for the concepts that neither training nor tests see: what subnetworks
            are searched on.
        test: The same for the test concepts.
        report: Per language, what could make it differ from the others: a row of `languages.csv`.
    """

    languages: tuple[DemoLanguage, ...]
    kinds: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    report: tuple[Mapping[str, Any], ...]


def load_data(
    languages: Sequence[DemoLanguage],
    *,
    kinds: tuple[str, ...] = TERM_KINDS,
    max_concepts_per_kind: int = 180,
    test_share: float = 0.3,
    validation_share: float = 0.1,
    max_bytes: int = 158,
    seed: int = 0,
) -> DemoData:
    """Draw parallel examples from CLDR.

    Args:
        languages: Which languages.
        kinds: Which kinds, of those in `subnet.training.terms`.
        max_concepts_per_kind: Keeps the frequent kinds (names of languages) from being the answer.
        test_share: Share of each kind's concepts that is tested.
        validation_share: Share of them that neither training nor tests see.
        max_bytes: Bytes of a text that the model reads, for the report of truncation.
        seed: Seed of the choice of concepts and of the split.

    Raises:
        InputError: An unknown kind, or fewer than two kinds with enough concepts in common.
    """
    unknown = sorted(set(kinds) - {*TERM_KINDS, *PHRASE_KINDS})
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is no kind of term",
            expected=f"some of {', '.join((*TERM_KINDS, *PHRASE_KINDS))}",
        )
    terms = {language.label: read_terms(language.locale, kinds) for language in languages}
    english = read_terms("en", kinds)
    shared = set.intersection(*(set(names) for names in terms.values()))
    usable = shared - _ambiguous(terms, shared)
    chosen: dict[str, list[str]] = {}
    for kind in kinds:
        concepts = _shuffled((key for key in usable if kind_of(key) == kind), seed)
        if len(concepts) >= _SMALLEST_KIND:
            chosen[kind] = concepts[:max_concepts_per_kind]
    if len(chosen) < 2:
        raise InputError(
            f"the languages have {len(chosen)} kind of term in common",
            expected=f"at least two kinds with {_SMALLEST_KIND} concepts each",
            fix="choose other languages",
        )
    test_keys, validation_keys, train_keys = [], [], []
    for concepts in chosen.values():
        cut = max(1, round(test_share * len(concepts)))
        second = cut + max(1, round(validation_share * len(concepts)))
        test_keys += concepts[:cut]
        validation_keys += concepts[cut:second]
        train_keys += concepts[second:]
    keys = [*test_keys, *validation_keys, *train_keys]
    largest = max(len(concepts) for concepts in chosen.values())
    total = sum(len(concepts) for concepts in chosen.values())
    return DemoData(
        languages=tuple(languages),
        kinds=tuple(chosen),
        train=_examples(terms, train_keys),
        validation=_examples(terms, validation_keys),
        test=_examples(terms, test_keys),
        report=tuple(
            {
                "language": language.label,
                "tag": language.language.tag,
                "script": language.language.script,
                "family": language.family,
                "train_examples": len(train_keys),
                "validation_examples": len(validation_keys),
                "test_examples": len(test_keys),
                "majority_share": largest / total,
                **_describe(terms[language.label], english, keys, max_bytes),
                "ambiguous_share": _ambiguous_share(terms[language.label], shared),
            }
            for language in languages
        ),
    )


def _ambiguous(terms: Mapping[str, Mapping[str, str]], shared: Iterable[str]) -> set[str]:
    """Concepts whose string, in any language, also stands for something else there or elsewhere.

    Of concepts of one kind that share a string the first is kept, so that no test string has been
    seen in training in any language; concepts of different kinds that share one are all dropped.
    """
    holders: defaultdict[str, set[str]] = defaultdict(set)
    for names in terms.values():
        for concept in shared:
            holders[names[concept].casefold()].add(concept)
    dropped: set[str] = set()
    alike = [sorted(concepts) for _, concepts in sorted(holders.items()) if len(concepts) > 1]
    for concepts in alike:
        if len({kind_of(concept) for concept in concepts}) > 1:
            dropped.update(concepts)
    for concepts in alike:
        left = [concept for concept in concepts if concept not in dropped]
        dropped.update(left[1:])
    return dropped


def _ambiguous_share(names: Mapping[str, str], shared: Iterable[str]) -> float:
    """Share of a language's strings that carried two labels before any were dropped."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for concept in shared:
        labels[names[concept].casefold()].add(kind_of(concept))
    return sum(len(kinds) > 1 for kinds in labels.values()) / len(labels)


def _shuffled(concepts: Iterable[str], seed: int) -> list[str]:
    """In an order that depends on seed and key alone, not on which other concepts there are."""

    def rank(concept: str) -> str:
        return hashlib.sha256(f"{seed}/{concept}".encode()).hexdigest()

    return sorted(concepts, key=rank)


def _examples(
    terms: Mapping[str, Mapping[str, str]], concepts: Sequence[str]
) -> tuple[Example, ...]:
    return tuple(
        Example(f"{label}:{concept}", label, names[concept], kind_of(concept), concept)
        for label, names in terms.items()
        for concept in concepts
    )


def _describe(
    names: Mapping[str, str], english: Mapping[str, str], concepts: Sequence[str], max_bytes: int
) -> dict[str, float]:
    texts = [names[concept] for concept in concepts]
    lengths = [len(text.encode()) for text in texts]
    same = sum(names[concept] == english.get(concept) for concept in concepts)
    return {
        "bytes_per_character": sum(lengths) / sum(map(len, texts)),
        "truncated_share": sum(length > max_bytes for length in lengths) / len(texts),
        "equal_to_english_share": same / len(texts),
    }
