"""The main numbers of a probed checkpoint, for `summary.json`, the terminal and the methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from subnet.report import has_rows
from subnet_probes.report_selection import (
    ALL,
    BASE,
    END,
    OWN,
    Shown,
    change,
    first_run,
    similarity_moments,
)

if TYPE_CHECKING:
    from subnet_probes.checkpoint_probing_result import CheckpointProbing

_VALUES = ("score", "majority", "random_labels", "control")
_MOMENTS = {BASE: "base", END: "end"}

METHODS = (
    "Linear probes of hidden states were scored on held-out items beside the most frequent label, "
    "permuted labels and a control task (Hewitt and Liang, 2019); representations of two languages "
    "were compared on parallel items by unbiased linear CKA (Kornblith et al., 2019) and retrieval "
    "under CSLS (Conneau et al., 2018), each beside its value with shuffled rows."
)
BIBTEX = """\
@inproceedings{hewitt2019designing,
  author    = {Hewitt, John and Liang, Percy},
  title     = {Designing and Interpreting Probes with Control Tasks},
  booktitle = {EMNLP}, year = {2019}, eprint = {1909.03368}, archiveprefix = {arXiv}
}
@inproceedings{kornblith2019similarity,
  author    = {Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey},
  title     = {Similarity of Neural Network Representations Revisited},
  booktitle = {ICML}, year = {2019}, eprint = {1905.00414}, archiveprefix = {arXiv}
}
@inproceedings{conneau2018word,
  author    = {Conneau, Alexis and others},
  title     = {Word Translation Without Parallel Data},
  booktitle = {ICLR}, year = {2018}, eprint = {1710.04087}, archiveprefix = {arXiv}
}
"""


def summary(probing: CheckpointProbing) -> dict[str, Any]:
    """Numbers of the run that the report shows; the keys are documented in `docs/outputs.md`."""
    found: dict[str, Any] = {
        "run": None, "metric": None, "layer": None, "tasks": {}, "changes": {}, "similarity": {},
        "drift": {},
    }  # fmt: skip
    if has_rows(probing.probes):
        found |= _of_probes(Shown.of(probing.probes))
    if has_rows(probing.similarity):
        for moment, rows in similarity_moments(probing.similarity).items():
            for measure, part in rows.groupby("measure", sort=False):
                numbers = found["similarity"].setdefault(str(measure), {})
                numbers[_MOMENTS[moment]] = _means(part, ("value", "shuffled"))
    if has_rows(probing.drift):
        rows = probing.drift[probing.drift["run"] == first_run(probing.drift)]
        found["drift"] = {
            str(measure): _means(part, ("value", "shuffled"))
            for measure, part in rows.groupby("measure", sort=False)
        }
    return found


def key_numbers(numbers: dict[str, Any]) -> list[str]:
    """A line for each part of the summary that a reader looks for first."""
    lines = []
    for task, moments in numbers["tasks"].items():
        name = "language identity" if task == "language" else f"{task}s"
        parts = [
            f"{_short(values['score'])} at the {moment}, by the most frequent label "
            f"{_short(values['majority'])}"
            for moment, values in moments.items()
        ]
        metric = numbers["metric"].replace("_", " ").replace("f1", "F1")
        lines.append(f"probe of {name} at the last layer ({metric}): {'; '.join(parts)}")
    for task, values in numbers["changes"].items():
        lines.append(
            f"change of the probe score of {task}s from a language's own stage to the end, last "
            f"layer: {_short(values['value'], signed=True)} on average, below 0 by its interval "
            f"for {values['below']} of {values['languages']} languages"
        )
    for measure, moments in numbers["similarity"].items():
        parts = [
            f"{_short(values['value'])} at the {moment} (shuffled {_short(values['shuffled'])})"
            for moment, values in moments.items()
        ]
        name = "CKA" if measure == "cka" else measure
        lines.append(f"{name} of the representations of two languages: {', '.join(parts)}")
    return lines


def _of_probes(shown: Shown) -> dict[str, Any]:
    last = str(shown.rows["layer"].iloc[-1])
    found: dict[str, Any] = {"run": shown.run, "metric": shown.metric, "layer": last}
    tasks: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for task in dict.fromkeys(shown.rows["task"]):
        for moment, name in _MOMENTS.items():
            rows = shown.at(moment, str(task))
            rows = rows[
                (rows["layer"] == last) & ((rows["language"] == ALL) == (task == "language"))
            ]
            if rows["score"].notna().any():
                numbers = _means(rows, _VALUES) | {"languages": int(rows["score"].notna().sum())}
                if task == "language":
                    numbers = _means(rows, (*_VALUES, "ci_low", "ci_high"))
                tasks.setdefault(str(task), {})[name] = numbers
        own, end = shown.at(OWN, str(task)), shown.at(END, str(task))
        moved = change(own, end)
        moved = moved[(moved["layer"] == last) & moved["value"].notna()]
        if len(moved):
            changes[str(task)] = {
                "value": float(moved["value"].mean()),
                "below": int((moved["ci_high"] < 0).sum()),
                "above": int((moved["ci_low"] > 0).sum()),
                "languages": len(moved),
            }
    return found | {"tasks": tasks, "changes": changes}


def _means(rows: pd.DataFrame, columns: tuple[str, ...]) -> dict[str, float]:
    return {column: float(rows[column].astype(float).mean()) for column in columns}


def _short(value: float, *, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.3f}".replace("-", "−")
