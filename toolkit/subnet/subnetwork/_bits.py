"""Packed bits: eight mask entries per byte, row-major, lowest bit first, padding zero.

The layout is that of `numpy.packbits(..., bitorder="little")`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]


def n_bytes(size: int) -> int:
    """Bytes that hold `size` bits."""
    return -(-size // 8)


def pack(mask: NDArray[Any]) -> Bits:
    """Boolean array of any shape to [ceil(size / 8)] bytes."""
    return np.packbits(np.ascontiguousarray(mask, dtype=np.bool_).reshape(-1), bitorder="little")


def unpack(bits: Bits, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[ceil(size / 8)] bytes to a boolean array of `shape`."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(bits, count=size, bitorder="little").astype(np.bool_).reshape(shape)


def count(bits: Bits) -> int:
    """Number of set bits."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def invert(bits: Bits, size: int) -> Bits:
    """The other bits set, padding still zero."""
    inverted = ~bits
    if size % 8:
        inverted[-1] &= np.uint8((1 << size % 8) - 1)
    return inverted


def padding_is_zero(bits: Bits, size: int) -> bool:
    """Whether the bits behind the last entry are zero."""
    return size % 8 == 0 or int(bits[-1]) >> (size % 8) == 0
