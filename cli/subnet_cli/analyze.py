"""`subnet analyze`: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from subnet_cli import options
from subnet_cli.console import progress
from subnet_cli.further import with_further
from subnet_cli.summary import print_analysis

NAME = "analyze"
SUMMARY = "Compute everything a checkpoint allows and write the report."
EXAMPLE = """\b
Example:
  $ subnet analyze demo
  ╭───────────────────────── not associated ─────────────────────────╮
  │ No association was found between the overlap of the weights ...  │
  ...
  report: demo-analysis/report.html
"""


def command(
    paths: options.Paths,
    out: options.Out = None,
    method: options.Method = None,
    density: options.Density = None,
    scope: options.Scope = None,
    further: options.Further = None,
    masks: options.Masks = None,
    ablation: Annotated[
        bool | None,
        typer.Option(
            help="Remove each mask from its model and see which languages lose.  [default: where "
            "it takes about a minute]",
            show_default=False,
        ),
    ] = None,
    influence: Annotated[
        bool | None,
        typer.Option(
            help="Compute whose training examples moved whose predictions, over the stages of "
            "training.  [default: where it takes about a minute]",
            show_default=False,
        ),
    ] = None,
    probes: Annotated[
        bool | None,
        typer.Option(
            help="Probe what representations encode, before training and after it.  [default: "
            "where it takes about a minute]",
            show_default=False,
        ),
    ] = None,
    metric: options.Metric = None,
    permutations: options.Permutations = 9999,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compute everything that a checkpoint allows, and write the report.

    Recognises what is there (adapters, fine-tuned weights, masks, stages, scores), computes
    overlap, forgetting and their relation, probes representations, and says what file each missing
    analysis wants.
    Writes report.html, summary.json, run.json, tables/, graphs/ and figures/; nothing is written
    into the checkpoint.
    """
    from subnet._files import check_output
    from subnet.analysis import analyze
    from subnet.checkpoint import open_checkpoint
    from subnet_probes.report_extension import ProbeExtension

    checkpoint = open_checkpoint(paths)
    target = out or Path(f"{checkpoint.name}-analysis")
    check_output(target, overwrite=overwrite, outside=checkpoint.directories)
    with progress(quiet=quiet or json) as report:
        analysis = analyze(
            checkpoint,
            method=method,
            density=density,
            scope=scope,
            settings=with_further(method, {}, further or ()),
            masks=masks,
            ablation=ablation,
            influence=influence,
            metric=metric,
            n_permutations=permutations,
            seed=seed,
            extensions=[ProbeExtension(probes, seed, report)],
            progress=report,
        )
        analysis.save(target, overwrite=overwrite)
    if json:
        sys.stdout.write((target / "summary.json").read_text(encoding="utf-8"))
    elif not quiet:
        print_analysis(analysis, target)
