"""DataInf: influence through an inverse in closed form, made for the factors of LoRA.

Kwon et al. (2024, arXiv 2310.00902). The inverse of a damped mean of rank-one matrices is replaced
by the mean of their inverses, layer by layer:

    (1/n Σ_i g_i g_iᵀ + λI)⁻¹ h  ≈  1/n Σ_i (g_i g_iᵀ + λI)⁻¹ h
                                 =  1/λ (h − 1/n Σ_i ⟨g_i, h⟩ / (λ + ‖g_i‖²) g_i).

Their error bound grows with the number of a layer's parameters, and is small for a low rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from subnet.errors import InputError
from subnet.influence import _processes
from subnet.influence._blocks import (
    Blocks,
    as_float,
    check_choice,
    check_number,
    check_same,
    twice,
)


@dataclass(frozen=True, kw_only=True)
class DataInfSettings:
    """What the scores depend on.

    Attributes:
        damping: λ of every layer; `None` takes `damping_scale` times the layer's mean squared
            gradient, 1/(n·d) Σ_i ‖g_i‖² with d parameters in the layer.
        damping_scale: 0.1, as the authors take it.
        layer: What has a matrix of its own: `"parameter"` (each of LoRA's A and B, as the authors'
            code has it) or `"module"` (A and B of a module together; weight and bias).
    """

    damping: float | None = None
    damping_scale: float = 0.1
    layer: Literal["parameter", "module"] = "parameter"

    def __post_init__(self) -> None:
        for name in ("damping", "damping_scale"):
            if name != "damping" or self.damping is not None:
                check_number(name, getattr(self, name), above=True)
        check_choice("layer", self.layer, ("parameter", "module"))


@dataclass(frozen=True, eq=False)
class DataInf:
    """The approximate inverse at one checkpoint, from the gradients of the training examples.

    Attributes:
        train: Batches of training gradients; gone through once more for each `precondition`.
        settings: As given.
        damping: Layer to λ.
        n_examples: n.
        shared: Whether `train` is this process's share of the examples: `precondition` is then
            called by all processes.
    """

    train: Iterable[Blocks]
    settings: DataInfSettings
    damping: Mapping[str, float]
    n_examples: int
    shared: bool = False

    def precondition(self, blocks: Blocks) -> dict[str, Tensor]:
        """The approximate inverse applied to m gradients: one pass over the training gradients.

        Costs 4·m·n·P operations; give all queries at once.

        Args:
            blocks: Parameter name to [m, *shape].

        Raises:
            InputError: Other parameters than those of the training examples.
        """
        queries = {name: as_float(block).flatten(1) for name, block in blocks.items()}
        removed = {name: torch.zeros_like(block) for name, block in queries.items()}
        for batch in self.train:
            check_same(queries, batch, "the queries", "the training examples")
            for layer, names in self._layers(queries).items():
                flat = {n: as_float(batch[n]).flatten(1).to(queries[n]) for n in names}
                norms = torch.stack([g.square().sum(1) for g in flat.values()]).sum(0)
                products = torch.stack([queries[n] @ flat[n].T for n in names]).sum(0)
                weights = products / (self.damping[layer] + norms)  # [m, n]
                for name, gradient in flat.items():
                    removed[name] += weights @ gradient
        if self.shared:
            removed = _summed(removed)
        found = {}
        for layer, names in self._layers(queries).items():
            for name in names:
                kept = queries[name] - removed[name] / self.n_examples
                found[name] = (kept / self.damping[layer]).reshape(blocks[name].shape)
        return {name: found[name] for name in blocks}

    def to_dict(self) -> dict[str, Any]:
        """Every setting that the scores depend on."""
        return {
            "method": "datainf",
            **asdict(self.settings),
            "damping_by_layer": dict(self.damping),
            "n_examples": self.n_examples,
        }

    def _layers(self, names: Iterable[str]) -> dict[str, list[str]]:
        return _layers(names, self.settings)


def fit_datainf(
    train: Iterable[Blocks], settings: DataInfSettings | None = None, *, shared: bool = False
) -> DataInf:
    """Find the damping of every layer: one pass over the training gradients, which are not kept.

    Args:
        train: Batches of training gradients, that can be gone through again: a list, a store.
        settings: Damping and what a layer is.
        shared: Whether the batches are this process's share of them, in a run of many processes
            that all call this and then `precondition`.

    Raises:
        InputError: There are no examples, the batches can be read only once, or all gradients of
            a layer are zero and `damping` is not given.
    """
    settings = settings or DataInfSettings()
    sums: dict[str, Tensor] = {}  # Σ of squared numbers, and how many they are
    n_examples = 0
    for batch in twice(train):
        if sums:
            check_same(sums, batch, "an earlier batch", "a later one")
        for name, block in batch.items():
            each = as_float(block).double()
            one = torch.stack([each.square().sum(), each.new_tensor(each.numel())])
            sums[name] = sums[name] + one if name in sums else one
        n_examples += len(next(iter(batch.values())))
    if shared:
        sums = _summed(sums)
        n_examples = int(_summed({"n": torch.tensor(n_examples)})["n"])
    if n_examples == 0:
        raise InputError("there are no training examples", expected="at least one")
    damping = {}
    for layer, names in _layers(sums, settings).items():
        if settings.damping is not None:
            damping[layer] = settings.damping
            continue
        total, numbers = torch.stack([sums[name] for name in names]).sum(dim=0).tolist()
        if not total > 0:
            raise InputError(
                f"the gradients of {layer} are zero in every training example",
                expected="gradients to take the damping from",
                fix="leave it out of what is tracked (LoRA's A has none while B is 0), or set "
                "damping",
            )
        damping[layer] = settings.damping_scale * total / numbers
    return DataInf(train, settings, damping, n_examples, shared)


def _summed(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Over all processes; where this one has no examples, on the CPU."""
    return _processes.summed_blocks(parts, torch.device("cpu"))


def _layers(names: Iterable[str], settings: DataInfSettings) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        layer = name
        if settings.layer == "module":
            layer = name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
        found.setdefault(layer, []).append(name)
    return found
