"""What is lost without a language's subnetwork, what with it alone, and what with random masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet._tables import provenance
from subnet.subnetwork import Subnetwork, random_like
from subnet.validation._examples import Batches, HeldOut, Scores, held_out, refuse_what_found_it
from subnet.validation._intervals import Resampling, cell
from subnet.validation._plan import CONDITIONS, Plan, checkpoint_of, masks_of
from subnet.validation._specificity import Effects, specificity
from subnet.validation._subjects import Subject, Trial, find_place, load_subject
from subnet.validation.result import COLUMNS, OVERALL, SPECIFICITY, Ablation

if TYPE_CHECKING:
    from torch import nn

    from subnet.checkpoint import Checkpoint


def ablate(
    source: Checkpoint | nn.Module,
    subnetworks: Subnetwork | Iterable[Subnetwork],
    *,
    data: Iterable[Mapping[str, Any]] | None = None,
    conditions: Sequence[str] = CONDITIONS,
    model: str | None = None,
    how: str | None = None,
    n_examples: int = 128,
    n_random: int = 20,
    batch_size: int = 64,
    seed: int = 0,
) -> Ablation:
    """Remove each language's subnetwork, keep it alone, and see which languages lose.

    Each mask is tried on the model that it was found in, whole, without what the mask selects
    (`removed`), and without what else the mask is over (`kept`), on held-out examples of *all*
    languages, and the same with random masks that have as many weights or units in each parameter.

    What is removed of a mask of weights goes back to what it was before training (`how="base"`:
    ΔW = 0 there; of a stage, before that stage), or to zero (`"zero"`). Parameters that the mask is
    not over (a trained head, embeddings) stay as they are in every condition. Heads and neurons are
    gated by 0.

    Args:
        source: A checkpoint; or a live model, which all masks are tried on, with `data`.
        subnetworks: Masks of weights, heads or neurons, each language once per run.
        data: Examples, each with its `language`, by default the checkpoint's `test.jsonl`; never
            its training examples. They need what `extract` needs of them. A `concept` in each,
            the same ones in every language, pairs them.
        conditions: `"removed"`, `"kept"` or both. The verdicts rest on `removed`.
        model: `"trained"`: the model of the mask's language and run; `"base"`: the base. By default
            the one that the mask says it was found in.
        how: `"base"` or `"zero"`. By default `"base"` where the model is a trained one and the mask
            of weights, `"zero"` otherwise.
        n_examples: Most examples of each language.
        n_random: Random masks per mask; 0 for none, and no verdict. With 20 a single language can
            be told from the rest however many there are; with fewer, only several together.
            At most five of them are also kept alone.
        batch_size: Examples per forward pass; of one length each, so nothing is padded.
        seed: Seed of the draw of examples, of the random masks, and of the tests.

    Returns:
        Losses and changes by mask, test language and condition; verdicts; see `Ablation`. Models
        are left bitwise as they were, also where something fails.

    Raises:
        MissingInputError: There is no example, no model of a mask, or no tokenizer.
        InputError: A setting is out of range, an example is not usable, or a mask was found on the
            very examples it is tried on.
        NotComparableError: A mask does not fit its model.

    Example:
        >>> found = ablate(checkpoint, extract(checkpoint, density=0.05))  # doctest: +SKIP
        >>> found.matrix("removed")  # doctest: +SKIP
        >>> found.specificity[["language", "value", "q_value", "specific"]]  # doctest: +SKIP
    """
    masks = masks_of(subnetworks)
    plan = Plan(tuple(conditions), n_random, seed)
    plan.check(how, n_examples, batch_size)
    first = tuple(dict.fromkeys(mask.language for mask in masks))
    examples = held_out(checkpoint_of(source), data, first, n_examples, seed)
    for mask in masks:
        refuse_what_found_it(mask, examples)
    languages = (*examples.languages, *(label for label in first if label not in examples.places))
    resamplings: dict[int, Resampling] = {}
    frame: list[dict[str, Any]] = []
    effects: dict[str, list[Effects]] = {}
    trials: _Trials | None = None
    trial: Trial | None = None
    for mask in masks:
        place = find_place(source, mask, model)
        if trials is None or trials.subject.key != place.key:
            trials = trial = None  # one model in memory at a time
            subject = load_subject(source, place, mask)
            batches = Batches(examples, subject.model, subject.folders, batch_size)
            trials = _Trials(subject, batches, batches.score(subject.model))
            del subject, batches
        trial = trials.subject.tried(mask, how)
        found = {"whole": [trials.whole], **_try(trial, mask, trials.batches, plan)}
        place_of_mask = {"run": mask.run, "mask_language": mask.language, "how": trial.how}
        for label in languages:
            rows = _cells(found, trials.batches, examples, label, resamplings, seed)
            frame += [{**place_of_mask, "test_language": label, **row} for row in rows]
        if "removed" in found:
            effects.setdefault(mask.run, []).append(_effects(mask, found, trials.batches, examples))
    return _result(frame, effects, languages, examples, plan, {
        "conditions": list(plan.conditions), "model": model, "how": how, "n_examples": n_examples,
        "n_random": n_random, "batch_size": batch_size,
        "data": "given" if examples.source is None else examples.source.name,
    })  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Trials:
    """A model, the examples as it takes them, and what it makes of them as it is."""

    subject: Subject
    batches: Batches
    whole: Scores


def _try(trial: Trial, mask: Subnetwork, batches: Batches, plan: Plan) -> dict[str, list[Scores]]:
    """Condition to what each mask of it gives."""
    put: dict[str, Any] = {"removed": trial.removed, "kept": trial.kept}
    found: dict[str, list[Scores]] = {}

    def score(put_on: AbstractContextManager[None]) -> Scores:
        with put_on:
            return batches.score(trial.model)

    for condition in plan.conditions:
        found[condition] = [score(put[condition](mask))]
    most = max(plan.n_random_of(condition) for condition in plan.conditions)
    for number in range(most):
        random = random_like(mask, plan.seed * 10_000 + number)
        for condition in plan.conditions:
            if number < plan.n_random_of(condition):
                found.setdefault(f"random_{condition}", []).append(score(put[condition](random)))
    return found


def _cells(
    found: Mapping[str, list[Scores]],
    batches: Batches,
    examples: HeldOut,
    language: str,
    resamplings: dict[int, Resampling],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Every condition on the examples of one language."""
    places = examples.places.get(language, np.zeros(0, dtype=np.int64))
    labelled = batches.labelled[places]
    n = int(labelled.sum())
    if n not in resamplings:
        resamplings[n] = Resampling(n, seed)
    whole = found["whole"][0].loss[places]
    for condition, scores in found.items():
        loss = np.array([each.loss[places] for each in scores])
        correct = np.array([each.correct[places] for each in scores])
        values = cell(loss, whole, correct, labelled, resamplings[n], language)
        yield {"condition": condition, "n_masks": len(scores), **values}


def _effects(
    mask: Subnetwork, found: Mapping[str, list[Scores]], batches: Batches, examples: HeldOut
) -> Effects:
    removed, random, concepts = {}, {}, {}
    for label, places in examples.places.items():
        labelled = places[batches.labelled[places]]
        if not labelled.size:
            continue
        base = found["whole"][0].loss[labelled]
        removed[label] = found["removed"][0].loss[labelled] - base
        masks = [scores.loss[labelled] - base for scores in found.get("random_removed", ())]
        random[label] = np.array(masks).reshape(len(masks), len(base))
        if examples.concepts is not None:
            concepts[label] = [examples.concepts[i] for i in labelled]
    said = [set(each) for each in concepts.values()]
    paired = bool(said) and all(each == said[0] for each in said)
    return Effects(mask.language, removed, random, concepts if paired else None)


def _result(
    frame: list[dict[str, Any]],
    effects: Mapping[str, list[Effects]],
    languages: tuple[str, ...],
    examples: HeldOut,
    plan: Plan,
    settings: dict[str, Any],
) -> Ablation:
    import pandas as pd

    verdicts, overall = [], []
    for run, members in effects.items():
        rows, row = specificity(members, seed=plan.seed)
        verdicts += [{"run": run, **each} for each in rows]
        overall.append({"run": run, **row})
    untested = [label for label in languages if label not in examples.places]
    warnings = [*examples.warnings]
    if untested:
        warnings.append(f"there is no test example of {', '.join(untested)}")
    if examples.concepts is None and len(examples.languages) > 1:
        warnings.append(
            "the languages' examples are not of the same concepts: what differs between languages "
            "may be their examples"
        )
    broken = sum("no number" in row["reason"] for row in frame)
    if broken:
        warnings.append(f"{broken} of {len(frame)} cells have losses that are no numbers")
    return Ablation(
        frame=pd.DataFrame(frame, columns=list(COLUMNS)),
        specificity=pd.DataFrame(verdicts, columns=list(SPECIFICITY)),
        overall=pd.DataFrame(overall, columns=list(OVERALL)),
        languages=languages,
        warnings=tuple(warnings),
        provenance=provenance(
            "ablation", settings, seed=plan.seed, libraries=("torch", "transformers", "peft")
        ),
    )
