"""The super-resolution network: encode -> upsample -> merge fine static fields -> head.

Torch only, no xarray; tensors are scaled. It maps coarse channels (b, c, y, x) and fine static channels
(1 or b, s, scale y, scale x) to the correction of the linear baseline (b, outputs, scale y, scale x), in units of
the baseline's training error. Every combination of backbone and upsampling is composed here from the registries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsuperres.config import NetworkConfig
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.blocks import Conv, Merge, activation
from xsuperres.nn.geometry import Block, Chain, Interval, halo_of
from xsuperres.nn.resample import repeat_cells
from xsuperres.nn.upsamplers import UPSAMPLERS, Upsampler

__all__ = ["Cells", "LocationFeatures", "NetworkSpec", "SuperResolution", "build_network"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All that determines a network's layers; stored in the model file."""

    backbone: str
    upsampling: str
    scale: int
    inputs: int
    statics: int = 0
    outputs: int = 1
    masked: bool = False  # whether the last coarse channel says which cells are valid
    domain: tuple[int, int] | None = None  # fine (rows, columns) of the stored grid, for location features
    config: NetworkConfig = field(default_factory=NetworkConfig)


@dataclass(frozen=True)
class Cells:
    """Where samples lie on the stored fine grid: rows (1 or b, Y) and columns (1 or b, X), int64."""

    rows: Tensor
    columns: Tensor


class LocationFeatures(nn.Module):
    """Learned fields on a fixed domain, cropped by stored-grid index (successor of a locally connected layer)."""

    def __init__(self, count: int, domain: tuple[int, int]) -> None:
        super().__init__()
        self.fields = nn.Parameter(torch.zeros(count, *domain))

    def forward(self, cells: Cells) -> Tensor:  # -> (1 or b, count, Y, X)
        window = self.fields[:, cells.rows[:, :, None], cells.columns[:, None, :]]  # (count, b, Y, X)
        return window.transpose(0, 1)


class SuperResolution(Block):
    """One network of the matrix backbone x upsampling.

    A pre-upsampling network reads the interpolated coarse channels and the static channels at the fine grid; the
    others read the static channels at the coarse grid (space-to-depth, which keeps their detail) and again,
    after the upsampling, at the fine grid.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        config, kind = spec.config, UPSAMPLERS.get(spec.upsampling)
        self.before = kind.before_backbone
        self.location = _location(spec)
        statics = spec.statics + config.location_features
        detail = statics if self.before else statics * spec.scale**2
        self.stem = Merge(spec.inputs, detail, config.width)
        self.backbone = BACKBONES.get(spec.backbone)(config.width, config.depth, config.activation)
        features = config.width if self.before else config.head_width
        self.upsampler: Upsampler = (
            kind(spec.inputs, spec.inputs, spec.scale) if self.before else kind(config.width, features, spec.scale)
        )
        self.merge = Merge(features, statics, config.head_width)
        self.head = Chain(activation(config.activation), Conv(config.head_width, spec.outputs))
        self.activate = activation(config.activation)
        _start_at_zero(self.head)

    def forward(self, coarse: Tensor, static: Tensor | None = None, cells: Cells | None = None) -> Tensor:
        # (b, inputs, y, x), (1 or b, statics, Y, X) -> (b, outputs, Y, X)
        fixed = self._fixed(static, cells)
        if self.before:
            features = self.backbone(self.activate(self.stem(self._interpolated(coarse), fixed)))
        else:
            detail = None if fixed is None else F.pixel_unshuffle(fixed, self.spec.scale)
            features = self.backbone(self.activate(self.stem(coarse, detail)))
            features = self.upsampler(features)
        return self.head(self.merge(features, fixed))

    def _interpolated(self, coarse: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, inputs, Y, X)
        """Return the coarse channels at the fine grid, made from valid cells only; the mask is spread as it is."""
        if not self.spec.masked:
            return self.upsampler(coarse)
        mask = coarse[:, -1:]
        values = self.upsampler(coarse[:, :-1], mask)
        return torch.cat([values, repeat_cells(mask, self.spec.scale)], dim=1)

    def _fixed(self, static: Tensor | None, cells: Cells | None) -> Tensor | None:
        """Return static channels and location features in one tensor (1 or b, c, Y, X), if there are any."""
        if self.location is None or cells is None:
            return static
        learned = self.location(cells)
        if static is None:
            return learned
        batch = max(len(static), len(learned))
        return torch.cat([part.expand(batch, -1, -1, -1) for part in (static, learned)], dim=1)

    def needs(self, out: Interval) -> Interval:
        fine = self.merge.needs(self.head.needs(out))
        if self.before:
            inner = self.stem.needs(self.backbone.needs(fine))
            return self.upsampler.needs(inner).union(fine.coarsened(self.spec.scale))
        inner = self.stem.needs(self.backbone.needs(self.upsampler.needs(fine)))
        return inner.union(fine.coarsened(self.spec.scale))

    @property
    def halo(self) -> int:
        """Neighbouring coarse cells on each side that the network reads."""
        return halo_of(self, self.spec.scale)


def build_network(spec: NetworkSpec) -> SuperResolution:
    """Return a new network for `spec`; names are resolved here, an unknown one lists the choices."""
    return SuperResolution(spec)


def _location(spec: NetworkSpec) -> LocationFeatures | None:
    if not spec.config.location_features or spec.domain is None:
        return None
    return LocationFeatures(spec.config.location_features, spec.domain)


def _start_at_zero(head: nn.Module) -> None:
    """Zero the last convolution: training starts at the linear baseline, not worse."""
    last = [module for module in head.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
