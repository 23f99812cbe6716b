"""Per-example gradients of a batch equal those of one backward pass per example."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification

import influence_oracles as oracles
import model_makers as makers
from checkpoint_makers import bert, lora, move
from subnet.errors import InputError
from subnet.influence import collect, track
from subnet.influence.tracking import plain_name, track_parameters

LENGTHS = (6, 3, 4, 6, 2)


@pytest.mark.parametrize("modules", [None, "linear", "all"])
@pytest.mark.parametrize("name", makers.ARCHITECTURES)
def test_gradients_of_a_padded_batch_equal_single_backward_passes(name, modules):
    model, collate = oracles.adapted(name), makers.collate_for(name)
    rows = makers.examples(name, LENGTHS)
    tracked = track(model, modules)
    found = collect(model, tracked, collate(rows))
    oracle = oracles.gradients(model, rows, collate, list(tracked.shapes))
    blocks = found.gradients()
    assert list(blocks) == list(tracked.shapes)
    for path, values in oracle.items():
        assert blocks[path].shape == (len(rows), *tracked.shapes[path])
        # A key's bias shifts all of its scores alike: its gradient is rounding.
        idle = path.endswith(("key.bias", "k_proj.bias", "key.base_layer.bias"))
        assert idle or float(values.abs().max()) > 1e-9, path
        atol = 1e-13 * float(max(1, values.abs().max()))
        torch.testing.assert_close(blocks[path], values, rtol=1e-9, atol=atol)
    norms = oracles.flat(oracle).square().sum(dim=1)
    torch.testing.assert_close(found.squared_norms(), norms, rtol=1e-9, atol=0)
    scale = torch.tensor([0.5, 2.0, -1.0, 3.0, 1.5], dtype=torch.float64)
    first, rest = found.group_sums([slice(0, 2), slice(2, 5)], scale)
    for path, values in oracle.items():
        scaled = values * scale.reshape(-1, *[1] * (values.ndim - 1))
        # Gemma's own norm works in float32, whatever the model's type.
        atol = 1e-6 if name == "gemma" and "norm" in path else 1e-12
        torch.testing.assert_close(first[path], scaled[:2].sum(0), rtol=1e-9, atol=atol)
        torch.testing.assert_close(rest[path], scaled[2:].sum(0), rtol=1e-9, atol=atol)


@pytest.mark.parametrize("name", makers.ARCHITECTURES)
def test_all_parameters_are_those_that_training_moves(name):
    """Nothing is forgotten under "all", apart from what no example owns a row of."""
    model = makers.make(name)
    tracked = track(model, "all")
    factors = {n for n, _ in model.named_parameters() if "lora_" in n}
    # mT5 looks up distances between positions: those rows are no example's.
    shared = {n for n, _ in model.named_parameters() if "relative_attention_bias" in n}
    every = {n for n, _ in model.named_parameters()}
    assert set(tracked.shapes) == every - factors - shared
    assert set(tracked.left_out) == factors | shared


def test_lora_factors_are_tracked_by_default_and_only_those_of_the_active_adapter():
    model = lora(bert(), 1)
    model.add_adapter("other", model.peft_config["default"])
    tracked = track(model)
    names = {n for n, _ in model.named_parameters() if ".default." in n}
    assert set(tracked.shapes) == names
    model.set_adapter("other")
    assert all(".other." in name for name in track(model).shapes)


def test_an_adapter_loaded_for_inference_can_be_attributed_as_it_is():
    model = lora(bert(), 1)
    tracked = track(model)
    model.requires_grad_(False)
    assert track(model).shapes == tracked.shapes


def test_a_trained_head_beside_the_adapter_is_named_and_can_be_taken():
    model = lora(bert(), 1, modules_to_save=["classifier"])
    head = "base_model.model.classifier.modules_to_save.default"
    assert track(model).left_out == (f"{head}.weight", f"{head}.bias")
    tracked = track(model, ["classifier", "bert.encoder.layer.0"], biases=True)
    assert {f"{head}.weight", f"{head}.bias"} < set(tracked.shapes)
    assert sum(".layer.0." in name for name in tracked.shapes) == 4
    assert sum(".layer.1." in name for name in tracked.shapes) == 0
    collate, rows = makers.collate_for("bert"), makers.examples("bert", LENGTHS)
    found = collect(model.double(), tracked, collate(rows)).gradients()
    oracle = oracles.gradients(model, rows, collate, list(tracked.shapes))
    for name, values in oracle.items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-12)


def test_names_and_patterns_select_modules():
    model = bert()
    one = track(model, "bert.encoder.layer.1.output.dense")
    assert list(one.shapes) == ["bert.encoder.layer.1.output.dense.weight"]
    assert len(track(model, "*.query")) == 2
    assert len(track(model, "bert.encoder.layer.0")) == 6
    norms = track(model, ["*LayerNorm"], biases=True)
    assert {module.kind for module in norms} == {"norm"}
    assert len(norms.shapes) == 10
    word = track(model, "*word_embeddings")
    assert word.modules[0].kind == "embedding"
    with pytest.raises(InputError, match=r"'decoder' matches no module of BertFor.*such as bert\."):
        track(model, ["decoder"])


def test_a_tied_output_layer_is_tracked_with_its_embedding_or_not_at_all():
    model = makers.make("qwen3")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head" not in {module.name for module in track(model, "linear")}
    both = track(model, "linear", embeddings=True)
    assert {"lm_head", "model.embed_tokens"} <= {module.name for module in both}
    assert sum("embed_tokens" in name or "lm_head" in name for name in both.shapes) == 1


def test_a_frozen_model_is_refused_unless_the_modules_are_named():
    model = bert().requires_grad_(False)
    with pytest.raises(InputError, match=r"is frozen: none of its parameters requires a gradient.*"
                       r"modules='linear'"):  # fmt: skip
        track(model)
    assert len(track(model, "linear")) == 14
    model.classifier.requires_grad_(True)
    assert list(track(model).shapes) == ["classifier.weight"]
    with pytest.raises(InputError, match="there is nothing to track in BertFor"):
        track(model, "lora")


def test_named_parameters_are_tracked_alone():
    model = bert()
    tracked = track_parameters(model, ["classifier.bias", "bert.pooler.dense.weight"])
    assert list(tracked.shapes) == ["bert.pooler.dense.weight", "classifier.bias"]
    with pytest.raises(InputError, match=r"bert\.pooler\.dense\.waits cannot be tracked"):
        track_parameters(model, ["bert.pooler.dense.waits"])


def test_a_tied_parameter_is_tracked_wherever_it_is_used_by_any_of_its_names():
    model = makers.make("qwen3")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tracked = track_parameters(model, [name])
        assert [module.name for module in tracked] == ["model.embed_tokens", "lm_head"]
        assert list(tracked.shapes) == ["model.embed_tokens.weight"]
    model.scale = nn.Module()
    model.scale.own = model.lm_head.weight  # a use that nothing is known of
    with pytest.raises(InputError, match=r"embed_tokens\.weight cannot be tracked"):
        track_parameters(model, ["lm_head.weight"])


def test_names_of_a_peft_model_lose_what_peft_puts_around_them():
    assert plain_name("base_model.model.a.query.base_layer.weight") == "a.query.weight"
    assert plain_name("base_model.model.classifier.modules_to_save.default") == "classifier"
    assert plain_name("a.query.weight") == "a.query.weight"


def test_the_caller_finds_the_model_as_it_was():
    torch.manual_seed(0)
    config = bert().config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.5
    model = BertForSequenceClassification(config).train()
    move(model, 3)
    model.bert.pooler.eval()
    model.classifier.weight.requires_grad_(False)
    model.bert.pooler.dense.weight.grad = torch.ones_like(model.bert.pooler.dense.weight)
    batch = makers.batch_of("bert")
    modes = [module.training for module in model.modules()]
    tracked = track(model, "linear")
    one, other = (collect(model, tracked, batch) for _ in range(2))
    assert torch.equal(one.losses, other.losses)  # dropout was off
    assert [module.training for module in model.modules()] == modes
    assert not model.classifier.weight.requires_grad
    assert model.bert.pooler.dense.bias.requires_grad
    assert bool((model.bert.pooler.dense.weight.grad == 1).all())
    assert model.bert.embeddings.word_embeddings.weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


class Twice(nn.Module):
    """Uses one layer twice, changes what it gave in place, and never uses another."""

    def __init__(self):
        super().__init__()
        self.shared, self.idle, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.out(self.shared(self.shared(x).relu_()).tanh_())[:, :, 0].sum(dim=1)


def squares(model, batch):
    return (model(batch["x"]) - batch["y"]) ** 2


def test_a_layer_used_twice_and_changed_in_place_has_its_whole_gradient():
    torch.manual_seed(0)
    model = Twice().double()
    batch = {"x": torch.randn(4, 3, 5).double(), "y": torch.randn(4).double()}
    tracked = track(model, ["shared", "out"], biases=True)
    found = collect(model, tracked, batch, squares).gradients()
    rows = [{"x": batch["x"][i : i + 1], "y": batch["y"][i : i + 1]} for i in range(4)]
    oracle = oracles.gradients(model, rows, lambda part: part[0], list(tracked.shapes), squares)
    for name, values in oracle.items():
        torch.testing.assert_close(found[name], values)


def test_a_tracked_module_that_is_never_called_is_refused_by_name():
    batch = {"x": torch.randn(4, 3, 5), "y": torch.randn(4)}
    model = Twice()
    with pytest.raises(InputError, match=r"idle is tracked and was not called.*modules="):
        collect(model, track(model), batch, squares)


def test_merged_factors_are_never_called():
    model = lora(bert(), 1)
    tracked = track(model)
    model.merge_adapter()
    with pytest.raises(InputError, match=r"lora_A\.default is tracked and was not called.*unmerge"):
        collect(model, tracked, makers.batch_of("bert"))


class Together(nn.Module):
    """Looks at all examples as one row of tokens."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, x):
        return self.layer(x.reshape(-1, 5)).reshape(len(x), -1).sum(dim=1)


def test_a_layer_that_mixes_examples_is_refused_and_works_one_by_one():
    torch.manual_seed(0)
    model, batch = Together(), {"x": torch.randn(4, 3, 5), "y": torch.randn(4)}
    tracked = track(model)
    with pytest.raises(InputError, match=r"layer works on \[12, 1\] values for 4.*batch_size=1"):
        collect(model, tracked, batch, squares)
    one = {name: value[:1] for name, value in batch.items()}
    found = collect(model, tracked, one, squares).gradients()["layer.weight"]
    oracle = oracles.gradients(model, [one], lambda rows: rows[0], ["layer.weight"], squares)
    torch.testing.assert_close(found, oracle["layer.weight"])


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda m, b: squares(m, b).sum(), r"loss_fn gave \[\] for 4 examples.*reduction=\"none\""),
        (lambda m, b: squares(m, b).detach(), "the loss depends on no tracked module"),
        (lambda m, b: squares(m, b) / torch.tensor([1.0, 1, 0, 1]), "infinite is the loss of exam"),
    ],
)
def test_a_loss_that_cannot_be_taken_apart_is_refused(loss_fn, message):
    model, batch = Twice(), {"x": torch.randn(4, 3, 5), "y": torch.randn(4)}
    with pytest.raises(InputError, match=message):
        collect(model, track(model, ["shared"]), batch, loss_fn)


def test_embeddings_give_padding_no_gradient_and_scaled_ones_their_scale():
    """The table's own derivative leaves `padding_idx` out."""
    model = makers.make("m2m")
    assert model.model.shared.embed_scale != 1
    tracked = track(model, ["*shared*", "*embed_tokens", "lm_head"])
    collate, rows = makers.collate_for("m2m"), makers.examples("m2m", LENGTHS)
    found = collect(model, tracked, collate(rows)).gradients()
    oracle = oracles.gradients(model, rows, collate, list(tracked.shapes))
    for name, values in oracle.items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-12)
