"""Which parameters the languages of a sequence share, and which are each language's own.

Whatever the regime, there is one model. Parameters that are shared stay in it from stage to stage;
those that are a language's own are put into it when that language is trained or tested:

- `full`: nothing is a language's own;
- `none`: all that is trained is;
- `partial`: LoRA's B is and its A is not (`shared_a`), or the upper layers are and the lower ones
  are not (`lower_layers`), in both halves of an encoder-decoder. With the upper layers goes what
  stands on them and is trained: a pooler, the final norm of either half, what writes tokens where
  its weights are not the embeddings'. Embeddings, their norms and position biases stay with the
  lower ones. The third reading, one shared LoRA of rank r over a frozen backbone, is
  `full` with LoRA: the rank is the amount that is shared.

A language that was not trained yet has the values before training: its B is zero, so that the base
answers for it as far as the shared parameters allow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subnet.errors import InputError
from subnet.training._models import ADAPTER, above_blocks, heads_of, is_of, layer_of
from subnet.training.config import AdaptationConfig, Sharing

if TYPE_CHECKING:
    from torch import Tensor

#: Who answers for a language before it is trained.
UNTRAINED = "untrained"


def own_parameters(model: Any, adaptation: AdaptationConfig, sharing: Sharing) -> list[str]:
    """Names of the trained parameters that are each language's own.

    Raises:
        InputError: The regime does not apply to what is trained.
    """
    from peft import PeftModel

    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    heads = heads_of(inner)
    of_head = {name for name in trained if is_of(name, heads)}
    rest = [name for name in trained if name not in of_head]
    if sharing == "none":
        own = set(rest)
    elif sharing == "full":
        own = set()
    elif adaptation.partial == "shared_a":
        own = {name for name in rest if ".lora_B." in name or ".lora_embedding_B." in name}
        if not own:
            raise InputError(
                "adaptation.partial is 'shared_a' and all weights are trained",
                expected="tuning = 'lora', whose A is shared",
                fix="or partial = 'lower_layers'",
            )
    else:
        numbers = {number for name in rest if (number := layer_of(name)) is not None}
        lower = math.ceil(adaptation.shared_layers * len(numbers))
        if not 0 < lower < len(numbers):
            raise InputError(
                f"adaptation.shared_layers is {adaptation.shared_layers} of {len(numbers)} layers, "
                f"which is {lower}",
                expected="layers on both sides",
            )
        upper = set(sorted(numbers)[lower:])
        own = {name for name in rest if layer_of(name) in upper} | above_blocks(model, rest)
    if adaptation.head == "per_language":
        own |= of_head
    return [name for name in trained if name in own]


class Parameters:
    """The trained parameters of one model, shared and each language's own.

    Args:
        model: Its parameters that require gradients are what is trained.
        own: Names of those that are each language's own.
    """

    def __init__(self, model: Any, own: list[str]) -> None:
        self.model = model
        self._live: dict[str, Tensor] = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        self._own = list(own)
        self._kept: dict[str, dict[str, Tensor]] = {UNTRAINED: self._copy(self._own)}

    @property
    def own(self) -> list[str]:
        """Names of the parameters that are each language's own."""
        return list(self._own)

    @property
    def shared(self) -> list[str]:
        """Names of the others that are trained."""
        return [name for name in self._live if name not in set(self._own)]

    def serving(self, language: str) -> str:
        """Whose parameters answer for a language: its own where it was trained."""
        return language if language in self._kept else UNTRAINED

    def put(self, whose: str) -> None:
        """Put a language's own parameters (or the untrained ones) into the model."""
        self._write(self._kept[whose])

    def keep(self, language: str) -> None:
        """Take what is in the model for the language's own parameters."""
        self._kept[language] = self._copy(self._own)

    def begin(self, seed: int) -> None:
        """A language's own parameters before its training.

        LoRA's factors are drawn anew from a seed of this language: adapters that share their
        initialisation look alike whatever they were trained on. The others start from the base.
        """
        from peft.tuners.lora import LoraLayer
        from transformers import set_seed

        self.put(UNTRAINED)
        if not any(".lora_A." in name for name in self._own):
            return  # B alone starts from zero
        before = self._copy(list(self._live))
        set_seed(seed)
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                layer.reset_lora_parameters(layer.active_adapters[0], init_lora_weights=True)
        drawn = {name for name in self._own if ".lora_" in name}
        self._write({name: value for name, value in before.items() if name not in drawn})

    def state(self, whose: str | None = None) -> Mapping[str, Tensor]:
        """Copies of the shared parameters, or of a language's own."""
        return self._copy(self.shared) if whose is None else dict(self._kept[whose])

    def load(self, state: Mapping[str, Tensor], whose: str | None = None) -> None:
        """Take values that an earlier run wrote for the shared parameters, or a language's own.

        Raises:
            InputError: They are not of this model.
        """
        expected = set(self.shared if whose is None else self._own)
        shapes = all(
            name in expected and state[name].shape == self._live[name].shape for name in state
        )
        if set(state) != expected or not shapes:
            raise InputError(
                "what an earlier run left behind is of another model",
                fix="start again in another directory",
            )
        if whose is None:
            self._write(state)
        else:
            self._kept[whose] = {name: value.clone() for name, value in state.items()}

    def _copy(self, names: list[str]) -> dict[str, Tensor]:
        # Not on a GPU, which would hold those of all languages.
        return {name: self._live[name].detach().to("cpu", copy=True) for name in names}

    def _write(self, values: Mapping[str, Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, value in values.items():
                self._live[name].copy_(value)


def save_head(values: Mapping[str, Tensor], path: Path) -> None:
    """Write a language's own head under the names that the base's parameters have.

    A model that was delivered takes it by `load_state_dict(..., strict=False)`.
    """
    from subnet.training._stages import save_tensors

    save_tensors(
        {
            name.removeprefix("base_model.model.").replace(f".modules_to_save.{ADAPTER}", ""): value
            for name, value in values.items()
        },
        path,
    )


def save_model(model: Any, path: Path) -> None:
    """Write an adapter, or a whole model, as their libraries do."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        settings = model.peft_config[ADAPTER]
        trained_on = settings.base_model_name_or_path
        settings.base_model_name_or_path = "base"  # beside the adapters, wherever that is
        # Left to itself, PEFT asks the hub whether the base's vocabulary has changed.
        model.save_pretrained(path, save_embedding_layers=False)
        settings.base_model_name_or_path = trained_on
        (path / "README.md").unlink(missing_ok=True)  # an empty model card
    else:
        model.save_pretrained(path)
