"""Options that several commands share, with one meaning each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        help="Checkpoint directory; several are several runs (seeds, orders).",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="Where to write.", show_default=False),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an earlier result (a folder with our run.json)."),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="How subnetworks are found, as for extract.  [default: the masks that are there, else "
        "magnitude]",
        show_default=False,
    ),
]
Further = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other setting of the method; may be given several times.",
        show_default=False,
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Masks to take instead, as extract writes them.", show_default=False
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        help="Share that a language's subnetwork keeps, 0 < density <= 1.  [default: the method's; "
        "0.05 by magnitude]",
        show_default=False,
    ),
]
Scope = Annotated[
    str | None,
    typer.Option(
        help="Rank weights over the whole model (global) or in each module (module).  [default: "
        "global]",
        show_default=False,
    ),
]
Permutations = Annotated[
    int, typer.Option(min=99, help="Most permutations for a p-value; exact where fewer exist.")
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="Metric whose changes are explained; loss where there is one.", show_default=False
    ),
]
