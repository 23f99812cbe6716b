"""Accuracy and macro-F1 with intervals over groups, of many predictions at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subnet._statistics import CONFIDENCE

METRICS = ("accuracy", "macro_f1")

#: Numbers of resampled counts held at once: 64 MB in single precision.
_BATCH = 1 << 24


@dataclass(frozen=True)
class Scores:
    """Scores of m predictions.

    Attributes:
        point: [2, m], accuracy and macro-F1.
        resampled: [2, m, b], the same over bootstrap resamples of groups.
    """

    point: NDArray[np.float64]
    resampled: NDArray[np.float64]


class GroupBootstrap:
    """Percentile bootstrap over groups: a group is drawn with all its items.

    The resamples are the same for whatever is asked, so that differences are paired. It resamples
    what is tested, not what the probe was trained on.

    Args:
        groups: [n], group of each item.
        seed: Seed of the resamples.
        n_resamples: Number of resamples, b.
    """

    def __init__(self, groups: NDArray[np.intp], seed: int, n_resamples: int) -> None:
        _, self.codes = np.unique(groups, return_inverse=True)
        self.n_groups = int(self.codes.max()) + 1 if len(groups) else 0
        n = self.n_groups
        share = np.full(n, 1 / n) if n else np.zeros(0)
        rng = np.random.default_rng([seed, n])
        times = rng.multinomial(n, share, size=n_resamples) if n > 1 else np.zeros((0, n))
        self._times = times.astype(np.uint16 if n < 60000 else np.uint32)

    def scores(
        self, actual: NDArray[np.intp], predicted: NDArray[np.intp], n_classes: int
    ) -> Scores:
        """Accuracy and macro-F1.

        Macro-F1 is the mean of F1 = 2·tp / (predicted + actual) over the classes that are predicted
        or actual at all.

        Args:
            actual: [m, n] or [n], class numbers.
            predicted: [m, n], class numbers.
            n_classes: Number of classes, k.
        """
        actual = np.broadcast_to(actual, predicted.shape)
        size = max(1, _BATCH // max(1, len(self._times) * n_classes + self.n_groups * n_classes))
        parts = [
            self._batch(actual[at : at + size], predicted[at : at + size], n_classes)
            for at in range(0, len(predicted), size)
        ]
        return Scores(
            np.concatenate([part.point for part in parts], axis=1),
            np.concatenate([part.resampled for part in parts], axis=1),
        )

    def _batch(
        self, actual: NDArray[np.intp], predicted: NDArray[np.intp], n_classes: int
    ) -> Scores:
        m = len(predicted)
        hits = self._counts(np.where(actual == predicted, actual, -1), n_classes)  # [g, m, k]
        both = self._counts(actual, n_classes) + self._counts(predicted, n_classes)
        sizes = np.bincount(self.codes, minlength=self.n_groups)
        point = _of_counts(hits.sum(axis=0)[None], both.sum(axis=0)[None], np.array([sizes.sum()]))
        times = self._times.astype(np.float32)
        shape = len(times), m, n_classes
        resampled = _of_counts(
            (times @ hits.reshape(self.n_groups, -1)).reshape(shape),
            (times @ both.reshape(self.n_groups, -1)).reshape(shape),
            times @ sizes,
        )
        return Scores(point[..., 0], resampled)

    def _counts(self, numbers: NDArray[np.intp], n_classes: int) -> NDArray[np.float32]:
        """[g, m, k], how often each class stands in each group; negative numbers are no class."""
        m = len(numbers)
        cells = (self.codes * m + np.arange(m)[:, None]) * n_classes + numbers
        flat = np.bincount(cells[numbers >= 0], minlength=self.n_groups * m * n_classes)
        return flat.reshape(self.n_groups, m, n_classes).astype(np.float32)


def interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of resampled values [b]; (NaN, NaN) where nothing was resampled."""
    if not resampled.size or np.isnan(resampled).any():
        return (math.nan, math.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return (float(low), float(high))


def _of_counts(
    hits: NDArray[np.floating], both: NDArray[np.floating], n: NDArray[np.floating]
) -> NDArray[np.float64]:
    """[2, m, b] from hits and predicted + actual [b, m, k], and numbers of items [b]."""
    accuracy = hits.sum(axis=-1) / np.maximum(n, 1)[:, None]
    f1 = 2 * hits / np.maximum(both, 1)
    macro = f1.sum(axis=-1) / np.maximum((both > 0).sum(axis=-1), 1)
    return np.stack([accuracy.T, macro.T]).astype(np.float64)
