"""Feed-forward neurons that fire for some languages only, by the entropy of when they fire.

Language activation probability entropy (LAPE; Tang et al. 2024, arXiv 2402.16438).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import InputError, NotComparableError
from subnet.model import find_units
from subnet.subnetwork._activations import activation_probabilities, count_activations
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.settings import LapeSettings
from subnet.subnetwork.sources import LanguageModel, Progress, language_models
from subnet.subnetwork.units import subnetwork_of_units

if TYPE_CHECKING:
    from subnet.checkpoint import Checkpoint
    from subnet.inputs import Half
    from subnet.model import Units

__all__ = [
    "LanguageNeurons",
    "activation_probabilities",
    "extract_by_activation",
    "language_neurons",
]


@dataclass(frozen=True, eq=False)
class LanguageNeurons:
    """Which neurons are specific to which languages.

    Attributes:
        selected: [l, n] booleans; a neuron may be that of several languages.
        entropy: [n] in nats, of the activation probabilities normalised over languages; 0 of a
            neuron that never fires.
        active: [n] booleans: fires, for some language, more often than the threshold.
        threshold: The activation probability at the percentile.
        k: How many neurons of lowest entropy were looked for; fewer where fewer are active.
    """

    selected: NDArray[np.bool_]
    entropy: NDArray[np.float64]
    active: NDArray[np.bool_]
    threshold: float
    k: int


def extract_by_activation(
    checkpoint: Checkpoint,
    settings: LapeSettings,
    data: Iterable[Mapping[str, Any]] | Half | None = None,
    *,
    progress: Progress | None = None,
) -> Subnetworks:
    """Find the neurons of each language by when they fire; see `LapeSettings`.

    One model is in memory at a time, and each language's examples pass through it once.

    Args:
        checkpoint: With a base and, unless given, `train.jsonl`.
        settings: Of the method.
        data: Examples, each with its `language`; see `extract`.
        progress: See `extract`.

    Returns:
        One mask of neurons per language (and, with `model="trained"`, per run). One that has none
        of the neurons found has an empty mask, of which a warning tells.

    Raises:
        InputError: There are less than two languages, the density selects no neuron, the
            architecture is not understood, or no neuron stands out.
        NotComparableError: The models of two languages differ in their neurons.
    """
    found: dict[str, list[_Measured]] = {}
    for member in language_models(checkpoint, settings, data, progress=progress):
        units = find_units(member.model)
        p, tokens = count_activations(member.model, units, member.batches)
        # The base is one model, whichever run it is named after.
        group = "" if settings.model == "base" else member.run
        found.setdefault(group, []).append(_Measured(_without_model(member), units, p, tokens))
    return Subnetworks(
        mask for group in found.values() for mask in _subnetworks(group, settings, checkpoint)
    )


def language_neurons(p: NDArray[np.float64], settings: LapeSettings) -> LanguageNeurons:
    """The neurons of lowest entropy over languages, and the languages that each belongs to.

    With p̂_ℓ = p_ℓ / Σ p, the entropy is −Σ p̂_ℓ ln p̂_ℓ. Neurons none of whose p_ℓ exceeds the
    percentile of all p drop out: one that never fires would have the lowest entropy of all. Of the
    others the round(density · n) of lowest entropy are taken, ties by their order, and belong to
    every language whose p_ℓ exceeds the percentile.

    Args:
        p: [l, n] activation probabilities of n neurons for l languages.
        settings: density and percentile; what concerns data is not used.

    Raises:
        InputError: p is no array of probabilities of at least two languages, the density selects
            no neuron, or no neuron is above the percentile.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 2 or not p.size or not ((p >= 0) & (p <= 1)).all():
        raise InputError(
            f"activation probabilities are {list(p.shape)}",
            expected="numbers from 0 to 1 in [languages, neurons]",
        )
    n_languages, n = p.shape
    if n_languages < 2:
        raise InputError(
            "there is one language, and a neuron is specific only against others",
            expected="examples of two languages or more",
        )
    k = round(settings.density * n)
    if k == 0:
        raise InputError(
            f"density {settings.density:g} selects none of the {n} neurons", fix="take a larger one"
        )
    total = p.sum(axis=0)
    shares = np.divide(p, total, out=np.zeros_like(p), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(p), where=shares > 0)
    entropy = -(shares * logs).sum(axis=0) + 0.0  # no negative zero
    # The value of that rank, not one interpolated between two: as the authors' kthvalue.
    rank = max(1, round(p.size * settings.activity_percentile / 100))
    threshold = float(np.partition(p.ravel(), rank - 1)[rank - 1])
    above: NDArray[np.bool_] = np.greater(p, threshold)
    active: NDArray[np.bool_] = np.any(above, axis=0)
    if not active.any():
        raise InputError(
            f"no activation probability exceeds the percentile {settings.activity_percentile:g}, "
            f"{threshold:g}",
            expected="neurons that fire more often than most",
            fix="take a lower activity_percentile",
        )
    candidates = np.flatnonzero(active)
    chosen = candidates[np.argsort(entropy[candidates], kind="stable")[:k]]
    selected = np.zeros(p.shape, dtype=np.bool_)
    selected[:, chosen] = above[:, chosen]
    return LanguageNeurons(selected, entropy, active, threshold, k)


@dataclass(frozen=True)
class _Member:
    """What a mask has to say of where it is from."""

    language: str
    run: str
    base: str
    recorded: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Measured:
    member: _Member
    units: Units
    p: NDArray[np.float64]
    tokens: dict[str, int]


def _without_model(member: LanguageModel) -> _Member:
    return _Member(member.language, member.run, member.base, member.recorded)


def _subnetworks(
    group: list[_Measured], settings: LapeSettings, checkpoint: Checkpoint
) -> Iterator[Subnetwork]:
    """The masks of languages that are compared with each other."""
    first = group[0]
    for other in group[1:]:
        if other.member.base != first.member.base or len(other.p) != len(first.p):
            raise NotComparableError(
                f"{first.member.language} and {other.member.language} are of different bases "
                f"({len(first.p)} and {len(other.p)} neurons)",
                path=checkpoint.path,
                expected="one base for all languages",
            )
    if len(group) < 2:
        raise InputError(
            f"{first.member.language} is the only language of the run {first.member.run}, and a "
            "neuron is specific only against others",
            path=checkpoint.path,
            expected="two languages or more",
        )
    found = language_neurons(np.stack([one.p for one in group]), settings)
    alone = found.selected.sum(axis=0) == 1
    for selected, one in zip(found.selected, group, strict=True):
        if not selected.any():
            warnings.warn(
                f"no neuron is specific to {one.member.language}: its mask is empty", stacklevel=2
            )
        yield subnetwork_of_units(
            selected,
            one.units,
            "neuron",
            language=one.member.language,
            run=one.member.run,
            base=one.member.base,
            method=settings.method,
            settings={
                **asdict(settings),
                **one.member.recorded,
                "languages": [other.member.language for other in group],
                "tokens": one.tokens,
                "activation": "output of the activation function, positive where its input is",
                "k": found.k,
                "selected": int(found.selected.any(axis=0).sum()),
                "of_this_language_alone": int((selected & alone).sum()),
                "activity_threshold": found.threshold,
                "largest_entropy": float(found.entropy[found.selected.any(axis=0)].max()),
                "entropy_without_difference": math.log(len(group)),
                "ties": "order of the neurons",
            },
            seed=settings.seed,
        )
