"""`subnet demo`: train a small real experiment, then analyse it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from subnet_cli import options
from subnet_cli.console import progress
from subnet_cli.summary import print_analysis

NAME = "demo"
SUMMARY = "Train a small real experiment, then analyse it."
INTERRUPTED = "what is trained stays: the same command goes on from there"
EXAMPLE = """\b
Example:
  $ subnet demo --languages de,fr,ru,uk,ar,fa
  training, then analysing: a few minutes for twelve languages
  ...
  report: demo-analysis/report.html
"""


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where the checkpoint goes.")
    ] = Path("demo"),
    languages: Annotated[
        str,
        typer.Option(help="Codes separated by commas, or all for the 52 languages of MASSIVE."),
    ] = "default",
    out: options.Out = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train twelve languages on real data from CLDR, then analyse them: a few minutes.

    A small encoder learns to tell kinds of terms apart (territories, languages, currencies, ...)
    in every language. Then one LoRA per language is trained from it, and one LoRA is carried
    through the languages in sequence, with every language evaluated after every stage. The
    checkpoint directory is laid out as documented, and `subnet analyze` follows. A demo that was
    stopped goes on where it was when the same command is given again.
    """
    from subnet._files import check_output
    from subnet.analysis import analyze
    from subnet.training import run_demo
    from subnet_probes.report_extension import ProbeExtension

    _one_thread()
    target = out or Path(f"{directory.absolute().name}-analysis")
    check_output(target, overwrite=overwrite)
    chosen = languages if languages in ("default", "all") else languages.split(",")
    if not quiet:
        typer.echo("training, then analysing: a few minutes for twelve languages", err=True)
    with progress(quiet=quiet or json) as report:
        run_demo(
            directory,
            languages=chosen,
            seed=seed,
            progress=report or False,
            overwrite=overwrite,
        )
        probes = ProbeExtension(None, seed, report)
        analysis = analyze(directory, seed=seed, extensions=[probes], progress=report)
        analysis.save(target, overwrite=overwrite)
    if json:
        typer.echo((target / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        print_analysis(analysis, target)


def _one_thread() -> None:
    """On a model this small threads mostly wait for each other; so cores do not change digits."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
