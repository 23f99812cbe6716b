"""From checkpoint directories to one value per language: what it lost, what it gave to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

import subnet
from subnet.confounds import measure_confounds
from subnet.forgetting import Forgetting

#: Absolute, divided by the earlier score, by its distance to chance.
VERSIONS = ("", "_relative", "_relative_to_chance")

#: Receivers: measure of the library, its name here, and its sign here (positive = lost).
RECEIVER = {
    "backward_transfer": ("lost_since_turn", -1.0),
    "forgetting_since_turn_split_half": ("lost_since_best", 1.0),
    "loss_since_start": ("lost_since_start", 1.0),
    "immediate_effect": ("lost_per_stage", -1.0),
}
#: What is smaller is 0, but for the rounding of the scores in their files.
NOISE = 5e-7
#: Donors: what training a language did to the others (positive = it helped them).
DONOR = "helped_others"
#: The same on languages in neither Latin script nor the donor's own. Among the others of a Latin
#: language most are Latin too; by this all donors are judged by the same languages, none their kin.
DONOR_APART = "helped_other_scripts"


@dataclass(frozen=True)
class Study:
    """What the training measured.

    Attributes:
        outcomes: One row per cell, metric, measure and language: `cell, role, metric, measure,
            language, value, position, runs`. `value` is the mean over orders and seeds, `position`
            the mean position of the language in the orders that it is a mean of.
        single: The same of single runs, in the column `run`.
        languages: One row per language: script, `latin`, and what else differs.
        orders: Run to the languages in order.
        settings: The configuration, as it was resolved.
    """

    outcomes: pd.DataFrame
    single: pd.DataFrame
    languages: pd.DataFrame
    orders: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, object]

    def of_each_order(self) -> list[Study]:
        """What it would be with the runs of one order of languages alone."""
        runs: dict[tuple[str, ...], list[str]] = {}
        for run, order in self.orders.items():
            runs.setdefault(order, []).append(run)
        if len(runs) == 1:  # a run that is alone has another name in its directory
            return [self]
        parts = [self.single[self.single["run"].isin(names)] for names in runs.values()]
        return [replace(self, outcomes=averaged(part), single=part) for part in parts]


def read_study(cells: Mapping[str, Path]) -> Study:
    """Measure every cell."""
    from subnet._files import RUN_FILE, read_json

    tables, measured, confounds, record = [], {}, pd.DataFrame(), {}
    for name, path in cells.items():
        checkpoint = subnet.open_checkpoint(path)
        if confounds.empty:
            confounds = measure_confounds(checkpoint).frame.set_index("language")
            trained = pd.read_csv(path / "languages.csv", index_col="language")
            if "truncated_share" in trained:  # of training texts too; else of what is tested
                confounds["truncated_share"] = trained["truncated_share"]
            record = read_json(path / RUN_FILE)
        reference = path / "joint" / "scores.csv"
        forgetting = subnet.measure_forgetting(
            checkpoint.scores, reference=pd.read_csv(reference) if reference.is_file() else None
        )
        transfer = _transfer(path, forgetting.runs)
        tables.append(run_outcomes(name, forgetting, confounds["script"], transfer))
        measured[name] = forgetting
    languages = confounds.assign(latin=confounds["script"] == "Latn")
    for metric, baseline in _at_the_start(next(iter(measured.values()))).items():
        languages[f"baseline_{metric}"] = baseline
    orders = {run: tuple(order) for run, order in record["orders"].items()}
    single = pd.concat(tables, ignore_index=True)
    single["value"] = single["value"].mask(single["value"].abs() < NOISE, 0.0)
    return Study(averaged(single), single, languages, orders, record["settings"])


def _at_the_start(forgetting: Forgetting) -> dict[str, pd.Series]:
    """Metric to the mean score of each language before the sequence, over all its items."""
    found: dict[str, list[pd.Series]] = {metric: [] for metric in forgetting.metrics}
    for m in forgetting.matrices:
        if m.stages[0] == 0:
            found[m.metric.name].append(pd.Series(m.scores[0], index=list(m.languages)))
    return {metric: pd.concat(runs, axis=1).mean(axis=1) for metric, runs in found.items() if runs}


def averaged(single: pd.DataFrame) -> pd.DataFrame:
    """One value per cell, measure and language: the mean over runs.

    A ratio is undefined in a run where what it is divided by is not clearly above 0, as it happens
    to be for weak languages. A mean over the other runs would be of a choice by the outcome: a
    language has a ratio only where every run that has its absolute value has its ratio too.
    """
    keys = ["cell", "role", "metric", "measure", "language"]
    found = single.groupby(keys, sort=False).agg(
        value=("value", "mean"), position=("position", "mean"), runs=("run", "nunique")
    )
    found = found.reset_index()
    absolute = found["measure"].str.replace("_relative(_to_chance)?$", "", regex=True)
    counted = found.set_index(keys)["runs"]
    whole = pd.MultiIndex.from_frame(found.assign(measure=absolute)[keys])
    complete = found["runs"].to_numpy() >= counted.reindex(whole).fillna(0).to_numpy()
    return found[complete].reset_index(drop=True)


def run_outcomes(
    cell: str,
    forgetting: Forgetting,
    scripts: Mapping[str, str],
    transfer: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One value per run, language and measure.

    Args:
        cell: Its name.
        forgetting: Its measures.
        scripts: Language to script.
        transfer: What each language's own parameters do on every language, where they have some:
            `run, trained_language, language, metric, value`. The donor role then is the change
            against the start; with shared parameters it is the change against the stage before.
    """
    frame = forgetting.frame[forgetting.frame["language"] != ""]
    rows = []
    for version in VERSIONS:
        for source, (name, sign) in RECEIVER.items():
            rows.append(_chosen(frame, source + version, name + version, sign, "receiver"))
        if transfer is None:
            source = "immediate_effect_given" + version
            rows.append(_chosen(frame, source, DONOR + version, 1.0, "donor"))
    if transfer is not None:
        rows.append(transferred(forgetting, transfer))
    rows.append(helped_apart(forgetting, scripts, transfer))
    rows.append(_chosen(frame, "own_gain", "own_gain", 1.0, ""))
    rows.append(_own_turn(forgetting))
    every = pd.concat(rows, ignore_index=True).dropna(subset=["value"])
    turns = pd.DataFrame(
        [
            (matrix.run, language, stage)
            for matrix in forgetting.matrices
            for stage, language in matrix.trained.items()
        ],
        columns=["run", "language", "position"],
    ).drop_duplicates(["run", "language"])
    return every.merge(turns, on=["run", "language"]).assign(cell=cell)


def _chosen(frame: pd.DataFrame, source: str, name: str, sign: float, role: str) -> pd.DataFrame:
    found = frame.loc[frame["measure"] == source, ["run", "metric", "language", "value"]]
    return found.assign(value=sign * found["value"], measure=name, role=role)


def _own_turn(forgetting: Forgetting) -> pd.DataFrame:
    """Score on each language just after its own turn, signed so that larger is better."""
    rows = [
        (m.run, m.metric.name, language, m.sign * m.scores[m.stages.index(stage), place])
        for m in forgetting.matrices
        for stage, language in m.trained.items()
        for place in [m.languages.index(language)]
    ]
    found = pd.DataFrame(rows, columns=["run", "metric", "language", "value"])
    return found.assign(measure="own_turn_score", role="")


def helped_apart(
    forgetting: Forgetting, scripts: Mapping[str, str], transfer: pd.DataFrame | None
) -> pd.DataFrame:
    """What training i did to the languages in neither Latin script nor that of i, on average."""
    rows = []
    for m in forgetting.matrices:
        known = m.scores[: len(m.stages)]  # without the reference
        after = pd.DataFrame(known, index=list(m.stages), columns=list(m.languages))
        own = None
        if transfer is not None:
            chosen = (transfer["run"] == m.run) & (transfer["metric"] == m.metric.name)
            own = transfer[chosen].pivot_table(
                index="trained_language", columns="language", values="value"
            )
        for stage, donor in m.trained.items():
            apart = {"Latn", scripts[donor]}
            others = [name for name in m.languages if scripts[name] not in apart]
            before = stage - 1 if own is None else 0
            if not others or before not in after.index:
                continue
            reached = after.loc[stage] if own is None else own.loc[donor]
            change = float((reached[others] - after.loc[before, others]).mean())
            rows.append((m.run, m.metric.name, donor, m.sign * change))
    columns = ["run", "metric", "language", "value"]
    return pd.DataFrame(rows, columns=columns).assign(measure=DONOR_APART, role="donor")


def transferred(forgetting: Forgetting, transfer: pd.DataFrame) -> pd.DataFrame:
    """Mean over j ≠ i of the score of i's own parameters on j, minus that of the start on j."""
    rows = []
    for m in forgetting.matrices:
        own = transfer[(transfer["run"] == m.run) & (transfer["metric"] == m.metric.name)]
        after = own.pivot_table(index="trained_language", columns="language", values="value")
        after = after.reindex(columns=list(m.languages))
        start = m.scores[0] if m.stages[0] == 0 else np.full(len(m.languages), np.nan)
        before = pd.Series(start, index=list(m.languages))
        for donor, scores in after.iterrows():
            others = [language for language in m.languages if language != donor]
            change = m.sign * float((scores[others] - before[others]).mean())
            earlier = float(before[others].mean())
            chance = np.nan if m.metric.chance is None else m.metric.chance
            distance = m.sign * (earlier - chance)
            for version, divisor in zip(VERSIONS, (1.0, earlier, distance), strict=True):
                value = change / divisor if divisor > 0 else np.nan
                rows.append((m.run, m.metric.name, str(donor), value, DONOR + version))
    columns = ["run", "metric", "language", "value", "measure"]
    return pd.DataFrame(rows, columns=columns).assign(role="donor")


def _transfer(path: Path, runs: tuple[str, ...]) -> pd.DataFrame | None:
    """`transfer.csv` of all runs of a cell; None where parameters are shared."""
    folders = {run: path / "runs" / run for run in runs}
    files = {
        run: (folder if folder.is_dir() else path) / "transfer.csv"
        for run, folder in folders.items()
    }
    frames = [pd.read_csv(file).assign(run=run) for run, file in files.items() if file.is_file()]
    return pd.concat(frames, ignore_index=True) if frames else None
