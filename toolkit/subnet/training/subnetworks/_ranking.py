"""Which weights of a language are the most important at present, by the gradients of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from subnet.errors import DivergedError, InputError
from subnet.subnetwork import top_k
from subnet.subnetwork._bits import Bits, count, unpack
from subnet.training.subnetworks._holding import Copies, Held, pieces


class Rule(Protocol):
    """How importance is averaged, and how often the mask is found anew."""

    @property
    def every(self) -> int:
        """Steps from one mask to the next."""

    @property
    def score(self) -> str:
        """`"taylor"` or `"fisher"`."""

    @property
    def smoothing(self) -> float:
        """β of the average."""


class Ranking:
    """Importance of weights, averaged over steps, and the mask of the k largest.

    Args:
        rule: How they are averaged, and when the mask is found anew.
        targets: The weights, sorted by name.
        size: k.
        copies: Where their values are kept while a mask holds, and shown while a part is hidden;
            several rankings of which one holds at a time can share it. None where they need not be
            put back.
        start: The first mask; the first step's gradients decide otherwise.

    Attributes:
        size: k.
        seen: Steps that it was shown.
        scores: Name to the average; names without a gradient so far are missing.
        bits: The mask, packed; empty before there is one.
        held: What holds each weight of which some part is outside.
        changes: A row for every mask: step, count, density, entered, jaccard.
    """

    def __init__(
        self,
        rule: Rule,
        targets: Mapping[str, nn.Parameter],
        size: int,
        copies: Copies | None,
        start: dict[str, Bits] | None = None,
    ) -> None:
        self._rule, self._targets, self.size, self._copies = rule, targets, size, copies
        self._given = start is not None
        self.seen = 0
        self.scores: dict[str, Tensor] = {}
        self.bits: dict[str, Bits] = {}
        self.held: dict[str, Held] = {}
        self.changes: list[dict[str, Any]] = []
        if start is not None:
            self._take(start, 0)

    def see(
        self, step: int, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> bool:
        """Take a step's gradients into account, and clear what of them is outside, in place.

        Args:
            step: Optimizer steps done, for the record.
            gradients: Name to the gradient of the mean loss; of other names than the targets too.
            weights: Name to the weights that they are of, nothing of them set to zero.

        Returns:
            Whether the mask was found anew.
        """
        given = self._given and self.seen == 0
        anew = self.seen % self._rule.every == 0 and not given
        self.seen += 1
        with torch.no_grad():
            for name in self._targets:
                if name in gradients:
                    self._score(name, weights[name], gradients[name])
                    if not anew:  # at once, while the processor has it at hand
                        self.clear(name, gradients[name])
            if anew:
                self._find(step)
                for name in self._targets:
                    if name in gradients:
                        self.clear(name, gradients[name])
        return anew

    def clear(self, name: str, gradient: Tensor) -> None:
        """Zeros outside the mask."""
        if name in self.held:
            self.held[name].clear(gradient)

    def hold(self, bits: dict[str, Bits]) -> None:
        """Let a mask hold from now on, what is outside being as it is."""
        self.bits, self.held = bits, {}
        with torch.no_grad():
            for name, parameter in self._targets.items():
                if count(bits[name]) == parameter.numel():
                    continue
                mask = torch.from_numpy(unpack(bits[name], tuple(parameter.shape)))
                held = Held(parameter, mask.to(parameter.device), self._copies)
                if self._copies is not None:
                    held.remember()
                self.held[name] = held

    def _score(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        first = name not in self.scores
        if first:
            self.scores[name] = torch.empty(parameter.shape, device=parameter.device)
        flat = (self.scores[name].view(-1), parameter.reshape(-1), gradient.reshape(-1))
        for average, weight, part in pieces(*flat):
            slope = part.float()
            taylor = self._rule.score == "taylor"
            score = (slope * weight.float()).abs_() if taylor else slope.square()
            if first:
                average.copy_(score)
            else:
                average.lerp_(score, 1 - self._rule.smoothing)

    def _find(self, step: int) -> None:
        zero = torch.zeros(())
        try:
            found = top_k(
                lambda name: self.scores.get(name, zero.expand(self._targets[name].shape)).cpu(),
                {name: tuple(parameter.shape) for name, parameter in self._targets.items()},
                self.size,
            )
        except InputError as error:  # before the trainer looks at the loss of this step
            raise DivergedError(
                f"importance of weights is not finite at step {step + 1}: {error.found}",
                fix="lower the learning rate, warm up, or clip gradients",
            ) from error
        self._take(dict(found.bits), step)

    def _take(self, bits: dict[str, Bits], step: int) -> None:
        both = sum(count(bits[name] & self.bits[name]) for name in self.bits)
        size = sum(parameter.numel() for parameter in self._targets.values())
        self.changes.append(
            {
                "step": step,
                "count": self.size,
                "density": self.size / size,
                "entered": self.size - both,
                "jaccard": both / (2 * self.size - both) if self.bits else math.nan,
            }
        )
        self.hold(bits)
