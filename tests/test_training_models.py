"""Training that starts from other people's models: what is adapted, saved and read again."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file

import subnet
from subnet.model import load_model
from subnet.training import build_tokenizer, train
from training_makers import small_config

SIZES = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2}


def xlm_roberta():
    return transformers.XLMRobertaForMaskedLM(
        transformers.XLMRobertaConfig(
            vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=130, pad_token_id=0,
        )
    )  # fmt: skip


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=300, pad_token_id=0, tie_word_embeddings=True, **SIZES,
        )
    )  # fmt: skip


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=300, **SIZES)
    )


def m2m():
    return transformers.M2M100ForConditionalGeneration(
        transformers.M2M100Config(
            d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0,
            max_position_embeddings=200, decoder_start_token_id=1, **SIZES,
        )
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(
    ("make", "task", "adapted"),
    [
        (xlm_roberta, "token-classification", {"dense", "key", "query", "value"}),
        (
            llama,
            "translation",
            {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"},
        ),
        (gpt2, "sequence-classification", {"c_attn", "c_fc", "c_proj"}),
        (m2m, "translation", {"fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"}),
    ],
)
def test_models_of_other_families_are_trained_saved_and_read_again(
    tmp_path, make, task, adapted, tuning
):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "model")
    tokenizer = build_tokenizer(96)
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    if make is gpt2:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    config = small_config(
        task=task,
        languages=["en>de", "de>en"] if task == "translation" else ["de", "fr"],
        data={"max_concepts_per_kind": 12, "max_test": 4},
        model={"name": "model"},
        base={"steps": 1, "batch_size": 8},
        adaptation={"tuning": tuning, "sharing": "none" if tuning == "full" else "full"},
        training={"steps": 2, "batch_size": 4},
    )
    train(config, tmp_path / "run", folder=tmp_path)
    checkpoint = subnet.open_checkpoint(tmp_path / "run")
    assert not checkpoint.skipped
    language = checkpoint.settings.order[0]
    if tuning == "lora":
        stage = next((tmp_path / "run/stages").glob("01-*"))
        names = load_file(stage / "adapter_model.safetensors")
        assert {name.partition(".lora_")[0].rpartition(".")[2] for name in names} == adapted
        assert not [name for name in names if "head" in name or "score" in name]
        assert len(subnet.measure_overlap(checkpoint.steps).to_frame())
        return
    # Weights of a language's own, tied ones once, are what the analyses read.
    assert len(subnet.measure_overlap(checkpoint.updates).to_frame())
    kind = type(make()) if make is llama else None  # a decoder that translates
    if kind is not None:
        read, base = (
            kind.from_pretrained(tmp_path / "run" / name)
            for name in (f"weights/{language}", "base")
        )
    else:
        read, base = load_model(checkpoint, language=language), load_model(checkpoint)
    tied = read.get_output_embeddings()
    if tied is not None:
        assert tied.weight is read.get_input_embeddings().weight
    changed = {
        name
        for (name, value), before in zip(read.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(value, before)
    }
    assert len(changed) > len(dict(read.named_parameters())) / 2
