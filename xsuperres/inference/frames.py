"""The frames of a block, encoded once each, and kept as long as later steps need them.

Numpy in, tensors on the model's device out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from xsuperres.fields.channels import Channels
from xsuperres.inference.guard import warn_everywhere
from xsuperres.inference.prepared import Prepared
from xsuperres.nn.network import Fixed
from xsuperres.nn.place import Place, at

__all__ = ["EncodedFrames", "Frames", "placed"]


@dataclass(frozen=True)
class Frames:
    """A block's frames, and which of them each output step is made from.

    Parameters
    ----------
    values : ndarray (f, variables, y, x)
        In units of the variables, NaN where missing.
    rows, columns : ndarray of int
        Where the block lies on the model's coarse grid.
    calendar : ndarray (f, features) or None
        What the calendar says.
    windows : ndarray of int (n, w) or None
        Frames of each output step; None: one step per frame.
    place : Place or None
        Where the block lies on the input's grid; needed by networks that are random or look at the whole domain.
    keys : tuple of Tensor (f,), (n,), or None
        What tells the random numbers of frames, and of output steps, apart; None: nothing is random.
    """

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    calendar: np.ndarray | None = None
    windows: np.ndarray | None = None
    place: Place | None = None
    keys: tuple[Tensor, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Number of output steps."""
        return len(self.values) if self.windows is None else len(self.windows)


class EncodedFrames:
    """Encodes frames once each, in order, and keeps those that later steps need.

    Features, values and what is valid are kept from the first output frame on, gates from its window's first frame.
    """

    def __init__(self, prepared: Prepared, frames: Frames, channels: Channels, fixed: Fixed) -> None:
        self.prepared, self.frames, self.channels, self.fixed = prepared, frames, channels, fixed
        self.windows = np.arange(len(frames.values))[:, None] if frames.windows is None else frames.windows
        self.output = self.windows[:, 0 if frames.windows is None else prepared.time_halo[0]]
        self.needed = _lowest_to_come(self.windows.min(axis=1)), _lowest_to_come(self.output)
        self.stop = 0
        self.own, self.gates = _Kept(), _Kept()  # (features, values, valid), (gates,)
        finite = np.isfinite(frames.values[:, : channels.targets])
        self.complete = finite.all(axis=(1, 2, 3))  # known here, so that a GPU need not be asked
        _warn_of_missing(frames.values, channels)
        if frames.windows is not None:
            _warn_of_empty(finite.any(axis=(1, 2, 3)))

    def until(self, span: slice) -> None:
        """Keep what some output steps, and those after them, need; if memory is short, nothing has changed."""
        first, own = (int(needed[span.start]) for needed in self.needed)
        start, stop = max(first, self.stop), max(self.stop, int(self.windows[span].max()) + 1)
        new: tuple[Tensor, ...] = ()
        if stop > start:
            parts, values, valid = self._encode(slice(start, stop))
            new = (parts[0], values, valid, *parts[1:])
        self.own, self.gates = self.own.moved(own, new[:3], start), self.gates.moved(first, new[3:], start)
        self.stop = stop

    def _encode(self, span: slice) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        prepared, frames = self.prepared, self.frames
        block = prepared.device.upload(frames.values[span])
        valid = torch.isfinite(block)
        calendar = None if frames.calendar is None else prepared.device.upload(frames.calendar[span])
        with prepared.device.arithmetic("fp32"):
            values, channels = self.channels.inputs(block, valid, calendar)
        place = placed(frames, None if frames.keys is None else frames.keys[0][span])
        with at(place), prepared.device.arithmetic(prepared.precision):
            parts = prepared.encode(channels.contiguous(memory_format=torch.channels_last), self.fixed)
        return parts, values, valid[:, : self.channels.targets]


@dataclass(frozen=True)
class _Kept:
    """Tensors of consecutive frames, the first of which is number `first`."""

    parts: tuple[Tensor, ...] = ()
    first: int = 0

    def moved(self, first: int, new: tuple[Tensor, ...], start: int) -> _Kept:
        """Return what is left from frame `first` on, joined with new frames that begin at `start`."""
        left = tuple(part[first - self.first :] for part in self.parts)
        if not new:
            return _Kept(left, first)
        if not left or not len(left[0]):
            return _Kept(tuple(part[first - start :] for part in new), first)
        return _Kept(tuple(_joined(*pair) for pair in zip(left, new, strict=True)), first)


def _joined(first: Tensor, second: Tensor) -> Tensor:  # (f, c, y, x), (g, c, y, x) -> (f + g, c, y, x)
    """Return frames one after the other; channels come last in memory, and moved there the copy is a plain one."""
    return torch.cat([part.permute(0, 2, 3, 1) for part in (first, second)]).permute(0, 3, 1, 2)


def _lowest_to_come(frames: np.ndarray) -> np.ndarray:
    """Return the lowest frame of each step and all after it."""
    return np.minimum.accumulate(frames[::-1])[::-1]


def placed(frames: Frames, keys: Tensor | None) -> Place | None:
    """Return where the block lies, and what tells its fields apart."""
    return None if frames.place is None else replace(frames.place, keys=keys)


def _warn_of_missing(values: np.ndarray, channels: Channels) -> None:
    complete = [index for index in range(values.shape[1]) if index not in channels.masked]
    if complete and not np.isfinite(values[:, complete]).all():
        warn_everywhere(
            "There are NaN cells, but the model was trained on complete fields and has no mask channel: they are "
            "filled for the network and restored; values next to them are less certain.",
            stacklevel=3,
        )


def _warn_of_empty(valid: np.ndarray) -> None:
    """Warn of frames without any value beside others: a network is shown the mean there, and all of it masked."""
    if valid.any() and not valid.all():
        warn_everywhere(
            f"{int((~valid).sum())} of {valid.size} frames hold no value at all, yet are part of the time windows of "
            "others. Drop such steps, .dropna(dim, how='all'), for windows to repeat the nearest frame instead.",
            stacklevel=3,
        )
