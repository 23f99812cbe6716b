"""What the probing functions return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet._tables import Provenance
from subnet.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the table of probes.
COLUMNS = (
    "layer", "language", "task", "metric", "score", "ci_low", "ci_high", "majority",
    "random_labels", "control", "selectivity", "selectivity_low", "selectivity_high", "codelength",
    "compression", "control_codelength", "prior_codelength", "n", "n_groups", "n_classes",
    "control_seen", "reason",
)  # fmt: skip
#: Columns of the table of transfers.
TRANSFER_COLUMNS = (
    "layer", "train_language", "test_language", "task", "metric", "score", "ci_low", "ci_high",
    "majority", "random_labels", "gap", "gap_low", "gap_high", "n_train", "n", "n_groups",
    "n_classes", "reason",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Probing:
    """What probes find at every layer, beside what they would find by chance.

    Attributes:
        frame: One row per layer, language (`all` where a probe is about all of them) and `metric`
            (`accuracy`, `macro_f1`): held-out `score` with its 95 % bootstrap interval over groups;
            `majority`, the score of the training items' most frequent label; `random_labels`, of
            the same probe on permuted labels; `control`, of the same probe on the control task;
            `selectivity` = score − control with its interval. The interval tells what other test
            groups would change, not other training data. `codelength` in bits, `compression` =
            uniform codelength / codelength, codelengths of the control task and of label
            frequencies alone (the same in the rows of both metrics); `n` tested items in
            `n_groups`, `n_classes`; `control_seen`, the share of tested items whose control type is
            trained on too: where it is 0, as for concepts that are split by concept, the control
            cannot be memorised and is chance. `reason` where something is undefined.
        layers, languages: In order.
        warnings: What a reader must know before believing the numbers, one line each.
        provenance: Settings, seed, versions.
    """

    frame: pd.DataFrame
    layers: tuple[str, ...]
    languages: tuple[str, ...]
    warnings: tuple[str, ...]
    provenance: Provenance

    def __repr__(self) -> str:
        return _described(self.frame, "Probing", self.layers, self.languages)

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()

    def matrix(self, value: str = "score", *, metric: str = "accuracy") -> pd.DataFrame:
        """Layer × language of one value.

        Raises:
            InputError: There is no such value or metric.
        """
        rows = _chosen(self.frame, value, metric, COLUMNS[4:-1])
        wide = rows.set_index(["layer", "language"])[value].unstack()  # noqa: PD010 nothing to aggregate
        return wide.reindex(index=list(self.layers), columns=list(self.languages))


@dataclass(frozen=True, eq=False)
class Transfer:
    """What probes trained on one language find in another.

    Attributes:
        frame: One row per layer, language trained on, language tested on and metric; the diagonal
            is within a language, by the same splits. `majority`: the most frequent training label;
            `random_labels`: the same probes with permuted labels on both sides. `gap` = score minus
            that of the probe trained on the tested language itself, paired over the groups.
            `n_train` items per fold on average.
        layers, languages: In order.
        warnings: What a reader must know before believing the numbers, one line each.
        provenance: Settings, seed, versions.
    """

    frame: pd.DataFrame
    layers: tuple[str, ...]
    languages: tuple[str, ...]
    warnings: tuple[str, ...]
    provenance: Provenance

    def __repr__(self) -> str:
        return _described(self.frame, "Transfer", self.layers, self.languages)

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()

    def matrix(
        self, layer: str | None = None, *, value: str = "score", metric: str = "accuracy"
    ) -> pd.DataFrame:
        """Language trained on × language tested on: a predictor that `subnet.relate` takes.

        Args:
            layer: By default the last.
            value: A column of `frame`.
            metric: `accuracy` or `macro_f1`.

        Raises:
            InputError: There is no such layer, value or metric.
        """
        layer = self.layers[-1] if layer is None else str(layer)
        if layer not in self.layers:
            raise InputError(f"layer is {layer!r}", expected=f"one of {', '.join(self.layers)}")
        rows = _chosen(self.frame, value, metric, TRANSFER_COLUMNS[5:-1])
        rows = rows[rows["layer"] == layer]
        wide = rows.set_index(["train_language", "test_language"])[value].unstack()  # noqa: PD010 as above
        names = list(self.languages)
        return wide.reindex(index=names, columns=names)


def tidy(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A table of these columns; numbers that a row does not have are NaN, no reason is `""`."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(columns))
    text = {"layer", "language", "train_language", "test_language", "task", "metric", "reason"}
    for column in columns:
        if column in text | {"method", "measure"}:
            frame[column] = frame[column].fillna("").astype(str)
        elif column == "n" or column.startswith("n_"):
            frame[column] = frame[column].fillna(0).astype(int if column != "n_train" else float)
        elif column != "testable":
            frame[column] = frame[column].astype(np.float64)
    return frame


def _described(
    frame: pd.DataFrame, name: str, layers: Sequence[str], languages: Sequence[str]
) -> str:
    """One line for a notebook: what was probed where, and the range of the accuracy."""
    scores = frame.loc[frame["metric"] == "accuracy", "score"]
    tasks = ", ".join(dict.fromkeys(frame["task"].astype(str)))
    whole = list(languages) == ["all"]
    of = "all languages together" if whole else f"{len(languages)} languages"
    found = f", accuracy {scores.min():.2f} to {scores.max():.2f}" if scores.notna().any() else ""
    return f"{name}({tasks} of {of}, layers {', '.join(layers)}{found})"


def _chosen(frame: pd.DataFrame, value: str, metric: str, values: Sequence[str]) -> pd.DataFrame:
    metrics = list(dict.fromkeys(frame["metric"]))
    if metric not in metrics:
        raise InputError(f"metric is {metric!r}", expected=f"one of {', '.join(metrics)}")
    if value not in values:
        raise InputError(f"value is {value!r}", expected=f"one of {', '.join(values)}")
    return frame[frame["metric"] == metric]
