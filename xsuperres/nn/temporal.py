"""Fusing the frames of a time window into the features of one output step.

Torch only, no xarray. Frames are encoded once each, whatever the number of windows they appear in: features and the
input part of the gates are (f, c, y, x), and windows (b, n) say which frames each output step is made from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xsuperres.nn.blocks import Conv, pointwise_conv
from xsuperres.nn.geometry import Block, Interval
from xsuperres.nn.layers import added

__all__ = ["RecurrentFusion", "taken"]


class RecurrentFusion(Block):
    """A convolutional LSTM over the window (Shi et al. 2015, arXiv:1506.04214), added to the output frame's features.

    The convolution of the input, by far the wider one, runs once per frame (`gates`); only that of the hidden state
    runs once per frame and window.

    Parameters
    ----------
    width : int
        Channels of the features.
    hidden : int
        Channels of the recurrent state.
    window : int
        Frames per window.
    """

    def __init__(self, width: int, hidden: int, window: int) -> None:
        super().__init__()
        self.hidden, self.window = hidden, window
        self.input = pointwise_conv(width, 4 * hidden)
        self.recurrent = Conv(hidden, 4 * hidden, bias=False)
        self.output = pointwise_conv(hidden, width)
        with torch.no_grad():  # remember at first (Jozefowicz et al. 2015)
            self.input.get_parameter("module.bias")[hidden : 2 * hidden] = 1.0

    def gates(self, features: Tensor) -> Tensor:  # (f, width, y, x) -> (f, 4 hidden, y, x)
        """Return what the frames contribute to the gates."""
        return self.input(features)

    def forward(self, features: Tensor, gates: Sequence[Tensor]) -> Tensor:
        # (b, width, y, x) of the output frames, n times (b, 4 hidden, y, x) -> (b, width, y, x)
        """Fuse the frames of each window, whose gates come step by step, into the features of its output frame."""
        state, memory = self._step(torch.sigmoid(gates[0]), None)
        for step in gates[1:]:
            opened = self.recurrent(state).add_(step).sigmoid_()
            state, memory = self._step(opened, memory)
        return added(self.output(state), features)

    def _step(self, opened: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the new state and memory (b, hidden, y, x) from sigmoids (b, 4 hidden, y, x).

        One sigmoid of all channels is much faster than one per part; a tanh(v), slower by far, is 2 sigmoid(2 v) - 1,
        and the weights take in the factor of 2 of the new value's.
        """
        enter, keep, leave, new = opened.chunk(4, dim=1)
        entered = torch.addcmul(-enter, enter, new, value=2.0)
        memory = entered if memory is None else torch.addcmul(entered, keep, memory)
        return torch.addcmul(-leave, leave, (2 * memory).sigmoid_(), value=2.0), memory

    def needs(self, out: Interval) -> Interval:
        return self.input.needs(out.grow((self.window - 1) * self.recurrent.reach))


def taken(frames: Tensor, index: Tensor) -> Tensor:
    """Return some frames (f, c, y, x) by index (b,); a view where they follow each other."""
    first, count = int(index[0]), len(index)
    if bool((index == torch.arange(first, first + count)).all()):
        return frames[first : first + count]
    return frames[index.to(frames.device)]
