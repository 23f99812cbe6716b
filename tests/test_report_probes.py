"""Sections of the report about probes: the right rows, their numbers, and pictures that hold."""

from __future__ import annotations

import math
import re
import sys
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from subnet._tables import provenance
from subnet.checkpoint.records import Metric
from subnet.forgetting import measure_forgetting
from subnet.language import parse_language
from subnet.relation import Headline
from subnet.report import Missing, ReportContent, render_report
from subnet_probes import CheckpointProbing, report_sections
from subnet_probes.report_extension import addition
from subnet_probes.report_numbers import key_numbers, summary
from subnet_probes.report_selection import END, OWN, Shown, change, training_order, what_was_lost

LABELS = ("de", "ar", "zh-Hans", "he")
LAYERS = ("0", "1", "2")
HALF = 0.05


def score(language, layer, moment):
    """What is planted: the own stage adds .2 at the last layer, and the end takes .1 of it."""
    start = 0.4 + 0.05 * int(layer) + (0.3 if language == "all" else 0)
    gained = {"base": 0.0, "own": 0.2, "end": 0.1}[moment]
    return start + gained * (layer == "2")


def probe_rows(labels, run="main"):
    points = [(0, "", "base", "base", [*labels, "all"])]
    for stage, label in enumerate(labels, 1):
        last = stage == len(labels)
        points.append((stage, label, "stage", "own", [label]))
        if last:
            points.append((stage, label, "stage", "end", [*labels[:-1], "all"]))
    rows = []
    for stage, trained, model, moment, languages in points:
        for metric in ("accuracy", "macro_f1"):
            for language in languages:
                for layer in LAYERS:
                    # Accuracy is a number of its own, which must not be mixed in.
                    value = score(language, layer, moment) if metric == "macro_f1" else 0.99
                    rows.append(
                        {
                            "run": run, "stage": stage, "trained_language": trained,
                            "model": model, "layer": layer, "language": language,
                            "task": "language" if language == "all" else "label",
                            "metric": metric, "score": value, "ci_low": value - HALF,
                            "ci_high": value + HALF, "majority": 0.25, "random_labels": 0.2,
                            "control": 0.15, "selectivity": value - 0.15, "n": 100,
                            "n_classes": 4, "reason": "", "subnetwork": "",
                        }
                    )  # fmt: skip
    return rows


def similarity_rows(labels):
    rows = []
    for stage, times in ((0, 1.0), (len(labels), 0.5)):
        for measure in ("cka", "retrieval"):
            for layer in LAYERS:
                for i, a in enumerate(labels):
                    for j, b in enumerate(labels):
                        if i == j or (measure == "cka" and i > j):
                            continue
                        value = times * (0.2 + 0.1 * int(layer) + 0.01 * (i + j))
                        rows.append(
                            {
                                "run": "main", "stage": stage, "language_a": a, "language_b": b,
                                "layer": layer, "measure": measure, "value": value,
                                "shuffled": 0.03, "reason": "",
                            }
                        )  # fmt: skip
    return rows


def drift_rows(labels):
    return [
        {
            "run": "main", "stage": stage, "since": stage - 1, "language": label, "layer": layer,
            "measure": measure, "value": 0.1 * stage + 0.01 * k, "shuffled": 0.9, "reason": "",
        }
        for measure in ("cka_distance", "cosine_distance")
        for stage in range(1, len(labels) + 1)
        for k, label in enumerate(labels)
        for layer in LAYERS
    ]  # fmt: skip


def transfer_rows(labels):
    return [
        {
            "run": "main", "stage": stage, "layer": "2", "train_language": a, "test_language": b,
            "task": "label", "metric": "macro_f1", "score": 0.5, "reason": "",
        }
        for stage in (0, len(labels)) for a in labels for b in labels
    ]  # fmt: skip


def probing_of(labels=LABELS, **without):
    parts = {
        "probes": pd.DataFrame(probe_rows(labels)),
        "transfer": pd.DataFrame(transfer_rows(labels)),
        "similarity": pd.DataFrame(similarity_rows(labels)),
        "drift": pd.DataFrame(drift_rows(labels)),
        "units": None,
    }
    checkpoint = SimpleNamespace(
        name="planted", languages=[parse_language(label) for label in labels]
    )
    return CheckpointProbing(
        checkpoint=checkpoint, missing=(Missing("tokens", "no tags", "add tags"),),
        warnings=("few items",), provenance=provenance("probe", {}), **(parts | without),
    )  # fmt: skip


def forgetting_of(labels=LABELS, stderr=0.02):
    """Losses that rise by .3 from a language's own stage to the end, but for the last."""
    rows = []
    for stage in range(len(labels) + 1):
        for k, label in enumerate(labels, 1):
            loss = 2.0 if stage < k else 1.0 if stage == k else 1.3
            rows.append(("main", stage, label, "loss", loss, stderr))
    columns = ["run", "stage", "language", "metric", "value", "stderr"]
    return measure_forgetting(
        pd.DataFrame(rows, columns=columns),
        metrics={"loss": Metric("loss", higher_is_better=False)}, order={"main": list(labels)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def sections():
    return report_sections(probing_of(), forgetting_of())


def by_id(sections):
    return {section.id: section for section in sections}


def test_sections_stand_in_order_and_render_into_a_page(sections):
    assert [s.id for s in sections] == ["probes", "probes-lost", "probes-alike", "probes-drift"]
    page = render_report(
        ReportContent("planted", Headline("not testable", "x", None), sections=sections)
    )
    assert page.count("<figure id=") == sum(len(s.figures) for s in sections) == 9
    for section in sections:
        assert section.lead
        assert section.method
        for figure in section.figures:
            ET.fromstring(figure.svg)


def test_the_change_is_the_end_less_the_own_stage_with_the_interval_of_both():
    shown = Shown.of(pd.DataFrame(probe_rows(LABELS)))
    assert (shown.metric, shown.last, shown.tasks) == ("macro_f1", 4, ["label"])
    found = change(shown.at(OWN, "label"), shown.at(END, "label")).set_index(["language", "layer"])
    width = math.hypot(HALF, HALF)
    for label in LABELS[:-1]:
        for layer in LAYERS:
            row, expected = found.loc[(label, layer)], -0.1 if layer == "2" else 0.0
            assert row["value"] == pytest.approx(expected)
            assert row["ci_low"] == pytest.approx(expected - width)
            assert row["ci_high"] == pytest.approx(expected + width)
    # The model after the last stage is the last language's own: there is no change to show.
    assert found.loc[LABELS[-1]].isna().all(axis=None)


def test_the_interval_of_a_change_holds_the_truth_about_as_often_as_it_says():
    """Of independent scores 95 %; of scores that share their luck more often, not less."""
    rng = np.random.default_rng(0)
    for shared, least, most in ((0.0, 0.93, 0.97), (0.8, 0.97, 1.0)):
        common = math.sqrt(shared) * rng.standard_normal(2000)
        a, b = (
            pd.DataFrame(
                {
                    "language": [str(i) for i in range(2000)], "layer": "0", "model": "stage",
                    "stage": stage, "score": score, "ci_low": score - 1.96,
                    "ci_high": score + 1.96,
                }
            )
            for stage, score in (
                (stage, stage + common + math.sqrt(1 - shared) * rng.standard_normal(2000))
                for stage in (1, 3)
            )
        )  # fmt: skip
        found = change(a, b)
        holds = ((found["ci_low"] <= 2) & (found["ci_high"] >= 2)).mean()
        assert least <= holds <= most


def test_what_was_lost_is_read_from_forgetting():
    lost = what_was_lost(forgetting_of(), "main")
    assert lost is not None
    assert (lost.metric, lost.measure) == ("loss", "forgetting_since_turn")
    row = lost.frame.loc["de"]
    width = 1.96 * math.hypot(0.02, 0.02)
    assert row["value"] == pytest.approx(0.3)
    assert row["high"] - row["value"] == pytest.approx(width, rel=1e-3)
    assert lost.of("de") == f"lost 0.30 [{0.3 - width:.2f}, {0.3 + width:.2f}]"
    assert lost.of("he") == lost.of("fr") == ""
    assert what_was_lost(None, "main") is None
    assert what_was_lost(forgetting_of(), "elsewhere") is None


def test_leads_and_tables_say_the_planted_numbers(sections):
    parts = by_id(sections)
    assert "labels with a score of 0.50 on average of 4 languages at the base" in (
        parts["probes"].lead
    )
    assert "language identity with a score of 0.80 [0.75, 0.85] at the base" in parts["probes"].lead
    assert "most frequent label 0.25, random labels 0.20, control task 0.15" in parts["probes"].lead
    lost = parts["probes-lost"]
    assert "at layer 2, where the mean change is lowest, by −0.100" in lost.lead
    assert "for 3 of 3 languages the interval there is below 0" in lost.lead
    table = lost.tables[0].frame
    assert list(table["layer"][:3]) == ["2"] * 3
    assert "he" not in set(table["language"])
    assert table["lost since its turn (loss)"].tolist() == pytest.approx([0.3] * len(table))
    alike = parts["probes-alike"]
    means = [
        np.mean([0.3 + 0.01 * (i + j) for i in range(4) for j in range(i + 1, 4)]) * times
        for times in (1, 0.5)
    ]
    assert f"CKA of two languages is on average {means[0]:.3f} at the base" in alike.lead
    assert f"{means[1]:.3f} at the end (shuffled rows 0.030)" in alike.lead
    drift = parts["probes-drift"].tables[0].frame.set_index("language")
    # Over steps .1 … .4 the mean is .25, and cosine distance is not mixed in.
    assert drift["drift"].to_dict() == pytest.approx(
        {label: 0.25 + 0.01 * k for k, label in enumerate(LABELS)}
    )


def test_pictures_of_a_measure_share_order_and_scale(sections):
    figures = {f.name: f.svg for f in by_id(sections)["probes-alike"].figures}
    labels = [
        re.findall(r">(de|ar|zh-Hans|he)  ", figures[f"similarity-cka-at-the-{moment}"])
        for moment in ("base", "end")
    ]
    assert labels[0] == labels[1]
    assert sorted(labels[0]) == sorted(LABELS)
    assert all("shuffled 0.03" in figures[f"similarity-cka-at-the-{m}"] for m in ("base", "end"))


def test_maps_stand_in_the_order_of_training_whatever_the_order_of_the_tables():
    rows = pd.DataFrame(probe_rows(LABELS))
    rows.loc[rows["model"] == "base"] = rows[rows["model"] == "base"].iloc[::-1].to_numpy()
    drift = pd.DataFrame(drift_rows(LABELS[::-1]))
    found = by_id(report_sections(probing_of(probes=rows, drift=drift), forgetting_of()))
    for section, figure in (("probes-lost", 0), ("probes-drift", 0)):
        svg = found[section].figures[figure].svg
        assert re.findall(r">(de|ar|zh-Hans|he)  ", svg) == list(LABELS), section
    # What is never trained stands behind.
    assert training_order(rows, "main", ["xx", *LABELS[::-1]]) == [*LABELS, "xx"]
    assert training_order(None, "main", ["b", "a"]) == ["b", "a"]


def test_chance_that_is_noise_is_not_written_in_powers_of_ten():
    rows = pd.DataFrame(similarity_rows(LABELS)).assign(shuffled=-4e-4)
    found = by_id(report_sections(probing_of(similarity=rows)))["probes-alike"]
    assert "(shuffled rows 0.000)" in found.lead
    assert "shuffled 0<" in found.figures[0].svg


def test_without_stages_adapters_stand_beside_the_base_and_the_loss_says_why_not():
    rows = pd.DataFrame(probe_rows(LABELS))
    rows = rows[(rows["model"] == "base") | (rows["trained_language"] == rows["language"])]
    rows.loc[rows["model"] == "stage", "stage"] = np.nan
    rows["model"] = rows["model"].replace("stage", "adapter")
    found = by_id(report_sections(probing_of(probes=rows, similarity=None, drift=None)))
    names = [figure.name for figure in found["probes"].figures]
    assert names == ["probes-layers", "probes-languages-label"]
    assert "its own adapter" in found["probes"].figures[1].svg
    assert found["probes-lost"].empty_reason == "There are no stages of training to compare"
    assert found["probes-alike"].empty_reason == "Not asked for."


def test_an_empty_probing_gives_reasons_not_pictures():
    nothing = probing_of(probes=None, transfer=None, similarity=None, drift=None)
    for section in report_sections(nothing):
        assert section.empty_reason
        assert not section.figures
    assert report_sections(nothing)[0].empty_reason == "No tags: add tags."
    numbers = summary(nothing)
    assert numbers["run"] is None
    assert key_numbers(numbers) == []


def test_summary_numbers_are_the_planted_ones():
    numbers = summary(probing_of())
    assert (numbers["run"], numbers["metric"], numbers["layer"]) == ("main", "macro_f1", "2")
    assert numbers["tasks"]["label"]["base"]["score"] == pytest.approx(0.5)
    assert numbers["tasks"]["language"]["base"]["ci_high"] == pytest.approx(0.85)
    # At the end three languages have .6, and the one trained last .7.
    assert numbers["tasks"]["label"]["end"]["score"] == pytest.approx((3 * 0.6 + 0.7) / 4)
    assert numbers["changes"]["label"] == pytest.approx(
        {"value": -0.1, "below": 3, "above": 0, "languages": 3}
    )
    assert numbers["similarity"]["retrieval"]["end"]["shuffled"] == pytest.approx(0.03)
    assert set(numbers["drift"]) == {"cka_distance", "cosine_distance"}
    lines = key_numbers(numbers)
    assert any("below 0 by its interval for 3 of 3 languages" in line for line in lines)


def test_an_addition_carries_tables_predictors_warnings_and_what_is_missing():
    found = addition(probing_of(), forgetting_of())
    assert set(found.tables) == {
        "probes", "probe_transfer", "representation_similarity", "drift",
    }  # fmt: skip
    assert set(found.representations) == {"similarity", "transfer"}
    assert [entry.analysis for entry in found.missing] == ["probes: tokens"]
    assert found.warnings == ("few items",)
    late = pd.DataFrame(transfer_rows(LABELS)).query("stage > 0")
    only = probing_of(transfer=late, probes=None, similarity=None, drift=None)
    assert addition(only).representations == {}


@pytest.mark.slow
def test_fifty_two_languages_and_thirteen_layers_fit_into_the_page(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LAYERS", tuple(map(str, range(13))))
    names = (
        "af am ar az bn cy da de el en es fa fi fr he hi hu hy id is it ja jv ka km kn ko lv ml mn "
        "ms my nb nl pl pt ro ru sl sq sv sw ta te th fil tr ur vi zh-Hans zh-Hant et"
    )
    labels = tuple(re.findall(r"\S+", names))
    assert len(labels) == 52
    found = report_sections(probing_of(labels), forgetting_of(labels))
    size = sum(len(figure.svg.encode()) for section in found for figure in section.figures)
    assert size < 500_000
    sizes = [
        float(px)
        for s in found
        for f in s.figures
        for px in re.findall(r"font-size: ([\d.]+)px", f.svg)
    ]
    assert min(sizes) * 96 / 72 >= 9  # a picture is as wide in points as it says
