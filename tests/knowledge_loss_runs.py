"""What `train` would have written for the 52-language study, with known differences planted."""

import json

import numpy as np
import pandas as pd

from subnet.training.config import TrainingConfig

LATIN = ("de", "fr", "es", "pl", "tr", "fi", "hu", "vi", "sw")
OTHER = ("ru", "el", "ar", "hi", "th", "ka", "hy", "ja", "ta")
LANGUAGES = (*LATIN, *OTHER)
CELLS = {"sharing": ("none-r8", "partial-r8"), "ranks": ("full-r2", "full-r8", "full-r32")}

#: How much of what others do to a language each regime lets through.
SHARED = {"none-r8": 0.0, "partial-r8": 0.5, "full-r2": 1.0, "full-r8": 1.0, "full-r32": 1.0}


def write_runs(out, *, lost=0.0, helped=0.0, seed=0, runs=2, languages=LANGUAGES):
    """Directories of both parts.

    At every stage each other language's loss rises by .01 and some noise, by `lost` more where its
    script is not Latin, by `helped` less where the language trained has Latin script.
    """
    rng = np.random.default_rng(seed)
    orders = {
        f"order-{n}": [str(x) for x in rng.permutation(languages)] for n in range(1, runs + 1)
    }
    own = dict(zip(languages, rng.normal(0, 0.006, (2, len(languages))).T, strict=True))
    start = dict(zip(languages, rng.normal(1.5, 0.1, len(languages)), strict=True))
    for part, cells in CELLS.items():
        for cell in cells:
            for run, order in orders.items():
                _write_run(
                    out / part / cell, run, order, SHARED[cell], own, start, lost, helped, rng
                )
            _write_about(out / part / cell, orders, rng, languages)
        _write_json(out / part / "run.json", {"cells": list(cells)})
    return out


def _write_run(cell, run, order, share, own, start, lost, helped, rng):
    score, scores, transfer = dict(start), [(0, j, start[j]) for j in order], []
    for stage, i in enumerate(order, start=1):
        change = {
            j: 0.01 + own[j][0] + own[i][1] + lost * (j in OTHER) - helped * (i in LATIN)
            + rng.normal(0, 0.01)
            for j in order
        }  # fmt: skip
        for j in order:
            score[j] += -0.3 if j == i else share * change[j]
            scores.append((stage, j, score[j]))
            transfer.append((stage, i, j, start[j] + (-0.3 if j == i else change[j])))
    folder = cell / "runs" / run
    folder.mkdir(parents=True)
    frame = pd.DataFrame(scores, columns=["stage", "language", "loss"])
    _long(frame.assign(accuracy=np.exp(-frame["loss"]))).to_csv(folder / "scores.csv", index=False)
    (folder / "subnet.toml").write_text(f"format = 1\norder = {json.dumps(order)}\n")
    if share < 1:
        frame = pd.DataFrame(transfer, columns=["stage", "trained_language", "language", "loss"])
        frame["accuracy"] = np.exp(-frame["loss"])
        _long(frame).to_csv(folder / "transfer.csv", index=False)


def _long(frame):
    keys = [name for name in frame.columns if name not in ("loss", "accuracy")]
    return frame.melt(keys, ["loss", "accuracy"], "metric", "value").assign(stderr=0.001)


def _write_about(cell, orders, rng, languages):
    table = pd.DataFrame(
        {
            "language": languages,
            "train_examples": rng.integers(150, 200, len(languages)),
            "test_examples": 48,
            "bytes_per_character": [
                1 + rng.uniform(0, 0.2) if x in LATIN else rng.uniform(1.8, 3.0) for x in languages
            ],
            "truncated_share": rng.uniform(0, 0.02, len(languages)),
        }
    )
    table.to_csv(cell / "languages.csv", index=False)
    (cell / "subnet.toml").write_text(
        "format = 1\n[scores.loss]\nhigher_is_better = false\nchance = 2.0\n"
        "[scores.accuracy]\nhigher_is_better = true\nchance = 0.1\n"
    )
    settings = TrainingConfig().model_dump(mode="json")
    _write_json(cell / "run.json", {"orders": orders, "settings": settings})


def _write_json(path, value):
    path.write_text(json.dumps(value))
