"""What else two languages have in common, as matrices to hold fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from subnet.language import Language
from subnet.relation._pairs import Matrices

#: A value for each language, or one such mapping for each run.
Attribute: TypeAlias = (
    "Mapping[str, float] | pd.Series[float] | Mapping[str, Mapping[str, float] | pd.Series[float]]"
)


def control_matrices(
    languages: Iterable[Language],
    families: Mapping[str, str] | None = None,
    *,
    baseline: Attribute | None = None,
    position: Attribute | None = None,
    examples: Attribute | None = None,
    bytes_per_character: Mapping[str, float] | None = None,
    shared_tokens: pd.DataFrame | None = None,
) -> dict[str, Matrices]:
    """Controls for `relate`, each a matrix [l, l] trained language × evaluated language.

    Args:
        languages: The languages; `same_script` is 1 where two have one script, else 0.
        families: Family by label: `same_family`, 1 or 0, NaN where one of the two is not known.
        baseline: Score of each language before the sequence, on *other items than the outcome*
            (`Forgetting.baseline`): `receiver_baseline`, that of the evaluated language.
        position: Place in the order of training: `donor_position`, that of the trained language. A
            language that was only evaluated has none and stands at the mean: no outcome meets it.
        examples: Training examples by language: `donor_examples`, log of those of the trained one.
        bytes_per_character: By language: `bytes_per_character_difference`, the absolute difference.
        shared_tokens: [l, l], how alike the tokens of two languages are: `shared_tokens`.

    Returns:
        Matrices by name. `baseline`, `position` and `examples` may be given per run (run to
        language to value) and are then a matrix for each run. Diagonals are NaN.

    Example:
        >>> from subnet.language import parse_language
        >>> languages = [parse_language(label) for label in ("de", "en", "ru")]
        >>> control_matrices(languages)["same_script"].loc["de"].tolist()
        [nan, 1.0, 0.0]
    """
    languages = list(languages)
    labels = [language.label for language in languages]
    scripts = {language.label: language.script for language in languages}
    found: dict[str, Matrices] = {"same_script": _same(labels, scripts)}
    if families:
        found["same_family"] = _same(labels, families)
    if baseline is not None:
        found["receiver_baseline"] = _each_run(baseline, lambda x: _of_evaluated(labels, x))
    if position is not None:
        found["donor_position"] = _each_run(position, lambda x: _positions(labels, x))
    if examples is not None:
        found["donor_examples"] = _each_run(examples, lambda x: _of_trained(labels, _logs(x)))
    if bytes_per_character is not None:
        difference = _of_trained(labels, bytes_per_character) - _of_evaluated(
            labels, bytes_per_character
        )
        found["bytes_per_character_difference"] = difference.abs()
    if shared_tokens is not None:
        found["shared_tokens"] = shared_tokens.reindex(index=labels, columns=labels).astype(float)
    return found


def _same(labels: list[str], groups: Mapping[str, str]) -> pd.DataFrame:
    """1 where two languages are in one group, 0 where they are not, NaN where one has none."""
    names = np.array([groups.get(label) or "" for label in labels], dtype=object)
    same = (names[:, None] == names[None, :]).astype(np.float64)
    same[names == "", :] = same[:, names == ""] = np.nan
    return _square(labels, same)


def _of_trained(labels: list[str], values: Any) -> pd.DataFrame:
    return _square(labels, np.repeat(_numbers(labels, values)[:, None], len(labels), axis=1))


def _positions(labels: list[str], values: Any) -> pd.DataFrame:
    frame = _of_trained(labels, values)
    places = _numbers(labels, values)
    mean = places[np.isfinite(places)].mean() if np.isfinite(places).any() else math.nan
    return _square(labels, frame.fillna(mean).to_numpy(copy=True))


def _of_evaluated(labels: list[str], values: Any) -> pd.DataFrame:
    return _square(labels, np.repeat(_numbers(labels, values)[None, :], len(labels), axis=0))


def _square(labels: list[str], values: NDArray[np.float64]) -> pd.DataFrame:
    np.fill_diagonal(values, np.nan)
    return pd.DataFrame(values, index=labels, columns=labels)


def _numbers(labels: list[str], values: Any) -> NDArray[np.float64]:
    found = (values.get(label) for label in labels)
    return np.array([math.nan if value is None else value for value in found], dtype=np.float64)


def _logs(values: Any) -> dict[str, float]:
    return {label: math.log(value) if value > 0 else math.nan for label, value in values.items()}


def _each_run(values: Any, build: Callable[[Any], pd.DataFrame]) -> Matrices:
    """One matrix, or one for each run where the values are given per run."""
    per_run = isinstance(values, Mapping) and any(
        isinstance(value, Mapping | pd.Series) for value in values.values()
    )
    return {run: build(one) for run, one in values.items()} if per_run else build(values)
