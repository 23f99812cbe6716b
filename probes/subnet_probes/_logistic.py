"""Many multinomial logistic regressions on the same examples, fitted in lock-step.

The same optimum as scikit-learn's `LogisticRegression` with its default solver, which tests hold it
to. What makes a probing experiment out of it is cheaper here: labels, permuted labels, labels of
the control task and penalties share the examples, so they share the Gram matrix, its
inverse and every product; in more dimensions than examples the fit is one in as many dimensions as
there are examples; and L-BFGS starts from the curvature of a ridge regression, so that it needs few
steps, whose lengths are found by the derivative along the line without a further product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet_probes._design import Design, Floats, IllConditionedError

#: Pairs of changes that L-BFGS remembers.
_MEMORY = 5
#: Most trials of a step's length.
_TRIALS = 12


@dataclass(frozen=True)
class Fits:
    """p fits.

    Attributes:
        logits: [p, t, k], of the test examples; −10³⁰ of a class that the fit has not seen.
        n_iter: [p], steps.
    """

    logits: Floats
    n_iter: NDArray[np.intp]

    @property
    def predicted(self) -> NDArray[np.intp]:
        """[p, t], numbers of the classes."""
        return np.asarray(self.logits.argmax(axis=-1), dtype=np.intp)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """[p, t, k]."""
        logits = self.logits.astype(np.float64)
        found = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(found / found.sum(axis=-1, keepdims=True))


def fit_logistic(
    design: Design,
    labels: NDArray[np.intp],
    n_classes: int,
    C: ArrayLike,  # noqa: N803 scikit-learn's name
    *,
    tol: float,
    max_iter: int,
) -> Fits:
    """Minimise Σᵢ −log p(yᵢ | xᵢ) + ‖W‖² / (2C) for each of p sets of labels.

    Of two classes ‖W‖² is that of one weight vector for the difference of their logits, as in
    scikit-learn. A fit stops when what is left to gain, estimated as half the squared Newton
    decrement, is at most 2·`tol`² nats per example: what a gradient of the mean loss of that size
    would have left to gain along a standardised unit.

    Args:
        design: Of m training examples.
        labels: [p, m], numbers below `n_classes`; at least two different ones in each row.
        n_classes: k.
        C: Inverse penalty, or one for each of the p.
        tol: Size of the gradient of the mean loss, as scikit-learn has it.
        max_iter: Most steps.

    Raises:
        IllConditionedError: The penalty is too weak for the type of the numbers, or rounding has
            come to rule the steps.
    """
    dtype = design.z.dtype
    targets = (labels[:, None, :] == np.arange(n_classes)[:, None]).astype(dtype)  # [p, k, m]
    share = targets.mean(axis=-1)
    present = share > 0
    kinds = present.sum(axis=-1)
    # Two logits that differ by w·x have half the squared norm of w.
    penalties = np.where(kinds == 2, 2.0, 1.0) / np.broadcast_to(C, len(labels))
    curvature = float(np.mean((share * (1 - share)).sum(axis=-1) / np.maximum(kinds - 1, 1)))
    design.precondition(curvature, penalties.astype(dtype))
    state = _State(design, targets, share, present, dtype.type(curvature))
    least = max(2 * tol**2, float(np.finfo(dtype).eps))
    state.descend(least * labels.shape[1], max_iter)
    logits = design.test(state.u) + state.bias[..., None] + state.absent
    return Fits(np.swapaxes(logits, 1, 2), state.n_iter)


class _State:
    """Weights u [p, k, width], biases [p, k] and logits of the examples [p, k, m] of p fits."""

    def __init__(
        self, design: Design, targets: Floats, share: Floats, present: Any, curvature: Any
    ) -> None:
        self.design, self.targets = design, targets
        p, k, m = targets.shape
        self.u = np.zeros((p, k, design.width), dtype=targets.dtype)
        log_share = np.log(np.where(present, share, 1))
        self.bias = np.where(present, log_share, 0).astype(targets.dtype)
        self.absent = np.where(present, 0, -1e30).astype(targets.dtype)[..., None]
        self.bias_step = 1 / (curvature * m)
        self.n_iter = np.zeros(p, dtype=np.intp)
        self.logits = np.zeros_like(targets) + self.bias[..., None] + self.absent
        self.residuals = _softmax(self.logits) - targets

    def descend(self, tol: float, max_iter: int) -> None:
        """Take steps until no fit has more than `tol` nats to gain.

        Raises:
            IllConditionedError: What is left to gain is no number, or less than nothing.
        """
        pairs: list[tuple[Floats, ...]] = []
        running = np.ones(len(self.u), dtype=bool)
        g, g_bias = self._gradient()
        while True:
            d, dual, d_bias = self._direction(g, g_bias, pairs)
            decrement = -_dot(g, dual) - _dot(g_bias, d_bias)
            if not (decrement >= -2 * tol)[running].all():
                raise IllConditionedError
            running &= (decrement > 2 * tol) & (self.n_iter < max_iter)
            if not running.any():
                return
            self.n_iter += running
            change = self.design.values(d, dual) + d_bias[..., None]
            length, probabilities = self._line_search(d, change, dual, decrement, running)
            t = length[:, None, None]
            s, s_bias = t * d, length[:, None] * d_bias
            s_dual = s if dual is d else t * dual
            self.u = self.u + s
            self.bias = self.bias + s_bias
            self.logits = self.logits + t * change
            self.residuals = probabilities - self.targets
            before, before_bias = g, g_bias
            g, g_bias = self._gradient()
            y, y_bias = g - before, g_bias - before_bias
            curved = _dot(y, s_dual) + _dot(y_bias, s_bias)
            usable = curved > np.finfo(curved.dtype).tiny
            rho = np.where(usable, 1 / np.where(usable, curved, 1), 0).astype(t.dtype)
            pairs = [*pairs[-_MEMORY + 1 :], (s, s_dual, s_bias, y, y_bias, rho)]

    def _gradient(self) -> tuple[Floats, Floats]:
        """By the weights and by the biases."""
        return self.design.gradient(self.residuals, self.u), self.residuals.sum(axis=-1)

    def _direction(
        self, g: Floats, g_bias: Floats, pairs: list[tuple[Floats, ...]]
    ) -> tuple[Floats, Floats, Floats]:
        """L-BFGS's two loops: the direction, its dual and its biases."""
        q, q_bias, taken = g, g_bias, []
        for _, s_dual, s_bias, y, y_bias, rho in reversed(pairs):
            a = rho * (_dot(q, s_dual) + _dot(q_bias, s_bias))
            taken.append(a)
            q = q - a[:, None, None] * y
            q_bias = q_bias - a[:, None] * y_bias
        d, dual = self.design.step(-q)
        d_bias = -q_bias * self.bias_step
        for (s, s_dual, s_bias, y, y_bias, rho), a in zip(pairs, reversed(taken), strict=True):
            by = a + rho * (_dot(y, dual) + _dot(y_bias, d_bias))
            d = d - by[:, None, None] * s
            dual = d if s_dual is s else dual - by[:, None, None] * s_dual
            d_bias = d_bias - by[:, None] * s_bias
        return d, dual, d_bias

    def _line_search(
        self, d: Floats, change: Floats, dual: Floats, decrement: Floats, running: NDArray[np.bool_]
    ) -> tuple[Floats, Floats]:
        """Lengths [p] at which the derivative along the line is nearly 0; 0 where not running.

        Along a line the loss is convex: Newton's method between the two sides of the minimum.

        Args:
            d: Direction.
            change: Of the logits, for a length of 1.
            dual: Of the direction.
            decrement: Minus the derivative at the start.
            running: Which fits take a step.

        Returns:
            Lengths, and the probabilities there.
        """
        penalty = self.design.penalty[:, 0, 0]
        slope, bend = penalty * _dot(self.u, dual), penalty * _dot(d, dual)
        t = running.astype(d.dtype)
        low, high = np.zeros_like(t), np.full_like(t, np.inf)
        for _ in range(_TRIALS):
            p = _softmax(self.logits + t[:, None, None] * change)
            first = _dot(p - self.targets, change) + slope + t * bend
            settled = ~running | ((first <= 0.1 * decrement) & (first >= -0.3 * decrement))
            if settled.all():
                return t, p
            weighted = p * change
            second = _dot(weighted, change) - (weighted.sum(axis=1) ** 2).sum(axis=-1) + bend
            low, high = np.where(first < 0, t, low), np.where(first > 0, t, high)
            wanted = np.minimum(t - first / np.maximum(second, 1e-30), 4 * t)
            inside = (wanted > low) & (wanted < high)
            middle = np.where(np.isfinite(high), (low + high) / 2, 2 * t)
            t = np.where(settled, t, np.where(inside, wanted, middle)).astype(t.dtype)
        return t, _softmax(self.logits + t[:, None, None] * change)


def _softmax(logits: Floats) -> Floats:
    """Over the classes, [p, k, m]."""
    found = logits - logits.max(axis=1, keepdims=True)
    np.exp(found, out=found)
    found /= found.sum(axis=1, keepdims=True)
    return np.asarray(found)


def _dot(a: Floats, b: Floats) -> Floats:
    """[p], inner products over all but the first axis."""
    return np.asarray((a.reshape(len(a), 1, -1) @ b.reshape(len(b), -1, 1))[:, 0, 0])
