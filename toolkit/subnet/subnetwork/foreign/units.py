"""Masks of attention heads and of feed-forward neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.errors import FileFormatError, InputError, MissingInputError
from subnet.language import looks_like_language
from subnet.subnetwork.foreign.base import STACKS
from subnet.subnetwork.foreign.source import LEFT_OUT, Source, Wish
from subnet.subnetwork.mask import Subnetwork, unit_parameter

_LAYER = "layers.{}.heads"
_HEADS = "heads: 0 and 1 (or true and false) in [layers, heads]"


def read_heads(source: Source, wish: Wish) -> list[Subnetwork]:
    """Arrays of layers × heads, 1 where a head is kept (Michel et al. 2019, 1905.10650).

    One array is the mask of one language, named by the file. A dictionary (`.npz`, a dictionary of
    tensors, a JSON object) has a mask per language under its label. An array [languages, layers,
    heads] needs the labels. Of an encoder-decoder model the three masks of one language stand
    together, under the names that `transformers` gave them: `head_mask` (the encoder's),
    `decoder_head_mask` and `cross_attn_head_mask`.
    """
    content = source.content
    if isinstance(content, Mapping) and content.keys() & (STACKS.keys() - {"head_mask"}):
        return [_two_stacks(content, source.language(wish), source)]
    if not isinstance(content, Mapping):
        array = _array(content, source)
        if array.ndim == 3:
            labels = source.name_languages(len(array), wish)
            named = list(zip(labels, array, strict=True))
        else:
            named = [(source.language(wish), array)]
    elif len(content) == 1 and not looks_like_language(next(iter(content))):
        # np.savez calls an array without a name arr_0.
        named = [(source.language(wish), _array(next(iter(content.values())), source))]
    else:
        labels = tuple(map(str, content))
        for label in labels:
            if not looks_like_language(label):
                raise FileFormatError(
                    f"has an array under {label!r}, which is no language",
                    path=source.path,
                    expected="one mask of layers × heads per language",
                )
        if wish.languages is not None and wish.languages != labels:
            raise InputError(
                f"holds the languages {', '.join(labels)}",
                path=source.path,
                expected="no --languages, since the file says them itself",
            )
        named = [(str(k), _array(v, source)) for k, v in content.items()]
    return [
        _subnetwork(_by_layer(array, source, _LAYER), "head", label, source)
        for label, array in named
        if label != LEFT_OUT
    ]


def read_lape(source: Source, wish: Wish) -> list[Subnetwork]:
    """Neurons found by LAPE, as its authors save them (Tang et al. 2024, 2402.16438).

    A list per language of a list per layer of the indices of neurons. It says neither which
    languages they are nor how many neurons a layer has: the labels must be stated, and the width
    comes from the base's `config.json` or from `units`.
    """
    content = source.content
    if not is_lape(content):
        raise FileFormatError(
            "holds no lists of neurons",
            path=source.path,
            expected="per language a list with a one-dimensional tensor per layer, as LAPE saves",
        )
    labels = source.name_languages(len(content), wish)
    width = wish.units or wish.base.n_neurons()
    if width is None:
        raise MissingInputError(
            "does not say how many neurons a layer has",
            path=source.path,
            fix="name the base's folder (with its config.json) with --base, or say it with --units",
        )
    n_layers = {len(layers) for layers in content}
    if len(n_layers) > 1:
        raise FileFormatError(
            f"has {' and '.join(map(str, sorted(n_layers)))} layers",
            path=source.path,
            expected="one number of layers for all languages",
        )
    found = []
    for label, layers in zip(labels, content, strict=True):
        masks = {
            unit_parameter(i, "neuron"): _chosen(indices, width, f"layer {i} of {label}", source)
            for i, indices in enumerate(layers)
        }
        if label != LEFT_OUT:
            found.append(_subnetwork(masks, "neuron", label, source))
    return found


def is_lape(content: Any) -> bool:
    """Whether it is a list of lists of one-dimensional integer tensors."""
    import torch

    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(layers, list) and layers for layers in content)
        and all(
            isinstance(indices, torch.Tensor) and indices.ndim == 1
            for layers in content
            for indices in layers
        )
    )


def _chosen(indices: Any, width: int, where: str, source: Source) -> NDArray[np.bool_]:
    array = np.asarray(indices)
    if array.size and array.dtype.kind not in "iu":
        raise FileFormatError(
            f"{where} holds {array.dtype} values", path=source.path, expected="indices of neurons"
        )
    if array.size and not 0 <= array.min() <= array.max() < width:
        wrong = int(array.max() if array.max() >= width else array.min())
        raise InputError(
            f"{where} holds the neuron {wrong}",
            path=source.path,
            expected=f"0 to {width - 1}, the neurons of a layer",
            fix="was it made for another base?",
        )
    mask = np.zeros(width, dtype=np.bool_)
    mask[array.astype(np.int64)] = True
    return mask


def _array(value: Any, source: Source) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise FileFormatError(
            "holds rows of different lengths", path=source.path, expected=_HEADS
        ) from error
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or not array.size:
        raise FileFormatError(
            f"holds {array.dtype} {list(array.shape)}", path=source.path, expected=_HEADS
        )
    if not np.isin(array, (0, 1)).all():
        wrong = array[~np.isin(array, (0, 1))].flat[0]
        raise FileFormatError(
            f"holds the value {wrong:g}",
            path=source.path,
            expected=_HEADS,
            fix="importances are no mask: compare them with a threshold first",
        )
    return array.astype(np.bool_)


def _two_stacks(content: Mapping[Any, Any], label: str, source: Source) -> Subnetwork:
    """The masks of encoder, decoder and attention between them, as one mask."""
    missing = [name for name in STACKS if name not in content]
    foreign = [name for name in content if name not in STACKS]
    if missing or foreign:
        raise FileFormatError(
            f"has no {missing[0]}" if missing else f"has an array under {foreign[0]!r}",
            path=source.path,
            expected=f"{', '.join(STACKS)}, with 1 for every head where all are kept",
        )
    masks: dict[str, NDArray[np.bool_]] = {}
    for key, name in STACKS.items():
        masks |= _by_layer(_array(content[key], source), source, name)
    return _subnetwork(masks, "head", label, source)


def _by_layer(array: NDArray[Any], source: Source, name: str) -> dict[str, NDArray[np.bool_]]:
    """Rows of [layers, heads] under the names of their layers."""
    if array.ndim != 2:
        raise FileFormatError(
            f"holds an array of shape {list(array.shape)}", path=source.path, expected=_HEADS
        )
    return {name.format(layer): mask for layer, mask in enumerate(array)}


def _subnetwork(
    masks: Mapping[str, NDArray[np.bool_]], granularity: str, label: str, source: Source
) -> Subnetwork:
    return Subnetwork.from_arrays(
        masks,
        language=label,
        base="",
        granularity=granularity,
        method="lape" if source.format == "lape" else "given",
        settings=source.settings(),
    )
