"""Which language a label names: one identity for `zho_Hans`, `zh-CN` and `cmn`.

A language is identified by (language, script) after CLDR's likely subtags; the region counts only
where it is all that tells two labels apart. Tables carry the user's own label and the tag.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from subnet.errors import UnknownLanguageError

#: Ordinary words that happen to be valid language codes. As names of folders or files they count
#: as languages only when `subnet.toml` says so.
# Only three letters: two-letter codes (`is`, `no`, `or`, `so`) are languages that people train
# on, and no usual name for a folder.
ORDINARY_WORDS = frozenset(
    {
        *(
            "all",
            "and",
            "bak",
            "bin",
            "cat",
            "dat",
            "dev",
            "doc",
            "end",
            "fit",
            "gas",
            "gen",
            "get",
        ),
        *(
            "git",
            "hot",
            "ids",
            "inc",
            "ini",
            "ipa",
            "key",
            "kit",
            "led",
            "lib",
            "lin",
            "log",
            "lol",
        ),
        *(
            "lot",
            "low",
            "mad",
            "man",
            "map",
            "max",
            "men",
            "mix",
            "mod",
            "net",
            "new",
            "nod",
            "nor",
        ),
        *(
            "not",
            "obj",
            "off",
            "old",
            "one",
            "out",
            "own",
            "pan",
            "par",
            "pip",
            "pro",
            "raw",
            "rap",
        ),
        *(
            "ref",
            "rep",
            "row",
            "run",
            "sat",
            "saw",
            "see",
            "set",
            "sim",
            "sir",
            "src",
            "sub",
            "sum",
        ),
        *(
            "tab",
            "tag",
            "tap",
            "tar",
            "the",
            "tmp",
            "top",
            "tot",
            "toy",
            "try",
            "two",
            "use",
            "val",
        ),
        *("van", "var", "was", "way", "web", "who", "win"),
    }
)

#: Valid codes that stand for no particular language (ISO 639-2).
_NO_LANGUAGE = frozenset({"und", "mul", "mis", "zxx"})

#: Separates source and target of a translation direction: `de>en`.
DIRECTION = ">"


@dataclass(frozen=True)
class Language:
    """A language, or a translation direction, as the user names it and as the standard does.

    Attributes:
        label: The user's own label, as found (`zho_Hans`, `pt_PT`, `de>en`).
        tag: Canonical BCP 47 tag (`zh-Hans`, `pt-PT`); both sides for a direction.
        language: Primary language subtag after macrolanguage replacement (`zh`).
        script: ISO 15924 code after likely subtags (`Hans`), `""` where CLDR knows none.
        territory: ISO 3166 code where the label gave one, else `""`.
        name: English name (`Chinese (Simplified)`).
    """

    label: str
    tag: str
    language: str
    script: str
    territory: str
    name: str

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two labels the same language: (language, script)."""
        return (self.language, self.script)

    @property
    def script_name(self) -> str:
        """English name of the script, `""` where unknown."""
        return " > ".join(_script_name(part) for part in self.script.split(DIRECTION))

    @property
    def is_latin(self) -> bool | None:
        """Whether the script is Latin; None where the script is unknown."""
        if not self.script:
            return None
        return set(self.script.split(DIRECTION)) == {"Latn"}

    def __str__(self) -> str:
        return self.label


def parse_language(
    label: str, *, tag: str | None = None, path: str | Path | None = None
) -> Language:
    """Resolve a label to a language.

    Args:
        label: A code in any usual form (`de`, `deu`, `zh_Hans`, `en_US`, `jpn_Jpan`, `de>en`).
        tag: What `subnet.toml` says the label means, where it says so.
        path: Where the label was found, for the error message.

    Raises:
        UnknownLanguageError: The label resolves to no language.

    Example:
        >>> parse_language("zho_Hans").identity == parse_language("zh-CN").identity
        True
    """
    meaning = tag or label
    if DIRECTION in meaning:
        sides = [_resolve(side.strip(), label, path) for side in meaning.split(DIRECTION)]
        if len(sides) != 2:
            raise UnknownLanguageError(
                f"{label!r} names {len(sides)} languages",
                path=path,
                expected="source>target for a translation direction, as in de>en",
            )
        source, target = sides
        return Language(
            label=label,
            tag=f"{source.tag}{DIRECTION}{target.tag}",
            language=f"{source.language}{DIRECTION}{target.language}",
            script=f"{source.script}{DIRECTION}{target.script}",
            territory="",
            name=f"{source.name} to {target.name}",
        )
    return _resolve(meaning, label, path)


def looks_like_language(label: str) -> bool:
    """Whether a folder or column of that name is taken for a language without being told so.

    Ordinary words that happen to be codes (`new`, `run`, `log`) are not.
    """
    if label.lower() in ORDINARY_WORDS:
        return False
    try:
        parse_language(label)
    except UnknownLanguageError:
        return False
    return True


class LanguageIndex:
    """The languages of one analysis: every label that names the same language meets in one entry.

    The first label seen is the one that tables carry. A region matters only where two entries
    share language and script: `adapters/en` and a score for `en_US` meet, `pt_PT` and `pt_BR` side
    by side stay apart.
    """

    def __init__(self, tags: Mapping[str, str] | None = None) -> None:
        self._tags = dict(tags or {})
        self._found: dict[tuple[str, str, str], Language] = {}

    def __iter__(self) -> Iterator[Language]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def declared(self, label: str) -> bool:
        """Whether `subnet.toml` says what this label means."""
        return label in self._tags

    def recognises(self, label: str) -> bool:
        """Whether a folder or column of this name is a language: declared, or evidently one."""
        return self.declared(label) or looks_like_language(label)

    def add(self, label: str, *, path: str | Path | None = None) -> Language:
        """The language that a label names, entered if it is new.

        Raises:
            UnknownLanguageError: The label names no language, or several of those entered.
        """
        language = parse_language(label, tag=self._tags.get(label), path=path)
        key = (*language.identity, language.territory)
        if key in self._found:
            return self._found[key]
        alike = [entry for entry in self if entry.identity == language.identity]
        if alike and (not language.territory or not all(entry.territory for entry in alike)):
            if len(alike) == 1:
                return alike[0]
            raise UnknownLanguageError(
                f"{label!r} could be any of {', '.join(entry.label for entry in alike)}",
                path=path,
                expected="a label with a region",
                fix=f'or say which in subnet.toml: [languages."{label}"] tag = "…"',
            )
        self._found[key] = language
        return language

    def add_distinct(
        self, labels: Iterable[str], *, path: str | Path | None = None
    ) -> dict[str, Language]:
        """Enter the labels of one source, where two for the same language are a mistake.

        Returns:
            Label to language, in the order given.

        Raises:
            UnknownLanguageError: Two labels name the same language.
        """
        found: dict[str, Language] = {}
        for label in labels:
            language = self.add(label, path=path)
            for other, entered in found.items():
                if entered == language:
                    raise UnknownLanguageError(
                        f"{other!r} and {label!r} are the same language ({language.tag})",
                        path=path,
                        expected="one entry per language",
                        fix="rename or remove one, or give both a region in subnet.toml: "
                        f'[languages."{label}"] tag = "…"',
                    )
            found[label] = language
        return found


@functools.lru_cache(maxsize=4096)
def _standard(code: str) -> tuple[str, str, str, str, str] | None:
    """(tag, language, script, territory, English name) of a code, None if it is no language."""
    import langcodes
    from babel import Locale, UnknownLocaleError
    from babel.core import get_global
    from langcodes.tag_parser import LanguageTagError

    try:
        tag = langcodes.standardize_tag(code, macro=True)
        parsed = langcodes.Language.get(tag)
    except LanguageTagError:
        return None
    if not parsed.is_valid() or not parsed.language or parsed.language in _NO_LANGUAGE:
        return None
    language, territory = parsed.language, parsed.territory or ""
    # CLDR's likely subtags asked for directly: maximize() answers Latin, US where it knows nothing.
    likely = get_global("likely_subtags")
    full = likely.get(f"{language}_{territory}") or likely.get(language) or ""
    script = parsed.script or next((part for part in full.split("_") if len(part) == 4), "")
    english = Locale("en")
    try:
        name = Locale.parse(tag.replace("-", "_")).get_display_name("en")
    except (UnknownLocaleError, ValueError):
        name = english.languages.get(language, language)
    return tag, language, script, territory, name or language


def _resolve(code: str, label: str, path: str | Path | None) -> Language:
    standard = _standard(code) if code else None
    if standard is None:
        raise UnknownLanguageError(
            f"{label!r} is no language code"
            if code == label
            else f"{label!r} is declared as {code!r}, which is no language code",
            path=path,
            expected="a BCP 47 or ISO 639 code such as de, deu, zho_Hans or pt-BR, or de>en for a "
            "translation direction",
            fix=f'rename it, or say what it means in subnet.toml: [languages."{label}"] tag = "…"',
        )
    tag, language, script, territory, name = standard
    return Language(label, tag, language, script, territory, name)


@functools.lru_cache(maxsize=256)
def _script_name(script: str) -> str:
    from babel import Locale

    name = str(Locale("en").scripts.get(script, script))
    return f"{name} Han" if script in ("Hans", "Hant") else name
