"""A subnetwork: the set of weights that a language uses, as packed bits."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet._tables import MAIN_RUN
from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.subnetwork import _bits
from subnet.subnetwork._bits import Bits

if TYPE_CHECKING:
    import pandas as pd

#: What one bit of a mask stands for.
GRANULARITIES = ("weight", "head", "neuron", "direction")


@dataclass(frozen=True, eq=False, repr=False)
class Subnetwork:
    """The set of weights, attention heads or feed-forward neurons that a language uses.

    Sets combine by `a & b`, `a | b`, `a - b` and `~a` as Python sets do; both sides must be masks
    over the same parameters of the same base. Two subnetworks are equal when they are the same set
    of weights of the same base, whatever they are called and however they were found.

    Attributes:
        language: The user's label of the language; of a combination, the expression.
        bits: Parameter name (as in the base's `state_dict`) to [ceil(o·i / 8)] bytes: row-major,
            lowest bit first, padding zero (`numpy.packbits(mask, bitorder="little")`).
        shapes: Parameter name to shape, usually (o, i).
        base: Name or hash of the base; masks over different bases are not comparable.
        run: Which run (seed, order) it comes from.
        signs: Packed like `bits`: 1 where the change of a selected weight is negative, 0 elsewhere.
            None where signs are unknown. Kept in memory only.
        method: How it was found.
        settings: Every value that the result depends on.
        seed: Seed of the random parts, None where there are none.
        granularity: What one bit stands for: `"weight"`, `"head"`, `"neuron"` or `"direction"`. A
            mask of heads or neurons has one entry per layer, `layers.3.heads` or `layers.3.neurons`
            (with the stack before it where there are two, `decoder.layers.3.heads`), of shape
            (units,). A mask of singular directions has one per module, `<module>.directions`;
            which language each bit belongs to is in `settings`, and only masks of one extraction
            combine.

    Raises:
        InputError: Bits, shapes and signs do not belong together, or padding is set.

    Example:
        >>> import numpy as np
        >>> mask = np.array([[True, False, False], [False, True, False]])
        >>> de = Subnetwork.from_arrays({"layer.0.weight": mask}, language="de", base="tiny")
        >>> (~de).count, de.density, (de & ~de).count
        (4, 0.3333333333333333, 0)
    """

    language: str
    bits: Mapping[str, Bits]
    shapes: Mapping[str, tuple[int, ...]]
    base: str
    run: str = MAIN_RUN
    signs: Mapping[str, Bits] | None = None
    method: str = "given"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    granularity: str = "weight"

    def __post_init__(self) -> None:
        shapes = {name: tuple(int(n) for n in self.shapes[name]) for name in sorted(self.shapes)}
        if not any(math.prod(shape) for shape in shapes.values()):
            raise InputError(f"the mask of {self.language} covers no weight")
        if self.granularity not in GRANULARITIES:
            raise InputError(
                f"the mask of {self.language} has granularity {self.granularity!r}",
                expected=" or ".join(map(repr, GRANULARITIES)),
            )
        if self.granularity != "weight":
            _check_units(shapes, self.granularity, self.language)
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "bits", _checked(self.bits, shapes, f"mask of {self.language}"))
        if self.signs is not None:
            signs = _checked(self.signs, shapes, f"signs of {self.language}")
            object.__setattr__(self, "signs", signs)

    @classmethod
    def from_arrays(
        cls, masks: Mapping[str, NDArray[Any]], *, language: str, base: str, **details: Any
    ) -> Subnetwork:
        """A subnetwork from boolean arrays.

        Args:
            masks: Parameter name to boolean array [o, i], or an integer array of 0 and 1.
            language: Label of the language.
            base: Name or hash of the base.
            **details: Further attributes of `Subnetwork`.

        Raises:
            InputError: An array holds something other than true and false.
        """
        arrays = {name: np.asarray(mask) for name, mask in masks.items()}
        for name, array in arrays.items():
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise InputError(
                    f"the mask of {language} for {name} holds {array.dtype} values",
                    expected="true and false, or 0 and 1",
                    fix="compare with a threshold first",
                )
        return cls(
            language=language,
            bits={name: _bits.pack(array) for name, array in arrays.items()},
            shapes={name: array.shape for name, array in arrays.items()},
            base=base,
            **details,
        )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Parameter name to number of weights."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Parameter name to number of selected weights."""
        return {name: _bits.count(bits) for name, bits in self.bits.items()}

    @property
    def size(self) -> int:
        """Number of weights that the mask covers."""
        return sum(self.sizes.values())

    @property
    def count(self) -> int:
        """Number of selected weights."""
        return sum(self.counts.values())

    @property
    def density(self) -> float:
        """Selected share of the weights."""
        return self.count / self.size

    def dense(self, parameter: str) -> NDArray[np.bool_]:
        """Mask of one parameter, unpacked to its shape.

        Raises:
            MissingInputError: The mask does not cover the parameter.
        """
        if parameter not in self.shapes:
            raise MissingInputError(
                f"the mask of {self.language} does not cover {parameter}",
                expected=nearest(parameter, self.shapes),
            )
        return _bits.unpack(self.bits[parameter], self.shapes[parameter])

    def restrict(self, modules: str | Iterable[str]) -> Subnetwork:
        """The part of the subnetwork that lies in some modules; the others are left out.

        Args:
            modules: One or several names of modules or parameters; `*`, `?` and `[…]` match as in a
                shell, `*` across dots too (`"*.attention.*"`).

        Raises:
            InputError: A name or pattern matches nothing.
        """
        patterns = [modules] if isinstance(modules, str) else list(modules)
        kept: set[str] = set()
        for pattern in patterns:
            matches = {
                name
                for name in self.shapes
                if name == pattern
                or fnmatchcase(name, pattern)
                or fnmatchcase(name.removesuffix(".weight"), pattern)
            }
            if not matches:
                raise InputError(
                    f"{pattern!r} matches no module of the mask of {self.language}",
                    expected=nearest(pattern, self.shapes),
                )
            kept |= matches
        if not kept:
            raise InputError("no module was named", fix='name one, for example "*.attention.*"')
        return replace(
            self,
            bits={name: self.bits[name] for name in kept},
            shapes={name: self.shapes[name] for name in kept},
            signs=None if self.signs is None else {name: self.signs[name] for name in kept},
            settings={
                **self.settings,
                "restricted_to": [*self.settings.get("restricted_to", ()), patterns],
            },
        )

    def to_frame(self) -> pd.DataFrame:
        """Density per module.

        Returns:
            One row per parameter: language, run, parameter, module, layer, type, size, count,
            density (NaN where size is 0).
        """
        import pandas as pd

        from subnet.checkpoint import describe_parameter

        rows = []
        for name, size in self.sizes.items():
            place = describe_parameter(name)
            rows.append(
                {
                    "language": self.language,
                    "run": self.run,
                    "parameter": name,
                    "module": place.module,
                    "layer": place.layer,
                    "type": place.type,
                    "size": size,
                    "count": self.counts[name],
                    "density": self.counts[name] / size if size else math.nan,
                }
            )
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> None:
        """Write the mask as safetensors; the same content gives the same bytes.

        Signs are not written.

        Raises:
            OutputError: The file cannot be written.
        """
        from subnet.subnetwork.formats import save_subnetwork

        save_subnetwork(self, path)

    def check_comparable(self, other: Subnetwork) -> None:
        """Refuse another mask that is not over the same parameters of the same base.

        Raises:
            NotComparableError: Says what differs.
        """
        pair = f"the masks of {self.language} and {other.language}"
        if self.base != other.base:
            raise NotComparableError(
                f"{pair} stand on different bases, {self.base!r} and {other.base!r}",
                expected="one base",
            )
        if self.granularity != other.granularity:
            raise NotComparableError(
                f"{pair} have mixed granularity, {self.granularity} and {other.granularity}",
                expected="one granularity",
                fix="combine masks of weights with masks of weights, of units with units",
            )
        if self.granularity == "direction" and _stacks(self.settings) != _stacks(other.settings):
            raise NotComparableError(
                f"{pair} number different directions",
                expected="masks of one run of one extraction",
                fix="extract all languages together",
            )
        if self.shapes == other.shapes:
            return
        lone = sorted(self.shapes.keys() ^ other.shapes.keys())
        if lone:
            raise NotComparableError(
                f"{pair} cover different parameters, for example {lone[0]}",
                expected="the same parameters",
                fix="restrict() both to the modules that they share",
            )
        name = next(name for name in self.shapes if self.shapes[name] != other.shapes[name])
        raise NotComparableError(
            f"{pair} differ in the shape of {name}, {self.shapes[name]} and {other.shapes[name]}",
            expected="one base",
        )

    def __and__(self, other: object) -> Subnetwork:
        return self._combine(other, "&", np.bitwise_and)

    def __or__(self, other: object) -> Subnetwork:
        return self._combine(other, "|", np.bitwise_or)

    def __sub__(self, other: object) -> Subnetwork:
        return self._combine(other, "-", lambda a, b: a & ~b)

    def __invert__(self) -> Subnetwork:
        return replace(
            self,
            language=f"~{_operand(self.language)}",
            bits={name: _bits.invert(self.bits[name], size) for name, size in self.sizes.items()},
            signs=None,
            method="set algebra",
            settings={"operator": "~", "operands": [_origin(self)]},
            seed=None,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subnetwork):
            return NotImplemented
        return (
            (self.base, self.granularity) == (other.base, other.granularity)
            and self.shapes == other.shapes
            and (
                self.granularity != "direction" or _stacks(self.settings) == _stacks(other.settings)
            )
            and all(np.array_equal(bits, other.bits[name]) for name, bits in self.bits.items())
        )

    def __hash__(self) -> int:
        return hash((self.base, self.granularity, tuple(self.counts.items())))

    def __repr__(self) -> str:
        return (
            f"Subnetwork({self.language!r}, run={self.run!r}, {self.count} of {self.size} "
            f"{self.granularity}s in {len(self.shapes)} parameters, method={self.method!r})"
        )

    def _combine(
        self, other: object, operator: str, function: Callable[[Bits, Bits], Bits]
    ) -> Subnetwork:
        if not isinstance(other, Subnetwork):
            raise TypeError(
                f"a Subnetwork and a {type(other).__name__} do not combine by {operator}"
            )
        self.check_comparable(other)
        bits = {name: function(self.bits[name], other.bits[name]) for name in self.shapes}
        # Only a difference keeps weights whose sign one operand alone decides.
        keep_signs = operator == "-" and self.signs is not None
        return replace(
            self,
            language=f"{_operand(self.language)} {operator} {_operand(other.language)}",
            run=", ".join(dict.fromkeys([*self.run.split(", "), *other.run.split(", ")])),
            bits=bits,
            signs={name: signs & bits[name] for name, signs in (self.signs or {}).items()}
            if keep_signs
            else None,
            method="set algebra",
            settings={"operator": operator, "operands": [_origin(self), _origin(other)]},
            seed=None,
        )


def unit_parameter(layer: int, granularity: str) -> str:
    """Name under which a mask of heads or neurons keeps the units of a layer.

    Example:
        >>> unit_parameter(3, "head")
        'layers.3.heads'
    """
    return f"layers.{layer}.{granularity}s"


def _check_units(shapes: Mapping[str, tuple[int, ...]], granularity: str, language: str) -> None:
    """Refuse a mask of units that is not one bit per unit, under the name of its layer."""
    for name, shape in shapes.items():
        if len(shape) != 1:
            raise InputError(
                f"the mask of {language} has shape {list(shape)} for {name}",
                expected=f"[{granularity}s], one bit per {granularity}",
            )
        if name.rpartition(".")[2] != f"{granularity}s":
            raise InputError(
                f"the mask of {language} is over {granularity}s and has bits for {name}",
                expected=f"names such as {_example_name(granularity)}",
            )


def _example_name(granularity: str) -> str:
    if granularity == "direction":
        return "encoder.layer.0.attention.self.query.directions"
    return unit_parameter(0, granularity)


def _stacks(settings: Any) -> set[str]:
    """Which stacks of directions a mask, or the masks that it was combined from, index."""
    if isinstance(settings, Mapping):
        own = {str(settings["stack"])} if "stack" in settings else set()
        return own.union(*(_stacks(value) for value in settings.values()))
    if isinstance(settings, list):
        return set[str]().union(*(_stacks(value) for value in settings))
    return set()


def _checked(
    bits: Mapping[str, Bits], shapes: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, Bits]:
    """The bits in the order of the shapes, read-only, each as long as its shape says."""
    lone = sorted(bits.keys() ^ shapes.keys())
    if lone:
        state = "no shape" if lone[0] in bits else "no bits"
        raise InputError(f"the {what} has {state} for {lone[0]}")
    checked = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        packed = bits[name].view()
        if packed.dtype != np.uint8 or packed.shape != (_bits.n_bytes(size),):
            raise InputError(
                f"the {what} has {packed.dtype} {list(packed.shape)} for {name}",
                expected=f"uint8 [{_bits.n_bytes(size)}], the packed bits of shape {list(shape)}",
            )
        if not _bits.padding_is_zero(packed, size):
            raise InputError(
                f"the {what} has padding bits set for {name}",
                expected=f"zeros behind bit {size} of {8 * packed.size}",
            )
        packed.flags.writeable = False
        checked[name] = packed
    return checked


def _origin(subnetwork: Subnetwork) -> dict[str, Any]:
    """Where an operand of set algebra came from."""
    return {
        "language": subnetwork.language,
        "run": subnetwork.run,
        "method": subnetwork.method,
        "settings": dict(subnetwork.settings),
        "seed": subnetwork.seed,
    }


def _operand(expression: str) -> str:
    return f"({expression})" if " " in expression else expression


def nearest(name: str, known: Iterable[str]) -> str:
    """Names that may have been meant, for an error message."""
    names = list(known)
    if not names:
        return "nothing: there are none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{close[0]}, or another of {len(names)}" if close else f"one of {shown}"
