"""Online coding: bits by hand, and what easy, hard and meaningless labels cost."""

import itertools
import math

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from subnet.errors import InputError
from subnet_probes.control import control_labels
from subnet_probes.mdl import FRACTIONS, online_codelength
from subnet_probes.probe import Probe

PRIOR = DummyClassifier(strategy="prior")
PROBES = [Probe(C=c) for c in (0.1, 0.01, 0.001)]


def test_codelength_of_a_probe_that_knows_only_frequencies_is_what_a_hand_finds():
    y = np.array(list("aabaabab"))
    found = online_codelength(PRIOR, np.zeros((8, 1)), y, fractions=(0.25, 0.5, 1.0), shuffle=False)
    # "aa" by one bit each; then p(a) = (2·1 + ½)/3 = 5/6, p(b) = 1/6 for "ba";
    # then of "aaba" p(a) = (4·¾ + ½)/5 = 0.7, p(b) = 0.3 for "abab"
    by_hand = [2.0, -math.log2(1 / 6) - math.log2(5 / 6), -2 * math.log2(0.7) - 2 * math.log2(0.3)]
    assert found.ends == (2, 4, 8)
    assert found.block_bits == pytest.approx(by_hand)
    assert found.bits == pytest.approx(sum(by_hand))
    assert found.prior_bits == pytest.approx(sum(by_hand))  # it is the same code
    assert found.uniform_bits == 8
    assert found.compression == pytest.approx(8 / sum(by_hand))
    assert found.to_frame()["bits"].sum() == pytest.approx(found.bits)


def test_codelength_equals_a_loop_over_blocks():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 5))
    y = (x[:, 0] + rng.normal(size=100) > 0).astype(int) + 2 * (x[:, 1] > 0)
    found = online_codelength(Probe(C=1.0, tol=1e-9), x, y, shuffle=False)
    ends = sorted({math.ceil(round(f * 100, 9)) for f in FRACTIONS})
    bits = ends[0] * math.log2(4)
    for start, end in itertools.pairwise(ends):
        seen = set(y[:start])
        for at in range(start, end):
            if len(seen) == 1:
                p = float(y[at] in seen)
            else:
                fitted = Probe(C=1.0, tol=1e-9).fit(x[:start], y[:start])
                given = dict(
                    zip(fitted.classes_, fitted.predict_proba(x[at : at + 1])[0], strict=True)
                )
                p = given.get(y[at], 0.0)
            bits -= math.log2((start * p + 0.25) / (start + 1))
    assert found.ends == tuple(ends)
    assert found.bits == pytest.approx(bits, rel=1e-5)


def test_several_probes_code_as_their_bayesian_mixture():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 4))
    y = (x[:, 0] > 0).astype(int)
    alone = [online_codelength(probe, x, y).bits for probe in PROBES]
    first = online_codelength(PROBES[0], x, y).block_bits[0]
    mixed = online_codelength(PROBES, x, y)
    expected = first - math.log2(np.mean([2 ** -(bits - first) for bits in alone]))
    assert mixed.bits == pytest.approx(expected)
    assert min(alone) <= mixed.bits <= min(alone) + math.log2(3)


def test_groups_are_sent_whole():
    groups = np.repeat(np.arange(30), 4)
    rng = np.random.default_rng(2)
    y = rng.integers(2, size=120)
    found = online_codelength(PRIOR, np.zeros((120, 1)), y, groups=rng.permutation(groups))
    assert all(end % 4 == 0 for end in found.ends)
    assert found.ends[-1] == 120


def test_what_a_group_tells_of_itself_saves_no_bits():
    # every concept has a code of its own, its label at random: only a torn concept would pay
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 8)
    x = rng.normal(size=(60, 80))[groups]
    y = rng.integers(2, size=60)[groups]
    whole = online_codelength(PROBES, x, y, groups=groups)
    torn = online_codelength(PROBES, x, y)
    assert torn.compression > 1.5
    assert whole.compression < 1.1


def test_labels_without_meaning_are_not_compressed():
    compression = []
    for seed in range(5):
        rng = np.random.default_rng(10 + seed)
        x, y = rng.normal(size=(400, 20)), np.arange(400) % 4
        compression.append(online_codelength(PROBES, x, rng.permutation(y), seed=seed).compression)
    assert max(compression) < 1.02
    assert min(compression) > 0.9


def test_many_classes_among_few_examples_warn_of_nothing():
    rng = np.random.default_rng(9)
    y = np.arange(400) % 40
    found = online_codelength(Probe(max_iter=1), rng.normal(size=(400, 3)), rng.permutation(y))
    assert found.n_classes == 40


def test_unequal_frequencies_are_no_encoding():
    rng = np.random.default_rng(4)
    y = (rng.random(1000) < 0.05).astype(int)
    found = online_codelength(PROBES, rng.normal(size=(1000, 5)), y)
    assert found.compression > 2
    assert found.prior_bits <= found.bits * 1.02


def test_separable_labels_are_compressed_the_more_the_more_there_are():
    rng = np.random.default_rng(5)

    def compression(n):
        y = rng.integers(4, size=n)
        x = rng.normal(size=(n, 8))
        x[np.arange(n), y] += 12
        return online_codelength(PROBES, x, y).compression

    few, many = compression(100), compression(2000)
    assert few > 2
    assert many > 10
    assert many > 2 * few


def test_a_control_task_takes_more_bits_than_the_task():
    # Voita and Titov 2020, figure 2: word types are memorised, at a price that accuracy hides
    rng = np.random.default_rng(6)
    words = rng.integers(60, size=1500)
    vectors = rng.normal(size=(60, 80))
    tags = words % 4
    vectors[np.arange(60), np.arange(60) % 4] += 4
    x = vectors[words] + 0.3 * rng.normal(size=(1500, 80))
    probe = Probe(C=1.0)
    control = control_labels(tags, words, seed=0)
    easy, hard = (online_codelength(PROBES, x, y) for y in (tags, control))
    accuracy = [probe.fit(x[:1000], y[:1000]).score(x[1000:], y[1000:]) for y in (tags, control)]
    assert min(accuracy) > 0.95  # which accuracy cannot tell apart
    assert hard.bits > 1.5 * easy.bits
    assert easy.compression > hard.compression > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": (0.5, 0.1, 1.0)}, "expected increasing shares, the last 1"),
        ({"fractions": (0.1, 0.5)}, "expected increasing shares, the last 1"),
        ({"fractions": ()}, "fractions are"),
        ({"y": ["a"] * 6}, "labels of 1 class; expected at least two classes"),
        ({"y": ["a", "b"]}, "6 representations, 2 labels, 2 groups"),
        ({"classes": ["a", "c"]}, "some labels are not among the classes"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"X": np.zeros((6, 2)), "y": list("aabbab"), **change}
    with pytest.raises(InputError, match=message):
        online_codelength(PRIOR, **arguments)
