"""Masks of heads and neurons on a live model: which bit is which unit, and which gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork.mask import Subnetwork

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike

    from subnet.model import Attention, FeedForward, Units


def unit_parameters(units: Units, granularity: str) -> dict[str, Attention | FeedForward]:
    """Name of each entry of a unit mask, to the block whose units it holds, in the units' order.

    `layers.3.heads`, `decoder.layers.3.neurons`, and for attention to the encoder
    `decoder.layers.3.cross.heads`.

    Args:
        units: Of a model.
        granularity: `"head"` or `"neuron"`.

    Raises:
        InputError: The granularity is another, or two blocks stand in one layer.
    """
    if granularity not in ("head", "neuron"):
        raise InputError(f"granularity is {granularity!r}", expected="'head' or 'neuron'")
    blocks: tuple[Any, ...] = units.attentions if granularity == "head" else units.feed_forwards
    found: dict[str, Attention | FeedForward] = {}
    for block in blocks:
        stack, _, number = block.layer.rpartition(".")
        parts = [*([stack] if stack else []), "layers", number]
        if getattr(block, "kind", "self") == "cross":
            parts.append("cross")
        name = ".".join([*parts, f"{granularity}s"])
        if name in found:
            raise InputError(
                f"{units.architecture} has several blocks of {granularity}s in layer {block.layer}",
                expected="one per layer",
            )
        found[name] = block
    return found


def subnetwork_of_units(
    selected: ArrayLike, units: Units, granularity: str, **details: Any
) -> Subnetwork:
    """The subnetwork of selected heads or neurons.

    Args:
        selected: [n_heads] or [n_neurons] booleans, in the order of the units.
        units: Of the model.
        granularity: `"head"` or `"neuron"`.
        **details: Further attributes of `Subnetwork`, `language` and `base` among them.

    Raises:
        InputError: It is not one boolean per unit.
    """
    blocks = unit_parameters(units, granularity)
    sizes = [_n_units(block) for block in blocks.values()]
    array = np.asarray(selected)
    if array.dtype != np.bool_ or array.shape != (sum(sizes),):
        raise InputError(
            f"the mask of {granularity}s is {array.dtype} {list(array.shape)}",
            expected=f"[{sum(sizes)}] booleans, one per {granularity} of {units.architecture}",
        )
    parts = np.split(array, np.cumsum(sizes)[:-1])
    return Subnetwork.from_arrays(
        dict(zip(blocks, parts, strict=True)), granularity=granularity, **details
    )


def selected_units(subnetwork: Subnetwork, units: Units) -> torch.Tensor:
    """A mask of heads or neurons as booleans in the order of the units: [n_heads] or [n_neurons].

    `.float()` makes gates of it that keep the subnetwork alone, `1 - ….float()` such that remove
    it.

    Raises:
        NotComparableError: The mask is of weights, or of another model.
    """
    import torch

    if subnetwork.granularity == "weight":
        raise NotComparableError(
            f"the mask of {subnetwork.language} is per weight",
            expected="a mask of heads or neurons",
            fix="convert it with weights_to_units",
        )
    blocks = unit_parameters(units, subnetwork.granularity)
    shapes = {name: (_n_units(block),) for name, block in blocks.items()}
    if shapes != dict(subnetwork.shapes):
        lone = sorted(shapes.keys() ^ subnetwork.shapes.keys())
        differing = [name for name in shapes if subnetwork.shapes.get(name) != shapes[name]]
        name = (lone or differing)[0]
        raise NotComparableError(
            f"the mask of {subnetwork.language} and {units.architecture} differ in {name}: "
            f"{_size(subnetwork.shapes.get(name))} and {_size(shapes.get(name))}",
            expected="the model that the mask was found in",
        )
    return torch.from_numpy(np.concatenate([subnetwork.dense(name) for name in blocks]))


def _n_units(block: Any) -> int:
    return int(block.n_heads if hasattr(block, "n_heads") else block.n_neurons)


def _size(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"{shape[0]} units"
