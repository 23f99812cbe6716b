"""Checkpoints in which it is known what representations encode, where, and when it is lost.

Every token is a sum of directions that are orthogonal to each other and to the mean, and blocks
pass on what they read, so that all layers hold the same; a later stage subtracts one direction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import checkpoint_makers as makers
from subnet.subnetwork import Subnetwork, Subnetworks

LANGUAGES = ("de", "fr", "sw")
#: Language that loses its labels, the stage after which it has, and the layer from which on.
LOST, STAGE, LAYER = "de", 3, "2"
N = 30
WIDTH, NEURONS, FILLERS = 32, 8, 6
#: Neuron of the second block that fires for each language alone.
NEURON = {"de": 3, "fr": 4, "sw": 5}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Whole words, [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary()]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=16,
    )  # fmt: skip


def vocabulary() -> list[str]:
    """Two words for labels and some others, of each language."""
    return [
        f"{language}{word}"
        for language in LANGUAGES
        for word in ("A", "B", *(f"w{i}" for i in range(FILLERS)))
    ]


def directions() -> dict[str, Any]:
    """Unit vectors: `label` and `language` of each language, `written` by its neuron; the rest."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(np.column_stack([np.ones(WIDTH), rng.normal(size=(WIDTH, WIDTH - 1))]))
    basis = basis.T[1:]
    names = [(kind, label) for kind in ("label", "language", "written") for label in LANGUAGES]
    found: dict[str, Any] = {"rest": basis[len(names) :]}
    for (kind, label), vector in zip(names, basis, strict=False):
        found.setdefault(kind, {})[label] = vector
    return found


def model() -> transformers.PreTrainedModel:
    """Blocks that pass on what they read; the second one writes which language it is, too."""
    config = transformers.BertConfig(
        vocab_size=4 + len(vocabulary()), hidden_size=WIDTH, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=NEURONS, max_position_embeddings=16, num_labels=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.BertForSequenceClassification(config)
    known, rng = directions(), np.random.default_rng(1)
    words = np.zeros((config.vocab_size, WIDTH))
    for number, word in enumerate(["", "", "[CLS]", "[SEP]", *vocabulary()]):
        if not word.endswith("B"):  # which differs from A in the direction of the label alone
            rest = rng.normal(size=len(known["rest"])) @ known["rest"] / 3
        words[number] = rest
        if number >= 4:
            label = word[:2]
            words[number] += known["language"][label] / 2
            words[number] += {"A": 1, "B": -1}.get(word[2:], 0) * known["label"][label]
    with torch.no_grad():
        for name, parameter in made.bert.named_parameters():
            if "LayerNorm" not in name:
                parameter.zero_()
        made.bert.embeddings.word_embeddings.weight += torch.tensor(words, dtype=torch.float32)
        for label, neuron in NEURON.items():
            put(made, 1, neuron, 4 * known["language"][label], known["written"][label] / 4)
    return made


def put(made: Any, block: int, neuron: int, reads: Any, writes: Any) -> None:
    """What a neuron reads and writes."""
    layer = made.bert.encoder.layer[block]
    with torch.no_grad():
        layer.intermediate.dense.weight[neuron] = torch.tensor(reads, dtype=torch.float32)
        layer.output.dense.weight[:, neuron] = torch.tensor(writes, dtype=torch.float32)


def write_checkpoint(
    root: Path, *, destroyed: bool = True, adapter: str = "", masks: bool = False
) -> Path:
    """Base, a stage for each language, test examples.

    Args:
        root: Where to write.
        destroyed: Whether the last stage takes the labels of `LOST` away; else all stages are the
            base.
        adapter: A language that has an adapter of its own, which changes a little.
        masks: Whether there are masks of neurons: of each language its own neuron.
    """
    made = model()
    makers.save_base(made, root / "base")
    tokenizer().save_pretrained(root / "base")
    for number, label in enumerate(LANGUAGES, start=1):
        if destroyed and number == STAGE:
            # gelu(z) − gelu(−z) = z, so that both together write −⟨u, h⟩ u.
            u = directions()["label"][LOST]
            put(made, int(LAYER) - 1, 0, u, -u)
            put(made, int(LAYER) - 1, 1, -u, u)
        makers.save_base(made, root / "stages" / f"{number:02d}-{label}")
    if adapter:
        makers.save_adapter(makers.lora(model(), 1), root / "adapters" / adapter)
    makers.write_json_lines(root / "test.jsonl", examples())
    if masks:
        write_masks(root / "masks")
    return root


def examples(languages: tuple[str, ...] = LANGUAGES, n: int = N) -> list[dict[str, Any]]:
    """Parallel sentences: a word that is the label, and words drawn per language."""
    rows = []
    for label in languages:
        rng = np.random.default_rng(LANGUAGES.index(label))
        for number in range(n):
            mark = "AB"[number % 2]
            drawn = rng.integers(FILLERS, size=3)
            words = [f"{label}{mark}", *(f"{label}w{i}" for i in drawn)]
            rows.append({
                "id": f"{label}-{number}", "language": label, "concept": f"c{number}",
                "text": " ".join(words), "label": mark, "tokens": words,
                "tags": ["M", *("XY"[i % 2] for i in drawn)],
            })  # fmt: skip
    return rows


def write_masks(folder: Path) -> None:
    """Masks of neurons: of each language its own."""
    members = []
    for label in LANGUAGES:
        arrays = {f"layers.{block}.neurons": np.zeros(NEURONS, bool) for block in (0, 1)}
        arrays["layers.1.neurons"][NEURON[label]] = True
        members.append(
            Subnetwork.from_arrays(
                arrays, language=label, base="", granularity="neuron", method="planted"
            )
        )
    made = folder.with_name(f"{folder.name}-made")
    Subnetworks(members).save(made)
    (made / "masks").rename(folder)
    made.rmdir()
