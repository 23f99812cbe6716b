"""Forward passes over examples without gradients, each process its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from subnet.training._processes import processes

Found = TypeVar("Found")


def in_passes(
    model: Any,
    features: Sequence[Mapping[str, Any]],
    read: Callable[[Any, Mapping[str, Any]], Sequence[Found]],
    *,
    collate: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    batch_size: int,
    on_batch: Callable[[], None] | None = None,
) -> list[Found]:
    """What is read from the model's output on every example, in the order given.

    Examples of similar length go together. Under several processes each takes every other batch,
    and all get the whole.

    Args:
        model: In any mode; left in the one it was in.
        features: Examples as the model takes them.
        read: From a batch's output and the batch to one value per example.
        collate: Makes a batch of features.
        batch_size: Examples of a batch.
        on_batch: Called after every batch.
    """
    import torch
    from accelerate.utils import gather_object

    state = processes()
    places = sorted(range(len(features)), key=lambda i: (len(features[i]["input_ids"]), i))
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: list[tuple[int, Found]] = []
    try:
        with torch.inference_mode():
            for chosen in batches[state.process_index :: state.num_processes]:
                batch = collate([features[place] for place in chosen])
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                found += zip(chosen, read(model(**batch), batch), strict=True)
                if on_batch is not None:
                    on_batch()
    finally:
        model.train(was_training)
    if state.num_processes > 1:
        found = gather_object(found)
    return [value for _, value in sorted(found, key=lambda entry: entry[0])]
