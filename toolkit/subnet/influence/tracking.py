"""Which parameters of a model influence is computed for, and which modules hold them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from subnet.errors import InputError

Kind = Literal["linear", "conv1d", "embedding", "norm"]

#: What `modules` may say in a word, beside a list of names.
WORDS = ("lora", "linear", "all")

_LORA = (".lora_A.", ".lora_B.")
#: Embeddings whose output is no row per example: T5 looks up distances between positions.
_BETWEEN_POSITIONS = ("relative_attention_bias",)
#: What PEFT puts into the name of a layer that it wraps, or of which it trains a copy.
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save\.[^.]+|original_module)\.")
#: Norms whose only parameters are a scale and a shift, and whose call is `f(x) · scale + shift`.
_NORM = "Norm"


@dataclass(frozen=True)
class TrackedModule:
    """One module whose parameters are tracked.

    Attributes:
        name: As in `model.named_modules()`.
        kind: `"linear"`, `"conv1d"` (a linear layer that stores [input, output]), `"embedding"` or
            `"norm"`.
        weight: Name of its weight as in `model.named_parameters()`, which of a tied weight is the
            first of its names; None where the weight is not tracked.
        bias: The same of its bias.
        shape: Shape of the weight as stored.
    """

    name: str
    kind: Kind
    weight: str | None
    bias: str | None
    shape: tuple[int, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that are tracked."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)


@dataclass(frozen=True)
class Tracked:
    """The tracked modules of a model, in the order in which it defines them.

    Attributes:
        modules: Each module once. Two modules may hold the same (tied) parameter, whose gradient is
            then the sum of both.
        shapes: Parameter name to shape, each parameter once.
        left_out: Parameters that take gradients and are not tracked.
    """

    modules: tuple[TrackedModule, ...]
    shapes: Mapping[str, tuple[int, ...]]
    left_out: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def live(self, model: nn.Module) -> dict[str, nn.Module]:
        """Name of each tracked module to the module."""
        return {module.name: model.get_submodule(module.name) for module in self.modules}

    def __iter__(self) -> Iterator[TrackedModule]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


def track(
    model: nn.Module,
    modules: str | Sequence[str] | Tracked | None = None,
    *,
    embeddings: bool = False,
    biases: bool = False,
) -> Tracked:
    """Choose the parameters of a model that influence is computed for.

    Args:
        model: Any model.
        modules: None takes the factors of the active LoRA where the model has one, else every
            linear layer whose weight takes a gradient. `"lora"` and `"linear"` say which; `"all"`
            adds embeddings, norms and biases to the linear layers of a model without LoRA.
            Otherwise names of modules or patterns (`*`, `?`, `[…]`; `*` matches dots too), as in
            the model or without what PEFT puts before and after them: each takes what it matches
            and what lies inside of it, of the kind that None would take; a pattern that matches
            nothing of that kind takes whatever it matches itself, such as an embedding.
        embeddings: Embeddings too. Their gradients are as large as the vocabulary.
        biases: The biases of the tracked modules too.

    Returns:
        The modules. A linear layer whose weight is tied to an embedding is tracked only together
        with it: alone it would have half of the weight's gradient.

    Raises:
        InputError: Nothing takes a gradient, nothing is to be tracked, or a name matches nothing.

    Example:
        >>> from torch import nn
        >>> tracked = track(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> tracked.shapes
        {'0.weight': (4, 3), '2.weight': (2, 4)}
    """
    if isinstance(modules, Tracked):
        return modules
    found = _supported(model)
    lora = [name for name in found if _is_lora(name)]
    dense = [
        name
        for name, (kind, _) in found.items()
        if kind in ("linear", "conv1d") and not _is_lora(name)
    ]
    if modules == "all":
        embeddings = biases = True
        chosen = [name for name in found if not _is_lora(name)]
    elif modules == "lora":
        chosen = lora
    elif modules == "linear":
        chosen = dense
    elif modules is None:
        chosen = lora or _with_gradients(model, dense)
    else:
        patterns = [modules] if isinstance(modules, str) else list(modules)
        chosen = _matching(patterns, found, lora or dense, model)
    names = set(chosen)
    if embeddings:
        names |= {name for name, (kind, _) in found.items() if kind == "embedding"}
    return _tracked(model, found, names, biases=biases)


def track_parameters(model: nn.Module, parameters: Iterable[str]) -> Tracked:
    """Track exactly the named parameters.

    Args:
        model: Any model.
        parameters: Names as in `model.named_parameters()`; a tied one by any of its names.

    Returns:
        All modules that hold them, so that a tied parameter has its whole gradient, under the first
        of its names.

    Raises:
        InputError: One of them is a parameter of a module that cannot be tracked.
    """
    found = _supported(model)
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    wanted = {known[id(every[name])] if name in every else name for name in parameters}
    names = {
        name
        for name, (_, module) in found.items()
        if any(known[id(p)] in wanted for p in module.parameters(recurse=False))
    }
    tracked = _tracked(model, found, names, biases=True, only=wanted)
    lone = sorted(wanted - set(tracked.shapes))
    if lone:
        raise InputError(
            f"{lone[0]} cannot be tracked",
            expected="a parameter of linear layers, embeddings or norms, and of nothing else",
        )
    return tracked


def plain_name(name: str) -> str:
    """A name of a PEFT model without what PEFT puts around the base's own.

    Example:
        >>> plain_name("base_model.model.encoder.query.base_layer.weight")
        'encoder.query.weight'
    """
    plain = name.removeprefix("_orig_mod.").removeprefix("base_model.model.")
    return _WRAPPED.sub(".", f"{plain}.").removesuffix(".")


def _supported(model: nn.Module) -> dict[str, tuple[Kind, nn.Module]]:
    """Name to kind of all modules whose per-example gradients are known here."""
    found: dict[str, tuple[Kind, nn.Module]] = {}
    idle = _idle_adapters(model)
    for name, module in model.named_modules():
        kind = _kind(name, module)
        if kind is not None and name not in idle:
            found[name] = (kind, module)
    return found


def _kind(name: str, module: nn.Module) -> Kind | None:
    from transformers.pytorch_utils import Conv1D

    leaf: Any = type(module)
    if isinstance(module, Conv1D):
        return "conv1d"
    # A subclass with a call of its own (a quantised layer) has gradients of its own.
    if isinstance(module, nn.Linear):
        return "linear" if leaf.forward is nn.Linear.forward else None
    if isinstance(module, nn.Embedding):
        plain = leaf.forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        unusual = module.max_norm is not None or module.scale_grad_by_freq
        between = name.endswith(_BETWEEN_POSITIONS)
        return "embedding" if plain and not unusual and not between else None
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    if leaf.__name__.endswith(_NORM) and weight is not None and weight.ndim == 1:
        batch_norm = isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)  # noqa: SLF001
        return None if batch_norm or set(own) - {"weight", "bias"} else "norm"
    return None


def _idle_adapters(model: nn.Module) -> set[str]:
    """Names of modules that PEFT does not call: copies and adapters that are not active."""
    idle: set[str] = set()
    for name, module in model.named_modules():
        for holder in ("lora_A", "lora_B", "modules_to_save"):
            copies = getattr(module, holder, None)
            if not isinstance(copies, nn.ModuleDict):
                continue
            wrapper: Any = module
            active = wrapper.active_adapters
            for key, copy in copies.items():
                if key not in active:
                    idle |= _inside(f"{name}.{holder}.{key}", copy)
            original = getattr(module, "original_module", None)
            if isinstance(original, nn.Module) and any(key in active for key in copies):
                idle |= _inside(f"{name}.original_module", original)
    return idle


def _inside(name: str, module: nn.Module) -> set[str]:
    return {f"{name}.{inner}".rstrip(".") for inner, _ in module.named_modules()}


def _is_lora(name: str) -> bool:
    return any(f in f".{name}" for f in _LORA)


def _with_gradients(model: nn.Module, names: Sequence[str]) -> list[str]:
    taking = [name for name in names if _weight_of(model.get_submodule(name)).requires_grad]
    if not taking and names and not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            f"{type(model).__name__} is frozen: none of its parameters requires a gradient",
            expected="at least the parameters that were trained to require one",
            fix="say which were, for example modules='linear', or call requires_grad_() on them",
        )
    return taking


def _matching(
    patterns: Sequence[str],
    found: Mapping[str, tuple[Kind, nn.Module]],
    usual: Sequence[str],
    model: nn.Module,
) -> list[str]:
    chosen: list[str] = []
    for pattern in patterns:
        matches = [name for name in usual if _matches(pattern, name, inside=True)]
        matches = matches or [name for name in found if _matches(pattern, name, inside=False)]
        if not matches:
            shown = ", ".join(list(usual)[:3])
            raise InputError(
                f"{pattern!r} matches no module of {type(model).__name__} that can be tracked",
                expected=f"names such as {shown}" if shown else "a linear layer, embedding or norm",
                fix=_instead(pattern, found, model),
            )
        chosen += matches
    return chosen


def _instead(pattern: str, found: Iterable[str], model: nn.Module) -> str | None:
    """What may have been meant by a pattern that matches nothing."""
    if any(_matches(f"*.{pattern}", name, inside=True) for name in found):
        return f"'*.{pattern}' takes every module of that name"
    if any(_matches(pattern, name, inside=True) for name, _ in model.named_modules()):
        return "it is there, and its gradient by example is not known here: name another"
    return None


def _matches(pattern: str, name: str, *, inside: bool) -> bool:
    for known in (name, plain_name(name)):
        parts = known.split(".")
        ends = range(1, len(parts) + 1) if inside else (len(parts),)
        if any(fnmatchcase(".".join(parts[:end]), pattern) for end in ends):
            return True
    return False


def _tracked(
    model: nn.Module,
    found: Mapping[str, tuple[Kind, nn.Module]],
    names: set[str],
    *,
    biases: bool,
    only: set[str] | None = None,
) -> Tracked:
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    holders: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(name)
    modules: list[TrackedModule] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (kind, module) in found.items():  # in the model's order
        if name not in names:
            continue
        taken: dict[str, str | None] = {"weight": None, "bias": None}
        for leaf in ("weight", "bias") if biases else ("weight",):
            parameter = getattr(module, leaf, None)
            # Of a tied weight all of its modules are tracked, or none is.
            if parameter is None or not holders[id(parameter)] <= names:
                continue
            known = canonical[id(parameter)]
            if only is not None and known not in only:
                continue
            taken[leaf] = known
            shapes[known] = tuple(parameter.shape)
        if any(taken.values()):
            shape = tuple(_weight_of(module).shape)
            modules.append(TrackedModule(name, kind, taken["weight"], taken["bias"], shape))
    if not modules and only is None:
        raise InputError(
            f"there is nothing to track in {type(model).__name__}",
            expected="LoRA factors, or linear layers that require a gradient",
            fix="say which: modules=['classifier', …]",
        )
    left_out = tuple(
        name for name, p in model.named_parameters() if p.requires_grad and name not in shapes
    )
    return Tracked(tuple(modules), shapes, left_out)


def _weight_of(module: nn.Module) -> nn.Parameter:
    weight: Any = module.weight
    return weight  # type: ignore[no-any-return]
