"""Which examples each step is trained on: drawn once, the same for any number of processes."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Batches that are drawn together and sorted by length, so that little is padded.
_WINDOW = 8


def draw_batches(
    lengths: Sequence[int], *, steps: int, batch_size: int, seed: int
) -> list[list[int]]:
    """Places of the examples of every step.

    Epoch after epoch in random orders without repetition; within a window of eight batches examples
    of similar length come together, and the batches of a window in random order. Depends on nothing
    but the arguments, so that a run that goes on, or is spread over processes, sees the same.

    Args:
        lengths: [n] tokens of each example.
        steps: Batches to draw.
        batch_size: Examples in each.
        seed: Seed of the order.

    Returns:
        `steps` lists of `batch_size` places; an example comes twice in a batch only where there are
        fewer examples than a batch holds, or an epoch ends within it.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    stream: list[int] = []
    while len(stream) < steps * batch_size:
        stream += rng.sample(range(len(lengths)), len(lengths))
    stream = stream[: steps * batch_size]
    batches: list[list[int]] = []
    window = _WINDOW * batch_size
    for start in range(0, len(stream), window):
        part = sorted(stream[start : start + window], key=lambda place: (lengths[place], place))
        drawn = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        rng.shuffle(drawn)
        batches += drawn
    return batches
