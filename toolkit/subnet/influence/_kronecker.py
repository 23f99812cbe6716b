"""Sums, eigenvectors and solutions of one Kronecker-factored curvature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subnet.errors import InputError
from subnet.influence import _processes

#: Numbers of per-example gradients that are held at once: 16 MB in float32.
_CHUNK = 1 << 22

#: Module name, inputs [n, t, i], output gradients [n, t, o], which positions count [n, t] (or all).
Stream = Iterable[tuple[str, Tensor, Tensor, Tensor | None]]


@dataclass
class Covariances:
    """Sums over positions of one module, float64.

    Attributes:
        inputs: Σ a aᵀ, [i, i].
        outputs: Σ g gᵀ, [o, o].
        n_tokens: Positions that counted.
        n_examples: Examples.
    """

    inputs: Tensor
    outputs: Tensor
    n_tokens: int = 0
    n_examples: int = 0


@dataclass(frozen=True, eq=False)
class Kronecker:
    """U_g ⊗ U_a and what stands along it.

    Attributes:
        inputs: U_a, [i, i], eigenvectors in columns, float64.
        outputs: U_g, [o, o].
        eigenvalues: Λ, [o, i], none below 0.
        n_tokens: Positions that the covariances are over.
    """

    inputs: Tensor
    outputs: Tensor
    eigenvalues: Tensor
    n_tokens: int

    def solve(self, gradient: Tensor, damping: float) -> Tensor:
        """U_g [(U_gᵀ G U_a) / (Λ + λ)] U_aᵀ of every example; G [n, o, i], in its own type."""
        left, right = self.outputs.to(gradient), self.inputs.to(gradient)
        shrink = (1 / (self.eigenvalues + damping)).to(gradient)
        return left @ (left.T @ gradient @ right * shrink) @ right.T


def covariances(stream: Stream) -> dict[str, Covariances]:
    """Σ a aᵀ and Σ g gᵀ of every module, over the positions that count.

    Raises:
        InputError: A factor is not finite, or two do not fit together.
    """
    found: dict[str, Covariances] = {}
    for name, given, delta, counted in stream:
        if given.ndim != 3 or given.shape[:2] != delta.shape[:2]:
            raise InputError(
                f"{name} has inputs {list(given.shape)} and output gradients {list(delta.shape)}",
                expected="[n, t, i] and [n, t, o]",
            )
        total = found.get(name)
        if total is None:
            total = found[name] = Covariances(_square_of(given), _square_of(delta))
        rows, columns = given.flatten(0, 1), delta.flatten(0, 1)
        if counted is not None:
            rows, columns = rows[counted.flatten()], columns[counted.flatten()]
        if not bool(rows.isfinite().all() and columns.isfinite().all()):
            raise InputError(
                f"an input or a gradient of {name} is not finite",
                expected="finite losses",
                fix="look at the losses; half precision may have overflowed",
            )
        total.inputs += (rows.T @ rows).double()
        total.outputs += (columns.T @ columns).double()
        total.n_tokens += len(rows)
        total.n_examples += len(given)
    return found


def summed_covariances(found: Mapping[str, Covariances]) -> dict[str, Covariances]:
    """The sums over all processes, in each of them."""
    parts: dict[str, Tensor] = {}
    for name, total in found.items():
        parts[f"inputs {name}"], parts[f"outputs {name}"] = total.inputs, total.outputs
        parts[f"counts {name}"] = torch.tensor([total.n_tokens, total.n_examples])
    whole = _summed(parts)
    names = [key.removeprefix("counts ") for key in whole if key.startswith("counts ")]
    return {
        name: Covariances(
            whole[f"inputs {name}"],
            whole[f"outputs {name}"],
            *map(int, whole[f"counts {name}"]),
        )
        for name in names
    }


def shared_eigenbases(sums: Mapping[str, Covariances], scale: str) -> dict[str, Kronecker]:
    """The eigenbasis of every module, each made by one process and then known to all.

    Eigenvectors of equal eigenvalues are no two computers' the same, and what is summed along them
    has to be summed along the same ones.
    """
    own = {name: eigenbasis(sums[name], scale) for name in _processes.own_parts(list(sums))}
    parts: dict[str, Tensor] = {}
    for name, total in sums.items():
        o, i = len(total.outputs), len(total.inputs)
        basis = own.get(name)
        parts[f"inputs {name}"] = total.inputs.new_zeros(i, i) if basis is None else basis.inputs
        parts[f"outputs {name}"] = total.outputs.new_zeros(o, o) if basis is None else basis.outputs
        parts[f"products {name}"] = (
            total.inputs.new_zeros(o, i) if basis is None else basis.eigenvalues
        )
    whole = _summed(parts)
    return {
        name: Kronecker(
            whole[f"inputs {name}"],
            whole[f"outputs {name}"],
            whole[f"products {name}"],
            total.n_tokens,
        )
        for name, total in sums.items()
    }


def eigenbasis(total: Covariances, scale: str) -> Kronecker:
    """Eigenvectors of both covariances, and the products of their eigenvalues.

    Args:
        total: Sums over tokens.
        scale: `"token"`: E[ggᵀ] ⊗ E[aaᵀ]; `"example"`: times the tokens per example.
    """
    n = max(1, total.n_tokens)
    inputs, vectors_in = torch.linalg.eigh(total.inputs / n)
    outputs, vectors_out = torch.linalg.eigh(total.outputs / n)
    products = torch.outer(outputs.clamp(min=0), inputs.clamp(min=0))
    if scale == "example":
        products = products * (total.n_tokens / total.n_examples)
    return Kronecker(vectors_in, vectors_out, products, total.n_tokens)


def variances(
    stream: Stream, bases: Mapping[str, Kronecker], *, shared: bool = False
) -> dict[str, Kronecker]:
    """The bases with E[(U_gᵀ G U_a)²] for eigenvalues: the mean over examples of each's own.

    Args:
        stream: Factors of examples.
        bases: Module name to its eigenvectors.
        shared: Whether the stream is this process's share of the examples.
    """
    sums = {name: torch.zeros_like(basis.eigenvalues) for name, basis in bases.items()}
    counts = dict.fromkeys(bases, 0)
    for name, given, delta, _ in stream:
        basis = bases[name]
        inner, outer = basis.inputs.to(given), basis.outputs.to(delta)
        counts[name] += len(given)
        t, o, i = given.shape[1], delta.shape[2], given.shape[2]
        if t == 1:  # the square of g aᵀ factorises
            squares = (delta[:, 0] @ outer).square().T @ (given[:, 0] @ inner).square()
            sums[name] += squares.double()
            continue
        # Turned are either the tokens' factors or the gradients, whichever is less work.
        by_token = t * (i * i + o * o) < o * i * (i + o)
        if by_token:
            given, delta = given @ inner, delta @ outer
        step = max(1, _CHUNK // sums[name].numel())
        for start in range(0, len(given), step):
            part = slice(start, start + step)
            gradient = delta[part].transpose(1, 2) @ given[part]  # [n, o, i]
            gradient = gradient if by_token else outer.T @ gradient @ inner
            sums[name] += gradient.square_().sum(0).double()
    if shared:
        sums = _summed(sums)
        counts = {k: int(n) for k, n in _summed(
            {name: torch.tensor(count) for name, count in counts.items()}
        ).items()}  # fmt: skip
    return {
        name: replace(basis, eigenvalues=sums[name] / max(1, counts[name]))
        for name, basis in bases.items()
    }


def _summed(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Over all processes; where this one has no examples, on the CPU."""
    return _processes.summed_blocks(parts, torch.device("cpu"))


def _square_of(values: Tensor) -> Tensor:
    width = values.shape[-1]
    return torch.zeros(width, width, dtype=torch.float64, device=values.device)
