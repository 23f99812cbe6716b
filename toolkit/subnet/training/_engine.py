"""The two things the demo asks of Hugging Face `Trainer`: train for some steps, and predict."""

from __future__ import annotations

import contextlib
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from subnet.training.data import Example

#: Optimizer and schedules, as `TrainingArguments` calls them.
OPTIMIZER = "adamw_torch"

_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Outcome:
    """Results per test example, aligned with the examples that were given.

    Attributes:
        loss: [n] cross-entropy in nats.
        correct: [n] 1.0 where the predicted kind is the true one.
        predicted: [n] index of the predicted kind.
        expected: [n] index of the true kind.
    """

    loss: NDArray[np.float64]
    correct: NDArray[np.float64]
    predicted: NDArray[np.int64]
    expected: NDArray[np.int64]

    def __getitem__(self, part: Any) -> Outcome:
        return Outcome(
            self.loss[part], self.correct[part], self.predicted[part], self.expected[part]
        )

    def summary(self) -> list[tuple[str, float, float | None]]:
        """(metric, value, standard error) of loss, accuracy and macro-averaged F1.

        The standard error of a mean over items is s/√n; macro-F1 is no such mean and has none.
        """
        n = len(self.loss)
        labels = np.unique(self.expected)
        f1 = f1_score(
            self.expected, self.predicted, labels=labels, average="macro", zero_division=0.0
        )
        return [
            ("loss", float(self.loss.mean()), float(self.loss.std(ddof=1) / n**0.5)),
            ("accuracy", float(self.correct.mean()), float(self.correct.std(ddof=1) / n**0.5)),
            ("macro_f1", float(f1), None),
        ]


class Engine:
    """Trains and evaluates models on encoded examples.

    Args:
        tokenizer: Turns text into ids.
        kinds: The labels, in the order of the model's outputs.
        max_length: Tokens beyond which an input is cut.
    """

    def __init__(self, tokenizer: Any, kinds: Sequence[str], max_length: int) -> None:
        from transformers import DataCollatorWithPadding

        self._tokenizer = tokenizer
        self._index = {kind: index for index, kind in enumerate(kinds)}
        self._max_length = max_length
        self._collator = DataCollatorWithPadding(tokenizer)

    def encode(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Examples as the model takes them, in the same order."""
        ids = self._tokenizer(
            [example.text for example in examples], truncation=True, max_length=self._max_length
        )["input_ids"]
        return [
            {"input_ids": tokens, "labels": self._index[example.label]}
            for tokens, example in zip(ids, examples, strict=True)
        ]

    def train(
        self,
        model: Any,
        examples: Sequence[dict[str, Any]],
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        schedule: str,
        warmup_steps: int = 0,
        seed: int,
        on_step: Callable[[], None],
    ) -> None:
        """Train a model in place for a number of optimizer steps, with a fresh optimizer.

        Batches hold texts of similar length, which spares most of the padding.
        """
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self._trainer(
                model,
                scratch,
                on_step,
                train_dataset=list(examples),
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                train_sampling_strategy="group_by_length",
                learning_rate=learning_rate,
                lr_scheduler_type=schedule,
                warmup_steps=warmup_steps,
                optim=OPTIMIZER,
                seed=seed,
            )
            trainer.train()

    def evaluate(self, model: Any, examples: Sequence[dict[str, Any]]) -> Outcome:
        """Results on every example in one pass without gradients; order as given."""
        by_length = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self._trainer(model, scratch, None)
            output = trainer.predict([examples[i] for i in by_length])
        back = np.argsort(by_length)
        logits = np.asarray(output.predictions, dtype=np.float64)[back]  # [n, kinds]
        expected = np.asarray([example["labels"] for example in examples])
        top = logits.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        predicted = logits.argmax(axis=1)
        return Outcome(
            loss=log_sum - logits[np.arange(len(expected)), expected],
            correct=(predicted == expected).astype(np.float64),
            predicted=predicted,
            expected=expected,
        )

    def _trainer(
        self,
        model: Any,
        scratch: str,
        on_step: Callable[[], None] | None,
        train_dataset: list[dict[str, Any]] | None = None,
        **arguments: Any,
    ) -> Any:
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        class Progress(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if on_step is not None:
                    on_step()

        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                use_cpu=True,  # so small a model is no faster elsewhere, and the same everywhere
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                per_device_eval_batch_size=_EVALUATION_BATCH,
                label_names=["labels"],
                **arguments,
            ),
            train_dataset=train_dataset,
            data_collator=self._collator,
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the libraries quiet meanwhile, and the caller's random numbers as they were."""
    import torch
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT asks by the old name whether activations are recomputed; no concern of the user.
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
