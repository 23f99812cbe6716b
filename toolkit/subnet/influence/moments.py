"""Adam's moments of an ordinary checkpoint, each under the name of its parameter.

`torch.save(optimizer.state_dict())`, as Trainer does, numbers the moments. The number follows the
optimizer's groups: Trainer's group with weight decay, then the one without, not
`named_parameters()`. Moments of equal shape would swap unnoticed, so Trainer's own rule makes the
groups again, and every count and every shape is checked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import FileFormatError, InputError, MissingInputError
from subnet.influence._optimizer_file import find_state, load_state
from subnet.influence._optimizer_order import order_of

#: Wrappers whose names stand inside those of parameters.
_WRAPPERS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "module")


@dataclass(frozen=True, eq=False)
class Moment:
    """What Adam remembers of one parameter.

    Attributes:
        mean: m, the running mean of gradients (`exp_avg`), of the parameter's shape.
        square: v, the running mean of squared gradients (`exp_avg_sq`), of the parameter's shape.
        step: t, steps taken.
        betas: (β₁, β₂).
        epsilon: ε.
    """

    mean: Tensor
    square: Tensor
    step: int
    betas: tuple[float, float]
    epsilon: float


@dataclass(frozen=True, eq=False)
class Moments:
    """Adam's moments by parameter name.

    Attributes:
        of: Parameter name to its moments.
        path: File that they were read from.
        order: How the file's entries were matched with names: `"names"` (the file names them),
            `"trainer"` (groups by the installed Trainer's rule), `"trainer-4"` and
            `"trainer-4-norms"` (the rules of former releases, by the types of the layers),
            `"parameters"` (one group, in the order of `model.parameters()`).
        without: Trained parameters that the file has no moments of: they never had a gradient.
    """

    of: Mapping[str, Moment]
    path: Path
    order: str
    without: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Moment:
        found = self.of.get(name)
        if found is None:
            reason = "it never had a gradient" if name in self.without else "it was not trained"
            raise MissingInputError(
                f"has no moments of {name}: {reason}",
                path=self.path,
                fix="leave the parameter out of those that are tracked",
            )
        return found

    def to(self, device: torch.device | str) -> Moments:
        """The same on another device."""
        moved = {
            name: replace(m, mean=m.mean.to(device), square=m.square.to(device))
            for name, m in self.of.items()
        }
        return replace(self, of=moved)

    def to_dict(self) -> dict[str, Any]:
        """Where they came from, and the settings of the optimizer that wrote them."""
        values = self.of.values()
        n_zero = sum(int((m.square == 0).sum()) for m in values)
        return {
            "moments": self.path.name,
            "order": self.order,
            "betas": sorted({m.betas for m in values}),
            "epsilon": sorted({m.epsilon for m in values}),
            "step": sorted({m.step for m in values}),
            # These weights have 1/ε in `adam`: a query alone can give them a gradient.
            "share_never_updated": n_zero / max(1, sum(m.square.numel() for m in values)),
        }


@dataclass(frozen=True, eq=False)
class Adam:
    """⟨h, g / (√v̂ + ε)⟩: products in the metric in which Adam steps, v̂ = v / (1 − β₂ᵗ).

    Bilinear and symmetric. The moments are of gradients of the training loss (a mean over a
    batch); a per-example gradient on another scale only scales the scores. Where v̂ is 0 the
    parameter never had a gradient in training, and the factor is 1/ε.
    """

    moments: Moments

    def precondition(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute g / (√v̂ + ε) of every example.

        Raises:
            MissingInputError: The optimizer has no moments of a parameter.
            InputError: A shape does not fit.
        """
        found = {}
        for name, block in blocks.items():
            gradient, moment = _fitting(name, block, self.moments)
            corrected = moment.square.to(gradient) / (1 - moment.betas[1] ** moment.step)
            found[name] = gradient / (corrected.sqrt() + moment.epsilon)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Every setting that the scores depend on."""
        return {"method": "adam", "bias_correction": True, **self.moments.to_dict()}


@dataclass(frozen=True, eq=False)
class Less:
    """(β₁m + (1−β₁)g) / √(β₂v + (1−β₂)g² + ε): the step that Adam would take on g alone.

    As the code of LESS computes it (Xia et al. 2024, arXiv 2402.04333): of training gradients only,
    not linear in g, ε under the root, no bias correction. Adam's own step from the same state is
    −lr · √(1−β₂ᵗ) / (1−β₁ᵗ) times it, t counting the step to come, up to where ε stands. The part
    β₁m is common to all examples. LESS compares by cosine: `similarity="cosine"`.
    """

    moments: Moments

    def transform(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The step's direction for every training example; queries are left as they are.

        Raises:
            MissingInputError: The optimizer has no moments of a parameter.
            InputError: A shape does not fit.
        """
        found = {}
        for name, block in blocks.items():
            gradient, moment = _fitting(name, block, self.moments)
            beta1, beta2 = moment.betas
            mean = beta1 * moment.mean.to(gradient) + (1 - beta1) * gradient
            square = beta2 * moment.square.to(gradient) + (1 - beta2) * gradient.square()
            found[name] = mean / (square + moment.epsilon).sqrt()
        return found

    def to_dict(self) -> dict[str, Any]:
        """Every setting that the scores depend on."""
        return {"method": "less", "bias_correction": False, **self.moments.to_dict()}


def read_moments(
    path: str | Path, model: nn.Module, *, trained: Collection[str] | None = None
) -> Moments:
    """Read the moments that an optimizer of the Adam family left beside a checkpoint.

    Nothing in the file is executed: it is read as tensors and plain values.

    Args:
        path: `optimizer.pt`, `optimizer.bin`, or the checkpoint folder that holds one.
        model: The model whose parameters were trained, as Trainer had it (with its adapter).
        trained: Names of the parameters that were trained; by default those of `model` that
            require a gradient. A model loaded for inference may have none.

    Returns:
        Moments by the names of `model.named_parameters()`.

    Raises:
        MissingInputError: There is no such file.
        UnsafeFileError: Reading it would run code.
        FileFormatError: It is damaged, or no optimizer of the Adam family wrote it.
        InputError: Its entries are not those of the model's parameters; names the index, the
            parameter, and both shapes.

    Example:
        >>> moments = read_moments("run/checkpoint-500", model)  # doctest: +SKIP
        >>> scores = score(queries, train, Adam(moments))  # doctest: +SKIP
    """
    file = find_state(Path(path))
    content = load_state(file)
    groups = [dict(group) for group in content["param_groups"]]
    parameters = _trained(model, trained)
    order, names = "names", dict[Any, str]()
    if any(isinstance(key, str) for group in groups for key in group["params"]):
        names = _by_name(groups, parameters, file)
    else:
        order, names = order_of(model, groups, content["state"], parameters, file)
    found: dict[str, Moment] = {}
    for group in groups:
        for key in group["params"]:
            state = content["state"].get(key)
            if state:
                found[names[key]] = _moment(state, group, key, names[key], parameters, file)
    if not found:
        raise FileFormatError("holds no moments", path=file, expected="a state after a first step")
    without = tuple(name for name in names.values() if name not in found)
    return Moments(of=found, path=file, order=order, without=without)


def _trained(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    """Trained parameters in the order of the model."""
    every = dict(model.named_parameters())
    if names is None:
        found = {name: p for name, p in every.items() if p.requires_grad}
        if not found:
            raise InputError(
                f"no parameter of {type(model).__name__} requires a gradient",
                expected="the parameters that were trained",
                fix="load the adapter with is_trainable=True, or name them with trained=",
            )
        return found
    unknown = sorted(set(names) - every.keys())
    if unknown:
        raise InputError(f"{type(model).__name__} has no parameter {unknown[0]}")
    return {name: p for name, p in every.items() if name in set(names)}


def _by_name(
    groups: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter], file: Path
) -> dict[Any, str]:
    """The file's names to the model's, wrappers left out of both."""
    known = {_plain(name): name for name in parameters}
    found: dict[Any, str] = {}
    for group in groups:
        for key in group["params"]:
            name = known.get(_plain(key))
            if name is None:
                raise InputError(
                    f"names {key}, which is no trained parameter of the model",
                    path=file,
                    expected=f"one of {len(known)}, such as {next(iter(known))}",
                )
            found[key] = name
    return found


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _moment(
    state: Mapping[str, Any],
    group: Mapping[str, Any],
    key: int | str,
    name: str,
    parameters: Mapping[str, nn.Parameter],
    file: Path,
) -> Moment:
    if (
        not {"exp_avg", "exp_avg_sq", "step"} <= state.keys()
        or not {"betas", "eps"} <= group.keys()
    ):
        raise FileFormatError(
            f"entry {key} holds {', '.join(sorted(map(str, state))) or 'nothing'}",
            path=file,
            expected="exp_avg, exp_avg_sq and step, as Adam and AdamW leave them",
            fix="take a method without moments for another optimizer",
        )
    if group.get("amsgrad"):
        raise FileFormatError(
            "was written by AMSGrad, which steps by the largest second moment",
            path=file,
            expected="Adam or AdamW",
        )
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    expected = tuple(parameters[name].shape)
    for found in (mean, square):
        if tuple(found.shape) != expected:
            raise InputError(
                f"entry {key} is of shape {list(found.shape)}",
                path=file,
                expected=f"{list(expected)}, of {name}",
                fix="give the model that was trained",
            )
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return Moment(mean, square, int(state["step"]), (beta1, beta2), float(group["eps"]))


def _fitting(name: str, block: Tensor, moments: Moments) -> tuple[Tensor, Moment]:
    """Gradients in float32 at least, and the moments of their parameter."""
    moment = moments[name]
    if block.shape[1:] != moment.mean.shape:
        raise InputError(
            f"gradients of {name} are of shape {list(block.shape[1:])} per example",
            expected=f"{list(moment.mean.shape)}, as its moments",
        )
    return block.to(torch.promote_types(block.dtype, torch.float32)), moment
