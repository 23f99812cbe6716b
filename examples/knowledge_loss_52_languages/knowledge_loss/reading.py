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
#: Donors: what training a language did to the others (positive = it helped them).
DONOR = "helped_others"


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
        parts = [self.single[self.single["run"].isin(names)] for names in runs.values()]
        return [replace(self, outcomes=averaged(part), single=part) for part in parts]


def read_study(cells: Mapping[str, Path]) -> Study:
    """Measure every cell."""
    from subnet._files import RUN_FILE, read_json

    tables, measured, confounds, record = [], {}, pd.DataFrame(), {}
    for name, path in cells.items():
        checkpoint = subnet.open_checkpoint(path)
        reference = path / "joint" / "scores.csv"
        forgetting = subnet.measure_forgetting(
            checkpoint.scores, reference=pd.read_csv(reference) if reference.is_file() else None
        )
        tables.append(run_outcomes(name, forgetting, _transfer(path, forgetting.runs)))
        measured[name] = forgetting
        if confounds.empty:
            confounds = measure_confounds(checkpoint).frame
            record = read_json(path / RUN_FILE)
    first = next(iter(measured.values()))
    languages = confounds.set_index("language")
    languages["latin"] = languages["script"] == "Latn"
    for metric in first.metrics:
        languages[f"baseline_{metric}"] = first.baseline(metric)
    orders = {run: tuple(order) for run, order in record["orders"].items()}
    single = pd.concat(tables, ignore_index=True)
    return Study(averaged(single), single, languages, orders, record["settings"])


def averaged(single: pd.DataFrame) -> pd.DataFrame:
    """One value per cell, measure and language: the mean over runs."""
    keys = ["cell", "role", "metric", "measure", "language"]
    found = single.groupby(keys, sort=False).agg(
        value=("value", "mean"), position=("position", "mean"), runs=("run", "nunique")
    )
    return found.reset_index()


def run_outcomes(
    cell: str, forgetting: Forgetting, transfer: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One value per run, language and measure.

    Args:
        cell: Its name.
        forgetting: Its measures.
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
