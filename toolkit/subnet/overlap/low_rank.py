"""How much two updates share: their ΔW, and the directions in which it acts.

Everything is a property of ΔW = B A and none of its factors, which are not unique: (B M, M⁻¹ A) is
the same update. `z` is positive where two updates share more than random directions would, also
for `principal_angle`, which falls with sharing; p is one-sided: the probability of at least as much
under the null model (`_structure`, `_rotation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet.overlap import _rotation, _structure, _tails
from subnet.overlap._initialisation import shared_initialisation
from subnet.overlap._inputs import Entries
from subnet.overlap._levels import Levels
from subnet.overlap._modules import Module, read_module
from subnet.overlap._rows import Measured, divide, reasons

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

#: Draws from which the chance level of the largest principal angle is read.
ANGLE_DRAWS = 1999

_ONE_VALUE = "the null model allows one value only"


def measure_updates(
    entries: Entries, levels: Levels, measures: Sequence[str], *, seed: int
) -> tuple[list[Measured], pd.DataFrame, tuple[str, ...]]:
    """The measures of all pairs under their null models, the spectrum of every update, warnings.

    Modules are read one after the other; of each only numbers per pair are kept.
    """
    updates = entries.items
    collectors = {name: _collector(name, entries, seed) for name in measures}
    spectra: list[dict[str, Any]] = []
    alike: list[tuple[Array, int]] = []
    for parameter, shape in zip(entries.parameters, entries.shapes, strict=True):
        module = read_module(updates, parameter, seed=seed)
        if parameter in updates[0].transposed:
            shape = (shape[1], shape[0])
        for collector in collectors.values():
            collector.add(module, shape)
        spectra += _spectra(entries, parameter, module)
        if module.alike is not None:
            alike.append((module.alike, shape[1] * max(1, int(module.ranks.min()))))
    import pandas as pd

    measured = [
        one for name, collector in collectors.items() for one in collector.measured(name, levels)
    ]
    return measured, pd.DataFrame(spectra), shared_initialisation(entries, alike)


def _collector(measure: str, entries: Entries, seed: int) -> _Collector:
    side = int(measure.endswith("_right"))
    if measure == "cosine":
        return _Cosine(entries)
    if measure.startswith("subspace_similarity"):
        return _Similarity(entries, side)
    return _Angle(entries, side, seed)


class _Collector:
    """Gathers numbers per pair and module, [p] each, and sums them over groups at the end."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.a, self.b = entries.pairs.a, entries.pairs.b
        self.columns: dict[str, list[Array]] = {}

    def add(self, module: Module, shape: tuple[int, int]) -> None:
        raise NotImplementedError

    def measured(self, name: str, levels: Levels) -> list[Measured]:
        """One entry per null model."""
        raise NotImplementedError

    def keep(self, **values: Any) -> None:
        """Append one module's numbers, each [p]."""
        for name, value in values.items():
            column = np.broadcast_to(np.asarray(value, dtype=np.float64), self.a.shape)
            self.columns.setdefault(name, []).append(column)

    def totals(self, levels: Levels) -> dict[str, Array]:
        """Sums over each group, [p, g]."""
        return {
            name: levels.total(np.stack(columns, axis=-1)) for name, columns in self.columns.items()
        }

    def reasons(self, shape: tuple[int, ...], k_a: Array, k_b: Array) -> NDArray[np.object_]:
        """Which of the two updates is zero here."""
        labels = np.array(self.entries.labels, dtype=object)
        return reasons(
            shape,
            (k_a == 0, "the update of " + labels[self.a][:, None] + " is zero here"),
            (k_b == 0, "the update of " + labels[self.b][:, None] + " is zero here"),
        )


class _Cosine(_Collector):
    """⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖); over several modules of the concatenated updates."""

    def add(self, module: Module, shape: tuple[int, int]) -> None:
        two = (module.two[self.a], module.two[self.b])
        four = (module.four[self.a], module.four[self.b])
        variance, fourth = _rotation.inner_product_moments(shape, two, four)
        self.keep(
            inner=module.inner[self.a, self.b],
            row_squares=module.row_squares[self.a, self.b],
            rows=shape[0],
            variance=variance,
            fourth=fourth,
            square_a=two[0],
            square_b=two[1],
            k_a=module.ranks[self.a],
            k_b=module.ranks[self.b],
        )

    def measured(self, name: str, levels: Levels) -> list[Measured]:
        total = self.totals(levels)
        norm = np.sqrt(total["square_a"] * total["square_b"])
        inner, turned = total["inner"], total["variance"]
        value = divide(inner, norm)
        # rows that never meet leave nothing but rounding
        signed = np.where(total["row_squares"] > (1e-9 * norm) ** 2, total["row_squares"], 0.0)
        p_values = {
            "structure": _structure.signed_rows_sf(inner, signed, total["rows"]),
            "rotation": _tails.student_sf(inner, turned, divide(total["fourth"], turned**2)),
        }
        found = []
        for null, variance in (("structure", signed), ("rotation", turned)):
            reason = self.reasons(value.shape, total["k_a"], total["k_b"])
            reason[(variance == 0) & (reason == "")] = _ONE_VALUE
            found.append(
                Measured(
                    name,
                    null,
                    value=value,
                    expected=np.where(np.isnan(value), np.nan, 0.0),
                    z=divide(inner, np.sqrt(variance)),
                    p_value=p_values[null],
                    n_a=total["k_a"],
                    n_b=total["k_b"],
                    reason=reason,
                )
            )
        return found


class _Similarity(_Collector):
    """φ = ‖U₁ᵀU₂‖²_F / min(k₁, k₂); over several modules the sums are divided."""

    def __init__(self, entries: Entries, side: int) -> None:
        super().__init__(entries)
        self.side = side

    def add(self, module: Module, shape: tuple[int, int]) -> None:
        n = shape[self.side]
        gram = module.gram_right if self.side else module.gram_left
        shared = np.einsum("akbl,akbl->ab", gram, gram)
        k_a, k_b = (module.ranks[side].astype(np.float64) for side in (self.a, self.b))
        mean, variance = _rotation.projection_moments(n, k_a, k_b)
        focus = module.focus_right if self.side else module.focus_left
        self.keep(
            shared=shared[self.a, self.b],
            mean=mean,
            rotation=variance,
            structure=_structure.projection_variance(n, k_a, k_b, focus[self.a], focus[self.b]),
            low=np.maximum(k_a + k_b - n, 0),
            high=np.minimum(k_a, k_b),
            k_a=k_a,
            k_b=k_b,
        )

    def measured(self, name: str, levels: Levels) -> list[Measured]:
        total = self.totals(levels)
        shared, mean, low, high = (total[k] for k in ("shared", "mean", "low", "high"))
        found = []
        for null in ("structure", "rotation"):
            # subspaces that fill the space, or are the same few coordinates, leave only rounding
            variance = np.where(total[null] > 1e-12 * mean, total[null], 0.0)
            reason = self.reasons(shared.shape, total["k_a"], total["k_b"])
            reason[(total["rotation"] <= 0) & (reason == "")] = "the subspaces fill the space"
            reason[(variance == 0) & (reason == "")] = _ONE_VALUE
            found.append(
                Measured(
                    name,
                    null,
                    value=divide(shared, high),
                    expected=divide(mean, high),
                    z=divide(shared - mean, np.sqrt(variance)),
                    p_value=_tails.beta_sf(shared, mean, variance, low, high),
                    n_a=total["k_a"],
                    n_b=total["k_b"],
                    reason=reason,
                )
            )
        return found


class _Angle(_Collector):
    """Largest principal angle, in radians; over several modules the mean of theirs."""

    def __init__(self, entries: Entries, side: int, seed: int) -> None:
        super().__init__(entries)
        self.side = side
        self.seed = seed
        self.draws: list[dict[tuple[int, int], Array]] = []

    def add(self, module: Module, shape: tuple[int, int]) -> None:
        n = shape[self.side]
        gram = module.gram_right if self.side else module.gram_left
        k_a, k_b = module.ranks[self.a], module.ranks[self.b]
        defined = (k_a > 0) & (k_b > 0)
        self.keep(
            angle=np.where(defined, _largest_angles(gram, self.a, self.b, k_a, k_b), 0.0),
            defined=defined,
            k_a=k_a,
            k_b=k_b,
        )
        rng = np.random.default_rng((self.seed, len(self.draws), self.side))
        draws: dict[tuple[int, int], Array] = {}
        for p, q in set(zip(k_a[defined].tolist(), k_b[defined].tolist(), strict=True)):
            sample = _rotation.largest_angles(n, p, q, ANGLE_DRAWS, self.seed)
            draws[p, q] = rng.permutation(sample)  # so that modules are independent
        self.draws.append(draws)

    def measured(self, name: str, levels: Levels) -> list[Measured]:
        total = self.totals(levels)
        value = divide(total["angle"], total["defined"])
        expected, sd, p_value = (np.full(value.shape, np.nan) for _ in range(3))
        ranks = np.stack([np.stack(self.columns[k], axis=-1) for k in ("k_a", "k_b")], axis=-1)
        for g, members in enumerate(levels.members.astype(bool)):
            # pairs with the same ranks in these modules have the same null distribution
            kinds, kind = np.unique(ranks[:, members], axis=0, return_inverse=True)
            where = np.flatnonzero(members)
            for at, row in enumerate(kinds.astype(int)):
                sample = [
                    self.draws[m][p, q]
                    for m, (p, q) in zip(where, row.tolist(), strict=True)
                    if p > 0 and q > 0
                ]
                if not sample:
                    continue
                null = np.sort(np.mean(sample, axis=0))
                pairs = kind.ravel() == at
                expected[pairs, g], sd[pairs, g] = null.mean(), null.std()
                count = np.searchsorted(null, value[pairs, g], side="right")
                p_value[pairs, g] = (1 + count) / (1 + null.size)
        fixed = sd == 0
        reason = self.reasons(value.shape, total["k_a"], total["k_b"])
        reason[fixed & (reason == "")] = "the subspaces fill the space"
        return [
            Measured(
                name,
                "rotation",
                value=value,
                expected=expected,
                z=divide(expected - value, sd),
                p_value=np.where(fixed, np.nan, p_value),
                n_a=total["k_a"],
                n_b=total["k_b"],
                reason=reason,
            )
        ]


def _largest_angles(gram: Array, a: Any, b: Any, k_a: Any, k_b: Any) -> Array:
    """Angle whose cosine is the smallest singular value of U₁ᵀU₂, [p]."""
    cosines = np.linalg.svd(gram[a, :, b], compute_uv=False)
    last = np.maximum(np.minimum(k_a, k_b) - 1, 0)
    smallest = np.take_along_axis(cosines, last[:, None], axis=1)[:, 0]
    return np.asarray(np.arccos(np.clip(smallest, 0.0, 1.0)))


def _spectra(entries: Entries, parameter: str, module: Module) -> list[dict[str, Any]]:
    return [
        {
            "run": item.run,
            "language": label,
            "parameter": parameter,
            "rank": values.size,
            "effective_rank": float(effective),
            "norm": float(np.sqrt(max(square, 0.0))),
            "largest": float(values[0]) if values.size else 0.0,
        }
        for item, label, values, effective, square in zip(
            entries.items,
            entries.labels,
            module.values,
            module.effective_rank,
            module.two,
            strict=True,
        )
    ]
