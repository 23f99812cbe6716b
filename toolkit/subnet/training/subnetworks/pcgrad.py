"""PCGrad: of every language's gradient, what goes against another language's is projected away.

Yu et al. 2020 (arXiv 2001.06782). For each language i, starting from its gradient, and for each
other j in random order: where ⟨g_i', g_j⟩ < 0, g_i' ← g_i' − ⟨g_i', g_j⟩ / ‖g_j‖² · g_j, with the
*original* g_j throughout. The paper adds the g_i' up; here their mean is taken, so that without
conflict it is the gradient of the mean loss.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Trainer

from subnet.errors import InputError
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks._by_language import (
    Collate,
    Features,
    Parts,
    check_languages,
    draw,
)


def projection_weights(
    products: NDArray[np.float64], orders: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """How much of each original gradient is in each projected one.

    Every projected gradient is a sum of original ones, so inner products are all that is needed.

    Args:
        products: [l, l], ⟨g_i, g_j⟩.
        orders: For each i, the other languages in the order in which it is projected.

    Returns:
        [l, l], C with g_i' = Σ_j C_ij g_j.
    """
    weights = np.eye(len(products))
    for i, order in enumerate(orders):
        for j in order:
            inner = weights[i] @ products[:, j]
            if inner < 0 and products[j, j] > 0:
                weights[i, j] -= inner / products[j, j]
    return weights


def random_orders(n: int, *, seed: int, step: int) -> list[list[int]]:
    """For each of n languages the others in random order; depends on the arguments alone."""
    rng = random.Random(f"{seed}\0{step}\0orders")  # noqa: S311 - no secret
    return [rng.sample([j for j in range(n) if j != i], n - 1) for i in range(n)]


class PCGradTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose gradient is the mean of the languages' projected ones; `fit_pcgrad` feeds it.

    Gradients of all trainable parameters together are projected. Holds one gradient per language:
    that of the mean loss over its labels (words, tokens or examples) in the step, however the step
    is divided into passes and processes. Every language counts the same, also where its examples
    are longer.

    Args:
        languages: All that a step has examples of.
        project: False takes the mean of the languages' gradients as they are.
        record: Called at every step with the step and ⟨g_i, g_j⟩ [l, l].
    """

    def __init__(
        self,
        *arguments: Any,
        languages: Sequence[str],
        project: bool = True,
        record: Any = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._languages, self._project = list(languages), project
        self._record = record
        self._sums: dict[str, Tensor] = {}  # parameter name to [l, *shape]
        self._labels = torch.zeros(len(self._languages), device=self.args.device)  # in the step

    def training_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """The mean loss of a batch; after the last pass the projected gradient is in `.grad`."""
        model.train()
        plain = self.accelerator.unwrap_model(model)
        live = {name: p for name, p in plain.named_parameters() if p.requires_grad}
        losses = []
        parts = self._prepare_inputs(inputs)["parts"]
        n = sum(part["n"] for part in parts)
        for part in parts:
            loss = self.compute_loss(plain, part["batch"])
            losses.append(loss.detach() * part["n"] / n)
            found = torch.autograd.grad(loss, list(live.values()), allow_unused=True)
            at, labels = self._languages.index(part["key"]), self._count(part)
            self._labels[at] += labels
            for (name, parameter), gradient in zip(live.items(), found, strict=True):
                if name not in self._sums:
                    shape = (len(self._languages), *parameter.shape)
                    self._sums[name] = parameter.new_zeros(shape)
                if gradient is not None:
                    self._sums[name][at].add_(gradient, alpha=labels)
        if self.accelerator.sync_gradients:
            self._combine(live)
        passes: int = self.current_gradient_accumulation_steps
        return torch.stack(losses).sum() / passes

    def floating_point_ops(self, _: Any) -> int:
        """Not estimated."""
        return 0

    def _count(self, part: Mapping[str, Any]) -> int:
        """Labels that the loss of a part is the mean over; examples where it has none by name."""
        labels = part["batch"].get("labels")
        if labels is None:
            return int(part["n"])
        # Where a model predicts the next token, the first one is no label.
        labels = labels[..., 1:] if getattr(self, "_loss_shifts_labels", False) else labels
        return int(labels.ne(-100).sum())

    def _combine(self, live: Mapping[str, nn.Parameter]) -> None:
        n = len(self._languages)
        products = np.zeros((n, n))
        counts = self._labels
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, "sum")
        for name, sums in self._sums.items():
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums, "sum")
            each = counts.to(sums.dtype).clamp(min=1).reshape(n, *[1] * (sums.dim() - 1))
            self._sums[name] = sums = sums / each
            flat = sums.reshape(n, -1)
            products += (flat @ flat.T).double().cpu().numpy()
        step = self.state.global_step
        if self._record is not None:
            self._record(step, products)
        mean = np.full(n, 1 / n)  # [l]
        if self._project:
            orders = random_orders(n, seed=self.args.seed, step=step)
            mean = projection_weights(products, orders).mean(axis=0)
        for name, sums in self._sums.items():
            weights = torch.tensor(mean, dtype=sums.dtype, device=sums.device)
            live[name].grad = torch.einsum("l,l...->...", weights, sums)
            sums.zero_()
        self._labels.zero_()


def fit_pcgrad(
    model: nn.Module,
    features: Mapping[str, Features],
    recipe: Recipe,
    *,
    collate: Collate,
    seed: int,
    folder: Any,
    project: bool = True,
    **arguments: Any,
) -> Any:
    """Train on all languages together, in place, by PCGrad.

    A step has equally many examples of every language: `recipe.batch_size` / languages of each. The
    loss is the mean of the languages' own, each the mean over its labels.

    Args:
        model: With a loss of its own.
        features: Language to its examples.
        recipe: As of `fit`.
        collate: As of `fit`.
        seed: Of the examples, of the orders of projection and of dropout.
        folder: As of `fit`.
        project: False trains on the same batches and the same loss by the mean of the languages'
            gradients as they are: what to compare with. Where labels are words, that is another
            loss than `fit`'s, which counts languages by their words.
        arguments: `on_step`, `callbacks`, `save_every` and `resume` of `fit`; `record` of
            `PCGradTrainer`.

    Returns:
        The trainer, after its last step.

    Raises:
        InputError: There are fewer than two languages, or one with too few examples; the batch
            cannot be divided among them.
    """
    n = len(features)
    if n and recipe.batch_size % n:
        raise InputError(
            f"a batch of {recipe.batch_size} cannot be divided among {n} languages",
            expected=f"a batch_size that is a multiple of {n}",
        )
    each = recipe.batch_size // max(n, 1)
    check_languages(features, each, "its part of a batch")
    entries: list[Any] = []
    for step in range(recipe.steps):
        drawn = {
            language: draw(len(own), each, seed=seed, step=step, language=language)
            for language, own in features.items()
        }
        # Languages take turns, so that every pass and process has its part of each.
        entries += [
            (language, features[language][drawn[language][turn]])
            for turn in range(each)
            for language in features
        ]
    size = recipe.batch_size
    places = [range(step * size, (step + 1) * size) for step in range(recipe.steps)]
    shared: dict[str, Any] = {"seed": seed, "folder": folder, "batches": places, **arguments}
    return fit(
        model, entries, recipe, collate=Parts(collate), trainer_class=PCGradTrainer,
        languages=list(features), project=project, **shared,
    )  # fmt: skip
