"""Sizes of all intersections, on packed bits: 64 weights per AND and population count."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]

# Bytes of all masks together that are compared at a time: what stays in the processor's cache, and
# enough of each that the cost of a numpy call vanishes.
_CHUNK = 1 << 20
_SMALLEST = 1 << 12


def count_intersections(
    masks: Sequence[Sequence[Bits]], signs: Sequence[Sequence[Bits] | None] | None = None
) -> NDArray[np.int64]:
    """|A∩B| of all pairs of masks, per parameter.

    Every byte of a mask is read once; beside the masks stand a few chunks of them.

    Args:
        masks: [l][m], packed bits of mask l in parameter m, padding zero.
        signs: [l][m], packed like the masks, 1 = negative; None for a mask whose signs are unknown,
            which counts as having no negative weight.

    Returns:
        [l, l, m], symmetric; the diagonal holds the sizes. With signs [2l, 2l, m]: the masks, then
        their negative weights.

    Example:
        >>> a, b = np.packbits([[1, 1, 0], [0, 1, 1]], axis=1, bitorder="little")
        >>> count_intersections([[a], [b]])[0, 1]
        array([1])
    """
    parameters = len(masks[0])
    n = len(masks) if signs is None else 2 * len(masks)
    length = max(_SMALLEST, _CHUNK // n // 8 * 8)
    chunks = [
        (m, slice(at, at + length))
        for m in range(parameters)
        for at in range(0, masks[0][m].size, length)
    ]
    counts = np.zeros((parameters, n, n), dtype=np.int64)
    with ThreadPoolExecutor(workers()) as pool:
        found = pool.map(lambda chunk: _count_words(_words(masks, signs, *chunk)), chunks)
        for (m, _), count in zip(chunks, found, strict=True):
            counts[m] += count
    symmetric = counts + np.triu(counts, 1).transpose(0, 2, 1)
    return np.ascontiguousarray(symmetric.transpose(1, 2, 0))


def _words(
    masks: Sequence[Sequence[Bits]],
    signs: Sequence[Sequence[Bits] | None] | None,
    m: int,
    at: slice,
) -> NDArray[np.uint64]:
    """[l, w] one chunk of every mask, 64 weights a word; with signs [2l, w], see above."""
    n = len(masks)
    size = masks[0][m][at].size
    chunk = np.zeros((n if signs is None else 2 * n, -(-size // 8) * 8), dtype=np.uint8)
    for row, mask in zip(chunk[:n], masks, strict=True):
        row[:size] = mask[m][at]
    for row, kept, negative in zip(chunk[n:], chunk, signs or (), strict=False):
        if negative is not None:
            np.bitwise_and(kept[:size], negative[m][at], out=row[:size])
    return chunk.view(np.uint64)


def _count_words(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Upper triangle of the counts of one chunk: 64 weights per AND and population count."""
    n = len(words)
    both = np.empty_like(words)
    ones = np.empty(words.shape, dtype=np.uint8)
    counts = np.zeros((n, n), dtype=np.int64)
    for a in range(n):
        rest = n - a
        np.bitwise_and(words[a], words[a:], out=both[:rest])
        np.bitwise_count(both[:rest], out=ones[:rest])
        counts[a, a:] = ones[:rest].sum(axis=1, dtype=np.uint32)
    return counts


def workers() -> int:
    """Threads that work on parts of masks; NumPy lets go of the interpreter meanwhile."""
    return min(8, os.cpu_count() or 1)
