"""What a probing experiment depends on: validated, and recorded with its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from subnet.errors import InputError
from subnet_probes.mdl import FRACTIONS


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How probes are trained, tested and compared with chance.

    Attributes:
        folds: Folds of the cross-validation over groups; every item is tested once.
        holdout: Train on all folds but the first and test on the first only, in place of a
            cross-validation: `folds` times cheaper, on 1 / `folds` of the items.
        n_random: Permutations of the labels whose mean score is `random_labels`; 0 for none.
        n_controls: Draws of the control task whose mean score is `control`; 0 for none.
        mdl: Whether codelengths are computed.
        fractions: Ends of the blocks of online coding.
        mdl_C: Inverse penalties whose Bayesian mixture codes the labels, where the probe has a
            parameter `C`; with few examples a weak penalty costs more bits than no probe.
        max_examples: Most items of a probe, drawn as whole groups; None for all.
        n_resamples: Bootstrap resamples of groups behind every interval.
        n_jobs: Processes that fit at a time, as joblib counts them (−1: one per core); one by
            default. They take some seconds to start; `joblib.parallel_config` sets another backend.
    """

    folds: int = 5
    holdout: bool = False
    n_random: int = 1
    n_controls: int = 1
    mdl: bool = True
    fractions: tuple[float, ...] = FRACTIONS
    mdl_C: tuple[float, ...] = (0.1, 0.01, 0.001)  # noqa: N815 scikit-learn's name
    max_examples: int | None = None
    n_resamples: int = 1000
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        smallest = {"folds": 2, "n_random": 0, "n_controls": 0, "n_resamples": 1}
        if self.max_examples is not None:
            smallest["max_examples"] = 2
        for name, least in smallest.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"{name} is {value!r}", expected=f"a whole number of at least {least}"
                )
        check_jobs(self.n_jobs)
        if not self.mdl_C or any(c <= 0 for c in self.mdl_C):
            raise InputError(f"mdl_C is {self.mdl_C}", expected="positive numbers")


def check_jobs(n_jobs: Any) -> None:
    """Raise `InputError` where joblib could not count so many processes."""
    if n_jobs is None or (type(n_jobs) is int and n_jobs != 0):
        return
    raise InputError(
        f"n_jobs is {n_jobs!r}", expected="a number of processes, or -1 for one per core"
    )
