"""Whether removing a language's subnetwork hurts that language in particular.

Removing anything hurts, and some languages are hurt by everything. So what a mask does to its own
language is compared with what it does to the others, and both with what random masks do there: the
difference of these differences is what is tested. Two things could have come out otherwise, which
examples were looked at and which random masks were drawn; a mask has to stand out against both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet._statistics import CONFIDENCE, adjust_p_values
from subnet.validation._intervals import N_RESAMPLES, Resampling
from subnet.validation._permutations import N_PERMUTATIONS, TIE, relabelled, sign_flip

ALPHA = 0.05
#: Fewest random masks of a language with which a mask is compared.
FEWEST_MASKS = 3


@dataclass(frozen=True, eq=False)
class Effects:
    """Change of the loss where one language's mask, or a random one, is removed.

    Attributes:
        language: Whose mask.
        removed: Test language to [n], per example.
        random: Test language to [seeds, n].
        concepts: Test language to what its examples say, where all languages say the same.
    """

    language: str
    removed: Mapping[str, NDArray[np.float64]]
    random: Mapping[str, NDArray[np.float64]]
    concepts: Mapping[str, Sequence[str]] | None


def specificity(
    effects: Sequence[Effects], *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per language, and one over all of them.

    Args:
        effects: Of the masks of one run.
        seed: Seed of permutations and resamples.

    Returns:
        Rows as `Ablation.specificity` describes them, and a row of `Ablation.overall`.
    """
    rows = [_row(effect, seed) for effect in effects]
    nulls = [_contrasts(effect) for effect in effects]
    _against_random(rows, nulls)
    for row in rows:
        row["p_value"] = _larger(row["p_examples"], row["p_random"])
        row["smallest_p"] = _larger(row.pop("_smallest"), row.pop("_smallest_random"))
    q_values = adjust_p_values([row["p_value"] for row in rows])
    least = adjust_p_values([row["smallest_p"] for row in rows])
    for row, q, reachable in zip(rows, q_values, least, strict=True):
        row["q_value"] = float(q)
        row["testable"] = bool(reachable <= ALPHA)  # NaN is not
        row["specific"] = bool(row["testable"] and q <= ALPHA and row["own"] > 0)
        if not row["reason"] and not row["testable"]:
            row["reason"] = f"these data can give no q-value below {reachable:.2g}"
    return rows, _overall(nulls, seed)


def _larger(first: float, second: float) -> float:
    """The larger of two p-values: both claims are made together. Undefined where one is."""
    return math.nan if math.isnan(first) or math.isnan(second) else max(first, second)


def _row(effect: Effects, seed: int) -> dict[str, Any]:
    """Everything about one language but what needs the others' random masks."""
    own = effect.language
    others = [label for label in effect.removed if label != own]
    nan = math.nan
    row: dict[str, Any] = {
        "language": own, "own": nan, "others": nan, "random_own": nan, "random_others": nan,
        "value": nan, "ci_low": nan, "ci_high": nan, "p_examples": nan, "_smallest": nan,
        "n": 0, "n_others": len(others), "paired": False, "reason": "",
    }  # fmt: skip
    if own not in effect.removed or not effect.removed[own].size:
        return {**row, "reason": f"no test example of {own}"}
    if not others:
        return {**row, "reason": "there is no other language to compare with"}
    first = effect.random[own]
    row |= {
        "own": float(effect.removed[own].mean()),
        "others": _mean(effect.removed, others),
        "n": int(effect.removed[own].size),
    }
    if len(first) == 0:
        return {**row, "reason": "there is no random mask to compare with"}
    means = {label: values.mean(axis=0) for label, values in effect.random.items()}
    excess = {label: values - means[label] for label, values in effect.removed.items()}
    row |= {
        "random_own": float(means[own].mean()),
        "random_others": _mean(means, others),
        "value": float(excess[own].mean()) - _mean(excess, others),
    }
    if not math.isfinite(row["value"]):
        return {**row, "value": nan, "reason": "some losses are no numbers"}
    if effect.concepts is not None:
        differences = _by_concept(excess, effect.concepts, own, others)
        low, high = Resampling(len(differences), seed).interval(differences)
        p, smallest = sign_flip(differences, seed)
        return {
            **row, "ci_low": low, "ci_high": high, "p_examples": p, "_smallest": smallest,
            "paired": True,
        }  # fmt: skip
    rest = [excess[label] for label in others]
    low, high = _unpaired_interval(excess[own], rest, seed)
    p, smallest = relabelled(excess[own], rest, seed)
    return {**row, "ci_low": low, "ci_high": high, "p_examples": p, "_smallest": smallest}


def _contrasts(effect: Effects) -> NDArray[np.float64]:
    """Own mean change minus the others': of the mask, then of every random mask; empty if unknown.

    What a language loses to any mask whatever is in all of them alike.
    """
    own = effect.language
    others = [label for label in effect.removed if label != own]
    if own not in effect.removed or not effect.removed[own].size or not others:
        return np.zeros(0)
    found = float(effect.removed[own].mean()) - _mean(effect.removed, others)
    by_seed = {label: values.mean(axis=1) for label, values in effect.random.items()}
    random = by_seed[own] - np.mean([by_seed[label] for label in others], axis=0)
    contrasts = np.array([found, *random])
    return contrasts if np.isfinite(contrasts).all() else np.zeros(0)


def _against_random(rows: list[dict[str, Any]], nulls: Sequence[NDArray[np.float64]]) -> None:
    """The p-value of each mask among random ones.

    Each language's contrast is taken in standard deviations of its random masks; each random mask
    likewise, of the language's other random masks. What random masks of all languages give together
    is the null, so that a few per language suffice: it takes languages to be alike in that scale.
    """
    known = [values for values in nulls if len(values) > FEWEST_MASKS]
    spread = math.sqrt(np.mean([values[1:].var(ddof=1) for values in known])) if known else 0.0
    null = np.array(
        [
            _standardised(values[1 + i], np.delete(values[1:], i), spread)
            for values in known
            for i in range(len(values) - 1)
        ]
    )
    for row, values in zip(rows, nulls, strict=True):
        row["n_random"] = max(len(values) - 1, 0)
        row["n_random_as_large"] = int((values[1:] >= values[:1]).sum()) if len(values) else 0
        row["p_random"] = row["_smallest_random"] = math.nan
        if len(values) > FEWEST_MASKS:
            z = _standardised(values[0], values[1:], spread)
            row["p_random"] = (1 + int((null >= z - TIE).sum())) / (1 + len(null))
            row["_smallest_random"] = 1 / (1 + len(null))
        elif not row["reason"]:
            row["reason"] = f"fewer than {FEWEST_MASKS} random masks to compare with"


def _standardised(value: float, among: NDArray[np.float64], spread: float) -> float:
    """(value − mean of a few) / (their sd + spread).

    The common spread is added for the reason that Tusher et al. (2001) add theirs: of a few values
    the sd is small by chance now and then, or zero.
    """
    distance = float(value - among.mean())
    scale = float(among.std(ddof=1)) + spread
    if scale > 0:
        return distance / scale
    size = max(float(np.abs(among).max()), abs(float(value)))
    return 0.0 if abs(distance) <= TIE * size else math.copysign(math.inf, distance)


def _overall(nulls: Sequence[NDArray[np.float64]], seed: int) -> dict[str, Any]:
    """Whether the masks stand out all together, each among its own random masks.

    The mean over languages of contrast / sd; the null takes, in every language, one of the mask and
    its random masks for the mask. Exact where there are at most 9999 ways.
    """
    known = [values for values in nulls if len(values) > 1]
    row: dict[str, Any] = dict.fromkeys(("value", "p_value", "smallest_p"), math.nan)
    row |= {"n_languages": len(known), "reason": ""}
    if not known:
        return {**row, "reason": "no language has a mask, random masks and another language"}
    excess = [values[0] - values[1:].mean() for values in known]
    row["value"] = float(np.mean(excess))
    scaled = [
        (values - values.mean()) / (values.std() if np.ptp(values) > 0 else 1) for values in known
    ]
    ways = math.prod(len(values) for values in scaled)
    observed = sum(values[0] for values in scaled)
    if ways <= N_PERMUTATIONS:
        drawn = np.array([sum(choice) for choice in itertools.product(*scaled)])
        p = float((drawn >= observed - TIE).mean())
        smallest = 1 / ways
    else:
        rng = np.random.default_rng(seed)
        drawn = sum(
            (rng.choice(values, size=N_PERMUTATIONS) for values in scaled),
            start=np.zeros(N_PERMUTATIONS),
        )
        p = (1 + int((drawn >= observed - TIE).sum())) / (1 + N_PERMUTATIONS)
        smallest = 1 / (1 + N_PERMUTATIONS)
    reason = "" if smallest <= ALPHA else f"these masks can give no p-value below {smallest:.2g}"
    return {**row, "p_value": p, "smallest_p": smallest, "reason": reason}


def _by_concept(
    excess: Mapping[str, NDArray[np.float64]],
    concepts: Mapping[str, Sequence[str]],
    own: str,
    others: Sequence[str],
) -> NDArray[np.float64]:
    """[n]: for each concept, the own language's value minus the mean of the others'."""
    tables = {
        label: dict(zip(concepts[label], excess[label].tolist(), strict=True))
        for label in (own, *others)
    }
    return np.array(
        [
            value - np.mean([tables[label][concept] for label in others])
            for concept, value in tables[own].items()
        ]
    )


def _unpaired_interval(
    own: NDArray[np.float64], others: Sequence[NDArray[np.float64]], seed: int
) -> tuple[float, float]:
    """Percentile bootstrap of the mean minus the mean of the others' means."""
    if len(own) < 2 or any(len(values) < 2 for values in others):
        return (math.nan, math.nan)
    rng = np.random.default_rng(seed)

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        times = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), N_RESAMPLES)
        return np.asarray(times @ values / len(values))

    drawn = means(own) - np.mean([means(values) for values in others], axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return (float(low), float(high))


def _mean(values: Mapping[str, NDArray[np.float64]], labels: Sequence[str]) -> float:
    """Mean over languages of the mean over examples."""
    return float(np.mean([values[label].mean() for label in labels]))
