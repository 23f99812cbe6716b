"""`--set NAME=VALUE`: settings of a method that have no option of their own."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints


def with_further(
    method: str | None, given: Mapping[str, Any], further: Iterable[str]
) -> dict[str, Any]:
    """Settings of an extraction, from options and `--set`, checked before any file is opened."""
    from subnet.errors import InputError
    from subnet.subnetwork.settings import METHODS, resolve_settings

    if method is None:
        if further:
            raise InputError("--set is given without --method", expected="both")
        return dict(given)
    found = read_settings(METHODS.get(method), given, further)
    resolve_settings(method, found)
    return found


def with_settings(method: str, further: Iterable[str], *, seed: int) -> dict[str, Any]:
    """Settings of a method of attribution, from `--set`, checked before any file is opened."""
    from subnet.influence import find_method
    from subnet.influence.methods import resolve_settings

    chosen = find_method(method)
    found = read_settings(chosen.settings, {}, further)
    resolve_settings(chosen, found, seed=seed)
    return found


def read_settings(
    kind: type[Any] | None, given: Mapping[str, Any], further: Iterable[str]
) -> dict[str, Any]:
    """What is given, and each NAME=VALUE in the type that the settings' class has for it."""
    from subnet.errors import InputError

    kinds = {} if kind is None else get_type_hints(kind)
    found = dict(given)
    for pair in further:
        name, equals, text = (part.strip() for part in pair.partition("="))
        name = name.replace("-", "_")
        if not equals or not name:
            raise InputError(f"--set is {pair!r}", expected="NAME=VALUE")
        if name in found:
            raise InputError(f"{name} is given twice", expected="one value")
        found[name] = _value(name, text, kinds.get(name, str))
    return found


def _value(name: str, text: str, kind: Any) -> Any:
    """A setting's value from what stands on the command line."""
    from subnet.errors import InputError

    if isinstance(kind, types.UnionType):
        if text.lower() == "none" and type(None) in get_args(kind):
            return None
        kind = next(one for one in get_args(kind) if one is not type(None))
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise InputError(f"{name} is {text!r}", expected="true or false")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise InputError(f"{name} is {text!r}", expected=expected) from None
    return text
