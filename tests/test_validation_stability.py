"""A language beside itself: what agrees, how far it could, and what that says of two languages."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import planted_heads
import validation_makers as makers
from checkpoint_makers import save_base
from subnet.checkpoint import open_checkpoint
from subnet.errors import InputError
from subnet.overlap import measure_overlap
from subnet.subnetwork import extract
from subnet.validation import measure_stability


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A base in which the heads and neurons of two languages are known; no adapters."""
    root = tmp_path_factory.mktemp("planted")
    save_base(planted_heads.planted_model(), root / "base")
    return open_checkpoint(root)


def jaccard(a, b):
    """Oracle: over all units or weights, unpacked."""
    one = np.concatenate([a.dense(name).ravel() for name in a.shapes])
    other = np.concatenate([b.dense(name).ravel() for name in b.shapes])
    return (one & other).sum() / (one | other).sum()


def rows_of(seed, *languages):
    return [row for language in languages for row in planted_heads.sentences(language, 64, seed)]


def relabelled(seed):
    """Two names for one language: every example is drawn for one of them."""
    rows = planted_heads.sentences("de", 128, seed)
    return [{**row, "language": ("de", "fr")[i % 2]} for i, row in enumerate(rows)]


SETTINGS = {
    "attribution": {"units": "neuron", "density": 4 / 24},
    "fisher": {"density": 0.02},
}


@pytest.mark.parametrize("method", SETTINGS)
def test_languages_share_less_than_halves_of_one_and_as_much_if_they_are_one(planted, method):
    found = {}
    for name, data in (("two", rows_of(0, "de", "fr")), ("one", relabelled(0))):
        given = {"method": method, "model": "base", "data": data, **SETTINGS[method]}
        stability = measure_stability(planted, vary={}, **given)
        assert set(stability.frame["varied"]) == {"half"}
        assert stability.subnetworks["de"] == extract(planted, seed=0, **given)["de"]
        overlap = measure_overlap(stability.subnetworks, halves=stability.halves)
        frame = stability.frame.set_index("language")
        for language in ("de", "fr"):
            one, other = (half[language] for half in stability.halves)
            assert frame.loc[language, "value"] == pytest.approx(jaccard(one, other))
        assert overlap.ceiling("jaccard") == pytest.approx(frame["value"].mean())
        found[name] = overlap.pairs("jaccard")["position"].item()
    assert found["two"] < 0.75
    assert found["one"] > 0.9


def test_between_seeds_every_two_runs_of_a_language(tmp_path):
    makers.write_checkpoint(tmp_path / "x")
    makers.write_checkpoint(tmp_path / "y", init_lora_weights="gaussian")
    checkpoint = open_checkpoint([tmp_path / "x", tmp_path / "y"])
    stability = measure_stability(checkpoint, density=0.1)
    frame = stability.frame
    masks = {(mask.language, mask.run): mask for mask in stability.subnetworks}
    assert stability.halves is None
    seeds = frame[frame["varied"] == "seed"]
    assert sorted(seeds["language"]) == ["de", "fr", "sw"]
    for row in seeds.itertuples():
        pair = masks[row.language, row.a], masks[row.language, row.b]
        assert row.value == pytest.approx(jaccard(*pair))
        sizes = [mask.counts for mask in pair]
        together = sum(min(a, b) for a, b in zip(*(s.values() for s in sizes), strict=True))
        assert row.largest == pytest.approx(
            together / (sum(map(sum, (s.values() for s in sizes))) - together)
        )
        assert row.position == pytest.approx(
            (row.value - row.expected) / (row.largest - row.expected)
        )


def test_other_sizes_of_one_ranking_are_nested(tmp_path):
    makers.write_checkpoint(tmp_path)
    stability = measure_stability(open_checkpoint(tmp_path), density=0.1)
    frame = stability.frame
    assert set(frame["varied"]) == {"threshold"}
    assert set(frame["b"]) == {"density 0.05", "density 0.2"}
    assert frame["value"].to_numpy() == pytest.approx(0.5, abs=0.01)
    assert frame["value"].to_numpy() == pytest.approx(frame["largest"].to_numpy())
    assert frame["position"].to_numpy() == pytest.approx(1)
    summary = stability.summary()
    assert list(summary["n"]) == [3, 3]
    assert summary["value"].to_numpy() == pytest.approx(
        frame.groupby("b", sort=False)["value"].mean().to_numpy()
    )


def test_head_pruning_is_varied_by_its_threshold(planted):
    stability = measure_stability(
        planted,
        method="head-pruning",
        model="base",
        data=rows_of(1, "de", "fr"),
        share_per_round=0.25,
    )
    varied = stability.frame[stability.frame["varied"] == "threshold"]
    assert set(varied["a"]) == {"threshold 0.95"}
    assert set(varied["b"]) == {"threshold 0.9"}
    assert set(varied["language"]) == {"de", "fr"}


def test_correction_is_within_what_is_varied(planted):
    given = {"method": "fisher", "model": "base", "data": rows_of(2, "de", "fr"), "density": 0.02}
    frame = measure_stability(planted, **given).frame
    for _, rows in frame.groupby(["varied", "a", "b"]):
        p = rows["p_value"].to_numpy()
        expected = [
            min(1, *(p[p >= x] * len(p) / (p[:, None] >= p).sum(axis=1)[p >= x])) for x in p
        ]
        assert rows["q_value"].to_numpy() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "containment"}, "measure is 'containment'; expected 'jaccard'"),
        ({"method": "fishr"}, "method is 'fishr'"),
        ({"n_examples": 3}, "n_examples is given for the method 'magnitude'"),
    ],
)
def test_wrong_settings_are_one_clear_line(planted, settings, message):
    with pytest.raises(InputError, match=message):
        measure_stability(planted, **settings)


def test_the_table_is_a_copy(planted):
    stability = measure_stability(
        planted, method="fisher", model="base", data=rows_of(3, "de", "fr"), vary={}
    )
    copy = stability.to_frame()
    copy.loc[:, "value"] = -1.0
    assert isinstance(stability.frame, pd.DataFrame)
    assert (stability.frame["value"] >= 0).all()
