"""Whether an analysis computes influence unasked, and what that gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from subnet.analysis.attribution import AttributionSettings, attribute_checkpoint
from subnet.analysis.trial import LIMIT, _n_weights
from subnet.errors import InputError, MissingInputError
from subnet.report import Missing

if TYPE_CHECKING:
    from subnet.analysis.attribution_result import Attribution
    from subnet.checkpoint import Checkpoint

#: Examples of a language that influence is computed between.
N_TRAIN, N_TEST = 64, 32
#: Backward takes two forward passes' operations.
_PASSES = 3
#: Bytes of gradients of test examples that are kept at once.
_MEMORY = 2 << 30


@dataclass(frozen=True)
class InfluenceTrial:
    """Influence between languages, or what it wants.

    Attributes:
        attribution: What it came to.
        missing: Why it was not computed.
    """

    attribution: Attribution | None = None
    missing: tuple[Missing, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know."""
        return () if self.attribution is None else self.attribution.warnings


def find_influence(checkpoint: Checkpoint, *, wanted: bool | None, seed: int) -> InfluenceTrial:
    """TracIn over the stages of sequential training, as far as that is affordable.

    Args:
        checkpoint: With a base, stages with learning rates, `train.jsonl` and `test.jsonl`.
        wanted: True to compute it whatever it costs, False not to, None where it is cheap.
        seed: Seed of the draw of examples.

    Raises:
        SubnetError: It was asked for and is not possible.
    """
    if wanted is False:
        return InfluenceTrial()
    capability = next(entry for entry in checkpoint.capabilities if entry.name == "influence")
    stages = any(entry.kind == "stage" and entry.language for entry in checkpoint.entries)
    if not capability.possible or not stages:
        if wanted:
            raise MissingInputError(
                "influence over the stages of training cannot be computed",
                path=checkpoint.path,
                expected="; ".join(capability.missing) or "stages/<NN>-<language>/ with weights",
                fix=None if stages else "subnet attribute takes adapters of languages, too",
            )
        lacking = "; ".join(capability.missing)
        if capability.possible:
            return _missing(
                "influence is computed over stages of training, and there are none",
                f"subnet attribute takes the languages' own checkpoints ({lacking})",
            )
        return _missing("influence was not computed", f"add {lacking}")
    minutes = influence_cost(checkpoint) / LIMIT
    if wanted is None and minutes > 1:
        return _missing(
            f"computing influence takes about {minutes:.0f} minutes", "ask for it with --influence"
        )
    settings = AttributionSettings(
        checkpoints="stages", n_train=N_TRAIN, n_test=N_TEST, batch_size=32, seed=seed,
        memory=_MEMORY, half="a",  # effects are taken on half b of the items, where there are any
    )  # fmt: skip
    try:
        return InfluenceTrial(attribute_checkpoint(checkpoint, settings))
    except (InputError, MissingInputError) as error:
        if wanted:
            raise
        return _missing(
            f"influence could not be computed ({error.found})", error.fix or "see the data"
        )


def influence_cost(checkpoint: Checkpoint) -> float:
    """Forward passes of single examples times weights; a backward pass counts for two.

    Each training example is looked at once, at the checkpoint of its stage, each test example at
    every checkpoint.
    """
    stages = [entry for entry in checkpoint.entries if entry.kind == "stage" and entry.stage]
    n_languages: dict[str, int] = {}
    for split, most in (("train", N_TRAIN), ("test", N_TEST)):
        counts: dict[str, int] = {}
        for example in checkpoint.examples(split):
            counts[example["language"]] = counts.get(example["language"], 0) + 1
        n_languages[split] = sum(min(count, most) for count in counts.values())
    runs = len({entry.run for entry in stages})
    looked = runs * n_languages["train"] + len(stages) * n_languages["test"]
    return float(_PASSES * looked * _n_weights(checkpoint))


def _missing(reason: str, fix: str) -> InfluenceTrial:
    return InfluenceTrial(missing=(Missing("influence", reason, fix),))
