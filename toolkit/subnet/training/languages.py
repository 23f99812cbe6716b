"""Which languages the demo can be asked for: those of MASSIVE, or any other that CLDR describes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from subnet.errors import InputError, UnknownLanguageError
from subnet.language import DIRECTION, Language, LanguageIndex

#: Twelve languages in eight scripts and six families. Script and family cross: Arabic and Persian
#: share a script but no family, Arabic and Hebrew a family but no script, and Turkish is written in
#: Latin letters without being Indo-European.
DEFAULT_LANGUAGES = ("en", "de", "es", "tr", "ru", "el", "ar", "fa", "he", "hi", "ko", "th")

#: Top-level family of the 52 languages of MASSIVE 1.1 (FitzGerald et al. 2023, arXiv:2204.08582),
#: by primary language subtag. Families after Glottolog.
FAMILIES = {
    "af": "Indo-European", "am": "Afro-Asiatic", "ar": "Afro-Asiatic", "az": "Turkic",
    "bn": "Indo-European", "ca": "Indo-European", "cy": "Indo-European", "da": "Indo-European",
    "de": "Indo-European", "el": "Indo-European", "en": "Indo-European", "es": "Indo-European",
    "fa": "Indo-European", "fi": "Uralic", "fil": "Austronesian", "fr": "Indo-European",
    "he": "Afro-Asiatic", "hi": "Indo-European", "hu": "Uralic", "hy": "Indo-European",
    "id": "Austronesian", "is": "Indo-European", "it": "Indo-European", "ja": "Japonic",
    "jv": "Austronesian", "ka": "Kartvelian", "km": "Austroasiatic", "kn": "Dravidian",
    "ko": "Koreanic", "lv": "Indo-European", "ml": "Dravidian", "mn": "Mongolic",
    "ms": "Austronesian", "my": "Sino-Tibetan", "nb": "Indo-European", "nl": "Indo-European",
    "pl": "Indo-European", "pt": "Indo-European", "ro": "Indo-European", "ru": "Indo-European",
    "sl": "Indo-European", "sq": "Indo-European", "sv": "Indo-European", "sw": "Niger-Congo",
    "ta": "Dravidian", "te": "Dravidian", "th": "Tai-Kadai", "tr": "Turkic",
    "ur": "Indo-European", "vi": "Austroasiatic", "zh": "Sino-Tibetan",
}  # fmt: skip

#: Where MASSIVE's label does not name the CLDR locale by itself.
_LOCALES = {"pt": "pt_PT", "zh-CN": "zh_Hans_CN", "zh-TW": "zh_Hant_TW"}

#: The 52 languages of MASSIVE 1.1, under its labels.
MASSIVE_LANGUAGES = tuple(sorted((set(FAMILIES) - {"fil", "zh"}) | {"tl", "zh-CN", "zh-TW"}))


@dataclass(frozen=True)
class DemoLanguage:
    """A language of the demo.

    Attributes:
        language: Its identity; `language.label` names its folders and rows.
        locale: The CLDR locale that its words come from (`zh_Hans_CN`).
        family: Language family, `""` where the demo does not know it.
    """

    language: Language
    locale: str
    family: str

    @property
    def label(self) -> str:
        """The label under which the language was asked for."""
        return self.language.label


def resolve_languages(languages: str | Sequence[str]) -> tuple[DemoLanguage, ...]:
    """Languages of a demo, each with its CLDR locale.

    Args:
        languages: `"default"` (twelve), `"all"` (the 52 of MASSIVE), or labels in any usual form.

    Raises:
        UnknownLanguageError: A label names no language, one that CLDR does not describe, or the
            same one as another label.
        InputError: There are fewer than two languages.

    Example:
        >>> [language.locale for language in resolve_languages(["deu", "pt", "zh-TW"])]
        ['de', 'pt_PT', 'zh_Hant_TW']
    """
    if isinstance(languages, str):
        choices = {"default": DEFAULT_LANGUAGES, "all": MASSIVE_LANGUAGES}
        labels: Sequence[str] = choices.get(languages) or languages.replace(",", " ").split()
    else:
        labels = languages
    if len(labels) < 2:
        raise InputError(
            f"{len(labels)} language was asked for" if labels else "no language was asked for",
            expected="at least two",
            fix='name several (de,fr,ru), or ask for "default" or "all"',
        )
    with of_a_training():
        found = LanguageIndex().add_distinct(labels)
    return tuple(_describe(label, language) for label, language in found.items())


@contextlib.contextmanager
def of_a_training() -> Iterator[None]:
    """Let what is wrong with a language point to nothing that a training does not read.

    What a label means, a checkpoint directory says in `subnet.toml`; examples have no such file.
    """
    try:
        yield
    except UnknownLanguageError as error:
        if "subnet.toml" not in (error.fix or ""):
            raise
        raise UnknownLanguageError(
            error.found, path=error.path, expected=error.expected, fix="correct it, or leave it out"
        ) from error


def _describe(label: str, language: Language) -> DemoLanguage:
    if DIRECTION in label or not label.replace("-", "").replace("_", "").isalnum():
        raise UnknownLanguageError(f"{label!r} is not a single language", expected="a code like de")
    locale = _LOCALES.get(label) or _cldr_locale(language)
    return DemoLanguage(language, locale, FAMILIES.get(language.language, ""))


def _cldr_locale(language: Language) -> str:
    from babel import Locale, UnknownLocaleError

    tag = "pt-PT" if language.tag == "pt" else language.tag
    try:
        found: Any = Locale.parse(tag, sep="-")
    except (UnknownLocaleError, ValueError) as error:
        raise UnknownLanguageError(
            f"CLDR has no words for {language.label!r} ({language.name})",
            expected="a language with CLDR locale data",
            fix='leave it out; those that "all" stands for all have them',
        ) from error
    return str(found)
