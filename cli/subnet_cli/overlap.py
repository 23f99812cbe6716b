"""`subnet overlap`: how much the languages share."""

from __future__ import annotations

from typing import Annotated

import typer

from subnet_cli import options
from subnet_cli.console import print_table
from subnet_cli.further import with_further

NAME = "overlap"
SUMMARY = "Print how much every pair of languages shares."
EXAMPLE = """\b
Example:
  $ subnet overlap demo --measure cosine
  cosine, whole model
  ...
    main   en   tr   0.0947   0   structure   13.4   1.38e-39
"""


def command(
    paths: options.Paths,
    measure: Annotated[
        str,
        typer.Option(
            help="jaccard, dice, overlap_coefficient, containment or sign_agreement of masks; "
            "cosine, subspace_similarity or principal_angle of updates."
        ),
    ] = "jaccard",
    method: options.Method = None,
    density: options.Density = None,
    scope: options.Scope = None,
    further: options.Further = None,
    masks: options.Masks = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Print the overlap of every pair of languages over the whole model, with its chance level.

    With --out, every level (all, layer, type, module) goes to overlap.csv, and the graph of pairs
    that share more than chance to GraphML and JSON.
    """
    from subnet._files import check_output, new_directory, to_json
    from subnet._tables import table, write_csv
    from subnet.analysis import Search, overlap_by_measure, write_run_record
    from subnet.checkpoint import open_checkpoint
    from subnet.overlap import write_graph

    checkpoint = open_checkpoint(paths)
    if out is not None:
        check_output(out, overwrite=overwrite, outside=checkpoint.directories)
    search = Search(
        method=method,
        density=density,
        scope=scope,
        further=with_further(method, {}, further or ()),
        masks=masks,
    )
    overlap = overlap_by_measure(checkpoint, measure, search, seed=seed)
    if out is not None:
        with new_directory(out, overwrite=overwrite) as building:
            write_csv(table("overlap", overlap.to_frame()), building / "overlap.csv")
            graph = overlap.graph(measure, families=checkpoint.families, seed=seed)
            write_graph(graph, building, measure)
            write_run_record(building, "overlap", overlap.provenance.to_dict(), checkpoint)
    rows = overlap.rows(measure)
    rows = rows.sort_values("value", ascending=False, kind="stable")
    if json:
        typer.echo(to_json(rows.to_dict(orient="records")))
    elif not quiet:
        for warning in overlap.warnings:
            typer.echo(f"warning: {warning}", err=True)
        columns = ["run", "language_a", "language_b", "value", "expected", "null", "z", "q_value"]
        print_table(rows[columns], title=f"{measure}, whole model")
