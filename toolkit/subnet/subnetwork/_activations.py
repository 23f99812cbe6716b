"""How often each feed-forward neuron fires on the tokens of some examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import evaluation_mode, example_losses
from subnet.model._names import base_model, base_modules
from subnet.model.evaluation import IGNORED

if TYPE_CHECKING:
    from subnet.model import FeedForward, Units

#: Where configurations name the activation function of the FFN.
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn",
                "activation")  # fmt: skip


def activation_probabilities(
    model: nn.Module, units: Units, batches: Iterable[Mapping[str, Any]]
) -> NDArray[np.float64]:
    """P(activation > 0) of every FFN neuron, over all tokens that are no padding.

    The activation is what the activation function puts out, of gated FFNs act(gate(x)) without the
    factor up(x), as the authors' code has it. The functions that are understood have the sign of
    their argument, so it is looked at before them: it is positive exactly where the activation is.
    Of an encoder-decoder, neurons of the decoder see the decoder's tokens.

    The model is put into `eval()` mode meanwhile and left as it was.

    Args:
        model: A model for one of the tasks of `subnet.model.find_task`.
        units: Its units.
        batches: Model inputs with `labels`, one language's.

    Returns:
        [n] in the order of the units.

    Raises:
        InputError: The activation function is not known to keep the sign, or a layer was not
            called.

    Example:
        >>> p = [activation_probabilities(model, units, b) for b in (de, fr)]  # doctest: +SKIP
        >>> language_neurons(np.stack(p), LapeSettings()).selected[0]  # doctest: +SKIP
    """
    return count_activations(model, units, batches)[0]


def count_activations(
    model: nn.Module, units: Units, batches: Iterable[Mapping[str, Any]]
) -> tuple[NDArray[np.float64], dict[str, int]]:
    """P(activation > 0) [n], and how many tokens each stack of the model has seen."""
    _refuse_other_activations(model)
    modules = base_modules(model)
    counts = [torch.zeros(block.n_neurons, dtype=torch.int64) for block in units.feed_forwards]
    seen = [0] * len(counts)
    real: dict[str, Tensor] = {}  # which tokens of the batch are no padding

    def counter(number: int, block: FeedForward) -> Callable[..., None]:
        projection = block.gate or block.up

        def hook(module: nn.Module, given: Any, output: Tensor) -> None:  # noqa: ARG001
            values = output[..., projection.start : projection.stop]
            kept = real[_stack(block)].to(values.device).reshape(-1)
            fires = values.reshape(-1, values.shape[-1]) > 0
            if len(fires) != len(kept):
                raise InputError(
                    f"{projection.module} sees {len(fires)} tokens of a batch of {len(kept)}",
                    expected="every token of every example",
                )
            counts[number] += fires[kept].sum(dim=0).cpu()
            seen[number] += int(kept.sum())

        return hook

    with evaluation_mode(model), torch.no_grad():
        handles = [
            modules[(block.gate or block.up).module].register_forward_hook(counter(number, block))
            for number, block in enumerate(units.feed_forwards)
        ]
        try:
            for batch in batches:
                real.update(_real_tokens(batch))
                example_losses(model, batch)
        finally:
            for handle in handles:
                handle.remove()
    for block, n in zip(units.feed_forwards, seen, strict=True):
        if n == 0:
            raise InputError(f"{block.module} has seen no token", expected="examples with tokens")
    p = [count.numpy() / n for count, n in zip(counts, seen, strict=True)]
    tokens = {_stack(block): n for block, n in zip(units.feed_forwards, seen, strict=True)}
    return np.concatenate(p), tokens


def _stack(block: FeedForward) -> str:
    """`encoder` or `decoder` in models with both, else `model`."""
    stack = block.layer.rpartition(".")[0]
    return stack if stack in ("encoder", "decoder") else "model"


def _real_tokens(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Stack to [n, t] booleans: tokens that are no padding."""
    ids = batch["input_ids"]
    given = batch.get("attention_mask")
    inputs = torch.ones_like(ids, dtype=torch.bool) if given is None else given.bool()
    found = {"model": inputs, "encoder": inputs}
    if "decoder_attention_mask" in batch:
        found["decoder"] = batch["decoder_attention_mask"].bool()
    elif "labels" in batch and batch["labels"].ndim == 2:
        # The decoder reads the labels, one place later; after the last label there is padding.
        labelled = batch["labels"] != IGNORED
        found["decoder"] = labelled.flip(1).cumsum(dim=1).flip(1) > 0
    return found


def _refuse_other_activations(model: nn.Module) -> None:
    """Refuse an activation function that may be positive where its argument is not."""
    from transformers.activations import ACT2FN

    inner = base_model(model)
    config: Any = getattr(inner, "config", None)
    stated = [(name, getattr(config, name, None)) for name in _ACTIVATIONS]
    named = [(name, value) for name, value in stated if isinstance(value, str)]
    x = torch.tensor([-30.0, -8.0, -3.0, -1.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.0, 3.0, 30.0])
    for name, value in named:
        if value not in ACT2FN or not torch.equal(ACT2FN[value](x) > 0, x > 0):
            raise InputError(
                f"{type(inner).__name__} has the activation function {value!r} ({name})",
                expected="one that is positive where its input is, such as gelu, silu or relu",
            )
    if not named:
        raise InputError(
            f"{type(inner).__name__} does not state its activation function",
            expected=f"{', '.join(_ACTIVATIONS[:-1])} or {_ACTIVATIONS[-1]} in its configuration",
        )
