"""The base: one model trained on all languages together, before any of them has its turn.

It is trained without alignment, which is a condition of what comes after: forgetting is a change
against the base, so that trainings with it and without it start from the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet._tables import write_csv
from subnet.training._building import unaligned
from subnet.training._comparing import compared
from subnet.training._models import heads_of, is_of
from subnet.training._procedure import dynamic_settings
from subnet.training._trainer import fit
from subnet.training.config import TrainingConfig
from subnet.training.corpora import Corpus
from subnet.training.tasks import Row, Task

if TYPE_CHECKING:
    import pandas as pd

    from subnet.subnetwork import Subnetwork
    from subnet.training.subnetworks import DynamicMask

#: What a base that was trained in masks of its own leaves in its folder.
MASKS, HISTORY = "masks", "mask_history.csv"


@dataclass(frozen=True)
class LeftByBase:
    """What training the base leaves behind beside the model.

    Attributes:
        conflict: Cosine of the languages' gradients, where it is asked for.
        mask: The masks that training found, one for each language.
    """

    conflict: pd.DataFrame | None = None
    mask: DynamicMask | None = None

    def save_masks(self, folder: Path, languages: Sequence[str], identity: str) -> None:
        """The last mask of each language, of the base as it is now, and how they changed."""
        if self.mask is None:
            return
        (folder / MASKS).mkdir()
        for language in languages:
            found = self.mask.subnetwork(language, identity)
            found.save(folder / MASKS / f"{language}.safetensors")
        write_csv(self.mask.history, folder / HISTORY)


def fit_base(
    model: Any,
    config: TrainingConfig,
    task: Task,
    corpus: Corpus,
    *,
    masks: Mapping[str, Subnetwork],
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
        masks: Of each language, where they are given.
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
    mask = None
    if settings.method == "plain":
        fit(model, task.encode(rows), settings.recipe, **common)
    else:
        features = _by_language(task, corpus.names, rows)
        mask = _fit_by_language(model, config, features, masks, common)
    return LeftByBase(None if recorder is None else recorder.to_frame(), mask)


def _fit_by_language(
    model: Any,
    config: TrainingConfig,
    features: Mapping[str, Any],
    given: Mapping[str, Subnetwork],
    common: Mapping[str, Any],
) -> DynamicMask | None:
    """Turns, episodes or projected gradients; gives back the masks that were found."""
    from subnet.training.subnetworks import (
        DynamicMask,
        MetaSettings,
        fit_in_turns,
        fit_meta,
        fit_pcgrad,
    )

    settings, wanted = config.base, config.subnetworks
    if settings.method == "pcgrad":
        fit_pcgrad(model, features, settings.recipe, **common)
        return None
    mask: DynamicMask | None = None
    masked: dict[str, Any] = {}
    if wanted.in_base == "dynamic":
        found = dynamic_settings(wanted, train=_whole(model))
        mask = DynamicMask(found, forward=wanted.forward)
        masked = {"masks": mask}
    elif wanted.in_base == "static":
        masked = {"masks": given, "train": _whole(model, given)}
    forward = wanted.forward and bool(masked)
    if settings.method == "turns":
        fit_in_turns(model, features, settings.recipe, forward=forward, **masked, **common)
        return mask
    episodes = MetaSettings(
        settings.support,
        settings.query,
        settings.inner_steps,
        settings.inner_rate,
        forward=forward,
    )
    fit_meta(model, features, settings.recipe, settings=episodes, **masked, **common)
    return mask


def _whole(model: Any, masks: Mapping[str, Subnetwork] | None = None) -> list[str]:
    """What all languages train beside their masks.

    That is the head, and beside given masks a pooler that none of them covers.
    """
    from subnet.training.subnetworks._targets import masks_of

    given = masks or {}
    covered = {name for mask in given.values() for name in masks_of(model, mask)}
    heads = heads_of(model)
    return [
        name
        for name, _ in model.named_parameters()
        if (is_of(name, heads) or (masks is not None and "pooler" in name.split(".")))
        and name not in covered
    ]


def _by_language(task: Task, languages: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    return {
        language: task.encode([row for row in rows if row["language"] == language])
        for language in languages
    }
