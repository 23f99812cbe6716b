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
            has the names that are asked for.
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
    import re

    found = re.search(r"\.(?:layer|layers|h|block|blocks)\.(\d+)\.", f".{name}")
    return None if found is None else int(found.group(1))
