"""`subnet relate`: does sharing parameters go with what was forgotten?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subnet_cli import options
from subnet_cli.console import print_table, progress
from subnet_cli.further import with_further

if TYPE_CHECKING:
    import pandas as pd

    from subnet.analysis import Addition
    from subnet.checkpoint import Checkpoint
    from subnet.forgetting import Forgetting

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
    representations: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="TABLE",
            help="Relate similarity of representations too: representation_similarity.csv or "
            "probe_transfer.csv, as subnet probe writes them; may be given several times.",
            show_default=False,
        ),
    ] = None,
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

    # Read before anything is computed: a name mistyped shall not cost minutes.
    extensions = [_Tables(_read(representations))] if representations else []
    with progress(quiet=quiet or json) as report:
        analysis = analyze(
            paths,
            method=method,
            density=density,
            scope=scope,
            settings=with_further(method, {}, further or ()),
            masks=masks,
            ablation=False,
            metric=metric,
            n_permutations=permutations,
            seed=seed,
            extensions=extensions,
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


@dataclass(frozen=True)
class _Tables:
    """Similarity of representations that was measured before, as predictors."""

    frames: Mapping[str, pd.DataFrame]

    @property
    def name(self) -> str:
        return "representations"

    def __call__(self, checkpoint: Checkpoint, forgetting: Forgetting | None) -> Addition:  # noqa: ARG002 as extensions are called
        from subnet.analysis import Addition

        return Addition(representations=self.frames)


def _read(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Path to table, each of which can be taken."""
    import pandas as pd

    from subnet._tables import MAIN_RUN
    from subnet.errors import InputError, MissingInputError
    from subnet.relation import check_representations

    frames = {}
    for path in paths:
        if not path.is_file():
            raise MissingInputError(
                "does not exist", path=path, expected="a table that subnet probe wrote"
            )
        try:
            # A language may be called "nan" or "NA".
            frame = pd.read_csv(
                path, dtype={"layer": str, "run": str}, keep_default_na=False, na_values=[""]
            )
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(
                f"is no table ({error})", path=path, expected="comma-separated values"
            ) from error
        frames[str(path)] = frame if "run" in frame else frame.assign(run=MAIN_RUN)
    check_representations(frames)
    return frames
