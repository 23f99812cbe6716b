"""Masked training: only the weights of a subnetwork move, all others stay bitwise what they were.

A gradient of zero does not freeze a weight: AdamW's decay and the momentum of earlier steps still
move it. So gradients outside the mask are cleared before they are clipped, and after every step the
optimizer took, what is outside is put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from subnet.errors import InputError, NotComparableError
from subnet.model.units import Sharing
from subnet.subnetwork import Subnetwork
from subnet.training.subnetworks._holding import Copies, Held
from subnet.training.subnetworks._targets import Mask, base_names, has_lora, masks_of, matching

#: What becomes of parameters that no mask covers.
Others = Literal["frozen", "trained"]


class MaskedUpdates(TrainerCallback):  # type: ignore[misc]
    """Lets Trainer move only the weights of a subnetwork.

    Give it to `fit(..., callbacks=[...])` or any `Trainer`. Holds for every optimizer, decay,
    momentum, clipping (whose norm sees the mask's gradients alone), accumulated passes, bfloat16
    autocast and several processes with a copy of the model each; not for weights that are sharded
    over processes. As a context manager it leaves the model as it was also when training fails:
    `with MaskedUpdates(...) as masked: fit(..., callbacks=[masked])`.

    The costs, of each parameter that a mask cuts through: one copy and a byte per weight; where two
    fifths or less are outside, instead, 8 bytes and one weight for each of those. With `languages`
    each mask costs its bytes, and all share the copy.

    Args:
        masks: A `Subnetwork` of weights, heads or neurons, or parameter name to booleans; with
            `languages`, one of them per language. A mask of units selects their own weights, and
            under a LoRA rows of B and columns of A (`factor_masks`).
        languages: The language of each optimizer step, whose mask then holds for this step.
        forward: Whether the forward pass sees zeros outside the mask (θ·m) while training; else it
            sees the whole model, what is outside being as it was. Zeros stand there from the start
            of a step to its end, so that between steps the whole model is there. Biases that a unit
            owns are in its mask; parameters that no mask covers are never zeroed. Under a LoRA the
            units' rows and columns of W are zeroed with those of the factors.
        others: What becomes of parameters that no mask covers: `"frozen"` (only weights of the
            mask move) or `"trained"`.
        train: Names or patterns of uncovered parameters that are trained whole all the same, as
            sparse fine-tuning trains the classifier: `("classifier*",)`.
        base: Identity of the model's base; masks of another base are refused.
        shared: With grouped queries, whose the shared rows are; see `units_to_weights`.

    Raises:
        NotComparableError: A mask is of another base or model, or of weights under a LoRA.
        InputError: A mask selects nothing; `train` names no parameter; a language has no mask;
            nothing that a mask selects requires a gradient.
    """

    def __init__(
        self,
        masks: Mask | Mapping[str, Mask],
        *,
        languages: Sequence[str] | None = None,
        forward: bool = False,
        others: Others = "frozen",
        train: Iterable[str] = (),
        base: str | None = None,
        shared: Sharing = "any",
    ) -> None:
        if others not in ("frozen", "trained"):
            raise InputError(f"others is {others!r}", expected="'frozen' or 'trained'")
        self._forward, self._others, self._train = forward, others, tuple(train)
        self._base, self._shared = base, shared
        self._languages = None if languages is None else tuple(languages)
        self._masks: dict[str, Any]
        if self._languages is None:
            self._masks = {"": masks}
        else:
            if isinstance(masks, Subnetwork):
                raise InputError("one mask is given for several languages", expected="one of each")
            self._masks = dict(masks)
            lone = sorted(set(self._languages) - self._masks.keys())
            if lone:
                raise InputError(
                    f"{lone[0]} is trained and has no mask",
                    expected=f"a mask of each of {', '.join(sorted(set(self._languages)))}",
                )
        self._model: nn.Module | None = None
        self._required: dict[str, bool] = {}
        self._hooks: list[Any] = []
        self._held: dict[str, dict[str, Held]] = {}
        self._zeroed: dict[str, dict[str, Held]] = {}
        self._now = ""
        self._cleared = False

    @property
    def attached(self) -> bool:
        """Whether a model is held at present."""
        return self._model is not None

    def attach(self, model: nn.Module) -> None:
        """Freeze what no mask selects, and clear gradients outside from now on."""
        if self._model is not None:
            raise InputError("the masks already hold a model", fix="make new ones for another")
        masks = {
            language: masks_of(model, mask, base=self._base, shared=self._shared)
            for language, mask in self._masks.items()
        }
        live = dict(model.named_parameters())
        covered = set[str]().union(*masks.values())
        kept = matching(live.keys() - covered, self._train, "train")
        moving = {
            name
            for found in masks.values()
            for name, mask in found.items()
            if live[name].requires_grad and bool(mask.any())
        }
        if not moving:
            raise InputError(
                "nothing that the mask selects requires a gradient",
                expected="parameters that are trained",
                fix="call requires_grad_() on them",
            )
        zeros = zeroed(model, self._masks, masks, self._shared) if self._forward else {}
        self._model = model
        self._required = {name: parameter.requires_grad for name, parameter in live.items()}
        for name, value in live.items():
            free = name in kept or (self._others == "trained" and name not in covered)
            if not (name in moving or free):
                value.requires_grad_(False)
        copies = Copies()
        with torch.no_grad():
            self._held = {
                language: self._holding(live, found, moving, copies)
                for language, found in masks.items()
            }
            self._zeroed = {
                language: self._holding(live, found, found.keys() - moving, copies)
                for language, found in zeros.items()
            }
        self._now = next(iter(self._held))
        for name in moving:
            parameter: Any = live[name]
            hook = self._gradient_hook(name)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))
        if self._languages is None:
            self._remember()

    def detach(self) -> None:
        """Let go of the model; what `forward` set to zero is back, and what was frozen is free."""
        if self._model is None:
            return
        for hook in self._hooks:
            hook.remove()
        if self._cleared:
            self._restore()
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._required[name])
        self._model, self._hooks, self._held, self._zeroed = None, [], {}, {}

    def __enter__(self) -> MaskedUpdates:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def on_init_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Before there is an optimizer, so that it holds no state of what is frozen."""
        if model is not None:
            self.attach(model)

    def on_train_begin(self, _: Any, state: Any, *__: Any, model: Any = None, **___: Any) -> None:
        """Weights of a saved step may have been loaded since; outside they must be the same."""
        if self._model is None:
            self.attach(model)
        if self._languages is None:
            self._check_unchanged(state.global_step)
        elif len(self._languages) < state.max_steps:
            raise InputError(
                f"languages of {len(self._languages)} steps are given",
                expected=f"one for each of {state.max_steps} steps",
            )

    def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """With languages, the mask of this step's holds now."""
        if self._languages is not None:
            self._now = self._languages[state.global_step]
            self._remember()
        self._clear()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Put back what is outside."""
        self._restore()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the model as it was, but for the weights that were trained."""
        self.detach()

    def _holding(
        self,
        live: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        names: Iterable[str],
        copies: Copies,
    ) -> dict[str, Held]:
        """What holds each parameter; of one that the mask does not cover, all is outside."""
        found: dict[str, Held] = {}
        for name in names:
            parameter = live[name]
            mask = masks.get(name)
            if mask is None:
                mask = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
            if bool(mask.all()):
                continue
            found[name] = Held(parameter, mask, copies)
        return found

    def _gradient_hook(self, name: str) -> Any:
        def clear(parameter: Tensor) -> None:
            held = self._held[self._now].get(name)
            if held is not None and parameter.grad is not None:
                held.clear(parameter.grad)

        return clear

    def _all(self) -> list[Held]:
        zeroed = self._zeroed.get(self._now, {})
        return [*self._held[self._now].values(), *zeroed.values()]

    def _remember(self) -> None:
        with torch.no_grad():
            for held in self._all():
                held.remember()

    def _restore(self) -> None:
        with torch.no_grad():
            for held in self._all():
                held.restore()
        self._cleared = False

    def _clear(self) -> None:
        if self._forward:
            self._cleared = True
            with torch.no_grad():
                for held in self._all():
                    held.clear()

    def _check_unchanged(self, step: int) -> None:
        for name, held in self._held[self._now].items():
            if held.changed():
                raise NotComparableError(
                    f"outside the mask {name} is not what it was before training"
                    + (f", in the checkpoint of step {step}" if step else ""),
                    expected="a checkpoint that was trained with this mask from this model",
                )


def zeroed(
    model: nn.Module,
    given: Mapping[str, Mask],
    masks: Mapping[str, Mapping[str, Tensor]],
    shared: Sharing = "any",
) -> dict[str, dict[str, Tensor]]:
    """What the forward pass leaves out, where it sees zeros outside masks.

    Args:
        model: A full model, or one with a LoRA, of which it leaves out the units' part of W too.
        given: Language to its mask.
        masks: What `masks_of` has of these.
        shared: With grouped queries, whose the shared rows are.

    Returns:
        Language to live parameter name to booleans, false where zeros are to stand.
    """
    found = {language: dict(selected) for language, selected in masks.items()}
    if has_lora(model):
        from subnet.model import find_units
        from subnet.subnetwork import gradient_masks

        live = {base: name for name, base in base_names(model).items()}
        parameters = dict(model.named_parameters())
        for language, mask in given.items():
            if isinstance(mask, Subnetwork):
                owned = gradient_masks(mask, find_units(model), shared=shared)
                found[language] |= {
                    live[base]: part.to(parameters[live[base]].device)
                    for base, part in owned.items()
                }
        # A factor that belongs to no unit is not trained, and stays in the forward pass.
        found = {
            language: {name: part for name, part in parts.items() if bool(part.any())}
            for language, parts in found.items()
        }
    return found


def fit_masked(model: Any, features: Any, recipe: Any, *, mask: Any, **arguments: Any) -> Any:
    """`fit` with a mask that lets go of the model also when training fails.

    Args:
        model: As of `fit`.
        features: As of `fit`.
        recipe: As of `fit`.
        mask: A `MaskedUpdates` or a `DynamicMask`.
        arguments: Further arguments of `fit`.

    Returns:
        The trainer, after its last step.

    Raises:
        InputError: The mask or an argument cannot be used.
        DivergedError: The loss is not finite.
    """
    from subnet.training._trainer import fit

    callbacks = [*arguments.pop("callbacks", ()), mask]
    prepare = getattr(mask, "prepare", None)
    if prepare is not None:
        arguments["trainer_class"] = prepare(
            arguments.get("trainer_class"), resume=arguments.get("resume")
        )
    with mask:
        return fit(model, features, recipe, callbacks=callbacks, **arguments)
