"""What is added to a model to be trained, and which of its parts are heads and layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from subnet.errors import InputError
from subnet.training.config import AdaptationConfig

#: The adapter's name within PEFT.
ADAPTER = "default"


def heads_of(model: Any) -> list[str]:
    """Names of the modules that stand on the encoder: what a task adds to it.

    A model that writes has none: what it writes with is a part of it.
    """
    if model.can_generate():
        return []
    inside = model.base_model_prefix
    return [
        name
        for name, child in model.named_children()
        if name != inside and any(True for _ in child.parameters())
    ]


def adapted(base: Any, adaptation: AdaptationConfig, rank: int, seed: int) -> Any:
    """A copy of the base with what is to be trained: LoRA, or all weights.

    A head that is trained beside LoRA is one of PEFT's `modules_to_save`.

    Raises:
        InputError: The rank is above the width of a layer that it is to be added to, or no module
            has the names that are asked for, or one of a head has: `adaptation.head` says whether
            a head is trained, and then all of it is.
    """
    import re

    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    model = copy.deepcopy(base)
    heads = heads_of(model)
    if adaptation.tuning == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                adaptation.head != "frozen" or name.partition(".")[0] not in heads
            )
        return model
    set_seed(seed)
    targets: Any = adaptation.targets or _linear_pattern(model, heads)
    try:
        wrapped = get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=adaptation.alpha_over_rank * rank,
                lora_dropout=adaptation.dropout,
                target_modules=targets,
                fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
                modules_to_save=None if adaptation.head == "frozen" else heads,
            ),
        )
    except (ValueError, re.error) as error:
        raise InputError(
            f"adaptation.targets is {adaptation.targets!r}, which no module of the model matches",
            expected="a regular expression for whole names, such as .*\\.(query|value)",
        ) from error
    for name, _ in wrapped.named_parameters():
        if ".lora_" in name and is_of(name, heads):
            place = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise InputError(
                f"adaptation.targets is {adaptation.targets!r}, which matches {place}, a part of "
                "the head",
                expected="modules of the body: adaptation.head says whether the head is trained",
                fix=f"leave it out, as by (?!{place.partition('.')[0]}).*\\.(query|value)",
            )
    for name, layer in wrapped.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            width = min(layer.get_base_layer().weight.shape)
            if rank > width:
                place = name.removeprefix("base_model.model.")
                raise InputError(
                    f"adaptation.rank is {rank}, and {place} is {width} wide",
                    expected=f"a rank of {width} or less",
                )
    return wrapped


def _linear_pattern(model: Any, heads: Sequence[str]) -> str:
    """Every linear layer but heads, a pooler, and what writes tokens, by one pattern.

    PEFT keeps a list of names as a set, whose order changes from one process to the next.
    """
    import re

    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D)
    linear = {name for name, part in model.named_modules() if isinstance(part, kinds)}
    out = {name for name, part in model.named_modules() if part is model.get_output_embeddings()}
    left_out = {
        name for name in linear if name in out or is_of(name, heads) or "pooler" in name.split(".")
    }
    last = "|".join(sorted({name.rpartition(".")[2] for name in linear - left_out}))
    but = "|".join(f"{re.escape(name)}$" for name in sorted(left_out))
    return rf"(?!{but}).*\b({last})" if but else rf".*\b({last})"


def is_of(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter, also of a model in PEFT, belongs to one of the top modules."""
    return name.removeprefix("base_model.model.").partition(".")[0] in modules


def layer_of(name: str) -> int | None:
    """Number of the block that a parameter belongs to; None of embeddings, heads and the like."""
    return _block_of(name)[1]


def _block_of(name: str) -> tuple[str, int | None]:
    """The stack of blocks that a parameter or module belongs to, and the number of its block."""
    import re

    found = re.search(r"\.(?:layer|layers|h|block|blocks)\.(\d+)\.", f".{name}.")
    return ("", None) if found is None else (name[: max(found.start() - 1, 0)], int(found.group(1)))


def above_blocks(model: Any, names: Sequence[str]) -> set[str]:
    """Those parameters without a layer number that are used after the last block.

    Found by a pass over two tokens, since modules need not be listed in the order in which they
    run. What stands within a stack of blocks is compared with that stack: the final norm of an
    encoder is above the encoder's blocks, though a decoder follows; the embeddings of the decoder
    are below its own. What stands in none (a pooler, what writes tokens) is compared with all.

    Args:
        model: Also in PEFT.
        names: Of its parameters.

    Returns:
        Poolers, final norms, transforms before an output, and an output whose weights are not the
        embeddings'. What no module's call uses is not among them.
    """
    numberless = [name for name in names if layer_of(name) is None]
    first = _calls(model) if numberless else []
    last: dict[str, int] = {}  # stack to the first call of the last module within its blocks
    for number, name in enumerate(first):
        stack, layer = _block_of(name)
        if layer is not None:
            last[stack] = number
    found = set()
    for name in numberless:
        module = name.rpartition(".")[0]
        around = [stack for stack in last if f"{module}.".startswith(f"{stack}." if stack else "")]
        if not last or module not in first:
            continue
        end = last[max(around, key=len)] if around else max(last.values())
        if first.index(module) > end:
            found.add(name)
    return found


def _calls(model: Any) -> list[str]:
    """Names of modules in the order of their first calls; the model's mode stays."""
    import torch

    from subnet.model import evaluation_mode

    settings = model.config
    ends = settings.eos_token_id  # some have several, others none; some heads read what is at it
    ends = ends[0] if isinstance(ends, list) else ends
    word = next(number for number in range(3) if number not in (settings.pad_token_id, ends))
    ends = word if ends is None else ends
    device = next(model.parameters()).device
    inputs = {"input_ids": torch.tensor([[word, ends]], device=device)}
    if settings.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    order: dict[str, None] = {}

    def watch(name: str) -> Any:
        return lambda *_: order.setdefault(name)

    handles = [part.register_forward_pre_hook(watch(name)) for name, part in model.named_modules()]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)
