"""Whether the subnetworks of an analysis are tried on their models, and what that gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from subnet.analysis.search import Search
from subnet.checkpoint import Checkpoint
from subnet.errors import InputError, MissingInputError
from subnet.report import Missing
from subnet.subnetwork import Subnetworks
from subnet.validation import Ablation, Sweep, ablate, ablation_cost, sweep

#: Forward passes of single examples times weights that are run unasked: about a minute's.
LIMIT = 2e11
_EXAMPLES = 32
_RANDOM = 20


@dataclass(frozen=True)
class Trial:
    """What trying the subnetworks gave, or what it wants.

    Attributes:
        ablation: What is lost without each, and with each alone.
        sweep: How much of each is needed.
        missing: Why it was not tried.
        warnings: What a reader must know.
    """

    ablation: Ablation | None = None
    sweep: Sweep | None = None
    missing: tuple[Missing, ...] = ()
    warnings: tuple[str, ...] = ()


def try_subnetworks(
    checkpoint: Checkpoint,
    subnetworks: Subnetworks | None,
    search: Search,
    *,
    wanted: bool | None,
    seed: int,
) -> Trial:
    """Remove, keep and replace each subnetwork of the main run, as far as that is affordable.

    Args:
        checkpoint: With a base and test examples.
        subnetworks: The masks.
        search: How they were found; the sweep finds them at other densities the same way.
        wanted: True to try whatever it costs, False not to, None where it is cheap.
        seed: Seed of the draw of examples and of the random masks.

    Raises:
        SubnetError: It was asked for and is not possible.
    """
    if wanted is False or subnetworks is None:
        return Trial()
    lacking = [
        name
        for name, there in (
            ("base/ with the model", checkpoint.holds("base")),
            ("test.jsonl", checkpoint.holds("test_examples")),
        )
        if not there
    ]
    if lacking:
        if wanted:
            raise MissingInputError(
                "the subnetworks cannot be tried", path=checkpoint.path,
                expected=" and ".join(lacking),
            )  # fmt: skip
        return _not_tried("there is nothing to try them on", f"add {' and '.join(lacking)}")
    run = subnetworks.runs[0]
    members = [member for member in subnetworks if member.run == run]
    settings: dict[str, Any] = {"n_examples": _EXAMPLES, "n_random": _RANDOM, "seed": seed}
    try:
        cost = ablation_cost(checkpoint, members, **settings).forward_examples
        cost *= _n_weights(checkpoint)
        if wanted is None and cost > LIMIT:
            return _not_tried(
                f"trying them takes about {cost / LIMIT:.0f} minutes", "ask for it with --ablation"
            )
        found = ablate(checkpoint, members, **settings)
    except InputError as error:
        if wanted:
            raise
        return _not_tried(f"they could not be tried ({error.found})", error.fix or "see the data")
    curves = None
    if search.opened_masks is None and search.method in (None, "magnitude"):
        curves = sweep(
            checkpoint, n_examples=_EXAMPLES, seed=seed,
            **{k: v for k, v in search.settings.items() if k != "density"},
        )  # fmt: skip
    return Trial(found, curves, warnings=found.warnings)


def _not_tried(reason: str, fix: str) -> Trial:
    return Trial(missing=(Missing("ablation", reason, fix),))


def _n_weights(checkpoint: Checkpoint) -> int:
    """Weights of the base, as its files say."""
    from subnet.checkpoint.tensors import has_model, open_model_store

    folder = next(entry.path for entry in checkpoint.entries if entry.kind == "base")
    if not has_model(folder):
        return 0
    return sum(math.prod(info.shape) for info in open_model_store(folder).infos.values())
