"""`subnet convert`: masks and adapters of other tools, as masks of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from subnet_cli import options
from subnet_cli.console import print_table

NAME = "convert"
SUMMARY = "Read masks that another tool wrote and write them as ours."
EXAMPLE = """\b
Examples:
  subnet convert LLaMA-2-7B.neuron.pth masks --languages en,zh,fr,es,vi,id,ja --units 11008
  subnet convert head_mask.npy masks --languages de --base base
  subnet convert demo/adapters masks --density 0.05 --base demo/base
"""


def command(
    src: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A file, the folder of an adapter or a model, or a folder of them, one per "
            "language and named after it.",
            show_default=False,
        ),
    ],
    dst: Annotated[
        Path, typer.Argument(metavar="DST", help="A new directory.", show_default=False)
    ],
    source_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="subnet, npz, peft, kohya, prune, composable-sft, lape, heads or sparse; "
            "recognised where it is not said.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(help="safetensors (packed bits), or npz (boolean arrays).")
    ] = "safetensors",
    languages: Annotated[
        str | None,
        typer.Option(
            help="Labels in the file's order, with commas, where it does not say them; - leaves "
            "one out.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Folder of the base, against which masks are checked, or its name.",
            show_default=False,
        ),
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Neurons per layer (lape), where the base does not say it.",
            show_default=False,
        ),
    ] = None,
    density: options.Density = 0.05,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Read masks that another tool wrote, or adapters, and write one mask per language.

    The directory that is written can be analysed like any checkpoint.
    """
    import warnings

    from subnet._files import check_output, new_directory, sha256, to_json
    from subnet.analysis import write_run_record
    from subnet.subnetwork import read_masks, source_files, write_masks

    check_output(dst, overwrite=overwrite, outside=[src] if src.is_dir() else [])
    settings: dict[str, Any] = {
        "format": source_format,
        "languages": None if languages is None else [part.strip() for part in languages.split(",")],
        "base": base,
        "units": units,
        "density": density,
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = read_masks(src, **settings)
    root = src if src.is_dir() else src.parent
    inputs = {
        path.relative_to(root).as_posix(): sha256(path) for path in source_files(src, source_format)
    }
    with new_directory(dst, overwrite=overwrite) as building:
        write_masks(found, building, to=to)
        write_run_record(building, "convert", {**settings, "to": to}, inputs)
    frame = found.to_frame()
    if json:
        typer.echo(to_json(frame.to_dict(orient="records")))
    elif not quiet:
        for warning in caught:
            typer.echo(f"warning: {warning.message}", err=True)
        print_table(frame, title=f"Masks by {found[0].granularity}, written to {dst}/")
