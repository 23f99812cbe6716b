"""The processes that train together, as `torchrun` or `accelerate launch` started them."""

from __future__ import annotations

from typing import Any


def processes() -> Any:
    """Accelerate's `PartialState`, on the CPU where there is no GPU.

    Left to itself it sees one process there, until a trainer tells it otherwise.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def n_processes() -> int:
    """How many there are."""
    return int(processes().num_processes)


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return bool(processes().is_main_process)


def wait_for_all() -> None:
    """Go on when every process is here."""
    processes().wait_for_everyone()


def first_says(answer: Any) -> Any:
    """The first process's answer, on all of them: what is on the disk may change meanwhile."""
    from accelerate.utils import broadcast_object_list

    if n_processes() < 2:
        return answer
    found: list[Any] = broadcast_object_list([answer])
    return found[0]
