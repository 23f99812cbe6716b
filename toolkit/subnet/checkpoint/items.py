"""Per-item results: what paired standard errors are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from subnet import _files
from subnet.checkpoint.records import ItemFile
from subnet.checkpoint.score_tables import parse_stage
from subnet.errors import FileFormatError, InputError
from subnet.language import LanguageIndex

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("run", "stage", "language", "item", "metric", "value")
_KEY = ["run", "stage", "language", "item", "metric"]


def read_items(files: Sequence[ItemFile], index: LanguageIndex) -> pd.DataFrame | None:
    """Per-item results of all files: run, stage, language, item, metric, value; None without any.

    Raises:
        InputError: A value is no number, or an item has one metric twice.
    """
    import pandas as pd

    frames = [
        _read_csv(file, index) if file.language is None else _read_samples(file, file.language)
        for file in files
    ]
    frames = [frame for frame in frames if not frame.empty]
    if not frames:
        return None
    items = pd.concat(frames, ignore_index=True)
    items = items.sort_values(_KEY, kind="stable", ignore_index=True)
    twice = items.duplicated(_KEY)
    if twice.any():
        row = items[twice].iloc[0]
        raise InputError(
            f"item {row['item']!r} has {row['metric']} of {row['language']} after stage "
            f"{row['stage']} twice",
            path=files[0].path,
            expected="one value per run, stage, language, item and metric",
        )
    return items


def _read_csv(file: ItemFile, index: LanguageIndex) -> pd.DataFrame:
    import pandas as pd

    try:
        # Text first: item names such as 007 and languages such as `nan` must survive as written.
        frame = pd.read_csv(
            file.path,
            sep=_files.delimiter_of(file.path),
            header=None,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FileFormatError(f"is no CSV table ({error})", path=file.path) from error
    # Left to itself, pandas renames the second of two columns of one name.
    header = frame.iloc[0].str.strip()
    if header.duplicated().any():
        raise FileFormatError(
            f"names the column {header[header.duplicated()].iloc[0]!r} twice", path=file.path
        )
    frame = frame.iloc[1:].set_axis(list(header), axis=1)
    needed = ("stage", "language", "item", "metric", "value")
    absent = [column for column in needed if column not in frame]
    if absent:
        raise FileFormatError(
            f"has no column {absent[0]!r}", path=file.path, expected=",".join(needed)
        )
    frame = frame[frame["value"].str.strip() != ""].reset_index(drop=True)
    values = pd.to_numeric(frame["value"], errors="coerce")
    wrong = ~values.abs().lt(float("inf"))
    if wrong.any():
        row = frame[wrong].iloc[0]
        raise InputError(
            f"{row['metric']} of item {row['item']!r} is {row['value']!r}",
            path=file.path,
            expected="a finite number",
        )
    stages = {text: parse_stage(text, file.path)[0] for text in frame["stage"].unique()}
    labels = index.add_distinct(sorted(frame["language"].unique()), path=file.path)
    names = {label: language.label for label, language in labels.items()}
    return pd.DataFrame(
        {
            "run": frame.get("run", file.run),
            "stage": frame["stage"].map(stages).astype("int64"),
            "language": frame["language"].map(names),
            "item": frame["item"],
            "metric": frame["metric"],
            "value": values.astype("float64"),
        }
    )


def _read_samples(file: ItemFile, language: str) -> pd.DataFrame:
    """`samples_*.jsonl` of lm-evaluation-harness: one object per document and filter."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for sample in _files.read_json_lines(file.path):
        for metric, value in _sample_values(sample):
            rows.append(
                {
                    "run": file.run,
                    "stage": file.stage,
                    "language": language,
                    "item": str(sample.get("doc_id")),
                    "metric": f"{file.prefix}{metric}",
                    "value": value,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _sample_values(sample: dict[str, Any]) -> Iterable[tuple[str, float]]:
    names = sample.get("metrics")
    if not isinstance(names, list):
        # Releases before 0.4.5 do not list them.
        known = {"doc_id", "target"}
        names = [key for key, value in sample.items() if key not in known and _is_number(value)]
    suffix = sample.get("filter", "none")
    for name in names:
        if _is_number(sample.get(name)):
            yield (str(name) if suffix == "none" else f"{name},{suffix}"), float(sample[name])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
