"""A probe on top of a model, and captum's attribution to units between tokens and probe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import Attention, FeedForward, base_modules, evaluation_mode, find_units
from subnet.model.per_example import frozen
from subnet.subnetwork.units import unit_parameters
from subnet_probes._encoding import Encoded
from subnet_probes._pooling import pool_sentences
from subnet_probes._stacks import Stacks
from subnet_probes.probe import Probe

if TYPE_CHECKING:
    from subnet.model import Units

METHODS = ("conductance", "gradient")
#: Where the line of embeddings starts, in every place of a text.
BASELINES = ("mean", "padding", "zero")


@dataclass(frozen=True)
class BlockAttribution:
    """What is asked for.

    Attributes:
        units: `"neuron"` or `"head"`.
        method: `"conductance"` or `"gradient"`.
        baseline: One of `BASELINES`.
        n_steps: Points on the line.
    """

    units: str
    method: str
    baseline: str
    n_steps: int


class Composed:
    """Tokens → hidden states → pooled → log-probability of a label under a probe.

    Args:
        model: A transformers model.
        stacks: What of it is run.
        probe: Fitted on the layer.
        layer: Its name, of the first stack.
        pool: How a sentence becomes one row.
    """

    def __init__(
        self, model: nn.Module, stacks: Stacks, probe: Probe, layer: str, pool: str
    ) -> None:
        self.model, self.stacks, self.layer, self.pool = model, stacks, layer, pool
        weights, bias = probe.affine()
        if len(weights) == 1:  # two classes: one logit, against 0
            weights, bias = np.vstack([0 * weights, weights]), np.concatenate([0 * bias, bias])
        device = next(stacks.module.parameters()).device
        self.weights = torch.from_numpy(weights).to(device)
        self.bias = torch.from_numpy(bias).to(device)
        module: Any = stacks.module
        self.embedding: nn.Module = module.get_input_embeddings()
        self.rows: Sequence[Encoded] = ()
        self.labels: Tensor = torch.zeros(0)

    def hold(self, rows: Sequence[Encoded], labels: NDArray[np.intp]) -> None:
        """The items that `log_probability` is about."""
        self.rows = rows
        self.labels = torch.from_numpy(labels).to(self.bias.device)

    def log_probability(self, embedded: Tensor | None, numbers: Tensor) -> Tensor:
        """[n], of the labels of held items, by number.

        Args:
            embedded: [n, t, d] in place of what the embedding module puts out; None for that.
            numbers: [n], which items.
        """
        rows = [self.rows[int(at)] for at in numbers]
        with _replaced(self.embedding, embedded):
            states = self.stacks.run(rows)
        pooled = pool_sentences(states.hidden[self.layer], states.counted[""], self.pool)
        logits = pooled.to(self.weights.dtype) @ self.weights.T + self.bias
        return logits.log_softmax(dim=-1).gather(1, self.labels[numbers][:, None])[:, 0]

    def blocks(self, units: Units, kind: str) -> dict[str, Attention | FeedForward]:
        """Name to each block of that kind whose output the layer has in it.

        Raises:
            InputError: There is none.
        """
        found: dict[str, Attention | FeedForward] = {}
        for name, block in unit_parameters(units, kind).items():
            stack, _, number = block.layer.rpartition(".")
            if stack != "decoder" and int(number) < int(self.layer):
                found[name] = block
        if not found:
            raise InputError(
                f"layer {self.layer} has no block of {kind}s below it",
                expected="layer 1 or higher; layer 0 is what the embeddings put out",
            )
        return found


def attribute_blocks(
    composed: Composed,
    rows: Sequence[Encoded],
    labels: NDArray[np.intp],
    request: BlockAttribution,
    batch_size: int,
) -> dict[str, NDArray[np.float64]]:
    """Attribution of each item's log-probability to every unit below the probe's layer.

    Args:
        composed: The model with the probe on it.
        rows: [n] items.
        labels: [n], numbers of their labels in the probe's classes.
        request: Which units, and how.
        batch_size: Items at a time.

    Returns:
        Block, named as in masks of units, to [n, units], in the order of the items.

    Raises:
        InputError: A block works on the tokens of all items together.
    """
    blocks = composed.blocks(find_units(composed.model), request.units)
    modules = base_modules(composed.model)
    projections = {name: modules[_projection(block)] for name, block in blocks.items()}
    lengths = [len(row.counted) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    found: dict[str, NDArray[np.float64]] = {}
    start = None if request.method == "gradient" else _start(composed, rows, request.baseline)
    with evaluation_mode(composed.model), frozen(composed.model), torch.enable_grad():
        for batch in _batches(order, lengths, batch_size, padded=composed.stacks.masked):
            composed.hold([rows[at] for at in batch], labels[batch])
            layers = list(projections.values())
            parts = _by_captum(composed, layers, len(batch), request, start)
            for (name, block), values in zip(blocks.items(), parts, strict=True):
                summed = _summed(values, block, len(batch))
                if name not in found:
                    found[name] = np.empty((len(rows), summed.shape[1]))
                found[name][batch] = summed
    return found


def _by_captum(
    composed: Composed,
    layers: list[nn.Module],
    n: int,
    request: BlockAttribution,
    start: Tensor | None,
) -> list[Tensor]:
    """Each layer's attribution [n, t, width] to what it is given."""
    from captum.attr import LayerConductance, LayerGradientXActivation

    numbers = torch.arange(n, device=composed.bias.device)
    if start is None:
        method = LayerGradientXActivation(lambda at: composed.log_probability(None, at), layers)
        found = method.attribute(numbers, attribute_to_layer_input=True)
        return [_single(part) for part in found]
    embedded = _embedded(composed, numbers)
    baseline = start.expand_as(embedded).contiguous()
    return [
        _single(
            # All steps at once: captum then never regroups items of different lengths.
            LayerConductance(composed.log_probability, layer).attribute(
                embedded,
                baseline,
                additional_forward_args=(numbers,),
                n_steps=request.n_steps,
                method="riemann_trapezoid",
                attribute_to_layer_input=True,
            )
        )
        for layer in layers
    ]


def _start(composed: Composed, rows: Sequence[Encoded], baseline: str) -> Tensor:
    """[d], the embedding from which the lines start."""
    ids = [int(i) for row in rows for i in row.inputs["input_ids"]]
    if baseline == "padding":
        ids = [composed.stacks.pad]
    with torch.no_grad():
        tokens, counts = np.unique(ids, return_counts=True)
        vectors = composed.embedding(torch.from_numpy(tokens).to(composed.bias.device))
        shares = torch.from_numpy(counts / counts.sum()).to(vectors)
        mean = shares @ vectors
    return torch.zeros_like(mean) if baseline == "zero" else mean


def _embedded(composed: Composed, numbers: Tensor) -> Tensor:
    """[n, t, d] that the embedding module puts out."""
    found: list[Tensor] = []
    handle = composed.embedding.register_forward_hook(
        lambda module, arguments, output: found.append(output)  # noqa: ARG005
    )
    try:
        with torch.no_grad():
            composed.log_probability(None, numbers)
    finally:
        handle.remove()
    return found[0]


def _batches(
    order: Sequence[int], lengths: Sequence[int], size: int, *, padded: bool
) -> Iterator[list[int]]:
    """Items of similar lengths; of one length where the model takes no mask."""
    batch: list[int] = []
    for at in order:
        if batch and (len(batch) == size or (not padded and lengths[at] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(at)
    yield batch


def _summed(values: Tensor, block: Attention | FeedForward, n: int) -> NDArray[np.float64]:
    """[n, units] from [n, t, width]."""
    if values.ndim != 3 or len(values) != n:
        raise InputError(
            f"{_projection(block)} sees the tokens of all items together, as {list(values.shape)}",
            expected=f"[{n}, tokens, width]",
        )
    if isinstance(block, Attention):
        values = values.reshape(n, -1, block.n_heads, block.head_dim).sum(dim=-1)
    return np.asarray(values.sum(dim=1).double().cpu().numpy())


def _projection(block: Attention | FeedForward) -> str:
    return block.output.module if isinstance(block, Attention) else block.down.module


@contextlib.contextmanager
def _replaced(module: nn.Module, value: Tensor | None) -> Iterator[None]:
    """Let a module put out a given value meanwhile."""
    if value is None:
        yield
        return
    handle = module.register_forward_hook(
        lambda module, arguments, output: value  # noqa: ARG005
    )
    try:
        yield
    finally:
        handle.remove()


def _single(found: Any) -> Tensor:
    part = found[0] if isinstance(found, tuple | list) else found
    return part.detach()  # type: ignore[no-any-return]
