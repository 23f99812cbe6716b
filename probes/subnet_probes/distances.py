"""Do representations mirror how far languages lie apart: in typology, in a graph, in anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet._statistics import adjust_p_values
from subnet._tables import Provenance, provenance
from subnet.errors import InputError
from subnet.relation import associate
from subnet_probes._ridge_distances import held_out_prediction
from subnet_probes._sources import Array, Source, as_source
from subnet_probes.probing_result import tidy

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("mantel", "ridge")
MEASURES = ("euclidean", "cosine")
COLUMNS = (
    "layer", "task", "method", "measure", "score", "ci_low", "ci_high", "p_value", "q_value",
    "smallest_p", "testable", "n_languages", "n_pairs", "n_permutations", "reason",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DistanceRegression:
    """How representations at each layer go with given distances between languages.

    Attributes:
        frame: One row per layer. `mantel`: `score` is the correlation of distances between the
            languages' centroids with the given ones (partial where there are controls), its
            interval from leaving out one language at a time. `ridge`: `score` is the correlation of
            predicted with given distances over pairs whose two languages were both held out; no
            interval. `p_value` from permuting the names of the `n_languages`, never from counting
            pairs; `q_value` is Benjamini and Hochberg's over layers; `smallest_p` is what
            so few languages could give at best.
        centroids: Layer to distances between centroids [l, l].
        warnings: What a reader must know before believing the numbers, one line each.
        provenance: Settings, seed, versions.
    """

    frame: pd.DataFrame
    centroids: Mapping[str, pd.DataFrame]
    warnings: tuple[str, ...]
    provenance: Provenance

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()


def regress(
    representations: Any,
    distances: pd.DataFrame,
    *,
    method: str = "mantel",
    measure: str = "euclidean",
    controls: Mapping[str, pd.DataFrame] | None = None,
    items: pd.DataFrame | None = None,
    layers: Sequence[Any] | None = None,
    alpha: float = 1.0,
    folds: int = 5,
    n_permutations: int = 9999,
    seed: int = 0,
) -> DistanceRegression:
    """Relate representations to distances between languages, layer by layer.

    A language is one point, its centroid over the concepts that all languages have (over all its
    items where there are none), of units standardised over all items. The number of languages, not
    that of items or pairs, is the sample size.

    - `"mantel"` correlates the distances between centroids with the given ones (Mantel 1967;
      with `controls`, double semi-partialing of Dekker et al. 2007): nothing is fitted, so it can
      be trusted from five languages on.
    - `"ridge"` predicts the given distance of a pair from the squared difference of its centroids
      in every unit, and so finds distances that few units carry. Pairs are tested whose two
      languages are both held out; with d units and few languages it rarely can tell anything.

    Args:
        representations: As of `probe_language`.
        distances: [l, l], labelled with languages; typological, genealogical, lengths of paths in a
            graph. The diagonal is not used.
        method: `"mantel"` or `"ridge"`.
        measure: Between centroids, for `mantel`: `"euclidean"`, or `"cosine"` (1 − cosine, origin
            at the mean of the centroids).
        controls: Matrices [l, l] to hold fixed, for `mantel`.
        items: As of `probe_language`.
        layers: As of `probe_language`.
        alpha: Penalty of `RegressionProbe`, for `ridge`.
        folds: Folds over languages, for `ridge`; each needs at least three languages.
        n_permutations: Permutations drawn; for `mantel` all are enumerated where they are no more.
        seed: Seed of folds and permutations.

    Raises:
        InputError: Fewer than three languages have representations and distances, or a setting
            is out of range.
    """
    source = as_source(representations, items, layers)
    _check(method, measure, controls)
    names, lines = _languages(source, distances)
    rows = _rows_of_languages(source, names, lines)
    given = distances.loc[names, names].astype(float)
    found: list[dict[str, Any]] = []
    between: dict[str, Any] = {}
    for layer in source.layers:
        centroids = _centroids(source.array(layer), rows)
        between[layer] = _distances(centroids, names, measure)
        if method == "mantel":
            how: Any = "mrqap_dsp" if controls else "qap"
            one = associate(
                between[layer],
                given,
                controls,
                method=how,
                n_permutations=n_permutations,
                seed=seed,
            )
            row = {
                name: getattr(one, name) for name in COLUMNS[5:] if name not in ("q_value", "score")
            }
            row["score"] = one.estimate
        else:
            row = held_out_prediction(
                centroids, given.to_numpy(), alpha=alpha, folds=folds,
                n_permutations=n_permutations, seed=seed,
            )  # fmt: skip
        found.append({"layer": layer, "task": "distance", "method": method, **row})
        found[-1]["measure"] = measure if method == "mantel" else "squared differences"
    for row, q in zip(found, adjust_p_values([row["p_value"] for row in found]), strict=True):
        row["q_value"] = float(q)
    if len(names) < 10:
        lines.append(f"{len(names)} languages: a weak relation cannot be seen")
    settings = {
        "method": method, "measure": measure, "controls": sorted(controls or {}), "alpha": alpha,
        "folds": folds, "n_permutations": n_permutations, "languages": names,
    }  # fmt: skip
    return DistanceRegression(
        frame=tidy(found, COLUMNS),
        centroids=between,
        warnings=tuple(lines),
        provenance=provenance(
            "distance regression", settings, seed=seed, libraries=("scikit-learn", "scipy")
        ),
    )


def _check(method: str, measure: str, controls: Mapping[str, Any] | None) -> None:
    for name, value, known in (("method", method, METHODS), ("measure", measure, MEASURES)):
        if value not in known:
            raise InputError(f"{name} is {value!r}", expected=" or ".join(map(repr, known)))
    if controls and method != "mantel":
        raise InputError(
            "controls are given", expected="method='mantel', which can hold them fixed"
        )


def _languages(source: Source, distances: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Languages with representations and distances, and a line about the others."""
    if list(distances.index) != list(distances.columns) or not distances.index.is_unique:
        raise InputError(
            "rows and columns of the distances differ", expected="the same languages, each once"
        )
    names = [name for name in source.languages if name in distances.index]
    if len(names) < 3:
        raise InputError(
            f"{len(names)} languages have representations and distances",
            expected="at least three",
            fix=f"label the distances with {', '.join(source.languages[:4])}, …",
        )
    lone = [name for name in source.languages if name not in distances.index]
    return names, [f"no distance of {', '.join(lone)}; left out"] if lone else []


def _rows_of_languages(
    source: Source, names: list[str], lines: list[str]
) -> list[NDArray[np.intp]]:
    """Rows of each language: of the concepts that all have, else all of them."""
    language = source.column("language").astype(str).to_numpy()
    rows = [np.flatnonzero(language == name) for name in names]
    if "concept" not in source.items.columns:
        lines.append("no concepts: centroids are over different texts in each language")
        return rows
    concept = source.items["concept"]
    keys = concept.astype(str).to_numpy()
    known = concept.notna().to_numpy()
    shared = set.intersection(*(set(keys[mine[known[mine]]]) for mine in rows))
    if len(shared) < 2:
        lines.append("no concept is in all languages: centroids are over different texts in each")
        return rows
    among = np.isin(keys, sorted(shared)) & known
    return [mine[among[mine]] for mine in rows]


def _centroids(array: Array, rows: list[NDArray[np.intp]]) -> NDArray[np.float64]:
    """[l, d] of standardised units; units that do not vary are 0."""
    used = array[np.concatenate(rows)].astype(np.float64)
    deviation = used.std(axis=0)
    scale = np.where(
        deviation > 1e-7 * np.abs(used).max(axis=0, initial=1e-30), deviation, math.inf
    )
    return np.stack([(array[mine].mean(axis=0) - used.mean(axis=0)) / scale for mine in rows])


def _distances(centroids: NDArray[np.float64], names: list[str], measure: str) -> pd.DataFrame:
    import pandas as pd
    from scipy.spatial.distance import cdist

    at = centroids - centroids.mean(axis=0)
    if measure == "cosine":
        lengths = np.linalg.norm(at, axis=1, keepdims=True)
        at = at / np.where(lengths > 0, lengths, 1.0)
        found = 1.0 - at @ at.T
    else:
        found = cdist(at, at)
    np.fill_diagonal(found, 0.0)
    return pd.DataFrame(found, index=names, columns=names)
