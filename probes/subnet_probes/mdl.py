"""Minimum description length of labels given representations, by online coding.

Voita and Titov 2020 (2020.emnlp-main.14). Someone who has the representations is sent the labels
block by block: the first by a uniform code, each further one by a probe trained on all blocks
before it. What is easy to extract takes few bits in all, and a probe that needs many examples
pays for it, so codelengths tell apart what accuracies do not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from subnet.errors import InputError
from subnet_probes._fitting import answers
from subnet_probes._quiet import quiet_fits

if TYPE_CHECKING:
    import pandas as pd

#: Ends of the blocks as shares of the examples (Voita and Titov 2020).
FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Codelength:
    """How many bits a set of labels takes.

    Attributes:
        bits: Of the labels given the representations.
        uniform_bits: Of the labels under a uniform code, n·log₂ k.
        prior_bits: Of the labels by the same blocks without representations, from the label
            frequencies in the blocks before: what is below `uniform_bits` here is unequal
            frequency, not encoding.
        ends: Where each block ends, in examples.
        block_bits: Bits of each block.
        n: Number of examples.
        n_classes: k.
    """

    bits: float
    uniform_bits: float
    prior_bits: float
    ends: tuple[int, ...]
    block_bits: tuple[float, ...]
    n: int
    n_classes: int

    @property
    def compression(self) -> float:
        """`uniform_bits` / `bits`: 1 where representations and frequencies tell nothing."""
        return self.uniform_bits / self.bits if self.bits > 0 else math.inf

    def to_frame(self) -> pd.DataFrame:
        """One row per block: start, end, bits, bits_per_example, uniform_bits."""
        import pandas as pd

        starts = (0, *self.ends[:-1])
        rows = [
            {
                "start": start,
                "end": end,
                "bits": bits,
                "bits_per_example": bits / (end - start),
                "uniform_bits": (end - start) * math.log2(self.n_classes),
            }
            for start, end, bits in zip(starts, self.ends, self.block_bits, strict=True)
        ]
        return pd.DataFrame(rows)


def online_codelength(
    probe: Any,
    X: ArrayLike,  # noqa: N803 scikit-learn's name
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    fractions: Sequence[float] = FRACTIONS,
    classes: ArrayLike | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> Codelength:
    """Codelength of labels y given representations X.

    L = n₁·log₂ k − Σᵢ log₂ p_θᵢ(y of block i+1 | X of block i+1), θᵢ trained on blocks 1…i. Groups
    stay whole: a block ends with the first group that reaches its share of the examples, and blocks
    that would be empty are left out.

    A probability is mixed with the uniform one as one more example would do it,
    p = (m·p_θ + 1/k) / (m + 1) after m examples, so that a label that has not been seen yet costs
    at most log₂(k·(m + 1)) bits and not infinitely many.

    With several probes (say, penalties) the code is the Bayesian mixture of theirs,
    L = −log₂ mean_c 2^(−L_c) over all blocks but the first: at most log₂(number of probes) bits
    above the best of them, and no choice is made with labels that were not sent.

    Args:
        probe: A scikit-learn classifier with `predict_proba`, which is cloned; or several.
        X: [n, d].
        y: [n] labels.
        groups: [n]; each example its own by default.
        fractions: Ends of the blocks as increasing shares of n, the last 1.
        classes: The labels that could be sent; those in y by default.
        shuffle: Send groups in random order; otherwise in the order in which they first come.
        seed: Seed of that order.

    Raises:
        InputError: Shares do not increase to 1, there are fewer than two classes, or lengths
            differ.
    """
    probes = list(probe) if isinstance(probe, list | tuple) else [probe]
    (found,) = codelengths(
        probes, X, [y], groups=groups, fractions=fractions, classes=classes, shuffle=shuffle,
        seed=seed,
    )  # fmt: skip
    return found


def codelengths(
    probes: Sequence[Any],
    X: ArrayLike,  # noqa: N803 scikit-learn's name
    targets: Sequence[ArrayLike],
    *,
    groups: ArrayLike | None = None,
    fractions: Sequence[float] = FRACTIONS,
    classes: ArrayLike | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> list[Codelength]:
    """Codelengths of several sets of labels, sent in the same order; see `online_codelength`.

    Args:
        probes: The probes of the mixture.
        X: [n, d].
        targets: Sets of labels, [n] each.
        groups: As of `online_codelength`, as what follows.
        fractions: Ends of the blocks.
        classes: The labels that could be sent; those of all sets by default.
        shuffle: Whether the order is random.
        seed: Of the order.
    """
    x, sets = np.asarray(X), [np.asarray(labels) for labels in targets]
    labels = np.concatenate(sets)
    length = len(sets[0])
    shares = np.asarray(fractions, dtype=float)
    if not shares.size or shares[0] <= 0 or shares[-1] != 1 or (np.diff(shares) <= 0).any():
        raise InputError(
            f"fractions are {list(fractions)}", expected="increasing shares, the last 1"
        )
    names = np.unique(labels if classes is None else np.asarray(classes))
    k = len(names)
    if k < 2:
        raise InputError(f"there are labels of {k} class", expected="at least two classes")
    members = np.arange(length) if groups is None else np.asarray(groups)
    if not len(x) == length == len(members):
        raise InputError(
            f"there are {len(x)} representations, {length} labels, {len(members)} groups",
            expected="as many of each",
        )
    if not np.isin(labels, names).all():
        raise InputError(
            "some labels are not among the classes", expected=", ".join(map(str, names))
        )
    order, sizes = _sending_order(members, np.random.default_rng([seed, 3]) if shuffle else None)
    codes = np.searchsorted(names, np.stack(sets))[:, order]
    x = x[order]
    reached = np.cumsum(sizes)
    # n·share may lie a rounding error above a whole number
    wanted = np.ceil(shares * length - 1e-9)
    ends = np.unique(reached[np.searchsorted(reached, wanted)])
    first = float(ends[0] * math.log2(k))
    blocks = [
        _block_bits(probes, x[:end], codes[:, :end], int(start), k)
        for start, end in itertools.pairwise(ends)
    ]
    prior = sum((bits for bits, _ in blocks), np.zeros(len(sets)))
    coded = np.array([bits for _, bits in blocks]).reshape(-1, len(probes), len(sets))
    by_probe = np.cumsum(coded, axis=0)  # [blocks after the first, probes, sets]
    mixed = -logsumexp(-by_probe * math.log(2), axis=1, b=1 / len(probes)) / math.log(2)
    steps = np.diff(mixed, axis=0, prepend=np.zeros((1, len(sets))))
    return [
        Codelength(
            bits=float(first + own.sum()),
            uniform_bits=float(length * math.log2(k)),
            prior_bits=first + float(by_frequency),
            ends=tuple(int(end) for end in ends),
            block_bits=(first, *own.tolist()),
            n=length,
            n_classes=k,
        )
        for own, by_frequency in zip(steps.T, prior, strict=True)
    ]


def _sending_order(
    groups: NDArray[Any], rng: np.random.Generator | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order of the examples, group by group, and sizes of the groups in that order."""
    _, at, codes, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(at) if rng is None else rng.permutation(len(at))
    place = np.empty(len(at), dtype=np.intp)
    place[order] = np.arange(len(at))
    return np.argsort(place[codes], kind="stable"), sizes[order]


def _block_bits(
    probes: Sequence[Any], x: NDArray[Any], codes: NDArray[np.intp], m: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits of what follows the first m examples: by label frequencies [sets], and by each probe.

    Args:
        probes: The probes.
        x: [end, d].
        codes: [sets, end].
        m: Examples that were sent before.
        k: Number of classes.

    Returns:
        [sets] and [probes, sets].
    """
    with quiet_fits():
        found = answers(
            [probe for probe in probes for _ in codes],
            x[:m],
            np.tile(codes[:, :m], (len(probes), 1)),
            x[m:],
            k,
            probabilities=True,
        )
    chances = np.asarray(found.probabilities).reshape(len(probes), len(codes), -1, k)
    following = codes[:, m:]
    given = np.take_along_axis(chances, following[None, ..., None], axis=-1)[..., 0]
    counts = np.stack([np.bincount(row, minlength=k) for row in codes[:, :m]])
    by_frequency = np.take_along_axis(counts / m, following, axis=1)

    def bits(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(-np.log2((m * p + 1 / k) / (m + 1)).sum(axis=-1))

    return bits(by_frequency), bits(given)
