"""One call from masks or updates to the overlap of all pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from subnet import _tables
from subnet.errors import InputError
from subnet.overlap._inputs import collect
from subnet.overlap._levels import group_parameters
from subnet.overlap._names import LEVELS, MASK_MEASURES, UPDATE_MEASURES
from subnet.overlap._rows import build_frame
from subnet.overlap.masks import describe_extremes, measure_masks
from subnet.overlap.result import Overlap

if TYPE_CHECKING:
    from subnet.overlap._inputs import Mask, WeightUpdate


def measure_overlap(
    things: Iterable[Mask] | Iterable[WeightUpdate],
    *,
    measures: Sequence[str] | None = None,
    levels: Sequence[str] = LEVELS,
    others: Iterable[Mask] | Iterable[WeightUpdate] | None = None,
    halves: tuple[Iterable[Mask], Iterable[Mask]] | None = None,
    seed: int = 0,
) -> Overlap:
    """How much every two languages share, with what chance gives beside each number.

    Languages are compared within a run. The same language in two runs is a replicate: the ceiling
    of what any two languages could share. Chance is not zero, and there are several chances:

    - masks, `element`: the weights of a group are one urn, given the size of each mask
      (hypergeometric). Not a headline: the weights of a matrix are not exchangeable.
    - masks, `structure`: rows and columns of one mask permuted, module by module, in closed form;
      p by Pearson type III. Headlines and edges use this one.
    - updates, `structure`: for the cosine each row (output) of one update with a random sign, for
      subspaces each of their coordinates with a random sign, module by module. Sizes and places
      (outlier dimensions) stay, also where all languages have them in common. Headlines and edges
      use this one.
    - updates, `rotation`: one update turned by independent random rotations on both sides. The
      only one of principal angles; of the others not a headline: it takes the coordinates of a
      model for alike.

    p-values are one-sided (at least this much), q-values those of Benjamini and Hochberg (1995)
    within a run, measure, level and null. `z` is positive where more is shared than by chance.

    With keep counts a, b and shared x: Jaccard x/(a+b−x), Dice 2x/(a+b), overlap coefficient
    x/min(a, b), containment of a in b x/a (both directions), sign agreement = fraction of the
    shared weights whose change has the same sign. For updates: cosine of ΔW; subspace similarity
    ‖U₁ᵀU₂‖²_F/min(k₁, k₂) of the left (output) singular vectors, chance level max(k₁, k₂)/n after
    a rotation, and more where both are large in the same coordinates; the largest principal angle
    in radians (mean over modules above the level of a module); both with `_right` for the input
    side. k is in `n_a`, `n_b`.

    The steps of a run that carry one LoRA on share subspaces by construction: each is
    B_s A_s − B_(s−1) A_(s−1), so that neighbours have a factor in common. Their subspaces and
    angles have a value and no p-value, and so do those of a step beside the adapter of a language
    trained before it. Their cosine is that of what was added to the weights, and falls below 0
    where a step undoes an earlier one.

    Args:
        things: Subnetworks (`subnet.extract`), or updates (`checkpoint.updates`, `.steps`).
        measures: Names of measures; by default all that the things define.
        levels: Some of `all`, `layer`, `type`, `module`.
        others: Compare each of the things with each of these instead (directed rows), for instance
            steps with adapters; within a run where they have runs in common.
        halves: The same languages found on two disjoint halves of their examples
            (`subnet.subnetwork.extract_halves`): each is compared with itself only, and gives the
            ceiling where no language was trained twice.
        seed: Seed of the sampled chance level of principal angles and of the singular vectors of
            large full-rank updates; all else is exact or in closed form.

    Raises:
        InputError: Nothing to compare, an unknown measure or level, a language twice in a run.
        NotComparableError: Different bases, shapes or granularities, or no shared parameter.

    Example:
        >>> overlap = measure_overlap(subnet.extract(checkpoint))  # doctest: +SKIP
        >>> overlap.matrix("jaccard")  # doctest: +SKIP
    """
    entries = collect(things, others, halves)
    grouped = group_parameters(entries.parameters, levels)
    warnings = entries.warnings
    if entries.source == "masks":
        signs = any(mask.signs is not None for mask in entries.items)
        default = MASK_MEASURES if signs else MASK_MEASURES[:-1]
        chosen = _chosen(measures, default, MASK_MEASURES)
        measured = measure_masks(entries, grouped, chosen)
        warnings += describe_extremes(entries)
        spectra = _empty_frame()
    else:
        from subnet.overlap.low_rank import measure_updates

        chosen = _chosen(measures, UPDATE_MEASURES, UPDATE_MEASURES)
        measured, spectra, found = measure_updates(entries, grouped, chosen, seed=seed)
        warnings += found
    return Overlap(
        frame=build_frame(entries, grouped, measured),
        languages=entries.languages,
        source=entries.source,
        spectra=spectra,
        warnings=warnings,
        provenance=_tables.provenance(
            "overlap",
            _settings(entries.source, chosen, levels, directed=others is not None),
            seed=seed,
            libraries=("numpy", "scipy", "torch"),
        ),
    )


def _chosen(
    measures: Sequence[str] | None, default: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    if measures is None:
        return tuple(default)
    unknown = [name for name in measures if name not in known]
    if unknown or not measures:
        raise InputError(
            f"measure {unknown[0]!r} is not defined here"
            if unknown
            else "no measure was asked for",
            expected=f"some of {', '.join(known)}",
        )
    return tuple(name for name in known if name in measures)


def _settings(
    source: str, measures: Sequence[str], levels: Sequence[str], *, directed: bool
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "source": source,
        "measures": list(measures),
        "levels": list(levels),
        "directed": directed,
        "alternative": "greater",
        "correction": "Benjamini-Hochberg within run, measure, level and null",
    }
    if source == "masks":
        settings["nulls"] = {
            "element": "hypergeometric; all weights of a group are one urn",
            "structure": "rows and columns of one mask permuted; exact moments, Pearson III",
        }
    else:
        from subnet.overlap import _modules, _subspaces

        settings["nulls"] = {
            "structure": "cosine: random signs of the rows of one update, exact variance, normal; "
            "subspaces: random signs of the coordinates of one, exact moments, beta",
            "rotation": "independent Haar-random rotations of one update",
        }
        settings["rank_tolerance"] = _modules.RANK_TOLERANCE
        settings["dense_rank"] = _modules.DENSE_RANK
        settings["angle_draws"] = _subspaces.ANGLE_DRAWS
    return settings


def _empty_frame() -> Any:
    import pandas as pd

    return pd.DataFrame()
