"""One run: the languages of one order learnt one after another, all tested after every stage."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subnet._files import new_directory
from subnet.errors import DivergedError
from subnet.training._models import adapted, heads_of, is_of
from subnet.training._procedure import Left, Procedure, steps_of_a_stage
from subnet.training._processes import is_first, processes, wait_for_all
from subnet.training._stages import StageLog, item_rows, score_rows
from subnet.training.config import Sharing, TrainingConfig
from subnet.training.corpora import Corpus
from subnet.training.sharing import Parameters, own_parameters, save_head, save_model
from subnet.training.tasks import Outcome, Row, Task

if TYPE_CHECKING:
    import pandas as pd

#: Counts one step of the named part: `steps.named("stage 3 (de)")` makes the function.
Named = Callable[[str], Callable[[], None]]


@dataclass(frozen=True)
class Setting:
    """What all runs of one cell have in common.

    Attributes:
        config: The whole configuration.
        sharing, rank: Of this cell.
        corpus: Examples.
        task: How they are fed and scored.
        base: The model before the sequence; it is copied, never changed.
        named: Counts steps.
        passed: Told of steps that an earlier call has done.
        procedure: How a stage is trained.
        entered: Called when a stage is finished, and so is on the disk.
    """

    config: TrainingConfig
    sharing: Sharing
    rank: int
    corpus: Corpus
    task: Task
    base: Any
    named: Named
    passed: Callable[[int], None]
    procedure: Procedure
    entered: Callable[[], None] = lambda: None


def derived_seed(*parts: object) -> int:
    """A seed for one part of an experiment, from the experiment's and the part's name (32 bits)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def run_seed(config: TrainingConfig, order: Sequence[str], seed: int, *parts: object) -> int:
    """A seed for one part of a run."""
    return derived_seed(config.seed, seed, "-".join(order), *parts)


class SequenceRun:
    """The languages of one order, one after another.

    Args:
        setting: What all runs of the cell have in common.
        folder: The run's folder.
        order: Labels, first to last.
        seed: Of adapters and batches.
    """

    def __init__(self, setting: Setting, folder: Path, order: Sequence[str], seed: int) -> None:
        self.setting, self.folder, self.order, self.seed = setting, folder, tuple(order), seed
        self.log = StageLog(folder)
        config = setting.config
        self.model = adapted(
            setting.base, config.adaptation, setting.rank, self._seed("initialisation")
        ).to(processes().device)
        own = own_parameters(self.model, config.adaptation, setting.sharing)
        self.parameters = Parameters(self.model, own)
        self._train = {
            language: setting.task.encode(
                [row for row in setting.corpus.train if row["language"] == language]
            )
            for language in self.order
        }
        heads = heads_of(setting.base)
        #: Results of each language as it was last tested: all there is to say while it stays.
        self._known: dict[str, Outcome] = {}
        #: Whether the body is carried from stage to stage, so that stages differ by one training.
        self.carried = all(is_of(name, heads) for name in own)

    def run(self) -> None:
        """Train what is not trained yet, and write what the run delivers."""
        done = self._resume()
        self.setting.passed(max(done, 0) * steps_of_a_stage(self.setting.config, self.setting.task))
        if done < 0:
            self.setting.named("testing the base")
            self._enter(0, "base", self._test_base())
        for number, language in enumerate(self.order, start=1):
            if number <= done:
                continue
            left = self._train_stage(number, language)
            self.setting.named(f"testing after stage {number} of {len(self.order)}")
            tables = self._test(number, language)
            if left.history is not None:
                tables["mask_history"] = left.history.assign(stage=number, language=language)
            if left.conflict is not None:
                tables["stage_conflict"] = self._conflict(number, language, left.conflict)
            self._deliver_stage(number, language)
            self._deliver_mask(language, left)
            self._enter(number, language, tables)
        self._deliver_languages()

    def _seed(self, *parts: object) -> int:
        return run_seed(self.setting.config, self.order, self.seed, *parts)

    def _resume(self) -> int:
        """Put the parameters of the last finished stage into the model, and say which it was."""
        done = self.log.done
        if done > 0:
            self.parameters.load(self.log.shared())
            if self.parameters.own:
                for number, language in enumerate(self.order[:done], start=1):
                    self.parameters.load(self.log.own(number), language)
        return done

    def _train_stage(self, number: int, language: str) -> Left:
        self.parameters.begin(self._seed("adapter", language))
        doing = self._name_of(number)
        try:
            left = self.setting.procedure.train(
                self.model,
                self._train[language],
                language=language,
                seed=self._seed("stage", language),
                folder=self.log.trainer_folder(number),
                on_step=self.setting.named(doing),
            )
        except DivergedError as error:
            raise self._diverged(number, error.found, error.fix) from error
        if self.parameters.own:
            self.parameters.keep(language)
        return left

    def _name_of(self, number: int) -> str:
        return f"stage {number} of {len(self.order)} ({self.order[number - 1]})"

    def _diverged(self, number: int, found: str, fix: str | None) -> DivergedError:
        last = f"stage {number - 1} is kept" if number > 1 else "nothing is trained yet"
        return DivergedError(
            f"{self._name_of(number)}: {found}", path=self.folder, fix=f"{fix}; {last}"
        )

    def _test_base(self) -> dict[str, pd.DataFrame]:
        return self._tables(0, self._serving_outcome())

    def _test(self, number: int, language: str) -> dict[str, pd.DataFrame]:
        """Scores of all languages after a stage, each answered for by its own parameters."""
        import pandas as pd

        rows = self.setting.corpus.test
        transfer: dict[str, pd.DataFrame] = {}
        if self.parameters.own and self.setting.config.evaluation.transfer:
            self.parameters.put(language)
            everywhere = self._outcome(rows)
            frame = pd.DataFrame(
                score_rows(self.setting.task, rows, everywhere, self.setting.corpus.tested)
            )
            frame.insert(0, "trained_language", language)
            frame.insert(0, "stage", number)
            transfer = {"transfer": frame}
        self._known.pop(language, None)
        found = self._tables(number, self._serving_outcome())
        if self.parameters.own:
            self.parameters.put(language)
        return found | transfer

    def _serving_outcome(self) -> Outcome:
        """Results on all examples, of what answers for the language of each.

        Where languages have parameters of their own, each is a pass of its own: what a batch is
        padded to and made of moves a float32 loss in its last digits, and where nothing is shared
        a language that was not trained must not move at all.
        """
        rows = self.setting.corpus.test
        if not self.parameters.own:
            return self._outcome(rows)
        places: list[int] = []
        parts: list[Outcome] = []
        for name in self.setting.corpus.tested:
            chosen = [i for i, row in enumerate(rows) if row["language"] == name]
            if self.parameters.shared or name not in self._known:
                self.parameters.put(self.parameters.serving(name))
                self._known[name] = self._outcome([rows[i] for i in chosen])
            places += chosen
            parts.append(self._known[name])
        whole = Outcome(
            {
                metric: np.concatenate([part.items[metric] for part in parts])
                for metric in parts[0].items
            },
            [output for part in parts for output in part.outputs],
        )
        return whole.select(np.argsort(places))

    def _outcome(self, rows: Sequence[Row]) -> Outcome:
        return self.setting.task.evaluate(
            self.model, rows, batch_size=self.setting.config.evaluation.batch_size
        )

    def _conflict(self, number: int, language: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Cosines of the languages' gradients while one of them was trained."""
        frame = frame.drop(columns="run")
        frame.insert(0, "trained_language", language)
        frame.insert(0, "stage", number)
        return frame

    def _tables(self, number: int, outcome: Outcome) -> dict[str, pd.DataFrame]:
        import pandas as pd

        rows = self.setting.corpus.test
        found = score_rows(self.setting.task, rows, outcome, self.setting.corpus.tested)
        lost = [row for row in found if row["metric"] == "loss" and not np.isfinite(row["value"])]
        if lost and number:
            raise self._diverged(
                number,
                f"after its last step the loss of {lost[0]['language']} is not finite",
                f"lower the learning rate ({self.setting.config.training.learning_rate:g})",
            )
        tables = {"scores": pd.DataFrame(found), "items": item_rows(rows, outcome)}
        for frame in tables.values():
            frame.insert(0, "stage", number)
        return tables

    def _enter(self, number: int, language: str, tables: dict[str, pd.DataFrame]) -> None:
        own = self.parameters.own and number > 0
        if is_first():
            self.log.write(
                number,
                tables,
                self.parameters.state(),
                self.parameters.state(language) if own else None,
            )
            if number:
                self.setting.entered()
        wait_for_all()

    def _deliver_stage(self, number: int, language: str) -> None:
        """The model after a stage, where a stage is what one training changed."""
        keep = self.setting.config.output.stages
        last = number == len(self.order)
        if self.carried and (keep == "all" or (keep == "last" and last)):
            self._deliver(f"stages/{number:02d}-{language}")

    def _deliver_mask(self, language: str, left: Left) -> None:
        """Which weights a language moved, where training found them."""
        if left.mask is not None and is_first():
            place = self.folder / "masks" / f"{language}.safetensors"
            place.parent.mkdir(parents=True, exist_ok=True)
            left.mask.save(place)
        wait_for_all()

    def _deliver_languages(self) -> None:
        """The model that answers for each language at the end, where languages have their own.

        Where these are heads alone, the body is that of the last stage, and the heads stand apart.
        """
        if self.setting.config.output.stages == "none":
            return
        if self.carried and self.parameters.own and is_first():
            with new_directory(self.folder / "heads", overwrite=True) as building:
                for language in self.order:
                    path = building / f"{language}.safetensors"
                    save_head(self.parameters.state(language), path)
        wait_for_all()
        if not self.carried:
            container = "adapters" if self.setting.config.adaptation.tuning == "lora" else "weights"
            for language in self.order:
                self.parameters.put(language)
                self._deliver(f"{container}/{language}")

    def _deliver(self, name: str) -> None:
        if is_first():
            place = self.folder / name
            shutil.rmtree(place, ignore_errors=True)  # half of a run that was stopped
            with new_directory(place) as building:
                save_model(self.model, building)
        wait_for_all()
