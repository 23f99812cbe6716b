"""What a run reads from the disk, by content: a run that goes on must find it as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from subnet import _files
from subnet.errors import InputError
from subnet.language import LanguageIndex
from subnet.training._static_masks import mask_files
from subnet.training.config import TrainingConfig

#: What loading a model folder reads, beside its weights.
_OF_A_MODEL = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*", "*.safetensors",
    "*.safetensors.index.json",
)  # fmt: skip


def read_inputs(config: TrainingConfig, folder: Path, languages: Collection[str]) -> dict[str, str]:
    """SHA-256 of every file that a run reads: examples, masks, a model folder.

    Files are named by their path relative to the configuration's folder, so that a project that was
    moved as a whole is the same. What is not there is left out: who reads it says so.

    Args:
        config: The run.
        folder: What paths of the configuration are relative to.
        languages: Labels of those that are trained, whose masks are read.
    """
    places: dict[str, None] = {}
    for name, files in (
        (config.data.path, _example_files(config, folder)),
        (config.subnetworks.masks, mask_files(config, folder, languages)),
        (config.model.name, _model_files(config, folder)),
    ):
        for file in files:
            places[_name(file, name, folder)] = None
    return {name: _files.sha256(folder / name) for name in places}


def check_inputs(
    recorded: Any, now: Mapping[str, str], folder: Path, target: Path, *, finished: bool
) -> None:
    """Refuse to go on where a file is not what it was.

    Args:
        recorded: `inputs` as the run's own file has them; what is none was not recorded.
        now: As `read_inputs` finds them.
        folder: What their names are relative to.
        target: The directory of the run.
        finished: Whether the run is done: what is gone since was not to be read again.

    Raises:
        InputError: Says which file changed, came or went.
    """
    if not isinstance(recorded, Mapping):
        return
    for name in sorted({*recorded, *now}):
        before, found = recorded.get(name), now.get(name)
        if before == found or (found is None and finished):
            continue
        if found is None:
            said, back = "is gone, and the training in {} reads it", "put it back"
        elif before is None:
            said, back = "was not there when the training in {} began", "take it away again"
        else:
            said, back = "has changed since the training in {} began", "put it back as it was"
        raise InputError(
            said.format(target),
            path=folder / name,
            expected=f"the same content (SHA-256 {before[:12]}…)" if before and found else None,
            fix=f"{back}, choose another --out, or give --overwrite to start again",
        )


def _name(file: Path, given: str, folder: Path) -> str:
    """A file under the path that the configuration gives."""
    file, place = file.absolute(), folder / given
    known = place.absolute() if file.is_relative_to(place.absolute()) else place.resolve()
    return (Path(given) / file.relative_to(known)).as_posix()


def _example_files(config: TrainingConfig, folder: Path) -> Iterator[Path]:
    """The files that `load_corpus` reads; of tables by language only those that are used."""
    place = folder / config.data.path
    if config.data.source != "files" or not config.data.path or not place.exists():
        return
    if place.is_file():
        yield place
    elif (place / "train.jsonl").is_file():
        parts = [place / f"{part}.jsonl" for part in ("train", "validation", "test")]
        yield from (file for file in parts if file.is_file())
    elif config.task == "translation":
        yield from (f for f in sorted(place.iterdir()) if f.suffix in (".jsonl", ".tsv"))
    else:
        files = sorted(place.glob("*.tsv"))
        if not isinstance(config.languages, str):
            index = LanguageIndex()
            labels = {file: index.add(file.stem, path=place).label for file in files}
            wanted = {index.add(label).label for label in config.languages}
            files = [file for file in files if labels[file] in wanted]
        yield from files


def _model_files(config: TrainingConfig, folder: Path) -> Iterator[Path]:
    place = folder / config.model.name
    if config.model.name and place.is_dir():
        found = {file for pattern in _OF_A_MODEL for file in place.glob(pattern) if file.is_file()}
        yield from sorted(found)
