"""The task of a configuration: how its examples are fed and scored."""

from __future__ import annotations

import dataclasses
from typing import Any

from subnet.training.config import TrainingConfig
from subnet.training.corpora import Corpus
from subnet.training.tasks import SequenceClassification, Task, TokenClassification, Translation
from subnet.training.tasks.translation import INSTRUCTION


def build_task(config: TrainingConfig, corpus: Corpus, model: Any, tokenizer: Any) -> Task:
    """How examples are fed and scored."""
    limit = config.data.max_length
    if config.task == "sequence-classification":
        return SequenceClassification(tokenizer, corpus.labels, limit, corpus.test)
    if config.task == "token-classification":
        return TokenClassification(tokenizer, corpus.labels, limit, corpus.test)
    settings = config.translation
    written = {"": None, "default": INSTRUCTION}
    return Translation.of(
        model,
        tokenizer,
        instruction=written.get(settings.instruction, settings.instruction),
        chat=settings.chat,
        max_length=limit,
        max_new_tokens=settings.max_new_tokens or None,
        beams=settings.beams,
        identify_among=settings.identify_among or None,
        align=settings.alignment,
    )


def unaligned(task: Task) -> Task:
    """The task alone, without sentences to align."""
    return dataclasses.replace(task, align=False) if isinstance(task, Translation) else task
