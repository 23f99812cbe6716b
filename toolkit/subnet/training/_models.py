"""The model that training starts from, and what is added to it to be trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subnet.errors import InputError, MissingInputError
from subnet.training.config import AdaptationConfig, TrainingConfig
from subnet.training.tokenizer import SPECIAL_TOKENS, build_tokenizer

#: The adapter's name within PEFT.
ADAPTER = "default"


def starting_model(
    config: TrainingConfig, labels: Sequence[str], folder: Path, seed: int
) -> tuple[Any, Any]:
    """Model and tokenizer before any training of ours.

    Args:
        config: What is asked for.
        labels: What the model tells apart.
        folder: What paths of the configuration are relative to.
        seed: Seed of weights that are drawn: all of a small model, the head of another.

    Raises:
        MissingInputError: There is no such model.
    """
    import transformers

    transformers.set_seed(seed)
    if not config.model.name:
        tokenizer = build_tokenizer(config.data.max_length)
        build = _small_writer if config.task == "translation" else _small_encoder
        return build(config, labels, len(tokenizer)), tokenizer
    beside = folder / config.model.name
    name = str(beside) if beside.is_dir() else config.model.name
    if not beside.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise MissingInputError("there is no such model folder", path=beside)
    options: dict[str, Any] = {"trust_remote_code": False, "dtype": "float32"}
    if labels:
        options |= {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = _model_class(config.task, name).from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise MissingInputError(
            f"there is no model {config.model.name!r} that can be loaded "
            f"({str(error).splitlines()[0]})",
            expected="a folder that save_pretrained wrote, or a name on the hub",
        ) from error
    return model, tokenizer


def _model_class(task: str, name: str) -> Any:
    import transformers

    if task == "sequence-classification":
        return transformers.AutoModelForSequenceClassification
    if task == "token-classification":
        return transformers.AutoModelForTokenClassification
    settings = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if settings.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def _small_encoder(config: TrainingConfig, labels: Sequence[str], vocabulary: int) -> Any:
    import transformers

    sizes = config.model
    settings = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=config.data.max_length,
        type_vocab_size=1,
        initializer_range=sizes.initializer_range,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=SPECIAL_TOKENS.index("[PAD]"),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    if config.task == "sequence-classification":
        return transformers.BertForSequenceClassification(settings)
    return transformers.BertForTokenClassification(settings)


def _small_writer(config: TrainingConfig, _: Sequence[str], vocabulary: int) -> Any:
    import transformers

    sizes = config.model
    special = {
        "vocab_size": vocabulary,
        "pad_token_id": SPECIAL_TOKENS.index("[PAD]"),
        "bos_token_id": SPECIAL_TOKENS.index("[CLS]"),
        "eos_token_id": SPECIAL_TOKENS.index("[SEP]"),
    }
    if sizes.kind == "encoder-decoder":
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=sizes.width,
                d_kv=sizes.width // sizes.heads,
                d_ff=sizes.feed_forward,
                num_layers=sizes.layers,
                num_heads=sizes.heads,
                decoder_start_token_id=special["pad_token_id"],
                dropout_rate=0.0,
                **special,
            )
        )
    written = config.translation.max_new_tokens or config.data.max_length
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.feed_forward,
            max_position_embeddings=config.data.max_length + max(config.data.max_length, written),
            initializer_range=sizes.initializer_range,
            **special,
        )
    )


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
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

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
                modules_to_save=None if adaptation.head == "frozen" else heads,
            ),
        )
    except ValueError as error:
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

    linear = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
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
