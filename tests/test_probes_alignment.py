"""Parallel items: near each other, found again, compared over languages, layers and stages."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import checkpoint_makers
import validation_makers
from subnet import measure_forgetting, open_checkpoint, relate
from subnet._tables import Provenance
from subnet.errors import InputError, NotComparableError
from subnet_probes import (
    MEASURES,
    Cosine,
    CosineContrast,
    Representations,
    Retrieval,
    compare,
    drift,
    language_similarity,
    linear_cka,
    nearest_neighbours,
    representations,
)
from subnet_probes import retrieval as retrieval_module

LANGUAGES = ("de", "fr", "sw")


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def best_by_loop(x, y, score, k):
    """CSLS and the margin of xsim, as their papers write them, pair by pair."""
    cos = unit(x) @ unit(y).T
    k_x, k_y = min(k, len(y)), min(k, len(x))
    near_x = [sum(sorted(cos[i], reverse=True)[:k_x]) / k_x for i in range(len(x))]
    near_y = [sum(sorted(cos[:, j], reverse=True)[:k_y]) / k_y for j in range(len(y))]
    marked = np.empty_like(cos)
    for i in range(len(x)):
        for j in range(len(y)):
            marked[i, j] = {
                "cosine": cos[i, j],
                "csls": 2 * cos[i, j] - near_x[i] - near_y[j],
                "ratio": cos[i, j] / (near_x[i] / 2 + near_y[j] / 2),
            }[score]
    return marked.argmax(axis=1), marked.argmax(axis=0)


def noisy(n, d, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 1  # all point somewhat the same way
    return x, x + noise * rng.normal(size=(n, d)) * rng.uniform(0.2, 2.5, size=(n, 1))


@pytest.mark.parametrize("score", ["csls", "ratio", "cosine"])
@pytest.mark.parametrize("k", [1, 4, 10, 99])
def test_nearest_neighbours_are_those_of_the_loop(score, k, monkeypatch):
    x, y = noisy(60, 7)
    y = y[:45]
    expected = best_by_loop(x, y, score, k)
    for tile in (1024, 60, 13, 1):
        monkeypatch.setattr(retrieval_module, "_TILE", tile)
        found = nearest_neighbours(x, y, score=score, k=k)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_csls_brings_down_what_is_near_to_everything():
    """A hub that cosine finds for every item: Conneau et al. 2018, section 2.3."""
    rng = np.random.default_rng(0)
    x = unit(rng.normal(size=(40, 30)))
    y = unit(x + 0.9 * unit(rng.normal(size=(40, 30))) + 0.0)
    direction = unit(np.ones((1, 30)))
    x, y = x + 1.6 * direction, y + 1.6 * direction * rng.choice([0.2, 1.5], size=(40, 1))
    precision = {
        score: np.mean(nearest_neighbours(x, y, score=score)[0] == np.arange(40))
        for score in ("cosine", "csls")
    }
    assert precision["csls"] > precision["cosine"] + 0.15


def named(sides, layers=("0",), level=None, run=None, label=None):
    """Representations of the same concepts in each language, in another order each."""
    arrays, rows = {layer: [] for layer in layers}, []
    for number, (language, side) in enumerate(sides.items()):
        order = np.random.default_rng(number).permutation(len(side))
        for factor, layer in enumerate(layers, start=1):
            arrays[layer].append(side[order] * factor)
        rows += [{"language": language, "id": f"{language}{i}", "concept": f"c{i}"} for i in order]
    settings = {} if run is None else {"of": {"run": run}}
    return Representations.of(
        {layer: np.concatenate(parts) for layer, parts in arrays.items()},
        pd.DataFrame(rows),
        Provenance("given", settings),
    )


def planted(n=80, d=12, noise=0.0):
    """French is a rotation of German; Swahili has nothing to do with either."""
    rng = np.random.default_rng(0)
    german = rng.normal(size=(n, d))
    french = german @ scipy.stats.ortho_group(d, seed=1).rvs() + noise * rng.normal(size=(n, d))
    return {"de": german, "fr": french, "sw": rng.normal(size=(n, d))}


def pair(frame, a, b):
    rows = frame[(frame["language_a"] == a) & (frame["language_b"] == b)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_planted_rotation_is_found_and_nothing_else():
    sides = planted(noise=0.1)
    found = named(sides)
    for measure, least in (("cka", 0.95), ("procrustes", 0.97)):
        table = language_similarity(found, measure)
        assert len(table) == 3
        close, far = pair(table, "de", "fr"), pair(table, "de", "sw")
        assert close["value"] > least
        assert close["p_value"] == pytest.approx(1 / 21)
        assert abs(far["value"] - far["shuffled"]) < 4 * far["shuffled_sd"]
        assert close["n"] == 80
    expected = linear_cka(sides["de"], sides["fr"])
    assert pair(language_similarity(found), "de", "fr")["value"] == pytest.approx(expected)
    # in the space as it is a rotation is no alignment; turned back it is
    table = language_similarity(found, "retrieval")
    assert len(table) == 6
    assert max(pair(table, "de", "fr")["value"], pair(table, "fr", "de")["value"]) < 0.15
    back = scipy.linalg.orthogonal_procrustes(sides["fr"], sides["de"])[0]
    turned = named({**sides, "fr": sides["fr"] @ back})
    table = language_similarity(turned, "retrieval", n_shuffles=200)
    for a, b in (("de", "fr"), ("fr", "de")):
        assert pair(table, a, b)["value"] > 0.98
        assert pair(table, a, b)["shuffled"] == pytest.approx(1 / 80, abs=0.005)
        assert pair(table, a, "sw")["value"] < 0.1


def test_retrieval_is_directed():
    """Rows that all answer to one are found from the one side only."""
    x, y = noisy(50, 5, noise=1.5)
    table = language_similarity(named({"de": x, "fr": y}), Retrieval(score="ratio", k=4))
    forward, backward = best_by_loop(x, y, "ratio", 4)
    places = np.arange(50)
    assert pair(table, "de", "fr")["value"] == pytest.approx(np.mean(forward == places))
    assert pair(table, "fr", "de")["value"] == pytest.approx(np.mean(backward == places))
    assert np.mean(forward == places) != np.mean(backward == places)
    weights = language_similarity(named({"de": x, "fr": y}), "pwcca")
    assert pair(weights, "de", "fr")["value"] != pair(weights, "fr", "de")["value"]


def test_cosines_are_those_of_the_loop():
    x, y = noisy(30, 6)
    cos = unit(x) @ unit(y).T
    parallel = np.mean([cos[i, i] for i in range(30)])
    others = np.mean([cos[i, j] for i in range(30) for j in range(30) if i != j])
    cosine, contrast = Cosine(), CosineContrast()
    assert cosine.value(cosine.prepare(x), cosine.prepare(y)) == pytest.approx(parallel)
    value = contrast.value(contrast.prepare(x), contrast.prepare(y))
    assert value == pytest.approx(parallel - others)
    row = pair(language_similarity(named({"de": x, "fr": y}), "cosine", n_shuffles=300), "de", "fr")
    # an order keeps one of n rows in place, in the mean
    assert row["shuffled"] == pytest.approx(parallel / 30 + others * 29 / 30, abs=0.01)
    assert row["value"] == pytest.approx(parallel)


def test_pairs_are_of_concepts_and_only_of_those_all_languages_have():
    sides = planted()
    found = named(sides, layers=("0", "6"))
    assert set(language_similarity(found, layer="6", n_shuffles=2)["layer"]) == {"6"}
    table = language_similarity(found, n_shuffles=2)
    assert list(table["layer"].unique()) == ["0", "6"]
    lacking = found.subset(~((found.items["language"] == "fr") & (found.items["concept"] == "c7")))
    kept = np.array([i for i in range(80) if i != 7])
    row = pair(language_similarity(lacking, layer=0, n_shuffles=2), "de", "sw")
    assert row["n"] == 79
    expected = linear_cka(sides["de"][kept], sides["sw"][kept])
    assert row["value"] == pytest.approx(expected, rel=1e-9)


def test_what_is_not_aligned_is_refused():
    sides = planted(n=6)
    found = named(sides)
    items = found.items.copy()
    few = found.subset((items["language"] != "sw") | items["concept"].isin(["c0", "c1"]))
    with pytest.raises(
        NotComparableError, match=r"2 concepts are common to 6 of de, 6 of fr, 2 of sw; expected 4"
    ):
        language_similarity(few)
    with pytest.raises(NotComparableError, match="the items are of 1 language;"):
        language_similarity(found.subset(items["language"] == "de"))
    array = found.array(0)
    nameless = Representations.of({"0": array}, items.assign(concept=[None] * 18))
    with pytest.raises(InputError, match=r"item de\d of de has no 'concept'"):
        language_similarity(nameless)
    twice = Representations.of({"0": array}, items.assign(concept=["c0"] * 18))
    with pytest.raises(InputError, match="the concept 'c0' is there twice in de"):
        language_similarity(twice)
    words = items.assign(sentence=0, position=range(18), word="w", tag=None)
    with pytest.raises(InputError, match="words have no concept"):
        language_similarity(Representations.of({"0": array}, words))
    with pytest.raises(InputError, match="no layer 3"):
        language_similarity(found, layer=3)


def test_sides_are_compared_by_name_and_not_by_place():
    sides = planted(noise=0.1)
    a, b = named(sides, layers=("0", "1")), named({k: 2 * v for k, v in sides.items()})
    mixed = b.subset(np.random.default_rng(3).permutation(len(b)))
    for other in (b, mixed, mixed.subset(np.arange(200))):
        table = compare(a, other, measure="cka", n_shuffles=3)
        assert table.loc[0, ["layer_a", "layer_b", "direction"]].tolist() == ["0", "0", ""]
        assert table["value"].item() == pytest.approx(1, rel=1e-9)
        assert table["n"].item() == len(other)
    every = compare(a, mixed, measure="retrieval", layers="every", n_shuffles=2)
    assert len(every) == 4  # two layers, both directions
    assert every["value"].tolist() == [1.0] * 4
    assert every["direction"].tolist() == ["a to b", "b to a"] * 2
    german, french = (a.subset(a.items["language"] == label) for label in ("de", "fr"))
    row = compare(german, french, layers=1, by="concept").iloc[0]
    assert row["value"] == pytest.approx(linear_cka(sides["de"], sides["fr"]))
    assert row["layer_a"] == row["layer_b"] == "1"
    with pytest.raises(NotComparableError, match="0 items are common to 80 of the first, 80 of"):
        compare(german, french)
    with pytest.raises(InputError, match="is there twice; expected once"):
        compare(a, b, by="concept")
    with pytest.raises(NotComparableError, match="no layer in common"):
        compare(german, Representations.of({"9": german.array(0)}, german.items))
    with pytest.raises(InputError, match="by is 'row'"):
        compare(a, b, by="row")
    repeated = Representations.of({"0": german.array(0)}, german.items.assign(id="x"))
    with pytest.raises(InputError, match="item x of de is there twice"):
        compare(repeated, german)


def test_words_are_matched_by_sentence_and_position():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    items = {"language": ["de"] * 12, "id": np.repeat(["a", "b", "c"], 4), "word": ["w"] * 12,
             "sentence": np.repeat([0, 1, 2], 4), "position": [0, 1, 2, 3] * 3}  # fmt: skip
    a = Representations.of({"0": x}, items)
    b = a.subset(rng.permutation(12))
    assert compare(a, b, measure="cosine")["value"].item() == pytest.approx(1)


# Stages


def moved_stages(noise):
    """German is turned at stage 1 and disturbed at stage 2; French stays where it is."""
    sides = planted()
    rng = np.random.default_rng(9)
    turn = scipy.stats.ortho_group(12, seed=4).rvs()
    turned = {**sides, "de": sides["de"] @ turn}
    disturbed = {**turned, "de": turned["de"] + noise * rng.normal(size=turned["de"].shape)}
    return {k: named(v, run="r") for k, v in enumerate((sides, turned, disturbed))}


def cell(frame, stage, language, measure):
    rows = frame[(frame["stage"] == stage) & (frame["language"] == language)]
    rows = rows[rows["measure"] == measure]
    assert len(rows) == 1
    return rows.iloc[0]


def test_drift_tells_turning_from_disturbance():
    stages = moved_stages(noise=0.8)
    table = drift(stages)
    assert len(table) == 2 * 3 * 3  # steps, languages, measures
    assert set(table["run"]) == {"r"}
    for measure in ("cka_distance", "procrustes_distance"):
        assert cell(table, 1, "de", measure)["value"] == pytest.approx(0, abs=1e-6)
        assert cell(table, 2, "de", measure)["value"] > 0.2
        for stage in (1, 2):
            assert cell(table, stage, "fr", measure)["value"] == pytest.approx(0, abs=1e-6)
            assert cell(table, stage, "fr", measure)["shuffled"] > 0.8
    assert cell(table, 1, "de", "cosine_distance")["value"] > 0.5
    assert cell(table, 2, "fr", "cosine_distance")["value"] == pytest.approx(0, abs=1e-9)
    # the distances, by their definitions
    before, after = (s.subset(s.items["language"] == "de").array(0) for s in (stages[1], stages[2]))
    row = cell(table, 2, "de", "cka_distance")
    assert row["value"] == pytest.approx(1 - linear_cka(before, after))
    assert row["since"] == 1
    a, b = (t - t.mean(axis=0) for t in (before, after))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    best = scipy.linalg.orthogonal_procrustes(a, b)[0]
    expected = np.linalg.norm(a @ best - b)
    assert cell(table, 2, "de", "procrustes_distance")["value"] == pytest.approx(expected)
    expected = 1 - np.mean(np.einsum("nd,nd->n", unit(before), unit(after)))
    assert cell(table, 2, "de", "cosine_distance")["value"] == pytest.approx(expected)


def test_drift_since_the_first_stage_and_for_some_measures():
    stages = moved_stages(noise=0.8)
    table = drift(stages, since="first", measures=["cosine_distance"], n_shuffles=2)
    assert set(table["since"]) == {0}
    again = drift({0: stages[0], 2: stages[2]}, measures=["cosine_distance"], n_shuffles=2)
    value = cell(table, 2, "de", "cosine_distance")["value"]
    assert cell(again, 2, "de", "cosine_distance")["value"] == pytest.approx(value)


def test_drift_of_what_cannot_be_compared():
    stages = moved_stages(noise=0.1)
    with pytest.raises(InputError, match="representations of 1 stage;"):
        drift({0: stages[0]})
    with pytest.raises(InputError, match="since is 'start'"):
        drift(stages, since="start")
    with pytest.raises(InputError, match="measure is 'cka'"):
        drift(stages, measures=["cka"])
    fewer = stages[1].subset(np.arange(100))
    with pytest.raises(
        NotComparableError, match="stage 0 has 240 items and stage 1 100, of which 100 are common"
    ):
        drift({0: stages[0], 1: fewer})
    items = stages[0].items.assign(language=["x"] * 3 + ["y"] * 237)
    rare = Representations.of({"0": stages[0].array(0)}, items)
    row = cell(drift({0: rare, 1: rare}), 1, "x", "cka_distance")
    assert math.isnan(row["value"])
    assert row["reason"] == "3 items of x, and cka needs 4"
    nameless = Representations.of({"0": stages[0].array(0)}, items.assign(language=None))
    with pytest.raises(InputError, match="no item names a language"):
        drift({0: nameless, 1: nameless})


def test_drift_stands_beside_forgetting_and_similarity_explains_it(tmp_path):
    root = validation_makers.write_checkpoint(tmp_path / "checkpoint", stages=True)
    checkpoint_makers.write_scores(root / "scores.csv", LANGUAGES)
    checkpoint = open_checkpoint(root)
    stages = {stage: representations(checkpoint, stage=stage) for stage in range(4)}
    moved = drift(stages, n_shuffles=2)
    embeddings = moved["layer"] == "0"  # which adapters of layers leave alone
    assert moved.loc[embeddings, "value"].abs().max() < 1e-6
    assert (moved.loc[~embeddings, "value"] > 1e-3).all()
    forgetting = measure_forgetting(checkpoint.scores)
    joined = moved.merge(forgetting.effects, on=["run", "stage", "language"])
    assert len(joined) == 2 * len(moved)  # accuracy and loss
    table = language_similarity(stages[0], n_shuffles=0)
    relation = relate(forgetting, representations=table, representation_levels=("layer",))
    assert set(relation.frame["measure"]) == {"cka"}
    assert set(relation.frame["module"]) == {"0", "1", "2"}


def test_every_measure_has_a_name_of_its_own():
    assert list(MEASURES) == [
        "cka", "procrustes", "svcca", "pwcca", "cosine", "cosine_contrast", "retrieval",
    ]  # fmt: skip
    assert all(measure.__doc__ for measure in MEASURES.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "dot"}, "score is 'dot'"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_settings_of_retrieval_are_checked(options, message):
    x, y = noisy(5, 3)
    with pytest.raises(InputError, match=message):
        nearest_neighbours(x, y, **options)
    with pytest.raises(InputError, match="expected"):
        Retrieval(**options)
    with pytest.raises(InputError, match=r"the sides are \[5, 3\] and \[5, 2\]"):
        nearest_neighbours(x, y[:, :2])
    with pytest.raises(InputError, match="a row is zero"):
        nearest_neighbours(x, y * 0)
