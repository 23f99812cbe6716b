"""A classifier built by hand, of which it is known which heads and neurons carry which language.

A sentence is [start, a word, a number]. The words of two languages are different tokens and say one
bit, the numbers are shared and say another; the class is both bits. Head 0 reads the words of `de`,
head 1 those of `fr`, head 2 the numbers, head 3 nothing that matters. Neurons 0 and 1 pass on what
head 0 found, 2 and 3 what head 1 found, 4 and 5 what head 2 found, the others nothing.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification

START = 3
#: Words per language and per value of the bit.
N_WORDS = 5
FIRST_WORD = {"de": 5, "fr": 15}
FIRST_NUMBER = 25
HEADS = {"de": {0, 2}, "fr": {1, 2}}
NEURONS = {"de": {0, 1, 4, 5}, "fr": {2, 3, 4, 5}}
N_HEADS, N_NEURONS = 4, 24
_BLOCK, _HEAD = 8, 12


def planted_model(seed: int = 0, noise: float = 0.005) -> BertForSequenceClassification:
    """The model, with a little noise on every weight."""
    config = BertConfig(
        vocab_size=40, hidden_size=48, num_hidden_layers=1, num_attention_heads=N_HEADS,
        intermediate_size=N_NEURONS, max_position_embeddings=8, num_labels=4, hidden_act="relu",
        type_vocab_size=1, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" not in name:
                parameter.zero_()
        embeddings = model.bert.embeddings.word_embeddings.weight
        _fill(embeddings, START, 3, 1.0)
        # Where no word says anything, positions do: a path from no words is a gentle one.
        model.bert.embeddings.position_embeddings.weight[:, 3 * _BLOCK : 4 * _BLOCK] = _SIGNS
        for block, first in enumerate((*FIRST_WORD.values(), FIRST_NUMBER)):
            for i in range(N_WORDS):
                _fill(embeddings, first + i, block, 1.0)
                _fill(embeddings, first + N_WORDS + i, block, -1.0)
        layer = model.bert.encoder.layer[0]
        value, output = layer.attention.self.value.weight, layer.attention.output.dense.weight
        for head in range(N_HEADS):
            for i in range(_BLOCK):
                value[head * _HEAD + i, head * _BLOCK + i] = 1
        for head in range(3):  # what head 3 reads is thrown away
            columns = slice(head * _HEAD, head * _HEAD + _BLOCK)
            output[32 + 2 * head, columns] = _SIGNS
            output[33 + 2 * head, columns] = -_SIGNS
        up, down = layer.intermediate.dense.weight, layer.output.dense.weight
        for neuron in range(6):
            up[neuron, 32 + neuron] = 1
            sign = 1 if neuron % 2 == 0 else -1
            to = 38 if neuron < 4 else 40
            down[to, neuron], down[to + 1, neuron] = 3 * sign, -3 * sign
        for i in range(38, 42):
            model.bert.pooler.dense.weight[i, i] = 1
        for label in range(4):
            for bit, to in ((label // 2, 38), (label % 2, 40)):
                sign = 1 if bit == 0 else -1
                model.classifier.weight[label, to] = sign
                model.classifier.weight[label, to + 1] = -sign
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model.eval()


_SIGNS = torch.tensor([1.0, -1.0] * (_BLOCK // 2))


def _fill(embeddings: torch.Tensor, token: int, block: int, sign: float) -> None:
    embeddings[token, block * _BLOCK : (block + 1) * _BLOCK] = sign * _SIGNS


def sentences(language: str, n: int, seed: int = 0) -> list[dict[str, object]]:
    """Tokenised examples with their classes."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        word, number = torch.randint(2 * N_WORDS, (2,), generator=generator).tolist()
        ids = [START, FIRST_WORD[language] + word, FIRST_NUMBER + number]
        label = 2 * (word >= N_WORDS) + (number >= N_WORDS)
        rows.append({"language": language, "input_ids": ids, "labels": int(label)})
    return rows


def batches_of(rows: list[dict[str, object]], size: int = 8) -> list[dict[str, torch.Tensor]]:
    """Model inputs; all sentences are equally long."""
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids = torch.tensor([row["input_ids"] for row in part])
        labels = torch.tensor([row["labels"] for row in part])
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found
