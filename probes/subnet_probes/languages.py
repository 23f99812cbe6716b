"""How alike two languages are represented, over all pairs of languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subnet._tables import MAIN_RUN
from subnet_probes._matching import parallel_rows
from subnet_probes._measure import Measure
from subnet_probes.measures import check_sides, find_measure, measure_against, orders_of
from subnet_probes.representation import Representations

if TYPE_CHECKING:
    import pandas as pd


def language_similarity(
    representations: Representations,
    measure: str | Measure = "cka",
    layer: str | int | Sequence[str | int] | None = None,
    *,
    n_shuffles: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """A measure of every pair of languages, on their parallel items.

    Items are parallel where they have the same `concept`; only concepts that all languages have
    take part, so that all pairs rest on the same ones. What is computed of one language alone is
    computed once: l times, not l².

    Args:
        representations: Of sentences in two languages or more.
        measure: One of `MEASURES`, or a measure with settings, such as `Retrieval(score="ratio")`.
        layer: One or several; all by default.
        n_shuffles: Random orders of one side's rows, which show chance. An order costs as much as
            a pair; of CKA with n ≤ d n², of retrieval n.
        seed: Seed of the orders; they are the same for all pairs.

    Returns:
        One row per layer and pair (of directed measures per ordered pair, from `language_a` to
        `language_b`): run, source, language_a, language_b, level, module, layer, measure, value,
        shuffled (mean over the orders), shuffled_sd, adjusted ((value − shuffled)/(1 − shuffled)),
        p_value (one-sided, over the orders), n (items), n_shuffles, reason. With `level="layer"`
        and the layer as `module` it stands beside tables of overlap, and `relate` takes it.

    Raises:
        NotComparableError: The items are not aligned; says how many each language has.
        InputError: There is no such measure or layer, an item has no concept, or one twice.

    Example:
        >>> table = language_similarity(found, "retrieval", -1)  # doctest: +SKIP
        >>> table.pivot(index="language_a", columns="language_b", values="value")  # doctest: +SKIP
    """
    import pandas as pd

    chosen = find_measure(measure)
    rows = parallel_rows(representations)
    labels = list(rows)
    n = len(rows[labels[0]])
    orders = orders_of(n, n_shuffles, seed)
    run = run_of(representations)
    table: list[dict[str, Any]] = []
    for name in layers_of(representations, layer):
        array = representations.array(name)
        sides = {label: array[rows[label]] for label in labels}
        check_sides(chosen, sides)
        states = [chosen.prepare(side) for side in sides.values()]
        for j in range(1, len(labels)):
            for i, both in enumerate(measure_against(chosen, states[:j], states[j], orders)):
                pairs = ((labels[i], labels[j]), (labels[j], labels[i]))
                for (a, b), found in zip(pairs, both, strict=False):
                    place = {"run": run, "source": "representations", "language_a": a}
                    place |= {"language_b": b, "level": "layer", "module": name, "layer": name}
                    table.append(place | found.row(chosen, n))
    return pd.DataFrame(table)


def layers_of(
    representations: Representations, layers: str | int | Sequence[str | int] | None
) -> list[str]:
    """Names of the layers that are asked for; all where None is."""
    if layers is None:
        return list(representations.layers)
    listed = [layers] if isinstance(layers, str | int) else layers
    return list(dict.fromkeys(representations.layer_name(layer) for layer in listed))


def run_of(representations: Representations) -> str:
    """The run whose model they are of."""
    of = representations.provenance.settings.get("of") or {}
    return str(of.get("run", MAIN_RUN))
