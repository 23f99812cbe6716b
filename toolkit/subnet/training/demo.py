"""The embedded experiment: a small multilingual model, an adapter per language, and a sequence.

A byte-level encoder learns from all languages together to tell what kind of thing a term names (a
territory, a currency, …). Then (a) one LoRA per language starts from that base, and (b) one LoRA is
carried through the languages in a random order, with every language tested after every stage. The
classification head is trained with the base and frozen afterwards, so that languages share nothing
in the sequence but the LoRA. It is a training as `subnet train` does it, of fixed settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from subnet.errors import InputError
from subnet.training._progress import Progress
from subnet.training.config import (
    AdaptationConfig,
    BaseRecipe,
    DataConfig,
    ModelConfig,
    RecipeConfig,
    SequenceConfig,
    TrainingConfig,
)
from subnet.training.corpora import load_corpus
from subnet.training.languages import resolve_languages
from subnet.training.run import carry_out
from subnet.training.settings import DemoSettings


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
    `train.jsonl`, `validation.jsonl`, `test.jsonl`, `languages.csv`, `subnet.toml`, and, once all
    is done, `run.json` with every seed and setting. A demo that was stopped goes on where it was
    when it is called again with the same arguments; one that is complete is left as it is. The same
    seed, settings, library versions and number of threads give the same bytes on a CPU. On two
    cores the twelve default languages take two to three minutes, the 52 of `"all"` much longer.

    Args:
        directory: Where to write.
        languages: `"default"` (twelve), `"all"` (the 52 of MASSIVE), or labels in any usual form.
        seed: Seed of the split, of the order of languages, and of all training; 0 or more.
        progress: True for a bar on the terminal, or a function called with what is going on, the
            optimizer steps done, and those in all.
        overwrite: Train again what is complete, and replace a demo of other arguments, or any
            other directory with our `run.json`, once the new one has finished a stage.
        settings: Sizes and schedules.

    Returns:
        The directory.

    Raises:
        UnknownLanguageError: A label names no language, or none that CLDR describes.
        OutputError: The directory holds something else, or cannot be written.
        InputError: The languages have too little in common, or the seed is below 0.

    Example:
        >>> run_demo("demo", languages=["en", "de", "ru"], progress=True)  # doctest: +SKIP
        PosixPath('demo')
    """
    if seed < 0:
        raise InputError(f"seed is {seed}", expected="0 or more")
    target = Path(directory)
    labels = [language.label for language in resolve_languages(languages)]
    config = _configuration(settings or DemoSettings(), labels, seed)
    return carry_out(config, target, progress, overwrite, Path(), anew=overwrite).path


def _configuration(settings: DemoSettings, labels: Sequence[str], seed: int) -> TrainingConfig:
    """The demo as `subnet train` takes it."""
    config = TrainingConfig(
        languages=tuple(labels),
        seed=seed,
        data=DataConfig(
            kinds=settings.kinds,
            max_concepts_per_kind=settings.max_concepts_per_kind,
            test_share=settings.test_share,
            validation_share=settings.validation_share,
            max_length=settings.max_length,
        ),
        model=ModelConfig(
            layers=settings.layers,
            width=settings.width,
            heads=settings.heads,
            feed_forward=settings.feed_forward,
            initializer_range=settings.initializer_range,
        ),
        adaptation=AdaptationConfig(
            rank=settings.rank, alpha_over_rank=settings.alpha / settings.rank
        ),
        sequence=SequenceConfig(adapters=True, replicates=min(settings.replicates, len(labels))),
        training=RecipeConfig(
            steps=settings.adapter_steps,
            batch_size=settings.adapter_batch_size,
            learning_rate=settings.adapter_learning_rate,
            schedule="constant",
        ),
    )
    examples = len(load_corpus(config, Path()).train)
    passes = settings.base_epochs * examples / settings.base_batch_size
    base = BaseRecipe(
        steps=max(settings.base_steps, math.ceil(passes)),
        batch_size=settings.base_batch_size,
        learning_rate=settings.base_learning_rate,
        schedule="linear",
        warmup=settings.base_warmup,
    )
    return config.model_copy(update={"base": base})
