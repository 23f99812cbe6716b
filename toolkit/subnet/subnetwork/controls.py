"""Random subnetworks, against which a found one has to stand."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from subnet.errors import InputError
from subnet.subnetwork import _bits
from subnet.subnetwork.mask import Subnetwork


def random_like(subnetwork: Subnetwork, seed: int = 0) -> Subnetwork:
    """A random mask with as many weights in each parameter as the given one.

    Within each parameter every set of that size is equally likely. What a found subnetwork does and
    such a mask does not is due to *which* weights were chosen, not to how many in which module.

    Masks of several languages and runs are independent draws under one seed; that matters where
    they have the same size, as every language has with `scope="module"`.

    Args:
        subnetwork: The subnetwork to match, of weights, heads or neurons.
        seed: Seed, 0 or more; the same seed gives the same mask.

    Returns:
        A subnetwork over the same parameters, `method="random"`, without signs; `settings` name
        what it was matched to.

    Raises:
        InputError: The seed is no number that seeds a generator.

    Example:
        >>> import numpy as np
        >>> found = Subnetwork.from_arrays({"w": np.eye(4) > 0}, language="de", base="tiny")
        >>> random_like(found, seed=1).counts
        {'w': 4}
    """
    if type(seed) is not int or seed < 0:
        raise InputError(f"seed is {seed!r}", expected="a whole number, 0 or more")
    bits = {}
    for name, size in subnetwork.sizes.items():
        # Named rather than drawn in order, so that a restricted mask has the same control.
        stream = "\0".join((subnetwork.language, subnetwork.run, name)).encode()
        rng = np.random.default_rng([seed, zlib.crc32(stream), len(stream)])
        mask = np.zeros(size, dtype=np.bool_)
        mask[rng.choice(size, subnetwork.counts[name], replace=False, shuffle=False)] = True
        bits[name] = _bits.pack(mask)
    return replace(
        subnetwork,
        bits=bits,
        signs=None,
        method="random",
        settings={
            "matched": "count per parameter",
            "of": {
                "language": subnetwork.language,
                "run": subnetwork.run,
                "method": subnetwork.method,
                "settings": dict(subnetwork.settings),
                "seed": subnetwork.seed,
            },
        },
        seed=seed,
    )
