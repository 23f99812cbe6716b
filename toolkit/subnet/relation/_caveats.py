"""What to keep in mind when reading a relation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subnet.forgetting import Forgetting

_DESCRIPTIVE = (
    "An association describes these languages in this training; it does not show that sharing "
    "causes loss. Only setting the shared weights back would."
)
_AUTOCORRELATION = (
    "Partial Mantel tests reject too often when both matrices are autocorrelated, as they are "
    "where languages of one family resemble each other in everything (Guillot and Rousset 2013). "
    "Permuting residuals lessens this and does not remove it: read a small p beside the interval."
)
_COUPLED_ROWS = (
    "Rows of the effect matrix are coupled: consecutive stages share a score, so the effects of "
    "neighbours in the order correlate near −.5 without any true effect. Permuting the languages "
    "allows for that only where overlap does not follow the order: train several orders."
)
_NO_HALVES = (
    "Per-item results are not known, so the baseline of the receiver cannot be held fixed without "
    "sharing its errors with the outcome."
)
_ONE_ORDER = (
    "There is one order of training only: what belongs to a language and what belongs to its place "
    "in the order cannot be told apart, except for a linear trend."
)

#: Those that hold for every relation.
CAVEATS = (_DESCRIPTIVE, _AUTOCORRELATION, _COUPLED_ROWS)


def caveats(forgetting: Forgetting, *, has_halves: bool) -> tuple[str, ...]:
    """The caveats that hold for these data."""
    trained = forgetting.effects[forgetting.effects["trained_language"] != ""]
    orders = {
        tuple(rows.sort_values("stage")["trained_language"].unique())
        for _, rows in trained.groupby("run")
    }
    more = [_NO_HALVES] * (not has_halves) + [_ONE_ORDER] * (len(orders) == 1)
    return (*CAVEATS, *more)
