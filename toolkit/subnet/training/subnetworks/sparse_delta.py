"""What sparse fine-tuning learnt: a few changed weights, kept apart from the model and composed."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from subnet import _files
from subnet.errors import FileFormatError, InputError, NotComparableError
from subnet.model import base_parameters, covered_parameters
from subnet.subnetwork import Subnetwork, load_subnetwork

_MASK = "mask.safetensors"
_DELTA = "delta.safetensors"
#: Models that carry deltas at present.
_CARRYING: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """δ = θ − θ₀ where a mask selects, and of parameters that were trained whole.

    Kept in float64, in which the difference of two float32 weights is exact, so that θ₀ + δ is θ to
    the bit.

    Attributes:
        subnetwork: Where the changed weights are.
        values: Parameter name to float64 [count], row-major, of the selected weights.
        whole: Parameter name to float64 of its shape, of those trained whole beside the mask.
    """

    subnetwork: Subnetwork
    values: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            expected = self.subnetwork.counts.get(name)
            if values.shape != (expected,):
                raise InputError(
                    f"the delta of {self.subnetwork.language} has {list(values.shape)} values for "
                    f"{name}",
                    expected=f"[{expected}], one for each selected weight",
                )

    def dense(self, name: str) -> Tensor:
        """δ of one parameter, zeros included: float64 of its shape."""
        if name in self.whole:
            return self.whole[name]
        mask = torch.from_numpy(self.subnetwork.dense(name))
        found = torch.zeros(mask.shape, dtype=torch.float64)
        found[mask] = self.values[name]
        return found

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that change."""
        changed = {name for name, count in self.subnetwork.counts.items() if count}
        return tuple(sorted(changed | self.whole.keys()))

    def save(self, folder: str | Path) -> None:
        """Write `mask.safetensors`, as `Subnetwork.save` does, and `delta.safetensors` beside it.

        The latter holds `values.<parameter>` and `whole.<parameter>`.

        Raises:
            OutputError: They cannot be written.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"values.{name}": value for name, value in self.values.items()}
        tensors |= {f"whole.{name}": value for name, value in self.whole.items()}
        with _files.new_file(folder / _DELTA) as building:
            building.write_bytes(save({name: t.contiguous() for name, t in tensors.items()}))
        self.subnetwork.save(folder / _MASK)


def load_delta(folder: str | Path) -> SparseDelta:
    """Read what `SparseDelta.save` wrote.

    Raises:
        MissingInputError: A file is not there.
        FileFormatError: A file is damaged, or the two do not belong together.
    """
    from safetensors.torch import load_file

    path = Path(folder) / _DELTA
    subnetwork = load_subnetwork(Path(folder) / _MASK)
    _files.read_safetensors_header(path)
    tensors = load_file(path)
    parts = {
        kind: {
            name.removeprefix(f"{kind}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{kind}.")
        }
        for kind in ("values", "whole")
    }
    lone = sorted(parts["values"].keys() ^ subnetwork.shapes.keys())
    if lone:
        raise FileFormatError(
            f"and {_MASK} beside it do not both have {lone[0]}",
            path=path,
            expected="the delta and the mask of one fine-tuning",
        )
    try:
        return SparseDelta(subnetwork, parts["values"], parts["whole"])
    except InputError as error:
        raise FileFormatError(error.found, path=path, expected=error.expected) from error


@contextlib.contextmanager
def composed(model: nn.Module, *deltas: SparseDelta, base: str | None = None) -> Iterator[None]:
    """Put θ₀ + δ₁ + δ₂ + … into a model meanwhile; afterwards it is bitwise what it was.

    As in LT-SFT, where a language's delta and a task's are added (Ansell et al. 2022, arXiv
    2110.07560). The sum is taken in float64 and rounded once; a single delta on its own base gives
    the fine-tuned weights to the bit. Earlier values are kept, not computed back: subtraction would
    not give them.

    Args:
        model: Holding θ₀, the base that all deltas are of.
        deltas: One or more.
        base: Identity of the model's base, where it is to be checked.

    Raises:
        NotComparableError: A delta is of another base or model.
        InputError: The model carries deltas already, none is given, or two of them trained one
            parameter whole.

    Example:
        >>> with composed(model, german, tagging):  # doctest: +SKIP
        ...     outcome = task.evaluate(model, rows, batch_size=32)
    """
    if not deltas:
        raise InputError("no delta was given", expected="one or more")
    if model in _CARRYING:
        raise InputError(
            "the model carries deltas already, and would get them twice",
            fix="name all deltas in one call of composed()",
        )
    parameters = base_parameters(model)
    _check(model, parameters, deltas, base)
    names = sorted(set[str]().union(*(delta.parameters for delta in deltas)))
    before = {name: parameters[name].detach().clone() for name in names}
    _CARRYING.add(model)
    try:
        with torch.no_grad():
            for name in names:
                parameter = parameters[name]
                total = parameter.detach().cpu().double()
                for delta in deltas:
                    if name in delta.parameters:
                        total += delta.dense(name)
                parameter.copy_(total)
        yield
    finally:
        _CARRYING.discard(model)
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


def _check(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    deltas: tuple[SparseDelta, ...],
    base: str | None,
) -> None:
    first = deltas[0].subnetwork
    whole: dict[str, str] = {}
    for delta in deltas:
        mask = delta.subnetwork
        other = first.base if base is None else base
        if mask.base != other:
            holder = first.language if base is None else "the model"
            raise NotComparableError(
                f"the delta of {mask.language} is of the base {mask.base!r} and that of {holder} "
                f"of {other!r}",
                expected="one base",
            )
        for name in delta.whole:
            if name in whole:
                raise InputError(
                    f"{whole[name]} and {mask.language} both trained {name} whole, and no sum of "
                    "the two was ever trained",
                    fix="compose only one of them",
                )
            whole[name] = mask.language
        shapes = {name: tuple(value.shape) for name, value in delta.whole.items()}
        covered_parameters(
            model,
            {**mask.shapes, **shapes},
            f"the delta of {mask.language}",
            among=parameters,
            expected="the model that it was trained from",
        )
