"""The embedded experiment: a small multilingual model, an adapter per language, and a sequence.

A byte-level encoder learns from all languages together to tell what kind of thing a term names (a
territory, a currency, …). Then (a) one LoRA per language starts from that base, and (b) one LoRA is
carried through the languages in a random order, with every language tested after every stage. The
classification head is trained with the base and frozen afterwards, so that languages share nothing
in the sequence but the LoRA.
"""

from __future__ import annotations

import copy
import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet._files import check_output, new_directory
from subnet.training._progress import Progress, Steps, reporter
from subnet.training.data import DemoData, load_data
from subnet.training.languages import resolve_languages
from subnet.training.settings import DemoSettings
from subnet.training.tokenizer import ADDED_TOKENS, SPECIAL_TOKENS, build_tokenizer

if TYPE_CHECKING:
    from subnet.training._records import AdapterRecord

#: The run that holds the second adapters.
REPLICATE_RUN = "replicate"

#: Every dense layer of the encoder. One pattern and no list: PEFT keeps a list as a set, whose
#: order changes from one process to the next.
_TARGETS = r".*\.encoder\.layer\..*\.(query|key|value|dense)"

_BASE_SCHEDULE, _ADAPTER_SCHEDULE = "linear", "constant"


def run_demo(
    directory: str | Path,
    *,
    languages: str | Sequence[str] = "default",
    seed: int = 0,
    progress: Progress | bool = False,
    overwrite: bool = False,
    settings: DemoSettings | None = None,
) -> Path:
    """Train the demo and write its checkpoint directory.

    The directory follows the documented convention: `base/`, `adapters/<language>/`,
    `runs/replicate/adapters/<language>/`, `stages/<NN>-<language>/`, `scores.csv`, `items.csv`,
    `train.jsonl`, `validation.jsonl`, `test.jsonl`, `languages.csv`, `subnet.toml`, and `run.json`
    with every seed and setting. It appears only when it is complete. The same seed, settings,
    library versions and number of threads give the same bytes. On two cores the twelve default
    languages take about a minute and a half, the 52 of `"all"` much longer.

    Args:
        directory: Where to write.
        languages: `"default"` (twelve), `"all"` (the 52 of MASSIVE), or labels in any usual form.
        seed: Seed of the split, of the order of languages, and of all training.
        progress: True for a bar on the terminal, or a function called with what is going on, the
            optimizer steps done, and those in all.
        overwrite: Replace a directory that an earlier demo wrote.
        settings: Sizes and schedules.

    Returns:
        The directory.

    Raises:
        UnknownLanguageError: A label names no language, or none that CLDR describes.
        OutputError: The directory is already there, or cannot be written.
        InputError: The languages have too little in common.

    Example:
        >>> run_demo("demo", languages=["en", "de", "ru"], progress=True)  # doctest: +SKIP
        PosixPath('demo')
    """
    settings = settings or DemoSettings()
    target = Path(directory)
    chosen = resolve_languages(languages)
    check_output(target, overwrite=overwrite)
    data = load_data(
        chosen,
        kinds=settings.kinds,
        max_concepts_per_kind=settings.max_concepts_per_kind,
        test_share=settings.test_share,
        validation_share=settings.validation_share,
        max_bytes=settings.max_length - ADDED_TOKENS,
        seed=seed,
    )
    with (
        reporter(progress) as report,
        new_directory(target, overwrite=overwrite) as folder,
    ):
        from subnet.training._engine import undisturbed

        with undisturbed():
            _Experiment(data, settings, seed, folder, report).run()
    return target


class _Experiment:
    """One demo: its data and settings, and the folder that it fills."""

    def __init__(
        self, data: DemoData, settings: DemoSettings, seed: int, folder: Path, report: Progress
    ) -> None:
        from subnet.training._engine import Engine

        self.data, self.settings, self.seed, self.folder = data, settings, seed, folder
        self.labels = [language.label for language in data.languages]
        self.order = random.Random(self._seed("order")).sample(self.labels, len(self.labels))  # noqa: S311
        self.replicated = self.order[: settings.replicates]
        self.seeds: dict[str, int] = {}
        passes = settings.base_epochs * len(data.train) / settings.base_batch_size
        self.base_steps = max(settings.base_steps, math.ceil(passes))
        trainings = 2 * len(self.labels) + len(self.replicated)
        self.steps = Steps(report, self.base_steps + trainings * settings.adapter_steps)
        self.tokenizer = build_tokenizer(settings.max_length)
        self.engine = Engine(self.tokenizer, data.kinds, settings.max_length)
        self.train_set = self.engine.encode(data.train)
        self.test_set = self.engine.encode(data.test)

    def run(self) -> None:
        """Train everything and write every file."""
        from subnet.training._records import StageRecord, write_records

        base = self._train_base()
        self.tokenizer.save_pretrained(self.folder / "base")
        base.save_pretrained(self.folder / "base")

        replicates = f"runs/{REPLICATE_RUN}/adapters"
        adapters = [
            *(self._train_adapter(base, "adapters", label) for label in self.labels),
            *(self._train_adapter(base, replicates, label) for label in self.replicated),
        ]

        model = self._add_adapter(base, "stages")
        stages = [StageRecord(0, "base", self.engine.evaluate(model, self.test_set))]
        for number, label in enumerate(self.order, start=1):
            self._train_language(model, label, f"stage {number} ({label})", f"stages/{number}")
            stage = StageRecord(number, label, self.engine.evaluate(model, self.test_set))
            _save_adapter(model, self.folder / "stages" / stage.folder)
            stages.append(stage)

        write_records(
            self.folder,
            data=self.data,
            settings=self.settings,
            seed=self.seed,
            seeds=self.seeds,
            order=self.order,
            adapters=adapters,
            stages=stages,
            base_steps=self.base_steps,
            schedules={"base": _BASE_SCHEDULE, "adapters": _ADAPTER_SCHEDULE},
        )

    def _train_base(self) -> Any:
        """The encoder and its head, trained on the labels of all languages together."""
        from transformers import BertConfig, BertForSequenceClassification, set_seed

        settings, kinds = self.settings, self.data.kinds
        set_seed(self._record_seed("base"))
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=settings.width,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                intermediate_size=settings.feed_forward,
                max_position_embeddings=settings.max_length,
                type_vocab_size=1,
                initializer_range=settings.initializer_range,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=SPECIAL_TOKENS.index("[PAD]"),
                id2label=dict(enumerate(kinds)),
                label2id={kind: index for index, kind in enumerate(kinds)},
            )
        )
        self.engine.train(
            model,
            self.train_set,
            steps=self.base_steps,
            batch_size=settings.base_batch_size,
            learning_rate=settings.base_learning_rate,
            schedule=_BASE_SCHEDULE,
            warmup_steps=round(settings.base_warmup * self.base_steps),
            seed=self.seeds["base"],
            on_step=self.steps.named("base model"),
        )
        return model

    def _add_adapter(self, base: Any, name: str) -> Any:
        """A fresh LoRA on a copy of the base, initialised from a seed of its own.

        Adapters that share their initialisation look alike whatever they were trained on.
        """
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        model = copy.deepcopy(base)
        model.name_or_path = "base"  # what PEFT records: beside the adapters, wherever that is
        set_seed(self._record_seed(name))
        return get_peft_model(
            model,
            LoraConfig(
                r=self.settings.rank, lora_alpha=self.settings.alpha, target_modules=_TARGETS
            ),
        )

    def _train_adapter(self, base: Any, folder: str, label: str) -> AdapterRecord:
        """One language's adapter, stored, with its results on that language."""
        from subnet.training._records import AdapterRecord

        path = f"{folder}/{label}"
        model = self._add_adapter(base, path)
        self._train_language(model, label, f"adapter {label}", path)
        _save_adapter(model, self.folder / path)
        own = [i for i, example in enumerate(self.data.test) if example.language == label]
        outcome = self.engine.evaluate(model, [self.test_set[i] for i in own])
        return AdapterRecord(path, label, self.seeds[path], outcome)

    def _train_language(self, model: Any, label: str, doing: str, name: str) -> None:
        own = [i for i, example in enumerate(self.data.train) if example.language == label]
        self.engine.train(
            model,
            [self.train_set[i] for i in own],
            steps=self.settings.adapter_steps,
            batch_size=self.settings.adapter_batch_size,
            learning_rate=self.settings.adapter_learning_rate,
            schedule=_ADAPTER_SCHEDULE,
            seed=self._record_seed(name),
            on_step=self.steps.named(doing),
        )

    def _record_seed(self, name: str) -> int:
        self.seeds[name] = self._seed(name)
        return self.seeds[name]

    def _seed(self, name: str) -> int:
        """A seed for one part, from the demo's seed and the part's name (32 bits)."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:4])


def _save_adapter(model: Any, path: Path) -> None:
    # Left to itself, PEFT asks the hub whether the base's vocabulary has changed.
    model.save_pretrained(path, save_embedding_layers=False)
    (path / "README.md").unlink(missing_ok=True)  # an empty model card
