"""What selection and comparison read, do and hold, counted: the same on every machine."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from subnet.overlap import _counting, _permutation, count_intersections, measure_overlap
from subnet.subnetwork import Subnetwork, load_subnetwork, top_k

ROWS, WIDTH = 256, 96


class Reader:
    """Values made block by block, and how much of them was read."""

    def __init__(self, parameters, rows=ROWS, seed=0):
        self.shapes = {f"p{i:02}": (rows, WIDTH) for i in range(parameters)}
        self.asked, self.values = [], 0
        self.seed = seed

    @property
    def size(self):
        return sum(map(math.prod, self.shapes.values()))

    def __call__(self, name):
        self.asked.append(name)
        rng = np.random.default_rng([self.seed, int(name[1:])])
        pool = rng.standard_normal((64, WIDTH), dtype=np.float32)
        for start in range(0, self.shapes[name][0], 64):
            rows = min(64, self.shapes[name][0] - start)
            self.values += rows * WIDTH
            yield pool[:rows] * np.float32(1 + start % 97)


@pytest.mark.parametrize("share", [0.0001, 0.005, 0.05, 0.5, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_top_k_reads_every_value_three_times_whatever_k_is(share, seed):
    read = Reader(parameters=7, seed=seed)
    top_k(read, read.shapes, max(1, round(share * read.size)))
    assert read.asked == 3 * sorted(read.shapes)
    assert read.values == 3 * read.size


def test_top_k_of_nothing_and_of_equal_values_reads_no_more():
    read = Reader(parameters=3)
    top_k(read, read.shapes, 0)
    assert read.values == read.size
    asked = []

    def ones(name):
        asked.append(name)
        return np.ones((ROWS, WIDTH), np.float32)

    top_k(ones, read.shapes, read.size // 2)
    assert len(asked) == 3 * len(read.shapes)


@pytest.mark.parametrize("k", [1, 0.005, 0.5])
def test_top_k_holds_bits_and_no_values(k):
    def held(rows):
        read = Reader(parameters=4, rows=rows)
        chosen = k if k == 1 else round(k * read.size)
        return peak(lambda: top_k(read, read.shapes, chosen)), read.size

    (small, few), (large, many) = held(60 * ROWS), held(160 * ROWS)
    # Two bits per value, and in the end the population counts of one of the four parameters. The
    # values themselves would be thirty-two bits.
    packed = (2 + 1 / 4) / 8 * (many - few)
    assert large - small == pytest.approx(packed, rel=0.02, abs=20_000)


def peak(work):
    """Largest memory that Python and NumPy held beyond what there was before."""
    work()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


class Watched:
    """Packed bits that count the bytes taken from them."""

    def __init__(self, bits):
        self.bits, self.taken = bits, 0
        self.size = bits.size

    def __getitem__(self, place):
        part = self.bits[place]
        self.taken += part.size
        return part


def packed_masks(count, parameters, size, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(0, 256, size, dtype=np.uint8) for _ in range(parameters)]
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("with_signs", [False, True])
def test_counting_all_pairs_takes_each_byte_once_and_each_pair_of_words_once(
    monkeypatch, count, with_signs
):
    masks = [[Watched(bits) for bits in row] for row in packed_masks(count, 3, 20_001)]
    signs = [[Watched(bits) for bits in row] for row in packed_masks(count, 3, 20_001, seed=1)]
    compared = []
    original = _counting._count_words

    def count_words(words):
        n, length = words.shape
        compared.append(n * (n + 1) // 2 * length)
        return original(words)

    monkeypatch.setattr(_counting, "_count_words", count_words)
    count_intersections(masks, signs if with_signs else None)
    used = [*masks, *(signs if with_signs else [])]
    # Its size is asked of the chunk of the first mask, which is a view.
    assert {bits.taken for row in used[1:] for bits in row} == {20_001}
    assert {bits.taken for bits in used[0]} == {2 * 20_001}
    n = len(used)
    words = 3 * math.ceil(20_001 / 8)
    assert sum(compared) == pytest.approx(n * (n + 1) // 2 * words, rel=0.001)


def test_counts_with_signs_are_those_of_the_negative_parts_beside_the_masks():
    masks = packed_masks(4, 2, 999)
    signs = packed_masks(4, 2, 999, seed=1)
    signs[2] = None
    negative = [
        [kept & (0 if row is None else row[m]) for m, kept in enumerate(bits)]
        for bits, row in zip(masks, signs, strict=True)
    ]
    counts = count_intersections(masks, signs)
    together = [*masks, *negative]
    assert counts.shape == (8, 8, 2)
    for a, b, m in itertools.product(range(8), range(8), range(2)):
        assert counts[a, b, m] == np.unpackbits(together[a][m] & together[b][m]).sum()
    np.testing.assert_array_equal(counts[:4, :4], count_intersections(masks))


@pytest.mark.parametrize("chunk", [1, 1 << 13, 1 << 24])
def test_chunks_do_not_show_in_counts(monkeypatch, chunk):
    masks = packed_masks(3, 2, 10_007)
    whole = count_intersections(masks)
    monkeypatch.setattr(_counting, "_CHUNK", chunk)
    monkeypatch.setattr(_counting, "_SMALLEST", 8)
    np.testing.assert_array_equal(count_intersections(masks), whole)


def test_counting_holds_chunks_of_the_masks_whatever_their_length():
    masks = packed_masks(6, 1, 8_000_000)
    # A thread holds a chunk of all masks, their intersections and an eighth of that for the counts.
    bound = _counting.workers() * 2.25 * _counting._CHUNK + 500_000
    assert bound < 6 * 8_000_000
    assert peak(lambda: count_intersections(masks)) < bound


def random_mask(label, rows, density, **details):
    rng = np.random.default_rng(sum(map(ord, label)))
    names = [f"encoder.layer.{layer}.query.weight" for layer in range(3)]
    arrays = {name: rng.random((rows, 512)) < density for name in names}
    return Subnetwork.from_arrays(arrays, language=label, base="b", **details)


def test_no_mask_is_unpacked_whole_when_overlap_is_measured():
    masks = [random_mask(label, 2048, 0.1) for label in ("x1", "x2", "x3", "x4")]
    booleans = sum(mask.size for mask in masks)
    packed = booleans // 8
    held = peak(lambda: measure_overlap(masks, measures=("jaccard",)))
    assert held < booleans / 2
    assert packed == sum(bits.nbytes for mask in masks for bits in mask.bits.values())


def test_the_null_holds_a_block_whatever_the_number_of_rows():
    def held(rows):
        bits = np.random.default_rng(0).integers(0, 256, rows * 512 // 8, dtype=np.uint8)
        return peak(lambda: _permutation.profile(bits, None, (rows, 512)))

    # Row sums and their products stay: some floats per row, where a row has 512 values.
    assert held(8192) - held(2048) < 6144 * 8 * 20
    assert held(8192) < 8192 * 512


@pytest.mark.parametrize("block", [8, 1 << 10, 1 << 20])
@pytest.mark.parametrize("shape", [(37, 5), (64, 64), (500, 1), (3, 700)])
@pytest.mark.parametrize("with_signs", [False, True])
def test_blocks_do_not_show_in_the_sums_of_the_null(monkeypatch, block, shape, with_signs):
    rng = np.random.default_rng(shape)
    kept = rng.random(shape) < 0.4
    negative = kept & (rng.random(shape) < 0.3)
    signed = kept * (1 - 2 * negative.astype(int)) if with_signs else np.zeros(shape, int)
    monkeypatch.setattr(_permutation, "_BLOCK", block)
    pack = lambda array: np.packbits(array.ravel(), bitorder="little")  # noqa: E731
    mean, rows, weighted = _permutation._sums(
        pack(kept), pack(negative) if with_signs else None, shape
    )
    layers = (kept.astype(int), signed)
    np.testing.assert_array_equal(rows, [layer.sum(axis=1) for layer in layers])
    np.testing.assert_allclose(mean, [layer.mean() for layer in layers], rtol=1e-15, atol=0)
    for x, layer in enumerate(layers):
        by_hand = [layer.sum(axis=0), rows[0] @ layer, rows[1] @ layer]
        np.testing.assert_array_equal(weighted[x], by_hand)


def test_sums_too_large_for_single_precision_are_exact():
    # Rows of 2²¹ + 8 weights: eight of them hold more than 2²⁴, and their sum is odd.
    width = (1 << 21) + 8
    bits = np.full(width, 255, dtype=np.uint8)
    bits[0] = 254
    mean, rows, weighted = _permutation._sums(bits, None, (8, width))
    assert rows[0].tolist() == [width - 1, *([width] * 7)]
    assert weighted[0, 1, :2].tolist() == [7 * width, 8 * width - 1]
    assert mean[0] == (8 * width - 1) / (8 * width)


def test_a_mask_file_is_as_long_as_its_packed_bits(tmp_path):
    sizes = {}
    for rows in (512, 2048):
        mask = random_mask("de", rows, 0.05)
        mask.save(tmp_path / "de.safetensors")
        sizes[rows] = (tmp_path / "de.safetensors").stat().st_size
        assert load_subnetwork(tmp_path / "de.safetensors") == mask
        packed = mask.size // 8
        assert packed < sizes[rows] < packed + 1500
    assert sizes[2048] - sizes[512] == pytest.approx(3 * 1536 * 512 / 8, abs=16)
