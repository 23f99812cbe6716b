"""A checkpoint directory: what it holds, and the updates, steps and scores read from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from subnet import _files
from subnet._tables import MAIN_RUN
from subnet.checkpoint import peft
from subnet.checkpoint.base import NOT_STATED, Bases
from subnet.checkpoint.full import FullChange
from subnet.checkpoint.inventory import (
    Entry,
    Root,
    Skipped,
    has_weights,
    start_of_step,
    weights_of_stages,
)
from subnet.checkpoint.lora import LoraChange
from subnet.checkpoint.records import Records, Scores, build_scores
from subnet.checkpoint.settings import CheckpointSettings
from subnet.checkpoint.tensors import ADAPTER_CONFIG, has_model, open_model_store
from subnet.checkpoint.update import Change, Difference, Step, Update
from subnet.errors import FileFormatError, MissingInputError, NotComparableError
from subnet.language import Language, LanguageIndex

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Capability:
    """An analysis, whether the directory carries it, and which files it wants otherwise."""

    name: str
    possible: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What training left behind. Opening it loads no tensor; the rest is read when asked for.

    Attributes:
        path: The directory (the first, where several were given).
        name: Its name.
        runs: Runs (seeds, orders) that it holds.
        languages: Every language that anything in it names, sorted by label.
        entries: What was recognised.
        skipped: What was not used, and why.
        capabilities: Which analyses are possible.
        settings: Content of `subnet.toml`.
    """

    path: Path
    name: str
    runs: tuple[str, ...]
    languages: tuple[Language, ...]
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    capabilities: tuple[Capability, ...]
    settings: CheckpointSettings
    _roots: tuple[Root, ...] = field(repr=False)
    _records: Records = field(repr=False)
    _index: LanguageIndex = field(repr=False)

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories that are read, absolute: nothing is written into them."""
        return tuple(root.path for root in self._roots)

    @cached_property
    def updates(self) -> tuple[Update, ...]:
        """What training changed for each language, against the base: every run's.

        Raises:
            NotComparableError: Two adapters state different bases, or one does not fit the base.
        """
        entries = [entry for entry in self.entries if entry.kind in ("adapter", "weights")]
        found = []
        for entry in entries:
            change, base = self._change(entry)
            found.append(
                Update(
                    language=_known(entry.language),
                    run=entry.run,
                    source=entry.path,
                    kind=_kind(change),
                    base=base,
                    shapes=change.shapes,
                    initialisation=_initialisation(change),
                    _change=change,
                )
            )
        _refuse_other_bases(found)
        return tuple(
            sorted(found, key=lambda update: (self.runs.index(update.run), str(update.language)))
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What each training stage changed: the stage against the one before.

        Raises:
            NotComparableError: Two stages state different bases, or are of different kinds.
        """
        found = []
        for run in self.runs:
            stages = weights_of_stages(self.entries, run)
            for number, entry in stages.items():
                known = number and not start_of_step(number, stages, self._root(run))
                if known and entry.language:
                    found.append(self._step(entry, number, stages.get(number - 1)))
        _refuse_other_bases(found)
        return tuple(found)

    def base_identity(self, run: str = MAIN_RUN) -> str:
        """What makes two bases the same, of the base folder of a run.

        Raises:
            MissingInputError: There is no base with weights.
        """
        roots = sorted(self._roots, key=lambda root: root.run != run)
        for root in roots:
            store = self._bases.store(root.base)
            if store is not None:
                return self._bases.fingerprint(store)
        raise MissingInputError(
            "holds no base model", path=self.path, expected="its folder as base/"
        )

    @cached_property
    def scores(self) -> Scores:
        """Scores after every stage.

        Raises:
            MissingInputError: There are none.
            InputError: A per-item value is not usable.
        """
        if not self._records.rows:
            raise MissingInputError(
                "there are no scores",
                path=self.path,
                expected="scores.csv with the columns stage,language,metric,value",
            )
        return build_scores(self._records, self._score_settings, self._index)

    @cached_property
    def language_table(self) -> Mapping[str, Mapping[str, str]]:
        """Language label to what `languages.csv` says of it; empty without one."""
        table: dict[str, dict[str, str]] = {}
        for entry in self.entries:
            if entry.kind == "languages_table":
                for _, cells in _files.read_csv_rows(entry.path):
                    label = self._index.add(cells["language"], path=entry.path).label
                    further = {k: v for k, v in cells.items() if k != "language" and v.strip()}
                    table.setdefault(label, {}).update(further)
        return dict(sorted(table.items()))

    @property
    def families(self) -> Mapping[str, str]:
        """Language label to family, where `languages.csv` says it."""
        return {
            label: cells["family"]
            for label, cells in self.language_table.items()
            if "family" in cells
        }

    def examples(self, split: str) -> Iterator[dict[str, Any]]:
        """Examples of `train.jsonl`, `validation.jsonl` or `test.jsonl`.

        Their languages are under the labels that the tables carry.

        Raises:
            MissingInputError: There is no such file.
            FileFormatError: A line is no JSON object.
            UnknownLanguageError: An example's language is none.
        """
        for entry in self.entries:
            if entry.kind == f"{split}_examples":
                return self._labelled(entry.path)
        raise MissingInputError(f"has no {split}.jsonl", path=self.path)

    @property
    def joint(self) -> Scores | None:
        """Scores of a jointly trained model, in `joint/`: the reference of `intransigence`.

        None where there are none. Of several runs the first that has them, or the directory itself.
        """
        from subnet.checkpoint.opening import open_checkpoint

        found = next((entry for entry in self.entries if entry.kind == "joint"), None)
        return None if found is None else open_checkpoint(found.path).scores

    @property
    def transfer(self) -> pd.DataFrame:
        """Scores of every language under the parameters that are one language's own.

        Of `transfer.csv`: run, stage, trained_language, language, metric, value, stderr.

        Raises:
            MissingInputError: There are none.
        """
        import pandas as pd

        entries = [entry for entry in self.entries if entry.kind == "transfer"]
        if not entries:
            raise MissingInputError(
                "holds no scores of languages under each other's parameters",
                path=self.path,
                expected="transfer.csv, as subnet train writes it where languages share in part",
            )
        text = {"language": str, "trained_language": str, "metric": str}
        frames = []
        for entry in entries:
            # A language whose code is `nan` is one.
            found = pd.read_csv(
                entry.path, dtype=text, keep_default_na=False, na_values={"stderr": [""]}
            )
            found.insert(0, "run", entry.run)
            frames.append(found)
        return pd.concat(frames, ignore_index=True)

    def settings_of(self, run: str = MAIN_RUN) -> CheckpointSettings:
        """`subnet.toml` of a run; what it does not say is what the directory around it says."""
        return self._root(run).settings

    def holds(self, kind: str) -> bool:
        """Whether an entry of that kind (`scores`, `adapter`, …) was recognised."""
        return any(entry.kind == kind for entry in self.entries)

    def can(self, analysis: str) -> bool:
        """Whether an analysis is possible."""
        return next(entry.possible for entry in self.capabilities if entry.name == analysis)

    def read_files(self) -> tuple[Path, ...]:
        """Files that an analysis reads, sorted: what `run.json` records the SHA-256 of."""
        files: set[Path] = set(self._sources)
        needs_base = False
        for entry in self.entries:
            if entry.path.is_file():
                files.add(entry.path)
            elif entry.kind in ("adapter", "weights", "stage") and has_weights(entry.path):
                config = entry.path / ADAPTER_CONFIG
                if config.is_file():
                    adapter = _adapter(entry)
                    files |= {config, *adapter.store.paths}
                    needs_base = needs_base or adapter.needs_base is not None
                else:
                    files |= set(open_model_store(entry.path).paths)
                    needs_base = True
        for root in self._roots:
            if needs_base and root.base is not None and has_model(root.base):
                files |= set(open_model_store(root.base).paths)
        return tuple(sorted(files))

    def to_dict(self) -> dict[str, Any]:
        """The inventory as plain types, paths relative to the directory."""
        return {
            "name": self.name,
            "runs": list(self.runs),
            "languages": [
                {
                    "label": language.label,
                    "tag": language.tag,
                    "name": language.name,
                    "script": language.script,
                    "family": self.families.get(language.label),
                }
                for language in self.languages
            ],
            "recognised": [
                {
                    "kind": entry.kind,
                    "path": self.relative(entry.path),
                    "run": entry.run,
                    "language": None if entry.language is None else entry.language.label,
                    "stage": entry.stage,
                    "adapter": entry.adapter,
                    "recognised_as": entry.recognised_as,
                }
                for entry in self.entries
            ],
            "skipped": [
                {"path": self.relative(s.path), "reason": s.reason, "fix": s.fix or None}
                for s in self.skipped
            ],
            "capabilities": [
                {"analysis": c.name, "possible": c.possible, "missing": list(c.missing)}
                for c in self.capabilities
            ],
            "settings": self.settings.model_dump(mode="json", exclude_defaults=True),
        }

    def relative(self, path: Path) -> str:
        """A path as a reader of the report sees it: inside the directory, never absolute.

        Where several directories were given, it starts with the run that each of them is.
        """
        for root in self._roots:
            if path.is_relative_to(root.path):
                inside = path.relative_to(root.path).as_posix()
                return inside if root.run == MAIN_RUN else f"{root.run}/{inside}"
        return path.name

    def _labelled(self, path: Path) -> Iterator[dict[str, Any]]:
        for number, example in enumerate(_files.read_json_lines(path), start=1):
            if not isinstance(example.get("language"), str):
                raise FileFormatError(f"example {number} has no 'language'", path=path)
            label = self._index.add(example["language"], path=path).label
            yield {**example, "language": label}

    @property
    def _score_settings(self) -> Mapping[str, Any]:
        return {k: v for root in reversed(self._roots) for k, v in root.settings.scores.items()}

    @property
    def _sources(self) -> set[Path]:
        rows = {row.source for row in self._records.rows}
        return rows | {item.path for item in self._records.items}

    @cached_property
    def _bases(self) -> Bases:
        return Bases()

    def _root(self, run: str) -> Root:
        return next(root for root in self._roots if root.run == run)

    def _change(self, entry: Entry) -> tuple[Change, str]:
        """ΔW of an entry against the base, and the base's identity."""
        root = self._root(entry.run)
        if not _is_adapter(entry):
            base = self._bases.store(root.base)
            if base is None:
                raise MissingInputError(
                    "are fine-tuned weights, and the base to compare them with is not here",
                    path=entry.path,
                    fix="put the base model's folder into the directory as base/",
                )
            return FullChange(open_model_store(entry.path), base), self._bases.fingerprint(base)
        adapter = _adapter(entry)
        store = self._bases.locate(adapter.base, root, entry.path)
        return LoraChange(adapter, store), self._bases.identity(adapter.base, root, entry.path)

    def _step(self, entry: Entry, number: int, before: Entry | None) -> Step:
        if before is None:
            change, base = self._change(entry)
        else:
            change, base = self._difference(before, entry, number)
        previous = before.path if before is not None else self._root(entry.run).base
        return Step(
            language=_known(entry.language),
            run=entry.run,
            source=entry.path,
            kind="lora" if _is_adapter(entry) else "full",
            base=base,
            shapes=change.shapes,
            initialisation=_initialisation(change),
            _change=change,
            stage=number,
            previous=previous,
        )

    def _difference(self, before: Entry, after: Entry, number: int) -> tuple[Change, str]:
        """What a stage changed against the one before, and the identity of the base."""
        if not _is_adapter(before) and not _is_adapter(after):
            # θ against θ: the base itself need not be here.
            base = self._bases.store(self._root(after.run).base)
            identity = NOT_STATED if base is None else self._bases.fingerprint(base)
            return FullChange(open_model_store(after.path), open_model_store(before.path)), identity
        if _is_adapter(after) and not _is_adapter(before) and number == 1:
            return self._change(after)
        if _is_adapter(after) != _is_adapter(before):
            kinds = {True: "an adapter", False: "a whole model"}
            raise NotComparableError(
                f"holds {kinds[_is_adapter(after)]}",
                path=after.path,
                expected=f"{kinds[_is_adapter(before)]}, as {self.relative(before.path)} does",
            )
        (later, base_after), (earlier, base_before) = self._change(after), self._change(before)
        if base_after != base_before:
            raise NotComparableError(
                f"states the base {_stated(after)}",
                path=after.path,
                expected=f"{_stated(before)}, as {self.relative(before.path)} does",
            )
        return Difference(later, earlier), base_after


def _is_adapter(entry: Entry) -> bool:
    return (entry.path / ADAPTER_CONFIG).is_file()


def _adapter(entry: Entry) -> peft.Adapter:
    return next(a for a in peft.read_adapters(entry.path) if a.name == entry.adapter)


def _stated(entry: Entry) -> str:
    return str(peft.read_config(entry.path).get("base_model_name_or_path"))


def _known(language: Language | None) -> Language:
    assert language is not None  # noqa: S101 - entries of these kinds always have one
    return language


def _kind(change: Change) -> Literal["lora", "full"]:
    return "full" if isinstance(change, FullChange) else "lora"


def _initialisation(change: Change) -> dict[str, str]:
    if isinstance(change, LoraChange):
        return {"init_lora_weights": change.adapter.initialisation}
    return {}


def _refuse_other_bases(updates: Sequence[Update]) -> None:
    for update in updates[1:]:
        first = updates[0]
        if update.base != first.base:
            raise NotComparableError(
                f"was trained on the base {update.base}",
                path=update.source,
                expected=f"{first.base}, the base of {first.source}",
                fix="if they are one model, write the same base_model_name_or_path into each "
                "adapter_config.json",
            )
