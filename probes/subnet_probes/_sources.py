"""Representations as the probes take them: an array per layer, and what each row is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """Representations of n items at some layers.

    Attributes:
        layers: Names.
        items: [n] rows, `language` and whatever a task needs.
        load: Layer to array [n, d], unchecked.
    """

    layers: tuple[str, ...]
    items: pd.DataFrame
    load: Callable[[str], Any]

    def array(self, layer: str) -> Array:
        """[n, d] in single precision.

        Raises:
            InputError: It is no matrix of finite numbers with one row per item.
        """
        array = np.asarray(self.load(layer))
        if array.ndim != 2 or len(array) != len(self.items):
            raise InputError(
                f"representations of layer {layer} have shape {list(array.shape)}",
                expected=f"[{len(self.items)}, d], one row per item",
            )
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"representations of layer {layer} are {array.dtype}", expected="numbers"
            )
        found = np.asarray(array, dtype=np.float32)
        broken = int((~np.isfinite(found).all(axis=1)).sum())
        if broken:
            raise InputError(
                f"{broken} of {len(found)} representations of layer {layer} are not finite",
                expected="finite numbers",
            )
        return found

    def column(self, name: str) -> pd.Series[Any]:
        """A column of the items.

        Raises:
            MissingInputError: There is none of that name.
        """
        if name not in self.items.columns:
            token = name in ("sentence", "word", "tag")
            raise MissingInputError(
                f"the items have no column {name!r}, only {', '.join(map(str, self.items))}",
                fix="take representations at token level" if token else "add it to the items",
            )
        return self.items[name]

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages in the order in which they come."""
        return tuple(dict.fromkeys(self.column("language").astype(str)))


def as_source(
    representations: Any, items: pd.DataFrame | None = None, layers: Sequence[Any] | None = None
) -> Source:
    """Representations from what a user may have.

    Args:
        representations: Something with `layers`, `array(layer)` and `items`; a mapping of layers to
            arrays [n, d]; or one array [n, d], whose layer is then called `0`.
        items: What each row is of, where `representations` does not say so itself.
        layers: Which layers, by name, or by number where no layer has that name; all by default.

    Raises:
        InputError: It is none of these, a layer does not exist, or there are no items.
    """
    if all(hasattr(representations, name) for name in ("layers", "array", "items")):
        if items is not None:
            raise InputError("items were given twice", fix="leave out items=")
        source = Source(
            tuple(map(str, representations.layers)), representations.items, representations.array
        )
    elif isinstance(representations, Mapping):
        arrays = {str(name): array for name, array in representations.items()}
        source = Source(tuple(arrays), _required(items), arrays.__getitem__)
    elif isinstance(representations, np.ndarray):
        source = Source(("0",), _required(items), lambda layer: representations)  # noqa: ARG005
    else:
        raise InputError(
            f"representations are a {type(representations).__name__}",
            expected="Representations, arrays [n, d] by layer, or one array",
        )
    if source.items.empty:
        raise InputError("there are no items", expected="one row per representation")
    if not source.layers:
        raise InputError("there are no layers", expected="at least one")
    return Source(_chosen(source.layers, layers), source.items.reset_index(drop=True), source.load)


def _required(items: pd.DataFrame | None) -> pd.DataFrame:
    if items is None:
        raise MissingInputError(
            "arrays come without items", expected="items=, a table with one row per representation"
        )
    return items


def _chosen(known: tuple[str, ...], wanted: Sequence[Any] | None) -> tuple[str, ...]:
    if wanted is None:
        return known
    found: dict[str, None] = {}
    for layer in [wanted] if isinstance(wanted, str | int) else wanted:
        if str(layer) in known:
            found[str(layer)] = None
        elif isinstance(layer, int) and -len(known) <= layer < len(known):
            found[known[layer]] = None
        else:
            raise InputError(
                f"layer {layer!r} is asked for",
                expected=f"one of the {len(known)} layers {', '.join(known)}",
            )
    if not found:
        raise InputError("no layer is asked for", expected=f"one of {', '.join(known)}")
    return tuple(found)
