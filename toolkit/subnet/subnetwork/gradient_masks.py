"""What restricts gradients to a subnetwork, of weights or of units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.unit_conversion import projections, weights_of
from subnet.subnetwork.units import unit_parameters

if TYPE_CHECKING:
    import torch

    from subnet.model import Units
    from subnet.model.units import Sharing


def gradient_masks(
    subnetwork: Subnetwork, units: Units | None = None, *, shared: Sharing = "any"
) -> dict[str, torch.Tensor]:
    """What restricts the gradient of each weight to a subnetwork, of weights or of units.

    Args:
        subnetwork: Any mask.
        units: Of the model; needed for a mask of heads or neurons.
        shared: As of `units_to_weights`.

    Returns:
        Base parameter name to booleans of its shape; a parameter that is not named is outside.

    Raises:
        InputError: A mask of units is given without the units.
        NotComparableError: The mask is of another model.
    """
    import torch

    if subnetwork.granularity == "weight":
        return {name: torch.from_numpy(subnetwork.dense(name)) for name in subnetwork.shapes}
    if units is None:
        raise InputError(
            f"the mask of {subnetwork.language} is of {subnetwork.granularity}s",
            expected="units, to know which weights are theirs",
            fix="units=find_units(model)",
        )
    return weights_of(subnetwork, units, shared=shared)


@dataclass(frozen=True, eq=False)
class FactorMask:
    """Which entries of a LoRA on one matrix, ΔW [o, i] = s·B [o, r]·A [r, i], belong to units.

    Attributes:
        rows: [o] booleans: rows of B. None where units own no outputs of the matrix.
        columns: [i] booleans: columns of A. None where units own no inputs of it.
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None


def factor_masks(
    subnetwork: Subnetwork, units: Units, *, shared: Sharing = "any"
) -> dict[str, FactorMask]:
    """What restricts the gradients of LoRA factors to selected heads or neurons.

    A unit's rows of W are its rows of B (query, key, value, up, gate), its columns of W its columns
    of A (output, down). The other factor of each matrix serves all units alike, and like an output
    bias belongs to none: where a selection is None, that factor is outside.

    Args:
        subnetwork: A mask of heads or neurons.
        units: Of the model.
        shared: As of `units_to_weights`.

    Returns:
        Name of the adapted weight in the base to its selection. Outputs are rows and inputs columns
        also where the base stores the weight as [input, output], as PEFT has the factors.

    Raises:
        NotComparableError: The mask is of weights: it indexes W and not the factors; or the mask
            is of another model.
    """
    if subnetwork.granularity == "weight":
        raise NotComparableError(
            f"the mask of {subnetwork.language} is per weight, and a weight of W is none of LoRA's "
            "factors",
            expected="a mask of heads or neurons",
            fix="restrict the gradient of W itself with gradient_masks, or convert the mask with "
            "weights_to_units",
        )
    masks = weights_of(subnetwork, units, shared=shared)
    found: dict[str, FactorMask] = {}
    for block in unit_parameters(units, subnetwork.granularity).values():
        for projection, takes_outputs, _ in projections(block):
            mask = masks[projection.weight]
            mask = mask.T if projection.transposed else mask  # [o, i]
            # A unit has whole rows or whole columns, so one line of the mask tells them all.
            known = found.get(projection.weight, FactorMask())
            if takes_outputs:
                found[projection.weight] = replace(known, rows=mask[:, 0].clone())
            else:
                found[projection.weight] = replace(known, columns=mask[0].clone())
    return found
