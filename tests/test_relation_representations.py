"""Similarity of representations as a predictor of what training one language does to another."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from subnet.errors import InputError
from subnet.relation import associate, relate
from test_relation_relate import LABELS, forgetting_of, only_row, overlap_of, symmetric

LAYERS = ("0", "1", "2")
FAST = {"controls": {}, "n_permutations": 199}


def similarity_of(
    by_layer: np.ndarray,
    *,
    measure: str = "cka",
    run: str = "main",
    stage: object = 0,
    directed: bool = False,
) -> pd.DataFrame:
    """Table as `language_similarity` writes it, with the stage; by_layer is [layers, l, l]."""
    rows = [
        {
            "run": run, "stage": stage, "source": "representations", "language_a": a,
            "language_b": b, "level": "layer", "module": layer, "layer": layer,
            "measure": measure, "value": by_layer[k, i, j], "shuffled": 0.0,
        }
        for k, layer in enumerate(LAYERS)
        for i, a in enumerate(LABELS)
        for j, b in enumerate(LABELS)
        if (i != j if directed else i < j)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def transfer_of(scores: np.ndarray, *, metric: str = "macro_f1", stage: int = 0) -> pd.DataFrame:
    """Table as `cross_lingual_transfer` writes it; the diagonal is within a language."""
    rows = [
        {
            "run": "main", "stage": stage, "layer": layer, "train_language": a,
            "test_language": b, "task": "label", "metric": metric, "score": scores[i, j],
        }
        for layer in LAYERS[1:]
        for i, a in enumerate(LABELS)
        for j, b in enumerate(LABELS)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def layers(seed: int, base: np.ndarray | None = None) -> np.ndarray:
    """[3, 10, 10], symmetric, each layer its own; their mean is the base where there is one."""
    found = np.stack([symmetric(len(LABELS), 10 * seed + k) for k in range(3)])
    return found if base is None else found - found.mean(axis=0) + base


def test_effects_that_follow_the_mean_over_layers_are_found_with_their_sign() -> None:
    alike = symmetric(len(LABELS), 3)
    noise = np.random.default_rng(4).standard_normal(alike.shape)
    effects = alike + 0.15 * noise
    table = similarity_of(layers(1, alike))
    found = relate(forgetting_of(effects), representations=table, **FAST)
    row = only_row(found)
    expected = associate(
        pd.DataFrame(effects, LABELS, LABELS), pd.DataFrame(alike, LABELS, LABELS),
        n_permutations=199,
    )  # fmt: skip
    assert row["estimate"] == pytest.approx(expected.estimate, rel=1e-9)
    assert row["p_value"] == expected.p_value
    assert (row["predictor"], row["measure"]) == ("representations (base)", "cka")
    assert row["expected_sign"] == "positive"
    assert found.headline.state == "associated"
    assert found.headline.sentence.startswith(
        "The more alike the base represents two languages (cka), the less one lost when the other "
        "was trained: standardised slope 0."
    )
    assert found.headline.sentence.endswith("As expected.")
    # Helping less where languages are alike is found, and called the opposite.
    other = relate(forgetting_of(-effects), representations=table, **FAST)
    assert other.headline.sentence.endswith("The opposite was expected.")
    assert (
        "languages that the base represents alike help each other"
        in (found.provenance.settings["hypotheses"])
    )


def test_what_is_measured_at_the_end_is_no_predictor() -> None:
    alike, noise = symmetric(10, 5), np.random.default_rng(6).standard_normal((10, 10))
    effects = alike + 0.1 * noise
    at_end = similarity_of(layers(2, alike), stage=10)
    other = similarity_of(layers(3), stage=0)
    found = relate(forgetting_of(effects), representations=pd.concat([at_end, other]), **FAST)
    alone = relate(forgetting_of(effects), representations=other, **FAST)
    pd.testing.assert_frame_equal(found.frame, alone.frame)
    with pytest.raises(InputError, match=r"has no stage 0 \(it has 10\); .* is no prediction"):
        relate(forgetting_of(effects), representations=at_end, **FAST)
    # Stages as CSV gives them back, and no stage at all.
    for stage in ("0", 0.0, "base"):
        again = relate(forgetting_of(effects), representations=other.assign(stage=stage), **FAST)
        pd.testing.assert_frame_equal(again.frame, alone.frame)
    bare = relate(
        forgetting_of(effects), representations=other.drop(columns=["stage", "run"]), **FAST
    )
    pd.testing.assert_frame_equal(bare.frame, alone.frame)


def test_a_layer_is_a_test_of_its_own_only_where_it_is_asked_for() -> None:
    effects = symmetric(10, 8)
    by_layer = layers(4)
    table = similarity_of(by_layer)
    forgetting = forgetting_of(effects)
    assert len(relate(forgetting, representations=table, **FAST).frame) == 2  # two methods
    found = relate(
        forgetting, representations=table, representation_levels=("all", "layer"), **FAST
    )
    rows = found.frame[found.frame["method"] == "qap"]
    assert list(rows["module"]) == ["", *LAYERS]
    apart = ~np.eye(10, dtype=bool)
    for k, layer in enumerate(LAYERS):
        row = only_row(found, "qap", module=layer)
        assert row["level"] == "layer"
        assert row["estimate"] == pytest.approx(
            np.corrcoef(by_layer[k][apart], effects[apart])[0, 1]
        )
    with pytest.raises(InputError, match=r"level of representations is 'module'; .* all, layer"):
        relate(forgetting, representations=table, representation_levels=("module",), **FAST)


def test_a_layer_at_which_nothing_is_defined_is_left_out_of_the_mean() -> None:
    alike = layers(5)
    broken = alike.copy()
    broken[0] = np.nan
    effects = symmetric(10, 9)
    found = relate(forgetting_of(effects), representations=similarity_of(broken), **FAST)
    apart = ~np.eye(10, dtype=bool)
    expected = np.corrcoef(alike[1:].mean(axis=0)[apart], effects[apart])[0, 1]
    assert only_row(found, "qap")["estimate"] == pytest.approx(expected)


def test_transfer_is_directed_and_counts_macro_f1_without_the_diagonal() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random((10, 10))
    effects = scores + 0.1 * rng.standard_normal((10, 10))
    scores[np.arange(10), np.arange(10)] = 100.0
    both = pd.concat([transfer_of(rng.random((10, 10)), metric="accuracy"), transfer_of(scores)])
    right = only_row(relate(forgetting_of(effects), representations=both, **FAST))
    assert right["measure"] == "probe_transfer"
    assert right["estimate"] > 0.9
    turned = transfer_of(scores.T)
    assert abs(only_row(relate(forgetting_of(effects), representations=turned, **FAST))
               ["estimate"]) < 0.5  # fmt: skip
    retrieval = similarity_of(np.stack([scores] * 3), measure="retrieval", directed=True)
    found = relate(forgetting_of(effects), representations={"a": both, "b": retrieval}, **FAST)
    assert set(found.frame["measure"]) == {"probe_transfer", "retrieval"}
    assert only_row(found, measure="retrieval")["estimate"] == pytest.approx(right["estimate"])


def test_the_headline_stays_with_overlap_and_is_corrected_for_representations() -> None:
    overlap = symmetric(10, 1)
    effects = -overlap + 0.2 * np.random.default_rng(1).standard_normal((10, 10))
    found = relate(
        forgetting_of(effects), overlap=overlap_of(overlap),
        representations=similarity_of(layers(6)), **FAST,
    )  # fmt: skip
    assert found.headline.row is not None
    assert found.headline.row["predictor"] == "masks"
    p = found.frame.loc[found.frame["method"] == "mrqap_dsp", "p_value"].to_numpy()
    assert len(p) == 2
    assert found.headline.row["q_value"] == pytest.approx(min(2 * p.min(), p.max()))


def test_a_run_without_its_own_influence_or_representations_is_left_out() -> None:
    """And what masks of one run say beside another's effects is stated."""
    runs = {"main": LABELS, "back": LABELS[::-1]}
    rng = np.random.default_rng(7)
    effects = {run: rng.standard_normal((10, 10)) for run in runs}
    forgetting = forgetting_of(effects, runs=runs)
    table = similarity_of(layers(7))
    found = relate(forgetting, representations=table, overlap=overlap_of(symmetric(10, 2)), **FAST)
    row = only_row(found, predictor="representations (base)")
    assert row["n_runs"] == 1
    alone = relate(forgetting_of(effects["main"]), representations=table, **FAST)
    assert row["estimate"] == pytest.approx(only_row(alone)["estimate"])
    assert only_row(found, predictor="masks")["n_runs"] == 2
    assert "representations (base): back left out, where it was not measured" in found.notes
    assert "masks of run main stand for back too" in found.notes
    influence = pd.DataFrame(
        [
            {
                "run": "back", "train_language": a, "test_language": b, "checkpoint": "final",
                "method": "tracin", "subnetwork": "", "measure": "mean", "value": rng.random(),
            }
            for a in LABELS for b in LABELS
        ]
    )  # fmt: skip
    found = relate(forgetting, influence=influence, **FAST)
    assert only_row(found)["n_runs"] == 1
    assert found.notes == ("influence (tracin): main left out, where it was not measured",)
    # With rows of its own, each run has its matrix beside it.
    both = pd.concat([table, similarity_of(layers(8), run="back")])
    assert only_row(relate(forgetting, representations=both, **FAST))["n_runs"] == 2


def test_similarity_that_has_nothing_to_do_with_effects_is_not_found() -> None:
    """As often as the level says: 0.05 within the error of 100 draws, and not never."""
    n, rejected = 100, 0
    for seed in range(n):
        rng = np.random.default_rng(seed)
        # Languages have effects of their own as donors and receivers, and traits that make
        # representations alike: neither must make pairs of them look related.
        row, column = 1.5 * rng.standard_normal((2, 10))
        effects = row[:, None] + column + rng.standard_normal((10, 10))
        traits = rng.standard_normal((10, 2))
        alike = np.exp(-((traits[:, None] - traits) ** 2).sum(axis=2) / 2)
        found = associate(
            pd.DataFrame(effects, LABELS, LABELS), pd.DataFrame(alike, LABELS, LABELS),
            n_permutations=199, seed=seed,
        )  # fmt: skip
        rejected += found.p_value <= 0.05
    assert 0.01 <= rejected / n <= 0.11, rejected


@pytest.mark.slow
def test_relate_rejects_three_to_seven_percent_where_nothing_is_planted() -> None:
    n, rejected = 600, 0
    for seed in range(n):
        rng = np.random.default_rng(seed)
        row, column = 1.5 * rng.standard_normal((2, 10))
        effects = row[:, None] + column + rng.standard_normal((10, 10))
        traits = rng.standard_normal((3, 10, 2))
        alike = np.exp(-((traits[:, :, None] - traits[:, None]) ** 2).sum(axis=3) / 2)
        found = relate(
            forgetting_of(effects, seed=seed), representations=similarity_of(alike),
            controls={}, n_permutations=199, seed=seed,
        )  # fmt: skip
        rejected += found.headline.state == "associated"
    assert 0.03 <= rejected / n <= 0.07, rejected


def test_tables_that_cannot_be_taken_are_one_clear_line() -> None:
    forgetting = forgetting_of(symmetric(10, 1))
    table = similarity_of(layers(9))
    with pytest.raises(InputError, match=r"representations has no column layer; .*similarity\.csv"):
        relate(forgetting, representations=table.drop(columns="layer"))
    with pytest.raises(InputError, match="cka of representations stands in two tables"):
        relate(forgetting, representations={"a": table, "b": table})
    with pytest.raises(InputError, match=r"holds similarity of rep.*; give it as representations="):
        relate(forgetting, overlap=table)


def test_without_scores_the_answer_names_them() -> None:
    found = relate(None, representations=similarity_of(layers(9)))
    assert found.headline.state == "files missing"
    assert "scores.csv" in found.headline.sentence
    assert "adapters" not in found.headline.sentence
