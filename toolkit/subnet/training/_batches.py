"""Which examples each step is trained on: drawn once, the same for any number of processes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from subnet.errors import InputError

#: Batches that are drawn together and sorted by length, so that little is padded.
_WINDOW = 8


def draw_batches(
    lengths: Sequence[int], *, steps: int, batch_size: int, seed: int
) -> list[list[int]]:
    """Places of the examples of every step.

    Epoch after epoch in random orders without repetition; within a window of up to eight batches of
    one epoch examples of similar length come together, and the batches of a window in random order.
    Depends on nothing but the arguments, so that a run that goes on, or is spread over processes,
    sees the same.

    Args:
        lengths: [n] tokens of each example.
        steps: Batches to draw.
        batch_size: Examples in each.
        seed: Seed of the order.

    Returns:
        `steps` lists of `batch_size` places; an example comes twice in a batch only where there are
        fewer examples than a batch holds, or an epoch ends within it.

    Raises:
        InputError: There are no examples.
    """
    if not lengths:
        raise InputError("there is no example to train on", expected="one or more")
    rng = random.Random(seed)  # noqa: S311 - no secret
    stream: list[int] = []
    while len(stream) < steps * batch_size:
        stream += rng.sample(range(len(lengths)), len(lengths))
    batches: list[list[int]] = []
    while len(batches) < steps:
        start = len(batches) * batch_size
        # Beyond the epoch's end a window would bring an example twice, and sorting both together.
        whole = (len(lengths) - start % len(lengths)) // batch_size
        n = min(_WINDOW, max(whole, 1), steps - len(batches))
        part = sorted(
            stream[start : start + n * batch_size], key=lambda place: (lengths[place], place)
        )
        drawn = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        rng.shuffle(drawn)
        batches += drawn
    return batches
