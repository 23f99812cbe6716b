"""Putting the weights of another time into a live model, and putting its own back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet.checkpoint.peft import read_config
from subnet.checkpoint.tensors import (
    ADAPTER_CONFIG,
    TensorStore,
    open_adapter_store,
    open_file_store,
    open_model_store,
)
from subnet.errors import FileFormatError, InputError, NotComparableError
from subnet.influence.checkpoints import Point

#: Settings of a LoRA without which its factors are another update.
_SCALE = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


@contextlib.contextmanager
def restored(model: nn.Module, points: Sequence[Point]) -> Iterator[None]:
    """Put the weights that the model has now back afterwards, bitwise."""
    changed = any(point.weights is not None for point in points)
    before = (
        {name: value.detach().clone() for name, value in _targets(model).items()} if changed else {}
    )
    try:
        yield
    finally:
        targets = _targets(model) if before else {}
        with torch.no_grad():
            for name, value in before.items():
                targets[name].copy_(value)


def put_weights(model: nn.Module, point: Point) -> None:
    """Put a point's weights into the model: of a PEFT model, those of its active adapter.

    Raises:
        FileFormatError: Weights are missing, left over, or not finite.
        NotComparableError: The adapter has another scale or rank than the model's.
    """
    if point.weights is None:
        return
    targets = _targets(model)
    path = point.weights if isinstance(point.weights, Path) else None
    if path is not None:
        _check_scale(model, path)
        values = _read(path, is_peft=_is_peft(model))
    else:
        given: Any = point.weights
        values = dict(given)
    lone = sorted(values.keys() - targets.keys())
    places = {targets[name].data_ptr() for name in values if name in targets}
    absent = [name for name in targets if name not in values]
    absent = [name for name in absent if targets[name].data_ptr() not in places]
    if lone or absent:
        name = (lone or absent)[0]
        raise FileFormatError(
            f"{'holds' if lone else 'has no'} {name}, which the model "
            f"{'has not' if lone else 'needs'}",
            path=path,
            expected="the weights of this model at another time",
        )
    with torch.no_grad():
        for name, value in values.items():
            if value.shape != targets[name].shape:
                raise NotComparableError(
                    f"{name} is {list(value.shape)}",
                    path=path,
                    expected=f"{list(targets[name].shape)}, as in the model",
                )
            if targets[name].is_meta:
                raise InputError(
                    f"{name} is offloaded, and cannot take the weights of a checkpoint",
                    path=path,
                    expected="a model all of whose weights are in memory",
                    fix="load the checkpoint itself with the same device_map and give no other",
                )
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise InputError(
                    f"{name} holds values that are NaN or infinite",
                    path=path,
                    expected="finite weights",
                    fix="training diverged here: leave this checkpoint out",
                )
            targets[name].copy_(value)


def _is_peft(model: nn.Module) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _targets(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the model that a checkpoint holds, by the names that it has for them."""
    if not _is_peft(model):
        return {name: value for name, value in model.state_dict().items() if value is not None}
    from peft import get_peft_model_state_dict

    peft_model: Any = model
    return get_peft_model_state_dict(  # type: ignore[no-any-return]
        peft_model, adapter_name=peft_model.active_adapter, save_embedding_layers=False
    )


def _check_scale(model: nn.Module, path: Path) -> None:
    has_adapter = path.is_dir() and (path / ADAPTER_CONFIG).is_file()
    if has_adapter and not _is_peft(model):
        raise NotComparableError(
            f"holds an adapter, and {type(model).__name__} has none",
            path=path,
            expected="weights of the model",
            fix="give the PEFT model, for example load_model(..., adapter=folder)",
        )
    if not has_adapter:
        return
    peft_model: Any = model
    own = peft_model.peft_config[peft_model.active_adapter].to_dict()
    other = read_config(path)
    for key in _SCALE:
        mine, theirs = own.get(key), other.get(key)
        if (mine or None) != (theirs or None):
            raise NotComparableError(
                f"{key} of the adapter is {theirs!r}", path=path, expected=f"{mine!r}, as the model"
            )


def _read(path: Path, *, is_peft: bool) -> dict[str, Tensor]:
    if path.is_file() and path.suffix != ".safetensors":
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling fails in many ways
            raise FileFormatError(
                f"cannot be read as weights ({str(error).splitlines()[0]})",
                path=path,
                expected="a state_dict, or safetensors",
            ) from error
        if not isinstance(content, dict) or not all(
            isinstance(v, Tensor) for v in content.values()
        ):
            raise FileFormatError("is no state_dict", path=path, expected="names and tensors")
        return content
    if path.is_file():
        return _tensors(open_file_store(path))
    return _tensors(open_adapter_store(path) if is_peft else open_model_store(path))


def _tensors(store: TensorStore) -> dict[str, Tensor]:
    """All tensors in the type that they are stored in."""
    from safetensors import safe_open

    stored = {store.aliases.get(name, name): name for name in store.infos}
    found: dict[str, Tensor] = {}
    for path in store.paths:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                found[stored[name]] = file.get_tensor(name)
    return found
