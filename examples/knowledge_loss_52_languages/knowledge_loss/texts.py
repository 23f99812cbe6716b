"""Running texts in place of terms: a small encoder over subwords of the training texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from subnet._files import read_csv_rows
from subnet.errors import MissingInputError

VOCABULARY = 8000
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def prepare(template: Path, data: Path, out: Path, *, vocabulary: int = VOCABULARY) -> Path:
    """Build the encoder and write the configuration that uses it; `<out>/texts.toml`.

    Args:
        template: Configuration whose `path = "data"` and `name = "encoder"` are filled in.
        data: Folder of `<language>.tsv` with index_id, split, category, text.
        out: Where to.
        vocabulary: Subwords.
    """
    files = sorted(data.glob("*.tsv"))
    if not files:
        raise MissingInputError("holds no <language>.tsv", path=data, expected="SIB-200")
    out.mkdir(parents=True, exist_ok=True)
    encoder = out / "encoder"
    text = template.read_text(encoding="utf-8")
    for line, value in (('path = "data"', data.resolve()), ('name = "encoder"', encoder.resolve())):
        key = line.partition(" ")[0]
        text = text.replace(line, f"{key} = {json.dumps(str(value))}")
    config = out / "texts.toml"
    config.write_text(text, encoding="utf-8")
    if not encoder.is_dir():
        _build(files, config, encoder, vocabulary)
    return config


def _build(files: list[Path], config: Path, encoder: Path, vocabulary: int) -> None:
    """Byte-level BPE of the training texts of all languages, and a small BERT over it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        set_seed,
    )

    from subnet._files import new_directory
    from subnet.training.config import read_config

    settings = read_config(config)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _training_texts(files),
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=list(_SPECIAL), initial_alphabet=alphabet,
            show_progress=False,
        ),
    )  # fmt: skip
    start, end = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", start), ("[SEP]", end)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", model_max_length=settings.data.max_length,
    )  # fmt: skip
    set_seed(settings.seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(fast), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=settings.data.max_length,
            type_vocab_size=1, initializer_range=0.1, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, pad_token_id=fast.pad_token_id,
        )
    )  # fmt: skip
    with new_directory(encoder) as building:
        fast.save_pretrained(building)
        model.save_pretrained(building)


def _training_texts(files: list[Path]) -> Iterator[str]:
    for file in files:
        for _, row in read_csv_rows(file):
            if row.get("split") == "train":
                yield row["text"]
