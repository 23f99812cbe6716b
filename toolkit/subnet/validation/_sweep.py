"""How much of a subnetwork is needed: density against score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet._tables import MAIN_RUN, Provenance, provenance
from subnet.errors import InputError
from subnet.subnetwork import Subnetwork, Subnetworks, extract, random_like
from subnet.subnetwork.settings import check_density, check_whole, one_of
from subnet.validation._examples import Batches, HeldOut, held_out, refuse_what_found_it
from subnet.validation._intervals import Resampling, cell
from subnet.validation._subjects import REPLACEMENTS, Subject, find_place, load_subject

if TYPE_CHECKING:
    import pandas as pd

    from subnet.checkpoint import Checkpoint

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
#: Columns of the table of a sweep.
COLUMNS = (
    "run", "language", "density", "condition", "n_kept", "loss", "accuracy", "change", "ci_low",
    "ci_high", "seed_low", "seed_high", "recovered", "n", "n_masks", "how", "reason",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sweep:
    """What each language's model can do with the densest part of its subnetwork alone.

    Attributes:
        frame: One row per run, language, density and condition (`kept`, `random_kept`): `n_kept`
            weights or units; mean `loss` and `accuracy` on the language's own examples; `change`
            of the loss against the whole model, with a 95 % bootstrap interval over examples;
            over the seeds of random masks the smallest and largest mean change; `recovered` =
            (loss at density 0 − loss) / (loss at density 0 − loss of the whole), undefined
            where the whole is no better than nothing; `n` examples, `n_masks`, `how`, `reason`.
            Density 0 keeps nothing of what the masks are over, 1 is the whole model; there the
            conditions are equal.
        languages: Labels.
        warnings: What a reader must know before believing the numbers, one line each.
        provenance: Settings, seed, versions.
    """

    frame: pd.DataFrame
    languages: tuple[str, ...]
    warnings: tuple[str, ...]
    provenance: Provenance

    def to_frame(self) -> pd.DataFrame:
        """The table (a copy of `frame`)."""
        return self.frame.copy()

    def curve(
        self, condition: str = "kept", *, value: str = "loss", run: str | None = None
    ) -> pd.DataFrame:
        """Density × language.

        Args:
            condition: `"kept"` or `"random_kept"`.
            value: A column of numbers of `frame`.
            run: By default `main`, or the first where there is none of that name.

        Raises:
            InputError: There is no such condition, value or run.
        """
        one_of("condition", condition, tuple(dict.fromkeys(self.frame["condition"])))
        one_of("value", value, COLUMNS[4:15])
        runs = tuple(dict.fromkeys(self.frame["run"]))
        if run is None:
            run = MAIN_RUN if MAIN_RUN in runs else runs[0]
        one_of("run", run, runs)
        rows = self.frame[(self.frame["run"] == run) & (self.frame["condition"] == condition)]
        table = rows.pivot_table(
            index="density", columns="language", values=value, dropna=False, observed=True
        )
        return table.reindex(columns=[x for x in self.languages if x in set(rows["language"])])


def sweep(
    source: Checkpoint,
    *,
    method: str = "magnitude",
    densities: Sequence[float] = DENSITIES,
    data: Iterable[Mapping[str, Any]] | None = None,
    search_data: Iterable[Mapping[str, Any]] | None = None,
    how: str | None = None,
    n_examples: int = 256,
    n_random: int = 3,
    batch_size: int = 64,
    seed: int = 0,
    **settings: Any,
) -> Sweep:
    """Keep the top part of each language's subnetwork alone, for a range of sizes.

    Masks are extracted at every density, each language's own model keeps what the mask selects of
    what training changed (or of its heads or neurons), and its own held-out examples are scored.
    Beside it stand random masks of the same size. By magnitude an extraction reads the update three
    times; methods that run the model do so again for every density.

    Args:
        source: A checkpoint with updates or stages, and a base.
        method: As of `extract`; one that has a density.
        densities: Shares to keep, 0 < density ≤ 1, in any order; 0 and 1 are always added.
        data: Examples to score, by default the checkpoint's `test.jsonl`; as of `ablate`.
        search_data: Examples that the method looks at (`data` of `extract`).
        how: As of `ablate`.
        n_examples: Most examples of each language.
        n_random: Random masks per density; 0 for none.
        batch_size: Examples per forward pass.
        seed: Seed of the draw of examples, of the random masks and of the intervals.
        **settings: Further settings of the method.

    Raises:
        MissingInputError: There is no update, no example, or no tokenizer.
        InputError: A setting is out of range, or an example is not usable.

    Example:
        >>> found = sweep(checkpoint, densities=(0.01, 0.05, 0.2))  # doctest: +SKIP
        >>> found.curve(value="recovered")  # doctest: +SKIP
    """
    sizes = _checked(densities, n_examples, n_random, batch_size, seed)
    if how is not None:
        one_of("how", how, REPLACEMENTS)
    by_density: dict[float, Subnetworks] = {}
    search = None if search_data is None else list(search_data)
    for density in sizes:
        by_density[density] = extract(
            source, method=method, density=density, data=search, **settings
        )
    members = next(iter(by_density.values()))
    examples = held_out(source, data, members.languages, n_examples, seed)
    frame: list[dict[str, Any]] = []
    subject: Subject | None = None
    batches: dict[str, Batches] = {}
    for member in members:
        masks = {d: found[member.language, member.run] for d, found in by_density.items()}
        refuse_what_found_it(member, examples)
        place = find_place(source, member, None)
        if subject is None or subject.key != place.key:
            subject = None  # one model in memory at a time
            batches.clear()
            subject = load_subject(source, place, member)
        frame += _of_one(subject, masks, examples, batches, how, n_random, batch_size, seed)
    return _result(
        frame,
        members.languages,
        examples,
        {
            "method": method, "densities": list(sizes), "how": how, "n_examples": n_examples,
            "n_random": n_random, "batch_size": batch_size, **settings,
            "data": "given" if examples.source is None else examples.source.name,
        },
        seed,
    )  # fmt: skip


def _of_one(
    subject: Subject,
    masks: Mapping[float, Subnetwork],
    examples: HeldOut,
    batches: dict[str, Batches],
    how: str | None,
    n_random: int,
    batch_size: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of one language in one run."""
    member = next(iter(masks.values()))
    label = member.language
    own = examples.of(label)
    if own is None:
        untested = {"n": 0, "reason": f"no test example of {label}"}
        return [
            _row(member, density, condition, untested)
            for density in (0.0, *masks, 1.0)
            for condition in _conditions(n_random)
        ]
    if label not in batches:
        batches[label] = Batches(own, subject.model, subject.folders, batch_size)
    run, model = batches[label], subject.model
    trial = subject.tried(member, how)
    whole = run.score(model)
    nothing = member - member
    with trial.kept(nothing):
        empty = run.score(model)
    resampling = Resampling(int(run.labelled.sum()), seed)

    def of(scores: Sequence[Any]) -> dict[str, Any]:
        losses, hits = (np.array([getattr(s, x) for s in scores]) for x in ("loss", "correct"))
        return {
            "n_masks": len(scores),
            "how": trial.how,
            **cell(losses, whole.loss, hits, run.labelled, resampling, label),
        }

    none, full = of([empty]), of([whole])
    rows = []
    for density, size, found in ((0.0, 0, none), (1.0, member.size, full)):
        rows += [_row(member, density, c, {**found, "n_kept": size}) for c in _conditions(n_random)]
    for density, mask in masks.items():
        with trial.kept(mask):
            kept = of([run.score(model)])
        rows.append(_row(member, density, "kept", {**kept, "n_kept": mask.count}))
        scores = []
        for number in range(n_random):
            with trial.kept(random_like(mask, seed * 10_000 + number)):
                scores.append(run.score(model))
        if scores:
            drawn = {**of(scores), "n_kept": mask.count}
            rows.append(_row(member, density, "random_kept", drawn))
    gain = none["loss"] - full["loss"]
    for row in rows:
        if gain > 0:
            row["recovered"] = (none["loss"] - row["loss"]) / gain
        elif not row["reason"]:
            row["reason"] = "the whole is no better than nothing, so there is nothing to recover"
    order = {condition: i for i, condition in enumerate(_conditions(n_random))}
    return sorted(rows, key=lambda row: (row["density"], order[row["condition"]]))


def _conditions(n_random: int) -> tuple[str, ...]:
    return ("kept", "random_kept") if n_random else ("kept",)


def _row(
    member: Subnetwork, density: float, condition: str, found: Mapping[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan)
    row |= {"run": member.run, "language": member.language, "density": density}
    return {**row, "condition": condition, "reason": "", "how": "", **found}


def _result(
    frame: list[dict[str, Any]],
    languages: tuple[str, ...],
    examples: HeldOut,
    settings: dict[str, Any],
    seed: int,
) -> Sweep:
    import pandas as pd

    untested = [label for label in languages if label not in examples.places]
    warnings = [*examples.warnings]
    if untested:
        warnings.append(f"there is no test example of {', '.join(untested)}")
    return Sweep(
        frame=pd.DataFrame(frame, columns=list(COLUMNS)),
        languages=languages,
        warnings=tuple(warnings),
        provenance=provenance(
            "sweep", settings, seed=seed, libraries=("torch", "transformers", "peft")
        ),
    )


def _checked(
    densities: Sequence[float], n_examples: int, n_random: int, batch_size: int, seed: int
) -> tuple[float, ...]:
    if isinstance(densities, int | float) or not len(densities):
        raise InputError(f"densities are {densities!r}", expected="several shares, such as (0.05,)")
    for density in densities:
        check_density(density)
    check_whole("n_examples", n_examples, 1)
    check_whole("n_random", n_random, 0)
    check_whole("batch_size", batch_size, 1)
    check_whole("seed", seed, 0)
    inside = sorted({float(density) for density in densities} - {1.0})
    if not inside:
        raise InputError(f"densities are {list(densities)}", expected="one below 1 at least")
    return tuple(inside)
