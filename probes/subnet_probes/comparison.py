"""How alike two sets of representations are: of languages, layers, stages or models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subnet.errors import NotComparableError
from subnet.subnetwork.settings import one_of
from subnet_probes._matching import matched_rows
from subnet_probes._measure import Measure
from subnet_probes.languages import layers_of
from subnet_probes.measures import check_sides, find_measure, measure_against, orders_of
from subnet_probes.representation import Representations

if TYPE_CHECKING:
    import pandas as pd

#: From which side to which, in the order in which measures give it.
_DIRECTIONS = ("a to b", "b to a")


def compare(
    a: Representations,
    b: Representations,
    *,
    measure: str | Measure = "cka",
    layers: str | int | Sequence[str | int] = "same",
    by: str = "item",
    n_shuffles: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """A measure between two sets of representations, layer by layer.

    Two models, stages or conditions are compared on the same items (`by="item"`), two languages on
    parallel ones (`by="concept"`), the layers of one model with `compare(a, a, layers="every")`.

    Args:
        a: Representations.
        b: Representations; row by row they are matched by name, never by place.
        measure: One of `MEASURES`, or a measure with settings.
        layers: `"same"`: each layer with its namesake; `"every"`: each of a with each of b; or
            names or numbers of layers, each with its namesake.
        by: `"item"`: language and id, of words also the position; or `"concept"`.
        n_shuffles: Random orders of the rows of b, which show chance.
        seed: Seed of the orders.

    Returns:
        One row per pair of layers (and direction, of directed measures): layer_a, layer_b,
        direction (`""`, `"a to b"` or `"b to a"`), measure, value, shuffled, shuffled_sd, adjusted,
        p_value, n, n_shuffles, reason; see `language_similarity`.

    Raises:
        NotComparableError: Fewer than four items are common (says how many each side has), no
            layer is, or the widths differ and the measure cannot do with that.
        InputError: There is no such measure or layer, or an item is there twice.

    Example:
        >>> compare(before, after, measure="procrustes")  # doctest: +SKIP
    """
    import pandas as pd

    chosen = find_measure(measure)
    one_of("by", by, ("item", "concept"))
    rows_a, rows_b = matched_rows(a, b, by)
    orders = orders_of(len(rows_a), n_shuffles, seed)
    table: list[dict[str, Any]] = []
    states: dict[str, Any] = {}
    for name_b, names_a in _pairs(a, b, layers).items():
        side_b = b.array(name_b)[rows_b]
        for name in names_a:
            side_a = a.array(name)[rows_a]
            check_sides(chosen, {f"layer {name} of a": side_a, f"layer {name_b} of b": side_b})
            states.setdefault(name, chosen.prepare(side_a))
        found = measure_against(
            chosen, [states[name] for name in names_a], chosen.prepare(side_b), orders
        )
        for name, both in zip(names_a, found, strict=True):
            directions = _DIRECTIONS if chosen.directed else ("",)
            for direction, one in zip(directions, both, strict=True):
                place = {"layer_a": name, "layer_b": name_b, "direction": direction}
                table.append(place | one.row(chosen, len(rows_a)))
        if layers != "every":
            states.clear()
    return pd.DataFrame(table)


def _pairs(
    a: Representations, b: Representations, layers: str | int | Sequence[str | int]
) -> dict[str, list[str]]:
    """Layer of b to the layers of a that it is compared with."""
    if layers == "every":
        return {name: list(a.layers) for name in b.layers}
    if layers == "same":
        common = [name for name in a.layers if name in b.layers]
        if not common:
            raise NotComparableError(
                f"the sides have no layer in common: {', '.join(a.layers)} and "
                f"{', '.join(b.layers)}",
                expected="the same layers",
                fix='layers="every" compares each with each',
            )
        return {name: [name] for name in common}
    return {b.layer_name(name): [name] for name in layers_of(a, layers)}
