"""Dynamic masks the slow way: whole scores, sorted whole, and weights multiplied by booleans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from subnet.subnetwork import Subnetwork
from subnet.training.recipe import Recipe
from subnetwork_training import encoder, same_bits, state

Weights = dict[str, Tensor]

#: What the masks of these tests are over, sorted.
NAMES = sorted(
    f"bert.encoder.layer.{layer}.attention.self.{part}.weight"
    for layer in (0, 1)
    for part in ("key", "query")
)
PATTERNS = ("*query.weight", "*key.weight")
HEAD = {"classifier.bias", "classifier.weight"}


class Recorder(TrainerCallback):
    """Weights between steps, those that each forward pass sees, and gradients of the optimizer's.

    Attributes:
        states: Before the first step and at each one's end.
        begins: At each step's begin, before a mask that comes after is asked.
        gradients: What the optimizer gets, at every step.
        passes: The weights that every forward pass sees.
        batches: The batches of these passes.
    """

    def __init__(self) -> None:
        self.states: list[Weights] = []
        self.begins: list[Weights] = []
        self.gradients: list[Weights] = []
        self.passes: list[Weights] = []
        self.batches: list[dict[str, Tensor]] = []
        self._hook: Any = None

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.states.append(state(model))

        def see(module: Any, _: Any, batch: dict[str, Tensor]) -> None:
            self.passes.append(state(module))
            self.batches.append(dict(batch))

        self._hook = model.register_forward_pre_hook(see, with_kwargs=True)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._hook.remove()

    def on_step_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.begins.append(state(model))

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.states.append(state(model))

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        self.gradients.append(found)


class NaiveMask:
    """One language's mask, as booleans by name; none at first.

    Args:
        settings: As of `DynamicSettings`; None for a mask that stays what it is.
        count: Weights of the mask.
        start: The first mask.
    """

    def __init__(self, settings: Any, count: int, start: Weights | None = None) -> None:
        self.settings, self.count, self.mask = settings, count, start
        self.average: Tensor | None = None
        self.own_steps = 0
        self.rows: list[tuple[int, int, int, float]] = []
        self.returned = 0  # weights that came back into the mask after they had left it
        self._ever = torch.zeros(0)
        if start is not None and settings is not None:
            self.rows.append((0, count, count, math.nan))

    def see(
        self, step: int, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> None:
        if self.settings is None:
            return
        g = torch.cat([gradients[name].reshape(-1) for name in NAMES])
        w = torch.cat([weights[name].reshape(-1) for name in NAMES])
        score = (g * w).abs() if self.settings.score == "taylor" else g * g
        kept = self.settings.smoothing
        self.average = score if self.average is None else kept * self.average + (1 - kept) * score
        begun = self.mask is not None and self.own_steps == 0  # with a mask that was given
        if self.own_steps % self.settings.every == 0 and not begun:
            chosen = torch.zeros(len(g), dtype=torch.bool)
            chosen[self.average.argsort(descending=True, stable=True)[: self.count]] = True
            before = None if self.mask is None else self.flat()
            both = 0 if before is None else int((before & chosen).sum())
            jaccard = math.nan if before is None else both / int((before | chosen).sum())
            self.rows.append((step, self.count, self.count - both, jaccard))
            ever = self._ever if len(self._ever) else torch.zeros_like(chosen)
            self.returned += 0 if before is None else int((chosen & ~before & ever).sum())
            self._ever = ever | chosen
            sizes = [weights[name].numel() for name in NAMES]
            parts = zip(NAMES, chosen.split(sizes), strict=True)
            self.mask = {name: part.reshape(weights[name].shape) for name, part in parts}
        self.own_steps += 1

    def flat(self) -> Tensor:
        return torch.cat([self.mask[name].reshape(-1) for name in NAMES])


def gradients_at(weights: Weights, batch: Mapping[str, Tensor]) -> Weights:
    """Of the mean loss of a batch."""
    learner = encoder()
    learner.load_state_dict(weights, strict=False)
    learner(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in learner.named_parameters()}


def zeroed(weights: Weights, mask: Weights | None) -> Weights:
    """θ·m; what the mask does not name is whole."""
    return {
        name: value if mask is None or name not in mask else value * mask[name]
        for name, value in weights.items()
    }


def together(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The passes of a step as one batch."""
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("input_ids", "labels")}


class Outer:
    """The optimizer by torch's own, one parameter list in, checked step by step.

    Args:
        recipe: Its rate and decay; biases are not decayed.
        names: What is trained.
    """

    def __init__(self, recipe: Recipe, names: set[str]) -> None:
        self.model = encoder()
        live = dict(self.model.named_parameters())
        self.names = names
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [live[n] for n in names if not n.endswith("bias")],
                 "weight_decay": recipe.weight_decay},
                {"params": [live[n] for n in names if n.endswith("bias")], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
        )  # fmt: skip

    def check(
        self, before: Weights, after: Weights, gradients: Weights, inside: Weights, free: set[str]
    ) -> None:
        """What is inside moved as the optimizer would move it; all else to the bit not at all."""
        self.model.load_state_dict(before, strict=False)
        for name, parameter in self.model.named_parameters():
            parameter.grad = gradients[name] if name in self.names else None
        self.optimizer.step()
        for name, value in self.model.named_parameters():
            allowed = torch.full(value.shape, name in free) if name not in inside else inside[name]
            torch.testing.assert_close(
                after[name][allowed], value.detach()[allowed], rtol=1e-5, atol=1e-7
            )
            assert same_bits(after[name][~allowed], before[name][~allowed]), name
            if name in free:
                assert not torch.equal(after[name], before[name])


def clipped(gradients: Weights, norm: float) -> Weights:
    """Scaled down to a norm, over all of them."""
    if not norm:
        return gradients
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    return {name: g * min(1, norm / (length + 1e-6)) for name, g in gradients.items()}


def check_turns(
    seen: Recorder,
    turns: Sequence[str],
    masks: Mapping[str, NaiveMask],
    recipe: Recipe,
    *,
    forward: bool,
    head: bool = False,
) -> None:
    """Hold a training, one language in each step, against a loop over its recorded states.

    Checks what every forward pass saw, the gradients that the optimizer got, where and how far
    weights moved, and that between steps nothing is missing.
    """
    free = HEAD if head else set()
    outer = Outer(recipe, free | {*NAMES})
    assert len(seen.gradients) == len(turns) == len(seen.states) - 1
    for step, language in enumerate(turns):
        before, after = seen.states[step : step + 2]
        for name, value in before.items():
            assert same_bits(value, seen.begins[step][name]), name
        own = masks[language]
        shown = zeroed(before, own.mask if forward else None)
        own_passes = slice(step * recipe.passes, (step + 1) * recipe.passes)
        for found in seen.passes[own_passes]:
            for name, value in found.items():
                assert torch.equal(value, shown[name]), (step, name)
        gradients = gradients_at(shown, together(seen.batches[own_passes]))
        own.see(step, gradients, before)
        expected = {name: gradients[name] * own.mask[name] for name in NAMES}
        expected |= {name: gradients[name] for name in free}
        expected = clipped(expected, recipe.max_grad_norm)
        assert seen.gradients[step].keys() == expected.keys()
        for name, gradient in seen.gradients[step].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
            assert name in free or not gradient[~own.mask[name]].any()
        outer.check(before, after, seen.gradients[step], own.mask, free)


def check_masks(
    mask: Any, naive: Mapping[str, NaiveMask], base: str = "tiny", *, named: bool = True
) -> None:
    """The history and the last masks are those of the loops."""
    expected = [(language, *row) for language, own in naive.items() for row in own.rows]
    found = mask.history
    columns = ["step", "count", "density", "entered", "jaccard"]
    assert list(found.columns) == ["language"] * named + columns
    if named:
        assert found["language"].tolist() == [row[0] for row in expected]
    for at, column in [(1, "step"), (2, "count"), (3, "entered")]:
        assert found[column].tolist() == [row[at] for row in expected], column
    torch.testing.assert_close(
        torch.tensor(found["jaccard"].to_numpy()),
        torch.tensor([row[4] for row in expected], dtype=torch.float64), equal_nan=True,
    )  # fmt: skip
    for language, own in naive.items():
        last = mask.subnetwork(language, base)
        assert last.count == own.count
        assert last.settings["masks"] == len(own.rows)
        for name in NAMES:
            assert torch.equal(torch.from_numpy(last.dense(name)), own.mask[name]), language


def total() -> int:
    """Weights that the masks are over."""
    return sum(encoder().get_parameter(name).numel() for name in NAMES)


def starts(densities: Mapping[str, float]) -> dict[str, Subnetwork]:
    """Random masks over `NAMES`."""
    found = {}
    for seed, (language, density) in enumerate(densities.items()):
        generator = torch.Generator().manual_seed(seed)
        model = encoder()
        drawn = {
            name: (torch.rand(model.get_parameter(name).shape, generator=generator) < density)
            for name in NAMES
        }
        found[language] = Subnetwork.from_arrays(
            {name: mask.numpy() for name, mask in drawn.items()}, language=language, base="tiny"
        )
    return found


def dense(mask: Subnetwork) -> Weights:
    """Name to booleans."""
    return {name: torch.from_numpy(mask.dense(name)) for name in mask.shapes}


class Breaking(TrainerCallback):
    """Breaks a training within a forward pass, or makes its loss not a number.

    Args:
        at: Which forward pass, from 0.
        how: `"raise"` or `"nan"`.
    """

    def __init__(self, at: int, how: str) -> None:
        self._at, self._how, self._n, self._hook = at, how, 0, None

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        def break_off(_: Any, __: Any, outputs: Any) -> Any:
            self._n += 1
            if self._n - 1 != self._at:
                return outputs
            self._hook.remove()
            if self._how == "raise":
                raise KeyboardInterrupt
            outputs["loss"] = outputs["loss"] * math.nan
            return outputs

        self._hook = model.register_forward_hook(break_off)
