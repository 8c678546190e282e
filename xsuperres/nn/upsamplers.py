"""Upsamplers: from the coarse to the fine grid, by any scale >= 2, in one step.

Torch only, no xarray. The contract: ``Upsampler(inputs, outputs, scale)`` maps (b, inputs, y, x) to
(b, outputs, scale y, scale x); its class attribute ``before_backbone`` says where in the network it stands.
To add one, decorate a class with ``@UPSAMPLERS.add("name")``.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from xsuperres.nn.blocks import Conv
from xsuperres.nn.geometry import Block, Interval
from xsuperres.nn.resample import Interpolation, interpolate_valid
from xsuperres.registry import Registry

__all__ = ["UPSAMPLERS", "Upsampler"]


class Upsampler(Block):
    """Base of the upsamplers."""

    before_backbone: ClassVar[bool] = False

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.scale = inputs, outputs, scale


UPSAMPLERS: Registry[type[Upsampler]] = Registry("upsampling")


@UPSAMPLERS.add("interpolation", aliases=("pin",))
class PreUpsampling(Upsampler):
    """Interpolate the input channels, then run the backbone at the fine grid (SRCNN; Dong et al. 2014)."""

    before_backbone = True

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__(inputs, outputs, scale)
        self.interpolation = Interpolation(scale, "bicubic")

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:  # (b, c, y, x) -> (b, c, scale y, scale x)
        """Return `x` at the fine grid; `valid` (bool, as `x`) says which cells count."""
        if valid is None or bool(valid.all()):
            return self.interpolation(x)
        return interpolate_valid(x, valid, self.scale)

    def needs(self, out: Interval) -> Interval:
        return self.interpolation.needs(out)


@UPSAMPLERS.add("subpixel", aliases=("spc",))
class SubPixel(Upsampler):
    """Convolve to scale x scale channels per feature and interleave them (Shi et al. 2016, arXiv:1609.05158)."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__(inputs, outputs, scale)
        self.conv = Conv(inputs, outputs * scale * scale)

    def forward(self, x: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, outputs, scale y, scale x)
        return F.pixel_shuffle(self.conv(x), self.scale)

    def needs(self, out: Interval) -> Interval:
        return self.conv.needs(out.coarsened(self.scale))


@UPSAMPLERS.add("resize", aliases=("rc",))
class ResizeConv(Upsampler):
    """Repeat cells, then convolve at the fine grid: no checkerboard (Odena et al. 2016, doi:10.23915/distill.00003)."""

    method: ClassVar[str] = "nearest"

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__(inputs, outputs, scale)
        self.resize, self.conv = Interpolation(scale, self.method), Conv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, outputs, scale y, scale x)
        return self.conv(self.resize(x))

    def needs(self, out: Interval) -> Interval:
        return self.resize.needs(self.conv.needs(out))


@UPSAMPLERS.add("resize_bilinear")
class BilinearConv(ResizeConv):
    """Interpolate features bilinearly, then convolve at the fine grid."""

    method = "bilinear"


@UPSAMPLERS.add("resize_bicubic")
class BicubicConv(ResizeConv):
    """Interpolate features by cubic convolution, then convolve at the fine grid."""

    method = "bicubic"


@UPSAMPLERS.add("deconvolution", aliases=("dc",))
class Deconvolution(Upsampler):
    """Transposed convolution whose kernel spans two coarse cells, so that neighbours overlap."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__(inputs, outputs, scale)
        self.size = 2 * scale - scale % 2  # even with the scale, so that the padding is symmetric
        self.padding = (self.size - scale) // 2
        self.conv = nn.ConvTranspose2d(inputs, outputs, self.size, stride=scale, padding=self.padding)

    def forward(self, x: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, outputs, scale y, scale x)
        return self.conv(x)

    def needs(self, out: Interval) -> Interval:
        first = -(-(out.start + self.padding - self.size + 1) // self.scale)
        last = (out.stop - 1 + self.padding) // self.scale
        return Interval(first, last + 1)
