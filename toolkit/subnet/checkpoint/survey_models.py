"""Recognising models, adapters, stages and masks, from names and headers; no tensor is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from subnet import _files
from subnet.checkpoint import peft, score_tables, trainer_logs
from subnet.checkpoint.base import Bases
from subnet.checkpoint.inventory import Entry, Findings, Root, children, count, model_folder
from subnet.checkpoint.settings import SETTINGS_FILE
from subnet.checkpoint.tensors import (
    ADAPTER_CONFIG,
    TensorStore,
    has_model,
    open_model_store,
    refuse_pickles,
)
from subnet.errors import FileFormatError, InputError
from subnet.language import ORDINARY_WORDS, Language

#: Folders that hold one model or adapter per language.
_CONTAINERS = ("adapters", "weights", "models")
_STAGE = re.compile(r"^(\d+)[-_](.+)$")
#: Folder of a model that was trained on all languages at once, with its scores.
JOINT = "joint"
#: Folders of the layout that are no language's.
RESERVED = frozenset({"base", "stages", "runs", "masks", "controls", JOINT, *_CONTAINERS})


def survey_base(root: Root, findings: Findings) -> None:
    """The base model's folder, if this run has its own."""
    if root.base is None or not root.base.is_relative_to(root.path):
        return
    if has_model(root.base):
        store = open_model_store(root.base)
        text = f"base model ({_extent(store)})"
    else:
        text = "base model's configuration, without weights"
    findings.entries.append(Entry("base", root.base, root.run, stage=0, recognised_as=text))


def survey_languages(root: Root, findings: Findings) -> None:
    """A model or an adapter per language, in one of the containers or in the directory itself."""
    containers = [root.path / name for name in _CONTAINERS if (root.path / name).is_dir()]
    for container in containers:
        _survey_container(container, root, findings, children(container), strict=True)
    if containers:
        return
    if (root.path / ADAPTER_CONFIG).is_file():
        if trainer_logs.trainer_checkpoints(root.path):
            findings.skip(
                root.path / ADAPTER_CONFIG,
                "final weights of a Trainer run whose checkpoints are read as stages",
            )
        else:
            _enter_weights(root.path, root.path.name, root, findings, strict=False)
    folders = [
        path
        for path in children(root.path)
        if path.name not in RESERVED
        and path != root.base
        and not path.name.startswith("checkpoint-")
        and model_folder(path) is not None
    ]
    _survey_container(root.path, root, findings, folders, strict=False)


def _survey_container(
    container: Path, root: Root, findings: Findings, folders: list[Path], *, strict: bool
) -> None:
    named = [folder.name for folder in folders if findings.index.recognises(folder.name)]
    findings.index.add_distinct(named, path=container)
    for folder in folders:
        place = model_folder(folder)
        if place is None:
            findings.skip(
                folder,
                "holds no adapter and no model",
                f"expected {ADAPTER_CONFIG} or model.safetensors in it",
            )
        else:
            _enter_weights(place, folder.name, root, findings, strict=strict)


def _extent(store: TensorStore) -> str:
    return f"{count(store.infos, 'tensor')} in {count(store.paths, 'file')}"


def _enter_weights(
    place: Path, label: str, root: Root, findings: Findings, *, strict: bool
) -> None:
    """Enter the adapters or the model in one folder under the language that its name says."""
    if not (place / ADAPTER_CONFIG).is_file():
        # Named before it is read: what is no language's may hold anything.
        language = _language(label, place, findings, strict=strict)
        if language is None:
            return
        text = f"fine-tuned weights ({_extent(open_model_store(place))})"
        if root.base is None:
            findings.skip(
                place,
                "fine-tuned weights, and the base to compare them with is not here",
                "put the base model's folder into the directory as base/",
            )
        else:
            findings.entries.append(Entry("weights", place, root.run, language, None, text))
        return
    for adapter in _readable(place, root, findings):
        language = _language(adapter.name or label, place, findings, strict=strict)
        if language is not None:
            entry = Entry(
                "adapter", place, root.run, language, None, adapter.describe(), adapter.name
            )
            findings.entries.append(entry)


def _readable(place: Path, root: Root, findings: Findings) -> list[peft.Adapter]:
    """The adapters of a PEFT folder whose update can be computed; the others are skipped."""
    config = peft.read_config(place)
    reason = peft.unreadable(config)
    if reason:
        findings.skip(place, reason, "merge it into the base and give the merged weights")
        return []
    adapters = peft.read_adapters(place, config)
    needs = adapters[0].needs_base
    if needs and Bases().locate(adapters[0].base, root, place) is None:
        findings.skip(
            place,
            f"{needs}, which are not here",
            "put the base model's folder into the directory as base/",
        )
        return []
    if not any(adapter.pairs or adapter.apart for adapter in adapters):
        raise FileFormatError(
            "holds no LoRA factors", path=adapters[0].store.paths[0], expected="lora_A and lora_B"
        )
    return adapters


def _language(label: str, path: Path, findings: Findings, *, strict: bool) -> Language | None:
    """Language of a folder; one that names none is skipped, or an error where one must stand."""
    if findings.index.recognises(label):
        return findings.index.add(label, path=path)
    if strict and label.lower() not in ORDINARY_WORDS and label != "default":
        return findings.index.add(label, path=path)
    findings.skip(
        path,
        f"{label!r} is not taken for a language",
        f'if it is one, say so in {SETTINGS_FILE}: [languages."{label}"] tag = "…"',
    )
    return None


def survey_stages(root: Root, findings: Findings) -> None:
    """What each stage of sequential training left, and which language it trained."""
    folder = root.path / "stages"
    if folder.is_dir():
        for path in children(folder):
            match = _STAGE.match(path.name)
            if match is None:
                findings.skip(path, "is no stage", "expected <number>-<language>, as in 03-de")
                continue
            number, label = int(match[1]), match[2]
            language = _language(label, path, findings, strict=True) if number else None
            _enter_stage(path, number, language, root, findings)
    elif found := trainer_logs.trainer_checkpoints(root.path):
        _survey_trainer_stages(found, root, findings)
    for number, label in enumerate(root.settings.order, start=1):
        language = findings.index.add(label, path=root.path / SETTINGS_FILE)
        score_tables.note_trained(
            findings.records, root.run, number, language, root.path / SETTINGS_FILE
        )


def _survey_trainer_stages(found: list[tuple[int, Path]], root: Root, findings: Findings) -> None:
    """Checkpoints of one Trainer run: stages are the evaluated steps, or the saved ones."""
    state = trainer_logs.find_state(root.path)
    history = {} if state is None else trainer_logs.read_history(state, findings.index)
    numbers = trainer_logs.stage_numbers(sorted(history) or [step for step, _ in found])
    order = root.settings.order
    labelled = len(order) == max(numbers.values())
    for step, path in found:
        number = numbers.get(step)
        if number is None:
            findings.skip(
                path, f"step {step} was saved but not evaluated", "evaluate where you save"
            )
            continue
        language = findings.index.add(order[number - 1]) if labelled and number else None
        _enter_stage(path, number, language, root, findings)


def _enter_stage(
    path: Path, number: int, language: Language | None, root: Root, findings: Findings
) -> None:
    known = findings.stages.setdefault(root.run, {})
    if number in known:
        raise InputError(
            f"stage {number} is there twice: {known[number].name} and {path.name}",
            path=path.parent,
            expected="one folder per stage",
        )
    known[number] = path
    if language is not None:
        score_tables.note_trained(findings.records, root.run, number, language, path)
    place = model_folder(path)
    if place is None:
        refuse_pickles(path)
        text = "without weights"
        findings.entries.append(Entry("stage", path, root.run, language, number, text))
    elif (place / ADAPTER_CONFIG).is_file():
        for adapter in _readable(place, root, findings)[:1]:
            text = adapter.describe()
            entry = Entry("stage", place, root.run, language, number, text, adapter.name)
            findings.entries.append(entry)
    else:
        text = f"whole model ({len(open_model_store(place).infos)} tensors)"
        findings.entries.append(Entry("stage", place, root.run, language, number, text))


def survey_masks(root: Root, findings: Findings) -> None:
    """One mask per language."""
    folder = root.path / "masks"
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.safetensors"))
    languages = findings.index.add_distinct([path.stem for path in files], path=folder)
    for path in files:
        header, _ = _files.read_safetensors_header(path)
        text = f"mask ({len(header)} parameters)"
        findings.entries.append(Entry("mask", path, root.run, languages[path.stem], None, text))
    for path in sorted(folder.iterdir()):
        if path not in files and not path.name.startswith("."):
            findings.skip(path, "is no mask", "convert it to <language>.safetensors")
