"""The stacks of a model, run once for the hidden states of all their layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError
from subnet.model import base_model
from subnet_probes._encoding import Encoded

DECODER = "decoder."
_EVERY = ("all", "decoder")


@dataclass(frozen=True)
class States:
    """Hidden states of one batch.

    Attributes:
        hidden: Layer name to [n, t, d]; t differs between encoder and decoder.
        counted: Stack (`""` or `"decoder."`) to [n, t] booleans: tokens that count.
    """

    hidden: Mapping[str, Tensor]
    counted: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Stacks:
    """What of a model is run.

    Attributes:
        module: The part without the task's head; where only the encoder is wanted, the encoder.
        decoder: Whether the module is run with its decoder.
        pad: Number that stands where there is no token.
        masked: Whether it takes an attention mask.
    """

    module: nn.Module
    decoder: bool
    pad: int
    masked: bool

    def run(self, rows: Sequence[Encoded]) -> States:
        """One forward pass over a batch, padded on the right.

        Raises:
            InputError: The model cannot read it, or gives no hidden states.
        """
        device = next(self.module.parameters()).device
        width = max(len(row.inputs["input_ids"]) for row in rows)
        inputs = {
            key: _padded([row.inputs[key] for row in rows], self.pad if key == "input_ids" else 0)
            for key in rows[0].inputs
            if all(key in row.inputs for row in rows)
        }
        there = _padded([[1] * len(row.counted) for row in rows], 0)
        if self.masked:
            inputs["attention_mask"] = there
        counted = {"": _padded([list(map(int, row.counted)) for row in rows], 0).bool().to(device)}
        if self.decoder:
            given, mask = _for_the_decoder(rows, self.pad)
            inputs |= given
            self._check_takes(given)
            counted[DECODER] = mask.to(device)
        options: dict[str, Any] = {"output_hidden_states": True}
        if "use_cache" in inspect.signature(self.module.forward).parameters:
            options["use_cache"] = False
        try:
            output = self.module(**{k: v.to(device) for k, v in inputs.items()}, **options)
        except (IndexError, RuntimeError) as error:
            positions = getattr(self.module.config, "max_position_embeddings", None)
            if isinstance(error, RuntimeError) and not (positions and width > positions):
                raise
            largest = int(inputs["input_ids"].max())
            raise InputError(
                f"{type(self.module).__name__} cannot read {width} tokens with ids up to {largest} "
                f"({error})",
                expected="a length and ids that it knows",
                fix="give its own tokenizer, or max_length=",
            ) from error
        return States(self._named(output), counted)

    def _check_takes(self, given: Mapping[str, Tensor]) -> None:
        taken = inspect.signature(self.module.forward).parameters
        absent = next((key for key in given if key not in taken), None)
        if absent is not None:
            raise InputError(
                f"{type(self.module).__name__} takes no {absent}",
                expected="'decoder_input_ids' in the examples, or a model with a head",
            )

    def _named(self, output: Any) -> dict[str, Tensor]:
        stacks = {"": "encoder_hidden_states", DECODER: "decoder_hidden_states"}
        found: dict[str, Tensor] = {}
        for prefix, name in stacks.items() if self.decoder else [("", "hidden_states")]:
            states = getattr(output, name, None)
            if not states:
                raise InputError(
                    f"{type(self.module).__name__} gives no hidden states",
                    expected="a transformers model that has output_hidden_states",
                )
            found |= {f"{prefix}{number}": state for number, state in enumerate(states)}
        return found


def find_stacks(model: nn.Module, *, decoder: bool) -> Stacks:
    """What to run of a model; heads for tasks are left out where they can be.

    Raises:
        InputError: It is no transformers model, has no decoder of its own, or prepends tokens.
    """
    from transformers import PreTrainedModel

    inner: Any = base_model(model)
    if not isinstance(inner, PreTrainedModel):
        raise InputError(
            f"the model is a {type(inner).__name__}",
            expected="a transformers model, or a PEFT model around one",
        )
    refuse_prompts(model)
    two = bool(inner.config.is_encoder_decoder) and hasattr(inner.base_model, "decoder")
    if decoder and not two:
        raise InputError(
            f"{type(inner).__name__} has one stack",
            expected="layers by number, such as '6'",
            fix="the layers of a decoder alone have no prefix",
        )
    module: Any = inner.base_model
    if two:
        module = inner if decoder else inner.get_encoder()
    pad = getattr(inner.config, "pad_token_id", None)
    masked = "attention_mask" in inspect.signature(module.forward).parameters
    return Stacks(module, decoder, pad if isinstance(pad, int) and pad >= 0 else 0, masked)


def asks_for_decoder(layers: Any) -> bool:
    """Whether layers of a decoder beside an encoder are asked for."""
    listed = [layers] if isinstance(layers, str | int) else list(layers)
    return any(str(layer).startswith(DECODER.rstrip(".")) for layer in listed)


def choose_layers(layers: Any, known: Sequence[str], model: str) -> tuple[str, ...]:
    """Names of the layers that are asked for, in the order of the model.

    Args:
        layers: `"all"` (of the encoder, where there are two stacks), `"decoder"`, a name or number
            or several; negative numbers count from the end of the first stack.
        known: Layers of the model.
        model: For messages.

    Raises:
        InputError: One is asked for that does not exist.
    """
    first = [name for name in known if not name.startswith(DECODER)]
    listed: list[Any] = [layers] if isinstance(layers, str | int) else list(layers)
    chosen: set[str] = set()
    for layer in listed:
        if layer in _EVERY:
            of_decoder = layer == "decoder"
            chosen |= {name for name in known if name.startswith(DECODER) == of_decoder}
            continue
        number = isinstance(layer, int) and not isinstance(layer, bool)
        name = first[layer] if number and -len(first) <= layer < 0 else str(layer)
        if name not in known:
            raise InputError(
                f"layer {layer!r} is asked for and {model} has {len(first) - 1} layers",
                expected=f"0 (embeddings) to {len(first) - 1}"
                + (f", or decoder.0 to {known[-1]}" if len(known) > len(first) else ""),
            )
        chosen.add(name)
    if not chosen:
        raise InputError("no layer is asked for", expected='"all", or numbers of layers')
    return tuple(name for name in known if name in chosen)


def _for_the_decoder(rows: Sequence[Encoded], pad: int) -> tuple[dict[str, Tensor], Tensor]:
    """What the decoder reads, and which of its positions are tokens."""
    given = [row.decoder or {} for row in rows]
    key = "labels" if all("labels" in each for each in given) else "decoder_input_ids"
    if not all(key in each for each in given):
        raise InputError(
            "some examples have labels and others decoder_input_ids", expected="one of them for all"
        )
    values = [each[key] for each in given]
    mask = _padded([[1] * len(each) for each in values], 0)
    # The model makes its decoder's input of labels, whose padding is −100.
    inputs = {key: _padded(values, -100 if key == "labels" else pad)}
    if key != "labels":
        inputs["decoder_attention_mask"] = mask
    return inputs, mask.bool()


def refuse_prompts(model: Any) -> None:
    """Refuse adapters that lengthen the text.

    Raises:
        InputError: It has one.
    """
    kinds = [
        c for c in getattr(model, "peft_config", {}).values() if hasattr(c, "is_prompt_learning")
    ]
    if any(config.is_prompt_learning for config in kinds):
        raise InputError(
            "the adapter prepends tokens of its own to every text",
            expected="an adapter that changes layers, such as LoRA",
        )


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
