"""Which subnetworks an analysis is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from subnet.checkpoint import Checkpoint, open_checkpoint
from subnet.errors import InputError
from subnet.subnetwork import METHODS, Subnetworks, extract, extract_halves, load_subnetworks
from subnet.subnetwork.settings import DataSettings, resolve_settings


@dataclass(frozen=True)
class Search:
    """How the subnetworks of an analysis are found.

    Attributes:
        method: As of `subnet.extract`; None for the masks that are there, else by magnitude.
        density: Share to select; None for the method's own default.
        scope: Within what values are ranked; None for the method's own default.
        further: Further settings of the method.
        masks: A directory of masks to take instead.
    """

    method: str | None = None
    density: float | None = None
    scope: str | None = None
    further: Mapping[str, Any] = field(default_factory=dict)
    masks: str | Path | None = None

    def __post_init__(self) -> None:
        if self.method is not None:
            resolve_settings(self.method, self.settings)  # before any long work
        if self.masks is not None and self.method is not None:
            raise InputError(
                f"the method {self.method!r} is given beside the masks of {self.masks}",
                expected="one of them",
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the method that are given."""
        given = {"density": self.density, "scope": self.scope, **self.further}
        return {name: value for name, value in given.items() if value is not None}

    @cached_property
    def opened_masks(self) -> Checkpoint | None:
        """The directory of masks, opened."""
        return None if self.masks is None else open_checkpoint(self.masks)

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {
            "method": self.method or "the masks that are there, else magnitude",
            "masks": None if self.masks is None else Path(self.masks).name,
            **asdict(resolve_settings(self.method or "magnitude", self.settings)),
        }


def find_halves(
    checkpoint: Checkpoint, search: Search, found: Subnetworks | None
) -> tuple[Subnetworks, Subnetworks] | None:
    """The subnetworks on halves of the examples: the ceiling where no language was trained twice.

    None where the method looks at no examples, or there is a better ceiling.
    """
    if search.method is None or found is None:
        return None
    places = [(member.language, member.run) for member in found]
    twice = len({language for language, _ in places}) < len(places)
    if twice or not issubclass(METHODS[search.method], DataSettings):
        return None
    return extract_halves(checkpoint, method=search.method, **search.settings)


def find_subnetworks(checkpoint: Checkpoint, search: Search) -> Subnetworks | None:
    """The masks that were asked for or are there, else those of what training changed."""
    if search.opened_masks is not None:
        return load_subnetworks(search.opened_masks)
    if search.method is not None:
        return extract(checkpoint, method=search.method, **search.settings)
    if checkpoint.holds("mask"):
        return load_subnetworks(checkpoint)
    if checkpoint.updates or checkpoint.steps:
        return extract(checkpoint, **search.settings)
    return None
