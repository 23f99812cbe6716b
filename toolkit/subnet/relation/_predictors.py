"""Matrices of overlap and influence, taken out of their tables under the names of languages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from subnet.errors import InputError


class Tabular(Protocol):
    """A result that knows how to become a tidy table."""

    def to_frame(self) -> pd.DataFrame: ...


#: The sign that the effect on a language is expected to have along each measure. Positive effects
#: are improvements, so −1 says: the more of it, the more is lost.
EXPECTED_SIGN: Mapping[str, int] = {
    "jaccard": -1,
    "dice": -1,
    "overlap_coefficient": -1,
    "containment": -1,
    "subspace_similarity": -1,
    "subspace_similarity_right": -1,
    "principal_angle": 1,  # the larger the angle, the less is shared
    "principal_angle_right": 1,
    "sign_agreement": 1,
    "cosine": 1,
    "mean": 1,
    "share_top_positive": 1,
    "share_bottom_negative": -1,
    "cka": 1,
    "procrustes": 1,
    "svcca": 1,
    "pwcca": 1,
    "cosine_contrast": 1,
    "retrieval": 1,
    "probe_transfer": 1,
}

#: Why those signs.
HYPOTHESES: Mapping[str, str] = {
    "more shared weights, more loss": "jaccard, dice, overlap_coefficient, containment and "
    "subspace_similarity negative; principal_angle positive",
    "changes that agree help": "sign_agreement and cosine positive",
    "examples that lower a language's loss help it": "influence mean and share_top_positive "
    "positive; share_bottom_negative negative",
    "languages that the base represents alike help each other": "cka, procrustes, svcca, pwcca, "
    "cosine, cosine_contrast, retrieval and probe_transfer positive",
}

#: The headline is about the first of these that was measured, whatever comes of it.
HEADLINE_ORDER: tuple[tuple[str, str], ...] = (
    ("step_masks", "jaccard"),
    ("masks", "jaccard"),
    ("step_updates", "cosine"),
    ("updates", "cosine"),
    ("influence", "mean"),
    ("representations", "cka"),
)

#: Kinds that one run lends to those that have none of their own.
_LENT = ("masks", "updates")


@dataclass(frozen=True)
class Predictor:
    """One measure at one place, over all pairs.

    Attributes:
        name: The user's name for where it comes from, or `kind`.
        kind: `step_masks`, `masks`, `step_updates`, `updates` or `influence`; those with `step_`
            compare what training a language changed with what another uses.
        measure: Name of the measure.
        level, module: Where it was measured.
        matrices: Run to matrix [l, l], row = trained, column = evaluated language.
    """

    name: str
    kind: str
    measure: str
    level: str
    module: str
    matrices: Mapping[str, pd.DataFrame]

    @property
    def key(self) -> str:
        """A name of its own among the predictors."""
        return "\n".join((self.name, self.measure, self.level, self.module))


def from_overlap(
    overlap: Tabular | pd.DataFrame | Mapping[str, Tabular | pd.DataFrame], levels: Sequence[str]
) -> list[Predictor]:
    """One predictor for each measure, level and module of one overlap or several named ones."""
    given = overlap if isinstance(overlap, Mapping) else {"": overlap}
    found: list[Predictor] = []
    for name, one in given.items():
        frame = _frame(one, "overlap", ("language_a", "language_b", "level", "module", "measure"))
        if "comparison" in frame:
            frame = frame[frame["comparison"] == "between"]
        if "source" in frame and (frame["source"] == "representations").any():
            raise InputError(
                "the table of overlap holds similarity of representations",
                fix="give it as representations=",
            )
        if frame.empty:
            continue
        # Only where one set is compared with another does a language meet itself.
        directed = bool((frame["language_a"] == frame["language_b"]).any())
        frame = frame[(frame["language_a"] != frame["language_b"]) & frame["level"].isin(levels)]
        source = str(frame["source"].iloc[0]) if len(frame) else ""
        directed = directed or source == "steps"
        kind = ("step_" if directed else "") + ("masks" if source == "masks" else "updates")
        columns = ["measure", "level", "module"]
        for keys, rows in groups_of(frame.fillna({"module": ""}), columns):
            matrices = {
                run: matrix_of(part, "language_a", "language_b", mirror=not directed)
                for (run,), part in groups_of(rows, ["run"])
            }
            measure, level, module = keys
            found.append(Predictor(name or kind, kind, measure, level, module, matrices))
    return found


def from_influence(influence: Tabular | pd.DataFrame) -> list[Predictor]:
    """One predictor for each measure, method, subnetwork and checkpoint."""
    frame = _frame(influence, "influence", ("train_language", "test_language", "measure", "method"))
    frame = frame.fillna({"subnetwork": "", "checkpoint": ""})
    found: list[Predictor] = []
    several = len(frame["checkpoint"].unique()) > 1
    columns = ["measure", "method", "subnetwork", "checkpoint"]
    for (measure, method, subnetwork, checkpoint), rows in groups_of(frame, columns):
        if measure not in EXPECTED_SIGN:
            continue
        name = f"influence ({method})"
        name += f" in subnetwork {subnetwork}" * bool(subnetwork)
        name += f" at {checkpoint}" * several
        matrices = {
            run: matrix_of(part, "train_language", "test_language", mirror=False)
            for (run,), part in groups_of(rows, ["run"])
        }
        found.append(Predictor(name, "influence", measure, "all", "", matrices))
    return found


def for_runs(predictor: Predictor, runs: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The matrix that stands beside the outcome of each run, where there is one.

    Masks and updates of adapters trained from the base do not depend on the order of training, and
    stand for every run that has none of its own (`lent_to` says which). What a step changed, whose
    examples moved whose predictions and what a base represents belongs to its run alone: a run
    without its own is left out. A comparison across two runs belongs to the first.
    """
    matrices = {run.partition("|")[0]: frame for run, frame in predictor.matrices.items()}
    own = {run: matrices[run] for run in runs if run in matrices}
    if predictor.kind not in _LENT:
        return own
    return {run: own.get(run, next(iter(matrices.values()))) for run in runs}


def lent_to(predictor: Predictor, runs: Sequence[str]) -> list[str]:
    """Runs beside whose outcome the predictor of another run stands."""
    own = {run.partition("|")[0] for run in predictor.matrices}
    return [run for run in runs if run not in own] if predictor.kind in _LENT else []


def _frame(given: Tabular | pd.DataFrame, name: str, needed: Sequence[str]) -> pd.DataFrame:
    frame = given if isinstance(given, pd.DataFrame) else given.to_frame()
    missing = [column for column in (*needed, "run", "value") if column not in frame]
    if missing:
        raise InputError(
            f"the table of {name} has no column {', '.join(missing)}",
            expected=f"the columns of tables/{name}.csv",
        )
    return frame


def groups_of(
    frame: pd.DataFrame, columns: list[str]
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    for keys, rows in frame.groupby(columns, sort=False):
        yield tuple(map(str, keys)), rows


def matrix_of(rows: pd.DataFrame, row: str, column: str, *, mirror: bool) -> pd.DataFrame:
    """[l, l] from one row per pair and null model; an undirected measure stands there once."""
    rows = rows.drop_duplicates([row, column])
    labels = list(dict.fromkeys([*rows[row], *rows[column]]))
    place = {label: index for index, label in enumerate(labels)}
    values = np.full((len(labels), len(labels)), np.nan)
    i, j = rows[row].map(place).to_numpy(int), rows[column].map(place).to_numpy(int)
    values[i, j] = rows["value"].to_numpy(np.float64)
    present = np.zeros(values.shape, dtype=bool)
    present[i, j] = True
    if mirror and not (present & present.T).any():
        values = np.where(present.T, values.T, values)
    return pd.DataFrame(values, index=labels, columns=labels)
