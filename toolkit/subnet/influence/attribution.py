"""The verb: whose training examples moved whose predictions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from subnet._tables import Provenance, provenance
from subnet.errors import InputError
from subnet.influence import _processes
from subnet.influence._examples import Dataset, Examples, read_examples
from subnet.influence._fidelity import measure_fidelity
from subnet.influence._record import settings_of
from subnet.influence.by_language import (
    LanguageScores,
    group_scores,
    language_table,
    score_languages,
)
from subnet.influence.checkpoints import Checkpoints, read_points
from subnet.influence.collecting import LossFunction
from subnet.influence.engine import make_engine
from subnet.influence.methods import (
    DataMethod,
    DataSituation,
    GradientMethod,
    Method,
    find_method,
    resolve_settings,
)
from subnet.influence.projection import Projection, TwoSidedProjection
from subnet.influence.result import LEVELS, Influence, language_frame
from subnet.influence.scoring import score_examples, self_scores
from subnet.influence.store import StoreSettings
from subnet.influence.tracking import Tracked
from subnet.influence.weights import put_weights, restored

if TYPE_CHECKING:
    from subnet.subnetwork import Subnetwork

_LIBRARIES = ("torch", "transformers", "peft")


@_processes.together
def attribute(
    model: nn.Module,
    train: Dataset,
    test: Dataset,
    *,
    method: str = "tracin",
    level: str = "example",
    checkpoints: Checkpoints | None = None,
    modules: str | Sequence[str] | Tracked | None = None,
    subnetwork: Subnetwork | None = None,
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 16,
    projection: int | TwoSidedProjection | Projection | None = None,
    store: str | Path | StoreSettings | None = None,
    seed: int = 0,
    subnetwork_in_forward: bool = False,
    fidelity: int = 0,
    memory: int | None = None,
    **settings: Any,
) -> Influence:
    """How much each training example moved the prediction on each test example.

    With g_c(z) the gradient of z's loss by the tracked parameters at checkpoint c, and η_c the
    learning rates of the steps that led to c, summed:

    - `"tracin"`: Σ_c η_c ⟨g_c(train), g_c(test)⟩ (TracInCP; Pruthi et al. 2020, arXiv 2002.08484).
    - `"cosine"`: Σ_c η_c cos(g_c(train), g_c(test)) / Σ_c η_c, which long examples and examples of
      high loss do not dominate.
    - `"final"`: the product at the last checkpoint, with weight 1.

    - `"adam"` (`AdamSettings`), `"less"` (`LessSettings`): in the metric of Adam, from the moments
      that Trainer left in each checkpoint's `optimizer.pt`.
    - `"ekfac"`, `"kfac"` (`CurvatureSettings`): through the inverse of a Kronecker-factored
      curvature of linear layers.
    - `"datainf"` (`DataInfSettings`): through an inverse in closed form, made for LoRA.
    - `"trak"` (`TrakSettings`): a linear model on projected gradients of the label's margin, the
      mean over checkpoints.
    - `"bm25"` (`Bm25Settings`), `"embedding"` (`EmbeddingSettings`), `"random"`: what needs no
      gradient and has to stand beside the others.

    What a method computes, and what its settings mean, stands with its settings. One forward and
    one backward pass per example and checkpoint, no more than training costs; `kfac` takes two over
    the training examples, `ekfac` and `datainf` three. The model is run in `eval()` mode and is
    left as it was: weights, modes, `requires_grad` and `.grad`.

    Args:
        model: A transformers or PEFT model for sequence classification, token classification,
            causal or sequence-to-sequence LM; any module with a `loss_fn`.
        train: Training examples, a map-style dataset as Trainer takes it. Beside what the model
            takes rows may name `id`, `language`, `concept` (the key that translations share) and
            `stage`.
        test: Test examples, the same.
        method: Name of the method.
        level: `"example"`, or `"language"`: the mean over the pairs of two languages, from sums of
            gradients where the method is bilinear.
        checkpoints: None takes the model as given with weight 1. Otherwise Trainer folders, whose
            learning rates are summed from their logs, and (weights, η) pairs. In sequential
            training a mapping from stage to its checkpoints: an example's sum runs over those of
            the stage that its `stage`, else its `language` names, as no other stage trained on it.
        modules: Which parameters (`track`): by default the factors of the LoRA, else every linear
            layer that takes gradients.
        subnetwork: A mask of weights, heads or neurons that gradients are restricted to.
        loss_fn: (model, batch) to [n], the loss of each example alone; by default the
            cross-entropy of the model's task (`subnet.model.example_losses`).
        collate_fn: Makes a batch of a list of rows; by default Trainer's own, which does not pad.
        batch_size: Examples per pass. Changes scores by rounding only.
        projection: None multiplies gradients as they are. k projects those of each linear layer to
            k × k at random before they are multiplied, from inputs and output gradients, which
            costs less than a gradient (`TwoSidedProjection`); scores are then approximate.
        store: A folder where training gradients are kept, in float32 unless `StoreSettings` says
            otherwise; they are computed where they are not there yet. Refused where it is of
            another model, dataset or setting. `GradientStore` reads it without the model.
        seed: Of the projection, of what a method draws, and of the blocks behind intervals at
            language level.
        subnetwork_in_forward: Whether the subnetwork is alone in the forward pass too: weights
            outside of it are 0, heads or neurons gated off.
        fidelity: Number of seeds for which the rank correlation of projected scores with exact ones
            is recorded (`settings["fidelity"]`), with an interval over seeds: computes the exact
            scores, and projected ones for each seed.
        memory: Bytes that gradients kept for multiplication may take; by default what they need.
            Where they need more they are taken in parts, with a pass over the training examples
            for each (at language level over both sides).
        **settings: Settings of the method.

    Returns:
        Scores [n_test, n_train] with who the examples are and how it was made.

    Raises:
        InputError: The data, the model, a checkpoint or a setting is not usable; says which.
        MissingInputError: A checkpoint is not there.
        NotComparableError: A checkpoint, the subnetwork or the store is of another model.
        OutputError: The store cannot be written, or takes more space than there is.

    In a run of many processes (`torchrun`, `accelerate launch`) each takes its share of the
    batches, and all return the same.

    Example:
        >>> influence = attribute(model, train, test, collate_fn=collator)  # doctest: +SKIP
        >>> influence.top(5)  # doctest: +SKIP
        >>> influence.languages()  # doctest: +SKIP
    """
    if level not in LEVELS:
        raise InputError(f"level is {level!r}", expected=" or ".join(map(repr, LEVELS)))
    chosen, own = _configured(method, settings, seed, loss_fn)
    training = read_examples(train, "training", model, collate_fn, own_loss=loss_fn is not None)
    tested = read_examples(test, "test", model, collate_fn, own_loss=loss_fn is not None)
    if level == "language":
        _need_languages(training, tested)
    if isinstance(chosen, DataMethod):
        _refuse_idle(method, projection=projection, store=store, memory=memory)
        given = DataSituation(model, training, tested, own, batch_size, seed)
        return _baseline(chosen, given, checkpoints, level)
    engine = make_engine(
        model, modules, subnetwork, loss_fn, batch_size, seed, in_forward=subnetwork_in_forward,
        projection=projection, store=store, memory=memory,
    )  # fmt: skip
    engine = replace(engine, output=chosen.output, settings=own)
    points = read_points(checkpoints, only_last=chosen.pooling == "last", rated=chosen.rated)
    described = settings_of(engine, points, level, chosen)
    if fidelity:
        described["fidelity"] = measure_fidelity(
            engine, chosen, points, training, tested, level, fidelity
        )
    if level == "language":
        found = score_languages(engine, chosen, points, training, tested)
        record = _record(method, described, found.settings, seed)
        return _of_languages(found, method, record)
    scored = score_examples(engine, chosen, points, training, tested)
    record = _record(method, described, scored.settings, seed)
    return Influence(scored.scores, tested.to_frame(), training.to_frame(), method, level, record)


@_processes.together
def self_influence(
    model: nn.Module,
    train: Dataset,
    *,
    method: str = "tracin",
    checkpoints: Checkpoints | None = None,
    modules: str | Sequence[str] | Tracked | None = None,
    subnetwork: Subnetwork | None = None,
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **settings: Any,
) -> NDArray[np.float64]:
    """How much each training example moved its own prediction: the diagonal of `attribute`.

    Mislabelled and unusual examples have large values (Pruthi et al. 2020, arXiv 2002.08484).

    Args:
        model: As of `attribute`.
        train: As of `attribute`.
        method: A method of gradients.
        checkpoints: As of `attribute`.
        modules: As of `attribute`.
        subnetwork: As of `attribute`.
        loss_fn: As of `attribute`.
        collate_fn: As of `attribute`.
        batch_size: As of `attribute`.
        seed: As of `attribute`.
        **settings: Settings of the method.

    Returns:
        [n_train]. DataInf keeps all training gradients for it.

    Raises:
        InputError: As `attribute`, or the method uses no gradients.
    """
    chosen, own = _configured(method, settings, seed, loss_fn)
    if isinstance(chosen, DataMethod):
        raise InputError(f"{method!r} uses no gradients", expected="a method such as 'tracin'")
    training = read_examples(train, "training", model, collate_fn, own_loss=loss_fn is not None)
    engine = make_engine(model, modules, subnetwork, loss_fn, batch_size, seed)
    engine = replace(engine, output=chosen.output, settings=own)
    points = read_points(checkpoints, only_last=chosen.pooling == "last", rated=chosen.rated)
    return self_scores(engine, chosen, points, training)


def _configured(
    name: str, given: Mapping[str, Any], seed: int, loss_fn: LossFunction | None
) -> tuple[Method, Any]:
    """The method of a name, as its settings make it, and its settings."""
    method = find_method(name)
    others = list(inspect.signature(attribute).parameters)
    settings = resolve_settings(method, given, seed=seed, others=others)
    if isinstance(method, GradientMethod):
        if loss_fn is not None and method.output is not None:
            raise InputError(
                f"loss_fn is given for the method {name!r}, which has an output of its own",
                expected="a transformers model without loss_fn, or another method",
            )
        method = method.adapt(method, settings) if method.adapt else method
    return method, settings


def _record(
    method: str, settings: Mapping[str, Any], found: Sequence[Mapping[str, Any]], seed: int
) -> Provenance:
    """How it was made, with what the method recorded at each checkpoint."""
    made = {**settings, "method_settings": list(found)}
    return provenance(method, made, seed=seed, libraries=_LIBRARIES)


def _refuse_idle(method: str, **given: object) -> None:
    """Raise where something is given that a method without gradients does not use."""
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} is given for {method!r}, which uses no gradients")


def _of_languages(found: LanguageScores, method: str, record: Provenance) -> Influence:
    import pandas as pd

    sides = {
        name: pd.DataFrame(
            {
                "language": list(side.languages),
                "n": [side.count(i) for i in range(len(side.languages))],
            }
        )
        for name, side in (("test", found.test), ("train", found.train))
    }
    level, means = "language", found.means
    bare = Influence(means, sides["test"], sides["train"], method, level, record)
    table = language_frame(language_table(found, **bare.labels))
    return Influence(means, sides["test"], sides["train"], method, level, record, table)


def _baseline(
    method: DataMethod, given: DataSituation, checkpoints: Checkpoints | None, level: str
) -> Influence:
    """Scores that need no gradient; of the last checkpoint's weights, where they need any."""
    points = read_points(checkpoints, only_last=True) if method.uses_model else ()
    with restored(given.model, points):
        for point in points:
            put_weights(given.model, point)
        scores, settings = method.scores(given)
    described = {"level": level, "checkpoints": [p.to_dict() for p in points], **settings}
    record = provenance(method.name, described, seed=given.seed, libraries=_LIBRARIES)
    scores = np.asarray(scores, dtype=np.float64)
    if level == "language":
        found = group_scores(scores, given.train, given.test, given.seed)
        return _of_languages(found, method.name, record)
    frames = given.test.to_frame(), given.train.to_frame()
    return Influence(scores, *frames, method.name, level, record)


def _need_languages(*sides: Examples) -> None:
    for examples in sides:
        if examples.languages is None:
            raise InputError(
                f"the {examples.role} examples name no language",
                expected="a 'language' in each of them, for level='language'",
            )
