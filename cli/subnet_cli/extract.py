"""`subnet extract`: the parameters that each language uses, as masks on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from subnet_cli import options
from subnet_cli.console import print_table

NAME = "extract"
SUMMARY = "Write one mask per language."
EXAMPLE = """\b
Example:
  $ subnet extract demo --density 0.05 --out masks
  Subnetworks by magnitude, written to masks/
  ...
    ar   main   12902   258048   0.05
"""


def command(
    paths: options.Paths,
    method: Annotated[
        str,
        typer.Option(
            help="How weights are ranked: magnitude of the change they went through; or, on the "
            "training examples, fisher (squared gradients), taylor (gradient × weight) or wanda "
            "(weight × input)."
        ),
    ] = "magnitude",
    density: Annotated[
        float | None,
        typer.Option(
            help="Share to select, 0 < density <= 1.  [default: 0.05]", show_default=False
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help="Rank weights over the whole model (global), in each module (module), or, not by "
            "magnitude, in each row of a weight matrix (row).  [default: global]",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most training examples of a language; not by magnitude.  [default: 1024]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of their draw; not by magnitude.  [default: 0]", show_default=False
        ),
    ] = None,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write one mask per language (safetensors, packed bits) and print its density."""
    from subnet._files import check_output, new_directory, to_json
    from subnet.analysis import write_run_record
    from subnet.checkpoint import open_checkpoint
    from subnet.subnetwork import extract

    checkpoint = open_checkpoint(paths)
    target = out or Path(f"{checkpoint.name}-masks")
    check_output(target, overwrite=overwrite, outside=checkpoint.directories)
    given: dict[str, Any] = {
        "density": density,
        "scope": scope,
        "n_examples": examples,
        "seed": seed,
    }
    subnetworks = extract(
        checkpoint, method=method, **{k: v for k, v in given.items() if v is not None}
    )
    with new_directory(target, overwrite=overwrite) as building:
        subnetworks.save(building)
        first = subnetworks[0]
        write_run_record(building, "extract", dict(first.settings), checkpoint, seed=first.seed)
    frame = subnetworks.to_frame()
    if json:
        typer.echo(to_json(frame.to_dict(orient="records")))
    elif not quiet:
        whole = frame.groupby(["language", "run"], sort=False)[["count", "size"]].sum()
        whole = whole.assign(density=whole["count"] / whole["size"]).reset_index()
        print_table(whole, title=f"Subnetworks by {method}, written to {target}/")
