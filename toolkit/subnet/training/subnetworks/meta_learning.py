"""First-order MAML: learn a start from which each language is learnt in a few steps.

Finn et al. 2017 (arXiv 1703.03400), first order. Of every language, from the same start θ: U steps
of SGD on a support batch lead to θ'; the gradient of the loss on a disjoint query batch is taken at
θ'; their mean over languages is what the outer optimizer gets as the gradient at θ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from subnet.training.subnetworks._episode_masks import EpisodeMasks, allowed_in_episodes
from subnet.training.subnetworks._holding import Held
from subnet.training.subnetworks._targets import Mask
from subnet.training.subnetworks.dynamic_masks import DynamicMask


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
    allowed, outer = allowed_in_episodes(
        model, masks, list(features), base, train, forward=settings.forward, resume=resume
    )
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
