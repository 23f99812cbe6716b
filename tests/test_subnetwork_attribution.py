"""Units by captum: equal to gates and to path integrals by hand, complete, planted units found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

import checkpoint_makers
import model_makers as makers
import planted_heads as planted
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError
from subnet.model import example_losses, find_units, gate_gradients, gate_heads, gate_neurons
from subnet.subnetwork import AttributionSettings, extract, load_subnetworks, selected_units
from subnet.subnetwork.attribution import _select, unit_attributions, unit_importance

ARCHITECTURES = ("bert", "bert_tagger", "xlm_roberta", "llama", "qwen3", "gemma", "mt5", "m2m",
                 "bert_lora", "qwen3_lora")  # fmt: skip
#: Which compute nothing in float32 and take embeddings for token ids as they are.
EXACT = ("bert", "bert_tagger", "xlm_roberta", "m2m")
PATHS = ("conductance", "integrated-gradients")
UNITS = ("head", "neuron")


def settings_of(attribution, units="head", **more):
    return AttributionSettings(attribution=attribution, units=units, **more)


def projections(name, model, units):
    found = makers.output_projections if units == "head" else makers.down_projections
    return found(name, model)


def by_unit(name, values, units):
    """[n, t, width] of one projection to [n, units]."""
    width = makers.ARCHITECTURES[name][4] if units == "head" else 1
    values = values.sum(dim=1)
    return values.reshape(len(values), -1, width).sum(dim=-1)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_times_activation_is_the_gradient_of_the_gate(name, units):
    model = makers.make(name)
    found_units, batch = find_units(model), makers.batch_of(name)
    settings = settings_of("gradient-x-activation", units)
    found = unit_attributions(model, found_units, batch, settings)
    gates = gate_gradients(model, found_units, batch, of=f"{units}s")
    torch.testing.assert_close(found, gates, rtol=1e-9, atol=1e-12)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", EXACT)
def test_closing_a_unit_a_little_changes_the_loss_by_as_much(name, units):
    """Oracle: the columns of the projection are scaled, no gate and no hook."""
    model, eps = makers.make(name), 1e-5
    batch = makers.batch_of(name)
    found = unit_attributions(
        model, find_units(model), batch, settings_of("gradient-x-activation", units)
    )
    width = makers.ARCHITECTURES[name][4] if units == "head" else 1
    slopes = []
    with torch.no_grad():
        for path in projections(name, model, units):
            weight = model.get_submodule(path).weight
            before = weight.clone()
            for start in range(0, weight.shape[1], width):
                ends = []
                for factor in (1 + eps, 1 - eps):
                    weight[:, start : start + width] = factor * before[:, start : start + width]
                    ends.append(example_losses(model, batch))
                weight.copy_(before)
                slopes.append((ends[0] - ends[1]) / (2 * eps))
    torch.testing.assert_close(found, torch.stack(slopes, dim=1), rtol=1e-5, atol=1e-9)


def embedded(model, batch):
    """Embeddings of a batch by the name of the argument that takes them."""
    if not model.config.is_encoder_decoder:
        return {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"])}
    start = torch.full_like(batch["labels"][:, :1], model.config.decoder_start_token_id)
    decoder_ids = torch.cat([start, batch["labels"][:, :-1]], dim=1)
    return {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]),
        "decoder_inputs_embeds": model.get_decoder().get_input_embeddings()(decoder_ids),
    }


def losses_of_embeddings(model, batch, vectors):
    """Oracle: the loss of one example, of the logits that embeddings give."""
    task, labels = makers.ARCHITECTURES[model.own_name][1], batch["labels"]
    logits = model(attention_mask=batch["attention_mask"], **vectors).logits
    if task == "sequence":
        return -logits.log_softmax(-1)[0, labels[0]]
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    log_p = logits.log_softmax(-1)[0]
    return -torch.stack([log_p[i, y] for i, y in enumerate(labels[0].tolist()) if y >= 0]).mean()


def seen_along_the_path(model, paths, batch, vectors):
    """What the projections are given, and ∂L/∂ of it, for one example's embeddings."""
    given = {}

    def hook_for(path):
        def hook(module, arguments):
            value = arguments[0].clone()
            value.retain_grad()
            given[path] = value
            return (value, *arguments[1:])

        return hook

    handles = [model.get_submodule(p).register_forward_pre_hook(hook_for(p)) for p in paths]
    losses_of_embeddings(model, batch, vectors).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return {p: v.detach() for p, v in given.items()}, {p: v.grad for p, v in given.items()}


@pytest.mark.parametrize("name", ["bert", "bert_tagger", "xlm_roberta", "llama", "gemma", "m2m"])
def test_conductance_is_the_sum_of_steps_along_the_path_by_hand(name):
    model = makers.make(name)
    model.own_name = name
    rows, n_steps = makers.examples(name, (5, 3)), 6
    collate, units = makers.collate_for(name), find_units(model)
    for kind in UNITS:
        paths = projections(name, model, kind)
        oracle = []
        for row in rows:
            batch = collate([row])
            whole = {key: value.detach() for key, value in embedded(model, batch).items()}
            steps = [
                seen_along_the_path(
                    model, paths, batch, {key: value * i / n_steps for key, value in whole.items()}
                )
                for i in range(n_steps + 1)
            ]
            sums = []
            for path in paths:
                terms = [
                    grads[path] * (after[path] - before[path])
                    for (before, grads), (after, _) in itertools.pairwise(steps)
                ]
                sums.append(by_unit(name, sum(terms), kind))
            oracle.append(torch.cat(sums, dim=1))
        settings = settings_of("conductance", kind, n_steps=n_steps)
        found = unit_attributions(model, units, collate(rows), settings)
        assert found.abs().max() > 1e-3
        torch.testing.assert_close(found, torch.cat(oracle), rtol=2e-4, atol=1e-5)


def losses_with(model, batch, path, value):
    """Loss of each example where one projection is given another input."""
    handle = model.get_submodule(path).register_forward_pre_hook(lambda module, given: (value,))
    with torch.no_grad():
        found = example_losses(model, batch)
    handle.remove()
    return found


def given_to(model, path, run):
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda module, given: seen.append(given[0].detach())
    )
    with torch.no_grad():
        run()
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", ["bert", "xlm_roberta", "qwen3", "gemma", "mt5", "m2m"])
def test_integrated_gradients_of_a_block_sum_up_to_what_it_changes(name, units):
    """Completeness: Σ over units = L − L(the block puts out what it does at the baseline)."""
    model = makers.make(name)
    rows, collate = makers.examples(name, (5, 5)), makers.collate_for(name)
    batch, found_units = collate(rows), find_units(model)
    n_steps = 400 if name == "mt5" else 60  # its path has a bend
    settings = settings_of("integrated-gradients", units, n_steps=n_steps, internal_batch_size=800)
    found = unit_attributions(model, found_units, batch, settings)
    paths = projections(name, model, units)
    parts = found.chunk(len(paths), dim=1)
    with torch.no_grad():
        whole = example_losses(model, batch)
    zeros = {key: torch.zeros_like(value) for key, value in embedded(model, batch).items()}
    differences = []
    for path, part in zip(paths, parts, strict=True):
        at_zero = given_to(
            model, path, lambda: model(attention_mask=batch["attention_mask"], **zeros)
        )
        difference = whole - losses_with(model, batch, path, at_zero)
        torch.testing.assert_close(part.sum(dim=1), difference, rtol=2e-3, atol=2e-4)
        differences.append(difference)
    assert torch.stack(differences).abs().max() > 1e-2


class Cut(BertForSequenceClassification):
    """A classifier of whose first block only the neurons reach what follows."""

    def __init__(self, config):
        super().__init__(config)
        output = self.bert.encoder.layer[0].output
        output.forward = lambda hidden, residual: output.LayerNorm(output.dense(hidden))


Cut.__name__ = "BertForSequenceClassification"


def test_conductance_of_a_block_that_all_passes_through_is_complete():
    torch.manual_seed(0)
    model = Cut(makers.make("bert").config)
    checkpoint_makers.move(model, 7, size=0.3)
    model = model.double().eval()
    batch, units = makers.collate_for("bert")(makers.examples("bert", (5, 5))), find_units(model)
    with torch.no_grad():
        zeros = torch.zeros_like(model.get_input_embeddings()(batch["input_ids"]))
        logits = model(inputs_embeds=zeros, attention_mask=batch["attention_mask"]).logits
        at_zero = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        difference = example_losses(model, batch) - at_zero
    assert difference.abs().min() > 0.05
    errors = []
    for n_steps in (50, 200):
        settings = settings_of("conductance", "neuron", n_steps=n_steps)
        found = unit_attributions(model, units, batch, settings)
        first, second = found.split(24, dim=1)
        errors.append((first.sum(dim=1) - difference).abs().max())
        assert (second.sum(dim=1) - difference).abs().max() > 0.01  # residuals pass it by
    assert errors[1] < 0.005
    assert errors[1] < errors[0] / 3  # of first order in the step


@pytest.mark.parametrize("attribution", PATHS)
@pytest.mark.parametrize("name", ["bert", "llama", "m2m"])
def test_from_padding_to_padding_nothing_is_attributed(name, attribution):
    model = makers.make(name)
    pad = model.config.pad_token_id
    row = makers.examples(name, (4,))[0]
    row["input_ids"] = [pad] * 4
    batch = {
        **makers.collate_for(name)([row]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    if name == "m2m":
        batch["decoder_input_ids"] = torch.full_like(batch["labels"], pad)
    settings = settings_of(attribution, baseline="padding", n_steps=4)
    assert unit_attributions(model, find_units(model), batch, settings).abs().max() < 1e-12
    other = settings_of(attribution, baseline="zero", n_steps=4)
    with torch.no_grad():  # some models have zeros there
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight[:] += 0.5
    assert unit_attributions(model, find_units(model), batch, settings).abs().max() < 1e-12
    assert unit_attributions(model, find_units(model), batch, other).abs().max() > 1e-6


@pytest.mark.parametrize("attribution", ["gradient-x-activation", *PATHS])
@pytest.mark.parametrize("name", ["bert_tagger", "xlm_roberta", "qwen3", "m2m"])
def test_neither_padding_nor_batches_nor_passes_matter(name, attribution):
    model = makers.make(name)
    units, rows = find_units(model), makers.examples(name)
    settings = settings_of(attribution, n_steps=5)
    singles = torch.cat(
        [unit_attributions(model, units, makers.collate_for(name)([row]), settings) for row in rows]
    )
    padded = makers.collate_for(name, extra=3)(rows)
    for size in (1, 7, 200):
        few = settings_of(attribution, n_steps=5, internal_batch_size=size)
        found = unit_attributions(model, units, padded, few)
        torch.testing.assert_close(found, singles, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attribution", ["gradient-x-activation", *PATHS])
def test_importance_is_the_mean_of_magnitudes_and_not_the_magnitude_of_the_mean(attribution):
    model = makers.make("bert_tagger")
    units, rows = find_units(model), makers.examples("bert_tagger", (6, 3, 4, 5))
    collate, settings = makers.collate_for("bert_tagger"), settings_of(attribution, n_steps=5)
    each = [unit_attributions(model, units, collate([row]), settings)[0] for row in rows]
    empty = {"input_ids": [7, 8], "labels": [-100, -100]}
    batches = [collate(rows[:2]), collate([*rows[2:], empty]), collate([empty])]
    found = unit_importance(model, units, batches, settings)
    torch.testing.assert_close(found, torch.stack(each).abs().mean(dim=0), rtol=1e-6, atol=1e-9)
    assert (found > torch.stack(each).mean(dim=0).abs() * 1.01).any()
    assert not unit_attributions(model, units, batches[1], settings)[-1].any()
    with pytest.raises(InputError, match="no example has a label"):
        unit_importance(model, units, batches[2:], settings)


@pytest.mark.parametrize("baseline", ["zero", "padding"])
@pytest.mark.parametrize("attribution", ["gradient-x-activation", *PATHS])
def test_planted_units_are_those_of_most_importance(attribution, baseline):
    model = planted.planted_model()
    units = find_units(model)
    for language in planted.HEADS:
        batches = planted.batches_of(planted.sentences(language, 40))
        for kind, truth in (("head", planted.HEADS), ("neuron", planted.NEURONS)):
            if kind == "neuron" and attribution == "gradient-x-activation":
                continue  # a normalisation follows: to first order, what passes it has no size
            settings = settings_of(attribution, kind, n_steps=10, baseline=baseline)
            values = unit_importance(model, units, batches, settings)
            k = len(truth[language])
            assert set(values.topk(k).indices.tolist()) == truth[language]
            if kind == "head":
                assert values.topk(k).values[-1] > 3 * values.topk(k + 1).values[-1]


@pytest.mark.parametrize("attribution", ["gradient-x-activation", *PATHS])
def test_the_model_is_left_as_it_was_and_dropout_is_off(attribution):
    model = planted.planted_model()
    units, (batch,) = find_units(model), planted.batches_of(planted.sentences("de", 8))
    settings = settings_of(attribution, n_steps=4)
    still = unit_attributions(model, units, batch, settings)
    model.train()
    model.bert.pooler.eval()
    model.classifier.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    found = unit_attributions(model, units, batch, settings)
    assert torch.equal(found, still)
    assert not found.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert not model.classifier.weight.requires_grad
    assert model.bert.pooler.dense.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_what_captum_cannot_do_is_refused():
    model = makers.make("qwen3")
    units, batch = find_units(model), makers.batch_of("qwen3")
    settings = settings_of("conductance", baseline="padding")
    with pytest.raises(InputError, match=r"Qwen3ForCausalLM has no padding token.*baseline='zero'"):
        unit_attributions(model, units, batch, settings)
    with pytest.raises(InputError, match="a batch has no labels"):
        unit_attributions(model, units, {"input_ids": batch["input_ids"]})
    model = makers.make("bert")
    dense = model.bert.encoder.layer[0].attention.output.dense
    model.bert.pooler.register_forward_pre_hook(lambda module, given: (dense(given[0]),))
    with pytest.raises(InputError, match=r"attention\.output\.dense is called 2 times"):
        unit_attributions(model, find_units(model), makers.batch_of("bert"))


def test_a_gradient_that_is_not_finite_is_refused():
    model = makers.make("bert")
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="the importance of 4 of 4 heads is NaN or infinite"):
        unit_importance(model, find_units(model), [makers.batch_of("bert")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": "layer"}, "units is 'layer'; expected 'head' or 'neuron'"),
        ({"attribution": "lrp"}, "attribution is 'lrp'; expected 'gradient-x-activation' or"),
        ({"density": 0}, "density is 0"),
        ({"scope": "module"}, "scope is 'module'; expected 'global' or 'layer'"),
        ({"baseline": "mean"}, "baseline is 'mean'"),
        ({"n_steps": 0}, "n_steps is 0"),
        ({"internal_batch_size": 0}, "internal_batch_size is 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        AttributionSettings(**settings)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The planted model with an adapter per language that changes little, and examples."""
    root = tmp_path_factory.mktemp("planted")
    checkpoint_makers.save_base(planted.planted_model(), root / "base")
    for seed, language in enumerate(planted.HEADS, start=1):
        adapted = checkpoint_makers.lora(planted.planted_model(), seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter *= 0.01
        checkpoint_makers.save_adapter(adapted, root / "adapters" / language)
    for split, seed in (("train", 1), ("validation", 2)):
        rows = [row for label in planted.HEADS for row in planted.sentences(label, 20, seed)]
        checkpoint_makers.write_json_lines(root / f"{split}.jsonl", rows)
    return root


@pytest.mark.parametrize("attribution", ["gradient-x-activation", *PATHS])
@pytest.mark.parametrize("units", UNITS)
def test_each_language_of_a_checkpoint_has_its_units(checkpoint, units, attribution, tmp_path):
    truth, n = (planted.HEADS, 4) if units == "head" else (planted.NEURONS, 24)
    k = len(truth["de"])
    found = extract(
        open_checkpoint(checkpoint),
        method="attribution",
        units=units,
        attribution=attribution,
        density=k / n,
        n_steps=8,
    )
    model = find_units(planted.planted_model())
    for mask in found:
        chosen = set(selected_units(mask, model).nonzero().flatten().tolist())
        assert (mask.granularity, mask.count, mask.method) == (units, k, "attribution")
        settings = mask.settings
        assert (settings["k"], settings["zeros_left_out"]) == (k, 0)
        assert settings["data"] == "train.jsonl"
        assert settings["threshold"] > 0
        if units == "neuron" and attribution == "gradient-x-activation":
            assert not {"n_steps", "baseline", "quadrature"} & settings.keys()
            continue
        assert chosen == truth[mask.language]
        if attribution in PATHS:
            assert settings["interpolated"] == "embeddings of the input"
            assert settings["n_steps"] == 8
    found.save(tmp_path / "masks")
    back = load_subnetworks(open_checkpoint(tmp_path / "masks"))
    assert back["de"] == found["de"]
    assert back["de"].settings == found["de"].settings


def test_one_language_relabelled_has_one_mask(checkpoint):
    data = [
        {**row, "language": label}
        for label in ("de", "fr")
        for row in planted.sentences("de", 20, 5)
    ]
    for units in UNITS:
        found = extract(
            open_checkpoint(checkpoint), method="attribution", units=units, density=0.25,
            model="base", data=data,
        )  # fmt: skip
        assert found["de"] == found["fr"]


@pytest.mark.parametrize("units", UNITS)
def test_a_causal_model_keeps_the_same_share_of_every_block(units, tmp_path):
    model = checkpoint_makers.qwen3()
    checkpoint_makers.move(model, 7, size=0.3)
    checkpoint_makers.save_base(model, tmp_path / "base")
    rows = makers.examples("qwen3", (6, 3, 4, 6))
    lines = [{**row, "language": label} for label in ("de", "fr") for row in rows]
    checkpoint_makers.write_json_lines(tmp_path / "train.jsonl", lines)
    options = {"method": "attribution", "model": "base", "units": units, "density": 0.5}
    by_layer = extract(open_checkpoint(tmp_path), scope="layer", **options)["de"]
    overall = extract(open_checkpoint(tmp_path), **options)["de"]
    n = 4 if units == "head" else 24
    assert by_layer.counts == {f"layers.{i}.{units}s": n // 2 for i in range(2)}
    assert overall.count == n
    assert overall.counts != by_layer.counts
    found = find_units(model)
    batches = [makers.collate_for("qwen3")([row]) for row in rows]
    values = unit_importance(model, found, batches, AttributionSettings(units=units))
    for mask, parts in ((overall, 1), (by_layer, 2)):
        chosen = selected_units(mask, found).chunk(parts)
        for part, selected in zip(values.chunk(parts), chosen, strict=True):
            assert set(part.topk(len(part) // 2).indices.tolist()) == set(
                selected.nonzero().flatten().tolist()
            )


def test_units_that_change_nothing_are_never_selected(checkpoint, tmp_path):
    model = planted.planted_model()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, 4:] = 0
    root = tmp_path / "dead"
    checkpoint_makers.save_base(model, root / "base")
    checkpoint_makers.write_json_lines(root / "train.jsonl", planted.sentences("de", 8))
    options = {"method": "attribution", "units": "neuron", "model": "base"}
    (found,) = extract(open_checkpoint(root), density=0.5, **options)
    assert np.flatnonzero(found.dense("layers.0.neurons")).tolist() == [0, 1, 2, 3]
    assert (found.settings["k"], found.settings["zeros_left_out"]) == (12, 8)
    with pytest.raises(InputError, match=r"density 0\.01 selects none of the 24 neurons of de"):
        extract(open_checkpoint(root), density=0.01, **options)
    with torch.no_grad():
        model.classifier.weight.zero_()
    checkpoint_makers.save_base(model, root / "base")
    with pytest.raises(InputError, match="the attribution to every neuron is zero for de"):
        extract(open_checkpoint(root), density=0.5, **options)


@pytest.mark.parametrize("units", UNITS)
def test_removing_what_is_attributed_most_hurts_most(units):
    """Masks matter: the chosen units removed cost more than as many others."""
    model = planted.planted_model()
    found_units, gate = find_units(model), gate_heads if units == "head" else gate_neurons
    batches = planted.batches_of(planted.sentences("de", 40))
    settings = settings_of("integrated-gradients", units, n_steps=10)
    values = unit_importance(model, found_units, batches, settings)
    k = len((planted.HEADS if units == "head" else planted.NEURONS)["de"])
    losses = {}
    for name, chosen in (("most", values.topk(k)), ("least", values.topk(k, largest=False))):
        gates = torch.ones(len(values))
        gates[chosen.indices] = 0
        with gate(model, found_units, gates), torch.no_grad():
            losses[name] = torch.cat([example_losses(model, b) for b in batches]).mean()
    assert losses["most"] > 5 * losses["least"]


def test_of_equal_units_the_earlier_is_selected_and_k_is_exact(tmp_path):
    units = find_units(makers.make("qwen3"))
    equal = torch.ones(8, dtype=torch.float64)
    for density, scope, chosen in (
        (0.125, "global", [0]),
        (0.375, "global", [0, 1, 2]),
        (1.0, "global", list(range(8))),
        (0.5, "layer", [0, 1, 4, 5]),
    ):
        mask, k = _select(equal, units, settings_of("conductance", density=density, scope=scope),
                          "de", tmp_path)  # fmt: skip
        assert mask.nonzero().flatten().tolist() == chosen
        assert k == len(chosen)


@pytest.mark.parametrize(
    ("attribution", "per_block", "once"),
    [
        ("gradient-x-activation", 0, 1),
        ("conductance", 6, 1),
        ("integrated-gradients", 7, 1),
    ],
)
def test_the_cost_is_as_stated(attribution, per_block, once):
    """Examples that go forward: n_steps = 5 points and an end, or two ends, for each block."""
    model = makers.make("qwen3")
    batch, seen = makers.batch_of("qwen3"), []
    handle = model.register_forward_pre_hook(
        lambda module, given, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    settings = settings_of(attribution, n_steps=5, internal_batch_size=100)
    unit_attributions(model, find_units(model), batch, settings)
    handle.remove()
    assert sum(seen) == 3 * (2 * per_block + once)
