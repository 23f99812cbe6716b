"""Per-example gradients by parameter: what the methods that precondition them have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from subnet.errors import InputError

#: Parameter name to the gradients of n examples, [n, *shape of the parameter].
Blocks = Mapping[str, Tensor]
#: Linear module to its inputs [n, t, i] and the derivatives of the loss by its outputs [n, t, o].
Factors = Mapping[str, tuple[Tensor, Tensor]]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Again(Generic[_T]):
    """Batches that can be gone through more than once: each time, what a function makes anew."""

    make: Callable[[], Iterator[_T]]

    def __iter__(self) -> Iterator[_T]:
        return self.make()


def twice(batches: Iterable[_T]) -> Iterable[_T]:
    """The same, if it can be gone through more than once.

    Raises:
        InputError: It is an iterator, which is empty after the first time.
    """
    if isinstance(batches, Iterator):
        raise InputError(
            "the batches are an iterator, which can be read once",
            expected="a list, a data loader or a store: this method goes through them again",
        )
    return batches


def as_float(block: Tensor) -> Tensor:
    """The same in float32 at least: products of half precision lose what differs."""
    return block.to(torch.promote_types(block.dtype, torch.float32))


def check_same(one: Mapping[str, Any], other: Mapping[str, Any], first: str, second: str) -> None:
    """Raise unless both have the same parameters.

    Raises:
        InputError: Names a parameter that only one of them has.
    """
    if one.keys() == other.keys():
        return
    name = sorted(one.keys() ^ other.keys())[0]
    holder, lacking = (first, second) if name in one else (second, first)
    raise InputError(
        f"{holder} have a gradient of {name}, and {lacking} have none",
        expected="gradients of the same parameters",
    )


def check_number(name: str, value: object, *, above: bool = False) -> None:
    """Raise unless a setting is a finite number of at least 0, or above it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < float("inf") or (above and value == 0):  # type: ignore[operator]
        found = value if is_number else repr(value)
        raise InputError(
            f"{name} is {found}", expected="a positive number" if above else "a number, 0 or more"
        )


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise unless a setting is one of its known values."""
    if value not in known:
        raise InputError(f"{name} is {value!r}", expected=" or ".join(map(repr, known)))


def check_whole(name: str, value: object, least: int) -> None:
    """Raise unless a setting is a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}", expected=f"a whole number, {least} or more")
