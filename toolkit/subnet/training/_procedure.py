"""How one stage is trained: plainly, or so that only a subnetwork of its language moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError
from subnet.training._comparing import compared
from subnet.training._models import heads_of
from subnet.training._stages import last_checkpoint
from subnet.training._trainer import fit
from subnet.training._turns import Turns
from subnet.training._without_effect import check_settings_act
from subnet.training.config import SubnetworksConfig, TrainingConfig
from subnet.training.corpora import Corpus
from subnet.training.recipe import Recipe
from subnet.training.tasks import Task
from subnet.training.tasks._translation_language import check_identifiable

if TYPE_CHECKING:
    import pandas as pd

    from subnet.subnetwork import Subnetwork
    from subnet.training.subnetworks import DynamicSettings


@dataclass(frozen=True)
class Left:
    """What a stage leaves behind beside the model.

    Attributes:
        mask: Which weights its language moved; None where all moved, or the mask was given.
        history: How a dynamic mask changed: a row for every time that it was found.
        conflict: Cosine of the languages' gradients, where it is asked for.
    """

    mask: Subnetwork | None = None
    history: pd.DataFrame | None = None
    conflict: pd.DataFrame | None = None


@dataclass(frozen=True)
class Procedure:
    """Trains stages as a configuration says.

    Args:
        config: Of the run.
        task: How examples are fed.
        corpus: Examples.
        base: The model before the sequence.
        identity: Of the base, which masks must stand on.
        masks: Of each language, where they are given; dynamic ones begin with them.
    """

    config: TrainingConfig
    task: Task
    corpus: Corpus
    base: Any
    identity: str
    masks: Mapping[str, Subnetwork] = field(default_factory=dict)

    def train(
        self,
        model: Any,
        features: Sequence[Mapping[str, Any]],
        *,
        language: str,
        seed: int,
        folder: Path,
        on_step: Callable[[], None],
    ) -> Left:
        """Train a model on one language's examples, in place, or go on with what is in `folder`.

        Args:
            model: What requires gradients is trained.
            features: Examples as the model takes them.
            language: Whose they are.
            seed: Of the order of examples.
            folder: Where Trainer may write what it needs to go on.
            on_step: Called after every step.
        """
        method = self.config.subnetworks.in_stages
        common: dict[str, Any] = {
            "collate": self.task.collate,
            "seed": seed,
            "on_step": on_step,
            "save_every": self.config.output.save_every,
        }
        recipe, further = with_alignment(
            self.config, self.task, features, self.config.training.recipe, seed
        )
        if method == "sparse":
            return self._sparse(model, features, common, language, folder)
        recorder = compared(self.config.training, self.task, self.corpus, self.config.seed)
        common |= {
            "folder": folder,
            "resume": self._resume(folder),
            "callbacks": [] if recorder is None else [recorder],
        }
        left = self._fit(model, features, recipe, language, common | further)
        return left if recorder is None else replace(left, conflict=recorder.to_frame())

    def _fit(
        self,
        model: Any,
        features: Sequence[Mapping[str, Any]],
        recipe: Recipe,
        language: str,
        arguments: Mapping[str, Any],
    ) -> Left:
        method = self.config.subnetworks.in_stages
        if method == "none":
            fit(model, features, recipe, **arguments)
            return Left()
        from subnet.training.subnetworks import fit_masked

        mask = self._mask(language)
        fit_masked(model, features, recipe, mask=mask, **arguments)
        if method == "dynamic":
            return Left(mask.subnetwork(language, self.identity), mask.history)
        return Left()

    def _resume(self, folder: Path) -> Path | None:
        """The checkpoint of Trainer to go on from."""
        from subnet.training.subnetworks.dynamic_masks import SAVED as MASK
        from subnet.training.subnetworks.gradient_conflict import SAVED as CONFLICT

        if not self.config.output.save_every:
            return None
        needed = {
            MASK: self.config.subnetworks.in_stages == "dynamic",
            CONFLICT: bool(self.config.training.conflict_every),
        }
        return last_checkpoint(folder, *(name for name, is_needed in needed.items() if is_needed))

    def _mask(self, language: str) -> Any:
        from subnet.training.subnetworks import DynamicMask, MaskedUpdates

        settings = self.config.subnetworks
        if settings.in_stages == "static":
            return MaskedUpdates(
                self.masks[language],
                forward=settings.forward,
                train=self._whole(),
                base=self.identity,
            )
        return DynamicMask(
            dynamic_settings(settings, train=self._whole()),
            start=self.masks.get(language),
            forward=settings.forward,
        )

    def _sparse(
        self,
        model: Any,
        features: Sequence[Mapping[str, Any]],
        common: Mapping[str, Any],
        language: str,
        folder: Path,
    ) -> Left:
        from subnet.training.subnetworks import sparse_fine_tune

        found = sparse_fine_tune(
            model,
            features,
            self.config.training.recipe,
            density=self.config.subnetworks.density,
            language=language,
            base=self.identity,
            train=self._whole(),
            folder=folder,
            resume=bool(self.config.output.save_every) and folder.is_dir(),
            **common,
        )
        return Left(found.subnetwork)

    def _whole(self) -> tuple[str, ...]:
        """What is trained whole beside a mask: a head that is trained at all."""
        if self.config.adaptation.head == "frozen":
            return ()
        return tuple(f"*{name}*" for name in heads_of(self.base))


def dynamic_settings(settings: SubnetworksConfig, *, train: Sequence[str]) -> DynamicSettings:
    """How dynamic masks are found, beside what is trained whole."""
    from subnet.training.subnetworks import DynamicSettings

    return DynamicSettings(
        density=settings.density,
        every=settings.every,
        score=settings.score,
        smoothing=settings.smoothing,
        train=tuple(train),
    )


def with_alignment(
    config: TrainingConfig,
    task: Task,
    features: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    seed: int,
) -> tuple[Recipe, dict[str, Any]]:
    """A training as `fit` takes it, with steps of alignment between the task's where it has them.

    Returns:
        The recipe over all steps, and further arguments of `fit`.
    """
    if turns_of(task) is None:
        return recipe, {}
    from subnet.training.alignment import alternating

    temperature = config.translation.temperature
    return alternating(features, recipe, seed=seed, temperature=temperature, turns=turns_of(task))


def turns_of(task: Task) -> Turns | None:
    """How steps of the task and of alignment take turns; None where there are only the task's."""
    return Turns() if getattr(task, "align", False) else None


def steps_of(task: Task, steps: int) -> int:
    """Optimizer steps of a training with a number of steps of the task."""
    turns = turns_of(task)
    return steps if turns is None else turns.total(steps)


def steps_of_a_stage(config: TrainingConfig, task: Task) -> int:
    """Optimizer steps of one stage; sparse fine-tuning trains twice."""
    return steps_of(task, config.training.steps) * (
        2 if config.subnetworks.method == "sparse" else 1
    )


def check_procedure(config: TrainingConfig) -> None:
    """Refuse what cannot be trained together, and settings that have no effect.

    Raises:
        InputError: Says which settings.
    """
    method, tuning = config.subnetworks.in_stages, config.adaptation.tuning
    if method in ("sparse", "dynamic") and tuning == "lora":
        raise InputError(
            f"subnetworks.method is {method!r} and adaptation.tuning is 'lora'",
            expected="tuning = 'full': it selects weights of the model",
        )
    if config.translation.alignment and method == "sparse":
        raise InputError(
            "translation.alignment and subnetworks.method = 'sparse' are asked for together",
            expected="one of the two",
        )
    if config.translation.alignment and config.task != "translation":
        raise InputError(
            f"translation.alignment is asked for and task is {config.task!r}",
            expected="task = 'translation'",
        )
    check_settings_act(config)
    if config.subnetworks.in_base == "static" and not config.model.name:
        raise InputError(
            f"subnetworks.during is {config.subnetworks.during!r}, and model.name is ''",
            expected="the model that the masks are of",
        )
    if config.subnetworks.in_base != "none" and config.base.method in ("plain", "pcgrad"):
        raise InputError(
            f"subnetworks.during is {config.subnetworks.during!r} and base.method is "
            f"{config.base.method!r}",
            expected="base.method = 'meta' or 'turns', where a language has its mask",
        )
    if config.task == "translation":
        check_identifiable(config.translation.identify_among, "translation.identify_among")
