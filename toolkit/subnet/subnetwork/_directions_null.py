"""How much of a direction another language's subspace holds by chance.

A direction u is captured by m to the part ‖U_mᵀu‖² = Σ_ab u_a u_b P_ab, P the projection on m's
directions, r of them in n dimensions. Three null models, each with exact mean and variance and the
tail of the beta distribution that has them:

- `signs`: each coordinate of u keeps its size and place and gets a random sign. Mean Σ u_a² P_aa,
  variance 2 Σ_{a≠b} u_a² u_b² P_ab². Exact for coordinates with symmetric errors however unequal
  they are (Efron 1969, Student's t-test under symmetry conditions): a model's outlier coordinates,
  on which all languages act strongly, are chance here and not sharing.
- `permutation`: the coordinates of u are permuted and get random signs. Keeps how concentrated a
  direction is and forgets on which coordinates, so that outlier coordinates that all languages have
  in common count as sharing. Mean r/n.
- `rotation`: u is turned at random. Takes the coordinates of a model for alike. Mean r/n, and the
  beta distribution with parameters r/2 and (n − r)/2 exactly.

The directions of a block with nearly equal singular values may be chosen among all their rotations.
None captures more than the block as a whole, Σ_k ‖U_mᵀu_k‖², which does not depend on
the rotation: the p-value of each is the probability that the block's sum reaches its part. Never
too small, and for a block of one exactly the above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subnet._projections import pair_products, rotation_moments

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

#: Null models by name.
NULLS = ("signs", "permutation", "rotation")


@dataclass(frozen=True)
class Chance:
    """What chance gives, for K directions and l languages.

    Attributes:
        expected: [K, l], mean part of a direction that a language captures.
        mean, variance: [K, l], moments of what is captured of the direction's whole block.
        low, high: [K, l], between which that lies.
        floor: Smallest probability that there is.
    """

    expected: Array
    mean: Array
    variance: Array
    low: Array
    high: Array
    floor: float

    @property
    def defined(self) -> NDArray[np.bool_]:
        """[K, l], whether there is more than one value that chance can give."""
        return (self.variance > 1e-12 * self.mean**2) & (self.high > self.low)

    def p_value(self, captured: Array) -> Array:
        """[K, l], P(at least as much); NaN where chance allows one value only."""
        from subnet._statistics import beta_sf

        variance = np.where(self.defined, self.variance, 0.0)
        p = beta_sf(captured, self.mean, variance, self.low, self.high)
        return np.asarray(np.maximum(p, self.floor))


def chance(null: str, vectors: Array, blocks: Numbers, owner: Numbers, languages: int) -> Chance:
    """Moments of what every language captures of every direction.

    Args:
        null: One of `NULLS`.
        vectors: [n, K], the directions of all languages, those of a language orthonormal.
        blocks: [K], numbers of the blocks, from 0 up; a block's directions stand together.
        owner: [K], whose each direction is.
        languages: l, some of which may have no direction here.
    """
    n, count = vectors.shape
    if count == 0:
        none = np.zeros((0, languages))
        return Chance(none, none, none, none, none, floor=0.0)
    starts = np.searchsorted(blocks, np.arange(blocks.max() + 1))
    b = np.bincount(blocks).astype(np.float64)[:, None]
    r = np.bincount(owner, minlength=languages).astype(np.float64)[None, :]
    squares = vectors**2
    ours = np.add.reduceat(squares, starts, axis=1)  # [n, blocks], diagonals of the projections
    theirs = squares @ np.eye(languages)[owner]  # [n, l]
    if null == "signs":
        mean = ours.T @ theirs
        pairs = _pair_sums(vectors, blocks, owner, languages)
        variance = 2 * (pairs - (ours**2).T @ theirs**2)
        expected = squares.T @ theirs
    else:
        mean = b * r / n
        if null == "rotation":
            variance = rotation_moments(n, b, r)[1]
        else:
            c, d = (ours**2).sum(axis=0)[:, None], (theirs**2).sum(axis=0)[None, :]
            variance = permutation_variance(n, b, r, c, d)
        expected = np.broadcast_to(r / n, (count, languages))
    low = np.broadcast_to(np.maximum(b + r - n, 0.0), mean.shape)
    high = np.broadcast_to(np.minimum(b, r), mean.shape)
    floor = 2.0 ** (1 - min(n, 1000)) if null == "signs" else 0.0
    return Chance(
        np.asarray(expected),
        mean[blocks],
        np.maximum(variance, 0.0)[blocks],
        low[blocks],
        high[blocks],
        floor,
    )


def permutation_variance(n: int, b: Array, r: Array, c: Array, d: Array) -> Array:
    """Variance of tr(QP) when the coordinates of one are permuted with random signs.

    Args:
        n: Dimension of the space.
        b: Dimension of the subspace of Q.
        r: Dimension of the subspace of P.
        c: Σ Q_aa².
        d: Σ P_aa².
    """
    if n == 1:
        return np.zeros(np.broadcast_shapes(b.shape, r.shape))
    diagonal = (c - b**2 / n) * (d - r**2 / n) / (n - 1)
    return np.asarray(diagonal + 2 * (b - c) * (r - d) / (n * (n - 1)))


def _pair_sums(vectors: Array, blocks: Numbers, owner: Numbers, languages: int) -> Array:
    """[blocks, l], Σ_ab Q_ab² P_ab² of each block's projection Q and each language's P.

    Q_ab² = Σ_{k,l} u_ka u_la u_kb u_lb, so the squared projection has as factor the products of its
    directions two by two; they are used where they are fewer than the coordinates.
    """
    n = vectors.shape[0]
    sizes = np.bincount(blocks)
    found = np.zeros((sizes.size, languages))
    alone = sizes[blocks] == 1
    squares = vectors[:, alone] ** 2
    for m in range(languages):
        basis = vectors[:, owner == m]
        k = basis.shape[1]
        few = k * (k + 1) // 2 <= n
        theirs = pair_products(basis).T if few else (basis @ basis.T) ** 2
        found[blocks[alone], m] = _squares(theirs, squares, few)
        for number in np.flatnonzero(sizes > 1):
            products = pair_products(vectors[:, blocks == number])
            found[number, m] = _squares(theirs, products, few).sum()
    return found


def _squares(theirs: Array, ours: Array, few: bool) -> Array:
    """[w], w_jᵀ (P squared) w_j of the columns, from the factor Hᵀ of P squared or from itself."""
    across = theirs @ ours
    return np.asarray(((across if few else ours) * across).sum(axis=0))
