"""What is compared with what, and what must not be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from subnet._tables import MAIN_RUN
from subnet.errors import InputError, NotComparableError, UnknownLanguageError
from subnet.language import Language, parse_language


class Mask(Protocol):
    """The part of `subnet.subnetwork.Subnetwork` that overlap reads."""

    @property
    def language(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def bits(self) -> Mapping[str, NDArray[np.uint8]]: ...
    @property
    def signs(self) -> Mapping[str, NDArray[np.uint8]] | None: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def base(self) -> str: ...
    @property
    def granularity(self) -> str: ...


class WeightUpdate(Protocol):
    """The part of `subnet.checkpoint.Update` that overlap reads."""

    @property
    def language(self) -> Language: ...
    @property
    def run(self) -> str: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def base(self) -> str: ...
    @property
    def is_low_rank(self) -> bool: ...
    @property
    def transposed(self) -> frozenset[str]: ...
    def factors(self, parameter: str) -> tuple[Any, Any]: ...
    def dense(self, parameter: str) -> Any: ...


@dataclass(frozen=True)
class Pairs:
    """The comparisons: which two entries, under which run, for what purpose.

    Attributes:
        a, b: [p], indices of the entries.
        run: [p], the run; `first|second` where the two come from different runs.
        comparison: [p], `between` languages, `replicate` of one language in two runs, or `half`:
            one language found on two halves of its examples.
        directed: Whether a pair stands for the direction a to b only.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    run: tuple[str, ...]
    comparison: tuple[str, ...]
    directed: bool

    def __len__(self) -> int:
        return len(self.run)


@dataclass(frozen=True)
class Entries:
    """Masks or updates that can be compared with each other.

    Attributes:
        items: [l], the masks or updates.
        labels: [l], the label of each one's language.
        source: `masks`, `updates` or `steps`.
        languages: The languages in the order of the items, each once.
        parameters: Names of the parameters that all of them have.
        shapes: [m], (o, i) of each parameter; a vector counts as o×1.
        pairs: What is compared with what.
        warnings: What a reader of the result must know.
    """

    items: tuple[Any, ...]
    labels: tuple[str, ...]
    source: str
    languages: tuple[Language | str, ...]
    parameters: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    pairs: Pairs
    warnings: tuple[str, ...]


#: Two entries, under which run, and for what purpose.
_Row = tuple[int, int, str, str]


def collect(
    things: Iterable[Any],
    others: Iterable[Any] | None,
    halves: tuple[Iterable[Any], Iterable[Any]] | None = None,
) -> Entries:
    """Check that the things can be compared, and say what is compared with what.

    Raises:
        InputError: Nothing to compare, mixed kinds, a language twice in a run.
        NotComparableError: Different bases, granularities or shapes, or no shared parameter.
    """
    first = tuple(things)
    second = () if others is None else tuple(others)
    for name, group in (("things", first), ("others", second)):
        if not group and (name == "things" or others is not None):
            raise InputError(
                f"{name} holds no subnetwork and no update", expected="at least one to compare"
            )
    split = () if halves is None else tuple(tuple(half) for half in halves)
    items = first + second + sum(split, ())
    source = _source(first)
    if (source == "masks") != (_source(items) == "masks") or any(
        (_source((item,)) == "masks") != (source == "masks") for item in items
    ):
        raise InputError(
            "masks and updates are mixed",
            expected="subnetworks only, or updates only",
            fix="compare extract(checkpoint) or checkpoint.updates, not both in one call",
        )
    labels = tuple(str(item.language) for item in items)
    for group in (first, second, *split):
        _refuse_repeats(group)
    _refuse_different(items, labels, source)
    parameters, warnings = _shared_parameters(items, labels)
    rows = _all_pairs(first, labels) if others is None else _rectangle(first, second)
    if split:
        rows += _half_pairs(split, start=len(first) + len(second))
    pairs = _pairs(rows, directed=others is not None)
    return Entries(
        items=items,
        labels=labels,
        source=source,
        languages=_languages(items, labels),
        parameters=parameters,
        shapes=tuple(_matrix_shape(items[0].shapes[name]) for name in parameters),
        pairs=pairs,
        warnings=warnings,
    )


def _source(items: Sequence[Any]) -> str:
    if all(hasattr(item, "bits") for item in items):
        return "masks"
    if all(hasattr(item, "stage") and hasattr(item, "previous") for item in items):
        return "steps"
    if all(hasattr(item, "factors") for item in items):
        return "updates"
    if any(hasattr(item, "bits") for item in items) or any(
        hasattr(item, "factors") for item in items
    ):
        return "mixed"
    raise InputError(
        f"cannot measure the overlap of {type(items[0]).__name__}",
        expected="subnetworks (subnet.extract) or updates (checkpoint.updates)",
    )


def _name(item: Any) -> str:
    return f"{item.language} (run {item.run})" if item.run != "main" else str(item.language)


def _refuse_repeats(items: Sequence[Any]) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        key = (str(item.language), item.run)
        if key in seen:
            raise InputError(
                f"language {item.language} stands twice in run {item.run!r}",
                expected="one subnetwork or update per language and run",
                fix="give the second its own run, or leave one out",
            )
        seen.add(key)


def _refuse_different(items: Sequence[Any], labels: Sequence[str], source: str) -> None:
    for item in items[1:]:
        if item.base != items[0].base:
            raise NotComparableError(
                f"{_name(items[0])} is a change of {items[0].base} and {_name(item)} one of "
                f"{item.base}",
                expected="one base for all",
                fix="compare only what was trained from the same base",
            )
    if source == "masks":
        if any(item.granularity == "direction" for item in items):
            raise InputError(
                "the masks are of singular directions, whose overlap has no null model here",
                expected="masks of weights, heads or neurons, or the updates themselves",
                fix="measure_directions tests direction by direction, measure_overlap(updates) "
                "compares whole subspaces",
            )
        for item, label in zip(items, labels, strict=True):
            if item.granularity != items[0].granularity:
                raise NotComparableError(
                    f"the mask of {labels[0]} is per {items[0].granularity} and that of {label} "
                    f"per {item.granularity}",
                    expected="one granularity for all",
                    fix="extract them with the same method",
                )


def _shared_parameters(
    items: Sequence[Any], labels: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parameters that all entries have, in the order of the first, and a warning if some lack."""
    for one, other in combinations(items, 2):
        if not one.shapes.keys() & other.shapes.keys():
            raise NotComparableError(
                f"{_name(one)} and {_name(other)} share no parameter ({_name(one)} has "
                f"{_some(one.shapes)}; {_name(other)} has {_some(other.shapes)})",
                expected="target modules that intersect",
                fix="train or extract both on the same modules",
            )
    shared = set(items[0].shapes).intersection(*(item.shapes for item in items))
    everything = set[str]().union(*(item.shapes for item in items))
    if not shared:
        raise NotComparableError(
            f"no parameter is shared by all of {', '.join(labels)}",
            expected="target modules that all have",
            fix="compare fewer languages in one call",
        )
    parameters = tuple(name for name in items[0].shapes if name in shared)
    for name in parameters:
        for item in items[1:]:
            if tuple(item.shapes[name]) != tuple(items[0].shapes[name]):
                raise NotComparableError(
                    f"{name} is {_size(items[0].shapes[name])} in {_name(items[0])} and "
                    f"{_size(item.shapes[name])} in {_name(item)}",
                    expected="one shape: the same base and vocabulary",
                )
    if len(shared) == len(everything):
        return parameters, ()
    left_out = sorted(everything - shared)
    warning = (
        f"{len(left_out)} of {len(everything)} parameters are left out because not every language "
        f"has them: {_some(left_out)}"
    )
    return parameters, (warning,)


def _all_pairs(items: Sequence[Any], labels: Sequence[str]) -> list[_Row]:
    """Languages within a run, and each language with itself in other runs."""
    rows: list[tuple[int, int, str, str]] = []
    for a, b in combinations(range(len(items)), 2):
        runs = (items[a].run, items[b].run)
        if labels[a] != labels[b] and runs[0] == runs[1]:
            rows.append((a, b, runs[0], "between"))
        elif labels[a] == labels[b]:
            rows.append((a, b, "|".join(runs), "replicate"))
    if not rows:
        names = ", ".join(dict.fromkeys(_name(item) for item in items))
        raise InputError(
            f"nothing to compare: {names}",
            expected="at least two languages in one run, or one language in two runs",
        )
    return rows


def _rectangle(first: Sequence[Any], second: Sequence[Any]) -> list[_Row]:
    """Every one of the first with every one of the second, within a run where runs meet."""
    meet = {item.run for item in first} & {item.run for item in second}
    rows: list[tuple[int, int, str, str]] = []
    for (a, one), (b, other) in product(enumerate(first), enumerate(second)):
        if one.run == other.run:
            rows.append((a, len(first) + b, one.run, "between"))
        elif not meet:
            rows.append((a, len(first) + b, f"{one.run}|{other.run}", "between"))
    return rows


def _half_pairs(split: Sequence[Sequence[Any]], start: int) -> list[_Row]:
    """Each language of the one half with itself in the other, run by run."""
    first, second = split
    places = {(str(item.language), _whole_run(item.run)): b for b, item in enumerate(second)}
    rows = []
    for a, item in enumerate(first):
        b = places.get((str(item.language), _whole_run(item.run)))
        if b is not None:
            run = f"{item.run}|{second[b].run}" if item.run != second[b].run else item.run
            rows.append((start + a, start + len(first) + b, run, "half"))
    if not rows:
        raise InputError(
            "the halves have no language in common",
            expected="the same languages in both, as extract_halves gives them",
        )
    return rows


def _whole_run(run: str) -> str:
    """The run that a half is of: `half-1` of the main one, `seed2-half-1` of `seed2`."""
    return re.sub(r"-?half-[12]$", "", run) or MAIN_RUN


def _pairs(rows: Sequence[_Row], *, directed: bool) -> Pairs:
    return Pairs(
        a=np.array([row[0] for row in rows], dtype=np.int64),
        b=np.array([row[1] for row in rows], dtype=np.int64),
        run=tuple(row[2] for row in rows),
        comparison=tuple(row[3] for row in rows),
        directed=directed,
    )


def _languages(items: Sequence[Any], labels: Sequence[str]) -> tuple[Language | str, ...]:
    found: dict[str, Language | str] = {}
    for item, label in zip(items, labels, strict=True):
        if isinstance(item.language, Language):
            found[label] = item.language
        elif label not in found:
            try:
                found[label] = parse_language(label)
            except UnknownLanguageError:  # a label of the user's own: it still names a node
                found[label] = label
    return tuple(found.values())


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(o, i): further dimensions belong to the input, a vector has input 1."""
    return (shape[0], int(np.prod(shape[1:], dtype=np.int64)))


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
