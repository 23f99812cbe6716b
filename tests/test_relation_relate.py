"""From scores, overlap and influence to the table and the one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from subnet._tables import COLUMNS
from subnet.checkpoint.records import Metric
from subnet.errors import InputError
from subnet.forgetting import Forgetting, measure_forgetting
from subnet.language import parse_language
from subnet.relation import Relation, associate, control_matrices, relate

LABELS = ("de", "en", "es", "fi", "hi", "ja", "ru", "sw", "tr", "zh")
LOSS = {"loss": Metric("loss", higher_is_better=False)}


def symmetric(n: int, seed: int) -> np.ndarray:
    half = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    return half + half.T


def forgetting_of(
    effects: np.ndarray | Mapping[str, np.ndarray],
    labels: tuple[str, ...] = LABELS,
    *,
    runs: Mapping[str, tuple[str, ...]] | None = None,
    n_items: int = 0,
    seed: int = 0,
) -> Forgetting:
    """Scores (loss) that change by −effects[i, j] when i is trained: positive effects improve."""
    rng = np.random.default_rng(seed)
    scores, items = [], []
    for run, order in (runs or {"main": labels}).items():
        changes = effects[run] if isinstance(effects, Mapping) else effects
        loss = dict(zip(labels, 2 + rng.random(len(labels)), strict=True))
        for stage, trained in enumerate(["", *order]):
            for j, label in enumerate(labels):
                if trained:
                    loss[label] -= changes[labels.index(trained), j]
                scores.append((run, stage, label, "loss", loss[label]))
                values = loss[label] + 0.2 * rng.standard_normal(n_items)
                items += [(run, stage, label, f"x{k}", "loss", v) for k, v in enumerate(values)]
    columns = ["run", "stage", "language", "metric", "value"]
    frame = pd.DataFrame(scores, columns=columns)
    item_frame = pd.DataFrame(items, columns=[*columns[:3], "item", "metric", "value"])
    return measure_forgetting(
        frame.iloc[:0] if n_items else frame,
        items=item_frame if n_items else None,
        metrics=LOSS,
        order={run: list(order) for run, order in (runs or {"main": labels}).items()},
    )


def overlap_of(
    values: np.ndarray,
    labels: tuple[str, ...] = LABELS,
    *,
    measure: str = "jaccard",
    source: str = "masks",
    level: str = "all",
    module: str = "",
    run: str = "main",
    directed: bool = False,
) -> pd.DataFrame:
    """Table of overlap as `measure_overlap` writes it: a row per null model, replicates beside."""
    rows = []
    for null in ("element", "structure"):
        for i, a in enumerate(labels):
            for j, b in enumerate(labels):
                if directed or i < j:
                    rows.append((run, source, a, b, level, module, measure, values[i, j], null))
        rows.append((f"{run}|b", source, labels[0], labels[0], level, module, measure, 0.9, null))
    columns = ["run", "source", "language_a", "language_b", "level", "module", "measure", "value"]
    frame = pd.DataFrame(rows, columns=[*columns, "null"])
    replicate = (frame["language_a"] == frame["language_b"]) & (frame["run"] != run)
    return frame.assign(comparison=np.where(replicate, "replicate", "between"))


def planted(seed: int = 0, strength: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """Overlap and effects that fall with it."""
    overlap = symmetric(len(LABELS), seed)
    noise = np.random.default_rng(seed + 1).standard_normal(overlap.shape)
    return overlap, strength * overlap + 0.15 * noise


def only_row(relation: Relation, method: str = "mrqap_dsp", **where: str) -> pd.Series:
    frame = relation.frame[relation.frame["method"] == method]
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_the_relation_is_that_of_the_effect_matrix_and_the_overlap_matrix() -> None:
    overlap, effects = planted()
    frame = lambda values: pd.DataFrame(values, LABELS, LABELS)  # noqa: E731
    found = relate(forgetting_of(effects), overlap=overlap_of(overlap), controls={})
    expected = associate(frame(effects), frame(overlap))
    row = only_row(found)
    assert row["estimate"] == pytest.approx(expected.estimate, rel=1e-9)
    assert row["p_value"] == row["q_value"] == expected.p_value
    assert row["n_languages"] == 10
    assert row["n_pairs"] == 90
    plain = only_row(found, "qap")
    apart = ~np.eye(10, dtype=bool)
    assert plain["estimate"] == pytest.approx(np.corrcoef(overlap[apart], effects[apart])[0, 1])


def test_a_directed_predictor_has_the_trained_language_in_its_rows() -> None:
    rng = np.random.default_rng(5)
    changed = rng.random((10, 10))  # [what training i changed, what j uses]
    effects = -changed + 0.05 * rng.standard_normal((10, 10))
    right = relate(forgetting_of(effects), overlap=overlap_of(changed, directed=True), controls={})
    wrong = relate(
        forgetting_of(effects), overlap=overlap_of(changed.T, directed=True), controls={}
    )
    assert only_row(right)["predictor"] == "step_masks"
    assert only_row(right)["estimate"] < -0.9
    assert abs(only_row(wrong)["estimate"]) < 0.5


def test_each_run_is_a_level_and_meets_the_overlap_of_its_own_steps() -> None:
    rng = np.random.default_rng(3)
    runs = {"main": LABELS, "back": LABELS[::-1], "other": LABELS[5:] + LABELS[:5]}
    changed = {run: rng.random((10, 10)) for run in runs}
    parts = [overlap_of(values, directed=True, run=run) for run, values in changed.items()]
    effects = {run: 0.3 * rng.standard_normal((10, 10)) - changed[run] for run in runs}
    forgetting = forgetting_of(effects, runs=runs)
    found = relate(forgetting, overlap=pd.concat(parts), controls={}, n_permutations=499)
    outcome = {run: pd.DataFrame(values, LABELS, LABELS) for run, values in effects.items()}
    predictors = {run: pd.DataFrame(values, LABELS, LABELS) for run, values in changed.items()}
    expected = associate(outcome, predictors, n_permutations=499)
    row = only_row(found)
    assert row["estimate"] == pytest.approx(expected.estimate, rel=1e-6)
    assert row["n_runs"] == 3
    assert row["n_pairs"] == 270
    assert ", 3 runs" in found.headline.sentence
    apart = np.tile(~np.eye(10, dtype=bool).ravel(), 3)
    y, x = (np.concatenate([m[r].to_numpy().ravel() for r in runs]) for m in (outcome, predictors))
    design = np.column_stack([x, np.repeat(np.eye(3), 100, axis=0)])[apart]
    assert row["statistic"] == pytest.approx(sm.OLS(y[apart], design).fit().tvalues[0], rel=1e-6)


def test_overlap_of_adapters_stands_for_every_order_of_training() -> None:
    overlap, effects = planted()
    runs = {"a": LABELS, "b": LABELS[::-1]}
    found = relate(
        forgetting_of(effects, runs=runs), overlap=overlap_of(overlap), n_permutations=99
    )
    assert only_row(found)["n_runs"] == 2
    steps = overlap_of(overlap, directed=True, run="a")
    found = relate(forgetting_of(effects, runs=runs), overlap=steps, n_permutations=99)
    assert only_row(found)["n_runs"] == 1


def test_outcome_and_baseline_rest_on_different_halves_of_the_items() -> None:
    overlap, effects = planted()
    forgetting = forgetting_of(effects, n_items=40)
    found = relate(forgetting, overlap=overlap_of(overlap), n_permutations=199)
    outcome = forgetting.effect_matrix("loss", half="b")
    baseline = np.tile(forgetting.baseline("loss").to_numpy(), (10, 1))
    script = [parse_language(label).script for label in LABELS]
    controls = {
        "script": pd.DataFrame([[float(a == b) for b in script] for a in script], LABELS, LABELS),
        "baseline": pd.DataFrame(baseline, LABELS, LABELS),
        "position": pd.DataFrame(np.tile(np.arange(10.0)[:, None], 10), LABELS, LABELS),
    }
    expected = associate(
        outcome, pd.DataFrame(overlap, LABELS, LABELS), controls, n_permutations=199
    )
    row = only_row(found)
    assert row["controls"] == "same_script; receiver_baseline; donor_position"
    assert row["estimate"] == pytest.approx(expected.estimate, rel=1e-9)
    assert row["p_value"] == expected.p_value
    assert found.provenance.settings["half"] == "b"


def test_without_items_the_baseline_is_not_held_fixed_and_the_reason_is_given() -> None:
    overlap, effects = planted()
    found = relate(forgetting_of(effects), overlap=overlap_of(overlap), n_permutations=99)
    assert only_row(found)["controls"] == "same_script; donor_position"
    assert any("receiver_baseline left out" in note for note in found.notes)
    assert any("Per-item results are not known" in caveat for caveat in found.caveats)
    assert any("one order of training only" in caveat for caveat in found.caveats)
    assert any("Guillot and Rousset" in caveat for caveat in found.caveats)


def test_controls_that_cannot_serve_are_left_out_with_a_note() -> None:
    overlap, effects = planted()
    languages = [parse_language(label) for label in LABELS]
    families = dict.fromkeys(LABELS, "Indo-European") | {"fi": "Uralic"}
    same = control_matrices(languages, dict.fromkeys(LABELS, "one"))
    partial = control_matrices(languages, {k: v for k, v in families.items() if k != "ja"})
    for controls, note in (
        (same, "control same_family left out: it is the same for every pair"),
        (partial, "control same_family left out: no value for 18 of 90 pairs"),
    ):
        found = relate(
            forgetting_of(effects), overlap=overlap_of(overlap), controls=controls,
            n_permutations=99,
        )  # fmt: skip
        assert found.notes == (note,)
        assert only_row(found)["controls"] == "same_script"
        assert found.headline.sentence.count("same family") == 0


def test_control_matrices_hold_what_they_are_named_after() -> None:
    languages = [parse_language(label) for label in ("de", "en", "ru")]
    found = control_matrices(
        languages,
        {"de": "Germanic", "en": "Germanic", "ru": "Slavic"},
        baseline=pd.Series({"de": 0.1, "en": 0.2, "ru": 0.3}),
        position={"a": {"de": 1, "ru": 2}, "b": {"de": 2, "ru": 1}},
        examples={"de": 100, "en": 1000, "ru": 10},
        bytes_per_character={"de": 1.0, "en": 1.0, "ru": 1.9},
        shared_tokens=pd.DataFrame(0.5, ["ru", "de", "en"], ["ru", "de", "en"]),
    )
    nan = math.nan

    def check(name: str, expected: list[list[float]]) -> None:
        np.testing.assert_allclose(found[name], expected)  # type: ignore[arg-type]

    check("same_script", [[nan, 1, 0], [1, nan, 0], [0, 0, nan]])
    check("same_family", [[nan, 1, 0], [1, nan, 0], [0, 0, nan]])
    check("receiver_baseline", [[nan, 0.2, 0.3], [0.1, nan, 0.3], [0.1, 0.2, nan]])
    log = np.log([100, 1000, 10])
    check("donor_examples", [[nan, log[0], log[0]], [log[1], nan, log[1]], [log[2], log[2], nan]])
    check("bytes_per_character_difference", [[nan, 0, 0.9], [0, nan, 0.9], [0.9, 0.9, nan]])
    position = found["donor_position"]
    assert isinstance(position, dict)
    np.testing.assert_allclose(position["b"], [[nan, 2, 2], [1.5, nan, 1.5], [1, 1, nan]])


def modules(overlap: np.ndarray, n_modules: int) -> pd.DataFrame:
    rng = np.random.default_rng(9)
    parts = [overlap_of(overlap)]
    for index in range(n_modules):
        noisy = overlap + 0.5 * symmetric(len(LABELS), 100 + index)
        parts.append(overlap_of(noisy, level="module", module=f"layer.{index}"))
    parts.append(overlap_of(rng.random(overlap.shape), measure="dice"))
    return pd.concat(parts)


def test_q_values_correct_over_measures_and_modules_by_method() -> None:
    overlap, effects = planted(strength=-0.3)
    found = relate(forgetting_of(effects), overlap=modules(overlap, 4), n_permutations=499)
    for _, rows in found.frame.groupby("method"):
        assert len(rows) == 6
        p = rows["p_value"].to_numpy()
        order = np.argsort(p)
        scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
        by_hand = np.minimum.accumulate(scaled[::-1])[::-1]
        np.testing.assert_allclose(rows["q_value"].to_numpy()[order], by_hand)
    row = only_row(found, module="layer.2")
    assert (row["level"], row["measure"], row["expected_sign"]) == ("module", "jaccard", "negative")
    assert list(found.frame.columns[:16]) == list(COLUMNS["relation"])


def test_levels_that_were_not_asked_for_are_not_in_the_family() -> None:
    overlap, effects = planted()
    found = relate(
        forgetting_of(effects), overlap=modules(overlap, 4), levels=("all",), n_permutations=99
    )
    assert set(found.frame["level"]) == {"all"}
    assert len(found.frame) == 4


def test_a_row_is_testable_by_what_its_family_could_reach_after_correction() -> None:
    """Three languages of one kind, two of another: .10 alone; 15 groupings of six reach .067."""
    labels = LABELS[:5]
    group = np.array([0, 0, 0, 1, 1])
    same = (group[:, None] == group).astype(float)
    effects = np.random.default_rng(0).standard_normal((5, 5))
    found = relate(forgetting_of(effects, labels), overlap=overlap_of(same, labels), controls={})
    row = only_row(found)
    assert row["smallest_p"] == pytest.approx(0.1)
    assert not row["testable"]
    assert row["reason"].endswith("the smallest p these data can give is 0.1")
    assert found.headline.state == "not testable"
    # Corrected with a test that could reach 1/120: .10 stays what it is as the larger of two.
    both = pd.concat(
        [overlap_of(same, labels), overlap_of(symmetric(5, 1), labels, measure="dice")]
    )
    found = relate(forgetting_of(effects, labels), overlap=both, controls={})
    assert only_row(found, measure="dice")["testable"]
    assert not only_row(found, measure="jaccard")["testable"]
    assert "(q = 0.1 over 2 tests)" in only_row(found, measure="jaccard")["reason"]


def test_swapping_language_labels_removes_the_headline() -> None:
    """On a planted association, in at least 95 of 100 seeds; unswapped it stands."""
    overlap, effects = planted()
    forgetting = forgetting_of(effects)
    table = overlap_of(overlap)

    def state(labels: Mapping[str, str], seed: int) -> str:
        swapped = table.replace({"language_a": dict(labels), "language_b": dict(labels)})
        return relate(
            forgetting, overlap=swapped, controls={}, n_permutations=199, seed=seed
        ).headline.state

    assert state({label: label for label in LABELS}, 0) == "associated"
    removed = 0
    for seed in range(100):
        shuffled = np.random.default_rng(1000 + seed).permutation(LABELS)
        swap = dict(zip(LABELS, shuffled, strict=True))
        removed += state(swap, seed) == "not associated"
    assert removed >= 95, removed


def test_the_headline_is_chosen_before_looking() -> None:
    """Jaccard of the masks, though the cosine of the updates relates far better."""
    overlap, effects = planted()
    poor = symmetric(10, 77)
    tables = {
        "updates": overlap_of(-overlap, source="updates", measure="cosine"),
        "masks": pd.concat([overlap_of(overlap, measure="dice"), overlap_of(poor)]),
    }
    found = relate(forgetting_of(effects), overlap=tables, n_permutations=499)
    assert found.headline.row is not None
    assert (found.headline.row["predictor"], found.headline.row["measure"]) == ("masks", "jaccard")
    assert found.headline.state == "not associated"
    assert only_row(found, predictor="updates")["q_value"] < 0.05
    del tables["masks"]
    found = relate(forgetting_of(effects), overlap=tables, n_permutations=499)
    assert found.headline.row is not None
    assert found.headline.row["measure"] == "cosine"
    tables["step_masks"] = overlap_of(poor, directed=True)
    found = relate(forgetting_of(effects), overlap=tables, n_permutations=499)
    assert found.headline.row is not None
    assert found.headline.row["predictor"] == "step_masks"


def test_influence_is_a_predictor_with_a_positive_sign_expected() -> None:
    rng = np.random.default_rng(2)
    values = rng.random((10, 10))
    effects = values + 0.2 * rng.standard_normal((10, 10))
    frame = pd.DataFrame(
        [
            {
                "run": "main", "train_language": a, "test_language": b, "checkpoint": "final",
                "method": "tracin", "subnetwork": "", "measure": "mean", "value": values[i, j],
            }
            for i, a in enumerate(LABELS)
            for j, b in enumerate(LABELS)
        ]
    )  # fmt: skip
    found = relate(forgetting_of(effects), influence=frame, n_permutations=999)
    row = only_row(found)
    assert row["predictor"] == "influence (tracin)"
    assert row["expected_sign"] == "positive"
    assert row["estimate"] > 0.5
    assert found.headline.state == "associated"
    assert found.headline.sentence.startswith(
        "The more the examples of one language lower the loss of another (mean), the less that "
        "other language lost: standardised slope 0."
    )


def sentence_for(relation: Relation, state: str) -> str:
    assert relation.headline.state == state
    return relation.headline.sentence


def test_headline_associated() -> None:
    overlap, effects = planted()
    found = relate(forgetting_of(effects), overlap=overlap_of(overlap), n_permutations=999)
    assert sentence_for(found, "associated") == (
        "The more the parameters that two languages use overlap (jaccard), the more one lost when "
        "the other was trained: standardised slope −0.92 [−0.97, −0.87], p = 0.001, 10 languages, "
        "90 pairs, MRQAP with double semi-partialing given same script and donor position. "
        "As expected."
    )


def test_headline_not_associated() -> None:
    _, effects = planted()
    table = pd.concat(
        [overlap_of(symmetric(10, 50)), overlap_of(symmetric(10, 51), measure="dice")]
    )
    found = relate(forgetting_of(effects), overlap=table, controls={}, n_permutations=999)
    assert sentence_for(found, "not associated") == (
        "No association was found between the overlap of the parameters that two languages use "
        "(jaccard) and what a language lost when another was trained: standardised slope 0.24 "
        "[−0.22, 0.71], p = 0.10 (q = 0.13), 10 languages, 90 pairs, MRQAP with double "
        "semi-partialing, nothing held fixed."
    )


def test_headline_not_testable() -> None:
    labels = LABELS[:4]
    overlap, effects = symmetric(4, 1), np.random.default_rng(1).standard_normal((4, 4))
    found = relate(forgetting_of(effects, labels), overlap=overlap_of(overlap, labels), controls={})
    assert sentence_for(found, "not testable") == (
        "Whether the overlap of the parameters that two languages use (jaccard) goes with what a "
        "language loses when another is trained cannot be tested on these data (4 languages, "
        "12 pairs): 4 languages; a test needs at least 5."
    )


def test_headline_files_missing() -> None:
    overlap, effects = planted()
    neither = relate(None)
    assert sentence_for(neither, "files missing") == (
        "Whether sharing goes with forgetting cannot be answered: these files hold no scores of "
        "every language after every stage (scores.csv) and no adapters or masks of which to "
        "measure the overlap."
    )
    assert neither.frame.empty
    assert tuple(neither.frame.columns) == COLUMNS["relation"]
    no_scores = sentence_for(relate(None, overlap=overlap_of(overlap)), "files missing")
    assert no_scores.endswith("hold no scores of every language after every stage (scores.csv).")
    no_overlap = sentence_for(relate(forgetting_of(effects)), "files missing")
    assert no_overlap.endswith("hold no adapters or masks of which to measure the overlap.")


def test_a_small_q_beside_an_interval_across_zero_says_so() -> None:
    from subnet.relation._headline import write_headline

    row = {
        "measure": "jaccard", "n_languages": 9, "n_pairs": 72, "n_runs": 1, "testable": True,
        "estimate": -0.3, "ci_low": -0.7, "ci_high": 0.1, "p_value": 0.0004, "q_value": 0.01,
        "expected_sign": "negative", "reason": "",
    }  # fmt: skip
    found = write_headline(row, "masks", ["same_script"])
    assert found.state == "associated"
    assert "p < 0.001 (q = 0.01)" in found.sentence
    assert found.sentence.endswith(
        "The interval, which leaves out one language at a time, includes 0: how strong the "
        "association is, these data do not say."
    )
    lonely = row | {"ci_low": float("nan"), "ci_high": float("nan"), "reason": "no interval"}
    sentence = write_headline(lonely, "masks", ["same_script"]).sentence
    assert sentence.endswith("It may hang on one language: no interval.")
    far = write_headline(row | {"q_value": 0.051}, "masks", ["same_script"])
    assert far.state == "not associated"


def test_provenance_says_everything_a_number_depends_on() -> None:
    overlap, effects = planted()
    found = relate(forgetting_of(effects), overlap=overlap_of(overlap), n_permutations=99, seed=7)
    record = found.provenance.to_dict()
    assert record["seed"] == 7
    settings = record["settings"]
    assert settings["n_permutations"] == 99
    assert settings["metric"] == "loss"
    assert settings["headline_predictor"][0] == "step_masks jaccard"
    assert "more shared weights, more loss" in settings["hypotheses"]
    json.dumps(record)
    json.dumps(found.headline.row)


def test_two_calls_with_one_seed_are_equal() -> None:
    overlap, effects = planted()
    first, second = (
        relate(forgetting_of(effects), overlap=overlap_of(overlap), n_permutations=99)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first.frame, second.frame)


def test_a_metric_that_was_not_measured_is_one_clear_line() -> None:
    overlap, effects = planted()
    with pytest.raises(InputError, match="there is no metric 'f1'; expected one of loss"):
        relate(forgetting_of(effects), overlap=overlap_of(overlap), metric="f1")


def test_a_table_that_is_no_overlap_is_one_clear_line() -> None:
    _, effects = planted()
    with pytest.raises(InputError, match=r"the table of overlap has no column language_a, .*level"):
        relate(forgetting_of(effects), overlap=pd.DataFrame({"value": [1.0]}))
