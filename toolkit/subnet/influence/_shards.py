"""Shards of a gradient store: what stands in a file, and what a number becomes in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from subnet.errors import FileFormatError
from subnet.influence._store_header import Header, Shard
from subnet.influence.collecting import Blocks

#: Types that gradients are stored in, with their bytes per number.
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_BLOCK, _SCALE = "gradient.", "scale"
#: Half precision holds magnitudes from 2⁻¹⁴ to 2¹⁶: each example is scaled by a power of 2 so that
#: its largest number is just below 2¹⁵.
_TOP_EXPONENT, _LEAST_EXPONENT = 15, -100


def encoded(blocks: Blocks, dtype: str) -> dict[str, Tensor]:
    """Gradients as they stand in a shard: in float16 with the scale of each example."""
    if dtype != "float16":
        return {_BLOCK + name: b.to(DTYPES[dtype]).cpu().contiguous() for name, b in blocks.items()}
    largest = torch.stack([b.abs().flatten(1).amax(dim=1).double().cpu() for b in blocks.values()])
    exponent = torch.frexp(largest.amax(dim=0)).exponent.clamp(min=_LEAST_EXPONENT)
    up = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), _TOP_EXPONENT - exponent)
    found = {_SCALE: 1 / up}
    for name, block in blocks.items():
        scaled = block * up.to(block).reshape(-1, *[1] * (block.ndim - 1))
        found[_BLOCK + name] = scaled.to(torch.float16).cpu().contiguous()
    return found


def bytes_of(header: Header, shard: Shard) -> int:
    """Bytes of a shard's gradients, without the few of its own header."""
    each = sum(math.prod(shape) for shape in header.blocks.values())
    scale = 8 if header.dtype == "float16" else 0
    return (shard.stop - shard.start) * (each * DTYPES[header.dtype].itemsize + scale)


def read_shard(
    path: Path, header: Header, shard: Shard, rows: Sequence[int] | None = None
) -> Blocks:
    """Gradients of a shard's examples, or of some, in float32 at least; mapped, not copied.

    Raises:
        FileFormatError: The file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: Blocks = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:

            def part(name: str) -> Tensor:
                if rows is None:
                    return file.get_tensor(name)  # type: ignore[no-any-return]
                return file.get_slice(name)[rows]  # type: ignore[no-any-return]

            scale = part(_SCALE) if header.dtype == "float16" else None
            for name, shape in header.blocks.items():
                block = part(_BLOCK + name)
                n = shard.stop - shard.start if rows is None else len(rows)
                if tuple(block.shape) != (n, *shape):
                    raise FileFormatError(
                        f"{name} is {list(block.shape)}", path=path,
                        expected=f"{[n, *shape]}",
                    )  # fmt: skip
                found[name] = _decoded(block, scale)
    except SafetensorError as error:
        raise FileFormatError(
            f"is damaged ({error})",
            path=path,
            fix="remove it and run again what was making the store",
        ) from error
    return found


def _decoded(block: Tensor, scale: Tensor | None) -> Tensor:
    wide = block.to(torch.promote_types(block.dtype, torch.float32))
    if scale is None:
        return wide
    return wide * scale.to(wide).reshape(-1, *[1] * (wide.ndim - 1))
