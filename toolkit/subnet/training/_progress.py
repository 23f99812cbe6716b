"""How far a training is: told to a function of the caller's, or shown as a bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

#: Called with what is going on, the optimizer steps done, and those in all.
Progress = Callable[[str, int, int], None]


class Steps:
    """Counts optimizer steps over all parts of an experiment.

    Args:
        report: Told after every step.
        total: Steps in all.
    """

    def __init__(self, report: Progress, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def passed(self, steps: int) -> None:
        """These were done by an earlier call."""
        self._done += steps

    def named(self, name: str) -> Callable[[], None]:
        """A function that counts one step of the named part."""
        self._report(name, self._done, self._total)

        def count() -> None:
            self._done += 1
            self._report(name, self._done, self._total)

        return count


@contextlib.contextmanager
def reporter(progress: Progress | bool) -> Iterator[Progress]:
    """The function to tell: the caller's, a Rich bar on stderr, or one that does nothing."""
    if callable(progress):
        yield progress
    elif progress:
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("data")

            def show(name: str, done: int, total: int) -> None:
                bar.update(task, description=name, completed=done, total=total)

            yield show
    else:
        yield lambda *_: None
