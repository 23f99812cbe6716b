"""`subnet relate`: does sharing parameters go with what was forgotten?"""

from __future__ import annotations

import typer

from subnet_cli import options
from subnet_cli.console import print_table, progress
from subnet_cli.further import with_further

NAME = "relate"
SUMMARY = "Relate overlap to what was forgotten."
EXAMPLE = """\b
Example:
  $ subnet relate demo --metric loss
  No association was found between the overlap of the parameters that training
  one language changed with what another uses (jaccard) and ...
"""


def command(
    paths: options.Paths,
    metric: options.Metric = None,
    method: options.Method = None,
    density: options.Density = None,
    scope: options.Scope = None,
    further: options.Further = None,
    masks: options.Masks = None,
    permutations: options.Permutations = 9999,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Relate overlap to the effect that training each language had on every other one.

    MRQAP with double semi-partialing is the headline, QAP stands beside it. Writes no files; the
    tables and figures are those of `subnet analyze`.
    """
    from subnet._files import to_json
    from subnet.analysis import analyze
    from subnet.errors import MissingInputError

    with progress(quiet=quiet or json) as report:
        analysis = analyze(
            paths,
            method=method,
            density=density,
            scope=scope,
            settings=with_further(method, {}, further or ()),
            masks=masks,
            metric=metric,
            n_permutations=permutations,
            seed=seed,
            progress=report,
        )
    if analysis.relation is None:
        wanted = next(entry for entry in analysis.missing if entry.analysis == "relation")
        raise MissingInputError(wanted.reason, path=paths[0], fix=wanted.fix)
    frame = analysis.relation.to_frame()
    if json:
        typer.echo(to_json(frame.to_dict(orient="records")))
    elif not quiet:
        typer.echo(analysis.relation.headline.sentence)
        rows = frame[frame["module"] == ""]
        columns = ["predictor", "measure", "method", "estimate", "ci_low", "ci_high", "p_value"]
        print_table(rows[[*columns, "q_value", "testable"]], title="Relation, whole model")
