"""Checkpoint directories written by transformers and peft themselves, without this project's code.

Every model is tiny, built from a configuration and seeded. Weights that training would have moved
(LoRA's B, the layers of a fine-tuned model) are drawn at random.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

transformers.utils.logging.disable_progress_bar()

BERT_TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]


def bert(seed: int = 0, **settings: Any) -> transformers.PreTrainedModel:
    """Encoder with a head, width 16, two layers."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=3, **settings,
    )  # fmt: skip
    return _seeded(seed, transformers.BertForSequenceClassification, config)


def xlm_roberta(seed: int = 0) -> transformers.PreTrainedModel:
    """XLM-R's shape."""
    config = transformers.XLMRobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=20, num_labels=3, pad_token_id=1,
    )  # fmt: skip
    return _seeded(seed, transformers.XLMRobertaForSequenceClassification, config)


def qwen3(seed: int = 0) -> transformers.PreTrainedModel:
    """Decoder with grouped queries: four query heads share two key and value heads."""
    config = transformers.Qwen3Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=24, max_position_embeddings=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    return _seeded(seed, transformers.Qwen3ForCausalLM, config)


def mt5(seed: int = 0) -> transformers.PreTrainedModel:
    """Encoder-decoder in T5's naming."""
    config = transformers.MT5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return _seeded(seed, transformers.MT5ForConditionalGeneration, config)


def m2m(seed: int = 0) -> transformers.PreTrainedModel:
    """Encoder-decoder in BART's naming."""
    config = transformers.M2M100Config(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=32,
    )  # fmt: skip
    return _seeded(seed, transformers.M2M100ForConditionalGeneration, config)


def gpt2(seed: int = 0) -> transformers.PreTrainedModel:
    """Decoder whose layers store [input, output] (`Conv1D`)."""
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return _seeded(seed, transformers.GPT2LMHeadModel, config)


def save_base(model: torch.nn.Module, folder: Path, **options: Any) -> Path:
    """A base model's folder; `max_shard_size="4KB"` makes shards with an index."""
    with quiet():
        model.save_pretrained(folder, **options)
    return folder


def lora(model: torch.nn.Module, seed: int, *, base: str = "base", **settings: Any) -> PeftModel:
    """The model with a LoRA whose every trainable weight was moved."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value"]} | settings
    torch.manual_seed(seed)
    with quiet():
        peft_model = get_peft_model(model, LoraConfig(base_model_name_or_path=base, **options))
    move(peft_model, seed)
    peft_model.peft_config["default"].base_model_name_or_path = base
    return peft_model


def move(model: torch.nn.Module, seed: int, size: float = 0.1) -> None:
    """Add noise to everything that requires a gradient: a stand-in for training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def save_adapter(peft_model: PeftModel, folder: Path, **options: Any) -> Path:
    """Save as PEFT does, without its attempt to look the base up on the hub."""
    with quiet():
        peft_model.save_pretrained(folder, save_embedding_layers=False, **options)
    return folder


def merged_difference(peft_model: PeftModel, base: torch.nn.Module) -> dict[str, torch.Tensor]:
    """ΔW of every parameter by PEFT's own merge: merged weights minus the base's."""
    before = {name: value.detach().clone() for name, value in base.state_dict().items()}
    with quiet():
        merged = peft_model.merge_and_unload()
    after = merged.state_dict()
    return {name: after[name] - before[name] for name in before if name in after}


def write_lora_directory(
    root: Path,
    languages: Sequence[str] = ("de", "fr", "sw"),
    *,
    build: Any = bert,
    with_base: bool = True,
    **settings: Any,
) -> Path:
    """The documented layout: `base/` and one adapter per language, each with its own seed."""
    if with_base:
        save_base(build(), root / "base")
    for seed, language in enumerate(languages, start=1):
        save_adapter(lora(build(), seed, **settings), root / "adapters" / language)
    return root


def write_stages(
    root: Path, languages: Sequence[str] = ("de", "fr", "sw"), *, build: Any = bert, **settings: Any
) -> list[dict[str, torch.Tensor]]:
    """One LoRA carried through the languages, saved after each.

    Returns:
        Per stage, parameter name to PEFT's own dense ΔW against the base.
    """
    model = lora(build(), 1, **settings)
    deltas = []
    for stage, language in enumerate(languages, start=1):
        move(model, 100 + stage)
        save_adapter(model, root / "stages" / f"{stage:02d}-{language}")
        deltas.append(delta_weights(model))
    return deltas


def delta_weights(model: torch.nn.Module, adapter: str = "default") -> dict[str, torch.Tensor]:
    """Base parameter name to `get_delta_weight` of PEFT's layer."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and adapter in module.scaling:
            plain = name.removeprefix("base_model.model.")
            found[f"{plain}.weight"] = module.get_delta_weight(adapter).detach().clone()
    return found


def write_scores(
    path: Path, order: Sequence[str], languages: Sequence[str] | None = None, *, start: bool = True
) -> Path:
    """A long table of loss and accuracy after every stage."""
    languages = languages or order
    lines = ["stage,language,metric,value,stderr"]
    generator = torch.Generator().manual_seed(0)
    for stage in range(0 if start else 1, len(order) + 1):
        for language in languages:
            for metric in ("accuracy", "loss"):
                value = torch.rand((), generator=generator).item()
                lines.append(f"{stage},{language},{metric},{value:.6f},0.01")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_items(path: Path, order: Sequence[str], n_items: int = 4) -> Path:
    """Per-item accuracy after every stage."""
    lines = ["stage,language,item,metric,value"]
    generator = torch.Generator().manual_seed(1)
    for stage in range(len(order) + 1):
        for language in order:
            for item in range(n_items):
                value = int(torch.rand((), generator=generator).item() > 0.5)
                lines.append(f"{stage},{language},{item:03d},accuracy,{value}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A few labelled rows of random tokens."""

    def __init__(self, n: int, seed: int, tokens: int = 6, labels: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 40, (n, tokens), generator=generator)
        self.labels = torch.randint(0, labels, (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def train_with_trainer(
    model: torch.nn.Module, folder: Path, languages: Sequence[str], *, steps: int = 4
) -> transformers.Trainer:
    """Hugging Face Trainer: half the steps, evaluation of every language, save; twice."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2,
        eval_strategy="steps", eval_steps=steps // 2, save_steps=steps // 2, logging_steps=1,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0, learning_rate=1e-2,
        eval_on_start=True, dataloader_pin_memory=False,
    )  # fmt: skip

    def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
        hits = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(hits.mean())}

    with quiet(), contextlib.redirect_stdout(None):
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(8, 0),
            eval_dataset={name: Rows(5, seed) for seed, name in enumerate(languages, start=1)},
            compute_metrics=accuracy,
        )
        trainer.train()
    return trainer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Other libraries' warnings are theirs, and nothing is looked up on the network."""
    offline = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = offline


def _seeded(seed: int, kind: Any, config: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    with quiet():
        model: transformers.PreTrainedModel = kind(config)
    return model.eval()


def llama(seed: int = 0) -> transformers.PreTrainedModel:
    """Decoder over bytes, for evaluation by lm-evaluation-harness."""
    config = transformers.LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.7,
    )  # fmt: skip
    return _seeded(seed, transformers.LlamaForCausalLM, config)


def save_evaluable(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """Save a model with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    save_base(model, folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def write_lm_eval_tasks(folder: Path) -> Path:
    """Two multiple-choice tasks over local files, five documents in German, three in Swahili."""
    folder.mkdir(parents=True)
    documents = {
        "de": [("Rot ist eine", "Farbe", "Zahl"), ("Drei ist eine", "Zahl", "Farbe"),
               ("Blau ist eine", "Farbe", "Zahl"), ("Neun ist eine", "Zahl", "Farbe"),
               ("Grau ist eine", "Farbe", "Zahl")],
        "sw": [("Nyekundu ni", "rangi", "namba"), ("Tatu ni", "namba", "rangi"),
               ("Bluu ni", "rangi", "namba")],
    }  # fmt: skip
    for language, rows in documents.items():
        data = folder / f"{language}.jsonl"
        write_json_lines(data, [{"q": q, "choices": [a, b], "label": 0} for q, a, b in rows])
        (folder / f"kinds_{language}.yaml").write_text(
            f"task: kinds_{language}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
            f"    test: {data}\ntest_split: test\noutput_type: multiple_choice\n"
            'doc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
            "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
            "  - metric: acc_norm\n    aggregation: mean\n    higher_is_better: true\n"
        )
    return folder
