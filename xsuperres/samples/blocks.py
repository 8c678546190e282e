"""Training data in blocks of time: fine targets, coarse inputs, and bicubic, as arrays in canonical order.

Labelled arrays in, numpy out; variables are an axis (targets first). Blocks follow the chunks of the store; when all of
them fit the memory budget they are one block, kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.fields.channels import Channels
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.grid import Grid
from xsuperres.fields.resample import coarsen_array, interpolate_array
from xsuperres.fields.stages import Stage
from xsuperres.fields.times import window_frames
from xsuperres.samples.readers import Block
from xsuperres.tiles import split

__all__ = ["FieldBlocks", "Fields", "Steps"]

_ARRAYS = 5  # fine arrays alive per field: target, bicubic, scaled target, skip, and one in the making


@dataclass(frozen=True)
class Steps:
    """What is known of every step of the leading dim.

    Parameters
    ----------
    segment : ndarray of int (steps,)
        The gapless stretch it belongs to.
    calendar : ndarray (steps, features) or None
        What the calendar says.
    before, after : int
        Frames of a time window around the output step.
    """

    segment: np.ndarray
    calendar: np.ndarray | None = None
    before: int = 0
    after: int = 0

    @property
    def windowed(self) -> bool:
        """Whether there is a time window."""
        return self.before + self.after > 0


@dataclass(frozen=True)
class Fields:
    """One block of fields, float32.

    Parameters
    ----------
    target : ndarray (n, targets, Y, X)
    inputs : ndarray (m, variables, y, x)
        Coarse frames.
    windows : ndarray of int (n, w)
        The frames each field is made from.
    output : int
        Which of them is the field's own.
    calendar : ndarray (m, features) or None
        Of the frames.
    """

    target: np.ndarray
    inputs: np.ndarray
    windows: np.ndarray
    output: int = 0
    calendar: np.ndarray | None = None

    def take(self, chosen: np.ndarray) -> Fields:
        """Return some of the fields, and the frames that these are made from."""
        if chosen.all():
            return self
        windows = self.windows[chosen]
        frames, index = np.unique(windows, return_inverse=True)
        calendar = None if self.calendar is None else self.calendar[frames]
        return replace(
            self,
            target=self.target[chosen],
            inputs=self.inputs[frames],
            windows=index.reshape(windows.shape),
            calendar=calendar,
        )

    @property
    def coarse(self) -> np.ndarray:
        """The coarse targets of the fields' own frames, (n, targets, y, x)."""
        return self.inputs[self._own, : self.target.shape[1]]

    @property
    def shown(self) -> np.ndarray:
        """The inputs of the fields' own frames, (n, variables, y, x): each once, whatever the window."""
        return self.inputs[self._own]

    @property
    def _own(self) -> np.ndarray | slice:
        """The fields' own frames; a slice where that is all."""
        own = self.windows[:, self.output]
        whole = len(own) == len(self.inputs) and bool((own == np.arange(len(own))).all())
        return slice(None) if whole else own


class FieldBlocks:
    """The fields of one or more variables, counted along the leading dim first, in blocks.

    Parameters
    ----------
    fine : DataArray (lead, ..., targets, Y, X)
        Stacked targets in canonical order.
    coarse : DataArray (lead, ..., targets, y, x) or None
        What they are made from; None: their own coarsening.
    predictors : DataArray (lead, ..., predictors, y, x) or None
        On the coarse grid.
    grid : Grid
        The fine grid.
    steps : Steps
        Of the leading dim.
    memory_budget : int
        Bytes; more data than this are read again in every epoch.
    """

    def __init__(
        self,
        fine: xr.DataArray,
        coarse: xr.DataArray | None,
        predictors: xr.DataArray | None,
        *,
        grid: Grid,
        scale: int,
        config: DataConfig,
        steps: Steps,
        memory_budget: int,
    ) -> None:
        self.fine, self.given, self.predictors = fine, coarse, predictors
        self.grid, self.scale, self.config, self.steps = grid, scale, config, steps
        self.per_step = int(np.prod(fine.shape[1:-3], dtype=int))
        bytes_per_step = self.per_step * int(np.prod(fine.shape[-3:])) * 4 * _ARRAYS
        self.slices = self._slices(max(1, memory_budget // bytes_per_step))
        self._kept: Fields | None = None

    def _slices(self, steps_in_memory: int) -> list[slice]:
        count = self.fine.shape[0]
        if count <= steps_in_memory:
            return [slice(0, count)]
        largest = max(1, steps_in_memory // 3)  # one in use, one being read, one being made
        chunks = self.fine.chunks[0] if is_lazy(self.fine) and self.fine.chunks else (1,) * count
        slices, start, stop = [], 0, 0
        for size in (part for chunk in chunks for part in split(chunk, largest)):
            if stop - start and stop + size - start > largest:
                slices.append(slice(start, stop))
                start = stop
            stop += size
        return [*slices, slice(start, stop)]

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def count(self) -> int:
        """Fields in all blocks."""
        return self.slices[-1].stop * self.per_step

    def fields(self, index: int) -> slice:
        """Return the block's fields among all."""
        block = self.slices[index]
        return slice(block.start * self.per_step, block.stop * self.per_step)

    def chosen(self, mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Return the blocks that hold fields of `mask` (fields,), each with its part of the mask."""
        parts = [(index, mask[self.fields(index)]) for index in range(len(self))]
        return [(index, part) for index, part in parts if part.any()]

    def load(self, index: int) -> Fields:
        """Read a block with the frames around it, and coarsen it."""
        if self._kept is not None:
            return self._kept
        core, count = self.slices[index], self.slices[-1].stop
        read = slice(max(0, core.start - self.steps.before), min(count, core.stop + self.steps.after))
        frames = _flat(self.fine[read])
        coarse = self._coarsened(frames) if self.given is None else _flat(self.given[read])
        if self.predictors is not None:
            coarse = np.concatenate([coarse, _flat(self.predictors[read])], axis=1)
        windows = window_frames(self.steps.segment[read], self.steps.before, self.steps.after)
        own = slice(core.start - read.start, core.stop - read.start)
        fields = Fields(
            frames[own.start * self.per_step : own.stop * self.per_step],
            coarse,
            _per_field(windows[own], self.per_step),
            self.steps.before,
            None if self.steps.calendar is None else np.repeat(self.steps.calendar[read], self.per_step, axis=0),
        )
        if len(self) == 1:
            self._kept = fields
        return fields

    def _coarsened(self, frames: np.ndarray) -> np.ndarray:
        least = self.config.minimum_valid_fraction
        return coarsen_array(frames, self.grid.area, self.scale, minimum_valid_fraction=least)

    def bicubic(self, coarse: np.ndarray) -> np.ndarray:
        """Return the interpolation of coarse fields (..., y, x), part by part."""
        periodic = self.grid.x.periodic
        parts = [slice(p.start // self.scale, p.stop // self.scale) for p in self.grid.parts()]
        fine = [interpolate_array(coarse[..., p], self.scale, periodic=periodic) for p in parts]
        return np.concatenate(fine, axis=-1)

    def transformed(self, fields: Fields, stages: Sequence[Stage]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return target, coarse and bicubic (n, targets, ...) after some stages."""
        target, coarse = fields.target, fields.coarse
        for stage in stages:
            target, coarse = stage.forward_targets(target, "fine"), stage.forward_targets(coarse, "coarse")
        return target, coarse, self.bicubic(coarse)

    def scaled(self, index: int, chosen: np.ndarray, channels: Channels) -> Block:
        """Return some fields of a block as training samples in scaled units."""
        fields = self.load(index).take(chosen)
        target, _, bicubic = self.transformed(fields, channels.before_scale)
        missing = ~np.isfinite(bicubic)  # the coarse cell is, whatever the skip
        skip, target = channels.skip.of_samples(bicubic, channels.scale), channels.scale.forward_targets(target, "fine")
        return Block(
            self._inputs(fields, channels),
            np.where(missing, 0, skip).astype(np.float32),
            np.where(missing, np.nan, target).astype(np.float32),
            fields.windows if self.steps.windowed else None,
        )

    def _inputs(self, fields: Fields, channels: Channels) -> np.ndarray:
        """Return the coarse channels (m, c, y, x) of whole frames, part by part, wrapped where periodic."""
        parts = []
        calendar = None if fields.calendar is None else torch.from_numpy(fields.calendar)
        grid = self.grid.coarsen(self.scale)
        channels = channels.on(torch.device("cpu"))
        for part in grid.parts():
            wrap = self.config.reach if grid.x.periodic else 0
            size = part.stop - part.start
            columns = part.start + np.arange(-wrap, size + wrap) % size
            values = torch.from_numpy(np.ascontiguousarray(fields.inputs[..., columns]))
            here = channels.cut(slice(0, grid.y.size), columns, self.scale)
            inputs = here.inputs(values, torch.isfinite(values), calendar)[1]
            parts.append(inputs[..., wrap : wrap + size])
        return torch.cat(parts, dim=-1).numpy()


def _flat(values: xr.DataArray) -> np.ndarray:
    """Return a stack (lead, ..., variables, y, x) in memory as float32 (n, variables, y, x)."""
    return np.asarray(values.values, dtype=np.float32).reshape(-1, *values.shape[-3:])


def _per_field(windows: np.ndarray, per_step: int) -> np.ndarray:
    """Return the windows of fields (steps x per_step, w) from those of steps (steps, w)."""
    fields = windows[:, None, :] * per_step + np.arange(per_step)[None, :, None]
    return fields.reshape(-1, windows.shape[1])
