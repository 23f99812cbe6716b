"""Real masks through the real overlap and forgetting rooms, up to the one sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from subnet.checkpoint.records import Metric
from subnet.forgetting import Forgetting, measure_forgetting
from subnet.overlap import measure_overlap
from subnet.relation import relate
from subnet.subnetwork import Subnetwork

LABELS = ("de", "en", "es", "fi", "hi", "ja", "ru", "sw")
SHAPES = {"encoder.layer.0.query.weight": (24, 16), "encoder.layer.1.query.weight": (24, 16)}


def masks(
    seed: int, *, like: list[Subnetwork] | None = None, run: str = "main"
) -> list[Subnetwork]:
    """One random mask per language, each near one of three prototypes so that overlaps differ."""
    rng = np.random.default_rng(seed)
    prototypes = {name: rng.random((3, *shape)) for name, shape in SHAPES.items()}
    found = []
    for place, label in enumerate(LABELS):
        weights = rng.dirichlet(np.ones(3))
        arrays = {}
        for name, shape in SHAPES.items():
            noise = rng.random(shape)
            near = like[place].dense(name) if like else np.tensordot(weights, prototypes[name], 1)
            arrays[name] = 2 * near + noise > np.quantile(2 * near + noise, 0.8)
        found.append(Subnetwork.from_arrays(arrays, language=label, base="tiny", run=run))
    return found


def jaccard(a: Subnetwork, b: Subnetwork) -> float:
    one, other = (np.concatenate([m.dense(name).ravel() for name in SHAPES]) for m in (a, b))
    return float((one & other).sum() / (one | other).sum())


def sequence(effects: np.ndarray) -> Forgetting:
    """Scores of a sequence in which training language i adds effects[i, j] to language j."""
    scores = np.vstack([np.zeros(len(LABELS)), np.cumsum(effects, axis=0)])
    frame = pd.DataFrame(scores, columns=list(LABELS)).rename_axis("stage").reset_index()
    frame = frame.melt("stage", var_name="language").assign(metric="score")
    metric = {"score": Metric("score", higher_is_better=True)}
    return measure_forgetting(frame, metrics=metric, order=list(LABELS))


def loss_by(first: list[Subnetwork], second: list[Subnetwork]) -> np.ndarray:
    shared = np.array([[jaccard(a, b) for b in second] for a in first])
    shared = (shared - shared.mean()) / shared.std()
    return -shared + 0.3 * np.random.default_rng(8).standard_normal(shared.shape)


def test_masks_that_overlap_more_are_found_to_lose_more() -> None:
    found = masks(1)
    overlap = measure_overlap(found)
    relation = relate(sequence(loss_by(found, found)), overlap=overlap, n_permutations=499)
    assert relation.headline.state == "associated"
    assert relation.headline.row is not None
    assert relation.headline.row["predictor"] == "masks"
    assert relation.headline.row["estimate"] < -0.7
    assert {"all", "layer", "module"} == set(relation.frame["level"])
    assert not relation.frame.duplicated(
        ["predictor", "measure", "level", "module", "method"]
    ).any()
    undefined = relation.frame["p_value"].isna()
    assert (relation.frame.loc[undefined, "reason"] != "").all()
    unrelated = relate(sequence(loss_by(masks(5), masks(5))), overlap=overlap, n_permutations=499)
    assert unrelated.headline.state == "not associated"


def test_what_steps_changed_is_compared_in_its_direction() -> None:
    used = masks(1)
    changed = masks(2, like=used[3:] + used[:3])
    overlap = measure_overlap(changed, others=used)
    forgetting = sequence(loss_by(changed, used))
    relation = relate(
        forgetting,
        overlap={"masks": measure_overlap(used), "step_masks": overlap},
        n_permutations=499,
    )
    row = relation.headline.row
    assert row is not None
    assert row["predictor"] == "step_masks"
    assert row["n_languages"] == len(LABELS)
    shared = np.array([[jaccard(a, b) for b in used] for a in changed])
    apart = ~np.eye(len(LABELS), dtype=bool)
    plain = relation.frame[
        (relation.frame["predictor"] == "step_masks")
        & (relation.frame["measure"] == "jaccard")
        & (relation.frame["level"] == "all")
        & (relation.frame["method"] == "qap")
    ].iloc[0]
    effect = forgetting.effect_matrix("score").to_numpy()[apart]
    assert plain["estimate"] == pytest.approx(np.corrcoef(effect, shared[apart])[0, 1])
