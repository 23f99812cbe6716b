"""Which languages and layers are compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence

from subnet.errors import InputError
from subnet_probes.probing import labelled_rows
from subnet_probes.representation import Representations
from subnet_probes.splits import split_groups

#: Pairs of languages times layers up to which similarity is measured at all layers, unasked.
_PAIRS = 2000

Layers = str | int | Sequence[str | int] | None


def pair_layers(found: Representations, wanted: Layers) -> list[str]:
    """Layers that languages are compared at: a middle one and the last, unless they are named.

    Raises:
        InputError: There is no such layer.
    """
    if wanted is None:
        middle = found.layers[(len(found.layers) - 1) // 2]
        return list(dict.fromkeys((middle, found.layers[-1])))
    if wanted == "all":
        return list(found.layers)
    listed = [wanted] if isinstance(wanted, str | int) else wanted
    return list(dict.fromkeys(found.layer_name(layer) for layer in listed))


def similarity_layers(found: Representations, wanted: Layers) -> list[str]:
    """As `pair_layers`, and all layers where there are few pairs of languages.

    Raises:
        InputError: There is no such layer.
    """
    n = len(found.languages)
    few = n * (n - 1) // 2 * len(found.layers) <= _PAIRS
    return pair_layers(found, "all" if wanted is None and few else wanted)


def transferable(found: Representations, target: str, folds: int) -> tuple[list[str], list[str]]:
    """Languages that a probe can be trained and tested on, and a line for each of the others.

    Raises:
        InputError: There are fewer than two.
    """
    groups, _ = split_groups(found.items)
    labels, language = found.items[target], found.items["language"].to_numpy()
    has = labelled_rows(labels, target)
    kept, lines = [], []
    for label in found.languages:
        mine = has & (language == label)
        n_groups, n_labels = len(set(groups[mine])), labels[mine].astype(str).nunique()
        if n_groups >= folds and n_labels > 1:
            kept.append(label)
            continue
        lines.append(
            f"{label} has {n_labels} label{'s' * (n_labels != 1)} in {n_groups} groups, and there "
            f"are {folds} folds; left out"
        )
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} of {len(found.languages)} languages can be trained and tested on "
            f"({'; '.join(lines[:2])})",
            expected="two languages with two labels and enough examples",
        )
    return kept, lines


def compared_labels(found: Representations, target: str, languages: list[str]) -> tuple[str, str]:
    """Which labels transfer is of, as `cross_lingual_transfer` names it, and a line where not all.

    Languages that share hardly a label are compared on all, so that the others' cells stay.
    """
    labels, language = found.items[target], found.items["language"].to_numpy()
    has = labelled_rows(labels, target)
    sets = [set(labels[has & (language == label)].astype(str)) for label in languages]
    shared = set.intersection(*sets)
    if len(shared) > 1:
        return "shared", ""
    return "all", (
        f"the languages share {len(shared)} label{'s' * (len(shared) != 1)}, so all labels count, "
        "and those that a language does not have are errors of its probe"
    )
