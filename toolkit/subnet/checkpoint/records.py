"""Scores and per-item results of every stage, from whatever file holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from subnet.checkpoint.settings import ScoreSettings
from subnet.errors import InputError, MissingInputError
from subnet.language import LanguageIndex

if TYPE_CHECKING:
    import pandas as pd

_LOWER_IS_BETTER = ("loss", "perplexity", "ppl", "nll", "error", "wer", "cer", "ter", "bits", "mse")
_FRACTIONS = (
    "accuracy", "acc", "acc_norm", "f1", "macro_f1", "micro_f1", "weighted_f1", "precision",
    "recall", "exact_match", "em", "match", "hit", "mrr", "auc", "auroc", "pass@1",
)  # fmt: skip
_PERCENTAGES = ("bleu", "chrf", "chrf++", "sacrebleu")
_CORRELATIONS = ("mcc", "matthews_correlation", "pearson", "spearman", "pearsonr", "spearmanr")


@dataclass(frozen=True)
class Metric:
    """How a metric is to be read.

    Attributes:
        name: As in the tables.
        higher_is_better: Direction.
        chance: Value of guessing, None where nobody said.
        range: (lowest, highest) possible value, None where unknown.
        assumed: Whether the direction is a guess, because the name says nothing and neither do
            the files.
    """

    name: str
    higher_is_better: bool
    chance: float | None = None
    range: tuple[float, float] | None = None
    assumed: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """One cell: the score on a language after a stage."""

    run: str
    stage: int
    language: str
    metric: str
    value: float
    stderr: float | None
    source: Path
    line: int | None = None
    trained: str | None = None

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What may occur once."""
        return (self.run, self.stage, self.language, self.metric)

    @property
    def where(self) -> str:
        """For a message: the cell, with its line where the file has lines."""
        line = "" if self.line is None else f"line {self.line}: "
        return f"{line}{self.metric} of {self.language} after stage {self.stage}"


@dataclass(frozen=True)
class ItemFile:
    """A file of per-item results.

    Attributes:
        path: The file.
        run: Run of its rows where they name none.
        language: Label of its language; None for a table that has a column of languages.
        stage: Its stage; None for a table that has a column of stages.
        prefix: What stands before its metrics' names.
    """

    path: Path
    run: str
    language: str | None = None
    stage: int | None = None
    prefix: str = ""


@dataclass
class Records:
    """What the readers found, before it becomes a table."""

    rows: list[ScoreRow] = field(default_factory=list)
    items: list[ItemFile] = field(default_factory=list)
    directions: dict[str, bool] = field(default_factory=dict)
    trained: dict[tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Scores of every stage on every language.

    Attributes:
        frame: run, stage, trained_language, language, metric, value, stderr; one row per cell that
            was measured.
        items: run, stage, language, item, metric, value; None where there are no per-item results.
        metrics: Name to how it is read.
        order: Run to language label to the stage that trained it (1-based; 0 is before the
            sequence). A language that was trained twice has its last turn.
        sources: Files that were read.
    """

    frame: pd.DataFrame
    items: pd.DataFrame | None
    metrics: Mapping[str, Metric]
    order: Mapping[str, Mapping[str, int]]
    sources: tuple[Path, ...]


def describe_metric(
    name: str, settings: ScoreSettings | None = None, direction: bool | None = None
) -> Metric:
    """Direction, chance level and range of a metric.

    Args:
        name: Its name, with `family:` before and `,filter` after it as lm-evaluation-harness says.
        settings: What `subnet.toml` says, which wins.
        direction: Whether the file itself says that higher is better.

    Example:
        >>> describe_metric("loss").higher_is_better
        False
    """
    settings = settings or ScoreSettings()
    plain = name.rpartition(":")[2].partition(",")[0].lower()
    limits: tuple[float, float] | None = None
    guess: bool | None = None
    if any(word in plain for word in _LOWER_IS_BETTER):
        guess, limits = False, (0.0, math.inf)
    elif plain in _FRACTIONS:
        guess, limits = True, (0.0, 1.0)
    elif plain in _PERCENTAGES:
        guess, limits = True, (0.0, 100.0)
    elif plain in _CORRELATIONS:
        guess, limits = True, (-1.0, 1.0)
    said = settings.higher_is_better if settings.higher_is_better is not None else direction
    higher = said if said is not None else guess
    return Metric(
        name,
        higher_is_better=True if higher is None else higher,
        chance=settings.chance,
        range=settings.range or limits,
        assumed=higher is None,
    )


def parse_number(text: str, what: str, path: Path, line: int) -> float | None:
    """A finite number; None for an empty cell.

    Raises:
        InputError: It is no number, NaN or infinite.
    """
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"line {line}: {what} is {text!r}",
            path=path,
            expected="a finite number",
            fix="leave the cell empty where nothing was measured",
        )
    return value


def describe_metrics(records: Records, settings: Mapping[str, ScoreSettings]) -> dict[str, Metric]:
    """Every metric of the records, sorted by name.

    Raises:
        InputError: A score lies outside its metric's range.
    """
    names = sorted({row.metric for row in records.rows})
    metrics = {
        name: describe_metric(name, settings.get(name), records.directions.get(name))
        for name in names
    }
    for row in records.rows:
        _check_range(row.value, metrics[row.metric], row.where, row.source)
    return metrics


def _check_range(value: float, metric: Metric, where: str, path: Path) -> None:
    if metric.range is None or metric.range[0] <= value <= metric.range[1]:
        return
    low, high = metric.range
    expected = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
    raise InputError(
        f"{where} is {value:g}",
        path=path,
        expected=expected,
        fix=f'or say what it is in subnet.toml: [scores."{metric.name}"] range = [low, high]',
    )


def merge_rows(batches: Iterable[Sequence[ScoreRow]]) -> tuple[list[ScoreRow], dict[Path, Path]]:
    """Rows of several sources, the first source to give a cell being the one that counts.

    Returns:
        (rows sorted by cell, each source of which a cell was dropped to the source that had it).

    Raises:
        InputError: One source gives a cell twice.
    """
    kept: dict[tuple[str, int, str, str], ScoreRow] = {}
    shadowed: dict[Path, Path] = {}
    for batch in batches:
        for row in batch:
            other = kept.get(row.key)
            if other is None:
                kept[row.key] = row
            elif other.source == row.source:
                raise InputError(
                    f"{row.where} stands twice"
                    + ("" if other.line is None else f", first in line {other.line}"),
                    path=row.source,
                    expected="one value per run, stage, language and metric",
                )
            else:
                shadowed[row.source] = other.source
    return [kept[key] for key in sorted(kept)], shadowed


def check_stages(rows: Sequence[ScoreRow], folders: Mapping[str, Mapping[int, Path]]) -> None:
    """Refuse a table that leaves out a stage between others, or one that has a folder.

    Raises:
        InputError: Names the stage and the file.
    """
    tables = {row.run: row.source for row in reversed(rows) if row.line is not None}
    for run, path in sorted(tables.items()):
        stages = {row.stage for row in rows if row.run == run}
        trained = {stage for stage in folders.get(run, {}) if stage > 0}
        absent = sorted((trained | set(range(min(stages), max(stages)))) - stages)
        if absent:
            folder = folders.get(run, {}).get(absent[0])
            name = f"stage {absent[0]}" + ("" if folder is None else f" ({folder.name})")
            raise InputError(
                f"has no rows for {name} of run {run!r}",
                path=path,
                expected=f"scores after every stage from {min(stages)} to {max(stages | trained)}",
                fix="evaluate that stage, or remove its folder",
            )


def order_of(records: Records) -> dict[str, dict[str, int]]:
    """Run to language to the stage that trained it, for the runs that have scores."""
    order: dict[str, dict[str, int]] = {}
    for (run, stage), label in sorted(records.trained.items()):
        order.setdefault(run, {})[label] = stage
    return {run: order.get(run, {}) for run in sorted({row.run for row in records.rows})}


def build_scores(
    records: Records, settings: Mapping[str, ScoreSettings], index: LanguageIndex
) -> Scores:
    """The tables, checked.

    Raises:
        MissingInputError: There are no scores.
        InputError: A value is outside its metric's range.
    """
    import pandas as pd

    from subnet.checkpoint.items import read_items

    if not records.rows:
        raise MissingInputError(
            "there are no scores",
            expected="scores.csv with the columns stage,language,metric,value",
        )
    metrics = describe_metrics(records, settings)
    frame = pd.DataFrame(
        {
            "run": [row.run for row in records.rows],
            "stage": [row.stage for row in records.rows],
            "trained_language": [
                records.trained.get((row.run, row.stage), "") for row in records.rows
            ],
            "language": [row.language for row in records.rows],
            "metric": [row.metric for row in records.rows],
            "value": [row.value for row in records.rows],
            "stderr": [math.nan if row.stderr is None else row.stderr for row in records.rows],
        }
    )
    items = read_items(records.items, index)
    if items is not None:
        for name in sorted(set(items["metric"]) - set(metrics)):
            metrics[name] = describe_metric(name, settings.get(name), records.directions.get(name))
    sources = {row.source for row in records.rows} | {item.path for item in records.items}
    return Scores(frame, items, metrics, order_of(records), tuple(sorted(sources)))
