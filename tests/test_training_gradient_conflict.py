"""Conflict between the gradients of languages, its record over training, and PCGrad."""

import math
import shutil

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from checkpoint_makers import lora
from subnet.errors import InputError, MissingInputError
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import ConflictRecorder, fit_pcgrad, gradient_conflict
from subnet.training.subnetworks.pcgrad import projection_weights, random_orders
from subnetwork_training import (
    collate,
    encoder,
    quick_collection,
    same_bits,
    sentences,
    state,
)

__all__ = ["quick_collection"]

RECIPE = Recipe(steps=4, batch_size=12, learning_rate=3e-3, max_grad_norm=0.0)


def languages():
    return {
        "de": sentences(10, seed=1),
        "sw": sentences(7, seed=2),
        "fi": sentences(9, seed=3, shift=1),
    }


class Flat(torch.nn.Module):
    """A loss whose gradient is the mean of the given vectors, whatever the weights."""

    def __init__(self, width=2):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(width))

    def forward(self, g):
        return {"loss": (g @ self.theta).mean()}


def vectors(features):
    return {"g": torch.stack([torch.tensor(entry["g"]) for entry in features])}


def gradients_of(model, features):
    """One backward pass of each language over all its examples."""
    found = {}
    for language, examples in features.items():
        model.zero_grad()
        model.eval()(**collate(examples)).loss.backward()
        found[language] = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("memory", [1 << 30, 4000])
def test_cosines_are_those_of_one_backward_pass_per_language(memory):
    model, features = encoder(), languages()
    expected = gradients_of(model, features)
    before = state(model)
    model.train()
    frame = gradient_conflict(
        model, features, collate, batch_size=4, run="r1", step=7, memory=memory
    )
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(same_bits(p, before[n]) for n, p in model.named_parameters())
    assert set(frame["run"]) == {"r1"}
    assert set(frame["step"]) == {7}
    assert set(frame["level"]) == {"all", "layer", "module"}
    names = {
        ("all", ""): list(before),
        ("layer", "1"): [n for n in before if "encoder.layer.1." in n],
        ("module", "bert.encoder.layer.0.attention.self.query"): [
            n for n in before if "layer.0.attention.self.query" in n
        ],
    }
    for (level, module), members in names.items():
        rows = frame[(frame["level"] == level) & (frame["module"] == module)]
        assert list(zip(rows["language_a"], rows["language_b"], strict=True)) == [
            ("de", "sw"), ("de", "fi"), ("sw", "fi"),
        ]  # fmt: skip
        for row in rows.itertuples():
            a, b = (
                torch.cat([expected[language][n].reshape(-1).double() for n in members])
                for language in (row.language_a, row.language_b)
            )
            assert row.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)
            assert row.norm_a == pytest.approx(float(a.norm()), rel=1e-5)


def test_planted_conflict_is_seen_and_equal_languages_have_none():
    model = encoder()
    same, other = sentences(30, seed=1), sentences(30, seed=2)
    turned = [{**entry, "labels": (entry["labels"] + 1) % 3} for entry in same]
    frame = gradient_conflict(
        model, {"de": same, "sw": turned, "nl": other}, collate, levels=("all",)
    ).set_index(["language_a", "language_b"])["cosine"]
    assert frame["de", "sw"] < -0.2
    assert frame["de", "nl"] > 0.3
    assert gradient_conflict(model, {"a": same, "b": same}, collate, levels=("all",))[
        "cosine"
    ].item() == pytest.approx(1.0)


def test_an_undefined_cosine_is_missing_with_a_reason():
    features = {"de": [{"g": [1.0, 0.0]}], "sw": [{"g": [0.0, 0.0]}], "nl": [{"g": [-1.0, 1.0]}]}
    frame = gradient_conflict(Flat(), features, vectors, levels=("all",))
    assert frame["cosine"].isna().tolist() == [True, False, True]
    assert frame["reason"].tolist() == ["a gradient is zero", "", "a gradient is zero"]
    assert frame["cosine"][1] == pytest.approx(-math.sqrt(0.5))


def test_under_a_lora_factors_count_for_the_module_they_adapt():
    frame = gradient_conflict(lora(encoder(), 0), languages(), collate, levels=("module",))
    assert "bert.encoder.layer.1.attention.self.value" in set(frame["module"])
    assert not frame["module"].str.contains("lora|base_model").any()


def test_the_record_over_training_changes_nothing_and_survives_an_interruption(tmp_path):
    def train(model, recorder, folder, **arguments):
        fit(model, sentences(), RECIPE, collate=collate, seed=1, folder=folder, save_every=2,
            callbacks=[] if recorder is None else [recorder], **arguments)  # fmt: skip

    def recorder(**further):
        return ConflictRecorder(languages(), collate, every=2, levels=("all",), **further)

    plain, model, recorded = encoder(), encoder(), recorder()
    train(plain, None, tmp_path / "a")
    train(model, recorded, tmp_path / "b")
    for name, value in plain.named_parameters():
        assert same_bits(value, model.get_parameter(name))
    frame = recorded.to_frame()
    assert frame["step"].tolist() == [0] * 3 + [2] * 3 + [4] * 3
    last = gradient_conflict(model, languages(), collate, levels=("all",), step=4)
    np.testing.assert_allclose(frame["cosine"][6:], last["cosine"], rtol=1e-6)

    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(encoder(), recorder(), tmp_path / "c", on_step=stop)
    saved = shutil.copytree(tmp_path / "c" / "checkpoint-2", tmp_path / "checkpoint-2")
    again = recorder(resume=saved)
    train(encoder(), again, tmp_path / "c", resume=saved)
    assert again.to_frame().equals(frame)
    (saved / "gradient_conflict.json").unlink()
    with pytest.raises(MissingInputError, match=r"gradient_conflict.json: is not there"):
        train(encoder(), recorder(resume=saved), tmp_path / "c", resume=saved)


def naive_pcgrad(gradients, orders):
    """As the paper writes it, on vectors."""
    found = []
    for own, order in zip(gradients, orders, strict=True):
        vector = own.clone()
        for j in order:
            inner = vector @ gradients[j]
            if inner < 0:
                vector = vector - inner / (gradients[j] @ gradients[j]) * gradients[j]
        found.append(vector)
    return torch.stack(found)


def test_projection_is_against_the_original_gradients_in_the_order_given():
    """Trap: against gradients that were themselves projected the result is another."""
    gradients = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    orders = random_orders(5, seed=0, step=1)
    assert orders == random_orders(5, seed=0, step=1)
    assert orders != random_orders(5, seed=0, step=2)
    assert [sorted(order) for order in orders] == [
        [j for j in range(5) if j != i] for i in range(5)
    ]
    weights = projection_weights((gradients @ gradients.T).numpy(), orders)
    expected = naive_pcgrad(gradients, orders)
    torch.testing.assert_close(torch.from_numpy(weights) @ gradients, expected)

    in_place = gradients.clone()
    for i, order in enumerate(orders):
        for j in order:
            inner = in_place[i] @ in_place[j]
            if inner < 0:
                in_place[i] -= inner / (in_place[j] @ in_place[j]) * in_place[j]
    assert not torch.allclose(in_place, expected)
    turned = naive_pcgrad(gradients, [order[::-1] for order in orders])
    assert not torch.allclose(turned, expected)


def test_two_vectors_by_hand():
    """(1, 0) and (−1, 1): ⟨·,·⟩ = −1, so (1/2, 1/2) and (0, 1) remain."""
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    weights = projection_weights(gradients @ gradients.T, [[1], [0]])
    assert (weights @ gradients).tolist() == [[0.5, 0.5], [0.0, 1.0]]


class Kept(TrainerCallback):
    def __init__(self):
        self.seen, self.states = [], []

    def on_pre_optimizer_step(self, *_, model=None, **__):
        self.states.append(state(model))
        self.seen.append({n: p.grad.clone() for n, p in model.named_parameters()})


@pytest.mark.parametrize("passes", [1, 2])
def test_training_by_it_takes_the_mean_of_projected_gradients(tmp_path, passes):
    """Oracle: one backward pass per language at the same weights, projected as vectors."""
    features = {"de": sentences(4, seed=1), "sw": sentences(4, seed=2, shift=1),
                "fi": sentences(4, seed=3, shift=2)}  # fmt: skip
    model, kept, products = encoder(), Kept(), []
    fit_pcgrad(
        model, features, RECIPE.replace(passes=passes), collate=collate, seed=1, folder=tmp_path,
        callbacks=[kept], record=lambda step, gram: products.append((step, gram)),
    )  # fmt: skip
    replica, conflicts = encoder(), 0
    for step, (weights, gradients) in enumerate(zip(kept.states, kept.seen, strict=True)):
        replica.load_state_dict(weights, strict=False)
        own = gradients_of(replica, features)  # all four examples of each are in every batch
        flat = torch.stack([torch.cat([g.reshape(-1) for g in own[a].values()]) for a in features])
        expected = naive_pcgrad(flat, random_orders(3, seed=1, step=step)).mean(dim=0)
        found = torch.cat([gradient.reshape(-1) for gradient in gradients.values()])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        conflicts += int((flat @ flat.T < 0).any())
        assert products[step][0] == step
        np.testing.assert_allclose(products[step][1], flat @ flat.T, rtol=1e-3, atol=1e-4)
    assert conflicts  # else nothing was projected


def test_without_conflict_it_is_training_by_the_mean(tmp_path):
    """Oracle: the plain Trainer on the same batches."""
    features = {"de": sentences(6, seed=1), "sw": sentences(6, seed=1)}  # all in every batch
    a, b = encoder(), encoder()
    seen = []
    for model, project in ((a, True), (b, False)):
        fit_pcgrad(
            model, features, RECIPE.replace(steps=2, max_grad_norm=1.0), collate=collate, seed=1,
            folder=tmp_path, project=project, record=lambda step, gram: seen.append(gram),
        )  # fmt: skip
    assert len(seen) == 4  # conflict is recorded with projection and without
    assert all((gram > 0).all() for gram in seen)
    plain = encoder()
    both = [entry for own in features.values() for entry in own]
    fit(plain, both, RECIPE.replace(steps=2, max_grad_norm=1.0), collate=collate, seed=1,
        folder=tmp_path, batches=[range(12)] * 2)  # fmt: skip
    for name, value in plain.named_parameters():
        torch.testing.assert_close(value, b.get_parameter(name), rtol=1e-4, atol=1e-5)
    for name, value in a.named_parameters():
        torch.testing.assert_close(value, b.get_parameter(name), rtol=1e-4, atol=1e-5)


def tagged(n, *, seed, words):
    """Examples of several lengths, two labels; the last one of a longer text has none."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(n):
        length = words + number % 3
        ids = torch.randint(5, 40, (length,), generator=generator).tolist()
        labels = [token % 2 for token in ids]
        found.append({"input_ids": ids, "labels": [*labels[:-1], -100] if number % 3 else labels})
    return found


def padded(features):
    width = max(len(entry["input_ids"]) for entry in features)
    fill = {"input_ids": 0, "labels": -100}
    return {
        name: torch.tensor([e[name] + [value] * (width - len(e[name])) for e in features])
        for name, value in fill.items()
    } | {
        "attention_mask": torch.tensor(
            [[1] * len(e["input_ids"]) + [0] * (width - len(e["input_ids"])) for e in features]
        )
    }


def tagger():
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    return BertForTokenClassification(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=16, num_labels=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
        )
    )  # fmt: skip


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["words", "examples"])
def test_with_and_without_projection_the_loss_is_the_mean_of_the_languages(
    tmp_path, monkeypatch, kind, passes
):
    """Oracle: of each language the mean over its labels in the step, by hand; then their mean.

    Languages differ in length, so that a mean over all words is another loss; with three passes a
    pass has unequal parts of them.
    """
    from subnet.training.subnetworks import pcgrad

    if kind == "words":
        features = {"de": tagged(6, seed=1, words=9), "sw": tagged(6, seed=2, words=2)}
        make, gather = tagger, padded
    else:
        features = {"de": sentences(6, seed=1), "sw": sentences(6, seed=2, shift=1)}
        make, gather = encoder, collate
    recipe = RECIPE.replace(steps=1, passes=passes * (1 if passes < 3 else 4))  # one example each
    kept = {}
    monkeypatch.setattr(pcgrad, "projection_weights", lambda products, _: np.eye(len(products)))
    for project in (True, False):
        kept[project] = Kept()
        fit_pcgrad(make(), features, recipe, collate=gather, seed=1, folder=tmp_path,
                   project=project, callbacks=[kept[project]])  # fmt: skip

    def gradients(weigh):
        model = make().train()
        losses, counts = [], []
        for examples in features.values():
            batch = gather(examples)
            labels = batch.pop("labels")
            logits = model(**batch).logits.flatten(0, -2)
            each = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")
            losses.append(each.sum())
            counts.append(labels.ne(-100).sum())
        weigh(losses, counts).backward()
        return {name: value.grad for name, value in model.named_parameters()}

    of_languages = gradients(lambda a, n: sum(x / y for x, y in zip(a, n, strict=True)) / len(a))
    of_labels = gradients(lambda a, n: sum(a) / sum(n))
    for name, expected in of_languages.items():
        for project in (True, False):
            found = kept[project].seen[0][name]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    differ = [
        not torch.allclose(of_labels[n], of_languages[n], rtol=1e-2, atol=1e-4) for n in of_labels
    ]
    assert any(differ) == (kind == "words")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, f: gradient_conflict(m, {"de": f}, collate), r"1 language is given"),
        (lambda m, f: gradient_conflict(m, {}, collate), r"no language is given"),
        (lambda m, f: gradient_conflict(m, {"de": f, "sw": []}, collate), r"sw has 0 examples"),
        (
            lambda m, f: gradient_conflict(m, {"de": f, "sw": f}, collate, levels=("head",)),
            r"level 'head' is unknown; expected some of all, layer, module",
        ),
        (
            lambda m, f: gradient_conflict(m, {"de": f, "sw": f}, collate, batch_size=0),
            r"batch_size is 0; expected 1 or more",
        ),
        (
            lambda m, f: gradient_conflict(m.requires_grad_(False), {"a": f, "b": f}, collate),
            r"no parameter of the model requires a gradient",
        ),
        (
            lambda m, f: ConflictRecorder({"de": f, "sw": f}, collate, every=0),
            r"every is 0; expected 1 or more steps",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(encoder(), sentences(4))


def test_a_gradient_that_is_not_finite_is_named():
    model = encoder()
    with torch.no_grad():
        model.classifier.bias[0] = math.nan
    with pytest.raises(InputError, match=r"gradient of de by .* is not finite"):
        gradient_conflict(model, languages(), collate)


def test_where_it_is_allowed_a_gradient_that_is_not_finite_leaves_only_its_own_cosines_undefined():
    features = {
        "de": [{"g": [1.0, 2.0]}],
        "sw": [{"g": [math.inf, -math.inf]}],
        "fi": [{"g": [-2.0, -4.0]}],
    }
    frame = gradient_conflict(Flat(), features, vectors, levels=("all",), allow_undefined=True)
    rows = {(row.language_a, row.language_b): row for row in frame.itertuples()}
    assert rows["de", "fi"].cosine == pytest.approx(-1)
    assert rows["de", "fi"].reason == ""
    for pair in (("de", "sw"), ("sw", "fi")):
        assert math.isnan(rows[pair].cosine)
        assert rows[pair].reason == "a gradient is not finite"
    assert rows["de", "sw"].norm_a == pytest.approx(math.sqrt(5))
    assert math.isnan(rows["de", "sw"].norm_b)


@pytest.mark.parametrize(
    ("size", "n", "message"),
    [(13, 24, r"batch of 13 cannot be divided among 2"), (12, 5, r"de has 5 examples.*6 or more")],
)
def test_pcgrad_refuses_batches_that_have_not_the_same_of_each(size, n, message, tmp_path):
    features = {"de": sentences(n), "sw": sentences(24)}
    with pytest.raises(InputError, match=message):
        fit_pcgrad(encoder(), features, RECIPE.replace(batch_size=size), collate=collate, seed=0,
                   folder=tmp_path)  # fmt: skip
