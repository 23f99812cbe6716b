"""Influence over checkpoints: their learning rates, their weights, the stages they belong to."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel

import influence_oracles as oracles
import model_makers as makers
from checkpoint_makers import (
    bert,
    lora,
    move,
    quiet,
    save_adapter,
    save_base,
    train_with_trainer,
    write_stages,
)
from influence_oracles import cosine_of, data, mean_by_language, oracle_sides
from subnet.checkpoint import open_checkpoint
from subnet.errors import FileFormatError, InputError, MissingInputError, NotComparableError
from subnet.influence import attribute, checkpoints_of, read_points
from subnet.influence.learning_rates import sum_of_interval
from subnet.model import load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LoRA trained by Trainer for six steps, saved after three and six; its base beside it."""
    root = tmp_path_factory.mktemp("trained")
    base = bert()
    move(base, 5, size=0.3)
    save_base(base, root / "base")
    model = lora(base, 1, target_modules=["query", "value", "dense"])
    train_with_trainer(model, root / "run", ["de"], steps=6)
    return root


def fresh(root):
    """The base with the adapter's last state, as its user would have it."""
    with quiet():
        model = PeftModel.from_pretrained(
            type(bert()).from_pretrained(root / "base"), root / "run" / "checkpoint-6"
        )
    return model.eval()


#: Trainer's linear decay over six steps from 0.01, by hand.
RATES = [0.01 * (1 - step / 6) for step in range(6)]


def test_the_rates_of_trainers_own_log_are_summed_by_interval(trained):
    points = read_points([trained / "run" / "checkpoint-3", trained / "run" / "checkpoint-6"])
    assert [point.weight for point in points] == pytest.approx([sum(RATES[:3]), sum(RATES[3:])])
    assert [p.weight for p in read_points(trained / "run")] == [p.weight for p in points]
    (last,) = read_points([trained / "run" / "checkpoint-6"])
    assert last.weight == pytest.approx(sum(RATES))
    assert last.source == "steps 1–6: every step is in the log"


@pytest.mark.parametrize("method", ["tracin", "cosine", "final"])
def test_checkpoints_of_a_trainer_run_are_summed_by_their_rates(trained, method):
    model = fresh(trained)
    train, test = data("bert")
    found = attribute(
        model, train, test, method=method, checkpoints=trained / "run", batch_size=3,
        collate_fn=makers.collate_for("bert"),
    )  # fmt: skip
    total, etas = 0.0, (sum(RATES[:3]), sum(RATES[3:]))
    if method == "final":
        etas = (0.0, 1.0)
    for eta, folder in zip(etas, ("checkpoint-3", "checkpoint-6"), strict=True):
        with quiet():
            there = PeftModel.from_pretrained(
                type(bert()).from_pretrained(trained / "base"), trained / "run" / folder
            )
        g, q = oracle_sides(there.eval(), "bert", found.provenance.settings["parameters"])
        total = total + eta * (cosine_of(g, q) if method == "cosine" else q @ g.T)
    if method == "cosine":
        total = total / sum(etas)
    np.testing.assert_allclose(found.scores, total, rtol=1e-5, atol=1e-5 * abs(total).max())
    recorded = found.provenance.settings["checkpoints"]
    assert [point["learning_rate"] for point in recorded] == pytest.approx(
        [1.0] if method == "final" else list(etas)
    )


def test_without_checkpoints_the_weight_of_one_is_on_record():
    model = oracles.adapted("bert")
    train, test = data("bert")
    found = attribute(model, train, test, collate_fn=makers.collate_for("bert"))
    (point,) = found.provenance.settings["checkpoints"]
    assert point == {
        "checkpoint": "the model as given", "learning_rate": 1.0, "stage": None,
        "from": "no checkpoints: weight 1",
    }  # fmt: skip


def write_log(folder, logged, *, step, max_steps=100):
    folder.mkdir(parents=True)
    history = [{"step": at, "learning_rate": rate, "loss": 1.0} for at, rate in logged]
    state = {"global_step": step, "max_steps": max_steps, "log_history": [*history, {"step": step}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def linear(step):
    return 0.1 * (1 - (step - 1) / 100)


@pytest.mark.parametrize(
    ("logged", "interval", "expected"),
    [
        # every tenth step of a linear decay
        ([(s, linear(s)) for s in range(10, 101, 10)], (0, 60), sum(map(linear, range(1, 61)))),
        ([(s, linear(s)) for s in range(10, 101, 10)], (60, 100), sum(map(linear, range(61, 101)))),
        # the same as Trainer logged it until 4.49: the rate of the step to come
        ([(s, linear(s + 1)) for s in range(10, 101, 10)], (0, 60), sum(map(linear, range(1, 61)))),
        ([(s, linear(s + 1)) for s in (20, 40)], (0, 60), sum(map(linear, range(1, 61)))),
        # constant
        ([(7, 0.02), (50, 0.02)], (10, 60), 0.02 * 50),
        # warmup to step 20, then constant
        ([(s, 0.001 * min(s, 20)) for s in range(10, 101, 10)], (0, 50), 0.001 * (210 + 600)),
    ],
)
def test_rates_between_logged_steps_lie_on_their_lines(tmp_path, logged, interval, expected):
    folder = write_log(tmp_path / "run" / "checkpoint", logged, step=interval[1])
    total, source = sum_of_interval(folder, *interval)
    assert total == pytest.approx(expected, rel=1e-9)
    assert source == f"interpolated between {len(logged)} logged rates"


def test_a_cosine_schedule_is_integrated_closely(tmp_path):
    rates = [0.05 * (1 + np.cos(np.pi * (s - 1) / 100)) for s in range(1, 101)]
    logged = [(s, rates[s - 1]) for s in range(10, 101, 10)]
    folder = write_log(tmp_path / "run" / "checkpoint", logged, step=100)
    assert sum_of_interval(folder, 0, 100)[0] == pytest.approx(sum(rates), rel=0.01)


def test_an_unknown_learning_rate_is_asked_for(tmp_path, trained):
    thin = write_log(tmp_path / "run" / "checkpoint-60", [(50, 0.1)], step=60)
    with pytest.raises(InputError, match=r"rates of steps 1 to 60 are unknown: the log has 1.*"
                       r"checkpoints=\[\('checkpoint-60', …\)\]"):  # fmt: skip
        read_points([thin])
    bare = shutil.copytree(trained / "base", tmp_path / "bare")
    with pytest.raises(InputError, match=r"has no trainer_state\.json, so its learning rate is un"):
        read_points([bare])
    assert read_points([bare], only_last=True)[0].weight == 1.0
    with pytest.raises(
        InputError, match=r"is after step 3, and the checkpoint before it.* after 6"
    ):
        read_points([trained / "run" / "checkpoint-6", trained / "run" / "checkpoint-3"])


@pytest.mark.parametrize(
    ("checkpoints", "error", "message"),
    [
        ([], InputError, "there are no checkpoints; expected at least one"),
        ({}, InputError, "checkpoints is empty"),
        ({"de": []}, InputError, "there are no checkpoints of de"),
        ([("a", -1.0)], InputError, r"the learning rate of a is -1\.0; expected 0 or more"),
        ([("a", float("nan"))], InputError, "the learning rate of a is nan"),
        ([("a", 0.0)], InputError, "the learning rates of all checkpoints are 0"),
        (["nowhere"], MissingInputError, "nowhere: is not there"),
        ([7], InputError, "a checkpoint is a int"),
    ],
)
def test_checkpoints_that_cannot_be_used_are_refused(checkpoints, error, message):
    with pytest.raises(error, match=message):
        read_points(checkpoints)


def test_weights_of_another_model_are_refused(trained, tmp_path):
    model, (train, test) = fresh(trained), data("bert")
    options = {"collate_fn": makers.collate_for("bert")}
    with pytest.raises(NotComparableError, match=r"holds an adapter, and BertForSequ.* has none"):
        attribute(bert(), train, test, checkpoints=trained / "run", **options)
    other = save_adapter(lora(bert(), 1, lora_alpha=12), tmp_path / "other")
    with pytest.raises(NotComparableError, match=r"lora_alpha of the adapter is 12; expected 6"):
        attribute(model, train, test, checkpoints=[(other, 1.0)], **options)
    fewer = save_adapter(lora(bert(), 1), tmp_path / "fewer")
    with pytest.raises(FileFormatError, match=r"has no base_model\.\S+, which the model needs"):
        attribute(model, train, test, checkpoints=[(fewer, 1.0)], **options)
    wider = bert().state_dict() | {"classifier.weight": torch.zeros(4, 16)}
    with pytest.raises(
        NotComparableError, match=r"classifier\.weight is \[4, 16\]; expected \[3, 1"
    ):
        attribute(bert(), train, test, checkpoints=[(wider, 1.0)], **options)
    broken = bert().state_dict()
    broken["classifier.bias"] = torch.full((3,), torch.nan)
    with pytest.raises(InputError, match=r"classifier\.bias holds values that are NaN"):
        attribute(bert(), train, test, checkpoints=[(broken, 1.0)], **options)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"a": print}, tmp_path / "a.pt")
    train, test = data("bert")
    with pytest.raises(FileFormatError, match=r"a\.pt: cannot be read as weights"):
        attribute(bert(), train, test, checkpoints=[(tmp_path / "a.pt", 1.0)],
                  collate_fn=makers.collate_for("bert"))  # fmt: skip


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """One LoRA carried through two languages: what each stage left, and its settings."""
    root = tmp_path_factory.mktemp("stages")
    save_base(bert(), root / "base")
    write_stages(root, ("a", "b"))
    (root / "subnet.toml").write_text(
        'order = ["a", "b"]\n[languages.a]\ntag = "de"\n[languages.b]\ntag = "fr"\n'
        '[stages."01-a"]\nlearning_rate = 0.01\nsteps = 30\n'
        '[stages."02-b"]\nlearning_rate = 0.002\nsteps = 50\n'
    )
    return root


def stage_model(root, number):
    with quiet():
        return load_model(open_checkpoint(root), stage=number).double().eval()


@pytest.mark.parametrize("method", ["tracin", "cosine"])
def test_an_example_counts_only_at_the_checkpoints_of_its_own_stage(stages, method):
    points = checkpoints_of(open_checkpoint(stages))
    train, test = data("bert")
    options = {"collate_fn": makers.collate_for("bert"), "batch_size": 3, "method": method}
    found = attribute(stage_model(stages, 2), train, test, checkpoints=points, **options)
    languages = np.array([row["language"] for row in train])
    for number, (language, eta) in enumerate((("a", 0.3), ("b", 0.1)), start=1):
        there = stage_model(stages, number)
        g, q = oracle_sides(there, "bert", found.provenance.settings["parameters"])
        expected = cosine_of(g, q) if method == "cosine" else eta * (q @ g.T)
        mine = languages == language
        np.testing.assert_allclose(found.scores[:, mine], expected[:, mine], rtol=1e-6)
    table = attribute(
        stage_model(stages, 2), train, test, checkpoints=points, level="language", **options
    )
    expected = mean_by_language(found.scores, train, test, table)
    np.testing.assert_allclose(table.scores, expected, rtol=1e-6)


def test_a_stage_without_checkpoints_and_data_without_stages_are_refused(stages):
    points = checkpoints_of(open_checkpoint(stages))
    train, test = data("bert")
    model, options = stage_model(stages, 2), {"collate_fn": makers.collate_for("bert")}
    with pytest.raises(InputError, match=r"training example 0 \(id '1-0'\) is of 'a', and no chec"):
        attribute(model, train, test, checkpoints={"b": points["b"]}, **options)
    named = [{**row, "stage": "b"} for row in train]  # what it says of its stage counts first
    attribute(model, named, test, checkpoints={"b": points["b"]}, **options)
    silent = [{k: v for k, v in row.items() if k != "language"} for row in train]
    with pytest.raises(InputError, match="name neither stage nor language"):
        attribute(model, silent, test, checkpoints=points, **options)
