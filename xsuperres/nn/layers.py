"""Layers that a network's settings choose by name: activation, normalisation, dropout, attention.

Torch only, no xarray; tensors are (b, c, y, x). Activations, normalisations and dropout act on each cell by itself;
attention looks at a neighbourhood or at the whole domain, and says so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsuperres.errors import ConfigError
from xsuperres.nn.geometry import Block, Chain, Interval, Pointwise
from xsuperres.nn.place import here, normal, uniform
from xsuperres.registry import Registry

__all__ = [
    "ACTIVATIONS",
    "ATTENTION",
    "DROPOUT",
    "NORMALIZATION",
    "ChannelAttention",
    "ChannelNorm",
    "Dropout",
    "LocalAttention",
    "activation",
    "added",
    "attention",
    "dropout",
    "normalization",
    "output_activations",
]


class ReLU(nn.ReLU):
    """torch's, but for bfloat16 on a CPU, which that takes to float32 and back: four times slower.

    There the bits are compared as integers: a negative number is a negative one.
    """

    def forward(self, input: Tensor) -> Tensor:  # any shape -> the same
        if input.dtype != torch.bfloat16 or input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        bits = input.view(torch.int16)
        return (bits.clamp_min_(0) if self.inplace else bits.clamp_min(0)).view(torch.bfloat16)


ACTIVATIONS: Registry[Callable[[], nn.Module]] = Registry("activation")
for _name, _module in {
    "relu": ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}.items():
    ACTIVATIONS.add(_name, aliases=("swish",) if _name == "silu" else ())(_module)

NORMALIZATION: Registry[Callable[[int], nn.Module]] = Registry("normalization")  # a Block, or a module per cell
DROPOUT: Registry[Callable[[float], Block]] = Registry("dropout")
ATTENTION: Registry[Callable[[int], Block]] = Registry("attention")

_GROUPS = 4
_OVER_CELLS = (nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)  # statistics of whatever they see


_FROM_RESULT = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU)  # whose gradient is told by the result alone


def activation(name: str) -> Pointwise:
    """Return the activation called `name` as a block. It may write into its input, which nothing else must need."""
    module = ACTIVATIONS.get(name)()
    if isinstance(module, _FROM_RESULT):
        module.inplace = True
    return Pointwise(module)


def added(new: Tensor, other: Tensor) -> Tensor:
    """Return the sum, written into `new`, which nothing else must need, where no gradient is recorded."""
    return new + other if torch.is_grad_enabled() else new.add_(other)


def output_activations() -> list[str]:
    """Return the names of the activations an output may have: those without an upper limit, which would cut it off."""
    with torch.no_grad():
        return [name for name in ACTIVATIONS if bool(ACTIVATIONS.get(name)()(torch.tensor(1e6)) > 1e3)]


def normalization(name: str | None, width: int) -> Block:
    """Return the normalisation of `width` channels called `name`; None leaves them as they are.

    Raises
    ------
    ConfigError
        If what is registered takes statistics over cells without being a block that says so.
    """
    if name is None:
        return Chain()
    module = NORMALIZATION.get(name)(width)
    if isinstance(module, Block):
        return module
    over = [type(part).__name__ for part in module.modules() if isinstance(part, _OVER_CELLS)]
    if over:
        raise ConfigError(
            f"normalization={name!r} is torch's {over[0]}, whose statistics are those of the cells it sees: results "
            "would depend on the tiles. Use 'layer' or 'group', which act on each cell by itself, or register a Block "
            "with global_context=True."
        )
    return Pointwise(module)


def dropout(name: str | None, rate: float | None) -> Block:
    """Return the dropout called `name`; None drops nothing."""
    return Chain() if name is None or not rate else DROPOUT.get(name)(rate)


def attention(name: str | None, width: int) -> Block:
    """Return the attention over `width` channels called `name`; None weighs nothing."""
    return Chain() if name is None else ATTENTION.get(name)(width)


NORMALIZATION.add("batch", aliases=("bn",))(nn.BatchNorm2d)


class ChannelNorm(nn.Module):
    """Normalise groups of channels in each cell by itself, then scale and shift each channel.

    One group is layer normalisation (Ba et al. 2016, arXiv:1607.06450) as convolutional networks use it, several are
    group normalisation (Wu and He 2018, arXiv:1803.08494), both without looking at other cells.
    """

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = max(g for g in range(1, groups + 1) if (width % g == 0 and width // g > 1) or g == 1)
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:  # (b, c, y, x) -> the same
        b, c, ny, nx = x.shape
        parts = x.permute(0, 2, 3, 1).reshape(b, ny, nx, self.groups, c // self.groups)
        normal = F.layer_norm(parts, parts.shape[-1:]).reshape(b, ny, nx, c)
        return (normal * self.scale + self.shift).permute(0, 3, 1, 2)


NORMALIZATION.add("layer", aliases=("ln",))(ChannelNorm)


@NORMALIZATION.add("group")
def _group_norm(width: int) -> nn.Module:
    return ChannelNorm(width, _GROUPS)


class Dropout(Block):
    """Dropout during training, and at inference for members (Monte Carlo dropout; Gal and Ghahramani 2016).

    At inference the random numbers are those of the place, so that they do not depend on the chunking; without members
    nothing is dropped.
    """

    per_cell = True
    layer = 0  # set by the network: layers must not drop alike

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (b, c, y, x) -> the same
        place = here()
        if not self.training and (place is None or place.keys is None):
            return x
        return x * self.factor(x)

    def factor(self, x: Tensor) -> Tensor:
        """Return what `x` (b, c, y, x) is multiplied by: 0, or 1 over the share that is kept."""
        return (self.random(x) >= self.rate).to(x.dtype) / (1 - self.rate)

    def random(self, x: Tensor) -> Tensor:
        """Return uniform random numbers (b, c, y, x), or (b, c, 1, 1) for whole channels."""
        place = here()
        if place is not None and place.keys is not None:
            return uniform(place, x, self.layer, per_cell=self.per_cell)
        shape = x.shape if self.per_cell else (*x.shape[:2], 1, 1)
        return torch.rand(shape, device=x.device)

    def needs(self, out: Interval) -> Interval:
        return out


DROPOUT.add("vanilla")(Dropout)


@DROPOUT.add("spatial")
class SpatialDropout(Dropout):
    """Drop whole channels (Tompson et al. 2015, arXiv:1411.4280)."""

    per_cell = False


@DROPOUT.add("gaussian")
class GaussianDropout(Dropout):
    """Multiply by noise of mean 1 and variance rate / (1 - rate) (Srivastava et al. 2014)."""

    def factor(self, x: Tensor) -> Tensor:
        place = here()
        placed = place is not None and place.keys is not None
        noise = normal(place, x, self.layer) if place is not None and placed else torch.randn(x.shape, device=x.device)
        return 1 + noise.to(x.dtype) * (self.rate / (1 - self.rate)) ** 0.5


@ATTENTION.add("channel")
class ChannelAttention(Block):
    """Weigh channels by their means over the whole domain (squeeze and excitation; Hu et al. 2018, arXiv:1709.01507).

    The domain must be seen whole: such a network has no halo, and no tiles in y and x.
    """

    global_context = True

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(2, width // 4)
        self.squeeze, self.excite = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, y, x) -> the same
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(self.mean(x)))))

    def mean(self, x: Tensor) -> Tensor:
        """Return the means that weigh (b, c, 1, 1), wrapped columns left out."""
        place = here()
        domain = x if place is None else place.domain(x)
        return domain.mean(dim=(-2, -1), keepdim=True)

    def needs(self, out: Interval) -> Interval:
        return out


@ATTENTION.add("local")
class LocalAttention(ChannelAttention):
    """Weigh channels by their means over the neighbourhood of each cell: channel attention that tiles."""

    global_context = False
    reach = 4  # cells of the grid it acts on

    def mean(self, x: Tensor) -> Tensor:
        """Return sliding means (b, c, y, x) over the cells of the domain within the reach."""
        size = 2 * self.reach + 1
        return F.avg_pool2d(x, size, stride=1, padding=self.reach, count_include_pad=False)

    def needs(self, out: Interval) -> Interval:
        return out.grow(self.reach)
