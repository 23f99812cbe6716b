"""The commands and what they have in common: options, exit codes, how errors look.

Exit codes: 0 done, 2 the input is wrong (one line says what and where), 130 interrupted, 1 a defect
of the toolkit.
Importing this module loads none of the heavy libraries: each command imports what it needs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated, NoReturn

import typer

from subnet import __version__
from subnet.errors import SubnetError
from subnet_cli import (
    analyze,
    attribute,
    convert,
    demo,
    extract,
    inspect,
    overlap,
    probe,
    relate,
    train,
)
from subnet_cli.console import is_first

app = typer.Typer(
    name="subnet",
    help="Which parameters does each language use, which languages share them, and does the "
    "sharing explain what was forgotten?",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _saying_when_interrupted(
    command: Callable[..., None], what_is_left: str
) -> Callable[..., None]:
    """Say so and exit with 130: Typer itself stays silent."""

    @functools.wraps(command)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo(f"subnet: interrupted; {what_is_left}", err=True)
            raise typer.Exit(130) from None

    return wrapped


_COMMANDS = (demo, analyze, inspect, extract, convert, overlap, attribute, relate, probe, train)
for module in _COMMANDS:
    register = app.command(module.NAME, short_help=module.SUMMARY, epilog=module.EXAMPLE)
    left = getattr(module, "INTERRUPTED", "nothing was left behind")
    register(_saying_when_interrupted(module.command, left))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"subnet-toolkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error (anywhere on the line)."),
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


def main() -> NoReturn:
    """Run the command line and exit with the documented code."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    with _termination_as_interrupt():
        try:
            app(args=arguments, prog_name="subnet", standalone_mode=True)
        except SubnetError as error:
            if debug:
                raise
            if is_first():  # of several processes all end with the same error
                typer.echo(f"subnet: {error}", err=True)
            sys.exit(2)
        except BrokenPipeError:
            # The reader of stdout went away (`subnet ... | head`): nobody is left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except Exception:
            if not debug:
                typer.echo(
                    "subnet: this is a defect of subnet-toolkit, not of your input; "
                    f"please report it with what follows (version {__version__})",
                    err=True,
                )
            raise
    sys.exit(0)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let `kill` and a batch system's time limit clean up as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
