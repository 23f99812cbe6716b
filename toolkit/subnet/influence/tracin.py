"""TracInCP with captum's constructor and methods, computed by this toolkit's engine.

Whoever has code for `captum.influence.TracInCP` changes the class and nothing else. captum itself
(BSD-3-Clause) has to be installed; it needs no torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from subnet.errors import InputError, MissingInputError
from subnet.influence.collecting import collect
from subnet.influence.tracking import Tracked, track_parameters

try:
    from captum._utils.progress import progress
    from captum.influence._core.tracincp import TracInCP
    from captum.influence._utils.common import KMostInfluentialResults, _format_inputs_dataset
except ImportError as error:
    raise MissingInputError(
        f"captum cannot be imported ({error})",
        expected="captum, whose class TracIn stands in for",
        fix="pip install captum, or use subnet.attribute",
    ) from error

Loss = Callable[[Tensor, Any], Tensor]


class TracIn(TracInCP):  # type: ignore[misc]
    """Influence by TracInCP (Pruthi et al. 2020, arXiv 2002.08484), to be used as captum's class.

    score(test, train) = Σ_c η_c ⟨∇L(θ_c, test), ∇L(θ_c, train)⟩ over checkpoints c, where η_c is
    what `checkpoints_load_func` returns for checkpoint c. captum's own loader looks for a key
    `learning_rate` beside the weights and returns 1 where there is none.

    The constructor (`model, train_dataset, checkpoints, checkpoints_load_func, layers, loss_fn,
    batch_size, test_loss_fn, sample_wise_grads_per_batch`) and the methods (`influence`,
    `self_influence`, `compute_intermediate_quantities`) are captum's, with the same arguments,
    shapes and return types, and its documentation holds. What differs:

    - The gradients of a batch come from one backward pass in either mode. captum's default goes
      back through the graph of the whole batch once per example.
    - Embeddings, norms and biases are right in either mode. captum's `sample_wise_grads_per_batch`
      knows `Linear` and `Conv2d` only, and leaves out the parameters of other layers in silence;
      captum's `TracInCPFast` sees the last layer's weight and drops its bias.
    - `influence` loads each checkpoint once per dataset instead of once per batch, where the order
      of the training data is fixed. It keeps the scores of all pairs for `k` too.
    - Parameters that require no gradient are left out, where captum fails; and the model runs in
      `eval()` mode, since dropout would make the scores random. Its mode is restored; its weights
      are, as with captum, those of the checkpoint loaded last.
    - `test_loss_fn` may be reduced in another way than `loss_fn`.

    Parameters that the engine has no rule for (convolutions, parameters of one's own) get one
    backward pass per example, as in captum.

    Raises:
        InputError: No parameter requires a gradient, or a layer's output cannot be told apart by
            example.

    Example:
        >>> tracin = TracIn(  # doctest: +SKIP
        ...     model, train, "checkpoints/", loss_fn=nn.CrossEntropyLoss(reduction="none"),
        ...     batch_size=32,
        ... )
        >>> indices, scores = tracin.influence((inputs, labels), k=5)  # doctest: +SKIP
    """

    #: Names of the parameters, and how they were split.
    _splitting: tuple[list[str], Tracked | None, list[str]] | None = None

    def _influence(
        self, inputs: Any, show_progress: bool = False, aggregate: bool = False
    ) -> Tensor:
        """Scores [n_test, n_train], or [1, n_train] of the sum over the test examples."""
        if not _order_is_fixed(self.train_dataloader):
            scores: Tensor = super()._influence(inputs, show_progress, aggregate)
            return scores
        description = f"Using {self.get_name()} to compute influence for training batches"
        return self._scores(inputs, aggregate, description if show_progress else None)

    def _get_k_most_influential(
        self,
        inputs: Any,
        k: int = 5,
        proponents: bool = True,
        show_progress: bool = False,
        aggregate: bool = False,
    ) -> Any:
        """The k largest or smallest scores of every test example, and whose they are."""
        if not _order_is_fixed(self.train_dataloader):
            return super()._get_k_most_influential(inputs, k, proponents, show_progress, aggregate)
        description = (
            f"Using {self.get_name()} to perform computation for getting "
            f"{'proponents' if proponents else 'opponents'}. Processing training batches"
        )
        scores = self._scores(inputs, aggregate, description if show_progress else None)
        values, indices = scores.topk(min(k, scores.shape[1]), dim=1, largest=proponents)
        return KMostInfluentialResults(indices, values)

    def _scores(self, inputs: Any, aggregate: bool, description: str | None) -> Tensor:
        """Scores by going through the training data once per checkpoint."""
        batches = _format_inputs_dataset(inputs)
        total: Tensor | None = None
        for checkpoint in self.checkpoints:
            rate = self.checkpoints_load_func(self.model, checkpoint)
            queries = self._rows(batches, self.test_loss_fn)
            if aggregate:
                queries = (rows.sum(dim=0, keepdim=True) for rows in queries)
            test = torch.cat(list(queries))
            test = test.sum(dim=0, keepdim=True) if aggregate else test
            train: Iterable[Any] = self.train_dataloader
            if description:
                train = progress(train, desc=description, total=self.train_dataloader_len)
            found = torch.cat([test @ part.T for part in self._rows(train, self.loss_fn)], dim=1)
            total = found * rate if total is None else total + found * rate
        if total is None:
            raise InputError("there are no checkpoints")
        return total

    def _rows(self, batches: Iterable[Any], loss_fn: Loss | None) -> Iterator[Tensor]:
        """Gradient of every example of each batch as a row: [n, p]."""
        for batch in batches:
            blocks = self._basic_computation_tracincp(batch[:-1], batch[-1], loss_fn)
            yield torch.cat([block.flatten(start_dim=1) for block in blocks], dim=1)

    def _basic_computation_tracincp(
        self,
        inputs: tuple[Any, ...],
        targets: Tensor | None = None,
        loss_fn: Loss | None = None,
        reduction_type: str | None = None,  # noqa: ARG002 - captum passes that of loss_fn always
    ) -> tuple[Tensor, ...]:
        """Gradients [n, *shape] of a batch by each parameter, in the order of the model's."""
        own = loss_fn is self.loss_fn
        reduction = self.reduction_type if own else self.test_reduction_type

        def losses(model: nn.Module, batch: Any) -> Tensor:
            output: Tensor = model(*batch[:-1])
            if loss_fn is None or batch[-1] is None:
                return output.reshape(len(output), -1).sum(dim=1)
            return _per_example(loss_fn(output, batch[-1]), len(output), reduction)

        names = self._parameter_names()
        tracked, rest = self._split(names)
        found: dict[str, Tensor] = {}
        if tracked is not None:
            found = collect(self.model, tracked, (*inputs, targets), losses).gradients()
        if rest:
            found |= _one_by_one(self.model, rest, (*inputs, targets), losses)
        return tuple(found[name] for name in names)

    def _parameter_names(self) -> list[str]:
        """The parameters asked for that require a gradient, in captum's order."""
        name_of = {id(parameter): name for name, parameter in self.model.named_parameters()}
        modules = [self.model] if self.layer_modules is None else self.layer_modules
        chosen = [p for module in modules for p in module.parameters() if p.requires_grad]
        names = list(dict.fromkeys(name_of[id(parameter)] for parameter in chosen))
        if not names:
            raise InputError(
                f"{type(self.model).__name__} is frozen: no parameter requires a gradient",
                expected="at least the parameters that were trained to require one",
                fix="call requires_grad_() on them, or name them in layers=",
            )
        return names

    def _split(self, names: list[str]) -> tuple[Tracked | None, list[str]]:
        """What the engine tracks, and the names of the other parameters."""
        if self._splitting is None or self._splitting[0] != names:
            whole = _trackable(self.model, names)
            rest = [] if whole else [n for n in names if not _trackable(self.model, [n])]
            known = [name for name in names if name not in rest]
            tracked = track_parameters(self.model, known) if known else None
            self._splitting = (names, tracked, rest)
        return self._splitting[1:]


def _per_example(loss: Tensor, n: int, reduction: str) -> Tensor:
    """Losses [n] whose sum has the derivatives that captum takes.

    A reduced loss cannot be taken apart, and need not be: each example's derivatives by a layer's
    output are those of the sum of all losses, which is the reduced one or n times its mean.
    """
    if reduction == "none":
        return loss.reshape(n, -1).sum(dim=1)
    if loss.ndim:
        raise InputError(
            f"loss_fn gave {list(loss.shape)}",
            expected="one number, the sum or mean over the examples",
            fix="take sample_wise_grads_per_batch=False for a loss per example",
        )
    return loss.expand(n) * (1.0 if reduction == "mean" else 1.0 / n)


def _one_by_one(
    model: nn.Module, names: list[str], batch: Any, losses: Callable[[nn.Module, Any], Tensor]
) -> dict[str, Tensor]:
    """Gradients [n, *shape] of the named parameters, one example of the batch after the other."""
    from subnet.model import evaluation_mode

    live = dict(model.named_parameters())
    n = len(next(value for value in batch if isinstance(value, Tensor)))
    rows = []
    with evaluation_mode(model), torch.enable_grad():
        for at in range(n):
            single = tuple(v[at : at + 1] if isinstance(v, Tensor) else v for v in batch)
            rows.append(
                torch.autograd.grad(losses(model, single).sum(), [live[name] for name in names])
            )
    return {
        name: torch.stack(blocks)
        for name, blocks in zip(names, zip(*rows, strict=True), strict=True)
    }


def _trackable(model: nn.Module, names: list[str]) -> bool:
    try:
        track_parameters(model, names)
    except InputError:
        return False
    return True


def _order_is_fixed(batches: DataLoader[Any]) -> bool:
    """Whether going through the data twice gives the same examples in the same order."""
    sampler = getattr(batches.batch_sampler, "sampler", batches.sampler)
    return type(sampler) is SequentialSampler
