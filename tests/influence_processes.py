"""What tests of influence run in processes of their own: importable, so that they can be started.

`workers()` starts processes from one that has imported all that is slow.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import influence_oracles as oracles
import model_makers as makers
from checkpoint_makers import quiet
from subnet.influence import Influence, attribute, engine, self_influence
from subnet.influence.store import StoreSettings
from subnet.influence.storing import store_gradients
from subnet.model import example_losses


@functools.cache
def workers() -> Any:
    """A context of which every process starts warm."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["influence_processes", *_LATE])
    # The server looks for what it imports first where Python does, not where pytest does.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    # The first process waits until all is imported: not the one whose port has been found free.
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


#: Loaded when they are first used.
_LATE = (
    "accelerate",
    "scipy.stats",
    "transformers.models.bert.modeling_bert",
    "transformers.models.qwen3.modeling_qwen3",
)


def fill_store(folder: str, killed_at: int | None = None) -> None:
    """Fifty shards, each flushed to the disk; killed while the library writes one of them."""
    torch.set_num_threads(1)
    if killed_at is not None:
        kill_while_writing(f"{killed_at:06d}.safetensors")
    model = makers.make("bert").float()
    rows = oracles.rows_of("bert", [2 + i % 5 for i in range(200)], 1, "ab")
    store_gradients(
        model, rows, folder, role="training", collate_fn=makers.collate_for("bert"), batch_size=4,
        shard_size=1, dtype="float16",
    )  # fmt: skip


def kill_while_writing(name: str) -> None:
    """Kill this process with a file half-written beside the one that safetensors was asked for.

    That is how safetensors writes: `.tmpXXXXXX` in the same directory, then renamed.
    """
    write = safetensors.torch.save_file

    def killed(tensors: Any, path: Any, *rest: Any, **more: Any) -> None:
        if name in str(path):
            Path(path).with_name(".tmpAbCdEf").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(tensors, path, *rest, **more)

    safetensors.torch.save_file = killed


def cases(folder: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Results by name, of data whose last batches are not whole. Every process calls it.

    With it, by method, the number of examples that went forward and backward in this process.
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    worked: dict[str, int] = {}
    model, collate = oracles.adapted("bert_lora").float(), makers.collate_for("bert_lora")
    # Five batches of training examples, the last of one; three of test examples, of two.
    train = oracles.rows_of("bert", [2 + i % 5 for i in range(17)], 1, "abc")
    test = oracles.rows_of("bert", [2 + i % 4 for i in range(10)], 2, "ca")
    first = {name: 1.1 * value for name, value in model.state_dict().items() if "lora" in name}
    own = {k.replace(".default", ""): v for k, v in first.items()}
    options: dict[str, Any] = {"collate_fn": collate, "batch_size": 4}
    for method in ("tracin", "cosine", "datainf"):
        found[method] = attribute(model, train, test, method=method, **options).scores
    # What these look at of all training examples, each process looks at for its own.
    for method, more in FITTED.items():
        with counted(worked, method):
            found[f"fitted {method}"] = attribute(
                model, train, test, method=method, **more, **options
            ).scores
    found["self datainf"] = self_influence(model, train, method="datainf", **options)
    found["self trak"] = self_influence(model, train, method="trak", ridge=0.1, **options)
    for more in ({}, {"projection": 4}):
        languages = attribute(
            model, train, test, method="datainf", level="language", **more, **options
        )
        found[f"languages datainf {more}"] = languages.scores
    few = attribute(model, train[:3], test[:1], method="ekfac", **options)
    found["few ekfac"] = few.scores
    points = [(own, 0.3), ({k: 2 * v for k, v in own.items()}, 0.1)]
    pointed = {**options, "checkpoints": points}
    found["checkpoints"] = attribute(model, train, test, **pointed).scores
    for method in ("tracin", "cosine"):
        languages = attribute(model, train, test, method=method, level="language", **pointed)
        found[f"languages {method}"] = languages.scores
        found[f"intervals {method}"] = languages.languages()[["ci_low", "ci_high"]].to_numpy()
    found["self"] = self_influence(model, train, **options)
    # One batch for two processes.
    found["few"] = attribute(model, train[:3], test[:1], **options).scores
    found["few languages"] = attribute(
        model, train[:3], test[:1], level="language", **options
    ).scores
    found["memory"] = attribute(model, train, test, memory=50_000, **options).scores
    settings = StoreSettings(path=f"{folder}/store", shard_size=1)
    stored = {**pointed, "store": settings}
    found["store"] = attribute(model, train, test, **stored).scores
    found["store languages"] = attribute(model, train, test, level="language", **stored).scores
    more = {**pointed, "projection": 4, "shard_size": 1, "dtype": "float16"}
    kept = store_gradients(model, train, f"{folder}/train", role="training", **more)
    asked = store_gradients(model, test, f"{folder}/test", role="test", **more)
    result = kept.score(asked, method="cosine")
    found["two stores"] = result.scores
    result.save(f"{folder}/saved")
    assert np.array_equal(Influence.load(f"{folder}/saved").scores, result.scores)
    found["projection"] = attribute(model, train, test, projection=4, **options).scores
    model = oracles.adapted("qwen3_lora").bfloat16().train()
    with quiet():
        model.base_model.model.gradient_checkpointing_enable()
    rows = [oracles.rows_of("qwen3_lora", [2 + i % 5 for i in range(n)], n) for n in (9, 5)]
    options = {"collate_fn": makers.collate_for("qwen3_lora"), "batch_size": 2}
    found["bfloat16"] = attribute(model, *rows, **options).scores
    return found, worked


#: Methods that go through the training examples before they score, and their settings.
FITTED: dict[str, dict[str, Any]] = {
    "kfac": {},
    "ekfac": {"labels": "model", "seed": 3},
    "datainf": {},
    "trak": {"ridge": 0.1},
}


@contextlib.contextmanager
def counted(worked: dict[str, int], name: str) -> Iterator[None]:
    """Count the examples that are collected meanwhile."""
    collect = engine.collect

    def counting(*arguments: Any) -> Any:
        found = collect(*arguments)
        worked[name] = worked.get(name, 0) + len(found)
        return found

    engine.collect = counting
    try:
        yield
    finally:
        engine.collect = collect


def save_cases(folder: str) -> None:
    """What each process found, and how much it worked, in files of its own."""
    found, worked = cases(folder)
    rank = os.environ["RANK"]
    np.savez(Path(folder) / f"found-{rank}.npz", **found)
    Path(folder, f"worked-{rank}.json").write_text(json.dumps(worked))


def fail(folder: str, how: str) -> None:
    """Let the second process fail at a batch, early in a long run; note what each ends with."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    model, collate = makers.make("bert").float(), makers.collate_for("bert")
    n = 40 if how == "late" else 4000
    train = oracles.rows_of("bert", [3] * n, 1)
    for row in train:
        del row["id"]
    done = 0

    def loss(model: Any, batch: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        losses = example_losses(model, batch)
        if rank == 1 and done == 5:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "defect":
                raise ZeroDivisionError("a defect")
            return losses * torch.tensor([1.0, float("nan")])
        return losses

    try:
        attribute(model, train, train[:1], loss_fn=loss, collate_fn=collate, batch_size=2)
        said = "nothing"
    except Exception as error:  # noqa: BLE001 - what it is, is the question
        said = f"{type(error).__name__}: {error}"
    Path(folder, f"said-{rank}").write_text(f"{done} {said}")


def disagree(folder: str) -> None:
    """Give each process a model of its own, and a folder that only one of them can write to."""
    rank = int(os.environ["RANK"])
    model = makers.make("bert").float()
    train = oracles.rows_of("bert", [3] * 6, 1)
    options: dict[str, Any] = {"collate_fn": makers.collate_for("bert"), "role": "training"}
    with torch.no_grad():
        model.classifier.bias += rank
    said = []
    places = ["same", "file" if rank else "free"]
    Path(folder, f"file-{rank}").write_text("")
    for place in places:
        path = Path(folder, f"file-{rank}") if place == "file" else Path(folder, place)
        try:
            store_gradients(model, train, path, **options)
            said.append("nothing")
        except Exception as error:  # noqa: BLE001 - what it is, is the question
            said.append(f"{type(error).__name__}: {error}")
    Path(folder, f"said-{rank}").write_text("\n".join(said))


def together(function: str, *arguments: str, timeout: float = 120, n: int = 2) -> list[int | None]:
    """Run a function here in n processes, as a launcher would start them; their exit codes."""
    context, port = workers(), free_port()
    processes = [
        context.Process(target=_launched, args=(rank, n, port, function, arguments))
        for rank in range(n)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _launched(rank: int, n: int, port: int, function: str, arguments: tuple[str, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    globals()[function](*arguments)


if __name__ == "__main__":
    save_cases(sys.argv[1])
