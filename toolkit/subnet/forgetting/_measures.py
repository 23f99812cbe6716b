"""What is measured: each measure as a weighted sum of a language's scores, by its definition.

R[s, j] is the score on language j after stage s, S the last stage, t = stage(j) the stage that
trained j. Scores are signed here so that larger is better, whatever the metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.forgetting._estimates import (
    ALL,
    HALF_A,
    HALF_B,
    Cells,
    Estimates,
    MeanOverLanguages,
    cells_of,
    combine,
    dense,
    divide,
)
from subnet.forgetting._matrix import Array, ScoreMatrix

#: Versions of a measure: itself, divided by the earlier score, by its distance to chance.
SUFFIXES = ("", "_relative", "_relative_to_chance")

#: Measures with one value per language, in the order in which tables give them.
MEASURES = (
    "average_accuracy",
    "backward_transfer",
    "forward_transfer",
    "forgetting",
    "forgetting_split_half",
    "forgetting_since_turn",
    "forgetting_since_turn_split_half",
    "loss_since_start",
    "intransigence",
    "immediate_effect",
    "immediate_effect_given",
    "own_gain",
)


@dataclass(frozen=True)
class Contrast:
    """A measure of one language.

    Attributes:
        weights: Weight of each cell; empty where the definition does not reach this language.
        earlier: Weights (summing to 1) of the score that the relative versions divide by.
        undefined: Why the definition does not reach this language.
        in_mean: Whether the language counts in the mean over languages.
    """

    weights: Mapping[int, float] = field(default_factory=dict)
    earlier: Mapping[int, float] = field(default_factory=dict)
    undefined: str = ""
    in_mean: bool = True


@dataclass(frozen=True)
class Effects:
    """Change of every language at every stage that has one before it: [k, l].

    Attributes:
        stages: [k].
        versions: Version (`""`, `_relative`, `_relative_to_chance`) to effects [k, l].
        stderrs: [k, l], of the plain effects.
        reasons: [k, l], why a plain effect, or else its error, is undefined.
        sources: [k, l], what the error rests on.
    """

    stages: tuple[int, ...]
    versions: Mapping[str, Array]
    stderrs: Array
    reasons: NDArray[np.object_]
    sources: NDArray[np.object_]


def measure(matrix: ScoreMatrix) -> list[dict[str, Any]]:
    """Every measure of every language and its mean over languages, as rows of the table."""
    every = [cells_of(matrix, column) for column in range(len(matrix.languages))]
    units = matrix.n_items + matrix.scores.size
    donors = _donors(matrix, every, units)
    entries: list[dict[str, tuple[Contrast, Sequence[Estimates]]]] = []
    for cells in every:
        contrasts = dict(_contrasts(matrix, cells))
        n = len(cells.values)
        own = _versions(
            matrix,
            combine(dense([c.weights for c in contrasts.values()], n), cells),
            combine(dense([c.earlier for c in contrasts.values()], n), cells),
        )
        found: dict[str, tuple[Contrast, Sequence[Estimates]]] = {
            name: (contrast, [version.row(index) for version in own])
            for index, (name, contrast) in enumerate(contrasts.items())
        }
        found["immediate_effect_given"] = donors[cells.language]
        entries.append(found)

    rows = []
    for name in MEASURES:
        for version, suffix in enumerate(SUFFIXES if name != "average_accuracy" else ("",)):
            label = {"run": matrix.run, "metric": matrix.metric.name, "measure": name + suffix}
            for cells, found in zip(every, entries, strict=True):
                contrast, versions = found[name]
                rows.append(
                    {**label, "language": cells.language}
                    | _row(versions[version], contrast.undefined, 1)
                )
            rows.append(
                {**label, "language": ""}
                | _mean([found[name] for found in entries], version, matrix, units)
            )
    return rows


def effects(matrix: ScoreMatrix, part: int = ALL) -> Effects:
    """Change of every language at every stage, on all items or on one half of them."""
    stages = matrix.stages[1:]
    shape = (len(stages), len(matrix.languages))
    values = {suffix: np.full(shape, np.nan) for suffix in SUFFIXES}
    stderrs = np.full(shape, np.nan)
    reasons, sources = np.full(shape, "", dtype=object), np.full(shape, "", dtype=object)
    rows = [[row] for row in range(1, len(matrix.stages))]
    for column in range(len(matrix.languages)):
        changes = _changes(cells_of(matrix, column), rows, offset=part * len(matrix.scores))
        versions = _versions(matrix, *changes)
        for suffix, version in zip(SUFFIXES, versions, strict=True):
            values[suffix][:, column] = version.values
        stderrs[:, column] = versions[0].stderrs
        reasons[:, column], sources[:, column] = versions[0].reasons, versions[0].sources
    return Effects(stages, values, stderrs, reasons, sources)


def _contrasts(matrix: ScoreMatrix, cells: Cells) -> Iterator[tuple[str, Contrast]]:
    """The measures of one language, but for what it gives to others."""
    n_rows, n_stages, language = len(matrix.scores), len(matrix.stages), cells.language
    first, last = matrix.stages[0], n_stages - 1
    turns = matrix.turns(language)
    own = turns[-1] - first if turns else None  # row of its own turn, the last if it has several
    before = turns[0] - 1 - first if turns else None
    start = 0 if first == 0 else None  # row of the start of the sequence
    only = "only one stage has scores" if n_stages == 1 else ""
    no_turn = (
        only
        or ("" if matrix.trained else "which stage trained which language is not known")
        or (f"{language!r} was not trained in this sequence" if own is None else "")
    )
    no_start = only or (
        "stage 0, the start of the sequence, has no scores" if start is None else ""
    )
    trained_last = f"{language!r} was trained last: no stage came after" if own == last else ""
    trained_first = f"{language!r} was trained first: no stage came before" if 1 in turns else ""

    # In the metric's own direction, not signed: it is a score, no change.
    yield "average_accuracy", Contrast({last: matrix.sign})
    yield "backward_transfer", _difference(last, own, no_turn or trained_last)
    yield "forward_transfer", _difference(before, start, no_turn or no_start or trained_first)
    for suffix, candidates, undefined in (
        ("", range(last), only),
        ("_since_turn", range(own or 0, last), no_turn or trained_last),
    ):
        # Over the languages that something was trained after, as in the average of Chaudhry et al.
        counts = own != last
        yield f"forgetting{suffix}", _lost_from_best(cells, candidates, last, undefined, counts)
        yield (
            f"forgetting{suffix}_split_half",
            _lost_from_best_by_halves(cells, candidates, last, n_rows, undefined, counts),
        )
    yield "loss_since_start", _difference(start, last, no_start, earlier=start)
    joint = n_stages if matrix.has_reference else None
    no_joint = "" if matrix.has_reference else "needs the scores of a jointly trained model"
    yield "intransigence", _difference(joint, own, no_turn or no_joint, earlier=joint)
    others = [
        stage - first
        for stage, other in matrix.trained.items()
        if other != language and stage > first
    ]
    received: dict[int, float] = {}
    for row in others:
        received[row] = received.get(row, 0.0) + 1.0
        received[row - 1] = received.get(row - 1, 0.0) - 1.0
    n = max(1, len(others))
    yield (
        "immediate_effect",
        Contrast(
            {row: weight / n for row, weight in received.items()},
            {row - 1: 1.0 / n for row in others},
            only
            or ("" if matrix.trained else no_turn)
            or ("" if others else "no other language was trained"),
        ),
    )
    no_step = no_turn or (no_start if own == 0 else "")
    yield "own_gain", _difference(own, None if own is None else own - 1, no_step)


def _difference(
    plus: int | None, minus: int | None, undefined: str, *, earlier: int | None = None
) -> Contrast:
    """R[plus] − R[minus], relative to R[minus] unless another score is the earlier one."""
    if undefined or plus is None or minus is None:
        return Contrast(undefined=undefined)
    return Contrast({plus: 1.0, minus: -1.0}, {minus if earlier is None else earlier: 1.0})


def _lost_from_best(
    cells: Cells, candidates: range, last: int, undefined: str, counts: bool
) -> Contrast:
    """Best of the candidates minus R[last]; the error is that of the stage that was picked."""
    if undefined:
        return Contrast(undefined=undefined)
    scores = cells.values[candidates.start : candidates.stop]
    if np.isnan(scores).any():  # names every score that the maximum would need
        return Contrast({**dict.fromkeys(candidates, 1.0), last: -1.0}, in_mean=counts)
    best = candidates.start + int(np.argmax(scores))
    return Contrast({best: 1.0, last: -1.0}, {best: 1.0}, in_mean=counts)


def _lost_from_best_by_halves(
    cells: Cells, candidates: range, last: int, n_rows: int, undefined: str, counts: bool
) -> Contrast:
    """The same with the best stage picked on one half of the items and scored on the other.

    Both directions, averaged. The plain maximum picks the luckiest stage and scores its luck.
    """
    if undefined:
        return Contrast(undefined=undefined)
    weights: dict[int, float] = {}
    earlier: dict[int, float] = {}
    for pick, score in ((HALF_A, HALF_B), (HALF_B, HALF_A)):
        picked = cells.values[pick * n_rows + candidates.start : pick * n_rows + candidates.stop]
        end = score * n_rows + last
        if np.isnan(picked).any():
            missing = {pick * n_rows + row: 1.0 for row in candidates}
            return Contrast({**missing, end: -1.0}, in_mean=counts)
        best = score * n_rows + candidates.start + int(np.argmax(picked))
        weights |= {best: 0.5, end: -0.5}
        earlier[best] = 0.5
    return Contrast(weights, earlier, in_mean=counts)


def _changes(
    cells: Cells, rows: Sequence[Sequence[int]], offset: int = 0
) -> tuple[Estimates, Estimates]:
    """Mean change at each of several sets of rows, and mean score just before: [m]."""
    n = len(cells.values)
    after = dense([{offset + row: 1 / len(some) for row in some} for some in rows], n)
    before = dense([{offset + row - 1: 1 / len(some) for row in some} for some in rows], n)
    return combine(after - before, cells), combine(before, cells)


def _donors(
    matrix: ScoreMatrix, every: Sequence[Cells], units: int
) -> dict[str, tuple[Contrast, Sequence[Estimates]]]:
    """What the training of each language did to the others: mean over them and over its turns."""
    first = matrix.stages[0]
    turns = {
        lang: [s - first for s in matrix.turns(lang) if s > first] for lang in matrix.languages
    }
    donors = {language: rows for language, rows in turns.items() if rows}
    change, before = (MeanOverLanguages(len(donors), units) for _ in range(2))
    for cells in every:
        others = np.array([language != cells.language for language in donors], dtype=bool)
        changes, scores = _changes(cells, list(donors.values()))
        change.add(changes, others)
        before.add(scores, others)
    versions = _versions(matrix, change.estimates(), before.estimates())
    place = {language: row for row, language in enumerate(donors)}
    nothing = _versions(matrix, *_changes(every[0], [[]]))
    found: dict[str, tuple[Contrast, Sequence[Estimates]]] = {}
    for language in matrix.languages:
        undefined = ""
        if len(matrix.stages) == 1:
            undefined = "only one stage has scores"
        elif not matrix.trained:
            undefined = "which stage trained which language is not known"
        elif not matrix.turns(language):
            undefined = f"{language!r} was not trained in this sequence"
        elif language not in donors:
            undefined = "stage 0, the start of the sequence, has no scores"
        elif len(matrix.languages) == 1:
            undefined = "no other language has scores"
        row = place.get(language)
        if undefined or row is None:
            found[language] = (Contrast(undefined=undefined), nothing)
        else:
            found[language] = (Contrast(), [version.row(row) for version in versions])
    return found


def _versions(matrix: ScoreMatrix, change: Estimates, earlier: Estimates) -> list[Estimates]:
    """A change, relative to the earlier score, and relative to its distance to chance."""
    score = earlier.scaled(matrix.sign)
    chance = matrix.metric.chance
    relative = divide(change, score, "the earlier score is not clearly above 0")
    if chance is None:
        unknown = [
            reason or f"the chance level of {matrix.metric.name!r} is not known"
            for reason in change.reasons
        ]
        undefined = np.full_like(change.influence, np.nan)
        to_chance = Estimates(
            np.full_like(change.values, np.nan),
            undefined,
            change.numbers,
            [""] * len(unknown),
            unknown,
        )
    else:
        distance = earlier.scaled(1.0, -matrix.sign * chance)
        better = "above" if matrix.metric.higher_is_better else "below"
        to_chance = divide(
            change, distance, f"the earlier score is not clearly {better} chance ({chance:.4g})"
        )
    return [change, relative, to_chance]


def _row(estimates: Estimates, undefined: str, count: int) -> dict[str, Any]:
    value = float(estimates.values[0])
    return {
        "value": value,
        "stderr": float(estimates.stderrs[0]),
        "reason": undefined or estimates.reasons[0],
        "stderr_from": estimates.sources[0],
        "n": 0 if math.isnan(value) else count,
    }


def _mean(
    entries: Sequence[tuple[Contrast, Sequence[Estimates]]],
    version: int,
    matrix: ScoreMatrix,
    units: int,
) -> dict[str, Any]:
    """The mean over the languages that the definition reaches.

    A score that is missing leaves the mean undefined. A relative version whose denominator is not
    clearly positive leaves its language out, and the reason says so.
    """
    mean = MeanOverLanguages(1, units)
    reasons, left_out, why = [], [], ""
    for language, (contrast, versions) in zip(matrix.languages, entries, strict=True):
        estimate = versions[version]
        if contrast.undefined or not contrast.in_mean:
            reasons.append(contrast.undefined)
        elif np.isnan(estimate.values[0]) and not np.isnan(versions[0].values[0]):
            left_out.append(language)
            why = estimate.reasons[0]
        else:
            mean.add(estimate, np.ones(1, dtype=bool))
    count = int(mean.counts[0])
    row = _row(mean.estimates(), "", count)
    if count == 0:
        reason = why or next(filter(None, reasons), "nothing was trained after it")
        row["reason"] = f"undefined for every language: {reason}"
    elif left_out and not math.isnan(row["value"]):
        names = ", ".join(left_out[:5]) + (" …" if len(left_out) > 5 else "")
        partial = f"mean over {count} of {count + len(left_out)} languages, without {names}: {why}"
        row["reason"] = "; ".join(filter(None, (partial, row["reason"])))
    return row
