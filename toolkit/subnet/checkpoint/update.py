"""What training changed: the update of a language, and of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from subnet.checkpoint.modules import describe_parameter
from subnet.errors import MissingInputError, NotComparableError
from subnet.language import Language

if TYPE_CHECKING:
    import pandas as pd
    import torch


class Change(Protocol):
    """ΔW parameter by parameter, read when it is asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter to shape, for the weight matrices of layers."""

    @property
    def apart(self) -> Mapping[str, str]:
        """Parameter to what it is, for everything else that was trained."""

    @property
    def is_low_rank(self) -> bool:
        """Whether there are factors."""

    @property
    def transposed(self) -> frozenset[str]:
        """Parameters that the base stores as [input, output]."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that hold it."""

    def rank(self, parameter: str) -> int:
        """Number of columns of the left factor."""

    def factors(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(left [o, r], right [r, i])."""

    def first_factor(self, parameter: str) -> torch.Tensor:
        """LoRA's A [r, i] as stored."""

    def dense(self, parameter: str) -> torch.Tensor:
        """ΔW [o, i]."""

    def blocks(self, parameter: str) -> Iterator[torch.Tensor]:
        """ΔW in blocks of consecutive rows."""

    def value(self, parameter: str) -> torch.Tensor | None:
        """The trained value itself, where the file holds that."""


@dataclass(frozen=True, eq=False)
class Update:
    """What training changed for a language, against a stated base.

    Nothing is in memory: each call reads one tensor pair from disk.

    Attributes:
        language: The language.
        run: The run; the same language in another run is a replicate.
        source: Folder that holds it.
        kind: `"lora"`, or `"full"` for fully fine-tuned weights.
        base: Identity of the base. Updates of different bases are not comparable.
        shapes: Base parameter to its shape [o, i], without PEFT's prefixes, sorted by name: the
            weight matrices of layers.
        initialisation: What the adapter states of its start (`init_lora_weights`).
    """

    language: Language
    run: str
    source: Path
    kind: Literal["lora", "full"]
    base: str
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    initialisation: Mapping[str, str] = field(repr=False)
    _change: Change = field(repr=False)

    @property
    def is_low_rank(self) -> bool:
        """Whether ΔW is known as a product of factors (not for full fine-tuning and DoRA)."""
        return self._change.is_low_rank

    @property
    def apart(self) -> tuple[str, ...]:
        """Other trained parameters (heads, biases, embeddings): outside overlap by default."""
        return tuple(self._change.apart)

    @property
    def apart_kinds(self) -> Mapping[str, str]:
        """Each of `apart` to what it is."""
        return self._change.apart

    @property
    def transposed(self) -> frozenset[str]:
        """Parameters stored as [input, output]: there LoRA's A is the left factor."""
        return self._change.transposed

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that hold the update."""
        return self._change.files

    def rank(self, parameter: str) -> int:
        """Rank r of the factors; the smaller side of the matrix where there are none."""
        return self._change.rank(parameter)

    def factors(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of ΔW, as float32, with the adapter's scale in the left one.

        Args:
            parameter: A key of `shapes`.

        Returns:
            (B [o, r], A [r, i]) with ΔW = B @ A.

        Raises:
            NotComparableError: The update has no factors.
            InputError: A factor holds NaN or infinity; the tensor is named.
        """
        return self._change.factors(parameter)

    def first_factor(self, parameter: str) -> torch.Tensor:
        """LoRA's A [r, i] as stored, unscaled: near-identical ones share their initialisation."""
        return self._change.first_factor(parameter)

    def dense(self, parameter: str) -> torch.Tensor:
        """ΔW [o, i] as float32, of a parameter in `shapes` or, where defined, in `apart`.

        Raises:
            MissingInputError: The base's value is needed and not there.
            InputError: A tensor holds NaN or infinity; it is named.
        """
        return self._change.dense(parameter)

    def blocks(self, parameter: str) -> Iterator[torch.Tensor]:
        """ΔW as `dense` gives it, in blocks of consecutive rows: one of LoRA, several of weights.

        Every block but the last holds a multiple of eight rows. What is at hand at once is a block,
        however large the matrix is.
        """
        return self._change.blocks(parameter)

    def to_frame(self) -> pd.DataFrame:
        """One row per parameter: where it stands, shape, rank and Frobenius norm of ΔW."""
        import pandas as pd

        rows = []
        for name, (out, wide) in self.shapes.items():
            place = describe_parameter(name)
            rows.append(
                {
                    "run": self.run,
                    "language": self.language.label,
                    "parameter": name,
                    "layer": place.layer,
                    "type": place.type,
                    "rows": out,
                    "columns": wide,
                    "rank": self.rank(name),
                    "norm": self._norm(name),
                }
            )
        return pd.DataFrame(rows)

    def _norm(self, parameter: str) -> float:
        """‖ΔW‖_F; of factors by ‖BA‖² = tr((BᵀB)(AAᵀ))."""
        if not self.is_low_rank:
            return float(self.dense(parameter).norm())
        b, a = (factor.double() for factor in self.factors(parameter))
        return float(((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt())


@dataclass(frozen=True, eq=False, repr=False)
class Step(Update):
    """What one stage of sequential training changed: the stage against the one before.

    Attributes:
        stage: Number of the stage.
        previous: Folder of what it is the difference to; None where that is the base itself, which
            is not in the directory.
    """

    stage: int = 0
    previous: Path | None = None

    def __repr__(self) -> str:
        return f"Step(stage={self.stage}, language={self.language.label!r}, run={self.run!r})"


class Difference:
    """ΔW of a stage that carries a LoRA on: factors [B_s, −B_{s−1}] and [A_s; A_{s−1}]."""

    def __init__(self, after: Change, before: Change) -> None:
        self.is_low_rank = after.is_low_rank and before.is_low_rank
        self._after, self._before = after, before
        self.shapes = dict(sorted({**before.shapes, **after.shapes}.items()))
        self.apart = dict(sorted({**before.apart, **after.apart}.items()))
        self.transposed = after.transposed | before.transposed
        self.files = (*before.files, *after.files)

    def _both(self, parameter: str) -> list[tuple[int, Change]]:
        return [
            (sign, change)
            for sign, change in ((1, self._after), (-1, self._before))
            if parameter in change.shapes
        ]

    def rank(self, parameter: str) -> int:
        """Sum of both ranks."""
        return sum(change.rank(parameter) for _, change in self._both(parameter))

    def factors(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(left [o, 2r], right [2r, i])."""
        import torch

        pairs = [(sign, *change.factors(parameter)) for sign, change in self._both(parameter)]
        left = torch.cat([sign * b for sign, b, _ in pairs], dim=1)
        return left, torch.cat([a for *_, a in pairs], dim=0)

    def first_factor(self, parameter: str) -> torch.Tensor:
        """LoRA's A after the stage."""
        return self._after.first_factor(parameter)

    def value(self, parameter: str) -> torch.Tensor | None:
        """The value after the stage, where it is saved whole."""
        return self._after.value(parameter)

    def blocks(self, parameter: str) -> Iterator[torch.Tensor]:
        """ΔW in one block."""
        yield self.dense(parameter)

    def dense(self, parameter: str) -> torch.Tensor:
        """ΔW_s − ΔW_{s−1}, also of parameters apart."""
        if parameter in self.shapes:
            parts = [sign * change.dense(parameter) for sign, change in self._both(parameter)]
            return sum(parts[1:], start=parts[0])
        missing = [
            change for change in (self._after, self._before) if parameter not in change.apart
        ]
        if missing:
            raise MissingInputError(
                f"{parameter} is in one of two consecutive stages only",
                path=missing[0].files[0].parent,
            )
        # Saved whole in both: the base's value cancels and need not be there.
        after, before = self._after.value(parameter), self._before.value(parameter)
        if after is not None and before is not None:
            if after.shape != before.shape:
                raise NotComparableError(
                    f"{parameter} has {list(after.shape)} after {list(before.shape)}",
                    path=self._after.files[0].parent,
                )
            return after - before
        return self._after.dense(parameter) - self._before.dense(parameter)
