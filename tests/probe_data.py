"""Representations with properties planted in known layers and units."""

import numpy as np
import pandas as pd


def parallel_items(languages=("de", "fr", "sw"), concepts=60, labels=("a", "b", "c")):
    """Every concept in every language; its label belongs to the concept."""
    rows = [
        (language, f"{language}-{concept}", f"c{concept}", labels[concept % len(labels)])
        for language in languages
        for concept in range(concepts)
    ]
    return pd.DataFrame(rows, columns=["language", "id", "concept", "label"])


def noise(n, d=12, seed=0, layers=("0", "1", "2", "3")):
    rng = np.random.default_rng(seed)
    return {layer: rng.normal(size=(n, d)).astype(np.float32) for layer in layers}


def plant(array, labels, units, strength=3.0):
    """Shift one unit for each label where an item has it."""
    for unit, label in zip(units, dict.fromkeys(labels), strict=False):
        array[:, unit] += strength * (np.asarray(labels) == label)


def token_items(seed=0, sentences=60, length=8, types=25, tags=("NOUN", "VERB", "DET")):
    """Words that recur across sentences, each of one tag; the vectors of words."""
    rng = np.random.default_rng(seed)
    words = rng.integers(types, size=sentences * length)
    items = pd.DataFrame(
        {
            "language": "de",
            "id": [f"t{i}" for i in range(len(words))],
            "sentence": np.repeat(np.arange(sentences), length),
            "word": [f"w{word}" for word in words],
            "tag": [tags[word % len(tags)] for word in words],
        }
    )
    return items, words
