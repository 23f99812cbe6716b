"""The measures of similarity by name, and what they give side against side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError, NotComparableError
from subnet_probes._measure import Measure, Undefined
from subnet_probes._rows import Floats
from subnet_probes.canonical import PWCCA, SVCCA
from subnet_probes.cka import CKA
from subnet_probes.cosine import Cosine, CosineContrast
from subnet_probes.procrustes import Procrustes
from subnet_probes.retrieval import Retrieval

#: Every measure with its default settings.
MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        CKA(), Procrustes(), SVCCA(), PWCCA(), Cosine(), CosineContrast(), Retrieval(),
    )
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Found:
    """One measured pair.

    Attributes:
        value: The measure; NaN where it is undefined.
        shuffled: [s] its values with the rows of one side in random orders.
        reason: Why it is undefined.
    """

    value: float
    shuffled: Floats
    reason: str = ""

    def row(self, measure: Measure, n: int) -> dict[str, Any]:
        """Columns of a table: measure, value, shuffled, shuffled_sd, adjusted, p_value, n, …."""
        s = len(self.shuffled)
        known = s > 0 and not math.isnan(self.value)
        chance = float(self.shuffled.mean()) if known else math.nan
        adjusted = math.nan
        if known and measure.largest is not None and chance < measure.largest:
            adjusted = (self.value - chance) / (measure.largest - chance)
        # An order that changes nothing but the last digits counts as equal.
        least = self.value - 1e-9 * max(1.0, abs(self.value))
        return {
            "measure": measure.name,
            "value": self.value,
            "shuffled": chance,
            "shuffled_sd": float(self.shuffled.std(ddof=1)) if known and s > 1 else math.nan,
            "adjusted": adjusted,
            "p_value": (1 + int((self.shuffled >= least).sum())) / (1 + s) if known else math.nan,
            "n": n,
            "n_shuffles": s,
            "reason": self.reason,
        }


def find_measure(measure: str | Measure) -> Measure:
    """A measure by its name.

    Raises:
        InputError: There is none of that name.
    """
    if isinstance(measure, Measure):
        return measure
    if measure not in MEASURES:
        raise InputError(f"measure is {measure!r}", expected=f"one of {', '.join(MEASURES)}")
    return MEASURES[measure]


def orders_of(n: int, n_shuffles: int, seed: int) -> NDArray[np.int64]:
    """[n_shuffles, n] random orders of n rows.

    Raises:
        InputError: Their number is negative.
    """
    number: Any = n_shuffles
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InputError(f"n_shuffles is {n_shuffles!r}", expected="0 or more")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(n_shuffles)]
    return np.array(orders, dtype=np.int64).reshape(n_shuffles, n)


def check_sides(measure: Measure, sides: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what a measure cannot compare.

    Raises:
        NotComparableError: The widths differ.
        InputError: There are too few rows.
    """
    (first, side), *others = sides.items()
    for name, other in others:
        if measure.same_width and other.shape[1] != side.shape[1]:
            raise NotComparableError(
                f"{first} is {side.shape[1]} wide and {name} {other.shape[1]}",
                expected=f"one width for {measure.name}",
                fix="measure='cka' or 'procrustes' compares tables of different widths",
            )
    for name, side in sides.items():
        if len(side) < measure.smallest:
            raise InputError(
                f"{name} has {len(side)} items that both sides have",
                expected=f"at least {measure.smallest} for {measure.name}",
            )


def measure_against(
    measure: Measure, others: Sequence[Any], own: Any, orders: NDArray[np.int64]
) -> list[tuple[Found, ...]]:
    """One prepared side against several.

    Returns:
        For each of the others one value; of a directed measure two: from it, and to it.
    """
    k = 2 if measure.directed else 1
    defined = [] if isinstance(own, Undefined) else [
        i for i, other in enumerate(others) if not isinstance(other, Undefined)
    ]  # fmt: skip
    found: dict[int, tuple[Found, ...]] = {}
    if defined:
        values, shuffled = measure.against([others[i] for i in defined], own, orders)
        for place, i in enumerate(defined):
            found[i] = tuple(Found(float(values[place, j]), shuffled[:, place, j])
                             for j in range(k))  # fmt: skip
    for i, other in enumerate(others):
        broken = own if isinstance(own, Undefined) else other
        if isinstance(broken, Undefined):
            found[i] = (Found(math.nan, np.full(len(orders), math.nan), broken.reason),) * k
    return [found[i] for i in range(len(others))]
