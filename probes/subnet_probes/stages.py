"""How far the representations of each language move from stage to stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork.settings import one_of
from subnet_probes._matching import matched_rows, rows_by_language
from subnet_probes._rows import Floats
from subnet_probes.languages import layers_of, run_of
from subnet_probes.measures import Found, check_sides, find_measure, measure_against, orders_of
from subnet_probes.representation import Representations

if TYPE_CHECKING:
    import pandas as pd

#: Distance to the measure of similarity that it is made of, and how.
_DISTANCES: Mapping[str, tuple[str, Callable[[Floats], Floats]]] = {
    "cka_distance": ("cka", lambda value: 1 - value),
    "procrustes_distance": ("procrustes", lambda value: np.sqrt(np.maximum(2 - 2 * value, 0))),
    "cosine_distance": ("cosine", lambda value: 1 - value),
}


def drift(
    representations_by_stage: Mapping[int, Representations] | Mapping[str, Representations],
    *,
    measures: Sequence[str] = tuple(_DISTANCES),
    layers: str | int | Sequence[str | int] | None = None,
    since: str = "previous",
    n_shuffles: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """How far each language's representations move from stage to stage, layer by layer.

    - `cka_distance`: 1 − unbiased linear CKA; nothing for rotations and a common scale.
    - `procrustes_distance`: ‖X R − Y‖ under the best rotation R, of centred tables of norm 1:
      √(2 − 2·‖XᵀY‖_*), 0 to √2. Nothing for rotations and a common scale either.
    - `cosine_distance`: 1 − mean cosine of an item with itself; a rotation counts.

    Args:
        representations_by_stage: Stage (its number, as in tables of scores) to representations of
            the same items, in order of training.
        measures: Some of the three.
        layers: All by default.
        since: What a stage is compared with: the `"previous"` one, or the `"first"`.
        n_shuffles: Random orders of the items, which show how far apart unrelated tables are.
        seed: Seed of the orders.

    Returns:
        One row per stage (from the second on), language, layer and measure: run, stage, since,
        language, layer, measure, value (a distance), shuffled, shuffled_sd, n, n_shuffles, reason.
        `run`, `stage` and `language` are those of `Forgetting.effects`, on which it is joined.

    Raises:
        InputError: There are fewer than two stages, or no such measure or layer.
        NotComparableError: Two stages are not of the same items; says how many each has.

    Example:
        >>> stages = {k: representations(checkpoint, stage=k) for k in range(3)}  # doctest: +SKIP
        >>> moved = drift(stages)  # doctest: +SKIP
        >>> moved.merge(forgetting.effects, on=["run", "stage", "language"])  # doctest: +SKIP
    """
    import pandas as pd

    one_of("since", since, ("previous", "first"))
    for measure in measures:
        one_of("measure", measure, tuple(_DISTANCES))
    given: list[tuple[Any, Representations]] = list(representations_by_stage.items())
    if len(given) < 2:
        raise InputError(
            f"there are representations of {len(given)} stage{'s' * (len(given) != 1)}",
            expected="two stages or more",
        )
    table: list[dict[str, Any]] = []
    for number in range(1, len(given)):
        stage, after = given[number]
        start, before = given[0 if since == "first" else number - 1]
        rows, rows_before = matched_rows(after, before, "item")
        if not len(rows) == len(after) == len(before):
            raise NotComparableError(
                f"stage {start} has {len(before)} items and stage {stage} {len(after)}, of which "
                f"{len(rows)} are common",
                expected="the same items at every stage",
            )
        for layer in layers_of(after, layers):
            x, y = before.array(layer)[rows_before], after.array(layer)[rows]
            for language, places in rows_by_language(after, rows).items():
                place = {"run": run_of(after), "stage": stage, "since": start}
                place |= {"language": language, "layer": layer}
                for name in measures:
                    found = _moved(name, x[places], y[places], n_shuffles, seed, language)
                    table.append(place | found)
    if not table:
        raise InputError("no item names a language", expected="a 'language' in each of them")
    return pd.DataFrame(table)


def _moved(name: str, x: Any, y: Any, n_shuffles: int, seed: int, language: str) -> dict[str, Any]:
    """Columns from `measure` on."""
    kind, distance = _DISTANCES[name]
    measure = find_measure(kind)
    n = len(y)
    if n < measure.smallest:
        reason = f"{n} items of {language}, and {kind} needs {measure.smallest}"
        found = Found(math.nan, np.full(n_shuffles, math.nan), reason)
    else:
        check_sides(measure, {"before": x, "after": y})
        states = [measure.prepare(x)], measure.prepare(y)
        found = measure_against(measure, *states, orders_of(n, n_shuffles, seed))[0][0]
    value = float(distance(np.array(found.value)))
    moved = dataclasses.replace(found, value=value, shuffled=distance(found.shuffled))
    row = moved.row(measure, n)
    return {
        "measure": name,
        **{key: row[key] for key in ("value", "shuffled", "shuffled_sd", "n", "n_shuffles")},
        "reason": row["reason"],
    }
