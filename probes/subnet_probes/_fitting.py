"""Fits of one probe to several sets of labels of the same examples."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from subnet_probes._design import IllConditionedError, design
from subnet_probes._logistic import fit_logistic
from subnet_probes.probe import Probe

Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Answers:
    """What p fits say of t test examples.

    Attributes:
        predicted: [p, t], class numbers.
        failed: How many fits did not converge.
        probabilities: [p, t, k]; None where they were not asked for.
    """

    predicted: Codes
    failed: int
    probabilities: NDArray[np.float64] | None = None


def answers(
    probes: Any,
    x: NDArray[Any],
    targets: Codes,
    test: NDArray[Any],
    n_classes: int,
    *,
    probabilities: bool = False,
) -> Answers:
    """Fit every probe to every set of labels, all on the same examples.

    Probes that are a `Probe` and differ in their penalty only are fitted together; any other
    scikit-learn classifier one by one, in a loop that gives the same.

    Args:
        probes: One, or one for each set of labels.
        x: [m, d].
        targets: [p, m], class numbers.
        test: [t, d].
        n_classes: k.
        probabilities: Whether they are wanted.
    """
    several = probes if isinstance(probes, list) else [probes] * len(targets)
    shape = (len(targets), len(test), n_classes)
    predicted = np.zeros(shape[:2], dtype=np.intp)
    chances = np.zeros(shape) if probabilities else None
    if not len(test) or not len(targets):
        return Answers(predicted, 0, chances)
    constant = (targets == targets[:, :1]).all(axis=1)
    for at in np.flatnonzero(constant):
        predicted[at] = targets[at, 0]
        if chances is not None:
            chances[at, :, targets[at, 0]] = 1
    todo = np.flatnonzero(~constant)
    failed = 0
    if len(todo):
        chosen = [several[at] for at in todo]
        found = _together(chosen, x, targets[todo], test, n_classes, probabilities)
        if found is None:
            found = _one_by_one(chosen, x, targets[todo], test, n_classes, probabilities)
        predicted[todo], failed = found.predicted, found.failed
        if chances is not None and found.probabilities is not None:
            chances[todo] = found.probabilities
    return Answers(predicted, failed, chances)


def _together(
    probes: list[Any], x: NDArray[Any], targets: Codes, test: NDArray[Any], k: int, wanted: bool
) -> Answers | None:
    """All fits in lock-step; None where the probes or the numbers do not allow it.

    What rounds too coarsely in single precision is fitted in double.
    """
    first = probes[0]
    if not all(_alike(probe, first) for probe in probes):
        return None
    for dtype in dict.fromkeys((x.dtype, np.dtype(np.float64))):
        with contextlib.suppress(IllConditionedError), np.errstate(all="ignore"):
            found = fit_logistic(
                design(x.astype(dtype, copy=False), test, standardize=first.standardize),
                targets,
                k,
                [probe.C for probe in probes],
                tol=first.tol,
                max_iter=first.max_iter,
            )
            return Answers(
                found.predicted,
                int((found.n_iter >= first.max_iter).sum()),
                found.probabilities if wanted else None,
            )
    return None


def _alike(probe: Any, first: Any) -> bool:
    """Whether a probe is one that can be fitted with the first."""
    if type(probe) is not Probe or probe.components is not None or probe.class_weight is not None:
        return False
    names = ("standardize", "tol", "max_iter")
    return probe.C > 0 and all(getattr(probe, name) == getattr(first, name) for name in names)


def _one_by_one(
    probes: list[Any], x: NDArray[Any], targets: Codes, test: NDArray[Any], k: int, wanted: bool
) -> Answers:
    predicted, failed = np.empty((len(targets), len(test)), dtype=np.intp), 0
    chances = np.zeros((len(targets), len(test), k)) if wanted else None
    for at, (probe, labels) in enumerate(zip(probes, targets, strict=True)):
        fitted = clone(probe).fit(x, labels)
        limit = getattr(fitted, "max_iter", None)
        failed += limit is not None and int(np.max(getattr(fitted, "n_iter_", 0))) >= limit
        if chances is None:
            predicted[at] = fitted.predict(test)
        else:
            chances[at][:, fitted.classes_] = fitted.predict_proba(test)
            predicted[at] = chances[at].argmax(axis=-1)
    return Answers(predicted, failed, chances)
