"""What do masks over a whole model cost: all pairs, exact top-k, and how does it grow?

    python benchmarks/subnetworks.py            # 52 masks over the 277 million of XLM-R base
    python benchmarks/subnetworks.py --quick    # a small model, seconds

Three questions, on random data in the tensor shapes of XLM-R base:

- All pairs of masks, by module: on packed bits, beside boolean tensors.
- The k largest of all weights, exactly: streamed, beside selection from one long vector.
- Cost against the number of weights, over three sizes: the slope on a log–log scale.

Every measurement has its own process, so that its peak memory is its own. Ours is the best of three
runs over everything; boolean tensors are timed on a stated number of pairs, the fastest of which,
times the number of pairs, is what the table shows, and their memory is what all of them take.
CPU seconds are those of all threads, and depend less on what else the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from overlap import alone, peak_memory

from subnet.overlap import count_intersections, measure_overlap
from subnet.subnetwork import Subnetwork, load_subnetwork, top_k

WIDTH, INNER, POSITIONS = 768, 3072, 514
#: Random numbers of which values are made: reading them costs little beside selecting.
POOL = 1 << 22


@dataclass(frozen=True)
class Sizes:
    """A model of the width of XLM-R base, and masks over it."""

    layers: int
    vocabulary: int
    languages: int
    density: float
    pairs: int  # on which boolean tensors are timed

    @property
    def all_pairs(self) -> int:
        """Number of pairs of languages."""
        return self.languages * (self.languages - 1) // 2

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name to shape."""
        attention = ("self.query", "self.key", "self.value", "output.dense")
        linear = {f"attention.{part}": (WIDTH, WIDTH) for part in attention}
        linear |= {"intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER)}
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
        found: dict[str, tuple[int, ...]] = {
            "roberta.embeddings.word_embeddings.weight": (self.vocabulary, WIDTH),
            "roberta.embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
            "roberta.embeddings.token_type_embeddings.weight": (1, WIDTH),
            "roberta.embeddings.LayerNorm.weight": (WIDTH,),
            "roberta.embeddings.LayerNorm.bias": (WIDTH,),
        }
        for layer in range(self.layers):
            place = f"roberta.encoder.layer.{layer}"
            for module, shape in linear.items():
                found[f"{place}.{module}.weight"] = shape
                found[f"{place}.{module}.bias"] = shape[:1]
            for module, part in itertools.product(norms, ("weight", "bias")):
                found[f"{place}.{module}.{part}"] = (WIDTH,)
        return found

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(map(math.prod, self.shapes.values()))


def random_mask(sizes: Sizes, number: int) -> Subnetwork:
    """Independent bits, each set with a probability of about the density."""
    rng = np.random.Generator(np.random.SFC64(number))
    bits = {}
    for name, shape in sizes.shapes.items():
        size = math.prod(shape)
        packed = random_words(rng, -(-size // 64), sizes.density).view(np.uint8)
        packed = packed[: -(-size // 8)].copy()
        if size % 8:
            packed[-1] &= (1 << size % 8) - 1
        bits[name] = packed
    return Subnetwork(f"x{number}", bits, sizes.shapes, base="random")


def random_words(rng: np.random.Generator, count: int, density: float) -> np.ndarray:
    """64 bits a word, set with the probability of density rounded to n/256.

    n/256 is built digit by digit of its binary form: OR with a fair bit halves the distance to 1,
    AND that to 0.
    """
    words = np.zeros(count, np.uint64)
    digits = f"{min(max(round(density * 256), 1), 255):08b}"
    for digit in reversed(digits[: digits.rindex("1") + 1]):
        fair = rng.integers(0, 1 << 64, count, dtype=np.uint64)
        words = words | fair if digit == "1" else words & fair
    return words


def random_masks(sizes: Sizes, count: int | None = None) -> list[Subnetwork]:
    """One mask per language."""
    return [random_mask(sizes, number) for number in range(count or sizes.languages)]


def bits_of(masks: list[Subnetwork]) -> list[list[np.ndarray]]:
    """[l][m] packed bits."""
    return [list(mask.bits.values()) for mask in masks]


@dataclass(frozen=True)
class Result:
    """Seconds by the clock and of all threads together, and bytes beyond the inputs."""

    seconds: float
    cpu: float
    memory: float
    checks: float  # one number all ways must agree on


def timed(work: Callable[[], float]) -> tuple[float, float, float]:
    """(seconds, CPU seconds, answer)."""
    start, start_cpu = time.perf_counter(), time.process_time()
    answer = work()
    return time.perf_counter() - start, time.process_time() - start_cpu, answer


def best(work: Callable[[], float], runs: int = 3) -> Result:
    """The best of some runs, and how far the peak memory rises above what the inputs took."""
    before = peak_memory()
    seconds, cpu, answers = zip(*(timed(work) for _ in range(runs)), strict=True)
    return Result(min(seconds), min(cpu), peak_memory() - before, answers[0])


def report(title: str, ours: tuple[str, Result], others: list[tuple[str, Result]]) -> None:
    """Print a table; stop if another way's answer is another one."""
    print(f"\n{title}")
    print(f"| {'way':<55} | {'seconds':>8} | {'CPU':>8} | {'memory':>10} | {'CPU ratio':>9} |")
    print(f"|{'-' * 57}|" + f"{'-' * 9}:|" * 2 + f"{'-' * 11}:|{'-' * 10}:|")
    for name, result in (ours, *others):
        memory = f"{result.memory / 2**20:,.0f} MiB"
        print(
            f"| {name:<55} | {result.seconds:>8.2f} | {result.cpu:>8.2f} | {memory:>10} | "
            f"{result.cpu / ours[1].cpu:>9.1f} |",
            flush=True,
        )
        if abs(result.checks - ours[1].checks) > 1e-5:
            raise SystemExit(f"{name} disagrees: {result.checks} and {ours[1].checks}")


def packed_counts(sizes: Sizes) -> Result:
    """Ours: the size of every intersection, by module."""
    masks = bits_of(random_masks(sizes))

    def work() -> float:
        counts = count_intersections(masks)
        both, a, b = (counts[i, j].sum() for i, j in ((0, 1), (0, 0), (1, 1)))
        return float(both / (a + b - both))

    return best(work)


def measured(sizes: Sizes, *, everything: bool) -> Result:
    """Ours: the table of overlaps, with expectation, z and p under both null models."""
    masks = random_masks(sizes)
    options = {} if everything else {"measures": ("jaccard",), "levels": ("all", "module")}
    few = replace(sizes, layers=1, vocabulary=8)
    measure_overlap(random_masks(few, 2), **options)  # imports

    def work() -> float:
        return float(measure_overlap(masks, **options).matrix("jaccard").iloc[0, 1])

    return best(work)


def boolean_sum(sizes: Sizes) -> Result:
    """The usual idiom."""
    return _boolean(sizes, lambda tensor: int(tensor.sum()))


def boolean_count(sizes: Sizes) -> Result:
    """The fastest idiom on boolean tensors."""
    return _boolean(sizes, lambda tensor: int(torch.count_nonzero(tensor)))


def _boolean(sizes: Sizes, count: Callable[[torch.Tensor], int]) -> Result:
    used = min(sizes.languages, 1 + sizes.pairs)
    masks = [
        [torch.from_numpy(mask.dense(name)) for name in mask.shapes]
        for mask in random_masks(sizes, used)
    ]

    def jaccard(a: int, b: int) -> float:
        by_module = [(count(x & y), count(x | y)) for x, y in zip(masks[a], masks[b], strict=True)]
        both, either = map(sum, zip(*by_module, strict=True))
        return both / either

    found = [timed(partial(jaccard, 0, other)) for other in range(1, used)]
    seconds, cpu, answers = zip(*found, strict=True)
    memory = float(sizes.languages * sizes.weights)
    return Result(min(seconds) * sizes.all_pairs, min(cpu) * sizes.all_pairs, memory, answers[0])


class Values:
    """Normal values in the shapes of the model, made block by block: nothing is kept."""

    def __init__(self, sizes: Sizes) -> None:
        self.shapes = sizes.shapes
        self._pool = np.random.default_rng(0).standard_normal(POOL, dtype=np.float32)

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Blocks of eight rows or more, in the order of the rows."""
        shape = self.shapes[name]
        width = math.prod(shape[1:])
        scale = np.float32(1 + sum(map(ord, name)) % 97 / 97)
        step = max(8, (1 << 18) // width // 8 * 8)
        for start in range(0, shape[0], step):
            rows = min(step, shape[0] - start)
            at = (start * width * 7) % (POOL - rows * width)
            yield scale * self._pool[at : at + rows * width].reshape(rows, *shape[1:])

    def vector(self) -> np.ndarray:
        """All of them, one after another."""
        whole = np.empty(sum(map(math.prod, self.shapes.values())), np.float32)
        at = 0
        for name in sorted(self.shapes):
            for block in self.blocks(name):
                whole[at : at + block.size] = block.reshape(-1)
                at += block.size
        return whole


def wanted(sizes: Sizes, share: float) -> int:
    """How many a share of the weights is."""
    return round(share * sizes.weights)


def streamed_top_k(sizes: Sizes, share: float) -> Result:
    """Ours: three readings of the blocks."""
    values = Values(sizes)
    k = wanted(sizes, share)
    top_k(lambda _: np.ones(8, np.float32), {"a": (8,)}, 1)  # imports
    return anonymous(lambda: top_k(values.blocks, values.shapes, k).threshold)


def torch_top_k(sizes: Sizes, share: float) -> Result:
    """`torch.topk` of the concatenated magnitudes."""
    values, k = Values(sizes), wanted(sizes, share)
    torch.topk(torch.ones(8), 1)

    def work(vector: np.ndarray) -> float:
        largest = torch.topk(torch.from_numpy(vector).abs(), k, sorted=False)
        return float(largest.values.min())

    return anonymous(work, values.vector)


def numpy_partition(sizes: Sizes, share: float) -> Result:
    """`numpy.argpartition` of the concatenated magnitudes."""
    values, k = Values(sizes), wanted(sizes, share)

    def work(vector: np.ndarray) -> float:
        magnitudes = np.abs(vector)
        return float(magnitudes[np.argpartition(magnitudes, -k)[-k:]].min())

    return anonymous(work, values.vector)


def anonymous(work: Callable[..., float], *inputs: Callable[[], object]) -> Result:
    """Seconds without making the inputs; peak of the memory with them (mapped files apart)."""
    peak = before = anonymous_bytes()
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.002):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        given = [make() for make in inputs]
        seconds, used, checks = timed(lambda: work(*given))
    finally:
        finished.set()
        watcher.join()
    return Result(seconds, used, peak - before, checks)


def anonymous_bytes() -> float:
    """Anonymous memory of this process; where the system does not say it, the peak of all."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory()
    stated = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return 1024.0 * int(stated.split()[1])


def growth_of_top_k(sizes: Sizes) -> float:
    """CPU time of selecting 5 %."""
    values = Values(sizes)
    return cpu(lambda: top_k(values.blocks, values.shapes, wanted(sizes, 0.05)))


def growth_of_counts(sizes: Sizes) -> float:
    """CPU time of all intersections of eight masks."""
    masks = bits_of(random_masks(sizes, 8))
    return cpu(lambda: count_intersections(masks))


def growth_of_measures(sizes: Sizes) -> float:
    """CPU time of all measures of eight masks."""
    masks = random_masks(sizes, 8)
    return cpu(lambda: measure_overlap(masks))


def growth_of_saving(sizes: Sizes) -> float:
    """CPU time of writing a mask."""
    mask = random_mask(sizes, 0)
    with tempfile.TemporaryDirectory() as folder:
        return cpu(lambda: mask.save(Path(folder) / "mask.safetensors"))


def growth_of_loading(sizes: Sizes) -> float:
    """CPU time of reading it, with all checks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.safetensors"
        random_mask(sizes, 0).save(path)
        return cpu(lambda: load_subnetwork(path))


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of all threads, the best of five to forty after one that does not count."""
    work()
    seconds: list[float] = []
    while len(seconds) < 5 or (sum(seconds) < 2 and len(seconds) < 40):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def report_growth(
    title: str, sizes: Sizes, shares: tuple[float, ...], works: dict[str, Callable[[Sizes], float]]
) -> None:
    """Print CPU time at some multiples of the model, and the slope."""
    parts = [
        replace(sizes, layers=round(sizes.layers * n), vocabulary=round(sizes.vocabulary * n))
        for n in shares
    ]
    columns = [f"{part.weights / 1e6:,.0f} M" for part in parts]
    print(f"\n{title}")
    print(f"| {'work':<40} | " + " | ".join(f"{c:>7}" for c in columns) + " | slope |")
    print(f"|{'-' * 42}|" + f"{'-' * 8}:|" * len(parts) + f"{'-' * 6}:|")
    for name, work in works.items():
        seconds = [alone(work, part) for part in parts]
        slope = np.polyfit(np.log([part.weights for part in parts]), np.log(seconds), 1)[0]
        shown = " | ".join(f"{value:>7.3f}" for value in seconds)
        print(f"| {name:<40} | {shown} | {slope:>5.2f} |", flush=True)


def main() -> None:
    """Answer the three questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=250_002)
    parser.add_argument("--languages", type=int, default=52)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--pairs", type=int, default=3, help="pairs on which a rival is timed")
    parser.add_argument("--quick", action="store_true", help="4 layers, 4,000 words, 8 languages")
    given = vars(parser.parse_args())
    if given.pop("quick"):
        given.update(languages=8, layers=4, vocabulary=4_000)
    sizes = Sizes(**given)

    print(
        f"{sizes.languages} masks ({sizes.all_pairs} pairs) over {sizes.weights:,} weights in "
        f"{len(sizes.shapes)} parameters, density about {sizes.density:g}; {os.cpu_count()} cores; "
        f"boolean tensors extrapolated from the fastest of {sizes.pairs} pairs"
    )
    packed = sizes.languages * sizes.weights / 8 / 2**20
    report(
        f"All pairs of masks, by module (packed: {packed:,.0f} MiB; memory is beyond that)",
        ("packed bits: sizes of all intersections", alone(packed_counts, sizes)),
        [
            (
                "measure_overlap: Jaccard by module, two null models",
                alone(partial(measured, everything=False), sizes),
            ),
            (
                "measure_overlap: all measures, four levels, both nulls",
                alone(partial(measured, everything=True), sizes),
            ),
            ("boolean tensors: (a & b).sum(), (a | b).sum()", alone(boolean_sum, sizes)),
            ("boolean tensors: count_nonzero", alone(boolean_count, sizes)),
        ],
    )
    for share in (0.005, 0.05, 0.5):
        report(
            f"The {share:.1%} largest of all weights (all weights: "
            f"{4 * sizes.weights / 2**20:,.0f} MiB)",
            ("streamed: top_k", alone(partial(streamed_top_k, share=share), sizes)),
            [
                ("one vector: torch.topk", alone(partial(torch_top_k, share=share), sizes)),
                (
                    "one vector: numpy.argpartition",
                    alone(partial(numpy_partition, share=share), sizes),
                ),
            ],
        )
    report_growth(
        "CPU seconds against the number of weights",
        sizes,
        (1 / 4, 1 / 2, 1),
        {
            "top-k of 5 %": growth_of_top_k,
            "counts of all pairs of 8 masks": growth_of_counts,
            "all measures of all pairs of 8 masks": growth_of_measures,
        },
    )
    # Files of more than 32 MiB all the way: below, the allocator gives the same pages again.
    report_growth(
        "The same of files, in models of once, twice and four times the size",
        sizes,
        (1, 2, 4),
        {"saving a mask": growth_of_saving, "loading a mask": growth_of_loading},
    )


if __name__ == "__main__":
    main()
