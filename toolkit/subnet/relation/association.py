"""Whether one matrix over pairs of languages goes with another, given further ones.

Pairs of languages are not independent: all pairs of a language share what is peculiar to it. So no
p-value here counts pairs; every one comes from giving the languages of the predictor other names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from subnet.errors import InputError
from subnet.relation._interval import slopes_with_intervals
from subnet.relation._pairs import Matrices, Pairs, pair_up
from subnet.relation._projection import NOTHING, basis, has_rest, norms, residual

#: Below this number of languages no relation is tested.
FEWEST_LANGUAGES = 5
#: A p-value at or below this counts.
ALPHA = 0.05

Method = Literal["mrqap_dsp", "qap"]

# Numbers held at once while permuting: 64 MB of float64.
_BATCH = 8_000_000
# Arrangements whose statistic (in [0, 1]) differs by less are the same up to rounding.
_TIE = 1e-10


@dataclass(frozen=True)
class Association:
    """The relation of one predictor to the outcome.

    Attributes:
        estimate: Standardised partial slope: standard deviations of the outcome per standard
            deviation of the predictor, controls held fixed (for `qap` the correlation). Both
            deviations are within runs.
        ci_low, ci_high: 95 % interval of the estimate from leaving out one language at a time.
        statistic: t of the predictor's coefficient for `mrqap_dsp`, the correlation for `qap`.
        p_value: Two-sided permutation p-value.
        smallest_p: The smallest p-value that this statistic can give on these data.
        n_languages: Languages whose names were permuted.
        n_pairs: Ordered pairs used, summed over runs.
        n_permutations: Arrangements evaluated; all l! of them where `exact`.
        exact: Whether every arrangement was evaluated.
        method: `mrqap_dsp` or `qap`.
        testable: Whether `smallest_p` can reach .05 (for one test; `relate` corrects for many).
        reason: Why something is undefined, `""` where nothing is. Not testable without a reason
            means that `smallest_p` is above .05.
        languages: The languages that took part.
    """

    estimate: float
    ci_low: float
    ci_high: float
    statistic: float
    p_value: float
    smallest_p: float
    n_languages: int
    n_pairs: int
    n_permutations: int
    exact: bool
    method: str
    testable: bool
    reason: str
    languages: tuple[str, ...] = ()


def associate(
    outcome: Matrices,
    predictor: Matrices,
    controls: Mapping[str, Matrices] | None = None,
    *,
    method: Method = "mrqap_dsp",
    n_permutations: int = 9999,
    seed: int = 0,
) -> Association:
    """Test whether a predictor goes with an outcome over ordered pairs of languages.

    `mrqap_dsp` is multiple regression with double semi-partialing: the predictor is regressed on
    the controls, its *residual* matrix is permuted (rows and columns together), the outcome is
    regressed on the permuted residual and the controls, and the |t| of the residual is compared
    with that of the actual one. `qap` is Mantel's test on directed matrices: it permutes the
    predictor itself, compares |r| and ignores the controls; a shared confounder makes it reject far
    too often, so it stands beside the other for comparison only.

    With several runs the regression is stacked: each run has its own intercept and the same
    permutation of the languages is applied in every run, since runs share their languages and are
    no independent evidence about them.

    A pair without an outcome is left out; the predictor is permuted in full, so other pairs of
    languages come to stand there. A pair without a predictor travels with the names: after each
    permutation the pairs that meet it are left out and the controls are fitted again to the rest.
    Under the null hypothesis, in which the names on the predictor do not matter, the pattern
    of what is missing is permuted with the values, so the test stays exact for `qap`.

    Args:
        outcome: [l, l], row = the language that was trained, column = the one that was evaluated;
            or one such matrix for each run. NaN where it is unknown. The diagonal is never used.
        predictor: [l, l], directed or symmetric; or one for each run of the outcome.
        controls: Matrices [l, l] by name (or one for each run), without gaps.
        method: `mrqap_dsp` or `qap`.
        n_permutations: Permutations drawn; all l! are enumerated where they are no more than that.
        seed: Seed of the permutations.

    Raises:
        InputError: Infinite values, repeated languages, a control with gaps.

    References:
        Mantel (1967), Cancer Research 27; Krackhardt (1988), Social Networks 10; Dekker, Krackhardt
        and Snijders (2007), Psychometrika 72, doi:10.1007/s11336-007-9016-1.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> names = ["de", "en", "fi", "ru", "sw", "tr"]
        >>> overlap = pd.DataFrame(rng.random((6, 6)), names, names)
        >>> effect = -0.5 * overlap + 0.01 * rng.standard_normal((6, 6))
        >>> associate(effect, overlap).p_value < 0.01
        True
    """
    found = associate_many(
        outcome,
        {"predictor": predictor},
        controls,
        method=method,
        n_permutations=n_permutations,
        seed=seed,
    )
    return found["predictor"]


def associate_many(
    outcome: Matrices,
    predictors: Mapping[str, Matrices],
    controls: Mapping[str, Matrices] | None = None,
    *,
    method: Method = "mrqap_dsp",
    n_permutations: int = 9999,
    seed: int = 0,
) -> dict[str, Association]:
    """`associate` for many predictors, each on its own, under the same permutations.

    Gives what `associate` gives for each, and is faster: the permuted outcome and controls are
    gathered once for all.

    Args:
        outcome: As for `associate`.
        predictors: Predictors by name.
        controls: As for `associate`.
        method: As for `associate`.
        n_permutations: As for `associate`.
        seed: As for `associate`.
    """
    if method not in ("mrqap_dsp", "qap"):
        raise InputError(f"method {method!r}", expected="mrqap_dsp or qap")
    if n_permutations < 1:
        raise InputError(f"{n_permutations} permutations", expected="at least 1", fix="try 9999")
    found: dict[str, Association] = {}
    for names, pairs in pair_up(outcome, predictors, controls if method == "mrqap_dsp" else {}):
        tested = _Regression(pairs).test(method, n_permutations, seed)
        found.update(zip(names, tested, strict=True))
    return {name: found[name] for name in predictors}


class _Regression:
    """Outcome on [residual of a predictor, controls], for every arrangement of the languages.

    By Frisch and Waugh the t of one regressor depends only on its partial correlation r with the
    outcome given the controls, t = r √(ν / (1 − r²)), so the controls are projected out once and
    an arrangement costs a gather and a product. Outcome and controls are rearranged against fixed
    residuals, which is the same as rearranging the residuals by the inverse permutation, and lets
    all predictors share the gather. Letters: m predictors, l languages, n cells (over all runs),
    k columns of the basis of the controls.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.defined = np.isfinite(pairs.predictors)  # [m, n]
        self.observed = np.isfinite(pairs.outcome)  # [n]
        # A residual where the predictor is undefined, or on the diagonal, is 0: it adds nothing.
        self.residuals = np.zeros(pairs.predictors.shape)
        for which in _alike(self.defined):
            cells = self.defined[which[0]]
            x = pairs.predictors[np.ix_(which, cells)].T
            left = residual(x, pairs.controls[cells])
            varies = has_rest(left, x)
            # At one scale, one tolerance serves every predictor.
            left = np.divide(left, norms(left), out=np.zeros_like(left), where=varies)
            self.residuals[np.ix_(which, cells)] = left.T

        y, controls = pairs.outcome[self.observed], pairs.controls[self.observed]
        axes = basis(controls)
        left = residual(y, controls)
        self.outcome_varies = bool(has_rest(left, y))
        left = left / norms(left) if self.outcome_varies else np.zeros_like(left)
        self.rank = axes.shape[1]
        # What is rearranged, [f, n]: basis, outcome, where the outcome is known, ...
        rows = [*axes.T, left, np.ones_like(left)]
        self.gaps = np.flatnonzero((pairs.off_diagonal & ~self.defined).any(axis=1))
        self.upper = np.triu_indices(self.rank)
        if self.gaps.size:
            # ... and the products from which the controls are fitted again to what gaps leave.
            rows += [*(axes[:, self.upper[0]] * axes[:, self.upper[1]]).T]
            rows += [*(axes.T * left), left**2]
        self.rearranged = np.zeros((len(rows), pairs.outcome.size))
        self.rearranged[:, self.observed] = rows

    def partial_correlations(
        self, orders: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Partial correlation r and degrees of freedom ν; r is NaN where nothing is left.

        Args:
            orders: [b, l], arrangements of the languages.

        Returns:
            r and ν, both [b, m].
        """
        k, gaps = self.rank, self.gaps
        moved = self.rearranged.take(self.pairs.cells_after(orders), axis=1)  # [f, b, n]
        e = self.residuals.T  # [n, m]
        along = moved[:k] @ e  # [k, b, m]
        product = moved[k] @ e  # [b, m]
        squares = moved[k + 1] @ e**2
        own = squares - (along**2).sum(axis=0)
        outcome_own = np.ones_like(own)
        freedom = np.full(own.shape, float(self.observed.sum() - k - 1))
        if gaps.size:
            known = self.defined[gaps].T.astype(np.float64)  # [n, g]
            entries = moved[k + 2 : -1 - k] @ known
            gram = np.empty((len(orders), gaps.size, k, k))
            gram[:, :, self.upper[0], self.upper[1]] = np.moveaxis(entries, 0, -1)
            gram[:, :, self.upper[1], self.upper[0]] = np.moveaxis(entries, 0, -1)
            lengths, axes = np.linalg.eigh(gram)
            kept = lengths > NOTHING
            inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=kept)
            to_e = np.einsum("bgkj,kbg->bgj", axes, along[:, :, gaps])
            to_y = np.einsum("bgkj,kbg->bgj", axes, moved[-1 - k : -1] @ known)
            own[:, gaps] = squares[:, gaps] - (to_e**2 * inverse).sum(axis=-1)
            outcome_own[:, gaps] = moved[-1] @ known - (to_y**2 * inverse).sum(axis=-1)
            product[:, gaps] -= (to_e * to_y * inverse).sum(axis=-1)
            freedom[:, gaps] = moved[k + 1] @ known - kept.sum(axis=-1) - 1
        usable = (own > NOTHING * squares) & (outcome_own > NOTHING) & (freedom >= 1)
        scale = np.sqrt(np.where(usable, own * outcome_own, np.nan))
        return np.clip(product / scale, -1.0, 1.0), np.where(usable, freedom, 1.0)

    def test(self, method: str, n_permutations: int, seed: int) -> list[Association]:
        """One `Association` for each predictor."""
        languages = self.pairs.languages
        if not languages:
            nothing = "no language has both an outcome and a predictor"
            return [_undefined(method, (), 0, nothing)] * len(self.residuals)
        actual, freedom = (x[0] for x in self.partial_correlations(np.arange(len(languages))[None]))
        reasons = [self._why_undefined(index, bool(np.isnan(r))) for index, r in enumerate(actual)]
        found = [
            _undefined(method, languages, int(n), reason)
            for n, reason in zip((self.defined & self.observed).sum(axis=1), reasons, strict=True)
        ]
        if all(reasons):
            return found
        t = actual * np.sqrt(freedom / np.maximum(1.0 - actual**2, np.finfo(float).eps))
        for which in _alike(self.defined):
            cells = self.observed & self.defined[which[0]]
            slopes, half, needed = slopes_with_intervals(self.pairs, cells, which)
            # A slope without controls is a correlation.
            end = 1.0 if method == "qap" else math.inf
            for index, slope, width in zip(which, slopes, half, strict=True):
                if not reasons[index]:
                    found[index] = replace(
                        found[index],
                        estimate=float(slope),
                        ci_low=float(np.maximum(slope - width, -end)),
                        ci_high=float(np.minimum(slope + width, end)),
                        statistic=float((t if method == "mrqap_dsp" else actual)[index]),
                        reason=f"no interval: undefined without {needed}" if needed else "",
                    )
        if len(languages) < FEWEST_LANGUAGES:
            few = f"{len(languages)} languages; a test needs at least {FEWEST_LANGUAGES}"
            return [
                one if reason else replace(one, reason=few)
                for one, reason in zip(found, reasons, strict=True)
            ]
        p_values, smallest, evaluated, exact = self._permute(actual, freedom, n_permutations, seed)
        for index, one in enumerate(found):
            if not reasons[index]:
                found[index] = replace(
                    one,
                    p_value=float(p_values[index]),
                    smallest_p=float(smallest[index]),
                    n_permutations=evaluated,
                    exact=exact,
                    testable=bool(smallest[index] <= ALPHA),
                )
        return found

    def _permute(
        self,
        actual: NDArray[np.float64],
        freedom: NDArray[np.float64],
        n_permutations: int,
        seed: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], int, bool]:
        """p-values and smallest attainable p-values [m], arrangements evaluated, whether all."""
        n_languages, m = len(self.pairs.languages), len(actual)

        def size(r: NDArray[np.float64], nu: NDArray[np.float64]) -> NDArray[np.float64]:
            # |t| / √(t² + ν of the actual arrangement): orders arrangements as |t| does, is |r|
            # where no gap changes ν, and stays bounded where the fit is perfect. An arrangement
            # that leaves nothing to relate shows no association: 0.
            squared = r**2 * nu
            return np.nan_to_num(np.sqrt(squared / (squared + freedom * (1.0 - r**2))))

        observed = size(actual, freedom)

        def statistic(orders: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
            del axis  # scipy puts the names last
            flat = orders[..., 0, :].reshape(-1, n_languages).astype(np.intp)
            found = size(*self.partial_correlations(flat))
            tied = np.abs(found - observed) <= _TIE
            return np.where(tied, observed, found).reshape(*orders.shape[:-2], m)

        result = stats.permutation_test(
            # One copy of the names for each predictor; scipy gives all of them the same order.
            (np.tile(np.arange(n_languages), (m, 1)),),
            statistic,
            permutation_type="pairings",
            alternative="greater",
            vectorized=True,
            n_resamples=n_permutations,
            batch=max(1, _BATCH // self.rearranged.size),
            axis=-1,
            rng=np.random.default_rng(seed),
        )
        null = np.asarray(result.null_distribution)
        exact = math.factorial(n_languages) <= n_permutations
        # The best that these languages could do is the arrangement that relates most; what ties
        # with it (languages that the predictor cannot tell apart) counts against it.
        possible = null if exact else np.concatenate([null, observed[None]])
        smallest = (possible >= possible.max(axis=0) - _TIE).mean(axis=0)
        return np.asarray(result.pvalue), smallest, len(null), exact

    def _why_undefined(self, index: int, nothing_left: bool) -> str:
        """Why the relation of a predictor is undefined, `""` where it is defined."""
        n = int((self.defined[index] & self.observed).sum())
        if n == 0:
            return "no pair of languages has both an outcome and a predictor"
        if n <= self.rank + 1:
            return f"{n} pairs are too few for {self.rank} terms of controls and run intercepts"
        if not self.outcome_varies:
            return "the outcome does not vary beyond the controls"
        if nothing_left or not self.residuals[index].any():
            return "the predictor does not vary beyond the controls"
        return ""


def _undefined(method: str, languages: tuple[str, ...], n_pairs: int, reason: str) -> Association:
    nan = math.nan
    return Association(
        estimate=nan, ci_low=nan, ci_high=nan, statistic=nan, p_value=nan, smallest_p=nan,
        n_languages=len(languages), n_pairs=n_pairs, n_permutations=0, exact=False,
        method=method, testable=False, reason=reason, languages=languages,
    )  # fmt: skip


def _alike(masks: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Numbers of the rows that are equal, group by group."""
    _, groups = np.unique(masks, axis=0, return_inverse=True)
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]
