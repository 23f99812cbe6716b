"""`subnet inspect`: what is in a checkpoint directory, without loading a tensor."""

from __future__ import annotations

from subnet_cli import options
from subnet_cli.summary import print_checkpoint

NAME = "inspect"
SUMMARY = "Say what a directory holds, without loading a tensor."
EXAMPLE = """\b
Example:
  $ subnet inspect demo
  12 languages: ar, de, el, en, es, fa, he, hi, ko, ru, th, tr
  ...
    adapter   12   PEFT adapter (LoRA, rank 8, 18 modules)   ar de el ...
"""


def command(paths: options.Paths, json: options.Json = False) -> None:
    """List what was recognised and as what, what was skipped and why, and what can be computed."""
    import typer

    from subnet._files import to_json
    from subnet.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(paths)
    if json:
        typer.echo(to_json(checkpoint.to_dict()))
    else:
        print_checkpoint(checkpoint)
