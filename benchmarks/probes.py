"""What do probes and comparisons of representations cost, beside the obvious ways?

    python benchmarks/probes.py            # about two minutes of one core, 2 GB of memory
    python benchmarks/probes.py --all      # besides, all 12 layers × 52 languages themselves
    python benchmarks/probes.py --quick    # small sizes: fixed costs hide the difference

Three questions, each answered with its rival in the same run:

- Extraction: hidden states of all layers in one pass, beside one pass per layer (the whole model
  each time, or only the blocks up to the layer).
- Probes: `probe_labels` with its default settings (5 folds, permuted labels, a control task,
  codelengths under three penalties), beside a loop of scikit-learn's fits on the same splits.
- Similarity: CKA from d×d or n×n products, whichever is smaller, beside its definition with two
  centred n×n Gram matrices.

FLOPs are those that `torch.utils.flop_counter` counts. Seconds are of one processor core (CPU
time), the better of two runs where a run is short. The table is Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from subnet_probes import (  # noqa: E402
    Probe,
    ProbeSettings,
    linear_cka,
    probe_labels,
    representations,
)


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    layers: int = 12
    languages: int = 52
    loop_layers: int = 1
    loop_languages: int = 3
    items: int = 560
    width: int = 768
    classes: int = 7
    texts: int = 96
    cka: tuple[tuple[int, int], ...] = ((2000, 768), (8000, 768), (560, 4096))


QUICK = Sizes(
    layers=2, languages=3, loop_languages=2, items=200, width=128, texts=24,
    cka=((2000, 128), (200, 1024)),
)  # fmt: skip


class Planted:
    """Hidden states whose spectrum decays, with a topic in them that grows over the layers."""

    def __init__(self, sizes: Sizes) -> None:
        rng = np.random.default_rng(0)
        self.sizes = sizes
        self.layers = tuple(map(str, range(1, sizes.layers + 1)))
        labels = rng.choice(sizes.classes, size=sizes.items, p=_shares(sizes.classes))
        names = [f"l{number}" for number in range(sizes.languages)]
        self.items = pd.DataFrame(
            {
                "language": np.repeat(names, sizes.items),
                "concept": np.tile(np.arange(sizes.items), sizes.languages),
                "label": np.tile(labels, sizes.languages).astype(str),
            }
        )

    def array(self, layer: str) -> np.ndarray:
        """[n, d], made anew for every layer, so that one is in memory at a time."""
        rng = np.random.default_rng(int(layer))
        d, n = self.sizes.width, len(self.items)
        spectrum = np.arange(1, d + 1, dtype=np.float32) ** -0.5
        rotation = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
        x = rng.standard_normal((n, d), dtype=np.float32) * spectrum
        centres = rng.standard_normal((self.sizes.classes, d), dtype=np.float32) * spectrum
        strength = (1 + 2 * int(layer) / self.sizes.layers) / d**0.5
        x += strength * centres[self.items["label"].to_numpy().astype(int)]
        return x @ rotation * np.exp(rng.normal(size=d) / 2).astype(np.float32)


class Stored:
    """Hidden states that lie on the disk, as `representations(store=...)` leaves them."""

    def __init__(self, source: Planted, folder: Path) -> None:
        self.layers, self.items, self._folder = source.layers, source.items, folder
        for layer in self.layers:
            np.save(folder / f"{layer}.npy", source.array(layer))

    def array(self, layer: str) -> np.ndarray:
        """[n, d], a memory map."""
        return np.load(self._folder / f"{layer}.npy", mmap_mode="r")


def _shares(k: int) -> np.ndarray:
    shares = 1 / np.arange(2, k + 2)
    return shares / shares.sum()


def cpu_seconds(function: Callable[[], Any], runs: int = 1) -> tuple[float, Any]:
    """Least CPU seconds of some runs, and what the last returned."""
    least, found = float("inf"), None
    for _ in range(runs):
        start = time.process_time()
        found = function()
        least = min(least, time.process_time() - start)
    return least, found


def table(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print Markdown."""
    print(f"\n{title}\n\n| {' | '.join(head)} |")
    print("|---" + "|---:" * (len(head) - 1) + "|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def extraction(sizes: Sizes) -> None:
    """One pass for all layers, beside one per layer."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    width = min(sizes.width, 256)
    config = BertConfig(
        vocab_size=1000, hidden_size=width, num_hidden_layers=sizes.layers, num_attention_heads=4,
        intermediate_size=4 * width, max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    data = [
        {
            "id": str(number),
            "language": "de",
            "input_ids": torch.randint(5, 1000, (16 + number % 33,), generator=generator).tolist(),
        }
        for number in range(sizes.texts)
    ]

    def whole() -> Any:
        return representations(model, data, layers="all").arrays

    def per_layer() -> Any:
        return {
            str(k): representations(model, data, layers=k).array(str(k))
            for k in range(sizes.layers + 1)
        }

    def up_to_layer() -> Any:
        found, blocks = {}, model.encoder.layer
        try:
            for k in range(sizes.layers + 1):
                model.encoder.layer = blocks[: max(k, 1)]
                model.config.num_hidden_layers = max(k, 1)
                found[str(k)] = representations(model, data, layers=k).array(str(k))
        finally:
            model.encoder.layer, model.config.num_hidden_layers = blocks, sizes.layers
        return found

    rows, base = [], (0.0, 0.0)
    ways = {
        "`representations(layers='all')`": whole,
        "one call per layer": per_layer,
        "one call per layer, of a model cut there": up_to_layer,
    }
    expected = whole()
    for name, way in ways.items():
        seconds, found = cpu_seconds(way, 2)
        with FlopCounterMode(display=False) as counter:
            way()
        flops = counter.get_total_flops()
        base = base if base[0] else (seconds, flops)
        error = max(float(np.abs(found[k] - expected[k]).max()) for k in expected)
        ratios = f"{seconds / base[0]:.1f}", f"{flops / base[1]:.1f}"
        rows.append((name, f"{seconds:.2f}", *ratios, f"{error:.0e}"))
    title = f"Extraction: {sizes.layers} blocks of width {width}, {sizes.texts} texts"
    table(title, ("way", "CPU s", "ratio", "FLOPs ratio", "largest difference"), rows)


class OneByOne(Probe):
    """The same probe, of a class that is not fitted together: scikit-learn fits each."""


def probes(sizes: Sizes, everything: bool) -> None:
    """Default settings, beside scikit-learn's fits in a loop; and without parts of them."""
    changed = {"layers": sizes.loop_layers, "languages": sizes.loop_languages}
    part = Planted(Sizes(**{**vars(sizes), **changed}))
    pairs = sizes.loop_layers * sizes.loop_languages
    of_all = sizes.layers * sizes.languages

    def measured(source: Planted, probe: Probe, settings: ProbeSettings) -> tuple[float, Any]:
        seconds, found = cpu_seconds(lambda: probe_labels(source, probe=probe, settings=settings))
        making = cpu_seconds(lambda: source.array(source.layers[0]))[0] * len(source.layers)
        return seconds - making, found.frame["score"]

    measured(part, Probe(), ProbeSettings())  # what is loaded with the first call
    rows = []
    for name, settings in (
        ("5 folds, codelengths (default)", ProbeSettings()),
        ("5 folds, no codelengths", ProbeSettings(mdl=False)),
        ("hold-out, codelengths", ProbeSettings(holdout=True)),
    ):
        quick, fast = measured(part, Probe(), settings)
        slow, loop = measured(part, OneByOne(), settings)
        each = [1000 * seconds / pairs for seconds in (quick, slow)]
        total = [seconds / pairs * of_all for seconds in (quick, slow)]
        rows.append(
            (name, f"{each[0]:.0f} ms", f"{each[1]:.0f} ms", f"{slow / quick:.1f}",
             f"{total[0]:.0f} s", f"{total[1]:.0f} s", f"{fast.mean():.3f}",
             f"{np.abs(fast - loop).max():.3f}")
        )  # fmt: skip
    title = (
        f"Probes: {sizes.items} items per language, width {sizes.width}, {sizes.classes} labels; "
        f"CPU time per layer and language, over {pairs}, and times "
        f"{sizes.layers} layers × {sizes.languages} languages"
    )
    head = ("settings", "`probe_labels`", "loop of scikit-learn", "ratio", "all", "all in a loop",
            "mean score", "largest difference of a score")  # fmt: skip
    table(title, head, rows)
    if everything:
        print()
        with tempfile.TemporaryDirectory() as folder:
            stored = Stored(Planted(sizes), Path(folder))
            for name, mdl in (("no codelengths", False), ("codelengths", True)):
                start = time.perf_counter()
                probe_labels(stored, probe=Probe(), settings=ProbeSettings(mdl=mdl, n_jobs=2))
                wall = time.perf_counter() - start
                print(f"all of them, 5 folds, {name}, two processes: {wall:.0f} s", flush=True)


def similarity(sizes: Sizes) -> None:
    """CKA, beside its definition with n×n matrices."""
    rows = []
    for n, d in sizes.cka:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d))
        y = x @ rng.standard_normal((d, d)) / d**0.5 + rng.standard_normal((n, d))
        ours, value = cpu_seconds(lambda x=x, y=y: linear_cka(x, y), 2)
        theirs, expected = cpu_seconds(lambda x=x, y=y: full_cka(x, y), 1)
        memory = f"{8 * n * n * 2 / 2**20:,.0f} MiB", f"{8 * min(n, d) ** 2 / 2**20:,.0f} MiB"
        rows.append(
            (f"n = {n}, d = {d}", f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f}",
             memory[1], memory[0], f"{abs(value - expected):.0e}")
        )  # fmt: skip
    head = ("size", "`linear_cka`, CPU s", "two n×n Gram matrices", "ratio", "largest product",
            "two n×n matrices", "difference")  # fmt: skip
    table("Unbiased linear CKA in double precision", head, rows)


def full_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By the definition of the unbiased estimator (Song et al. 2012), with n×n matrices."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        trace = (k * m).sum()
        sums = k.sum() * m.sum() / ((n - 1) * (n - 2))
        middle = 2 / (n - 2) * (k.sum(axis=0) @ m.sum(axis=0))
        return float((trace + sums - middle) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--all", action="store_true", help="all layers and languages, too")
    parser.add_argument("--only", choices=["extraction", "probes", "similarity"])
    given = parser.parse_args()
    sizes = QUICK if given.quick else Sizes()
    load = os.getloadavg()[0]
    print(
        f"numpy {np.__version__}, torch {torch.__version__}, one thread; load of the machine at "
        f"the start {load:.1f} on {os.cpu_count()} cores"
    )
    questions: dict[str, Callable[[], None]] = {
        "extraction": lambda: extraction(sizes),
        "probes": lambda: probes(sizes, given.all),
        "similarity": lambda: similarity(sizes),
    }
    for name, question in questions.items():
        if given.only in (None, name):
            question()


if __name__ == "__main__":
    main()
