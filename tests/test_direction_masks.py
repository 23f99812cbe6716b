"""Masks of singular directions in the rooms that come after extraction."""

import json

import pytest

import subnet
from checkpoint_makers import gpt2, save_base, write_lora_directory
from subnet.errors import InputError, NotComparableError
from subnet.subnetwork import convert

LANGUAGES = ("de", "fr", "sw")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Adapters with their base, and masks of directions beside them."""
    root = write_lora_directory(tmp_path_factory.mktemp("directions") / "run", LANGUAGES)
    subnet.extract(subnet.open_checkpoint(root), method="directions").save(root.parent / "found")
    return root


def test_analyze_goes_on_without_the_overlap_of_direction_masks(checkpoint, tmp_path):
    analysis = subnet.analyze(checkpoint, masks=checkpoint.parent / "found", ablation=False)
    assert {mask.granularity for mask in analysis.subnetworks} == {"direction"}
    assert set(analysis.overlaps) == {"updates"}
    (left_out,) = (entry for entry in analysis.missing if entry.analysis == "overlap of masks")
    assert (
        left_out.reason == "the masks are of singular directions, whose overlap has no null model"
    )
    assert "measure_directions" in left_out.fix
    summary = json.loads((analysis.save(tmp_path / "out") / "summary.json").read_text())
    assert "overlap of masks" in {entry["analysis"] for entry in summary["missing"]}


def test_analyze_of_nothing_but_direction_masks_says_why_there_is_no_overlap(checkpoint, tmp_path):
    analysis = subnet.analyze(checkpoint.parent / "found")
    assert analysis.overlaps == {}
    (entry,) = (entry for entry in analysis.missing if entry.analysis == "overlap")
    assert "singular directions" in entry.reason
    page = (analysis.save(tmp_path / "out") / "report.html").read_text()
    assert "singular directions, whose overlap has no null model" in page


def test_measures_of_direction_masks_stay_refused(checkpoint):
    with pytest.raises(InputError, match="singular directions, whose overlap has no null model"):
        subnet.analysis.overlap_by_measure(
            subnet.open_checkpoint(checkpoint), "jaccard",
            subnet.analysis.Search(masks=checkpoint.parent / "found"), seed=0,
        )  # fmt: skip


def test_direction_masks_are_converted_under_the_base_that_is_stated(checkpoint, tmp_path):
    given = subnet.extract(subnet.open_checkpoint(checkpoint), method="directions")
    found = convert(checkpoint.parent / "found", tmp_path / "masks", base=checkpoint / "base")
    assert found.languages == given.languages
    for one, other in zip(found, given, strict=True):
        assert one.base.startswith("base (")
        assert dict(one.shapes) == dict(other.shapes)
        assert one.counts == other.counts
        assert one.settings["ranks"] == other.settings["ranks"]
    named = convert(checkpoint.parent / "found", tmp_path / "named", base="some/model")
    assert {mask.base for mask in named} == {"some/model"}


def test_direction_masks_of_another_base_are_refused_by_name(checkpoint, tmp_path):
    save_base(gpt2(), tmp_path / "other")
    with pytest.raises(
        NotComparableError, match=r"has directions of .*query, which the base .*other does not have"
    ):
        convert(checkpoint.parent / "found", tmp_path / "masks", base=tmp_path / "other")
