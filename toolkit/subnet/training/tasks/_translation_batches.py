"""Batches of pairs in tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subnet.training.tasks._translation_encoding import Encoded
from subnet.training.tasks._translation_rows import Pair

if TYPE_CHECKING:
    from torch import Tensor

_IGNORED = -100


def feature_of(encoded: Encoded, *, encoder_decoder: bool) -> dict[str, Any]:
    """A pair as the model takes it in training; a decoder's prompt has no part in the loss."""
    if encoder_decoder:
        return {"input_ids": encoded.prompt, "labels": encoded.target}
    return {
        "input_ids": [*encoded.prompt, *encoded.target],
        "labels": [*[_IGNORED] * len(encoded.prompt), *encoded.target],
    }


def make_batch(features: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """Tensors of features, padded on the right; sentences to align where there are any."""
    import torch

    ids = [feature["input_ids"] for feature in features]
    batch: dict[str, Any] = {
        "input_ids": pad(ids, padding),
        "attention_mask": mask_of(ids),
        "labels": pad([feature["labels"] for feature in features], _IGNORED),
    }
    parts = [feature["alignment"] for feature in features if "alignment" in feature]
    if parts:
        aligned = {"group": torch.tensor([part["group"] for part in parts])}
        for side in ("a", "b"):
            rows = [part[side] for part in parts]
            aligned[side], aligned[f"{side}_mask"] = pad(rows, padding), mask_of(rows)
        batch["alignment"] = aligned
    return batch


def group_of(pair: Pair) -> int:
    """A number for what a pair means: of its concept, or else of its source."""
    key = pair.concept or f"{pair.source_language.tag} {pair.source}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Rows of tokens as a tensor [n, t], filled on the right or left."""
    import torch

    width = max(map(len, rows))
    filled = []
    for row in rows:
        fill = [value] * (width - len(row))
        filled.append([*fill, *row] if left else [*row, *fill])
    return torch.tensor(filled)


def mask_of(rows: Sequence[Sequence[int]], *, left: bool = False) -> Tensor:
    """1 for tokens, 0 for padding: [n, t]."""
    return pad([[1] * len(row) for row in rows], 0, left=left)
