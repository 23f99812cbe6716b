"""What else differs between the languages: script, bytes, truncation, data, position, baseline.

A difference in forgetting between two groups of languages is no finding about language as long as
these differ too, so they stand on the first page of the report, and the relation controls for them.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from subnet._files import read_json

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint

#: Columns of a user's `languages.csv` that say who a language is, not what its data are like.
_IDENTITY_COLUMNS = frozenset({"language", "tag", "script", "name", "family"})


@dataclass(frozen=True)
class Confounds:
    """Per language: who it is, and what about its data could pass for an effect of language.

    Attributes:
        frame: One row per language: `language, tag, script, family, name, script_name`, then
            `train_examples`, `test_examples`, `bytes_per_character`, `truncated_share` (of the test
            texts, by the model's own tokenizer), `position` in the order of training, and every
            numeric column of the user's `languages.csv`. Unknown values are NaN.
        shared_tokens: [l, l], weighted Jaccard (Σ min / Σ max) of the token frequencies
            of the training texts; None without training texts.
    """

    frame: pd.DataFrame
    shared_tokens: pd.DataFrame | None


def measure_confounds(checkpoint: Checkpoint) -> Confounds:
    """Describe the languages of a checkpoint and their data.

    Reads `languages.csv`, the training and test examples and the tokenizer of the base, each only
    where it is there.
    """
    table = checkpoint.language_table
    texts = {"train": _texts(checkpoint, "train"), "test": _texts(checkpoint, "test")}
    tokenizer, limit = _tokenizer(checkpoint)
    position = _positions(checkpoint)
    rows = []
    for language in checkpoint.languages:
        label = language.label
        train, test = texts["train"].get(label, []), texts["test"].get(label, [])
        every = train + test
        row: dict[str, Any] = {
            "language": label,
            "tag": language.tag,
            "script": language.script,
            "family": checkpoint.families.get(label, ""),
            "name": language.name,
            "script_name": language.script_name,
            "train_examples": len(train) or math.nan,
            "test_examples": len(test) or math.nan,
            "bytes_per_character": _ratio(
                sum(len(text.encode()) for text in every), sum(map(len, every))
            ),
            "truncated_share": math.nan,
            "position": position.get(label, math.nan),
        }
        if tokenizer is not None and test and limit:
            lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(test)]
            row["truncated_share"] = float(np.mean(np.asarray(lengths) > limit))
        for column, value in table.get(label, {}).items():
            unknown = column not in row or pd.isna(row[column])
            if column not in _IDENTITY_COLUMNS and unknown:
                row[column] = _number(value)
        rows.append(row)
    return Confounds(pd.DataFrame(rows), _shared_tokens(texts["train"], tokenizer))


def _texts(checkpoint: Checkpoint, split: Literal["train", "test"]) -> dict[str, list[str]]:
    """Texts of one split by language; a translation item counts its source."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    if not checkpoint.holds(f"{split}_examples"):
        return found
    for example in checkpoint.examples(split):
        text = example.get("text") or example.get("source") or " ".join(example.get("tokens", ()))
        if text:
            found[str(example["language"])].append(str(text))
    return found


def _tokenizer(checkpoint: Checkpoint) -> tuple[Any, int | None]:
    """The base's fast tokenizer and how many tokens its model reads, None where there is none."""
    base = next((entry.path for entry in checkpoint.entries if entry.kind == "base"), None)
    if base is None or not (base / "tokenizer.json").is_file():
        return None, None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    limits: list[int] = []
    if (base / "tokenizer_config.json").is_file():
        limits.append(read_json(base / "tokenizer_config.json").get("model_max_length") or 0)
    if (base / "config.json").is_file():
        limits.append(read_json(base / "config.json").get("max_position_embeddings") or 0)
    known = [int(limit) for limit in limits if 0 < limit < 10**9]
    return tokenizer, min(known, default=None)


def _positions(checkpoint: Checkpoint) -> Mapping[str, float]:
    """Mean position of each language in the orders of training, over runs."""
    if not checkpoint.holds("scores"):
        return {}
    seen: dict[str, list[int]] = collections.defaultdict(list)
    for order in checkpoint.scores.order.values():
        for label, stage in order.items():
            seen[label].append(stage)
    return {label: float(np.mean(stages)) for label, stages in seen.items()}


def _shared_tokens(texts: Mapping[str, list[str]], tokenizer: Any) -> pd.DataFrame | None:
    """Weighted Jaccard of relative token frequencies; characters where there is no tokenizer."""
    labels = [label for label, found in texts.items() if found]
    if len(labels) < 2:
        return None
    counts = []
    for label in labels:
        counter: collections.Counter[Any] = collections.Counter()
        if tokenizer is None:
            for text in texts[label]:
                counter.update(text)
        else:
            for encoding in tokenizer.encode_batch(texts[label], add_special_tokens=False):
                counter.update(encoding.ids)
        counts.append(counter)
    vocabulary = {token: place for place, token in enumerate(sorted(set().union(*counts)))}
    frequency = np.zeros((len(labels), len(vocabulary)))
    for row, counter in enumerate(counts):
        for token, count in counter.items():
            frequency[row, vocabulary[token]] = count
    frequency /= np.maximum(frequency.sum(axis=1, keepdims=True), 1)
    shared = np.full((len(labels), len(labels)), np.nan)
    for row in range(len(labels)):
        low = np.minimum(frequency[row], frequency).sum(axis=1)
        high = np.maximum(frequency[row], frequency).sum(axis=1)
        shared[row] = low / np.maximum(high, np.finfo(float).tiny)
    np.fill_diagonal(shared, np.nan)
    return pd.DataFrame(shared, index=labels, columns=labels)


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def _number(value: object) -> float | str:
    try:
        return float(str(value))
    except ValueError:
        return str(value)


def groupings(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Groupings of languages for `Forgetting.groups`: Latin or not, script, family where known.

    Args:
        frame: `Confounds.frame`.
    """
    latin = {
        str(row.language): "Latin script"
        if set(str(row.script).split(">")) == {"Latn"}
        else "other"
        for row in frame.itertuples()
        if row.script
    }
    found = {"latin": latin}
    found["script"] = {
        str(row.language): str(row.script_name) for row in frame.itertuples() if row.script
    }
    found["family"] = {
        str(row.language): str(row.family) for row in frame.itertuples() if row.family
    }
    return {name: members for name, members in found.items() if members}
