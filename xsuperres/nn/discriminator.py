"""Discriminators: networks that tell true fine fields from made ones, patch by patch.

Torch only, no xarray; tensors are scaled. The contract: ``discriminator(spec)`` returns a module that maps the fine
field (b, outputs, Y, X), the coarse frames (b, frames x inputs, y, x) and the fine static channels (1 or b, statics, Y,
X) to one logit per patch, (b, 1, y', x'). To add one, decorate a class with ``@DISCRIMINATORS.add("name")``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsuperres.config import AdversarialConfig
from xsuperres.nn.network import NetworkSpec
from xsuperres.registry import Registry

__all__ = ["DISCRIMINATORS", "Discriminator", "DiscriminatorSpec", "build_discriminator", "discriminator_spec"]


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSpec:
    """All that determines a discriminator's layers; stored in the model file with it."""

    name: str
    scale: int
    outputs: int  # fine fields
    inputs: int  # coarse channels of all frames of a window together
    statics: int
    width: int
    depth: int


class Discriminator(nn.Module):
    """Base of the discriminators."""

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, fine: Tensor, coarse: Tensor, static: Tensor | None) -> Tensor:
        """Return the logits (b, 1, y', x')."""
        raise TypeError(f"{type(self).__name__} must define forward(fine, coarse, static).")


DISCRIMINATORS: Registry[Callable[[DiscriminatorSpec], Discriminator]] = Registry("discriminator")


@DISCRIMINATORS.add("residual")
class ResidualDiscriminator(Discriminator):
    """A residual patch discriminator (Isola et al. 2017, arXiv:1611.07004).

    It sees the fine field, its differences, the static fields and the coarse ones on the coarse grid, fine cells as
    channels (space-to-depth), and judges each coarse cell with its neighbourhood. Without normalisation, which would
    mix the samples of a batch that the gradient penalty looks at one by one.
    """

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__(spec)
        width, cells = spec.width, spec.scale**2
        self.stem = nn.Conv2d((spec.outputs + spec.statics) * cells + spec.inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(spec.depth)
        )  # fmt: skip
        self.head = nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))

    def forward(self, fine: Tensor, coarse: Tensor, static: Tensor | None) -> Tensor:
        parts = [F.pixel_unshuffle(fine, self.spec.scale), coarse]
        if static is not None:
            parts.append(F.pixel_unshuffle(static, self.spec.scale).expand(len(fine), -1, -1, -1))
        x = self.stem(torch.cat(parts, dim=1))  # (b, width, y, x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def discriminator_spec(spec: NetworkSpec, game: AdversarialConfig) -> DiscriminatorSpec:
    """Return the spec of the discriminator that the settings ask for, against the network of `spec`."""
    return DiscriminatorSpec(
        name=DISCRIMINATORS.canonical(game.discriminator),
        scale=spec.scale,
        outputs=spec.targets,
        inputs=spec.inputs * (spec.time_window or 1),
        statics=spec.statics,
        width=game.width,
        depth=game.depth,
    )


def build_discriminator(spec: DiscriminatorSpec) -> Discriminator:
    """Return a new discriminator for `spec`; an unknown name lists the choices."""
    return DISCRIMINATORS.get(spec.name)(spec)
