"""`subnet train CONFIG`: what is trained on what, in one TOML file, every default explained."""

from __future__ import annotations

import difflib
import hashlib
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from subnet._toml import read_toml
from subnet.errors import SubnetError
from subnet.training._part import Part as _Part
from subnet.training._part import refuse as _refuse
from subnet.training.recipe import PRECISIONS, SCHEDULES, Recipe

#: How much the languages of a sequence share, from nothing to everything.
SHARINGS = ("none", "partial", "full")

Sharing = Literal["none", "partial", "full"]


class DataConfig(_Part):
    """`[data]`: examples in every language."""

    source: Literal["cldr", "files"] = Field(
        default="cldr",
        description="cldr: names of territories, languages, currencies, ... generated in any "
        "language; files: train.jsonl, test.jsonl (and validation.jsonl) or <language>.tsv in path",
    )
    path: str = Field(default="", description="folder of the files, relative to this file")
    kinds: tuple[str, ...] = Field(
        default=(),
        description="cldr: territory, language, script, currency, city, unit (the default but for "
        "translation), date, time, duration, money, list (of translation date, duration, money)",
    )
    max_concepts_per_kind: PositiveInt = Field(
        default=180, description="cldr: concepts kept of each kind, so that no kind dominates"
    )
    test_share: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="cldr: share of concepts that is tested; and of translations whose files have "
        "no split",
    )
    validation_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="of the same: share that neither training nor tests see",
    )
    max_train: int = Field(
        default=0, ge=0, description="most training examples of a language; 0: all"
    )
    max_test: int = Field(default=0, ge=0, description="most test examples of a language; 0: all")
    max_length: int = Field(default=160, ge=4, description="tokens beyond which an input is cut")

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.test_share + self.validation_share >= 1:
            both = self.test_share + self.validation_share
            expected = f"test_share and validation_share below 1 together, and not {both:g}"
            raise _refuse(self, ("test_share", "validation_share"), expected)
        return self


class ModelConfig(_Part):
    """`[model]`: where training starts."""

    name: str = Field(
        default="",
        description="a model folder (relative to this file) or a name on the hub; empty: a small "
        "byte-level model of the sizes below, from random weights",
    )
    kind: Literal["encoder-decoder", "decoder"] = Field(
        default="encoder-decoder", description="translation: of the small model"
    )
    layers: PositiveInt = Field(default=3, description="of the small model")
    width: PositiveInt = Field(default=96, description="hidden size of the small model")
    heads: PositiveInt = Field(
        default=4, description="attention heads of a layer of the small model"
    )
    feed_forward: PositiveInt = Field(
        default=256, description="feed-forward width of the small model"
    )
    initializer_range: PositiveFloat = Field(
        default=0.1, description="standard deviation of its weights; about 1/sqrt(width)"
    )

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        if self.width % self.heads:
            expected = f"a width that is a multiple of heads; {self.width} is none of {self.heads}"
            raise _refuse(self, ("heads", "width"), expected)
        return self


class RecipeConfig(_Part):
    """`[training]`: how long and how fast each language is trained."""

    steps: PositiveInt = Field(
        default=60,
        description="optimizer steps of a stage, on the task: translation.alignment adds its own",
    )
    batch_size: PositiveInt = Field(
        default=32, description="examples of a step, over all processes"
    )
    learning_rate: PositiveFloat = Field(default=3e-3, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"] = Field(
        default="constant", description=f"one of {', '.join(SCHEDULES)}"
    )
    warmup: float = Field(
        default=0.0, ge=0, lt=1, description="share of the steps in which the rate rises"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled decay of AdamW")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="gradients are clipped to it; 0: not"
    )
    optimizer: str = Field(
        default="adamw_torch_fused",
        description="as TrainingArguments.optim; its default, and the cheapest with masks",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description=f"one of {', '.join(PRECISIONS)}"
    )
    passes: PositiveInt = Field(
        default=1, description="passes that a step is divided among, for memory"
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time")

    @model_validator(mode="before")
    @classmethod
    def _no_warmup_of_a_constant_rate(cls, given: Any) -> Any:
        """A default of other schedules is not recorded where none happens."""
        if isinstance(given, Mapping) and "warmup" not in given:
            constant = given.get("schedule", cls.model_fields["schedule"].default) == "constant"
            return {**given, "warmup": 0.0} if constant else given
        return given

    @model_validator(mode="after")
    def _warmup_that_happens(self) -> Self:
        if self.warmup and self.schedule == "constant" and "warmup" in self.model_fields_set:
            expected = "schedule = 'constant_with_warmup' where warmup is above 0"
            raise _refuse(self, ("warmup",), expected)
        return self

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        from transformers.training_args import OptimizerNames

        known = [entry.value for entry in OptimizerNames]
        if value not in known:
            near = [name for name in known if name.startswith(value)][:3]
            near = near or difflib.get_close_matches(value, known, n=3, cutoff=0)
            raise PydanticCustomError("optimizer", f"one such as {', '.join(near)}")
        return value

    @property
    def recipe(self) -> Recipe:
        """As the functions of this room take it."""
        return Recipe(**self.model_dump())


class BaseRecipe(RecipeConfig):
    """`[base]`: training on all languages together before the sequence."""

    steps: int = Field(
        default=600,
        ge=0,
        description="optimizer steps, never of alignment; 0: the model is taken as it is",
    )
    batch_size: PositiveInt = Field(
        default=64,
        description="plain, pcgrad: examples of a step, over all processes; a step of meta has "
        "support + query of each language",
    )
    learning_rate: PositiveFloat = Field(default=1e-3, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"] = Field(
        default="linear", description=f"one of {', '.join(SCHEDULES)}"
    )
    warmup: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the steps in which the rate rises; none where schedule is constant",
    )
    method: Literal["plain", "meta", "pcgrad"] = Field(
        default="plain",
        description="plain: batches of all languages; meta: first-order MAML, an episode of each "
        "language in every step; pcgrad: conflicting gradients of languages are projected",
    )
    support: PositiveInt = Field(default=8, description="meta: examples of a support batch")
    query: PositiveInt = Field(default=8, description="meta: examples of a query batch")
    inner_steps: PositiveInt = Field(default=1, description="meta: SGD steps on the support batch")
    inner_rate: PositiveFloat = Field(default=1e-2, description="meta: their learning rate")
    conflict_every: int = Field(
        default=0,
        ge=0,
        description="steps after which the languages' gradients are compared, into conflict.csv; "
        "0: never",
    )

    @property
    def recipe(self) -> Recipe:
        """As the functions of this room take it."""
        return Recipe(**{name: getattr(self, name) for name in RecipeConfig.model_fields})


class AdaptationConfig(_Part):
    """`[adaptation]`: which parameters learn, and which of them the languages share."""

    tuning: Literal["lora", "full"] = Field(
        default="lora", description="lora: low-rank factors; full: all weights"
    )
    sharing: Sharing | tuple[Sharing, ...] = Field(
        default="full",
        description="none: parameters of its own for each language; full: one set through the "
        "whole sequence; partial: as below. A list trains one after the other",
    )
    partial: Literal["shared_a", "lower_layers"] = Field(
        default="shared_a",
        description="shared_a: LoRA's A is shared, B each language's own; lower_layers: layers up "
        "to shared_layers are shared, the others each language's own",
    )
    shared_layers: float = Field(
        default=0.5, gt=0, lt=1, description="share of the layers that lower_layers shares"
    )
    rank: PositiveInt | tuple[PositiveInt, ...] = Field(
        default=8, description="rank r of LoRA; a list trains one after the other"
    )
    alpha_over_rank: PositiveFloat = Field(
        default=2.0, description="scale of LoRA's update, the same at every rank"
    )
    targets: str = Field(
        default="",
        description="pattern of the modules that get LoRA; empty: all linear layers but heads",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of LoRA")
    head: Literal["frozen", "shared", "per_language"] = Field(
        default="frozen",
        description="the classification head: frozen after the base, trained by all in turn, or "
        "each language's own. A shared head is sharing, too",
    )

    @property
    def sharings(self) -> tuple[Sharing, ...]:
        """All that are asked for."""
        return self.sharing if isinstance(self.sharing, tuple) else (self.sharing,)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All that are asked for; 0 where all weights are trained."""
        if self.tuning == "full":
            return (0,)
        return self.rank if isinstance(self.rank, tuple) else (self.rank,)


class SequenceConfig(_Part):
    """`[sequence]`: in which orders the languages are learnt."""

    orders: PositiveInt | tuple[tuple[str, ...], ...] = Field(
        default=1, description="how many random orders, or the orders themselves"
    )
    seeds: tuple[int, ...] = Field(
        default=(0,),
        min_length=1,
        description="of adapters and batches; every order is run with each",
    )
    joint: bool = Field(
        default=False,
        description="also train on all languages at once, for as many steps as the sequence: the "
        "reference for intransigence",
    )
    adapters: bool = Field(
        default=False,
        description="also train an adapter for each language from the base, so that their overlap "
        "can be related to what the sequence forgot; none has them anyhow",
    )
    replicates: int = Field(
        default=0,
        ge=0,
        description="with adapters: languages, the first of the first order, that get a second one "
        "from another seed, in runs/replicate/. What two of one language share is the ceiling of "
        "every overlap",
    )

    @field_validator("orders", mode="before")
    @classmethod
    def _a_number_or_orders(cls, value: Any) -> Any:
        is_list = isinstance(value, list | tuple) and all(
            isinstance(order, list | tuple) and all(isinstance(name, str) for name in order)
            for order in value
        )
        if isinstance(value, bool) or not (is_list or isinstance(value, int)):
            raise PydanticCustomError("orders", "a number, or a list of lists of languages")
        return value

    @model_validator(mode="after")
    def _adapters_to_replicate(self) -> Self:
        if self.replicates and not self.adapters:
            raise _refuse(self, ("replicates",), "adapters = true with replicates")
        return self


class SubnetworksConfig(_Part):
    """`[subnetworks]`: training that moves only a subnetwork of each language."""

    method: Literal["none", "static", "dynamic", "sparse"] = Field(
        default="none",
        description="static: the masks of a directory; dynamic: found anew every some steps, at "
        "constant size; sparse: full training, the largest changes kept, those trained again "
        "(LT-SFT, tuning = full)",
    )
    masks: str = Field(
        default="",
        description="static: a directory of masks, as subnet extract writes it, relative to this "
        "file",
    )
    density: float = Field(
        default=0.05, gt=0, le=1, description="dynamic, sparse: share of the weights that may move"
    )
    forward: bool = Field(
        default=False, description="static: the forward pass of training sees zeros outside"
    )
    every: PositiveInt = Field(
        default=10, description="dynamic: steps, of either kind, between two masks"
    )
    score: Literal["taylor", "fisher"] = Field(
        default="taylor", description="dynamic: |g w| or g^2 of the training's own gradients"
    )
    smoothing: float = Field(
        default=0.9, ge=0, lt=1, description="dynamic: of the average of scores over steps"
    )

    @model_validator(mode="after")
    def _masks_for_static(self) -> SubnetworksConfig:
        if (self.method == "static") != bool(self.masks):
            expected = "masks with method = 'static', and with it only"
            raise _refuse(self, ("masks", "method"), expected)
        return self


class TranslationConfig(_Part):
    """`[translation]`: how translation is asked for and scored."""

    instruction: str = Field(
        default="",
        description="what is read, with {source} and any of {source_language}, {target_language}; "
        "default: a plain English one; empty: the source alone",
    )
    chat: bool = Field(default=False, description="put it into the tokenizer's chat template")
    max_new_tokens: int = Field(default=0, ge=0, description="tokens to write; 0: data.max_length")
    beams: PositiveInt = Field(default=1, description="width of beam search; 1: greedy")
    alignment: bool = Field(
        default=False,
        description="after each step of the task comes one that aligns parallel sentences: as many "
        "in addition, the schedule of learning rates runs over both; [base] has none",
    )
    temperature: PositiveFloat = Field(default=0.1, description="of the alignment's softmax")
    also_tested: tuple[str, ...] = Field(
        default=(), description="directions that are tested and not trained"
    )
    identify_among: tuple[str, ...] = Field(
        default=(),
        description="languages that py3langid chooses among for language_accuracy; empty: all it "
        "knows. Fewer are easier to tell apart, and an output in any other counts as one of them",
    )


class EvaluationConfig(_Part):
    """`[evaluation]`: every language after every stage."""

    batch_size: PositiveInt = Field(default=256, description="examples of a pass without gradients")
    transfer: bool = Field(
        default=True,
        description="where languages have parameters of their own, test each one's on all "
        "languages, too (transfer.csv)",
    )


class OutputConfig(_Part):
    """`[output]`: what is kept."""

    stages: Literal["all", "last", "none"] = Field(
        default="all", description="whose weights are delivered; scores are of all stages anyhow"
    )
    save_every: int = Field(
        default=0,
        ge=0,
        description="steps within a stage, of either kind, after which it can go on; 0: stages are "
        "whole",
    )


class TrainingConfig(_Part):
    """One file of `subnet train`.

    Attributes:
        task: What is learnt.
        languages: Their labels, `default` (twelve) or `all` (the 52 of MASSIVE).
        seed: Of the data, the base and the orders.
    """

    format: Literal[1] = Field(default=1, description="of this file")
    task: Literal["sequence-classification", "token-classification", "translation"] = Field(
        default="sequence-classification",
        description="sequence-classification, token-classification (slot filling) or translation",
    )
    languages: Literal["default", "all"] | tuple[str, ...] = Field(
        default="default",
        description="codes, or default (twelve), or all (the 52 of MASSIVE); of translation "
        "directions such as de>en, or default (into and out of English)",
    )
    seed: int = Field(default=0, ge=0, description="of the data, the base and the orders")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    base: BaseRecipe = BaseRecipe()
    adaptation: AdaptationConfig = AdaptationConfig()
    sequence: SequenceConfig = SequenceConfig()
    training: RecipeConfig = RecipeConfig()
    subnetworks: SubnetworksConfig = SubnetworksConfig()
    translation: TranslationConfig = TranslationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()

    @field_validator("languages", mode="before")
    @classmethod
    def _a_list_of_languages(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("default", "all"):
            raise PydanticCustomError("languages", "a list of codes, or 'default' or 'all'")
        return value

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the resolved settings: a run goes on only where they are the same."""
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_config(path: str | Path) -> TrainingConfig:
    """Settings of a run.

    Raises:
        MissingInputError: There is no such file.
        FileFormatError: The file is not TOML.
        InputError: A key is unknown (the nearest known one is named), or a value is of the wrong
            type or out of range.
    """
    try:
        return read_toml(TrainingConfig, Path(path))
    except SubnetError as error:
        if error.fix:
            raise
        raise type(error)(
            error.found,
            path=error.path,
            expected=error.expected or "a TOML file",
            fix="subnet train --explain prints one with every key",
        ) from error


def explain() -> str:
    """A configuration with every default and what it means: a file that `subnet train` takes."""
    return "\n".join(_lines(TrainingConfig(), "")).strip() + "\n"


def _lines(part: BaseModel, name: str) -> Iterator[str]:
    """TOML of a part: its own keys first, then its tables."""
    fields = type(part).model_fields
    tables = []
    if name:
        yield ""
        yield f"# {(type(part).__doc__ or '').strip().splitlines()[0].partition(': ')[2]}"
        yield f"[{name}]"
    for key, field in fields.items():
        value = getattr(part, key)
        if isinstance(value, BaseModel):
            tables.append((key, value))
        else:
            yield from textwrap.wrap(
                str(field.description), 100, initial_indent="# ", subsequent_indent="# "
            )
            yield f"{key} = {_toml(value)}"
    for key, value in tables:
        yield from _lines(value, key)


def _toml(value: Any) -> str:
    """A value in TOML, which writes strings, numbers, truth values and lists as JSON does."""
    return json.dumps(value)
