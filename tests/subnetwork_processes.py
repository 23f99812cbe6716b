"""Training of subnetworks as several processes run it: started by `accelerate launch` in tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from subnet.training.recipe import Recipe
from subnet.training.subnetworks import (
    DynamicMask,
    DynamicSettings,
    MaskedUpdates,
    MetaSettings,
    fit_masked,
    fit_meta,
    fit_pcgrad,
)
from subnetwork_training import collate, encoder, random_mask, sentences

RECIPE = Recipe(steps=4, batch_size=8, learning_rate=3e-3, weight_decay=0.1, optimizer="sgd")


def train_all(folder: Path) -> dict[str, np.ndarray]:
    """Every kind of training once: its name to all weights at the end."""
    found = {}
    shared = {"collate": collate, "seed": 1}
    languages = {"de": sentences(seed=1), "sw": sentences(seed=2, shift=1)}
    masks = {
        "static": MaskedUpdates(random_mask(encoder()), forward=True),
        "dynamic": DynamicMask(DynamicSettings(0.2, every=2, parameters=("*encoder*",))),
    }
    for name, mask in masks.items():
        model = encoder()
        fit_masked(model, sentences(), RECIPE, mask=mask, folder=folder / name, **shared)
        found[name] = weights(model)
    model = encoder()
    own = {"de": random_mask(model, seed=1), "sw": random_mask(model, seed=2)}
    settings = MetaSettings(support=4, query=4, inner_rate=0.05)
    fit_meta(model, languages, RECIPE, settings=settings, masks=own, folder=folder, **shared)
    found["meta"] = weights(model)
    model = encoder()
    fit_pcgrad(model, languages, RECIPE, folder=folder, **shared)
    found["pcgrad"] = weights(model)
    return found


def weights(model: object) -> np.ndarray:
    """All weights in one row."""
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


if __name__ == "__main__":
    from accelerate import PartialState

    folder = Path(sys.argv[1])
    found = train_all(folder)
    np.savez(folder / f"found-{PartialState().process_index}.npz", **found)
