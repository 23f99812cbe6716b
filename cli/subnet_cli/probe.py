"""`subnet probe`: what representations encode, by language and layer, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subnet_cli import options
from subnet_cli.console import print_table, progress

if TYPE_CHECKING:
    import pandas as pd

    from subnet_probes import CheckpointProbing

NAME = "probe"
SUMMARY = "Find what representations encode, layer by layer, and what was lost where."
EXAMPLE = """\b
Example:
  $ subnet probe demo
  Accuracy of probes at the last layer, written to demo-probes/
    run    task       language    base   own_stage     end   adapter    change  ...
  ...
    main   label      es         0.596       0.718   0.539     0.735   -0.0571  ...

\b
  subnet probe demo --analysis labels --analysis drift --stages all --examples 0
  subnet extract demo --method attribution --set units=neuron --out demo-neurons
  subnet probe demo --analysis units --subnetwork demo-neurons
"""

#: Columns of the printed table to the models whose scores they hold.
_SHOWN = ("base", "own_stage", "end", "adapter")


def command(
    paths: options.Paths,
    analysis: Annotated[
        list[str] | None,
        typer.Option(
            help="language (identity), labels (of sentences), tokens (labels of words), transfer "
            "(of label probes between languages), similarity (of languages on parallel examples), "
            "drift (from stage to stage), units (neurons and heads that tell languages apart, "
            "beside masks of them); may be given several times.  [default: all]",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="all, or a number: 0 is what the embeddings put out, -1 the last; may be given "
            "several times.  [default: all]",
            show_default=False,
        ),
    ] = None,
    pair_layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Layers of transfer and similarity.  [default: a middle one and the last; of "
            "similarity all, where there are few languages]",
            show_default=False,
        ),
    ] = None,
    pool: Annotated[
        str, typer.Option(help="What a sentence's representation is: mean, first or last token.")
    ] = "mean",
    stages: Annotated[
        str,
        typer.Option(
            help="all, ends (the base and the last), or numbers with commas, 0 being the base. "
            "auto: all where that takes about a minute, else the ends and each language's own."
        ),
    ] = "auto",
    split: Annotated[
        str, typer.Option(help="Examples to probe on: test, validation or train.")
    ] = "test",
    examples: Annotated[
        int, typer.Option(min=0, help="Most examples of a language; 0 for all.")
    ] = 500,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Folds of the cross-validation.  [default: 5]", show_default=False
        ),
    ] = None,
    holdout: Annotated[
        bool | None,
        typer.Option(
            "--holdout/--cross-validate",
            help="Test on one fold, or on each in turn.  [default: on each, where that takes ten "
            "minutes at most]",
            show_default=False,
        ),
    ] = None,
    mdl: Annotated[
        bool | None,
        typer.Option(
            "--mdl/--no-mdl",
            help="Compute codelengths.  [default: where all takes ten minutes at most]",
            show_default=False,
        ),
    ] = None,
    subnetwork: Annotated[
        Path | None,
        typer.Option(
            metavar="MASKS",
            help="Also probe labels without the subnetwork of each language, from a directory of "
            "masks as extract writes them, and compare units with these.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Stream representations there; what is there already is not computed again.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per pass.")] = 32,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Processes that fit probes; -1 for one per core.  [default: 1, or one per core "
            "where that takes more than half a minute]",
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Probe the representations of the base, of stages of training and of adapters.

    Reads test.jsonl. Writes probes.csv (scores by language and layer, with their baselines),
    probe_transfer.csv, representation_similarity.csv, drift.csv and probe_units.csv, as far as the
    directory allows, and says what the rest wants.
    """
    from subnet._files import check_output, to_json
    from subnet.checkpoint import open_checkpoint
    from subnet_probes import CheckpointProbingSettings, ProbeSettings, probe_checkpoint

    probe = None
    if (folds, holdout, mdl) != (None, None, None):
        probe = ProbeSettings(
            folds=5 if folds is None else folds, holdout=bool(holdout), mdl=mdl is not False
        )
    given: dict[str, Any] = {"analyses": tuple(analysis)} if analysis else {}
    settings = CheckpointProbingSettings(
        layers=_layers(layers) or "all",
        pair_layers=_layers(pair_layers),
        pool=pool,
        stages=_stages(stages),
        split=split,
        examples=examples,
        probe=probe,
        subnetwork=subnetwork or False,
        store=store,
        batch_size=batch_size,
        n_jobs=jobs,
        seed=seed,
        **given,
    )
    checkpoint = open_checkpoint(paths)
    target = out or Path(f"{checkpoint.name}-probes")
    check_output(target, overwrite=overwrite, outside=checkpoint.directories)
    with progress(quiet=quiet) as report:
        found = probe_checkpoint(checkpoint, settings=settings, progress=report)
    found.save(target, overwrite=overwrite)
    if not quiet:
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)
    if json:
        typer.echo(to_json(as_records(found)))
    elif not quiet:
        _print(found, target)


def as_records(found: CheckpointProbing) -> dict[str, Any]:
    """Every table as records, undefined values null, and what was not possible."""
    records: dict[str, Any] = {
        name: frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
        for name, frame in found.tables().items()
    }
    missing = [
        {"analysis": entry.analysis, "reason": entry.reason, "fix": entry.fix}
        for entry in found.missing
    ]
    return {**records, "missing": missing, "warnings": list(found.warnings)}


def by_language(probes: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each language's probe before and after, at the last layer.

    The last layer is what a task reads; which layer is best would depend on the model.

    Args:
        probes: `CheckpointProbing.probes`.

    Returns:
        One row per run, task and language: scores at the base, after the language's own stage,
        after the last stage (`end`) and with its adapter, as far as there are any, `change` =
        end − base; `selectivity` and `majority` at the last of these; the `best_layer` there, and
        `best`, the score at it.
    """
    import pandas as pd

    rows = probes[(probes["metric"] == "accuracy") & (probes["subnetwork"] == "")]
    of_stage, own = rows["model"] == "stage", rows["language"] == rows["trained_language"]
    last = rows[of_stage].groupby("run")["stage"].max()
    where = {
        "base": rows["model"] == "base",
        "own_stage": of_stage & own,
        "end": of_stage & (rows["stage"] == rows["run"].map(last)),
        "adapter": rows["model"] == "adapter",
    }
    keys = ["run", "task", "language"]
    table: list[dict[str, Any]] = []
    for key, part in rows.groupby(keys, sort=False):
        layer = str(part["layer"].iloc[-1])
        # Of a language that was trained twice, the later stage.
        by_layer: dict[str, Any] = {
            name: part[chosen[part.index] & part["score"].notna()]
            .drop_duplicates("layer", keep="last")
            .set_index("layer")
            for name, chosen in where.items()
        }
        shown = {name: found for name, found in by_layer.items() if layer in found.index}
        if not shown:
            continue
        at = shown.get("end", shown.get("base", next(iter(shown.values()))))
        best = at["score"].idxmax()
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        row |= {name: float(found.loc[layer, "score"]) for name, found in shown.items()}
        if {"base", "end"} <= shown.keys():
            row["change"] = row["end"] - row["base"]
        row |= {name: float(at.loc[layer, name]) for name in ("selectivity", "majority")}
        table.append(row | {"best_layer": best, "best": float(at.loc[best, "score"])})
    columns = [*keys, *where, "change", "selectivity", "majority", "best_layer", "best"]
    found: pd.DataFrame = pd.DataFrame(table, columns=columns).dropna(axis=1, how="all")
    # A further run repeats the base that it shares: of interest is what it was trained on.
    trained = [name for name in ("own_stage", "end", "adapter") if name in found]
    kept = (found["run"] == found["run"].iloc[0]) | found[trained].notna().any(axis=1)
    rows_kept: pd.DataFrame = found[kept]
    return rows_kept


def _print(found: CheckpointProbing, target: Path) -> None:
    if found.probes is None:
        typer.echo(f"Written to {target}/: {', '.join(f'{name}.csv' for name in found.tables())}")
    else:
        table = by_language(found.probes)
        if len(set(table["run"])) == 1:
            table = table.drop(columns="run")
        print_table(table, title=f"Accuracy of probes at the last layer, written to {target}/")
    for entry in found.missing:
        typer.echo(f"not possible: {entry.analysis}: {entry.reason}; {entry.fix}")


def _layers(given: list[str] | None) -> Any:
    """`all`, or names and numbers of layers; None where none is given."""
    if not given:
        return None
    if given == ["all"]:
        return "all"
    return [int(name) if name.lstrip("-").isdigit() else name for name in given]


def _stages(given: str) -> Any:
    """A word, or numbers with commas."""
    parts = [part.strip() for part in given.split(",")]
    return [int(part) for part in parts] if all(part.isdigit() for part in parts) else given
