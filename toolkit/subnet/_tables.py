"""The tables that people outside the project rely on: names, columns, how they are written.

Columns may be added at the end; those listed here stay. An undefined value is an empty cell, with a
`reason` beside it where the table has that column.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Name of the run of a directory that holds only one.
MAIN_RUN = "main"

COLUMNS: dict[str, tuple[str, ...]] = {
    "languages": ("language", "tag", "script", "family"),
    "overlap": (
        "run", "source", "language_a", "language_b", "level", "module", "measure", "value",
        "expected", "null", "z", "p_value", "q_value",
    ),
    "influence": (
        "run", "train_language", "test_language", "checkpoint", "method", "subnetwork", "measure",
        "value", "ci_low", "ci_high", "n", "reason",
    ),
    "scores": ("run", "stage", "trained_language", "language", "metric", "value", "stderr"),
    "effects": (
        "run", "stage", "trained_language", "language", "metric", "value", "stderr", "reason",
    ),
    "forgetting": ("run", "language", "metric", "measure", "value", "stderr", "reason"),
    "groups": (
        "grouping", "group", "role", "metric", "measure", "value", "ci_low", "ci_high", "p_value",
        "n", "reason",
    ),
    "relation": (
        "outcome", "predictor", "measure", "module", "controls", "method", "estimate", "ci_low",
        "ci_high", "statistic", "p_value", "q_value", "n_languages", "n_permutations", "testable",
        "reason",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """How a result was made.

    Attributes:
        method: Name of the method.
        settings: Every value that the result depends on, defaults included.
        seed: Seed of the random parts, None where there are none.
        versions: Versions of the libraries that computed it.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain types, for JSON."""
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": dict(self.versions),
        }


def provenance(
    method: str,
    settings: Mapping[str, Any],
    *,
    seed: int | None = None,
    libraries: Sequence[str] = (),
) -> Provenance:
    """Provenance with the versions of the named distributions and of this one."""
    return Provenance(method, dict(settings), seed, versions("subnet-toolkit", *libraries))


def versions(*distributions: str) -> dict[str, str]:
    """Versions of installed distributions, and of Python."""
    found = {"python": platform.python_version()}
    found.update((name, version) for name in distributions if (version := _version(name)))
    return found


@functools.cache  # reading the metadata of a distribution costs milliseconds
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def table(name: str, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """A table with its fixed columns first and in order, any further ones after them.

    Raises:
        KeyError: A fixed column is missing from non-empty rows: a defect of the caller.
    """
    import pandas as pd

    fixed = list(COLUMNS[name])
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if frame.empty:
        return pd.DataFrame({column: pd.Series(dtype=object) for column in fixed})
    further = [str(column) for column in frame.columns if column not in fixed]
    return frame[fixed + further].reset_index(drop=True)


def write_csv(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table: UTF-8, Unix line ends, 7 significant digits, undefined values empty."""
    frame.to_csv(path, index=False, lineterminator="\n", float_format="%.7g", encoding="utf-8")
