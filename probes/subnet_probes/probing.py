"""What representations encode: language identity, labels of sentences, labels of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import effective_n_jobs  # type: ignore[import-untyped]  # joblib has no types
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.parallel import Parallel, delayed

from subnet._tables import Provenance, provenance
from subnet.errors import InputError, MissingInputError
from subnet_probes._evaluation import Task, evaluate, make_task
from subnet_probes._quiet import quiet_fits
from subnet_probes._sources import Source, as_source
from subnet_probes.probe import Probe
from subnet_probes.probe_settings import ProbeSettings
from subnet_probes.probing_result import COLUMNS, Probing, tidy
from subnet_probes.splits import sampled_groups, split_groups

if TYPE_CHECKING:
    import pandas as pd

#: Name of a probe that is about all languages together.
ALL = "all"


def probe_language(
    representations: Any,
    *,
    items: pd.DataFrame | None = None,
    layers: Sequence[Any] | None = None,
    probe: BaseEstimator | None = None,
    settings: ProbeSettings | None = None,
    seed: int = 0,
) -> Probing:
    """How well the language can be read off representations, layer by layer.

    One multinomial probe per layer over all languages. A concept (else a sentence, else an id) is
    never trained on in one language and tested in another, so that the probe cannot win by topic.

    Args:
        representations: Something with `layers`, `array(layer)` [n, d] and `items`; arrays [n, d]
            by layer; or one array.
        items: Where `representations` is arrays: n rows with `language` and at least one of
            `concept`, `sentence`, `id`.
        layers: Names or numbers; all by default.
        probe: Any scikit-learn classifier, cloned for every fit (with `predict_proba` where
            codelengths are wanted); `Probe()` by default.
        settings: Splits, baselines, codelengths.
        seed: Seed of splits, baselines, order of coding and resamples.

    Returns:
        Rows of language `all`.

    Raises:
        InputError: Fewer than two languages, fewer groups than folds, values that are not finite.
        MissingInputError: A column is missing.
    """
    source = as_source(representations, items, layers)
    if len(source.languages) < 2:
        raise InputError(
            f"the only language is {source.languages[0]}",
            expected="at least two languages to tell apart",
        )
    labels = source.column("language")
    return _probe(source, "language", labels, None, [ALL], probe, settings, seed)


def probe_labels(
    representations: Any,
    *,
    target: str = "label",
    items: pd.DataFrame | None = None,
    languages: Iterable[str] | None = None,
    pooled: bool = False,
    layers: Sequence[Any] | None = None,
    probe: BaseEstimator | None = None,
    settings: ProbeSettings | None = None,
    seed: int = 0,
) -> Probing:
    """How well the label of a sentence can be read off representations, within each language.

    Args:
        representations: As of `probe_language`.
        target: Column of the items that holds the label; items without one are left out.
        items: As of `probe_language`.
        languages: By default all.
        pooled: One probe for all languages together, in rows of language `all`.
        layers: As of `probe_language`.
        probe: As of `probe_language`.
        settings: Splits, baselines, codelengths.
        seed: Seed of splits, baselines, order of coding and resamples.

    Returns:
        A language that cannot be probed has a row with the `reason`.

    Raises:
        InputError: No language can be probed, a language does not exist, values are not finite.
        MissingInputError: A column is missing.
    """
    source = as_source(representations, items, layers)
    names = [ALL] if pooled else chosen_languages(source, languages)
    within = chosen_languages(source, languages) if pooled else None
    labels = source.column(target)
    return _probe(source, target, labels, None, names, probe, settings, seed, within)


def probe_tokens(
    representations: Any,
    *,
    target: str = "tag",
    items: pd.DataFrame | None = None,
    languages: Iterable[str] | None = None,
    layers: Sequence[Any] | None = None,
    probe: BaseEstimator | None = None,
    settings: ProbeSettings | None = None,
    seed: int = 0,
) -> Probing:
    """How well a token's label (its part of speech) can be read off, within each language.

    Splits are by sentence (by concept where there is one). The control task gives each word type of
    a language a random label (Hewitt and Liang 2019): types recur across sentences, so what a probe
    scores on it, it has memorised.

    Args:
        representations: As of `probe_language`, of tokens.
        target: Column of the items that holds the label.
        items: As of `probe_language`, with `sentence` and `word`.
        languages: By default all.
        layers: As of `probe_language`.
        probe: As of `probe_language`.
        settings: Splits, baselines, codelengths; `max_examples` bounds the cost.
        seed: Seed of splits, baselines, order of coding and resamples.

    Raises:
        InputError, MissingInputError: As `probe_labels`.
    """
    source = as_source(representations, items, layers)
    source.column("sentence")
    labels, types = source.column(target), source.column("word")
    names = chosen_languages(source, languages)
    return _probe(source, target, labels, types, names, probe, settings, seed)


def chosen_languages(source: Source, wanted: Iterable[str] | None) -> list[str]:
    """Languages in order, each of which there is."""
    if wanted is None:
        return list(source.languages)
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(map(str, wanted)))
    unknown = [name for name in names if name not in source.languages]
    if unknown or not names:
        raise InputError(
            f"there are no representations of {', '.join(unknown) or 'no language'}",
            expected=f"some of {', '.join(source.languages)}",
        )
    return names


def labelled_rows(labels: pd.Series[Any], target: str) -> NDArray[np.bool_]:
    """[n], which items have a label.

    Raises:
        MissingInputError: None has.
    """
    has = labels.notna().to_numpy() & (labels.astype(str) != "").to_numpy()
    if not has.any():
        raise MissingInputError(f"no item has a value in the column {target!r}")
    return np.asarray(has)


def how_made(
    method: str, target: str, probe: Any, settings: ProbeSettings, seed: int, **further: Any
) -> Provenance:
    """Provenance of a probing experiment."""
    values = {
        "target": target,
        "probe": type(probe).__name__,
        "probe_settings": {k: v for k, v in probe.get_params().items() if not hasattr(v, "fit")},
        **asdict(settings),
        **further,
    }
    return provenance(method, values, seed=seed, libraries=("scikit-learn", "numpy"))


def _probe(
    source: Source,
    target: str,
    labels: pd.Series[Any],
    types: pd.Series[Any] | None,
    names: list[str],
    probe: BaseEstimator | None,
    settings: ProbeSettings | None,
    seed: int,
    within: list[str] | None = None,
) -> Probing:
    """All layers and languages of a task."""
    settings, probe = settings or ProbeSettings(), Probe() if probe is None else probe
    groups, grouped_by = split_groups(source.items)
    by_type = groups if types is None else types.astype(str).to_numpy()
    usable = labelled_rows(labels, target)
    text = labels.astype(str).to_numpy()
    language = source.column("language").astype(str).to_numpy()
    tasks, lines = [], []
    for name in names:
        mine = np.isin(language, within) if within else (language == name) | (name == ALL)
        missing = int((mine & ~usable).sum())
        if missing:
            lines.append(f"{name}: {missing} of {int(mine.sum())} items have no {target}; left out")
        rows = np.flatnonzero(mine & usable)
        rows = rows[sampled_groups(groups[rows], settings.max_examples, seed)]
        task, notes = make_task(name, rows, text[rows], groups[rows], by_type[rows], settings, seed)
        tasks.append(task)
        lines += notes
    if all(task.reason for task in tasks):
        few = [task for task in tasks if "folds" in task.reason]
        raise InputError(
            tasks[0].reason, fix="take fewer folds, or more items" if few else "take other items"
        )
    rows_found: list[dict[str, Any]] = []
    unconverged = 0
    # As many layers in memory as are worked on at a time.
    step = -(-effective_n_jobs(settings.n_jobs) // len(tasks))
    for start in range(0, len(source.layers), step):
        arrays = {layer: source.array(layer) for layer in source.layers[start : start + step]}
        for layer, array in arrays.items():
            lines += _constant_units(array, tasks, layer)
        places = [(layer, task) for layer in arrays for task in tasks]
        with quiet_fits():
            done: Any = Parallel(n_jobs=settings.n_jobs)(
                delayed(evaluate)(probe, arrays[layer], task, settings, seed)
                for layer, task in places
            )
        for (layer, task), (found, failed) in zip(places, done, strict=True):
            place = {"layer": layer, "language": task.name, "task": target}
            rows_found += [{**place, **row} for row in found]
            unconverged += failed
    if unconverged:
        lines.append(
            f"{unconverged} fits stopped at the most iterations; raise the probe's max_iter"
        )
    return Probing(
        frame=tidy(rows_found, COLUMNS),
        layers=source.layers,
        languages=tuple(names),
        warnings=tuple(dict.fromkeys(lines)),
        provenance=how_made(
            "linear probing", target, probe, settings, seed, grouped_by=grouped_by,
            control_by="word" if types is not None else grouped_by,
            languages=within or list(names),
        ),
    )  # fmt: skip


def _constant_units(array: Any, tasks: list[Task], layer: str) -> list[str]:
    rows = np.unique(np.concatenate([task.rows for task in tasks]))
    constant = int((np.ptp(array[rows], axis=0) == 0).sum())
    if not constant:
        return []
    what = (
        "every unit is"
        if constant == array.shape[1]
        else f"{constant} of {array.shape[1]} units are"
    )
    return [f"layer {layer}: {what} constant and carry nothing"]
