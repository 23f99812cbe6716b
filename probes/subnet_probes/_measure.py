"""What a measure of similarity is: two tables of n rows in, a number and its chance out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from subnet_probes._rows import Floats


@dataclass(frozen=True)
class Undefined:
    """What a measure prepares of rows that it says nothing about.

    Attributes:
        reason: Why.
    """

    reason: str


class Measure(ABC):
    """A measure of how alike two tables are, row i of the one belonging to row i of the other.

    Attributes:
        name: In tables and arguments.
        directed: Whether from a to b is something else than from b to a.
        same_width: Whether both sides must have as many columns.
        smallest: Fewest rows that it is defined for.
        largest: Its value for a table and itself, where that is always the same.
    """

    name: ClassVar[str]
    directed: ClassVar[bool] = False
    same_width: ClassVar[bool] = False
    smallest: ClassVar[int] = 4
    largest: ClassVar[float | None] = 1.0

    @abstractmethod
    def prepare(self, x: NDArray[Any]) -> Any:
        """What is computed once of each side, [n, d]; `Undefined` where there is no value."""

    @abstractmethod
    def permuted(self, state: Any, order: NDArray[np.int64]) -> Any:
        """What `prepare` would give of `x[order]`."""

    @abstractmethod
    def value(self, a: Any, b: Any) -> float:
        """The measure of two sides; of a directed one from a to b."""

    def against(
        self, others: Sequence[Any], own: Any, orders: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """One side against several, and with its rows in other orders: the chance.

        Args:
            others: m prepared sides.
            own: A prepared side.
            orders: [s, n], orders of its rows.

        Returns:
            (values [m, k], shuffled [s, m, k]). Of a directed measure k is 2: from the other to
            this one, and back; else 1.
        """

        def values(state: Any) -> Floats:
            pairs = [(other, state) for other in others]
            both = [[(a, b), (b, a)] if self.directed else [(a, b)] for a, b in pairs]
            return np.array([[self.value(*pair) for pair in each] for each in both])

        # One order is applied once, whatever the number of others.
        shuffled = [values(self.permuted(own, order)) for order in orders]
        found = values(own)
        return found, np.array(shuffled).reshape(len(orders), *found.shape)
