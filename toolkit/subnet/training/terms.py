"""Words and phrases of one language from CLDR, each under the key of the concept it names.

The same key names the same concept in every language, so that the demo's data are parallel. Source:
the Unicode CLDR as shipped by Babel (Unicode License v3).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: Kinds of names and words.
TERM_KINDS = ("territory", "language", "script", "currency", "city", "unit")

#: Kinds of phrases, written by the locale's own patterns. Digits tell most of them apart, so they
#: are easy beside the names and not among the kinds of the default demo.
PHRASE_KINDS = ("date", "time", "duration", "money", "list")

_PHRASES_PER_KIND = 120


def read_terms(locale: str, kinds: tuple[str, ...] = TERM_KINDS) -> dict[str, str]:
    """What a language calls the concepts of the chosen kinds.

    Args:
        locale: CLDR locale (`de`, `zh_Hant_TW`).
        kinds: Which kinds, of `TERM_KINDS` and `PHRASE_KINDS`.

    Returns:
        Concept key (`territory:DE`, `unit:length-meter`) to text. Not every locale has all.

    Example:
        >>> read_terms("sw", ("territory",))["territory:DE"]
        'Ujerumani'
    """
    from babel import Locale

    parsed = Locale.parse(locale)
    found: dict[str, str] = {}
    for kind in kinds:
        for key, text in _READERS[kind](parsed):
            if text and text.strip():
                found[f"{kind}:{key}"] = text.strip()
    return found


def kind_of(concept: str) -> str:
    """The kind, which is the label, of a concept key."""
    return concept.partition(":")[0]


def _names(attribute: str) -> Callable[[Any], Iterator[tuple[str, str]]]:
    def read(locale: Any) -> Iterator[tuple[str, str]]:
        names: Mapping[str, str] = getattr(locale, attribute)
        yield from sorted(names.items())

    return read


def _cities(locale: Any) -> Iterator[tuple[str, str]]:
    for zone, names in sorted(locale.time_zones.items()):
        if "city" in names:
            yield zone, names["city"]


def _units(locale: Any) -> Iterator[tuple[str, str]]:
    from babel.units import get_unit_name

    # Babel looks names of units up one by one and has no public list of the units it knows.
    for unit in sorted(locale._data["unit_display_names"]):  # noqa: SLF001
        # Where the short name serves for the long one too, CLDR gives only the short.
        lengths: tuple[Any, ...] = ("long", "short", "narrow")
        names = (get_unit_name(unit, length, locale=locale) for length in lengths)
        yield unit, next((name for name in names if name), "")


def _dates(locale: Any) -> Iterator[tuple[str, str]]:
    from babel.dates import format_date

    for n in range(_PHRASES_PER_KIND):
        day = datetime.date(1990, 1, 1) + datetime.timedelta(days=97 * n)
        yield day.isoformat(), format_date(day, "long", locale=locale)


def _times(locale: Any) -> Iterator[tuple[str, str]]:
    from babel.dates import format_time

    for n in range(_PHRASES_PER_KIND):
        time = datetime.time((n * 5) % 24, (n * 7) % 60)
        yield time.strftime("%H%M"), format_time(time, "short", locale=locale)


def _durations(locale: Any) -> Iterator[tuple[str, str]]:
    from babel.dates import format_timedelta

    granularity: Any
    for n in range(_PHRASES_PER_KIND):
        granularity = ("second", "minute", "hour", "day", "week", "month")[n % 6]
        count = 2 + n // 6
        seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
        length = datetime.timedelta(seconds=count * seconds.get(granularity, 2592000))
        text = format_timedelta(length, granularity, threshold=1000, locale=locale)
        yield f"{count}-{granularity}", text


def _money(locale: Any) -> Iterator[tuple[str, str]]:
    from babel.numbers import format_currency

    currencies = ("EUR", "USD", "JPY", "GBP", "INR", "CHF", "BRL", "CNY")
    for n in range(_PHRASES_PER_KIND):
        amount, currency = 3 + 7 * n, currencies[n % len(currencies)]
        yield f"{amount}-{currency}", format_currency(amount, currency, locale=locale)


def _lists(locale: Any) -> Iterator[tuple[str, str]]:
    from babel.lists import format_list

    # Days and months, not territories: a list must not show the names that are tested.
    words = [*locale.days["format"]["wide"].values(), *locale.months["format"]["wide"].values()]
    for n in range(_PHRASES_PER_KIND):
        first, second, third = n % 19, (n * 5 + n // 19) % 19, (n * 11 + 7) % 19
        chosen = [words[i] for i in (first, second, third)]
        yield f"{first}-{second}-{third}", format_list(chosen, locale=locale)


_READERS: dict[str, Callable[[Any], Iterator[tuple[str, str]]]] = {
    "territory": _names("territories"),
    "language": _names("languages"),
    "script": _names("scripts"),
    "currency": _names("currencies"),
    "city": _cities,
    "unit": _units,
    "date": _dates,
    "time": _times,
    "duration": _durations,
    "money": _money,
    "list": _lists,
}
