"""One parameter of which only a part may move: the rest is put back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from subnet.errors import InputError

#: Share outside up to which its places are listed: there both ways take a processor the same time,
#: and of float32 the same memory.
_FEW = 0.4
#: Weights of each thread at a time, so that what is computed between stays in its cache.
_PIECE = 1 << 16
#: Bytes of a number to the integers whose bits stand for its own.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Copies:
    """Copies of parameters that several masks share, of which one holds at a time.

    Attributes:
        kept: Parameter to what it was, for what is outside to be put back.
        shown: Parameter to what it shows while a part of it is hidden.
    """

    kept: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    shown: dict[nn.Parameter, Tensor] = field(default_factory=dict)


class Held:
    """A parameter and the part of it that may move.

    Works on bit patterns. Where up to two fifths are outside, their places are listed and their
    values kept (8 bytes and a weight for each). Else the mask becomes a byte per weight, all ones
    inside, and the parameter is copied: `((weight ^ copy) & mask) ^ copy` puts back what is
    outside. Unlike choosing by booleans, this takes no branches that a processor must guess.

    Args:
        parameter: The live parameter.
        mask: Booleans of its shape, true where it may move.
        copies: Where it is remembered, and what it shows where a part is hidden. Each is made when
            it is needed first.

    Raises:
        InputError: The parameter is not laid out in one piece of memory.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        mask: Tensor,
        copies: Copies | None = None,
    ) -> None:
        if not parameter.is_contiguous():
            raise InputError(
                f"a parameter of shape {list(parameter.shape)} is a view that is not contiguous",
                expected="contiguous weights",
                fix="make them so: parameter.data = parameter.data.contiguous()",
            )
        flat = mask.reshape(-1)
        few = flat.numel() - int(flat.count_nonzero()) <= _FEW * flat.numel()
        self._parameter = parameter
        self._places = (~flat).nonzero()[:, 0] if few else None
        self._inside = None if few else flat.view(torch.int8).neg()  # -1: all bits are ones
        self._copies = Copies() if copies is None else copies
        self._outside: Tensor | None = None
        self._hidden: Tensor | None = None

    def remember(self) -> None:
        """What is outside now is what `restore` puts back."""
        values = _bits(self._parameter)
        if self._places is not None:
            self._outside = values[self._places]
            return
        self._outside = _bits(self._copy(self._copies.kept))
        self._outside.copy_(values)

    def restore(self) -> None:
        """Put back what was outside, bitwise."""
        assert self._outside is not None  # noqa: S101 - remember() comes first
        values = _bits(self._parameter)
        if self._places is not None:
            values.index_copy_(0, self._places, self._outside)
            return
        for value, inside, kept in pieces(values, self._inside, self._outside):
            value.bitwise_xor_(kept).bitwise_and_(inside).bitwise_xor_(kept)

    def hide(self) -> None:
        """Let the parameter be zero outside until `show`; nobody may change it meanwhile.

        Where places are not listed it shows a copy, which costs less than zeros that are written
        into it and put back. `remember` comes first, and `show` not before the backward pass ended.
        """
        self.show()
        self._hidden = self._parameter.data
        if self._places is not None:
            self.clear()
            return
        shown = self._copy(self._copies.shown)
        for value, inside, zeroed in pieces(_bits(self._hidden), self._inside, _bits(shown)):
            torch.bitwise_and(value, inside, out=zeroed)
        self._parameter.data = shown

    def show(self) -> None:
        """End what `hide` began; where nothing is hidden, nothing happens."""
        if self._hidden is None:
            return
        self._parameter.data, self._hidden = self._hidden, None
        if self._places is not None:
            self.restore()

    def changed(self) -> bool:
        """Whether any bit outside differs from what was remembered."""
        assert self._outside is not None  # noqa: S101 - remember() comes first
        values = _bits(self._parameter)
        if self._places is not None:
            return not torch.equal(self._outside, values[self._places])
        return any(
            bool(((value ^ kept) & ~inside).any())
            for value, inside, kept in pieces(values, self._inside, self._outside)
        )

    def clear(self, tensor: Tensor | None = None) -> None:
        """Zeros outside, in the parameter or in a tensor of its shape, whatever stood there."""
        values = _bits(self._parameter if tensor is None else tensor)
        if self._places is not None:
            values.index_fill_(0, self._places, 0)
            return
        for value, inside in pieces(values, self._inside):
            value.bitwise_and_(inside)

    def _copy(self, copies: dict[nn.Parameter, Tensor]) -> Tensor:
        if self._parameter not in copies:
            copies[self._parameter] = torch.empty_like(self._parameter, requires_grad=False)
        return copies[self._parameter]


def pieces(*tensors: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same places of flat tensors, piece by piece; on a GPU all is one piece."""
    given = [tensor for tensor in tensors if tensor is not None]
    size = _PIECE * torch.get_num_threads()
    if given[0].numel() <= size or given[0].device.type != "cpu":
        return iter([tuple(given)])
    return zip(*(torch.split(tensor, size) for tensor in given), strict=True)


def _bits(tensor: Tensor) -> Tensor:
    """The bit patterns of a contiguous tensor, flat, in the same memory."""
    return tensor.detach().view(-1).view(_INTEGERS[tensor.element_size()])
