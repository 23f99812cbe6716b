"""From a table of scores to matrices.

Everything that a user can get wrong in a table of scores is refused here; the rest of the room
trusts what it receives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from subnet._tables import MAIN_RUN
from subnet.checkpoint.records import Metric, Scores, describe_metric
from subnet.errors import InputError
from subnet.forgetting._matrix import Array, Items, ScoreMatrix, half_of, masked_means

#: How a caller may say which stage trained which language: labels in order of training, label to
#: stage, or either of them per run.
Order: TypeAlias = (
    Sequence[str]
    | Mapping[str, int]
    | Mapping[str, Sequence[str]]
    | Mapping[str, Mapping[str, int]]
)

#: A score and the mean of its items may differ by the rounding of two decimals, relative to the
#: larger of the score and 1, and are otherwise not the same measurement.
ROUNDING = 0.0051

_KEY = ["run", "stage", "language", "metric"]


def score_matrices(
    scores: Scores | pd.DataFrame,
    *,
    items: pd.DataFrame | None,
    metrics: Iterable[str] | Mapping[str, Metric] | None,
    order: Order | None,
    reference: Scores | pd.DataFrame | None,
    seed: int,
) -> tuple[list[ScoreMatrix], list[str]]:
    """Every run and metric as a matrix, and warnings about what was not used.

    Raises:
        InputError: The table of scores is not usable; the message says where and why.
    """
    known: Mapping[str, Metric] = {}
    recorded: Mapping[str, Mapping[str, int]] = {}
    path: Path | None = None
    if isinstance(scores, Scores):
        known, path = scores.metrics, _path(scores)
        items = scores.items if items is None else items
        recorded, scores = scores.order, scores.frame
    if isinstance(metrics, Mapping):
        known = {**known, **metrics}
    frame = _tidy(scores, path, "score")
    table = None if items is None else _tidy(items, path, "item")
    joint, joint_items = _reference(reference)
    wanted = list(dict.fromkeys(metrics)) if metrics is not None else _names(frame, table)
    known = {name: known.get(name) or describe_metric(name) for name in wanted}
    warnings = [
        f"{name}: nobody says whether higher is better, so it is assumed; declare it with metrics= "
        f"or in subnet.toml: [scores.{name}] higher_is_better = true"
        for name in wanted
        if known[name].assumed
    ]
    tables = [t for t in (table, joint_items) if t is not None]
    ids = pd.unique(pd.concat([t["item"] for t in tables])) if tables else np.empty(0, dtype=object)
    halves = np.array([half_of(item, seed) for item in ids], dtype=bool)

    matrices: list[ScoreMatrix] = []
    runs = pd.unique(pd.concat([frame["run"], *([] if table is None else [table["run"]])]))
    for run in runs:
        own = frame[frame["run"] == run]
        own_items = None if table is None else table[table["run"] == run]
        trained = _trained(own, order, recorded.get(str(run), {}), str(run), path)
        seen = set(own["stage"]) | (set() if own_items is None else set(own_items["stage"]))
        stages = _stages(seen, trained, str(run), path)
        for name in wanted:
            builder = _Builder(str(run), known[name], stages, trained)
            builder.add(own, own_items, ids, reference=False)
            builder.add(joint, joint_items, ids, reference=True)
            if builder.languages:
                matrix, notes = builder.build(halves)
                matrices.append(matrix)
                warnings.extend(notes)
    if not matrices:
        raise InputError(
            "there are no scores" + (f" of metric {', '.join(wanted)}" if wanted else ""),
            path=path,
            expected="rows of stage, language, metric, value",
        )
    return matrices, warnings


class _Builder:
    """Collects the cells and items of one run and metric."""

    def __init__(
        self, run: str, metric: Metric, stages: tuple[int, ...], trained: Mapping[int, str]
    ) -> None:
        self.run, self.metric, self.stages, self.trained = run, metric, stages, trained
        self.cells: list[tuple[NDArray[Any], Array, list[str], Array]] = []
        self.blocks: dict[str, list[tuple[NDArray[Any], NDArray[Any], Array]]] = {}
        self.has_reference = False
        self.languages: tuple[str, ...] = ()

    def add(
        self,
        frame: pd.DataFrame | None,
        items: pd.DataFrame | None,
        ids: NDArray[np.object_],
        *,
        reference: bool,
    ) -> None:
        """Take the rows of this metric from a table of scores and one of items."""
        labels = list(self.languages)
        for table in (frame, items):
            if table is None:
                continue
            own = table[table["metric"] == self.metric.name]
            if own.empty:
                continue
            if reference:
                rows = np.full(len(own), len(self.stages))
                self.has_reference = True
            else:
                rows = own["stage"].to_numpy() - self.stages[0]
                labels += [str(label) for label in pd.unique(own["language"])]
            values = own["value"].to_numpy(dtype=np.float64)
            names = own["language"].to_list()
            if table is frame:
                self.cells.append((rows, values, names, own["stderr"].to_numpy(dtype=np.float64)))
                continue
            numbers = pd.Index(ids).get_indexer(pd.Index(own["item"]))
            codes, found = pd.factorize(own["language"])
            ordered = np.argsort(codes, kind="stable")
            bounds = np.searchsorted(codes[ordered], np.arange(len(found) + 1))
            for index, language in enumerate(found):
                part = ordered[bounds[index] : bounds[index + 1]]
                self.blocks.setdefault(str(language), []).append(
                    (rows[part], numbers[part], values[part])
                )
        # Languages in order of training, then those that were only evaluated.
        by_stage = [self.trained[stage] for stage in sorted(self.trained)]
        scored = dict.fromkeys(labels)
        self.languages = tuple(dict.fromkeys([*(t for t in by_stage if t in scored), *scored]))

    def build(self, halves: NDArray[np.bool_]) -> tuple[ScoreMatrix, list[str]]:
        """The matrix, and a note for each language whose items are not what its scores average."""
        shape = (len(self.stages) + self.has_reference, len(self.languages))
        values, stderrs = np.full(shape, np.nan), np.full(shape, np.nan)
        column = {language: index for index, language in enumerate(self.languages)}
        for rows, cells, names, errors in self.cells:
            use = np.array([name in column for name in names])
            columns = np.array([column.get(name, 0) for name in names])
            values[rows[use], columns[use]] = cells[use]
            stderrs[rows[use], columns[use]] = errors[use]
        blocks: list[Items | None] = []
        notes = []
        for index, language in enumerate(self.languages):
            block = self._items(language, shape[0], halves)
            if block is not None:
                means = masked_means(block.scores, ~np.isnan(block.scores))
                given = values[:, index]
                off = np.abs(means - given) > ROUNDING * np.maximum(1.0, np.abs(given))
                if off.any():
                    row = int(np.flatnonzero(off)[0])
                    notes.append(
                        f"{self.metric.name} of {language!r} in run {self.run!r}: its items "
                        f"average {means[row]:.4g} at {self.row_name(row)} where its score is "
                        f"{given[row]:.4g}, so its items are not used"
                    )
                    block = None
                else:
                    values[:, index] = np.where(np.isnan(given), means, given)
            blocks.append(block)
        matrix = ScoreMatrix(
            run=self.run,
            metric=self.metric,
            stages=self.stages,
            languages=self.languages,
            scores=values,
            stderrs=stderrs,
            items=tuple(blocks),
            trained=self.trained,
            has_reference=self.has_reference,
            n_items=len(halves),
        )
        return matrix, notes

    def row_name(self, row: int) -> str:
        """How messages call a row."""
        return f"stage {self.stages[row]}" if row < len(self.stages) else "the reference"

    def _items(self, language: str, n_rows: int, halves: NDArray[np.bool_]) -> Items | None:
        parts = self.blocks.get(language)
        if not parts:
            return None
        rows, every, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        numbers, position = np.unique(every, return_inverse=True)
        scores = np.full((n_rows, len(numbers)), np.nan)
        scores[rows, position] = values
        return Items(scores, numbers.astype(np.int64), halves[numbers])


def _path(scores: Scores) -> Path | None:
    """The file that a message names: the table of scores, or the only file there is."""
    tables = [path for path in scores.sources if path.stem.startswith("scores")]
    found = tables or list(scores.sources)
    return found[0] if len(found) == 1 else None


def _tidy(frame: pd.DataFrame, path: Path | None, kind: str) -> pd.DataFrame:
    """A long table with the columns this room reads, or one line about what is wrong with it."""
    wanted = ["stage", "language", "metric", "value", *(["item"] if kind == "item" else [])]
    absent = [column for column in wanted if column not in frame.columns]
    if absent:
        raise InputError(
            f"the table of {kind}s has no column {', '.join(map(repr, absent))}",
            path=path,
            expected=f"the columns {', '.join(wanted)}",
            fix=f"it has: {', '.join(map(str, frame.columns))}",
        )
    tidy = frame.copy(deep=False)
    if "run" not in tidy:
        tidy["run"] = MAIN_RUN
    if kind == "score" and "stderr" not in tidy:
        tidy["stderr"] = np.nan
    for column in ("stage", "value", *(["stderr"] if kind == "score" else [])):
        numbers = pd.to_numeric(tidy[column], errors="coerce")
        wrong = (numbers.isna() & tidy[column].notna()) | np.isinf(numbers)
        if column == "stage":
            wrong |= numbers.isna() | (numbers < 0) | (numbers % 1 != 0)
        if wrong.any():
            raise InputError(
                f"{column} {tidy.loc[wrong, column].tolist()[0]!r} is no "
                + ("stage" if column == "stage" else "number"),
                path=path,
                expected="0, 1, 2, …" if column == "stage" else "a finite number",
            )
        tidy[column] = numbers.astype(np.int64 if column == "stage" else np.float64)
    for column in ("run", "language", "metric", *(["item"] if kind == "item" else [])):
        if tidy[column].isna().any():
            raise InputError(
                f"a {kind} has no {column}", path=path, expected=f"a {column} in every row"
            )
        tidy[column] = tidy[column].astype(str)
    key = [*_KEY, "item"] if kind == "item" else _KEY
    twice = tidy.duplicated(key)
    if twice.any():
        row = tidy.loc[twice, key].iloc[0]
        where = ", ".join(f"{column} {row[column]}" for column in key)
        raise InputError(
            f"two {kind}s for {where}", path=path, expected="one", fix="remove one of them"
        )
    return tidy


def _names(frame: pd.DataFrame, items: pd.DataFrame | None) -> list[str]:
    names = list(pd.unique(frame["metric"]))
    return list(dict.fromkeys([*names, *([] if items is None else pd.unique(items["metric"]))]))


def _trained(
    frame: pd.DataFrame,
    order: Order | None,
    recorded: Mapping[str, int],
    run: str,
    path: Path | None,
) -> dict[int, str]:
    """Stage to language: the order given, else what is recorded and the column says."""
    given: Any = order
    if isinstance(order, Mapping) and not all(isinstance(v, Integral) for v in order.values()):
        given = order.get(run)  # an order per run
    if isinstance(given, Mapping):
        pairs = [(int(stage), str(label)) for label, stage in given.items()]
    elif given is not None:
        pairs = [(stage, str(label)) for stage, label in enumerate(given, start=1)]
    else:
        pairs = [(int(stage), str(label)) for label, stage in recorded.items()]
        if "trained_language" in frame:  # also knows earlier turns of a language trained twice
            rows = frame[frame["trained_language"].notna() & (frame["trained_language"] != "")]
            labels = rows["trained_language"].astype(str)
            pairs += zip(rows["stage"].tolist(), labels.tolist(), strict=True)
    trained: dict[int, str] = {}
    for stage, label in sorted(set(pairs)):
        if stage < 1:
            raise InputError(
                f"run {run!r} trains {label!r} at stage {stage}",
                path=path,
                expected="stages from 1 on; stage 0 is the start of the sequence",
            )
        if stage in trained:
            raise InputError(
                f"stage {stage} of run {run!r} trains both {trained[stage]!r} and {label!r}",
                path=path,
                expected="one language per stage",
            )
        trained[stage] = label
    return trained


def _stages(
    seen: set[int], trained: Mapping[int, str], run: str, path: Path | None
) -> tuple[int, ...]:
    first, last = (0 if 0 in seen else 1), max([*seen, *trained])
    for stage in range(first, last + 1):
        if stage not in seen:
            raise InputError(
                f"stage {stage} of run {run!r} has no scores",
                path=path,
                expected=f"scores after every stage from {first} to {last}",
                fix=f"evaluate the model of stage {stage} and add its rows",
            )
    return tuple(range(first, last + 1))


def _reference(
    reference: Scores | pd.DataFrame | None,
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Scores and items of the jointly trained model: the last stage of the table given."""
    if reference is None:
        return None, None
    path, items = None, None
    if isinstance(reference, Scores):
        path = _path(reference)
        items = reference.items
        reference = reference.frame
    if "stage" not in reference:
        reference = reference.assign(stage=0)
    frame = _tidy(reference, path, "score")
    runs = pd.unique(frame["run"])
    if len(runs) > 1:
        raise InputError(
            f"the reference holds {len(runs)} runs: {', '.join(map(str, runs))}",
            path=path,
            expected="the scores of one jointly trained model",
        )
    last = frame["stage"].max() if len(frame) else math.nan
    if items is not None:
        items = _tidy(items, path, "item")
        items = items[items["stage"] == last]
    return frame[frame["stage"] == last], items
