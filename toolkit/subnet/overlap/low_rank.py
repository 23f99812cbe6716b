"""How much two updates share: their ΔW, and the directions in which it acts.

Everything is a property of ΔW = B A and none of its factors, which are not unique: (B M, M⁻¹ A) is
the same update. `z` is positive where two updates share more than random directions would, also
for `principal_angle`, which falls with sharing; p is one-sided: the probability of at least as much
under the null model (`_structure`, `_rotation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet.overlap import _rotation, _structure, _tails
from subnet.overlap._collecting import ONE_VALUE, Collector
from subnet.overlap._initialisation import Beginnings
from subnet.overlap._inputs import Entries
from subnet.overlap._levels import Levels
from subnet.overlap._modules import Module, read_module
from subnet.overlap._rows import Measured, divide
from subnet.overlap._steps import describe_steps
from subnet.overlap._subspaces import Angle, Similarity

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


def measure_updates(
    entries: Entries, levels: Levels, measures: Sequence[str], *, seed: int
) -> tuple[list[Measured], pd.DataFrame, tuple[str, ...]]:
    """The measures of all pairs under their null models, the spectrum of every update, warnings.

    Modules are read one after the other; of each only numbers per pair are kept.
    """
    updates = entries.items
    collectors = {name: _collector(name, entries, seed) for name in measures}
    spectra: list[dict[str, Any]] = []
    beginnings = Beginnings(entries)
    for parameter, shape in zip(entries.parameters, entries.shapes, strict=True):
        module = read_module(updates, parameter, seed=seed)
        if parameter in updates[0].transposed:
            shape = (shape[1], shape[0])
        for collector in collectors.values():
            collector.add(module, shape)
        spectra += _spectra(entries, parameter, module)
        if module.alike is not None:
            beginnings.add(module.alike, shape[1] * max(1, int(module.ranks.min())))
    import pandas as pd

    measured = [
        one for name, collector in collectors.items() for one in collector.measured(name, levels)
    ]
    warnings = (*describe_steps(entries), *beginnings.warnings())
    return measured, pd.DataFrame(spectra), warnings


def _collector(measure: str, entries: Entries, seed: int) -> Collector:
    side = int(measure.endswith("_right"))
    if measure == "cosine":
        return _Cosine(entries)
    if measure.startswith("subspace_similarity"):
        return Similarity(entries, side)
    return Angle(entries, side, seed)


class _Cosine(Collector):
    """⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖); over several modules of the concatenated updates."""

    def add(self, module: Module, shape: tuple[int, int]) -> None:
        two = (module.two[self.a], module.two[self.b])
        four = (module.four[self.a], module.four[self.b])
        variance, fourth = _rotation.inner_product_moments(shape, two, four)
        self.keep(
            inner=module.inner[self.a, self.b],
            row_squares=module.row_squares[self.a, self.b],
            rows=shape[0],
            variance=variance,
            fourth=fourth,
            square_a=two[0],
            square_b=two[1],
            k_a=module.ranks[self.a],
            k_b=module.ranks[self.b],
        )

    def measured(self, name: str, levels: Levels) -> list[Measured]:
        total = self.totals(levels)
        norm = np.sqrt(total["square_a"] * total["square_b"])
        inner, turned = total["inner"], total["variance"]
        value = divide(inner, norm)
        # rows that never meet leave nothing but rounding
        signed = np.where(total["row_squares"] > (1e-9 * norm) ** 2, total["row_squares"], 0.0)
        p_values = {
            "structure": _structure.signed_rows_sf(inner, signed, total["rows"]),
            "rotation": _tails.student_sf(inner, turned, divide(total["fourth"], turned**2)),
        }
        found = []
        for null, variance in (("structure", signed), ("rotation", turned)):
            reason = self.reasons(value.shape, total["k_a"], total["k_b"])
            reason[(variance == 0) & (reason == "")] = ONE_VALUE
            found.append(
                Measured(
                    name,
                    null,
                    value=value,
                    expected=np.where(np.isnan(value), np.nan, 0.0),
                    z=divide(inner, np.sqrt(variance)),
                    p_value=p_values[null],
                    n_a=total["k_a"],
                    n_b=total["k_b"],
                    reason=reason,
                )
            )
        return found


def _spectra(entries: Entries, parameter: str, module: Module) -> list[dict[str, Any]]:
    return [
        {
            "run": item.run,
            "language": label,
            "parameter": parameter,
            "rank": values.size,
            "effective_rank": float(effective),
            "norm": float(np.sqrt(max(square, 0.0))),
            "largest": float(values[0]) if values.size else 0.0,
        }
        for item, label, values, effective, square in zip(
            entries.items,
            entries.labels,
            module.values,
            module.effective_rank,
            module.two,
            strict=True,
        )
    ]
