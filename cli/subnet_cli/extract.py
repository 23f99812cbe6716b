"""`subnet extract`: the parameters that each language uses, as masks on disk."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subnet_cli import options
from subnet_cli.console import print_table, progress
from subnet_cli.further import with_further

if TYPE_CHECKING:
    from subnet.subnetwork import Subnetwork

NAME = "extract"
SUMMARY = "Write one mask per language."
EXAMPLE = """\b
Example:
  $ subnet extract demo --density 0.05 --out masks
  Subnetworks by magnitude, written to masks/
  ...
    ar   main   12902   258048   0.05

\b
  subnet extract demo --method fisher --halves --out halves && subnet overlap halves
  subnet extract demo --method lape --set activity_percentile=90 --random 5
"""


def _list_methods(wanted: bool) -> None:
    if not wanted:
        return
    from dataclasses import fields

    from subnet.subnetwork.settings import METHODS, DataSettings

    for name, kind in METHODS.items():
        data = "looks at examples" if issubclass(kind, DataSettings) else "looks at no data"
        units = kind.granularity.replace(" or ", "s or ")
        typer.echo(f"{name} (masks of {units}s, {data})")
        typer.echo(f"  {(inspect.getdoc(kind) or '').splitlines()[0]}")
        typer.echo(f"  {' '.join(f'{entry.name}={entry.default}' for entry in fields(kind))}")
    raise typer.Exit


def command(
    paths: options.Paths,
    method: Annotated[
        str,
        typer.Option(
            help="How it is found. Weights: magnitude (of the change they went through), fisher "
            "(squared gradients), taylor (gradient × weight), wanda (weight × input). Attention "
            "heads: head-pruning. Heads or neurons: attribution. Neurons: lape (when they fire). "
            "Directions of the change: directions. "
            "The control: random."
        ),
    ] = "magnitude",
    list_methods: Annotated[  # noqa: ARG001 - answered before all else
        bool,
        typer.Option(
            "--list-methods",
            callback=_list_methods,
            is_eager=True,
            help="Print every method with its settings.",
        ),
    ] = False,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share to select, 0 < density <= 1.  [default: the method's, 0.05 for weights]",
            show_default=False,
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help="What is ranked together: the whole model (global), each module (module) or, by "
            "importance, each row of a weight matrix (row).  [default: the method's]",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most examples of a language, for methods that look at them.  [default: 1024]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of what is drawn.  [default: 0]", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Which model looks at the examples: that of the language (trained), or the base "
            "as it was before (base).  [default: trained; base for lape]",
            show_default=False,
        ),
    ] = None,
    further: options.Further = None,
    halves: Annotated[
        bool,
        typer.Option(
            "--halves",
            help="Extract on two disjoint halves of each language's examples instead: the runs "
            "half-1 and half-2. How much they agree is the ceiling of what two languages share.",
        ),
    ] = False,
    random: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Also write N random masks of the size of each, module by module, to controls/.",
        ),
    ] = 0,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write one mask per language (safetensors, packed bits) and print its density."""
    import warnings

    from subnet._files import check_output, new_directory, to_json
    from subnet.analysis import write_run_record
    from subnet.checkpoint import open_checkpoint
    from subnet.subnetwork import Subnetworks, extract, extract_halves, write_controls

    options_given = {
        "density": density,
        "scope": scope,
        "n_examples": examples,
        "seed": seed,
        "model": model,
    }
    given: dict[str, Any] = {
        name: value for name, value in options_given.items() if value is not None
    }
    given = with_further(method, given, further or ())
    checkpoint = open_checkpoint(paths)
    target = out or Path(f"{checkpoint.name}-masks")
    check_output(target, overwrite=overwrite, outside=checkpoint.directories)
    with warnings.catch_warnings(record=True) as caught, progress(quiet=quiet) as report:
        warnings.simplefilter("always", UserWarning)
        if halves:
            both = extract_halves(checkpoint, method=method, progress=report, **given)
            subnetworks = Subnetworks([*both[0], *both[1]])
        else:
            subnetworks = extract(checkpoint, method=method, progress=report, **given)
    first = (seed or 0) + 1
    seeds = list(range(first, first + random))
    with new_directory(target, overwrite=overwrite) as building:
        subnetworks.save(building)
        write_controls(subnetworks, building, seeds)
        settings = {"method": method, **recorded_settings(subnetworks), "controls": seeds}
        write_run_record(building, "extract", settings, checkpoint, seed=subnetworks[0].seed)
    if not quiet:
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            typer.echo(f"warning: {message}", err=True)
    frame = subnetworks.to_frame()
    if json:
        typer.echo(to_json(frame.to_dict(orient="records")))
    elif not quiet:
        whole = frame.groupby(["language", "run"], sort=False)[["count", "size"]].sum()
        whole = whole.assign(density=whole["count"] / whole["size"]).reset_index()
        print_table(whole, title=f"Subnetworks by {method}, written to {target}/")


def recorded_settings(subnetworks: Iterable[Subnetwork]) -> dict[str, Any]:
    """Settings that all masks share, and under `masks` the others, by run and language."""
    members = list(subnetworks)
    first = members[0].settings
    shared = {
        name: value
        for name, value in first.items()
        if all(name in member.settings and member.settings[name] == value for member in members)
    }
    own: dict[str, dict[str, Any]] = {}
    for member in members:
        rest = {name: value for name, value in member.settings.items() if name not in shared}
        if rest:
            own.setdefault(member.run, {})[member.language] = rest
    return {**shared, **({"masks": own} if own else {})}
