"""Which units inside a model carry a property: attribution through the model to a probe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet._tables import MAIN_RUN, provenance
from subnet.errors import InputError
from subnet.subnetwork.settings import one_of
from subnet_probes._encoding import Example
from subnet_probes._pooling import POOLS
from subnet_probes._stacks import find_stacks
from subnet_probes._subject import Surgery, examples_of, load
from subnet_probes._through_model import (
    BASELINES,
    METHODS,
    BlockAttribution,
    Composed,
    attribute_blocks,
)
from subnet_probes.extraction import find_encoder, representations
from subnet_probes.probe import Probe
from subnet_probes.probing import labelled_rows
from subnet_probes.ranking import UnitRanking, fitted_probe

if TYPE_CHECKING:
    from torch import nn

    from subnet.checkpoint import Checkpoint

UNITS = ("neuron", "head")


def rank_model_units(
    probe: Probe | None,
    model: nn.Module | Checkpoint | str | Path,
    data: Iterable[Example] | None = None,
    *,
    layer: str | int,
    units: str = "neuron",
    method: str = "conductance",
    target: str = "label",
    label: str | None = None,
    pool: str = "mean",
    special_tokens: bool = True,
    baseline: str = "mean",
    n_steps: int = 16,
    batch_size: int = 8,
    tokenizer: Any = None,
    max_length: int | None = None,
    language: str | None = None,
    stage: int | None = None,
    run: str = MAIN_RUN,
    seed: int = 0,
) -> tuple[UnitRanking, ...]:
    """Rank the neurons or heads of a model by what they give to a probe further up.

    The probe is put on top of the model: tokens → hidden states of `layer` → pooled → logits of the
    probe. What is attributed is log p of the item's own label, in nats, to what each unit hands to
    its block's down (or output) projection, summed over tokens and, of a head, over its width. A
    unit's score is the mean over items of the magnitude. `rank_units` says which units *of the
    layer* the probe reads; this says which units *below it* wrote what it reads.

    - `"conductance"` (Dhamdhere et al. 2019, 1805.12233; captum's `LayerConductance`): Σ ∫ ∂F/∂y dy
      as the embeddings go in a straight line from the baseline to the item. Where all that reaches
      the probe passes through a block (residual streams do not), its units sum to F − F(baseline).
      `n_steps` + 1 forward and backward passes per block.
    - `"gradient"` (captum's `LayerGradientXActivation`): Σ y · ∂F/∂y, the derivative by a gate on
      the unit. One forward and one backward pass for all blocks together.

    Scores of all blocks are in one currency, so that their tables can be put together and sorted.

    Args:
        probe: Fitted on representations of this model at this layer, with the same `pool`; one that
            is not fitted (`Probe()` by default) is cloned and fitted on those of the data.
        model: As of `representations`; of a checkpoint, `language` or `stage` says which.
        data: As of `representations`; items without a `target` are left out.
        layer: Name or number of the layer that the probe reads; of models with two stacks, of the
            encoder. Units of the blocks below it are ranked.
        units: `"neuron"` (of the feed-forward blocks) or `"head"`.
        method: One of the above.
        target: Column of the items that holds the label.
        label: Only items of this label.
        pool: How a sentence becomes one row: `"mean"`, `"first"`, `"last"`.
        special_tokens: As of `representations`.
        baseline: Where the line starts, for conductance, in every place of a text: the `"mean"`
            embedding of the items' tokens, that of the `"padding"` token, or `"zero"`. A model
            whose blocks begin with a norm bends so sharply near zero that few steps miss it.
        n_steps: Points on the line, for conductance.
        batch_size: Items at a time; conductance holds `n_steps` + 1 times as many.
        tokenizer: As of `representations`.
        max_length: As of `representations`.
        language: Of a checkpoint, whose adapter or weights.
        stage: Of a checkpoint, the weights after that stage.
        run: The run, where a checkpoint holds several.
        seed: Recorded; nothing here is random.

    Returns:
        One ranking per block, named as an entry of a mask of units (`layers.3.neurons`), so that
        `unit_agreement` with such a mask finds its counterparts.

    Raises:
        InputError: The layer has no block below it, the probe is of another width or does not know
            a label, there is one label only, or the model's units are not understood.
        MissingInputError: No item has a value in the target column.

    Example:
        >>> found = rank_model_units(None, model, data, layer=6)  # doctest: +SKIP
        >>> pd.concat([one.to_frame() for one in found]).nlargest(10, "score")  # doctest: +SKIP
    """
    _check(units, method, pool, baseline, n_steps, batch_size)
    examples = list(examples_of(model) if data is None else data)
    loaded = load(model, Surgery(None, "whole", None), language, stage, run)
    stacks = find_stacks(loaded.model, decoder=False)
    encode = find_encoder(examples, loaded, stacks, tokenizer, max_length, special_tokens, False)
    found = representations(
        loaded.model, examples, layers=layer, pool=pool, special_tokens=special_tokens,
        tokenizer=encode.tokenizer, max_length=encode.max_length,
    )  # fmt: skip
    (name,) = found.layers
    if name.startswith("decoder."):
        raise InputError(f"layer {name} is the decoder's", expected="a layer of the encoder")
    if target not in found.items.columns:
        raise InputError(f"there is no {target!r}", expected=", ".join(map(str, found.items)))
    labels = found.items[target]
    usable = np.flatnonzero(labelled_rows(labels, target))
    y = labels.iloc[usable].astype(str).to_numpy()
    fitted = fitted_probe(probe, found.array(name)[usable], y)
    known = [str(one) for one in fitted.classes_]
    wanted = set(y) if label is None else {label}
    if not wanted <= set(known):
        one = sorted(wanted - set(known))[0]
        raise InputError(f"the probe does not know {one!r}", expected=", ".join(known))
    mine = np.ones(len(y), dtype=bool) if label is None else y == label
    if not mine.any():
        raise InputError(f"no item is labelled {label!r}", expected=", ".join(sorted(set(y))))
    rows = [encode(examples[at], int(at)) for at in usable[mine]]
    composed = Composed(loaded.model, stacks, fitted, name, pool)
    request = BlockAttribution(units, method, baseline, n_steps)
    numbers = np.array([known.index(one) for one in y[mine]])
    parts = attribute_blocks(composed, rows, numbers, request, batch_size)
    settings: dict[str, Any] = {
        "method": method,
        "units": units,
        "target": target,
        "label": label,
        "layer": name,
        "pool": pool,
        "n_items": len(rows),
        "of": dict(loaded.described),
        "attributed": "log-probability of the item's label under the probe",
    }
    if method == "conductance":
        settings |= {"baseline": baseline, "n_steps": n_steps, "quadrature": "riemann_trapezoid"}
    made = provenance(
        "unit ranking through the model", settings, seed=seed, libraries=("scikit-learn", "captum")
    )
    return tuple(
        UnitRanking(np.abs(values).mean(axis=0), block, made) for block, values in parts.items()
    )


def _check(
    units: str, method: str, pool: str, baseline: str, n_steps: int, batch_size: int
) -> None:
    one_of("units", units, UNITS)
    one_of("method", method, METHODS)
    one_of("pool", pool, tuple(known for known in POOLS if known != "token"))
    one_of("baseline", baseline, BASELINES)
    counts: dict[str, Any] = {"n_steps": n_steps, "batch_size": batch_size}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}", expected="1 or more")
