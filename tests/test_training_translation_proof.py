"""Small models learn to translate from scratch, and lose directions when others are trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from sacrebleu.metrics import BLEU, CHRF

from subnet.training import build_tokenizer
from subnet.training._quiet import undisturbed
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.tasks import Translation
from subnet.training.translation_data import kinds_of_direction, load_directions

DIRECTIONS = ("en>ru", "ru>en", "en>de", "de>en")
BYTES = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def t5():
    config = transformers.T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0,
        dropout_rate=0.0, **BYTES,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def llama():
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192,
        max_position_embeddings=256, initializer_range=0.1, **BYTES,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def by_direction(task, model, rows):
    """Score of each direction; every item's is checked against sacrebleu."""
    outcome = task.evaluate(model, rows, batch_size=64)
    for place, (row, output) in enumerate(zip(rows, outcome.outputs, strict=True)):
        pair = output, [row["target"]]
        assert outcome.items["sentence_chrf"][place] == CHRF().sentence_score(*pair).score
        bleu = BLEU(effective_order=True).sentence_score(*pair).score
        assert outcome.items["sentence_bleu"][place] == min(bleu, 100.0)
    directions = np.array([row["language"] for row in rows])
    found = {}
    for direction in DIRECTIONS:
        places = np.flatnonzero(directions == direction)
        scores = task.summarise([rows[i] for i in places], outcome.select(places))
        found[direction] = {score.metric: round(score.value, 2) for score in scores}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("build", [t5, llama])
def test_a_model_from_scratch_translates_better_than_a_copy(build, tmp_path):
    data = load_directions(DIRECTIONS, kinds=("date", "duration", "money"))
    rows = data.test[::3]
    torch.manual_seed(0)
    model = build()
    task = Translation.of(
        model, build_tokenizer(128), instruction="{target_code} {source}", max_length=96,
        identify_among=("en", "de", "ru"),
    )  # fmt: skip
    recipe = Recipe(steps=300, learning_rate=3e-3, batch_size=32)
    with undisturbed():
        fit(model, task.encode(data.train), recipe, collate=task.collate, seed=0, folder=tmp_path)
    before = by_direction(task, model, rows)
    copies = task.references(rows).set_index("language")
    for direction in DIRECTIONS:
        assert before[direction]["chrf"] > copies.loc[direction, "copy_chrf"] + 5, direction
    trained = ["en>de"]
    kinds = kinds_of_direction(trained, DIRECTIONS).set_index("language")["group"]
    for tuning, rate in (("full", 3e-3), ("lora", 1e-2)):
        tuned = copy.deepcopy(model)
        if tuning == "lora":
            tuned = get_peft_model(
                tuned, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
            )
        own = [row for row in data.train if row["language"] in trained]
        with undisturbed():
            fit(
                tuned, task.encode(own), recipe.replace(steps=60, learning_rate=rate),
                collate=task.collate, seed=0, folder=tmp_path,
            )  # fmt: skip
        after = by_direction(task, tuned, rows)
        for direction in DIRECTIONS:
            print(build.__name__, tuning, direction, kinds[direction], before[direction],  # noqa: T201
                  after[direction])  # fmt: skip
