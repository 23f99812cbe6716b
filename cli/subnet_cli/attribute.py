"""`subnet attribute`: whose training examples moved whose predictions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subnet_cli import options
from subnet_cli.console import is_first, print_table, progress
from subnet_cli.further import with_settings

if TYPE_CHECKING:
    import pandas as pd

    from subnet.analysis import Attribution

NAME = "attribute"
SUMMARY = "Compute whose training examples moved whose predictions."
EXAMPLE = """\b
Example:
  $ subnet attribute demo --examples 64 --test-examples 32
  Influence by tracin, written to demo-influence/
  ...
    ar   0.142   0.294   0.0833   0.00576   0.184   fa

\b
  subnet attribute demo --method ekfac --set damping=0.1 --level language
  subnet attribute demo --subnetwork demo-masks --random 5

\b
In many processes, on GPUs or not, with the result of one:
  torchrun --nproc_per_node 2 -m subnet_cli attribute demo --store gradients
  accelerate launch --multi_gpu --num_processes 2 -m subnet_cli attribute demo
"""

_ONE_PROCESS = (
    "accelerate started one process, not several: without --multi_gpu it starts several only for "
    "GPUs that it finds. accelerate launch --multi_gpu --num_processes 2, or torchrun "
    "--nproc_per_node 2, starts two on the CPU, too"
)


def _list_methods(wanted: bool) -> None:
    if not wanted:
        return
    from dataclasses import fields

    from subnet.influence import find_method, method_names

    for name in method_names():
        method = find_method(name)
        kind = method.settings
        own = (
            []
            if kind is None
            else [e for e in fields(kind) if e.name != "seed" and e.name not in method.fixed]
        )
        typer.echo(name)
        if method.summary:
            typer.echo(f"  {method.summary}")
        if own:
            typer.echo(f"  --set {' '.join(f'{entry.name}={entry.default}' for entry in own)}")
    raise typer.Exit


def command(
    paths: options.Paths,
    method: Annotated[
        str,
        typer.Option(
            help="How it is computed. Gradients at checkpoints: tracin (their product, by learning "
            "rate), cosine, final (the last checkpoint alone), adam and less (in the metric of "
            "Adam), kfac, ekfac and datainf (through an inverse curvature), trak. Without "
            "gradients, to stand beside them: bm25, embedding, random."
        ),
    ] = "tracin",
    list_methods: Annotated[  # noqa: ARG001 - answered before all else
        bool,
        typer.Option(
            "--list-methods",
            callback=_list_methods,
            is_eager=True,
            help="Print every method with its settings.",
        ),
    ] = False,
    level: Annotated[
        str,
        typer.Option(
            help="example: a score for every pair of examples, and shares of languages among the "
            "most helpful. language: mean scores of languages only, in less memory."
        ),
    ] = "example",
    examples: Annotated[
        int, typer.Option(min=0, help="Most training examples of a language; 0 for all.")
    ] = 256,
    test_examples: Annotated[
        int, typer.Option(min=0, help="Most test examples of a language; 0 for all.")
    ] = 64,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            help="At which checkpoints: stages (an example counts where its language was trained), "
            "languages (at its language's own adapter), base (at the base, which is taken to be "
            "trained on all examples).  [default: stages, else languages]",
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="SUM",
            help="Learning rates of the steps that led to a checkpoint, summed, where neither "
            "subnet.toml nor Trainer's log says it.",
            show_default=False,
        ),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            help="Modules whose gradients count: lora, linear, all, a name or a pattern; may be "
            "given several times.  [default: the adapter, else all linear layers]",
            show_default=False,
        ),
    ] = None,
    subnetwork: Annotated[
        Path | None,
        typer.Option(
            metavar="MASKS",
            help="Also score each test example within the subnetwork of its own language, from a "
            "directory of masks as extract writes them, and compare. One more run of all "
            "training examples per language.",
            show_default=False,
        ),
    ] = None,
    random: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Beside --subnetwork: compare with N random masks of the size of each, too.",
        ),
    ] = 0,
    top: Annotated[
        int,
        typer.Option(min=1, help="How many training examples are the most helpful, or harmful."),
    ] = 10,
    translations: Annotated[
        str,
        typer.Option(
            help="keep or exclude training examples with the concept of the test example."
        ),
    ] = "keep",
    projection: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Project gradients of each layer to K × K at random. Scores are approximate.",
            show_default=False,
        ),
    ] = None,
    fidelity: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Beside --projection: how well the ranks of exact scores are kept, over N seeds.",
        ),
    ] = 0,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep training gradients there; what is there already is not computed again.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BYTES",
            help="What gradients may take at once; training examples are gone through more often.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per pass.")] = 16,
    further: options.Further = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compute how much each training example moved the prediction on each test example.

    Positive means that training on the example lowered the test loss. Reads train.jsonl and
    test.jsonl. Writes influence.csv (training language × test language), top.csv (the most helpful
    and harmful training examples of every test example), scores/ (every score), and graphs of
    languages that help or harm more than chance.
    """
    from subnet._files import check_output, to_json
    from subnet.analysis import AttributionSettings, attribute_checkpoint, write_attribution
    from subnet.checkpoint import open_checkpoint

    if not quiet and _is_one_of_many_asked():
        typer.echo(f"warning: {_ONE_PROCESS}", err=True)
    settings = AttributionSettings(
        method=method,
        level=level,
        checkpoints=checkpoints,
        learning_rate=learning_rate,
        n_train=examples or None,
        n_test=test_examples or None,
        top=top,
        translations=translations,
        modules=None if not modules else modules[0] if len(modules) == 1 else modules,
        masks=subnetwork,
        n_random=random,
        projection=projection,
        fidelity=fidelity,
        store=store,
        memory=memory,
        batch_size=batch_size,
        seed=seed,
        further=with_settings(method, further or (), seed=seed),
    )
    checkpoint = open_checkpoint(paths)
    target = out or Path(f"{checkpoint.name}-influence")
    check_output(target, overwrite=overwrite, outside=checkpoint.directories)
    quiet = quiet or not is_first()
    with progress(quiet=quiet) as report:
        found = attribute_checkpoint(checkpoint, settings, progress=report)
    write_attribution(found, target, checkpoint, overwrite=overwrite)
    if not is_first():
        return
    if not quiet:
        for warning in found.warnings:
            typer.echo(f"warning: {warning}", err=True)
    if json:
        typer.echo(to_json(found.frame.to_dict(orient="records")))
    elif not quiet:
        print_table(by_test_language(found), title=f"Influence by {method}, written to {target}/")
        _print_fidelity(found)
        _print_comparison(found)


def by_test_language(found: Attribution) -> pd.DataFrame:
    """A line for each test language: what its own training examples do, and who helps it most."""
    import pandas as pd

    rows = []
    full = found.full
    for language in dict.fromkeys(full["test_language"]):
        here = full[full["test_language"] == language]
        own = here[here["train_language"] == language].set_index("measure")
        means = here[(here["measure"] == "mean") & (here["train_language"] != language)]
        row = {"language": language, "own_mean": _value(own, "mean", "value")}
        if "expected" in full:
            row |= {
                "own_share": _value(own, "share_top_positive", "value"),
                "by_chance": _value(own, "share_top_positive", "expected"),
                "q_value": _value(own, "share_top_positive", "q_value"),
                "own_share_negative": _value(own, "share_bottom_negative", "value"),
            }
        row["helped_most_by"] = (
            means.loc[means["value"].idxmax(), "train_language"] if len(means) else ""
        )
        rows.append(row)
    return pd.DataFrame(rows)


def _value(own: pd.DataFrame, measure: str, column: str) -> float:
    return float(own[column].astype(float).get(measure, float("nan")))


def _is_one_of_many_asked() -> bool:
    """Whether accelerate was to start several processes and started one.

    It then leaves an address at which they would have met, and no rank.
    """
    names = ("ACCELERATE_USE_CPU", "MASTER_PORT")
    return all(name in os.environ for name in names) and "RANK" not in os.environ


def _print_fidelity(found: Attribution) -> None:
    for scored in found.scored:
        kept = scored.influence.provenance.settings.get("fidelity")
        if kept is None:
            continue
        within = f" within subnetworks ({scored.subnetwork})" if scored.subnetwork else ""
        typer.echo(
            f"  Projected scores of {scored.run}{within} rank training examples as exact ones do: "
            f"Spearman {kept['value']:.3f} [{kept['ci_low']:.3f}, {kept['ci_high']:.3f}] over "
            f"{len(kept['seeds'])} seeds"
        )


def _print_comparison(found: Attribution) -> None:
    if found.comparison is None:
        return
    rows = found.comparison[found.comparison["test_language"] == "all"]
    columns = ["comparison", "measure", "value", "ci_low", "ci_high", "p_value", "n", "n_controls"]
    print_table(rows[columns], title="Share of the own language within subnetworks")
