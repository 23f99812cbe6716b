"""Sparse fine-tuning: find which weights matter by training all, then train only those.

LT-SFT, the lottery-ticket sparse fine-tuning of Ansell et al. 2022 (arXiv 2110.07560): full
fine-tuning; the k weights of largest |θ − θ₀|; back to θ₀; fine-tuning of those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet.errors import InputError, NotComparableError
from subnet.subnetwork import Subnetwork, load_subnetwork, top_k
from subnet.training._processes import is_first, wait_for_all
from subnet.training._stages import last_checkpoint
from subnet.training._trainer import fit
from subnet.training.recipe import Recipe
from subnet.training.subnetworks._targets import base_names, has_lora, matching
from subnet.training.subnetworks.masking import MaskedUpdates, fit_masked
from subnet.training.subnetworks.sparse_delta import SparseDelta

_FOUND = "mask.safetensors"


@dataclass(frozen=True, eq=False)
class SparseTuning:
    """A sparse fine-tuning.

    Attributes:
        subnetwork: The weights that were trained, with the signs of the full fine-tuning's change.
        delta: What they, and the parameters trained whole, have changed.
    """

    subnetwork: Subnetwork
    delta: SparseDelta


def sparse_fine_tune(
    model: nn.Module,
    features: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    *,
    density: float | None = None,
    k: int | None = None,
    collate: Callable[[Sequence[Mapping[str, Any]]], Any],
    seed: int,
    folder: str | Path,
    language: str,
    base: str,
    full_recipe: Recipe | None = None,
    train: Iterable[str] = (),
    parameters: Iterable[str] = ("*",),
    on_step: Callable[[], None] | None = None,
    save_every: int = 0,
    resume: bool = False,
) -> SparseTuning:
    """Fine-tune a model sparsely, in place; see the module's text.

    Both trainings have a fresh optimizer and schedule and see the examples in the same order. In
    between everything that was trained is put back to θ₀, also what is trained whole. At the end
    the model holds θ₀ + δ; every weight outside the mask is θ₀'s, bitwise.

    Args:
        model: A full model; what requires no gradient stays as it is.
        features: As of `fit`.
        recipe: Of the sparse training.
        density: Share of the weights of `parameters` to train; or
        k: their number. One of the two is given.
        collate: As of `fit`.
        seed: Of the order of examples and of dropout, in both trainings.
        folder: Trainer's files go to `full/` and `sparse/` in it, the mask to `mask.safetensors`.
        language: Of the mask.
        base: Identity of the base, recorded in the mask.
        full_recipe: Of the full training; `recipe` by default.
        train: Names or patterns of parameters that are trained whole in both, such as
            `("classifier*",)`; they are outside the mask and in the delta.
        parameters: Names or patterns of those to select from; by default all others that require
            a gradient.
        on_step: Called after every step of both trainings.
        save_every: As of `fit`.
        resume: Go on with what an earlier call with the same arguments left in `folder`.

    Returns:
        The mask and the delta.

    Raises:
        InputError: Neither or both of `density` and `k` are given, or out of range; a pattern
            matches nothing; full training changed nothing.
        NotComparableError: The model has a LoRA.
        DivergedError: The loss is not finite.
    """
    if has_lora(model):
        raise NotComparableError(
            "sparse fine-tuning selects weights of the model, and it has a LoRA",
            expected="a full model",
            fix="merge the adapter (merge_and_unload)",
        )
    folder = Path(folder)
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    whole = matching(live, train, "train")
    names = sorted(matching(live.keys() - whole, parameters, "parameters"))
    size = sum(live[name].numel() for name in names)
    wanted = _number(density, k, size)
    start = {name: parameter.detach().clone() for name, parameter in live.items()}
    known = base_names(model)
    shared: dict[str, Any] = {
        "collate": collate, "seed": seed, "on_step": on_step, "save_every": save_every,
    }  # fmt: skip

    if resume and (folder / _FOUND).is_file():
        found = load_subnetwork(folder / _FOUND)
    else:
        place = folder / "full"
        fit(
            model, features, full_recipe or recipe,
            folder=place, resume=last_checkpoint(place) if resume else None, **shared,
        )  # fmt: skip
        selected = top_k(
            lambda name: (live[name].detach() - start[name]).float().cpu(),
            {name: tuple(live[name].shape) for name in names},
            wanted,
            skip_zeros=True,
        )
        if selected.count == 0:
            raise InputError(
                f"full fine-tuning on {language} changed none of the {size} weights",
                fix="raise the learning rate or the number of steps",
            )
        found = Subnetwork(
            language=language,
            bits={known[name]: selected.bits[name] for name in names},
            signs={known[name]: selected.signs[name] for name in names},
            shapes={known[name]: tuple(live[name].shape) for name in names},
            base=base,
            method="lt-sft",
            settings={
                "density": density, "k": wanted, "zeros_left_out": wanted - selected.count,
                "threshold": selected.threshold, "trained_whole": sorted(whole),
                "ties": "parameter name (sorted), then row-major index",
            },
            seed=seed,
        )  # fmt: skip
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            found.save(folder / _FOUND)
        wait_for_all()
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(start[name])

    place = folder / "sparse"
    fit_masked(
        model, features, recipe, mask=MaskedUpdates(found, train=sorted(whole), base=base),
        folder=place, resume=last_checkpoint(place) if resume else None, **shared,
    )  # fmt: skip

    def change(name: str) -> Tensor:
        return live[name].detach().cpu().double() - start[name].cpu().double()

    delta = SparseDelta(
        found,
        {known[name]: change(name)[torch.from_numpy(found.dense(known[name]))] for name in names},
        {known[name]: change(name) for name in sorted(whole)},
    )
    return SparseTuning(found, delta)


def _number(density: float | None, k: int | None, size: int) -> int:
    if (density is None) == (k is None):
        raise InputError(
            "neither density nor k is given" if k is None else "density and k are given together",
            expected="one of them",
        )
    if k is not None:
        if not 1 <= k <= size:
            raise InputError(f"k is {k}", expected=f"1 to {size}, the number of weights")
        return k
    assert density is not None  # noqa: S101 - one of the two is given
    if not 0 < density <= 1:
        raise InputError(f"density is {density}", expected="0 < density <= 1", fix="try 0.05")
    if round(density * size) == 0:
        raise InputError(
            f"density {density:g} selects none of {size} weights", fix="take a larger one"
        )
    return round(density * size)
