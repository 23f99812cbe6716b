"""Training again on part of the data, so that attribution can be judged by what happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet.errors import InputError

Array = NDArray[np.float64]
#: Trains from scratch on the examples with these numbers, with this seed, and returns the outcome
#: (loss, say) of every test example [n_test].
Retrain = Callable[[NDArray[np.intp], int], ArrayLike]


@dataclass(frozen=True, eq=False)
class Retrained:
    """Outcomes of models trained on random subsets, to judge any number of methods by.

    Attributes:
        subsets: [s, n_train], which examples each subset holds.
        outcomes: [s, k, n_test], of k models per subset that differ in their seed.
        settings: How the subsets were drawn.
    """

    subsets: NDArray[np.bool_]
    outcomes: Array
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RetrainedWithout:
    """Outcomes of models trained on everything, and without one language after the other.

    Attributes:
        languages: The training languages.
        train: [n_train] number of each training example's language.
        whole: [k, n_test] outcomes of training on everything, one row per seed.
        without: [l, k, n_test] outcomes of training without each language.
    """

    languages: tuple[str, ...]
    train: NDArray[np.intp]
    whole: Array
    without: Array


def retrain_on_subsets(
    retrain: Retrain,
    n_train: int,
    *,
    n_subsets: int = 50,
    fraction: float = 0.5,
    seeds_per_subset: int = 1,
    seed: int = 0,
) -> Retrained:
    """Train on random subsets of the training examples.

    Args:
        retrain: Called as `retrain(indices, seed)`, `n_subsets · seeds_per_subset` times.
        n_train: Number of training examples.
        n_subsets: Number of subsets.
        fraction: Share α of the examples in each, drawn without replacement.
        seeds_per_subset: Models per subset, whose outcomes are averaged. Training noise hides the
            effect of the data, and one more seed often tells more than one more subset.
        seed: Seed of the subsets; `retrain` gets seed, seed + 1, …, the same for every subset, so
            that subsets differ by their examples alone.

    Raises:
        InputError: A setting is out of range, or an outcome is not finite or of the wrong shape.
    """
    size = round(fraction * n_train)
    if not 0 < size < n_train:
        raise InputError(
            f"a share {fraction} of {n_train} examples is {size}", expected="some, and not all"
        )
    if n_subsets < 3 or seeds_per_subset < 1:
        raise InputError(
            f"{n_subsets} subsets and {seeds_per_subset} seeds of each",
            expected="at least 3 subsets, to be put in order, and 1 seed",
        )
    rng = np.random.default_rng(seed)
    subsets = np.zeros((n_subsets, n_train), dtype=bool)
    outcomes = []
    for number, subset in enumerate(subsets):
        chosen = np.sort(rng.permutation(n_train)[:size])
        subset[chosen] = True
        outcomes.append(_run_seeds(retrain, chosen, seeds_per_subset, seed, f"subset {number}"))
    settings = {
        "n_subsets": n_subsets, "fraction": fraction, "seeds_per_subset": seeds_per_subset,
        "seed": seed,
    }  # fmt: skip
    return Retrained(subsets, np.stack(outcomes), settings)


def retrain_without_languages(
    retrain: Retrain, train_languages: Sequence[str], *, n_seeds: int = 1, seed: int = 0
) -> RetrainedWithout:
    """Train on everything, and once without each language.

    Args:
        retrain: Called as `retrain(indices, seed)`, (1 + l) · n_seeds times.
        train_languages: [n_train].
        n_seeds: Models of each kind, whose outcomes are averaged.
        seed: First of the seeds.

    Raises:
        InputError: There are fewer than two languages, or an outcome is not usable.
    """
    names, codes = np.unique(np.asarray(train_languages, dtype=str), return_inverse=True)
    if len(names) < 2 or n_seeds < 1:
        raise InputError(
            f"{len(names)} training languages and {n_seeds} seeds",
            expected="at least 2 languages and 1 seed",
        )
    numbers = np.arange(len(codes))
    whole = _run_seeds(retrain, numbers, n_seeds, seed, "all languages")
    without = [
        _run_seeds(retrain, numbers[codes != code], n_seeds, seed, f"training without {name}")
        for code, name in enumerate(names)
    ]
    return RetrainedWithout(tuple(map(str, names)), codes, whole, np.stack(without))


def _run_seeds(
    retrain: Retrain, indices: NDArray[np.intp], n_seeds: int, seed: int, name: str
) -> Array:
    """Outcomes [k, n_test] of models that differ in their seed.

    Raises:
        InputError: An outcome is not finite, or not one per test example.
    """
    found = []
    for offset in range(n_seeds):
        outcome = np.asarray(retrain(indices, seed + offset), dtype=np.float64)
        if outcome.ndim != 1 or not np.isfinite(outcome).all():
            raise InputError(
                f"retrain gave {list(outcome.shape)} outcomes for {name}, "
                f"{int((~np.isfinite(outcome)).sum())} of them not finite",
                expected="one finite outcome per test example",
            )
        found.append(outcome)
    return np.stack(found)
