"""Sums over examples of what each example's gradient says of every weight of linear layers.

The gradient of one example with respect to W [o, i] is g = Σ_t δ_t x_tᵀ: x_t what the layer was
given at position t, δ_t the derivative of that example's loss by what it gave. Both are recorded
in one pass over a batch, so that examples need no loop and no parameter needs a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import evaluation_mode, example_losses, find_task
from subnet.model.per_example import LayerRecord, by_example, frozen, record_layers
from subnet.subnetwork import _scores

#: Numbers of per-example gradients that are held at once: 16 MB in float32, or one example's.
_CHUNK = 1 << 22

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Layers:
    """Linear layers of a model, by the names of their weights in its `state_dict`.

    Attributes:
        modules: Name of the weight to the layer.
        transposed: Weights that are stored as [input, output] (`Conv1D` of GPT-2).
        left_out: Names asked for that are no weight of a linear layer of its own.
    """

    modules: Mapping[str, nn.Module]
    transposed: frozenset[str]
    left_out: tuple[str, ...]

    def weight(self, name: str) -> Tensor:
        """The weight, outside the graph."""
        weight: Any = self.modules[name].weight
        return weight.detach()  # type: ignore[no-any-return]


def find_layers(model: nn.Module, names: Iterable[str]) -> Layers:
    """The linear layers that hold the named weights.

    A weight that is tied to another module is left out: what flows through its layer is only a
    part of its gradient.

    Raises:
        InputError: The model carries an adapter that is not merged, or none of the names is the
            weight of a linear layer.
    """
    from transformers.pytorch_utils import Conv1D

    found: dict[str, nn.Module] = {}
    owners: dict[int, set[nn.Module]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise InputError(
                f"{name} of {type(model).__name__} carries an adapter",
                expected="a model whose adapters are merged",
                fix="load_model(..., merge=True), or merge_and_unload()",
            )
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(module)
        if isinstance(module, nn.Linear | Conv1D):
            found[f"{name}.weight" if name else "weight"] = module
    wanted = sorted(set(names))
    modules = {
        name: found[name]
        for name in wanted
        if name in found and len(owners[id(found[name].weight)]) == 1
    }
    if not modules:
        raise InputError(
            f"{type(model).__name__} has no linear layer among the {len(wanted)} parameters",
            expected="weights of linear layers of its own",
        )
    return Layers(
        modules=modules,
        transposed=frozenset(name for name in modules if isinstance(modules[name], Conv1D)),
        left_out=tuple(name for name in wanted if name not in modules),
    )


def sum_of_powers(
    model: nn.Module, layers: Layers, batches: Batches, *, power: int, expected: bool = False
) -> tuple[dict[str, Tensor], int]:
    """Σ_n |g_n|^power over examples n, and the number of examples that have a loss.

    Args:
        model: A model for one of the tasks of `find_task`. Its mode and which of its parameters
            take gradients are restored; `.grad` is not touched.
        layers: Of this model.
        batches: Model inputs with `labels`, without padding.
        power: 1 or 2.
        expected: Instead of the gradient at the true label, the expectation over the labels c
            that the model itself gives: Σ_n Σ_c p(c|x_n) |∇ log p(c|x_n)|^power.

    Returns:
        Weight to its sums, float64 of its shape; and n.
    """
    if expected:
        _refuse_other_than_classification(model)
    sums = {
        name: torch.zeros_like(layers.weight(name), dtype=torch.float64) for name in layers.modules
    }
    n_examples = 0
    with evaluation_mode(model), frozen(model), torch.enable_grad():
        for batch in batches:
            with record_layers(layers.modules) as record:
                terms = _label_terms(model, batch) if expected else _true_terms(model, batch)
            labelled = torch.ones_like(terms[0][0], dtype=torch.bool)
            if not expected:
                labelled = _scores.labelled(model, batch).to(labelled.device)
            n = len(labelled)
            for number, (losses, scale) in enumerate(terms):
                more = number + 1 < len(terms)
                # Not nansum: the loss of a broken model is NaN too, and has to be seen.
                loss = losses[labelled].sum()
                for name, given, delta in _pairs(record, loss, n, keep=more):
                    left, right = (given, delta) if name in layers.transposed else (delta, given)
                    _add_powers(sums[name], left, right, scale, power)
            n_examples += int(labelled.sum())
    return sums, n_examples


def sum_of_squared_inputs(
    model: nn.Module, layers: Layers, batches: Batches
) -> tuple[dict[str, Tensor], int]:
    """Σ x_j² over all examples and positions, per input j of each layer, and the number of x.

    Returns:
        Weight to [i] float64; and the number of examples.
    """
    sums: dict[str, Tensor] = {}
    n_examples = 0
    with evaluation_mode(model), torch.no_grad():
        for batch in batches:
            with record_layers(layers.modules) as record:
                n_examples += len(example_losses(model, batch))
            for name, inputs in record.inputs.items():
                for given in inputs:
                    flat = given.reshape(-1, given.shape[-1]).double()
                    sums[name] = sums.get(name, 0) + flat.square().sum(dim=0)
            _refuse_unused(record)
    return sums, n_examples


def _refuse_unused(record: LayerRecord) -> None:
    if record.unused is not None:
        raise InputError(
            f"the layer of {record.unused} was not called",
            expected="a layer that takes part in the forward pass",
            fix="its module may use the weight in another way; extract by magnitude instead",
        )


def _pairs(
    record: LayerRecord, loss: Tensor, n: int, *, keep: bool
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(weight, inputs [n, t, i], derivatives of the loss by the outputs [n, t, o])."""
    _refuse_unused(record)
    for name, calls in record.derivatives(loss, keep=keep):
        if calls:
            # Calls of a shared layer are further positions: their gradients add up.
            yield (
                name,
                torch.cat([by_example(x, n, name) for x, _ in calls], dim=1),
                torch.cat([by_example(delta, n, name) for _, delta in calls], dim=1),
            )


def _true_terms(model: nn.Module, batch: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    losses = example_losses(model, batch)
    return [(losses, torch.ones_like(losses, requires_grad=False))]


def _label_terms(model: nn.Module, batch: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """[(−log p(c|x_n) [n], p(c|x_n) [n]) for every label c], of one forward pass."""
    device = next(model.parameters()).device
    inputs = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
        if key != "labels"
    }
    logits: Tensor = model(**inputs).logits
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    return [(-column, column.detach().exp()) for column in log_p.unbind(dim=-1)]


def _refuse_other_than_classification(model: nn.Module) -> None:
    config: Any = model.config
    task = find_task(model)
    kind = config.problem_type or "single_label_classification"
    if task != "sequence-classification" or kind != "single_label_classification":
        found = task if task != "sequence-classification" else kind.replace("_", " ")
        raise InputError(
            f"labels is 'model' and the model is for {found}",
            expected="sequence classification with one label per example",
            fix="take labels='true'",
        )
    if config.num_labels < 2:
        raise InputError(
            "labels is 'model' and the model has one output",
            expected="at least two labels",
            fix="take labels='true'",
        )


def _add_powers(total: Tensor, left: Tensor, right: Tensor, scale: Tensor, power: int) -> None:
    """Add Σ_n scale_n |Σ_t left_nt right_ntᵀ|^power; left [n, t, a], right [n, t, b]."""
    n, n_positions, _ = left.shape
    if n_positions == 1:  # |δ xᵀ|^power factorises
        a, b = left[:, 0].abs() ** power, right[:, 0].abs() ** power
        total += (a * scale[:, None]).double().T @ b.double()
        return
    step = max(1, _CHUNK // total.numel())
    for start in range(0, n, step):
        part = slice(start, start + step)
        each = torch.einsum("nta,ntb->nab", left[part], right[part])
        each = each.square_() if power == 2 else each.abs_()
        total += torch.einsum("n,nab->ab", scale[part].to(each.dtype), each)
