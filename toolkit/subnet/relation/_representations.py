"""How alike the base represents two languages, as predictors of what training does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from subnet._tables import MAIN_RUN
from subnet.errors import InputError
from subnet.relation._predictors import Predictor, Tabular, groups_of, matrix_of

#: What a reader calls the measure of a table of probe transfer.
TRANSFER = "probe_transfer"
#: Names of the stage before any language was trained.
_BASE = ("0", "base")
#: Metric of the transfer that is taken: the first that was measured.
_METRICS = ("macro_f1", "accuracy")
_LEVELS = ("all", "layer")


def from_representations(
    given: Tabular | pd.DataFrame | Mapping[str, Tabular | pd.DataFrame], levels: Sequence[str]
) -> list[Predictor]:
    """One predictor for each measure at each of the levels, at the base.

    Args:
        given: A table of similarity (`run, language_a, language_b, layer, measure, value`), one of
            probe transfer (`run, train_language, test_language, layer, metric, score`), or several
            by name; with a column `stage`, only what was measured at stage 0 is taken.
        levels: `all`, the mean over layers, and `layer`.

    Raises:
        InputError: Columns are missing, there is no such level, nothing was measured at the base,
            or a measure stands in two tables.
    """
    unknown = [level for level in levels if level not in _LEVELS]
    if unknown:
        raise InputError(
            f"the level of representations is {', '.join(map(repr, unknown))}",
            expected=f"some of {', '.join(_LEVELS)}",
        )
    found: list[Predictor] = []
    named = given if isinstance(given, Mapping) else {"": given}
    for name, one in named.items():
        frame = one if isinstance(one, pd.DataFrame) else one.to_frame()
        table = f"the table of representations {name}".rstrip()
        rows = _at_base(_tidy(frame, table), table)
        for (measure,), part in groups_of(rows, ["measure"]):
            found += _of_measure(part, measure, levels)
    keys = [predictor.key for predictor in found]
    twice = next((p.measure for p in found if keys.count(p.key) > 1), None)
    if twice is not None:
        raise InputError(
            f"{twice} of representations stands in two tables", fix="give each measure once"
        )
    return found


def check_representations(
    given: Tabular | pd.DataFrame | Mapping[str, Tabular | pd.DataFrame],
) -> None:
    """Tell whether `relate` can take tables as `representations`, before anything is computed.

    Raises:
        InputError: As `from_representations`.
    """
    from_representations(given, ("all",))


def _tidy(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """Columns run, stage, a, b, layer, measure, value; of a transfer one metric."""
    if "train_language" in frame:
        names = {"train_language": "a", "test_language": "b", "score": "value"}
        needed = [*names, "layer", "metric"]
    else:
        names = {"language_a": "a", "language_b": "b"}
        needed = [*names, "layer", "measure", "value"]
    missing = [column for column in needed if column not in frame]
    if missing:
        raise InputError(
            f"{table} has no column {', '.join(missing)}",
            expected="the columns of tables/representation_similarity.csv or probe_transfer.csv",
        )
    rows = frame
    if "train_language" in frame:
        measured = list(dict.fromkeys(frame["metric"].astype(str)))
        metric = next((m for m in _METRICS if m in measured), measured[0] if measured else "")
        rows = frame[frame["metric"].astype(str) == metric].assign(measure=TRANSFER)
        if "task" in rows and len(rows):
            rows = rows[rows["task"] == rows["task"].iloc[0]]
    if "run" not in rows:
        rows = rows.assign(run=MAIN_RUN)
    columns = ["run", "a", "b", "layer", "measure", "value"] + ["stage"] * ("stage" in rows)
    rows = rows.rename(columns=names)[columns].drop_duplicates(
        [column for column in columns if column != "value"]
    )
    return rows.assign(layer=rows["layer"].astype(str), value=rows["value"].astype(np.float64))


def _at_base(rows: pd.DataFrame, table: str) -> pd.DataFrame:
    """Rows measured before any language was trained; all where no stage is told."""
    if "stage" not in rows:
        return rows
    stage = rows["stage"].map(_stage_name)
    chosen: pd.DataFrame = rows[stage.isin(_BASE)]
    if chosen.empty:
        there = ", ".join(dict.fromkeys(stage)) or "none"
        raise InputError(
            f"{table} has no stage 0 (it has {there})",
            expected="rows of the base: what is measured after training is no prediction",
        )
    return chosen


def _stage_name(stage: object) -> str:
    """`0` for 0, 0.0 and "0"."""
    try:
        return f"{float(str(stage)):g}"
    except ValueError:
        return str(stage)


def _of_measure(rows: pd.DataFrame, measure: str, levels: Sequence[str]) -> list[Predictor]:
    kind = TRANSFER if measure == TRANSFER else "representations"
    # A layer at which nothing is defined says nothing; a pair is defined where it is in all others.
    said = rows[rows.groupby("layer")["value"].transform(lambda x: x.notna().any())]
    found = []
    if "all" in levels:
        pairs = said.groupby(["run", "a", "b"], sort=False)["value"].agg(["mean", "count"])
        whole = pairs["mean"].where(pairs["count"] == len(said["layer"].unique()))
        found.append(_predictor(whole.rename("value").reset_index(), kind, measure, "all", ""))
    if "layer" in levels:
        found += [
            _predictor(part, kind, measure, "layer", layer)
            for (layer,), part in groups_of(said, ["layer"])
        ]
    return found


def _predictor(rows: pd.DataFrame, kind: str, measure: str, level: str, layer: str) -> Predictor:
    apart = rows[rows["a"] != rows["b"]]
    matrices = {
        run: matrix_of(part, "a", "b", mirror=True) for (run,), part in groups_of(apart, ["run"])
    }
    return Predictor("representations (base)", kind, measure, level, layer, matrices)
