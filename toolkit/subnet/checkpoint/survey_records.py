"""Recognising scores, per-item results, examples and the table of languages."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from subnet import _files
from subnet.checkpoint import lm_eval, score_tables, trainer_logs
from subnet.checkpoint.inventory import Entry, Findings, Root, count
from subnet.checkpoint.records import ItemFile, ScoreRow
from subnet.checkpoint.settings import SETTINGS_FILE
from subnet.errors import FileFormatError

#: Scores of every language under the parameters that are one language's own.
TRANSFER_FILE = "transfer.csv"
#: Each language's own head, where languages share the body.
_HEADS = "heads"
#: What training says of itself, for people to read.
_TRAINING_RECORDS = {
    "mask_history.csv": "how dynamic masks changed",
    "conflict.csv": "how far the gradients of languages agreed while the base was trained",
    "stage_conflict.csv": "how far the gradients of languages agreed in every stage",
    "references.csv": "what references and copies of the source score",
}


def survey_language_table(root: Root, findings: Findings) -> None:
    """What the user says of the languages."""
    path = root.path / "languages.csv"
    if not path.is_file():
        return
    labels = [cells.get("language", "") for _, cells in _files.read_csv_rows(path)]
    if not all(labels):
        raise FileFormatError("has no column 'language', or an empty one", path=path)
    findings.index.add_distinct(labels, path=path)
    text = f"table of {count(labels, 'language')}"
    findings.entries.append(Entry("languages_table", path, root.run, recognised_as=text))


def survey_tables(root: Root, findings: Findings) -> None:
    """Long and square score tables and tables of items: the documented names, then any CSV."""
    tables = [p for p in sorted(root.path.iterdir()) if p.suffix in (".csv", ".tsv")]
    for path in sorted(tables, key=lambda p: p.stem != "scores"):
        if path.stem == "languages":
            continue
        header = _header(path)
        if path.name == TRANSFER_FILE:
            text = "what each language's own parameters do on every language"
            findings.entries.append(Entry("transfer", path, root.run, recognised_as=text))
        elif path.name in _TRAINING_RECORDS:
            text = _TRAINING_RECORDS[path.name]
            findings.entries.append(Entry("training_record", path, root.run, recognised_as=text))
        elif "item" in header:
            item = ItemFile(path, root.run)
            findings.records.items.append(item)
            findings.entries.append(
                Entry("items", path, root.run, recognised_as="per-item results")
            )
        elif score_tables.is_square(header, findings.index):
            metric = score_tables.metric_of(path, root.settings.scores)
            rows = score_tables.read_square(
                path, root.run, findings.index, findings.records, metric=metric
            )
            _enter_scores(path, f"square table of {metric}", rows, root, findings)
        elif path.stem == "scores" or score_tables.is_long(header):
            rows = score_tables.read_long(path, root.run, findings.index, findings.records)
            _enter_scores(path, "score table", rows, root, findings)
        else:
            findings.skip(
                path,
                f"has the columns {', '.join(header) or 'of an empty file'}",
                "scores want stage,language,metric,value or one column per language",
            )


def survey_heads(root: Root, findings: Findings) -> None:
    """What each language was tested with beside the body that all share."""
    folder = root.path / _HEADS
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if files:
        text = f"{count(files, 'head')} of languages that share the body"
        findings.entries.append(Entry("training_record", folder, root.run, recognised_as=text))


def _enter_scores(
    path: Path,
    what: str,
    rows: list[ScoreRow],
    root: Root,
    findings: Findings,
    *,
    stage: int | None = None,
) -> None:
    """Enter a source of scores: of every stage, or of the one that is given."""
    findings.batches.append(rows)
    languages = count({row.language for row in rows}, "language")
    stages = count({(row.run, row.stage) for row in rows}, "stage")
    text = f"{what} ({languages}, {stages})" if stage is None else f"{what} ({languages})"
    findings.entries.append(Entry("scores", path, root.run, stage=stage, recognised_as=text))


def _header(path: Path) -> list[str]:
    with _files.open_text(path) as file:
        rows = csv.reader(file, delimiter=_files.delimiter_of(path))
        try:
            return [name.strip() for name in next(rows, [])]
        except csv.Error as error:
            raise FileFormatError(f"is no table ({error})", path=path) from error


def survey_evaluations(root: Root, findings: Findings) -> None:
    """Output of lm-evaluation-harness, wherever it lies; the newest of each stage counts."""
    stages = {path.name: number for number, path in findings.stages.get(root.run, {}).items()}
    if root.base is not None:
        stages.setdefault(root.base.name, 0)
    newest: dict[int, lm_eval.Evaluation] = {}
    for path in _results_files(root.path):
        try:
            evaluation = lm_eval.read_evaluation(path)
        except FileFormatError as error:
            findings.skip(path, error.found)
            continue
        stage = lm_eval.stage_of(evaluation, stages, root.path)
        if stage is None:
            findings.skip(
                path,
                "evaluates a model that is no stage of this directory",
                "put it into the folder of its stage, stages/<number>-<language>/",
            )
            continue
        older = newest.get(stage)
        if older is not None:
            evaluation, older = sorted((evaluation, older), key=lambda e: e.time, reverse=True)
            findings.skip(
                older.path, f"stage {stage} has a newer evaluation, {evaluation.path.name}"
            )
        newest[stage] = evaluation
    lm_eval.check_comparable(newest)
    for stage, evaluation in sorted(newest.items()):
        rows, unnamed = lm_eval.read_rows(
            evaluation, root.run, stage, findings.index, findings.records
        )
        if unnamed:
            findings.skip(
                evaluation.path,
                f"names of tasks that say no language: {', '.join(unnamed)}",
                f'say it in {SETTINGS_FILE}: [languages."{unnamed[0]}"] tag = "…"',
            )
        if rows:
            _enter_scores(
                evaluation.path, "lm-evaluation-harness", rows, root, findings, stage=stage
            )


def _results_files(root: Path, depth: int = 4) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_dir() and depth and not path.name.startswith(".") and path.name != "runs":
            yield from _results_files(path, depth - 1)
        elif path.name.startswith("results_") and path.suffix == ".json":
            yield path


def survey_trainer_logs(root: Root, findings: Findings) -> None:
    """Scores that Trainer logged, of each stage or of the whole run."""
    folder = root.path / "stages"
    if folder.is_dir():
        for stage, path in sorted(findings.stages.get(root.run, {}).items()):
            state = trainer_logs.find_state(path)
            if state is not None:
                history = trainer_logs.read_history(state, findings.index)
                rows = trainer_logs.rows_of_stage(history, root.run, stage, state)
                if rows:
                    _enter_scores(state, "Trainer's log", rows, root, findings, stage=stage)
        return
    state = trainer_logs.find_state(root.path)
    if state is None:
        return
    history = trainer_logs.read_history(state, findings.index)
    if history:
        rows = trainer_logs.rows_of_steps(history, root.run, state)
        _enter_scores(state, "Trainer's log", rows, root, findings)
    else:
        findings.skip(
            state,
            "evaluates no language by name",
            "give Trainer eval_dataset={language: …}, which logs eval_<language>_<metric>",
        )


def survey_examples(root: Root, findings: Findings) -> None:
    """Examples of training, validation and test."""
    for split in ("train", "validation", "test"):
        path = root.path / f"{split}.jsonl"
        if not path.is_file():
            continue
        first = next(_files.read_json_lines(path), None)
        if first is None:
            raise FileFormatError("is empty", path=path, expected="one JSON object per line")
        if "language" not in first:
            raise FileFormatError(
                "line 1 has no 'language'", path=path, expected="id, language, text, label"
            )
        text = f"{split} examples ({', '.join(first)})"
        findings.entries.append(Entry(f"{split}_examples", path, root.run, recognised_as=text))
