"""Scores of every training example for every test example, at one checkpoint after the other.

The gradients of the test examples are kept (4·M·P bytes for M of them and P parameters); those of
the training examples stream past, one batch at a time. Where memory for the former is bounded, as
many of them are taken at a time as fit, and the training examples stream past for each such part.
In many processes each takes its own batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from subnet.errors import InputError
from subnet.influence import _processes
from subnet.influence._examples import Examples
from subnet.influence._filling import fill
from subnet.influence._projecting import n_numbers
from subnet.influence.checkpoints import Point
from subnet.influence.collecting import Blocks
from subnet.influence.engine import Engine, naming
from subnet.influence.methods import GradientMethod, Transform, _unchanged, normalise
from subnet.influence.store import GradientStore, products
from subnet.influence.weights import put_weights, restored


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores and what they depend on.

    Attributes:
        scores: [n_test, n_train] float64.
        settings: What the method recorded at each checkpoint.
    """

    scores: NDArray[np.float64]
    settings: tuple[Mapping[str, Any], ...]


def score_examples(
    engine: Engine,
    method: GradientMethod,
    points: Sequence[Point],
    train: Examples,
    test: Examples,
) -> Scored:
    """[n_test, n_train] of a method.

    Raises:
        InputError: A gradient or a loss is not usable (names the example), or a training example
            belongs to no checkpoint's stage.
    """
    scores = np.zeros((len(test), len(train)))
    weights = np.zeros(len(train))
    factors: NDArray[np.float64] | None = None
    settings = []
    with restored(engine.model, points):
        places = list(members_of(points, train))
        kept = stored(engine, places, train)
        for (point, members), source in zip(places, kept, strict=True):
            eta = weight_of(point)
            put_weights(engine.model, point)
            transform = engine.transform(method, point, train, members)
            refuse_ready(engine, method, transform)
            settings.append(transform.settings)
            for rows in _parts(engine, len(test), whole=transform.whole):
                queries = _queries(engine, method, transform, test, rows)
                for numbers, made in _training(engine, method, transform, train, members, source):
                    scores[np.ix_(rows, numbers)] += eta * products(queries, made)
            weights[list(members)] += eta
            factors = _add(factors, transform, eta)
    scores = _processes.summed(scores)
    if method.pooling == "mean":
        scores /= weights
    if factors is not None:
        scores *= factors / weights
    refuse_not_finite(scores, train, test)
    return Scored(scores, tuple(settings))


def self_scores(
    engine: Engine, method: GradientMethod, points: Sequence[Point], train: Examples
) -> NDArray[np.float64]:
    """[n_train]: the score of each training example for itself, in one pass per checkpoint."""
    scores = np.zeros(len(train))
    weights = np.zeros(len(train))
    factors: NDArray[np.float64] | None = None
    with restored(engine.model, points):
        for point, members in members_of(points, train):
            eta = weight_of(point)
            put_weights(engine.model, point)
            transform = engine.transform(method, point, train, members)
            for numbers, left, right in _both_sides(engine, method, transform, train, members):
                squares = sum(
                    (left[name] * right[name]).double().flatten(1).sum(dim=1).cpu() for name in left
                )
                scores[numbers] += eta * np.asarray(squares)
            weights[list(members)] += eta
            factors = _add(factors, transform, eta)
    scores = _processes.summed(scores)
    if factors is not None:
        scores *= factors / weights
    return scores / weights if method.pooling == "mean" else scores


#: The gradients of a checkpoint in a store: the store, and the checkpoint's number there.
Source = tuple[GradientStore, int]


def stored(
    engine: Engine, places: Sequence[tuple[Point, tuple[int, ...]]], train: Examples
) -> list[Source | None]:
    """Where the training gradients of each place are kept, once they are; None: nowhere."""
    if engine.store is None:
        return [None] * len(places)
    store, numbers = fill(engine, places, train, engine.store)
    return [(store, number) for number in numbers]


def from_store(
    source: Source,
    method: GradientMethod,
    train: Examples,
    change: Callable[[Blocks], Blocks],
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], Blocks]]:
    """(numbers, what queries are multiplied with) of this process's shards."""
    store, number = source
    shards = _processes.own_parts(store.shards_of(number))
    for numbers, blocks in store.gradients(number, indices, shards):
        _processes.look()
        with naming(train, numbers):
            made = _made(blocks, change, method)
        yield numbers, made


def refuse_ready(engine: Engine, method: GradientMethod, transform: Transform) -> None:
    """Raise where a method does not take gradients as they are stored or projected.

    Raises:
        InputError: Says which of the two.
    """
    own = transform.ready is not None or engine.output is not None
    if engine.projection is not None and own:
        raise InputError(
            f"projection is given for the method {method.name!r}, which has features of its own",
            expected="no projection",
        )
    if engine.store is None:
        return
    if own or (engine.projection is not None and transform.train is not _unchanged):
        raise InputError(
            f"store is given for the method {method.name!r}, which needs more than gradients of "
            f"the loss{'' if own else ' that are projected'}",
            expected="no store" if own else "no projection, or no store",
        )


def members_of(points: Sequence[Point], train: Examples) -> Iterator[tuple[Point, tuple[int, ...]]]:
    """Each point with the training examples of its stage.

    An example belongs to the stage that its `stage` names, or else its `language`.

    Raises:
        InputError: An example belongs to no point, or examples do not say to which.
    """
    stages = {point.stage for point in points}
    if stages == {None}:
        everyone = tuple(range(len(train)))
        yield from ((point, everyone) for point in points)
        return
    named = train.about.get("stage", train.languages)
    if named is None:
        raise InputError(
            "checkpoints are given by stage, and training examples name neither stage nor language",
            expected="'language' (or 'stage') in each of them",
        )
    of = [str(value) for value in named]
    lone = next((i for i, value in enumerate(of) if value not in stages), None)
    if lone is not None:
        raise InputError(
            f"{train.name(lone)} is of {of[lone]!r}, and no checkpoints are given for it",
            expected=f"one of {', '.join(sorted(map(str, stages)))}",
            fix="a stage that never saw an example has no influence by it: leave it out",
        )
    for point in points:
        members = tuple(i for i, value in enumerate(of) if value == point.stage)
        if members:
            yield point, members


def weight_of(point: Point) -> float:
    """η of a point, which is known by now."""
    assert point.weight is not None  # noqa: S101 - read_points refuses
    return point.weight


def refuse_not_finite(scores: NDArray[np.float64], train: Examples, test: Examples) -> None:
    """Raise where a score is NaN or infinite.

    Raises:
        InputError: Names the pair.
    """
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"the score of {train.name(column)} for {test.name(row)} is not finite",
            expected="finite gradients",
            fix="half precision may have overflowed: take float32 or bfloat16",
        )


def _parts(engine: Engine, n: int, *, whole: bool) -> list[range]:
    """The test examples, as many at a time as memory holds the gradients of."""
    if engine.memory is None:
        return [range(n)]
    each = n_numbers(engine.tracked.shapes if whole else engine.shapes) * engine.n_bytes
    fit = engine.memory // each
    if fit < 1 or (whole and fit < n):
        what, least = ("all test examples", n * each) if whole else ("one example", each)
        raise InputError(
            f"memory is {engine.memory:,} bytes, and the gradients of {what} take {least:,}",
            expected="at least as many",
            fix="track fewer modules, or take projection=",
        )
    if fit < n:
        fit = fit // engine.batch_size * engine.batch_size or fit  # whole batches, where one fits
    return [range(start, min(start + fit, n)) for start in range(0, n, fit)]


def _queries(
    engine: Engine,
    method: GradientMethod,
    transform: Transform,
    test: Examples,
    rows: range,
) -> Blocks:
    """What is multiplied of some test examples: block to [rows, …]."""
    own = _processes.own_batches(rows, engine.batch_size)
    place = {number: row for row, number in enumerate(rows)}
    if transform.whole:
        kept = _processes.summed_blocks(_kept(engine.gradients(test, own), place), engine.device)
        with naming(test, rows):
            return _made(engine.projected(transform.test(kept)), _unchanged, method)

    def ready() -> Iterator[tuple[list[int], Blocks]]:
        for numbers, blocks in engine.ready(test, own, transform.test):
            with naming(test, numbers):
                made = _made(blocks, _unchanged, method)
            yield numbers, made

    return _processes.summed_blocks(_kept(ready(), place), engine.device)


def _training(
    engine: Engine,
    method: GradientMethod,
    transform: Transform,
    train: Examples,
    members: Sequence[int],
    source: Source | None,
) -> Iterator[tuple[list[int], Blocks]]:
    """(numbers, what queries are multiplied with) of batch after batch of training examples."""
    if source is not None:
        yield from from_store(source, method, train, transform.train)
        return
    own = _processes.own_batches(members, engine.batch_size)
    if transform.ready is not None:
        for start in range(0, len(own), engine.batch_size):
            numbers = list(own[start : start + engine.batch_size])
            yield numbers, transform.ready(numbers)
        return
    for numbers, blocks in engine.ready(train, own, transform.train):
        with naming(train, numbers):
            made = _made(blocks, _unchanged, method)
        yield numbers, made


def _both_sides(
    engine: Engine,
    method: GradientMethod,
    transform: Transform,
    train: Examples,
    members: Sequence[int],
) -> Iterator[tuple[list[int], Blocks, Blocks]]:
    """(numbers, what is multiplied as a test example, and as a training example) of batches."""
    own = _processes.own_batches(members, engine.batch_size)
    if not transform.whole:
        for numbers, blocks in engine.ready(train, own):
            with naming(train, numbers):
                left = _made(blocks, transform.test, method)
                right = _made(blocks, transform.train, method)
            yield numbers, left, right
        return
    place = {number: row for row, number in enumerate(members)}
    kept = _processes.summed_blocks(_kept(engine.gradients(train, own), place), engine.device)
    with naming(train, members):
        left = _made(transform.test(kept), _unchanged, method)
        right = _made(kept, transform.train, method)
    rows = [place[number] for number in own]
    own_left, own_right = ({n: b[rows] for n, b in side.items()} for side in (left, right))
    yield list(own), own_left, own_right


def _kept(batches: Iterable[tuple[list[int], Blocks]], place: Mapping[int, int]) -> Blocks:
    """Block to [n, …], each example's in its place; zeros where this process has no example."""
    kept: Blocks = {}
    for numbers, blocks in batches:
        rows = [place[number] for number in numbers]
        for name, block in blocks.items():
            if name not in kept:
                kept[name] = block.new_zeros((len(place), *block.shape[1:]))
            kept[name][rows] = block
    return kept


def _add(
    factors: NDArray[np.float64] | None, transform: Transform, eta: float
) -> NDArray[np.float64] | None:
    """The factors of scores with those of one more checkpoint, if it has any."""
    if transform.factors is None:
        return factors
    more = eta * np.asarray(transform.factors, dtype=np.float64)
    return more if factors is None else factors + more


def _made(blocks: Blocks, transform: Callable[[Blocks], Blocks], method: GradientMethod) -> Blocks:
    made = transform(blocks)
    return normalise(made) if method.normalised else made


def as_float64(values: Tensor) -> NDArray[np.float64]:
    """A tensor as an array on the CPU."""
    return values.detach().double().cpu().numpy()
