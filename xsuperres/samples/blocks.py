"""Training data in blocks of time: fine target, its coarsening, and bicubic, as arrays in canonical order.

Labelled arrays in, numpy out. Blocks follow the chunks of the store; when all of them fit the memory budget they are
one block, kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.fields.channels import Channels
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.grid import Grid
from xsuperres.fields.resample import coarsen_array, interpolate_array
from xsuperres.samples.holdout import leading_dim
from xsuperres.samples.readers import Block
from xsuperres.tiles import split

__all__ = ["FieldBlocks", "Fields"]

_ARRAYS = 5  # fine arrays alive per field: target, bicubic, scaled target, skip, and one in the making


@dataclass(frozen=True)
class Fields:
    """One block, float32: target and bicubic (n, Y, X), coarse (n, y, x)."""

    target: np.ndarray
    coarse: np.ndarray
    bicubic: np.ndarray


class FieldBlocks:
    """The fields of a DataArray, counted along time first, in blocks.

    Parameters
    ----------
    da : xr.DataArray
        The fine data.
    grid : Grid
        Its grid.
    memory_budget : int
        Bytes; more data than this are read again in every epoch.
    """

    def __init__(self, da: xr.DataArray, grid: Grid, scale: int, config: DataConfig, memory_budget: int) -> None:
        lead = leading_dim(da, grid)
        values = grid.canonical(da)
        self.values = values if lead is None else values.transpose(lead, ...)
        self.lead, self.grid, self.scale, self.config = lead, grid, scale, config
        self.per_step = int(np.prod(self.values.shape[1:-2], dtype=int)) if lead else 1
        bytes_per_step = self.per_step * grid.y.size * grid.x.size * 4 * _ARRAYS
        self.slices = self._slices(max(1, memory_budget // bytes_per_step))
        self._kept: Fields | None = None

    def _slices(self, steps_in_memory: int) -> list[slice]:
        count = self.values.shape[0] if self.lead else 1
        if count <= steps_in_memory:
            return [slice(0, count)]
        largest = max(1, steps_in_memory // 3)  # one in use, one being read, one being made
        chunks = self.values.chunks[0] if is_lazy(self.values) and self.values.chunks else (1,) * count
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

    def load(self, index: int) -> Fields:
        """Read a block, coarsen it, interpolate it back."""
        if self._kept is not None:
            return self._kept
        part = self.values[self.slices[index]] if self.lead else self.values
        target = np.asarray(part.values, dtype=np.float32).reshape(-1, *self.grid.shape)
        coarse = coarsen_array(
            target, self.grid.area, self.scale, minimum_valid_fraction=self.config.minimum_valid_fraction
        )
        fields = Fields(target, coarse, self._bicubic(coarse))
        if len(self) == 1:
            self._kept = fields
        return fields

    def _bicubic(self, coarse: np.ndarray) -> np.ndarray:
        periodic = self.grid.x.periodic
        parts = [slice(p.start // self.scale, p.stop // self.scale) for p in self.grid.parts()]
        fine = [interpolate_array(coarse[..., p], self.scale, periodic=periodic) for p in parts]
        return np.concatenate(fine, axis=-1)

    def chosen(self, mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Return the blocks that hold fields of `mask` (fields,), each with its part of the mask."""
        parts = [(index, mask[self.fields(index)]) for index in range(len(self))]
        return [(index, part) for index, part in parts if part.any()]

    def scaled(self, index: int, chosen: np.ndarray, channels: Channels) -> Block:
        """Return some fields of a block as training samples in scaled units."""
        fields = self.load(index)
        skip = np.zeros_like(fields.bicubic[chosen])
        if channels.has_skip:
            skip = fields.bicubic[chosen] - np.float32(channels.mean)
            if channels.correction is not None:
                skip = skip + channels.correction.astype(np.float32)
        target = (fields.target[chosen] - np.float32(channels.mean)) / np.float32(channels.sd)
        skip = skip / np.float32(channels.sd)
        missing = ~np.isfinite(fields.bicubic[chosen])  # the coarse cell is, whatever the skip
        return Block(
            self._shown(fields.coarse[chosen], channels),
            np.where(missing, 0, skip)[:, None].astype(np.float32),
            np.where(missing, np.nan, target)[:, None].astype(np.float32),
        )

    def _shown(self, coarse: np.ndarray, channels: Channels) -> np.ndarray:
        """Return the coarse channels (n, c, y, x) of whole fields, part by part, wrapped where periodic."""
        parts = []
        for part in self.grid.coarsen(self.scale).parts():
            wrap = self.config.reach if self.grid.x.periodic else 0
            size = part.stop - part.start
            columns = part.start + np.arange(-wrap, size + wrap) % size
            values = torch.from_numpy(np.ascontiguousarray(coarse[..., columns]))
            climatology = channels.climatology
            chosen = None if climatology is None else torch.from_numpy(climatology[:, columns])
            shown = channels.coarse(values, torch.isfinite(values), chosen)[1]
            parts.append(shown[..., wrap : wrap + size])
        return torch.cat(parts, dim=-1).numpy()
