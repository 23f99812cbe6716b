"""What each finished stage of a run leaves behind, so that a run that was stopped can go on.

`.resume/<NN>/` holds the scores and the trained parameters after stage NN. It appears when it is
complete; the last one that can be read is where a run goes on. `.resume/trainer-<NN>/` is what
Trainer saves within stage NN: its number is in the name, so that no other stage goes on from it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet import _files
from subnet._tables import write_csv
from subnet.errors import OutputError, SubnetError
from subnet.training.tasks import Outcome, Row, Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

#: Folder of what a run needs to go on; it goes when the run is done.
RESUME = ".resume"

_NUMBER = re.compile(r"^\d{2,}$")
#: Columns of labels of languages.
_NAMES = ("language", "trained_language", "language_a", "language_b")
_SHARED, _OWN = "shared.safetensors", "own.safetensors"


class StageLog:
    """The finished stages of one run.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / RESUME

    def trainer_folder(self, number: int) -> Path:
        """Where Trainer saves within a stage; 0 of a training outside the sequence."""
        return self.folder / f"trainer-{number:02d}"

    @property
    def done(self) -> int:
        """Number of the last finished stage that can be gone on from; −1 before the first.

        That is the one before, where the last one's parameters are damaged.
        """
        numbers = {int(path.name) for path in self._folders()}
        number = -1
        while number + 1 in numbers and self._own_is_whole(number + 1):
            number += 1
        while number > 0 and not _is_whole(self._place(number) / _SHARED):
            number -= 1
        return number

    def write(
        self,
        number: int,
        tables: Mapping[str, pd.DataFrame],
        shared: Mapping[str, Tensor],
        own: Mapping[str, Tensor] | None,
    ) -> None:
        """Enter a finished stage; the one before it stays, in case that this one is damaged."""
        with _files.new_directory(self._place(number), overwrite=True) as place:
            for name, frame in tables.items():
                write_csv(frame, place / f"{name}.csv")
            save_tensors(shared, place / _SHARED)
            if own is not None:
                save_tensors(own, place / _OWN)
            _files.write_json(place / _files.RUN_FILE, {"stage": number})
        shutil.rmtree(self.trainer_folder(number), ignore_errors=True)
        (self._place(number - 2) / _SHARED).unlink(missing_ok=True)

    def shared(self) -> dict[str, Tensor]:
        """The shared parameters after the last finished stage."""
        return load_tensors(self._place(self.done) / _SHARED)

    def own(self, number: int) -> dict[str, Tensor]:
        """The parameters of the language that a stage trained."""
        return load_tensors(self._place(number) / _OWN)

    def table(self, name: str) -> pd.DataFrame | None:
        """One of the tables over all finished stages; None where no stage has it."""
        import pandas as pd

        files = [self._place(number) / f"{name}.csv" for number in range(self.done + 1)]
        # Names such as 007 and languages such as `nan` stay what they are.
        text = dict.fromkeys((*_NAMES, "item", "metric", "module"), str)
        undefined = {key: [""] for key in ("stderr", "cosine", "norm_a", "norm_b")}
        frames = [
            pd.read_csv(file, dtype=text, keep_default_na=False, na_values=undefined)
            for file in files
            if file.is_file()
        ]
        return pd.concat(frames, ignore_index=True) if frames else None

    def remove(self) -> None:
        """Forget everything: the run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _own_is_whole(self, number: int) -> bool:
        own = self._place(number) / _OWN
        return not own.exists() or _is_whole(own)

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:02d}"

    def _folders(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (path for path in self.folder.iterdir() if _NUMBER.match(path.name))


def score_rows(
    task: Task, rows: Sequence[Row], outcome: Outcome, languages: Sequence[str]
) -> list[dict[str, Any]]:
    """language, metric, value, stderr of some languages from results on all examples."""
    places_of: dict[str, list[int]] = {language: [] for language in languages}
    for place, row in enumerate(rows):
        if row["language"] in places_of:
            places_of[row["language"]].append(place)
    found = []
    for language, places in places_of.items():
        own = [rows[i] for i in places]
        found += [
            {
                "language": language,
                "metric": score.metric,
                "value": score.value,
                "stderr": score.stderr,
            }
            for score in task.summarise(own, outcome.select(places))
        ]
    return found


def item_rows(rows: Sequence[Row], outcome: Outcome) -> pd.DataFrame:
    """language, item, metric, value of every example, in six digits.

    That is more than a float32 loss is good for, and these are the largest tables. What is
    undefined for an example has no row.
    """
    import pandas as pd

    return pd.concat(
        [
            pd.DataFrame(
                {
                    "language": [row["language"] for row in rows],
                    "item": [row["id"] for row in rows],
                    "metric": metric,
                    "value": [float(f"{value:.6g}") for value in values],
                }
            )
            for metric, values in outcome.items.items()
        ],
        ignore_index=True,
    ).dropna(subset="value", ignore_index=True)


def last_checkpoint(folder: Path, *needed: str) -> Path | None:
    """The latest checkpoint of Trainer that is complete; its state file is written last.

    Args:
        folder: Where Trainer saves.
        needed: Files that callbacks add after that.
    """
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if all((path / name).is_file() for name in ("trainer_state.json", *needed))
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors; a disk that is full is an `OutputError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        raise OutputError(f"cannot be written ({error})", path=path) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors that `save_tensors` wrote."""
    from safetensors.torch import load_file

    return dict(load_file(path))


def _is_whole(path: Path) -> bool:
    """Whether all bytes are there that the file's header promises."""
    try:
        _files.read_safetensors_header(path)
    except SubnetError:
        return False
    return True
