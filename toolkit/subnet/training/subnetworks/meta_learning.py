"""First-order MAML: learn a start from which each language is learnt in a few steps.

Finn et al. 2017 (arXiv 1703.03400), first order. Of every language, from the same start θ: U steps
of SGD on a support batch lead to θ'; the gradient of the loss on a disjoint query batch is taken at
θ'; their mean over languages is what the outer optimizer gets as the gradient at θ.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from subnet.training.subnetworks._holding import Held
from subnet.training.subnetworks._targets import Mask, masks_of
from subnet.training.subnetworks.masking import MaskedUpdates


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
        masks: Language to what may move in its episode (live parameter name to booleans, missing
            names not at all), the same in support and query. None for all that requires a gradient.
    """

    def __init__(
        self,
        *arguments: Any,
        settings: MetaSettings,
        n_languages: int,
        masks: Mapping[str, Mapping[str, Tensor]] | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._settings, self._n_languages, self._masks = settings, n_languages, masks
        self._start: dict[str, Tensor] = {}
        self._held: dict[str, dict[str, Held]] = {}

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
            held = self._outside(language, live)
            try:
                losses.append(
                    self._episode(
                        plain, live, held, parts[language, "support"], parts[language, "query"]
                    )
                )
            finally:
                with torch.no_grad():
                    for name, parameter in live.items():
                        parameter.copy_(self._start[name])
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for parameter in live.values():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        passes: int = self.current_gradient_accumulation_steps
        return torch.stack(losses).mean() / passes

    def floating_point_ops(self, _: Any) -> int:
        """Not estimated."""
        return 0

    def _episode(
        self,
        model: nn.Module,
        live: Mapping[str, nn.Parameter],
        held: Mapping[str, Held],
        support: Any,
        query: Any,
    ) -> Tensor:
        if self._settings.forward:
            with torch.no_grad():
                for outside in held.values():
                    outside.clear()
        for _ in range(self._settings.inner_steps):
            _, gradients = self._gradients(model, live, held, support)
            with torch.no_grad():
                for name, gradient in gradients.items():
                    live[name].sub_(gradient, alpha=self._settings.inner_rate)
        loss, gradients = self._gradients(model, live, held, query)
        for name, gradient in gradients.items():
            share = gradient / self._n_languages
            parameter = live[name]
            parameter.grad = share if parameter.grad is None else parameter.grad + share
        return loss

    def _gradients(
        self,
        model: nn.Module,
        live: Mapping[str, nn.Parameter],
        held: Mapping[str, Held],
        batch: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.compute_loss(model, batch)
        found = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
        gradients: dict[str, Tensor] = {}
        for name, gradient in zip(live, found, strict=True):
            if gradient is None:
                continue
            if name in held:
                gradient = gradient.contiguous()
                held[name].clear(gradient)
            gradients[name] = gradient
        return loss.detach(), gradients

    def _outside(self, language: str, live: Mapping[str, nn.Parameter]) -> dict[str, Held]:
        if self._masks is None:
            return {}
        if language not in self._held:
            masks = self._masks[language]
            self._held[language] = {
                name: Held(
                    parameter,
                    masks.get(name, torch.zeros_like(parameter, dtype=torch.bool)),
                )
                for name, parameter in live.items()
            }
        return self._held[language]


def fit_meta(
    model: nn.Module,
    features: Mapping[str, Features],
    recipe: Recipe,
    *,
    settings: MetaSettings,
    collate: Collate,
    seed: int,
    folder: Any,
    masks: Mapping[str, Mask] | None = None,
    base: str | None = None,
    **arguments: Any,
) -> Any:
    """Train a start from which each language is learnt quickly, in place, by first-order MAML.

    Every step has one episode of each language. With masks a language's episode moves only what its
    mask selects, in support as in query, and the outer step moves only what some mask selects:
    all else stays bitwise as it was.

    Args:
        model: With a loss of its own.
        features: Language to its examples.
        recipe: Of the outer optimizer; its `batch_size` is not used (a step has
            languages · (support + query) examples).
        settings: Of the episodes.
        collate: As of `fit`.
        seed: Of the episodes and of dropout.
        folder: As of `fit`.
        masks: Language to its mask, as of `MaskedUpdates`.
        base: Identity of the model's base, which masks must then stand on.
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
    if masks is not None and (lone := sorted(features.keys() ^ masks.keys())):
        raise InputError(f"{lone[0]} has no mask, or a mask and no examples", expected="both")
    found = None
    callbacks = list(arguments.pop("callbacks", ()))
    outer = None
    if masks is not None:
        found = {language: masks_of(model, mask, base=base) for language, mask in masks.items()}
        outer = MaskedUpdates(_union(found.values()))
        callbacks.append(outer)

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
            trainer_class=MetaTrainer, settings=settings, n_languages=len(features), masks=found,
            **arguments,
        )  # fmt: skip
    finally:
        if outer is not None:
            outer.detach()


def _union(masks: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for mask in masks:
        for name, part in mask.items():
            found[name] = found[name] | part if name in found else part
    return found
