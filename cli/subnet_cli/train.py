"""`subnet train`: train what the analyses compare, by a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subnet_cli import options
from subnet_cli.console import is_first, print_table, progress

if TYPE_CHECKING:
    import pandas as pd

NAME = "train"
SUMMARY = "Train languages one after another, by a configuration, and test all after each."
INTERRUPTED = "what is finished stays: the same command goes on from there"
EXAMPLE = """\b
Example:
  $ subnet train --explain > run.toml
  $ subnet train run.toml --out run
  ...
  next: subnet analyze run
"""


def _explain(wanted: bool) -> None:
    if wanted:
        from subnet.training.config import explain

        typer.echo(explain(), nl=False)
        raise typer.Exit


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file.")],
    explain: Annotated[  # noqa: ARG001 - answered before all else
        bool,
        typer.Option(
            "--explain",
            callback=_explain,
            is_eager=True,
            help="Print a configuration with every default and what it means.",
        ),
    ] = False,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train languages one after another and test every language after every stage.

    Writes checkpoint directories that the other commands read: one for each sharing regime and
    rank, with a run for each order and seed; into a directory named like CONFIG where --out names
    none. A training that was stopped goes on where it was when the same command is given again.
    Under torchrun, processes share the batches.
    """
    from subnet._files import to_json
    from subnet.training import train

    target = out or Path(config.stem)
    quiet = quiet or not is_first()
    with progress(quiet=quiet) as report:
        trained = train(config, target, progress=report or False, overwrite=overwrite)
    if not is_first():
        return
    frame = results(trained.cells)
    if json:
        typer.echo(to_json(frame.to_dict(orient="records")))
    elif not quiet:
        print_table(frame, title=f"Means over languages, written to {target}/")
        for cell in trained.cells:
            typer.echo(f"next: subnet analyze {cell}")


def results(cells: tuple[Path, ...]) -> pd.DataFrame:
    """A line for each cell, run and metric: what was learnt, and what was left of it."""
    import pandas as pd

    from subnet.checkpoint import open_checkpoint
    from subnet.forgetting import measure_forgetting

    measures = {
        "average_accuracy": "at_the_end",
        "backward_transfer": "since_own_turn",
        "forgetting": "forgetting",
    }
    rows = []
    for cell in cells:
        frame = measure_forgetting(open_checkpoint(cell).scores).frame
        whole = frame[frame["language"] == ""]
        for (run, metric), part in whole.groupby(["run", "metric"], sort=False):
            values = part.set_index("measure")["value"]
            rows.append(
                {
                    "cell": cell.name,
                    "run": run,
                    "metric": metric,
                    **{title: values.get(name, float("nan")) for name, title in measures.items()},
                }
            )
    return pd.DataFrame(rows)
