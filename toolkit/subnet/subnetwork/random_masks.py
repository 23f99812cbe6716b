"""Random subnetworks of a stated size: what a method has to be better than."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subnet.errors import InputError
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.controls import random_like
from subnet.subnetwork.formats import places, save_subnetwork
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.settings import RandomSettings
from subnet.subnetwork.sources import refuse_repeats, updates_of

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint, Update


def extract_at_random(
    source: Checkpoint | Update | Iterable[Update], settings: RandomSettings
) -> Subnetworks:
    """Random masks over the weights that masks by magnitude are over; see `RandomSettings`."""
    updates = updates_of(source)
    refuse_repeats(updates)
    return Subnetworks(_at_random(update, settings) for update in updates)


def write_controls(subnetworks: Subnetworks, directory: str | Path, seeds: Sequence[int]) -> None:
    """Write random masks of the size of given ones, in every parameter, beside them.

    They go to `controls/random-<seed>/<language>.safetensors`, of further runs to
    `runs/<run>/controls/…`. They are no run of their own: beside the found masks, a random mask of
    the same language would be taken for a repetition.

    Args:
        subnetworks: What was found.
        directory: Where `subnetworks.save` wrote it.
        seeds: One control of every mask for each; see `random_like`.

    Raises:
        OutputError: The files cannot be written.
    """
    for place, found in places(subnetworks, ".safetensors").items():
        masks = (Path(directory) / place).parent
        for seed in seeds:
            folder = masks.parent / "controls" / f"random-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            save_subnetwork(random_like(found, seed), folder / Path(place).name)


def _at_random(update: Update, settings: RandomSettings) -> Subnetwork:
    shapes = {name: tuple(update.shapes[name]) for name in sorted(update.shapes)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    language = update.language.label
    if settings.scope == "module":
        counts = {name: round(settings.density * size) for name, size in sizes.items()}
        k = sum(counts.values())
    else:
        k = round(settings.density * sum(sizes.values()))
        stream = f"{language}\0{update.run}".encode()
        rng = np.random.default_rng([settings.seed, zlib.crc32(stream), len(stream)])
        counts = share_out(k, sizes, rng)
    if k == 0:
        raise InputError(
            f"density {settings.density:g} selects none of the {sum(sizes.values())} weights of "
            f"{language}",
            path=update.source,
            fix="take a larger one",
        )
    first = {
        name: (np.arange(size) < counts[name]).reshape(shapes[name]) for name, size in sizes.items()
    }
    sized = Subnetwork.from_arrays(first, language=language, run=update.run, base=update.base)
    recorded = {**asdict(settings), "k": k}
    if hasattr(update, "stage"):
        recorded["stage"] = update.stage
    return replace(random_like(sized, settings.seed), settings=recorded)


def share_out(k: int, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, int]:
    """How many of k weights fall into each parameter, when every set of k is equally likely.

    Independent draws of every weight have any number in all; given that number, every set of that
    size is equally likely. So does adding or removing single weights at random keep it, until there
    are k. (NumPy's own hypergeometric draw ends at 10⁹ weights.)
    """
    total = sum(sizes.values())
    all_sizes = np.array(list(sizes.values()), dtype=np.int64)
    counts = rng.binomial(all_sizes, k / total)
    while counts.sum() != k:
        step = 1 if counts.sum() < k else -1
        rest = all_sizes - counts if step == 1 else counts
        counts[rng.choice(len(counts), p=rest / rest.sum())] += step
    return dict(zip(sizes, counts.tolist(), strict=True))
