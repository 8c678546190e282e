"""Polyphase interpolation: refine a field by an integer scale with the same weights in every cell.

Torch only, no xarray; tensors are (b, c, y, x). A fine cell sits at one of ``scale`` phases inside its coarse
cell, and each phase has one fixed set of weights over the neighbouring coarse cells. Weights depend on the
phase alone, never on the absolute index, so a tile gives what the whole gives. (`torch.nn.functional.interpolate`
computes positions in float32 and drifts with the index.) The geometry is that of ``align_corners=False``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from xsuperres.nn.geometry import Block, Interval
from xsuperres.registry import Registry

__all__ = ["KERNELS", "Interpolation", "interpolate", "interpolate_valid", "radius", "repeat_cells"]

KERNELS: Registry[Callable[[float], float]] = Registry("interpolation method")


@KERNELS.add("nearest")
def _nearest(distance: float) -> float:
    """Weight 1 inside the own cell."""
    return 1.0 if abs(distance) < 0.5 else 0.0


@KERNELS.add("bilinear", aliases=("linear",))
def _linear(distance: float) -> float:
    """Triangle of radius 1."""
    return max(0.0, 1.0 - abs(distance))


@KERNELS.add("bicubic", aliases=("cubic",))
def _cubic(distance: float) -> float:
    """Cubic convolution of Keys (1981), doi:10.1109/TASSP.1981.1163711, with a = -1/2 (third order)."""
    a, d = -0.5, abs(distance)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


_RADIUS = {"nearest": 0, "bilinear": 1, "bicubic": 2}


def radius(method: str) -> int:
    """Return how many neighbouring coarse cells on each side the method reads."""
    return _RADIUS[KERNELS.canonical(method)]


@cache
def phase_weights(method: str, scale: int) -> Tensor:
    """Return the weights of `method`, float64 (scale phases, 2 radius + 1 taps); each row sums to 1."""
    kernel, reach = KERNELS.get(method), radius(method)
    # Phase positions are multiples of 1 / (2 scale): exact enough in float64, the same in every cell.
    offsets = [(2 * phase + 1 - scale) / (2 * scale) for phase in range(scale)]
    rows = [[kernel(tap - offset) for tap in range(-reach, reach + 1)] for offset in offsets]
    with torch.inference_mode(False):  # cached, and used in training too
        weights = torch.tensor(rows, dtype=torch.float64, device="cpu")
        return weights / weights.sum(dim=1, keepdim=True)


@cache
def _kernel(method: str, scale: int, dtype: torch.dtype, device: str) -> Tensor:
    """Return the weights of all scale x scale phases as a convolution (scale * scale, 1, taps, taps)."""
    with torch.inference_mode(False):  # cached, and used in training too
        line = phase_weights(method, scale)
        plane = torch.einsum("pi,qj->pqij", line, line).flatten(0, 1)[:, None]
        return plane.to(device=device, dtype=dtype)


def interpolate(field: Tensor, scale: int, method: str = "bicubic") -> Tensor:
    """Refine `field` (b, c, y, x) to (b, c, scale * y, scale * x); edges repeat the outermost cell.

    Examples
    --------
    >>> interpolate(torch.tensor([[[[0.0, 4.0]]]]), 2, "bilinear")[0, 0, 0]
    tensor([0., 1., 3., 4.])
    """
    if radius(method) == 0:
        return repeat_cells(field, scale)
    return _phases(field, scale, method)


def _phases(field: Tensor, scale: int, method: str, *, absolute: bool = False) -> Tensor:
    """Convolve with the weights, or their absolute values, of every phase and interleave: (b, c, Y, X)."""
    b, c, ny, nx = field.shape
    reach = radius(method)
    planes = field.reshape(b * c, 1, ny, nx)
    padded = F.pad(planes, (reach,) * 4, mode="replicate")
    kernel = _kernel(method, scale, field.dtype, str(field.device))
    phases = F.conv2d(padded, kernel.abs() if absolute else kernel)
    return F.pixel_shuffle(phases, scale).reshape(b, c, ny * scale, nx * scale)


def interpolate_valid(field: Tensor, valid: Tensor, scale: int, method: str = "bicubic") -> Tensor:
    """Refine a field with missing cells, reading valid cells only.

    Where the whole stencil of `method` is valid the result is that of `interpolate`; elsewhere it is the
    bilinear interpolation normalised by the mask, whose weights are never negative and never vanish in a valid
    cell. Fine cells without any valid neighbour become 0.

    Parameters
    ----------
    field : Tensor (b, c, y, x)
        Finite everywhere; values of missing cells are ignored.
    valid : Tensor of bool (b, c, y, x)
        Where `field` counts.
    """
    filled = torch.where(valid, field, torch.zeros_like(field))
    if radius(method) == 0:
        return repeat_cells(filled, scale)
    weight = interpolate(valid.to(field.dtype), scale, "bilinear")
    # 2**-20 is far below the smallest bilinear weight of a valid cell and far above rounding.
    linear = interpolate(filled, scale, "bilinear") / weight.clamp_min(2.0**-20)
    linear = torch.where(weight > 2.0**-20, linear, torch.zeros_like(linear))
    incomplete = _phases((~valid).to(field.dtype), scale, method, absolute=True) > 0
    return torch.where(incomplete, linear, interpolate(filled, scale, method))


def repeat_cells(field: Tensor, scale: int) -> Tensor:
    """Return `field` (b, c, y, x) with every cell repeated scale x scale times, by index, without rounding."""
    b, c, ny, nx = field.shape
    spread = field[:, :, :, None, :, None].expand(b, c, ny, scale, nx, scale)
    return spread.reshape(b, c, ny * scale, nx * scale)


class Interpolation(Block):
    """`interpolate` as a block of a network."""

    def __init__(self, scale: int, method: str) -> None:
        super().__init__()
        self.scale, self.method = scale, KERNELS.canonical(method)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, y, x) -> (b, c, scale y, scale x)
        return interpolate(x, self.scale, self.method)

    def needs(self, out: Interval) -> Interval:
        lows, highs = _reached(self.method, self.scale)
        cells = [divmod(fine, self.scale) for fine in range(out.start, out.stop)]
        return Interval(
            min(cell + lows[phase] for cell, phase in cells),
            max(cell + highs[phase] for cell, phase in cells) + 1,
        )


@cache
def _reached(method: str, scale: int) -> tuple[list[int], list[int]]:
    """Return, for every phase, the lowest and the highest tap with a nonzero weight."""
    rows = [torch.nonzero(row).flatten() - radius(method) for row in phase_weights(method, scale)]
    return [int(row.min()) for row in rows], [int(row.max()) for row in rows]
