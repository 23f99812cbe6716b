"""Gradients on disk: computed once, scored against as often as wanted, without the model.

A store is a folder: `header.json` (what the gradients are of, and which files there will be),
`examples.json` (who the examples are) and shards, safetensors files that are read by memory map. A
shard is there complete or not at all. N examples with P parameters take 4NP bytes in float32, 2NP
in half precision, and 2N·k² per module where they are projected to k × k.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from torch import Tensor

from subnet import _files
from subnet._tables import provenance
from subnet.errors import FileFormatError, InputError, MissingInputError, NotComparableError
from subnet.influence import _processes
from subnet.influence._shards import DTYPES, bytes_of, read_shard
from subnet.influence._store_header import EXAMPLES, Header, Shard, StoredPoint, read_header
from subnet.influence.collecting import Blocks
from subnet.influence.methods import DataMethod, GradientMethod, find_method, normalise
from subnet.influence.result import Influence, _frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where and how `attribute(store=…)` keeps training gradients.

    Attributes:
        path: The folder; made where it is not there, and filled up where it is not complete.
        dtype: `"float32"`, or `"float64"`, `"bfloat16"`, `"float16"`. Of half precision float16 is
            the more exact: each example is stored with a scale of its own.
        shard_size: Bytes per file, about. A file holds whole batches, one at least.
    """

    path: str | Path
    dtype: str = "float32"
    shard_size: int = 1 << 27

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}", expected=" or ".join(DTYPES))
        size: Any = self.shard_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"shard_size is {size!r}", expected="bytes, 1 or more")


@dataclass(frozen=True, eq=False)
class GradientStore:
    """Gradients of a dataset's examples at one checkpoint or more.

    Attributes:
        path: The folder.
        header: What they are gradients of.
        examples: One row per example: id and, where known, language, concept, stage.
    """

    path: Path
    header: Header
    examples: pd.DataFrame

    @classmethod
    def open(cls, path: str | Path) -> GradientStore:
        """Open a store for reading, complete or not.

        Raises:
            MissingInputError: There is none.
            FileFormatError: It is damaged, or of another format.
        """
        folder = Path(path)
        header = read_header(folder)
        if not (folder / EXAMPLES).is_file():
            raise MissingInputError(f"has no {EXAMPLES}", path=folder, expected="a gradient store")
        frame = _frame(_files.read_json(folder / EXAMPLES))
        if len(frame) != header.n_examples:
            raise FileFormatError(
                f"names {len(frame)} examples",
                path=folder / EXAMPLES,
                expected=f"{header.n_examples}",
            )
        return cls(folder, header, frame)

    def __len__(self) -> int:
        return self.header.n_examples

    def __repr__(self) -> str:
        return (
            f"GradientStore({str(self.path)!r}: {len(self)} {self.header.role} examples, "
            f"{len(self.header.points)} checkpoints, {self.header.dtype})"
        )

    @property
    def missing(self) -> tuple[Shard, ...]:
        """Shards that are planned and not there."""
        there = {entry.name for entry in self.path.iterdir()}
        return tuple(shard for shard in self.header.shards if shard.file not in there)

    @property
    def n_bytes(self) -> int:
        """Bytes of all gradients, those that are not there yet too."""
        return sum(bytes_of(self.header, shard) for shard in self.header.shards)

    def gradients(
        self,
        point: int = -1,
        numbers: Sequence[int] | None = None,
        shards: Sequence[Shard] | None = None,
    ) -> Iterator[tuple[list[int], Blocks]]:
        """(numbers of the examples, gradients [n, …] by block) of shard after shard.

        Args:
            point: Number of the checkpoint.
            numbers: Only these examples; all by default.
            shards: Only these files; by default all of the checkpoint's.

        Raises:
            MissingInputError: A shard is not there.
            FileFormatError: A shard is damaged.
        """
        point = range(len(self.header.points))[point]
        wanted = None if numbers is None else set(numbers)
        members = self.header.members(point)
        for shard in self.shards_of(point) if shards is None else shards:
            own = [int(number) for number in members[shard.start : shard.stop]]
            rows = None if wanted is None else [i for i, n in enumerate(own) if n in wanted]
            if rows is None or len(rows) == len(own):
                yield own, self._read(shard)
            elif rows:
                yield [own[i] for i in rows], self._read(shard, rows)

    def shards_of(self, point: int) -> tuple[Shard, ...]:
        """The files of a checkpoint."""
        return tuple(shard for shard in self.header.shards if shard.point == point)

    @_processes.together
    def score(
        self,
        queries: GradientStore | Blocks | Sequence[Blocks],
        *,
        method: str = "tracin",
    ) -> Influence:
        """Scores of the stored training examples for queries, without the model.

        Shard after shard of both sides, so that memory holds one of each: 2·M·N numbers per block.

        Args:
            queries: A store of test examples, made with the same model, modules and projection; or
                gradients by block, [m, …], of the only checkpoint, or a list of these, one per
                checkpoint.
            method: One that multiplies gradients as they are: `"tracin"`, `"cosine"`, `"final"`.

        Returns:
            [n_test, n_train], as `attribute` gives it.

        Raises:
            NotComparableError: The queries are of another model, of other modules or projected
                otherwise; says which.
            MissingInputError: The store is not complete.
            InputError: The method needs the model, or a gradient is zero under cosine.
        """
        import pandas as pd

        chosen = find_method(method)
        if isinstance(chosen, DataMethod) or not chosen.plain:
            raise InputError(
                f"{method!r} needs the model or the data",
                expected="a method that multiplies gradients as they are, such as 'tracin'",
                fix="take attribute(..., store=folder)",
            )
        last = len(self.header.points) - 1
        points = [last] if chosen.pooling == "last" else list(range(last + 1))
        sides = [self._queries(queries, point, points) for point in points]
        if isinstance(queries, GradientStore):
            queries.check_complete([_found(queries, self.header.points[point]) for point in points])
            test = queries.examples
        else:
            first = next(iter(sides[0]))[1]
            test = pd.DataFrame({"id": range(len(next(iter(first.values()))))})
        self.check_complete(points)
        scores = np.zeros((len(test), len(self)))
        weights = np.zeros(len(self))
        for point, side in zip(points, sides, strict=True):
            eta = 1.0 if chosen.pooling == "last" else self.header.points[point].learning_rate
            for rows, left in side:
                kept = _normalised(left, chosen, "test", rows)
                for columns, blocks in self.gradients(
                    point, shards=_processes.own_parts(self.shards_of(point))
                ):
                    _processes.look()
                    made = _normalised(blocks, chosen, self.header.role, columns)
                    scores[np.ix_(rows, columns)] += eta * products(kept, made)
            weights[list(self.header.members(point))] += eta
        scores = _processes.summed(scores)
        if chosen.pooling == "mean":
            scores /= weights
        settings = {
            "level": "example",
            "checkpoints": [self._recorded(point, chosen) for point in points],
            "pooling": chosen.pooling,
            **self.header.settings,
            "store": self.recorded(),
        }
        record = provenance(method, settings, libraries=("torch",))
        return Influence(scores, test, self.examples, method, "example", record)

    def check_complete(self, points: Sequence[int]) -> None:
        """Refuse where shards of these checkpoints are missing.

        Raises:
            MissingInputError: Says how many.
        """
        missing = [shard for shard in self.missing if shard.point in points]
        if missing:
            raise MissingInputError(
                f"{len(missing)} of {len(self.header.shards)} shards are not there "
                f"({missing[0].file} first)",
                path=self.path,
                expected="a complete store",
                fix="run again what was making it: it goes on where it stopped",
            )

    def recorded(self) -> dict[str, Any]:
        """What scores depend on, for their record."""
        return {"dtype": self.header.dtype, "shards": len(self.header.shards)}

    def _recorded(self, point: int, method: GradientMethod) -> dict[str, Any]:
        found = self.header.points[point].to_dict()
        del found["examples"]
        if method.pooling == "last":
            found |= {"learning_rate": 1.0, "from": "last checkpoint: weight 1"}
        return found

    def _queries(
        self,
        queries: GradientStore | Blocks | Sequence[Blocks],
        point: int,
        points: Sequence[int],
    ) -> Any:
        """(numbers, blocks) of the queries at a checkpoint, that can be gone through."""
        if isinstance(queries, GradientStore):
            _refuse_other(self, queries)
            return queries.gradients(_found(queries, self.header.points[point]))
        listed = [queries] if isinstance(queries, Mapping) else list(queries)
        if len(listed) not in (len(points), len(self.header.points)):
            raise InputError(
                f"gradients of queries are given for {len(listed)} checkpoints",
                expected=f"{len(points)}, one for each of the store's",
            )
        blocks = listed[points.index(point) if len(listed) == len(points) else point]
        shapes = {name: tuple(block.shape[1:]) for name, block in blocks.items()}
        for name in {**self.header.blocks, **shapes}:
            if shapes.get(name) != self.header.blocks.get(name):
                raise NotComparableError(
                    f"the queries' {name} is {_per_example(shapes.get(name))}",
                    expected=f"{_per_example(self.header.blocks.get(name))}, as in the store",
                )
        n = len(next(iter(blocks.values())))
        return [(list(range(n)), {name: blocks[name] for name in self.header.blocks})]

    def _read(self, shard: Shard, rows: list[int] | None = None) -> Blocks:
        path = self.path / shard.file
        if not path.is_file():
            self.check_complete([shard.point])
        return read_shard(path, self.header, shard, rows)


def products(queries: Blocks, blocks: Blocks) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[m, n] float64: ⟨h, g⟩ summed over blocks, 2·M·N operations per number."""
    total: Any = None
    for name, kept in queries.items():
        part: Tensor = kept.flatten(1) @ blocks[name].to(kept).flatten(1).T
        total = part.double().cpu() if total is None else total + part.double().cpu()
    return total.numpy()  # type: ignore[no-any-return]


def _normalised(
    blocks: Blocks, method: GradientMethod, role: str, numbers: Sequence[int]
) -> Blocks:
    from subnet.influence.collecting import UndefinedExamplesError

    if not method.normalised:
        return blocks
    try:
        return normalise(blocks)
    except UndefinedExamplesError as error:
        _raise_named(error, f"{role} example {numbers[error.place]}")


def _raise_named(error: Any, name: str) -> NoReturn:
    raise InputError(f"{error.what} of {name}", expected=error.expected, fix=error.fix) from error


def _refuse_other(train: GradientStore, queries: GradientStore) -> None:
    """Raise where the gradients of two stores cannot be multiplied."""
    for name, own in train.header.settings.items():
        if name in _OF_ONE_SIDE or queries.header.settings.get(name) == own:
            continue
        raise NotComparableError(
            f"{name} of the queries is {queries.header.settings.get(name)}",
            path=queries.path,
            expected=f"{own}, as in {train.path}",
            fix="make both stores with the same model and settings",
        )


def _found(queries: GradientStore, point: StoredPoint) -> int:
    """The queries' checkpoint of the same weights."""
    for number, own in enumerate(queries.header.points):
        if own.model == point.model and own.members is None:
            return number
    raise NotComparableError(
        f"holds no gradients of all queries by the model at {point.name} "
        f"(SHA-256 {point.model[:16]}…)",
        path=queries.path,
        expected="every checkpoint of the training gradients",
        fix="make the queries' store with the same checkpoints and role='test'",
    )


def _per_example(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"{list(shape)} per example"


#: Settings that may differ between training and test gradients.
_OF_ONE_SIDE = ("examples", "batches", "batch_size")
