"""What the report shows of a probed checkpoint: one run, one score, the models to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subnet._statistics import normal_interval
from subnet._tables import MAIN_RUN

if TYPE_CHECKING:
    from subnet.forgetting import Forgetting
    from subnet_probes.checkpoint_probing_result import CheckpointProbing

#: Language of the rows of a probe that is about all languages.
ALL = "all"
BASE, OWN, ADAPTER, END = "at the base", "after its own stage", "its own adapter", "at the end"
#: The first that there is, is shown.
_METRICS = ("macro_f1", "accuracy")
_LOSSES = ("forgetting_since_turn_split_half", "forgetting_since_turn", "loss_since_start")


def first_run(frame: pd.DataFrame) -> str:
    """The run that is shown: `main`, else the first."""
    runs = list(dict.fromkeys(frame["run"]))
    return MAIN_RUN if MAIN_RUN in runs else str(runs[0])


@dataclass(frozen=True, eq=False)
class Shown:
    """Rows of the table of probes that the report shows.

    Attributes:
        run: The run.
        metric: The score.
        rows: Of that run and metric, of whole models.
        last: Number of the last stage; None without stages.
    """

    run: str
    metric: str
    rows: pd.DataFrame
    last: int | None

    @classmethod
    def of(cls, probes: pd.DataFrame) -> Shown:
        """Those of the first run."""
        run = first_run(probes)
        measured = set(probes["metric"])
        metric = next((m for m in _METRICS if m in measured), str(probes["metric"].iloc[0]))
        rows = probes[(probes["run"] == run) & (probes["metric"] == metric)]
        if "subnetwork" in rows:
            rows = rows[rows["subnetwork"].fillna("") == ""]
        stages = rows.loc[rows["model"] == "stage", "stage"].astype(float)
        return cls(run, metric, rows, int(stages.max()) if len(stages) else None)

    @property
    def tasks(self) -> list[str]:
        """Tasks of single languages, in order."""
        own = self.rows[self.rows["language"] != ALL]
        return [str(task) for task in dict.fromkeys(own["task"])]

    def at(self, moment: str, task: str) -> pd.DataFrame:
        """Rows of one task at a model: the base, the last stage, or what is a language's own."""
        rows = self.rows[self.rows["task"] == task]
        stage, model = rows["stage"].astype(float), rows["model"]
        own = rows["trained_language"] == rows["language"]
        if moment == BASE:
            return rows[model == "base"]
        if moment == END:
            return rows[
                (model == "stage") & (stage == (math.nan if self.last is None else self.last))
            ]
        if moment == ADAPTER:
            return rows[(model == "adapter") & own]
        # Of a language that was trained twice, the last of its stages.
        chosen = rows[(model == "stage") & own]
        latest: pd.DataFrame = chosen[
            chosen["stage"] == chosen.groupby("language")["stage"].transform("max")
        ]
        return latest

    def moments(self, task: str) -> dict[str, pd.DataFrame]:
        """Models to compare by language, those that there are: base, own, end."""
        own = OWN if len(self.at(OWN, task)) else ADAPTER
        found = {moment: self.at(moment, task) for moment in (BASE, own, END)}
        return {
            moment: rows[rows["language"] != ALL]
            for moment, rows in found.items()
            if rows.loc[rows["language"] != ALL, "score"].notna().any()
        }


def change(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Score after less score before, language by language and layer by layer.

    The interval is that of a difference of independent scores, put together from the intervals of
    both (Zou and Donner 2008): with δ = b − a, from δ − √((b − b_low)² + (a_high − a)²) to
    δ + √((b_high − b)² + (a − a_low)²). Both models are tested on the same items, whose luck they
    share, so that it is too wide rather than too narrow. A model and itself have no change: of the
    language that was trained last, its own stage is the end.

    Returns:
        Columns language, layer, value, ci_low, ci_high; rows in the order of `before`.
    """
    columns = ["language", "layer", "model", "stage", "score", "ci_low", "ci_high"]
    both = before[columns].merge(after[columns], on=["language", "layer"], suffixes=("", "_after"))
    a, a_low, a_high, b, b_low, b_high = (
        both[name].to_numpy(np.float64)
        for name in ("score", "ci_low", "ci_high", "score_after", "ci_low_after", "ci_high_after")
    )
    same = (both["model"] == both["model_after"]) & (both["stage"] == both["stage_after"])
    value = np.where(same, np.nan, b - a)
    return both[["language", "layer"]].assign(
        value=value,
        ci_low=value - np.hypot(b - b_low, a_high - a),
        ci_high=value + np.hypot(b_high - b, a - a_low),
    )


def training_order(probes: pd.DataFrame | None, run: str, labels: Sequence[str]) -> list[str]:
    """The languages in the order in which a run trained them, others behind them as they are.

    Args:
        probes: `CheckpointProbing.probes`.
        run: The run.
        labels: The languages.
    """
    if probes is None or probes.empty:
        return list(labels)
    rows = probes[(probes["run"] == run) & (probes["model"] == "stage")]
    stages = rows.assign(stage=rows["stage"].astype(float)).groupby("trained_language")["stage"]
    last = stages.max()
    return sorted(labels, key=lambda label: float(last.get(label, math.inf)))


@dataclass(frozen=True, eq=False)
class Lost:
    """What each language lost by its scores.

    Attributes:
        metric, measure: What was measured.
        frame: Language to `value, low, high`; positive was lost.
    """

    metric: str
    measure: str
    frame: pd.DataFrame

    @property
    def name(self) -> str:
        """In plain words."""
        since = "the start" if self.measure == "loss_since_start" else "its turn"
        return f"lost since {since} ({self.metric})"

    def of(self, language: str) -> str:
        """A line for one language."""
        if language not in self.frame.index:
            return ""
        row = self.frame.loc[[language], ["value", "low", "high"]].to_numpy(np.float64)[0]
        value, low, high = (float(x) for x in row)
        if not math.isfinite(value):
            return "not measured"
        if not math.isfinite(low):
            return f"lost {_number(value)}"
        return f"lost {_number(value)} [{_number(low)}, {_number(high)}]"


def what_was_lost(forgetting: Forgetting | None, run: str) -> Lost | None:
    """The first measure of forgetting that is known in a run; None where there is none.

    The first metric is `loss` where there is one; without values since the own turn, as of
    languages that were never trained, those since the start are taken.
    """
    if forgetting is None or not forgetting.metrics:
        return None
    frame = forgetting.frame
    metric = "loss" if "loss" in forgetting.metrics else next(iter(forgetting.metrics))
    rows = frame[(frame["metric"] == metric) & (frame["language"] != "") & (frame["run"] == run)]
    for measure in _LOSSES:
        own = rows[(rows["measure"] == measure) & rows["value"].notna()]
        if len(own):
            values = own.set_index("language")[["value", "stderr"]].astype(float)
            limits = [normal_interval(v, s) for v, s in values.itertuples(index=False)]
            low, high = zip(*limits, strict=True)
            return Lost(metric, measure, values[["value"]].assign(low=low, high=high))
    return None


def mean_over_layers(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """`value` and `shuffled`, the mean over the layers that were measured."""
    return frame.groupby(keys, sort=False, as_index=False)[["value", "shuffled"]].mean()


def similarity_moments(similarity: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """Rows at the base and at the last stage of the run that is shown."""
    rows = similarity[similarity["run"] == first_run(similarity)]
    stage = rows["stage"].astype(float)
    found = {BASE: rows[stage == 0], END: rows[(stage == stage.max()) & (stage > 0)]}
    return {moment: part for moment, part in found.items() if part["value"].notna().any()}


def language_table(probing: CheckpointProbing) -> pd.DataFrame:
    """Names of the languages, for the labels of pictures."""
    languages = probing.checkpoint.languages
    return pd.DataFrame(
        {
            "language": [language.label for language in languages],
            "name": [language.name for language in languages],
            "script_name": [language.script_name for language in languages],
        }
    )


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
