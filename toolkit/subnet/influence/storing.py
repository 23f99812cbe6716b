"""The verb: keep the gradients of a dataset on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from subnet.errors import InputError
from subnet.influence import _processes
from subnet.influence._examples import Dataset, read_examples
from subnet.influence._filling import fill
from subnet.influence.checkpoints import Checkpoints, read_points
from subnet.influence.collecting import LossFunction
from subnet.influence.engine import make_engine
from subnet.influence.scoring import members_of
from subnet.influence.store import GradientStore, StoreSettings
from subnet.influence.tracking import Tracked
from subnet.influence.weights import restored

if TYPE_CHECKING:
    from subnet.subnetwork import Subnetwork


@_processes.together
def store_gradients(
    model: nn.Module,
    dataset: Dataset,
    path: str | Path,
    *,
    role: Literal["training", "test"],
    checkpoints: Checkpoints | None = None,
    modules: str | Sequence[str] | Tracked | None = None,
    subnetwork: Subnetwork | None = None,
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 16,
    projection: object | None = None,
    dtype: str = "float32",
    shard_size: int = 1 << 27,
    seed: int = 0,
    subnetwork_in_forward: bool = False,
) -> GradientStore:
    """Keep the gradients of every example at every checkpoint, to be scored without the model.

    What is there already is kept: a run that was stopped, or killed, goes on at the first file that
    is missing, and ends with the same bytes as one that was not. In a run of many processes each
    writes its own files.

    Args:
        model: As of `attribute`.
        dataset: The examples, as of `attribute`.
        path: The folder.
        role: `"training"`: where checkpoints are given by stage, gradients are taken at those of
            the example's own. `"test"`: at every checkpoint.
        checkpoints: As of `attribute`.
        modules: As of `attribute`.
        subnetwork: As of `attribute`.
        loss_fn: As of `attribute`. Known by its name and source.
        collate_fn: As of `attribute`.
        batch_size: As of `attribute`.
        projection: As of `attribute`.
        dtype: As of `StoreSettings`.
        shard_size: As of `StoreSettings`.
        seed: Of the projection, where it is a number.
        subnetwork_in_forward: As of `attribute`.

    Returns:
        The store, complete.

    Raises:
        NotComparableError: The store is of another model, dataset, modules, type or projection;
            says which, what was found and what was expected.
        OutputError: It cannot be written, or takes more space than there is.
        InputError: As `attribute`, or a gradient is not finite.

    Example:
        >>> options = {"collate_fn": collator, "projection": 64}  # doctest: +SKIP
        >>> kept = store_gradients(model, train, "train", role="training", **options)
        ... # doctest: +SKIP
        >>> asked = store_gradients(model, test, "test", role="test", **options)  # doctest: +SKIP
        >>> GradientStore.open("train").score(asked)  # doctest: +SKIP
    """
    if role not in ("training", "test"):
        raise InputError(f"role is {role!r}", expected="'training' or 'test'")
    settings = StoreSettings(path=path, dtype=dtype, shard_size=shard_size)
    examples = read_examples(dataset, role, model, collate_fn, own_loss=loss_fn is not None)
    engine = make_engine(
        model, modules, subnetwork, loss_fn, batch_size, seed, in_forward=subnetwork_in_forward,
        projection=projection,
    )  # fmt: skip
    points = read_points(checkpoints)
    everyone = tuple(range(len(examples)))
    with restored(model, points):
        places = (
            list(members_of(points, examples))
            if role == "training"
            else [(point, everyone) for point in points]
        )
        store, _ = fill(engine, places, examples, settings)
    return store
