"""What a model makes of every example, layer by layer, under the names of languages and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet._tables import Provenance
from subnet.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

#: What is known of every row; None where the data do not say.
COLUMNS = ("language", "id", "concept", "label")
#: What is known besides of the rows of single words.
WORD_COLUMNS = ("sentence", "position", "word", "tag")


@dataclass(frozen=True, eq=False)
class Representations:
    """Hidden states of n items (sentences or words) at several layers.

    Layer `"0"` is what the embeddings put out, `"1"` the output of the first block, and so on; of
    the last one, behind the final normalisation where the model has one (as transformers counts
    `hidden_states`). The decoder of a model with two stacks has `"decoder.0"`, `"decoder.1"` ….

    Attributes:
        arrays: Layer to numbers [n₀, d], in memory or mapped from disk; see `array`.
        items: One row per item: `language`, `id`, `concept`, `label`; of words also `sentence`
            (number of the example in the data), `position` (of the word in it), `word` (the word
            itself) and `tag`. None where the data do not say.
        provenance: Model, data and settings.
        rows: Which rows of the arrays these items are; None for all, in order.

    Raises:
        InputError: The numbers and the items do not fit each other.
    """

    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    items: pd.DataFrame
    provenance: Provenance = field(default_factory=lambda: Provenance("given"))
    rows: NDArray[np.int64] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.arrays:
            raise InputError("there is no layer", expected="an array [items, width] per layer")
        absent = [name for name in COLUMNS if name not in self.items.columns]
        if absent:
            raise InputError(
                f"the items have no column {', '.join(absent)}",
                expected=", ".join(COLUMNS),
                fix="Representations.of fills in what is not known",
            )
        for name, array in self.arrays.items():
            if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
                raise InputError(
                    f"layer {name} is {array.dtype} {list(array.shape)}",
                    expected="real numbers [items, width]",
                )
            if self.rows is None and len(array) != len(self.items):
                raise InputError(
                    f"layer {name} has {len(array)} rows and there are {len(self.items)} items",
                    expected="one row per item",
                )

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, ArrayLike],
        items: Mapping[str, Sequence[Any]] | pd.DataFrame,
        provenance: Provenance | None = None,
    ) -> Representations:
        """Representations that were computed elsewhere.

        Args:
            arrays: Layer to numbers [n, d].
            items: Columns of the items; `language`, `id`, `concept` and `label` are None where
                they are not given.
            provenance: Where they are from.

        Raises:
            InputError: They do not fit each other, or a number is NaN or infinite.

        Example:
            >>> Representations.of({"6": [[1.0, 2.0], [3.0, 4.0]]}, {"language": ["de", "fr"]})
            Representations(2 items of 2 languages, layers 6, sentence level)
        """
        found = {str(name): _floating(array) for name, array in arrays.items()}
        n = len(next(iter(found.values()), ()))
        given: Any = items
        columns = {str(name): list(given[name]) for name in given}
        frame = frame_of({**{name: [None] * n for name in COLUMNS}, **columns}, n)
        made = cls(found, frame, provenance or Provenance("given"))
        for name, array in found.items():
            bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
            if bad.size:
                raise InputError(
                    f"layer {name} of {made.name_of(int(bad[0]))} is not finite",
                    expected="real numbers",
                )
        return made

    @classmethod
    def load(cls, path: str | Path) -> Representations:
        """Open a folder that `save`, or `representations(store=…)`, has written.

        The numbers are mapped into memory, not read.

        Raises:
            MissingInputError: There is none.
            FileFormatError: It is damaged, or of another format.
        """
        from subnet_probes._storage import load

        arrays, items, provenance = load(Path(path))
        return cls(arrays, items, provenance)

    def save(self, path: str | Path) -> None:
        """Write a folder: one `.npy` per layer and JSON; it is there complete or not at all.

        Raises:
            OutputError: The place is taken or cannot be written.
        """
        from subnet_probes._storage import save

        save(self, Path(path))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(self.arrays)

    @property
    def level(self) -> str:
        """`"token"` where the items are words, else `"sentence"`."""
        return "token" if "word" in self.items.columns else "sentence"

    @property
    def languages(self) -> tuple[str, ...]:
        """Labels of the languages, in the order of the items."""
        return tuple(dict.fromkeys(str(x) for x in self.items["language"] if x is not None))

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return (
            f"Representations({len(self)} items of {len(self.languages)} languages, "
            f"layers {', '.join(self.layers)}, {self.level} level)"
        )

    def array(self, layer: str | int) -> NDArray[Any]:
        """The numbers of one layer.

        Args:
            layer: Its name, or its number: `6` is `"6"`, `-1` the last.

        Returns:
            [n, d]; mapped from disk where they are there and all items are meant, to be read only.

        Raises:
            InputError: There is no such layer.
        """
        array = self.arrays[self.layer_name(layer)]
        return array if self.rows is None else array[self.rows]

    def layer_name(self, layer: str | int) -> str:
        """Name of a layer that is given by name or number.

        Raises:
            InputError: There is no such layer.
        """
        if isinstance(layer, int) and -len(self.layers) <= layer < 0:
            return self.layers[layer]
        if str(layer) not in self.arrays:
            raise InputError(
                f"there is no layer {layer!r}", expected=f"one of {', '.join(self.layers)}"
            )
        return str(layer)

    def subset(self, which: ArrayLike) -> Representations:
        """Some of the items; no numbers are copied until `array` is called.

        Args:
            which: [n] booleans, or positions of items in the wanted order.

        Raises:
            InputError: It is neither, or selects nothing.

        Example:
            >>> german = found.subset(found.items["language"] == "de")  # doctest: +SKIP
        """
        chosen = np.asarray(which)
        n = len(self)
        if chosen.ndim != 1 or (chosen.dtype == np.bool_ and len(chosen) != n):
            raise InputError(
                f"the mask is {chosen.dtype} {list(chosen.shape)}",
                expected=f"{n} booleans, one per item, or positions",
            )
        if chosen.dtype == np.bool_:
            chosen = np.flatnonzero(chosen)
        elif not np.issubdtype(chosen.dtype, np.integer) and chosen.size:
            raise InputError(f"the mask is {chosen.dtype}", expected="booleans, or positions")
        if not chosen.size:
            raise InputError("no item is selected", expected=f"at least one of {n}")
        if chosen.min() < -n or chosen.max() >= n:
            raise InputError(f"position {int(chosen.max())} is none", expected=f"0 to {n - 1}")
        chosen = chosen.astype(np.int64) % n
        rows = chosen if self.rows is None else self.rows[chosen]
        items = self.items.iloc[chosen].reset_index(drop=True)
        return replace(self, items=items, rows=rows)

    def name_of(self, row: int) -> str:
        """What to call an item in a message: its id, or its number."""
        item = self.items.iloc[row]
        words = f" ({item['word']!r})" if "word" in self.items.columns else ""
        return f"item {row if item['id'] is None else item['id']}{words}"


def frame_of(columns: Mapping[str, Any], n: int) -> pd.DataFrame:
    """A table whose cells are what they were: strings, numbers, None."""
    import pandas as pd

    for name, values in columns.items():
        if len(values) != n:
            raise InputError(f"there are {len(values)} values of {name!r}", expected=f"{n}")
    return pd.DataFrame(
        {str(name): pd.Series([_plain(v) for v in columns[name]], dtype=object) for name in columns}
    )


def _plain(value: Any) -> Any:
    """NumPy's numbers and undefined values as Python's."""
    if hasattr(value, "item") and np.ndim(value) == 0:
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def _floating(array: ArrayLike) -> NDArray[Any]:
    found = np.asarray(array)
    return found if np.issubdtype(found.dtype, np.floating) else found.astype(np.float64)
