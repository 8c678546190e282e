"""From fields to network channels, and back: the one place that says what a network is shown and what it is added to.

A chain of stages of one domain in canonical order. Training, validation and inference run the same one, on a CPU or a
GPU. Variables are an axis: targets first, then predictors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from xsuperres.fields.grid import fine_index
from xsuperres.fields.stages import Index, InputFrames, Masks, OutputContext, Plane, Scale, Skip, Sources, Stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Channels"]

S = TypeVar("S", bound=Stage)


@dataclass(frozen=True, eq=False)
class Channels:
    """How fields of one domain become channels, and a network's output becomes fields.

    Parameters
    ----------
    stages : tuple of Stage
        From the user's units to the network, among them one `Scale` and one `Skip`. Inputs go through all of them from
        the first to the last; outputs back, in two parts: to a scaled prediction, which losses see, down to the scale,
        and from there to the user's units.

    Examples
    --------
    >>> from xsuperres.fields.stages import Calendar
    >>> chain = Channels((Scale(mean=(280.0, 5.0), sd=(8.0, 2.0), targets=1), Skip(gain=(0.1,)), Calendar()))
    >>> chain.targets, chain.sources, chain.counts
    (1, (0, 1, None, None, None, None), (6, 0))
    """

    stages: tuple[Stage, ...]

    def find(self, kind: type[S]) -> S | None:
        """Return the stage of a kind, or None."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    @cached_property
    def scale(self) -> Scale:
        """The stage between the user's units and scaled ones."""
        return _present(self.find(Scale))

    @cached_property
    def skip(self) -> Skip:
        """The stage that the network's output is added in."""
        return _present(self.find(Skip))

    @property
    def targets(self) -> int:
        """How many of the variables are targets."""
        return self.scale.targets

    @cached_property
    def before_scale(self) -> tuple[Stage, ...]:
        """The stages from the user's units to those that are scaled."""
        return self.stages[: self.stages.index(self.scale)]

    @cached_property
    def sources(self) -> Sources:
        """Which variable each coarse channel is made from; None for calendar and masks."""
        return sum((stage.sources for stage in self.stages), ())

    @cached_property
    def fine(self) -> np.ndarray:
        """Fine channels (c, Y, X), float32, empty without any."""
        planes = [stage.fine for stage in self.stages if stage.fine is not None]
        return np.concatenate(planes).astype(np.float32) if planes else np.zeros((0, 0, 0), np.float32)

    @property
    def counts(self) -> tuple[int, int]:
        """How many coarse and fine channels a network has."""
        return len(self.sources), len(self.fine)

    @property
    def masked(self) -> tuple[int, ...]:
        """Variables with a channel that says which of their cells are valid."""
        masks = self.find(Masks)
        return () if masks is None else masks.masked

    @property
    def masks(self) -> tuple[tuple[int, ...], ...]:
        """The coarse channels that are made from each masked variable."""
        return tuple(self.channels_of(variable) for variable in self.masked)

    def channels_of(self, variable: int) -> tuple[int, ...]:
        """Return the coarse channels that are made from a variable."""
        return tuple(channel for channel, source in enumerate(self.sources) if source == variable)

    def reach(self, network: int) -> int:
        """Return the neighbouring coarse cells that an output cell depends on, through a network of that reach."""
        inputs = sum(stage.reach for stage in self.stages if stage is not self.skip)
        return max(network + inputs, self.skip.reach)

    def on(self, device: torch.device) -> Channels:
        """Return the chain with its planes on a device."""
        return Channels(tuple(stage.on(device) for stage in self.stages))

    def cut(self, rows: Index, columns: Index, scale: int) -> Channels:
        """Return the chain on some rows and columns of the coarse grid."""
        coarse = _line(rows), _line(columns)
        fine = _refined(coarse[0], scale), _refined(coarse[1], scale)
        return Channels(tuple(stage.cut(coarse, fine) for stage in self.stages))

    def planes(self) -> list[Plane]:
        """Return the planes that blocks are cut from."""
        return [plane for stage in self.stages for plane in stage.planes().values()]

    def inputs(self, values: Tensor, valid: Tensor, calendar: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scaled targets and coarse channels, missing cells filled with 0.

        Parameters
        ----------
        values, valid : Tensor (n, variables, y, x)
            In units of the variables, and where they count.
        calendar : Tensor (n, features), optional
            What the calendar says.

        Returns
        -------
        tuple of Tensor
            The targets (n, targets, y, x) and the channels (n, c, y, x), float32.
        """
        import torch

        frames = InputFrames(values=values, valid=valid, dtype=values.dtype, calendar=calendar)
        for stage in self.stages:
            frames = stage.forward(frames)
        assert frames.scaled is not None
        channels = frames.channels[0] if len(frames.channels) == 1 else torch.cat(frames.channels, dim=1)
        return frames.scaled[:, : self.targets], channels

    def prediction(self, output: Tensor, skip: Tensor | None) -> Tensor:
        """Return scaled predictions from fields in the network's unit and the skip, (n, targets, Y, X) all."""
        context = OutputContext(skip=skip)
        for stage in reversed(self.stages[len(self.before_scale) + 1 :]):
            output = stage.inverse(output, context)
        return output

    def fields(self, prediction: Tensor, dtype: torch.dtype) -> Tensor:
        """Return predictions in units of the variables: unscaled, back from the transform, within physical bounds."""
        context = OutputContext(dtype=dtype)
        for stage in reversed(self.stages[: len(self.before_scale) + 1]):
            prediction = stage.inverse(prediction, context)
        return prediction


def _present(stage: S | None) -> S:
    assert stage is not None
    return stage


def _line(index: Index) -> Index:
    """Return an index as a slice where its cells follow each other: planes are then cut without a copy."""
    if isinstance(index, slice) or not len(index) or (np.diff(index) != 1).any():
        return index
    return slice(int(index[0]), int(index[-1]) + 1)


def _refined(index: Index, scale: int) -> Index:
    """Return the fine cells of coarse ones."""
    if isinstance(index, slice):
        return slice(index.start * scale, index.stop * scale)
    return fine_index(index, scale)
