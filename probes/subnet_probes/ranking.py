"""Which units carry a property."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from subnet._tables import Provenance, provenance
from subnet.errors import InputError
from subnet_probes._sources import Array, as_source
from subnet_probes.probe import Probe
from subnet_probes.probing import labelled_rows

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("weights", "integrated-gradients", "gradient-x-activation")


@dataclass(frozen=True, eq=False)
class UnitRanking:
    """Units of one layer, by how much they carry a property.

    Attributes:
        scores: [d], larger = more; never negative.
        layer: Name of the layer.
        provenance: Method, property, settings.
    """

    scores: NDArray[np.float64]
    layer: str
    provenance: Provenance

    @property
    def order(self) -> NDArray[np.intp]:
        """[d], numbers of the units, the first carries most; equal ones by number."""
        return np.argsort(-self.scores, kind="stable")

    def top(self, k: int) -> NDArray[np.bool_]:
        """[d], whether a unit is among the k first.

        Raises:
            InputError: There are not that many.
        """
        if not 1 <= k <= len(self.scores):
            raise InputError(f"k is {k}", expected=f"1 to {len(self.scores)} units")
        found = np.zeros(len(self.scores), dtype=bool)
        found[self.order[:k]] = True
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row per unit, the first first: layer, unit, rank, score, share of the sum."""
        import pandas as pd

        order = self.order
        total = self.scores.sum()
        return pd.DataFrame(
            {
                "layer": self.layer,
                "unit": order,
                "rank": np.arange(1, len(order) + 1),
                "score": self.scores[order],
                "share": self.scores[order] / total if total > 0 else math.nan,
            }
        )


def rank_units(
    probe: Probe | None,
    representations: Any,
    *,
    layer: Any = None,
    target: str = "label",
    label: str | None = None,
    method: str = "weights",
    items: pd.DataFrame | None = None,
    n_steps: int = 32,
    seed: int = 0,
) -> UnitRanking:
    """Rank the units of a layer by what a linear probe makes of them.

    - `"weights"`: mean over labels of |w|, weights on standardised units, centred over the labels
      since a softmax does not see what all labels share (Dalvi et al. 2019, 1812.09355).
    - `"integrated-gradients"`: mean over items of |attribution| of the log-probability of the
      item's own label, along the line from the mean item (Sundararajan et al. 2017; captum).
    - `"gradient-x-activation"`: the same with the gradient at the item times its deviation from
      the mean item.

    A penalised probe spreads a property over units that carry it together, and may weigh a unit
    only to cancel another: a rank says what this probe uses, not what the model does.

    Args:
        probe: A `Probe`, fitted on this layer or not; `Probe()` by default. One that is not fitted
            is cloned and fitted on all items.
        representations: As of `probe_language`.
        layer: Name or number; needed where there are several.
        target: Column of the items that holds the label; items without one are left out.
        label: Units for this label only: its own centred weight, or its own items.
        method: One of the above.
        items: Where `representations` is arrays.
        n_steps: Points on the line, for integrated gradients.
        seed: Recorded; nothing here is random.

    Raises:
        InputError: Several layers and none named, one label only, an unknown label or method, a
            probe that is not linear or fitted on another width.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}", expected=" or ".join(map(repr, METHODS)))
    source = as_source(representations, items, None if layer is None else [layer])
    if len(source.layers) > 1:
        raise InputError(
            f"there are {len(source.layers)} layers",
            expected="one",
            fix=f"name it: layer={source.layers[-1]!r}",
        )
    name = source.layers[0]
    labels = source.column(target)
    usable = labelled_rows(labels, target)
    x, y = source.array(name)[usable], labels[usable].astype(str).to_numpy()
    fitted = fitted_probe(probe, x, y)
    known = [str(one) for one in fitted.classes_]
    if label is not None and label not in known:
        raise InputError(f"label is {label!r}", expected=f"one of {', '.join(known)}")
    if method == "weights":
        scores = _by_weight(fitted, None if label is None else known.index(label))
    else:
        unknown = sorted(set(y) - set(known))
        if unknown:
            raise InputError(f"the probe does not know {unknown[0]!r}", expected=", ".join(known))
        mine = np.ones(len(y), dtype=bool) if label is None else y == label
        if not mine.any():
            raise InputError(f"no item is labelled {label!r}")
        numbers = np.array([known.index(one) for one in y[mine]])
        found = attribute_units(fitted, x[mine], numbers, x.mean(axis=0), method, n_steps)
        scores = np.abs(found).mean(axis=0)
    settings = {"method": method, "target": target, "label": label, "layer": name}
    if method == "integrated-gradients":
        settings["n_steps"] = str(n_steps)
    return UnitRanking(
        np.asarray(scores, dtype=np.float64),
        name,
        provenance("unit ranking", settings, seed=seed, libraries=("scikit-learn", "captum")),
    )


def attribute_units(
    probe: Probe,
    x: Array,
    labels: NDArray[np.intp],
    baseline: NDArray[np.floating[Any]],
    method: str = "integrated-gradients",
    n_steps: int = 32,
) -> NDArray[np.float64]:
    """Attribution of each item's log-probability of its label to each unit, by captum.

    Integrated gradients sum to log p(x) − log p(baseline) over the units.

    Args:
        probe: Fitted.
        x: [n, d].
        labels: [n], numbers of the labels in `probe.classes_`.
        baseline: [d], where the line starts.
        method: `"integrated-gradients"` or `"gradient-x-activation"`.
        n_steps: Points on the line.

    Returns:
        [n, d].
    """
    import torch
    from captum.attr import IntegratedGradients, Saliency

    weights, bias = probe.affine()
    if len(weights) == 1:  # two classes: one logit, against 0
        weights, bias = np.vstack([0 * weights, weights]), np.concatenate([0 * bias, bias])
    w, b = torch.from_numpy(weights), torch.from_numpy(bias)
    rows = torch.from_numpy(labels)

    def log_probability(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(values @ w.T + b, dim=-1).gather(1, wanted[:, None])[:, 0]

    inputs = torch.from_numpy(np.asarray(x, dtype=np.float64))
    start = torch.from_numpy(np.asarray(baseline, dtype=np.float64))[None]
    if method == "gradient-x-activation":
        slopes = Saliency(log_probability).attribute(
            inputs.requires_grad_(), abs=False, additional_forward_args=(rows,)
        )
        return np.asarray((slopes * (inputs - start)).detach().numpy())
    found = IntegratedGradients(log_probability).attribute(
        inputs,
        start,
        additional_forward_args=(rows,),
        n_steps=n_steps,
        method="gausslegendre",
        internal_batch_size=max(4096, len(x)),
    )
    return np.asarray(found.detach().numpy())


def fitted_probe(probe: Any, x: Array, y: NDArray[Any]) -> Probe:
    """The probe, fitted; one that is not yet is cloned and fitted on x [n, d] and y [n].

    Raises:
        InputError: It is not linear, was fitted on another width, or there is one label only.
    """
    probe = Probe() if probe is None else probe
    if not isinstance(probe, Probe):
        raise InputError(
            f"the probe is a {type(probe).__name__}", expected="a Probe, whose weights are units'"
        )
    if not hasattr(probe, "pipeline_"):
        if len(np.unique(y)) < 2:
            raise InputError(f"all items are labelled {y[0]!r}", expected="at least two labels")
        found: Probe = clone(probe).fit(x, y)
        return found
    if probe.n_features_in_ != x.shape[1]:
        raise InputError(
            f"the probe was fitted on {probe.n_features_in_} units, the layer has {x.shape[1]}",
            expected="the layer that it was fitted on",
        )
    return probe


def _by_weight(probe: Probe, label: int | None) -> NDArray[np.float64]:
    """[d], from weights on standardised units."""
    weights = np.asarray(probe.coef_, dtype=np.float64)
    if len(weights) == 1:  # two classes: half of the logit's weight each
        weights = np.vstack([-weights, weights]) / 2
    centred = np.abs(weights - weights.mean(axis=0))
    return np.asarray(centred.mean(axis=0) if label is None else centred[label])
