"""What a model writes: greedy or by beams, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from subnet.training.tasks._translation_batches import mask_of, pad
from subnet.training.tasks._translation_encoding import Start

if TYPE_CHECKING:
    from torch import Tensor

Ids = list[int]

#: Settings of generation that say which tokens must not be written.
_FORBIDDEN = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens")


def generate(
    model: Any,
    prompts: Sequence[Ids],
    starts: Sequence[Start],
    *,
    encoder_decoder: bool,
    padding: int,
    end: int,
    max_new_tokens: int,
    beams: int,
) -> list[Ids]:
    """What a model writes after each prompt: for one prompt, what `model.generate` returns.

    What its own generation settings ask for beside (sampling, penalties of repetition, least
    lengths) is set aside, since it would differ between models; tokens that they forbid stay
    forbidden, what they take for an end is one, and where they force a first token
    (`forced_bos_token_id`) and the direction forces none, it is forced.

    Args:
        model: In `eval()` mode; PEFT adapters take part.
        prompts: [n] tokens that it reads.
        starts: [n] how targets in its direction begin (encoder-decoder).
        encoder_decoder: Whether the prompt goes to an encoder.
        padding: Token that fills batches.
        end: Token that ends a target.
        max_new_tokens: Most tokens to write: what stands before the text (a language code, a start
            of text) and the end included.
        beams: Width of the search; 1 for greedy.

    Returns:
        [n] tokens written, up to and without the end; with those that stand before the text.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    from subnet.model import base_model

    inner: Any = base_model(model)
    own = inner.generation_config
    ends = {end, *_several(own.eos_token_id)}
    settings = GenerationConfig(
        do_sample=False,
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=padding,
        **{name: getattr(own, name, None) for name in _FORBIDDEN},
    )
    inputs: dict[str, Tensor] = {
        "input_ids": pad(prompts, padding, left=not encoder_decoder),
        "attention_mask": mask_of(prompts, left=not encoder_decoder),
    }
    device = next(inner.parameters()).device
    processors = LogitsProcessorList()
    if encoder_decoder:
        begun = [_decoder_start(inner, start) for start in starts]
        inputs["decoder_input_ids"] = torch.tensor(begun)[:, None]
        settings.decoder_start_token_id = begun
        first = _several(own.forced_bos_token_id)
        forced = torch.tensor([start.code or first for start in starts], device=device)
        processors.append(_Beginning(forced.long()))
    inputs = {name: values.to(device) for name, values in inputs.items()}
    # Given as an argument, settings would be filled up with the model's own.
    inner.generation_config = settings
    try:
        written = inner.generate(**inputs, logits_processor=processors)
    finally:
        inner.generation_config = own
    begin = inputs["decoder_input_ids" if encoder_decoder else "input_ids"].shape[1]
    return [_until(row, ends) for row in written[:, begin:].tolist()]


@dataclass(frozen=True, eq=False)
class _Beginning:
    """Forces the first tokens of each row, as `forced_bos_token_id` does one token of all rows.

    What is forced counts among the new tokens and in the length of a beam, as it does there.

    Attributes:
        tokens: [n, k] tokens; of no tokens nothing is forced.
    """

    tokens: Tensor

    def __call__(self, written: Tensor, scores: Tensor) -> Tensor:
        """Scores [n · beams, vocabulary] of what follows [n · beams, t] tokens, the start first."""
        import torch

        place = written.shape[1] - 1
        if place >= self.tokens.shape[1]:
            return scores
        beams = len(scores) // len(self.tokens)
        token = self.tokens[:, place].repeat_interleave(beams)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def _decoder_start(model: Any, start: Start) -> int:
    """The token that the decoder reads first.

    In training the decoder reads the labels one place later, behind a token that the model puts
    first: one of its configuration, or (mBART) the last label, which is the language.
    """
    import torch

    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        return int(shift(labels=torch.tensor([start.labels], device=model.device))[0, 0])
    return int(model.config.decoder_start_token_id)


def _several(tokens: int | Sequence[int] | None) -> list[int]:
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)


def _until(row: Ids, ends: set[int]) -> Ids:
    stop = next((place for place, token in enumerate(row) if token in ends), len(row))
    return row[:stop]
