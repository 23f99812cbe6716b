"""The singular vectors of all updates of one module, and their inner products.

A low-rank update ΔW = B A is never multiplied out. The products BᵀB' and AA'ᵀ of all pairs come
from one matrix product per side; everything else is algebra of r×r matrices on them, and depends on
ΔW alone, not on how it was factored. Full-rank updates are read one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from subnet.checkpoint.starts import row_cosines
from subnet.overlap._inputs import WeightUpdate

Array = NDArray[np.float64]

#: Singular values below this fraction of the largest one span no subspace.
RANK_TOLERANCE = 1e-5
#: Dimension of the subspaces of full-rank updates: those of their largest singular values.
DENSE_RANK = 16
#: Most bytes of full-rank updates held at a time.
DENSE_BYTES = 2 << 30

# Up to this width the whole spectrum of a full-rank update costs next to nothing.
_SMALL_SIDE = 256

#: Rows of B that are worked on together, so that the products stay in the cache.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Module:
    """All updates of one module.

    Attributes:
        values: [l] arrays [k], singular values, the largest first; at most `DENSE_RANK` of a
            full-rank update.
        left, right: [n, l, k], the left and the right singular vectors of all updates; zero beyond
            an update's own rank.
        gram_left, gram_right: [l, k, l, k], their products with each other.
        inner: [l, l], ⟨ΔW, ΔW'⟩.
        row_squares: [l, l], Σ over rows of ⟨row of ΔW, row of ΔW'⟩².
        two, four: [l], Σσ² and Σσ⁴ over all singular values.
        effective_rank: [l], NaN for a zero update and where only the largest values are known.
        alike: [l, l], cosine of the factors A row for row, which only a common start makes large;
            None where there are no factors.
    """

    values: tuple[Array, ...]
    left: Array
    right: Array
    gram_left: Array
    gram_right: Array
    inner: Array
    row_squares: Array
    two: Array
    four: Array
    effective_rank: Array
    alike: Array | None = None

    @property
    def ranks(self) -> NDArray[np.int64]:
        """[l], dimension of each subspace; 0 for an update that is zero."""
        return np.array([values.size for values in self.values], dtype=np.int64)


def read_module(updates: Sequence[WeightUpdate], parameter: str, *, seed: int) -> Module:
    """Decompose every update of one parameter, from factors where all have them.

    Left is always the output side, also where the base stores the weight as [input, output].
    """
    transposed = parameter in updates[0].transposed
    if not all(update.is_low_rank for update in updates):
        return _from_dense(updates, parameter, transposed=transposed, seed=seed)
    factors = [update.factors(parameter) for update in updates]
    return _from_factors([(a.T, b.T) for b, a in factors] if transposed else factors)


def _from_factors(factors: Sequence[tuple[Any, Any]]) -> Module:
    outputs = _stacked([_array(b) for b, _ in factors])
    inputs = _stacked([_array(a).T for _, a in factors])
    left, right = _products(outputs), _products(inputs)
    # tr((BᵀB')(A'Aᵀ))
    inner = np.einsum("akbl,akbl->ab", left, right)
    root_left, inverse_left = _square_roots(left)
    root_right, inverse_right = _square_roots(right)
    # B = Q R with R = root, so the singular values of B A are those of the r×r matrix R_B R_Aᵀ
    u, s, vh = np.linalg.svd(root_left @ root_right.transpose(0, 2, 1))
    kept = s > RANK_TOLERANCE * s[:, :1]
    to_left = inverse_left @ u * kept[:, None, :]
    to_right = inverse_right @ vh.transpose(0, 2, 1) * kept[:, None, :]
    values = tuple(row[keep] for row, keep in zip(s, kept, strict=True))
    return Module(
        values,
        _turned(outputs, to_left),
        _turned(inputs, to_right),
        _change_basis(left, to_left),
        _change_basis(right, to_right),
        inner,
        row_squares=_row_squares(outputs, right),
        two=np.array([np.sum(row**2) for row in values]),
        four=np.array([np.sum(row**4) for row in values]),
        effective_rank=np.array([effective_rank(row) for row in values]),
        alike=row_cosines(right),
    )


def _stacked(factors: Sequence[NDArray[Any]]) -> Array:
    """[n, l, r] of factors [n, r], zero-padded to the largest r."""
    r = max(factor.shape[1] for factor in factors)
    stacked = np.zeros((factors[0].shape[0], len(factors), max(r, 1)))
    for at, factor in enumerate(factors):
        stacked[:, at, : factor.shape[1]] = factor
    return stacked


def _products(stacked: Array) -> Array:
    """[l, r, l, r] products of all columns of all factors [n, l, r]: one matrix product."""
    height, count, r = stacked.shape
    flat = stacked.reshape(height, -1)
    return np.asarray(flat.T @ flat).reshape(count, r, count, r)


def _row_squares(outputs: Array, right: Array) -> Array:
    """[l, l], Σ_i (b_iᵀ (AA'ᵀ) b'_i)² over the rows b_i of B, from B [o, l, r] and all AA'ᵀ."""
    height, count, r = outputs.shape
    found = np.zeros((count, count))
    for start in range(0, height, _ROWS_AT_ONCE):
        part = outputs[start : start + _ROWS_AT_ONCE]
        for a in range(count):
            own = np.ascontiguousarray(part[:, a])
            turned = own @ right[a, :, a:].reshape(r, -1)  # [o, (l − a)·r]
            rows = np.einsum("olr,olr->ol", turned.reshape(len(part), -1, r), part[:, a:])
            found[a, a:] += np.einsum("ol,ol->l", rows, rows)
    return np.triu(found) + np.triu(found, 1).T


def _turned(stacked: Array, to: Array) -> Array:
    """The columns of B_l T_l, [n, l, k], from all B [n, l, r] and T [l, r, k]."""
    return np.stack([stacked[:, at] @ turn for at, turn in enumerate(to)], axis=1)


def _square_roots(products: Array) -> tuple[Array, Array]:
    """R [l, r, r] with RᵀR = BᵀB, and its pseudo-inverse: B times that is orthonormal.

    float64 products of float32 factors leave directions down to 1e-6 of the largest intact.
    """
    own = products[np.arange(len(products)), :, np.arange(len(products)), :]
    eigenvalues, vectors = np.linalg.eigh(own)
    kept = eigenvalues > 1e-13 * eigenvalues[:, -1:]
    root = np.sqrt(np.where(kept, eigenvalues, 0.0))
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=kept & (root > 0))
    return root[:, :, None] * vectors.transpose(0, 2, 1), vectors * inverse[:, None, :]


def _change_basis(products: Array, to: Array) -> Array:
    """Products of the columns of B_l T_l, from those of the columns of B_l."""
    blocks = products.transpose(0, 2, 1, 3)
    return np.asarray((to.transpose(0, 2, 1)[:, None] @ blocks @ to[None]).transpose(0, 2, 1, 3))


def effective_rank(values: Array) -> float:
    """exp(entropy) of the normalised singular values (Roy and Vetterli 2007); NaN for none.

    Example:
        >>> float(round(effective_rank(np.array([2.0, 2.0, 2.0])), 6))
        3.0
    """
    return float(np.exp(special.entr(values / values.sum()).sum())) if values.size else float("nan")


def _from_dense(
    updates: Sequence[WeightUpdate], parameter: str, *, transposed: bool, seed: int
) -> Module:
    """Inner products block by block, so that memory does not grow with the number of languages."""

    def read(update: WeightUpdate) -> Tensor:
        matrix = torch.as_tensor(update.dense(parameter)).detach()
        matrix = matrix.reshape(matrix.shape[0], -1)
        return matrix.T if transposed else matrix

    n = len(updates)
    inner, row_squares = np.zeros((n, n)), np.zeros((n, n))
    decomposed: list[tuple[Array, Array, Array]] = []
    four, ranks = np.zeros(n), np.zeros(n)

    def compare(a: int, b: int, ours: Tensor, theirs: Tensor) -> None:
        rows = torch.sum(ours * theirs, dim=1, dtype=torch.float64)
        inner[a, b] = inner[b, a] = float(rows.sum())
        row_squares[a, b] = row_squares[b, a] = float(rows.square().sum())

    start = 0
    while start < n:
        block = [read(updates[start])]
        fits = max(1, DENSE_BYTES // (block[0].numel() * block[0].element_size()))
        block += [read(update) for update in updates[start + 1 : start + fits]]
        for at, ours in enumerate(block, start):
            leading, ranks[at] = _leading(ours, seed)
            decomposed.append(leading)
            four[at] = _sum_of_fourth_powers(ours)
            for other, theirs in enumerate(block[at - start :], at):
                compare(at, other, ours, theirs)
        for other in range(start + len(block), n):
            theirs = read(updates[other])
            for at, ours in enumerate(block, start):
                compare(at, other, ours, theirs)
        start += len(block)
    left, values, right = zip(*decomposed, strict=True)
    lefts, rights = _stacked(left), _stacked(right)
    return Module(
        values,
        lefts,
        rights,
        _products(lefts),
        _products(rights),
        inner,
        row_squares,
        two=np.diagonal(inner).copy(),
        four=four,
        effective_rank=ranks,
    )


def _leading(matrix: Tensor, seed: int) -> tuple[tuple[Array, Array, Array], float]:
    """Largest singular values of a dense matrix with their vectors, and its effective rank."""
    k = min(DENSE_RANK, *matrix.shape)
    if min(matrix.shape) <= _SMALL_SIDE:
        u, s, vh = np.linalg.svd(_array(matrix).astype(np.float64), full_matrices=False)
        v = vh.T
        rank = effective_rank(s[: _numerical_rank(s)])
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            u, s, v = map(_array, torch.svd_lowrank(matrix, q=2 * k, niter=4))
        rank = float("nan")
    k = min(k, _numerical_rank(s))
    return (u[:, :k], s[:k], v[:, :k]), rank


def _sum_of_fourth_powers(matrix: Tensor) -> float:
    """Σσ⁴ = ‖ΔW ΔWᵀ‖² on the smaller side."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return float((small @ small.T).double().square().sum())


def _numerical_rank(values: Array) -> int:
    return int((values > RANK_TOLERANCE * values[:1]).sum())


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(torch.as_tensor(value).detach().numpy())
