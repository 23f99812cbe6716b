"""How far the same language agrees with itself: between seeds, halves of its data, and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet._statistics import adjust_p_values
from subnet._tables import Provenance, provenance
from subnet.errors import InputError
from subnet.overlap import measure_overlap
from subnet.subnetwork import Subnetwork, Subnetworks, extract, extract_halves
from subnet.subnetwork.settings import METHODS, DataSettings, check_density, resolve_settings

if TYPE_CHECKING:
    import pandas as pd

    from subnet.checkpoint import Checkpoint

#: Columns of the table of a stability.
COLUMNS = (
    "language", "run", "varied", "a", "b", "measure", "value", "expected", "largest", "position",
    "null", "z", "p_value", "q_value", "n_a", "n_b", "reason",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stability:
    """How far masks of the same language agree when something that should not matter is varied.

    Attributes:
        frame: One row per language and comparison. `varied` is `seed` (the language trained
            again), `half` (found on two disjoint halves of its examples) or `threshold` (found with
            another setting of size, `a` and `b`); `value` the measure over the whole model,
            `expected` by chance under `null`, `largest` what masks of these sizes could reach at
            most, `position` = (value − expected) / (largest − expected); p-values one-sided (more
            alike than by chance), corrected after Benjamini and Hochberg within what is varied.
        subnetworks: The masks as they were found, nothing varied.
        halves: The masks of both halves of the examples; None for methods that look at none.
        provenance: Settings, seed, versions.
    """

    frame: pd.DataFrame
    subnetworks: Subnetworks
    halves: tuple[Subnetworks, Subnetworks] | None
    provenance: Provenance

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()

    def summary(self) -> pd.DataFrame:
        """Mean over languages: one row per what was varied and between which values."""
        groups = self.frame.groupby(["varied", "a", "b"], sort=False)
        table = groups[["value", "expected", "largest", "position"]].mean()
        return table.assign(n=groups.size()).reset_index()


def measure_stability(
    checkpoint: Checkpoint,
    *,
    method: str = "magnitude",
    vary: Mapping[str, Sequence[Any]] | None = None,
    data: Iterable[Mapping[str, Any]] | None = None,
    measure: str = "jaccard",
    seed: int = 0,
    **settings: Any,
) -> Stability:
    """Compare the subnetwork of each language with itself.

    - between seeds: where the checkpoint holds a language in several runs;
    - between halves of its examples, for methods that look at examples: each half has half as many,
      so this understates how stable the masks of all examples are;
    - between thresholds: other sizes of the same method. Masks by magnitude or importance are then
      nested, so that their Jaccard is the ratio of the sizes (`largest`) by construction; only
      searches (head pruning) can fall short of it.

    Overlap between languages cannot be told to exceed the first two; `measure_overlap(...,
    halves=stability.halves)` puts them beside it as the ceiling.

    Args:
        checkpoint: As of `extract`.
        method: As of `extract`.
        vary: Setting to its values; by default half and twice the density or, for head pruning, the
            thresholds 0.90 and 0.95.
        data: As of `extract`.
        measure: A measure of masks that is symmetric: `jaccard`, `dice` or `overlap_coefficient`.
        seed: Seed of the halves, and of the method where it has one.
        **settings: Further settings of the method.

    Raises:
        InputError: A setting is not one of the method, or the measure is directed.
        MissingInputError: As `extract`.

    Example:
        >>> stability = measure_stability(checkpoint, method="fisher")  # doctest: +SKIP
        >>> stability.summary()  # doctest: +SKIP
    """
    if measure not in ("jaccard", "dice", "overlap_coefficient"):
        raise InputError(
            f"measure is {measure!r}", expected="'jaccard', 'dice' or 'overlap_coefficient'"
        )
    looks_at_data = issubclass(METHODS.get(method, DataSettings), DataSettings)
    if looks_at_data:
        settings = {"seed": seed, **settings}
    resolved = resolve_settings(method, settings)
    given: dict[str, Any] = {"method": method, **settings}
    if data is not None:
        given["data"] = data = list(data)
    found = extract(checkpoint, **given)
    rows = _between_runs(found, measure)
    halves = None
    if looks_at_data:
        halves = extract_halves(checkpoint, **given)
        rows += _rows(zip(*map(_by_place, halves), strict=True), "half", "1", "2", measure)
    for name, values in (_variations(resolved) if vary is None else vary).items():
        for value in values:
            if value == getattr(resolved, name, None):
                continue
            other = extract(checkpoint, **{**given, name: value})
            pair = (f"{name} {getattr(resolved, name):g}", f"{name} {value:g}")
            rows += _rows(
                zip(_by_place(found), _by_place(other), strict=True), "threshold", *pair, measure
            )
    return Stability(
        frame=_frame(rows),
        subnetworks=found,
        halves=halves,
        provenance=provenance(
            "stability",
            {"method": method, "measure": measure, "vary": vary, **settings},
            seed=seed,
            libraries=("numpy", "scipy", "torch"),
        ),
    )


def _variations(settings: Any) -> dict[str, Sequence[float]]:
    if hasattr(settings, "threshold"):
        return {"threshold": (0.9, 0.95)}
    density = getattr(settings, "density", None)
    if density is None:
        return {}
    check_density(density)
    return {"density": tuple(d for d in (density / 2, density * 2) if d <= 1)}


def _by_place(masks: Subnetworks) -> list[Subnetwork]:
    return list(masks)


def _between_runs(found: Subnetworks, measure: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    by_language: dict[str, list[Subnetwork]] = {}
    for mask in found:
        by_language.setdefault(mask.language, []).append(mask)
    for masks in by_language.values():
        for place, first in enumerate(masks):
            for second in masks[place + 1 :]:
                rows += _rows([(first, second)], "seed", first.run, second.run, measure)
    return rows


def _rows(
    pairs: Iterable[tuple[Subnetwork, Subnetwork]], varied: str, a: str, b: str, measure: str
) -> list[dict[str, Any]]:
    """One row per pair of masks of one language."""
    rows = []
    for first, second in pairs:
        overlap = measure_overlap([first], others=[second], measures=[measure], levels=["all"])
        (row,) = overlap.rows(measure).to_dict("records")
        largest = _largest(first, second, measure)
        room = largest - row["expected"]
        rows.append(
            {
                "language": first.language, "run": first.run, "varied": varied, "a": a, "b": b,
                "largest": largest,
                "position": (row["value"] - row["expected"]) / room if room > 0 else np.nan,
                **{name: row[name] for name in (
                    "measure", "value", "expected", "null", "z", "p_value", "n_a", "n_b", "reason",
                )},
            }
        )  # fmt: skip
    return rows


def _largest(first: Subnetwork, second: Subnetwork, measure: str) -> float:
    """The measure where the smaller mask lies in the larger as far as each parameter allows."""
    a, b = first.counts, second.counts
    shared = sum(min(a[name], b[name]) for name in a.keys() & b.keys())
    sizes = first.count, second.count
    below = {
        "jaccard": sum(sizes) - shared,
        "dice": sum(sizes) / 2,
        "overlap_coefficient": min(sizes),
    }[measure]
    return shared / below if below else np.nan


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    if len(frame):
        frame["q_value"] = frame.groupby(["varied", "a", "b"], sort=False)["p_value"].transform(
            adjust_p_values
        )
    return frame
