"""Masks behave as the sets they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from subnet.errors import InputError, MissingInputError, NotComparableError
from subnet.subnetwork import Subnetwork, Subnetworks

SHAPES = {"encoder.layer.0.query.weight": (3, 5), "encoder.layer.1.key.weight": (2, 8), "b": (1, 1)}


def make(arrays_by_name, language="de", **details):
    return Subnetwork.from_arrays(arrays_by_name, language=language, base="tiny", **details)


def elements(subnetwork):
    """Oracle: the mask as a Python set of (parameter, row-major index)."""
    return {
        (name, int(i))
        for name in subnetwork.shapes
        for i in np.flatnonzero(subnetwork.dense(name).reshape(-1))
    }


UNIVERSE = {(n, i) for n, (o, w) in SHAPES.items() for i in range(o * w)}
masks = st.fixed_dictionaries({n: arrays(np.bool_, shape) for n, shape in SHAPES.items()})


@given(masks, masks)
@settings(max_examples=150, deadline=None)
def test_set_algebra_is_that_of_python_sets(x, y):
    a, b = make(x), make(y, "fr")
    sa, sb = elements(a), elements(b)
    assert elements(a & b) == sa & sb
    assert elements(a | b) == sa | sb
    assert elements(a - b) == sa - sb
    assert elements(~a) == UNIVERSE - sa
    assert (a & b, a | b) == (b & a, b | a)
    assert ~(a | b) == ~a & ~b
    assert ~~a == a
    assert (a == b) == (sa == sb)
    assert hash(a & b) == hash(b & a)
    for result in (a & b, a | b, a - b, ~a):
        assert result.count == len(elements(result))
        assert result.density == result.count / len(UNIVERSE)
        # Construction refuses set padding, so a second one proves that it stays zero.
        replace(result)


@given(masks)
@settings(max_examples=50, deadline=None)
def test_bits_are_those_of_numpy_packbits_little(x):
    a = make(x)
    for name, mask in x.items():
        np.testing.assert_array_equal(a.bits[name], np.packbits(mask, bitorder="little"))
        np.testing.assert_array_equal(a.dense(name), mask)
        assert a.dense(name).dtype == np.bool_
        assert a.counts[name] == mask.sum()


def test_a_transposed_array_is_packed_row_by_row():
    mask = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool).T
    a = make({"w": mask})
    assert a.bits["w"].tolist() == [0b001011]
    np.testing.assert_array_equal(a.dense("w"), mask)


def test_combinations_say_what_they_are_made_of():
    x = {n: np.ones(s, dtype=bool) for n, s in SHAPES.items()}
    de, fr = make(x, method="magnitude", settings={"density": 0.05}), make(x, "fr", run="second")
    both = (de & fr) - ~de
    assert both.language == "(de & fr) - ~de"
    assert both.run == "main, second"
    assert (de & ~de).run == "main"
    assert both.method == "set algebra"
    operand = both.settings["operands"][0]["settings"]["operands"][0]
    assert operand["method"] == "magnitude"
    assert operand["settings"] == {"density": 0.05}


def test_signs_survive_where_one_mask_alone_decides_them():
    x = {"w": np.array([[1, 1, 0, 1]], dtype=bool)}
    signs = {"w": np.array([0b1010], dtype=np.uint8)}
    de, fr = make(x, signs=signs), make({"w": np.array([[0, 1, 1, 0]], dtype=bool)}, "fr")
    assert (de - fr).signs["w"].tolist() == [0b1000]
    assert de.restrict("w").signs["w"].tolist() == [0b1010]
    assert (de & fr).signs is None
    assert (de | fr).signs is None
    assert (~de).signs is None


def test_restriction_takes_globs_names_and_lists():
    a = make({n: np.ones(s, dtype=bool) for n, s in SHAPES.items()})
    query, key, other = SHAPES
    assert list(a.restrict("encoder.layer.0.*").shapes) == [query]
    assert list(a.restrict("encoder.layer.0.query").shapes) == [query]
    assert list(a.restrict("*.query").shapes) == [query]
    assert set(a.restrict([key, "b"]).shapes) == {key, other}
    assert a.restrict(a.shapes) == a
    narrow = a.restrict("encoder.*").restrict("*.key")
    assert (narrow.size, narrow.count) == (16, 16)
    assert narrow.settings["restricted_to"] == [["encoder.*"], ["*.key"]]
    with pytest.raises(InputError, match=r"'encoder.layer.7.query' matches no module.*layer.0"):
        a.restrict("encoder.layer.7.query")
    with pytest.raises(InputError, match="no module was named"):
        a.restrict([])


def test_density_per_module_is_counted_per_parameter():
    a = make(
        {
            "bert.encoder.layer.3.attention.self.query.weight": np.eye(4, dtype=bool),
            "pooler.dense.weight": np.zeros((2, 3), dtype=bool),
        }
    )
    frame = a.to_frame().set_index("module")
    row = frame.loc["bert.encoder.layer.3.attention.self.query"]
    assert (row["language"], row["run"], row["layer"]) == ("de", "main", "3")
    assert row["type"] == "attention.self.query"
    assert (row["size"], row["count"], row["density"]) == (16, 4, 0.25)
    assert frame.loc["pooler.dense", "density"] == 0.0


def test_equality_is_that_of_sets_over_one_base():
    x = {"w": np.array([[True, False]])}
    assert make(x) == make(x, "fr", run="second", method="other")
    assert make(x) != Subnetwork.from_arrays(x, language="de", base="other")
    assert make(x) != make({"v": x["w"]})
    assert make(x) != make({"w": x["w"].T})
    assert make(x) != {"w"}


def test_masks_without_common_ground_do_not_combine():
    x = {"w": np.ones((2, 3), dtype=bool)}
    a = make(x)
    with pytest.raises(NotComparableError, match="different bases, 'tiny' and 'big'"):
        a & Subnetwork.from_arrays(x, language="fr", base="big")
    with pytest.raises(NotComparableError, match=r"different parameters, for example v.*restrict"):
        a | make({**x, "v": x["w"]}, "fr")
    with pytest.raises(NotComparableError, match=r"shape of w, \(2, 3\) and \(3, 2\)"):
        a - make({"w": x["w"].T}, "fr")
    with pytest.raises(TypeError, match="do not combine"):
        a & {"w"}


def test_a_mask_that_contradicts_itself_is_refused():
    good = {"bits": {"w": np.array([0b111], np.uint8)}, "shapes": {"w": (1, 3)}}

    def build(**changes):
        return Subnetwork(language="de", base="tiny", **{**good, **changes})

    assert build().count == 3
    with pytest.raises(InputError, match="padding bits set for w"):
        build(bits={"w": np.array([0b1111], np.uint8)})
    with pytest.raises(InputError, match=r"signs of de has padding bits set for w"):
        build(signs={"w": np.array([0b1000], np.uint8)})
    with pytest.raises(InputError, match=r"uint8 \[2\] for w; expected uint8 \[1\]"):
        build(bits={"w": np.array([1, 0], np.uint8)})
    with pytest.raises(InputError, match=r"int64 \[1\] for w"):
        build(bits={"w": np.array([1])})
    with pytest.raises(InputError, match="no bits for w"):
        build(bits={})
    with pytest.raises(InputError, match="no shape for v"):
        build(bits={**good["bits"], "v": np.array([0], np.uint8)})
    with pytest.raises(InputError, match="covers no weight"):
        build(bits={}, shapes={})
    with pytest.raises(InputError, match="covers no weight"):
        build(bits={"w": np.zeros(0, np.uint8)}, shapes={"w": (0, 3)})
    with pytest.raises(InputError, match="granularity 'column'"):
        build(granularity="column")
    with pytest.raises(InputError, match=r"shape \[1, 3\] for w; expected \[heads\]"):
        build(granularity="head")
    with pytest.raises(InputError, match="float64 values; expected true and false"):
        make({"w": np.array([[0.5, 1.0]])})
    assert make({"w": np.array([[0, 1]])}).count == 1
    with pytest.raises(MissingInputError, match="does not cover v"):
        build().dense("v")


def test_bits_cannot_be_changed_in_place():
    a = make({"w": np.ones((2, 3), dtype=bool)})
    with pytest.raises(ValueError, match="read-only"):
        a.bits["w"][0] = 0


def test_a_collection_is_indexed_by_position_label_and_run():
    x = {"w": np.array([[True, False]])}
    de, fr, again = make(x), make(x, "fr"), make(x, run="second")
    subnets = Subnetworks([de, fr, again])
    assert (subnets.languages, subnets.runs) == (("de", "fr"), ("main", "second"))
    assert len(subnets) == 3
    assert subnets[1] is fr
    assert subnets["fr"] is fr
    assert subnets["de", "second"] is again
    assert list(subnets[:2]) == [de, fr]
    assert isinstance(subnets[:2], Subnetworks)
    assert len(subnets.to_frame()) == 3
    with pytest.raises(
        InputError, match=r"each of the runs main, second; say which: \['de', 'main'"
    ):
        subnets["de"]
    with pytest.raises(MissingInputError, match="no subnetwork of 'es'; expected one of de, fr"):
        subnets["es"]
    with pytest.raises(MissingInputError, match="'fr' in the run 'second'"):
        subnets["fr", "second"]
    with pytest.raises(InputError, match="de stands twice in the run main"):
        Subnetworks([de, de])
    with pytest.raises(MissingInputError, match="there are none"):
        Subnetworks([])["de"]
