"""Masks of weights: of pruning, of sparse fine-tuning, and of checkpoints with zeros in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet._files import TensorInfo
from subnet._tables import MAIN_RUN
from subnet.checkpoint import describe_parameter
from subnet.checkpoint.full import FullChange
from subnet.checkpoint.tensors import TensorStore, open_file_store, open_model_store
from subnet.errors import FileFormatError, InputError, MissingInputError, NotComparableError
from subnet.subnetwork import _bits
from subnet.subnetwork.foreign.source import Source, SparseDifference, Wish
from subnet.subnetwork.mask import Subnetwork

if TYPE_CHECKING:
    import torch

#: Key of the JSON string in our `.npz`.
NPZ_KEY = "subnetwork"
#: File in which composable-sft saves.
SFT_FILE = "pytorch_diff.bin"


def read_npz(source: Source, wish: Wish) -> list[Subnetwork]:
    """Boolean arrays by parameter: as `convert` writes them, or without our metadata."""
    if source.path.suffix != ".npz":
        raise FileFormatError(
            f"is a {source.path.suffix} file", path=source.path, expected="a file ending in .npz"
        )
    arrays = dict(source.mapping)
    stated = arrays.pop(NPZ_KEY, None)
    details: dict[str, Any] = {"base": "", "settings": source.settings()}
    if stated is not None:
        try:
            content = json.loads(str(stated))
            keys = ("language", "run", "base", "method", "settings", "seed", "granularity")
            details = {key: content[key] for key in keys}
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(
                "has metadata that cannot be used", path=source.path, fix="convert it again"
            ) from error
    if stated is None or wish.languages is not None:
        details["language"] = source.language(wish)
    arrays = {name: _zero_one(array, name, source) for name, array in arrays.items()}
    return [_from_arrays(arrays, source, **details)]


def read_pruned(source: Source, wish: Wish) -> list[Subnetwork]:
    """A state dict of `torch.nn.utils.prune`: `weight_mask` beside `weight_orig`, 1 = kept."""
    if source.path.suffix == ".safetensors":
        store = open_file_store(source.path)
        names: Iterable[str] = store.infos
        read: Callable[[str], torch.Tensor] = store.read
    else:
        state = state_dict(source.mapping)
        names, read = state, lambda name: state[name].float()
    known = set(names)
    masks: dict[str, NDArray[np.bool_]] = {}
    for name in sorted(known):
        stem = name.removesuffix("_mask")
        if stem != name and f"{stem}_orig" not in known:
            raise _no_partner(source, name, f"{stem}_orig")
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" not in known:
            raise _no_partner(source, name, f"{name.removesuffix('_orig')}_mask")
        if stem == name:
            continue
        mask, original = np.asarray(read(name)), read(f"{stem}_orig")
        if mask.shape != tuple(original.shape):
            raise FileFormatError(
                f"has a mask of shape {list(mask.shape)} for {stem}",
                path=source.path,
                expected=f"{list(original.shape)}, as {stem}_orig has",
            )
        masks[stem] = _zero_one(mask, stem, source)
    if not masks:
        raise FileFormatError(
            "holds no …_mask beside its …_orig",
            path=source.path,
            expected="both, as torch.nn.utils.prune writes them",
        )
    language = source.language(wish)
    details = {"language": language, "base": "", "run": MAIN_RUN, "method": "pruning"}
    return [_from_arrays(masks, source, **details, settings=source.settings())]


def read_sft(source: Source, wish: Wish) -> list[Subnetwork]:
    """`pytorch_diff.bin` of composable sparse fine-tuning (Ansell et al. 2022, 2110.07560).

    Of the released generation (`diffs`: steps between flattened indices, first dimension fastest;
    `abs`: parameters saved whole), and of those before it (`body` and `head`, or the parameters
    alone, each with lists of coordinates). The mask holds the weights whose difference is not zero;
    what was saved whole stands apart.
    """
    path = source.path / SFT_FILE if source.path.is_dir() else source.path
    content = Source(path, source.format).mapping
    diffs = content.get("diffs", content.get("body", content)) or {}
    apart = content.get("abs") or content.get("head") or {}
    bits, signs, shapes = {}, {}, {}
    for name, encoded in diffs.items():
        shape, places, values = _decoded(encoded, name, source)
        chosen = places[values != 0]
        flat = np.zeros(math.prod(shape), dtype=np.bool_)
        flat[chosen] = True
        bits[name], shapes[name] = _bits.pack(flat), shape
        flat[:] = False
        flat[places[values < 0]] = True
        signs[name] = _bits.pack(flat)
    if not bits:
        raise FileFormatError(
            "holds no sparse differences", path=path, expected="'diffs' of at least one parameter"
        )
    more = {"saved_whole": sorted(map(str, apart))} if apart else {}
    return [
        Subnetwork(
            language=source.language(wish),
            bits=bits,
            shapes=shapes,
            base="",
            signs=signs,
            method="sparse fine-tuning",
            settings=source.settings(**more),
        )
    ]


def read_sparse(source: Source, wish: Wish) -> list[Subnetwork]:
    """A checkpoint with zeros where weights were removed: the mask is what is not zero.

    Over the weight matrices of layers that the base has too, in blocks of rows. Which of them are
    zero means something only against a base that is stated.
    """
    base = wish.base.store
    if base is None:
        raise MissingInputError(
            "is a model's weights; zeros in it are a mask only against a stated base",
            path=source.path,
            fix="name the base's folder with --base",
        )
    blocks: Callable[[str], Iterable[torch.Tensor]]
    if source.path.is_dir() or source.path.suffix == ".safetensors":
        is_folder = source.path.is_dir()
        store = open_model_store(source.path) if is_folder else open_file_store(source.path)
        blocks = store.blocks
    else:
        state = state_dict(source.mapping)
        infos = {name: TensorInfo("F32", tuple(value.shape)) for name, value in state.items()}
        store = TensorStore(source.path.parent, {}, infos, {})

        def blocks(name: str) -> Iterable[torch.Tensor]:
            return (state[name].float(),)

    change = FullChange(store, base)
    for name, kind in change.apart.items():
        # A head may differ from the base's; a layer may not.
        if kind.startswith("shape") and describe_parameter(name).layer:
            raise NotComparableError(
                f"{name} has {kind}", path=source.path, fix="was it made for another base?"
            )
    bits = {
        name: np.concatenate([_bits.pack(np.asarray(b != 0)) for b in blocks(name)])
        for name in change.shapes
    }
    left_out = {"parameters_left_out": sorted(change.apart)} if change.apart else {}
    found = Subnetwork(
        language=source.language(wish),
        bits=bits,
        shapes=change.shapes,
        base="",
        method="non-zero weights",
        settings=source.settings(**left_out),
    )
    return [found]


def state_dict(content: Any) -> Mapping[str, torch.Tensor]:
    """Tensors by name, also of files that keep them under `state_dict` or `model`."""
    import torch

    for key in ("state_dict", "model_state_dict", "model"):
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            content = inner
    return {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}


def _decoded(
    encoded: Any, name: str, source: Source
) -> tuple[tuple[int, ...], NDArray[np.int64], NDArray[Any]]:
    """(shape, row-major positions, values) of one difference, in any generation's encoding."""
    import torch

    try:
        if isinstance(encoded, SparseDifference):
            encoded = vars(encoded)
        if isinstance(encoded, torch.Tensor):
            sparse = encoded.coalesce() if encoded.is_sparse else encoded.to_sparse().coalesce()
            shape = tuple(sparse.shape)
            coordinates = tuple(np.asarray(sparse.indices()))
            values = np.asarray(sparse.values())
        elif "index_steps" in encoded:
            shape = tuple(int(n) for n in encoded["size"])
            values = np.asarray(encoded["values"])
            flat = np.cumsum(np.asarray(encoded["index_steps"], dtype=np.int64))
            coordinates = np.unravel_index(flat, shape, order="F")
        else:
            shape = tuple(int(n) for n in encoded["size"])
            values = np.asarray(encoded["values"])
            coordinates = tuple(np.asarray(encoded["indices"], dtype=np.int64))
        places = np.ravel_multi_index(coordinates, shape).astype(np.int64)
        values = values.reshape(places.shape)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise FileFormatError(
            f"has a difference for {name} that cannot be used ({error})",
            path=source.path,
            expected="size, and index_steps or indices with as many values, inside the size",
        ) from error
    if not np.isfinite(values).all():
        raise InputError(
            f"the difference for {name} holds NaN or infinity",
            path=source.path,
            fix="training diverged here: take an earlier checkpoint",
        )
    return shape, places, values


def _from_arrays(
    masks: Mapping[str, NDArray[np.bool_]], source: Source, **details: Any
) -> Subnetwork:
    """A subnetwork of boolean arrays; what is wrong with them is said of the file."""
    try:
        return Subnetwork.from_arrays(masks, **details)
    except InputError as error:
        raise FileFormatError(
            error.found, path=source.path, expected=error.expected, fix=error.fix
        ) from error


def _zero_one(mask: NDArray[Any], name: str, source: Source) -> NDArray[np.bool_]:
    good = mask.dtype == np.bool_ or (mask.dtype.kind in "biuf" and np.isin(mask, (0, 1)).all())
    if not good:
        is_number = mask.dtype.kind in "biuf"
        what = f"{mask[~np.isin(mask, (0, 1))].flat[0]:g}" if is_number else f"{mask.dtype} values"
        raise FileFormatError(
            f"the mask of {name} holds {what}, other values than 0 and 1",
            path=source.path,
            expected="1 where a weight is kept, 0 where it is not",
            fix="importances are no mask: compare them with a threshold first",
        )
    return mask.astype(np.bool_)


def _no_partner(source: Source, name: str, partner: str) -> FileFormatError:
    return FileFormatError(
        f"has {name} without {partner}",
        path=source.path,
        expected="both, as torch.nn.utils.prune writes them",
    )
