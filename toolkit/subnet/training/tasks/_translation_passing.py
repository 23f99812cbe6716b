"""Loss and translation of every pair in one pass, each process its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.training._processes import processes
from subnet.training.tasks._translation_batches import feature_of, make_batch
from subnet.training.tasks._translation_encoding import Encoded, PairEncoder, Start
from subnet.training.tasks._translation_generation import generate


def translate(
    model: Any,
    encoder: PairEncoder,
    encoded: Sequence[Encoded],
    starts: Sequence[Start],
    *,
    max_new_tokens: int,
    beams: int,
    batch_size: int,
    on_batch: Callable[[], None] | None = None,
) -> tuple[NDArray[np.float64], list[str]]:
    """Losses [n] in nats and translations [n], in the order given.

    Pairs of similar length go together, the longest first, so that memory runs out early or never.
    Under several processes each takes every n-th batch, and all return the whole.

    Args:
        model: In any mode, which is restored.
        encoder: What made the tokens.
        encoded: [n] pairs in tokens.
        starts: [n] how targets in the direction of each begin.
        max_new_tokens: Most tokens to write.
        beams: Width of the search.
        batch_size: Pairs of a pass.
        on_batch: Called after each batch of this process.
    """
    import torch
    from accelerate.utils import gather_object

    from subnet.model import evaluation_mode, example_losses

    order = sorted(
        range(len(encoded)), key=lambda i: (-len(encoded[i].prompt), -len(encoded[i].target), i)
    )
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    state = processes()
    found: list[tuple[int, float, str]] = []
    with evaluation_mode(model), torch.no_grad():
        for places in batches[state.process_index :: state.num_processes]:
            chosen = [encoded[place] for place in places]
            features = [feature_of(one, encoder_decoder=encoder.encoder_decoder) for one in chosen]
            losses = example_losses(model, make_batch(features, encoder.padding))
            written = generate(
                model,
                [one.prompt for one in chosen],
                [starts[place] for place in places],
                encoder_decoder=encoder.encoder_decoder,
                padding=encoder.padding,
                end=encoder.end,
                max_new_tokens=max_new_tokens,
                beams=beams,
            )
            texts = map(encoder.text, written)
            found += zip(places, losses.double().tolist(), texts, strict=True)
            if on_batch is not None:
                on_batch()
    if state.num_processes > 1:
        found = gather_object(found)
    found.sort(key=lambda entry: entry[0])
    return np.array([loss for _, loss, _ in found]), [text for _, _, text in found]
