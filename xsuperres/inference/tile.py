"""The function of one task: from a block of the coarse array to a block of the fine one.

Numpy in and out; it finds its model by reference, on whatever worker it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from xsuperres.fields.grid import Location
from xsuperres.fields.times import window_frames
from xsuperres.inference.apply import Mask, apply
from xsuperres.inference.devices import Execution, device_of
from xsuperres.inference.frames import Frames
from xsuperres.inference.guard import Guard
from xsuperres.inference.prepared import Prepared, sub_batch
from xsuperres.inference.workers import ModelReference, prepared_model
from xsuperres.nn.place import Place, sample_keys
from xsuperres.tiles import AxisPlan, Window, map_tiles, split

__all__ = ["Tile", "plane_tiles"]


@dataclass(frozen=True)
class Tile:
    """A function of blocks: small, picklable, deterministic to tokenize.

    `first` is the model's coarse cell (row, column) where the data begin, `period` how many of its columns make a turn,
    `width` how many columns the data have; `stacked` whether there is an axis of variables; `order` is that of the
    leading axes in which fields are numbered, whatever that of the data; `seed` is None where nothing is random,
    `guard` where nobody watches.
    """

    reference: ModelReference
    first: tuple[int, int]
    period: int
    width: int
    stacked: bool
    order: tuple[int, ...]
    seed: int | None
    execution: Execution
    batch_size: int | None
    mask: Mask
    memory_budget: int
    guard: Guard | None = None

    def __call__(self, block: np.ndarray, parts: tuple[Window, ...], steps: np.ndarray | None = None) -> np.ndarray:
        """Return the fine block (..., [targets], Y, X) of a coarse one (..., [variables], y, x).

        Parameters
        ----------
        parts : tuple of Window
            Where the block lies along each axis.
        steps : ndarray (..., time, 1 + features), optional
            Segment and calendar of each step along the last leading axis, or axes.
        """
        block = block if self.stacked else block[..., None, :, :]
        lead = block.shape[:-3]
        execution = self.execution.chosen()  # the worker's own device
        with device_of(execution.device).gate():
            prepared = prepared_model(self.reference, execution)
            if self.guard is not None:
                self.guard.watch(prepared.limits, block, parts, self._location(block, parts))
            series = self._series(block, parts, steps, prepared)
            fine = np.concatenate([self._run(prepared, frames) for frames in series])
        if prepared.network.fusion is not None:
            lead = (*lead[:-1], parts[len(lead) - 1].core)
        fine = fine.reshape(*lead, *fine.shape[1:])
        return fine if self.stacked else fine[..., 0, :, :]

    def _location(self, block: np.ndarray, parts: tuple[Window, ...]) -> Location:
        """Return the model's coarse cells of a block."""
        rows, columns = (part.origin + np.arange(size) for part, size in zip(parts[-2:], block.shape[-2:], strict=True))
        return Location(self.first[0] + rows, (self.first[1] + columns) % self.period)

    def _series(
        self, block: np.ndarray, parts: tuple[Window, ...], steps: np.ndarray | None, prepared: Prepared
    ) -> list[Frames]:
        """Return the frames that go through the network together: all, or the series along time one by one."""
        lead, plane = block.shape[:-3], block.shape[-3:]
        rows, columns = (part.origin + np.arange(size) for part, size in zip(parts[-2:], plane[-2:], strict=True))
        cells = torch.from_numpy(rows), torch.from_numpy(columns % self.width)
        place = Place(*cells, core=(parts[-2].own, parts[-1].own))
        location = self._location(block, parts)
        frames = Frames(
            values=block.reshape(-1, *plane),
            rows=location.rows,
            columns=location.columns,
            place=place,
        )
        keys = self._keys(parts[: len(lead)], lead)
        if steps is not None and steps.shape[-1] > 1:
            told = steps[..., 1:].reshape(-1, steps.shape[-1] - 1)
            frames = replace(frames, calendar=np.tile(told, (math.prod(lead) // max(1, len(told)), 1)))
        if prepared.network.fusion is None or steps is None or not math.prod(lead):  # nothing to follow
            return [replace(frames, keys=None if keys is None else (keys, keys))]
        own, count = parts[len(lead) - 1].own, lead[-1]
        windows = [window_frames(row, *prepared.time_halo)[own] for row in steps[..., 0].reshape(-1, count)]
        return [
            _one_series(frames, slice(at * count, (at + 1) * count), windows[at % len(windows)], keys, own)
            for at in range(math.prod(lead[:-1]))
        ]

    def _keys(self, parts: tuple[Window, ...], lead: tuple[int, ...]) -> Tensor | None:
        """Return what tells fields apart: a hash of the seed and their indices along the leading axes."""
        if self.seed is None:
            return None
        lines = [part.origin + np.arange(size) for part, size in zip(parts, lead, strict=True)]
        indices = [torch.from_numpy(line.ravel()) for line in np.meshgrid(*lines, indexing="ij")]
        return sample_keys(self.seed, *(indices[axis] for axis in self.order))

    def _run(self, prepared: Prepared, frames: Frames) -> np.ndarray:
        """Return the fine fields (n, targets, Y, X).

        A block too large for the memory budget goes through the network in tiles of its own; their halo ends at the
        block's edges, whose outermost cells are either the domain's or trimmed.
        """
        plane = AxisPlan(halo=(prepared.reach,) * 2, scale=prepared.scale)
        plans = (AxisPlan(count=frames.steps), AxisPlan(count=prepared.channels.targets), plane, plane)
        shape = frames.values.shape
        return map_tiles(
            partial(self._apply, prepared, frames),
            frames.values,
            plans,
            dtype=frames.values.dtype,
            chunks=[(shape[0],), (shape[1],), *plane_tiles((shape[2], shape[3]), prepared, self.memory_budget)],
        )

    def _apply(self, prepared: Prepared, frames: Frames, values: np.ndarray, parts: tuple[Window, ...]) -> np.ndarray:
        """Return the fine fields of a tile of a block."""
        y, x = (slice(part.origin, part.origin + size) for part, size in zip(parts[2:], values.shape[2:], strict=True))
        frames = replace(frames, values=values, rows=frames.rows[y], columns=frames.columns[x])
        if frames.place is not None and values.shape[2:] != (len(frames.place.rows), len(frames.place.columns)):
            place = replace(frames.place, rows=frames.place.rows[y], columns=frames.place.columns[x], core=None)
            frames = replace(frames, place=place)
        size = self.batch_size or sub_batch(prepared, values.shape[-2] * values.shape[-1])
        return apply(prepared, frames, batch_size=size, mask=self.mask)


def _one_series(frames: Frames, span: slice, windows: np.ndarray, keys: Tensor | None, own: slice) -> Frames:
    """Return the frames of one series along time."""
    chosen = None if keys is None else (keys[span], keys[span][own])
    calendar = None if frames.calendar is None else frames.calendar[span]
    return replace(frames, values=frames.values[span], calendar=calendar, windows=windows, keys=chosen)


def plane_tiles(shape: tuple[int, int], prepared: Prepared, budget: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return tiles of one field such that the network's activations for a tile and its halo fit the budget."""
    cells, margin = max(1, budget // prepared.bytes_per_cell), 2 * prepared.reach
    if prepared.network.global_context or (shape[0] + margin) * (shape[1] + margin) <= cells:
        return (shape[0],), (shape[1],)
    least = max(1, 4 * prepared.reach)  # else most of the work is done on halos
    wide = min(shape[1], max(least, math.isqrt(cells) - margin))
    tall = min(shape[0], max(least, cells // (wide + margin) - margin))
    return split(shape[0], tall), split(shape[1], wide)
