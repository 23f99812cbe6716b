"""The section on whether masks are subnetworks says what its tables say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import report_content
from subnet import figures
from subnet.report import validation_section

LABELS = ["de", "fr", "ru", "zh-CN"]


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    return report_content.validation_tables(LABELS)


def test_the_matrix_takes_off_what_random_masks_do(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["ablation"]
    figure = figures.ablation_matrix(frame, condition="kept", specific=("fr",))
    image = np.asarray(figure.axes[0].images[0].get_array())
    for row, mask in enumerate(LABELS):
        for column, test in enumerate(LABELS):
            cell = frame[(frame["mask_language"] == mask) & (frame["test_language"] == test)]
            change = cell.set_index("condition")["change"]
            expected = change["kept"] - change["random_kept"]
            assert image[row, column] == pytest.approx(expected)
    boxes = {tuple(np.round(patch.get_xy(), 3)) for patch in figure.axes[0].patches}
    assert boxes == {(0.5, 0.5)}
    alone = frame[~frame["condition"].str.startswith("random")]
    image = np.asarray(figures.ablation_matrix(alone).axes[0].images[0].get_array())
    first = alone[(alone["condition"] == "removed")]["change"].to_numpy()
    assert image.ravel() == pytest.approx(first)


def test_a_language_that_is_only_tested_has_a_column_and_no_row(
    tables: dict[str, pd.DataFrame],
) -> None:
    frame = tables["ablation"]
    frame = frame[frame["mask_language"] != "ru"]
    image = figures.ablation_matrix(frame).axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (3, 4)


def test_curves_are_the_languages_and_their_mean(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["sweep"]
    lines = figures.density_curves(frame).axes[0].get_lines()
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in lines]
    assert len(drawn) == 2 * (len(LABELS) + 1)
    for start, condition in ((0, "kept"), (len(LABELS) + 1, "random_kept")):
        own = frame[frame["condition"] == condition]
        by_density = own.groupby("density")["change"].mean()
        assert drawn[start + len(LABELS)] == pytest.approx(by_density.to_numpy())
        assert np.mean(drawn[start : start + len(LABELS)], axis=0) == pytest.approx(by_density)


def test_the_finding_counts_what_was_tested(tables: dict[str, pd.DataFrame]) -> None:
    section = validation_section(**tables)
    assert "for 2 of 4 languages (q ≤ .05): de, ru." in section.lead
    assert "0.400 nats, p = 0.00100" in section.lead
    tables["specificity"]["testable"] = False
    assert "Too few examples or random masks" in validation_section(**tables).lead
    tables["specificity"] = tables["specificity"].iloc[:0]
    assert "no verdict" in validation_section(**tables).lead


def test_what_was_not_tried_says_why() -> None:
    assert validation_section(missing="Add test.jsonl.").empty_reason == "Add test.jsonl."
