"""Top-k is exact: against sorting, with ties, at the edges, in bounded memory."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from subnet.errors import InputError
from subnet.subnetwork import selection, top_k

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -3e-42, 2.5, 3.4e38, -3.4e38])


def by_sorting(blocks, k, *, skip_zeros=False):
    """Oracle: sort all magnitudes together; a stable sort keeps ties in order of position."""
    names = sorted(blocks)
    flat = np.concatenate([blocks[name].reshape(-1) for name in names])
    order = np.argsort(-np.abs(flat.astype(np.float64)), kind="stable")[:k]
    if skip_zeros:
        order = [i for i in order if flat[i] != 0]
    chosen = np.zeros(flat.size, dtype=bool)
    chosen[order] = True
    ends = np.cumsum([blocks[name].size for name in names])[:-1]
    parts = np.split(chosen, ends)
    return {n: part.reshape(blocks[n].shape) for n, part in zip(names, parts, strict=True)}


def run(blocks, k, **options):
    return top_k(blocks.__getitem__, {n: b.shape for n, b in blocks.items()}, k, **options)


def unpacked(found, blocks, which="bits"):
    return {
        name: np.unpackbits(packed, count=blocks[name].size, bitorder="little")
        .astype(bool)
        .reshape(blocks[name].shape)
        for name, packed in getattr(found, which).items()
    }


@st.composite
def blocks_and_k(draw):
    values = draw(st.sampled_from([FLOATS, TIED]))
    names = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True))
    shape = array_shapes(min_dims=1, max_dims=3, max_side=7)
    blocks = {n: draw(arrays(np.float32, draw(shape), elements=values)) for n in names}
    return blocks, draw(st.integers(0, sum(b.size for b in blocks.values())))


@given(blocks_and_k(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_selection_equals_a_stable_sort_of_everything(case, skip_zeros):
    blocks, k = case
    found = run(blocks, k, skip_zeros=skip_zeros)
    expected = by_sorting(blocks, k, skip_zeros=skip_zeros)
    chosen = unpacked(found, blocks)
    for name in blocks:
        np.testing.assert_array_equal(chosen[name], expected[name])
    negative = unpacked(found, blocks, "signs")
    for name in blocks:
        np.testing.assert_array_equal(negative[name], expected[name] & (blocks[name] < 0))
    assert found.count == sum(mask.sum() for mask in expected.values())
    assert found.n_zero == sum((block == 0).sum() for block in blocks.values())


@pytest.mark.parametrize("chunk", [8, 64, 1 << 17])
def test_chunks_do_not_show(monkeypatch, chunk):
    monkeypatch.setattr(selection, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    blocks = {f"p{i}": rng.integers(-9, 9, (13, 7 + i)).astype(np.float32) for i in range(3)}
    for k in (1, 9, 100, 311, 312):
        expected = by_sorting(blocks, k)
        chosen = unpacked(run(blocks, k), blocks)
        for name in blocks:
            np.testing.assert_array_equal(chosen[name], expected[name])


@pytest.mark.parametrize("k", [1, 1000, 50_000, 250_000])
def test_magnitudes_equal_those_of_torch_topk(k):
    generator = torch.Generator().manual_seed(k)
    blocks = {name: torch.randn(500, 250, generator=generator) for name in ("a", "b")}
    found = top_k(blocks.__getitem__, dict.fromkeys(blocks, (500, 250)), k)
    everything = torch.cat([blocks["a"].flatten(), blocks["b"].flatten()])
    expected = torch.topk(everything.abs(), k)
    chosen = unpacked(found, {n: b.numpy() for n, b in blocks.items()})
    ours = np.concatenate([blocks[n].numpy()[chosen[n]] for n in ("a", "b")])
    np.testing.assert_array_equal(np.sort(np.abs(ours)), np.sort(expected.values.numpy()))
    assert found.threshold == expected.values.min().item()


def test_none_one_all_and_constant_input():
    constant = {"b": np.full((3, 5), -0.25, np.float32), "a": np.full(4, 0.25, np.float32)}
    nothing = run(constant, 0)
    assert nothing.count == 0
    assert math.isinf(nothing.threshold)
    assert not any(bits.any() for bits in nothing.bits.values())
    one = unpacked(run(constant, 1), constant)
    assert one["a"].tolist() == [True, False, False, False]
    assert not one["b"].any()
    six = unpacked(run(constant, 6), constant)
    assert six["a"].all()
    assert six["b"].reshape(-1).tolist() == [True, True] + 13 * [False]
    assert all(mask.all() for mask in unpacked(run(constant, 19), constant).values())


def test_order_of_names_in_the_mapping_does_not_matter():
    blocks = {"b": np.ones((2, 4), np.float32), "a": np.ones((2, 4), np.float32)}
    there = run(blocks, 5).bits
    back = run(dict(reversed(blocks.items())), 5).bits
    assert {n: b.tolist() for n, b in there.items()} == {n: b.tolist() for n, b in back.items()}
    assert there["a"].tolist() == [0b00011111]


def test_zeros_complete_the_k_unless_they_are_skipped():
    blocks = {"a": np.array([0.0, 5.0, -0.0, 0.0], np.float32)}
    assert run(blocks, 3).bits["a"].item() == 0b0111
    found = run(blocks, 3, skip_zeros=True)
    assert (found.bits["a"].item(), found.count, found.n_zero) == (0b0010, 1, 3)
    none = run({"a": np.zeros(4, np.float32)}, 2, skip_zeros=True)
    assert (none.count, none.n_zero) == (0, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_by_tensor(value):
    blocks = {"fine": np.ones(4, np.float32), "layer.1.weight": np.ones((2, 2), np.float32)}
    blocks["layer.1.weight"][1, 0] = value
    with pytest.raises(InputError, match=r"adapters/de: layer\.1\.weight holds 1 values that are"):
        run(blocks, 2, source="adapters/de")


def test_values_that_are_not_finite_are_counted_over_all_chunks(monkeypatch):
    monkeypatch.setattr(selection, "_CHUNK", 8)
    block = np.ones((5, 8), np.float32)
    block[[0, 2, 2], [1, 0, 7]] = [math.nan, math.inf, -math.inf]
    for read in (lambda _: block, lambda _: iter([block[:2], block[2:]])):
        with pytest.raises(InputError, match="a holds 3 values that are NaN or infinite"):
            top_k(read, {"a": (5, 8)}, 2)


def test_k_out_of_range_and_wrong_shape_are_refused():
    block = np.ones((2, 2), np.float32)
    for k in (-1, 5):
        with pytest.raises(InputError, match=rf"k is {k}; expected 0 to 4"):
            run({"a": block}, k)
    with pytest.raises(InputError, match=r"a has shape \[2, 2\]; expected \[4\]"):
        top_k(lambda _: block, {"a": (4,)}, 1)


def test_values_that_change_between_readings_are_noticed():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="they changed between two readings"):
        top_k(lambda _: rng.standard_normal(1000), {"a": (1000,)}, 100)


def test_memory_is_one_block_whatever_k_is():
    side = 512
    shapes = {f"p{i:02}": (side, side) for i in range(24)}
    block_bytes, total = side * side * 4, 24 * side * side

    def read(name):
        seed = int(name[1:])
        return np.random.default_rng(seed).standard_normal((side, side), dtype=np.float32)

    peaks = []
    for k in (1, total // 20, total):
        tracemalloc.start()
        top_k(read, shapes, k)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    packed = 2 * total / 8
    # Two blocks for the moment in which the next is read, histograms and chunks.
    assert max(peaks) < 2 * block_bytes + packed + 6_000_000
    assert max(peaks) - min(peaks) < packed + 1_000_000


@pytest.mark.slow
def test_the_size_of_xlm_r_base_takes_seconds():
    import time

    rng = np.random.default_rng(0)
    right = rng.standard_normal((16, 3382), dtype=np.float32)
    left = rng.standard_normal((2048, 16), dtype=np.float32)
    shapes = {f"p{i:02}": (2048, 3382) for i in range(40)}
    start = time.process_time()
    found = top_k(lambda name: left @ (right * np.float32(1 + int(name[1:]) / 100)), shapes, 10**7)
    assert found.count == 10**7
    assert time.process_time() - start < 60
