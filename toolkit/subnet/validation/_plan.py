"""What an ablation tries, and how much work that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError, MissingInputError
from subnet.subnetwork import Subnetwork
from subnet.subnetwork.settings import check_whole, one_of
from subnet.validation._examples import held_out
from subnet.validation._subjects import REPLACEMENTS

if TYPE_CHECKING:
    from torch import nn

    from subnet.checkpoint import Checkpoint

CONDITIONS = ("removed", "kept")
#: Most random masks that are kept alone: no test rests on them.
_RANDOM_KEPT = 5


@dataclass(frozen=True)
class Plan:
    """What is tried of every mask.

    Attributes:
        conditions: `removed`, `kept`.
        n_random: Random masks.
        seed: Of everything random.
    """

    conditions: tuple[str, ...]
    n_random: int
    seed: int

    def n_random_of(self, condition: str) -> int:
        """Random masks under one condition."""
        return self.n_random if condition == "removed" else min(self.n_random, _RANDOM_KEPT)

    def check(self, how: str | None, n_examples: int, batch_size: int) -> None:
        """Refuse settings that are out of range."""
        if not self.conditions or len(set(self.conditions)) < len(self.conditions):
            raise InputError(
                f"conditions are {list(self.conditions)}", expected=str(list(CONDITIONS))
            )
        for condition in self.conditions:
            one_of("condition", condition, CONDITIONS)
        if how is not None:
            one_of("how", how, REPLACEMENTS)
        check_whole("n_examples", n_examples, 1)
        check_whole("n_random", self.n_random, 0)
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", self.seed, 0)


@dataclass(frozen=True)
class AblationCost:
    """What an ablation has to compute.

    Attributes:
        n_masks: Masks that are tried.
        n_passes: Forward passes over all examples.
        n_examples: Examples per pass, of all languages.
        forward_examples: Forward passes of single examples in all.
    """

    n_masks: int
    n_passes: int
    n_examples: int
    forward_examples: int


def ablation_cost(
    source: Checkpoint | nn.Module,
    subnetworks: Subnetwork | Iterable[Subnetwork],
    *,
    data: Iterable[Mapping[str, Any]] | None = None,
    conditions: Sequence[str] = CONDITIONS,
    n_examples: int = 128,
    n_random: int = 20,
    seed: int = 0,
) -> AblationCost:
    """What `ablate` would compute; nothing is run.

    Each mask is counted with a pass over the whole model, which masks of one model share.

    Args:
        source: As of `ablate`.
        subnetworks: As of `ablate`.
        data: As of `ablate`.
        conditions: As of `ablate`.
        n_examples: As of `ablate`.
        n_random: As of `ablate`.
        seed: As of `ablate`.

    Raises:
        MissingInputError, InputError: As `ablate`, as far as no model is needed to see it.
    """
    masks = masks_of(subnetworks)
    plan = Plan(tuple(conditions), n_random, seed)
    plan.check(None, n_examples, 1)
    first = tuple(dict.fromkeys(mask.language for mask in masks))
    n = len(held_out(checkpoint_of(source), data, first, n_examples, seed).examples)
    passes = len(masks) * (1 + sum(1 + plan.n_random_of(c) for c in plan.conditions))
    return AblationCost(len(masks), passes, n, passes * n)


def masks_of(subnetworks: Subnetwork | Iterable[Subnetwork]) -> list[Subnetwork]:
    """The masks, each of which can be compared with a random one."""
    masks = [subnetworks] if isinstance(subnetworks, Subnetwork) else list(subnetworks)
    if not masks:
        raise MissingInputError("there is no subnetwork to try", fix="extract some first")
    seen: set[tuple[str, str]] = set()
    for mask in masks:
        if (mask.language, mask.run) in seen:
            raise InputError(
                f"{mask.language} has two masks in the run {mask.run}",
                expected="one per language and run",
                fix="try them apart",
            )
        seen.add((mask.language, mask.run))
        if mask.count in (0, mask.size):
            what = "selects nothing" if mask.count == 0 else "selects everything that it is over"
            raise InputError(
                f"the mask of {mask.language} {what}",
                expected="a part of it, which can be compared with a random one",
            )
    return masks


def checkpoint_of(source: Any) -> Checkpoint | None:
    """The checkpoint, or None for a live model."""
    from torch import nn

    from subnet.checkpoint import Checkpoint

    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, nn.Module):
        return None
    raise InputError(
        f"the source is {type(source).__name__}",
        expected="a checkpoint or a live model",
        fix="open_checkpoint(path)",
    )
