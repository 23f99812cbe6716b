"""What `measure_overlap` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from subnet._tables import MAIN_RUN, Provenance
from subnet.errors import InputError
from subnet.language import Language
from subnet.overlap._names import headline_null
from subnet.overlap._rows import same_language

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Overlap:
    """How much every two languages share, beside what chance gives and what another seed gives.

    Attributes:
        frame: One row per pair, level, module, measure and null model: the fixed columns of
            `overlap.csv`, then `comparison` (`between` languages, `replicate`: one language in two
            runs, with `run` = `first|second`, or `half`: one language found on two halves of its
            examples), `n_a`, `n_b` (weights kept by each mask, or dimensions of each subspace),
            `position` (0 = chance, 1 = the ceiling: another seed of the same language or, without
            any, halves of its examples; undefined without either) and `reason`.
        languages: The languages, in the order given; a label that is no language code stays text.
        source: `masks`, `updates` or `steps`.
        spectra: Of updates, one row per language and parameter: `rank`, `effective_rank`, `norm`,
            `largest` singular value. Empty for masks.
        warnings: What a reader must know before believing the numbers, one line each.
        provenance: Method, settings, seed, versions.
    """

    frame: pd.DataFrame
    languages: tuple[Language | str, ...]
    source: str
    spectra: pd.DataFrame
    warnings: tuple[str, ...]
    provenance: Provenance

    def headline_null(self, measure: str) -> str:
        """The null model that headlines and edges use: `structure`, or else `rotation`."""
        return headline_null(measure)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that were taken."""
        return tuple(self.frame["measure"].unique())

    @property
    def replicates(self) -> pd.DataFrame:
        """Rows that compare a language with itself in another run."""
        return self.frame[self.frame["comparison"] == "replicate"].reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """The table `overlap.csv`."""
        return self.frame.copy()

    def rows(
        self, measure: str, level: str = "all", module: str = "", *, null: str | None = None
    ) -> pd.DataFrame:
        """Rows of one measure at one place, under the headline null unless said otherwise.

        Raises:
            InputError: The measure was not taken, or there is no such level or module.
        """
        if measure not in self.measures:
            raise InputError(
                f"measure {measure!r} was not taken", expected=f"one of {', '.join(self.measures)}"
            )
        frame = self.frame[
            (self.frame["measure"] == measure)
            & (self.frame["null"] == (null or headline_null(measure)))
            & (self.frame["level"] == level)
        ]
        here = frame[frame["module"] == module]
        if here.empty:
            known = ", ".join(map(repr, frame["module"].unique()[:5]))
            raise InputError(
                f"there is no {level} {module!r}" if known else f"level {level!r} was not taken",
                expected=f"one of {known}" if known else None,
            )
        return here.reset_index(drop=True)

    def pairs(
        self, measure: str, level: str = "all", module: str = "", *, run: str | None = None
    ) -> pd.DataFrame:
        """Rows of one measure that compare two languages of one run, under the headline null.

        Args:
            measure: Name of the measure.
            level: `all`, `layer`, `type` or `module`.
            module: Name of the layer, type or module.
            run: The run; by default `main`, or the first where there is none of that name.
        """
        rows = self.rows(measure, level, module)
        rows = rows[rows["comparison"] == "between"]
        runs = list(dict.fromkeys(rows["run"]))
        if run is None and runs:
            run = MAIN_RUN if MAIN_RUN in runs else runs[0]
        elif run not in runs:
            raise InputError(f"run {run!r} has no pair", expected=f"one of {', '.join(runs)}")
        apart = rows["language_a"] != rows["language_b"]
        return rows[(rows["run"] == run) & apart].reset_index(drop=True)

    def matrix(
        self, measure: str, level: str = "all", module: str = "", *, run: str | None = None
    ) -> pd.DataFrame:
        """Language × language table of a measure.

        Args:
            measure: Name of the measure.
            level: `all`, `layer`, `type` or `module`.
            module: Name of the layer, type or module.
            run: As in `pairs`.

        Returns:
            Values with language_a in rows and language_b in columns; NaN on the diagonal and where
            undefined. Symmetric for symmetric measures.
        """
        import pandas as pd

        rows = self.pairs(measure, level, module, run=run)
        labels = [str(language) for language in self.languages]
        table = pd.DataFrame(np.nan, index=labels, columns=labels)
        directed = measure == "containment" or self.provenance.settings.get("directed", False)
        for a, b, value in zip(rows["language_a"], rows["language_b"], rows["value"], strict=True):
            table.loc[a, b] = value
            if not directed:
                table.loc[b, a] = value
        return table.rename_axis(index="language_a", columns="language_b")

    def ceiling(self, measure: str, level: str = "all", module: str = "") -> float:
        """Mean of the measure between runs of the same language, or else between halves of data.

        NaN without either.
        """
        return float(same_language(self.rows(measure, level, module))["value"].mean())

    @property
    def ceiling_kind(self) -> str:
        """What the ceiling compares: `replicate`, `half`, or `""` where there is none."""
        return next(iter(same_language(self.frame)["comparison"]), "")

    def floor(
        self, measure: str, level: str = "all", module: str = "", *, run: str | None = None
    ) -> float:
        """Mean of what the headline null expects between the languages of one run."""
        return float(self.pairs(measure, level, module, run=run)["expected"].mean())

    def graph(
        self,
        measure: str | None = None,
        *,
        alpha: float = 0.05,
        all_edges: bool = False,
        run: str | None = None,
        families: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> nx.Graph[str]:
        """Languages as nodes, and as edges the pairs that share more than the headline null gives.

        Args:
            measure: By default `jaccard` for masks, `subspace_similarity` for updates, `cosine` for
                steps, whose subspaces are shared by construction.
            alpha: Largest q-value of an edge.
            all_edges: Keep every pair whose value is defined.
            run: As in `pairs`.
            families: Label to language family, for the node attribute.
            seed: Seed of the Louvain communities.

        Returns:
            A `networkx.Graph`, directed for `containment`. Nodes have `label`, `tag`, `name`,
            `script`, `script_name`, `family` and `community` where known; edges `value`,
            `expected`, `z`, `p`, `q` where defined, and `weight`. No attribute is None or NaN.
        """
        from subnet.overlap.graph import build_graph

        if measure is None:
            defaults = {"masks": "jaccard", "updates": "subspace_similarity", "steps": "cosine"}
            measure = defaults[self.source]
        return build_graph(
            self,
            measure,
            alpha=alpha,
            all_edges=all_edges,
            run=run,
            families=families or {},
            seed=seed,
        )
