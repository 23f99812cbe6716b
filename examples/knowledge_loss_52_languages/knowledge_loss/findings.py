"""The answers in words, each with its interval; what is not told apart is said to be so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from knowledge_loss.answers import HEADLINE_METRIC, HEADLINES, WITHIN, Answers, headline
from knowledge_loss.design import HEADLINE_CELL
from knowledge_loss.reading import DONOR_APART, Study

ALPHA = 0.05
#: Above this the difference between the groups hardly stands by itself.
COLLINEAR = 5.0

_CLAIM = {
    "receiver": ("non-Latin-script languages lose more", "Latin-script languages lose more"),
    "donor": (
        "Latin-script languages help the others more",
        "non-Latin-script languages help the others more",
    ),
}
_WHAT = {
    "receiver": "Rise in loss since a language's own turn (other scripts minus Latin)",
    "donor": "Mean fall of the others' loss when a language is trained (Latin minus other scripts)",
}
_UNIT = {"loss": " nats", "accuracy": "", "macro_f1": ""}


def differs(row: Any, *, corrected: bool) -> bool:
    """Whether p (or q) over languages is at most .05 and their interval lies on one side of 0."""
    level = row["q_value"] if corrected else row["p_value"]
    return bool(level <= ALPHA and (row["ci_low"] > 0 or row["ci_high"] < 0))


def is_finding(row: Any, *, corrected: bool) -> bool:
    """Whether it differs over languages, and over orders lies on the same side of 0.

    With a single order there is no second interval, and languages decide alone; where one of
    several has no value, the interval is undefined, and nothing is found.
    """
    same = row["orders_low"] > 0 if row["value"] > 0 else row["orders_high"] < 0
    return differs(row, corrected=corrected) and bool(same or row["n_orders"] == 1)


def verdict(row: Any, role: str, *, corrected: bool = False) -> str:
    """Whether the published direction appears, in words."""
    published, opposite = _CLAIM[role]
    if not math.isfinite(row["value"]):
        return f"Undefined: {row['reason']}."
    if not differs(row, corrected=corrected):
        return f"No finding: whether {published} cannot be said from this run."
    if not is_finding(row, corrected=corrected):
        seen = published if row["value"] > 0 else opposite
        return f"No finding beyond these runs: in them {seen}; over orders it may be otherwise."
    if row["value"] > 0:
        return f"The published direction appears: {published}."
    return f"The opposite of the published direction appears: {opposite}."


def write_findings(study: Study, answers: Answers) -> str:
    """Everything that was found, as Markdown."""
    return "\n\n".join([*_what_was_run(study), *_headlines(answers), *_others(answers),
                        *_sharing(answers), *_explained(study, answers)]) + "\n"  # fmt: skip


def _what_was_run(study: Study) -> Iterator[str]:
    s: Any = study.settings
    latin = int(study.languages["latin"].sum())
    cells = list(dict.fromkeys(study.outcomes["cell"]))
    runs = len(study.orders)
    gain = study.outcomes[
        (study.outcomes["measure"] == "own_gain") & (study.outcomes["cell"] == HEADLINE_CELL)
    ].groupby("metric")["value"].mean()  # fmt: skip
    model = s["model"]
    name = Path(model["name"])
    size = (name.name if name.is_absolute() else model["name"]) or (
        f"{model['layers']} layers of width {model['width']}, byte-level, from random weights"
    )
    yield (
        f"{len(study.languages)} languages ({latin} in Latin script, "
        f"{len(study.languages) - latin} in others), {runs} runs (orders × seeds) of each of "
        f"{', '.join(f'`{cell}`' for cell in cells)}; {s['data']['source']} data, "
        f"{study.languages['train_examples'].mean():.0f} training and "
        f"{study.languages['test_examples'].mean():.0f} test examples per language on average; "
        f"model: {size}; {s['base']['steps']} steps on all languages together, then "
        f"{s['training']['steps']} steps of {s['training']['batch_size']} for each language in "
        "turn."
    )
    gains = ", ".join(f"{_signed(value)} {metric}" for metric, value in gain.items())
    yield (
        f"A language's own turn improves it by {gains} on average in `{HEADLINE_CELL}` (loss in "
        "nats, signed so that positive is better)."
    )


def _headlines(answers: Answers) -> Iterator[str]:
    yield "**Headlines**, stated before the run, one each, position in the order held fixed:"
    for role in HEADLINES:
        row = headline(answers, role)
        yield (
            f"- {role.capitalize()}s. {verdict(row, role)} {_WHAT[role]} in "
            f"`{HEADLINE_CELL}`: {_numbers(row, HEADLINE_METRIC)}, p = {_p(row['p_value'])}, "
            f"{row['n_members']} against {row['n_others']} languages, permutation over languages"
            f"{_over_orders(row)}."
        )


def _others(answers: Answers) -> Iterator[str]:
    rest = answers.groups[~answers.groups["headline"]]
    tested = rest[rest["p_value"].notna()]
    apart = tested[[differs(row, corrected=True) for _, row in tested.iterrows()]]
    found = tested[[is_finding(row, corrected=True) for _, row in tested.iterrows()]]
    with_it = found[found["value"] > 0]
    yield (
        f"**All other outcomes** (loss, accuracy, macro-F1; absolute, relative to the earlier "
        f"score and to its distance to chance; every cell): of {len(tested)} tested, {len(apart)} "
        f"differ between the groups at q ≤ {ALPHA} over languages (Benjamini–Hochberg); "
        f"{len(found)} of these do so over orders too, {len(with_it)} in the published direction. "
        f"Those on `{HEADLINE_CELL}`, absolute and relative:"
    )
    here = answers.groups[answers.groups["cell"] == HEADLINE_CELL]
    stated = [
        measure.startswith(HEADLINES[role]) or measure == DONOR_APART
        for measure, role in zip(here["measure"], here["role"], strict=True)
    ]
    yield _table(here[stated], ("role", "metric", "measure"))
    yield (
        f"`{DONOR_APART}` is what a donor did to languages in neither Latin script nor its own: "
        "the same languages for all donors, and none that writes alike. Where Latin languages help "
        "more by `helped_others` and not by it, they help one another."
    )


def _sharing(answers: Answers) -> Iterator[str]:
    yield (
        "**Does the sharing regime or the rank change it?** Languages are paired between the two "
        "cells. `mean`: how much more is lost (receivers) or others are helped (donors) in the "
        "first cell; `group`: how much the difference between the scripts differs. "
        "`equal = score`: at equal score just after the own turn, by holding the difference of "
        "that score fixed at 0. Where nothing is shared nothing can be lost: `none` is 0 by "
        "construction. As donors, `none` and `partial` are compared with the start, those of "
        "`full` with the stage before. p, q and the first interval say what other languages could "
        "have given in these very runs; a difference between two ways of training must also hold "
        "over orders. A row without q is a headline again."
    )
    rows = answers.contrasts[answers.contrasts["metric"] == HEADLINE_METRIC]
    yield _table(rows, ("first", "second", "role", "equal", "of"))


def _explained(study: Study, answers: Answers) -> Iterator[str]:
    yield (
        "**How much remains given what else differs?** The headline's difference with covariates "
        "held fixed (Freedman–Lane permutation over languages); VIF: how many times its variance "
        "grows because the covariates follow from the script."
    )
    rows = answers.ladder[
        (answers.ladder["metric"] == HEADLINE_METRIC)
        & answers.ladder["measure"].isin(HEADLINES.values())
    ]
    yield _table(rows[rows["given"] != WITHIN], ("role", "given"), extra="variance_inflation")
    for _, row in rows[rows["given"] == WITHIN].iterrows():
        yield (
            f"Within the other scripts, where bytes differ and Latin script does not, "
            f"{row['role']}s of about three bytes per character differ from those of about two by "
            f"{_numbers(row, HEADLINE_METRIC)}, p = {_p(row['p_value'])}, q = {_p(row['q_value'])} "
            f"({row['n_members']} against {row['n_others']} languages, position held fixed)."
        )
    yield _collinearity(study, answers)


def _collinearity(study: Study, answers: Answers) -> str:
    bytes_of = study.languages["bytes_per_character"]
    latin = study.languages["latin"]
    inflation = answers.inflation.set_index("variable")["variance_inflation"]
    constant = [name for name, value in inflation.items() if math.isnan(value)]
    text = (
        f"Latin script takes {bytes_of[latin].min():.2f}–{bytes_of[latin].max():.2f} bytes per "
        f"character here, the others {bytes_of[~latin].min():.2f}–{bytes_of[~latin].max():.2f}"
    )
    apart = bytes_of[latin].max() < bytes_of[~latin].min()
    if apart:
        text += " without any overlap"
    text += f"; VIF of script given everything else: {inflation['latin']:.1f}."
    if apart or inflation["latin"] > COLLINEAR:
        text += (
            " So script and bytes per character cannot be told apart: the row that holds bytes "
            "fixed extrapolates a straight line over the gap, and its interval says only how that "
            "line fits."
        )
    if constant:
        names = " and ".join(name.replace("_", " ") for name in constant)
        text += f" Constant by design over these languages, so nothing to hold fixed: {names}."
    return text


def _table(rows: pd.DataFrame, labels: Sequence[str], *, extra: str = "") -> str:
    heads = [
        *labels, "n", "difference", "95 % over languages", "p", "q", "95 % over orders",
        *(["VIF"] if extra else []),
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for _, row in rows.iterrows():
        interval = _interval(row, "ci") or row["reason"]
        cells = [str(row[label]) for label in labels]
        cells += [_count(row), _signed(row["value"]), interval, _p(row["p_value"]), _q(row)]
        cells.append(_interval(row, "orders"))
        cells += [f"{row[extra]:.1f}" if extra and math.isfinite(row[extra]) else ""] * bool(extra)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _count(row: Any) -> str:
    """Languages of each group, or of both together."""
    members, others = int(row["n_members"]), int(row["n_others"])
    return f"{members}, {others}" if others else str(members)


def _interval(row: Any, name: str) -> str:
    low, high = float(row[f"{name}_low"]), float(row[f"{name}_high"])
    return f"[{_signed(low)}, {_signed(high)}]" if math.isfinite(low) else ""


def _over_orders(row: Any) -> str:
    interval = _interval(row, "orders")
    return f"; over orders {interval}" if interval else ""


def _q(row: Any) -> str:
    return "headline" if row.get("headline") is True else _p(row["q_value"])


def _numbers(row: Any, metric: str) -> str:
    if not math.isfinite(row["value"]):
        return str(row["reason"])
    return f"{_signed(row['value'])}{_UNIT.get(metric, '')} {_interval(row, 'ci')}"


def _signed(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    digits = 3 if abs(value) < 0.9995 else 2
    if 0 < abs(value) < 0.0095:
        digits = 4
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if any(c in "123456789" for c in text) else text.lstrip("+−")


def _p(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


START, END = "<!-- results -->", "<!-- end of results -->"


def write_readme(readme: Path, text: str) -> None:
    """Put the findings between the markers of a README."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n\n{text}\n{END}{after}", encoding="utf-8")
