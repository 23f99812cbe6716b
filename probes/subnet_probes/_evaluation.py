"""One probing experiment: the scores of one layer on one set of items, beside what chance gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from subnet_probes._fitting import answers
from subnet_probes._resampling import METRICS, GroupBootstrap, interval
from subnet_probes._sources import Array
from subnet_probes.control import control_labels, permuted_labels
from subnet_probes.mdl import codelengths
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.splits import grouped_folds

Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Task:
    """Items that one probe is about, the same for all layers.

    Attributes:
        name: Language, or `all`.
        rows: [n], which rows of the representations.
        labels: [n], class numbers from 0 to k − 1.
        classes: k labels.
        groups: [n].
        fold: [n].
        random: [draws, n], permuted labels.
        control: [draws, n], labels of the control task.
        control_seen: Share of the tested items whose control type is trained on.
        bootstrap: Over the groups of the tested items.
        reason: Why there is nothing to probe, `""` where there is.
    """

    name: str
    rows: Codes
    labels: Codes
    classes: tuple[str, ...]
    groups: Codes
    fold: Codes
    random: Codes
    control: Codes
    control_seen: float
    bootstrap: GroupBootstrap | None
    reason: str = ""

    def tested(self, settings: ProbeSettings) -> NDArray[np.bool_]:
        """[n], which items are tested."""
        return self.fold == 0 if settings.holdout else np.ones(len(self.fold), dtype=bool)


def make_task(
    name: str,
    rows: Codes,
    labels: NDArray[Any],
    groups: Codes,
    types: NDArray[Any],
    settings: ProbeSettings,
    seed: int,
) -> tuple[Task, list[str]]:
    """Splits, baselines' labels and resamples of a task; what was left out, one line each.

    Args:
        name: Language, or `all`.
        rows: [n].
        labels: [n], as text.
        groups: [n].
        types: [n], what control labels depend on.
        settings: Of the experiment.
        seed: Of everything random.
    """
    lines = []
    kept = np.ones(len(rows), dtype=bool)
    for label in np.unique(labels):
        mine = labels == label
        if len(np.unique(groups[mine])) < 2:
            kept &= ~mine
            n = int(mine.sum())
            times = "once" if n == 1 else f"{n} times, in one group,"
            lines.append(
                f"{name}: label {label!r} occurs {times} and cannot be both trained and tested; "
                "left out"
            )
    rows, labels, groups, types = rows[kept], labels[kept], groups[kept], types[kept]
    classes, codes = np.unique(labels, return_inverse=True)
    reason = ""
    n_groups = len(np.unique(groups))
    if len(classes) < 2:
        reason = f"{name} has {'one label' if len(classes) else 'no label'} left to tell apart"
    elif n_groups < settings.folds:
        reason = f"{name} has {n_groups} groups for {settings.folds} folds"
    if reason:
        none = np.zeros((0, len(rows)), dtype=np.intp)
        fold = np.zeros(len(rows), dtype=np.intp)
        names = tuple(map(str, classes))
        task = Task(name, rows, codes, names, groups, fold, none, none, math.nan, None, reason)
        return task, lines
    fold = grouped_folds(codes, groups, folds=settings.folds, seed=seed)
    draws = [1000 * seed + draw for draw in range(max(settings.n_random, settings.n_controls))]
    shape = (-1, len(rows))
    random = [permuted_labels(codes, groups, seed=draw) for draw in draws[: settings.n_random]]
    control = [control_labels(codes, types, seed=draw) for draw in draws[: settings.n_controls]]
    tested = fold == 0 if settings.holdout else np.ones(len(rows), dtype=bool)
    return (
        Task(
            name,
            rows,
            codes,
            tuple(map(str, classes)),
            groups,
            fold,
            np.array(random, dtype=np.intp).reshape(shape),
            np.array(control, dtype=np.intp).reshape(shape),
            _share_seen(types, fold, tested),
            GroupBootstrap(groups[tested], seed, settings.n_resamples),
        ),
        lines,
    )


def evaluate(
    probe: Any, x: Array, task: Task, settings: ProbeSettings, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """Scores of a probe on a task, one row per metric, and how many fits did not converge.

    Args:
        probe: A scikit-learn classifier, which is cloned.
        x: [all, d], one layer, of which the task's rows are taken.
        task: The task.
        settings: Of the experiment.
        seed: Of the order of online coding.
    """
    tested = task.tested(settings)
    sizes = {
        "n": int(tested.sum()),
        "n_groups": 0 if task.bootstrap is None else task.bootstrap.n_groups,
        "n_classes": len(task.classes),
    }
    if task.bootstrap is None:
        return [{"metric": metric, **sizes, "reason": task.reason} for metric in METRICS], 0
    x = x[task.rows]
    targets = np.vstack([task.labels, task.random, task.control])
    predicted, unconverged = predict_out_of_fold(
        probe, x, targets, task.fold, settings.holdout, len(task.classes)
    )
    majority = _majority(task.labels, task.fold, settings.holdout)
    k = len(task.classes)
    found = task.bootstrap.scores(
        np.vstack([targets, task.labels])[:, tested],
        np.vstack([predicted, majority])[:, tested],
        k,
    )
    lengths = _codelengths(probe, x, task, settings, seed) if settings.mdl else {}
    random = slice(1, 1 + len(task.random))
    control = slice(1 + len(task.random), 1 + len(task.random) + len(task.control))
    rows: list[dict[str, Any]] = []
    for metric, point, resampled in zip(METRICS, found.point, found.resampled, strict=True):
        low, high = interval(resampled[0])
        row: dict[str, Any] = {
            "metric": metric,
            "score": float(point[0]),
            "ci_low": low,
            "ci_high": high,
            "majority": float(point[-1]),
            "random_labels": _mean(point[random]),
            "control": _mean(point[control]),
            **lengths,
            **sizes,
            "control_seen": task.control_seen,
            "reason": "" if sizes["n_groups"] > 1 else "no interval: one group is tested",
        }
        if len(task.control):
            row["selectivity"] = row["score"] - row["control"]
            difference = resampled[0] - resampled[control].mean(axis=0)
            row["selectivity_low"], row["selectivity_high"] = interval(difference)
        rows.append(row)
    return rows, unconverged


def predict_out_of_fold(
    probe: Any, x: Array, targets: Codes, fold: Codes, holdout: bool, n_classes: int
) -> tuple[Codes, int]:
    """Predictions [p, n] by probes that saw no group of what they predict, −1 where untested.

    Args:
        probe: A scikit-learn classifier.
        x: [n, d].
        targets: [p, n], sets of labels.
        fold: [n].
        holdout: Whether the first fold alone is predicted.
        n_classes: k.

    Returns:
        Predictions, and how many fits did not converge.
    """
    predicted = np.full(targets.shape, -1, dtype=np.intp)
    failed = 0
    for number in range(1 if holdout else int(fold.max()) + 1):
        train, test = fold != number, fold == number
        found = answers(probe, x[train], targets[:, train], x[test], n_classes)
        predicted[:, test] = found.predicted
        failed += found.failed
    return predicted, failed


def _codelengths(
    probe: Any, x: Array, task: Task, settings: ProbeSettings, seed: int
) -> dict[str, float]:
    probes = [probe]
    if "C" in probe.get_params():
        probes = [clone(probe).set_params(C=c) for c in settings.mdl_C]
    classes = np.arange(len(task.classes))

    own, *control = codelengths(
        probes, x, [task.labels, *task.control], groups=task.groups,
        fractions=settings.fractions, classes=classes, seed=seed,
    )  # fmt: skip
    found = {
        "codelength": own.bits,
        "compression": own.compression,
        "prior_codelength": own.prior_bits,
    }
    if control:
        found["control_codelength"] = _mean([coded.bits for coded in control])
    return found


def _majority(labels: Codes, fold: Codes, holdout: bool) -> Codes:
    """The most frequent label of what each fold is trained on; the first of equals."""
    found = np.zeros(len(labels), dtype=np.intp)
    for number in range(1 if holdout else int(fold.max()) + 1):
        found[fold == number] = np.bincount(labels[fold != number]).argmax()
    return found


def _share_seen(types: NDArray[Any], fold: Codes, tested: NDArray[np.bool_]) -> float:
    """Share of the tested items whose type stands in another fold too."""
    _, codes = np.unique(types.astype(str), return_inverse=True)
    first = np.full(codes.max() + 1, np.iinfo(np.intp).max)
    last = np.full(codes.max() + 1, -1)
    np.minimum.at(first, codes, fold)
    np.maximum.at(last, codes, fold)
    return float((first != last)[codes[tested]].mean())


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan
