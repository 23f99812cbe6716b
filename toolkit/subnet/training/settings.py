"""What the demo's outcome depends on, apart from languages and seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from subnet.errors import InputError
from subnet.training.terms import TERM_KINDS
from subnet.training.tokenizer import ADDED_TOKENS


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and schedules of the demo.

    Attributes:
        kinds: The labels: kinds of terms (and phrases) drawn from CLDR.
        max_concepts_per_kind: Concepts kept of each kind, so that no kind dominates.
        test_share: Share of the concepts that is tested; the same concepts in every language.
        validation_share: Share that neither training nor tests see: subnetworks are searched on it.
        max_length: Tokens (bytes and two special ones) of an input; longer ones are cut.
        width: Hidden size of the encoder.
        layers: Encoder layers.
        heads: Attention heads per layer.
        feed_forward: Width of the feed-forward layers.
        initializer_range: Standard deviation of the initial weights. BERT's own 0.02 is meant for
            width 768; about 1/√width lets so narrow a model learn in a third of the steps.
        base_steps: Fewest optimizer steps of the base model on all languages together.
        base_epochs: Fewest passes of the base model over the data of all languages; what many
            languages need more steps for.
        base_batch_size: Examples per step of the base model.
        base_learning_rate: Peak of its linear decay.
        base_warmup: Share of the base steps in which the rate rises to that peak.
        rank: LoRA rank r.
        alpha: LoRA alpha; the update is scaled by alpha / r.
        adapter_steps: Optimizer steps of one adapter, and of one stage of the sequence.
        adapter_batch_size: Examples per step of an adapter.
        adapter_learning_rate: Rate of an adapter, constant, so that a stage's summed rate is
            simply rate times steps.
        replicates: Languages, the first of the order, that get a second adapter from another seed:
            the ceiling of every overlap. All of them where there are fewer.
    """

    kinds: tuple[str, ...] = TERM_KINDS
    max_concepts_per_kind: int = 180
    test_share: float = 0.3
    validation_share: float = 0.1
    max_length: int = 160
    width: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    initializer_range: float = 0.1
    base_steps: int = 400
    base_epochs: float = 3.7
    base_batch_size: int = 64
    base_learning_rate: float = 1e-3
    base_warmup: float = 0.1
    rank: int = 8
    alpha: int = 16
    adapter_steps: int = 60
    adapter_batch_size: int = 32
    adapter_learning_rate: float = 3e-3
    replicates: int = 3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "replicates":
                if value < 0:
                    raise InputError(f"replicates is {value}", expected="0 or more")
            elif field.name != "kinds" and not value > 0:
                raise InputError(f"{field.name} is {value}", expected="a number above 0")
        for name in ("test_share", "validation_share", "base_warmup"):
            if not getattr(self, name) < 1:
                raise InputError(
                    f"{name} is {getattr(self, name)}", expected="a share between 0 and 1"
                )
        if not self.test_share + self.validation_share < 1:
            raise InputError(
                f"test_share is {self.test_share} and validation_share {self.validation_share}",
                expected="less than 1 together, so that something is left to train on",
            )
        if not self.max_length > ADDED_TOKENS + 1:
            raise InputError(
                f"max_length is {self.max_length}", expected=f"{ADDED_TOKENS + 2} or more"
            )
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} cannot be divided among {self.heads} heads",
                expected="a width that is a multiple of heads",
            )
