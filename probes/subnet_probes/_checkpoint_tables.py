"""What probing a checkpoint gathers: parts of tables, what a reader must know, what failed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError, MissingInputError, OutputError, SubnetError
from subnet.report import Missing

if TYPE_CHECKING:
    import pandas as pd

#: Places up to which they are named.
_NAMED = 3


class Tables:
    """Tables that grow, model by model."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._parts: dict[str, list[pd.DataFrame]] = {}
        self._notes: dict[str, list[str]] = {}
        self._missing: dict[tuple[str, str], tuple[str, list[str]]] = {}
        self._tried: Counter[str] = Counter()
        self._first: SubnetError | None = None

    def add(self, name: str, frame: pd.DataFrame, place: Mapping[str, Any]) -> None:
        """Rows of a table, behind columns that say where they are from."""
        found = frame.copy()
        for at, (column, value) in enumerate(place.items()):
            found.insert(at, column, value)
        self._parts.setdefault(name, []).append(found)

    def repeat_base(self, first: str, run: str) -> None:
        """What was found at the base of one run, for another that starts from the same."""
        for name, parts in self._parts.items():
            of_base = [
                part.assign(run=run)
                for part in parts
                if name != "drift" and (part["run"] == first).all() and (part["stage"] == 0).all()
            ]
            parts += of_base

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables that have rows."""
        import pandas as pd

        found = {}
        for name, parts in self._parts.items():
            # Rows of adapters have no stage, and one column of them alone has no type.
            typed = [part.assign(stage=part["stage"].astype("Int64")) for part in parts]
            found[name] = pd.concat(typed, ignore_index=True)
        return found

    def note(self, line: str, place: str) -> None:
        """What a reader must know of one model."""
        self._notes.setdefault(line, []).append(place)

    def lines(self) -> tuple[str, ...]:
        """Warnings, each once, with the models that they are of."""
        return (*self.warnings, *(f"{line}{_at(at)}" for line, at in self._notes.items()))

    @contextlib.contextmanager
    def attempt(self, analysis: str, place: str) -> Iterator[None]:
        """An analysis that may turn out not to be possible."""
        self._tried[analysis] += 1
        try:
            yield
        except OutputError:
            raise
        except (InputError, MissingInputError) as error:
            self.fail(analysis, error, place)

    def fail(self, analysis: str, error: SubnetError, place: str = "") -> None:
        """An analysis failed at a model (everywhere, if none is named)."""
        self._first = self._first or error
        fix = error.fix or (f"expected {error.expected}" if error.expected else "")
        self.miss(analysis, error.found, fix, place)

    def miss(self, analysis: str, reason: str, fix: str, place: str = "") -> None:
        """An analysis is not possible."""
        self._missing.setdefault((analysis, reason), (fix, []))[1].append(place)

    @property
    def missing(self) -> tuple[Missing, ...]:
        """What was not possible, each once; with the models, where it was of some only."""
        return tuple(
            Missing(analysis, reason + (_at(at) if self._some(analysis, at) else ""), fix)
            for (analysis, reason), (fix, at) in self._missing.items()
        )

    def raise_if_empty(self, path: Any) -> None:
        """Refuse to come back with nothing.

        Raises:
            SubnetError: The first that failed.
            MissingInputError: Nothing failed, but nothing was possible.
        """
        if self._parts:
            return
        if self._first is not None:
            raise self._first
        reasons = "; ".join(f"{entry.analysis}: {entry.reason}" for entry in self.missing)
        fixes = "; ".join(dict.fromkeys(entry.fix for entry in self.missing))
        raise MissingInputError(
            f"allows nothing that was asked for ({reasons or 'no model'})", path=path, fix=fixes
        )

    def _some(self, analysis: str, at: list[str]) -> bool:
        return all(at) and len(at) < self._tried[analysis]


def _at(places: list[str]) -> str:
    """In brackets, at which models."""
    names = list(dict.fromkeys(places))
    return f" ({', '.join(names) if len(names) <= _NAMED else f'{len(names)} models'})"
