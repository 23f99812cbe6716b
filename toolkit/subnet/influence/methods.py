"""The methods of attribution by name: what each makes of gradients before they are multiplied.

A score is Σ_c w_c ⟨test(h), train(g)⟩ over checkpoints c, h and g the gradients of a test and of a
training example there. A method says what `test` and `train` are and how checkpoints are pooled.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from numpy.typing import NDArray
from torch import nn

from subnet.errors import InputError
from subnet.influence.collecting import Blocks, Collected, LossFunction, UndefinedExamplesError

if TYPE_CHECKING:
    from subnet.influence._examples import Examples
    from subnet.influence.checkpoints import Point
    from subnet.influence.tracking import Tracked

#: `"sum"`: Σ_c η_c s_c; `"mean"`: Σ_c η_c s_c / Σ_c η_c; `"last"`: the last checkpoint, η = 1.
Pooling = Literal["sum", "mean", "last"]


def _unchanged(blocks: Blocks) -> Blocks:
    return blocks


@dataclass(frozen=True)
class Transform:
    """What becomes of gradients at one checkpoint.

    Attributes:
        test: Of test gradients, parameter name to [n, …]; names and shapes may change, on both
            sides alike.
        train: Of training gradients.
        settings: What it depends on, for the record.
        whole: Whether `test` wants the gradients of all test examples at once.
        ready: Of numbers of training examples what `train` would give for them, where preparing
            has made it already: they are then not gone through again.
        factors: [n_train], what each training example's score is multiplied by in the end: the mean
            of it over checkpoints, weighted as they are.
    """

    test: Callable[[Blocks], Blocks] = _unchanged
    train: Callable[[Blocks], Blocks] = _unchanged
    settings: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    ready: Callable[[Sequence[int]], Blocks] | None = None
    factors: NDArray[Any] | None = None


class Collect(Protocol):
    """Goes through the training examples of a checkpoint's stage once more.

    `relabel` sees each batch first, with the numbers of its examples and in the same forward pass
    as gradients are taken in, and gives the batch to go on with.
    """

    def __call__(
        self, relabel: Callable[[Any, Sequence[int]], Any] | None = None
    ) -> Iterator[tuple[list[int], Any, Collected]]:
        """Numbers of the examples, batch, and what it gave, batch after batch."""
        ...


@dataclass(frozen=True, eq=False)
class Situation:
    """What a method may look at before it meets a checkpoint's gradients.

    Attributes:
        model: With the checkpoint's weights, as `attribute` was given it.
        tracked: The tracked modules.
        point: The checkpoint.
        train: The training examples, those of the checkpoint's stage in `members`.
        members: Numbers of those examples.
        collect: Goes through them once more, batch by batch: (numbers, batch, collected), from
            which `Collected.gradients()` and `.factors` come.
        gradients: The same, as gradients restricted to the subnetwork if there is one.
        collect_own: As `collect`, through this process's share of them in a run of many processes.
        gradients_own: As `gradients`, through this process's share.
        summed: Tensors by name to their sums over all processes, which all call it.
        restrict: Sets what is outside of the subnetwork to 0; None where there is no subnetwork.
        settings: The method's own, validated; None where it has none.
        seed: For what is drawn.
    """

    model: nn.Module
    tracked: Tracked
    point: Point
    train: Examples
    members: tuple[int, ...]
    collect: Collect
    gradients: Callable[[], Iterator[Blocks]]
    collect_own: Collect
    gradients_own: Callable[[], Iterator[Blocks]]
    summed: Callable[[Blocks], Blocks]
    restrict: Callable[[Blocks], Blocks] | None
    settings: Any
    seed: int


def _nothing(situation: Situation) -> Transform:  # noqa: ARG001
    return Transform()


@dataclass(frozen=True)
class GradientMethod:
    """A method whose scores are products of (transformed) gradients.

    Attributes:
        name: As `attribute(method=…)` takes it.
        summary: What a score is, in a line.
        pooling: How checkpoints are pooled.
        normalised: Whether what is multiplied is first divided by its norm.
        bilinear: Whether both transforms are linear: the mean over examples is then the product of
            mean (normalised) gradients, and language level needs no example's own.
        prepare: Looks at a checkpoint and gives the transforms there.
        settings: Class of the method's own settings, a dataclass that refuses what is out of range;
            None where it has none. One that has a `seed` gets that of `attribute`.
        fixed: Settings that belong to the name and are not to be given.
        output: What gradients are taken of, in place of the loss, of a transformers model.
        rated: Whether checkpoints count by their learning rates; otherwise all alike.
        adapt: Makes of (method, settings) what the settings change in these fields.
    """

    name: str
    pooling: Pooling = "sum"
    normalised: bool = False
    bilinear: bool = True
    prepare: Callable[[Situation], Transform] = _nothing
    settings: type[Any] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    output: LossFunction | None = None
    rated: bool = True
    adapt: Callable[[GradientMethod, Any], GradientMethod] | None = None
    summary: str = field(default="", kw_only=True)

    @property
    def plain(self) -> bool:
        """Whether gradients of the loss are multiplied as they are, or divided by their norm."""
        return self.prepare is _nothing and self.output is None

    @property
    def by_sums(self) -> bool:
        """Whether language level is possible from sums of gradients."""
        return self.bilinear and (not self.normalised or self.prepare is _nothing)


@dataclass(frozen=True, eq=False)
class DataSituation:
    """What a baseline has to go by.

    Attributes:
        model: The model; with the weights of the last checkpoint where `checkpoints` were given.
        train: The training examples.
        test: The test examples.
        settings: The method's own, validated; None where it has none.
        batch_size: Examples per pass.
        seed: For what is drawn.
    """

    model: nn.Module
    train: Examples
    test: Examples
    settings: Any
    batch_size: int
    seed: int


@dataclass(frozen=True)
class DataMethod:
    """A baseline that needs no gradient.

    Attributes:
        name: As `attribute(method=…)` takes it.
        summary: What a score is, in a line.
        scores: [n_test, n_train], and what it depends on, for the record.
        settings: As of `GradientMethod`.
        fixed: As of `GradientMethod`.
        uses_model: Whether it looks at the model.
    """

    name: str
    scores: Callable[[DataSituation], tuple[NDArray[Any], Mapping[str, Any]]]
    settings: type[Any] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    uses_model: bool = False
    summary: str = field(default="", kw_only=True)


Method = GradientMethod | DataMethod
_METHODS: dict[str, Method] = {}


def register_method(method: Method) -> None:
    """Make a method known to `attribute` by its name.

    Raises:
        InputError: The name is taken.

    Example:
        >>> register_method(GradientMethod("dot-of-the-last", pooling="last"))
        >>> find_method("dot-of-the-last").pooling
        'last'
    """
    if method.name in _METHODS:
        raise InputError(f"there is a method {method.name!r} already", fix="take another name")
    _METHODS[method.name] = method


def method_names() -> tuple[str, ...]:
    """The names of all methods that `attribute` knows, in alphabetical order."""
    return tuple(sorted(_METHODS))


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: There is none.
    """
    if name not in _METHODS:
        raise InputError(f"method is {name!r}", expected=f"one of {', '.join(method_names())}")
    return _METHODS[name]


def resolve_settings(
    method: Method, given: Mapping[str, Any], *, seed: int, others: Sequence[str] = ()
) -> Any:
    """The method's own settings; what is not given has its default.

    Args:
        method: Whose.
        given: Name to value.
        seed: Of the settings that have one.
        others: Names that are arguments of the caller, of which one may have been meant.

    Returns:
        An instance of `method.settings`; None where it has none.

    Raises:
        InputError: A setting is not one of the method's, or out of range.
    """
    known = [entry.name for entry in fields(method.settings)] if method.settings else []
    own = [name for name in known if name not in method.fixed and name != "seed"]
    foreign = next((name for name in given if name not in own), None)
    if foreign is not None:
        near = difflib.get_close_matches(foreign, [*own, *others], n=1)
        raise InputError(
            f"{foreign} is given for the method {method.name!r}",
            expected=f"some of {', '.join(own)}" if own else "no settings: it has none",
            fix=f"did you mean {near[0]}?" if near else None,
        )
    if method.settings is None:
        return None
    drawn = {"seed": seed} if "seed" in known else {}
    return method.settings(**given, **method.fixed, **drawn)


def normalise(blocks: Blocks) -> Blocks:
    """Each example's gradient divided by its norm over all parameters.

    Raises:
        UndefinedExamplesError: A gradient is zero and has no direction.
    """
    squares = torch.stack([block.double().square().flatten(1).sum(dim=1).cpu()
                           for block in blocks.values()])  # fmt: skip
    norms = squares.sum(dim=0).sqrt()
    refuse_zero(norms)
    return {
        name: block / norms.to(block).reshape(-1, *[1] * (block.ndim - 1))
        for name, block in blocks.items()
    }


def refuse_zero(norms: torch.Tensor) -> None:
    """Raise where an example's gradient is zero.

    Raises:
        UndefinedExamplesError: Names its place.
    """
    zero = (norms == 0).nonzero()
    if len(zero):
        raise UndefinedExamplesError(
            int(zero[0]),
            "zero is the gradient",
            expected="a direction, for cosine",
            fix="leave the example out, or take method='tracin'",
        )


register_method(
    GradientMethod("tracin", summary="Products of gradients, by learning rate over checkpoints.")
)
register_method(
    GradientMethod("final", pooling="last", summary="Products of gradients at the last checkpoint.")
)
register_method(
    GradientMethod(
        "cosine", pooling="mean", normalised=True, summary="Cosines of gradients at checkpoints."
    )
)
