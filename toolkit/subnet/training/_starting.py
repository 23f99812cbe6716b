"""The model that training starts from: a small one from random weights, or one that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import FileFormatError, InputError, MissingInputError, UnsafeFileError
from subnet.training._ahead import check_finite
from subnet.training._models import heads_of, is_of
from subnet.training._small_models import small_encoder, small_writer
from subnet.training.config import TrainingConfig
from subnet.training.tokenizer import build_tokenizer


def starting_model(
    config: TrainingConfig, labels: Sequence[str], folder: Path, seed: int
) -> tuple[Any, Any]:
    """Model and tokenizer before any training of ours.

    Args:
        config: What is asked for.
        labels: What the model tells apart.
        folder: What paths of the configuration are relative to.
        seed: Seed of weights that are drawn: all of a small model, the head of another. A head that
            tells other labels apart is drawn anew, unless its labels have no names (`LABEL_0`).

    Raises:
        MissingInputError: There is no such model.
        UnsafeFileError: Its weights are a pickle, or it comes with code of its own.
        InputError: Part of it would be random and stay so, or it has too few positions.
    """
    import transformers

    transformers.set_seed(seed)
    if not config.model.name:
        tokenizer = build_tokenizer(config.data.max_length)
        build = small_writer if config.task == "translation" else small_encoder
        model = build(config, labels, len(tokenizer))
        heads = heads_of(model)
        if heads and _stays(config):
            name = next(name for name, _ in model.named_parameters() if is_of(name, heads))
            raise _random_head(f"a small model from random weights has no {name} for these labels")
        return model, tokenizer
    beside = folder / config.model.name
    name = str(beside) if beside.is_dir() else config.model.name
    if not beside.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise MissingInputError("there is no such model folder", path=beside)
    if beside.is_file():
        raise MissingInputError(
            "is a file", path=beside, expected="the folder that save_pretrained wrote"
        )
    if beside.is_dir():
        _check_folder(beside)
    options: dict[str, Any] = {"trust_remote_code": False, "dtype": "float32"}
    options |= {"use_safetensors": True, "output_loading_info": True}
    others: tuple[str, ...] = ()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        settings = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if labels:
            others = _other_labels(settings, labels)
            order = labels_of(settings, labels)
            settings.num_labels = len(order)
            settings.id2label = dict(enumerate(order))
            settings.label2id = {label: index for index, label in enumerate(order)}
            options["ignore_mismatched_sizes"] = True
        kind = _model_class(config.task, settings)
        model, report = kind.from_pretrained(name, config=settings, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise MissingInputError(
            f"there is no model {config.model.name!r} that can be loaded ({reason})",
            expected="a folder that save_pretrained wrote as safetensors, with its tokenizer, or "
            "a name on the hub",
        ) from error
    new = _check_body(report, model, config)
    heads = heads_of(model)
    if others and not any(is_of(name, heads) for name in report["missing_keys"]):
        _check_other_head(config, others, labels)
        _draw_head(model, seed)
    elif new and _stays(config):
        raise _random_head(f"the model {config.model.name!r} has no {new[0]} for these labels")
    check_finite(model, beside if beside.is_dir() else name)
    _check_length(model, config)
    _check_tokenizer(tokenizer, model, beside if beside.is_dir() else name)
    if tokenizer.pad_token is None:  # as of many decoders
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def labels_of(model: Any, labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in the order of a model's outputs (or its configuration's), where it has the same."""
    found = getattr(model, "config", model).id2label or {}
    order = tuple(str(found[index]) for index in sorted(found))
    return order if set(order) == set(labels) and len(order) == len(labels) else tuple(labels)


def _other_labels(settings: Any, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that a configuration names, where they are not these; none that are made up."""
    found = settings.id2label or {}
    unnamed = all(str(label) == f"LABEL_{index}" for index, label in found.items())
    names = tuple(sorted(map(str, found.values())))
    return () if unnamed or set(names) == set(labels) else names


def _check_other_head(config: TrainingConfig, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Refuse a head that was trained on other labels where the new one would stay random."""
    if _stays(config):
        raise _random_head(
            f"the head of the model {config.model.name!r} tells other labels apart "
            f"({_listed(theirs)}) than these data have ({_listed(ours)})",
            fix="if they mean the same, rename those in id2label and label2id of its config.json",
        )


def _draw_head(model: Any, seed: int) -> None:
    """Draw the head anew, all of it: of as many labels as ours it was loaded as it is."""
    import torch
    from transformers import set_seed

    set_seed(seed)
    with torch.no_grad():
        for name in heads_of(model):
            for part in model.get_submodule(name).modules():
                for value in part.parameters(recurse=False):
                    # Else transformers leaves it as it was loaded.
                    value._is_hf_initialized = False  # noqa: SLF001
                model._init_weights(part)  # noqa: SLF001 - has no other name


def _listed(labels: Sequence[str], most: int = 6) -> str:
    names = sorted(labels)
    more = f" and {len(names) - most} others" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _stays(config: TrainingConfig) -> bool:
    """Whether the head that training starts from is never trained."""
    return not config.base.steps and config.adaptation.head == "frozen"


def _random_head(found: str, fix: str | None = None) -> InputError:
    return InputError(
        f"{found}, and a new one would stay random",
        expected="base.steps above 0, which train it, or adaptation.head = 'shared' or "
        "'per_language'",
        fix=fix,
    )


def _model_class(task: str, settings: Any) -> Any:
    import transformers

    if task == "sequence-classification":
        return transformers.AutoModelForSequenceClassification
    if task == "token-classification":
        return transformers.AutoModelForTokenClassification
    if settings.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def _check_folder(folder: Path) -> None:
    """Refuse pickles, damaged weights and code that came with a model, each by its name."""
    from subnet.checkpoint.tensors import open_model_store

    place = folder / "config.json"
    if not place.is_file():
        raise MissingInputError("has no config.json", path=folder, fix="copy it beside the weights")
    settings = _files.read_json(place)
    if not isinstance(settings, dict):
        raise FileFormatError("holds no object", path=place, expected="a model's configuration")
    for file in sorted(folder.glob("*token*.json")):
        _files.read_json(file)
    if settings.get("auto_map"):
        raise UnsafeFileError(
            "names code of its own (auto_map), which loading it would run",
            path=place,
            expected="a model that transformers knows",
        )
    open_model_store(folder)


def _check_tokenizer(tokenizer: Any, model: Any, place: str | Path) -> None:
    """Refuse a tokenizer without a vocabulary, or of another model.

    A folder without the files of one is no error to transformers: it makes one that knows no word.
    """
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise MissingInputError(
            "has no tokenizer, or one that knows no token",
            path=place,
            expected="tokenizer.json, or the vocabulary of its tokenizer, beside the weights",
            fix="copy it from where the model was trained: tokenizer.save_pretrained(folder)",
        )
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise InputError(
            f"its tokenizer has {len(tokenizer)} tokens and its model embeds {known}",
            path=place,
            expected="a model and its own tokenizer",
        )


def _check_body(report: Mapping[str, Any], model: Any, config: TrainingConfig) -> list[str]:
    """Refuse a body that is partly random; what else is, the head by its name before a pooler."""
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    new = sorted({*report["missing_keys"], *mismatched})
    heads = heads_of(model)
    # A pooler is new where a model was trained without one, and stands with the head.
    body = [name for name in new if not is_of(name, heads) and "pooler" not in name.split(".")]
    if body:
        raise InputError(
            f"the model {config.model.name!r} has no weights for {body[0]}"
            + (f" and {len(body) - 1} others" if len(body) > 1 else ""),
            expected="a model for this task",
            fix="check task and model.name",
        )
    return sorted(new, key=lambda name: not is_of(name, heads))


def _check_length(model: Any, config: TrainingConfig) -> None:
    """Refuse inputs beyond the positions that a model has learnt."""
    from torch import nn

    for name, part in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("position_embeddings", "embed_positions", "wpe") and isinstance(
            part, nn.Embedding
        ):
            offset = getattr(part, "offset", 0)
            before = offset if part.padding_idx is None else part.padding_idx + 1
            positions = part.num_embeddings - before
            if config.data.max_length > positions:
                raise InputError(
                    f"data.max_length is {config.data.max_length}, and {config.model.name!r} has "
                    f"{positions} positions",
                    expected=f"data.max_length of {positions} or less",
                )
