"""Training that starts from other people's models: what is adapted, saved and read again."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file

import subnet
from subnet.model import load_model
from subnet.training import TrainingConfig, build_tokenizer, train
from subnet.training._models import adapted as prepared
from subnet.training.sharing import own_parameters
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
    content = {
        "task": task,
        "languages": ["en>de", "de>en"] if task == "translation" else ["de", "fr"],
        "data": {"max_concepts_per_kind": 12, "max_test": 4, "max_length": 96},
        "model": {"name": "model"},
        "base": {"steps": 1, "batch_size": 8},
        "adaptation": {"tuning": "full", "sharing": "none"} if tuning == "full" else {"rank": 4},
        "training": {"steps": 2, "batch_size": 4, "learning_rate": 1e-2},
    }
    config = TrainingConfig.model_validate(content)
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


def bert():
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=130, pad_token_id=0,
        )
    )  # fmt: skip


def gpt2_labels():
    settings = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=300, **SIZES)
    return transformers.GPT2ForSequenceClassification(settings)


def deberta():
    """A norm that is listed after the blocks is used within them: of relative positions."""
    return transformers.DebertaV2ForTokenClassification(
        transformers.DebertaV2Config(
            vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=130, pad_token_id=0,
            relative_attention=True, norm_rel_ebd="layer_norm", position_buckets=8,
            pos_att_type=["c2p", "p2c"], position_biased_input=False,
        )
    )  # fmt: skip


def qwen():
    """Several tokens end its texts, and its output has weights of its own."""
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, intermediate_size=24, max_position_embeddings=300, pad_token_id=0,
            tie_word_embeddings=False, vocab_size=259, bos_token_id=1, eos_token_id=[2, 1],
        )
    )  # fmt: skip


def t5(kind=transformers.T5ForConditionalGeneration, settings=transformers.T5Config):
    return kind(
        settings(
            vocab_size=259, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2,
            num_heads=2, decoder_start_token_id=0,
        )
    )  # fmt: skip


def mt5():
    return t5(transformers.MT5ForConditionalGeneration, transformers.MT5Config)


def mbart():
    """The norm of its embeddings is listed after its blocks."""
    return transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(
            d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0,
            max_position_embeddings=200, decoder_start_token_id=1, **SIZES,
        )
    )  # fmt: skip


def norm(*names):
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


#: What has no layer number: with the lower layers, and with the upper ones.
BERT_BELOW = {f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
PARTS = {
    bert: (
        {f"bert.{name}" for name in BERT_BELOW | norm("embeddings.LayerNorm")},
        norm("bert.pooler.dense"),
    ),
    deberta: (
        {"deberta.embeddings.word_embeddings.weight", "deberta.encoder.rel_embeddings.weight"}
        | norm("deberta.embeddings.LayerNorm", "deberta.encoder.LayerNorm"),
        set(),
    ),
    gpt2_labels: (
        {"transformer.wte.weight", "transformer.wpe.weight"},
        norm("transformer.ln_f"),
    ),
    llama: ({"model.embed_tokens.weight"}, {"model.norm.weight"}),
    qwen: ({"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}),
    t5: (
        {"shared.weight"},
        {"encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"},
    ),
    mt5: (
        {"shared.weight"},
        {"encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"},
    ),
    m2m: (
        {"model.shared.weight"},
        norm("model.encoder.layer_norm", "model.decoder.layer_norm"),
    ),
    mbart: (
        {"model.shared.weight"}
        | {f"model.{half}.embed_positions.weight" for half in ("encoder", "decoder")}
        | norm("model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"),
        norm("model.encoder.layer_norm", "model.decoder.layer_norm"),
    ),
}


@pytest.mark.parametrize("make", list(PARTS))
def test_what_stands_on_the_upper_layers_is_not_shared_with_the_lower_ones(make):
    below, above = PARTS[make]
    parts = {"tuning": "full", "sharing": "partial", "partial": "lower_layers"}
    adaptation = small_config(adaptation=parts).adaptation
    model = prepared(make().train(), adaptation, 0, 0)
    before = torch.get_rng_state()
    own = own_parameters(model, adaptation, "partial")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not any(part._forward_pre_hooks for part in model.modules())
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    lower = {n for n in trained if _number(n) == 0}
    upper = {n for n in trained if _number(n) == 1}
    assert lower
    assert upper
    assert set(own) == upper | above
    assert trained - set(own) == lower | below


def _number(name):
    """Of the first part that is a number."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


@pytest.mark.parametrize("make", [bert, gpt2_labels, deberta, llama])
def test_what_is_shared_is_below_what_is_a_languages_own(make):
    """Oracle: what enters the first upper block depends on every shared weight and on no own one.

    Weights of a language's own that others' layers stand on would not be its own.
    """
    parts = {"tuning": "full", "sharing": "partial", "partial": "lower_layers"}
    adaptation = small_config(adaptation=parts).adaptation
    torch.manual_seed(0)
    model = prepared(make().eval(), adaptation, 0, 0)
    own = set(own_parameters(model, adaptation, "partial"))
    block = next(
        part
        for name, part in model.named_modules()
        if name.rpartition(".")[2] == "1" and name.count(".") < 4
    )
    seen = []
    block.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    inputs = {"input_ids": torch.tensor([[5, 9, 17, 2]])}
    model(**inputs)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name in own:
            trained[name].add_(torch.randn_like(trained[name]))
        model(**inputs)
        assert torch.equal(seen[0], seen[1])
        for name in set(trained) - own:
            # What is added to all keys the softmax takes away again.
            trained[name].add_(torch.randn_like(trained[name]))
            model(**inputs)
            if not name.endswith(("key.bias", "key_proj.bias")):
                assert not torch.equal(seen[-2], seen[-1]), name


def test_a_lora_on_the_pooler_is_above_the_blocks_too():
    parts = {"targets": ".*(query|pooler.dense)", "partial": "lower_layers"}
    adaptation = small_config(adaptation=parts | {"sharing": "partial"}).adaptation
    model = prepared(bert(), adaptation, 2, 0)
    own = own_parameters(model, adaptation, "partial")
    assert {name.removeprefix("base_model.model.bert.").partition(".lora_")[0] for name in own} == {
        "encoder.layer.1.attention.self.query", "pooler.dense",
    }  # fmt: skip
