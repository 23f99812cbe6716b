"""TRAK: influence as a linear model in the space of projected gradients sees it.

Park et al. (2023, arXiv 2303.14186). For each of C checkpoints, with φ(z) the projected gradient
of the model's output at z (the margin, f = log p / (1 − p)), Φ the [n, k] of the training examples,

    τ(z)_i = (1/C Σ_c φ_c(z)ᵀ (Φ_cᵀΦ_c + ρI)⁻¹ φ_c(z_i)) · (1/C Σ_c (1 − p_c,i)).

The paper's soft threshold on the result is left to the reader; its formula has no ρ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.influence._blocks import Blocks, as_float, check_number, check_same, check_whole
from subnet.influence.projection import Projection
from subnet.model import find_task, logits_of
from subnet.model._names import base_model
from subnet.model.evaluation import IGNORED

#: Below this share of the largest eigenvalue ΦᵀΦ counts as singular: it is the square of a
#: millionth, and features in float32 carry no more.
_SINGULAR = 1e-12


@dataclass(frozen=True, kw_only=True)
class TrakSettings:
    """TRAK on the margin of the label, over all checkpoints alike, whatever their learning rates.

    Attributes:
        dimension: k. None takes the largest power of two that is at most a quarter of the training
            examples (those of the checkpoint's stage), so that ΦᵀΦ has an inverse. No projection
            where there are no more than k parameters. What was taken is recorded.
        ridge: ρ as a share of the mean eigenvalue of ΦᵀΦ. 0 is the paper's formula, which needs
            at least as many training examples as dimensions.
        seed: Seed of the projection.
    """

    dimension: int | None = None
    ridge: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dimension is not None:
            check_whole("dimension", self.dimension, 1)
        check_number("ridge", self.ridge)
        check_whole("seed", self.seed, 0)

    def projection(self, n_train: int, n_parameters: int) -> Projection | None:
        """Of gradients of so many parameters, for so many training examples."""
        dimension = self.dimension or 1 << max(0, (n_train // 4).bit_length() - 1)
        if n_parameters <= dimension:
            return None
        return Projection(dimension=dimension, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Every setting that the scores depend on."""
        return {"method": "trak", "output": "margin", **asdict(self)}


@dataclass(frozen=True, eq=False)
class Trak:
    """(ΦᵀΦ + ρI)⁻¹ at one checkpoint.

    Attributes:
        values: [k] eigenvalues, float64.
        vectors: [k, k] eigenvectors in columns.
    """

    values: Tensor
    vectors: Tensor

    def solve(self, queries: Tensor) -> Tensor:
        """The inverse times each query's features, [m, k] float64."""
        rows = queries.to(self.vectors)
        solved: Tensor = (rows @ self.vectors / self.values) @ self.vectors.T
        return solved


def fit_trak(train: Tensor, settings: TrakSettings | None = None) -> Trak:
    """The inverse of the products of all training examples' features.

    Args:
        train: φ of the training examples, [n, k].
        settings: The ridge.

    Raises:
        InputError: ΦᵀΦ is singular, or a feature is not finite.
    """
    settings = settings or TrakSettings()
    if not bool(train.isfinite().all()):
        bad = int((~train.isfinite()).nonzero()[0][0])
        raise InputError(
            f"the features of training example {bad} are not finite", expected="finite gradients"
        )
    n, k = train.shape
    phi = train.double()
    values, vectors = torch.linalg.eigh(phi.T @ phi)
    values = values.clamp(min=0) + settings.ridge * float(values.clamp(min=0).mean())
    if not float(values[0]) > _SINGULAR * float(values[-1]):
        raise InputError(
            f"the products of {n} training examples' {k} features have no inverse",
            expected="more examples than features, and features that differ",
            fix="take a smaller dimension, or a ridge such as 0.01",
        )
    return Trak(values, vectors)


def features(batches: Iterable[Blocks], projection: Projection | None = None) -> Tensor:
    """φ of every example: its gradient projected, or as it is.

    Args:
        batches: Gradients of the margin, or of its negative: the sign of φ cancels.
        projection: None puts all parameters in a row, k = P.

    Returns:
        [n, k] in float32 at least.
    """
    found = []
    first: Blocks | None = None
    for batch in batches:
        first = batch if first is None else first
        check_same(first, batch, "an earlier batch", "a later one")
        if projection is not None:
            found.append(projection.project(batch))
        else:
            rows = [as_float(batch[name]).flatten(1) for name in sorted(batch)]
            found.append(torch.cat(rows, dim=1))
    if not found:
        raise InputError("there are no examples to make features of", expected="at least one")
    return torch.cat(found)


def negative_margins(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """−f of every example, to be given as a loss: f = log p(label) − log(1 − p(label)).

    Of several labelled tokens the mean of their margins (our choice: the paper has one label).

    Args:
        model: For sequence or token classification, causal or sequence-to-sequence LM.
        batch: Its inputs, with `labels`.

    Returns:
        [n], through which gradients flow; NaN of an example without a label.
    """
    return -_margins(model, batch)[0]


def margins_and_doubt(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The margin f and 1 − p of every example, both means over its labelled tokens.

    Returns:
        [n] and [n]; NaN of an example without a label.
    """
    margins, doubt = _margins(model, batch)
    return margins, doubt.detach()


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin log p / (1 − p) of the label: its logit minus the log-sum-exp of the others.

    Args:
        logits: [..., c], at least two classes.
        labels: [...] integers; −100 gives 0.

    Returns:
        [...].
    """
    picked = labels.clamp(min=0)[..., None]
    chosen = logits.gather(-1, picked)[..., 0]
    others = logits.scatter(-1, picked, -math.inf).logsumexp(dim=-1)
    return (chosen - others).masked_fill(labels == IGNORED, 0.0)


def _margins(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    logits, labels = _logits_and_labels(model, batch)
    each = margins_of(logits, labels)
    counted = labels != IGNORED
    doubt = torch.sigmoid(-each) * counted
    if each.ndim == 2:  # [n, t]
        n_labels = counted.sum(1)
        each, doubt = (values.sum(1) / n_labels.clamp(min=1) for values in (each, doubt))
        counted = n_labels > 0
    return each.masked_fill(~counted, math.nan), doubt.masked_fill(~counted, math.nan)


def _logits_and_labels(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    task = find_task(model)
    config: Any = base_model(model).config
    kind = config.problem_type or "single_label_classification"
    if task == "sequence-classification" and (
        kind != "single_label_classification" or config.num_labels < 2
    ):
        raise InputError(
            "the model has no single label with a probability",
            expected="one of two or more labels per example",
            fix="take a method that works on the loss, such as 'tracin' or 'ekfac'",
        )
    logits = logits_of(model, batch)
    labels: Tensor = batch["labels"].to(logits.device)
    if task == "causal-lm":
        return logits[:, :-1], labels[:, 1:]
    return logits, labels.reshape(-1) if task == "sequence-classification" else labels
