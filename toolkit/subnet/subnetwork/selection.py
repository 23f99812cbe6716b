"""Exact top-k by magnitude over blocks that need not fit into memory together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError
from subnet.subnetwork import _bits
from subnet.subnetwork._bits import Bits

#: Values looked at together: small enough for the temporaries to stay in the processor's cache,
#: and a multiple of 8, so that every chunk starts on a byte of the packed bits.
_CHUNK = 1 << 17
_BINS = 1 << 16
#: Bit pattern of float32 infinity; NaN lies above.
_INFINITY = 0x7F800000


@dataclass(frozen=True)
class Selection:
    """The k values of largest magnitude.

    Attributes:
        bits: Name to packed bits, 1 where selected.
        signs: Name to packed bits, 1 where selected and negative.
        count: Number of selected values.
        threshold: Smallest selected magnitude; infinity where none is selected.
        n_zero: Number of values that are exactly zero.
    """

    bits: Mapping[str, Bits]
    signs: Mapping[str, Bits]
    count: int
    threshold: float
    n_zero: int


def top_k(
    read: Callable[[str], Any],
    shapes: Mapping[str, tuple[int, ...]],
    k: int,
    *,
    skip_zeros: bool = False,
    source: str | Path | None = None,
) -> Selection:
    """Select exactly k values of largest magnitude; ties go to the earlier name, then index.

    Each block is read three times and dropped: a histogram over the upper 16 bits of the
    magnitudes' float32 pattern finds the bin of the k-th largest, a second one over the lower 16
    bits of that bin finds its exact value, the third reading writes the bits. (Bit patterns of
    non-negative floats are ordered as the floats are.) Memory is one block, its packed bits and
    two histograms, whatever k is.

    Args:
        read: Gives the block of a name: array or tensor of the stated shape, taken as float32, or
            an iterator over such blocks of its rows, each but the last of a multiple of eight
            values. Must give the same values each time.
        shapes: Name to shape. Names are taken in sorted order, indices row-major.
        k: How many to select, 0 to the number of values.
        skip_zeros: Select no exact zeros: fewer than k where fewer values are non-zero.
        source: Where the values are from, for error messages.

    Raises:
        InputError: A block holds NaN or infinity (names it), has another shape than stated, or k is
            out of range.

    Example:
        >>> import numpy as np
        >>> blocks = {"a": np.array([1.0, -3.0]), "b": np.array([3.0, 2.0])}
        >>> found = top_k(blocks.__getitem__, {"a": (2,), "b": (2,)}, 2)
        >>> found.bits["a"].item(), found.bits["b"].item(), found.threshold
        (2, 1, 3.0)
    """
    names = sorted(shapes)
    total = sum(math.prod(shapes[name]) for name in names)
    if not 0 <= k <= total:
        raise InputError(f"k is {k}", path=source, expected=f"0 to {total}, the number of values")

    upper = np.zeros(_BINS, dtype=np.int64)
    n_zero = 0
    for name in names:
        n_bad = 0
        for _, chunk in _chunks(read, name, shapes[name], source):
            patterns, lowest = _patterns(chunk), int(upper[0])
            counts = _tally(upper, patterns >> 16)
            n_bad += int(counts[_INFINITY >> 16 :].sum())
            if upper[0] > lowest:  # zeros, and the tiniest subnormal numbers
                n_zero += int(patterns.size - np.count_nonzero(patterns))
        if n_bad:
            raise InputError(
                f"{name} holds {n_bad} values that are NaN or infinite",
                path=source,
                expected="finite values",
                fix="take a checkpoint from before training diverged",
            )
    if skip_zeros:
        k = min(k, total - n_zero)
    if k == 0:
        empty = {name: _bits.pack(np.zeros(shapes[name], dtype=np.bool_)) for name in names}
        return Selection(empty, empty, 0, math.inf, n_zero)

    high, above = _bin_of_kth(upper, k)
    lower = np.zeros(_BINS, dtype=np.int64)
    for name in names:
        for _, chunk in _chunks(read, name, shapes[name], source):
            patterns = _patterns(chunk)
            inside = patterns[patterns >> 16 == high] & 0xFFFF
            if inside.size:
                _tally(lower, inside)
    low, above_in_bin = _bin_of_kth(lower, k - above)

    threshold = np.uint32(high << 16 | low)
    ties = k - above - above_in_bin
    bits: dict[str, Bits] = {}
    signs: dict[str, Bits] = {}
    for name in names:
        size = _bits.n_bytes(math.prod(shapes[name]))
        bits[name] = np.zeros(size, dtype=np.uint8)
        signs[name] = np.zeros(size, dtype=np.uint8)
        for start, chunk in _chunks(read, name, shapes[name], source):
            patterns = _patterns(chunk)
            chosen = patterns > threshold
            if ties:
                equal = np.flatnonzero(patterns == threshold)[:ties]
                chosen[equal] = True
                ties -= equal.size
            packed = np.packbits(chosen, bitorder="little")
            at = slice(start // 8, start // 8 + packed.size)
            bits[name][at] = packed
            signs[name][at] = packed & np.packbits(chunk < 0, bitorder="little")
    count = sum(_bits.count(packed) for packed in bits.values())
    if count != k:
        raise InputError(
            f"{count} values were selected instead of {k}: they changed between two readings",
            path=source,
            fix="wait until nothing writes there any more",
        )
    return Selection(bits, signs, k, float(threshold.view(np.float32)), n_zero)


def _tally(
    histogram: NDArray[np.int64], bins: NDArray[np.integer[Any]]
) -> NDArray[np.signedinteger[Any]]:
    """Count into the bins up to the largest that occurs, for blocks may be short; what is added."""
    counts = np.bincount(bins)
    histogram[: counts.size] += counts
    return counts


def _bin_of_kth(histogram: NDArray[np.int64], k: int) -> tuple[int, int]:
    """(bin that holds the k-th largest, number of values in the bins above it), k ≥ 1."""
    from_top = np.cumsum(histogram[::-1])
    at = int(np.searchsorted(from_top, k))
    return histogram.size - 1 - at, int(from_top[at] - histogram[::-1][at])


def _chunks(
    read: Callable[[str], Any], name: str, shape: tuple[int, ...], source: str | Path | None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(position of the first value, values) in row-major order."""
    found = read(name)
    at = rows = 0
    for block in found if isinstance(found, Iterator) else (found,):
        array = np.asarray(block, dtype=np.float32)
        if array.shape != shape and (array.ndim != len(shape) or array.shape[1:] != shape[1:]):
            raise _other_shape(name, array.shape, shape, source)
        rows += array.shape[0] if shape else 1
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            yield at + start, flat[start : start + _CHUNK]
        at += flat.size
    if rows != (shape[0] if shape else 1):
        raise _other_shape(name, (rows, *shape[1:]), shape, source)


def _other_shape(
    name: str, found: tuple[int, ...], shape: tuple[int, ...], source: str | Path | None
) -> InputError:
    return InputError(f"{name} has shape {list(found)}", path=source, expected=f"{list(shape)}")


def _patterns(chunk: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bit patterns of the magnitudes."""
    return np.abs(chunk).view(np.uint32)
