"""Sections of the report: what representations encode, what was lost where, how alike, drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from subnet.report import Figure, Section, Table, draw, format_number, has_rows, tidy
from subnet_probes.figures_layers import Panel, languages_by_layer, scores_by_layer
from subnet_probes.figures_maps import layer_map
from subnet_probes.report_selection import (
    ADAPTER,
    ALL,
    BASE,
    END,
    OWN,
    Lost,
    Shown,
    change,
    first_run,
    language_table,
    training_order,
    what_was_lost,
)
from subnet_probes.report_similarity import similarity_section

if TYPE_CHECKING:
    from subnet.forgetting import Forgetting
    from subnet_probes.checkpoint_probing_result import CheckpointProbing

_TASKS = {"language": "language identity", "label": "labels", "tag": "tags of words"}
_SCORES = (
    "task", "model", "stage", "language", "score", "ci_low", "ci_high", "majority",
    "random_labels", "control", "selectivity", "compression", "n", "n_classes", "reason",
)  # fmt: skip
_PROBES_METHOD = (
    "Linear probes (multinomial logistic regression) on the hidden states of each layer, scored by "
    "{metric} on items that they were not trained on; translations of one item stand on one side "
    "of a split. Intervals are over groups of test items: they say what other test items would "
    "change, not other training data. The most frequent label, a probe of permuted labels, and a "
    "probe of a control task (Hewitt and Liang 2019) say what a score is worth without what the "
    "representation encodes. Where each item is a type of its own, control labels cannot be "
    "memorised and the control is chance. What a probe finds is there to be read, which does not "
    "mean that the model uses it."
)


def report_sections(
    probing: CheckpointProbing, forgetting: Forgetting | None = None
) -> tuple[Section, ...]:
    """Sections of a report about what representations encode and how they changed.

    The run `main`, or the first, is shown; the tables hold all of them.

    Args:
        probing: From `probe_checkpoint`.
        forgetting: From `subnet.measure_forgetting`, to stand beside it.

    Returns:
        The sections `probes`, `probes-lost`, `probes-alike`, `probes-drift`; one without its table
        stands with the reason.
    """
    languages = language_table(probing)
    reasons = {entry.analysis: f"{entry.reason}: {entry.fix}." for entry in probing.missing}
    if not has_rows(probing.probes):
        reason = _reason(reasons, ("labels", "language", "tokens"), "No probe was asked for.")
        encoded = Section("probes", _ENCODE, empty_reason=reason)
        lost = Section("probes-lost", _LOST, empty_reason=reason)
    else:
        shown = Shown.of(probing.probes)
        lost_by = what_was_lost(forgetting, shown.run)
        encoded = _encode_section(shown, probing, languages)
        lost = _lost_section(shown, lost_by, languages, reasons)
    return (
        encoded,
        lost,
        similarity_section(
            probing.similarity, languages, _reason(reasons, ("similarity",), "Not asked for.")
        ),
        _drift_section(
            probing, forgetting, languages, _reason(reasons, ("drift",), "Not asked for.")
        ),
    )


_ENCODE = "What representations encode"
_LOST = "What was lost, where"
_DRIFT = "How far representations moved"


def _encode_section(shown: Shown, probing: CheckpointProbing, languages: pd.DataFrame) -> Section:
    panels, lines = [], []
    whole = shown.rows[shown.rows["language"] == ALL]
    for task in [*dict.fromkeys(whole["task"]), *shown.tasks]:
        name = _TASKS.get(str(task), str(task))
        found = {}
        for moment in (BASE, END):
            rows = shown.at(moment, str(task))
            rows = rows[(rows["language"] == ALL) == (task == "language")]
            if rows["score"].notna().any():
                found[moment] = rows
                panels.append(Panel(f"{name}, {moment}", rows))
        lines += [_read(found, name)] if found else []
    metric = shown.metric.replace("_", " ").replace("f1", "F1")
    pictures = []
    if panels:
        pictures.append(
            draw(
                "probes-layers", "What a linear probe reads off each layer",
                scores_by_layer(panels, metric=metric),
                "Faint lines are languages, the thick one their mean; the probe of language "
                "identity is one for all languages and has its 95 % interval. A score is worth "
                "what it has above the dotted and broken lines."
                + _of_run(shown.run, probing.probes, "probes"),
            )
        )  # fmt: skip
    if shown.last is None:
        pictures += [_by_language(shown, task, None, languages) for task in shown.tasks]
    last_layer = str(shown.rows["layer"].iloc[-1])
    rows = shown.rows[shown.rows["layer"] == last_layer]
    whole_models = rows["model"] == "base"
    if shown.last is not None:
        whole_models |= (rows["model"] == "stage") & (rows["stage"].astype(float) == shown.last)
    said = [column for column in _SCORES if column in rows and rows[column].notna().any()]
    tables = [
        Table(
            "probes", f"Probes of the last layer ({last_layer}), {metric}",
            tidy(rows.loc[whole_models, said]),
            rest="tables/probes.csv", limit=60,
            caption="With 95 % intervals and what stands beside them; compression is how much "
            "shorter the labels become for a reader of the representations (minimum description "
            "length by online coding, Voita and Titov 2020).",
        )
    ]  # fmt: skip
    if has_rows(probing.units):
        tables.append(_units(probing.units))
    return Section(
        "probes", _ENCODE, lead=" ".join(lines), figures=pictures, tables=tables,
        method=_PROBES_METHOD.format(metric=metric),
    )  # fmt: skip


def _units(units: pd.DataFrame) -> Table:
    return Table(
        "probe-units", "Neurons that tell a language apart, beside the masks of neurons",
        tidy(units.drop(columns=[c for c in ("stage", "model") if c in units])),
        rest="tables/probe_units.csv", limit=40,
        caption="How far the neurons that a probe ranks highest are those that a language's mask "
        "holds, against what chance gives.",
    )  # fmt: skip


def _read(moments: Mapping[str, pd.DataFrame], name: str) -> str:
    """A sentence about the last layer: the mean over languages, or the one probe."""
    parts = []
    for moment, rows in moments.items():
        last = rows[rows["layer"] == rows["layer"].iloc[-1]]
        means = last[["score", "majority", "random_labels", "control"]].astype(float).mean()
        beside = [
            f"{words} {format_number(float(means[column]), 2)}"
            for column, words in (
                ("majority", "most frequent label"),
                ("random_labels", "random labels"),
                ("control", "control task"),
            )
            if pd.notna(means[column])
        ]
        score = format_number(float(means["score"]), 2)
        if len(last) == 1:
            low, high = (format_number(float(last[c].iloc[0]), 2) for c in ("ci_low", "ci_high"))
            score += f" [{low}, {high}]"
        else:
            score += f" on average of {len(last)} languages"
        parts.append(f"{score} {moment} ({', '.join(beside)})")
    return f"A probe of the last layer reads {name} with a score of {' and '.join(parts)}."


def _lost_section(
    shown: Shown, lost: Lost | None, languages: pd.DataFrame, reasons: dict[str, str]
) -> Section:
    if shown.last is None or not shown.tasks:
        reason = "there are no stages of training to compare"
        if not shown.tasks:
            reason = _reason(reasons, ("labels", "tokens"), "no labels were probed")
        return Section("probes-lost", _LOST, empty_reason=f"{reason[0].upper()}{reason[1:]}")
    pictures: list[Figure] = []
    tables, lines = [], []
    for task in shown.tasks:
        moments = shown.moments(task)
        start = next((m for m in (OWN, ADAPTER, BASE) if m in moments), None)
        if END not in moments or start is None:
            continue
        if start == ADAPTER:
            start = BASE if BASE in moments else start
        rows = change(moments[start], moments[END])
        pictures += [
            _map(shown, rows, task, start, lost, languages),
            _by_language(shown, task, lost, languages),
        ]
        tables.append(_changes(rows, task, start, lost))
        lines.append(_finding(rows, task, start))
    if not pictures:
        return Section(
            "probes-lost", _LOST, empty_reason="No language was probed at two moments of training."
        )
    return Section(
        "probes-lost", _LOST, lead=" ".join(lines), figures=pictures, tables=tables,
        method="A change is the score after the last stage less that before, each of probes "
        "trained anew on the representations of that model: what falls is what a linear probe can "
        "still read, wherever the model's own head looks. Its interval is put together from those "
        "of both scores as if they were independent (Zou and Donner 2008); they share their test "
        "items, so that it is too wide rather than too narrow. Framed cells are not corrected for "
        "the number of cells: one in twenty would be framed by chance if intervals were exact.",
    )  # fmt: skip


def _map(
    shown: Shown,
    rows: pd.DataFrame,
    task: str,
    start: str,
    lost: Lost | None,
    languages: pd.DataFrame,
) -> Figure:
    values = rows.pivot_table(
        index="language", columns="layer", values="value", sort=False, dropna=False
    )
    values = values.reindex(training_order(shown.rows, shown.run, list(values.index)))
    certain = rows[(rows["ci_low"] > 0) | (rows["ci_high"] < 0)]
    words = "since its own stage" if start == OWN else "since the base"
    caption = (
        "Languages stand in the order of training, layers with the input first. Negative (brown): "
        f"a probe reads less than {'after the own stage' if start == OWN else 'at the base'}; an "
        "empty cell has no change to show, as of the language that was trained last. Frames: the "
        "interval of the change excludes 0."
    )
    if lost is not None:
        caption += f" Dots: {lost.name}, positive is worse, with 95 % intervals."
    return draw(
        f"probes-lost-{task}", f"Change of the probe score ({_TASKS.get(task, task)}) {words}",
        layer_map(
            values, bar="change of the score (negative: lost)",
            beside=None if lost is None else lost.frame,
            beside_name="" if lost is None else lost.name,
            framed=list(zip(certain["language"], certain["layer"], strict=True)),
            languages=languages,
        ),
        caption,
    )  # fmt: skip


def _by_language(shown: Shown, task: str, lost: Lost | None, languages: pd.DataFrame) -> Figure:
    moments = shown.moments(task)
    labels = dict.fromkeys(label for rows in moments.values() for label in rows["language"])
    caption = (
        "A picture for each language, all on one scale. Bands are 95 % intervals, where there is "
        "room for them."
    )
    if lost is not None:
        caption += f" Beneath the name: what it {lost.name}."
    return draw(
        f"probes-languages-{task}",
        f"Probe score ({_TASKS.get(task, task)}) by layer, per language",
        languages_by_layer(
            moments, metric=shown.metric.replace("f1", "F1"), languages=languages,
            notes=None if lost is None else {label: lost.of(label) for label in labels},
        ),
        caption,
    )  # fmt: skip


def _changes(rows: pd.DataFrame, task: str, start: str, lost: Lost | None) -> Table:
    columns = {}
    if lost is not None:
        values = lost.frame.reindex(rows["language"])
        columns = {lost.name: values["value"].to_numpy()}
    order = rows.assign(**columns).dropna(subset="value").sort_values("value", kind="stable")
    return Table(
        f"probes-lost-{task}", f"Largest losses of the probe score ({_TASKS.get(task, task)})",
        order.rename(columns={"value": "change"}), limit=24, rest="tables/probes.csv",
        caption=f"Score after the last stage less that {start}, the most negative first, "
        "and how much the language lost by its own scores.",
    )  # fmt: skip


def _finding(rows: pd.DataFrame, task: str, start: str) -> str:
    """How many languages read worse, and at which layer most was lost."""
    mean = rows.groupby("layer", sort=False)["value"].mean()
    worst = str(mean.idxmin())
    here = rows[(rows["layer"] == worst) & rows["value"].notna()]
    sure = int((here["ci_high"] < 0).sum())
    since = "its own stage" if start == OWN else "the base"
    return (
        f"Since {since}, the probe score of a language ({_TASKS.get(task, task)}) changed by "
        f"{format_number(float(mean.mean()), 3)} on average over layers and languages; at layer "
        f"{worst}, where the mean change is lowest, by {format_number(float(mean.min()), 3)}, and "
        f"for {sure} of {len(here)} languages the interval there is below 0."
    )


def _drift_section(
    probing: CheckpointProbing,
    forgetting: Forgetting | None,
    languages: pd.DataFrame,
    reason: str,
) -> Section:
    drift = probing.drift
    if not has_rows(drift):
        return Section("probes-drift", _DRIFT, empty_reason=reason)
    run = first_run(drift)
    lost = what_was_lost(forgetting, run)
    measure = str(drift["measure"].iloc[0])
    rows = drift[(drift["run"] == run) & (drift["measure"] == measure)]
    by_cell = rows.groupby(["language", "layer"], sort=False)[["value", "shuffled"]].mean()
    values = by_cell["value"].unstack("layer")  # noqa: PD010 nothing to aggregate
    values = values.reindex(
        index=training_order(probing.probes, run, list(dict.fromkeys(rows["language"]))),
        columns=list(dict.fromkeys(rows["layer"])),
    )
    chance = float(rows["shuffled"].mean())
    steps = sorted({(int(a), int(b)) for a, b in zip(rows["since"], rows["stage"], strict=True)})
    if len(steps) == 1:
        over = f"from stage {steps[0][0]} to stage {steps[0][1]}"
    else:
        over = f"from one stage to the next, mean of {len(steps)} steps"
    by_language = rows.groupby("language", sort=False)[["value", "shuffled"]].mean()
    table = by_language.rename(columns={"value": "drift", "shuffled": "of shuffled rows"})
    if lost is not None:
        of = lost.frame.reindex(table.index)
        table = table.assign(**{lost.name: of["value"], "ci_low": of["low"], "ci_high": of["high"]})
    words = measure.replace("_", " ").replace("cka", "CKA")
    moved = by_language["value"].sort_values()
    caption = (
        f"{words.capitalize() if words.islower() else words} of the same items, {over}. "
        "Languages stand in the order of training."
    )
    if lost is not None:
        caption += f" Dots: {lost.name}, positive is worse, with 95 % intervals."
    return Section(
        "probes-drift", _DRIFT,
        lead=f"{over.capitalize()}, representations moved by "
        f"{format_number(float(moved.mean()), 3)} ({words}, mean of languages and layers; 0 is not "
        f"at all, unrelated rows are "
        f"{format_number(chance, 3)} apart): least for {moved.index[0]} "
        f"({format_number(float(moved.iloc[0]), 3)}), most for {moved.index[-1]} "
        f"({format_number(float(moved.iloc[-1]), 3)}).",
        figures=[
            draw(
                "probes-drift", "Drift of each language at each layer, beside what it lost",
                layer_map(
                    values, bar=words, signed=False, chance=chance,
                    beside=None if lost is None else lost.frame,
                    beside_name="" if lost is None else lost.name, languages=languages,
                ),
                caption,
            )
        ],
        tables=[
            Table(
                "drift", "Drift of each language",
                table.sort_values("drift", ascending=False).rename_axis("language").reset_index(),
                rest="tables/drift.csv", limit=60,
                caption="Mean over layers and steps, the largest first. Every stage, layer and "
                "measure is in the file, to be joined with tables/effects.csv on run, stage and "
                "language.",
            )
        ],
        method="CKA distance is 1 − unbiased linear CKA: 0 where representations differ by a "
        "rotation and a common scale only. The file also has Procrustes distance, of the same "
        "kind, and cosine distance, for which a rotation counts. Drift alone does not harm: what "
        "moved together with the layers above it is read as before.",
    )  # fmt: skip


def _of_run(run: str, frame: pd.DataFrame | None, name: str) -> str:
    several = frame is not None and len(frame["run"].unique()) > 1
    return f" Run {run}; the others are in tables/{name}.csv." if several else ""


def _reason(reasons: dict[str, str], analyses: tuple[str, ...], otherwise: str) -> str:
    found = next((reasons[name] for name in analyses if name in reasons), otherwise)
    return f"{found[0].upper()}{found[1:]}"
