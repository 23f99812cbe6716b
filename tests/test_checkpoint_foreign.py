"""Directories that other tools wrote: Trainer, PEFT, transformers, lm-evaluation-harness."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint_makers as makers
from subnet.checkpoint import open_checkpoint
from subnet.errors import NotComparableError

RECORDED = Path(__file__).parent / "fixtures" / "lm_eval"


def test_xlm_r_adapters_with_a_saved_head_trained_by_trainer(tmp_path):
    makers.save_base(makers.xlm_roberta(), tmp_path / "base")
    trained = {}
    for seed, language in enumerate(("de", "zh_Hans"), start=1):
        model = makers.lora(
            makers.xlm_roberta(), seed, modules_to_save=["classifier"], task_type="SEQ_CLS"
        )
        makers.train_with_trainer(model, tmp_path / "adapters" / language, [language], steps=2)
        trained[language] = model
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["de", "zh_Hans"]
    for update in found.updates:
        # The folder itself holds no adapter: Trainer put it into its last checkpoint.
        assert update.source.name == "checkpoint-2"
        expected = makers.merged_difference(trained[str(update.language)], makers.xlm_roberta())
        assert set(update.apart) >= {"classifier.dense.weight", "classifier.out_proj.weight"}
        for name in (*update.shapes, "classifier.dense.weight", "classifier.out_proj.bias"):
            torch.testing.assert_close(update.dense(name), expected[name], atol=1e-6, rtol=1e-4)
    assert {"training_args.bin", "optimizer.pt"} <= {
        path.name for path in found.updates[0].source.iterdir()
    }
    assert found.can("overlap")


def test_a_trainer_output_folder_is_a_sequence_of_evaluated_checkpoints(tmp_path):
    model = makers.lora(makers.bert(), 1)
    trainer = makers.train_with_trainer(model, tmp_path / "out", ["de", "zh_Hans"])
    found = open_checkpoint(tmp_path / "out")
    frame = found.scores.frame
    logged = {
        (entry["step"], key): value
        for entry in trainer.state.log_history
        for key, value in entry.items()
        if key.startswith("eval_") and key.endswith(("_loss", "_accuracy"))
    }
    assert len(logged) == len(frame) == 3 * 2 * 2
    for row in frame.itertuples():
        assert (
            row.value == logged[{0: 0, 1: 2, 2: 4}[row.stage], f"eval_{row.language}_{row.metric}"]
        )
    assert set(frame["trained_language"]) == {""}
    assert [entry.stage for entry in found.entries if entry.kind == "stage"] == [1, 2]
    assert found.steps == ()
    assert found.can("forgetting")

    (tmp_path / "out" / "subnet.toml").write_text('order = ["zh_Hans", "de"]')
    ordered = open_checkpoint(tmp_path / "out")
    assert [(step.stage, str(step.language)) for step in ordered.steps] == [
        (1, "zh_Hans"),
        (2, "de"),
    ]
    assert ordered.scores.order == {"main": {"zh_Hans": 1, "de": 2}}


def test_a_grouped_query_decoder_keeps_its_narrow_keys(tmp_path):
    makers.save_base(makers.qwen3(), tmp_path / "base")
    model = makers.lora(
        makers.qwen3(), 1, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"]
    )
    makers.save_adapter(model, tmp_path / "adapters" / "de")
    (update,) = open_checkpoint(tmp_path).updates
    expected = makers.merged_difference(model, makers.qwen3())
    assert update.shapes["model.layers.0.self_attn.q_proj.weight"] == (32, 16)
    assert update.shapes["model.layers.0.self_attn.k_proj.weight"] == (16, 16)
    assert len(update.shapes) == 8
    for name in update.shapes:
        torch.testing.assert_close(update.dense(name), expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("build", "targets"),
    [("mt5", ["q", "v", "wo"]), ("m2m", ["q_proj", "v_proj", "fc1"])],
)
def test_an_encoder_decoder_has_both_stacks(tmp_path, build, targets):
    make = getattr(makers, build)
    makers.save_base(make(), tmp_path / "base")
    model = makers.lora(make(), 1, target_modules=targets)
    makers.save_adapter(model, tmp_path / "adapters" / "de")
    (update,) = open_checkpoint(tmp_path).updates
    expected = makers.merged_difference(model, make())
    assert {place.partition(".")[0] for place in update.to_frame()["layer"]} == {
        "encoder",
        "decoder",
    }
    changed = {name for name, delta in expected.items() if delta.abs().max() > 1e-7}
    assert changed == set(update.shapes)
    for name in update.shapes:
        torch.testing.assert_close(update.dense(name), expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("build", ["bert", "qwen3", "mt5", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "4KB"}], ids=["one file", "shards"])
def test_fully_fine_tuned_weights_are_compared_with_the_base(tmp_path, build, options):
    base, tuned = getattr(makers, build)(), getattr(makers, build)()
    makers.move(tuned, 1)
    makers.save_base(base, tmp_path / "base", **options)
    makers.save_base(tuned, tmp_path / "adapters" / "de", **options)
    sharded = (tmp_path / "base" / "model.safetensors.index.json").is_file()
    assert sharded == bool(options)
    (update,) = open_checkpoint(tmp_path).updates
    assert (update.kind, update.is_low_rank) == ("full", False)
    before, after = base.state_dict(), tuned.state_dict()
    for name in (*update.shapes, *update.apart):
        torch.testing.assert_close(update.dense(name), after[name] - before[name])
    # Every parameter once; a tied output layer is the embedding under another name.
    assert {*update.shapes, *update.apart} == {name for name, _ in tuned.named_parameters()}
    assert all("embed" not in name and "norm" not in name.lower() for name in update.shapes)
    with pytest.raises(
        NotComparableError, match="was fully fine-tuned and has no low-rank factors"
    ):
        update.factors(next(iter(update.shapes)))


def test_weights_in_half_precision_are_subtracted_in_single(tmp_path):
    base, tuned = makers.bert().to(torch.bfloat16), makers.bert().to(torch.bfloat16)
    makers.move(tuned, 1)
    makers.save_base(base, tmp_path / "base")
    makers.save_base(tuned, tmp_path / "adapters" / "de")
    (update,) = open_checkpoint(tmp_path).updates
    for name in update.shapes:
        expected = tuned.state_dict()[name].float() - base.state_dict()[name].float()
        assert torch.equal(update.dense(name), expected)


def test_tied_weights_that_were_saved_twice_count_once(tmp_path):
    from safetensors.torch import save_file

    base, tuned = makers.qwen3(), makers.qwen3()
    makers.move(tuned, 1)
    for model, folder in ((base, "base"), (tuned, "adapters/de")):
        makers.save_base(model, tmp_path / folder)
        tensors = {name: value.clone() for name, value in model.state_dict().items()}
        assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
        save_file(tensors, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    (update,) = open_checkpoint(tmp_path).updates
    assert "model.embed_tokens.weight" in update.apart
    assert "lm_head.weight" not in (*update.shapes, *update.apart)


def test_fine_tuned_weights_without_a_base_are_skipped_with_the_reason(tmp_path):
    makers.save_base(makers.bert(), tmp_path / "adapters" / "de")
    makers.save_adapter(makers.lora(makers.bert(), 1), tmp_path / "adapters" / "fr")
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["fr"]
    assert "the base to compare them with is not here" in found.skipped[0].reason


def test_fine_tuned_weights_of_another_architecture_are_refused(tmp_path):
    makers.save_base(makers.qwen3(), tmp_path / "base")
    makers.save_base(makers.bert(), tmp_path / "adapters" / "de")
    with pytest.raises(NotComparableError, match="shares no weight matrix with"):
        open_checkpoint(tmp_path).updates  # noqa: B018


def test_embeddings_of_another_vocabulary_stand_apart(tmp_path):
    base, tuned = makers.bert(), makers.bert()
    with makers.quiet():
        tuned.resize_token_embeddings(44)
    makers.save_base(base, tmp_path / "base")
    makers.save_base(tuned, tmp_path / "adapters" / "de")
    (update,) = open_checkpoint(tmp_path).updates
    name = "bert.embeddings.word_embeddings.weight"
    assert update.apart_kinds[name] == "shape [44, 16], in the base [40, 16]"
    with pytest.raises(NotComparableError, match=r"shape \[44, 16\], in the base \[40, 16\]"):
        update.dense(name)


def test_old_names_of_layer_norm_meet_the_new_ones(tmp_path):
    from safetensors.torch import load_file, save_file

    base, tuned = makers.bert(), makers.bert()
    makers.move(tuned, 1)
    makers.save_base(tuned, tmp_path / "adapters" / "de")
    makers.save_base(base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in load_file(path).items()
    }
    save_file(renamed, path, metadata={"format": "pt"})
    (update,) = open_checkpoint(tmp_path).updates
    name = "bert.embeddings.LayerNorm.weight"
    torch.testing.assert_close(
        update.dense(name), tuned.state_dict()[name] - base.state_dict()[name]
    )


def test_a_folder_of_peft_adapters_is_recognised_as_it_is(tmp_path):
    for seed, name in enumerate(("de", "pt_BR", "pt_PT", "notes"), start=1):
        makers.save_adapter(makers.lora(makers.bert(), seed), tmp_path / name)
    found = open_checkpoint(tmp_path)
    assert [str(update.language) for update in found.updates] == ["de", "pt_BR", "pt_PT"]
    (skipped,) = found.skipped
    assert "'notes' is not taken for a language" in skipped.reason
    assert '[languages."notes"] tag' in skipped.fix


def test_one_peft_folder_may_hold_several_named_adapters(tmp_path):
    from peft import LoraConfig

    model = makers.lora(makers.bert(), 1)
    for seed, name in enumerate(("fr", "sw"), start=2):
        config = LoraConfig(r=2, lora_alpha=3, target_modules=["query"])
        config.base_model_name_or_path = "base"
        model.add_adapter(name, config)
        model.set_adapter(name)
        makers.move(model, seed)
    makers.save_adapter(model, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out")
    assert [str(update.language) for update in found.updates] == ["fr", "sw"]
    for update in found.updates:
        expected = makers.delta_weights(model, str(update.language))
        for name in update.shapes:
            torch.testing.assert_close(update.dense(name), expected[name], atol=1e-6, rtol=1e-4)
    # The unnamed one is not guessed; it becomes a language when the user says which.
    assert "'out' is not taken for a language" in found.skipped[0].reason
    (tmp_path / "out" / "subnet.toml").write_text('[languages.out]\ntag = "de"')
    assert len(open_checkpoint(tmp_path / "out").updates) == 3


def test_one_file_may_hold_several_named_adapters(tmp_path):
    from safetensors.torch import save_file

    folder = makers.save_adapter(makers.lora(makers.bert(), 1), tmp_path / "out")
    tensors = {}
    expected = {}
    for seed, name in enumerate(("de", "fr"), start=1):
        model = makers.lora(makers.bert(), seed)
        expected[name] = makers.delta_weights(model)
        for key, value in model.state_dict().items():
            if "lora_" in key:
                tensors[key.replace(".default.", f".{name}.")] = value.clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    found = open_checkpoint(folder)
    assert [(entry.adapter, entry.kind) for entry in found.entries] == [
        ("de", "adapter"),
        ("fr", "adapter"),
    ]
    for update in found.updates:
        for name in update.shapes:
            torch.testing.assert_close(
                update.dense(name), expected[str(update.language)][name], atol=1e-6, rtol=1e-4
            )


def lm_eval_directory(tmp_path):
    """Three stages without weights, and what lm-evaluation-harness wrote beside them."""
    for name in ("00-base", "01-de", "02-sw"):
        (tmp_path / "stages" / name).mkdir(parents=True)
    shutil.copytree(RECORDED, tmp_path / "lm_eval")
    return tmp_path


def test_recorded_output_of_lm_eval_is_read_with_its_samples(tmp_path):
    scores = open_checkpoint(lm_eval_directory(tmp_path)).scores
    assert set(scores.metrics) == {"acc", "acc_norm"}
    assert scores.metrics["acc"].higher_is_better
    assert scores.metrics["acc"].range == (0.0, 1.0)
    assert scores.order == {"main": {"de": 1, "sw": 2}}
    assert len(scores.frame) == 3 * 2 * 2
    # Oracle: the harness's own mean over its own samples, per stage, language and metric.
    means = scores.items.groupby(["stage", "language", "metric"])["value"].mean()
    for row in scores.frame.itertuples():
        assert means[row.stage, row.language, row.metric] == pytest.approx(row.value)
    assert scores.items.groupby("language")["item"].nunique().to_dict() == {"de": 5, "sw": 3}
    raw = json.loads(next((RECORDED / "ck__stages__01-de").glob("results_*")).read_text())
    cell = scores.frame.query("stage == 1 and language == 'de' and metric == 'acc'").iloc[0]
    assert cell["value"] == raw["results"]["kinds_de"]["acc,none"]
    assert cell["stderr"] == raw["results"]["kinds_de"]["acc_stderr,none"]


def rewrite_results(folder, change):
    path = next(folder.glob("results_*.json"))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_results_of_old_releases_have_keys_without_a_filter(tmp_path):
    lm_eval_directory(tmp_path)

    def old(content):
        for result in content["results"].values():
            for key in list(result):
                result[key.removesuffix(",none")] = result.pop(key)

    rewrite_results(tmp_path / "lm_eval" / "ck__stages__01-de", old)
    frame = open_checkpoint(tmp_path).scores.frame
    assert len(frame) == 12
    assert frame["stderr"].notna().all()


def test_stages_that_were_given_other_prompts_are_not_compared(tmp_path):
    lm_eval_directory(tmp_path)
    rewrite_results(
        tmp_path / "lm_eval" / "ck__stages__02-sw",
        lambda content: content["task_hashes"].update(kinds_de="0"),
    )
    with pytest.raises(NotComparableError, match="kinds_de has another prompts than in"):
        open_checkpoint(tmp_path)


def test_tasks_that_name_no_language_are_listed_and_can_be_declared(tmp_path):
    lm_eval_directory(tmp_path)
    for folder in (tmp_path / "lm_eval").iterdir():
        if folder.is_dir():
            rewrite_results(
                folder,
                lambda content: content["results"].update(
                    {"mmlu_law": {"acc,none": 0.5}, "hellaswag": {"acc,none": 0.25}}
                ),
            )
    found = open_checkpoint(tmp_path)
    assert {str(language) for language in found.languages} == {"de", "sw"}
    assert any("hellaswag, mmlu_law" in skipped.reason for skipped in found.skipped)
    (tmp_path / "subnet.toml").write_text('[languages.hellaswag]\ntag = "en"')
    frame = open_checkpoint(tmp_path).scores.frame
    assert set(frame["metric"]) == {"kinds:acc", "kinds:acc_norm", "hellaswag:acc"}


def test_the_newest_evaluation_of_a_stage_counts(tmp_path):
    lm_eval_directory(tmp_path)
    path = next((tmp_path / "lm_eval" / "ck__stages__01-de").glob("results_*.json"))
    newer = path.with_name("results_2030-01-01T00-00-00.000000.json")
    content = json.loads(path.read_text())
    content["results"]["kinds_de"]["acc,none"] = 1.0
    newer.write_text(json.dumps(content))
    found = open_checkpoint(tmp_path)
    frame = found.scores.frame
    assert frame.query("stage == 1 and language == 'de' and metric == 'acc'")["value"].item() == 1.0
    assert any(skipped.path == path for skipped in found.skipped)


def test_an_evaluation_of_no_stage_is_skipped(tmp_path):
    lm_eval_directory(tmp_path)
    (tmp_path / "stages" / "01-de").rename(tmp_path / "stages" / "01-fr")
    found = open_checkpoint(tmp_path)
    assert any("evaluates a model that is no stage" in skipped.reason for skipped in found.skipped)


@pytest.mark.slow
def test_lm_eval_itself_writes_what_is_read(tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-eval, of the test extra")
    makers.write_lm_eval_tasks(tmp_path / "tasks")
    for seed, stage in enumerate(("00-base", "01-de")):
        makers.save_evaluable(makers.llama(seed), tmp_path / "stages" / stage)
        subprocess.run(
            [
                sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "kinds_de,kinds_sw",
                "--model_args", f"pretrained={tmp_path / 'stages' / stage}", "--device", "cpu",
                "--include_path", str(tmp_path / "tasks"), "--log_samples",
                "--output_path", str(tmp_path / "lm_eval"),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            cwd=tmp_path,
        )  # fmt: skip
    scores = open_checkpoint(tmp_path).scores
    assert len(scores.frame) == 2 * 2 * 2
    means = scores.items.groupby(["stage", "language", "metric"])["value"].mean()
    for row in scores.frame.itertuples():
        assert means[row.stage, row.language, row.metric] == pytest.approx(row.value)
