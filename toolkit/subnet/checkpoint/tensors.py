"""Tensors of a model folder, one at a time: shards are opened, never loaded whole."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet import _files
from subnet._files import TensorInfo
from subnet.errors import FileFormatError, InputError, MissingInputError, UnsafeFileError

if TYPE_CHECKING:
    import torch

MODEL_FILE = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
#: What a folder holds that was saved without safetensors.
PICKLES = ("adapter_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json")

#: safetensors types that hold real numbers (quantised weights are bytes and have no difference).
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
#: Values read together where a tensor is taken in blocks of rows.
_BLOCK = 1 << 18
_SAMPLE = 4096
_SAMPLES = 64


@dataclass(frozen=True)
class TensorStore:
    """Tensors of one model or adapter, by name.

    Attributes:
        folder: Where they are.
        files: Tensor name to the file that holds it.
        infos: Tensor name to type and shape, from the headers.
        aliases: Name under which a model asks for a tensor to its name in the file, where they
            differ (`LayerNorm.gamma` of checkpoints from TensorFlow).
    """

    folder: Path
    files: dict[str, Path]
    infos: dict[str, TensorInfo]
    aliases: dict[str, str]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(sorted(set(self.files.values())))

    def find(self, name: str) -> str | None:
        """Name in this store of a parameter that another model calls `name`.

        A bare encoder says `encoder.layer.0…` where the model with a head says
        `bert.encoder.layer.0…`: a name that ends in the other is taken when it is the only one.
        """
        if name in self.infos:
            return name
        longer = [known for known in self.infos if known.endswith(f".{name}")]
        if len(longer) == 1:
            return longer[0]
        head, _, shorter = name.partition(".")
        # One leading name only, and not a number or a layer's: `a.b.weight` is not any `b.weight`.
        return shorter if head and shorter.count(".") >= 1 and shorter in self.infos else None

    def read(self, name: str) -> torch.Tensor:
        """One tensor as float32.

        Raises:
            InputError: It holds NaN or infinity.
        """
        with self._reading(name) as file:
            return self._finite(file.get_tensor(self.aliases.get(name, name)), name)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The same in blocks of consecutive rows, so that a large tensor is never whole in memory.

        Every block but the last holds a multiple of eight rows.

        Raises:
            InputError: It holds NaN or infinity.
        """
        shape = self.infos[name].shape
        if not shape:
            yield self.read(name)
            return
        step = max(1, _BLOCK // max(1, math.prod(shape[1:])) // 8) * 8
        with self._reading(name) as file:
            rows = file.get_slice(self.aliases.get(name, name))
            for start in range(0, shape[0], step):
                yield self._finite(rows[start : start + step], name)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        """The open file that holds a tensor; it is mapped, so that only what is used is read."""
        from safetensors import SafetensorError, safe_open

        path = self.files[name]
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                yield file
        except SafetensorError as error:
            raise FileFormatError(
                f"cannot be read ({error})", path=path, fix="copy it again"
            ) from error

    def _finite(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        import torch

        tensor = tensor.to(torch.float32)
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"the tensor {name} holds {count} values that are NaN or infinite",
                path=self.files[name],
                expected="finite weights",
                fix="training diverged here: take an earlier checkpoint",
            )
        return tensor

    def fingerprint(self) -> str:
        """Identity of the content, from headers, sizes and samples spread over every file.

        Cheap at any size and enough to tell two models of one architecture apart; the SHA-256 of
        the whole files is for the record of a run.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            size = path.stat().st_size
            digest.update(f"{size}\n".encode())
            with path.open("rb") as file:
                for i in range(_SAMPLES):
                    file.seek(i * max(size - _SAMPLE, 0) // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE))
        for name in sorted(self.infos):
            digest.update(f"{name} {self.infos[name].dtype} {self.infos[name].shape}\n".encode())
        return digest.hexdigest()[:16]

    def tied(self) -> frozenset[str]:
        """Names that repeat the content of another matrix: tied weights that were saved twice."""
        alike: dict[tuple[object, ...], list[str]] = {}
        for name, start in self._starts().items():
            # A constant start (the zeros of an untrained matrix) says nothing about tying.
            if len(set(start)) > 1:
                alike.setdefault((self.infos[name].shape, start), []).append(name)
        repeated = set()
        for names in alike.values():
            original, *others = sorted(names, key=_embeddings_first)
            repeated |= {name for name in others if self._equal(original, name)}
        return frozenset(repeated)

    def _equal(self, one: str, other: str) -> bool:
        """Whether two tensors of one shape hold the same values."""
        import torch

        pairs = zip(self.blocks(one), self.blocks(other), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def _starts(self) -> dict[str, tuple[float, ...]]:
        """First values of the first row of every matrix."""
        from safetensors import safe_open

        starts: dict[str, tuple[float, ...]] = {}
        for path in self.paths:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in sorted(self.infos):
                    info = self.infos[name]
                    if self.files[name] == path and len(info.shape) == 2 and info.dtype in FLOATING:
                        rows = file.get_slice(self.aliases.get(name, name))
                        starts[name] = tuple(rows[:1, :16].flatten().tolist())
        return starts


def open_adapter_store(folder: Path) -> TensorStore:
    """Tensors of a PEFT adapter.

    Raises:
        MissingInputError: There is no `adapter_model.safetensors`.
        UnsafeFileError: There is only a pickle.
    """
    if not (folder / ADAPTER_FILE).is_file():
        refuse_pickles(folder)
        raise MissingInputError(
            f"has {ADAPTER_CONFIG} but no {ADAPTER_FILE}", path=folder, fix="copy the weights too"
        )
    return _open(folder, [folder / ADAPTER_FILE])


def open_model_store(folder: Path) -> TensorStore:
    """Tensors of a model folder: `model.safetensors`, its shards, or any one safetensors file.

    Raises:
        MissingInputError: There are no weights, or a shard of the index is missing.
        UnsafeFileError: There are only pickles.
    """
    index = folder / MODEL_INDEX
    if index.is_file():
        content = _files.read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise FileFormatError("has no weight_map", path=index, expected="an index of shards")
        shards = sorted({str(name) for name in weight_map.values()})
        for shard in shards:
            if not _files.inside(shard, folder, source=index).is_file():
                raise MissingInputError(
                    f"lists the shard {shard}, which is not there", path=index, fix="copy it too"
                )
        store = _open(folder, [folder / shard for shard in shards])
        absent = sorted(name for name in weight_map if _modern(name) not in store.infos)
        if absent:
            raise FileFormatError(
                f"lists {absent[0]}, which no shard holds",
                path=index,
                expected="shards that belong to the index",
            )
        return store
    if (folder / MODEL_FILE).is_file():
        return _open(folder, [folder / MODEL_FILE])
    refuse_pickles(folder)
    raise MissingInputError(f"has no {MODEL_FILE}", path=folder)


def open_file_store(path: Path) -> TensorStore:
    """Tensors of one safetensors file, whatever it is called.

    Raises:
        FileFormatError: It is truncated or no safetensors file.
        UnsafeFileError: It is a pickle.
    """
    return _open(path.parent, [path])


def has_model(folder: Path) -> bool:
    """Whether a folder holds (or should hold) the weights of a whole model."""
    return any((folder / name).is_file() for name in (MODEL_FILE, MODEL_INDEX, *PICKLES[1:]))


def refuse_pickles(folder: Path) -> None:
    """Raise if the folder's weights are pickles only.

    Raises:
        UnsafeFileError: Names the pickle and how to convert it.
    """
    for name in PICKLES:
        if (folder / name).is_file():
            raise UnsafeFileError(
                "is a pickle, which can execute code when it is read",
                path=folder / name,
                expected="safetensors",
                fix="load it where you trust it and save it again with save_pretrained()",
            )


def _open(folder: Path, paths: Iterable[Path]) -> TensorStore:
    files: dict[str, Path] = {}
    infos: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    for path in paths:
        header, _ = _files.read_safetensors_header(path)
        for stored, info in header.items():
            name = _modern(stored)
            if name != stored:
                aliases[name] = stored
            files[name], infos[name] = path, info
    return TensorStore(folder, files, infos, aliases)


def _modern(name: str) -> str:
    """Name that current models give to a tensor (LayerNorm of checkpoints from TensorFlow)."""
    if name.endswith("LayerNorm.gamma"):
        return name.removesuffix("gamma") + "weight"
    if name.endswith("LayerNorm.beta"):
        return name.removesuffix("beta") + "bias"
    return name


def _embeddings_first(name: str) -> tuple[bool, int, str]:
    """Sort key: of tied weights, the input embeddings are the ones that keep their name."""
    embeddings = "embed" in name or "shared" in name or "wte" in name
    return (not embeddings, name.count("."), name)
