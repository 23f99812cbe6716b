"""What may move in the episodes of each language, and between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.training._processes import n_processes
from subnet.training.subnetworks._holding import Copies, Held
from subnet.training.subnetworks._targets import Mask, masks_of
from subnet.training.subnetworks.dynamic_masks import DynamicMask
from subnet.training.subnetworks.masking import MaskedUpdates, zeroed


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
        self._copies = Copies()

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


def allowed_in_episodes(
    model: nn.Module,
    masks: Mapping[str, Mask] | DynamicMask | None,
    languages: Sequence[str],
    base: str | None,
    train: Sequence[str],
    *,
    forward: bool,
    resume: Any,
) -> tuple[EpisodeMasks | None, MaskedUpdates | DynamicMask | None]:
    """What holds within episodes, and what holds between them.

    Args:
        model: To be trained.
        masks: As of `fit_meta`.
        languages: Those that have episodes.
        base: Identity of the model's base.
        train: What is trained whole beside given masks.
        forward: Whether support and query see zeros outside.
        resume: The checkpoint that training goes on from.

    Returns:
        Masks of the episodes, and the callback that holds the outer steps.

    Raises:
        InputError: Settings do not go together, or a language has no mask.
        NotComparableError: A mask is of another base or model.
    """
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
        if train or masks.forward != forward:
            raise InputError(
                "train or forward is given beside a dynamic mask",
                expected="train in DynamicSettings, and the same forward in both",
            )
        masks.tell(languages, episodes=True, base=base, resume=resume)
        return masks, masks
    if lone := sorted(set(languages) ^ masks.keys()):
        raise InputError(f"{lone[0]} has no mask, or a mask and no examples", expected="both")
    found = {language: masks_of(model, mask, base=base) for language, mask in masks.items()}
    hidden = zeroed(model, masks, found) if forward else {}
    return _Given(model, found, hidden), MaskedUpdates(_union(found.values()), train=train)


def _union(masks: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for mask in masks:
        for name, part in mask.items():
            found[name] = found[name] | part if name in found else part
    return found
