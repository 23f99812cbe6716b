"""First-order MAML: the gradient in closed form, a naive loop, and what it is good for."""

import copy

import pytest
import torch
from transformers import TrainerCallback

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork import gradient_masks
from subnet.training.recipe import Recipe
from subnet.training.subnetworks import MetaSettings, draw_episodes, fit_meta
from subnetwork_training import (
    collate,
    encoder,
    quick_collection,
    random_mask,
    same_bits,
    sentences,
    state,
)

__all__ = ["quick_collection"]

SETTINGS = MetaSettings(support=4, query=3, inner_steps=2, inner_rate=0.05)
RECIPE = Recipe(steps=3, batch_size=1, learning_rate=1e-2, max_grad_norm=0.0)


class Gradients(TrainerCallback):
    """Keeps the gradients that the outer optimizer gets."""

    def __init__(self):
        self.seen, self.weights = [], []

    def on_pre_optimizer_step(self, *_, model=None, **__):
        live = dict(model.named_parameters())
        self.weights.append({n: p.detach().clone() for n, p in live.items()})
        self.seen.append({n: p.grad.clone() for n, p in live.items() if p.grad is not None})


class Regression(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(width))

    def forward(self, x, y):
        return {"loss": ((x @ self.theta - y) ** 2).mean()}


def points(features):
    return {key: torch.stack([entry[key] for entry in features]) for key in ("x", "y")}


def regressions(thetas, n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for language, theta in thetas.items():
        x = torch.randn(n, 3, generator=generator)
        found[language] = [{"x": row, "y": row @ torch.tensor(theta)} for row in x]
    return found


def languages():
    return {"de": sentences(seed=1), "sw": sentences(seed=2, shift=1)}


def test_the_gradient_of_linear_regression_is_the_closed_form(tmp_path):
    """θ' = θ − (α/n)·2·Xᵀ(Xθ − y), U times; the gradient is the mean of (2/m)·Xᵀ(Xθ' − y)."""
    features = regressions({"de": [1.0, 2.0, -1.0], "sw": [0.0, -1.0, 3.0]})
    model, kept = Regression(), Gradients()
    fit_meta(
        model, features, RECIPE, settings=SETTINGS, collate=points, seed=5, folder=tmp_path,
        callbacks=[kept],
    )  # fmt: skip
    sizes = dict.fromkeys(features, 20)
    drawn = draw_episodes(sizes, SETTINGS, steps=3, seed=5)
    for step, weights, gradients in zip(drawn, kept.weights, kept.seen, strict=True):
        expected = torch.zeros(3, dtype=torch.float64)
        for episode in step:
            own = features[episode.language]
            theta = weights["theta"].double()
            s = points([own[place] for place in episode.support])
            q = points([own[place] for place in episode.query])
            for _ in range(2):
                theta -= 0.05 * 2 / 4 * s["x"].double().T @ (s["x"].double() @ theta - s["y"])
            expected += 2 / 3 * q["x"].double().T @ (q["x"].double() @ theta - q["y"]) / 2
        torch.testing.assert_close(gradients["theta"].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("masked", "forward", "passes"),
    [(False, False, 1), (False, False, 2), (True, False, 2), (True, True, 1)],
)
def test_it_equals_a_naive_loop_over_copies(tmp_path, masked, forward, passes):
    model, features, kept = encoder(), languages(), Gradients()
    settings = MetaSettings(support=4, query=3, inner_steps=2, inner_rate=0.05, forward=forward)
    masks = {"de": random_mask(model, 0.3, seed=1), "sw": random_mask(model, 0.6, seed=2)}
    start = state(model)
    fit_meta(
        model, features, RECIPE.replace(passes=passes, weight_decay=0.1, steps=2),
        settings=settings, collate=collate, seed=5, folder=tmp_path, callbacks=[kept],
        masks=masks if masked else None,
    )  # fmt: skip
    drawn = draw_episodes({"de": 24, "sw": 24}, settings, steps=2, seed=5)
    for step, weights, gradients in zip(drawn, kept.weights, kept.seen, strict=True):
        expected = {}
        for episode in step:
            learner = encoder().train()
            learner.load_state_dict(weights, strict=False)
            inside = gradient_masks(masks[episode.language]) if masked else None
            if forward:
                with torch.no_grad():
                    for name, mask in inside.items():
                        learner.get_parameter(name).mul_(mask)
            for part, rate in [(episode.support, 0.05)] * 2 + [(episode.query, None)]:
                learner.zero_grad()
                own = features[episode.language]
                learner(**collate([own[place] for place in part])).loss.backward()
                for name, parameter in learner.named_parameters():
                    if masked:
                        parameter.grad *= inside.get(name, 0)
                    if rate is None:
                        expected[name] = expected.get(name, 0) + parameter.grad / 2
                    else:
                        parameter.data -= rate * parameter.grad
        if masked:
            expected = {name: expected[name] for name in masks["de"].shapes}
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            if masked and forward:  # parameters that no mask covers stay whole in both
                assert name in masks["de"].shapes
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    if masked:
        union = masks["de"] | masks["sw"]
        for name, value in model.named_parameters():
            outside = ~torch.from_numpy(union.dense(name)) if name in union.shapes else ...
            assert same_bits(value[outside], start[name][outside]), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_episodes_are_disjoint_and_depend_on_nothing_but_the_arguments():
    settings = MetaSettings(support=5, query=5)
    drawn = draw_episodes({"de": 10, "sw": 12}, settings, steps=4, seed=3)
    assert drawn == draw_episodes({"de": 10, "sw": 12}, settings, steps=4, seed=3)
    assert drawn != draw_episodes({"de": 10, "sw": 12}, settings, steps=4, seed=4)
    for step in drawn:
        assert [episode.language for episode in step] == ["de", "sw"]
        assert sorted((*step[0].support, *step[0].query)) == list(range(10))
        assert len({*step[1].support, *step[1].query}) == 10
    assert drawn[0][0] != drawn[1][0]
    alone = draw_episodes({"sw": 12}, settings, steps=4, seed=3)
    assert [step[0] for step in alone] == [step[1] for step in drawn]


def test_a_start_that_serves_opposed_tasks_is_found_and_a_null_stays(tmp_path):
    """θ_de and θ_sw share one coordinate and are opposed in another: the start has the former."""
    features = regressions({"de": [2.0, 3.0, 0.0], "sw": [2.0, -3.0, 0.0]}, n=60)
    settings = MetaSettings(support=20, query=20, inner_rate=0.1)
    recipe = Recipe(steps=60, learning_rate=0.1, max_grad_norm=0.0)
    model = Regression()
    fit_meta(model, features, recipe, settings=settings, collate=points, seed=0, folder=tmp_path)
    shared, opposed, idle = model.theta.tolist()
    assert shared == pytest.approx(2.0, abs=0.3)
    assert abs(opposed) < 0.6
    assert abs(idle) < 0.3
    null = Regression()
    features = regressions({"de": [0.0] * 3, "sw": [0.0] * 3}, n=60)
    fit_meta(null, features, recipe.replace(steps=5), settings=settings, collate=points, seed=0,
             folder=tmp_path)  # fmt: skip
    assert null.theta.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"de": sentences(6), "sw": sentences()}}, r"de has 6 examples.*7 or more"),
        ({"features": {"de": sentences()}}, r"1 language is given; expected two or more"),
        ({"recipe": RECIPE.replace(passes=3)}, r"2 languages cannot be divided among 3 passes"),
        ({"masks": {"de": "own"}}, r"sw has no mask, or a mask and no examples"),
    ],
)
def test_what_cannot_be_meta_learnt_is_refused(change, message, tmp_path):
    model = encoder()
    arguments = {"features": languages(), "recipe": RECIPE} | copy.copy(change)
    if "masks" in arguments:
        arguments["masks"] = {"de": random_mask(model)}
    with pytest.raises(InputError, match=message):
        fit_meta(model, arguments.pop("features"), arguments.pop("recipe"), settings=SETTINGS,
                 collate=collate, seed=0, folder=tmp_path, **arguments)  # fmt: skip


def test_masks_of_another_base_and_settings_out_of_range_are_refused(tmp_path):
    model = encoder()
    masks = {language: random_mask(model, base="mbert") for language in ("de", "sw")}
    with pytest.raises(NotComparableError, match=r"'mbert' and the model on 'tiny'"):
        fit_meta(model, languages(), RECIPE, settings=SETTINGS, collate=collate, seed=0,
                 folder=tmp_path, masks=masks, base="tiny")  # fmt: skip
    for name in ("support", "query", "inner_steps"):
        with pytest.raises(InputError, match=rf"{name} is 0; expected 1 or more"):
            MetaSettings(**{name: 0})
    with pytest.raises(InputError, match=r"inner_rate is -1"):
        MetaSettings(inner_rate=-1)
