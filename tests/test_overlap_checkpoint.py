"""From adapters on disk to their overlap: the real updates and masks, not stand-ins."""

import numpy as np
import pytest
import torch

from checkpoint_makers import bert, gpt2, write_lora_directory, write_stages
from overlap_things import one_row
from subnet.checkpoint import open_checkpoint
from subnet.overlap import measure_overlap
from subnet.subnetwork import extract

LANGUAGES = ("de", "fr", "sw")


def cosine(x, y):
    return float(torch.cosine_similarity(x.flatten().double(), y.flatten().double(), dim=0))


def all_weights(update):
    return torch.cat([update.dense(name).flatten() for name in update.shapes])


@pytest.mark.parametrize(
    ("build", "settings"),
    [(bert, {}), (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True})],
)
def test_updates_read_from_disk_have_the_cosine_of_their_dense_change(build, settings, tmp_path):
    root = write_lora_directory(tmp_path / "run", LANGUAGES, build=build, **settings)
    checkpoint = open_checkpoint(root)
    overlap = measure_overlap(checkpoint.updates)
    first, second, _ = checkpoint.updates
    row = one_row(overlap, "cosine", language_a="de", language_b="fr")
    assert row["value"] == pytest.approx(cosine(all_weights(first), all_weights(second)), abs=1e-6)
    assert overlap.warnings == ()
    if build is gpt2:  # stored as [input, output]: left is still the output, three times as wide
        left, right = (
            one_row(
                overlap, f"subspace_similarity{side}", null="rotation",
                language_a="de", language_b="fr",
            )
            for side in ("", "_right")
        )  # fmt: skip
        assert right["expected"] == pytest.approx(3 * left["expected"])
    assert [str(language) for language in overlap.languages] == list(LANGUAGES)
    assert overlap.graph().nodes["de"]["script"] == "Latn"


def test_masks_extracted_from_updates_carry_the_signs_of_the_change(tmp_path):
    checkpoint = open_checkpoint(write_lora_directory(tmp_path / "run", LANGUAGES))
    subnets = extract(checkpoint, density=0.2)
    overlap = measure_overlap(subnets)
    first, second, _ = (all_weights(update) for update in checkpoint.updates)
    names = checkpoint.updates[0].shapes
    a, b = (np.concatenate([m.dense(n).ravel() for n in names]) for m in subnets[:2])
    where = {"language_a": "de", "language_b": "fr"}
    assert one_row(overlap, "jaccard", **where)["value"] == (a & b).sum() / (a | b).sum()
    agree = ((first > 0) == (second > 0)).numpy()[a & b].mean()
    assert one_row(overlap, "sign_agreement", **where)["value"] == pytest.approx(agree)


def test_steps_of_a_sequence_are_compared_with_each_other_and_with_adapters(tmp_path):
    write_lora_directory(tmp_path / "run", LANGUAGES)
    write_stages(tmp_path / "run", LANGUAGES)
    checkpoint = open_checkpoint(tmp_path / "run")
    steps = measure_overlap(checkpoint.steps, measures=("cosine", "subspace_similarity"))
    assert steps.source == "steps"
    assert "continue one LoRA" in steps.warnings[0]
    tested = steps.frame[steps.frame["measure"] == "subspace_similarity"]
    assert tested["p_value"].isna().all()
    one, other = (all_weights(step) for step in checkpoint.steps[:2])
    row = one_row(steps, "cosine", language_a="de", language_b="fr")
    assert row["value"] == pytest.approx(cosine(one, other), abs=1e-6)
    across = measure_overlap(checkpoint.steps, others=checkpoint.updates, measures=("cosine",))
    expected = cosine(one, all_weights(checkpoint.updates[1]))
    row = one_row(across, "cosine", language_a="de", language_b="fr")
    assert row["value"] == pytest.approx(expected, abs=1e-6)
