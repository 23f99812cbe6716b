"""ΔW of a LoRA adapter, from the files alone where that is possible.

The scale is resolved by PEFT itself on a skeleton of meta tensors, so `use_rslora`, `rank_pattern`
and `alpha_pattern` mean here what they mean there, without the base's weights.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.checkpoint.modules import describe_parameter
from subnet.checkpoint.peft import REPEATABLE, Adapter
from subnet.checkpoint.tensors import ADAPTER_CONFIG, FLOATING, TensorStore
from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    NotComparableError,
    SubnetError,
)

if TYPE_CHECKING:
    import torch


class LoraChange:
    """ΔW of an adapter, parameter by parameter, in the orientation of the base's `state_dict`.

    A layer that stores its weight as [input, output] (GPT-2's `Conv1D`, `fan_in_fan_out`) has
    ΔWᵀ = s·B·A, so its factors are (s·Aᵀ, Bᵀ).
    """

    def __init__(self, adapter: Adapter, base: TensorStore | None) -> None:
        if adapter.refusal:
            raise NotComparableError(f"cannot be read: {adapter.refusal}", path=adapter.folder)
        if adapter.needs_base and base is None:
            raise MissingInputError(
                f"{adapter.needs_base}, which are not here",
                path=adapter.folder,
                fix="put the base model's folder into the directory as base/",
            )
        self.adapter = adapter
        self._base = base
        self.is_low_rank = not adapter.config.get("use_dora")
        self.transposed = _transposed(adapter, base)
        self.shapes = {name: self._shape(name) for name in adapter.pairs}
        self.apart = {name: kind for name, (kind, _) in sorted(adapter.apart.items())}
        self.files = adapter.store.paths
        if base is not None:
            _check_base(adapter, base)

    def _shape(self, parameter: str) -> tuple[int, ...]:
        pair = self.adapter.pairs[parameter]
        shape = (pair.b_shape[0], pair.a_shape[1])
        return shape[::-1] if parameter in self.transposed else shape

    @property
    def _repeats_initialisation(self) -> bool:
        return self.adapter.initialisation in REPEATABLE

    def scaling(self, parameter: str) -> float:
        """s, as PEFT resolves it for this module."""
        return _scaling(self.adapter)[parameter.removesuffix(".weight")]

    def rank(self, parameter: str) -> int:
        """Number of columns of the left factor."""
        return self.adapter.pairs[parameter].rank * (2 if self._repeats_initialisation else 1)

    def first_factor(self, parameter: str) -> torch.Tensor:
        """LoRA's A [r, i] as stored."""
        return self.adapter.store.read(self.adapter.pairs[parameter].a)

    def factors(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(left [o, r], right [r, i]) with the scale in the left one."""
        import torch

        if not self.is_low_rank:
            raise NotComparableError(
                "DoRA's change has no low-rank factors", path=self.adapter.folder, fix="use dense()"
            )
        b, a = self._product(parameter)
        if self._repeats_initialisation:
            b_start, a_start = self._start(parameter)
            b, a = torch.cat([b, -b_start], dim=1), torch.cat([a, a_start], dim=0)
        return (a.T.contiguous(), b.T.contiguous()) if parameter in self.transposed else (b, a)

    def dense(self, parameter: str) -> torch.Tensor:
        """ΔW in the base's shape."""
        if parameter in self.apart:
            return self._apart(parameter)
        if self.is_low_rank:
            left, right = self.factors(parameter)
            return left @ right
        return self._dora(parameter)

    def blocks(self, parameter: str) -> Iterator[torch.Tensor]:
        """ΔW in one block."""
        yield self.dense(parameter)

    def _product(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(s·B [o, r], A [r, i]), whatever the base's orientation."""
        pair = self.adapter.pairs[parameter]
        b = self.adapter.store.read(pair.b) * self.scaling(parameter)
        return b, self.adapter.store.read(pair.a)

    def _base_weight(self, parameter: str) -> torch.Tensor:
        """θ₀ as [o, i]."""
        found = None if self._base is None else self._base.find(parameter)
        if self._base is None or found is None:
            raise MissingInputError(
                f"{parameter} needs the base's weight, which is not stored under that name",
                path=self.adapter.folder,
                fix="save the base with this weight untied",
            )
        weight = self._base.read(found)
        return weight.t() if parameter in self.transposed else weight

    def _dora(self, parameter: str) -> torch.Tensor:
        """M · V / ‖V‖ − θ₀ with V = θ₀ + s·B·A, norms over rows (Liu et al. 2024, 2402.09353)."""
        pair = self.adapter.pairs[parameter]
        if pair.magnitude is None:
            raise FileFormatError(
                f"{parameter} has no lora_magnitude_vector",
                path=self.adapter.folder,
                expected="one per module, as use_dora says",
            )
        b, a = self._product(parameter)
        weight = self._base_weight(parameter)
        direction = weight + b @ a
        magnitude = self.adapter.store.read(pair.magnitude).flatten()
        change: torch.Tensor = (magnitude / direction.norm(dim=1))[:, None] * direction - weight
        return change.T.contiguous() if parameter in self.transposed else change

    def _start(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(s·B₀, A₀) that the initialisation took out of the base, computed again by PEFT."""
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        weight = self._base_weight(parameter)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        pair = self.adapter.pairs[parameter]
        config = LoraConfig(
            r=pair.rank,
            # alpha = r · s makes PEFT's own α/r this module's scale, on which PiSSA depends.
            lora_alpha=self.scaling(parameter) * pair.rank,
            target_modules=["layer"],
            init_lora_weights=self.adapter.initialisation,
        )
        layer = inject_adapter_in_model(config, torch.nn.ModuleDict({"layer": linear}))["layer"]
        b = layer.lora_B["default"].weight.detach() * self.scaling(parameter)
        return b, layer.lora_A["default"].weight.detach()

    def value(self, parameter: str) -> torch.Tensor | None:
        """θ itself of a parameter that was saved whole, None where the file holds a change."""
        kind, keys = self.adapter.apart.get(parameter, ("", ()))
        return self.adapter.store.read(keys[0]) if kind in ("saved modules", "biases") else None

    def _apart(self, parameter: str) -> torch.Tensor:
        kind, keys = self.adapter.apart[parameter]
        if kind == "LoRA on embeddings":
            a, b = (self.adapter.store.read(key) for key in keys)
            return (b @ a).T.contiguous() * self.scaling(parameter)
        if kind == "LoRA bias":
            return self.adapter.store.read(keys[0]) * self.scaling(
                parameter.removesuffix(".bias") + ".weight"
            )
        if kind in ("LoRA on convolutions", "trained tokens"):
            raise NotComparableError(
                f"{kind}: {parameter} has no ΔW here", path=self.adapter.folder
            )
        found = None if self._base is None else self._base.find(parameter)
        if self._base is None or found is None:
            raise MissingInputError(
                f"{parameter} was trained, and the base's value of it is not here",
                path=self.adapter.folder,
                fix="it may be a head that the base does not have",
            )
        return self.adapter.store.read(keys[0]) - self._base.read(found)


def _transposed(adapter: Adapter, base: TensorStore | None) -> frozenset[str]:
    """Parameters that the base stores as [input, output].

    The base's shape decides where it is known. A square matrix follows the others of its layer,
    because PEFT writes into `fan_in_fan_out` what the last adapted module needed.
    """
    stated = bool(adapter.config.get("fan_in_fan_out"))
    if base is None:
        return frozenset(adapter.pairs) if stated else frozenset()
    decided: dict[str, bool] = {}
    for name, pair in adapter.pairs.items():
        shape = (pair.b_shape[0], pair.a_shape[1])
        found = base.find(name)
        if found is not None and shape[0] != shape[1]:
            decided[name] = base.infos[found].shape == shape[::-1]
    votes: dict[str, set[bool]] = {}
    for name, is_transposed in decided.items():
        votes.setdefault(describe_parameter(name).layer, set()).add(is_transposed)
    for name in adapter.pairs:
        if name not in decided:
            agreed = votes.get(describe_parameter(name).layer, set())
            decided[name] = next(iter(agreed)) if len(agreed) == 1 else stated
    return frozenset(name for name, is_transposed in decided.items() if is_transposed)


def _check_base(adapter: Adapter, base: TensorStore) -> None:
    """Refuse an adapter whose modules the base does not have."""
    for name, pair in adapter.pairs.items():
        found = base.find(name)
        shape = (pair.b_shape[0], pair.a_shape[1])
        info = None if found is None else base.infos[found]
        if info is None:
            # An output layer tied to the embeddings is not stored, so its absence proves nothing.
            if not describe_parameter(name).layer:
                continue
            problem = "has no such module"
        elif info.dtype in FLOATING and info.shape not in (shape, shape[::-1]):
            problem = f"has {list(info.shape)} there, not {list(shape)}"
        else:
            continue
        raise NotComparableError(
            f"has rank {pair.rank} on {name.removesuffix('.weight')} but {base.folder} {problem}: "
            f"was it trained on another base? (stated base: {adapter.base or 'none'})",
            path=adapter.folder,
        )


def _scaling(adapter: Adapter) -> Mapping[str, float]:
    modules = []
    for name, pair in adapter.pairs.items():
        shape = (pair.b_shape[0], pair.a_shape[1], pair.rank)
        modules.append(("linear", name.removesuffix(".weight"), *shape))
    for name, (kind, keys) in adapter.apart.items():
        if kind == "LoRA on embeddings":
            (r, vocabulary), (width, _) = (adapter.store.infos[key].shape for key in keys)
            modules.append(("embedding", name.removesuffix(".weight"), width, vocabulary, r))
    return _resolve_scaling(
        json.dumps(adapter.config, sort_keys=True), tuple(modules), str(adapter.folder)
    )


@functools.lru_cache(maxsize=256)
def _resolve_scaling(
    config_json: str, modules: tuple[tuple[str, str, int, int, int], ...], folder: str
) -> Mapping[str, float]:
    """Scale per module, from PEFT's own layers on a skeleton of meta tensors."""
    try:
        return _scaling_by_peft(json.loads(config_json), modules, folder)
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError) as error:
        if isinstance(error, SubnetError):
            raise
        raise FileFormatError(
            f"has settings that PEFT cannot use ({error})",
            path=Path(folder) / ADAPTER_CONFIG,
            expected="the file that PEFT wrote",
        ) from error


def _scaling_by_peft(
    settings: Mapping[str, Any], modules: Iterable[tuple[str, str, int, int, int]], folder: str
) -> Mapping[str, float]:
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig.from_peft_type(**settings)
    config.target_modules = {name for _, name, *_ in modules}
    # Everything that would ask the skeleton for weights, heads or layers that it does not have.
    config.init_lora_weights = True
    config.use_dora = config.lora_bias = config.inference_mode = False
    config.modules_to_save = config.exclude_modules = config.trainable_token_indices = None
    config.layers_to_transform = config.layers_pattern = None
    config.bias = "none"
    skeleton = torch.nn.Module()
    with torch.device("meta"):
        for kind, name, out, wide, _ in sorted(modules, key=lambda module: module[1].count(".")):
            leaf = (
                torch.nn.Embedding(wide, out) if kind == "embedding" else torch.nn.Linear(wide, out)
            )
            parent = skeleton
            *above, last = name.split(".")
            for part in above:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, torch.nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, leaf)
    with warnings.catch_warnings():
        # The skeleton is made of nn.Linear: that fan_in_fan_out does not fit it is known.
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, skeleton, low_cpu_mem_usage=True)
    scaling = {}
    for _, name, _, _, rank in modules:
        layer: Any = skeleton.get_submodule(name)
        if layer.r["default"] != rank:
            raise InputError(
                f"{name} has factors of rank {rank}, {ADAPTER_CONFIG} says {layer.r['default']}",
                path=folder,
                fix="the configuration and the weights are of different adapters",
            )
        scaling[name] = float(layer.scaling["default"])
    return scaling
