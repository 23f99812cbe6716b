"""Random projections of gradients: the same on every device and in every process.

Every entry is ±1 with a sign of its own from a counter-based generator: Philox (Salmon et al.
2011), keyed by seed and name, the counter set by the row. Row r is therefore the same whatever
the dimension, so that a smaller projection is the first rows of a larger one (but for the scale
1/√k), and any rows can be made without those before them. Inner products are kept in expectation,
E⟨Px, Py⟩ = ⟨x, y⟩, with an error that shrinks as 1/√k (Johnson and Lindenstrauss 1984; Achlioptas
2003).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from subnet._statistics import bootstrap_interval
from subnet.errors import InputError
from subnet.influence._blocks import Blocks, Factors, as_float

#: Signs that are unpacked at once: 16 MB in float32.
_CHUNK = 1 << 22
#: Packed signs that a projection keeps for the next batch: 256 MB.
_KEEP = 1 << 28


@dataclass
class _Signs:
    """Rows of signs, made once where they fit."""

    kept: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    size: int = 0

    def rows(self, key: str, seed: int, start: int, stop: int, width: int) -> Tensor:
        """[rows, ⌈width / 8⌉] bytes of signs, on the CPU."""
        name = (f"{seed} {key} {width}", start, stop)
        found = self.kept.get(name)
        if found is None:
            found = torch.from_numpy(packed_signs(key, seed, start, stop, width))
            if self.size + found.numel() <= _KEEP:
                self.kept[name] = found
                self.size += found.numel()
        return found

    def matrix(self, key: str, seed: int, n: int, width: int, like: Tensor) -> Iterator[Tensor]:
        """The first n rows as ±1, a few at a time, in the type and on the device of `like`."""
        step = max(1, _CHUNK // max(1, width))
        for start in range(0, n, step):
            packed = self.rows(key, seed, start, min(n, start + step), width).to(like.device)
            bits = torch.arange(8, dtype=torch.uint8, device=like.device)
            signs = (packed[:, :, None] >> bits & 1).flatten(1)[:, :width]
            yield signs.to(like.dtype).mul_(2).sub_(1)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Projects the gradient of all parameters together to k numbers: P g / √k.

    Costs 2kP operations per example, P parameters; `TwoSidedProjection` costs less than the
    gradient itself.

    Attributes:
        dimension: k.
        seed: Seed of the signs.
    """

    dimension: int
    seed: int = 0
    _signs: _Signs = field(default_factory=_Signs, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check("dimension", self.dimension, 1)
        _check("seed", self.seed, 0)

    def project(self, blocks: Blocks) -> Tensor:
        """Project per-example gradients.

        Each parameter has signs of its own, by its name: the sum over parameters is one projection
        of the whole gradient.

        Args:
            blocks: Parameter name to [n, *shape].

        Returns:
            [n, k].
        """
        if not blocks:
            raise InputError("there is no gradient to project")
        total: Tensor | None = None
        for name in sorted(blocks):
            flat = as_float(blocks[name]).flatten(1)  # [n, p]
            rows = self._signs.matrix(name, self.seed, self.dimension, flat.shape[1], flat)
            part = torch.cat([flat @ signs.T for signs in rows], dim=1)
            total = part if total is None else total.add_(part.to(total.device))
        assert total is not None  # noqa: S101 - there is at least one block
        return total / math.sqrt(self.dimension)

    def to_dict(self) -> dict[str, Any]:
        """Every setting that the scores depend on."""
        return {"projection": "rademacher", "dimension": self.dimension, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class TwoSidedProjection:
    """Projects inputs and output gradients of linear modules before they are multiplied.

    With P_a [k_i, i] and P_g [k_o, o] the gradient G = Σ_t g_t a_tᵀ becomes P_g G P_aᵀ without
    having been formed: 2t(i·k_i + o·k_o + k_i·k_o) operations per example instead of 2t·o·i
    (LoGra: Choe et al. 2024, arXiv 2405.13954). A side no wider than its k is left as
    it is.

    Attributes:
        inputs: k_i.
        outputs: k_o.
        seed: Seed of the signs.
    """

    inputs: int
    outputs: int
    seed: int = 0
    _signs: _Signs = field(default_factory=_Signs, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check("inputs", self.inputs, 1)
        _check("outputs", self.outputs, 1)
        _check("seed", self.seed, 0)

    def project(self, factors: Factors, bias: Collection[str] = ()) -> dict[str, Tensor]:
        """Projected gradients of every module's weight.

        Args:
            factors: Module name to inputs [n, t, i] and output gradients [n, t, o].
            bias: Modules whose bias is part of the gradient, as an input that is always 1.

        Returns:
            Module name to [n, k_o, k_i] (o or i where that is smaller).
        """
        found = {}
        for name, (given, delta) in factors.items():
            given, delta = as_float(given), as_float(delta)
            if name in bias:
                given = torch.cat([given, torch.ones_like(given[..., :1])], dim=-1)
            left = self._side(f"{name} outputs", delta, self.outputs)
            right = self._side(f"{name} inputs", given, self.inputs)
            found[name] = left.transpose(1, 2) @ right
        return found

    def project_gradients(self, blocks: Blocks) -> dict[str, Tensor]:
        """The same of gradients that were made already.

        Args:
            blocks: Module name to [n, o, i], a bias as the last of its columns.

        Returns:
            Module name to [n, k_o, k_i] (o or i where that is smaller).
        """
        found = {}
        for name, block in blocks.items():
            left = self._side(f"{name} outputs", as_float(block).transpose(1, 2), self.outputs)
            found[name] = self._side(f"{name} inputs", left.transpose(1, 2), self.inputs)
        return found

    def _side(self, key: str, values: Tensor, k: int) -> Tensor:
        width = values.shape[-1]
        if width <= k:
            return values
        rows = self._signs.matrix(key, self.seed, k, width, values)
        return torch.cat([values @ signs.T for signs in rows], dim=-1) / math.sqrt(k)

    def to_dict(self) -> dict[str, Any]:
        """Every setting that the scores depend on."""
        return {
            "projection": "two-sided rademacher",
            "inputs": self.inputs,
            "outputs": self.outputs,
            "seed": self.seed,
        }


def packed_signs(key: str, seed: int, start: int, stop: int, width: int) -> NDArray[np.uint8]:
    """Rows `start` to `stop` of the signs that belong to a name and a seed.

    Returns:
        [rows, ⌈width / 8⌉], eight signs in a byte, the least significant bit first; 1 means +1.
    """
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest()
    words = math.ceil(width / 64)
    rows = np.empty((stop - start, words), dtype="<u8")
    philox = np.random.Philox(key=int.from_bytes(digest, "little"))
    state = philox.state
    for row in range(start, stop):
        state["state"]["counter"][:] = (0, 0, row, 0)  # 2¹²⁸ draws before it meets the next row
        state["buffer_pos"] = 4  # nothing drawn is left over
        philox.state = state
        rows[row - start] = philox.random_raw(words)
    return rows.view(np.uint8)[:, : math.ceil(width / 8)].copy()


@dataclass(frozen=True)
class Fidelity:
    """How well projected scores keep the order of the exact ones.

    Attributes:
        value: Mean over seeds of the rank correlation (Spearman), itself the mean over test
            examples of the correlation over training examples.
        ci_low, ci_high: Bootstrap interval over seeds; NaN with fewer than two.
        by_seed: The value of each seed.
        n_undefined: Test examples left out because all their exact scores are equal.
    """

    value: float
    ci_low: float
    ci_high: float
    by_seed: tuple[float, ...]
    n_undefined: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def fidelity(exact: ArrayLike, projected: Iterable[ArrayLike], *, seed: int = 0) -> Fidelity:
    """Rank correlation of projected scores with exact ones, over seeds of the projection.

    Args:
        exact: [m, n], test examples × training examples.
        projected: One [m, n] per seed of the projection.
        seed: Seed of the bootstrap.

    Raises:
        InputError: Shapes differ, there are fewer than two training examples, there is no seed,
            or every row of the exact scores is constant.
    """
    truth = np.atleast_2d(np.asarray(exact, dtype=np.float64))
    if truth.shape[1] < 2:
        raise InputError("one training example has no rank", expected="two or more")
    defined = np.ptp(truth, axis=1) > 0
    if not defined.any():
        raise InputError("the exact scores of every test example are all equal: they have no ranks")
    ranks = _centred_ranks(truth[defined])
    values = []
    for scores in projected:
        found = np.atleast_2d(np.asarray(scores, dtype=np.float64))
        if found.shape != truth.shape:
            raise InputError(
                f"projected scores are of shape {list(found.shape)}",
                expected=f"{list(truth.shape)}, as the exact ones",
            )
        values.append(_mean_correlation(ranks, _centred_ranks(found[defined])))
    if not values:
        raise InputError("there are no projected scores", expected="one matrix per seed")
    low, high = bootstrap_interval(values, seed=seed)
    return Fidelity(float(np.mean(values)), low, high, tuple(values), int((~defined).sum()))


def _centred_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    ranks: NDArray[np.float64] = np.asarray(rankdata(scores, axis=1), dtype=np.float64)
    ranks -= ranks.mean(axis=1, keepdims=True)
    return ranks


def _mean_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """A row of the second that is constant says nothing of the order: 0."""
    norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    products = (one * other).sum(axis=1)
    return float(np.mean(np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)))


def _check(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}", expected=f"a whole number, {least} or more")
