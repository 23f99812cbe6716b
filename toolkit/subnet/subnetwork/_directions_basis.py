"""The singular directions of an update in one module, on the output or on the input side.

Singular vectors of equal singular values are not determined: any rotation among them is as good. Of
nearly equal ones a little noise decides, and a direction that two languages have in common comes
out mixed with one that they do not. Where another language holds directions of such a block, its
directions are therefore turned to those that lie as fully inside or outside the other languages'
subspaces as they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from subnet.checkpoint import Update

Array = NDArray[np.float64]

#: Singular values below this fraction of the largest one span no direction.
RANK_TOLERANCE = 1e-5

# Up to this width the whole spectrum of an update without factors costs next to nothing.
_SMALL_SIDE = 256
_SWEEPS = 30


@dataclass(frozen=True)
class Basis:
    """The directions of one update in one module.

    Attributes:
        vectors: [n, k], orthonormal.
        values: [k], ‖ΔWᵀu‖ of each: the singular value, the largest first within a block.
        block: [k], equal for the directions of one block: those of nearly equal singular values
            as read, those that were turned together once aligned.
        square: ‖ΔW‖²_F, of what was left out too.
    """

    vectors: Array
    values: Array
    block: NDArray[np.int64]
    square: float

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.values.size


def read_basis(
    update: Update,
    parameter: str,
    *,
    side: str,
    energy: float,
    ties: float,
    dense_rank: int,
    seed: int,
) -> Basis:
    """The leading singular vectors that hold a share of the energy Σσ²; none of a zero update.

    Args:
        update: Of one language.
        parameter: A key of its `shapes`.
        side: `"left"` (outputs, also where the base stores [input, output]) or `"right"`.
        energy: Share of Σσ². A block of nearly equal singular values is kept whole.
        ties: Neighbouring singular values that differ by less than this share are in one block.
        dense_rank: Most directions where ΔW has no factors.
        seed: Of the sketch of a large ΔW without factors.
    """
    transposed = parameter in update.transposed
    if update.is_low_rank:
        left, right = (_array(factor) for factor in update.factors(parameter))
        outputs, inputs = (right.T, left) if transposed else (left, right.T)
        first, second = (outputs, inputs) if side == "left" else (inputs, outputs)
        vectors, values = thin_svd(first, second)
        square = float(np.sum(values**2))
    else:
        matrix = update.dense(parameter)
        matrix = matrix.reshape(matrix.shape[0], -1)
        turned = matrix.T if transposed == (side == "left") else matrix
        vectors, values, square = _leading(turned, dense_rank, seed)
    kept = values > RANK_TOLERANCE * values[:1]
    vectors, values = vectors[:, kept], values[kept]
    block = _blocks(values, ties)
    if values.size and energy < 1:
        last = int(np.searchsorted(np.cumsum(values**2), energy * square))
        within = block <= block[min(last, values.size - 1)]
        vectors, values, block = vectors[:, within], values[within], block[within]
    return Basis(vectors, values, block, square)


def thin_svd(first: Array, second: Array) -> tuple[Array, Array]:
    """Left singular vectors [n, k] and singular values [k] of first @ second.T, never formed.

    With first = Q R and second = P S they are Q times those of the small R Sᵀ.

    Args:
        first: [n, r].
        second: [m, r].
    """
    q, r = np.linalg.qr(first)
    u, values, _ = np.linalg.svd(r @ np.linalg.qr(second)[1].T, full_matrices=False)
    return q @ u, values


def align(bases: Sequence[Basis], least: float) -> list[Basis]:
    """Turn the directions of a block towards what the other languages have of it, and lack.

    Of the matrices Bᵀ P_m B, P_m the projection on language m's directions, those of all m that
    hold enough of some direction of the block B are diagonalised together (Jacobi rotations,
    Cardoso and Souloumiac 1996). The subspace of a block stays. Where no language holds enough, the
    singular vectors stay, each a block of its own from then on.

    Args:
        bases: Of all languages, in one module.
        least: What is enough, as a part of a direction.
    """
    vectors = np.concatenate([basis.vectors for basis in bases], axis=1)
    owner = np.repeat(np.arange(len(bases)), [basis.rank for basis in bases])
    return [_align(basis, vectors, owner, at, least) for at, basis in enumerate(bases)]


def _align(basis: Basis, vectors: Array, owner: NDArray[np.int64], at: int, least: float) -> Basis:
    turned, values = basis.vectors.copy(), basis.values.copy()
    block = np.arange(basis.rank)
    others = [m for m in np.unique(owner) if m != at]
    numbers, sizes = np.unique(basis.block, return_counts=True)
    for number in numbers[sizes > 1] if others else ():
        own = np.flatnonzero(basis.block == number)
        products = basis.vectors[:, own].T @ vectors
        parts = [products[:, owner == m] for m in others]
        inside = np.stack([part @ part.T for part in parts])
        inside = inside[np.linalg.eigvalsh(inside)[:, -1] >= least]
        if not len(inside):
            continue
        rotation = joint_rotation(inside)
        # of u = Σ v_k u_k with weights v: ‖ΔWᵀu‖² = Σ v_k² σ_k²
        lengths = np.sqrt(basis.values[own] ** 2 @ rotation**2)
        order = np.argsort(-lengths, kind="stable")
        turned[:, own] = basis.vectors[:, own] @ rotation[:, order]
        values[own] = lengths[order]
        block[own] = own[0]
    return Basis(turned, values, block, basis.square)


def joint_rotation(matrices: Array) -> Array:
    """The rotation V [b, b] that makes all Vᵀ C V as diagonal as one rotation can.

    Args:
        matrices: [m, b, b], symmetric.
    """
    c = matrices.copy()
    width = c.shape[1]
    rotation = np.eye(width)
    for _ in range(_SWEEPS):
        largest = 0.0
        for p in range(width):
            for q in range(p + 1, width):
                across, off = c[:, p, p] - c[:, q, q], 2 * c[:, p, q]
                # Σ (across cos 2θ + off sin 2θ)² is largest where 4θ is the angle of this vector
                cosine, sine = across @ across - off @ off, 2 * (across @ off)
                if np.hypot(cosine, sine) < 1e-20:
                    continue
                angle = np.arctan2(sine, cosine) / 4
                largest = max(largest, abs(float(angle)))
                turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                c[:, :, [p, q]] = c[:, :, [p, q]] @ turn
                c[:, [p, q], :] = turn.T @ c[:, [p, q], :]
                rotation[:, [p, q]] = rotation[:, [p, q]] @ turn
        if largest < 1e-8:
            break
    return rotation


def _blocks(values: Array, ties: float) -> NDArray[np.int64]:
    """[k], numbers of the runs in which each value is within a share of the one before it."""
    apart = values[1:] < (1 - ties) * values[:-1] if ties else np.ones(values[1:].shape, dtype=bool)
    return np.concatenate([np.zeros(values[:1].shape), np.cumsum(apart)]).astype(np.int64)


def _leading(matrix: Any, k: int, seed: int) -> tuple[Array, Array, float]:
    """At most k left singular vectors and values of a dense matrix, and its squared norm."""
    import torch

    square = float(matrix.double().square().sum())
    k = min(k, *matrix.shape)
    if min(matrix.shape) <= _SMALL_SIDE:
        u, values, _ = np.linalg.svd(_array(matrix), full_matrices=False)
        return u[:, :k], values[:k], square
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = torch.svd_lowrank(matrix, q=min(2 * k, *matrix.shape), niter=8)
    return _array(found[0])[:, :k], _array(found[1])[:k], square


def _array(tensor: Any) -> Array:
    return np.asarray(tensor.detach().numpy(), dtype=np.float64)
