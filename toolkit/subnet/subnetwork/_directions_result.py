"""What `measure_directions` returns: which directions are shared, as tables and as masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet._tables import Provenance
from subnet.subnetwork import _bits
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.mask import Subnetwork

if TYPE_CHECKING:
    import pandas as pd

    from subnet.subnetwork.settings import DirectionSettings

Array = NDArray[np.float64]

#: What a direction can be.
STATUS = ("alone", "shared", "undecided")
_ALONE, _SHARED, _UNDECIDED = range(3)


@dataclass(frozen=True)
class ModuleDirections:
    """The directions of all languages of a run in one module, one language's after another's.

    Attributes:
        parameter: Its weight.
        width: n, dimension of the space.
        ranks: [l], number of directions of each language.
        squares: [l], ‖ΔW‖²_F of each language.
        singular_values: [K].
        energy: [K], share of the language's ‖ΔW‖²_F in this module.
        tied: [K], number of directions of nearly equal singular values that were turned together.
        captured, expected, p_value: [K, l], by every language; NaN for its own.
    """

    parameter: str
    width: int
    ranks: NDArray[np.int64]
    squares: Array
    singular_values: Array
    energy: Array
    tied: NDArray[np.int64]
    captured: Array
    expected: Array
    p_value: Array

    @property
    def owner(self) -> NDArray[np.int64]:
        """[K], index of the language whose direction it is."""
        return np.repeat(np.arange(self.ranks.size), self.ranks)

    @property
    def number(self) -> NDArray[np.int64]:
        """[K], 0 for a language's strongest direction."""
        return np.concatenate([np.arange(rank) for rank in self.ranks])


@dataclass(frozen=True)
class RunDirections:
    """The directions of one run.

    Attributes:
        run: Its name.
        base: Identity of the base.
        languages: [l], labels.
        details: [l], what a mask records of its update.
        modules: By name of the weight.
        q_values: [K, l] for each module.
    """

    run: str
    base: str
    languages: tuple[str, ...]
    details: tuple[Mapping[str, Any], ...]
    modules: tuple[ModuleDirections, ...]
    q_values: tuple[Array, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Directions:
    """Which singular directions of ΔW each language uses alone, and which it shares with whom.

    A direction that two languages have in common stands twice, once as each one's own.

    Attributes:
        settings: What it depends on.
        runs: The numbers, by run.
        warnings: What a reader must know before believing them, one line each.
        provenance: Method, settings, seed, versions.
    """

    settings: DirectionSettings
    runs: tuple[RunDirections, ...]
    warnings: tuple[str, ...]
    provenance: Provenance

    def __repr__(self) -> str:
        count = sum(int(module.ranks.sum()) for run in self.runs for module in run.modules)
        languages = dict.fromkeys(label for run in self.runs for label in run.languages)
        return f"Directions({count} {self.settings.side} directions of {', '.join(languages)})"

    def to_frame(self) -> pd.DataFrame:
        """One row per direction and other language of its run.

        Returns:
            language, run, module, layer, type, side, direction (0 is the strongest),
            singular_value, energy (share of the language's ‖ΔW‖² in the module), other, captured
            (‖U_otherᵀu‖²), expected (by chance), p_value (one-sided: at least so much), q_value,
            shared, reason (why p is undefined).
        """
        import pandas as pd

        frames = []
        for run in self.runs:
            labels = np.array(run.languages, dtype=object)
            for module, q_value in zip(run.modules, run.q_values, strict=True):
                row, other = np.nonzero(module.owner[:, None] != np.arange(labels.size))
                frames.append(
                    pd.DataFrame(
                        {
                            **self._columns(run, module, row),
                            "other": labels[other],
                            "captured": module.captured[row, other],
                            "expected": module.expected[row, other],
                            "p_value": module.p_value[row, other],
                            "q_value": q_value[row, other],
                            "shared": self._shared(module, q_value)[row, other],
                            "reason": _reasons(run, module)[row, other],
                        }
                    )
                )
        return pd.concat(frames, ignore_index=True)

    def per_direction(self) -> pd.DataFrame:
        """One row per direction.

        Returns:
            language to energy as in `to_frame`; tied (how many directions of nearly equal singular
            value were turned together to find it, 1 for a singular vector), status (`alone`,
            `shared`, `undecided`), shared_with (labels), most_captured (by any one other language).
        """
        import pandas as pd

        frames = []
        for run in self.runs:
            labels = np.array(run.languages)
            for module, q_value in zip(run.modules, run.q_values, strict=True):
                shared = self._shared(module, q_value)
                every = np.arange(module.singular_values.size)
                frames.append(
                    pd.DataFrame(
                        {
                            **self._columns(run, module, every),
                            "tied": module.tied,
                            "status": np.array(STATUS, dtype=object)[self._status(module, q_value)],
                            "shared_with": [", ".join(labels[of]) for of in shared],
                            "most_captured": np.nanmax(module.captured, axis=1, initial=0.0),
                        }
                    )
                )
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """How much of its update each language makes in directions of its own.

        Returns:
            One row per run and language: language, run, side, n_directions, n_alone, n_shared,
            n_undecided, then energy_alone, energy_shared, energy_undecided and energy_left_out (in
            directions too weak to look at): shares of Σ‖ΔW‖² over the modules, together 1.
        """
        import pandas as pd

        rows = []
        for run in self.runs:
            pairs = list(zip(run.modules, run.q_values, strict=True))
            owner = np.concatenate([module.owner for module in run.modules])
            status = np.concatenate([self._status(*pair) for pair in pairs])
            square = np.concatenate([module.singular_values**2 for module in run.modules])
            total = np.sum([module.squares for module in run.modules], axis=0)
            for at, label in enumerate(run.languages):
                masks = [(owner == at) & (status == kind) for kind in range(len(STATUS))]
                parts = [float(square[mask].sum() / total[at]) for mask in masks]
                rows.append(
                    {
                        "language": label,
                        "run": run.run,
                        "side": self.settings.side,
                        "n_directions": int((owner == at).sum()),
                        **{f"n_{s}": int(m.sum()) for s, m in zip(STATUS, masks, strict=True)},
                        **{f"energy_{s}": p for s, p in zip(STATUS, parts, strict=True)},
                        "energy_left_out": max(0.0, round(1.0 - sum(parts), 12)),
                    }
                )
        return pd.DataFrame(rows)

    def subnetworks(self) -> Subnetworks:
        """The directions as masks, one per language and run.

        Each module has an entry `<module>.directions` of shape (K,): the directions of all
        languages of the run, one language's after another's in the order and numbers that
        `settings["languages"]` and `settings["ranks"]` say, the strongest first. A language's mask
        has its own directions and those of others that it shares. So `de & fr` are the directions
        of either that both have, and `de` without all others (`de - fr - …`) those that it is not
        shown to share: the ones used alone and the undecided ones, which `per_direction` tells
        apart.
        """
        return Subnetworks(
            self._mask(run, at) for run in self.runs for at in range(len(run.languages))
        )

    def _mask(self, run: RunDirections, at: int) -> Subnetwork:
        bits, shapes = {}, {}
        counts = np.zeros(len(STATUS), dtype=np.int64)
        for module, q_value in zip(run.modules, run.q_values, strict=True):
            name = _entry(module)
            own = module.owner == at
            bits[name] = _bits.pack(own | self._shared(module, q_value)[:, at])
            shapes[name] = (module.singular_values.size,)
            counts += np.bincount(self._status(module, q_value)[own], minlength=len(STATUS))
        return Subnetwork(
            language=run.languages[at],
            bits=bits,
            shapes=shapes,
            base=run.base,
            run=run.run,
            method=self.settings.method,
            settings={
                **asdict(self.settings),
                **run.details[at],
                "correction": "Benjamini-Hochberg over all directions and languages of the run",
                "languages": list(run.languages),
                "ranks": {_entry(module): module.ranks.tolist() for module in run.modules},
                "stack": _fingerprint(run),
                **{f"n_{s}": int(n) for s, n in zip(STATUS, counts, strict=True)},
                **({"warnings": list(self.warnings)} if self.warnings else {}),
            },
            seed=self.provenance.seed,
            granularity=self.settings.granularity,
        )

    def _shared(self, module: ModuleDirections, q_value: Array) -> NDArray[np.bool_]:
        """[K, l], whether the language shares the direction; not of its own."""
        with np.errstate(invalid="ignore"):
            enough = module.captured >= self.settings.min_captured
            return np.asarray(enough & (q_value <= self.settings.alpha))

    def _status(self, module: ModuleDirections, q_value: Array) -> NDArray[np.int64]:
        """[K], indices into `STATUS`."""
        held = (np.nan_to_num(module.captured) >= self.settings.min_captured).any(axis=1)
        status = np.where(held, _UNDECIDED, _ALONE)
        status[self._shared(module, q_value).any(axis=1)] = _SHARED
        return status

    def _columns(
        self, run: RunDirections, module: ModuleDirections, row: NDArray[np.int64]
    ) -> dict[str, Any]:
        from subnet.checkpoint import describe_parameter

        place = describe_parameter(module.parameter)
        return {
            "language": np.array(run.languages, dtype=object)[module.owner[row]],
            "run": run.run,
            "module": place.module,
            "layer": place.layer,
            "type": place.type,
            "side": self.settings.side,
            "direction": module.number[row],
            "singular_value": module.singular_values[row],
            "energy": module.energy[row],
        }


def _entry(module: ModuleDirections) -> str:
    return f"{module.parameter.removesuffix('.weight')}.directions"


def _reasons(run: RunDirections, module: ModuleDirections) -> NDArray[np.object_]:
    """[K, l], why a p-value is undefined; empty where it is not."""
    found = np.full(module.p_value.shape, "", dtype=object)
    undefined = np.isnan(module.p_value)
    for at, label in enumerate(run.languages):
        if module.ranks[at] == 0:
            text = f"the update of {label} is zero here"
        elif module.ranks[at] == module.width:
            text = f"the directions of {label} fill the space"
        else:
            text = "on so few coordinates the null model allows one value only"
        found[undefined[:, at], at] = text
    return found


def _fingerprint(run: RunDirections) -> str:
    """Tells the directions of one extraction from those of another, whose bits mean others."""
    digest = hashlib.sha256(repr((run.run, run.base, run.languages)).encode())
    for module in run.modules:
        values = " ".join(f"{value:.4e}" for value in module.singular_values)
        digest.update(f"{module.parameter} {module.ranks.tolist()} {values}".encode())
    return digest.hexdigest()[:16]
