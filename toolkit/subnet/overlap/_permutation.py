"""The structure-preserving null: rows and columns of one mask permuted, in closed form.

For masks A, B of a module, X = Σ A_ij B_π(i)σ(j) under independent uniform permutations π of the
rows and σ of the columns keeps how unevenly each mask spreads over rows and columns and forgets
which rows and columns those are. Its moments need no sampling:

    E[Xᵏ] = Σ_{P,Q} S_PQ(A) · S_PQ(B) / ((o)_|P| · (i)_|Q|)

over the partitions P, Q of the k factors into those that share a row and those that share a column;
S_PQ sums Π a over index tuples with exactly these equalities, and (o)_k = o(o−1)…(o−k+1). The
S_PQ follow by Möbius inversion from sums with at least these equalities, which need only the row
sums, the column sums and one bilinear form: one pass over each mask, then O(1) per pair. Matrices
are centred first, so that the moments are central and nothing cancels. The first three moments
determine a Pearson type III distribution, which gives the tail: the approach of Kazi-Aoual,
Hitier, Sabatier and Lebreton (1995) and of Josse, Pagès and Husson (2008) for the RV coefficient.
The approximation is good to a few per cent of p for masks that spread over many rows or columns.
Where a mask lives in very few of them the true distribution is a handful of lumps: with all weights
of both in one of 96 columns p is .003 for a true .010, with four columns .042 for a true .058.

Beside the mask m (0/1) its signs s = m·sign(ΔW) (−1/0/1) are carried along, since sign agreement is
a ratio of two such sums. All elementwise products of m and s are 1, s or m again (s·s = m,
s·m = s), which is why the same few sums suffice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Which of (mask, signs) enter the second and third moments; 0 is the mask, 1 its signs.
SECOND = tuple(combinations_with_replacement((0, 1), 2))
THIRD = tuple(combinations_with_replacement((0, 1), 3))

# Partitions of three factors, finest first, and the Möbius function of their lattice.
_NONE, _FIRST_TWO, _OUTER_TWO, _LAST_TWO, _ALL = range(5)
_PAIRS = {
    _FIRST_TWO: (0, 1, 2),
    _OUTER_TWO: (0, 2, 1),
    _LAST_TWO: (1, 2, 0),
}  # together, together, apart
_BLOCKS = (3, 2, 2, 2, 1)
_MOEBIUS_3 = np.array(
    [[1, -1, -1, -1, 2], [0, 1, 0, 0, -1], [0, 0, 1, 0, -1], [0, 0, 0, 1, -1], [0, 0, 0, 0, 1]],
    dtype=np.float64,
)
_MOEBIUS_2 = np.array([[1, -1], [0, 1]], dtype=np.float64)

#: Elements unpacked at a time: the block stays in the second-level cache, and its product is too
#: small for the matrix library to start threads of its own beside ours.
_BLOCK = 1 << 16
#: Integers up to here are exact in single precision.
_EXACT = 1 << 24


@dataclass(frozen=True)
class Profile:
    """What the structure-preserving null needs to know of one mask in one module.

    Attributes:
        mean: [2], mean of the mask and of its signs over all elements.
        second: [3, 4], exact-pattern sums for `SECOND`.
        third: [4, 25], exact-pattern sums for `THIRD`.
    """

    mean: Array
    second: Array
    third: Array


def profile(
    bits: NDArray[np.uint8], signs: NDArray[np.uint8] | None, shape: tuple[int, int]
) -> Profile:
    """Pattern sums of one packed mask (and packed signs, 1 = negative) of shape [o, i]."""
    i = shape[1]
    mean, row_sums, weighted = _sums(bits, signs, shape)
    centred = weighted[:, 1:] - i * mean[:, None] * weighted[:, :1]
    return _pattern_sums(mean, row_sums, weighted[:, 0], centred, shape)


def _sums(
    bits: NDArray[np.uint8], signs: NDArray[np.uint8] | None, shape: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Integer sums over the mask and its signs x: (mean [2], row sums [2, o], weighted [2, 3, i]).

    `weighted` holds Σ_i x_ij, Σ_i r_i x_ij and Σ_i q_i x_ij, where r and q are the row sums of the
    mask and of its signs.
    """
    o, i = shape
    row_sums = np.zeros((2, o))
    weighted = np.zeros((2, 3, i))
    layers = [bits] if signs is None else [bits, bits & signs]
    height = _height(i)
    # No sum over a block exceeds its size, so that single precision holds it exactly.
    exact = np.float32 if height * i <= _EXACT else np.float64
    blocks = np.empty((len(layers), min(height, o), i), dtype=exact)
    for start in range(0, o, height):
        stop = min(start + height, o)
        for block, layer in zip(blocks, layers, strict=True):
            flat = layer[start * i // 8 : -(-stop * i // 8)]
            flat = np.unpackbits(flat, count=(stop - start) * i, bitorder="little")
            np.copyto(block[: stop - start], flat.reshape(-1, i))
        left = np.ones((3, stop - start), dtype=exact)
        left[1] = left[2] = np.einsum("ij->i", blocks[0, : stop - start])
        if signs is not None:
            left[2] -= 2 * np.einsum("ij->i", blocks[1, : stop - start])
        row_sums[:, start:stop] = left[1:]
        for x in range(len(layers)):
            weighted[x] += left @ blocks[x, : stop - start]
    if signs is None:
        row_sums[1] = weighted[:, 2] = 0.0
    else:
        weighted[1] = weighted[0] - 2 * weighted[1]
    return row_sums.sum(axis=1) / (o * i), row_sums, weighted


def _pattern_sums(
    mean: Array, row_sums: Array, column_sums: Array, weighted: Array, shape: tuple[int, int]
) -> Profile:
    o, i = shape
    # Every product of centred mask and signs is c0 + c1·s + c2·m; these are the sums of 1, s, m.
    rows = np.vstack([np.full(o, float(i)), row_sums[1], row_sums[0]])
    columns = np.vstack([np.full(i, float(o)), column_sums[1], column_sums[0]])
    totals = rows.sum(axis=1)
    centred = np.array([[-mean[0], 0.0, 1.0], [-mean[1], 1.0, 0.0]])
    row = centred @ rows  # [2, o]
    column = centred @ columns  # [2, i]
    # bilinear[x, y, z] = Σ_ij x_ij row[y]_i column[z]_j; the constant in x drops out
    bilinear = np.einsum("xyj,zj->xyz", weighted, column)

    second = np.zeros((len(SECOND), 2, 2))
    for n, (u, v) in enumerate(SECOND):
        second[n] = [
            [0.0, column[u] @ column[v]],
            [row[u] @ row[v], _multiply(centred[u], centred[v]) @ totals],
        ]
        second[n] = _MOEBIUS_2 @ second[n] @ _MOEBIUS_2.T

    third = np.zeros((len(THIRD), 5, 5))
    for n, factors in enumerate(THIRD):
        u, v, w = factors
        at_least = third[n]
        at_least[_NONE, _ALL] = np.sum(column[u] * column[v] * column[w])
        at_least[_ALL, _NONE] = np.sum(row[u] * row[v] * row[w])
        at_least[_ALL, _ALL] = _multiply(_multiply(centred[u], centred[v]), centred[w]) @ totals
        for name, (p, q, apart) in _PAIRS.items():
            both = _multiply(centred[factors[p]], centred[factors[q]])
            at_least[name, _ALL] = (both @ columns) @ column[factors[apart]]
            at_least[_ALL, name] = (both @ rows) @ row[factors[apart]]
        for by_row, pair in _PAIRS.items():
            for by_column, other in _PAIRS.items():
                if by_row == by_column:
                    continue  # the third factor stands alone and its centred sum is 0
                (x,) = set(pair[:2]) & set(other[:2])
                (y,) = set(pair[:2]) - {x}
                (z,) = set(other[:2]) - {x}
                at_least[by_row, by_column] = bilinear[factors[x], factors[y], factors[z]]
        third[n] = _MOEBIUS_3 @ at_least @ _MOEBIUS_3.T
    return Profile(mean, second.reshape(len(SECOND), 4), third.reshape(len(THIRD), 25))


def pattern_weights(shape: tuple[int, int]) -> tuple[Array, Array]:
    """1 / ((o)_|P| (i)_|Q|) for the 4 and the 25 patterns; 0 for patterns that do not fit."""
    o, i = shape
    return _weights(o, i, (2, 1)), _weights(o, i, _BLOCKS)


def _weights(o: int, i: int, blocks: tuple[int, ...]) -> Array:
    row = np.array([_falling(o, k) for k in blocks])
    column = np.array([_falling(i, k) for k in blocks])
    ways = np.outer(row, column).ravel()
    return np.divide(1.0, ways, out=np.zeros_like(ways), where=ways > 0)


def _falling(n: int, k: int) -> float:
    return float(np.prod([max(n - step, 0) for step in range(k)], dtype=np.float64))


def _multiply(f: Array, g: Array) -> Array:
    """Product of f0 + f1·s + f2·m and g0 + g1·s + g2·m, using s·s = m, s·m = s, m·m = m."""
    return np.array(
        [
            f[0] * g[0],
            f[0] * g[1] + f[1] * g[0] + f[1] * g[2] + f[2] * g[1],
            f[0] * g[2] + f[2] * g[0] + f[1] * g[1] + f[2] * g[2],
        ]
    )


def _height(i: int) -> int:
    """Rows of a block; eight at least, so that each block starts at a whole byte."""
    return max(8, _BLOCK // max(i, 1) // 8 * 8)
