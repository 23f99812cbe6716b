"""Masks that are found anew while a model is trained, at constant size.

How the published dynamic masks are updated is not known in detail; this rule is our own: every
`every` steps the k weights of largest importance are selected, where importance is an exponential
average over the training's own gradients.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from subnet import _files
from subnet.errors import FileFormatError, InputError, MissingInputError
from subnet.subnetwork import Subnetwork, top_k
from subnet.subnetwork._bits import Bits, count, pack, unpack
from subnet.training._callbacks import EvenTrainer
from subnet.training.subnetworks._holding import Held, pieces
from subnet.training.subnetworks._targets import base_names, has_lora, masks_of, matching

if TYPE_CHECKING:
    import pandas as pd

#: Importance of a weight w with gradient g of a step's mean loss.
SCORES = ("taylor", "fisher")
#: What it writes into a checkpoint of Trainer's.
SAVED = "dynamic_mask.safetensors"
_KEY = "dynamic_mask"


@dataclass(frozen=True)
class DynamicSettings:
    """How a dynamic mask is found.

    Attributes:
        density: Share of the weights that may move; the mask has round(density · weights) of them
            throughout.
        every: Optimizer steps after which it is found anew.
        score: `"taylor"`, |g·w|, or `"fisher"`, g². Both of the gradient of a step's mean loss,
            before it is clipped: |mean over a batch| is not the mean of |per example|, so they are
            not the scores of `subnet.extract`.
        smoothing: β of the average S ← β·S + (1 − β)·score, which starts at the first step's score.
        train: Names or patterns of parameters that are trained whole beside it.
        parameters: Names or patterns of those that the mask is over; all others by default. What
            neither names is frozen.
    """

    density: float
    every: int
    score: str = "taylor"
    smoothing: float = 0.9
    train: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputError(f"density is {self.density}", expected="0 < density <= 1")
        if not self.every >= 1:
            raise InputError(f"every is {self.every}", expected="1 or more steps")
        if self.score not in SCORES:
            raise InputError(f"score is {self.score!r}", expected=f"one of {', '.join(SCORES)}")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing is {self.smoothing}", expected="0 <= smoothing < 1")


class DynamicMask(TrainerCallback):  # type: ignore[misc]
    """Lets Trainer move only the weights of a mask that it finds anew every some steps.

    Give it to `fit_masked(..., mask=...)`. The first mask comes of the first step's gradients, or
    is `start`. What leaves the mask stays where training has brought it, bitwise, until it comes in
    again; its optimizer moments go on decaying meanwhile. Gradients outside are cleared before they
    are clipped. All processes find the same mask, for scores are of the gradients that they share.

    Costs beside masked training: one float32 score per weight, and the selection.

    Args:
        settings: How the mask is found.
        start: The first mask, over the same parameters, whose number of weights is then kept; the
            first step's gradients decide otherwise.

    Raises:
        InputError: A pattern matches nothing, or no weight would be selected.
        NotComparableError: `start` is of another model.
    """

    def __init__(self, settings: DynamicSettings, *, start: Subnetwork | None = None) -> None:
        self.settings = settings
        self._start = start
        self._resume: str | Path | None = None
        self._model: nn.Module | None = None
        self._required: dict[str, bool] = {}
        self._targets: dict[str, nn.Parameter] = {}
        self._names: dict[str, str] = {}
        self._held: dict[str, Held] = {}
        self._copies: dict[nn.Parameter, Tensor] = {}
        self._scores: dict[str, Tensor] = {}
        self._bits: dict[str, Bits] = {}
        self._changes: list[dict[str, Any]] = []
        self._count = 0
        self._plain = True

    @property
    def history(self) -> pd.DataFrame:
        """One row per mask: step from which it holds, count, density, entered, jaccard.

        `entered` counts weights that the mask before did not have, `jaccard` compares with it and
        is undefined of the first.
        """
        import pandas as pd

        columns = ["step", "count", "density", "entered", "jaccard"]
        return pd.DataFrame(self._changes, columns=columns)

    def subnetwork(self, language: str, base: str) -> Subnetwork:
        """The mask that held last.

        Raises:
            InputError: There is none yet, or it is over the factors of a LoRA.
        """
        if not self._bits:
            raise InputError("there is no mask yet", fix="train first")
        if not self._plain:
            raise InputError(
                "the mask is over the factors of a LoRA, which no subnetwork of the base has",
                expected="a full model",
            )
        return Subnetwork(
            language=language,
            bits={self._names[name]: bits for name, bits in self._bits.items()},
            shapes={self._names[name]: tuple(self._targets[name].shape) for name in self._bits},
            base=base,
            method="dynamic",
            settings={
                **asdict(self.settings),
                "of": "gradients of the mean loss of each training step, before clipping",
                "start": "first step" if self._start is None else "given",
                "ties": "parameter name (sorted), then row-major index",
                "masks": len(self._changes),
            },
        )

    def prepare(self, trainer_class: Any = None, *, resume: str | Path | None = None) -> Any:
        """The trainer that shows its gradients to the mask, after all passes and processes.

        Args:
            trainer_class: A subclass of `Trainer` to build on; that of `fit` by default.
            resume: The checkpoint that training goes on from.
        """
        self._resume = resume
        shown = self

        class Shown(trainer_class or EvenTrainer):  # type: ignore[misc]
            def training_step(self, *arguments: Any, **named: Any) -> Any:
                loss = super().training_step(*arguments, **named)
                if self.accelerator.sync_gradients:
                    shown.see(self.state.global_step)
                return loss

        return Shown

    def attach(self, model: nn.Module) -> None:
        """Freeze what the mask is not over."""
        if self._model is not None:
            raise InputError("the mask already holds a model", fix="make a new one for another")
        live = dict(model.named_parameters())
        trained = {name for name, parameter in live.items() if parameter.requires_grad}
        whole = matching(trained, self.settings.train, "train")
        names = matching(trained - whole, self.settings.parameters, "parameters")
        size = sum(live[name].numel() for name in names)
        self._count = round(self.settings.density * size)
        if self._start is not None:
            given = masks_of(model, self._start)
            lone = sorted(given.keys() ^ names)
            if lone:
                raise InputError(
                    f"the mask and its start differ in {lone[0]}",
                    expected="a start over the parameters of the mask",
                )
            self._count = sum(int(mask.sum()) for mask in given.values())
        if self._count == 0:
            raise InputError(
                f"density {self.settings.density:g} selects none of {size} weights",
                fix="take a larger one",
            )
        self._model = model
        self._plain = not has_lora(model)
        self._required = {name: parameter.requires_grad for name, parameter in live.items()}
        self._targets = {name: live[name] for name in sorted(names)}
        self._names = base_names(model)
        for name, parameter in live.items():
            parameter.requires_grad_(name in names or name in whole)
        if self._start is not None:
            self._take({name: pack(given[name].cpu().numpy()) for name in self._targets}, 0)

    def detach(self) -> None:
        """Let go of the model."""
        if self._model is None:
            return
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._required[name])
        self._model, self._held, self._copies, self._scores = None, {}, {}, {}

    def __enter__(self) -> DynamicMask:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def see(self, step: int) -> None:
        """Take the gradients of a step into account, find the mask anew, and clear those outside.

        Args:
            step: Optimizer steps that are done.
        """
        given = self._start is not None and step == 0
        anew = step % self.settings.every == 0 and not given
        with torch.no_grad():
            for name, parameter in self._targets.items():
                if parameter.grad is not None:
                    self._score(name, parameter, parameter.grad)
                    if not anew:  # at once, while the processor has it at hand
                        self._clear(name, parameter.grad)
            if anew:
                self._find(step)
                for name, parameter in self._targets.items():
                    if parameter.grad is not None:
                        self._clear(name, parameter.grad)

    def on_init_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Before there is an optimizer."""
        self.attach(model)

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Going on, the mask and its scores are those of the saved step."""
        if state.global_step:
            folder = self._resume or f"{args.output_dir}/checkpoint-{state.global_step}"
            self._load(Path(folder))

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Without its trainer the mask would see no gradients, and hold nothing."""
        if not self._bits:
            raise InputError(
                "the dynamic mask has seen no gradients",
                expected="the trainer that shows them to it",
                fix="train with fit_masked(..., mask=mask), or a trainer of mask.prepare()",
            )

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Put back what is outside."""
        with torch.no_grad():
            for held in self._held.values():
                held.restore()

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Scores, mask and history beside what Trainer saved."""
        if state.is_world_process_zero:
            self._save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the model as it was, but for the weights that were trained."""
        self.detach()

    def _score(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        first = name not in self._scores
        if first:
            self._scores[name] = torch.empty(parameter.shape, device=parameter.device)
        flat = (self._scores[name].view(-1), parameter.reshape(-1), gradient.reshape(-1))
        for average, weight, part in pieces(*flat):
            slope = part.float()
            taylor = self.settings.score == "taylor"
            score = (slope * weight.float()).abs_() if taylor else slope.square()
            if first:
                average.copy_(score)
            else:
                average.lerp_(score, 1 - self.settings.smoothing)

    def _clear(self, name: str, gradient: Tensor) -> None:
        if name in self._held:
            self._held[name].clear(gradient)

    def _find(self, step: int) -> None:
        zero = torch.zeros(())
        found = top_k(
            lambda name: self._scores.get(name, zero.expand(self._targets[name].shape)).cpu(),
            {name: tuple(parameter.shape) for name, parameter in self._targets.items()},
            self._count,
        )
        self._take(dict(found.bits), step)

    def _take(self, bits: dict[str, Bits], step: int) -> None:
        """Let another mask hold from now on."""
        both = sum(count(bits[name] & self._bits[name]) for name in self._bits)
        size = sum(parameter.numel() for parameter in self._targets.values())
        first = not self._bits
        self._changes.append(
            {
                "step": step,
                "count": self._count,
                "density": self._count / size,
                "entered": self._count - both,
                "jaccard": math.nan if first else both / (2 * self._count - both),
            }
        )
        self._hold(bits)

    def _hold(self, bits: dict[str, Bits]) -> None:
        self._bits, self._held = bits, {}
        with torch.no_grad():
            for name, parameter in self._targets.items():
                mask = torch.from_numpy(unpack(bits[name], tuple(parameter.shape)))
                if bool(mask.all()):
                    continue
                held = Held(parameter, mask.to(parameter.device), self._copies)
                held.remember()
                self._held[name] = held

    def _save(self, folder: Path) -> None:
        from safetensors.torch import save

        tensors = {f"score.{name}": score.cpu() for name, score in self._scores.items()}
        tensors |= {f"bits.{name}": torch.from_numpy(bits) for name, bits in self._bits.items()}
        content = {"settings": asdict(self.settings), "history": self._changes}
        with _files.new_file(folder / SAVED) as building:
            building.write_bytes(save(tensors, metadata={_KEY: _files.to_json(content)}))

    def _load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        path = folder / SAVED
        if not path.is_file():
            raise MissingInputError(
                "is not there, and the dynamic mask cannot go on without it",
                path=path,
                expected="a checkpoint that was saved with this mask",
            )
        _, header = _files.read_safetensors_header(path)
        tensors = load_file(path)
        content = json.loads(header.get(_KEY, "{}"))
        shapes = {
            name.removeprefix("score."): value.shape
            for name, value in tensors.items()
            if name.startswith("score.")
        }
        fits = (
            all(
                name in self._targets and self._targets[name].shape == shape
                for name, shape in shapes.items()
            )
            and {f"bits.{name}" for name in self._targets} <= tensors.keys()
        )
        if content.get("settings") != json.loads(_files.to_json(asdict(self.settings))) or not fits:
            raise FileFormatError(
                "was saved by a mask of other settings or over other parameters",
                path=path,
                expected="the settings with which training began",
                fix="go on with those, or begin anew",
            )
        self._changes = [
            {key: math.nan if value is None else value for key, value in change.items()}
            for change in content["history"]
        ]
        self._scores = {
            name: tensors[f"score.{name}"].to(self._targets[name].device) for name in shapes
        }
        self._hold({name: tensors[f"bits.{name}"].numpy() for name in self._targets})
