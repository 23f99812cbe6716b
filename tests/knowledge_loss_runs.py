"""What `train` would have written for the 52-language study, with known differences planted."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from subnet.training.config import TrainingConfig

STUDY = Path(__file__).parent.parent / "examples" / "knowledge_loss_52_languages"
LATIN = ("de", "fr", "es", "pl", "tr", "fi", "hu", "vi", "sw")
OTHER = ("ru", "el", "ar", "hi", "th", "ka", "hy", "ja", "ta")
LANGUAGES = (*LATIN, *OTHER)
CELLS = {"sharing": ("none-r8", "partial-r8"), "ranks": ("full-r2", "full-r8", "full-r32")}

#: How much of what others do to a language each regime lets through.
SHARED = {"none-r8": 0.0, "partial-r8": 0.5, "full-r2": 1.0, "full-r8": 1.0, "full-r32": 1.0}
CHANCE = {"loss": 2.0, "accuracy": 0.1}
#: Tokens that a text may have before it is cut.
LIMIT = 6


@contextmanager
def modules_of_the_study() -> Iterator[ModuleType]:
    """The package of the study, with its modules, while the path leads there."""
    sys.path.insert(0, str(STUDY))
    try:
        for name in ("answers", "design", "figures", "findings", "reading", "texts"):
            importlib.import_module(f"knowledge_loss.{name}")
        yield importlib.import_module("knowledge_loss")
    finally:
        sys.path.remove(str(STUDY))


def write_runs(
    out, *, lost=0.0, helped=0.0, seed=0, runs=2, languages=LANGUAGES, again=False, items=(),
    texts=False, starts=None,
):  # fmt: skip
    """Directories of both parts.

    At every stage each other language's loss rises by .01 and some noise, by `lost` more where its
    script is not Latin (of a run, where it is a mapping), by `helped` less where the language
    trained has Latin script.

    Args:
        out: Where to.
        lost: What the other scripts lose more at every stage, in nats.
        helped: What Latin script harms less at every stage, in nats.
        seed: Of everything drawn.
        runs: How many orders.
        languages: Which.
        again: Train the first order once more, from another seed.
        items: Cells that have the results of items.
        texts: Write test texts and the base's tokenizer too. What it cuts of them has nothing to
            do with the share that `languages.csv` tells, which is of training texts too.
        starts: Run to language to loss at the start, where it is not the common one.
    """
    rng = np.random.default_rng(seed)
    orders = {
        f"order-{n}": [str(x) for x in rng.permutation(languages)] for n in range(1, runs + 1)
    }
    if again:
        orders["order-1-again"] = orders["order-1"]
    own = dict(zip(languages, rng.normal(0, 0.006, (2, len(languages))).T, strict=True))
    start = dict(zip(languages, rng.normal(1.5, 0.1, len(languages)), strict=True))
    starts = starts or {}
    for part, cells in CELLS.items():
        for cell in cells:
            for run, order in orders.items():
                more = lost[run] if isinstance(lost, Mapping) else lost
                first = start | starts.get(run, {})
                folder = out / part / cell / "runs" / run
                folder.mkdir(parents=True)
                scores = _write_run(folder, order, SHARED[cell], own, first, more, helped, rng)
                if cell in items:
                    _write_items(folder, scores)
            _write_about(out / part / cell, orders, rng, languages)
            if texts:
                _write_texts(out / part / cell, languages)
        _write_json(out / part / "run.json", {"cells": list(cells)})
    return out


def _write_run(folder, order, share, own, start, lost, helped, rng):
    score, scores, transfer = dict(start), [(0, j, start[j]) for j in order], []
    rounding = np.random.default_rng(0)
    for stage, i in enumerate(order, start=1):
        change = {
            j: 0.01 + own[j][0] + own[i][1] + lost * (j in OTHER) - helped * (i in LATIN)
            + rng.normal(0, 0.01)
            for j in order
        }  # fmt: skip
        for j in order:
            score[j] += -0.3 if j == i else share * change[j]
            # What is 0 but for the rounding of files is to be read as 0.
            off = 0.0 if share else rounding.uniform(-1e-8, 1e-8)
            scores.append((stage, j, score[j] + off))
            transfer.append((stage, i, j, start[j] + (-0.3 if j == i else change[j])))
    frame = pd.DataFrame(scores, columns=["stage", "language", "loss"])
    found = _long(frame.assign(accuracy=np.exp(-frame["loss"])))
    found.to_csv(folder / "scores.csv", index=False)
    (folder / "subnet.toml").write_text(f"format = 1\norder = {json.dumps(order)}\n")
    if share < 1:
        frame = pd.DataFrame(transfer, columns=["stage", "trained_language", "language", "loss"])
        frame["accuracy"] = np.exp(-frame["loss"])
        _long(frame).to_csv(folder / "transfer.csv", index=False)
    return found


def _long(frame):
    keys = [name for name in frame.columns if name not in ("loss", "accuracy")]
    return frame.melt(keys, ["loss", "accuracy"], "metric", "value").assign(stderr=0.001)


def _write_items(folder, scores, n=9):
    """Results of items, whose means are the scores, but those of a half of them are not."""
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 0.02, n)
    values = hard + rng.normal(0, 0.004, (len(scores), n))
    values *= np.where(scores["metric"] == "loss", 1.0, 0.2)[:, None]
    values += scores["value"].to_numpy()[:, None] - values.mean(axis=1, keepdims=True)
    if len(scores) and (folder.parents[1].name == "none-r8"):  # there nothing but turns happens
        places, names = pd.factorize(scores["language"])
        own = rng.normal(0, 0.02, (len(names), n))
        values = (own - own.mean(axis=1, keepdims=True))[places]
        values += scores["value"].to_numpy()[:, None]
    frame = scores[["stage", "language", "metric"]].loc[scores.index.repeat(n)]
    frame = frame.assign(item=np.tile([f"item-{k}" for k in range(n)], len(scores)))
    frame.assign(value=values.reshape(-1)).to_csv(folder / "items.csv", index=False)


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


def _write_texts(cell, languages, n=12):
    """Test texts of words of 1, 2 or 3 bytes per character, some of them too long."""
    rng = np.random.default_rng(3)
    base = cell / "base"
    base.mkdir()
    vocabulary = {"model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    _write_json(base / "tokenizer.json", tokenizer | vocabulary)
    _write_json(base / "config.json", {"max_position_embeddings": LIMIT})
    lines = []
    for language in languages:
        longer, wide = rng.uniform(0, 0.7), rng.uniform(0, 0.9)
        for number in range(n):
            words = LIMIT + 2 if rng.uniform() < longer else LIMIT - 1
            narrow, broad = ("e", "é") if language in LATIN else ("я", "か")
            share = 0.2 * wide if language in LATIN else wide
            letters = [[broad if rng.uniform() < share else narrow for _ in "word"]] * words
            text = " ".join("".join(word) for word in letters)
            lines.append({"id": f"{language}-{number}", "language": language, "text": text})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (cell / "test.jsonl").write_text(text, encoding="utf-8")


def _write_json(path, value):
    path.write_text(json.dumps(value))
