"""Linear centred kernel alignment, by the unbiased estimator of HSIC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnet.errors import InputError
from subnet_probes._measure import Measure, Undefined
from subnet_probes._rows import Floats, Rows, centred, cross_product, squares

#: Rows of the Gram matrices that are multiplied at a time.
_BLOCK = 64


class StreamedHSIC:
    """HSIC of two linear kernels, from sums over batches.

    With K = XXᵀ, L = YYᵀ and zeros put on their diagonals (Song et al. 2012, JMLR 13, eq. 5):

        HSIC = [tr(KL) + (1ᵀK1)(1ᵀL1)/((n−1)(n−2)) − 2/(n−2)·1ᵀKL1] / (n(n−3))

    All of it follows from XᵀY, the sums of rows and sums that the squared lengths weigh, so that
    the batches give what the whole gives. The estimate does not change when a constant is added to
    all rows; the mean of the first batch is taken off all of them, which keeps the digits.
    """

    def __init__(self) -> None:
        self.n = 0
        self._shifts: tuple[Floats, Floats] | None = None

    def update(self, x: Floats, y: Floats) -> None:
        """Add a batch: x [n, d], y [n, e], in double precision."""
        if self._shifts is None:
            self._shifts = (x.mean(axis=0), y.mean(axis=0))
            d, e = x.shape[1], y.shape[1]
            self._xy = np.zeros((d, e))
            self._x, self._x_by_y = np.zeros(d), np.zeros(d)
            self._y, self._y_by_x = np.zeros(e), np.zeros(e)
            self._k = self._l = self._kl = 0.0
        x, y = x - self._shifts[0], y - self._shifts[1]
        k, l = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)  # noqa: E741
        self.n += len(x)
        self._xy += x.T @ y
        self._x += x.sum(axis=0)
        self._y += y.sum(axis=0)
        self._x_by_y += l @ x
        self._y_by_x += k @ y
        self._k += float(k.sum())
        self._l += float(l.sum())
        self._kl += float(k @ l)

    def value(self, *, unbiased: bool = True) -> float:
        """The estimate; not unbiased, it is tr(KHLH)/(n−1)² with the centring matrix H."""
        n = self.n
        if not unbiased:
            between = self._xy - np.outer(self._x, self._y) / n
            return float((between**2).sum()) / (n - 1) ** 2
        trace = float((self._xy**2).sum()) - self._kl
        sum_k = float(self._x @ self._x) - self._k
        sum_l = float(self._y @ self._y) - self._l
        both = (
            float(self._x @ self._xy @ self._y)
            - float(self._x @ self._x_by_y)
            - float(self._y @ self._y_by_x)
            + self._kl
        )
        total = trace + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 * both / (n - 2)
        return total / (n * (n - 3))


class StreamedCKA:
    """CKA of two models over batches; equals that of all rows at once (to rounding).

    The mean of the batches' own CKA, or the ratio of the means of their HSIC, does not.

    Example:
        >>> streamed = StreamedCKA()
        >>> rng = np.random.default_rng(0)
        >>> for _ in range(4):
        ...     x = rng.normal(size=(25, 3))
        ...     streamed.update(x, 2 * x + 1)
        >>> round(streamed.value(), 6)
        1.0
    """

    def __init__(self) -> None:
        self._xy, self._xx, self._yy = StreamedHSIC(), StreamedHSIC(), StreamedHSIC()

    def update(self, x: ArrayLike, y: ArrayLike) -> None:
        """Add a batch: x [n, d] and y [n, e], row i of both the same item.

        Raises:
            InputError: They do not have as many rows.
        """
        left, right = _table(x), _table(y)
        if len(left) != len(right):
            raise InputError(
                f"the sides have {len(left)} and {len(right)} rows", expected="the same items"
            )
        self._xy.update(left, right)
        self._xx.update(left, left)
        self._yy.update(right, right)

    def value(self, *, unbiased: bool = True) -> float:
        """CKA of all rows so far; NaN where a side does not vary.

        Raises:
            InputError: There are fewer than four rows.
        """
        if self._xy.n < CKA.smallest:
            raise InputError(
                f"there are {self._xy.n} rows", expected=f"at least {CKA.smallest} for CKA"
            )
        parts = (self._xy, self._xx, self._yy)
        return _ratio(*(part.value(unbiased=unbiased) for part in parts))


def linear_cka(x: ArrayLike, y: ArrayLike, *, unbiased: bool = True) -> float:
    """Linear CKA: HSIC(X, Y) / √(HSIC(X, X) · HSIC(Y, Y)) (Kornblith et al. 2019, 1905.00414).

    Not changed by rotations, a common scale or a constant added to either side. The biased
    estimate nears 1 for any two tables where d is large beside n (independent 768-dimensional
    Gaussians have .96 at n = 32); the unbiased one has expectation 0 over the orders of the rows,
    and can be a little below 0 or above 1.

    O(n·d²) in time and O(d²) in memory for n > d, else O(n²·d) and O(n²).

    Args:
        x: [n, d].
        y: [n, e].
        unbiased: Whether by the unbiased HSIC.

    Returns:
        CKA; NaN where a side does not vary.

    Raises:
        InputError: The sides do not have as many rows, or fewer than four.
    """
    left, right = np.asarray(x), np.asarray(y)
    if not unbiased or min(len(left), len(right)) < CKA.smallest or len(left) != len(right):
        streamed = StreamedCKA()
        streamed.update(left, right)
        return streamed.value(unbiased=unbiased)
    measure = CKA()
    a, b = measure.prepare(left), measure.prepare(right)
    if isinstance(a, Undefined) or isinstance(b, Undefined):
        return math.nan
    return measure.value(a, b)


@dataclass(frozen=True, eq=False)
class _Side:
    """One side of a comparison.

    Attributes:
        rows: Centred.
        lengths: [n] squared lengths of the rows.
        gram: [n, n], doubly centred without its diagonal, where n ≤ d; else None.
        own: HSIC with itself.
    """

    rows: Rows
    lengths: Floats
    gram: Floats | None
    own: float


@dataclass(frozen=True)
class CKA(Measure):
    """Unbiased linear CKA; see `linear_cka`."""

    name: ClassVar[str] = "cka"

    def prepare(self, x: NDArray[Any]) -> _Side | Undefined:
        """HSIC of a side with itself, and its Gram matrix where that is the smaller one."""
        rows = centred(x)
        if not squares(rows):
            return Undefined("a side does not vary")
        lengths = np.concatenate([np.einsum("nd,nd->n", part, part) for part in rows.chunks()])
        gram = _u_centred(rows) if len(x) <= rows.width else None
        side = _Side(rows, lengths, gram, math.nan)
        own = _hsic(side, side)
        return replace(side, own=own) if own > 0 else Undefined("a side does not vary")

    def permuted(self, state: _Side, order: NDArray[np.int64]) -> _Side:
        """Rows, and both axes of the Gram matrix."""
        gram = None if state.gram is None else state.gram[order][:, order]
        return _Side(state.rows.permuted(order), state.lengths[order], gram, state.own)

    def value(self, a: _Side, b: _Side) -> float:
        """CKA."""
        return _ratio(_hsic(a, b), a.own, b.own)

    def against(
        self, others: Sequence[Any], own: Any, orders: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """All orders and all other sides in one product, where there are Gram matrices."""
        if any(side.gram is None for side in (own, *others)):
            return super().against(others, own, orders)
        n = len(own.gram)
        every = np.vstack([np.arange(n), orders])
        sums = np.zeros((len(every), len(others)))
        for start in range(0, n, _BLOCK):
            part = slice(start, start + _BLOCK)
            left = np.stack([other.gram[part].ravel() for other in others])
            right = np.stack([own.gram[order[part]][:, order].ravel() for order in every])
            sums += right @ left.T
        scale = np.sqrt(own.own * np.array([other.own for other in others]))
        values = sums / (n * (n - 3)) / scale
        return values[0, :, None], values[1:, :, None]


def _u_centred(rows: Rows) -> Floats:
    """Gram matrix without diagonal, centred so that ⟨A, B⟩/(n(n−3)) is the unbiased HSIC.

    A_ij = K_ij − Σ_k K_ik/(n−2) − Σ_k K_kj/(n−2) + ΣΣ K/((n−1)(n−2)), i ≠ j (Székely and Rizzo
    2014, 1310.2926).
    """
    x = rows.whole()
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    n = len(gram)
    sums = gram.sum(axis=0)
    gram -= (sums[:, None] + sums[None, :]) / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def _hsic(a: _Side, b: _Side) -> float:
    """Unbiased HSIC of centred rows, whose Gram matrices sum up to 0 by row."""
    n = len(a.rows)
    if a.gram is not None and b.gram is not None:
        return float(np.vdot(a.gram, b.gram)) / (n * (n - 3))
    trace = float((cross_product(a.rows, b.rows) ** 2).sum())
    both = float(a.lengths @ b.lengths)
    sums = float(a.lengths.sum()) * float(b.lengths.sum())
    total = trace - both * n / (n - 2) + sums / ((n - 1) * (n - 2))
    return total / (n * (n - 3))


def _ratio(between: float, own_x: float, own_y: float) -> float:
    return between / math.sqrt(own_x * own_y) if own_x > 0 and own_y > 0 else math.nan


def _table(x: ArrayLike) -> Floats:
    found = np.asarray(x, dtype=np.float64)
    if found.ndim != 2:
        raise InputError(f"a side has shape {list(found.shape)}", expected="[items, width]")
    return found
