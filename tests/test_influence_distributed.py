"""Many processes give the result of one, and end together whatever happens to one of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import influence_processes as processes
import model_makers as makers
from influence_oracles import data
from subnet.errors import InputError
from subnet.influence import attribute
from subnet.influence.store import GradientStore

TESTS = Path(__file__).parent


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, the folder of its stores, and how many examples it looked at."""
    folder = tmp_path_factory.mktemp("alone")
    found, worked = processes.cases(str(folder))
    return found, folder, worked


def check_equal(found, alone):
    expected = alone[0]
    assert found.files == list(expected)
    for name, values in expected.items():
        scale = np.abs(values).max()
        assert scale > 0
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6 * scale, err_msg=name)


def check_stores(folder, alone):
    other = alone[1]
    for name in ("store", "train", "test"):
        assert hashes(folder / name) == hashes(other / name)
    assert len(GradientStore.open(folder / "store").header.shards) == 10


def test_two_processes_give_the_result_of_one(tmp_path, alone):
    """Every level, method and store; uneven last batches; fewer batches than processes; bf16."""
    assert processes.together("save_cases", str(tmp_path)) == [0, 0]
    for rank in range(2):
        check_equal(np.load(tmp_path / f"found-{rank}.npz"), alone)
    check_stores(tmp_path, alone)
    # Each did its part and no more, of what methods look at before they score, too.
    worked = [json.loads((tmp_path / f"worked-{rank}.json").read_text()) for rank in range(2)]
    for method, total in alone[2].items():
        assert worked[0][method] + worked[1][method] == total, method
        assert worked[1][method] > 0.4 * total, method


def launched(folder, launcher):
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS),
        "ACCELERATE_DISABLE_RICH": "1",
    }  # fmt: skip
    port = str(processes.free_port())
    return subprocess.run(
        [sys.executable, "-m", *launcher, port, "-m", "influence_processes", str(folder)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--nproc_per_node", "3", "--master_port"),
        ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port"),
    ],
    ids=["torchrun", "accelerate"],
)  # fmt: skip
def test_launchers_start_processes_that_give_the_result_of_one(tmp_path, alone, launcher):
    done = launched(tmp_path, launcher)
    assert done.returncode == 0, done.stderr
    n = 3 if "3" in launcher else 2
    for rank in range(n):
        check_equal(np.load(tmp_path / f"found-{rank}.npz"), alone)
    check_stores(tmp_path, alone)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        # The second process takes every other batch of two: its fifth ends with example 19.
        ("early", "InputError: NaN is the loss of training example 19; expected a finite loss"),
        ("late", "InputError: NaN is the loss of training example 19; expected a finite loss"),
    ],
)
def test_an_error_in_one_process_is_the_error_of_all(tmp_path, how, message):
    assert processes.together("fail", str(tmp_path), how) == [0, 0]
    said = [(tmp_path / f"said-{rank}").read_text().split(" ", 1) for rank in range(2)]
    assert said[0][1] == said[1][1]
    assert said[0][1].startswith(message)
    # The first process did not go on to the end of its thousand batches.
    assert int(said[0][0]) < 500


def test_a_defect_in_one_process_ends_all(tmp_path):
    assert processes.together("fail", str(tmp_path), "defect") == [0, 0]
    said = [(tmp_path / f"said-{rank}").read_text().split(" ", 1)[1] for rank in range(2)]
    assert said == [
        "RuntimeError: process 1 failed with ZeroDivisionError: a defect",
        "ZeroDivisionError: a defect",
    ]


def test_a_process_that_is_killed_keeps_no_other_waiting(tmp_path):
    codes = processes.together("fail", str(tmp_path), "killed", timeout=300)
    assert codes == [0, -9]
    said = (tmp_path / "said-0").read_text()
    assert "RuntimeError: another process of this run has ended without a word" in said


def test_processes_that_do_not_have_the_same_before_them_say_so(tmp_path):
    assert processes.together("disagree", str(tmp_path)) == [0, 0]
    said = [(tmp_path / f"said-{rank}").read_text().splitlines() for rank in range(2)]
    assert said[0] == said[1]
    other_model, other_place = said[0]
    assert other_model.startswith("NotComparableError: ")
    assert "model at the model as given is SHA-256" in other_model
    assert "has no header.json; expected a gradient store" in other_place


def dispatched(model, folder, offloaded):
    """The model with some of its modules on the disk, as a device_map has it."""
    from accelerate import dispatch_model

    from checkpoint_makers import quiet

    modules = ("transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h.0",
               "transformer.h.1", "transformer.ln_f", "lm_head")  # fmt: skip
    places = {name: "disk" if name in offloaded else "cpu" for name in modules}
    with quiet():
        return dispatch_model(model, places, offload_dir=str(folder), main_device="cpu")


def test_a_model_that_is_partly_offloaded_gives_the_same_or_says_why_not(tmp_path):
    collate = makers.collate_for("gpt2")
    train, test = data("gpt2")
    options = {"collate_fn": collate, "modules": "linear"}
    model = makers.make("gpt2").float()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    exact = {
        level: attribute(model, train, test, level=level, **options).scores
        for level in ("example", "language")
    }
    model = dispatched(model, tmp_path / "offload", ("transformer.h.1",))
    assert any(parameter.is_meta for parameter in model.parameters())
    for level, scores in exact.items():
        found = attribute(model, train, test, level=level, **options).scores
        np.testing.assert_allclose(found, scores, rtol=1e-6)
    with pytest.raises(InputError, match=r"transformer\.h\.1\.\S+ is offloaded: it is not in mem"):
        attribute(model, train, test, store=tmp_path / "store", **options)
    with pytest.raises(InputError, match="is offloaded, and cannot take the weights of a checkpo"):
        attribute(model, train, test, checkpoints=[(state, 0.1)], **options)
    whole = ("transformer.wte", "lm_head", "transformer.wpe")
    first = dispatched(makers.make("gpt2").float(), tmp_path / "first", whole)
    with pytest.raises(InputError, match="so that inputs have no device to go to; expected a mod"):
        attribute(first, train, test, **options)
