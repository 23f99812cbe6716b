"""What surrounds a training stays as it was: random numbers, logging, warnings."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the libraries quiet meanwhile, and the caller's random numbers as they were."""
    import torch
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT asks by the old name whether activations are recomputed; no concern of the user.
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
