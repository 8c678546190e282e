"""Where the tensors of one pass lie: asked by the few layers that are random or look at the whole domain.

Torch only, no xarray. Random numbers are an integer hash of seed, member, sample, layer, channel and cell, so that
they are the same on every device and under any chunking; whole-domain statistics leave out wrapped columns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Place", "at", "here", "normal", "sample_keys", "uniform"]

_LOW = 0xFFFFFFFF  # 32 bits, kept in int64: torch has no unsigned arithmetic on every device


@dataclass(frozen=True)
class Place:
    """The block of one pass.

    Parameters
    ----------
    rows, columns : Tensor of int64 (y,), (x,)
        Its coarse cells on the grid of the input, columns modulo the turn.
    keys : Tensor of int64 (b,) or None
        What tells samples and members apart, see `sample_keys`; None for a pass without random numbers.
    core : tuple of slice or None
        The coarse rows and columns that are the domain itself, where others are wrapped copies.
    """

    rows: Tensor
    columns: Tensor
    keys: Tensor | None = None
    core: tuple[slice, slice] | None = None

    def cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of `x` (b, c, y, x), which lies on the coarse or on a refined grid."""
        scale = x.shape[-1] // len(self.columns)
        parts = torch.arange(scale, device=x.device)
        rows, columns = ((line.to(x.device)[:, None] * scale + parts).flatten() for line in (self.rows, self.columns))
        return rows, columns

    def domain(self, x: Tensor) -> Tensor:
        """Return the part of `x` (b, c, y, x) that is the domain itself."""
        if self.core is None:
            return x
        scale = x.shape[-1] // len(self.columns)
        rows, columns = (slice(part.start * scale, part.stop * scale) for part in self.core)
        return x[..., rows, columns]


_HERE: ContextVar[Place | None] = ContextVar("xsuperres_place", default=None)


def here() -> Place | None:
    """Return the place of the pass that is running, or None during training."""
    return _HERE.get()


@contextlib.contextmanager
def at(place: Place | None) -> Iterator[None]:
    """Run what is inside at `place`."""
    token = _HERE.set(place)
    try:
        yield
    finally:
        _HERE.reset(token)


def _mixed(x: Tensor) -> Tensor:
    """Return a hash of 32-bit integers (Wellons 2018, "lowbias32")."""
    x = x & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def _joined(key: Tensor, index: Tensor) -> Tensor:
    """Return the hash of a key and one more index; the order counts."""
    return _mixed(key * 0x9E3779B1 + _mixed(index + 0x632BE5AB))


def sample_keys(seed: int, *indices: Sequence[int] | Tensor) -> Tensor:
    """Return one key per sample from the seed and the sample's indices along each leading dim, int64 (b,).

    Examples
    --------
    >>> sample_keys(0, [0, 1, 0], [3, 3, 3]).unique().numel()
    2
    """
    key = _mixed(torch.tensor([seed % 2**32, seed // 2**32]))
    joined = _joined(key[:1], key[1:])
    for index in indices:
        joined = _joined(joined, torch.as_tensor(index, dtype=torch.int64))
    return joined


def _hashed(place: Place, x: Tensor, layer: int, *, per_cell: bool) -> Tensor:
    """Return 32-bit hashes (b, c, y, x), or (b, c, 1, 1)."""
    if place.keys is None:
        raise ValueError("There are no keys in this place.")
    channels = torch.arange(x.shape[1], device=x.device)
    key = _joined(_joined(place.keys.to(x.device), torch.tensor(layer, device=x.device))[:, None], channels)
    key = key[..., None, None]
    if not per_cell:
        return key
    rows, columns = place.cells(x)
    return _joined(_joined(key, rows[:, None]), columns)


def _fraction(hashed: Tensor) -> Tensor:
    """Return float32 strictly between 0 and 1: 23 bits and a half are exact."""
    return ((hashed >> 9).float() + 0.5) * 2.0**-23


def uniform(place: Place, x: Tensor, layer: int, *, per_cell: bool = True) -> Tensor:
    """Return uniform random numbers for `x` (b, c, y, x), or one per channel (b, c, 1, 1)."""
    return _fraction(_hashed(place, x, layer, per_cell=per_cell))


def normal(place: Place, x: Tensor, layer: int) -> Tensor:
    """Return standard normal random numbers for `x` (b, c, y, x) (Box and Muller 1958)."""
    first = _hashed(place, x, layer, per_cell=True)
    radius = (-2.0 * _fraction(first).log()).sqrt()
    return radius * (2.0 * math.pi * _fraction(_mixed(first ^ 0x5BD1E995))).cos()
