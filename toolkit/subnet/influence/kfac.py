"""K-FAC and EK-FAC: influence through a Kronecker-factored curvature of linear modules.

For a module with inputs a (1 appended where its bias is tracked) and output gradients g, the Fisher
information of its weight is F = E[vec(G) vec(G)ᵀ] with G = Σ_t g_t a_tᵀ. K-FAC (Martens and Grosse
2015, arXiv 1503.05671) takes E[g gᵀ] ⊗ E[a aᵀ] for it. EK-FAC (George et al. 2018, arXiv
1806.03884; for influence Grosse et al. 2023, arXiv 2308.03296) keeps the eigenvectors U_g, U_a of
the two and puts the true variance along each, Λ_ij = E[(U_gᵀ G U_a)²_ij], in the place of the
eigenvalues.
Modules are independent of each other. A score is ⟨h, (F + λI)⁻¹ g⟩.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subnet.errors import InputError, MissingInputError
from subnet.influence._blocks import (
    Blocks,
    Factors,
    as_float,
    check_choice,
    check_number,
    check_whole,
    twice,
)
from subnet.influence._kronecker import (
    Kronecker,
    covariances,
    eigenbasis,
    shared_eigenbases,
    summed_covariances,
    variances,
)
from subnet.influence._labels import sample_labels
from subnet.influence.collecting import Collected
from subnet.influence.methods import Collect


@dataclass(frozen=True, kw_only=True)
class CurvatureSettings:
    """What the curvature depends on beside model and data.

    Attributes:
        method: `"ekfac"` or `"kfac"`.
        labels: `"true"`: gradients at the examples' labels (the empirical Fisher); `"model"`: at
            labels drawn from the model's own predictions (an estimate of the Fisher information,
            which is the Gauss–Newton matrix of a cross-entropy).
        tokens: Positions that count in the covariances: `"active"`, those whose output gradient is
            not zero (never padding, and of a layer that feeds one token's classifier only that
            token); `"mask"`, those of the attention mask; `"all"`, padding too.
        scale: K-FAC's curvature is of one `"example"` (the product of covariances per token, times
            tokens per example), or of one `"token"` (without that factor). The same where a module
            sees one token per example. EK-FAC is of one example always.
        damping: λ of every module; `None` takes `damping_scale` times the module's mean eigenvalue.
        damping_scale: 0.1, as Grosse et al. and kronfluence take it.
        seed: Seed of drawn labels.
    """

    method: Literal["ekfac", "kfac"] = "ekfac"
    labels: Literal["true", "model"] = "true"
    tokens: Literal["active", "mask", "all"] = "active"
    scale: Literal["example", "token"] = "example"
    damping: float | None = None
    damping_scale: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("method", ("ekfac", "kfac")),
            ("labels", ("true", "model")),
            ("tokens", ("active", "mask", "all")),
            ("scale", ("example", "token")),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name in ("damping", "damping_scale"):
            if name != "damping" or self.damping is not None:
                check_number(name, getattr(self, name))
        check_whole("seed", self.seed, 0)


@dataclass(frozen=True, eq=False)
class FactorBatch:
    """Factors of a batch of examples.

    Attributes:
        factors: Module name to inputs [n, t, i] and output gradients [n, t, o] of the sum over
            examples of each example's loss.
        mask: [n, t], true (or not 0) where a token stands: for every module that sees t positions;
            or module name to its mask.
    """

    factors: Factors
    mask: Tensor | Mapping[str, Tensor] | None = None

    def mask_of(self, name: str) -> Tensor | None:
        """[n, t] of a module; none where it sees other positions."""
        if self.mask is None or not isinstance(self.mask, Tensor):
            return None if self.mask is None else self.mask.get(name)
        return self.mask if self.mask.shape == self.factors[name][0].shape[:2] else None


@dataclass(frozen=True, eq=False)
class Curvature:
    """The damped curvature of every module.

    Attributes:
        modules: Module name to its eigenvectors and eigenvalues.
        damping: Module name to λ.
        settings: As given.
        bias: Modules whose bias is part of their curvature.
        transposed: Modules whose weight is stored as [input, output].
        n_examples: Examples that it was fitted on.
    """

    modules: Mapping[str, Kronecker]
    damping: Mapping[str, float]
    settings: CurvatureSettings
    bias: frozenset[str]
    transposed: frozenset[str]
    n_examples: int

    def precondition(self, blocks: Blocks) -> dict[str, Tensor]:
        """(F + λI)⁻¹ g of every example.

        Args:
            blocks: `<module>.weight` to [n, o, i] ([n, i, o] where transposed), and
                `<module>.bias` to [n, o] where the curvature has it.

        Raises:
            MissingInputError: A parameter is of no module that was fitted.
            InputError: A weight comes without the bias that was fitted with it, or the reverse.
        """
        found: dict[str, Tensor] = {}
        for name in blocks:
            if name in found:
                continue
            module = name.rpartition(".")[0]
            if module not in self.modules:
                raise MissingInputError(
                    f"there is no curvature of {name}: it is of no linear module that was fitted",
                    expected=f"parameters of {len(self.modules)} modules, such as "
                    f"{next(iter(self.modules))}",
                    fix="leave the parameter out of those that are tracked",
                )
            weight, bias = f"{module}.weight", f"{module}.bias"
            has_bias = module in self.bias
            if weight not in blocks or has_bias != (bias in blocks):
                raise InputError(
                    f"the gradients of {module} are "
                    f"{' and '.join(n for n in (weight, bias) if n in blocks)}",
                    expected=f"{weight}{f' and {bias}' if has_bias else ''}, as was fitted",
                )
            gradient = as_float(blocks[weight])
            if module in self.transposed:
                gradient = gradient.transpose(1, 2)
            if has_bias:
                gradient = torch.cat([gradient, as_float(blocks[bias])[:, :, None]], dim=2)
            solved = self.modules[module].solve(gradient, self.damping[module])
            if has_bias:
                found[bias] = solved[:, :, -1]
                solved = solved[:, :, :-1]
            found[weight] = solved.transpose(1, 2) if module in self.transposed else solved
        return {name: found[name] for name in blocks}

    def to_dict(self) -> dict[str, Any]:
        """Every setting that the scores depend on."""
        return {
            **asdict(self.settings),
            "damping_by_module": dict(self.damping),
            "bias": sorted(self.bias),
            "n_examples": self.n_examples,
        }


def fit_curvature(
    batches: Iterable[FactorBatch | Factors],
    settings: CurvatureSettings | None = None,
    *,
    bias: Collection[str] = (),
    transposed: Collection[str] = (),
    shared: bool = False,
) -> Curvature:
    """Fit the curvature of linear modules, among them LoRA's factors, to training examples.

    EK-FAC goes through the batches twice: covariances, then the variance of each example's gradient
    along the eigenvectors. Sums and eigenvectors are in float64.

    Args:
        batches: Factors, that can be gone through again: a list, or `FactorStream`. With
            `labels="model"` they are of drawn labels, which `FactorStream` sees to.
        settings: Method, labels, tokens, damping.
        bias: Modules whose bias is tracked.
        transposed: Modules whose weight is stored as [input, output] (`Conv1D` of GPT-2).
        shared: Whether the batches are this process's share of them, in a run of many processes
            that all call this: sums are then over all of them, and each process finds the
            eigenvectors of some modules.

    Raises:
        InputError: There are no examples, `tokens="mask"` without a mask, factors that are not
            finite, or a module with no curvature at all and no damping.
    """
    settings = settings or CurvatureSettings()
    biased = frozenset(bias)

    def augmented() -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        for batch in batches:
            found = batch if isinstance(batch, FactorBatch) else FactorBatch(batch)
            for name, (given, delta) in found.factors.items():
                given, delta = as_float(given), as_float(delta)
                if name in biased:
                    given = torch.cat([given, torch.ones_like(given[..., :1])], dim=-1)
                yield name, given, delta, _counted(found, name, delta, settings.tokens)

    if settings.method == "ekfac":
        twice(batches)
    sums = covariances(augmented())
    if shared:
        sums = summed_covariances(sums)
    if not sums:
        raise InputError("there are no examples to fit the curvature on", expected="at least one")
    unknown = sorted((biased | set(transposed)) - sums.keys())
    if unknown:
        raise InputError(f"{unknown[0]} is none of the modules that have factors")
    if shared:
        bases = shared_eigenbases(sums, settings.scale)
    else:
        bases = {name: eigenbasis(total, settings.scale) for name, total in sums.items()}
    if settings.method == "ekfac":
        bases = variances(augmented(), bases, shared=shared)
    damping = {name: _damping(name, basis, settings) for name, basis in bases.items()}
    n_examples = max(total.n_examples for total in sums.values())
    return Curvature(bases, damping, settings, biased, frozenset(transposed), n_examples)


def linear_factors(collected: Collected) -> Factors:
    """What a collected batch has of its linear modules.

    Raises:
        InputError: Something else is tracked, a bias without its weight, or a tied weight.
    """
    found = {}
    for module in collected.called:
        if module.kind not in ("linear", "conv1d") or module.weight != f"{module.name}.weight":
            raise InputError(
                f"{module.name} is no linear module with a weight of its own that is tracked",
                expected="linear layers, with or without their biases",
                fix="track no embeddings, norms or tied weights, or take another method",
            )
        seen = collected.factors[module.name]
        found[module.name] = (seen.inputs, seen.gradients)
    return found


@dataclass(frozen=True, eq=False)
class FactorStream:
    """Batches of factors, with the labels and the mask that the settings ask for.

    Attributes:
        model: Any model of `find_task`.
        collect: Goes through the training examples anew each time.
        settings: Whose `labels`, `tokens` and `seed` are followed.
    """

    model: nn.Module
    collect: Collect
    settings: CurvatureSettings

    def __iter__(self) -> Iterator[FactorBatch]:
        relabel = self._drawn if self.settings.labels == "model" else None
        for _, batch, found in self.collect(relabel):
            mask = batch.get("attention_mask") if self.settings.tokens == "mask" else None
            yield FactorBatch(linear_factors(found), mask)

    def _drawn(self, batch: Any, numbers: Sequence[int]) -> dict[str, Any]:
        return sample_labels(self.model, batch, seed=self.settings.seed, numbers=numbers)


def _counted(batch: FactorBatch, name: str, delta: Tensor, tokens: str) -> Tensor | None:
    """[n, t] of the positions that count; none means all."""
    if tokens == "active":
        return (delta != 0).any(dim=-1)
    if tokens == "all":
        return None
    if batch.mask is None:
        raise InputError(
            "tokens is 'mask' and a batch has no mask",
            expected="an attention mask [n, t]",
            fix="take tokens='active', which needs none",
        )
    mask = batch.mask_of(name)
    return None if mask is None else mask.to(delta.device) != 0


def _damping(name: str, basis: Kronecker, settings: CurvatureSettings) -> float:
    mean, least = float(basis.eigenvalues.mean()), float(basis.eigenvalues.min())
    damping = settings.damping
    if damping is None:
        damping = settings.damping_scale * mean
    if not least + damping > 0:
        if mean == 0:
            found = f"the gradients of {name} are zero in every example"
            fix = "leave it out of what is tracked (LoRA's A has none while B is 0), or set damping"
        else:
            found, fix = f"the curvature of {name} is singular", "take a damping above 0"
        raise InputError(found, expected="a curvature that has an inverse", fix=fix)
    return damping
