"""All languages together, and every optimizer step of one of them, in its own subnetwork or not.

What first-order MAML inside subnetworks is compared with: the same languages, the same masks, and
no episodes; and without masks what the masks are compared with.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from subnet.errors import InputError
from subnet.training._batches import draw_batches
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks._by_language import Collate, Features, check_languages
from subnet.training.subnetworks._targets import Mask
from subnet.training.subnetworks.dynamic_masks import DynamicMask
from subnet.training.subnetworks.masking import MaskedUpdates, fit_masked


def draw_turns(languages: Sequence[str], *, steps: int, seed: int) -> list[str]:
    """The language of every step: round after round, each once, in random order.

    Args:
        languages: Whose turns they are.
        steps: Optimizer steps.
        seed: Of the orders; nothing else is depended on.

    Example:
        >>> sorted(draw_turns(["de", "sw"], steps=4, seed=0))
        ['de', 'de', 'sw', 'sw']
    """
    rng = random.Random(f"{seed}/turns")  # noqa: S311 - no secret
    found: list[str] = []
    while len(found) < steps:
        found += rng.sample(list(languages), len(languages))
    return found[:steps]


def fit_in_turns(
    model: nn.Module,
    features: Mapping[str, Features],
    recipe: Recipe,
    *,
    masks: Mapping[str, Mask] | DynamicMask | None = None,
    collate: Collate,
    seed: int,
    folder: Any,
    forward: bool = False,
    base: str | None = None,
    train: Sequence[str] = (),
    **arguments: Any,
) -> Any:
    """Train on all languages, in place, one in every step, which moves only its own subnetwork.

    The batches are the same with masks and without them.

    Args:
        model: With a loss of its own.
        features: Language to its examples.
        recipe: As of `fit`; a step has `batch_size` examples of one language.
        masks: Language to its mask, as of `MaskedUpdates`; or a `DynamicMask`, which then has one
            for each language, found by the language's own steps. None lets all weights move.
        collate: As of `fit`.
        seed: Of the turns, of the examples and of dropout.
        folder: As of `fit`.
        forward: As of `MaskedUpdates`.
        base: Identity of the model's base, which masks must then stand on.
        train: Names or patterns of parameters that no mask covers and that all languages train
            whole; a `DynamicMask` has them among its settings.
        arguments: `on_step`, `callbacks`, `save_every` and `resume` of `fit`.

    Returns:
        The trainer, after its last step.

    Raises:
        InputError: There are fewer than two languages, fewer steps than languages, or a language
            has no examples or no mask.
        NotComparableError: A mask is of another base or model.
    """
    check_languages(features, 1, "its steps")
    if recipe.steps < len(features):
        raise InputError(
            f"{recipe.steps} steps are asked for, and {len(features)} languages take turns",
            expected=f"{len(features)} steps or more",
        )
    turns = draw_turns(list(features), steps=recipe.steps, seed=seed)
    mask: MaskedUpdates | DynamicMask | None = None
    if masks is None:
        if train or forward or base is not None:
            raise InputError(
                "train, forward or base is given without masks", expected="masks, or none of them"
            )
    elif isinstance(masks, DynamicMask):
        if train or masks.forward != forward:
            raise InputError(
                "train or forward is given beside a dynamic mask",
                expected="train in DynamicSettings, and the same forward in both",
            )
        mask = masks
        mask.tell(turns, base=base)
    else:
        if lone := sorted(features.keys() ^ masks.keys()):
            raise InputError(f"{lone[0]} has no mask, or a mask and no examples", expected="both")
        mask = MaskedUpdates(masks, languages=turns, forward=forward, base=base, train=train)
    examples = [example for own in features.values() for example in own]
    arguments |= {
        "collate": collate,
        "seed": seed,
        "folder": folder,
        "batches": _batches(features, turns, recipe.batch_size, seed),
    }
    if mask is None:
        return fit(model, examples, recipe, **arguments)
    return fit_masked(model, examples, recipe, mask=mask, **arguments)


def _batches(
    features: Mapping[str, Features], turns: Sequence[str], size: int, seed: int
) -> list[list[int]]:
    """Places, among the examples of all languages, of those of every step."""
    drawn: dict[str, Any] = {}
    first = 0
    for language, own in features.items():
        lengths = [len(example["input_ids"]) for example in own]
        steps = turns.count(language)
        # What a language gets does not depend on which others there are.
        key = random.Random(f"{seed}/{language}").getrandbits(32)  # noqa: S311 - no secret
        batches = draw_batches(lengths, steps=steps, batch_size=size, seed=key)
        drawn[language] = iter([[first + place for place in batch] for batch in batches])
        first += len(own)
    return [next(drawn[language]) for language in turns]
