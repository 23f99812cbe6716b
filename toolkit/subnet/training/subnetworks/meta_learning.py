"""First-order MAML: learn a start from which each language is learnt in a few steps.

Finn et al. 2017 (arXiv 1703.03400), first order. Of every language, from the same start θ: U steps
of SGD on a support batch lead to θ'; the gradient of the loss on a disjoint query batch is taken at
θ'; their mean over languages is what the outer optimizer gets as the gradient at θ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Trainer

from subnet.errors import InputError
from subnet.training._processes import n_processes
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks._by_language import (
    Collate,
    Features,
    Parts,
    check_languages,
    draw,
)
from subnet.training.subnetworks._holding import Held
from subnet.training.subnetworks._targets import Mask, masks_of
from subnet.training.subnetworks.dynamic_masks import DynamicMask
from subnet.training.subnetworks.masking import MaskedUpdates, zeroed


@dataclass(frozen=True)
class MetaSettings:
    """Episodes of first-order MAML.

    Attributes:
        support: Examples of a support batch.
        query: Examples of a query batch, none of them in the support batch.
        inner_steps: U, SGD steps on the support batch.
        inner_rate: Learning rate of these steps.
        forward: With masks, whether support and query see zeros outside their language's mask; else
            they see the whole model.
    """

    support: int = 8
    query: int = 8
    inner_steps: int = 1
    inner_rate: float = 1e-2
    forward: bool = False

    def __post_init__(self) -> None:
        for name in ("support", "query", "inner_steps"):
            if not getattr(self, name) >= 1:
                raise InputError(f"{name} is {getattr(self, name)}", expected="1 or more")
        if not self.inner_rate > 0:
            raise InputError(f"inner_rate is {self.inner_rate}", expected="a number above 0")


@dataclass(frozen=True)
class Episode:
    """What one language learns from and is asked, as places among its examples."""

    language: str
    support: tuple[int, ...]
    query: tuple[int, ...]


def draw_episodes(
    sizes: Mapping[str, int], settings: MetaSettings, *, steps: int, seed: int
) -> list[list[Episode]]:
    """One episode of each language for every step; depends on the arguments alone.

    Args:
        sizes: Language to number of examples.
        settings: Sizes of support and query.
        steps: Optimizer steps.
        seed: Of the draw. What a language gets does not depend on which others there are.
    """
    both = settings.support + settings.query
    found = []
    for step in range(steps):
        drawn = []
        for language, n in sizes.items():
            places = draw(n, both, seed=seed, step=step, language=language)
            cut = settings.support
            drawn.append(Episode(language, tuple(places[:cut]), tuple(places[cut:])))
        found.append(drawn)
    return found


class EpisodeMasks(Protocol):
    """Which weights may move in the episodes of each language."""

    def held(self, language: str) -> Mapping[str, Held]:
        """What holds each weight of which some part is outside the language's mask."""

    def see_episode(
        self,
        language: str,
        step: int,
        gradients: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
    ) -> None:
        """Be shown the query gradients of an episode, at the weights that the step began with."""


class MetaTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose gradient is that of first-order MAML; `fit_meta` feeds it.

    Args:
        settings: Of the episodes.
        n_languages: Episodes of a step, over all passes and processes.
        masks: What may move in a language's episode, the same in support and query. None for all
            that requires a gradient.
    """

    def __init__(
        self,
        *arguments: Any,
        settings: MetaSettings,
        n_languages: int,
        masks: EpisodeMasks | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._settings, self._n_languages, self._masks = settings, n_languages, masks
        self._start: dict[str, Tensor] = {}

    def training_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """The mean query loss of the episodes of a batch; their gradient goes to `.grad`."""
        model.train()
        plain = self.accelerator.unwrap_model(model)
        live = {name: p for name, p in plain.named_parameters() if p.requires_grad}
        parts = {part["key"]: part["batch"] for part in self._prepare_inputs(inputs)["parts"]}
        losses = []
        with torch.no_grad():
            for name, parameter in live.items():
                self._start.setdefault(name, torch.empty_like(parameter)).copy_(parameter)
        for language in dict.fromkeys(language for language, _ in parts):
            support, query = parts[language, "support"], parts[language, "query"]
            frozen = self._hide(live, language) if self._settings.forward else []
            try:
                losses.append(self._episode(plain, live, language, support, query))
            finally:
                with torch.no_grad():
                    for name, parameter in live.items():
                        parameter.copy_(self._start[name])
                    for outside in frozen:
                        outside.restore()
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for parameter in live.values():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        passes: int = self.current_gradient_accumulation_steps
        return torch.stack(losses).mean() / passes

    def floating_point_ops(self, _: Any) -> int:
        """Not estimated."""
        return 0

    def _hide(self, live: Mapping[str, nn.Parameter], language: str) -> list[Held]:
        """Zeros outside; gives back what holds those that are not live, which it remembers."""
        held = {} if self._masks is None else self._masks.held(language)
        frozen = [outside for name, outside in held.items() if name not in live]
        with torch.no_grad():
            for outside in frozen:
                outside.remember()
            for outside in held.values():
                outside.clear()
        return frozen

    def _episode(
        self,
        model: nn.Module,
        live: Mapping[str, nn.Parameter],
        language: str,
        support: Any,
        query: Any,
    ) -> Tensor:
        held = {} if self._masks is None else self._masks.held(language)
        for _ in range(self._settings.inner_steps):
            _, gradients = self._gradients(model, live, support)
            _clear(gradients, held)
            with torch.no_grad():
                for name, gradient in gradients.items():
                    live[name].sub_(gradient, alpha=self._settings.inner_rate)
        loss, gradients = self._gradients(model, live, query)
        if self._masks is not None:
            self._masks.see_episode(language, self.state.global_step, gradients, self._start)
            _clear(gradients, self._masks.held(language))
        for name, gradient in gradients.items():
            share = gradient / self._n_languages
            parameter = live[name]
            parameter.grad = share if parameter.grad is None else parameter.grad + share
        return loss

    def _gradients(
        self, model: nn.Module, live: Mapping[str, nn.Parameter], batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.compute_loss(model, batch)
        found = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
        gradients: dict[str, Tensor] = {}
        for name, gradient in zip(live, found, strict=True):
            if gradient is not None:
                gradients[name] = gradient.contiguous()
        return loss.detach(), gradients


def _clear(gradients: Mapping[str, Tensor], held: Mapping[str, Held]) -> None:
    for name, gradient in gradients.items():
        if name in held:
            held[name].clear(gradient)


class _Given:
    """Masks that stay what they are.

    Args:
        model: Whose parameters they hold.
        masks: Language to live parameter name to booleans; a parameter that another language's
            mask covers does not move at all.
        hidden: As `masks`, what the forward pass is to see of parameters that do not move.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Mapping[str, Tensor]],
        hidden: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        self._live, self._masks, self._hidden = dict(model.named_parameters()), masks, hidden
        self._covered = set[str]().union(*masks.values())
        self._held: dict[str, dict[str, Held]] = {}
        self._copies: dict[nn.Parameter, Tensor] = {}

    def held(self, language: str) -> Mapping[str, Held]:
        if language not in self._held:
            masks = self._masks[language]
            nothing = {
                name: torch.zeros_like(self._live[name], dtype=torch.bool)
                for name in self._covered - masks.keys()
            }
            moving = {
                name: mask
                for name, mask in {**masks, **nothing}.items()
                if self._live[name].requires_grad
            }
            self._held[language] = {
                name: Held(self._live[name], mask.to(self._live[name].device), self._copies)
                for name, mask in {**self._hidden.get(language, {}), **moving}.items()
            }
        return self._held[language]

    def see_episode(self, *_: Any) -> None:
        """Nothing changes."""


def fit_meta(
    model: nn.Module,
    features: Mapping[str, Features],
    recipe: Recipe,
    *,
    settings: MetaSettings,
    collate: Collate,
    seed: int,
    folder: Any,
    masks: Mapping[str, Mask] | DynamicMask | None = None,
    base: str | None = None,
    train: Sequence[str] = (),
    **arguments: Any,
) -> Any:
    """Train a start from which each language is learnt quickly, in place, by first-order MAML.

    Every step has one episode of each language. With masks a language's episode moves only what its
    mask selects, in support as in query, and the outer step moves only what some mask selects:
    all else stays bitwise as it was. A dynamic mask is found by the gradients of the language's
    query batches at θ', as |g·θ| or g²; before its first one the support batch moves all weights.

    Args:
        model: With a loss of its own.
        features: Language to its examples.
        recipe: Of the outer optimizer; its `batch_size` is not used (a step has
            languages · (support + query) examples).
        settings: Of the episodes.
        collate: As of `fit`.
        seed: Of the episodes and of dropout.
        folder: As of `fit`.
        masks: Language to its mask, as of `MaskedUpdates`; or a `DynamicMask`, which then has one
            for each language.
        base: Identity of the model's base, which masks must then stand on.
        train: Names or patterns of parameters that no mask covers and that all languages train
            whole, such as `("classifier*",)`; a `DynamicMask` has them among its settings.
        arguments: `on_step`, `callbacks`, `save_every` and `resume` of `fit`.

    Returns:
        The trainer, after its last step.

    Raises:
        InputError: There are fewer than two languages, a language has too few examples for disjoint
            support and query batches or no mask, or the episodes of a step cannot be divided among
            processes and passes.
        NotComparableError: A mask is of another base or model.
    """
    both = settings.support + settings.query
    check_languages(features, both, "disjoint support and query batches")
    parts = n_processes() * recipe.passes
    if len(features) % parts:
        raise InputError(
            f"the episodes of {len(features)} languages cannot be divided among {parts} passes",
            expected="a number of languages that is a multiple of them",
        )
    callbacks = list(arguments.pop("callbacks", ()))
    resume = arguments.get("resume")
    allowed, outer = _allowed(model, masks, list(features), settings, base, train, resume)
    callbacks += [] if outer is None else [outer]

    entries: list[Any] = []
    sizes = {language: len(examples) for language, examples in features.items()}
    drawn = draw_episodes(sizes, settings, steps=recipe.steps, seed=seed)
    for step in drawn:
        for episode in step:
            own = features[episode.language]
            entries += [((episode.language, "support"), own[place]) for place in episode.support]
            entries += [((episode.language, "query"), own[place]) for place in episode.query]
    width = len(features) * both
    places = [range(step * width, (step + 1) * width) for step in range(recipe.steps)]
    try:
        return fit(
            model, entries, recipe.replace(batch_size=width),
            collate=Parts(collate), seed=seed, folder=folder, callbacks=callbacks, batches=places,
            trainer_class=MetaTrainer, settings=settings, n_languages=len(features), masks=allowed,
            **arguments,
        )  # fmt: skip
    finally:
        if outer is not None:
            outer.detach()


def _allowed(
    model: nn.Module,
    masks: Mapping[str, Mask] | DynamicMask | None,
    languages: Sequence[str],
    settings: MetaSettings,
    base: str | None,
    train: Sequence[str],
    resume: Any,
) -> tuple[EpisodeMasks | None, MaskedUpdates | DynamicMask | None]:
    """What holds within episodes, and what holds between them."""
    if masks is None:
        if train:
            raise InputError("train is given without masks", expected="masks, or no train")
        return None, None
    if isinstance(masks, DynamicMask):
        if n_processes() > 1:
            raise InputError(
                f"a dynamic mask is found in the episodes of {n_processes()} processes, each of "
                "which has those of other languages",
                expected="one process, or masks that are given",
            )
        if train or masks.forward != settings.forward:
            raise InputError(
                "train or forward is given beside a dynamic mask",
                expected="train in DynamicSettings, and the same forward in both",
            )
        masks.tell(languages, episodes=True, base=base, resume=resume)
        return masks, masks
    if lone := sorted(set(languages) ^ masks.keys()):
        raise InputError(f"{lone[0]} has no mask, or a mask and no examples", expected="both")
    found = {language: masks_of(model, mask, base=base) for language, mask in masks.items()}
    hidden = zeroed(model, masks, found) if settings.forward else {}
    return _Given(model, found, hidden), MaskedUpdates(_union(found.values()), train=train)


def _union(masks: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for mask in masks:
        for name, part in mask.items():
            found[name] = found[name] | part if name in found else part
    return found
