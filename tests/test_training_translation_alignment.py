"""Alignment of parallel sentences: the loss against a loop, steps that alternate, their effect."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import checkpoint_makers as makers
import translation_makers as tiny
import translation_processes as processes
from subnet.errors import InputError
from subnet.training._quiet import undisturbed
from subnet.training._trainer import fit
from subnet.training.alignment import AlternatingTrainer, alignment_loss, sentence_states
from subnet.training.recipe import Recipe


def by_loop(a, b, temperature, group=None):
    losses = []
    for i in range(len(a)):
        others = [j for j in range(len(b)) if group is None or j == i or group[j] != group[i]]
        terms = [math.exp(float(F.cosine_similarity(a[i], b[j], dim=0)) / temperature)
                 for j in others]  # fmt: skip
        losses.append(-math.log(terms[others.index(i)] / sum(terms)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_loss_is_that_of_a_loop_over_pairs(temperature):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    found = float(alignment_loss(a, b, temperature))
    assert found == pytest.approx(by_loop(a, b, temperature), rel=1e-12)
    # From a to b, not from b to a.
    assert found != pytest.approx(float(alignment_loss(b, a, temperature)), rel=1e-3)
    # Lengths of vectors do not count.
    assert found == pytest.approx(
        float(alignment_loss(3 * a, b * torch.rand(7, 1) + b, temperature))
    )
    group = torch.tensor([4, 9, 4, 7, 9, 9, 1])
    found = float(alignment_loss(a, b, temperature, group=group))
    assert found == pytest.approx(by_loop(a, b, temperature, group.tolist()), rel=1e-12)


def test_the_loss_of_what_is_not_aligned_and_of_what_is():
    same = torch.ones(6, 4)
    assert float(alignment_loss(same, same)) == pytest.approx(math.log(6))
    assert float(alignment_loss(torch.eye(6), torch.eye(6))) < 3e-4
    assert float(alignment_loss(same[:1], -same[:1])) == 0  # nothing to confuse it with
    with pytest.raises(InputError, match=r"hidden states are \[6, 4\] and \[5, 4\]; expected"):
        alignment_loss(same, same[:5])
    with pytest.raises(InputError, match="temperature is 0"):
        alignment_loss(same, same, 0.0)


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_sentence_states_are_means_over_tokens_at_half_depth(name):
    model, task = tiny.build(name), tiny.task_for(name, align=True)
    batch = task.collate(task.encode(tiny.ROWS))["alignment"]
    with torch.no_grad():
        found = sentence_states(model, batch["a"], batch["a_mask"])
        for row, vector in zip(tiny.ROWS, found, strict=True):
            ids = torch.tensor([task.tokenizer(row["source"])["input_ids"]])
            stack = model.get_encoder() if task.encoder_decoder else model.model
            hidden = stack(input_ids=ids, output_hidden_states=True).hidden_states
            assert len(hidden) == 3  # two layers
            torch.testing.assert_close(vector, hidden[1][0].mean(0))
    adapted = makers.lora(model, 1, target_modules="all-linear")
    with_adapter = sentence_states(adapted, batch["a"], batch["a_mask"])
    assert with_adapter.requires_grad
    assert not torch.allclose(with_adapter, found)
    with adapted.disable_adapter():
        torch.testing.assert_close(sentence_states(adapted, batch["a"], batch["a_mask"]), found)


def train(model, task, rows, folder, steps, *, batch_size=8, learning_rate=3e-3, **options):
    recipe = Recipe(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    with undisturbed():
        return fit(
            model, task.encode(rows), recipe, collate=task.collate, seed=0, folder=folder,
            trainer_class=AlternatingTrainer, **options,
        )  # fmt: skip


def test_steps_alternate_and_an_alignment_step_leaves_what_lies_behind_half_depth(tmp_path):
    model, task = tiny.build("t5"), tiny.task_for("t5", align=True)
    assert task.trainer_class is AlternatingTrainer
    assert tiny.task_for("t5").trainer_class is None
    before: dict[str, torch.Tensor] = {}
    moved = []

    def look():
        now = {name: value.detach().clone() for name, value in model.named_parameters()}
        moved.append({name for name in now if not torch.equal(now[name], before[name])})
        before.update(now)

    before.update({name: value.detach().clone() for name, value in model.named_parameters()})
    train(model, task, tiny.ROWS, tmp_path, 5, on_step=look, task_steps=2)
    everything = set(before)
    behind = {
        n for n in everything if n.startswith(("decoder", "encoder.block.1", "encoder.final"))
    }
    assert [names & behind != set() for names in moved] == [True, True, False, True, True]
    assert moved[2]
    assert behind < everything


def test_a_misaligned_encoder_gets_aligned_while_the_task_is_learnt(tmp_path):
    """The same sentence in two scripts; without alignment steps it stays as it was."""
    swap = str.maketrans("abcdefgh", "éбuvwxyz")
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(list("abcdefgh"), 5)) for _ in range(40)}
    rows = [
        {"language": "en>de", "source": word, "target": word.translate(swap)}
        for word in sorted(words)
    ]
    task = tiny.task_for("t5", align=True)
    batch = task.collate(task.encode(rows))["alignment"]

    def state(model):
        with torch.no_grad():
            a, b = (sentence_states(model, batch[s], batch[f"{s}_mask"]) for s in "ab")
        best = (F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T).argmax(dim=1)
        losses = task.evaluate(model, rows, batch_size=40).items["loss"]
        return float((best == torch.arange(len(rows))).double().mean()), losses.mean()

    found = {}
    for name, steps, options in (("alternating", 100, {}), ("task", 50, {"task_steps": 50})):
        torch.manual_seed(0)
        kind, config = tiny.ARCHITECTURES["t5"]
        model = kind(config)
        before = state(model)
        train(model, task, rows, tmp_path, steps, batch_size=16, learning_rate=1e-2, **options)
        found[name] = (before, state(model))
    for name, ((_, loss), (_, later)) in found.items():
        assert later < 0.7 * loss, name
    assert found["alternating"][0][0] < 0.1
    assert found["alternating"][1][0] > 0.3
    assert found["task"][1][0] < 0.1


def test_what_alignment_steps_cannot_do_is_said(tmp_path):
    model, task = tiny.build("t5"), tiny.task_for("t5")
    with pytest.raises(InputError, match=r"a batch has no sentences to align; .*align=True"):
        train(model, task, tiny.ROWS, tmp_path, 2)
    aligned = tiny.task_for("t5", align=True)
    for options, message in (
        ({"task_steps": 0}, "task_steps is 0; expected 1 or more"),
        ({"alignment_steps": 0}, "alignment_steps is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ):
        with pytest.raises(InputError, match=message):
            train(model, aligned, tiny.ROWS, tmp_path, 2, **options)


@pytest.mark.slow
def test_two_processes_translate_and_align_as_one(tmp_path):
    """Every result, and every weight after steps of the task and of alignment, in passes too."""
    alone = processes.cases(str(tmp_path))
    assert processes.together(str(tmp_path)) == [0, 0]
    start = {name: tiny.build(name).state_dict() for name in ("t5", "llama")}
    assert any(
        np.abs(alone[f"t5 1 {name}"] - value.numpy()).max() > 1e-3
        for name, value in start["t5"].items() if f"t5 1 {name}" in alone
    )  # fmt: skip
    for rank in range(2):
        found = np.load(tmp_path / f"found-{rank}.npz")
        assert found.files == list(alone)
        for name, values in alone.items():
            if values.dtype.kind == "U":
                assert found[name].tolist() == values.tolist()
            else:
                np.testing.assert_allclose(found[name], values, rtol=1e-8, atol=1e-10, err_msg=name)
