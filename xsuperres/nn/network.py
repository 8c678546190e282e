"""The super-resolution network: encode -> (fuse time) -> upsample -> merge fine static fields -> head.

Torch only, no xarray; tensors are scaled. It maps coarse channels (b, c, y, x) and fine static channels (1 or b, s,
scale y, scale x) to what its head says of the correction of the linear baseline, (b, outputs, scale y, scale x), in
units of the baseline's training error. Every combination of backbone and upsampling is composed here from registries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsuperres.config import NetworkConfig
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.blocks import Merge, OutputConv
from xsuperres.nn.geometry import Block, Chain, Interval, halo_of
from xsuperres.nn.heads import HEADS, Head
from xsuperres.nn.layers import ACTIVATIONS, Dropout, activation
from xsuperres.nn.place import here, normal
from xsuperres.nn.resample import repeat_cells
from xsuperres.nn.temporal import RecurrentFusion, taken
from xsuperres.nn.upsamplers import UPSAMPLERS, Upsampler

__all__ = ["Cells", "Encoded", "Fixed", "LocationFeatures", "NetworkSpec", "SuperResolution", "build_network"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All that determines a network's layers; stored in the model file."""

    backbone: str
    upsampling: str
    scale: int
    inputs: int
    statics: int = 0
    outputs: int = 1  # channels of the last convolution, as many per target as the head needs
    head: str = "deterministic"
    masks: tuple[tuple[int, ...], ...] = ()  # of the last coarse channels, each a mask: the channels it holds for
    noise: int = 0  # channels of random numbers before the coarse ones
    time_window: int | None = None  # frames per output step
    output_frame: int = -1  # which of them the output belongs to
    domain: tuple[int, int] | None = None  # fine (rows, columns) of the stored grid, for location features
    config: NetworkConfig = field(default_factory=NetworkConfig)

    @property
    def targets(self) -> int:
        """How many fields the outputs say something of."""
        return self.outputs // HEADS.get(self.head).channels


Encoded = tuple[Tensor, ...]  # features and gates of frames, each (f, c, y, x)


class Fixed(NamedTuple):
    """What the channels that all frames share add to the features, before the backbone and before the head.

    Each is (1 or b, c, y, x) at the resolution there, or None.
    """

    stem: Tensor | None
    merge: Tensor | None


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
    """One network of the matrix backbone x upsampling x sample.

    A pre-upsampling network reads the interpolated coarse channels and the static channels at the fine grid; the
    others read the static channels at the coarse grid (space-to-depth, which keeps their detail) and again,
    after the upsampling, at the fine grid. With a time window every frame is encoded once, and the frames of a window
    are fused before the upsampling, or in place of it.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        config, kind = spec.config, UPSAMPLERS.get(spec.upsampling)
        self.before = kind.before_backbone
        self.location = _location(spec)
        statics, inputs = spec.statics + config.location_features, spec.noise + spec.inputs
        detail = statics if self.before else statics * spec.scale**2
        self.stem = Merge(inputs, detail, config.width)
        self.backbone = BACKBONES.get(spec.backbone)(config)
        self.fusion = _fusion(spec, before=self.before)
        features = config.width if self.before else config.head_width
        self.upsampler: Upsampler = (
            kind(inputs, inputs, spec.scale) if self.before else kind(config.width, features, spec.scale)
        )
        self.merge = Merge(features, statics, config.head_width)
        self.head = Chain(activation(config.activation), OutputConv(config.head_width, spec.outputs))
        self.activate = activation(config.activation)
        _start_at_zero(self.head)
        for layer, module in enumerate(m for m in self.modules() if isinstance(m, Dropout)):
            module.layer = layer + 1
        self.global_context = any(isinstance(m, Block) and m.global_context for m in self.modules())

    def forward(
        self, coarse: Tensor, static: Tensor | None = None, cells: Cells | None = None, windows: Tensor | None = None
    ) -> Tensor:
        # (f, inputs, y, x), (1 or b, statics, Y, X), windows (b, n) of frames -> (b, outputs, Y, X)
        fixed = self.fixed(static, cells)
        features, *gates = self.encode(coarse, fixed)
        if windows is not None:
            features = taken(features, windows[:, self.spec.output_frame])
        return self.decode(features, self.windowed(gates, windows), fixed)

    def encode(self, coarse: Tensor, fixed: Fixed) -> Encoded:
        """Return what is computed once per frame: features and, with a time window, their part of the gates."""
        if self.spec.noise:
            coarse = torch.cat([self._noise(coarse), coarse], dim=1)
        stem = self.stem(self._interpolated(coarse) if self.before else coarse, fixed.stem)
        features = self.backbone(self.activate(stem))
        return (features,) if self.fusion is None else (features, self.fusion.gates(features))

    def windowed(self, gates: Sequence[Tensor], windows: Tensor | None) -> list[Tensor]:
        """Return the gates of the first frame of every window (b, n), of the second, and so on."""
        if self.fusion is None:
            return []
        if windows is None:
            raise ValueError(f"A network with a time window of {self.spec.time_window} needs the windows' frames.")
        return [taken(gates[0], windows[:, step]) for step in range(windows.shape[1])]

    def decode(self, features: Tensor, gates: Sequence[Tensor], fixed: Fixed) -> Tensor:
        """Return the output (b, outputs, Y, X) from the features of the output frames, and `windowed` gates."""
        if self.fusion is not None:
            features = self.fusion(features, gates)
        if not self.before:
            features = self.upsampler(features)
        return self.head(self.merge(features, fixed.merge))

    def _noise(self, coarse: Tensor) -> Tensor:  # (f, c, y, x) -> (f, noise, y, x)
        """Return random numbers during training and for members, else their mean."""
        like = coarse[:, :1].expand(-1, self.spec.noise, -1, -1)
        place = here()
        if place is not None and place.keys is not None:
            return normal(place, like, 0).to(coarse.dtype)
        return torch.randn_like(like) if self.training else torch.zeros_like(like)

    @property
    def output_head(self) -> Head:
        """What the channels of the output mean."""
        return HEADS.get(self.spec.head)

    @property
    def is_random(self) -> bool:
        """Whether members can differ: by noise, by draws of the head, or by dropout."""
        if self.spec.noise > 0 or self.output_head.is_random:
            return True
        return any(isinstance(module, Dropout) for module in self.modules())

    def _interpolated(self, coarse: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, inputs, Y, X)
        """Return the coarse channels at the fine grid, each made from its own valid cells; masks spread as they are."""
        count = len(self.spec.masks)
        if not count:
            return self.upsampler(coarse)
        values, masks = coarse[:, :-count], coarse[:, -count:]
        valid = torch.ones_like(values, dtype=torch.bool)
        for mask, channels in enumerate(self.spec.masks):
            valid[:, [self.spec.noise + channel for channel in channels]] = masks[:, mask : mask + 1] > 0.5
        return torch.cat([self.upsampler(values, valid), repeat_cells(masks, self.spec.scale)], dim=1)

    def fixed(self, static: Tensor | None, cells: Cells | None) -> Fixed:  # (1 or b, statics, Y, X)
        """Return what is computed once for all frames: the part of static channels and location features."""
        planes = self._planes(static, cells)
        if planes is None:
            return Fixed(None, None)
        detail = planes if self.before else F.pixel_unshuffle(planes, self.spec.scale)
        return Fixed(self.stem.fixed(detail), self.merge.fixed(planes))

    def _planes(self, static: Tensor | None, cells: Cells | None) -> Tensor | None:
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
        fused = fine if self.before else self.upsampler.needs(fine)
        features = fused if self.fusion is None else fused.union(self.fusion.needs(fused))
        inner = self.stem.needs(self.backbone.needs(features))
        read = self.upsampler.needs(inner) if self.before else inner
        return read.union(fine.coarsened(self.spec.scale))

    @property
    def reach(self) -> int:
        """Neighbouring coarse cells on each side that the network's convolutions read."""
        return halo_of(self, self.spec.scale)


def build_network(spec: NetworkSpec) -> SuperResolution:
    """Return a new network for `spec`; names are resolved here, an unknown one lists the choices."""
    return SuperResolution(spec)


def output_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation of the output, a function of tensors of any shape."""
    return ACTIVATIONS.get(name)()


def _location(spec: NetworkSpec) -> LocationFeatures | None:
    if not spec.config.location_features or spec.domain is None:
        return None
    return LocationFeatures(spec.config.location_features, spec.domain)


def _fusion(spec: NetworkSpec, *, before: bool) -> RecurrentFusion | None:
    """Return the recurrent block; its state is narrow at the fine grid, where cells are many."""
    if spec.time_window is None:
        return None
    width = spec.config.width
    return RecurrentFusion(width, max(4, width // (4 if before else 2)), spec.time_window)


def _start_at_zero(head: nn.Module) -> None:
    """Zero the last convolution: training starts at the linear baseline, not worse."""
    last = [module for module in head.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
