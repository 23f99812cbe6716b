"""What a configuration comes to: cells (a sharing regime at a rank), runs, orders."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from subnet.errors import InputError, UnknownLanguageError
from subnet.language import LanguageIndex
from subnet.training._sequence import derived_seed
from subnet.training.config import Sharing, TrainingConfig

#: The run that holds second adapters.
REPLICATE = "replicate"


@dataclass(frozen=True)
class Cell:
    """One sharing regime at one rank: one checkpoint directory.

    Attributes:
        name: `full-r8`; `full` where all weights are trained.
        sharing: How much the languages share.
        rank: Of LoRA; 0 where all weights are trained.
    """

    name: str
    sharing: Sharing
    rank: int


@dataclass(frozen=True)
class Run:
    """One order with one seed.

    Attributes:
        name: `order-1`, or `order-1-seed-0` where there are several seeds.
        order: Labels, first to last.
        seed: Of adapters and batches.
    """

    name: str
    order: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Lone:
    """One training of one language from the base, beside the sequences of a cell.

    Attributes:
        language: Its label.
        folder: Where it stands in the cell.
        name: Of its seed; the same in all cells of a rank, which share the training.
    """

    language: str
    folder: str
    name: str


def plan_cells(config: TrainingConfig) -> tuple[Cell, ...]:
    """The cells of a configuration, in the order in which they are listed.

    Raises:
        InputError: A sharing regime or rank is listed twice, or none is.
    """
    adaptation = config.adaptation
    for name, listed in (("sharing", adaptation.sharings), ("rank", adaptation.ranks)):
        if not listed or len(set(listed)) < len(listed):
            raise InputError(
                f"adaptation.{name} is {list(listed)}", expected="one or more, each once"
            )
    return tuple(
        Cell(sharing if not rank else f"{sharing}-r{rank}", sharing, rank)
        for sharing, rank in itertools.product(adaptation.sharings, adaptation.ranks)
    )


def plan_runs(config: TrainingConfig, languages: Sequence[str]) -> tuple[Run, ...]:
    """The runs of every cell: each order with each seed.

    Raises:
        InputError: An order repeats a language, lacks one, or names one that is not trained; a seed
            or order comes twice; there are fewer languages than replicates.
    """
    orders = _orders(config, languages)
    if config.sequence.replicates > len(languages):
        raise InputError(
            f"sequence.replicates is {config.sequence.replicates}, and {len(languages)} languages "
            "are trained",
            expected=f"{len(languages)} or less",
        )
    seeds = config.sequence.seeds
    if len(set(seeds)) < len(seeds):
        raise InputError(f"sequence.seeds is {list(seeds)}", expected="each seed once")
    return tuple(
        Run(f"order-{number}" if len(seeds) == 1 else f"order-{number}-seed-{seed}", order, seed)
        for number, order in enumerate(orders, start=1)
        for seed in seeds
    )


def plan_lone(
    config: TrainingConfig, cell: Cell, languages: Sequence[str], runs: Sequence[Run]
) -> tuple[Lone, ...]:
    """An adapter for each language, and second ones of the first languages of the first order.

    Where languages have parameters of their own, what the sequence trains are their adapters
    already, in the same folders; where nothing is shared and there are no masks, they are trained
    as the second ones are.
    """
    wanted = config.sequence
    first = languages if wanted.adapters and cell.sharing == "full" else ()
    masked = cell.sharing == "none" and config.subnetworks.in_stages != "none"
    second = () if masked else runs[0].order[: wanted.replicates]
    container = "adapters" if cell.rank else "weights"
    return (
        *(Lone(name, f"{container}/{name}", f"r{cell.rank}/adapters/{name}") for name in first),
        *(
            Lone(name, f"runs/{REPLICATE}/{container}/{name}", f"r{cell.rank}/{REPLICATE}/{name}")
            for name in second
        ),
    )


def _orders(config: TrainingConfig, languages: Sequence[str]) -> list[tuple[str, ...]]:
    asked = config.sequence.orders
    if isinstance(asked, int):
        return _random_orders(config.seed, languages, asked)
    if not asked:
        raise InputError("sequence.orders is []", expected="a number, or one or more orders")
    orders = [_named_as(languages, order) for order in asked]
    for order in orders:
        twice = [label for label in order if order.count(label) > 1]
        if twice:
            raise InputError(
                f"an order of sequence.orders has {twice[0]!r} {order.count(twice[0])} times",
                expected="each language once",
            )
        unknown = [label for label in order if label not in languages]
        lacking = [label for label in languages if label not in order]
        if unknown or lacking:
            raise InputError(
                f"an order of sequence.orders has {unknown[0]!r}, which is not trained"
                if unknown
                else f"an order of sequence.orders lacks {lacking[0]!r}",
                expected=f"each of {', '.join(languages)} once",
            )
    if len(set(orders)) < len(orders):
        raise InputError("sequence.orders has an order twice", expected="each order once")
    return orders


def _named_as(languages: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """An order under the labels of the examples, which other names of a language stand for."""
    index, found = LanguageIndex(), []
    for label in languages:
        index.add(label)
    for name in order:
        try:
            label = index.add(name).label
        except UnknownLanguageError:
            label = name
        found.append(label if label in languages else name)
    return tuple(found)


def _random_orders(seed: int, languages: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Different random orders; the first ones stay what they are when more are asked for."""
    rng = random.Random(derived_seed(seed, "orders"))  # noqa: S311 - no secret
    found: dict[tuple[str, ...], None] = {}
    for _ in range(100 * n):
        found.setdefault(tuple(rng.sample(list(languages), len(languages))))
        if len(found) == n:
            return list(found)
    raise InputError(
        f"{len(languages)} languages have {len(found)} orders, and {n} were asked for",
        expected="fewer orders, or more languages",
    )
