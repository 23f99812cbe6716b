"""What the test of translation in several processes runs in each: importable, so it can start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

import translation_makers as tiny
from influence_processes import free_port, workers
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe


def cases(folder: str) -> dict[str, Any]:
    """An evaluation whose last batch is not whole, and weights after steps of both kinds."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in ("t5", "llama"):
        model, task = tiny.build(name), tiny.task_for(name, align=True)
        outcome = task.evaluate(model, tiny.ROWS, batch_size=3)
        found |= {f"{name} {metric}": values for metric, values in outcome.items.items()}
        found[f"{name} outputs"] = np.array(list(outcome.outputs))
        few = task.evaluate(model, tiny.ROWS[:1], batch_size=3)  # one batch for two processes
        found[f"{name} few"] = few.items["loss"]
        for passes in (1, 2):
            model = tiny.build(name)
            fit(
                model, task.encode(tiny.ROWS[:8]),
                Recipe(steps=4, batch_size=4, learning_rate=1e-3, optimizer="sgd", passes=passes,
                       max_grad_norm=0.0),
                collate=task.collate, seed=0, folder=folder, trainer_class=task.trainer_class,
                batches=[[0, 5, 2, 7], [3, 1, 6, 4], [4, 0, 1, 2], [7, 3, 2, 5]],
            )  # fmt: skip
            found |= {
                f"{name} {passes} {parameter}": value.detach().numpy().copy()
                for parameter, value in model.named_parameters()
            }
    return found


def save_cases(rank: int, n: int, port: int, folder: str) -> None:
    """What one of n processes finds, in a file of its own."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    np.savez(Path(folder) / f"found-{rank}.npz", **cases(folder))


def together(folder: str, n: int = 2) -> list[int | None]:
    """Run the cases in n processes, as a launcher would start them; their exit codes."""
    context, port = workers(), free_port()
    processes = [
        context.Process(target=save_cases, args=(rank, n, port, folder)) for rank in range(n)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
