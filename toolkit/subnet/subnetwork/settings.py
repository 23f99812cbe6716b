"""Settings of every method that finds a subnetwork: validated, and recorded in the mask."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from subnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What a method depends on.

    Attributes:
        method: Its name, as `extract` takes it.
        granularity: What one bit of its masks stands for.
    """

    method: ClassVar[str]
    granularity: ClassVar[str] = "weight"


@dataclass(frozen=True, kw_only=True)
class MagnitudeSettings(MethodSettings):
    """The k weights of largest |ΔW|; for full fine-tuning |θ − θ₀|.

    The selection of lottery-ticket sparse fine-tuning (LT-SFT; Ansell et al. 2022,
    ACL 2022.acl-long.125). A weight that training left exactly as it was is never selected.

    Attributes:
        density: Share of the weights to select, 0 < density ≤ 1. The default, 5 %, is of the size
            that LT-SFT selects.
        scope: `"global"` ranks all weights of the model together, so modules differ in density;
            `"module"` selects the same share of each parameter.
        parameters: `"linear"`: the weight matrices of layers; `"all"`: also what else was trained
            (biases, embeddings, saved heads) as far as the base has it.
    """

    method: ClassVar[str] = "magnitude"

    density: float = 0.05
    scope: str = "global"
    parameters: str = "linear"

    def __post_init__(self) -> None:
        check_density(self.density)
        one_of("scope", self.scope, ("global", "module"))
        one_of("parameters", self.parameters, ("linear", "all"))


@dataclass(frozen=True, kw_only=True)
class DataSettings(MethodSettings):
    """What every method that runs a model on examples depends on.

    Attributes:
        model: `"trained"`: the base with that language's adapter or weights (of a sequence of
            stages, with the stage's); `"base"`: the base as it was before.
        n_examples: Most examples of a language that are looked at, drawn by the seed.
        batch_size: Examples per pass. Changes results by rounding only.
        seed: Seed of the draw.
    """

    model: str = "trained"
    n_examples: int = 1024
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("model", self.model, ("trained", "base"))
        for name, least in (("n_examples", 1), ("batch_size", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), least)


@dataclass(frozen=True, kw_only=True)
class ImportanceSettings(DataSettings):
    """What a mask of weights by importance depends on, whichever the importance is.

    Attributes:
        density: Share of the weights to select, 0 < density ≤ 1.
        scope: `"global"` ranks all weights together, `"module"` selects the same share of each
            parameter, `"row"` the same share of the inputs of each output.
    """

    density: float = 0.05
    scope: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.density)
        one_of("scope", self.scope, ("global", "module", "row"))


@dataclass(frozen=True, kw_only=True)
class FisherSettings(ImportanceSettings):
    """Diagonal of the Fisher information: the mean over examples of the squared gradient.

    F = 1/n Σ_n (∂ log p(y_n|x_n) / ∂w)², each example's gradient squared before the mean (Sung,
    Nair and Raffel 2021, arXiv 2111.09839, who select 0.5 %).

    Attributes:
        labels: `"true"`: y_n is the example's label (the empirical Fisher); `"model"`: the exact
            expectation over the labels y ~ p(y|x_n) that the model itself gives, for sequence
            classification.
    """

    method: ClassVar[str] = "fisher"

    labels: str = "true"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("labels", self.labels, ("true", "model"))


@dataclass(frozen=True, kw_only=True)
class TaylorSettings(ImportanceSettings):
    """Gradient × weight: 1/n Σ_n |∂L_n/∂w · w|, the loss's change without w to first order.

    After Molchanov et al. (2019, arXiv 1906.10771). The magnitude is taken of each example's
    product, so that examples that pull apart do not cancel.
    """

    method: ClassVar[str] = "taylor"


@dataclass(frozen=True, kw_only=True)
class WandaSettings(ImportanceSettings):
    """Weight × input: |W_oi| · ‖x_i‖₂, the norm over all tokens of all examples.

    After Sun et al. (2024, arXiv 2306.11695), who compare the weights of one output with each
    other: `scope="row"`. No gradient is needed.
    """

    method: ClassVar[str] = "wanda"


@dataclass(frozen=True, kw_only=True)
class HeadPruningSettings(DataSettings):
    """Attention heads that are left when the least important are dropped round by round.

    Importance is the mean over examples of |∂L/∂ξ_h|, ξ_h the gate on a head's output. Heads are
    dropped until the score on held-out data falls below a share of the whole model's (Michel, Levy
    and Neubig 2019, arXiv 1905.10650); the mask is the last that passed.

    Attributes:
        threshold: Share of the whole model's score that must be left, 0 < threshold ≤ 1; 0.9 is
            the other usual value. A loss may grow to the whole model's divided by it.
        share_per_round: Share of all heads that a round drops, at least one head.
        density: Prune down to exactly this share of the heads instead, whatever the score.
        rescore: Whether importance is taken anew in every round, of the heads that are left, or
            once, of the whole model.
        normalization: `"none"`, or `"layer"`: divide by the ℓ2 norm over the block's heads that are
            left before heads are compared. It changes which heads go, in other ways for other
            languages.
        halves_from: With so many examples or more, importance is taken of one half of them (drawn
            by the seed) and the score of the other; with fewer, both of all.
    """

    method: ClassVar[str] = "head-pruning"
    granularity: ClassVar[str] = "head"

    threshold: float = 0.95
    share_per_round: float = 0.1
    density: float | None = None
    rescore: bool = True
    normalization: str = "none"
    halves_from: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "share_per_round"):
            check_part(name, getattr(self, name))
        if self.density is not None:
            check_density(self.density)
        if not isinstance(self.rescore, bool):
            raise InputError(f"rescore is {self.rescore!r}", expected="True or False")
        one_of("normalization", self.normalization, ("none", "layer"))
        check_whole("halves_from", self.halves_from, 0)


@dataclass(frozen=True, kw_only=True)
class AttributionSettings(DataSettings):
    """Attention heads or FFN neurons to which captum attributes the loss of the true labels.

    Attribution is to what a head puts into its output projection, or a neuron into its down
    projection; of each example its sum over tokens (and the head's width), of the examples the mean
    of the magnitudes.

    Attributes:
        units: `"head"` or `"neuron"`.
        attribution: `"gradient-x-activation"`: what the loss changes without the unit, to first
            order. `"conductance"` (Dhamdhere et al. 2018, arXiv 1805.12233): ∫ ∂L/∂y dy along the
            straight path of the embeddings from the baseline to the example.
            `"integrated-gradients"` (Sundararajan et al. 2017, arXiv 1703.01365): the unit's own
            output goes straight from what it is at the baseline to what it is, with all else as the
            example has it.
        density: Share of the units to select, 0 < density ≤ 1.
        scope: `"global"` ranks all units together, `"layer"` selects the same share of each block.
        baseline: `"zero"`: token embeddings of zeros, to which positions are still added;
            `"padding"`: those of the padding token. Not for gradient × activation. A decoder that
            normalises embeddings before all else sees nearly the same on the whole path from zero:
            conductance then hangs on the first step, and `"padding"` is better.
        n_steps: Points on the path; not for gradient × activation.
        internal_batch_size: Most points that go through the model at once, at least two per example
            of a batch; not for gradient × activation. Changes results by rounding only.
    """

    method: ClassVar[str] = "attribution"
    granularity: ClassVar[str] = "head or neuron"  # as `units` says

    units: str = "head"
    attribution: str = "gradient-x-activation"
    density: float = 0.1
    scope: str = "global"
    baseline: str = "zero"
    n_steps: int = 50
    internal_batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("units", self.units, ("head", "neuron"))
        kinds = ("gradient-x-activation", "conductance", "integrated-gradients")
        one_of("attribution", self.attribution, kinds)
        check_density(self.density)
        one_of("scope", self.scope, ("global", "layer"))
        one_of("baseline", self.baseline, ("zero", "padding"))
        check_whole("n_steps", self.n_steps, 1)
        check_whole("internal_batch_size", self.internal_batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class LapeSettings(DataSettings):
    """FFN neurons that fire for few languages: activation probability entropy (LAPE).

    p_ℓ = P(activation > 0) over the tokens of language ℓ; a neuron is specific where p, normalised
    over languages, has low entropy (Tang et al. 2024, arXiv 2402.16438). It belongs to every
    language for which it fires often enough, so masks of languages may share neurons. As many
    neurons are found whether or not languages differ: where the recorded `largest_entropy` is near
    the logarithm of the number of languages, they do not.

    Attributes:
        model: `"base"` by default, as published: all languages run through one model, so that what
            differs between them is the text. `"trained"`: each language through its own.
        density: Share of all neurons that are specific to some language, 0 < density ≤ 1. Masks of
            single languages are smaller.
        activity_percentile: Percentile of all p, over neurons and languages, that p has to exceed:
            of some language, for the neuron to count at all; of ℓ, for it to be ℓ's.
    """

    method: ClassVar[str] = "lape"
    granularity: ClassVar[str] = "neuron"

    model: str = "base"
    density: float = 0.01
    activity_percentile: float = 95.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.density)
        percentile: object = self.activity_percentile
        if isinstance(percentile, bool) or not isinstance(percentile, int | float):
            raise InputError(f"activity_percentile is {percentile!r}", expected="a number")
        if not 0 < percentile < 100:
            raise InputError(
                f"activity_percentile is {percentile:g}", expected="0 < activity_percentile < 100"
            )


@dataclass(frozen=True, kw_only=True)
class DirectionSettings(MethodSettings):
    """Singular directions of ΔW that a language uses alone, and those that it shares.

    A direction u of a language is captured by another language m to the part ‖U_mᵀu‖², between 0
    and 1, U_m being m's directions in the same module. They share it where m captures at least
    `min_captured` and more than chance explains (q ≤ `alpha`, Benjamini and Hochberg 1995 over all
    directions and other languages of a run). It is used *alone* where no other language captures
    `min_captured` of it, and *undecided* where one does, but chance explains it.

    Attributes:
        side: `"left"`: directions in the outputs of a module; `"right"`: in its inputs, where LoRA
            adapters of one seed agree by construction, because A starts random and moves little.
        min_captured: Part of a direction that the other language must have, 0 to 1. The default:
            more than half of it.
        alpha: Largest q-value of a shared direction.
        null: What chance is. `"signs"`: the coordinates of a direction keep size and place and get
            random signs, so that outlier coordinates which all languages have are no sharing;
            `"permutation"`: they also change places; `"rotation"`: the direction is turned at
            random. With outlier coordinates in common only the first holds its level.
        energy: Share of Σσ² in a module that the directions of a language have together; weaker
            ones, which training hardly used, are left out.
        ties: Neighbouring singular values that differ by less than this share determine no
            directions of their own: such a block, where another language has at least
            `min_captured` of a direction in it, is turned to those that lie most clearly inside or
            outside the others' subspaces. 0: never.
        dense_rank: Most directions of a module whose ΔW has no factors (full fine-tuning, DoRA).
        seed: Of the sketch of a large ΔW without factors; nothing else is random.
    """

    method: ClassVar[str] = "directions"
    granularity: ClassVar[str] = "direction"

    side: str = "left"
    min_captured: float = 0.5
    alpha: float = 0.05
    null: str = "signs"
    energy: float = 0.99
    ties: float = 0.05
    dense_rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("side", self.side, ("left", "right"))
        check_share("min_captured", self.min_captured)
        check_share("alpha", self.alpha)
        one_of("null", self.null, ("signs", "permutation", "rotation"))
        if self.energy != 1:
            check_share("energy", self.energy)
        if self.ties != 0:
            check_share("ties", self.ties)
        check_whole("dense_rank", self.dense_rank, 1)
        check_whole("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class RandomSettings(MethodSettings):
    """Weights drawn at random, each set of a size as likely: the control of a method.

    Masks of several languages are independent draws. `random_like` draws one that has as many
    weights in each parameter as a given mask.

    Attributes:
        density: Share of the weights to select, 0 < density ≤ 1.
        scope: `"module"` draws the same share of each parameter, `"global"` a share of them all.
        seed: Seed of the draw.
    """

    method: ClassVar[str] = "random"

    density: float = 0.05
    scope: str = "module"
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)
        one_of("scope", self.scope, ("global", "module"))
        check_whole("seed", self.seed, 0)


#: Method to its settings, in the order in which they are explained.
METHODS: Mapping[str, type[MethodSettings]] = {
    kind.method: kind
    for kind in (
        MagnitudeSettings,
        FisherSettings,
        TaylorSettings,
        WandaSettings,
        HeadPruningSettings,
        AttributionSettings,
        LapeSettings,
        DirectionSettings,
        RandomSettings,
    )
}


def resolve_settings(method: str, given: Mapping[str, Any]) -> MethodSettings:
    """The settings of a method; what is not given has its default.

    Raises:
        InputError: There is no such method, a setting is not one of its own, or out of range.
    """
    one_of("method", method, tuple(METHODS))
    kind = METHODS[method]
    known = [entry.name for entry in fields(kind)]
    foreign = next((name for name in given if name not in known), None)
    if foreign is not None:
        near = difflib.get_close_matches(foreign, known, n=1)
        raise InputError(
            f"{foreign} is given for the method {method!r}",
            expected=f"some of {', '.join(known)}",
            fix=f"did you mean {near[0]}?" if near else None,
        )
    return kind(**given)


def check_density(density: object) -> None:
    """Refuse what is no share of the weights."""
    if isinstance(density, bool) or not isinstance(density, int | float):
        raise InputError(f"density is {density!r}", expected="a number, 0 < density <= 1")
    if not 0 < density <= 1:
        raise InputError(
            f"density is {density}", expected="0 < density <= 1", fix="0.05 selects 5 %"
        )


def check_share(name: str, value: object) -> None:
    """Refuse what is not strictly between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"{name} is {value!r}", expected=f"a number, 0 < {name} < 1")


def check_part(name: str, value: object) -> None:
    """Refuse what is no share above 0, up to the whole."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(f"{name} is {value!r}", expected=f"a number, 0 < {name} <= 1")


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}", expected=f"a whole number, {least} or more")


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse a setting that is none of its known values."""
    if value not in known:
        raise InputError(f"{name} is {value!r}", expected=" or ".join(map(repr, known)))
