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


#: Method to its settings, in the order in which they are explained.
METHODS: Mapping[str, type[MethodSettings]] = {
    kind.method: kind for kind in (MagnitudeSettings, FisherSettings, TaylorSettings, WandaSettings)
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


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}", expected=f"a whole number, {least} or more")


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse a setting that is none of its known values."""
    if value not in known:
        raise InputError(f"{name} is {value!r}", expected=" or ".join(map(repr, known)))
