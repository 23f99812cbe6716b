"""ΔW equals what PEFT itself adds to the base, for every variant of LoRA."""

import warnings

import pytest
import torch

import checkpoint_makers as makers
from subnet.checkpoint import open_checkpoint
from subnet.checkpoint.peft import read_adapters
from subnet.errors import InputError, MissingInputError, NotComparableError

VARIANTS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"layer.0.attention.self.query": 2, "value": 7}},
    "alpha pattern": {"alpha_pattern": {"query": 3, r".*layer\.1.*value": 11}},
    "both patterns, rank-stabilised": {
        "use_rslora": True,
        "rank_pattern": {"query": 2},
        "alpha_pattern": {"value": 5},
    },
    "all targets": {"target_modules": makers.BERT_TARGETS},
    "all linear": {"target_modules": "all-linear"},
    "by expression": {"target_modules": r".*layer\.1\..*(query|key)"},
    "one layer": {"layers_to_transform": [1]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random B": {"init_lora_weights": False},
}


def one_update(tmp_path, build=makers.bert, *, with_base=True, **settings):
    """(update read from disk, PEFT's own ΔW by merging) of one German adapter."""
    if with_base:
        makers.save_base(build(), tmp_path / "base")
    model = makers.lora(build(), 1, **settings)
    makers.save_adapter(model, tmp_path / "adapters" / "de")
    expected = makers.merged_difference(model, build())
    (update,) = open_checkpoint(tmp_path).updates
    return update, expected


def check(update, expected, tolerance=1e-6):
    """Every parameter agrees, and none that PEFT changed is left out."""
    changed = {name for name, delta in expected.items() if delta.abs().max() > 1e-7}
    assert changed == set(update.shapes) | {name for name in update.apart if name in expected}
    for name, shape in update.shapes.items():
        assert expected[name].shape == shape
        torch.testing.assert_close(update.dense(name), expected[name], atol=tolerance, rtol=1e-4)
        if update.is_low_rank:
            left, right = update.factors(name)
            assert left.shape == (shape[0], update.rank(name))
            assert right.shape == (update.rank(name), shape[1])
            assert left.dtype == right.dtype == torch.float32
            torch.testing.assert_close(left @ right, expected[name], atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("with_base", [True, False], ids=["base here", "base elsewhere"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_delta_equals_the_merge_of_peft(tmp_path, variant, with_base):
    check(*one_update(tmp_path, with_base=with_base, **VARIANTS[variant]))


def test_factors_are_the_tensors_that_pefts_own_loader_reads(tmp_path):
    from peft.utils.save_and_load import load_peft_weights

    update, _ = one_update(tmp_path, use_rslora=True)
    stored = load_peft_weights(str(tmp_path / "adapters" / "de"), device="cpu")
    name = "bert.encoder.layer.0.attention.self.query"
    a, b = (stored[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    left, right = update.factors(f"{name}.weight")
    assert torch.equal(right, a)
    assert torch.equal(update.first_factor(f"{name}.weight"), a)
    torch.testing.assert_close(left, b * 6 / 4**0.5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("with_base", [True, False])
def test_layers_that_store_input_by_output_keep_the_bases_orientation(tmp_path, with_base):
    update, expected = one_update(
        tmp_path, makers.gpt2, with_base=with_base, target_modules=["c_attn", "c_proj"],
        fan_in_fan_out=True,
    )  # fmt: skip
    assert update.transposed == frozenset(update.shapes)
    assert update.shapes["transformer.h.0.attn.c_attn.weight"] == (16, 48)
    check(update, expected)


def test_orientation_is_decided_layer_by_layer_where_peft_wrapped_both_kinds(tmp_path):
    # With lm_head adapted last, PEFT writes fan_in_fan_out=False although c_attn is transposed.
    update, expected = one_update(
        tmp_path, makers.gpt2, target_modules=["c_attn", "attn.c_proj", "lm_head"]
    )
    config = read_adapters(tmp_path / "adapters" / "de")[0].config
    assert config["fan_in_fan_out"] is False
    assert "lm_head.weight" not in update.transposed
    assert "transformer.h.0.attn.c_proj.weight" in update.transposed  # square: follows its layer
    for name in update.shapes:
        if "lm_head" not in name:  # the merge of a tied head also moves the embeddings
            torch.testing.assert_close(update.dense(name), expected[name], atol=1e-6, rtol=1e-4)


def test_dora_is_computed_against_base_weights(tmp_path):
    update, expected = one_update(tmp_path, use_dora=True)
    assert not update.is_low_rank
    check(update, expected, tolerance=1e-5)
    with pytest.raises(NotComparableError, match="DoRA's change has no low-rank factors"):
        update.factors(next(iter(update.shapes)))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_is_taken_into_account(tmp_path, start):
    # PEFT's merge holds residual + s·B·A; the true base is what the folder has.
    update, expected = one_update(tmp_path, init_lora_weights=start)
    naive = makers.delta_weights(makers.lora(makers.bert(), 1, init_lora_weights=start))
    name = next(iter(update.shapes))
    assert (naive[name] - expected[name]).abs().max() > 0.05
    assert update.rank(name) == 8
    check(update, expected, tolerance=1e-5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA rescales the base's weights, which are not here"),
        ({"init_lora_weights": "pissa"}, "initialised with pissa, which changes the base's"),
        ({"init_lora_weights": "olora"}, "initialised with olora, which changes the base's"),
    ],
)
def test_what_needs_base_weights_is_skipped_with_the_reason_when_there_are_none(
    tmp_path, settings, reason
):
    makers.write_lora_directory(tmp_path, ("de",), with_base=False, **settings)
    makers.save_adapter(makers.lora(makers.bert(), 2), tmp_path / "adapters" / "fr")
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["fr"]
    (skipped,) = found.skipped
    assert reason in skipped.reason
    assert "base/" in skipped.fix


def test_an_initialisation_that_the_files_do_not_record_is_refused(tmp_path):
    makers.write_lora_directory(tmp_path, ("de", "fr"))
    config = tmp_path / "adapters" / "de" / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "corda"')
    )
    (skipped,) = open_checkpoint(tmp_path).skipped
    assert "corda" in skipped.reason
    assert skipped.path.name == "de"


def test_adapters_that_are_not_lora_are_skipped_by_name(tmp_path):
    from peft import IA3Config, get_peft_model

    makers.write_lora_directory(tmp_path, ("de",))
    with makers.quiet():
        model = get_peft_model(
            makers.bert(), IA3Config(target_modules=["query"], feedforward_modules=[])
        )
        model.save_pretrained(tmp_path / "adapters" / "fr", save_embedding_layers=False)
    (skipped,) = open_checkpoint(tmp_path).skipped
    assert "PEFT type is IA3" in skipped.reason


def test_saved_heads_biases_and_embeddings_stand_apart(tmp_path):
    update, expected = one_update(
        tmp_path, target_modules=["query", "word_embeddings"], modules_to_save=["classifier"],
        bias="all",
    )  # fmt: skip
    assert set(update.shapes) == {
        f"bert.encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)
    }
    kinds = update.apart_kinds
    assert kinds["classifier.weight"] == "saved modules"
    assert kinds["bert.embeddings.word_embeddings.weight"] == "LoRA on embeddings"
    assert kinds["bert.encoder.layer.0.attention.self.query.bias"] == "biases"
    for name in ("classifier.weight", "bert.embeddings.word_embeddings.weight"):
        torch.testing.assert_close(update.dense(name), expected[name], atol=1e-6, rtol=1e-4)
    query_bias = "bert.encoder.layer.0.attention.self.query.bias"
    torch.testing.assert_close(update.dense(query_bias), expected[query_bias], atol=1e-6, rtol=1e-4)


def test_a_trained_lora_bias_is_scaled_as_peft_merges_it(tmp_path):
    update, expected = one_update(tmp_path, lora_bias=True)
    name = "bert.encoder.layer.0.attention.self.query.bias"
    assert update.apart_kinds[name] == "LoRA bias"
    torch.testing.assert_close(update.dense(name), expected[name], atol=1e-6, rtol=1e-4)


def test_a_head_that_the_base_lacks_has_no_difference(tmp_path):
    makers.save_base(makers.bert().bert, tmp_path / "base")
    makers.save_adapter(
        makers.lora(makers.bert(), 1, modules_to_save=["classifier"]), tmp_path / "adapters" / "de"
    )
    (update,) = open_checkpoint(tmp_path).updates
    with pytest.raises(MissingInputError, match=r"classifier\.weight was trained, and the base's"):
        update.dense("classifier.weight")


def test_a_base_saved_without_its_head_still_fits(tmp_path):
    # The bare encoder calls its tensors encoder.layer.0…, the adapter bert.encoder.layer.0….
    makers.save_base(makers.bert().bert, tmp_path / "base")
    model = makers.lora(makers.bert(), 1, use_dora=True)
    makers.save_adapter(model, tmp_path / "adapters" / "de")
    (update,) = open_checkpoint(tmp_path).updates
    expected = makers.merged_difference(model, makers.bert())
    for name in update.shapes:
        torch.testing.assert_close(update.dense(name), expected[name], atol=1e-5, rtol=1e-4)


def test_half_precision_adapters_are_read_as_they_are_stored(tmp_path):
    model = makers.lora(makers.bert(), 1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    makers.save_adapter(model, tmp_path / "adapters" / "de")
    (update,) = open_checkpoint(tmp_path).updates
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a = module.lora_A["default"].weight.float()
            b = module.lora_B["default"].weight.float()
            plain = name.removeprefix("base_model.model.") + ".weight"
            torch.testing.assert_close(update.dense(plain), 1.5 * b @ a, atol=1e-6, rtol=1e-5)


def test_only_the_pair_that_is_asked_for_is_read(tmp_path, monkeypatch):
    from subnet.checkpoint.tensors import TensorStore

    update, _ = one_update(tmp_path)
    read = []
    original = TensorStore.read
    monkeypatch.setattr(TensorStore, "read", lambda s, n: read.append(n) or original(s, n))
    update.factors("bert.encoder.layer.1.attention.self.value.weight")
    assert len(read) == 2
    assert all("layer.1.attention.self.value" in name for name in read)


def test_norm_in_the_table_is_that_of_the_dense_change(tmp_path):
    update, expected = one_update(tmp_path)
    frame = update.to_frame()
    for row in frame.itertuples():
        assert row.norm == pytest.approx(expected[row.parameter].norm().item(), rel=1e-4)
    assert set(frame["layer"]) == {"0", "1"}


def test_two_seeds_of_one_language_are_replicates_in_another_run(tmp_path):
    makers.write_lora_directory(tmp_path, ("de", "fr"))
    makers.save_adapter(
        makers.lora(makers.bert(), 9), tmp_path / "runs" / "replicate" / "adapters" / "de"
    )
    found = open_checkpoint(tmp_path)
    assert found.runs == ("main", "replicate")
    assert [(u.run, str(u.language)) for u in found.updates] == [
        ("main", "de"), ("main", "fr"), ("replicate", "de"),
    ]  # fmt: skip
    assert len({update.base for update in found.updates}) == 1
    assert len(found.languages) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    model = makers.lora(makers.bert(), 1)
    dict(model.named_parameters())[
        "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.default.weight"
    ].data[0, 0] = value
    makers.save_adapter(model, tmp_path / "adapters" / "de")
    (update,) = open_checkpoint(tmp_path).updates
    update.factors("bert.encoder.layer.0.attention.self.query.weight")
    with pytest.raises(
        InputError, match=r"layer\.1\.attention\.self\.query\.lora_B\.weight holds 1 "
    ):
        update.factors("bert.encoder.layer.1.attention.self.query.weight")


def test_an_adapter_of_another_architecture_is_named_with_its_base(tmp_path):
    makers.save_base(makers.xlm_roberta(), tmp_path / "base")
    makers.save_adapter(makers.lora(makers.bert(), 1), tmp_path / "adapters" / "de")
    with pytest.raises(
        NotComparableError, match=r"has rank 4 on bert\.encoder\.layer\.0.*no such module"
    ):
        open_checkpoint(tmp_path).updates  # noqa: B018


def test_an_adapter_of_another_width_is_named_with_both_shapes(tmp_path):
    import transformers

    wide = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=3,
    )  # fmt: skip
    makers.save_base(transformers.BertForSequenceClassification(wide), tmp_path / "base")
    makers.save_adapter(makers.lora(makers.bert(), 1), tmp_path / "adapters" / "de")
    with pytest.raises(NotComparableError, match=r"has \[32, 32\] there, not \[16, 16\]"):
        open_checkpoint(tmp_path).updates  # noqa: B018


def test_adapters_that_state_different_bases_are_refused_by_both_names(tmp_path):
    for seed, (language, base) in enumerate([("de", "org/base-one"), ("fr", "org/base-two")]):
        model = makers.lora(makers.bert(), seed, base=base)
        makers.save_adapter(model, tmp_path / "adapters" / language)
    with pytest.raises(NotComparableError) as caught:
        open_checkpoint(tmp_path).updates  # noqa: B018
    assert "org/base-one" in str(caught.value)
    assert "org/base-two" in str(caught.value)


def test_two_base_folders_of_one_architecture_are_told_apart_by_content(tmp_path):
    makers.write_lora_directory(tmp_path / "a", ("de",))
    makers.save_base(makers.bert(seed=5), tmp_path / "b" / "base")
    makers.save_adapter(makers.lora(makers.bert(seed=5), 1), tmp_path / "b" / "adapters" / "de")
    with pytest.raises(NotComparableError, match="was trained on the base"):
        open_checkpoint([tmp_path / "a", tmp_path / "b"]).updates  # noqa: B018


def test_adapters_with_disjoint_targets_can_both_be_read(tmp_path):
    # Refusing to compare them is overlap's part; here each says what it has.
    for seed, (language, target) in enumerate([("de", "query"), ("fr", "value")]):
        model = makers.lora(makers.bert(), seed, target_modules=[target])
        makers.save_adapter(model, tmp_path / "adapters" / language)
    german, french = open_checkpoint(tmp_path).updates
    assert not set(german.shapes) & set(french.shapes)


def test_resolving_the_scale_raises_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update, _ = one_update(
            tmp_path, makers.gpt2, target_modules=["c_attn"], fan_in_fan_out=True
        )
        update.factors(next(iter(update.shapes)))


def test_factors_whose_rank_contradicts_the_configuration_are_refused(tmp_path):
    makers.write_lora_directory(tmp_path, ("de",))
    config = tmp_path / "adapters" / "de" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    (update,) = open_checkpoint(tmp_path).updates
    with pytest.raises(InputError, match=r"factors of rank 4, adapter_config\.json says 8"):
        update.factors(next(iter(update.shapes)))


@pytest.mark.parametrize(
    "setting", [{"lora_alpha": "x"}, {"r": None}, {"rank_pattern": [1]}, {"r": 0}]
)
def test_settings_that_peft_cannot_use_are_an_error_of_the_file(tmp_path, setting):
    import json

    makers.write_lora_directory(tmp_path, ("de",))
    path = tmp_path / "adapters" / "de" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    (update,) = open_checkpoint(tmp_path).updates
    name = next(iter(update.shapes))
    with pytest.raises(
        InputError, match=r"adapter_config\.json: has settings that PEFT cannot use"
    ):
        update.dense(name)


def test_the_bias_of_a_saved_head_belongs_to_the_head(tmp_path):
    makers.write_lora_directory(tmp_path, ("de",), modules_to_save=["classifier"])
    (update,) = open_checkpoint(tmp_path).updates
    assert set(update.apart) == {"classifier.weight", "classifier.bias"}
    assert set(update.apart_kinds.values()) == {"saved modules"}


def test_dora_finds_its_base_where_the_adapter_says(tmp_path):
    makers.save_base(makers.bert(), tmp_path / "models of ours")
    root = tmp_path / "checkpoint"
    makers.save_adapter(
        makers.lora(makers.bert(), 1, use_dora=True, base=str(tmp_path / "models of ours")),
        root / "adapters" / "de",
    )
    (update,) = open_checkpoint(root).updates
    assert update.dense(next(iter(update.shapes))).abs().sum() > 0
