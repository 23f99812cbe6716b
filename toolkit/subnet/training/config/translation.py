"""`[translation]`: instruction, generation, alignment and scores."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from subnet.training.config._part import Part


class TranslationConfig(Part):
    """`[translation]`: how translation is asked for and scored."""

    instruction: str = Field(
        default="",
        description="what is read, with {source} and any of {source_language}, {target_language}; "
        "default: a plain English one; empty: the source alone",
    )
    chat: bool = Field(default=False, description="put it into the tokenizer's chat template")
    max_new_tokens: int = Field(
        default=0,
        ge=0,
        description="most tokens to write, a language code and the end included; 0: "
        "data.max_length",
    )
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
