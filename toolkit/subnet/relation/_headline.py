"""The answer in one sentence, in plain words and with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from subnet.relation.association import ALPHA

State = Literal["associated", "not associated", "not testable", "files missing"]


@dataclass(frozen=True)
class Headline:
    """What the relation comes to.

    Attributes:
        state: `associated`, `not associated`, `not testable` or `files missing`.
        sentence: The same in plain words, with estimate, interval, p and q where there are any.
        row: The row of the relation table that it is about; None where there is none.
    """

    state: State
    sentence: str
    row: Mapping[str, Any] | None


@dataclass(frozen=True)
class _Words:
    noun: str  # "No association between ... and"
    clause: str  # "The more ...,"
    other: str  # who lost


_WORDS: Mapping[str, _Words] = {
    "step_masks": _Words(
        "the overlap of the parameters that training one language changed with what another uses",
        "the parameters that training one language changed overlap with those that another uses",
        "that other language",
    ),
    "masks": _Words(
        "the overlap of the parameters that two languages use",
        "the parameters that two languages use overlap",
        "one",
    ),
    "step_updates": _Words(
        "the agreement of what training one language changed with another's update",
        "what training one language changed points the same way as another's update",
        "that other language",
    ),
    "updates": _Words(
        "the agreement of the updates of two languages",
        "the updates of two languages point the same way",
        "one",
    ),
    "influence": _Words(
        "the influence of one language's examples on another's predictions",
        "the examples of one language lower the loss of another",
        "that other language",
    ),
    "representations": _Words(
        "how alike the base represents two languages",
        "alike the base represents two languages",
        "one",
    ),
    "probe_transfer": _Words(
        "how well a probe of one language's representations in the base reads another's",
        "a probe of one language's representations in the base can read another's",
        "that other language",
    ),
}
_METHOD = "MRQAP with double semi-partialing"


def write_headline(
    row: Mapping[str, Any], kind: str, controls: Sequence[str], *, corrected: bool = True
) -> Headline:
    """Headline about one row of the relation table.

    `associated` needs both: a q-value of at most .05, and an interval on one side of 0. They
    rest on different grounds (other names for the languages; leaving one out), and what hangs on a
    single language should not be a headline.

    Args:
        row: The row, method `mrqap_dsp`.
        kind: Kind of its predictor.
        controls: What was held fixed.
        corrected: Whether the row is one of several tests, so that q says more than p.
    """
    words = _WORDS[kind]
    named = f"{words.noun} ({row['measure']})"
    size = f"{row['n_languages']} languages, {row['n_pairs']} pairs"
    size += f", {row['n_runs']} runs" * (row["n_runs"] > 1)
    if not row["testable"]:
        return Headline(
            "not testable",
            f"Whether {named} goes with what a language loses when another is trained cannot be "
            f"tested on these data ({size}): {row['reason']}.",
            row,
        )
    given = f" given {_listed(controls)}" if controls else ", nothing held fixed"
    q_value = f" (q = {_small(row['q_value'])})" if corrected else ""
    numbers = (
        f"standardised slope {_number(row['estimate'])} "
        f"[{_number(row['ci_low'])}, {_number(row['ci_high'])}], "
        f"p {_equals(row['p_value'])}{q_value}, {size}, {_METHOD}{given}"
    )
    if row["q_value"] <= ALPHA:
        lost = "more" if row["estimate"] < 0 else "less"
        when = " when the other was trained" if words.other == "one" else ""
        sign = "negative" if row["estimate"] < 0 else "positive"
        expected = {sign: " As expected.", "": ""}.get(
            row["expected_sign"], " The opposite was expected."
        )
        return Headline(
            "associated",
            f"The more {words.clause} ({row['measure']}), the {lost} {words.other} lost{when}: "
            f"{numbers}.{expected}{_weakness(row)}",
            row,
        )
    return Headline(
        "not associated",
        f"No association was found between {named} and what a language lost when another was "
        f"trained: {numbers}.",
        row,
    )


def _weakness(row: Mapping[str, Any]) -> str:
    """What the interval has against an association that the permutation test found.

    The interval is the wider of the two: in simulations it covers .95 to .997 of true slopes.
    """
    if not math.isfinite(row["ci_low"]):
        return f" It may hang on one language: {row['reason']}."
    if row["ci_low"] <= 0 <= row["ci_high"]:
        return (
            " The interval, which leaves out one language at a time, includes 0: how strong the "
            "association is, these data do not say."
        )
    return ""


def missing_headline(missing: Sequence[str]) -> Headline:
    """Headline for a relation of which one side or both are not there."""
    return Headline(
        "files missing",
        "Whether sharing goes with forgetting cannot be answered: these files hold no "
        f"{' and no '.join(missing)}.",
        None,
    )


def _listed(names: Sequence[str]) -> str:
    words = [name.replace("_", " ") for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "undefined"
    text = f"{value:.2f}"
    return text.replace("-", "−") if float(text) else "0.00"


def _small(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _equals(value: float) -> str:
    text = _small(value)
    return text if text.startswith("<") else f"= {text}"
