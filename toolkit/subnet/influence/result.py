"""What `attribute` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subnet import _files, _tables
from subnet._tables import Provenance
from subnet.errors import FileFormatError, InputError, MissingInputError
from subnet.influence import _processes

if TYPE_CHECKING:
    import pandas as pd

_TENSORS, _DESCRIPTION = "influence.safetensors", "influence.json"
_FORMAT = 1
LEVELS = ("example", "language")


@dataclass(frozen=True, eq=False)
class Influence:
    """How much each training example (or language) moved each test prediction.

    A positive score means that training on the example lowered the test loss.

    Attributes:
        scores: [n_test, n_train] float64; at language level means over all pairs of examples.
        test: One row per test example (id and, where known, language and concept) or language
            (language, n).
        train: The same of the training side.
        method: Name of the method.
        level: `"example"` or `"language"`.
        provenance: Method, settings (every checkpoint with its learning rate among them), seed,
            versions.
        table: At language level the table of `languages()`; None otherwise.
    """

    scores: NDArray[np.float64]
    test: pd.DataFrame
    train: pd.DataFrame
    method: str
    level: str
    provenance: Provenance
    table: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.test), len(self.train)):
            raise InputError(
                f"scores are {list(self.scores.shape)} for {len(self.test)} test and "
                f"{len(self.train)} training items",
                expected="[n_test, n_train]",
            )

    def top(self, k: int = 10, *, opponents: bool = False) -> pd.DataFrame:
        """The training examples with the largest scores for each test example.

        Args:
            k: How many; all where there are fewer.
            opponents: The smallest (most negative) scores instead.

        Returns:
            One row per test example and rank (from 1): test, rank, train, score, and the languages
            and concepts of both where known. `test` and `train` are ids. Ties: earlier first.
        """
        import pandas as pd

        asked: Any = k
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
            raise InputError(f"k is {k!r}", expected="a whole number, 1 or more")
        k = min(k, self.scores.shape[1])
        sign = 1 if opponents else -1
        best = np.argsort(sign * self.scores, axis=1, kind="stable")[:, :k]
        rows = np.repeat(np.arange(len(self.scores)), k)
        columns = best.reshape(-1)
        return pd.DataFrame(
            {
                **self._pair(rows, columns),
                "rank": np.tile(np.arange(1, k + 1), len(self.scores)),
                "score": self.scores[rows, columns],
            }
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per pair: test, train, their languages and concepts where known, score."""
        import pandas as pd

        n_test, n_train = self.scores.shape
        rows, columns = np.divmod(np.arange(n_test * n_train), n_train)
        return pd.DataFrame({**self._pair(rows, columns), "score": self.scores.reshape(-1)})

    def languages(self, **settings: Any) -> pd.DataFrame:
        """Influence of every training language on every test language, with intervals.

        Args:
            **settings: At example level, those of `subnet.influence.summarise`: how many examples
                are "the most", what becomes of translations, seed.

        Returns:
            The table `influence`: train_language, test_language, measure, value, ci_low, ci_high,
            …. From example level mean and shares, from language level the mean.

        Raises:
            InputError: The examples name no languages, or settings are given at language level.
        """
        if self.table is not None:
            if settings:
                raise InputError(
                    f"{next(iter(settings))} is given at language level",
                    expected="no settings: only the mean is known there",
                    fix="attribute with level='example'",
                )
            return self.table.copy()
        for role, items in (("training", self.train), ("test", self.test)):
            if "language" not in items:
                raise InputError(
                    f"the {role} examples name no language", expected="a 'language' in each of them"
                )
        from subnet.influence.summary import summarise

        given: dict[str, Any] = {**self.labels, "seed": self.provenance.seed or 0, **settings}
        given.setdefault("m", min(10, len(self.train)))
        return summarise(self.scores, self.test, self.train, **given)

    @_processes.together
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a folder: `influence.safetensors` (scores) and `influence.json` (all else).

        In a run of many processes all call it, and the first one writes.

        Raises:
            OutputError: The place is taken or cannot be written.
        """
        from safetensors.numpy import save_file

        if not _processes.is_first():
            return
        with _files.new_directory(path, overwrite=overwrite) as folder:
            save_file({"scores": np.ascontiguousarray(self.scores)}, folder / _TENSORS)
            content = {
                "format": _FORMAT,
                "method": self.method,
                "level": self.level,
                "test": _records(self.test),
                "train": _records(self.train),
                "table": None if self.table is None else _records(self.table),
                "provenance": self.provenance.to_dict(),
            }
            _files.write_json(folder / _DESCRIPTION, content)
            _files.write_json(folder / _files.RUN_FILE, self.provenance.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Influence:
        """Read what `save` wrote.

        Raises:
            MissingInputError: A file is not there.
            FileFormatError: A file is damaged, or of another format.
        """
        import pandas as pd
        from safetensors.numpy import load_file

        folder = Path(path)
        for name in (_TENSORS, _DESCRIPTION):
            if not (folder / name).is_file():
                raise MissingInputError(f"has no {name}", path=folder, expected="a saved influence")
        content = _files.read_json(folder / _DESCRIPTION)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FileFormatError(
                "is of another format", path=folder / _DESCRIPTION, expected=f"format {_FORMAT}"
            )
        _files.read_safetensors_header(folder / _TENSORS)
        made = content["provenance"]
        return cls(
            scores=load_file(folder / _TENSORS)["scores"],
            test=_frame(content["test"]),
            train=_frame(content["train"]),
            method=content["method"],
            level=content["level"],
            provenance=Provenance(made["method"], made["settings"], made["seed"], made["versions"]),
            table=None if content["table"] is None else pd.DataFrame(_frame(content["table"])),
        )

    def __repr__(self) -> str:
        n_test, n_train = self.scores.shape
        what = "examples" if self.level == "example" else "languages"
        return f"Influence({self.method!r}: {n_train} training on {n_test} test {what})"

    @property
    def labels(self) -> dict[str, str]:
        """What stands in every row of its tables: method, checkpoint (or how many), subnetwork."""
        settings = self.provenance.settings
        points = settings.get("checkpoints", ())
        name = points[0]["checkpoint"] if len(points) == 1 else f"{len(points)} checkpoints"
        subnetwork = settings.get("subnetwork")
        return {
            "method": self.method,
            "checkpoint": name if points else "",
            "subnetwork": subnetwork["language"] if subnetwork else "",
        }

    def _pair(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> dict[str, Any]:
        key = "id" if self.level == "example" else "language"
        found: dict[str, Any] = {
            "test": self.test[key].to_numpy()[rows],
            "train": self.train[key].to_numpy()[columns],
        }
        for about in ("language", "concept"):
            if self.level == "example" and about in self.test:
                found[f"test_{about}"] = self.test[about].to_numpy()[rows]
            if self.level == "example" and about in self.train:
                found[f"train_{about}"] = self.train[about].to_numpy()[columns]
        return found


def language_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The table `influence` of rows that were made here."""
    return _tables.table("influence", [{"run": _tables.MAIN_RUN, **row} for row in rows])


def _records(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns as JSON; NaN becomes null."""
    return {
        "columns": list(frame.columns),
        "types": [str(kind) for kind in frame.dtypes],
        "data": [frame[name].tolist() for name in frame.columns],
    }


def _frame(content: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    columns = zip(content["columns"], content["types"], content["data"], strict=True)
    return pd.DataFrame({name: pd.Series(values, dtype=kind) for name, kind, values in columns})
