"""The same headline and inventory that the report shows, for the terminal."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subnet_cli.console import stdout

if TYPE_CHECKING:
    from rich.table import Table

    from subnet.analysis import Analysis
    from subnet.checkpoint import Checkpoint, Entry


def print_checkpoint(checkpoint: Checkpoint) -> None:
    """Print what was recognised, what was skipped, and which analyses are possible."""
    from rich.markup import escape

    console = stdout()
    labels = ", ".join(language.label for language in checkpoint.languages)
    console.print(f"[bold]{escape(str(checkpoint.path))}[/bold]")
    several = "" if len(checkpoint.languages) == 1 else "s"
    console.print(f"{len(checkpoint.languages)} language{several}: {escape(labels)}\n")

    found = _table("Found", "what", "n", "recognised as", "languages", "where")
    for entries in _alike(checkpoint.entries):
        first = entries[0]
        run = "" if first.run == checkpoint.runs[0] else f" ({first.run})"
        where = checkpoint.relative(first.path)
        more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
        found.add_row(
            escape(first.kind.replace("_", " ") + run),
            str(len(entries)),
            escape(first.recognised_as),
            escape(" ".join(str(entry.language) for entry in entries if entry.language)),
            escape(where + more),
        )
    console.print(found)

    if checkpoint.skipped:
        skipped = _table("Skipped", "where", "why", "what to do")
        for item in checkpoint.skipped:
            where = checkpoint.relative(item.path)
            skipped.add_row(escape(where), escape(item.reason), escape(item.fix))
        console.print(skipped)

    possible = _table("Analyses", "analysis", "possible", "wants")
    for capability in checkpoint.capabilities:
        answer = "[green]yes[/green]" if capability.possible else "[yellow]no[/yellow]"
        possible.add_row(capability.name, answer, escape("; ".join(capability.missing)))
    console.print(possible)


def print_analysis(analysis: Analysis, target: Path) -> None:
    """Print the headline, the main numbers, what was not possible, and where the report is."""
    from rich.markup import escape
    from rich.panel import Panel

    console = stdout()
    headline = analysis.headline
    console.print(Panel(escape(headline.sentence), title=escape(headline.state)))
    for line in analysis.key_numbers():
        indented = textwrap.fill(line, console.width, initial_indent="  ", subsequent_indent="    ")
        console.print(escape(indented), soft_wrap=True)
    for warning in analysis.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    for entry in analysis.missing:
        console.print(
            f"[yellow]not possible:[/yellow] {escape(entry.analysis)}: {escape(entry.reason)} "
            f"({escape(entry.fix)})"
        )
    console.print(f"\nreport: [bold]{escape(str(target / 'report.html'))}[/bold]", soft_wrap=True)


def _alike(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that differ in language, stage and place only, so that 52 adapters are one line."""

    def key(entry: Entry) -> tuple[str, str, str]:
        return (entry.kind, entry.run, entry.recognised_as)

    order = {k: place for place, k in reversed(list(enumerate(map(key, entries))))}
    ordered = sorted(entries, key=lambda entry: order[key(entry)])
    return [list(group) for _, group in itertools.groupby(ordered, key=key)]


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "n" else "left")
    return table
