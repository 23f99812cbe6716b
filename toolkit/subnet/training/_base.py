"""The base: one model trained on all languages together, before any of them has its turn.

It is trained without alignment, which is a condition of what comes after: forgetting is a change
against the base, so that trainings with it and without it start from the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.training._building import unaligned
from subnet.training._comparing import compared
from subnet.training._trainer import fit
from subnet.training.config import TrainingConfig
from subnet.training.corpora import Corpus
from subnet.training.tasks import Row, Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LeftByBase:
    """What training the base leaves behind beside the model.

    Attributes:
        conflict: Cosine of the languages' gradients, where it is asked for.
    """

    conflict: pd.DataFrame | None = None


def fit_base(
    model: Any,
    config: TrainingConfig,
    task: Task,
    corpus: Corpus,
    *,
    seed: int,
    folder: Path,
    on_step: Callable[[], None],
) -> LeftByBase:
    """Train the base, in place, by the method of the configuration.

    Args:
        model: What it is before.
        config: Of the run.
        task: How examples are fed.
        corpus: Examples.
        seed: Of the order of examples.
        folder: Where Trainer may write.
        on_step: Called after every step.
    """
    settings, task = config.base, unaligned(task)
    rows = [row for row in corpus.train if row["language"] in set(corpus.names)]
    recorder = compared(settings, task, corpus, seed)
    common: dict[str, Any] = {
        "collate": task.collate,
        "seed": seed,
        "folder": folder,
        "on_step": on_step,
        "callbacks": [] if recorder is None else [recorder],
    }
    if settings.method == "plain":
        fit(model, task.encode(rows), settings.recipe, **common)
    else:
        _fit_by_language(model, config, _by_language(task, corpus.names, rows), common)
    return LeftByBase(None if recorder is None else recorder.to_frame())


def _fit_by_language(
    model: Any, config: TrainingConfig, features: dict[str, Any], common: dict[str, Any]
) -> None:
    """First-order MAML, or projection of conflicting gradients."""
    from subnet.training.subnetworks import MetaSettings, fit_meta, fit_pcgrad

    settings = config.base
    if settings.method == "pcgrad":
        fit_pcgrad(model, features, settings.recipe, **common)
        return
    episodes = MetaSettings(
        settings.support, settings.query, settings.inner_steps, settings.inner_rate
    )
    fit_meta(model, features, settings.recipe, settings=episodes, **common)


def _by_language(task: Task, languages: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    return {
        language: task.encode([row for row in rows if row["language"] == language])
        for language in languages
    }
