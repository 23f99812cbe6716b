"""Scores made up for tests, and the measures as loops over their definitions."""

import math

import numpy as np
import pandas as pd

from subnet.checkpoint.records import Metric, Scores

ACCURACY = Metric("accuracy", higher_is_better=True, chance=0.25, range=(0.0, 1.0))
LOSS = Metric("loss", higher_is_better=False, chance=None, range=(0.0, math.inf))
METRICS = {"accuracy": ACCURACY, "loss": LOSS}


def long(scores, languages, *, metric="accuracy", run="main", first=0, stderr=None):
    """A matrix [stages, languages] as a long table."""
    scores = np.asarray(scores, dtype=float)
    stages, columns = np.indices(scores.shape)
    return pd.DataFrame(
        {
            "run": run,
            "stage": stages.ravel() + first,
            "language": [languages[c] for c in columns.ravel()],
            "metric": metric,
            "value": scores.ravel(),
            "stderr": np.nan if stderr is None else np.asarray(stderr, dtype=float).ravel(),
        }
    ).dropna(subset="value")


def long_items(items, languages, *, metric="accuracy", run="main", first=0, shared=True):
    """Results [stages, languages, items] as a long table; NaN are left out."""
    items = np.asarray(items, dtype=float)
    stages, columns, numbers = (axis.ravel() for axis in np.indices(items.shape))
    own = [f"{'' if shared else languages[c]}{n}" for c, n in zip(columns, numbers, strict=True)]
    return pd.DataFrame(
        {
            "run": run,
            "stage": stages + first,
            "language": [languages[c] for c in columns],
            "item": own,
            "metric": metric,
            "value": items.ravel(),
        }
    ).dropna(subset="value")


def scores_of(frame, order, *, items=None, metrics=METRICS, sources=()):
    """What the checkpoint room hands over."""
    runs = order if all(isinstance(v, dict) for v in order.values()) else {"main": order}
    by_stage = {(r, s): lang for r, turns in runs.items() for lang, s in turns.items()}
    trained = [by_stage.get(key, "") for key in zip(frame["run"], frame["stage"], strict=True)]
    return Scores(frame.assign(trained_language=trained), items, metrics, runs, tuple(sources))


def value(found, measure, language="", *, metric="accuracy", run="main", column="value"):
    """One cell of the table of measures."""
    frame = found.frame
    row = frame[
        (frame["run"] == run)
        & (frame["language"] == language)
        & (frame["metric"] == metric)
        & (frame["measure"] == measure)
    ]
    assert len(row) == 1, (measure, language, len(row))
    return row[column].iloc[0]


def by_definition(R, t, *, higher=True, joint=None):
    """Every measure of every language, by loops; R[s][j] from stage 0 on, t[j] = stage(j)."""
    S, L = len(R) - 1, len(R[0])
    sign = 1 if higher else -1
    found = {}
    for j in range(L):
        own = found[j] = {}
        own["average_accuracy"] = R[S][j]
        if t[j] < S:
            own["backward_transfer"] = sign * (R[S][j] - R[t[j]][j])
            own["forgetting_since_turn"] = worst(R, j, range(t[j], S), sign)
        if t[j] > 1:
            own["forward_transfer"] = sign * (R[t[j] - 1][j] - R[0][j])
        own["forgetting"] = worst(R, j, range(S), sign)
        own["loss_since_start"] = sign * (R[0][j] - R[S][j])
        if joint is not None:
            own["intransigence"] = sign * (joint[j] - R[t[j]][j])
        own["own_gain"] = sign * (R[t[j]][j] - R[t[j] - 1][j])
        received = [sign * (R[t[i]][j] - R[t[i] - 1][j]) for i in range(L) if i != j]
        given = [sign * (R[t[j]][i] - R[t[j] - 1][i]) for i in range(L) if i != j]
        own["immediate_effect"] = sum(received) / len(received)
        own["immediate_effect_given"] = sum(given) / len(given)
    return found


def worst(R, j, stages, sign):
    """max over stages of R[l, j] − R[S, j], in the direction that is better."""
    scores = [sign * R[s][j] for s in stages]
    if any(math.isnan(s) for s in scores):
        return math.nan
    return max(scores) - sign * R[-1][j]
