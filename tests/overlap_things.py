"""Masks and adapters for the tests of overlap, made so that the truth about them is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from subnet.language import Language, parse_language
from subnet.subnetwork import Subnetwork

SHAPES = {
    "bert.encoder.layer.0.attention.self.query.weight": (96, 96),
    "bert.encoder.layer.0.intermediate.dense.weight": (256, 96),
    "bert.encoder.layer.1.attention.self.query.weight": (96, 96),
    "bert.encoder.layer.1.intermediate.dense.weight": (256, 96),
}


@dataclass(frozen=True)
class Adapter:
    """An update in memory: the interface of `subnet.checkpoint.Update` that overlap reads."""

    language: Language | str
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    run: str = "main"
    base: str = "base"
    is_low_rank: bool = True
    transposed: frozenset[str] = field(default_factory=frozenset)

    @property
    def shapes(self):
        return {name: (b.shape[0], a.shape[1]) for name, (b, a) in self.weights.items()}

    def factors(self, parameter):
        assert self.is_low_rank
        return self.weights[parameter]

    def dense(self, parameter):
        b, a = self.weights[parameter]
        return b @ a


@dataclass(frozen=True)
class AdapterStep(Adapter):
    stage: int = 1
    previous: str = "00-base"


def language(label: str) -> Language | str:
    return label if label.startswith("x") else parse_language(label)


def adapter(label, *, seed, shapes=SHAPES, rank=8, shared_a=None, run="main", **details):
    """A random adapter; with `shared_a`, its A starts from that seed and moves by a tenth."""
    rng = np.random.default_rng(seed)
    start = rng if shared_a is None else np.random.default_rng(shared_a)
    weights = {}
    for name, (o, i) in shapes.items():
        a = start.standard_normal((rank, i))
        if shared_a is not None:
            a = a + 0.3 * rng.standard_normal((rank, i))
        b = rng.standard_normal((o, rank))
        weights[name] = (torch.from_numpy(b).float(), torch.from_numpy(a).float())
    return Adapter(language(label), weights, run=run, **details)


def adapters(count, *, seed=0, **details):
    return [adapter(f"x{n}", seed=(seed, n), **details) for n in range(count)]


def mask_of(update: Adapter, density: float = 0.05) -> Subnetwork:
    """The largest |ΔW| over all parameters, with the signs of the change."""
    dense = {name: update.dense(name).numpy() for name in update.shapes}
    everything = np.concatenate([np.abs(matrix).ravel() for matrix in dense.values()])
    at = round(everything.size * (1 - density))
    threshold = np.partition(everything, at)[at]
    kept = {name: np.abs(matrix) >= threshold for name, matrix in dense.items()}
    return Subnetwork.from_arrays(
        kept,
        language=str(update.language),
        base=update.base,
        run=update.run,
        signs={name: pack(mask & (dense[name] < 0)) for name, mask in kept.items()},
    )


def mask(label: str, arrays: Mapping[str, np.ndarray], **details) -> Subnetwork:
    return Subnetwork.from_arrays(arrays, language=label, base="base", **details)


def pack(array: np.ndarray) -> np.ndarray:
    return np.packbits(array.ravel(), bitorder="little")


def rejected(overlap, measure: str, *, null: str, level: str, alpha: float = 0.05) -> float:
    """Share of the pairs whose printed p is below alpha."""
    frame = overlap.frame
    rows = frame[
        (frame["measure"] == measure) & (frame["null"] == null) & (frame["level"] == level)
    ]
    assert rows["p_value"].notna().all()
    return float((rows["p_value"] < alpha).mean())


def one_row(overlap, measure: str, *, null: str | None = None, **where) -> dict:
    """The only row of a measure that satisfies the conditions; level all unless said otherwise."""
    frame = overlap.frame
    conditions = {"level": "all", "null": null or overlap.headline_null(measure), **where}
    rows = frame[frame["measure"] == measure]
    for column, value in conditions.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, rows
    return rows.iloc[0].to_dict()


def values(overlap, measure: str, level: str = "all") -> Sequence[float]:
    frame = overlap.frame
    rows = frame[(frame["measure"] == measure) & (frame["level"] == level)]
    return rows["value"].to_numpy()
