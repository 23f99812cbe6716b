"""The question that the project exists for: does sharing go with forgetting?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from subnet._statistics import adjust_p_values
from subnet._tables import Provenance, provenance, table
from subnet.errors import InputError, UnknownLanguageError
from subnet.language import parse_language
from subnet.relation._caveats import CAVEATS, caveats
from subnet.relation._controls import control_matrices
from subnet.relation._headline import Headline, missing_headline, write_headline
from subnet.relation._pairs import Matrices, by_run, languages_of
from subnet.relation._predictors import (
    EXPECTED_SIGN,
    HEADLINE_ORDER,
    HYPOTHESES,
    Predictor,
    Tabular,
    for_runs,
    from_influence,
    from_overlap,
    lent_to,
)
from subnet.relation._representations import from_representations
from subnet.relation.association import (
    ALPHA,
    FEWEST_LANGUAGES,
    Association,
    Method,
    associate_many,
)

if TYPE_CHECKING:
    from subnet.forgetting import Forgetting

_METHODS: tuple[Method, ...] = ("mrqap_dsp", "qap")
_OUTCOME = "immediate_effect"


@dataclass(frozen=True)
class Relation:
    """How overlap, influence and representations go with the effects of training.

    Attributes:
        frame: One row per predictor, measure, module and method: the columns of
            `tables/relation.csv`, then `level`, `n_pairs`, `n_runs`, `smallest_p`,
            `expected_sign`, `exact`.
        headline: The answer about the predictor that was chosen in advance.
        notes: What was left out, and why.
        caveats: What to keep in mind when reading any of it.
        provenance: Settings, seed and versions.
    """

    frame: pd.DataFrame
    headline: Headline
    notes: tuple[str, ...]
    caveats: tuple[str, ...]
    provenance: Provenance

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()


def relate(
    forgetting: Forgetting | None,
    *,
    overlap: Tabular | pd.DataFrame | Mapping[str, Tabular | pd.DataFrame] | None = None,
    influence: Tabular | pd.DataFrame | None = None,
    representations: Tabular | pd.DataFrame | Mapping[str, Tabular | pd.DataFrame] | None = None,
    controls: Mapping[str, Matrices] | None = None,
    metric: str | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
    levels: Sequence[str] = ("all", "layer", "module"),
    representation_levels: Sequence[str] = ("all",),
) -> Relation:
    """Relate what training language i did to language j to what the two share.

    The outcome is the directed matrix of immediate effects, R[stage(i), j] − R[stage(i)−1, j],
    positive where j improved; where items are known it rests on half b of them and the baseline
    among the controls on half a, because a baseline is coupled with what is subtracted from it.
    Each predictor is tested on its own by MRQAP with double semi-partialing given the controls, and
    beside it by plain QAP (see `associate`). Several runs are stacked, each with its own intercept,
    and the languages are permuted in all of them together.

    q-values are Benjamini and Hochberg's over all predictors, measures and modules of one method. A
    row is testable when it could reach q ≤ .05 if every test of that family came out as small as
    its data allow: the smallest p-values, corrected in the same way. Below five languages
    nothing is tested.

    The headline is about one predictor, chosen before looking: the first that there is of Jaccard
    of what a step changed with the masks of the others, Jaccard of the masks, cosine of
    steps with the updates of the others, cosine of the updates, mean influence; always over all
    parameters; without any of these, CKA of the base. It says `associated` where q ≤ .05, and says
    so where the interval includes 0 all the same.

    Representations are those of the base, before any language was trained: what is measured after
    training is no prediction of it. Each measure is one test, its mean over the layers, so that
    they add few tests to those that overlap is corrected with; single layers are tested on demand.
    Expected is that languages which the base represents alike help each other.

    A run without masks or updates of its own takes those of the first run (adapters from the base
    do not depend on the order of training), and `notes` says so; without steps, influence or
    representations of its own it is left out of their tests, and `n_runs` and `notes` say so.

    Args:
        forgetting: What was lost; None where there are no scores.
        overlap: An `Overlap`, its table, or several by name. Overlaps of steps with adapters
            (or of masks of the one with masks of the other) are directed, [changed, used].
        influence: An `Influence` or its table.
        representations: Tables of how alike languages are represented, as
            `subnet_probes.language_similarity` and `cross_lingual_transfer` give them; several by
            name. With a column `stage`, rows of stage 0 are taken. Of a transfer it is the score
            of the first task in macro-F1 where that was measured, else in accuracy.
        controls: Matrices [l, l] by name to hold fixed, or one for each run, as `control_matrices`
            makes them; `{}` for none. By default same script, baseline of the receiver (where
            items are known) and position of the donor.
        metric: Metric of the outcome; by default `loss` where it was measured, else the first.
        n_permutations: Permutations per test; all l! where there are no more than that.
        seed: Seed of the permutations.
        levels: Levels of overlap to relate, of `all`, `layer`, `type` and `module`.
        representation_levels: Levels of representations: `all`, the mean over layers, and `layer`.

    Raises:
        InputError: No such metric; matrices that are not usable.

    References:
        Dekker, Krackhardt and Snijders (2007), doi:10.1007/s11336-007-9016-1; Benjamini and
        Hochberg (1995); Guillot and Rousset (2013), doi:10.1111/2041-210x.12018.
    """
    predictors = [] if overlap is None else from_overlap(overlap, levels)
    predictors += [] if influence is None else from_influence(influence)
    if representations is not None:
        predictors += from_representations(representations, representation_levels)
    settings: dict[str, Any] = {
        "outcome": _OUTCOME,
        "n_permutations": n_permutations,
        "levels": list(levels),
        "representation_levels": list(representation_levels),
        "methods": list(_METHODS),
        "alpha": ALPHA,
        "fewest_languages": FEWEST_LANGUAGES,
        "interval": "95 %, delete-one jackknife over languages, Student's t",
        "correction": "Benjamini-Hochberg over predictors, measures and modules, by method",
        "headline_predictor": [" ".join(pair) for pair in HEADLINE_ORDER],
        "hypotheses": dict(HYPOTHESES),
    }
    missing = ["adapters or masks of which to measure the overlap"] * (not predictors)
    if forgetting is None or not forgetting.metrics:
        missing.insert(0, "scores of every language after every stage (scores.csv)")
    if forgetting is None or missing:
        return Relation(
            table("relation", []),
            missing_headline(missing),
            (),
            CAVEATS,
            _provenance(settings, seed),
        )

    metric = _metric(forgetting, metric)
    half = "b" if forgetting.has_halves(metric) else None
    outcome = _outcome(forgetting, metric, half)
    notes: list[str] = []
    if controls is None:
        controls = _own_controls(forgetting, metric, outcome, notes)
    notes += _borrowed(predictors, tuple(outcome))
    rows: list[dict[str, Any]] = []
    used: dict[str, list[str]] = {}
    for runs, group in _by_runs(predictors, tuple(outcome)).items():
        if not runs:
            names = ", ".join(dict.fromkeys(predictor.name for predictor in group))
            notes.append(f"{names} left out: measured in no run that has an outcome")
            continue
        part = {run: outcome[run] for run in runs}
        matrices: dict[str, Matrices] = {p.key: for_runs(p, runs) for p in group}
        held = _usable(controls, part, matrices.values(), notes)
        for method in _METHODS:
            found = associate_many(
                part, matrices, held, method=method, n_permutations=n_permutations, seed=seed
            )
            for predictor in group:
                association = found[predictor.key]
                used[predictor.key] = list(held)
                given = held if method == "mrqap_dsp" else ()
                rows.append(
                    {"outcome": f"{_OUTCOME} ({metric})", "controls": "; ".join(given)}
                    | _row(predictor, association, len(runs))
                )
    _correct(rows)
    frame = table("relation", rows)
    settings |= {"metric": metric, "half": half or "all items", "runs": list(outcome)}
    settings["controls"] = sorted({name for names in used.values() for name in names})
    settings["notes"] = notes = list(dict.fromkeys(notes))
    return Relation(
        frame,
        _headline(frame, predictors, used),
        tuple(notes),
        caveats(forgetting, has_halves=half is not None),
        _provenance(settings, seed),
    )


def _metric(forgetting: Forgetting, metric: str | None) -> str:
    known = list(forgetting.metrics)
    if metric is None:
        return "loss" if "loss" in known else known[0]
    if metric not in known:
        raise InputError(f"there is no metric {metric!r}", expected=f"one of {', '.join(known)}")
    return metric


def _outcome(forgetting: Forgetting, metric: str, half: str | None) -> dict[str, pd.DataFrame]:
    """Run to effect matrix, for the runs in which anything is known."""
    effects = forgetting.effects
    runs = effects.loc[effects["metric"] == metric, "run"].unique()
    found = {str(run): forgetting.effect_matrix(metric, run=run, half=half) for run in runs}
    known = {run: frame for run, frame in found.items() if languages_of([frame], both=False)}
    return known or found


def _own_controls(
    forgetting: Forgetting, metric: str, outcome: Mapping[str, pd.DataFrame], notes: list[str]
) -> dict[str, Matrices]:
    """The controls that labels and scores can give by themselves."""
    labels = [str(label) for label in forgetting.languages]
    languages = []
    for label in labels:
        try:
            languages.append(parse_language(label))
        except UnknownLanguageError:
            notes.append(f"script of {label!r} is not known")
    stages = forgetting.effects[forgetting.effects["trained_language"] != ""]
    position = {
        str(run): dict(zip(rows["trained_language"], rows["stage"].astype(float), strict=True))
        for run, rows in stages.groupby("run")
    }
    found: dict[str, Matrices] = {}
    for name, matrices in control_matrices(
        languages,
        baseline={run: forgetting.baseline(metric, run) for run in outcome},
        position={run: position.get(run, {}) for run in outcome},
    ).items():
        if name == "receiver_baseline" and not forgetting.has_halves(metric):
            notes.append(
                "control receiver_baseline left out: without per-item results it shares its errors "
                "with the effects"
            )
        else:
            found[name] = matrices
    return found


def _by_runs(
    predictors: Iterable[Predictor], runs: tuple[str, ...]
) -> dict[tuple[str, ...], list[Predictor]]:
    """Predictors by the runs in which they can stand beside an outcome."""
    found: dict[tuple[str, ...], list[Predictor]] = {}
    for predictor in predictors:
        found.setdefault(tuple(for_runs(predictor, runs)), []).append(predictor)
    return found


def _borrowed(predictors: Iterable[Predictor], runs: tuple[str, ...]) -> list[str]:
    """Which predictors stand for runs in which they were not measured, and which do not."""
    found = []
    for predictor in predictors:
        lent, own = lent_to(predictor, runs), for_runs(predictor, runs)
        absent = [run for run in runs if run not in own]
        if lent and predictor.matrices:
            first = next(iter(predictor.matrices)).partition("|")[0]
            found.append(f"{predictor.name} of run {first} stand for {', '.join(lent)} too")
        elif absent and own:
            found.append(
                f"{predictor.name}: {', '.join(absent)} left out, where it was not measured"
            )
    return list(dict.fromkeys(found))


def _usable(
    controls: Mapping[str, Matrices],
    outcome: Mapping[str, pd.DataFrame],
    predictors: Iterable[Matrices],
    notes: list[str],
) -> dict[str, Matrices]:
    """Controls that have a value for every pair and are not the same for all; others are noted."""
    frames = [frame for matrices in predictors for frame in by_run(matrices, "overlap").values()]
    measured = set(languages_of(frames))
    languages = [x for x in languages_of(outcome.values(), both=False) if x in measured]
    apart = ~np.eye(len(languages), dtype=bool)
    found: dict[str, Matrices] = {}
    for name, matrices in controls.items():
        every = by_run(matrices, f"control {name!r}")
        per_run = (
            every if isinstance(matrices, pd.DataFrame) else {r: every.get(r) for r in outcome}
        )
        values = [
            np.full((len(languages),) * 2, np.nan)
            if frame is None
            else frame.reindex(index=languages, columns=languages).to_numpy(np.float64)
            for frame in per_run.values()
        ]
        gaps = int(sum(np.isnan(block[apart]).sum() for block in values))
        if gaps:
            pairs = len(values) * int(apart.sum())
            notes.append(f"control {name} left out: no value for {gaps} of {pairs} pairs")
        elif all(np.ptp(block[apart]) == 0 for block in values if apart.any()):
            notes.append(f"control {name} left out: it is the same for every pair")
        else:
            found[name] = matrices
    return found


def _row(predictor: Predictor, association: Association, n_runs: int) -> dict[str, Any]:
    sign = EXPECTED_SIGN.get(predictor.measure, 0)
    return {
        "predictor": predictor.name,
        "measure": predictor.measure,
        "module": predictor.module,
        "method": association.method,
        "estimate": association.estimate,
        "ci_low": association.ci_low,
        "ci_high": association.ci_high,
        "statistic": association.statistic,
        "p_value": association.p_value,
        "n_languages": association.n_languages,
        "n_permutations": association.n_permutations,
        "reason": association.reason,
        "level": predictor.level,
        "n_pairs": association.n_pairs,
        "n_runs": n_runs,
        "smallest_p": association.smallest_p,
        "expected_sign": {-1: "negative", 1: "positive"}.get(sign, ""),
        "exact": association.exact,
    }


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Add q-values and whether a row could reach .05 after the same correction, by method."""
    for method in _METHODS:
        family = [row for row in rows if row["method"] == method]
        p_values = [row["p_value"] for row in family]
        n_tests = int(np.isfinite(p_values).sum())
        q_values = adjust_p_values(p_values)
        smallest_q = adjust_p_values([row["smallest_p"] for row in family])
        for row, q_value, least in zip(family, q_values, smallest_q, strict=True):
            row["q_value"] = float(q_value)
            row["testable"] = bool(least <= ALPHA)
            if least > ALPHA:
                why = f"the smallest p these data can give is {row['smallest_p']:.2g}"
                why += f" (q = {least:.2g} over {n_tests} tests)" * (n_tests > 1)
                row["reason"] = "; ".join(part for part in (row["reason"], why) if part)


def _headline(
    frame: pd.DataFrame, predictors: Sequence[Predictor], used: Mapping[str, Sequence[str]]
) -> Headline:
    """Headline about the first predictor of the order fixed in advance."""
    whole = [p for p in predictors if p.level == "all" and p.key in used]
    places = {pair: place for place, pair in enumerate(HEADLINE_ORDER)}
    if not whole:
        return missing_headline(
            ["overlap over all parameters in a run that has scores after every stage"]
        )
    chosen = min(whole, key=lambda p: places.get((p.kind, p.measure), len(places)))
    tests = frame[frame["method"] == "mrqap_dsp"]
    row = tests[
        (tests["predictor"] == chosen.name)
        & (tests["measure"] == chosen.measure)
        & (tests["level"] == "all")
    ].iloc[0]
    plain = {
        str(key): value.item() if isinstance(value, np.generic) else value
        for key, value in row.items()
    }
    return write_headline(
        plain, chosen.kind, used[chosen.key], corrected=tests["p_value"].count() > 1
    )


def _provenance(settings: Mapping[str, Any], seed: int) -> Provenance:
    return provenance(
        "MRQAP with double semi-partialing (Dekker, Krackhardt and Snijders 2007); QAP beside it",
        settings,
        seed=seed,
        libraries=("numpy", "pandas", "scipy"),
    )
