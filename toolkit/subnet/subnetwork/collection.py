"""Subnetworks of several languages, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from subnet.errors import InputError, MissingInputError
from subnet.subnetwork.mask import Subnetwork, nearest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Subnetworks(Sequence[Subnetwork]):
    """Subnetworks of several languages, in order, each language once per run.

    Index by position, by label (where only one run has the language) or by (label, run).

    Attributes:
        members: The subnetworks.

    Raises:
        InputError: A language stands twice in one run.
    """

    members: tuple[Subnetwork, ...]

    def __init__(self, members: Iterable[Subnetwork]) -> None:
        object.__setattr__(self, "members", tuple(members))
        seen: set[tuple[str, str]] = set()
        for member in self.members:
            key = (member.language, member.run)
            if key in seen:
                raise InputError(
                    f"{member.language} stands twice in the run {member.run}",
                    expected="one subnetwork per language and run",
                    fix="give one of them another run",
                )
            seen.add(key)

    @property
    def languages(self) -> tuple[str, ...]:
        """Labels of the languages, each once, in order."""
        return tuple(dict.fromkeys(member.language for member in self.members))

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, each once, in order."""
        return tuple(dict.fromkeys(member.run for member in self.members))

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Subnetwork]:
        return iter(self.members)

    @overload
    def __getitem__(self, key: int | str | tuple[str, str]) -> Subnetwork: ...
    @overload
    def __getitem__(self, key: slice) -> Subnetworks: ...
    def __getitem__(self, key: int | str | tuple[str, str] | slice) -> Subnetwork | Subnetworks:
        if isinstance(key, slice):
            return Subnetworks(self.members[key])
        if isinstance(key, int):
            return self.members[key]
        label, run = (key, None) if isinstance(key, str) else key
        found = [m for m in self.members if m.language == label and run in (None, m.run)]
        if not found:
            raise MissingInputError(
                f"there is no subnetwork of {label!r}" + (f" in the run {run!r}" if run else ""),
                expected=nearest(label, self.languages),
            )
        if len(found) > 1:
            raise InputError(
                f"{label!r} has a subnetwork in each of the runs {', '.join(m.run for m in found)}",
                fix=f"say which: [{label!r}, {found[0].run!r}]",
            )
        return found[0]

    def to_frame(self) -> pd.DataFrame:
        """Density per language, run and module: the tables of all members, one below another."""
        import pandas as pd

        if not self.members:
            return pd.DataFrame()
        return pd.concat([member.to_frame() for member in self.members], ignore_index=True)

    def save(self, directory: str | Path) -> None:
        """Write all masks into a new directory that can be analysed like any checkpoint.

        `masks/<language>.safetensors` for the main run (or for the only one),
        `runs/<run>/masks/<language>.safetensors` for the others. Nothing is left half-written.

        Raises:
            InputError: A label cannot be the name of a file.
            OutputError: The directory is already there, or cannot be written.
        """
        from subnet.subnetwork.formats import save_subnetworks

        save_subnetworks(self, directory)
