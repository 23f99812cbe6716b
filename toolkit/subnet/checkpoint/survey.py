"""Recognising what a directory holds: the order in which things are looked for."""

from __future__ import annotations

import re
from pathlib import Path

from subnet import _files
from subnet.checkpoint import survey_models, survey_records
from subnet.checkpoint.inventory import Entry, Findings, Root, has_weights
from subnet.checkpoint.settings import SETTINGS_FILE
from subnet.checkpoint.tensors import refuse_pickles

#: Files that stand beside models and adapters and say nothing about languages.
_COMPANIONS = re.compile(
    r"^(config|generation_config|preprocessor_config|added_tokens|special_tokens_map|vocab|"
    r"tokenizer.*|trainer_state|all_results|train_results|eval_results|adapter_config)\.json$|"
    r"^(training_args|scheduler|optimizer|rng_state.*)\.(bin|pt|pth)$|"
    r"^(model.*|adapter_model)\.safetensors(\.index\.json)?$"
)
_DATA = frozenset(
    {".csv", ".tsv", ".json", ".jsonl", ".safetensors", ".bin", ".pt", ".pkl", ".npz"}
)


def survey(root: Root, findings: Findings) -> None:
    """Recognise everything in one run's directory.

    Raises:
        SubnetError: Something that is evidently meant for an analysis is damaged.
    """
    _survey_settings(root, findings)
    survey_models.survey_base(root, findings)
    survey_models.survey_languages(root, findings)
    survey_models.survey_stages(root, findings)
    survey_models.survey_masks(root, findings)
    survey_records.survey_language_table(root, findings)
    survey_records.survey_tables(root, findings)
    survey_records.survey_evaluations(root, findings)
    survey_records.survey_trainer_logs(root, findings)
    survey_records.survey_examples(root, findings)
    survey_records.survey_heads(root, findings)
    _survey_joint(root, findings)
    _survey_rest(root, findings)


def _survey_settings(root: Root, findings: Findings) -> None:
    path = root.path / SETTINGS_FILE
    if path.is_file():
        findings.entries.append(Entry("settings", path, root.run, recognised_as="settings"))


def _survey_joint(root: Root, findings: Findings) -> None:
    """The scores of a model that was trained on all languages at once."""
    path = root.path / survey_models.JOINT
    if (path / "scores.csv").is_file():
        text = "scores of a jointly trained model"
        findings.entries.append(Entry("joint", path, root.run, recognised_as=text))


def _survey_rest(root: Root, findings: Findings) -> None:
    """Name what looks like data and was not recognised."""
    seen = {entry.path for entry in findings.entries} | {entry.path for entry in findings.skipped}
    used = {
        parent for path in seen for parent in (path, *path.parents) if parent.parent == root.path
    }
    for path in sorted(root.path.iterdir()):
        plain = path.name.startswith(".") or path in used or path.name in survey_models.RESERVED
        plain = plain or path.name == _files.RUN_FILE
        if plain or _COMPANIONS.match(path.name) or path.name.startswith("samples_"):
            continue
        if path.is_dir():
            _skip_folder(path, findings)
        elif path.suffix in _DATA:
            findings.skip(path, "is not recognised")
    if not any(entry.run == root.run for entry in findings.entries):
        refuse_pickles(root.path)


def _skip_folder(folder: Path, findings: Findings) -> None:
    """Name a folder that is not used, and what to do about weights that lie deeper in it."""
    for depth in ("*", "*/*", "*/*/*"):
        deeper = next((path for path in sorted(folder.glob(depth)) if has_weights(path)), None)
        if deeper is not None:
            findings.skip(
                folder,
                f"is not recognised, though {deeper.relative_to(folder.parent)} holds weights",
                f"give {deeper.parent.name}/ itself, or move what is in it to adapters/<language>/",
            )
            return
    findings.skip(folder, "is not recognised")
