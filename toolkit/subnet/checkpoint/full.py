"""Fully fine-tuned weights against their base, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from subnet.checkpoint.tensors import FLOATING, TensorStore
from subnet.errors import MissingInputError, NotComparableError

if TYPE_CHECKING:
    import torch

_EMBEDDINGS = re.compile(r"embed|(^|\.)(shared|wte|wpe|relative_attention_bias)\.")
_HEADS = re.compile(r"(^|\.)(classifier|score|qa_outputs|lm_head|cls|pre_classifier|pooler)\.")


class FullChange:
    """θ − θ₀ of a fine-tuned model; what is no weight matrix of a layer stands apart."""

    is_low_rank = False
    transposed: frozenset[str] = frozenset()

    def __init__(self, store: TensorStore, base: TensorStore) -> None:
        self._store, self._base = store, base
        self.files = store.paths
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.apart: dict[str, str] = {}
        in_base = base.tied()
        tied = {name for name in store.tied() if base.find(name) in (None, *in_base)}
        for name in sorted(store.infos):
            info = store.infos[name]
            if info.dtype not in FLOATING or name in tied:
                continue
            kind = self._kind(name)
            if kind:
                self.apart[name] = kind
            else:
                self.shapes[name] = info.shape
        if not self.shapes:
            raise NotComparableError(
                f"shares no weight matrix with {base.folder}",
                path=store.folder,
                expected="a model of the same architecture",
                fix="was it trained on another base?",
            )

    def _kind(self, name: str) -> str | None:
        """What a parameter is that stands apart, None for the weight matrix of a layer."""
        shape = self._store.infos[name].shape
        found = self._base.find(name)
        if found is None:
            return "not in the base"
        base = self._base.infos[found]
        if base.shape != shape:
            return f"shape {list(shape)}, in the base {list(base.shape)}"
        if base.dtype not in FLOATING:
            return "quantised in the base"
        if name.endswith("bias") and len(shape) == 1:
            return "biases"
        if _EMBEDDINGS.search(name):
            return "embeddings"
        if _HEADS.search(name):
            return "head"
        return None if len(shape) == 2 else f"{len(shape)}-dimensional parameters"

    def rank(self, parameter: str) -> int:
        """The smaller side: a full update has no rank of its own."""
        return min(self.shapes[parameter])

    def factors(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """There are none."""
        raise NotComparableError(
            f"{parameter} was fully fine-tuned and has no low-rank factors",
            path=self._store.folder,
            fix="use dense()",
        )

    def first_factor(self, parameter: str) -> torch.Tensor:
        """There is none."""
        return self.factors(parameter)[1]

    def value(self, parameter: str) -> torch.Tensor | None:
        """θ itself."""
        return self._store.read(parameter) if parameter in self._store.infos else None

    def dense(self, parameter: str) -> torch.Tensor:
        """θ − θ₀."""
        found = self._in_base(parameter)
        return self._store.read(parameter) - self._base.read(found)

    def blocks(self, parameter: str) -> Iterator[torch.Tensor]:
        """θ − θ₀ in blocks of rows."""
        found = self._in_base(parameter)
        pairs = zip(self._store.blocks(parameter), self._base.blocks(found), strict=True)
        for after, before in pairs:
            yield after - before

    def _in_base(self, parameter: str) -> str:
        """Name of a parameter in the base, where both are of one shape."""
        found = self._base.find(parameter)
        if found is None:
            raise MissingInputError(
                f"{parameter} is not in {self._base.folder}", path=self._store.folder
            )
        if self._base.infos[found].shape != self._store.infos[parameter].shape:
            raise NotComparableError(
                f"{parameter} has {self.apart[parameter]}", path=self._store.folder
            )
        return found
