"""Batches of training samples from blocks of fields, in memory or streamed.

A block is a stretch of fields already scaled and interpolated. One block that fits the memory budget is kept;
more are loaded in random order, the next one in the background while the current one is used. Windows are
gathered as strided views, so that a sample costs one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xsuperres.nn.network import Cells
from xsuperres.samples.plan import WindowPlan

__all__ = ["Batch", "Block", "Planes", "Reader"]


@dataclass(frozen=True)
class Block:
    """Fields of one stretch of time, float32: coarse (n, c, y, x); skip, target (n, 1, Y, X); missing target is NaN."""

    coarse: np.ndarray
    skip: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Planes:
    """What is the same for every field: fine channels (s, Y, X) and weights (Y, X), float32."""

    fine: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One step's samples: coarse (b, c, y, x), fine (b or 1, s, Y, X), skip, target, weight (b or 1, 1, Y, X)."""

    coarse: Tensor
    fine: Tensor | None
    skip: Tensor
    target: Tensor
    weight: Tensor
    cells: Cells

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, images in channels_last order."""

        def move(tensor: Tensor) -> Tensor:
            tensor = tensor.to(device, non_blocking=True)
            return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

        cells = Cells(move(self.cells.rows), move(self.cells.columns))
        fine = None if self.fine is None else move(self.fine)
        return Batch(move(self.coarse), fine, move(self.skip), move(self.target), move(self.weight), cells)


class Reader:
    """Shuffled batches, epoch after epoch, the same for the same seed.

    Parameters
    ----------
    load : callable
        ``load(index)`` returns a block.
    counts : sequence of int
        Fields in every block.
    planes : Planes
        Fine channels and weights.
    plan : WindowPlan
        The windows.
    """

    def __init__(
        self,
        load: Callable[[int], Block],
        counts: Sequence[int],
        planes: Planes,
        plan: WindowPlan,
        *,
        scale: int,
        batch_size: int,
        seed: int,
        flip: tuple[str, ...] = (),
        flip_sign: tuple[str, ...] = (),
    ) -> None:
        self.load, self.counts, self.plan, self.scale = load, list(counts), plan, scale
        self.batch_size, self.seed = batch_size, seed
        self.flip, self.flip_sign = flip, flip_sign
        self.wrap = max(0, plan.shape[1] - 1) if plan.periodic else 0
        self.planes = Planes(self._padded(planes.fine), self._padded(planes.weight[None]))
        self.shared = plan.patch is None and len(plan.parts) == 1 and not flip
        self._kept: Block | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return sum(-(-count * self.plan.per_field // self.batch_size) for count in self.counts)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch in an order of its own."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.counts))
        for index, block in self._blocks(order):
            windows = self.plan.windows(self.counts[index], rng)
            for start in range(0, len(windows), self.batch_size):
                yield self._gather(block, windows[start : start + self.batch_size], rng)

    def _blocks(self, order: np.ndarray) -> Iterator[tuple[int, Block]]:
        if len(order) == 1:
            if self._kept is None:
                self._kept = self._prepared(0)
            yield 0, self._kept
            return
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._prepared, int(order[0]))
            for at, index in enumerate(order):
                block = following.result()
                if at + 1 < len(order):
                    following = pool.submit(self._prepared, int(order[at + 1]))
                yield int(index), block

    def _prepared(self, index: int) -> Block:
        block = self.load(index)
        return Block(self._padded(block.coarse, 1), self._padded(block.skip), self._padded(block.target))

    def _padded(self, values: np.ndarray, scale: int | None = None) -> np.ndarray:
        """Return `values` with the first columns repeated at the end, so that every window is a plain slice."""
        size, count = values.shape[-1], self.wrap * (self.scale if scale is None else scale)
        if not count:
            return np.ascontiguousarray(values)
        return np.ascontiguousarray(values[..., np.arange(size + count) % size])

    def _gather(self, block: Block, windows: np.ndarray, rng: np.random.Generator) -> Batch:
        field, row, column = windows.T
        at = column % self.plan.columns if self.plan.periodic else column
        fine_shape = tuple(self.scale * size for size in self.plan.shape)
        coarse = _windows(block.coarse, self.plan.shape)[field, :, row, at]
        skip, target = (
            _windows(values, fine_shape)[field, :, row * self.scale, at * self.scale]
            for values in (block.skip, block.target)
        )
        first = slice(0, 1) if self.shared else slice(None)
        corner = (row[first] * self.scale, at[first] * self.scale)
        planes = [
            _windows(p, fine_shape)[:, corner[0], corner[1]] for p in (self.planes.fine, self.planes.weight)
        ]
        fine, weight = (np.moveaxis(plane, 0, 1) for plane in planes)
        arrays = self._flipped([coarse, skip, target, fine, weight], rng)
        return self._batch(*arrays, corner)

    def _flipped(self, arrays: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """Mirror some samples along the axes of `flip`, all arrays alike."""
        for name in self.flip:
            axis, chosen = {"y": -2, "x": -1}[name], rng.random(len(arrays[0])) < 0.5
            sign = -1.0 if name in self.flip_sign else 1.0
            for index, values in enumerate(arrays):
                values = values.copy()
                values[chosen] = np.flip(values[chosen], axis) * (sign if index < 3 else 1.0)
                arrays[index] = values
        return arrays

    def _batch(
        self,
        coarse: np.ndarray,
        skip: np.ndarray,
        target: np.ndarray,
        fine: np.ndarray,
        weight: np.ndarray,
        corner: tuple[np.ndarray, np.ndarray],
    ) -> Batch:
        height, width = target.shape[-2:]
        weight = np.broadcast_to(weight, (len(weight), 1, height, width))
        margin = self.plan.margin * self.scale
        if margin:
            inside = np.zeros(width, np.float32)
            inside[margin : width - margin] = 1
            weight = weight * inside
        valid = np.isfinite(target)
        if not valid.all():
            weight, target = weight * valid, np.where(valid, target, 0)
        columns = (corner[1][:, None] + np.arange(width)) % (self.plan.columns * self.scale)
        cells = Cells(torch.from_numpy(corner[0][:, None] + np.arange(height)), torch.from_numpy(columns))
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (coarse, fine, skip, target, weight)]
        coarse_t, fine_t, skip_t, target_t, weight_t = tensors
        return Batch(coarse_t, fine_t if fine.shape[1] else None, skip_t, target_t, weight_t, cells)


def _windows(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return all windows of the last two axes as a view: (..., first row, first column, height, width)."""
    return np.lib.stride_tricks.sliding_window_view(values, shape, axis=(-2, -1))
