"""Cross-lingual transfer of a probe: trained on one language, tested on another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.parallel import Parallel, delayed

from subnet.errors import InputError
from subnet_probes._fitting import Answers, Codes, answers
from subnet_probes._quiet import quiet_fits
from subnet_probes._resampling import METRICS, GroupBootstrap, Scores, interval
from subnet_probes._sources import Array, as_source
from subnet_probes.control import permuted_labels
from subnet_probes.probe import Probe
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.probing import chosen_languages, how_made, labelled_rows
from subnet_probes.probing_result import TRANSFER_COLUMNS, Transfer, tidy
from subnet_probes.splits import grouped_folds, sampled_groups, split_groups

if TYPE_CHECKING:
    import pandas as pd

#: What to do with labels that not all languages have.
LABEL_SETS = ("shared", "all")


@dataclass(frozen=True)
class _Plan:
    """Items of all languages, split together.

    Attributes:
        names: l languages.
        rows: [n], rows of the representations.
        language: [n], number of the language.
        targets: [1 + draws, n], labels and permuted labels, as numbers.
        classes: k labels.
        groups: [n].
        fold: [n].
        folds: Folds that are tested.
        tested: [n].
        bootstraps: By language, over the groups of its tested items.
    """

    names: tuple[str, ...]
    rows: Codes
    language: Codes
    targets: Codes
    classes: tuple[str, ...]
    groups: Codes
    fold: Codes
    folds: range
    tested: NDArray[np.bool_]
    bootstraps: tuple[GroupBootstrap, ...]


def cross_lingual_transfer(
    representations: Any,
    *,
    target: str = "label",
    items: pd.DataFrame | None = None,
    languages: Iterable[str] | None = None,
    label_sets: str = "shared",
    layers: Sequence[Any] | None = None,
    probe: BaseEstimator | None = None,
    settings: ProbeSettings | None = None,
    seed: int = 0,
) -> Transfer:
    """Score of a probe trained on each language in each language: a directed matrix per layer.

    All languages share their folds, so that a concept that a probe was trained on is tested in no
    language. A probe of a fold is trained on one language and tested on all; within a language
    (the diagonal) this is cross-validation. Works for sentences and for tokens.

    Args:
        representations: As of `probe_language`.
        target: Column of the items that holds the label; items without one are left out.
        items: As of `probe_language`.
        languages: By default all; at least two.
        label_sets: Languages may differ in their labels. `"shared"`: only items whose label occurs
            in all of them, which keeps the cells comparable; `"all"`: every item, and a label that
            the training language does not have is an error of its probe.
        layers: As of `probe_language`.
        probe: As of `probe_language`.
        settings: Splits and baselines; `mdl` and `n_controls` have no part here, since a word or
            concept of one language cannot be memorised from another.
        seed: Seed of splits, baselines and resamples.

    Raises:
        InputError: Fewer than two languages, fewer than two labels that they share, fewer groups
            than folds in a language, values that are not finite.
        MissingInputError: A column is missing.
    """
    source = as_source(representations, items, layers)
    settings, probe = settings or ProbeSettings(), Probe() if probe is None else probe
    if label_sets not in LABEL_SETS:
        raise InputError(
            f"label_sets is {label_sets!r}", expected=" or ".join(map(repr, LABEL_SETS))
        )
    names = chosen_languages(source, languages)
    if len(names) < 2:
        raise InputError(f"the only language is {names[0]}", expected="at least two languages")
    labels = source.column(target)
    language = source.column("language").astype(str).to_numpy()
    usable = labelled_rows(labels, target) & np.isin(language, names)
    groups, grouped_by = split_groups(source.items)
    rows = np.flatnonzero(usable)
    text = labels.astype(str).to_numpy()
    rows, lines = _with_shared_labels(rows, text, language, names, label_sets)
    kept = [
        mine[sampled_groups(groups[mine], settings.max_examples, seed)]
        for mine in (rows[language[rows] == name] for name in names)
    ]
    rows = np.sort(np.concatenate(kept))
    plan = _planned(rows, text[rows], groups[rows], language[rows], names, settings, seed)
    missing = _missing_labels(plan) if label_sets == "all" else {}
    found: list[dict[str, Any]] = []
    unconverged = 0
    for layer in source.layers:
        table, failed = _one_layer(probe, source.array(layer)[plan.rows], plan, settings)
        found += [{"layer": layer, "task": target, **row} for row in table]
        unconverged += failed
    for row in found:
        row["reason"] = missing.get((row["train_language"], row["test_language"]), "")
    if unconverged:
        lines.append(
            f"{unconverged} fits stopped at the most iterations; raise the probe's max_iter"
        )
    return Transfer(
        frame=tidy(found, TRANSFER_COLUMNS),
        layers=source.layers,
        languages=tuple(names),
        warnings=tuple(lines),
        provenance=how_made(
            "cross-lingual transfer", target, probe, settings, seed, grouped_by=grouped_by,
            label_sets=label_sets, languages=names, labels=list(plan.classes),
        ),
    )  # fmt: skip


def _with_shared_labels(
    rows: Codes, text: NDArray[Any], language: NDArray[Any], names: list[str], label_sets: str
) -> tuple[Codes, list[str]]:
    """Rows whose label all languages have, and one line for every label that is left out."""
    sets = {name: set(text[rows][language[rows] == name]) for name in names}
    empty = [name for name in names if not sets[name]]
    if empty:
        raise InputError(f"no item of {', '.join(empty)} has a label", fix="leave it out")
    shared = set.intersection(*sets.values())
    lines = []
    if label_sets == "shared":
        for label in sorted(set.union(*sets.values()) - shared):
            without = [name for name in names if label not in sets[name]]
            lines.append(f"label {label!r} does not occur in {', '.join(without)}; left out")
        rows = rows[np.isin(text[rows], sorted(shared))]
        if len(shared) < 2:
            raise InputError(
                f"the languages share {len(shared)} labels",
                expected="at least two",
                fix=f"leave out languages, or take label_sets='all' ({'; '.join(lines[:2])})",
            )
    return rows, lines


def _planned(
    rows: Codes,
    text: NDArray[Any],
    groups: Codes,
    language: NDArray[Any],
    names: list[str],
    settings: ProbeSettings,
    seed: int,
) -> _Plan:
    numbers = {name: number for number, name in enumerate(names)}
    of = np.array([numbers[name] for name in language], dtype=np.intp)
    classes, labels = np.unique(text, return_inverse=True)
    for number, name in enumerate(names):
        count = len(np.unique(groups[of == number]))
        if count < settings.folds:
            raise InputError(
                f"{name} has {count} groups for {settings.folds} folds",
                fix="take fewer folds, or leave it out",
            )
        if len(np.unique(labels[of == number])) < 2:
            raise InputError(f"{name} has one label", expected="at least two", fix="leave it out")
    # Every language's labels in every fold, as far as groups allow.
    fold = grouped_folds(of * len(classes) + labels, groups, folds=settings.folds, seed=seed)
    folds = range(1 if settings.holdout else settings.folds)
    tested = np.isin(fold, list(folds))
    random = [
        permuted_labels(labels, groups, seed=1000 * seed + draw)
        for draw in range(settings.n_random)
    ]
    return _Plan(
        names=tuple(names),
        rows=rows,
        language=of,
        targets=np.vstack([labels, *random]),
        classes=tuple(map(str, classes)),
        groups=groups,
        fold=fold,
        folds=folds,
        tested=tested,
        bootstraps=tuple(
            GroupBootstrap(groups[tested & (of == number)], seed, settings.n_resamples)
            for number in range(len(names))
        ),
    )


def _missing_labels(plan: _Plan) -> dict[tuple[str, str], str]:
    sets = [set(plan.targets[0][plan.language == at]) for at in range(len(plan.names))]
    found = {}
    for a, known in zip(plan.names, sets, strict=True):
        for b, wanted in zip(plan.names, sets, strict=True):
            lone = ", ".join(plan.classes[label] for label in sorted(wanted - known))
            if lone:
                found[a, b] = f"{a} does not have labels of {b}, which count as errors: {lone}"
    return found


def _one_layer(
    probe: Any, x: Array, plan: _Plan, settings: ProbeSettings
) -> tuple[list[dict[str, Any]], int]:
    """Rows of one layer; x [n, d]."""
    count, draws = len(plan.names), len(plan.targets)
    predicted = np.full((count, draws, len(x)), -1, dtype=np.intp)
    majority = np.full((count, len(x)), -1, dtype=np.intp)
    jobs = [(at, fold) for at in range(count) for fold in plan.folds]
    trained = [np.flatnonzero((plan.language == at) & (plan.fold != fold)) for at, fold in jobs]
    tested = [np.flatnonzero(plan.fold == fold) for _, fold in jobs]
    k = len(plan.classes)
    with quiet_fits():
        done: Any = Parallel(n_jobs=settings.n_jobs)(
            delayed(_fitted)(probe, x, plan.targets[:, train], train, test, k)
            for train, test in zip(trained, tested, strict=True)
        )
    unconverged = 0
    n_train = np.zeros(count)
    for (at, _), train, test, found in zip(jobs, trained, tested, done, strict=True):
        n_train[at] += len(train) / len(plan.folds)
        majority[at, test] = np.bincount(plan.targets[0][train]).argmax()
        predicted[at][:, test] = found.predicted
        unconverged += found.failed
    rows = []
    for b, bootstrap in enumerate(plan.bootstraps):
        mine = plan.tested & (plan.language == b)
        guesses = np.concatenate([predicted.reshape(count * draws, -1), majority])[:, mine]
        actual = np.concatenate([np.tile(plan.targets, (count, 1)), *[plan.targets[:1]] * count])
        scores = bootstrap.scores(actual[:, mine], guesses, len(plan.classes))
        rows += _cells(plan, b, scores, n_train, int(mine.sum()), draws)
    return rows, unconverged


def _fitted(
    probe: Any, x: Array, labels: Codes, train: Codes, test: Codes, n_classes: int
) -> Answers:
    return answers(probe, x[train], labels, x[test], n_classes)


def _cells(
    plan: _Plan, b: int, scores: Scores, n_train: NDArray[np.float64], n: int, draws: int
) -> list[dict[str, Any]]:
    """Rows of all probes that are tested on language b."""
    count = len(plan.names)
    rows = []
    for metric, point, resampled in zip(METRICS, scores.point, scores.resampled, strict=True):
        own = b * draws
        for a, name in enumerate(plan.names):
            at = a * draws
            low, high = interval(resampled[at])
            gap_low, gap_high = interval(resampled[at] - resampled[own])
            random = point[at + 1 : at + draws]
            rows.append(
                {
                    "train_language": name,
                    "test_language": plan.names[b],
                    "metric": metric,
                    "score": point[at],
                    "ci_low": low,
                    "ci_high": high,
                    "majority": point[count * draws + a],
                    "random_labels": random.mean() if len(random) else np.nan,
                    "gap": point[at] - point[own],
                    "gap_low": gap_low,
                    "gap_high": gap_high,
                    "n_train": n_train[a],
                    "n": n,
                    "n_groups": plan.bootstraps[b].n_groups,
                    "n_classes": len(plan.classes),
                }
            )
    return rows
