"""Batches of training samples from blocks of fields, in memory or streamed.

A block is a stretch of fields already scaled and interpolated. One block that fits the memory budget is kept;
more are loaded in random order, the next one in the background while the current one is used. Windows are
gathered as strided views, so that a sample costs one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xsuperres.nn.network import Cells
from xsuperres.nn.place import Place
from xsuperres.samples.plan import WindowPlan

__all__ = ["Batch", "Block", "Mirror", "Planes", "Position", "Reader"]


class Position(NamedTuple):
    """Where a training is in its samples: so many whole epochs, and batches of the present one, are used."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Block:
    """Fields of one stretch of time, float32: coarse (m, c, y, x); skip, target (n, t, Y, X); missing target is NaN.

    `windows` (n, w) says which coarse frames each field is made from; None: one each, in order.
    """

    coarse: np.ndarray
    skip: np.ndarray
    target: np.ndarray
    windows: np.ndarray | None = None

    @cached_property
    def complete(self) -> bool:
        """Whether no target is missing."""
        return bool(np.isfinite(self.target).all())


@dataclass(frozen=True)
class Planes:
    """What is the same for every field: fine channels (s, Y, X) and weights (Y, X), float32."""

    fine: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One step's samples: coarse (f, c, y, x), fine (b or 1, s, Y, X), skip, target (b, t, Y, X), weight.

    `windows` (b, w) are the frames of each sample; `place` says which columns are only context, if some are.
    """

    coarse: Tensor
    fine: Tensor | None
    skip: Tensor
    target: Tensor
    weight: Tensor
    cells: Cells
    windows: Tensor | None = None
    place: Place | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, images in channels_last order."""

        def move(tensor: Tensor) -> Tensor:
            tensor = tensor.to(device, non_blocking=True)
            return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

        cells = Cells(move(self.cells.rows), move(self.cells.columns))
        fine = None if self.fine is None else move(self.fine)
        fields = move(self.coarse), fine, move(self.skip), move(self.target), move(self.weight)
        return Batch(*fields, cells, self.windows, self.place)


@dataclass(frozen=True)
class Mirror:
    """Axes ("x", "y") along which samples are mirrored at random.

    `sign` names the channels whose sign that changes, along each axis: coarse ones, and targets.
    """

    flip: tuple[str, ...] = ()
    sign: Mapping[str, tuple[Sequence[int], Sequence[int]]] = field(default_factory=dict)


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
    mirror : Mirror, optional
        Random flips.
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
        mirror: Mirror | None = None,
    ) -> None:
        self.load, self.counts, self.plan, self.scale = load, list(counts), plan, scale
        self.batch_size, self.seed = batch_size, seed
        self.mirror = mirror or Mirror()
        self.planes = Planes(self._padded(planes.fine), self._padded(planes.weight[None]))
        self.shared = plan.patch is None and len(plan.parts) == 1 and not self.mirror.flip
        self._kept: Block | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return sum(self._batches_of(index) for index in range(len(self.counts)))

    def stream(self, position: Position) -> Iterator[tuple[Batch, Position]]:
        """Yield batches from a position on, epoch after epoch without end, each with the position after it."""
        epoch, used = position
        while True:
            for number, batch in enumerate(self.batches(epoch, used), used + 1):
                yield batch, Position(epoch, number)
            epoch, used = epoch + 1, 0

    def batches(self, epoch: int, used: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch in an order of its own, but for the first ones that are `used`.

        Blocks of which all batches are used are not read.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.counts))
        while len(order) and used >= (length := self._batches_of(order[0])):
            for windows in self._windows(order[0], rng):
                self._flips(len(windows), rng)
            order, used = order[1:], used - length
        for index, block in self._blocks(order):
            for windows in self._windows(index, rng):
                flips = self._flips(len(windows), rng)
                if used > 0:
                    used -= 1
                else:
                    yield self._gather(block, windows, flips)

    def _batches_of(self, index: int) -> int:
        """Return how many batches of an epoch come from a block."""
        return -(-self.counts[index] * self.plan.per_field // self.batch_size)

    def _windows(self, index: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the windows of each batch of a block."""
        windows = self.plan.windows(self.counts[index], rng)
        for start in range(0, len(windows), self.batch_size):
            yield windows[start : start + self.batch_size]

    def _flips(self, samples: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return which samples of a batch are mirrored along each axis of `flip`."""
        return {axis: rng.random(samples) < 0.5 for axis in self.mirror.flip}

    def _blocks(self, order: np.ndarray) -> Iterator[tuple[int, Block]]:
        if not len(order):
            return
        if len(self.counts) == 1:
            if self._kept is None:
                self._kept = self._prepared(0)
            yield 0, self._kept
            return
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._prepared, int(order[0]))
            for number, index in enumerate(order):
                block = following.result()
                if number + 1 < len(order):
                    following = pool.submit(self._prepared, int(order[number + 1]))
                yield int(index), block

    def _prepared(self, index: int) -> Block:
        block = self.load(index)
        fields = self._padded(block.coarse, 1), self._padded(block.skip), self._padded(block.target)
        return Block(*fields, block.windows)

    def _padded(self, values: np.ndarray, scale: int | None = None) -> np.ndarray:
        """Return `values` with wrapped columns before and after, so that every window is a plain slice."""
        if not self.plan.periodic:
            return np.ascontiguousarray(values)
        factor = self.scale if scale is None else scale
        first, last = -self.plan.margin, self.plan.last_column
        return np.ascontiguousarray(values[..., np.arange(first * factor, last * factor) % values.shape[-1]])

    def _gather(self, block: Block, windows: np.ndarray, flips: Mapping[str, np.ndarray]) -> Batch:
        field, row, column = windows.T
        at = column + self.plan.margin
        fine_shape = tuple(self.scale * size for size in self.plan.shape)
        frames = field[:, None] if block.windows is None else block.windows[field]
        width = frames.shape[1]
        corners = np.repeat(row, width), np.repeat(at, width)
        coarse = _windows(block.coarse, self.plan.shape)[frames.ravel(), :, *corners]
        skip, target = (
            _windows(values, fine_shape)[field, :, row * self.scale, at * self.scale]
            for values in (block.skip, block.target)
        )
        first = slice(0, 1) if self.shared else slice(None)
        y, x = row[first] * self.scale, at[first] * self.scale
        planes = (self.planes.fine, self.planes.weight)
        fine, weight = (np.moveaxis(_windows(plane, fine_shape), 0, 2)[y, x] for plane in planes)
        if not block.complete:
            valid = np.isfinite(target)
            weight, target = weight * valid, np.where(valid, target, 0)
        samples = {"coarse": coarse, "skip": skip, "target": target, "fine": fine, "weight": weight}
        corner = (y, column[first] * self.scale)
        batch = self._batch(self._flipped(samples, flips), corner)
        if block.windows is None:
            return batch
        return replace(batch, windows=torch.arange(len(field) * width).reshape(-1, width))

    def _flipped(self, samples: dict[str, np.ndarray], flips: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Mirror the chosen samples along each axis, all arrays alike."""
        for name, chosen in flips.items():
            axis = {"y": -2, "x": -1}[name]
            for values in samples.values():
                turned = np.repeat(chosen, len(values) // len(chosen))  # all frames of a sample alike
                values[turned] = np.flip(values[turned], axis)
            coarse, targets = self.mirror.sign.get(name, ((), ()))
            for key, channels in (("coarse", coarse), ("skip", targets), ("target", targets)):
                turned = np.repeat(chosen, len(samples[key]) // len(chosen))
                for channel in channels:
                    samples[key][turned, channel] *= -1
        return samples

    def _batch(self, samples: dict[str, np.ndarray], corner: tuple[np.ndarray, np.ndarray]) -> Batch:
        height, width = samples["target"].shape[-2:]
        place = None
        if self.plan.margin:
            samples["weight"] = samples["weight"] * self._inside(width)
            place = self._place(samples["coarse"].shape)
        columns = (corner[1][:, None] + np.arange(width)) % (self.plan.columns * self.scale)
        cells = Cells(torch.from_numpy(corner[0][:, None] + np.arange(height)), torch.from_numpy(columns))
        tensor = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in samples.items()}
        fine = tensor["fine"] if tensor["fine"].shape[1] else None
        fields = {name: tensor[name] for name in ("coarse", "skip", "target", "weight")}
        return Batch(fine=fine, cells=cells, place=place, **fields)

    def _place(self, shape: tuple[int, ...]) -> Place:
        """Return where a full periodic field lies, whose margins are copies."""
        rows, columns = (torch.arange(size) for size in shape[-2:])
        return Place(
            rows, columns, core=(slice(0, len(rows)), slice(self.plan.margin, len(columns) - self.plan.margin))
        )

    def _inside(self, width: int) -> np.ndarray:
        """Return 0 for the columns that are only context, 1 for the others."""
        margin, columns = self.plan.margin * self.scale, np.arange(width)
        return ((columns >= margin) & (columns < width - margin)).astype(np.float32)


def _windows(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return all windows of the last two axes as a view: (..., first row, first column, height, width)."""
    return np.lib.stride_tricks.sliding_window_view(values, shape, axis=(-2, -1))
