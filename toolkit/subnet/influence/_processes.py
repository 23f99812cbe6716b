"""Runs in many processes: who takes which batch, sums over all of them, one error for all.

Processes are those that `torchrun` or `accelerate launch` started; in a run of one, nothing here
does anything. Batches are dealt out by number, so that every process works on batches that a run of
one would have made, and results are sums in which each process has its own part.

A process that fails leaves word in the launcher's key-value store, at which the others look at
every batch, and every exchange begins with how each of them is. So all of them end with the same
error, and none waits for one that is gone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from subnet import errors
from subnet.errors import InputError, SubnetError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
#: A process may wait for the others as long as this: their batches may take longer than its own.
_PATIENCE = timedelta(days=30)


class _FailedElsewhereError(Exception):
    """Another process left word that it failed."""


@dataclass(eq=False)
class _Team:
    """All processes of the run, seen from one of them.

    Attributes:
        world: The group of the launcher.
        group: The same processes, to exchange tensors on the CPU.
        rank: Number of this process.
        size: How many there are.
        task: Number of the task that they are at, 0 outside of any.
        tasks: How many there were.
        told: The error that all of them know of.
    """

    world: Any
    group: Any
    rank: int
    size: int
    task: int = 0
    tasks: int = 0
    told: BaseException | None = None

    def agree(self, error: Exception | None = None) -> None:
        """Tell the others how this process is, and raise where one of them failed."""
        if error is not None:
            self._mailbox().set(self._word, "failed")
        found = self.gather(None if error is None else _description(error))
        failed = [rank for rank, said in enumerate(found) if said is not None]
        if failed:
            said = found[failed[0]]
            raised = error if failed[0] == self.rank else _rebuilt(failed[0], said)
            self.told = raised
            raise raised from (None if raised is error else error)  # type: ignore[misc]

    def gather(self, value: Any) -> list[Any]:
        """A value of every process."""
        found: list[Any] = [None] * self.size
        with _saying_lost():
            distributed.all_gather_object(found, value, group=self.group)
        return found

    def look(self) -> None:
        """Raise where another process has left word."""
        if self.task and self._mailbox().check([self._word]):
            raise _FailedElsewhereError

    @property
    def _word(self) -> str:
        return f"subnet influence {self.task}"

    @staticmethod
    def _mailbox() -> Any:
        return distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - has no other name


_teams: list[_Team] = []


def together(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let all processes end with the same error where one of them fails in a function.

    It is called by all of them, and is where a run in many processes is noticed.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        team = _team()
        if team is None or team.task:
            return function(*args, **kwargs)
        team.tasks += 1
        team.task, team.told = team.tasks, None
        try:
            result = function(*args, **kwargs)
            team.agree()
        except _FailedElsewhereError:
            team.agree()
            raise
        except Exception as error:
            if team.told is None:
                team.agree(error)
            raise
        finally:
            team.task = 0
        return result

    return run


def is_first() -> bool:
    """Whether this process is the one that writes."""
    team = _team()
    return team is None or team.rank == 0


def own_batches(order: Sequence[int], size: int) -> Sequence[int]:
    """The numbers in this process's batches of `size`: all but its last are whole."""
    team = _team()
    if team is None:
        return order
    starts = range(team.rank * size, len(order), team.size * size)
    return [number for start in starts for number in order[start : start + size]]


def own_parts(parts: Sequence[_T]) -> Sequence[_T]:
    """This process's share of things that are worked on one by one."""
    team = _team()
    return parts if team is None else parts[team.rank :: team.size]


def look() -> None:
    """Stop where another process has failed meanwhile."""
    team = _team()
    if team is not None:
        team.look()


def wait() -> None:
    """Go on when every process is here.

    Raises:
        SubnetError: One of them failed.
    """
    team = _team()
    if team is not None:
        team.agree()


def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum over processes, in each of them."""
    team = _team()
    if team is None:
        return values
    team.agree()
    total = torch.from_numpy(np.ascontiguousarray(values))
    with _saying_lost():
        distributed.all_reduce(total, group=team.group)
    return total.numpy()


def summed_blocks(blocks: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The sum over processes of tensors by name, in each of them.

    Args:
        blocks: The same names, shapes and types everywhere, or nothing where a process had no
            batch.
        device: Where they go in a process that had none.
    """
    team = _team()
    if team is None:
        return blocks
    team.agree()
    kinds = team.gather({name: (tuple(b.shape), b.dtype) for name, b in blocks.items()})
    known: dict[str, Any] = next((kind for kind in kinds if kind), {})
    if any(kind and kind != known for kind in kinds):
        raise InputError("the processes have gradients of different shapes", expected="one model")
    found = {}
    for name, (shape, dtype) in known.items():
        block = blocks.get(name)
        total = torch.zeros(shape, dtype=dtype) if block is None else block.cpu().contiguous()
        with _saying_lost():
            distributed.all_reduce(total, group=team.group)
        found[name] = total.to(device if block is None else block.device)
    return found


def _team() -> _Team | None:
    """All processes; None where there is one."""
    if not distributed.is_available():
        return None
    if not distributed.is_initialized():
        launched = all(name in os.environ for name in _LAUNCHED)
        if not launched or int(os.environ["WORLD_SIZE"]) < 2:
            return None
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
    if distributed.get_world_size() < 2:
        return None
    world = distributed.group.WORLD
    if not _teams or _teams[-1].world is not world:
        group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        _teams[:] = [_Team(world, group, distributed.get_rank(), distributed.get_world_size())]
    return _teams[-1]


class _saying_lost:  # noqa: N801 - a context manager, used as a function
    """Say in words that another process is gone."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError):  # of whatever backend
            raise RuntimeError(  # noqa: TRY004 - no type was wrong
                "another process of this run has ended without a word; was it killed, for want of "
                "memory perhaps?"
            ) from error


def _description(error: Exception) -> dict[str, Any]:
    """An error in plain values."""
    if not isinstance(error, SubnetError):
        return {"class": type(error).__name__, "message": str(error)}
    # The class that `errors` knows: others take other arguments.
    known = next(cls for cls in type(error).__mro__ if hasattr(errors, cls.__name__))
    path = None if error.path is None else str(error.path)
    return {"class": known.__name__, "message": str(error), "path": path}


def _rebuilt(rank: int, said: dict[str, Any]) -> Exception:
    if "path" not in said:
        return RuntimeError(f"process {rank} failed with {said['class']}: {said['message']}")
    error: SubnetError = getattr(errors, said["class"])(said["message"])
    error.path = None if said["path"] is None else Path(said["path"])
    return error
