"""Pruning the attention heads of a live model round by round, as long as it stays good.

After Michel, Levy and Neubig (2019, arXiv 1905.10650): a head's importance is the mean over
examples of |∂L/∂ξ_h|, ξ_h the gate on what it puts out; rounds of pruning drop the heads of least
importance until the score on held-out data falls too far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import Units, gate_gradients, gate_heads
from subnet.subnetwork._scores import (
    Measure,
    Score,
    find_measure,
    halves,
    labelled,
    n_rows,
    passes,
    score,
)
from subnet.subnetwork.settings import HeadPruningSettings

if TYPE_CHECKING:
    import pandas as pd

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class PruningRound:
    """The model after one round.

    Attributes:
        n_heads: Heads that are left.
        density: Their share of all heads.
        score: What the model is judged by, on the examples for scoring.
        loss: Its mean loss on them, in nats per example.
        passed: Whether the heads stayed dropped.
    """

    n_heads: int
    density: float
    score: float
    loss: float
    passed: bool


@dataclass(frozen=True, eq=False)
class HeadPruning:
    """What was pruned, and why no more.

    Attributes:
        mask: [n_heads] booleans, the heads that are left: those of the last round that passed.
        importance: [n_heads] float64: of every head in the whole model, as it is, neither
            normalised nor scaled.
        history: The whole model, then every round; the last may be one that did not pass.
        measure: What `score` is: `"accuracy"`, `"token accuracy"` or `"loss"`.
        stopped: `"threshold"` (the next round did not pass), `"density"` (the wished share is
            left), or `"empty"` (the model passes without any head).
        reason: The same in words.
        n_importance: Examples that importance is of.
        n_score: Examples that the score is of.
        disjoint: Whether they are different ones.
    """

    mask: Tensor
    importance: Tensor
    history: tuple[PruningRound, ...]
    measure: Measure
    stopped: str
    reason: str
    n_importance: int
    n_score: int
    disjoint: bool

    def to_frame(self) -> pd.DataFrame:
        """One row per round: n_heads, density, score, loss, passed. Its curve is density–score."""
        import pandas as pd

        return pd.DataFrame([asdict(entry) for entry in self.history])


def prune_heads(
    model: nn.Module,
    units: Units,
    batches: Iterable[Batch],
    settings: HeadPruningSettings | None = None,
) -> HeadPruning:
    """Drop the heads of a live model, the least important first, as long as it stays good.

    Each round drops `share_per_round` of all heads (at least one), those of least importance among
    the heads that are left; of equal importance the later one in the order of the units goes first.
    A round passes when the score is at least `threshold` times the whole model's; the first that
    does not ends the search, and its heads are put back.

    Score: accuracy for sequence classification, token accuracy for token classification. For
    language models (and labels that are numbers, or several at once) it is the mean loss, which
    passes up to the whole model's loss / `threshold`.

    Cost: a forward pass over the examples for scoring, then per round one forward and backward pass
    over those for importance and one forward pass over those for scoring; at most
    1/`share_per_round` rounds. With `rescore=False` importance is taken once.

    Args:
        model: A model for one of the tasks of `find_task`. It is left as it was: heads are dropped
            by gates only, its mode is restored and nothing accumulates in it.
        units: Its units.
        batches: Model inputs with `labels`, of held-out examples.
        settings: Of the method; what concerns data but `seed` and `halves_from` is not used.

    Raises:
        InputError: A batch is not usable, no example has a label, the model gets no example right,
            importance is not finite, or the density leaves no head.

    Example:
        >>> found = prune_heads(model, find_units(model), batches)  # doctest: +SKIP
        >>> found.to_frame().plot("density", "score")  # doctest: +SKIP
    """
    settings = settings or HeadPruningSettings()
    n = units.n_heads
    goal = 0 if settings.density is None else round(settings.density * n)
    if settings.density is not None and goal == 0:
        raise InputError(
            f"density {settings.density:g} leaves none of the {n} heads", fix="take a larger one"
        )
    examples = list(batches)
    for_importance, for_score = examples, examples
    if n_rows(examples) >= max(2, settings.halves_from):
        for_importance, for_score = halves(examples, settings.seed)
    measure = find_measure(model, for_score)
    kept = torch.ones(n, dtype=torch.bool)
    full = score(model, for_score, measure)
    if settings.density is None:
        _refuse_useless(full, measure)
    history = [PruningRound(n, 1.0, full.value, full.loss, passed=True)]
    first = importance = head_importance(model, units, for_importance)
    step = max(1, round(settings.share_per_round * n))
    stopped = "empty" if settings.density is None else "density"
    while (left := int(kept.sum())) > goal:
        if settings.rescore and left < n:
            importance = head_importance(model, units, for_importance, kept=kept)
        dropped = _least(importance, kept, units, settings)[: min(step, left - goal)]
        fewer = kept.clone()
        fewer[dropped] = False
        with gate_heads(model, units, fewer.float()):
            found = score(model, for_score, measure)
        passed = settings.density is not None or passes(found, full, measure, settings.threshold)
        left -= len(dropped)
        history.append(PruningRound(left, left / n, found.value, found.loss, passed))
        if not passed:
            stopped = "threshold"
            break
        kept = fewer
    return HeadPruning(
        mask=kept,
        importance=first,
        history=tuple(history),
        measure=measure,
        stopped=stopped,
        reason=_reason(stopped, history, measure, settings),
        n_importance=n_rows(for_importance),
        n_score=n_rows(for_score),
        disjoint=for_importance is not for_score,
    )


def head_importance(
    model: nn.Module, units: Units, batches: Iterable[Batch], *, kept: Tensor | None = None
) -> Tensor:
    """Mean over the examples of |∂L/∂ξ_h|, of every head.

    The magnitude is taken of each example's gradient, so that examples that pull apart do not
    cancel; examples without a label do not count. One forward and backward pass.

    Args:
        model: A model for one of the tasks of `find_task`.
        units: Its units.
        batches: Model inputs with `labels`.
        kept: [n_heads] booleans: heads that are not pruned; all by default. The gates of the others
            are 0; their own number then says what opening them again would change.

    Returns:
        [n_heads] float64.

    Raises:
        InputError: No example has a label, or a gradient is not finite.
    """
    total = torch.zeros(units.n_heads, dtype=torch.float64)
    n_examples = 0
    gates = None if kept is None else kept.float()
    for batch in batches:
        gradients = gate_gradients(model, units, batch, of="heads", gates=gates)
        total += gradients.double().abs().sum(dim=0).cpu()
        n_examples += int(labelled(model, batch).sum())
    if n_examples == 0:
        raise InputError("no example has a label", expected="examples with a loss")
    n_bad = int((~total.isfinite()).sum())
    if n_bad:
        raise InputError(
            f"the importance of {n_bad} of {units.n_heads} heads is NaN or infinite",
            expected="finite gradients",
        )
    return total / n_examples


def _least(
    importance: Tensor, kept: Tensor, units: Units, settings: HeadPruningSettings
) -> Sequence[int]:
    """Heads that are left, the least important first, of equal ones the later first."""
    values = importance
    if settings.normalization == "layer":
        # Of the heads that are left only: pruned ones must not change how layers compare.
        parts = [
            part / part.norm() if part.norm() > 0 else part
            for _, part in units.split_heads(importance * kept)
        ]
        values = torch.cat(parts)
    order = torch.argsort(values.flip(0), stable=True)
    heads = len(kept) - 1 - order
    return [int(head) for head in heads if kept[head]]


def _refuse_useless(full: Score, measure: Measure) -> None:
    if measure != "loss" and full.value == 0:
        raise InputError(
            "the model gets no held-out example right, so that no score can be below its own",
            expected="a model that was trained for these labels",
            fix="take a density instead of a threshold",
        )


def _reason(
    stopped: str, history: Sequence[PruningRound], measure: str, settings: HeadPruningSettings
) -> str:
    full, last = history[0], history[-1]
    if stopped == "density":
        return f"{last.n_heads} of {full.n_heads} heads are left, as wished"
    if stopped == "empty":
        return (
            f"the model passes with every head pruned: {measure} {last.score:.4g} after "
            f"{full.score:.4g}; these examples need no head, so the mask is empty"
        )
    before = history[-2]
    begun = "no head can be dropped: " if before.n_heads == full.n_heads else ""
    return (
        f"{begun}{measure} is {last.score:.4g} with {last.n_heads} heads, {full.score:.4g} with "
        f"all {full.n_heads}, at a threshold of {settings.threshold:g}"
    )
