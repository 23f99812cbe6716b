"""Making a gradient store, or what is missing of one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from subnet import _files
from subnet._tables import versions
from subnet.errors import InputError, MissingInputError, OutputError
from subnet.influence import _processes
from subnet.influence._fingerprints import ModelHash, hash_examples, hash_restriction, name_of
from subnet.influence._record import settings_of_gradients
from subnet.influence._shards import bytes_of, encoded
from subnet.influence._store_header import (
    EXAMPLES,
    HEADER,
    Header,
    Shard,
    StoredPoint,
    read_header,
)
from subnet.influence.result import _records
from subnet.influence.store import GradientStore, StoreSettings
from subnet.influence.weights import put_weights

if TYPE_CHECKING:
    from subnet.influence._examples import Examples
    from subnet.influence.checkpoints import Point
    from subnet.influence.collecting import Blocks
    from subnet.influence.engine import Engine

#: A checkpoint with the numbers of its examples.
Place = tuple["Point", tuple[int, ...]]


def fill(
    engine: Engine, places: Sequence[Place], examples: Examples, settings: StoreSettings
) -> tuple[GradientStore, tuple[int, ...]]:
    """Make a store of examples' gradients, or go on where making it stopped.

    Weights of the checkpoints are put into the model; the caller puts its own back.

    Returns:
        The store, and the number in it of each place.

    Raises:
        NotComparableError: The store is of something else; says what.
        OutputError: It cannot be written, or there is too little space.
        InputError: A gradient is not finite (names the example).
    """
    path = Path(settings.path)
    table = _files.to_json(_records(examples.to_frame()))
    planned = _plan(engine, places, examples, settings, table)
    with _begun(path, planned, table):
        store = GradientStore.open(path)
        store.header.check(planned, path)
        wanted = [store.header.find(point) for point in planned.points]
        numbers = tuple(number for number in wanted if number is not None)
        missing = [shard for shard in store.missing if shard.point in numbers]
        if _processes.is_first():
            _check_space(path, store.header, missing)
        _processes.wait()
        for (point, members), number in zip(places, numbers, strict=True):
            own = _processes.own_parts([shard for shard in missing if shard.point == number])
            if own:
                put_weights(engine.model, point)
            for shard in own:
                blocks = _blocks_of(engine, examples, members[shard.start : shard.stop])
                _write(path / shard.file, encoded(blocks, settings.dtype))
        _processes.wait()
    _check_there(store, numbers)
    return store, numbers


def _plan(
    engine: Engine,
    places: Sequence[Place],
    examples: Examples,
    settings: StoreSettings,
    table: str,
) -> Header:
    """The header of a store that is made from here."""
    model_hash = ModelHash(engine.model)
    points = []
    for point, members in places:
        put_weights(engine.model, point)
        everyone = len(members) == len(examples)
        points.append(
            StoredPoint(
                point.name, float(point.weight or 0.0), point.source, point.stage,
                model_hash.now(), None if everyone else members,
            )
        )  # fmt: skip
    header = Header(
        role=examples.role,
        n_examples=len(examples),
        points=tuple(points),
        settings={
            "model": type(engine.model).__name__,
            "parameters": {name: list(shape) for name, shape in engine.tracked.shapes.items()},
            **settings_of_gradients(engine),
            "mask_sha256": hash_restriction(engine.restriction),
            "loss": "mean over the example's own labels"
            if engine.loss_fn is None
            else name_of(engine.loss_fn),
            "examples": f"SHA-256 {hashlib.sha256(table.encode()).hexdigest()}",
            "batches": f"SHA-256 {hash_examples(examples, engine.batch_size)}",
        },
        blocks=dict(engine.shapes),
        dtype=settings.dtype,
        shards=(),
        versions=versions("subnet-toolkit", "torch", "transformers", "peft"),
    )
    each = bytes_of(header, Shard("", 0, 0, engine.batch_size))
    step = engine.batch_size * max(1, settings.shard_size // each)
    shards = [
        Shard(f"checkpoint-{number:03d}-shard-{k:06d}.safetensors", number, start,
              min(start + step, len(members)))
        for number, (_, members) in enumerate(places)
        for k, start in enumerate(range(0, len(members), step))
    ]  # fmt: skip
    return dataclasses.replace(header, shards=tuple(shards))


@contextlib.contextmanager
def _begun(path: Path, planned: Header, table: str) -> Iterator[None]:
    """The folder with its header, held by this run alone."""
    with contextlib.ExitStack() as stack:
        if _processes.is_first():
            try:
                _make_folder(path, planned, table)
                stack.enter_context(_held(path / HEADER))
                _remove_unfinished(path)
            except OSError as error:
                raise OutputError(
                    f"cannot be written ({error.strerror or error})", path=path
                ) from error
        _processes.wait()
        yield


def _make_folder(path: Path, planned: Header, table: str) -> None:
    if (path / HEADER).is_file():
        read_header(path)
        return
    own = (HEADER, EXAMPLES)
    if path.exists() and not path.is_dir():
        raise OutputError("is a file", path=path, expected="a folder of its own for the store")
    strange = [
        entry.name
        for entry in (path.iterdir() if path.is_dir() else ())
        if entry.name not in own and not entry.name.startswith(tuple(f".{name}-" for name in own))
    ]
    if strange:
        raise OutputError(
            f"holds {strange[0]} and no {HEADER}",
            path=path,
            expected="a gradient store, or a folder that is empty or not there",
        )
    path.mkdir(parents=True, exist_ok=True)
    for name, text in ((EXAMPLES, table), (HEADER, planned.text())):
        with _files.new_file(path / name) as file:
            file.write_text(text + "\n", encoding="utf-8")
            _flush(file)


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """Keep other runs from writing meanwhile; the system lets go where this one is killed."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                "is being written by another run", path=file.parent, fix="wait until it is done"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


def _remove_unfinished(path: Path) -> None:
    """What a killed run left half-written."""
    header = read_header(path)
    names = (HEADER, EXAMPLES, *(shard.file for shard in header.shards))
    starts = tuple(f".{name}-" for name in names)
    for entry in path.iterdir():
        if entry.name.startswith(starts):
            _files.remove(entry)


def _check_space(path: Path, header: Header, missing: Sequence[Shard]) -> None:
    needed = sum(bytes_of(header, shard) for shard in missing)
    free = shutil.disk_usage(path).free
    if needed > free:
        smaller = "" if header.dtype == "float16" else "dtype='float16', "
        raise OutputError(
            f"needs {needed:,} bytes more for gradients, and the disk has {free:,}",
            path=path,
            fix=f"take {smaller}projection=64 or fewer modules, or another disk",
        )


def _blocks_of(engine: Engine, examples: Examples, numbers: Sequence[int]) -> Blocks:
    """Gradients of some examples: block to [n, …]."""
    parts: dict[str, list[Any]] = {}
    for batch, blocks in engine.ready(examples, numbers):
        finite = torch.stack(
            [block.isfinite().flatten(1).all(dim=1).cpu() for block in blocks.values()]
        ).all(dim=0)
        if not bool(finite.all()):
            name = examples.name(batch[int((~finite).nonzero()[0])])
            raise InputError(
                f"the gradient of {name} is not finite",
                expected="finite gradients",
                fix="half precision may have overflowed: take float32 or bfloat16",
            )
        for block_name, block in blocks.items():
            parts.setdefault(block_name, []).append(block)
    return {name: torch.cat(blocks) for name, blocks in parts.items()}


def _write(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with _files.new_file(file) as building:
        try:
            save_file(tensors, building)
            _flush(building)
        except (SafetensorError, OSError) as error:
            raise OutputError(
                f"cannot be written ({error})",
                path=file,
                fix="make space and run again: shards that are there are kept",
            ) from error


def _flush(file: Path) -> None:
    """Have the content on the disk before the name is."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def _check_there(store: GradientStore, numbers: Sequence[int]) -> None:
    missing = [shard for shard in store.missing if shard.point in numbers]
    if missing:
        raise MissingInputError(
            f"has no {missing[0].file}, which another process wrote",
            path=store.path,
            expected="one folder that all processes see",
        )
