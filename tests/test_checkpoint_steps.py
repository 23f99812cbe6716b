"""What a stage changed is the difference to the stage before, and exact as factors."""

import shutil

import pytest
import torch

import checkpoint_makers as makers
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError, MissingInputError, NotComparableError

ORDER = ("de", "fr", "sw")


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "rank_pattern": {"value": 2}, "alpha_pattern": {"query": 3}}],
    ids=["plain", "patterns"],
)
def test_a_step_is_the_difference_of_consecutive_stages(tmp_path, settings):
    deltas = makers.write_stages(tmp_path, ORDER, **settings)
    steps = open_checkpoint(tmp_path).steps
    assert [(step.stage, str(step.language)) for step in steps] == [(1, "de"), (2, "fr"), (3, "sw")]
    zero = {name: torch.zeros_like(delta) for name, delta in deltas[0].items()}
    for step, before, after in zip(steps, [zero, *deltas], deltas, strict=False):
        assert set(step.shapes) == set(after)
        for name in step.shapes:
            expected = after[name] - before[name]
            left, right = step.factors(name)
            torch.testing.assert_close(left @ right, expected, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(step.dense(name), expected, atol=1e-6, rtol=1e-4)
            assert left.shape[1] == right.shape[0] == step.rank(name)


def test_factors_of_a_step_are_those_of_both_stages_side_by_side(tmp_path):
    makers.write_stages(tmp_path, ORDER)
    for stage, language in enumerate(ORDER, start=1):
        source = tmp_path / "stages" / f"{stage:02d}-{language}"
        shutil.copytree(source, tmp_path / "adapters" / language)
    found = open_checkpoint(tmp_path)
    alone = {str(update.language): update for update in found.updates}
    first, second, third = found.steps
    for name in third.shapes:
        b, a = alone["sw"].factors(name)
        b_before, a_before = alone["fr"].factors(name)
        left, right = third.factors(name)
        assert torch.equal(left, torch.cat([b, -b_before], dim=1))
        assert torch.equal(right, torch.cat([a, a_before], dim=0))
        assert (first.rank(name), second.rank(name)) == (4, 8)
    assert first.previous is None
    assert third.previous == second.source


def test_steps_of_a_transposed_layer_keep_the_bases_orientation(tmp_path):
    deltas = makers.write_stages(
        tmp_path, ORDER[:2], build=makers.gpt2, target_modules=["c_attn"], fan_in_fan_out=True
    )
    _, step = open_checkpoint(tmp_path).steps
    for name in step.shapes:
        left, right = step.factors(name)
        torch.testing.assert_close(
            left @ right, deltas[1][name] - deltas[0][name], atol=1e-6, rtol=1e-4
        )


def test_a_saved_head_is_compared_between_stages_without_the_base(tmp_path):
    heads = []
    model = makers.lora(makers.bert(), 1, modules_to_save=["classifier"])
    for stage, language in enumerate(ORDER, start=1):
        makers.move(model, stage)
        makers.save_adapter(model, tmp_path / "stages" / f"{stage:02d}-{language}")
        heads.append(
            model.state_dict()["base_model.model.classifier.modules_to_save.default.weight"].clone()
        )
    first, second, _ = open_checkpoint(tmp_path).steps
    torch.testing.assert_close(second.dense("classifier.weight"), heads[1] - heads[0])
    with pytest.raises(MissingInputError, match=r"classifier\.weight was trained"):
        first.dense("classifier.weight")


def test_stages_of_whole_models_are_compared_tensor_by_tensor(tmp_path):
    models = [makers.bert()]
    makers.save_base(models[0], tmp_path / "stages" / "00-base")
    for stage, language in enumerate(ORDER, start=1):
        model = makers.bert()
        model.load_state_dict(models[-1].state_dict())
        makers.move(model, stage)
        makers.save_base(model, tmp_path / "stages" / f"{stage:02d}-{language}")
        models.append(model)
    steps = open_checkpoint(tmp_path).steps
    assert [step.kind for step in steps] == ["full"] * 3
    for step, before, after in zip(steps, models, models[1:], strict=False):
        for name in (*step.shapes, *step.apart):
            expected = after.state_dict()[name] - before.state_dict()[name]
            torch.testing.assert_close(step.dense(name), expected)


def test_a_stage_after_one_without_weights_has_no_step_and_says_so(tmp_path):
    makers.write_stages(tmp_path, ORDER)
    for file in (tmp_path / "stages" / "02-fr").iterdir():
        file.unlink()
    found = open_checkpoint(tmp_path)
    assert [step.stage for step in found.steps] == [1]
    assert "what stage 3 changed is unknown: stage 2 has no weights" in {
        skipped.reason for skipped in found.skipped
    }


def test_stages_of_whole_models_without_the_base_are_compared_among_themselves(tmp_path):
    models = [makers.bert(seed) for seed in (1, 2, 3)]
    for stage, (language, model) in enumerate(zip(ORDER, models, strict=True), start=1):
        makers.save_base(model, tmp_path / "stages" / f"{stage:02d}-{language}")
    found = open_checkpoint(tmp_path)
    assert [step.stage for step in found.steps] == [2, 3]
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(
        found.steps[0].dense(name), models[1].state_dict()[name] - models[0].state_dict()[name]
    )
    assert [skipped.reason for skipped in found.skipped] == [
        "what stage 1 changed is unknown: the base is not here"
    ]
    assert found.can("overlap")


def test_an_adapter_after_a_whole_model_is_no_step(tmp_path):
    makers.write_stages(tmp_path, ORDER)
    shutil.rmtree(tmp_path / "stages" / "02-fr")
    makers.save_base(makers.bert(), tmp_path / "base")
    makers.save_base(makers.bert(seed=3), tmp_path / "stages" / "02-fr")
    with pytest.raises(NotComparableError, match=r"holds a whole model; expected an adapter"):
        open_checkpoint(tmp_path).steps  # noqa: B018


def test_a_language_that_returns_has_a_step_for_each_turn(tmp_path):
    makers.write_stages(tmp_path, ("de", "fr", "de"))
    steps = open_checkpoint(tmp_path).steps
    assert [str(step.language) for step in steps] == ["de", "fr", "de"]


def test_two_folders_for_one_stage_are_refused(tmp_path):
    makers.write_stages(tmp_path, ORDER)
    shutil.copytree(tmp_path / "stages" / "02-fr", tmp_path / "stages" / "02-it")
    with pytest.raises(InputError, match="stage 2 is there twice: 02-fr and 02-it"):
        open_checkpoint(tmp_path)
