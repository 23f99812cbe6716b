"""How fast are all pairs of languages compared, beside the obvious dense way?

    python benchmarks/overlap.py            # 52 languages, width 4096
    python benchmarks/overlap.py --quick    # a few seconds, small sizes

Two questions, each answered with its rivals in the same run on random data:

- LoRA adapters: `measure_overlap` on factors, beside building every ΔW and taking the cosine of
  every pair of them.
- Masks: all intersections on packed bits, beside boolean tensors.

Every measurement has its own process, so that its peak memory is its own. Ours is the best of three
runs over all pairs; a rival is the fastest of a stated number of pairs, times the number of pairs,
and its memory is what all its operands need.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from subnet.overlap import count_intersections, measure_overlap

BYTES_OF_RSS = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Sizes:
    """What is compared."""

    languages: int
    width: int
    rank: int
    modules: int
    density: float
    pairs: int  # on which a rival is timed

    @property
    def all_pairs(self) -> int:
        """Number of pairs of languages."""
        return self.languages * (self.languages - 1) // 2

    @property
    def elements(self) -> int:
        """Number of weights of one mask."""
        return self.modules * self.width**2


@dataclass(frozen=True)
class Adapter:
    """A random LoRA update in memory."""

    language: str
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    shapes: Mapping[str, tuple[int, ...]]
    run: str = "main"
    base: str = "random"
    is_low_rank: bool = True
    transposed: frozenset[str] = field(default_factory=frozenset)

    def factors(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(B [o, r], A [r, i])."""
        return self.weights[parameter]

    def dense(self, parameter: str) -> torch.Tensor:
        """ΔW [o, i]."""
        b, a = self.weights[parameter]
        return b @ a


@dataclass(frozen=True)
class Result:
    """Seconds for all pairs, and bytes beyond the inputs."""

    seconds: float
    memory: float
    checks: float  # one number both ways must agree on


def adapters(sizes: Sizes) -> list[Adapter]:
    """One random adapter per language."""
    generator = torch.Generator().manual_seed(0)
    names = [f"encoder.layer.{m}.attention.query.weight" for m in range(sizes.modules)]
    shapes = dict.fromkeys(names, (sizes.width, sizes.width))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return [
        Adapter(
            language=f"language-{number}",
            weights={
                name: (random(sizes.width, sizes.rank), random(sizes.rank, sizes.width))
                for name in names
            },
            shapes=shapes,
        )
        for number in range(sizes.languages)
    ]


def packed(sizes: Sizes) -> list[list[np.ndarray]]:
    """[l][m] random packed masks, one random row of which is repeated at random offsets."""
    rng = np.random.default_rng(0)
    row = np.packbits(rng.random(sizes.width**2) < sizes.density, bitorder="little")
    return [
        [np.roll(row, int(rng.integers(row.size))) for _ in range(sizes.modules)]
        for _ in range(sizes.languages)
    ]


def some_pairs(sizes: Sizes) -> Iterator[tuple[int, int]]:
    """The pairs on which a rival is timed."""
    return itertools.islice(itertools.combinations(range(sizes.languages), 2), sizes.pairs)


def timed(work: Callable[[], float]) -> Result:
    """The best of three, and how far the peak memory rises above what the inputs took."""
    before = peak_memory()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        checks = work()
        seconds.append(time.perf_counter() - start)
    return Result(min(seconds), peak_memory() - before, checks)


def fastest(
    compare: Callable[[int, int], float], pairs: list[tuple[int, int]]
) -> tuple[float, float]:
    """Seconds of the fastest pair, so that a busy machine does not count; the first answer."""
    seconds, values = [], []
    for a, b in pairs:
        start = time.perf_counter()
        values.append(compare(a, b))
        seconds.append(time.perf_counter() - start)
    return min(seconds), values[0]


def peak_memory() -> float:
    """Largest resident size of this process so far, in bytes."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * BYTES_OF_RSS


def factors_cosine(sizes: Sizes) -> Result:
    """Ours: what the rivals compute."""
    return _factors(sizes, ("cosine",), ("module",))


def factors_everything(sizes: Sizes) -> Result:
    """Ours: all that the room computes."""
    return _factors(sizes, None, ("all", "layer", "type", "module"))


def _factors(sizes: Sizes, measures: tuple[str, ...] | None, levels: tuple[str, ...]) -> Result:
    things = adapters(sizes)
    small = Sizes(3, 64, 2, 1, 0.1, 1)
    measure_overlap(adapters(small), measures=measures, levels=levels)  # imports, thread pools

    def work() -> float:
        frame = measure_overlap(things, measures=measures, levels=levels).frame
        chosen = frame[(frame["measure"] == "cosine") & (frame["level"] == "module")]
        return float(chosen["value"].iloc[0])

    return timed(work)


def dense_pairs(sizes: Sizes) -> Result:
    """Every ΔW built once, then the cosine of each pair: operands of `pairs` pairs, one module."""
    things = adapters(sizes)
    name = next(iter(things[0].shapes))
    chosen = list(some_pairs(sizes))
    used = sorted({n for pair in chosen for n in pair})
    start = time.perf_counter()
    dense = {n: things[n].dense(name).flatten() for n in used}
    build = (time.perf_counter() - start) / len(used)
    pair, first = fastest(
        lambda a, b: float(torch.cosine_similarity(dense[a], dense[b], dim=0)), chosen
    )
    seconds = sizes.modules * (sizes.languages * build + sizes.all_pairs * pair)
    return Result(seconds, 4.0 * sizes.languages * sizes.width**2, first)


def dense_product(sizes: Sizes) -> Result:
    """The best dense way: ΔW normalised once, all cosines of a module as one matrix product."""
    things = adapters(sizes)
    name = next(iter(things[0].shapes))
    few = min(sizes.languages, 12)
    start = time.perf_counter()
    dense = torch.stack([thing.dense(name).flatten() for thing in things[:few]])
    dense = torch.nn.functional.normalize(dense, dim=1)
    build = (time.perf_counter() - start) / few
    start = time.perf_counter()
    table = dense @ dense.T
    product = (time.perf_counter() - start) * (sizes.languages / few) ** 2
    seconds = sizes.modules * (sizes.languages * build + product)
    return Result(seconds, 4.0 * sizes.languages * sizes.width**2, float(table[0, 1]))


def packed_counts(sizes: Sizes) -> Result:
    """Ours: all intersections per module."""
    masks = packed(sizes)
    count_intersections([row[:1] for row in masks[:2]])

    def work() -> float:
        counts = count_intersections(masks)
        both, a, b = (counts[i, j].sum() for i, j in ((0, 1), (0, 0), (1, 1)))
        return float(both / (a + b - both))

    return timed(work)


def boolean_sum(sizes: Sizes) -> Result:
    """The usual idiom."""
    return _boolean(sizes, lambda a, b: int((a & b).sum()) / int((a | b).sum()))


def boolean_count(sizes: Sizes) -> Result:
    """The fastest idiom on boolean tensors."""

    def jaccard(a: torch.Tensor, b: torch.Tensor) -> float:
        return int(torch.count_nonzero(a & b)) / int(torch.count_nonzero(a | b))

    return _boolean(sizes, jaccard)


def _boolean(sizes: Sizes, jaccard: Callable[[torch.Tensor, torch.Tensor], float]) -> Result:
    chosen = list(some_pairs(sizes))
    used = sorted({n for pair in chosen for n in pair})
    rows = packed(sizes)
    masks = {
        n: torch.from_numpy(np.unpackbits(np.concatenate(rows[n]), bitorder="little").view(bool))
        for n in used
    }
    pair, first = fastest(lambda a, b: jaccard(masks[a], masks[b]), chosen)
    return Result(pair * sizes.all_pairs, float(sizes.languages * sizes.elements), first)


def alone(work: Callable[[Sizes], Result], sizes: Sizes) -> Result:
    """Run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, sizes).result()


def report(title: str, ours: tuple[str, Result], rivals: list[tuple[str, Result]]) -> None:
    """Print a table; stop if a rival's answer is another one."""
    print(f"\n{title}")
    print(f"| {'way':<58} | {'seconds':>9} | {'memory':>9} | {'ratio':>7} |")
    print(f"|{'-' * 60}|{'-' * 10}:|{'-' * 10}:|{'-' * 8}:|")
    for name, result in (ours, *rivals):
        ratio = result.seconds / ours[1].seconds
        memory = f"{result.memory / 2**20:,.0f} MiB"
        print(f"| {name:<58} | {result.seconds:>9.3f} | {memory:>9} | {ratio:>7.1f} |")
        if abs(result.checks - ours[1].checks) > 1e-5:
            raise SystemExit(f"{name} disagrees: {result.checks} and {ours[1].checks}")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", type=int, default=52)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--modules", type=int, default=2, help="square matrices of that width")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--pairs", type=int, default=20, help="pairs on which a rival is timed")
    parser.add_argument("--quick", action="store_true", help="width 512, 12 languages")
    given = vars(parser.parse_args())
    if given.pop("quick"):
        given.update(languages=12, width=512)
    sizes = Sizes(**given)

    print(
        f"{sizes.languages} languages ({sizes.all_pairs} pairs), {sizes.modules} matrices of "
        f"{sizes.width}×{sizes.width}, rank {sizes.rank}, density {sizes.density:g}; "
        f"{os.cpu_count()} cores; rivals extrapolated from the fastest of "
        f"{sizes.pairs} pairs"
    )
    operands = 4 * sizes.languages * sizes.modules * 2 * sizes.width * sizes.rank
    report(
        f"All pairs of LoRA adapters (the factors themselves: {operands / 2**20:,.0f} MiB)",
        ("factors: cosine per module", alone(factors_cosine, sizes)),
        [
            (
                "factors: all five measures, four levels, null model",
                alone(factors_everything, sizes),
            ),
            ("dense: cosine_similarity(ΔW, ΔW') per pair", alone(dense_pairs, sizes)),
            ("dense: one matrix product of all ΔW", alone(dense_product, sizes)),
        ],
    )
    report(
        f"All pairs of masks (packed: {sizes.languages * sizes.elements / 8 / 2**20:,.0f} MiB)",
        ("packed bits: counts per module", alone(packed_counts, sizes)),
        [
            ("boolean tensors: (a & b).sum() / (a | b).sum()", alone(boolean_sum, sizes)),
            ("boolean tensors: count_nonzero", alone(boolean_count, sizes)),
        ],
    )


if __name__ == "__main__":
    main()
