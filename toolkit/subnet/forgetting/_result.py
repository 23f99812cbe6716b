"""What was lost and gained, stage by stage: the question and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from subnet._tables import Provenance, provenance, table
from subnet.checkpoint.records import Metric, Scores
from subnet.errors import InputError, MissingInputError
from subnet.forgetting._estimates import ALL, HALF_A, HALF_B, half_means
from subnet.forgetting._groups import compare_groups
from subnet.forgetting._matrix import ScoreMatrix
from subnet.forgetting._measures import MEASURES, SUFFIXES, Effects, effects, measure
from subnet.forgetting._reading import Order, score_matrices

_PARTS = {None: ALL, "a": HALF_A, "b": HALF_B}


@dataclass(frozen=True)
class Forgetting:
    """What training each language did to every language.

    Attributes:
        frame: One row per run, language, metric and measure: `run, language, metric, measure,
            value, stderr, reason, stderr_from, n`. The language `""` is the mean over `n`
            languages. Where `value` or `stderr` is undefined, `reason` says why.
        effects: One row per run, stage, language and metric: the change of the language at that
            stage, `run, stage, trained_language, language, metric, value, stderr, reason, relative,
            relative_to_chance, stderr_from`. Where trained_language and language are the same, it
            is the language's own gain.
        languages: Every language trained or evaluated, in order of training.
        metrics: What each metric means.
        warnings: What a reader must know before believing a number.
        provenance: Settings and versions.
        matrices: The scores measured, one matrix per run and metric.
    """

    frame: pd.DataFrame
    effects: pd.DataFrame
    languages: tuple[str, ...]
    metrics: Mapping[str, Metric]
    warnings: tuple[str, ...]
    provenance: Provenance
    matrices: tuple[ScoreMatrix, ...] = field(repr=False)

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs (seeds, orders)."""
        return tuple(dict.fromkeys(matrix.run for matrix in self.matrices))

    def to_frame(self) -> pd.DataFrame:
        """The measures as a tidy table (a copy of `frame`)."""
        return self.frame.copy()

    def has_halves(self, metric: str) -> bool:
        """Whether items are known, so that baseline and effects can be kept on different halves."""
        return all(
            any(block is not None for block in matrix.items) for matrix in self._of(metric, None)
        )

    def baseline(self, metric: str, run: str | None = None) -> pd.Series:
        """Score before the sequence, per language, to stand beside `effect_matrix(half="b")`.

        A baseline is coupled with any effect that it is subtracted from: with no true effect at all
        the two correlate near −.7. Where items are known the baseline is therefore that of half a,
        and independent of the errors of effects on half b.

        Args:
            metric: Name of the metric; the value is in its own direction.
            run: One run, or None for the mean over those that have a value.

        Returns:
            Baselines by language, NaN where stage 0 was not evaluated; `.name` is `baseline`.
        """
        halves = self.has_halves(metric)
        columns = []
        for matrix in self._of(metric, run):
            values = np.full(len(matrix.languages), np.nan)
            if matrix.stages[0] == 0:
                for column, block in enumerate(matrix.items):
                    if not halves:
                        values[column] = matrix.scores[0, column]
                    elif block is not None:
                        values[column] = half_means(block, HALF_A)[0]
            columns.append(pd.Series(values, index=list(matrix.languages)))
        mean = pd.concat(columns, axis=1).mean(axis=1)
        return mean.reindex(self.languages).rename("baseline")

    def effect_matrix(
        self,
        metric: str,
        run: str | None = None,
        measure: str = "immediate_effect",
        half: str | None = None,
    ) -> pd.DataFrame:
        """Effect of training each language i on each language j: R[stage(i), j] − R[stage(i)−1, j].

        Positive where j improved, whatever the metric; also for languages not yet trained.

        Args:
            metric: Name of the metric.
            run: One run, or None for the mean, cell by cell, over the runs that have a value
                (`effect_counts` tells how many).
            measure: `immediate_effect`, `immediate_effect_relative` (divided by the score before)
                or `immediate_effect_relative_to_chance` (by the distance of that score to chance).
            half: None for all items; `"a"` or `"b"` for one half of them.

        Returns:
            [l, l], trained language × language, labelled by name; the diagonal is NaN.

        Raises:
            MissingInputError: A half is asked for and no per-item results are known.
            InputError: No such metric, run, measure or half.
        """
        stacked = self._effect_stack(metric, run, measure, half)
        defined = ~np.isnan(stacked)
        total = np.where(defined, stacked, 0.0).sum(axis=0)
        count = defined.sum(axis=0)
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return self._square(values)

    def effect_counts(
        self, metric: str, measure: str = "immediate_effect", half: str | None = None
    ) -> pd.DataFrame:
        """How many runs each cell of `effect_matrix` is the mean of."""
        stacked = self._effect_stack(metric, None, measure, half)
        return self._square((~np.isnan(stacked)).sum(axis=0))

    def groups(
        self, groupings: Mapping[str, Mapping[str, str]], *, n_permutations: int = 9999
    ) -> pd.DataFrame:
        """Compare groups of languages, as receivers and as donors of effects.

        A language's value is its mean over runs. The receivers' rows are what happened to the
        languages of a group; the donors' rows are the mean effect that training its languages had
        on all other languages (measure `immediate_effect`). Each group is tested against the rest
        of its grouping by permuting languages. With one order of training only, every measure but
        the mean immediate effect also measures the position in that order.

        Args:
            groupings: Name (`script`, `latin`, `family`) to language to group; languages without
                an entry, or with an empty one, are left out of that grouping.
            n_permutations: Most permutations drawn; fewer languages are permuted exhaustively.

        Returns:
            Columns `grouping, group, role, metric, measure, value` (mean of the group), `ci_low,
            ci_high` (95 % bootstrap over its languages), `p_value`, `n, reason`, and further
            `difference` (group minus rest) with its interval, `q_value` (Benjamini–Hochberg over
            the whole table), `n_others`, `smallest_p` (the smallest p that so few languages allow).
        """
        return compare_groups(
            self.frame, groupings, seed=self.provenance.seed or 0, n_permutations=n_permutations
        )

    def _of(self, metric: str, run: str | None) -> list[ScoreMatrix]:
        for value, known, kind in (
            (metric, tuple(self.metrics), "metric"),
            (run, self.runs, "run"),
        ):
            if value is not None and value not in known:
                raise InputError(f"there is no {kind} {value!r}", expected=f"one of {known}")
        chosen = [m for m in self.matrices if m.metric.name == metric and run in (None, m.run)]
        if not chosen:
            raise InputError(f"run {run!r} has no scores of metric {metric!r}")
        return chosen

    def _effect_stack(
        self, metric: str, run: str | None, measure: str, half: str | None
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Effects [runs, l, l], trained language × language, NaN where there is none."""
        versions = {"immediate_effect" + suffix: suffix for suffix in SUFFIXES}
        if measure not in versions:
            raise InputError(
                f"there is no effect {measure!r}", expected=f"one of {tuple(versions)}"
            )
        if half not in _PARTS:
            raise InputError(f"there is no half {half!r}", expected="'a', 'b' or None")
        if half is not None and not self.has_halves(metric):
            raise MissingInputError(
                f"effects on half {half!r} of the items need per-item results of {metric!r}",
                fix="add items.csv with run, stage, language, item, metric, value",
            )
        place = {language: index for index, language in enumerate(self.languages)}
        layers = []
        for matrix in self._of(metric, run):
            found = effects(matrix, _PARTS[half])
            layer = np.full((len(place), len(place)), np.nan)
            columns = [place[language] for language in matrix.languages]
            changes = found.versions[versions[measure]]  # [k, l]
            for language in place:
                turns = [found.stages.index(s) for s in matrix.turns(language) if s in found.stages]
                if turns:
                    layer[place[language], columns] = changes[turns].mean(axis=0)
            np.fill_diagonal(layer, np.nan)
            layers.append(layer)
        return np.stack(layers)

    def _square(self, values: np.ndarray[Any, np.dtype[Any]]) -> pd.DataFrame:
        return pd.DataFrame(
            values,
            index=pd.Index(self.languages, name="trained_language"),
            columns=pd.Index(self.languages, name="language"),
        )


def measure_forgetting(
    scores: Scores | pd.DataFrame,
    *,
    items: pd.DataFrame | None = None,
    metrics: Iterable[str] | Mapping[str, Metric] | None = None,
    order: Order | None = None,
    reference: Scores | pd.DataFrame | None = None,
    reference_trained_on: str = "everything",
    seed: int = 0,
) -> Forgetting:
    """Measure what sequential training lost and gained, per language and on average.

    R[s, j] is the score on language j after stage s, S the last stage, stage(j) the one that
    trained j, b_j = R[0, j] the score at the start of the sequence. Scores are compared
    in the direction in which the metric is better, so that signs mean the same for loss and
    accuracy:

    - `average_accuracy`: R[S, j], in the metric's own direction
    - `backward_transfer`: R[S, j] − R[stage(j), j], for stage(j) < S; positive = improved
      (Lopez-Paz and Ranzato 2017, arXiv 1706.08840)
    - `forward_transfer`: R[stage(j)−1, j] − b_j, for stage(j) > 1; positive = improved. There b is
      a randomly initialised model, here it is the start of the sequence
    - `forgetting`: max over l < S of R[l, j] − R[S, j]; positive = lost. Its mean is over the
      languages that some stage came after (Chaudhry et al. 2018, arXiv 1801.10112)
    - `forgetting_since_turn`: the same with stage(j) ≤ l < S; positive = lost
    - `forgetting_split_half`, `forgetting_since_turn_split_half`: the same with the best stage
      picked on one half of the items and scored on the other, both ways, averaged. The plain
      maximum is biased upward, the more stages and the fewer items the more; this is not. Items
      are halved by a hash of seed and item id
    - `loss_since_start`: b_j − R[S, j]; positive = lost
    - `intransigence`: R*_j − R[stage(j), j], R* jointly trained; positive = the sequence learned
      the language less well (Chaudhry et al. 2018)
    - `immediate_effect`: mean over i ≠ j of R[stage(i), j] − R[stage(i)−1, j], what others'
      training did to j; `immediate_effect_given` is the mean over j ≠ i, what training i did to
      others; positive = improved
    - `own_gain`: R[stage(j), j] − R[stage(j)−1, j]; positive = improved

    All but the first also as `…_relative`, divided by the earlier score (that of the start, of the
    own turn, of the best stage, of the reference, or the mean of those before the effects), and as
    `…_relative_to_chance`, divided by its distance to chance; undefined where the denominator
    is not more than two standard errors above zero.

    Standard errors come from per-item results: paired where the two scores rest on the same
    items, and in means over languages an item that several languages share under one id counts
    once. They are conditional on the stage that a maximum picked. Without items they come from the
    `stderr` of the scores, unpaired and so too large (`stderr_from` tells which). A score
    that is missing leaves the measures that need it undefined, with the reason. Of a language
    trained several times, stage(j) is the last turn, but the first in `forward_transfer`, and its
    effects are means over turns.

    Args:
        scores: `checkpoint.scores`, or a long table with the columns `stage, language, metric,
            value` and optionally `run, stderr, trained_language`. Stage 0 is before the sequence.
        items: Per-item results, `stage, language, item, metric, value` and optionally `run`; by
            default those of the scores. A score that the table lacks is the mean of its items.
        metrics: Which metrics to measure, by default all; a mapping also says how each is to be
            read, where its name does not tell.
        order: Which stage trained which language: labels in order of training, or label to
            stage, or either per run. By default from the scores.
        reference: Scores of a jointly trained model, for `intransigence`; its last stage counts.
        reference_trained_on: What the reference was trained on, for the record: `everything`, or
            `up to each language`.
        seed: Seed of the halves of the items and of the tests between groups.

    Raises:
        InputError: The scores are not usable: a stage without scores, two scores for one cell, two
            languages trained by one stage.

    Example:
        >>> frame = pd.DataFrame(
        ...     [(0, "de", 0.2), (0, "fr", 0.3), (1, "de", 0.8), (1, "fr", 0.4), (2, "de", 0.7),
        ...      (2, "fr", 0.9)], columns=["stage", "language", "value"]).assign(metric="accuracy")
        >>> found = measure_forgetting(frame, order=["de", "fr"])
        >>> print(f"{found.effect_matrix('accuracy').loc['fr', 'de']:.1f}")
        -0.1
    """
    matrices, warnings = score_matrices(
        scores, items=items, metrics=metrics, order=order, reference=reference, seed=seed
    )
    known = {matrix.metric.name: matrix.metric for matrix in matrices}
    by_stage = [m.trained[stage] for m in matrices for stage in sorted(m.trained)]
    languages = tuple(dict.fromkeys([*by_stage, *(lang for m in matrices for lang in m.languages)]))
    rows = [row for matrix in matrices for row in measure(matrix)]
    orders = {m.run: tuple(m.trained[stage] for stage in sorted(m.trained)) for m in matrices}
    if len(set(orders.values())) == 1 and len(languages) > 1 and by_stage:
        warnings.append(
            "there is one order of training only, so forgetting and loss_since_start also measure "
            "the position in that order; compare groups of languages over several orders"
        )
    return Forgetting(
        frame=table("forgetting", rows),
        effects=table("effects", pd.concat([_effect_rows(m, effects(m)) for m in matrices])),
        languages=languages,
        metrics=known,
        warnings=tuple(warnings),
        provenance=provenance(
            "forgetting measures",
            {
                "measures": list(MEASURES),
                "metrics": {
                    name: {"higher_is_better": m.higher_is_better, "chance": m.chance}
                    for name, m in known.items()
                },
                "order": {run: list(order) for run, order in orders.items()},
                "stages": {m.run: [m.stages[0], m.stages[-1]] for m in matrices},
                "forward_transfer_baseline": "stage 0, the start of the sequence",
                "reference": None if reference is None else f"trained on {reference_trained_on}",
                "standard_errors": "paired over items; an item id shared by languages counts once",
                "halves": "half a: even first byte of BLAKE2b-8 of '<seed>\\n<item id>'",
                "items_in_halves": {m.run: _half_sizes(m) for m in matrices},
            },
            seed=seed,
            libraries=("numpy", "pandas", "scipy"),
        ),
        matrices=tuple(matrices),
    )


def _effect_rows(matrix: ScoreMatrix, found: Effects) -> pd.DataFrame:
    k, n_languages = found.stderrs.shape
    trained = [matrix.trained.get(stage, "") for stage in found.stages]
    return pd.DataFrame(
        {
            "run": matrix.run,
            "stage": np.repeat(np.array(found.stages, dtype=np.int64), n_languages),
            "trained_language": np.repeat(np.array(trained, dtype=object), n_languages),
            "language": list(matrix.languages) * k,
            "metric": matrix.metric.name,
            "value": found.versions[""].reshape(-1),
            "stderr": found.stderrs.reshape(-1),
            "reason": found.reasons.reshape(-1),
            "relative": found.versions["_relative"].reshape(-1),
            "relative_to_chance": found.versions["_relative_to_chance"].reshape(-1),
            "stderr_from": found.sources.reshape(-1),
        }
    )


def _half_sizes(matrix: ScoreMatrix) -> list[int]:
    """Results in half a and in half b, over all languages."""
    blocks = [block for block in matrix.items if block is not None]
    first = sum(int(block.first_half.sum()) for block in blocks)
    return [first, sum(len(block.first_half) for block in blocks) - first]
