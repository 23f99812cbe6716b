"""`--overwrite`: the training that was there stays beside the new one until that has a stage."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from subnet import _files
from subnet.errors import OutputError, SubnetError
from subnet.training._stages import RESUME


class Replaced:
    """An earlier training, moved aside to `.<name>-replaced` until the new one can stand for it.

    Args:
        target: The directory that both have.
    """

    def __init__(self, target: Path) -> None:
        self._target = target.resolve()
        self.path = self._target.with_name(f".{self._target.name}-replaced")

    def put_aside(self) -> None:
        """Move it aside; of two that were begun, and have nothing to show, the first one stays."""
        if self.path.is_dir() and not (self._target / _files.RUN_FILE).is_file():
            shutil.rmtree(self._target)
            return
        self.remove()
        self._target.rename(self.path)

    def put_back(self) -> None:
        """Let it stand where it stood, in place of the new one."""
        if self.path.is_dir():
            shutil.rmtree(self._target, ignore_errors=True)
            self.path.rename(self._target)

    def remove(self) -> None:
        """It is replaced."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def restored_on_failure(self) -> Iterator[None]:
        """Put it back where the new one has to be another one, or has nothing yet to go on from.

        What can go on stays, with the earlier one aside: a training that was interrupted, met a
        full disk, or failed by an accident after its base was trained.
        """
        try:
            yield
        except OutputError:
            raise
        except Exception as error:
            nothing = not (self._target / "base").is_dir()
            if nothing:
                shutil.rmtree(self._target / RESUME, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self._target.rmdir()
            if nothing or isinstance(error, SubnetError):
                self.put_back()
            raise
