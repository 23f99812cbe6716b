"""From arrays over pairs and groups to the tidy table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet import _tables
from subnet._statistics import adjust_p_values
from subnet.overlap._inputs import Entries
from subnet.overlap._levels import Levels

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One measure under one null model; every array is [p, g], pairs by groups.

    Attributes:
        measure, null: Their names.
        value: The measure, NaN where undefined.
        expected, z, p_value: Under the null model, NaN where undefined.
        n_a, n_b: Size of each side: weights kept, or dimensions of the subspace.
        reason: Why something is undefined, `""` where nothing is.
        swapped: The direction is b to a.
    """

    measure: str
    null: str
    value: Array
    expected: Array
    z: Array
    p_value: Array
    n_a: Array
    n_b: Array
    reason: NDArray[np.object_]
    swapped: bool = False


def reasons(shape: tuple[int, ...], *cases: tuple[Any, Any]) -> NDArray[np.object_]:
    """The first applicable reason per cell; each case is (condition, text or array of texts)."""
    result = np.full(shape, "", dtype=object)
    for condition, text in reversed(cases):
        where = np.broadcast_to(condition, shape)
        result[where] = np.broadcast_to(np.asarray(text, dtype=object), shape)[where]
    return result


def divide(x: Array, y: Array) -> Array:
    """Quotient x / y, NaN where y is 0."""
    undefined = np.full(np.broadcast_shapes(x.shape, y.shape), np.nan)
    return np.asarray(np.divide(x, y, out=undefined, where=y != 0))


def build_frame(entries: Entries, levels: Levels, measured: Sequence[Measured]) -> pd.DataFrame:
    """The overlap table: fixed columns, then comparison, n_a, n_b, position and reason."""
    import pandas as pd

    labels = np.array(entries.labels, dtype=object)
    pairs = entries.pairs
    n_groups = len(levels.level)
    first, second = labels[pairs.a], labels[pairs.b]

    def per_pair(values: Any) -> NDArray[Any]:
        return np.repeat(np.asarray(values, dtype=object), n_groups)

    def per_group(values: Any) -> NDArray[Any]:
        return np.tile(np.asarray(values, dtype=object), len(pairs))

    parts = []
    for one in measured:
        a, b = (second, first) if one.swapped else (first, second)
        n_a, n_b = (one.n_b, one.n_a) if one.swapped else (one.n_a, one.n_b)
        parts.append(
            pd.DataFrame(
                {
                    "run": per_pair(pairs.run),
                    "source": entries.source,
                    "language_a": per_pair(a),
                    "language_b": per_pair(b),
                    "level": per_group(levels.level),
                    "module": per_group(levels.module),
                    "measure": one.measure,
                    "value": one.value.ravel(),
                    "expected": one.expected.ravel(),
                    "null": one.null,
                    "z": one.z.ravel(),
                    "p_value": one.p_value.ravel(),
                    "q_value": np.nan,
                    "comparison": per_pair(pairs.comparison),
                    "n_a": n_a.ravel().astype(np.int64),
                    "n_b": n_b.ravel().astype(np.int64),
                    "reason": one.reason.ravel(),
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    # a step beside the adapter of its own language is no test of whether languages share
    own = (frame["language_a"] == frame["language_b"]).rename("own")
    families = ["run", "comparison", own, "measure", "level", "null"]
    frame["q_value"] = frame.groupby(families, sort=False)["p_value"].transform(adjust_p_values)
    reason = frame.pop("reason")
    frame["position"] = _position(frame)
    frame["reason"] = reason
    return _tables.table("overlap", frame)


def same_language(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that give the ceiling: another seed of a language, or else halves of its examples."""
    replicates = frame[frame["comparison"] == "replicate"]
    return replicates if len(replicates) else frame[frame["comparison"] == "half"]


def _position(frame: pd.DataFrame) -> pd.Series[float]:
    """(value − expected) / (ceiling − expected): 0 at chance, 1 at the ceiling."""
    import pandas as pd

    cell = ["measure", "level", "module", "null"]
    replicates = same_language(frame)
    if replicates.empty:
        return pd.Series(np.nan, index=frame.index)
    mean = replicates.groupby(cell)["value"].mean().rename("ceiling")
    ceiling = frame.join(mean, on=cell)["ceiling"]
    room = ceiling - frame["expected"]
    return (frame["value"] - frame["expected"]) / room.where(room != 0)
