"""Masks that are found anew while a model is trained, at constant size.

How the published dynamic masks are updated is not known in detail; this rule is our own: every
`every` steps the k weights of largest importance are selected, where importance is an exponential
average over the training's own gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from subnet.errors import InputError
from subnet.subnetwork import Subnetwork
from subnet.subnetwork._bits import pack, unpack
from subnet.training._callbacks import EvenTrainer
from subnet.training.subnetworks._holding import Copies, Held
from subnet.training.subnetworks._ranking import Ranking
from subnet.training.subnetworks._ranking_files import load_rankings, save_rankings
from subnet.training.subnetworks._targets import base_names, has_lora, masks_of, matching

if TYPE_CHECKING:
    import pandas as pd

#: Importance of a weight w with gradient g of a step's mean loss.
SCORES = ("taylor", "fisher")
#: What it writes into a checkpoint of Trainer's.
SAVED = "dynamic_mask.safetensors"


@dataclass(frozen=True)
class DynamicSettings:
    """How a dynamic mask is found.

    Attributes:
        density: Share of the weights that may move; the mask has round(density · weights) of them
            throughout.
        every: Optimizer steps after which it is found anew; of its language's own, where each has a
            mask of its own.
        score: `"taylor"`, |g·w|, or `"fisher"`, g². Both of the gradient of a step's mean loss,
            before it is clipped: |mean over a batch| is not the mean of |per example|, so they are
            not the scores of `subnet.extract`.
        smoothing: β of the average S ← β·S + (1 − β)·score, which starts at the first step's score.
        train: Names or patterns of parameters that are trained whole beside it.
        parameters: Names or patterns of those that the mask is over; all others by default. What
            neither names is frozen.
    """

    density: float
    every: int
    score: str = "taylor"
    smoothing: float = 0.9
    train: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputError(f"density is {self.density}", expected="0 < density <= 1")
        if not self.every >= 1:
            raise InputError(f"every is {self.every}", expected="1 or more steps")
        if self.score not in SCORES:
            raise InputError(f"score is {self.score!r}", expected=f"one of {', '.join(SCORES)}")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing is {self.smoothing}", expected="0 <= smoothing < 1")


class DynamicMask(TrainerCallback):  # type: ignore[misc]
    """Lets Trainer move only the weights of a mask that it finds anew every some steps.

    Give it to `fit_masked(..., mask=...)`, or to `fit_in_turns` or `fit_meta` as their `masks`. The
    first mask comes of the first step's gradients, or is `start`. What leaves the mask stays where
    training has brought it, bitwise, until it comes in again; its optimizer moments go on decaying
    meanwhile. Gradients outside are cleared before they are clipped. All processes find the same
    mask, for scores are of the gradients that they share.

    Costs beside masked training: one float32 score per weight (with `languages`, of each), the
    selection, and with `forward` one more copy of the parameters.

    Args:
        settings: How the mask is found.
        start: The first mask, over the same parameters, whose number of weights is then kept; the
            first step's gradients decide otherwise. With `languages`, language to its mask.
        languages: The language of each optimizer step; each then has a mask of its own, found by
            its own steps.
        forward: Whether the forward pass sees zeros outside the mask (θ·m) while training, from the
            first mask on. For it and the backward pass `parameter.data` may be another tensor; at
            the optimizer's step and between steps the whole model is there. Importance is of the
            weights as they are, by gradients at θ·m, so that what is outside can come in.

    Raises:
        InputError: A pattern matches nothing, or no weight would be selected.
        NotComparableError: `start` is of another model.
    """

    def __init__(
        self,
        settings: DynamicSettings,
        *,
        start: Subnetwork | Mapping[str, Subnetwork] | None = None,
        languages: Sequence[str] | None = None,
        forward: bool = False,
    ) -> None:
        self.settings, self.forward = settings, forward
        self._start = {"": start} if isinstance(start, Subnetwork) else dict(start or {})
        self._languages: tuple[str, ...] | None = None
        self._episodes = False
        self._now = ""
        self._base: str | None = None
        self._resume: str | Path | None = None
        self._model: nn.Module | None = None
        self._required: dict[str, bool] = {}
        self._targets: dict[str, nn.Parameter] = {}
        self._names: dict[str, str] = {}
        self._rankings: dict[str, Ranking] = {}
        self._union: dict[str, Held] | None = None
        self._unseen = self._stepping = False
        self._plain = True
        if languages is not None:
            self.tell(languages)

    def tell(
        self,
        languages: Sequence[str],
        *,
        episodes: bool = False,
        base: str | None = None,
        resume: str | Path | None = None,
    ) -> None:
        """Say whose steps are to come, before training.

        Args:
            languages: The language of each optimizer step; or
            episodes: each has an episode in every step, whose gradients `see_episode` is given.
            base: Identity of the model's base, which masks to start from must then stand on.
            resume: The checkpoint that training goes on from.

        Raises:
            InputError: A language has no mask to start from, where others have.
        """
        lacking = sorted(set(languages) - self._start.keys())
        if self._start and lacking:
            raise InputError(
                f"{lacking[0]} is trained and has no mask to start from",
                expected=f"a mask of each of {', '.join(dict.fromkeys(languages))}",
            )
        self._languages, self._episodes = tuple(languages), episodes
        self._base, self._resume = base, resume

    @property
    def history(self) -> pd.DataFrame:
        """One row per mask: step from which it holds, count, density, entered, jaccard.

        `entered` counts weights that the mask before did not have, `jaccard` compares with it and
        is undefined of the first. With languages, `language` comes first.
        """
        import pandas as pd

        named = self._languages is not None
        columns = ["step", "count", "density", "entered", "jaccard"]
        rows = [
            {**({"language": name} if named else {}), **change}
            for name, ranking in self._rankings.items()
            for change in ranking.changes
        ]
        return pd.DataFrame(rows, columns=["language"] * named + columns)

    def subnetwork(self, language: str, base: str) -> Subnetwork:
        """The mask of a language that held last.

        Raises:
            InputError: There is none yet, or it is over the factors of a LoRA.
        """
        ranking = self._rankings.get("" if self._languages is None else language)
        if ranking is None or not ranking.bits:
            raise InputError(f"there is no mask of {language} yet", fix="train first")
        if not self._plain:
            raise InputError(
                "the mask is over the factors of a LoRA, which no subnetwork of the base has",
                expected="a full model",
            )
        if self._episodes:
            of = "gradients of the mean loss of each query batch, before clipping"
        else:
            of = "gradients of the mean loss of each training step, before clipping"
        return Subnetwork(
            language=language,
            bits={self._names[name]: bits for name, bits in ranking.bits.items()},
            shapes={self._names[name]: tuple(self._targets[name].shape) for name in ranking.bits},
            base=base,
            method="dynamic",
            settings={
                **asdict(self.settings),
                "of": of,
                "forward": self.forward,
                "start": "given" if self._start else "first step",
                "ties": "parameter name (sorted), then row-major index",
                "masks": len(ranking.changes),
            },
        )

    def prepare(self, trainer_class: Any = None, *, resume: str | Path | None = None) -> Any:
        """The trainer that shows its gradients to the mask, after all passes and processes.

        Args:
            trainer_class: A subclass of `Trainer` to build on; that of `fit` by default.
            resume: The checkpoint that training goes on from.

        Raises:
            InputError: The mask was told of episodes.
        """
        if self._episodes:
            raise InputError(
                "the dynamic mask was told of episodes, and this trainer has none",
                fix="make a new one, or train with fit_meta",
            )
        self._resume = resume
        shown = self

        class Shown(trainer_class or EvenTrainer):  # type: ignore[misc]
            def training_step(self, *arguments: Any, **named: Any) -> Any:
                loss = super().training_step(*arguments, **named)
                if self.accelerator.sync_gradients:
                    shown.see(self.state.global_step)
                return loss

        return Shown

    def attach(self, model: nn.Module) -> None:
        """Freeze what the mask is not over."""
        if self._model is not None:
            raise InputError("the mask already holds a model", fix="make a new one for another")
        if self._languages is None and self._start.keys() - {""}:
            raise InputError(
                f"masks to start from are of {', '.join(self._start)}, and no languages are given",
                expected="the language of each step, or one mask",
            )
        live = dict(model.named_parameters())
        trained = {name for name, parameter in live.items() if parameter.requires_grad}
        whole = matching(trained, self.settings.train, "train")
        names = matching(trained - whole, self.settings.parameters, "parameters")
        size = sum(live[name].numel() for name in names)
        count = round(self.settings.density * size)
        given = {name: masks_of(model, mask, base=self._base) for name, mask in self._start.items()}
        for masks in given.values():
            if lone := sorted(masks.keys() ^ names):
                raise InputError(
                    f"the mask and its start differ in {lone[0]}",
                    expected="a start over the parameters of the mask",
                )
        if count == 0 and not given:
            raise InputError(
                f"density {self.settings.density:g} selects none of {size} weights",
                fix="take a larger one",
            )
        self._model = model
        self._plain = not has_lora(model)
        self._required = {name: parameter.requires_grad for name, parameter in live.items()}
        self._targets = {name: live[name] for name in sorted(names)}
        self._names = base_names(model)
        for name, parameter in live.items():
            parameter.requires_grad_(name in names or name in whole)
        copies = None if self._episodes else Copies()
        self._rankings = {}
        for language in dict.fromkeys(self._languages or ("",)):
            masks = given.get(language, {})
            start = {name: pack(masks[name].cpu().numpy()) for name in self._targets if masks}
            kept = sum(int(mask.sum()) for mask in masks.values()) if masks else count
            self._rankings[language] = Ranking(
                self.settings, self._targets, kept, copies, start or None
            )

    def detach(self) -> None:
        """Let go of the model; what the forward pass was not to see is back."""
        if self._model is None:
            return
        self._show()
        if self._stepping:  # else nothing outside has moved since it was remembered
            self._restore()
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._required[name])
        for ranking in self._rankings.values():
            ranking.held, ranking.scores = {}, {}
        self._model, self._union = None, None

    def __enter__(self) -> DynamicMask:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def see(self, step: int) -> None:
        """Take the gradients of a step into account, find the mask anew, and clear those outside.

        Args:
            step: Optimizer steps that are done.
        """
        self._unseen = False
        self._show()
        gradients = {
            name: parameter.grad
            for name, parameter in self._targets.items()
            if parameter.grad is not None
        }
        self._rankings[self._now].see(step, gradients, self._targets)

    def see_episode(
        self,
        language: str,
        step: int,
        gradients: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> None:
        """As `see`, of the query gradients of a language's episode, which are cleared outside.

        Args:
            language: Whose episode it is.
            step: Optimizer steps that are done.
            gradients: Name to gradient.
            weights: Name to the weights that the step began with.
        """
        if self._rankings[language].see(step, gradients, weights):
            self._union = None

    def held(self, language: str) -> Mapping[str, Held]:
        """What holds each weight of a language's mask at present; nothing before its first one."""
        return self._rankings[language].held

    def on_init_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Before there is an optimizer."""
        self.attach(model)

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Going on, the mask and its scores are those of the saved step."""
        steps = self._languages
        if steps is not None and not self._episodes and len(steps) < state.max_steps:
            raise InputError(
                f"languages of {len(steps)} steps are given",
                expected=f"one for each of {state.max_steps} steps",
            )
        if state.global_step:
            folder = self._resume or f"{args.output_dir}/checkpoint-{state.global_step}"
            load_rankings(Path(folder) / SAVED, self._rankings, self._targets, self._described)

    def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Which mask holds in this step, and what its forward pass sees."""
        if self._episodes:
            return
        if self._languages is not None:
            self._now = self._languages[state.global_step]
        self._unseen = True
        held = self._rankings[self._now].held.values()
        with torch.no_grad():
            for each in held if self._languages is not None else ():
                each.remember()
            for each in held if self.forward else ():
                each.hide()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Without its trainer the mask would see no gradients, and hold nothing."""
        if self._episodes:
            if self._union is None:
                self._hold_union()
        elif self._unseen:
            raise InputError(
                "the dynamic mask has seen no gradients",
                expected="the trainer that shows them to it",
                fix="train with fit_masked(..., mask=mask), or a trainer of mask.prepare()",
            )
        self._stepping = True

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Put back what is outside."""
        self._restore()

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Scores, mask and history beside what Trainer saved."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / SAVED
            save_rankings(path, self._rankings, self._described)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the model as it was, but for the weights that were trained."""
        self.detach()

    @property
    def _described(self) -> dict[str, Any]:
        return {**asdict(self.settings), "forward": self.forward}

    def _show(self) -> None:
        """End what the forward pass was not to see."""
        ranking = self._rankings.get(self._now)  # none yet before the first step
        with torch.no_grad():
            for held in ranking.held.values() if ranking is not None else ():
                held.show()

    def _restore(self) -> None:
        """Put back what is outside the mask that holds, or outside all where episodes are taken."""
        held = self._rankings[self._now].held if not self._episodes else self._union or {}
        with torch.no_grad():
            for each in held.values():
                each.restore()
        self._stepping = False

    def _hold_union(self) -> None:
        """Between episodes only what some language's mask selects may move."""
        self._union = {}
        masks = [ranking.bits for ranking in self._rankings.values() if ranking.bits]
        with torch.no_grad():
            for name, parameter in self._targets.items():
                either = np.bitwise_or.reduce([bits[name] for bits in masks])
                mask = torch.from_numpy(unpack(either, tuple(parameter.shape)))
                if not bool(mask.all()):
                    self._union[name] = Held(parameter, mask.to(parameter.device))
                    self._union[name].remember()
