"""Do languages pull the weights in opposite directions: cosine of their gradients, over training.

For languages a and b, cos = ⟨g_a, g_b⟩ / (‖g_a‖·‖g_b‖), g the gradient of the mean loss of a
language's examples by the trainable parameters of the model, a layer or a module. Below zero a step
for one language is to first order a step against the other (Yu et al. 2020, arXiv 2001.06782).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import TrainerCallback

from subnet import _files
from subnet._tables import MAIN_RUN
from subnet.checkpoint import describe_parameter
from subnet.errors import InputError, MissingInputError
from subnet.model import evaluation_mode
from subnet.training.subnetworks._by_language import Collate, Features, check_languages
from subnet.training.subnetworks._targets import base_names

if TYPE_CHECKING:
    import pandas as pd

#: At which levels gradients are compared.
LEVELS = ("all", "layer", "module")
COLUMNS = (
    "run", "step", "language_a", "language_b", "level", "module", "cosine", "norm_a", "norm_b",
    "reason",
)  # fmt: skip
#: What the recorder writes into a checkpoint of Trainer's.
SAVED = "gradient_conflict.json"


def gradient_conflict(
    model: nn.Module,
    features: Mapping[str, Features],
    collate: Collate,
    *,
    batch_size: int = 32,
    levels: Sequence[str] = LEVELS,
    run: str = MAIN_RUN,
    step: int = 0,
    memory: int = 4 << 30,
    allow_undefined: bool = False,
) -> pd.DataFrame:
    """Cosine of the gradients of every pair of languages, at the weights as they are.

    In `eval()` mode, without dropout; neither weights, `.grad` nor modes are changed.

    Args:
        model: With a loss of its own when it is given labels.
        features: Language to its examples, best ones that are not trained on.
        collate: Makes a batch of examples.
        batch_size: Examples of a pass. The loss of a language is the mean of its batches' losses,
            weighted by examples: a mean over examples, for a loss that is a mean over them.
        levels: Some of `LEVELS`.
        run: For the table.
        step: For the table.
        memory: Bytes that the gradients of all languages may take; where they are more, passes are
            repeated for a part of the parameters at a time.
        allow_undefined: Whether a gradient that is not finite leaves its cosines undefined; it is
            refused otherwise.

    Returns:
        One row per pair and part: run, step, language_a, language_b, level, module (`""` for all),
        cosine, norm_a, norm_b, reason. The cosine with a gradient of zero is undefined, and so are
        norm and cosine of one that is not finite.

    Raises:
        InputError: There are fewer than two languages or one without examples, a level is unknown,
            nothing requires a gradient, or a gradient is not finite.
    """
    import pandas as pd

    check_languages(features, 1, "a gradient")
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise InputError(
            f"level {unknown[0]!r} is unknown" if unknown else "no level is asked for",
            expected=f"some of {', '.join(LEVELS)}",
        )
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}", expected="1 or more")
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not live:
        raise InputError("no parameter of the model requires a gradient", expected="some")
    products: dict[str, NDArray[np.float64]] = {}
    with evaluation_mode(model):
        for part in _portions(live, memory // len(features)):
            gradients = [
                _gradient(model, part, examples, collate, batch_size)
                for examples in features.values()
            ]
            for name in part:
                stacked = torch.stack([each[name].reshape(-1) for each in gradients]).double()
                products[name] = (stacked @ stacked.T).cpu().numpy()
    languages = list(features)
    for name, product in products.items():
        if not (allow_undefined or np.isfinite(product).all()):
            bad = int(np.flatnonzero(~np.isfinite(np.diag(product)))[0])
            raise InputError(
                f"the gradient of {languages[bad]} by {name} is not finite", expected="numbers"
            )
    known = {**{name: _inside(name) for name in live}, **base_names(model)}
    rows = []
    for (level, module), names in _groups({name: known[name] for name in live}, levels).items():
        with np.errstate(invalid="ignore"):
            total = np.sum([products[name] for name in names], axis=0)  # [l, l]
        squares = np.diag(total)
        norms = np.sqrt(np.where(np.isfinite(squares), squares, math.nan))
        for a, b in itertools.combinations(range(len(languages)), 2):
            reason = _why_undefined(norms[a], norms[b])
            cosine = math.nan if reason else total[a, b] / (norms[a] * norms[b])
            rows.append(
                (
                    run, step, languages[a], languages[b], level, module, cosine, norms[a],
                    norms[b], reason,
                )
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


class ConflictRecorder(TrainerCallback):  # type: ignore[misc]
    """Records the conflict between languages while a model is trained.

    Before the first step, and every `every` steps. Training is the same with and without it, also
    where a gradient is not finite: it is recorded as undefined, and the trainer stops or goes on
    as it would. Goes on where a checkpoint left off.

    Args:
        features: As of `gradient_conflict`.
        collate: As of `gradient_conflict`.
        every: Optimizer steps from one record to the next.
        resume: The checkpoint that training goes on from, where it is not in Trainer's own folder.
        settings: Further arguments of `gradient_conflict`.

    Raises:
        InputError: `every` is below 1, or there are too few languages or examples.
    """

    def __init__(
        self,
        features: Mapping[str, Features],
        collate: Collate,
        *,
        every: int,
        resume: str | Path | None = None,
        **settings: Any,
    ) -> None:
        if every < 1:
            raise InputError(f"every is {every}", expected="1 or more steps")
        check_languages(features, 1, "a gradient")
        self._features, self._collate, self._every = features, collate, every
        self._resume, self._settings = resume, settings
        self._frames: list[pd.DataFrame] = []

    def to_frame(self) -> pd.DataFrame:
        """The tables of `gradient_conflict`, one under another; `step` counts steps done."""
        import pandas as pd

        if not self._frames:
            return pd.DataFrame(columns=list(COLUMNS))
        return pd.concat(self._frames, ignore_index=True)

    def on_train_begin(self, args: Any, state: Any, *_: Any, model: Any = None, **__: Any) -> None:
        """The first record, or those of the checkpoint."""
        if not state.global_step:
            self._record(model, 0)
            return
        import pandas as pd

        folder = self._resume or f"{args.output_dir}/checkpoint-{state.global_step}"
        path = Path(folder) / SAVED
        if not path.is_file():
            raise MissingInputError(
                "is not there, and the record of gradients cannot go on without it",
                path=path,
                expected="a checkpoint of a training with this record",
            )
        frame = pd.DataFrame(_files.read_json(path), columns=list(COLUMNS))
        self._frames = [frame.astype(dict.fromkeys(("cosine", "norm_a", "norm_b"), float))]

    def on_step_end(self, _: Any, state: Any, *__: Any, model: Any = None, **___: Any) -> None:
        """A record, where it is time."""
        if state.global_step % self._every == 0:
            self._record(model, state.global_step)

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """What is recorded, beside what Trainer saved."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _files.write_json(folder / SAVED, self.to_frame().to_numpy().tolist())

    def _record(self, model: nn.Module, step: int) -> None:
        self._frames.append(
            gradient_conflict(
                model,
                self._features,
                self._collate,
                step=step,
                **{"allow_undefined": True, **self._settings},
            )
        )


def _gradient(
    model: nn.Module,
    part: Mapping[str, nn.Parameter],
    examples: Features,
    collate: Collate,
    batch_size: int,
) -> dict[str, Tensor]:
    """Parameter name to the gradient of the mean loss; zeros where the loss does not depend."""
    total = {name: torch.zeros_like(parameter) for name, parameter in part.items()}
    device = next(iter(part.values())).device
    for start in range(0, len(examples), batch_size):
        chunk = examples[start : start + batch_size]
        batch = {name: value.to(device) for name, value in collate(chunk).items()}
        with torch.enable_grad():
            output = model(**batch)
            loss = output["loss"]
            found = torch.autograd.grad(loss, list(part.values()), allow_unused=True)
        for name, gradient in zip(part, found, strict=True):
            if gradient is not None:
                total[name].add_(gradient, alpha=len(chunk) / len(examples))
    return total


def _why_undefined(norm_a: float, norm_b: float) -> str:
    """Why two gradients of these lengths have no cosine; nothing where they have one."""
    if not (math.isfinite(norm_a) and math.isfinite(norm_b)):
        return "a gradient is not finite"
    return "a gradient is zero" if norm_a == 0 or norm_b == 0 else ""


def _inside(name: str) -> str:
    """Of a factor of a LoRA, the module that it is wrapped around, without PEFT's prefix."""
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def _portions(live: Mapping[str, nn.Parameter], memory: int) -> Iterator[dict[str, nn.Parameter]]:
    """Parameters in portions whose gradients fit, each at least one."""
    portion: dict[str, nn.Parameter] = {}
    used = 0
    for name, parameter in live.items():
        size = parameter.numel() * parameter.element_size()
        if portion and used + size > memory:
            yield portion
            portion, used = {}, 0
        portion[name] = parameter
        used += size
    yield portion


def _groups(names: Mapping[str, str], levels: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """(level, module) to the parameters in it, by their names in the base."""
    found: dict[tuple[str, str], list[str]] = {}
    for level in LEVELS:
        if level not in levels:
            continue
        for live, base in names.items():
            place = describe_parameter(base.removesuffix(".bias"))
            module = {"all": "", "layer": place.layer, "module": place.module}[level]
            if module or level == "all":
                found.setdefault((level, module), []).append(live)
    return found
