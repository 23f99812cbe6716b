"""Singular directions of ΔW: which a language uses alone, and which it shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from subnet import _tables
from subnet.errors import InputError, NotComparableError
from subnet.subnetwork._directions_basis import Basis, align, read_basis
from subnet.subnetwork._directions_null import chance
from subnet.subnetwork._directions_result import Directions, ModuleDirections, RunDirections
from subnet.subnetwork._directions_start import Starts
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.settings import DirectionSettings
from subnet.subnetwork.sources import refuse_repeats, updates_of

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint, Update

__all__ = [
    "Basis",
    "Directions",
    "extract_directions",
    "measure_directions",
    "read_directions",
]


def extract_directions(
    source: Checkpoint | Update | Iterable[Update], settings: DirectionSettings
) -> Subnetworks:
    """The directions that each language uses, as masks; see `Directions.subnetworks`.

    Raises:
        As `measure_directions`.
    """
    return measure_directions(source, settings).subnetworks()


def measure_directions(
    source: Checkpoint | Update | Iterable[Update], settings: DirectionSettings | None = None
) -> Directions:
    """Which singular directions of its update each language shares with which other.

    Languages are compared within a run, over the weight matrices that all of them changed. ΔW is
    never formed where it has factors: with B = Q R and Aᵀ = P S its singular vectors are Q and P
    times those of the small R Sᵀ, so only ΔW matters and not how it was factored. One module is in
    memory at a time.

    Args:
        source: A checkpoint (its `updates`, else its `steps`), or updates of at least two languages
            of a run.
        settings: The defaults where none are given.

    Raises:
        InputError: A run holds a single language or one twice, or an update is zero everywhere or
            holds NaN.
        NotComparableError: Different bases or shapes, or no weight matrix that all changed.
        MissingInputError: There is no update.

    Example:
        >>> found = measure_directions(open_checkpoint("checkpoint/"))  # doctest: +SKIP
        >>> found.summary()[["language", "energy_alone", "energy_shared"]]  # doctest: +SKIP
    """
    settings = settings or DirectionSettings()
    updates = updates_of(source)
    refuse_repeats(updates)
    runs: dict[str, list[Update]] = {}
    for update in updates:
        runs.setdefault(update.run, []).append(update)
    found = [_measure_run(members, settings) for members in runs.values()]
    dense = not all(update.is_low_rank for update in updates)
    return Directions(
        settings=settings,
        runs=tuple(run for run, _ in found),
        warnings=tuple(dict.fromkeys(line for _, warnings in found for line in warnings)),
        provenance=_tables.provenance(
            settings.method,
            asdict(settings),
            seed=settings.seed if dense else None,
            libraries=("numpy", "scipy", "torch"),
        ),
    )


def read_directions(
    updates: Sequence[Update], parameter: str, settings: DirectionSettings | None = None
) -> list[Basis]:
    """The directions themselves, of every language in one module.

    Args:
        updates: All languages of a run, in the order in which they were measured: within blocks of
            nearly equal singular values the directions depend on the other languages.
        parameter: A weight matrix that all of them changed.
        settings: The defaults where none are given.

    Returns:
        One `Basis` per update: `vectors` [n, k], n the outputs (left) or inputs (right) of the
        module, in the order of the bits of the masks; `values` [k]; none where ΔW is zero.
    """
    settings = settings or DirectionSettings()
    return align(
        [
            read_basis(
                update,
                parameter,
                side=settings.side,
                energy=settings.energy,
                ties=settings.ties,
                dense_rank=settings.dense_rank,
                seed=settings.seed,
            )
            for update in updates
        ],
        settings.min_captured,
    )


def _measure_run(
    updates: Sequence[Update], settings: DirectionSettings
) -> tuple[RunDirections, list[str]]:
    from subnet._statistics import adjust_p_values

    labels = tuple(update.language.label for update in updates)
    parameters, warnings = _shared_parameters(updates)
    starts = Starts(updates) if settings.side == "right" else None
    modules = []
    for parameter in parameters:
        modules.append(_measure_module(updates, parameter, settings))
        if starts is not None:
            starts.add(parameter)
    squares = np.sum([module.squares for module in modules], axis=0)
    for update, square in zip(updates, squares, strict=True):
        if square == 0:
            raise InputError(
                f"the update of {update.language.label} is zero everywhere",
                path=update.source,
                expected="weights that training changed",
                fix="was the adapter saved before training?",
            )
    p_values = [module.p_value.ravel() for module in modules]
    q_values = np.split(
        adjust_p_values(np.concatenate(p_values)), np.cumsum([p.size for p in p_values])[:-1]
    )
    run = RunDirections(
        run=updates[0].run,
        base=updates[0].base,
        languages=labels,
        details=tuple(_details(update) for update in updates),
        modules=tuple(modules),
        q_values=tuple(
            q.reshape(module.p_value.shape) for q, module in zip(q_values, modules, strict=True)
        ),
    )
    if any(hasattr(update, "stage") for update in updates):
        warnings.append(
            "the steps of a run continue one LoRA: each is B_s A_s − B_(s−1) A_(s−1), so that "
            "neighbouring steps have directions in common by construction on either side, the "
            "more of them the more A moves"
        )
    elif starts is not None:
        warnings += starts.warnings()
    return run, warnings


def _measure_module(
    updates: Sequence[Update], parameter: str, settings: DirectionSettings
) -> ModuleDirections:
    bases = read_directions(updates, parameter, settings)
    languages = len(bases)
    ranks = np.array([basis.rank for basis in bases])
    owner = np.repeat(np.arange(languages), ranks)
    vectors = np.concatenate([basis.vectors for basis in bases], axis=1)
    blocks = np.unique(
        np.stack([owner, np.concatenate([basis.block for basis in bases])]),
        axis=1,
        return_inverse=True,
    )[1].ravel()
    captured = np.clip((vectors.T @ vectors) ** 2 @ np.eye(languages)[owner], 0.0, 1.0)
    null = chance(settings.null, vectors, blocks, owner, languages)
    own = owner[:, None] == np.arange(languages)
    values = np.concatenate([basis.values for basis in bases])
    squares = np.array([basis.square for basis in bases])
    return ModuleDirections(
        parameter=parameter,
        width=vectors.shape[0],
        ranks=ranks,
        squares=squares,
        singular_values=values,
        energy=values**2 / squares[owner],
        tied=np.bincount(blocks)[blocks] if blocks.size else blocks,
        captured=np.where(own, np.nan, captured),
        expected=np.where(own, np.nan, null.expected),
        p_value=np.where(own, np.nan, null.p_value(captured)),
    )


def _shared_parameters(updates: Sequence[Update]) -> tuple[list[str], list[str]]:
    """Weight matrices that all languages changed, and a warning if some changed others too."""
    first = updates[0]
    if len(updates) < 2:
        raise InputError(
            f"the run {first.run} holds the update of {first.language.label} only",
            path=first.source,
            expected="at least two languages in a run: what is shared is shared with another",
        )
    for update in updates[1:]:
        if update.base != first.base:
            raise NotComparableError(
                f"the updates of {first.language.label} and {update.language.label} stand on "
                f"different bases, {first.base!r} and {update.base!r}",
                path=update.source,
                expected="one base",
            )
    everything = sorted(set[str]().union(*(update.shapes for update in updates)))
    shared = [name for name in everything if all(name in update.shapes for update in updates)]
    if not shared:
        labels = [update.language.label for update in updates]
        raise NotComparableError(
            f"no weight matrix was changed in all of {', '.join(labels)}",
            path=first.source,
            expected="target modules that all have",
            fix="compare fewer languages in one call",
        )
    for name in shared:
        for update in updates[1:]:
            if tuple(update.shapes[name]) != tuple(first.shapes[name]):
                raise NotComparableError(
                    f"{name} has shape {list(update.shapes[name])} in {update.language.label}",
                    path=update.source,
                    expected=f"{list(first.shapes[name])}, as in {first.language.label}",
                )
    lone = [name for name in everything if name not in set(shared)]
    if not lone:
        return shared, []
    warning = (
        f"{len(lone)} of {len(everything)} weight matrices are left out because not every language "
        f"of the run {first.run} changed them, for example {lone[0]}"
    )
    return shared, [warning]


def _details(update: Update) -> dict[str, object]:
    stage = getattr(update, "stage", None)
    return {"update": update.kind, **({} if stage is None else {"stage": stage})}
