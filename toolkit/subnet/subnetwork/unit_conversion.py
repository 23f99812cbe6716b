"""Masks of heads and neurons as masks of weights, masks of weights as masks of units.

Whose a weight is stands in `subnet.model.units`: a head is its query, key and value rows (with
their biases) and its columns of the output projection; a neuron its rows up and its column down.
With grouped queries the key and value rows are the group's: no head's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.units import selected_units, subnetwork_of_units, unit_parameters

if TYPE_CHECKING:
    import torch

    from subnet.model import Projection, Units
    from subnet.model.units import Sharing

#: Whose weights are whose, as written into every converted mask.
POLICY = {
    "head": "query, key and value rows with their biases, and columns of the output projection; "
    "key and value rows that several query heads share belong to their group",
    "neuron": "rows of the up and gate projections with their biases, and the column of the down "
    "projection",
}


def units_to_weights(
    subnetwork: Subnetwork,
    units: Units,
    *,
    shared: Sharing = "any",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Subnetwork:
    """The weights that the selected heads or neurons own.

    Args:
        subnetwork: A mask of heads or neurons.
        units: Of the model that it was found in.
        shared: With grouped queries, whether the key and value rows of a group are selected where
            `"any"` of its heads is, or where `"all"` are; see `Units.weights_of_heads`.
        shapes: Base parameter to shape, for a mask over other parameters than those that units of
            this kind own: `magnitude.shapes` makes one that compares with the mask `magnitude`.
            What the units do not own in them is not selected; what they own outside is left out,
            and `settings["parameters_left_out"]` counts it.

    Returns:
        A mask of weights; `weights_to_units` gives the same units back.

    Raises:
        NotComparableError: The mask is of weights already, or of another model; or a stated shape
            is not the model's.
        InputError: `shared` is neither, or units own nothing in the stated parameters.
    """
    if shared not in ("any", "all"):
        raise InputError(f"shared is {shared!r}", expected="'any' or 'all'")
    owned = {
        name: mask.numpy() for name, mask in weights_of(subnetwork, units, shared=shared).items()
    }
    left_out = 0
    if shapes is not None:
        left_out = len(owned.keys() - shapes.keys())
        owned = _within(owned, shapes, subnetwork, units)
    return Subnetwork.from_arrays(
        owned,
        language=subnetwork.language,
        base=subnetwork.base,
        run=subnetwork.run,
        method=subnetwork.method,
        settings={
            "converted": f"{subnetwork.granularity}s to weights",
            "policy": POLICY[subnetwork.granularity],
            "shared": shared,
            "parameters": "of the units" if shapes is None else "given",
            **({"parameters_left_out": left_out} if left_out else {}),
            "of": _origin(subnetwork),
        },
        seed=subnetwork.seed,
    )


def weights_to_units(
    subnetwork: Subnetwork,
    units: Units,
    granularity: str,
    *,
    density: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    uncovered: str = "refuse",
) -> Subnetwork:
    """The heads or neurons whose own weights a mask selects most of.

    Units are ranked by their share: selected own weights / own weights that the mask covers, all
    matrices and biases together. Rows that grouped queries share count for no head. At most one of
    `density`, `count` and `threshold` chooses from the ranking. By default as many units are taken
    as their shares add up to, k = round(Σ share), half to even: a mask of 5 % of the weights
    selects 5 % of the units, and the weights of whole units give back those units. Ties go to the
    earlier unit; a unit none of whose weights is selected is never taken.

    Args:
        subnetwork: A mask of weights.
        units: Of the model that it was found in.
        granularity: `"head"` or `"neuron"`.
        density: Share of the units to take, 0 < density ≤ 1.
        count: Number of units to take.
        threshold: Take every unit with at least this share, 0 < threshold ≤ 1.
        uncovered: What to do about a layer none of whose units' own weights the mask covers, as an
            adapter on some layers leaves: `"refuse"`, or `"never"` take its units.

    Returns:
        A mask of units. `settings` hold the rule, the smallest share taken and, where there are
        any, the layers that the mask does not cover.

    Raises:
        NotComparableError: The mask is of units, a shape is not the model's, or the mask covers
            none of the units' own weights (of a layer, unless `uncovered="never"`).
        InputError: A setting is out of range, or nothing would be selected.
    """
    if uncovered not in ("refuse", "never"):
        raise InputError(f"uncovered is {uncovered!r}", expected="'refuse' or 'never'")
    shares, not_covered = _shares(subnetwork, units, granularity)
    if not_covered and (uncovered == "refuse" or len(not_covered) == len(shares)):
        raise _not_covered(subnetwork, units, granularity, not_covered, len(shares))
    found = np.concatenate(list(shares.values()))
    if not found.any():
        raise InputError(
            f"the mask of {subnetwork.language} selects no weight of a {granularity}",
            expected="a mask that selects some",
        )
    rule, chosen = _choose(found, granularity, density, count, threshold)
    return subnetwork_of_units(
        chosen,
        units,
        granularity,
        language=subnetwork.language,
        base=subnetwork.base,
        run=subnetwork.run,
        method=subnetwork.method,
        settings={
            "converted": f"weights to {granularity}s",
            "policy": POLICY[granularity],
            "share": "selected own weights / own weights covered, biases too; shared rows in none",
            **rule,
            "ties": "order of the units",
            "smallest_share": float(found[chosen].min()),
            **({"layers_not_covered": not_covered} if not_covered else {}),
            "of": _origin(subnetwork),
        },
        seed=subnetwork.seed,
    )


def weights_of(subnetwork: Subnetwork, units: Units, *, shared: Sharing) -> dict[str, torch.Tensor]:
    """Base parameter to booleans: the weights of selected units; see `units_to_weights`."""
    selected = selected_units(subnetwork, units)
    if subnetwork.granularity == "head":
        return units.weights_of_heads(selected, shared=shared)
    return units.weights_of_neurons(selected)


def _within(
    owned: Mapping[str, NDArray[np.bool_]],
    shapes: Mapping[str, tuple[int, ...]],
    subnetwork: Subnetwork,
    units: Units,
) -> dict[str, NDArray[np.bool_]]:
    """The mask over other parameters."""
    if not owned.keys() & shapes.keys():
        raise InputError(
            f"none of the {len(shapes)} parameters belongs to {subnetwork.granularity}s of "
            f"{units.architecture}",
            expected=f"some of {', '.join(sorted(owned)[:2])}, …",
        )
    for name in sorted(owned.keys() & shapes.keys()):
        _check_shape(name, tuple(shapes[name]), owned[name].shape, "the stated shapes", units)
    empty = {name: np.zeros(shape, dtype=np.bool_) for name, shape in shapes.items()}
    return {name: owned.get(name, mask) for name, mask in empty.items()}


def projections(block: Any) -> Iterator[tuple[Projection, bool, int]]:
    """(projection, whether units are its outputs rather than its inputs, units per row or column).

    The last is more than 1 where several heads share a row.
    """
    if hasattr(block, "n_heads"):
        yield block.query, True, 1
        yield block.key, True, block.group_size
        yield block.value, True, block.group_size
        yield block.output, False, 1
        return
    yield block.up, True, 1
    if block.gate is not None:
        yield block.gate, True, 1
    yield block.down, False, 1


def _shares(
    subnetwork: Subnetwork, units: Units, granularity: str
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Layer to the share of each of its units; and the layers that the mask does not cover."""
    if subnetwork.granularity != "weight":
        raise NotComparableError(
            f"the mask of {subnetwork.language} is of {subnetwork.granularity}s",
            expected="a mask of weights",
        )
    shares: dict[str, NDArray[np.float64]] = {}
    not_covered = []
    for name, block in unit_parameters(units, granularity).items():
        n_units = block.n_heads if hasattr(block, "n_heads") else block.n_neurons
        selected = np.zeros(n_units)
        size = 0
        for projection, takes_outputs, sharing in projections(block):
            if sharing > 1:
                continue
            for counts, each in _lines(subnetwork, projection, units, outputs=takes_outputs):
                selected += counts.reshape(n_units, -1).sum(axis=1)
                size += each * len(counts) // n_units
        if size == 0:
            not_covered.append(name)
        shares[name] = selected / max(size, 1)
    return shares, not_covered


def _lines(
    subnetwork: Subnetwork, projection: Projection, units: Units, *, outputs: bool
) -> Iterator[tuple[NDArray[Any], int]]:
    """(selected weights of every row or column of a projection, weights in one), bias too."""
    part = slice(projection.start, projection.stop)
    if projection.weight in subnetwork.shapes:
        shape = subnetwork.shapes[projection.weight]
        what = f"the mask of {subnetwork.language}"
        _check_shape(projection.weight, shape, projection.shape, what, units)
        mask = subnetwork.dense(projection.weight)
        mask = mask.T if projection.transposed else mask  # [o, i]
        mask = mask[part] if outputs else mask.T
        yield mask.sum(axis=1), mask.shape[1]
    if outputs and projection.has_bias and projection.bias in subnetwork.shapes:
        yield subnetwork.dense(projection.bias)[part].astype(np.int64), 1


def _choose(
    shares: NDArray[np.float64],
    granularity: str,
    density: float | None,
    count: int | None,
    threshold: float | None,
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """What to record of the rule, and the units."""
    asked = {"density": density, "count": count, "threshold": threshold}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} were given together", expected="one of them, or none"
        )
    n = len(shares)
    for name, value in given.items():
        whole = name == "count"
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= (n if whole else 1):
            expected = f"a whole number, 1 to {n}" if whole else f"a number, 0 < {name} <= 1"
            raise InputError(f"{name} is {value!r}", expected=expected)
    if threshold is not None:
        chosen = shares >= threshold
        if not chosen.any():
            raise InputError(
                f"no {granularity} has a share of {threshold:g} of its weights selected",
                expected=f"at most {shares.max():.3g}, the largest share",
            )
        return {"rule": "threshold", "threshold": threshold}, chosen
    if count is not None:
        rule, k = {"rule": "count", "count": count}, count
    elif density is not None:
        rule, k = {"rule": "density", "density": density}, round(density * n)
    else:
        rule, k = {"rule": "sum of shares"}, round(float(shares.sum()))
    if k == 0:
        wanted = float(shares.sum()) if density is None else density * n
        raise InputError(
            f"{wanted:.2g} of {n} {granularity}s would be selected, which rounds to none",
            fix="give count=1",
        )
    k = min(k, int(np.count_nonzero(shares)))
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[np.argsort(-shares, kind="stable")[:k]] = True
    return {**rule, "k": k}, chosen


def _check_shape(
    name: str, found: tuple[int, ...], expected: tuple[int, ...], what: str, units: Units
) -> None:
    if tuple(found) != tuple(expected):
        raise NotComparableError(
            f"{what} and {units.architecture} differ in the shape of {name}: "
            f"{list(found)} and {list(expected)}",
            expected="the model that the mask was found in",
        )


def _not_covered(
    subnetwork: Subnetwork, units: Units, granularity: str, layers: list[str], n_layers: int
) -> NotComparableError:
    block: Any = unit_parameters(units, granularity)[layers[0]]
    names = [p.weight for p, _, sharing in projections(block) if sharing == 1]
    several = len(layers) < n_layers
    return NotComparableError(
        f"the mask of {subnetwork.language} covers no weight that is one {granularity}'s own in "
        f"{layers[0]}" + (f" and {len(layers) - 1} more layers" if len(layers) > 1 else ""),
        expected=" or ".join(names),
        fix="uncovered='never' leaves such layers out" if several else None,
    )


def _origin(subnetwork: Subnetwork) -> dict[str, Any]:
    """Where the mask came from that was converted."""
    return {
        "granularity": subnetwork.granularity,
        "method": subnetwork.method,
        "settings": dict(subnetwork.settings),
        "seed": subnetwork.seed,
    }
