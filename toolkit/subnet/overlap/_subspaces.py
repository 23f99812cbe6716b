"""How much of the subspaces in which two updates act is common: similarity and largest angle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet._projections import rotation_moments, sign_moments
from subnet._statistics import beta_sf
from subnet.overlap import _rotation
from subnet.overlap._collecting import ONE_VALUE, Collector
from subnet.overlap._inputs import Entries
from subnet.overlap._levels import Levels
from subnet.overlap._modules import Module
from subnet.overlap._rows import Measured, divide
from subnet.overlap._steps import shared_by_construction

Array = NDArray[np.float64]

#: Draws from which the chance level of the largest principal angle is read.
ANGLE_DRAWS = 1999


class Subspaces(Collector):
    """Of one side, without a test where two steps share subspaces by construction."""

    def __init__(self, entries: Entries, side: int) -> None:
        super().__init__(entries)
        self.side = side
        self.by_construction = shared_by_construction(entries)[:, None]

    def untested(self, one: Measured) -> Measured:
        """Without z and p where they would answer a question that construction has answered."""
        shared = self.by_construction != ""
        reason = np.where(shared & (one.reason == ""), self.by_construction, one.reason)
        return replace(
            one,
            z=np.where(shared, np.nan, one.z),
            p_value=np.where(shared, np.nan, one.p_value),
            reason=reason,
        )


class Similarity(Subspaces):
    """φ = ‖U₁ᵀU₂‖²_F / min(k₁, k₂); over several modules the sums are divided."""

    def add(self, module: Module, shape: tuple[int, int]) -> None:
        n = shape[self.side]
        gram = module.gram_right if self.side else module.gram_left
        shared = np.einsum("akbl,akbl->ab", gram, gram)
        k_a, k_b = (module.ranks[side].astype(np.float64) for side in (self.a, self.b))
        turned = rotation_moments(n, k_a, k_b)
        signed = sign_moments(module.right if self.side else module.left)
        self.keep(
            shared=shared[self.a, self.b],
            rotation_mean=turned[0],
            rotation_variance=turned[1],
            structure_mean=signed[0][self.a, self.b],
            structure_variance=signed[1][self.a, self.b],
            signs=np.where((k_a > 0) & (k_b > 0), n - 1, 0),
            low=np.maximum(k_a + k_b - n, 0),
            high=np.minimum(k_a, k_b),
            k_a=k_a,
            k_b=k_b,
        )

    def measured(self, name: str, levels: Levels) -> list[Measured]:
        total = self.totals(levels)
        shared, low, high = (total[k] for k in ("shared", "low", "high"))
        # a module's signs all turned give the same; fewer than that is not possible
        floors = {"structure": 0.5 ** total["signs"], "rotation": np.zeros_like(high)}
        found = []
        for null, floor in floors.items():
            mean, variance = total[f"{null}_mean"], total[f"{null}_variance"]
            # subspaces that fill the space, or are the same few coordinates, leave only rounding
            variance = np.where(variance > 1e-12 * mean, variance, 0.0)
            reason = self.reasons(shared.shape, total["k_a"], total["k_b"])
            reason[(total["rotation_variance"] <= 0) & (reason == "")] = (
                "the subspaces fill the space"
            )
            reason[(variance == 0) & (reason == "")] = ONE_VALUE
            found.append(
                self.untested(
                    Measured(
                        name,
                        null,
                        value=divide(shared, high),
                        expected=divide(mean, high),
                        z=divide(shared - mean, np.sqrt(variance)),
                        p_value=np.maximum(beta_sf(shared, mean, variance, low, high), floor),
                        n_a=total["k_a"],
                        n_b=total["k_b"],
                        reason=reason,
                    )
                )
            )
        return found


class Angle(Subspaces):
    """Largest principal angle, in radians; over several modules the mean of theirs."""

    def __init__(self, entries: Entries, side: int, seed: int) -> None:
        super().__init__(entries, side)
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
        one = Measured(
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
        return [self.untested(one)]


def _largest_angles(gram: Array, a: Any, b: Any, k_a: Any, k_b: Any) -> Array:
    """Angle whose cosine is the smallest singular value of U₁ᵀU₂, [p]."""
    cosines = np.linalg.svd(gram[a, :, b], compute_uv=False)
    last = np.maximum(np.minimum(k_a, k_b) - 1, 0)
    smallest = np.take_along_axis(cosines, last[:, None], axis=1)[:, 0]
    return np.asarray(np.arccos(np.clip(smallest, 0.0, 1.0)))
