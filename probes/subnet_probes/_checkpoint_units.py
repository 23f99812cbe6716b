"""Neurons and heads that tell languages apart, beside the masks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet.errors import InputError
from subnet_probes._quiet import quiet_fits
from subnet_probes.agreement import unit_agreement
from subnet_probes.model_units import UNITS, rank_model_units
from subnet_probes.probe import Probe

if TYPE_CHECKING:
    import pandas as pd

    from subnet.checkpoint import Checkpoint
    from subnet.subnetwork import Subnetwork
    from subnet_probes._checkpoint_models import Point
    from subnet_probes.representation import Representations


def units_of_languages(
    checkpoint: Checkpoint,
    point: Point,
    found: Representations,
    examples: Sequence[Mapping[str, Any]],
    masks: Mapping[str, Subnetwork],
    *,
    pool: str,
    batch_size: int,
) -> pd.DataFrame:
    """Units that write what tells a language from the others, beside every language's mask.

    One multinomial probe reads the language off the last layer; `rank_model_units` (`gradient`)
    ranks the units below by what they hand to it on a language's own examples.

    Args:
        checkpoint: With the model.
        point: Which model.
        found: Its representations of the examples.
        examples: Of two languages or more.
        masks: Language to its mask of neurons or heads.
        pool: As of the representations.
        batch_size: Examples per pass.

    Returns:
        task, language, mask_language, then the columns of `unit_agreement`. Where mask_language is
        the language it is the agreement of interest; with another's it is what to compare with.

    Raises:
        InputError: There are fewer than two languages, no mask is of one of them, or the model's
            units are not understood.
        NotComparableError: A mask is of other units.
    """
    import pandas as pd

    if len(found.languages) < 2:
        raise InputError(
            f"the only language is {found.languages[0]}", expected="two or more to tell apart"
        )
    layer = found.layers[-1]
    y = found.items["language"].astype(str).to_numpy()
    with quiet_fits():
        probe = Probe().fit(np.asarray(found.array(layer), dtype=np.float32), y)
    parts = []
    for label in (label for label in found.languages if label in masks):
        own = [example for example in examples if example["language"] == label]
        for kind in (kind for kind in UNITS if any(m.granularity == kind for m in masks.values())):
            rankings = rank_model_units(
                probe, checkpoint, own, layer=layer, units=kind, method="gradient",
                target="language", label=label, pool=pool, batch_size=batch_size,
                stage=point.stage, run=point.run,
            )  # fmt: skip
            for other, mask in masks.items():
                known = [ranking for ranking in rankings if ranking.layer in mask.shapes]
                if mask.granularity == kind and known:
                    rows = unit_agreement(known, mask)
                    place = {"task": "language", "language": label, "mask_language": other}
                    parts.append(rows.assign(**place)[[*place, *rows.columns]])
    if not parts:
        raise InputError(
            f"no mask is of a unit below layer {layer} and a language of the examples",
            expected=f"masks of {', '.join(found.languages)}",
        )
    return pd.concat(parts, ignore_index=True)
