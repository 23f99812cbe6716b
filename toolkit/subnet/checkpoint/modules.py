"""Where in a model a parameter stands, read from its name alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

#: Containers of repeated layers; the number that follows is the layer's.
# BERT and its kin say `encoder.layer.3` and have one stack; `encoder.layers.3` and
# `encoder.block.3` are used by models with a decoder, so there the stack is part of the layer.
_CONTAINERS = frozenset({"layer", "layers", "h", "block", "blocks"})
_STACKS = frozenset({"encoder", "decoder"})
_WRAPPERS = frozenset(
    {"model", "transformer", "bert", "roberta", "distilbert", "electra", "deberta", "mpnet"}
)


@dataclass(frozen=True)
class ParameterPlace:
    """Where a parameter stands.

    Attributes:
        layer: `"3"`, or `"encoder.3"` / `"decoder.3"` in models with two stacks; `""` outside the
            repeated layers.
        type: What it is, the same in every layer: `"attention.self.query"`, `"mlp.down_proj"`.
        module: Its module's full name.
    """

    layer: str
    type: str
    module: str


@functools.lru_cache(maxsize=65536)
def describe_parameter(name: str) -> ParameterPlace:
    """Layer, type and module of a parameter.

    Args:
        name: As in the base's `state_dict`.

    Example:
        >>> describe_parameter("model.layers.3.mlp.down_proj.weight")
        ParameterPlace(layer='3', type='mlp.down_proj', module='model.layers.3.mlp.down_proj')
        >>> describe_parameter("decoder.block.0.layer.1.EncDecAttention.k.weight").layer
        'decoder.0'
    """
    module = name.removesuffix(".weight")
    parts = module.split(".")
    at = next(
        (i for i in range(1, len(parts)) if parts[i].isdigit() and parts[i - 1] in _CONTAINERS),
        None,
    )
    if at is None:
        first = 1 if len(parts) > 1 and parts[0] in _WRAPPERS else 0
        return ParameterPlace("", ".".join(parts[first:]), module)
    layer = parts[at]
    stack = parts[at - 2] if at >= 2 else ""
    if stack in _STACKS and parts[at - 1] != "layer":
        layer = f"{stack}.{layer}"
    return ParameterPlace(layer, _type(parts[at + 1 :]), module)


def _type(parts: list[str]) -> str:
    """Names below the layer without numbers (sub-layer of T5, number of an expert)."""
    kept = [
        part
        for i, part in enumerate(parts)
        if not part.isdigit()
        and not (part in _CONTAINERS and i + 1 < len(parts) and parts[i + 1].isdigit())
    ]
    return ".".join(kept)
