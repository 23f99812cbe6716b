"""SHA-256 of what gradients depend on: weights, examples as the model meets them, masks."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.influence._examples import Examples
from subnet.influence.restriction import Restriction
from subnet.influence.tracking import _idle_adapters


class ModelHash:
    """SHA-256 of a model's weights at one time after the other.

    Of parameters and buffers: names, shapes, types and content; without adapters that are not
    active, which take no part. Tensors that have not changed in between are read once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._idle = _idle_adapters(model)
        self._seen: dict[str, tuple[int, int, bytes]] = {}

    def now(self) -> str:
        """As hexadecimal digits.

        Raises:
            InputError: A tensor is not in memory.
        """
        total = hashlib.sha256(type(self._model).__name__.encode())
        for name, tensor in [*self._model.named_parameters(), *self._model.named_buffers()]:
            if name.rpartition(".")[0] in self._idle:
                continue
            if tensor.is_meta:
                raise InputError(
                    f"{name} is offloaded: it is not in memory",
                    expected="a model all of whose weights are",
                    fix="load it without offloading, over more devices or in bfloat16",
                )
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            place, version = tensor.data_ptr(), tensor._version  # noqa: SLF001 - counts changes
            seen = self._seen.get(name)
            if seen is None or seen[:2] != (place, version):
                seen = (place, version, hashlib.sha256(_bytes(tensor)).digest())
                self._seen[name] = seen
            total.update(seen[2])
        return total.hexdigest()


def hash_examples(examples: Examples, batch_size: int) -> str:
    """SHA-256 of the batches that the model is given.

    Raises:
        InputError: A batch holds something that is neither tensor, number nor text.
    """
    total = hashlib.sha256()
    for numbers, batch in examples.batches(batch_size):
        total.update(f"{len(numbers)}".encode())
        _update(total, batch)
    return total.hexdigest()


def hash_restriction(restriction: Restriction | None) -> str | None:
    """SHA-256 of the masks; None where there are none."""
    if restriction is None:
        return None
    total = hashlib.sha256()
    for name, mask in sorted(restriction.masks.items()):
        total.update(f"{name} {tuple(mask.shape)}".encode())
        total.update(np.packbits(mask.cpu().numpy()).tobytes())
    return total.hexdigest()


def name_of(function: Any) -> str:
    """What a function is known by, and its source where that can be read."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    if name == ".":
        name = f"{type(function).__module__}.{type(function).__qualname__}"
    try:
        source = inspect.getsource(function)
    except (TypeError, OSError):
        return name
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


def _update(total: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        total.update(f"tensor {tuple(value.shape)} {value.dtype}".encode())
        total.update(_bytes(value))
    elif isinstance(value, Mapping):
        total.update(b"mapping")
        for key in sorted(value, key=str):
            total.update(repr(key).encode())
            _update(total, value[key])
    elif isinstance(value, list | tuple):
        total.update(f"list {len(value)}".encode())
        for entry in value:
            _update(total, entry)
    elif value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        total.update(repr(value).encode())
    else:
        raise InputError(
            f"a batch holds a {type(value).__name__}, by which it cannot be told from another",
            expected="tensors, numbers and text, where gradients are stored",
        )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1).cpu()
    return flat.view(torch.uint8).numpy().data
