"""Adapters that are no masks yet: the weights that they change most become one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from subnet._files import TensorInfo
from subnet._tables import MAIN_RUN
from subnet.checkpoint import Update, describe_parameter
from subnet.checkpoint.base import NOT_STATED
from subnet.checkpoint.lora import LoraChange
from subnet.checkpoint.peft import Adapter, read_adapters
from subnet.checkpoint.tensors import ADAPTER_CONFIG, TensorStore, has_model, open_file_store
from subnet.checkpoint.update import Change
from subnet.errors import FileFormatError, MissingInputError, NotComparableError
from subnet.language import parse_language
from subnet.subnetwork.extraction import extract
from subnet.subnetwork.foreign.base import StatedBase, state_base
from subnet.subnetwork.foreign.source import LEFT_OUT, Source, Wish
from subnet.subnetwork.mask import Subnetwork

if TYPE_CHECKING:
    import torch

_PREFIX = re.compile(r"^lora_(?:unet|te\d?|transformer|prior_te|prior_unet)_")
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
#: Parts of LyCORIS's and kohya's other adapters, with which ΔW is not s·B·A.
_OTHERS = {
    "lora_mid": "a Tucker decomposition",
    "hada_": "a Hadamard product (LoHa)",
    "lokr_": "a Kronecker product (LoKr)",
    "oft_": "an orthogonal transformation (OFT)",
    "dora_scale": "DoRA",
}


def read_peft(source: Source, wish: Wish) -> list[Subnetwork]:
    """A PEFT folder with one LoRA, or with one per language."""
    if not (source.path / ADAPTER_CONFIG).is_file():
        raise MissingInputError(
            f"is no folder with an {ADAPTER_CONFIG}", path=source.path, expected="a PEFT adapter"
        )
    adapters = read_adapters(source.path)
    labels: tuple[str, ...]
    if len(adapters) == 1:
        labels = (source.language(wish),)
    elif wish.languages is None:
        labels = tuple(str(adapter.name) for adapter in adapters)
    else:
        labels = source.name_languages(len(adapters), wish)
    found: list[Subnetwork] = []
    for adapter, label in zip(adapters, labels, strict=True):
        if label == LEFT_OUT:
            continue
        base = _base_of(adapter, wish.base)
        change = LoraChange(adapter, base.store)
        found.append(_largest(change, label, base.identity, source, wish))
    return found


def _base_of(adapter: Adapter, stated: StatedBase) -> StatedBase:
    """The base as the caller states it, else as the adapter does: opened where it is here.

    In the layout of a checkpoint it is looked for where `extract` finds it, so that both give masks
    over one base.
    """
    if stated.identity != NOT_STATED:
        return stated
    named = adapter.base
    folder = adapter.folder
    root = folder.parent.parent if folder.parent.name == "adapters" else None
    places = [] if named is None else [place / named for place in (root, folder) if place]
    if root and (named is None or PurePosixPath(named.replace("\\", "/")).name == "base"):
        places.append(root / "base")
    for place in places:
        if has_model(place):
            return state_base(place)
    return replace(stated, identity=named or NOT_STATED)


def read_kohya(source: Source, wish: Wish) -> list[Subnetwork]:
    """A LoRA in the naming of kohya's sd-scripts: `lora_down`, `lora_up`, `alpha`."""
    if wish.base.store is None:
        raise MissingInputError(
            "has flattened names (lora_te_text_model_…), which only the base's names can restore",
            path=source.path,
            fix="name the base's folder with --base",
        )
    change = KohyaChange(open_file_store(source.path), wish.base.store)
    return [_largest(change, source.language(wish), wish.base.identity, source, wish)]


@dataclass(frozen=True)
class _Pair:
    """The factors of one module by their names in the file, and s = alpha / rank."""

    up: str
    down: str
    alpha: str | None


class KohyaChange:
    """ΔW = (alpha / r) · up · down, under the names of the base.

    A name is the module's with `_` for `.` behind a prefix, so it is restored by flattening the
    base's names in the same way. Where several modules of the base flatten alike, their shapes
    decide; where those agree too, the file is refused.
    """

    is_low_rank = True
    transposed: frozenset[str] = frozenset()

    def __init__(self, store: TensorStore, base: TensorStore) -> None:
        self._store, self._base = store, base
        self.files = store.paths
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.apart: dict[str, str] = {}
        self._pairs: dict[str, _Pair] = {}
        self._path = store.paths[0]
        flattened: dict[str, list[str]] = {}
        for name in base.infos:
            if name.endswith(".weight"):
                flat = name.removesuffix(".weight").replace(".", "_")
                flattened.setdefault(flat, []).append(name)
        for module, pair in _pairs(store, self._path).items():
            shape = _shape(store.infos[pair.up], store.infos[pair.down], module, self._path)
            name = self._restore(module, shape, flattened)
            if name in self._pairs:
                raise FileFormatError(
                    f"has two LoRAs for {name}", path=self._path, expected="one per module"
                )
            self._pairs[name] = pair
            if len(shape) == 2:
                self.shapes[name] = shape
            else:
                self.apart[name] = "LoRA on convolutions"
        self.shapes = dict(sorted(self.shapes.items()))
        if not self.shapes:
            raise FileFormatError(
                "holds LoRA on convolutions only", path=self._path, expected="LoRA on linear layers"
            )

    def _restore(
        self, module: str, shape: tuple[int, ...], flattened: Mapping[str, list[str]]
    ) -> str:
        """The base's name of a flattened module."""
        plain = _PREFIX.sub("", module)
        candidates = flattened.get(plain) or [
            name
            for flat, names in flattened.items()
            if flat.endswith(f"_{plain}") or plain.endswith(f"_{flat}")
            for name in names
            if describe_parameter(name).layer
        ]
        if not candidates:
            raise NotComparableError(
                f"changes {module}, which no module of {self._base.folder} flattens to",
                path=self._path,
                fix="was it trained on another base?",
            )
        fitting = [name for name in candidates if self._base.infos[name].shape == shape]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise NotComparableError(
                f"changes {module}, which is ambiguous: {' and '.join(sorted(fitting)[:2])} of the "
                "base flatten to it with equal shapes",
                path=self._path,
                fix="save the adapter with PEFT's names",
            )
        raise NotComparableError(
            f"has a change of shape {list(shape)} for {module}",
            path=self._path,
            expected=f"{list(self._base.infos[candidates[0]].shape)}, as {candidates[0]} of the "
            "base has",
            fix="was it trained on another base?",
        )

    def rank(self, parameter: str) -> int:
        """R."""
        return self._store.infos[self._pairs[parameter].down].shape[0]

    def factors(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(s·up [o, r], down [r, i])."""
        pair = self._pairs[parameter]
        rank = self.rank(parameter)
        # Without alpha kohya takes the rank, so that the scale is 1.
        alpha = rank if pair.alpha is None else self._store.read(pair.alpha).item()
        up = self._store.read(pair.up).reshape(-1, rank)
        return up * (alpha / rank), self.first_factor(parameter)

    def first_factor(self, parameter: str) -> torch.Tensor:
        """Down [r, i] as stored; of a 1×1 convolution without its ones."""
        down = self._store.read(self._pairs[parameter].down)
        return down.reshape(down.shape[0], -1)

    def dense(self, parameter: str) -> torch.Tensor:
        """ΔW [o, i]."""
        if parameter in self.apart:
            raise NotComparableError(
                f"{self.apart[parameter]}: {parameter} has no ΔW here", path=self._path
            )
        up, down = self.factors(parameter)
        return up @ down

    def blocks(self, parameter: str) -> Iterator[torch.Tensor]:
        """ΔW in one block."""
        yield self.dense(parameter)

    def value(self, parameter: str) -> torch.Tensor | None:  # noqa: ARG002 - the interface's
        """Nothing is saved whole."""
        return None


def _pairs(store: TensorStore, path: Path) -> dict[str, _Pair]:
    for name in store.infos:
        for part, what in _OTHERS.items():
            if part in name.rpartition(".")[2] or f".{part}" in name:
                raise NotComparableError(
                    f"holds {name}: {what} changes weights otherwise than by s·B·A", path=path
                )
    modules = sorted(
        {name.removesuffix(_DOWN).removesuffix(_UP) for name in store.infos}
        - {name for name in store.infos if not name.endswith((_DOWN, _UP))}
    )
    found = {}
    for module in modules:
        names = (f"{module}{_UP}", f"{module}{_DOWN}")
        missing = [name for name in names if name not in store.infos]
        if missing:
            raise FileFormatError(
                f"has no {missing[0]}", path=path, expected="lora_up and lora_down of every module"
            )
        alpha = f"{module}{_ALPHA}"
        found[module] = _Pair(*names, alpha if alpha in store.infos else None)
    return found


def _shape(up: TensorInfo, down: TensorInfo, module: str, path: Path) -> tuple[int, ...]:
    """Shape of ΔW: [o, i], or [o, i, h, w] of a convolution."""
    ranks = (up.shape[1] if len(up.shape) > 1 else None, down.shape[0] if down.shape else None)
    if len(up.shape) not in (2, 4) or len(up.shape) != len(down.shape) or ranks[0] != ranks[1]:
        raise FileFormatError(
            f"{module} has factors of shapes {list(up.shape)} and {list(down.shape)}",
            path=path,
            expected="[output, rank] and [rank, input]",
        )
    return (up.shape[0], *down.shape[1:])


def _largest(change: Change, label: str, base: str, source: Source, wish: Wish) -> Subnetwork:
    kind: Literal["lora"] = "lora"
    update = Update(
        language=parse_language(label),
        run=MAIN_RUN,
        source=source.path,
        kind=kind,
        base=base,
        shapes=change.shapes,
        initialisation={},
        _change=change,
    )
    (found,) = extract([update], density=wish.density)
    left_out = {"parameters_left_out": sorted(change.apart)} if change.apart else {}
    return replace(found, settings={**found.settings, **source.settings(**left_out)})
