"""What a model consists of: attention heads and FFN neurons, and the weights that are theirs.

A head's output is its slice of the *input* of the attention's output projection; a neuron's is its
element of the input of the FFN's down projection. There both are gated and captured.

Policy on weights: a head is its rows of the query, key and value projections (with their biases)
and its *columns* of the output projection. With grouped queries a head is its query rows and output
columns, and the key and value rows belong to the group. A neuron is its rows of the up and gate
projections (with their biases) and its column of the down projection. The biases of the output and
down projections, normalisations, embeddings and task heads belong to no unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from subnet.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

#: When rows that several query heads share count as selected.
Sharing = Literal["any", "all"]


@dataclass(frozen=True)
class Projection:
    """A linear layer, or the part of a fused one that plays one role.

    Attributes:
        module: Its name in the base (`"model.layers.0.self_attn.q_proj"`).
        shape: Shape of its weight as stored, of the whole matrix where it is fused.
        transposed: Whether the weight is stored as [input, output] (`Conv1D` of GPT-2).
        has_bias: Whether it has a bias, one number per output.
        start, stop: Its outputs within the matrix.
    """

    module: str
    shape: tuple[int, int]
    transposed: bool
    has_bias: bool
    start: int
    stop: int

    @property
    def weight(self) -> str:
        """Name of the weight in the base's `state_dict`."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str:
        """Name of the bias in the base's `state_dict`."""
        return f"{self.module}.bias"

    @property
    def width(self) -> int:
        """Number of outputs."""
        return self.stop - self.start

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return self.shape[0 if self.transposed else 1]

    @property
    def n_outputs(self) -> int:
        """Number of outputs of the whole matrix."""
        return self.shape[1 if self.transposed else 0]


@dataclass(frozen=True)
class Attention:
    """The heads of one attention block.

    Attributes:
        module: Name of the block in the base.
        layer: `"3"`, or `"encoder.3"` / `"decoder.3"` in models with two stacks.
        kind: `"self"` or `"cross"` (the decoder's attention to the encoder).
        query, key, value, output: Its projections.
        n_heads: Query heads.
        n_kv_heads: Key and value heads; each serves `n_heads / n_kv_heads` query heads.
        head_dim: Width of a head.
    """

    module: str
    layer: str
    kind: Literal["self", "cross"]
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def group_size(self) -> int:
        """Query heads per key and value head."""
        return self.n_heads // self.n_kv_heads

    def slice_of(self, head: int) -> slice:
        """The head's part of the output projection's input."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)


@dataclass(frozen=True)
class FeedForward:
    """The neurons of one FFN.

    Attributes:
        module: Name in the base of the module that holds it.
        layer: As of `Attention`.
        up: Projection to the neurons.
        gate: The second projection to the neurons, which goes through the activation function
            (`act(gate(x)) · up(x)`); None where there is one only.
        down: Projection from the neurons.
    """

    module: str
    layer: str
    up: Projection
    gate: Projection | None
    down: Projection

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return self.down.n_inputs


@dataclass(frozen=True)
class Units:
    """Heads and neurons of a model, in the order in which its modules are defined.

    Tensor for heads are one vector of `n_heads`, for neurons one of `n_neurons`: all blocks one
    after another, so that stacks of different sizes need no padding. `heads_to_frame` says which
    is which.

    Attributes:
        architecture: Class of the model.
        attentions: Attention blocks.
        feed_forwards: FFNs.
    """

    architecture: str
    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]

    @cached_property
    def n_heads(self) -> int:
        """Heads of all blocks."""
        return sum(block.n_heads for block in self.attentions)

    @cached_property
    def n_neurons(self) -> int:
        """Neurons of all FFNs."""
        return sum(block.n_neurons for block in self.feed_forwards)

    def split_heads(self, values: Tensor) -> Iterator[tuple[Attention, Tensor]]:
        """Each block with its part of values [..., n_heads]: views, so gradients pass.

        Raises:
            InputError: The last axis is not as long as there are heads.
        """
        sizes = [block.n_heads for block in self.attentions]
        self._check(values, self.n_heads, "heads")
        return zip(self.attentions, torch.split(values, sizes, dim=-1), strict=True)

    def split_neurons(self, values: Tensor) -> Iterator[tuple[FeedForward, Tensor]]:
        """Each FFN with its part of values [..., n_neurons].

        Raises:
            InputError: The last axis is not as long as there are neurons.
        """
        sizes = [block.n_neurons for block in self.feed_forwards]
        self._check(values, self.n_neurons, "neurons")
        return zip(self.feed_forwards, torch.split(values, sizes, dim=-1), strict=True)

    def heads_to_frame(self) -> pd.DataFrame:
        """One row per head, in the order of the vectors: module, layer, kind, head, group."""
        import pandas as pd

        return pd.DataFrame(
            [
                (block.module, block.layer, block.kind, head, head // block.group_size)
                for block in self.attentions
                for head in range(block.n_heads)
            ],
            columns=["module", "layer", "kind", "head", "group"],
        )

    def neurons_to_frame(self) -> pd.DataFrame:
        """One row per neuron, in the order of the vectors: module, layer, neuron."""
        import pandas as pd

        return pd.DataFrame(
            [
                (block.module, block.layer, neuron)
                for block in self.feed_forwards
                for neuron in range(block.n_neurons)
            ],
            columns=["module", "layer", "neuron"],
        )

    def weights_of_heads(
        self, mask: Tensor | Sequence[bool], *, shared: Sharing = "any"
    ) -> dict[str, Tensor]:
        """The weights of the selected heads.

        Args:
            mask: [n_heads] booleans: the heads.
            shared: With grouped queries, whether the key and value rows of a group are selected
                when `"any"` of its heads is, or when `"all"` are. Keep heads with `"any"`: what is
                kept then works. Remove heads with `"all"`: what is left then works. The one is
                the complement of the other.

        Returns:
            Base parameter name to booleans of its shape, for every parameter of which heads own
            a part.

        Raises:
            InputError: The mask is not one boolean per head.
        """
        masks = _Masks()
        for block, selected in self.split_heads(_booleans(mask, "heads")):
            rows = selected.repeat_interleave(block.head_dim)
            groups = selected.reshape(block.n_kv_heads, block.group_size)
            of_group = groups.any(dim=1) if shared == "any" else groups.all(dim=1)
            shared_rows = of_group.repeat_interleave(block.head_dim)
            masks.select_outputs(block.query, rows)
            masks.select_outputs(block.key, shared_rows)
            masks.select_outputs(block.value, shared_rows)
            masks.select_inputs(block.output, rows)
        return masks.found

    def weights_of_neurons(self, mask: Tensor | Sequence[bool]) -> dict[str, Tensor]:
        """The weights of the selected neurons.

        Args:
            mask: [n_neurons] booleans: the neurons.

        Returns:
            Base parameter name to booleans of its shape, for every parameter of which neurons own
            a part.

        Raises:
            InputError: The mask is not one boolean per neuron.
        """
        masks = _Masks()
        for block, selected in self.split_neurons(_booleans(mask, "neurons")):
            masks.select_outputs(block.up, selected)
            if block.gate is not None:
                masks.select_outputs(block.gate, selected)
            masks.select_inputs(block.down, selected)
        return masks.found

    def _check(self, values: Tensor, n: int, what: str) -> None:
        length = values.shape[-1] if values.ndim else 0
        if length != n:
            raise InputError(
                f"{length} values were given for the {what} of {self.architecture}",
                expected=f"{n}, one per {what[:-1]}, on the last axis",
            )

    def __repr__(self) -> str:
        return (
            f"Units({self.architecture}: {self.n_heads} heads in {len(self.attentions)} attention "
            f"blocks, {self.n_neurons} neurons in {len(self.feed_forwards)} FFNs)"
        )


class _Masks:
    """Boolean tensors that grow as parts of parameters are selected."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def select_outputs(self, projection: Projection, rows: Tensor) -> None:
        """Rows of [o, i], with their biases."""
        mask = self._of(projection.weight, projection.shape)
        outputs = mask.T if projection.transposed else mask
        outputs[projection.start : projection.stop] |= rows[:, None]
        if projection.has_bias:
            bias = self._of(projection.bias, (projection.n_outputs,))
            bias[projection.start : projection.stop] |= rows

    def select_inputs(self, projection: Projection, columns: Tensor) -> None:
        """Columns of [o, i]; the bias belongs to nobody."""
        mask = self._of(projection.weight, projection.shape)
        outputs = mask.T if projection.transposed else mask
        outputs |= columns

    def _of(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.found:
            self.found[name] = torch.zeros(shape, dtype=torch.bool)
        return self.found[name]


def _booleans(mask: Tensor | Sequence[bool], what: str) -> Tensor:
    tensor = torch.as_tensor(mask).detach().cpu()
    if tensor.dtype != torch.bool or tensor.ndim != 1:
        raise InputError(
            f"the mask of {what} is {str(tensor.dtype).removeprefix('torch.')} "
            f"{list(tensor.shape)}",
            expected=f"one boolean per {what[:-1]}",
            fix="compare with a threshold first",
        )
    return tensor
