"""How sure a slope over pairs of languages is: leave out one language at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from subnet._statistics import CONFIDENCE
from subnet.relation._pairs import Pairs
from subnet.relation._projection import has_rest, norms, residual


def slopes_with_intervals(
    pairs: Pairs, cells: NDArray[np.bool_], which: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Standardised partial slopes and half the width of their 95 % intervals.

    The interval is the delete-one jackknife over languages, row and column together, with Student's
    quantile: var = (l − 1)/l · Σ (b₍ₖ₎ − b̄)². Pairs that share a language may depend on each other
    in any way. Where they do not, the variance counts each pair twice and the interval is up to √2
    too wide; it is kept so, because the correction (Graham 2020, Handbook of Econometrics 7A)
    covers 85 % instead of 95 % at six languages.

    Args:
        pairs: Outcome, predictors, controls.
        cells: [n], where outcome and predictors are known.
        which: The predictors that are known in exactly these cells.

    Returns:
        Slopes [m], half widths [m] (NaN where undefined), and languages without which they are
        undefined.
    """
    n_languages = len(pairs.languages)
    slopes = _standardised_slopes(pairs, cells, which)
    left_out = np.array(
        [_standardised_slopes(pairs, cells & pairs.without(k), which) for k in range(n_languages)]
    )
    variance = (n_languages - 1) * left_out.var(axis=0)
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n_languages - 1))
    lost = np.isnan(left_out[:, np.isfinite(slopes)]).any(axis=1)
    needed = [str(name) for name, gone in zip(pairs.languages, lost, strict=True) if gone]
    return slopes, quantile * np.sqrt(variance), ", ".join(needed)


def _standardised_slopes(
    pairs: Pairs, cells: NDArray[np.bool_], which: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Slope of the outcome on each predictor given the controls, in standard deviations, [m]."""
    y, x = pairs.outcome[cells, None], pairs.predictors[np.ix_(which, cells)].T
    controls = pairs.controls[cells]
    intercepts = controls[:, : len(pairs.runs)]
    y_spread, x_spread = residual(y, intercepts), residual(x, intercepts)
    y_left, x_left = residual(y, controls), residual(x, controls)
    defined = has_rest(x_left, x) & has_rest(y_left, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (x_left * y_left).sum(axis=0) / (x_left**2).sum(axis=0)
        slopes *= norms(x_spread) / norms(y_spread)
    return np.where(defined, slopes, np.nan)
