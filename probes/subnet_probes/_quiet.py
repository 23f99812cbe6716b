"""Fits without scikit-learn's warnings about what is known, or counted and told once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from sklearn.exceptions import ConvergenceWarning


@contextlib.contextmanager
def quiet_fits() -> Iterator[None]:
    """Meanwhile, no word of fits that stop short or of many classes among few examples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The number of unique classes")
        yield
