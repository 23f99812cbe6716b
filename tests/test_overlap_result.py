"""The table and what is read from it; what is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from overlap_things import SHAPES, Adapter, AdapterStep, adapter, adapters, mask, mask_of, one_row
from subnet._tables import COLUMNS
from subnet.errors import InputError, NotComparableError
from subnet.overlap import Overlap, measure_overlap

NAME = next(iter(SHAPES))


def mixed(first: Adapter, second: Adapter, share: float, run: str) -> Adapter:
    """An adapter like the first, its left factor partly that of the second."""
    weights = {
        name: ((1 - share) * first.weights[name][0] + share * second.weights[name][0], a)
        for name, (_, a) in first.weights.items()
    }
    return Adapter(first.language, weights, run=run)


@pytest.fixture(scope="module")
def things():
    """Four languages, of which de and fr have a second seed that half agrees with the first."""
    main = [adapter(label, seed=n) for n, label in enumerate(("de", "fr", "ru", "zh"))]
    second = [
        mixed(update, adapter("x", seed=50 + n), 0.5, "seed2") for n, update in enumerate(main[:2])
    ]
    return [*main, *second]


@pytest.fixture(scope="module")
def updates_overlap(things) -> Overlap:
    return measure_overlap(things)


@pytest.fixture(scope="module")
def masks_overlap(things) -> Overlap:
    return measure_overlap([mask_of(update) for update in things])


def test_the_fixed_columns_come_first_and_a_row_names_its_null(masks_overlap, updates_overlap):
    for overlap, nulls in (
        (masks_overlap, {"element", "structure"}),
        (updates_overlap, {"structure", "rotation"}),
    ):
        frame = overlap.to_frame()
        assert tuple(frame.columns[:13]) == COLUMNS["overlap"]
        assert set(frame["null"]) == nulls
        assert set(frame["level"]) == {"all", "layer", "type", "module"}
        assert {"comparison", "n_a", "n_b", "position", "reason"} <= set(frame.columns)
        assert frame["reason"].map(type).eq(str).all()


def pairs_of(rows):
    columns = ["run", "language_a", "language_b"]
    return sorted(rows[columns].itertuples(index=False, name=None))


def test_languages_are_compared_within_a_run_once_per_pair(masks_overlap):
    frame = masks_overlap.frame
    rows = frame[
        (frame["measure"] == "jaccard") & (frame["level"] == "all") & (frame["null"] == "structure")
    ]
    between = rows[rows["comparison"] == "between"]
    assert pairs_of(between) == [
        ("main", "de", "fr"), ("main", "de", "ru"), ("main", "de", "zh"), ("main", "fr", "ru"),
        ("main", "fr", "zh"), ("main", "ru", "zh"), ("seed2", "de", "fr"),
    ]  # fmt: skip
    replicates = rows[rows["comparison"] == "replicate"]
    assert pairs_of(replicates) == [
        ("main|seed2", "de", "de"), ("main|seed2", "fr", "fr"),
    ]  # fmt: skip


def test_ceiling_is_the_mean_of_the_replicates_and_position_lies_between(masks_overlap):
    rows = masks_overlap.replicates
    rows = rows[
        (rows["measure"] == "jaccard") & (rows["level"] == "all") & (rows["null"] == "structure")
    ]
    ceiling = masks_overlap.ceiling("jaccard")
    assert ceiling == pytest.approx(rows["value"].mean())
    floor = masks_overlap.floor("jaccard")
    assert floor < 0.05 < ceiling
    row = one_row(masks_overlap, "jaccard", language_a="de", language_b="ru")
    expected = (row["value"] - row["expected"]) / (ceiling - row["expected"])
    assert row["position"] == pytest.approx(expected)
    positions = rows["position"]
    assert positions.mean() == pytest.approx(1, abs=0.01)


def test_without_replicates_there_is_no_ceiling_and_no_position():
    overlap = measure_overlap(adapters(3))
    assert np.isnan(overlap.ceiling("cosine"))
    assert overlap.frame["position"].isna().all()
    assert overlap.replicates.empty


@pytest.mark.parametrize("which", ["masks_overlap", "updates_overlap"])
def test_q_values_are_those_of_benjamini_and_hochberg_within_run_measure_level_and_null(
    which, request
):
    frame = request.getfixturevalue(which).frame
    checked = 0
    for _, rows in frame.groupby(["run", "comparison", "measure", "level", "null"]):
        defined = rows[rows["p_value"].notna()]
        expected = multipletests(defined["p_value"], method="fdr_bh")[1]
        assert np.allclose(defined["q_value"], expected)
        checked += len(defined)
    assert checked == frame["p_value"].notna().sum() > 0


def test_matrix_is_symmetric_with_an_undefined_diagonal(masks_overlap):
    table = masks_overlap.matrix("jaccard")
    assert list(table.index) == list(table.columns) == ["de", "fr", "ru", "zh"]
    assert np.isnan(np.diag(table)).all()
    assert np.allclose(table, table.T, equal_nan=True)
    assert (
        table.loc["de", "ru"]
        == one_row(masks_overlap, "jaccard", language_a="de", language_b="ru")["value"]
    )
    second = masks_overlap.matrix("jaccard", run="seed2")
    assert second.notna().sum().sum() == 2


def test_matrix_of_containment_has_the_contained_language_in_its_rows():
    small = np.zeros((8, 8), dtype=bool)
    small[:2] = True
    large = np.zeros((8, 8), dtype=bool)
    large[:4] = True
    table = measure_overlap([mask("de", {NAME: small}), mask("fr", {NAME: large})]).matrix(
        "containment"
    )
    assert table.loc["de", "fr"] == 1.0
    assert table.loc["fr", "de"] == 0.5


def test_others_gives_directed_rows_of_each_with_each_in_the_same_run():
    base = adapters(3, seed=1)
    steps = [AdapterStep(u.language, u.weights, stage=n) for n, u in enumerate(base, 1)]
    overlap = measure_overlap(steps, others=adapters(3, seed=8))
    assert overlap.source == "steps"
    rows = overlap.rows("cosine")
    assert len(rows) == 9
    assert set(zip(rows["language_a"], rows["language_b"], strict=True)) == {
        (f"x{a}", f"x{b}") for a in range(3) for b in range(3)
    }
    table = overlap.matrix("cosine")
    assert not np.allclose(table.fillna(0), table.T.fillna(0))
    assert overlap.replicates.empty
    assert np.isnan(np.diag(table)).all()
    # a step beside its own language's adapter is no test of sharing: it is corrected by itself
    apart = rows[rows["language_a"] != rows["language_b"]]
    assert np.allclose(apart["q_value"], multipletests(apart["p_value"], method="fdr_bh")[1])
    assert overlap.floor("subspace_similarity") == pytest.approx(
        overlap.pairs("subspace_similarity")["expected"].mean()
    )
    assert len(overlap.pairs("cosine")) == 6


def test_another_run_beside_it_changes_no_number_of_a_run(things):
    alone, beside = measure_overlap(things[:4]), measure_overlap(things)
    columns = ["language_a", "language_b", "value", "expected", "z", "p_value", "q_value"]
    for measure in ("cosine", "subspace_similarity", "principal_angle"):
        one, other = (overlap.pairs(measure)[columns] for overlap in (alone, beside))
        assert len(one) == 6
        pd.testing.assert_frame_equal(one, other)
        assert alone.floor(measure) == beside.floor(measure)
    assert set(alone.graph("cosine").edges) == set(beside.graph("cosine").edges)


def test_result_says_how_it_was_made(masks_overlap, updates_overlap):
    for overlap in (masks_overlap, updates_overlap):
        made = overlap.provenance.to_dict()
        assert made["settings"]["measures"] == list(overlap.measures)
        assert made["settings"]["alternative"] == "greater"
        assert "numpy" in made["versions"]
    assert updates_overlap.provenance.settings["dense_rank"] == 16


def test_result_does_not_depend_on_anything_but_seed_and_input(things):
    first, second = (measure_overlap(things, seed=3).frame for _ in range(2))
    assert first.equals(second)


def two(**changes):
    return [adapter("de", seed=1), dataclasses.replace(adapter("fr", seed=2), **changes)]


def renamed(update: Adapter, **names: str) -> Adapter:
    (old, new) = next(iter(names.items())) if names else ("layer", "block")
    weights = {name.replace(old, new): pair for name, pair in update.weights.items()}
    return dataclasses.replace(update, weights=weights)


def test_different_bases_are_refused_with_both_named():
    with pytest.raises(NotComparableError, match="de is a change of base and fr one of other"):
        measure_overlap(two(base="other"))


def test_disjoint_target_modules_are_refused_with_both_named():
    things = [adapter("de", seed=1), renamed(adapter("fr", seed=2), attention="crossattention")]
    things = [
        dataclasses.replace(t, weights={n: w for n, w in t.weights.items() if "attention" in n})
        for t in things
    ]
    with pytest.raises(
        NotComparableError, match=r"de and fr share no parameter \(de has .*fr has .*crossattention"
    ):
        measure_overlap(things)


def test_parameters_that_one_language_lacks_are_left_out_and_said_so():
    first, second = two()
    fewer = dataclasses.replace(second, weights={n: second.weights[n] for n in list(SHAPES)[:3]})
    overlap = measure_overlap([first, fewer])
    (warning,) = overlap.warnings
    assert warning.startswith("1 of 4 parameters are left out because not every language has them")
    assert overlap.frame.query("level == 'module'")["module"].nunique() == 3


def test_another_shape_under_the_same_name_is_refused():
    things = [
        adapter("de", seed=1, shapes={NAME: (8, 8)}),
        adapter("fr", seed=1, shapes={NAME: (8, 9)}),
    ]
    with pytest.raises(NotComparableError, match="is 8×8 in de and 8×9 in fr"):
        measure_overlap(things)


def test_mixed_granularity_is_refused():
    array = {NAME: np.eye(4, dtype=bool)}
    one, other = mask("de", array), mask("fr", array)
    object.__setattr__(other, "granularity", "head")
    with pytest.raises(NotComparableError, match="de is per weight and that of fr per head"):
        measure_overlap([one, other])


def test_one_language_is_not_enough():
    with pytest.raises(InputError, match="nothing to compare: de; expected at least two languages"):
        measure_overlap([adapter("de", seed=1)])


def test_two_languages_that_never_meet_in_a_run_are_not_compared():
    with pytest.raises(InputError, match=r"nothing to compare: de, fr \(run other\)"):
        measure_overlap(two(run="other"))


def test_a_language_twice_in_a_run_is_refused():
    with pytest.raises(InputError, match="language de stands twice in run 'main'"):
        measure_overlap([adapter("de", seed=1), adapter("de", seed=2)])


def test_nothing_at_all_is_refused():
    with pytest.raises(InputError, match="things holds no subnetwork and no update"):
        measure_overlap([])


def test_masks_and_updates_do_not_mix():
    with pytest.raises(InputError, match="masks and updates are mixed"):
        measure_overlap([mask("de", {NAME: np.eye(4, dtype=bool)}), adapter("fr", seed=1)])
    with pytest.raises(InputError, match="cannot measure the overlap of str"):
        measure_overlap(["de", "fr"])


def test_unknown_names_are_refused_with_those_that_exist(masks_overlap):
    with pytest.raises(
        InputError, match="measure 'jacard' is not defined here; expected some of jaccard"
    ):
        measure_overlap(adapters(2) and [mask_of(u) for u in adapters(2)], measures=["jacard"])
    with pytest.raises(InputError, match="level 'head' is unknown"):
        measure_overlap(adapters(2), levels=["head"])
    with pytest.raises(InputError, match="measure 'cosine' was not taken"):
        masks_overlap.matrix("cosine")
    with pytest.raises(InputError, match="there is no layer '7'; expected one of '0', '1'"):
        masks_overlap.matrix("jaccard", "layer", "7")
    with pytest.raises(InputError, match="run 'third' has no pair; expected one of main, seed2"):
        masks_overlap.matrix("jaccard", run="third")


def test_halves_of_the_examples_give_a_ceiling_where_no_language_was_trained_twice(things):
    masks = [mask_of(update) for update in things]
    languages, again = masks[:4], [dataclasses.replace(m, run="main") for m in masks[4:]]
    overlap = measure_overlap(languages, halves=(languages[:2], again))
    frame = overlap.to_frame()
    half = frame[frame["comparison"] == "half"]
    assert set(zip(half["language_a"], half["language_b"], strict=True)) == {
        ("de", "de"),
        ("fr", "fr"),
    }
    # The same numbers as two runs of these languages, and pairs of languages as without halves.
    twice = measure_overlap(masks)
    assert overlap.ceiling("jaccard") == twice.ceiling("jaccard")
    assert overlap.ceiling_kind == "half"
    assert twice.ceiling_kind == "replicate"
    alone = measure_overlap(languages)
    assert alone.ceiling_kind == ""
    pd.testing.assert_frame_equal(
        overlap.pairs("jaccard").drop(columns="position"),
        alone.pairs("jaccard").drop(columns="position"),
    )
    expected = twice.pairs("jaccard")["position"]
    pd.testing.assert_series_equal(overlap.pairs("jaccard")["position"], expected)
    # Another seed of a language is the better ceiling.
    both = measure_overlap(masks, halves=(languages[:2], [languages[1]]))
    assert both.ceiling("jaccard") == twice.ceiling("jaccard")
    with pytest.raises(InputError, match="the halves have no language in common"):
        measure_overlap(languages, halves=(languages[:1], languages[1:2]))
