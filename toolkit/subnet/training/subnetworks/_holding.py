"""One parameter of which only a part may move: the rest is put back, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subnet.errors import InputError


class Held:
    """A parameter and the part of it that may move.

    Works on the smaller of both parts: places inside are saved while all else is copied back, or
    places outside are written back. Besides one copy of the parameter (`buffer`) nothing is dense.

    Args:
        parameter: The live parameter.
        mask: Booleans of its shape, true where it may move.
        buffer: Of the parameter's size, to remember it in; several masks of one parameter, of which
            one holds at a time, can share it.

    Raises:
        InputError: The parameter is not laid out in one piece of memory.
    """

    def __init__(self, parameter: nn.Parameter, mask: Tensor, buffer: Tensor | None = None) -> None:
        if not parameter.is_contiguous():
            raise InputError(
                f"a parameter of shape {list(parameter.shape)} is a view that is not contiguous",
                expected="contiguous weights",
                fix="make them so: parameter.data = parameter.data.contiguous()",
            )
        flat = mask.reshape(-1)
        self._parameter = parameter
        self._few_inside = 2 * int(flat.sum()) <= flat.numel()
        self._places = (flat if self._few_inside else ~flat).nonzero()[:, 0]
        self._buffer = buffer
        self._outside: Tensor | None = None

    @property
    def _values(self) -> Tensor:
        return self._parameter.detach().view(-1)

    def remember(self) -> None:
        """What is outside now is what `restore` puts back."""
        if not self._few_inside:
            self._outside = self._values[self._places]
        elif self._buffer is None:
            self._buffer = self._values.clone()
        else:
            self._buffer.view(-1).copy_(self._values)

    def restore(self) -> None:
        """Put back what was outside, bitwise."""
        values = self._values
        if self._few_inside:
            assert self._buffer is not None  # noqa: S101 - remember() comes first
            inside = values[self._places]
            values.copy_(self._buffer.view(-1))
            values.index_copy_(0, self._places, inside)
        else:
            assert self._outside is not None  # noqa: S101 - remember() comes first
            values.index_copy_(0, self._places, self._outside)

    def changed(self) -> bool:
        """Whether anything outside differs from what was remembered."""
        if self._few_inside:
            now = self._values.clone()
            self.restore()
            same = torch.equal(now, self._values)
            self._values.copy_(now)
            return not same
        assert self._outside is not None  # noqa: S101 - remember() comes first
        return not torch.equal(self._outside, self._values[self._places])

    def clear(self, tensor: Tensor | None = None) -> None:
        """Zeros outside, in the parameter or in a tensor of its shape, whatever stood there."""
        values = self._values if tensor is None else tensor.detach().view(-1)
        if self._few_inside:
            inside = values[self._places]
            values.zero_()
            values.index_copy_(0, self._places, inside)
        else:
            values.index_fill_(0, self._places, 0.0)
