"""Pruning of heads: equal to pruning by hand, its traps, and planted heads found."""

from __future__ import annotations

import contextlib
import itertools
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import checkpoint_makers
import model_makers as makers
import planted_heads as planted
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError
from subnet.model import find_units, gate_heads
from subnet.subnetwork import (
    HeadPruningSettings,
    extract,
    extract_halves,
    load_subnetworks,
    selected_units,
)
from subnet.subnetwork._scores import Score, passes
from subnet.subnetwork.pruning import _least, head_importance, prune_heads

ARCHITECTURES = ("bert", "bert_tagger", "xlm_roberta", "llama", "qwen3", "gemma", "mt5", "m2m")
LENGTHS = (6, 3, 4, 6, 5, 3, 4, 7)


@contextlib.contextmanager
def scaled(name, model, gates):
    """Oracle: the model whose output projections' columns are scaled, without any hook."""
    _, _, _, n_heads, width, _ = makers.ARCHITECTURES[name]
    names = makers.output_projections(name, model)
    weights = [model.get_submodule(path).weight for path in names]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for i, weight in enumerate(weights):
            part = torch.as_tensor(gates[i * n_heads : (i + 1) * n_heads])
            weight *= part.double().repeat_interleave(width)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight.copy_(values)


def own_loss(logits, labels, task):
    """Oracle: one example's mean −log p over its labels, written out."""
    if task == "sequence":
        return -logits.log_softmax(-1)[0, labels[0]]
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    log_p = logits.log_softmax(-1)[0]
    return -torch.stack([log_p[i, y] for i, y in enumerate(labels[0].tolist()) if y >= 0]).mean()


def losses_by_hand(name, model, rows):
    task, collate = makers.ARCHITECTURES[name][1], makers.collate_for(name)
    with torch.no_grad():
        batches = [collate([row]) for row in rows]
        return torch.stack([own_loss(model(**b).logits, b["labels"], task) for b in batches])


def importance_by_hand(name, model, rows, gates):
    """Oracle: one backward pass per example; ∂L/∂ξ = ⟨W_h, ∂L/∂(ξ W_h)⟩ of the head's columns."""
    _, task, _, n_heads, width, _ = makers.ARCHITECTURES[name]
    weights = [model.get_submodule(path).weight for path in makers.output_projections(name, model)]
    whole = [weight.detach().clone() for weight in weights]
    found = np.zeros(len(gates))
    with scaled(name, model, gates):
        for row in rows:
            batch = makers.collate_for(name)([row])
            own_loss(model(**batch).logits, batch["labels"], task).backward()
            products = [w * weight.grad for w, weight in zip(whole, weights, strict=True)]
            slopes = [p.sum(0).reshape(n_heads, width).sum(1) for p in products]
            found += torch.cat(slopes).abs().numpy()
            model.zero_grad(set_to_none=True)
    return found / len(rows)


def importance_by_ablation(name, model, rows, gates, eps=1e-5):
    """Oracle: |central difference| of each example's loss by each gate, its mean."""
    found = []
    for head in range(len(gates)):
        ends = []
        for step in (eps, -eps):
            moved = np.array(gates, dtype=float)
            moved[head] += step
            with scaled(name, model, moved):
                ends.append(losses_by_hand(name, model, rows))
        found.append(((ends[0] - ends[1]) / (2 * eps)).abs().mean().item())
    return np.array(found)


def score_by_hand(name, model, rows):
    """Oracle: (score, more is better)."""
    task, collate = makers.ARCHITECTURES[name][1], makers.collate_for(name)
    if task not in ("sequence", "token"):
        return losses_by_hand(name, model, rows).mean().item(), False
    hits = []
    for row in rows:
        batch = collate([row])
        predicted = model(**batch).logits.argmax(-1).reshape(-1).tolist()
        labels = batch["labels"].reshape(-1).tolist()
        hits += [p == y for p, y in zip(predicted, labels, strict=True) if y != -100]
    return float(np.mean(hits)), True


def prune_by_hand(name, model, rows, *, threshold, share, n_heads):
    """Oracle: the whole search as a list of (heads left, score), and the heads at its end."""
    left = list(range(n_heads))
    full, more_is_better = score_by_hand(name, model, rows)
    history = [(n_heads, full)]
    while left:
        gates = [float(head in left) for head in range(n_heads)]
        values = importance_by_hand(name, model, rows, gates)
        order = sorted(left, key=lambda head: (values[head], -head))
        fewer = [head for head in left if head not in order[: max(1, round(share * n_heads))]]
        with scaled(name, model, [float(head in fewer) for head in range(n_heads)]):
            score, _ = score_by_hand(name, model, rows)
        history.append((len(fewer), score))
        if score < threshold * full if more_is_better else score > full / threshold:
            break
        left = fewer
    return history, left


def rows_of(name, model):
    """Examples of which the model gets most right, as after training."""
    rows = makers.examples(name, LENGTHS)
    if makers.ARCHITECTURES[name][1] not in ("sequence", "token"):
        return rows
    collate = makers.collate_for(name)
    for number, row in enumerate(rows):
        predicted = model(**collate([row])).logits.argmax(-1)[0]
        if makers.ARCHITECTURES[name][1] == "sequence":
            row["labels"] = (int(predicted) + (number == 1)) % 3
        else:
            row["labels"] = [-100, *predicted[1:].tolist()[:-1], (int(predicted[-1]) + 1) % 5]
    return rows


def batches_of(name, rows, size=3):
    collate = makers.collate_for(name)
    return [collate(rows[i : i + size]) for i in range(0, len(rows), size)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_importance_is_the_mean_of_every_examples_own_slope(name):
    model = makers.make(name)
    units, rows = find_units(model), makers.examples(name, (6, 3, 4, 5))
    found = head_importance(model, units, batches_of(name, rows))
    oracle = importance_by_hand(name, model, rows, [1.0] * units.n_heads)
    np.testing.assert_allclose(found, oracle, rtol=1e-5, atol=1e-8)
    if name in ("bert", "bert_tagger", "xlm_roberta", "m2m"):  # others compute norms in float32
        oracle = importance_by_ablation(name, model, rows, [1.0] * units.n_heads)
        np.testing.assert_allclose(found, oracle, rtol=1e-5, atol=1e-8)
    closed = torch.ones(units.n_heads, dtype=torch.bool)
    closed[1] = False
    found = head_importance(model, units, batches_of(name, rows), kept=closed)
    oracle = importance_by_hand(name, model, rows, closed.double().tolist())
    np.testing.assert_allclose(found, oracle, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_search_is_that_by_hand(name):
    model = makers.make(name)
    units, rows = find_units(model), rows_of(name, model)
    settings = HeadPruningSettings(threshold=0.8, share_per_round=0.25, halves_from=100)
    found = prune_heads(model, units, batches_of(name, rows), settings)
    history, left = prune_by_hand(
        name, model, rows, threshold=0.8, share=0.25, n_heads=units.n_heads
    )
    assert [entry.n_heads for entry in found.history] == [n for n, _ in history]
    np.testing.assert_allclose(
        [entry.score for entry in found.history], [score for _, score in history], rtol=1e-9
    )
    assert found.mask.nonzero().flatten().tolist() == left
    measures = {"sequence": "accuracy", "token": "token accuracy"}
    assert found.measure == measures.get(makers.ARCHITECTURES[name][1], "loss")


def test_the_mask_is_the_last_that_passed():
    model = planted.planted_model()
    units = find_units(model)
    batches = planted.batches_of(planted.sentences("de", 40))
    settings = HeadPruningSettings(share_per_round=0.25)
    found = prune_heads(model, units, batches, settings)
    *before, last = found.history
    assert all(entry.passed for entry in before)
    assert not last.passed
    assert int(found.mask.sum()) == before[-1].n_heads > last.n_heads
    with gate_heads(model, units, found.mask.float()):
        hits = [(model(**b).logits.argmax(-1) == b["labels"]).float().mean() for b in batches]
    assert torch.stack(hits).mean() >= 0.95
    assert found.stopped == "threshold"
    assert found.reason.startswith("accuracy is 0.")


@pytest.mark.parametrize("language", ["de", "fr"])
@pytest.mark.parametrize("seed", range(4))
def test_planted_heads_are_found_and_no_others(language, seed):
    model = planted.planted_model(seed)
    rows = planted.sentences(language, 80, seed)
    settings = HeadPruningSettings(share_per_round=0.25, seed=seed)
    found = prune_heads(model, find_units(model), planted.batches_of(rows), settings)
    assert set(found.mask.nonzero().flatten().tolist()) == planted.HEADS[language]
    assert (found.disjoint, found.n_importance, found.n_score) == (True, 40, 40)


def test_languages_that_are_one_differ_as_halves_of_one_do():
    """Null: quarters of one pool are exchangeable, whichever two are called a language."""

    def jaccard(a, b):
        return float((a & b).sum() / (a | b).sum())

    model = makers.make("bert_tagger")
    units = find_units(model)
    settings = HeadPruningSettings(density=0.5, share_per_round=0.25, halves_from=1000)
    between, within = [], []
    for seed in range(10):
        rows = makers.examples("bert_tagger", (6, 4, 5, 6) * 6, seed=seed)
        quarters = [batches_of("bert_tagger", rows[i::4], 6) for i in range(4)]
        masks = [prune_heads(model, units, part, settings).mask for part in quarters]
        within += [jaccard(masks[0], masks[1]), jaccard(masks[2], masks[3])]
        between += [jaccard(masks[a], masks[b]) for a in (0, 1) for b in (2, 3)]
    assert np.std(within) > 0
    noise = np.hypot(np.std(within) / len(within) ** 0.5, np.std(between) / len(between) ** 0.5)
    assert abs(np.mean(within) - np.mean(between)) < 3 * noise
    two = [planted.sentences(language, 64) for language in ("de", "fr")]
    model = planted.planted_model()
    units, settings = find_units(model), HeadPruningSettings(share_per_round=0.25)
    masks = [prune_heads(model, units, planted.batches_of(rows), settings).mask for rows in two]
    assert jaccard(*masks) == pytest.approx(1 / 3)


def test_examples_that_pull_apart_do_not_cancel():
    """The magnitude of the batch's mean gradient would call such a head useless."""
    model = makers.make("bert")
    units = find_units(model)
    row = makers.examples("bert", (5,))[0]
    pair = [{**row, "labels": 0}, {**row, "labels": 1}, {**row, "labels": 2}]
    with torch.no_grad():  # all classes alike, so that the labels pull with equal force
        model.classifier.bias.zero_()
        model.classifier.weight[2] = -model.classifier.weight[0] - model.classifier.weight[1]
        model.classifier.weight *= 1e-4
    batch = makers.collate_for("bert")(pair)
    gates = torch.ones(units.n_heads, dtype=torch.float64, requires_grad=True)
    with gate_heads(model, units, gates):
        model(**batch).loss.backward()
    found = head_importance(model, units, [batch])
    assert (found > 100 * gates.grad.abs()).all()


def test_nothing_is_left_over_between_batches_or_calls():
    model = makers.make("qwen3")
    units, rows = find_units(model), makers.examples("qwen3", (6, 3, 4, 5))
    batches = batches_of("qwen3", rows, 2)
    first = head_importance(model, units, batches)
    torch.testing.assert_close(head_importance(model, units, batches), first, rtol=0, atol=0)
    torch.testing.assert_close(head_importance(model, units, batches[::-1]), first)
    singles = batches_of("qwen3", rows, 1)
    torch.testing.assert_close(head_importance(model, units, singles), first)
    apart = [head_importance(model, units, [batch]) for batch in batches]
    torch.testing.assert_close((apart[0] + apart[1]) / 2, first)


@pytest.mark.parametrize("name", ["bert", "qwen3", "m2m"])
def test_padding_changes_nothing(name):
    model = makers.make(name)
    units, rows = find_units(model), rows_of(name, model)
    settings = HeadPruningSettings(threshold=0.8, share_per_round=0.25)
    wide = [makers.collate_for(name, extra=3)(rows)]
    found, padded = (
        prune_heads(model, units, batches, settings)
        for batches in (batches_of(name, rows, 1), wide)
    )
    torch.testing.assert_close(padded.importance, found.importance)
    assert torch.equal(padded.mask, found.mask)


def test_examples_without_a_label_do_not_count():
    model = makers.make("bert_tagger")
    units, rows = find_units(model), makers.examples("bert_tagger", (6, 3, 4))
    empty = {"input_ids": [7, 8], "labels": [-100, -100]}
    settings = HeadPruningSettings(density=0.5)
    found, more = (
        prune_heads(model, units, batches_of("bert_tagger", part, 4), settings)
        for part in (rows, [*rows, empty])
    )
    torch.testing.assert_close(more.importance, found.importance)
    assert [entry.score for entry in more.history] == [entry.score for entry in found.history]
    with pytest.raises(InputError, match="no example has a label"):
        prune_heads(model, units, batches_of("bert_tagger", [empty]), settings)


def test_importance_and_score_see_different_examples():
    model = planted.planted_model()
    rows = planted.sentences("de", 70)
    for number, row in enumerate(rows):  # the third token tells examples apart
        row["input_ids"] = [*row["input_ids"], 37 if number % 7 else 38, number % 35 + 5]
    seen = {True: set(), False: set()}
    handle = model.register_forward_pre_hook(
        lambda module, given, kwargs: seen[torch.is_grad_enabled()].update(
            map(tuple, kwargs["input_ids"].tolist())
        ),
        with_kwargs=True,
    )
    everything = {tuple(row["input_ids"]) for row in rows}
    batches, units = planted.batches_of(rows), find_units(model)
    found = prune_heads(model, units, batches, HeadPruningSettings())
    assert found.disjoint
    assert len(seen[True]) == len(seen[False]) == 35
    assert seen[True] | seen[False] == everything
    drawn = set(seen[True])
    for examples in seen.values():
        examples.clear()
    prune_heads(model, units, batches, HeadPruningSettings(seed=1))
    assert seen[True] != drawn
    seen[True].clear()
    found = prune_heads(model, units, batches, HeadPruningSettings(halves_from=71))
    handle.remove()
    assert not found.disjoint
    assert seen[True] == everything
    assert (found.n_importance, found.n_score) == (70, 70)


@pytest.mark.parametrize("rescore", [True, False])
def test_a_round_costs_one_pass_for_importance_and_one_for_the_score(rescore):
    model = makers.make("qwen3")
    units = find_units(model)
    passes_made = {True: 0, False: 0}
    handle = model.register_forward_pre_hook(
        lambda module, given: passes_made.update(
            {torch.is_grad_enabled(): passes_made[torch.is_grad_enabled()] + 1}
        )
    )
    batches = batches_of("qwen3", makers.examples("qwen3"))
    settings = HeadPruningSettings(density=0.5, share_per_round=1 / 8, rescore=rescore)
    found = prune_heads(model, units, batches, settings)
    handle.remove()
    rounds = len(found.history) - 1
    assert rounds == 4
    assert passes_made == {True: rounds if rescore else 1, False: rounds + 1}


def test_importance_taken_once_differs_from_importance_taken_anew():
    model = makers.make("bert_tagger")
    units = find_units(model)
    batches = batches_of("bert_tagger", makers.examples("bert_tagger", LENGTHS))
    anew, once = (
        prune_heads(model, units, batches, HeadPruningSettings(density=0.5, rescore=rescore))
        for rescore in (True, False)
    )
    torch.testing.assert_close(anew.importance, once.importance)
    order = torch.argsort(once.importance, descending=True)
    assert set(once.mask.nonzero().flatten().tolist()) == set(order[:4].tolist())
    assert not torch.equal(anew.mask, once.mask)


@pytest.mark.parametrize("density", [0.25, 0.375, 0.75, 1.0])
def test_a_density_is_met_exactly_whatever_the_score(density):
    model = makers.make("qwen3")
    units = find_units(model)
    batches = batches_of("qwen3", makers.examples("qwen3"))
    settings = HeadPruningSettings(density=density, share_per_round=0.3)
    found = prune_heads(model, units, batches, settings)
    assert int(found.mask.sum()) == round(8 * density)
    assert found.stopped == "density"
    assert found.importance.gt(0).all()
    assert found.history[-1].density == found.mask.float().mean()
    with pytest.raises(InputError, match=r"density 0\.05 leaves none of the 8 heads"):
        prune_heads(model, units, batches, HeadPruningSettings(density=0.05))


def one_headed(bias=0.0):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=8, num_labels=3, initializer_range=1.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.bias[1] += bias
    return model


def test_one_head_that_is_needed_stays():
    model = one_headed()
    rows = makers.examples("bert", LENGTHS)
    for row in rows:
        batch = makers.collate_for("bert")([row])
        row["labels"] = int(model(**batch).logits.argmax())
    found = prune_heads(model, find_units(model), batches_of("bert", rows))
    assert found.mask.tolist() == [True]
    assert found.stopped == "threshold"
    assert found.reason.startswith("no head can be dropped: accuracy is 0.")
    assert [entry.passed for entry in found.history] == [True, False]


def test_where_no_head_is_needed_the_mask_is_empty_and_says_so():
    model = one_headed(bias=100.0)
    rows = [{**row, "labels": 1} for row in makers.examples("bert")]
    found = prune_heads(model, find_units(model), batches_of("bert", rows))
    assert found.mask.tolist() == [False]
    assert found.stopped == "empty"
    assert "these examples need no head, so the mask is empty" in found.reason
    assert found.to_frame().density.tolist() == [1.0, 0.0]


def test_of_equal_heads_the_later_is_dropped_first():
    model = makers.make("qwen3")
    with torch.no_grad():
        for path in makers.output_projections("qwen3", model):
            model.get_submodule(path).weight.zero_()
    batches = batches_of("qwen3", makers.examples("qwen3"))
    settings = HeadPruningSettings(density=0.625, share_per_round=0.125)
    found = prune_heads(model, find_units(model), batches, settings)
    assert not found.importance.any()
    assert found.mask.tolist() == [True] * 5 + [False] * 3


def test_a_model_that_gets_nothing_right_has_no_threshold():
    model = one_headed(bias=100.0)
    batches = batches_of("bert", [{**row, "labels": 0} for row in makers.examples("bert")])
    with pytest.raises(InputError, match=r"gets no held-out example right.*take a density"):
        prune_heads(model, find_units(model), batches)
    settings = HeadPruningSettings(density=1.0)
    assert prune_heads(model, find_units(model), batches, settings).history[0].score == 0


def test_a_loss_may_grow_to_the_whole_models_divided_by_the_threshold():
    full = Score(2.0, 2.0)
    assert passes(Score(2.5, 2.5), full, "loss", 0.8)
    assert not passes(Score(2.51, 2.51), full, "loss", 0.8)
    assert passes(Score(0.1, 0.1), full, "loss", 1.0)
    full = Score(1.0, 0.1)
    assert passes(Score(0.95, 9.0), full, "accuracy", 0.95)
    assert not passes(Score(0.94, 0.0), full, "accuracy", 0.95)
    for n, threshold in itertools.product(range(20, 200, 20), (0.9, 0.95)):
        full = Score(0.7, 1.0)  # what is exactly the threshold's share passes, rounding or not
        assert passes(Score(0.7 * n * threshold / n, 1.0), full, "accuracy", threshold)


def test_several_labels_or_numbers_are_judged_by_loss():
    model = makers.make("bert")
    units = find_units(model)
    batch = makers.batch_of("bert")
    several = {**batch, "labels": torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1]])}
    found = prune_heads(model, units, [several], HeadPruningSettings(density=0.5))
    assert found.measure == "loss"
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    loss = torch.nn.BCEWithLogitsLoss()(logits, several["labels"].double())
    assert found.history[0].score == found.history[0].loss == pytest.approx(loss.item())


def test_normalising_by_layer_changes_which_heads_go_and_not_what_is_recorded():
    name = "qwen3"
    model = makers.make(name)
    with torch.no_grad():  # all of the first layer's heads matter less than any of the second's
        model.get_submodule(makers.output_projections(name, model)[0]).weight.mul_(1e-4)
    units = find_units(model)
    batches = batches_of(name, makers.examples(name, LENGTHS))
    once = {"density": 0.5, "share_per_round": 0.5, "halves_from": 100}
    raw, by_layer = (
        prune_heads(model, units, batches, HeadPruningSettings(**once, normalization=kind))
        for kind in ("none", "layer")
    )
    values = raw.importance
    assert values[:4].max() < values[4:].min()
    assert raw.mask.tolist() == [False] * 4 + [True] * 4
    torch.testing.assert_close(by_layer.importance, values)
    scaled_values = torch.cat([values[:4] / values[:4].norm(), values[4:] / values[4:].norm()])
    kept = torch.argsort(scaled_values, descending=True)[:4]
    assert set(by_layer.mask.nonzero().flatten().tolist()) == set(kept.tolist())
    assert by_layer.mask[:4].any()


def test_heads_that_are_gone_do_not_change_how_layers_compare():
    units = find_units(makers.make("qwen3"))
    importance = torch.tensor([10.0, 1.0, 1.2, 1.1, 2.0, 3.0, 4.0, 5.0])
    kept = torch.tensor([False] + [True] * 7)
    by_layer = HeadPruningSettings(normalization="layer")
    assert _least(importance, kept, units, by_layer) == [4, 5, 1, 6, 3, 2, 7]
    assert _least(importance, kept, units, HeadPruningSettings()) == [1, 3, 2, 4, 5, 6, 7]


def test_the_model_is_left_as_it_was_and_dropout_is_off():
    model = planted.planted_model()
    units, batches = find_units(model), planted.batches_of(planted.sentences("de", 70))
    still = prune_heads(model, units, batches)
    model.train()
    model.bert.pooler.eval()
    model.classifier.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = prune_heads(model, units, batches)
    assert torch.equal(found.importance, still.importance)
    assert found.history == still.history
    assert [module.training for module in model.modules()] == modes
    assert not model.classifier.weight.requires_grad
    assert model.bert.pooler.dense.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_losses_that_are_not_finite_are_refused():
    model = makers.make("bert")
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="mean loss over 3 examples is nan"):
        prune_heads(model, find_units(model), [makers.batch_of("bert")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0}, "threshold is 0; expected a number, 0 < threshold <= 1"),
        ({"threshold": 1.1}, r"threshold is 1\.1"),
        ({"share_per_round": 0.0}, r"share_per_round is 0\.0"),
        ({"share_per_round": True}, "share_per_round is True"),
        ({"density": 2}, "density is 2"),
        ({"rescore": "yes"}, "rescore is 'yes'; expected True or False"),
        ({"normalization": "minmax"}, "normalization is 'minmax'; expected 'none' or 'layer'"),
        ({"halves_from": -1}, "halves_from is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        HeadPruningSettings(**settings)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The planted model with an adapter per language, and examples; training labels are wrong."""
    root = tmp_path_factory.mktemp("planted")
    checkpoint_makers.save_base(planted.planted_model(), root / "base")
    for seed, language in enumerate(planted.HEADS, start=1):
        adapted = checkpoint_makers.lora(planted.planted_model(), seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter *= 0.01
        checkpoint_makers.save_adapter(adapted, root / "adapters" / language)
    splits = {"train": (20, 1), "validation": (80, 2), "test": (4, 3)}
    for split, (n, seed) in splits.items():
        rows = [row for label in planted.HEADS for row in planted.sentences(label, n, seed)]
        rows = [{**row, "id": f"{split}{i}"} for i, row in enumerate(rows)]
        if split == "train":
            rows = [{**row, "labels": (row["labels"] + (i % 5 > 0)) % 4}
                    for i, row in enumerate(rows)]  # fmt: skip
        if split == "test":  # sentences that no other split can hold
            rows = [{**row, "input_ids": [*row["input_ids"], 38]} for row in rows]
        checkpoint_makers.write_json_lines(root / f"{split}.jsonl", rows)
    return root


@pytest.mark.parametrize("which", ["trained", "base"])
def test_each_language_of_a_checkpoint_has_its_heads(checkpoint, which, tmp_path):
    opened = open_checkpoint(checkpoint)
    found = extract(opened, method="head-pruning", share_per_round=0.25, model=which)
    units = find_units(planted.planted_model())
    for mask in found:
        heads = selected_units(mask, units).nonzero().flatten().tolist()
        assert set(heads) == planted.HEADS[mask.language]
        assert (mask.granularity, mask.method, mask.seed) == ("head", "head-pruning", 0)
        settings = mask.settings
        assert (settings["data"], settings["held_out"]) == ("validation.jsonl", True)
        assert settings["checked_against_test"]
        assert settings["history"]["density"] == [1.0, 0.75, 0.5, 0.25]
        assert settings["history"]["score"][:3] == [1.0, 1.0, 1.0]
        assert settings["history"]["score"][3] < 0.95
        assert (settings["measure"], settings["stopped"]) == ("accuracy", "threshold")
        assert (settings["n_importance"], settings["n_score"]) == (40, 40)
        assert np.argsort(settings["importance"]["layers.0.heads"])[2:].tolist() == sorted(
            heads, key=settings["importance"]["layers.0.heads"].__getitem__
        )
    found.save(tmp_path / "masks")
    back = load_subnetworks(open_checkpoint(tmp_path / "masks"))
    assert back["de"] == found["de"]
    assert back["de"].settings == found["de"].settings
    assert back["de"].granularity == "head"


def test_training_examples_are_taken_only_for_want_of_others_and_it_is_said(checkpoint, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(checkpoint, root)
    (root / "validation.jsonl").unlink()
    found = extract(open_checkpoint(root), method="head-pruning", density=0.5)
    assert {mask.settings["data"] for mask in found} == {"train.jsonl"}
    assert {mask.settings["held_out"] for mask in found} == {False}
    assert not any(mask.settings["disjoint"] for mask in found)
    assert all(mask.settings["history"]["score"][0] < 0.5 for mask in found)
    rows = [row for label in planted.HEADS for row in planted.sentences(label, 8, 9)]
    given = extract(open_checkpoint(root), method="head-pruning", density=0.5, data=rows)
    assert given["de"].settings["held_out"] is None
    assert given["de"].settings["stopped"] == "density"


def test_held_out_examples_that_are_tested_on_are_refused(checkpoint, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(checkpoint, root)
    shutil.copy(root / "test.jsonl", root / "validation.jsonl")
    with pytest.raises(InputError, match="4 of 4 examples of de are test examples"):
        extract(open_checkpoint(root), method="head-pruning")


def test_one_language_relabelled_has_one_mask_and_halves_agree_with_it(checkpoint):
    data = [
        {**row, "language": label}
        for label in ("de", "fr")
        for row in planted.sentences("de", 80, 5)
    ]
    opened = open_checkpoint(checkpoint)
    options = {"method": "head-pruning", "share_per_round": 0.25, "model": "base", "data": data}
    found = extract(opened, **options)
    assert found["de"] == found["fr"]
    assert found["de"].settings["importance"] == found["fr"].settings["importance"]
    one, other = extract_halves(opened, **{**options, "data": data})
    assert one["de"] == other["de"] == found["de"]


def test_a_causal_model_is_judged_by_its_loss(tmp_path):
    model = checkpoint_makers.qwen3()
    checkpoint_makers.move(model, 7, size=0.3)
    checkpoint_makers.save_base(model, tmp_path / "base")
    rows = {
        label: makers.examples("qwen3", (6, 3, 4, 6), seed)
        for seed, label in enumerate(("de", "fr"))
    }
    lines = [{**row, "language": label} for label, several in rows.items() for row in several]
    checkpoint_makers.write_json_lines(tmp_path / "validation.jsonl", lines)
    found = extract(
        open_checkpoint(tmp_path),
        method="head-pruning",
        model="base",
        threshold=0.9,
        share_per_round=0.25,
        batch_size=2,
    )
    units = find_units(model)
    for mask in found:
        settings = HeadPruningSettings(threshold=0.9, share_per_round=0.25)
        batches = batches_of("qwen3", rows[mask.language], 1)
        live = prune_heads(model, units, batches, settings)
        assert torch.equal(selected_units(mask, units), live.mask)
        assert mask.settings["measure"] == "loss"
        np.testing.assert_allclose(
            mask.settings["history"]["loss"], [e.loss for e in live.history], atol=1e-5
        )
    assert found["de"].shapes == {"layers.0.heads": (4,), "layers.1.heads": (4,)}
