"""Finding the heads and neurons of a model from its configuration and the shapes of its layers.

Roles within an attention block come from the usual words for them (q, query, …); which projection
is the output, how many heads there are and which matrices form the FFN come from widths. What does
not add up is refused: a model that is understood wrongly gives numbers that look right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from torch import nn

from subnet.checkpoint import describe_parameter
from subnet.errors import InputError
from subnet.model._names import base_layer, base_model, base_modules
from subnet.model.units import Attention, FeedForward, Projection, Units

_WORDS = {"query": "q|query|queries", "key": "k|key|keys", "value": "v|value|values"}
#: A role's word, alone or with what people add to it: `q`, `q_proj`, `q_lin`, `query`, `wq`.
_ROLES = {
    role: re.compile(rf"(?:w|to_)?(?:{words})(?:_?(?:proj|projection|lin|linear|layer))?", re.I)
    for role, words in _WORDS.items()
}
_COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers",
           "decoder_layers")  # fmt: skip
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
_HEAD_DIMS = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv")
_HEAD_COUNTS = ("num_heads", "n_heads", "num_attention_heads", "n_head")


def find_units(model: nn.Module) -> Units:
    """Attention heads and FFN neurons of a transformer.

    Understood are encoders, decoders (with grouped queries too) and encoder-decoders whose layers
    hold attention with separate query, key and value projections (or GPT-2's fused one) and one
    FFN, plain or gated. A model wrapped by PEFT is understood as its base.

    Args:
        model: A transformers model, on any device (the meta device too): no weight is read.

    Returns:
        The units, under the base's names.

    Raises:
        InputError: The architecture is not understood; it is named, and what in it was not.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = dict(num_hidden_layers=2, hidden_size=16, num_attention_heads=2)
        >>> find_units(BertModel(BertConfig(intermediate_size=24, **sizes)))
        Units(BertModel: 4 heads in 2 attention blocks, 48 neurons in 2 FFNs)
    """
    return _Search(model).units()


@dataclass(frozen=True)
class _Linear:
    """A linear layer of the base, by its name."""

    name: str
    shape: tuple[int, int]
    transposed: bool
    has_bias: bool

    @property
    def n_in(self) -> int:
        return self.shape[0 if self.transposed else 1]

    @property
    def n_out(self) -> int:
        return self.shape[1 if self.transposed else 0]

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]

    def whole(self) -> Projection:
        return self.part(0, self.n_out)

    def part(self, start: int, stop: int) -> Projection:
        return Projection(self.name, self.shape, self.transposed, self.has_bias, start, stop)


class _Search:
    def __init__(self, model: nn.Module) -> None:
        inner = base_model(model)
        self.architecture = type(inner).__name__
        self.config: Any = getattr(inner, "config", None)
        self.modules = base_modules(model)
        if self.config is None or not hasattr(self.config, "to_dict"):
            self._refuse("it has no transformers configuration")
        several = sorted(
            key
            for key in getattr(self.config, "sub_configs", {})
            if getattr(self.config, key, None) is not None
        )
        if several:
            self._refuse(f"it is made of several models ({', '.join(several)})")
        self.linears = {
            name: found
            for name, module in self.modules.items()
            if (found := _linear(name, module)) is not None
        }

    def units(self) -> Units:
        attentions: list[Attention] = []
        feed_forwards: list[FeedForward] = []
        for layer in self._layers():
            blocks = self._attentions(layer)
            attentions += blocks
            feed_forwards.append(self._feed_forward(layer, blocks))
        return Units(self.architecture, tuple(attentions), tuple(feed_forwards))

    def _layers(self) -> list[str]:
        """Names of the repeated layers: elements of the outermost lists of the stated lengths."""
        stated = {key: getattr(self.config, key, None) for key in _COUNTS}
        lengths = {n for n in stated.values() if isinstance(n, int) and n > 0}
        lists = [
            name
            for name, module in self.modules.items()
            if isinstance(module, nn.ModuleList) and len(module) in lengths
        ]
        outer = [name for name in lists if not any(name.startswith(f"{o}.") for o in lists)]
        stacks = [name for name in outer if self._inside(self.linears, name)]
        if not stacks:
            self._refuse(
                f"it has no list of {' or '.join(map(str, sorted(lengths))) or '?'} layers, the "
                "number that its configuration states"
            )
        return [
            f"{name}.{i}"
            for name in stacks
            for i in range(len(list(self.modules[name].children())))
        ]

    def _attentions(self, layer: str) -> list[Attention]:
        found: list[Attention] = []
        parents = dict.fromkeys(linear.parent for linear in self._inside(self.linears, layer))
        for parent in parents:
            beside = [linear for linear in self.linears.values() if linear.parent == parent]
            roles = {
                role: [linear for linear in beside if word.fullmatch(_leaf(linear.name))]
                for role, word in _ROLES.items()
            }
            if all(len(linears) == 1 for linears in roles.values()):
                q, k, v = (roles[role][0].whole() for role in _ROLES)
                found.append(self._attention(layer, parent, q, k, v, len(found)))
            elif fused := _conv1d_of_gpt2(beside):
                n = fused.n_in
                q, k, v = (fused.part(i * n, (i + 1) * n) for i in range(3))
                found.append(self._attention(layer, parent, q, k, v, len(found)))
        if not found:
            self._refuse(
                f"{layer} ({self._kind(layer)}) has no attention with a query, a key and a value "
                f"projection of its own, only {self._list(self._inside(self.linears, layer))}"
            )
        crosses = getattr(self.config, "is_encoder_decoder", False) or getattr(
            self.config, "add_cross_attention", False
        )
        if len(found) > (2 if crosses else 1):
            self._refuse(f"{layer} ({self._kind(layer)}) has {len(found)} attention blocks")
        return found

    def _attention(
        self,
        layer: str,
        parent: str,
        query: Projection,
        key: Projection,
        value: Projection,
        before: int,
    ) -> Attention:
        """The block around query, key and value: with the output projection, and cut into heads."""
        taken = {query.module, key.module, value.module}
        block, outputs = parent, self._outputs(parent, query.width, taken)
        while not outputs and block != layer:
            block = block.rpartition(".")[0]
            outputs = [] if block == layer else self._outputs(block, query.width, taken)
        if len(outputs) != 1 or outputs[0].n_out != query.n_inputs:
            self._refuse(
                f"{parent} ({self._kind(parent)}) has {len(outputs)} projections that could be the "
                f"attention's output (from {query.width} values)"
            )
        head_dim = self._head_dim(parent, query.width)
        n_heads, n_kv_heads = query.width // head_dim, key.width // head_dim
        stated = {getattr(self.config, name, None) for name in _HEADS}
        if (
            query.width % head_dim
            or key.width % head_dim
            or key.width != value.width
            or n_heads % max(n_kv_heads, 1)
            or n_heads not in stated
        ):
            self._refuse(
                f"{parent} ({self._kind(parent)}) has queries, keys and values of {query.width}, "
                f"{key.width} and {value.width}, which do not make the "
                f"{_or(n for n in stated if n is not None)} heads of {head_dim} that its "
                "configuration states"
            )
        kind: Literal["self", "cross"] = "cross" if before else "self"
        place = describe_parameter(f"{outputs[0].name}.weight").layer
        return Attention(
            block, place, kind, query, key, value, outputs[0].whole(), n_heads, n_kv_heads, head_dim
        )

    def _outputs(self, block: str, width: int, taken: set[str]) -> list[_Linear]:
        return [
            linear
            for linear in self._inside(self.linears, block)
            if linear.name not in taken and linear.n_in == width
        ]

    def _head_dim(self, parent: str, width: int) -> int:
        """Width of a head: what the module works with, else what the configuration states."""
        module: Any = self.modules[parent]
        for source in (module, self.config):
            for name in _HEAD_DIMS:
                stated = getattr(source, name, None)
                if isinstance(stated, int) and stated > 0:
                    return stated
            for name in _HEAD_COUNTS:
                n_heads = getattr(source, name, None)
                if isinstance(n_heads, int) and n_heads > 0 and width % n_heads == 0:
                    return width // n_heads
        return self._refuse(f"{parent} ({self._kind(parent)}) does not state how many heads it has")

    def _feed_forward(self, layer: str, attentions: Sequence[Attention]) -> FeedForward:
        """The matrices that attention leaves: one or two up, one down, and nothing else."""
        within = tuple(f"{block.module}." for block in attentions)
        rest = [
            linear
            for linear in self._inside(self.linears, layer)
            if not linear.name.startswith(within)
        ]
        known = {linear.name for linear in rest}
        self._refuse_other_matrices(layer, known, attentions)
        width = attentions[0].output.n_outputs
        downs = [linear for linear in rest if linear.n_out == width]
        ups = [linear for linear in rest if linear.n_in == width]
        if len(rest) == 2 and len(downs) == len(ups) == 2:
            # As wide as the model itself: shapes say nothing, the order of definition does.
            ups, downs = rest[:1], rest[1:]
        if (
            len(downs) != 1
            or len(ups) not in (1, 2)
            or len(rest) != len(ups) + 1
            or any(linear.n_out != downs[0].n_in for linear in ups)
        ):
            self._refuse(
                f"{layer} ({self._kind(layer)}) has {self._list(rest)} beside attention, which are "
                "not one FFN (one or two projections up, one down)"
            )
        gate, up = _gate_first(ups)
        (down,) = downs
        module = _common([linear.name for linear in rest])
        place = describe_parameter(f"{down.name}.weight").layer
        return FeedForward(
            module, place, up.whole(), None if gate is None else gate.whole(), down.whole()
        )

    def _refuse_other_matrices(
        self, layer: str, feed_forward: set[str], attentions: Sequence[Attention]
    ) -> None:
        """Refuse experts, convolutions, routers: every matrix of a layer must be accounted for."""
        known = feed_forward | {
            projection.module
            for block in attentions
            for projection in (block.query, block.key, block.value, block.output)
        }
        for name, module in self.modules.items():
            if not f"{name}.".startswith(f"{layer}.") or name in known:
                continue
            # Embeddings of relative positions belong to no head.
            if isinstance(module, nn.Embedding):
                continue
            matrices = [
                leaf
                for leaf, parameter in base_layer(module).named_parameters(recurse=False)
                if parameter.ndim >= 2
            ]
            if matrices:
                self._refuse(
                    f"{name} ({self._kind(name)}) has a {matrices[0]} that is part neither of "
                    "attention nor of one FFN"
                )

    def _inside(self, linears: Mapping[str, _Linear], block: str) -> list[_Linear]:
        return [linear for name, linear in linears.items() if name.startswith(f"{block}.")]

    def _kind(self, name: str) -> str:
        return type(base_layer(self.modules[name])).__name__

    def _list(self, linears: Sequence[_Linear]) -> str:
        shown = [f"{_leaf(linear.name)} [{linear.n_out}, {linear.n_in}]" for linear in linears[:6]]
        return ", ".join(shown) + (", …" if len(linears) > 6 else "") if shown else "no matrix"

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(
            f"the architecture {self.architecture} is not understood: {why}",
            expected="a transformer whose layers are attention (separate query, key and value) and "
            "one FFN",
            fix="weight masks do not need heads or neurons",
        )


def _linear(name: str, module: nn.Module) -> _Linear | None:
    """The module as a linear layer, None where it is none."""
    from transformers.pytorch_utils import Conv1D

    layer = base_layer(module)
    if not isinstance(layer, nn.Linear | Conv1D) or layer.weight.ndim != 2:
        return None
    rows, columns = layer.weight.shape
    return _Linear(name, (rows, columns), isinstance(layer, Conv1D), layer.bias is not None)


def _conv1d_of_gpt2(beside: Sequence[_Linear]) -> _Linear | None:
    """GPT-2's matrix of queries, keys and values, in this order.

    Other models fuse them in an order of their own (by head, by group), which no shape shows; the
    layer type `Conv1D` is GPT-2's and comes with its order.
    """
    fused = [f for f in beside if f.transposed and f.n_out == 3 * f.n_in]
    return fused[0] if len(fused) == 1 and len(beside) == 2 else None


def _gate_first(ups: Sequence[_Linear]) -> tuple[_Linear | None, _Linear]:
    """(gate, up) of the projections to the neurons.

    Where no name says which is the gate, it is the one defined first (T5's `wi_0`).
    """
    if len(ups) == 1:
        return None, ups[0]
    first, second = ups
    if "gate" in _leaf(second.name) and "gate" not in _leaf(first.name):
        return second, first
    return first, second


def _common(names: Sequence[str]) -> str:
    """The innermost module that holds all of them."""
    split = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _or(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(numbers))) or "?"
