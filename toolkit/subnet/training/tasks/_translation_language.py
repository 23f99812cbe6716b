"""Which language a text is in, by py3langid: offline, with the model that it ships."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError, UnknownLanguageError
from subnet.language import Language, parse_language
from subnet.training.tasks._translation_scores import missing

#: Languages that py3langid knows by another code: its `no` beside `nn` is Bokmål.
_OTHER_CODES = {"nb": "no"}


def identified(
    texts: Sequence[str], languages: Sequence[Language], among: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """Whether each text is taken for the language that it should be in.

    Scripts are not told apart: Serbian in either one is Serbian.

    Args:
        texts: [n] texts.
        languages: [n] languages that they should be in.
        among: Labels of the languages to choose among; None for all that py3langid knows.

    Returns:
        [n] 1, 0, or NaN where `why_not` says that nothing can be told.

    Raises:
        MissingInputError: py3langid is not installed.
        UnknownLanguageError: A label of `among` names no language.
    """
    choices = _choices(among)
    found = identify(texts, choices) if _undefined(choices) is None else [None] * len(texts)
    return np.array(
        [
            np.nan if why_not(language, among) else float(answer == _subtag(language))
            for answer, language in zip(found, languages, strict=True)
        ]
    )


def why_not(language: Language, among: Sequence[str] | None = None) -> str:
    """Why texts cannot be told to be in a language; `""` where they can."""
    choices = _choices(among)
    if _subtag(language) not in _known():
        return f"py3langid does not know {language.name}"
    if choices is not None and _subtag(language) not in choices:
        return f"{language.name} is not among the languages to choose from"
    return _undefined(choices) or ""


def check_identifiable(among: Sequence[str], name: str) -> None:
    """Refuse languages to choose among that py3langid cannot choose.

    Args:
        among: Labels; none stands for all that it knows.
        name: The setting that they are of.

    Raises:
        InputError: One is no language, is not known to py3langid, or they are fewer than two.
        MissingInputError: py3langid is not installed.
    """
    if not among:
        return
    for label in among:
        try:
            found = _subtag(parse_language(label))
        except UnknownLanguageError as error:
            raise InputError(
                f"{name} has {label!r}, which is no language", expected="codes such as de or en"
            ) from error
        if found not in _known():
            raise InputError(
                f"{name} has {label!r}, which py3langid does not know",
                expected=f"some of the {len(_known())} that it knows, such as de, en and fr",
                fix="leave it out: outputs that should be in it have no language_accuracy",
            )
    if len(_parsed(tuple(among))) < 2:
        raise InputError(
            f"{name} is {list(among)}", expected="two languages or more, or none for all"
        )


def _undefined(choices: frozenset[str] | None) -> str | None:
    if choices is not None and len(choices & _known()) < 2:
        return "there are fewer than two languages to choose among"
    return None


def identify(texts: Sequence[str], among: frozenset[str] | None = None) -> list[str | None]:
    """Language of each text.

    Args:
        texts: Any texts.
        among: Primary subtags to choose among; None for all that are known.

    Returns:
        [n] primary subtags; None where a text has no feature to go by (it is empty, or all digits):
        py3langid itself then answers with the first language of its list.

    Raises:
        MissingInputError: py3langid is not installed.
    """
    subtags = _subtags()
    identifier = _identifier(among)
    floor = _floor()
    found: list[str | None] = []
    for text in texts:
        code, confidence = identifier.classify(text)
        found.append(None if confidence <= floor else subtags.get(code))
    return found


def _subtag(language: Language) -> str:
    return _OTHER_CODES.get(language.language, language.language)


@functools.lru_cache(maxsize=64)
def _parsed(among: tuple[str, ...]) -> frozenset[str]:
    return frozenset(_subtag(parse_language(label)) for label in among)


def _choices(among: Sequence[str] | None) -> frozenset[str] | None:
    return None if among is None else _parsed(tuple(among))


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(_subtags().values())


@functools.cache
def _subtags() -> dict[str, str]:
    """py3langid's codes to primary subtags; without those that stand for no language."""
    found = {}
    for code in _identifier(None).labels:
        try:
            found[str(code)] = _subtag(parse_language(str(code)))
        except UnknownLanguageError:
            continue
    return found


@functools.lru_cache(maxsize=8)
def _identifier(among: frozenset[str] | None) -> Any:
    if among is not None:
        codes = [code for code, language in _subtags().items() if language in among]
        identifier = copy.copy(_identifier(None))
        identifier.set_languages(codes)
        return identifier
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise missing("py3langid") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)


def _floor() -> float:
    from py3langid.langid import RAW_FLOOR

    return float(RAW_FLOOR)
