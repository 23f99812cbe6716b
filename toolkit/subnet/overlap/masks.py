"""How much two masks share, counted on packed bits, beside what chance gives.

The counts are exact integers. Every pair is counted per parameter in one pass; layers, types and
the whole model are sums. `z` and `p_value` are those of the number of shared weights, on which
Jaccard, Dice, overlap coefficient and containment depend monotonically; p is one-sided: the
probability, under the null model, of sharing at least as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subnet.overlap import _tails
from subnet.overlap._counting import Bits, count_intersections, workers
from subnet.overlap._inputs import Entries, Mask
from subnet.overlap._levels import Levels
from subnet.overlap._permutation import pattern_weights, profile
from subnet.overlap._rows import Measured, divide, reasons

Array = NDArray[np.float64]

_ONE_VALUE = "the null model allows one value only"
_FEW = "so few rows or columns hold these weights that p is rough: up to several times too small"
# Skewness of the permutation distribution from which it is lumps rather than a curve.
_LUMPS = 3.0


def describe_extremes(entries: Entries) -> tuple[str, ...]:
    """A line for each mask that selects nothing, or everything, of what is compared."""
    weights = sum(o * i for o, i in entries.shapes)
    found = []
    for label, mask in zip(entries.labels, entries.items, strict=True):
        bits = (mask.bits[name] for name in entries.parameters)
        count = sum(int(np.bitwise_count(packed).sum(dtype=np.int64)) for packed in bits)
        if not count:
            found.append(f"the mask of {label} is empty: it has no overlap that could be measured")
        elif count == weights:
            found.append(
                f"the mask of {label} is full: every mask shares all its {mask.granularity}s with "
                "it, and nothing follows from that"
            )
    return tuple(dict.fromkeys(found))


def measure_masks(entries: Entries, levels: Levels, measures: Sequence[str]) -> list[Measured]:
    """The measures of all pairs under the element and the structure-preserving null."""
    masks: Sequence[Mask] = entries.items
    bits = [[mask.bits[name] for name in entries.parameters] for mask in masks]
    with_signs = "sign_agreement" in measures
    signs = _signs(masks, entries.parameters) if with_signs else None
    counts = count_intersections(bits, signs)
    model = _PermutationModel.of(entries, bits, signs, levels)

    n = len(masks)
    a, b = entries.pairs.a, entries.pairs.b
    elements = np.array([float(o * i) for o, i in entries.shapes])
    sizes = np.diagonal(counts[:n, :n]).T  # [l, m]
    group = _Counts(
        total=np.broadcast_to(levels.total(elements), (len(a), len(levels.level))),
        a=levels.total(sizes[a]),
        b=levels.total(sizes[b]),
        both=levels.total(counts[a, b]),
    )
    found = _set_measures(entries, group, model, measures)
    if with_signs:
        negative = _Signs(
            a=levels.total(counts[n + a, b]),
            b=levels.total(counts[a, n + b]),
            both=levels.total(counts[n + a, n + b]),
            known=np.array([mask.signs is not None for mask in masks]),
        )
        found += _sign_measures(entries, group, negative, model)
    return found


@dataclass(frozen=True)
class _Counts:
    """Numbers of weights per pair and group, all [p, g]."""

    total: Array
    a: Array
    b: Array
    both: Array


@dataclass(frozen=True)
class _Signs:
    """Numbers of shared weights whose change is negative in a, in b, in both, all [p, g]."""

    a: Array
    b: Array
    both: Array
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class _PermutationModel:
    """Moments of the shared count X and the signed count D under permuted rows and columns.

    Modules are permuted independently, so that means and central moments add over a group.

    Attributes:
        mean: [2, p, g], of (X, D).
        second: [3, p, g], central: (XX, XD, DD).
        third: [4, p, g], central: (XXX, XXD, XDD, DDD).
    """

    mean: Array
    second: Array
    third: Array

    @staticmethod
    def of(
        entries: Entries,
        bits: Sequence[Sequence[Bits]],
        signs: Sequence[Sequence[Bits] | None] | None,
        levels: Levels,
    ) -> _PermutationModel:
        a, b = entries.pairs.a, entries.pairs.b
        mean, second, third = [], [], []
        with ThreadPoolExecutor(workers()) as pool:
            for m, shape in enumerate(entries.shapes):
                rows = [row[m] for row in bits]
                negative = [row and row[m] for row in signs or [None] * len(rows)]
                found = list(pool.map(profile, rows, negative, [shape] * len(rows)))
                of_two, of_three = pattern_weights(shape)
                means = np.stack([p.mean for p in found], axis=1)
                twos = np.stack([p.second for p in found], axis=1)
                threes = np.stack([p.third for p in found], axis=1)
                mean.append(means[:, a] * means[:, b] * (shape[0] * shape[1]))
                second.append((twos[:, a] * twos[:, b]) @ of_two)
                third.append((threes[:, a] * threes[:, b]) @ of_three)
        return _PermutationModel(
            levels.total(np.stack(mean, axis=-1)),
            _not_negative(levels.total(np.stack(second, axis=-1)), mean, levels),
            levels.total(np.stack(third, axis=-1)),
        )


def _not_negative(second: Array, mean: list[Array], levels: Levels) -> Array:
    """Variances that are 0 up to rounding are 0."""
    scale = levels.total(np.stack(mean, axis=-1))[0]
    tiny = second[0] <= 1e-9 * np.maximum(scale, 1.0)
    second[:, tiny] = 0.0
    return second


def _set_measures(
    entries: Entries, n: _Counts, model: _PermutationModel, measures: Sequence[str]
) -> list[Measured]:
    element = _tails.hypergeometric(n.total, n.a, n.b)
    structure = (model.mean[0], model.second[0], model.third[0])
    # the count is an integer and the approximating distribution continuous; at the smallest count
    # that the sizes allow, nothing needs approximating
    structure_p = _tails.pearson3_sf(n.both - 0.5, *structure)
    smallest = n.both <= np.maximum(n.a + n.b - n.total, 0)
    p_values = {
        "element": _tails.hypergeometric_sf(n.both, n.total, n.a, n.b),
        "structure": np.where(smallest, 1.0, structure_p),
    }
    jaccard = {
        "element": _tails.expected_jaccard_hypergeometric(n.total, n.a, n.b),
        "structure": _tails.expected_jaccard(n.a, n.b, *structure),
    }
    lumps = {"element": np.zeros(n.a.shape, dtype=bool), "structure": _lumps(*structure[1:])}
    empty_a, empty_b = n.a == 0, n.b == 0
    label_a, label_b = _labels(entries)
    a_is_empty = "the mask of " + label_a + " is empty here"
    b_is_empty = "the mask of " + label_b + " is empty here"
    full_a = (n.a == n.total, "the mask of " + label_a + " is full here: any mask is inside it")
    full_b = (n.b == n.total, "the mask of " + label_b + " is full here: any mask is inside it")

    definitions: dict[str, tuple[Array, list[tuple[Array, NDArray[np.object_]]]]] = {
        "jaccard": (n.a + n.b - n.both, [(empty_a & empty_b, a_is_empty)]),
        "dice": ((n.a + n.b) / 2, [(empty_a & empty_b, a_is_empty)]),
        "overlap_coefficient": (
            np.minimum(n.a, n.b),
            [(empty_a, a_is_empty), (empty_b, b_is_empty)],
        ),
        "containment": (n.a, [(empty_a, a_is_empty)]),
        "containment (swapped)": (n.b, [(empty_b, b_is_empty)]),
    }
    found = []
    for name, (size, undefined) in definitions.items():
        measure, _, swapped = name.partition(" ")
        if measure not in measures or (swapped and entries.pairs.directed):
            continue
        for null, (mean, variance, _) in (("element", element), ("structure", structure)):
            expected = jaccard[null] if measure == "jaccard" else divide(mean, size)
            fixed = variance == 0
            found.append(
                Measured(
                    measure,
                    null,
                    value=divide(n.both, size),
                    expected=np.where(size > 0, expected, np.nan),
                    z=divide(n.both - mean, np.sqrt(variance)),
                    p_value=np.where(fixed, np.nan, p_values[null]),
                    n_a=n.a,
                    n_b=n.b,
                    reason=reasons(
                        n.a.shape,
                        *undefined,
                        full_a,
                        full_b,
                        (fixed, _ONE_VALUE),
                        (lumps[null], _FEW),
                    ),
                    swapped=bool(swapped),
                )
            )
    return found


def _lumps(variance: Array, third: Array) -> NDArray[np.bool_]:
    """Where the permutation distribution is too skewed for three moments to describe its tail."""
    return np.asarray(np.abs(np.nan_to_num(divide(third, variance**1.5))) > _LUMPS)


def _sign_measures(
    entries: Entries, n: _Counts, signs: _Signs, model: _PermutationModel
) -> list[Measured]:
    """Fraction of the shared weights whose change has the same sign in both languages.

    Element null: given the shared weights and how many are negative on either side, the number
    negative on both is hypergeometric. Structure null: with D = agreeing − disagreeing and X = all
    shared weights, the agreement reaches the observed one exactly where D − ρX ≥ 0 for the observed
    ρ = D/X, and the first three moments of D − ρX are exact.
    """
    shared = n.both
    agree = shared - signs.a - signs.b + 2 * signs.both
    rho = divide(2 * agree - shared, shared)

    mean, variance, _ = _tails.hypergeometric(shared, signs.a, signs.b)
    element = (
        divide(shared - signs.a - signs.b + 2 * mean, shared),
        divide(signs.both - mean, np.sqrt(variance)),
        _tails.hypergeometric_sf(signs.both, shared, signs.a, signs.b),
        variance == 0,
    )
    (mean_x, mean_d), (xx, xd, dd), (xxx, xxd, xdd, ddd) = model.mean, model.second, model.third
    offset = mean_d - rho * mean_x
    spread = dd - 2 * rho * xd + rho**2 * xx
    skew = ddd - 3 * rho * xdd + 3 * rho**2 * xxd - rho**3 * xxx
    fixed = ~(spread > 1e-9 * np.maximum(mean_x, 1.0))
    spread = np.where(fixed, 0.0, spread)
    ratio = divide(mean_d, mean_x) - divide(xd, mean_x**2) + divide(mean_d * xx, mean_x**3)
    structure = (
        (1 + ratio) / 2,
        divide(-offset, np.sqrt(spread)),
        _tails.pearson3_sf(np.zeros_like(offset), offset, spread, skew),
        fixed,
    )

    unknown_a, unknown_b = (
        ~signs.known[side][:, None] for side in (entries.pairs.a, entries.pairs.b)
    )
    unknown = unknown_a | unknown_b
    label_a, label_b = _labels(entries)
    found = []
    for null, (expected, z, p_value, one_value) in (("element", element), ("structure", structure)):
        hidden = unknown | (shared == 0)
        reason = reasons(
            shared.shape,
            (unknown_a, "the signs of the change are not known for " + label_a),
            (unknown_b, "the signs of the change are not known for " + label_b),
            (shared == 0, "the masks share no weight here"),
            (one_value, _ONE_VALUE),
        )
        found.append(
            Measured(
                "sign_agreement",
                null,
                value=np.where(hidden, np.nan, divide(agree, shared)),
                expected=np.where(hidden, np.nan, expected),
                z=np.where(hidden, np.nan, z),
                p_value=np.where(hidden | one_value, np.nan, p_value),
                n_a=n.a,
                n_b=n.b,
                reason=reason,
            )
        )
    return found


def _signs(masks: Sequence[Mask], parameters: Sequence[str]) -> list[list[Bits] | None]:
    """[l][m], packed signs of the change; None where they are unknown."""
    return [
        None if mask.signs is None else [mask.signs[name] for name in parameters] for mask in masks
    ]


def _labels(entries: Entries) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Labels of both sides, [p, 1]."""
    labels = np.array(entries.labels, dtype=object)
    return labels[entries.pairs.a][:, None], labels[entries.pairs.b][:, None]
