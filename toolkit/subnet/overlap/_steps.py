"""Steps that carry one LoRA on share subspaces, whatever they learnt.

A step is ΔW_s = B_s A_s − B_{s−1} A_{s−1}: it reaches the outputs that B_s and B_{s−1} span, and
reads the inputs that A_s and A_{s−1} span. So neighbouring steps have a factor in common on either
side as soon as both factors move, and steps further apart have what the adapter kept in between.

In simulated runs of independent random steps (rank 4, widths 48 and 40) every pair of neighbours
was rejected at .05, left and right, and nearly every pair further apart; of different runs 5 %.
Beside adapters of their own (unrelated tasks, Adam), steps were rejected on the left in 44 to 100 %
of the pairs where the adapter's language had been trained before the step, in 4 % where it came
later. Hence no p-value for these. The cosine compares what was added to the weights: its sign test
rejected 2 to 10 % of independent steps of one run, and next to none where training on unrelated
tasks made a step undo the one before (cosine −.2 to −.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subnet.overlap._inputs import Entries

_NEIGHBOURS = "neighbouring steps share a factor by construction"
_SAME_RUN = "steps of one run carry one LoRA on, and share subspaces by construction"
_AFTER = "the step also changes what was learnt before it, {} among it"


def shared_by_construction(entries: Entries) -> NDArray[np.object_]:
    """[p], why the subspaces of a pair are shared whatever was learnt; `""` where they are not."""
    trained = {
        (item.run, label): item.stage
        for item, label in zip(entries.items, entries.labels, strict=True)
        if _carries(item)
    }
    found = np.full(len(entries.pairs), "", dtype=object)
    for at, (a, b) in enumerate(zip(entries.pairs.a, entries.pairs.b, strict=True)):
        one, other = entries.items[a], entries.items[b]
        if _carries(one) and _carries(other):
            if one.run == other.run:
                apart = abs(one.stage - other.stage)
                found[at] = _NEIGHBOURS if apart == 1 else _SAME_RUN
        elif _carries(one) or _carries(other):
            step, label = (one, entries.labels[b]) if _carries(one) else (other, entries.labels[a])
            if trained.get((step.run, label), step.stage) < step.stage:
                found[at] = _AFTER.format(label)
    return found


def describe_steps(entries: Entries) -> tuple[str, ...]:
    """One line on what the steps of a run have in common by construction, if any has."""
    reasons = {reason for reason in shared_by_construction(entries) if reason}
    if not reasons:
        return ()
    if reasons & {_NEIGHBOURS, _SAME_RUN}:
        warning = (
            "the steps of a run continue one LoRA: each is B_s A_s − B_(s−1) A_(s−1), so that "
            "neighbours share a factor, and others what the adapter kept: their subspaces are "
            "shared by construction, left and right, and have no p-value; read the cosine, which "
            "is below 0 where a step undoes an earlier one"
        )
    else:
        warning = (
            "the steps of a run continue one LoRA, and each also changes what earlier stages put "
            "into it: beside languages trained before a step its subspaces are shared by "
            "construction and have no p-value; read the cosine, which is below 0 where a step "
            "undoes what was learnt"
        )
    return (warning,)


def _carries(item: Any) -> bool:
    """Whether this is a step of an adapter (also of one without factors, as DoRA's)."""
    return hasattr(item, "stage") and (item.is_low_rank or getattr(item, "kind", "") == "lora")
