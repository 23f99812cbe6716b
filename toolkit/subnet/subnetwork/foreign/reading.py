"""Recognising what a mask or an adapter was written by, and reading it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from subnet import _files
from subnet.checkpoint.base import NOT_STATED
from subnet.checkpoint.tensors import ADAPTER_CONFIG, has_model, refuse_pickles
from subnet.errors import FileFormatError, InputError, MissingInputError, NotComparableError
from subnet.language import looks_like_language
from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.foreign import adapters, units, weights
from subnet.subnetwork.foreign.base import state_base
from subnet.subnetwork.foreign.source import TORCH_SUFFIXES, Source, Wish
from subnet.subnetwork.formats import load_subnetwork
from subnet.subnetwork.mask import Subnetwork

_Reader = Callable[[Source, Wish], list[Subnetwork]]


def _read_own(source: Source, wish: Wish) -> list[Subnetwork]:
    found = load_subnetwork(source.path)
    if wish.languages is not None:
        return [replace(found, language=source.language(wish))]
    return [found]


_READERS: Mapping[str, _Reader] = {
    "subnet": _read_own,
    "npz": weights.read_npz,
    "peft": adapters.read_peft,
    "kohya": adapters.read_kohya,
    "prune": weights.read_pruned,
    "composable-sft": weights.read_sft,
    "lape": units.read_lape,
    "heads": units.read_heads,
    "sparse": weights.read_sparse,
}
#: What `read_masks` understands.
FORMATS = tuple(_READERS)
_SUFFIXES = (".safetensors", ".npz", ".npy", ".json", *TORCH_SUFFIXES)
#: Files that lie beside masks and adapters and are none.
_BESIDE = frozenset({_files.RUN_FILE, "config.json", "languages.json", "training_args.bin"})


@_files.saying_unreadable()
def read_masks(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the word for it
    languages: Sequence[str] | None = None,
    base: str | Path | None = None,
    units: int | None = None,
    density: float = 0.05,
) -> Subnetworks:
    """Read masks that another tool wrote, and make masks of adapters.

    | format | what is read | the mask |
    |---|---|---|
    | `subnet` | our safetensors | as it is |
    | `npz` | boolean arrays by parameter | as it is |
    | `prune` | state dict of `torch.nn.utils.prune` | `*_mask` |
    | `composable-sft` | `pytorch_diff.bin`, all generations | differences that are not zero |
    | `sparse` | a model with zeros in it | weights that are not zero |
    | `heads` | layers × heads in `.npy`, `.npz`, `.pt`, `.json` | 1 = kept |
    | `lape` | lists of neurons per language and layer | the neurons listed |
    | `peft`, `kohya` | LoRA | the largest changes, as `extract` selects them |

    Nothing that a file brings along is run: pickles are read by a weights-only loader, arrays
    without pickle.

    Args:
        path: A file, the folder of an adapter or a model, or a folder of such files and folders,
            one per language and named after it.
        format: One of `FORMATS`; None to recognise it.
        languages: Labels in the file's order, where it does not say them (`-` leaves one out); of
            a file with one language, that one.
        base: Folder of the base, against whose names and shapes masks are checked, or its name.
        units: Neurons per layer, for `lape` where the base does not say it.
        density: Share of the weights to select, for `peft` and `kohya`.

    Returns:
        One subnetwork per language, over weights, heads or neurons.

    Raises:
        MissingInputError: A language, a base or a file is wanted and not stated.
        FileFormatError: The content is damaged or not what it seems.
        UnsafeFileError: Reading it would run code that came with it.
        NotComparableError: It covers what the base does not have, or granularities are mixed.
        InputError: A mask selects nothing, or a setting is out of range.

    Warns:
        UserWarning: A mask selects everything.

    Example:
        >>> masks = read_masks("head_mask.npy", languages=["de"], base="base/")  # doctest: +SKIP
        >>> masks["de"].granularity  # doctest: +SKIP
        'head'
    """
    path = Path(path)
    if not path.exists():
        raise MissingInputError("is not there", path=path)
    if format is not None and format not in FORMATS:
        raise InputError(f"the format is {format!r}", expected=f"one of {', '.join(FORMATS)}")
    if isinstance(languages, str):
        languages = [languages]
    if units is not None and units < 1:
        raise InputError(f"units is {units}", expected="the number of neurons in a layer")
    stated = None if languages is None else tuple(languages)
    wish = Wish(stated, state_base(base), units, density)
    sources = _sources(path, format)
    if wish.languages is not None and len(sources) > 1:
        raise InputError(
            f"holds {len(sources)} files, and languages are named for one",
            path=path,
            expected="files named after their languages",
        )
    found = [(source, mask) for source in sources for mask in _read(source, wish)]
    first = found[0][1]
    for source, mask in found[1:]:
        if mask.granularity != first.granularity:
            raise NotComparableError(
                f"holds masks of mixed granularity: {first.language} by {first.granularity}, "
                f"{mask.language} by {mask.granularity}",
                path=path,
                expected="one granularity",
                fix=f"convert {source.path.name} apart",
            )
    return Subnetworks(mask for _, mask in found)


def source_files(path: str | Path, format: str | None = None) -> tuple[Path, ...]:  # noqa: A002
    """Files that `read_masks` reads there, sorted: what `run.json` records the SHA-256 of."""
    found: set[Path] = set()
    for source in _sources(Path(path), format):
        inner = source.path.rglob("*") if source.path.is_dir() else [source.path]
        found |= {file for file in inner if file.is_file()}
    return tuple(sorted(found))


def _read(source: Source, wish: Wish) -> list[Subnetwork]:
    finished = []
    for mask in _READERS[source.format](source, wish):
        if not mask.count:
            raise InputError(
                f"the mask of {mask.language} is empty: it selects none of {mask.size} "
                f"{mask.granularity}s",
                path=source.path,
                fix="leave this language out",
            )
        if mask.count == mask.size:
            warnings.warn(
                f"{source.path}: the mask of {mask.language} is full: it selects all {mask.size} "
                f"{mask.granularity}s",
                stacklevel=4,
            )
        says_its_base = mask.base and wish.base.identity == NOT_STATED
        if source.format in ("peft", "kohya") or says_its_base:
            finished.append(mask)
        else:
            finished.append(wish.base.fit(mask, source.path))
    return finished


def _sources(path: Path, stated: str | None) -> list[Source]:
    """What to read, in the order of names."""
    if stated is not None and (path.is_file() or _is_one(path)):
        return [Source(path, stated)]
    alone = _recognised(path)
    if alone is not None:
        return [alone]
    if path.is_file():
        raise FileFormatError(
            "is no mask and no adapter that is known",
            path=path,
            expected=f"one of {', '.join(FORMATS)}",
        )
    folder = next((path / n for n in ("masks", "adapters") if (path / n).is_dir()), path)
    inner = [
        child
        for child in sorted(folder.iterdir())
        if not child.name.startswith(".")
        and child.name not in _BESIDE
        # JSON may be anything: in a folder only a file named after a language is read.
        and (child.suffix != ".json" or looks_like_language(child.stem))
    ]
    if stated is None:
        sources = [found for child in inner if (found := _recognised(child)) is not None]
    else:
        sources = [Source(c, stated) for c in inner if _is_one(c) or c.suffix in _SUFFIXES]
    if not sources:
        raise MissingInputError(
            "holds no mask and no adapter that is known",
            path=path,
            expected=f"one of {', '.join(FORMATS)}",
        )
    return sources


def _is_one(path: Path) -> bool:
    """Whether a folder is one adapter or model."""
    marks = (ADAPTER_CONFIG, weights.SFT_FILE)
    return path.is_dir() and (has_model(path) or any((path / mark).is_file() for mark in marks))


def _recognised(path: Path) -> Source | None:
    source = Source(path)
    if path.is_dir():
        if (path / ADAPTER_CONFIG).is_file():
            return source.as_format("peft")
        if (path / weights.SFT_FILE).is_file():
            return source.as_format("composable-sft")
        if has_model(path):
            if not any(path.glob("*.safetensors")):
                refuse_pickles(path)
            return source.as_format("sparse")
        return None
    if path.suffix not in _SUFFIXES:
        return None
    if path.name == weights.SFT_FILE:
        return source.as_format("composable-sft")
    if path.suffix == ".safetensors":
        return source.as_format(_safetensors_format(path))
    name = _content_format(source)
    return None if name is None else source.as_format(name)


def _safetensors_format(path: Path) -> str:
    infos, metadata = _files.read_safetensors_header(path)
    if "subnetwork" in metadata:
        return "subnet"
    if any(".lora_down." in name or ".lora_up." in name for name in infos):
        return "kohya"
    return "prune" if _is_pruned(infos) else "sparse"


def _content_format(source: Source) -> str | None:
    """The format of what a file of `torch.save`, NumPy or JSON holds."""
    content = source.content
    if source.path.suffix == ".npz":
        named = weights.NPZ_KEY in content or any("." in name for name in content)
        return "npz" if named else "heads"
    if source.path.suffix in (".npy", ".json"):
        return "heads"
    if units.is_lape(content):
        return "lape"
    if not isinstance(content, Mapping):
        return "heads"
    if content.keys() & {"diffs", "body"}:
        return "composable-sft"
    state = weights.state_dict(content)
    if _is_pruned(state):
        return "prune"
    if state:
        return "sparse" if any("." in name for name in state) else "heads"
    return "composable-sft" if content and all(map(_has_size, content.values())) else None


def _has_size(value: object) -> bool:
    """Whether it is a difference of the first composable-sft."""
    return hasattr(value, "size") or (isinstance(value, Mapping) and "size" in value)


def _is_pruned(names: Mapping[str, object]) -> bool:
    return any(name.endswith("_mask") and f"{name[:-5]}_orig" in names for name in names)
